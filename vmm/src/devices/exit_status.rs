//! The register by which a Linux guest says what its power-off means: an exit status, as a process has.
//!
//! ```text
//!  abi::CONTROL_PAGE + abi::control::EXIT_STATUS   8 bits   the status; 0 until it is written
//! ```
//!
//! ACPI's soft-off carries no status, so an unmodified kernel cannot tell one. A program in the guest can, by
//! a single byte to this register through `/dev/mem`, which the strictest kernels let root map where neither
//! RAM nor a driver is. A port would need `/dev/port`, which Debian's cloud kernel is built without. Nothing
//! else of Linux is at that page, so no program writes there by accident. Writing does nothing by itself: the
//! machine ends when the guest switches it off.
//!
//! Deterministic: the status is the guest's own write, so a log needs no entry for it.

use super::{Chip, DeviceError};

/// Where it is.
pub const ADDRESS: u64 = abi::CONTROL_PAGE + abi::control::EXIT_STATUS;

/// Its name in a snapshot.
pub const KIND: &str = "exit-status";
const VERSION: u16 = 1;

/// The register.
///
/// Its saved state is the byte that was written, and no byte before that: the state digest of a machine
/// that never wrote it is what it was before there was this register, and recordings from then replay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExitStatus(Option<u8>);

impl ExitStatus {
    /// Nothing written.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The guest reads it; and the status its power-off ends the machine with.
    #[must_use]
    pub fn read(self) -> u8 {
        self.0.unwrap_or(0)
    }

    /// The guest writes it.
    pub fn write(&mut self, status: u8) {
        self.0 = Some(status);
    }
}

impl Chip for ExitStatus {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn version(&self) -> u16 {
        VERSION
    }

    fn save_bytes(&self) -> Vec<u8> {
        self.0.into_iter().collect()
    }

    fn restore_bytes(&mut self, version: u16, bytes: &[u8]) -> Result<(), DeviceError> {
        let status = match (version, bytes) {
            (VERSION, []) => None,
            (VERSION, &[status]) => Some(status),
            _ => {
                return Err(DeviceError::Impossible {
                    kind: KIND,
                    what: "another version, or more than a byte",
                });
            }
        };
        self.0 = status;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_holds_the_last_status_written() {
        let mut exit = ExitStatus::new();
        assert_eq!(exit.read(), 0);
        exit.write(7);
        exit.write(255);
        assert_eq!(exit.read(), 255);
    }

    #[test]
    fn its_state_is_what_was_written_and_nothing_else_is_one() {
        let written = |status: u8| {
            let mut exit = ExitStatus::new();
            exit.write(status);
            exit
        };
        for exit in [ExitStatus::new(), written(0), written(3)] {
            let mut other = written(99);
            other.restore_bytes(VERSION, &exit.save_bytes()).unwrap();
            assert_eq!(other, exit);
        }
        assert!(ExitStatus::new().save_bytes().is_empty(), "as without it");
        assert_ne!(written(0).save_bytes(), written(3).save_bytes());
        let mut exit = written(5);
        for (version, bytes) in [(VERSION, &[1, 2][..]), (VERSION + 1, &[1])] {
            assert!(exit.restore_bytes(version, bytes).is_err());
            assert_eq!(exit, written(5), "unchanged");
        }
    }
}
