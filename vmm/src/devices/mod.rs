//! Chips: no descriptor, no clock, no thread.
//!
//! ```text
//!  port and MMIO accesses ──▶ chip ──▶ bytes, frames, disk requests (`replay::Output`)
//!                              ▲  └──▶ interrupt lines ──▶ pic ──▶ vCPU
//!                              └ answers and arrivals
//! ```
//!
//! What a chip does follows from its state, the guest's accesses and guest memory alone. Time it asks
//! for, as an answer; input comes to it as an arrival (invariant 5). Every chip can be saved and
//! restored; restored bytes are as untrusted as the guest's rings.

pub mod acpi_pm;
pub mod exit_status;
pub mod pic;
pub mod pit;
pub mod rtc;
pub mod uart;
pub mod virtio;

use replay::LogError;
use replay::codec::{from_bytes, to_bytes};
use serde::{Serialize, de::DeserializeOwned};

/// What a chip refuses.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The end of a disk request that is not outstanding.
    #[error("no disk request {0} is outstanding")]
    UnknownTag(u32),
    /// A disk read ended with more or fewer bytes than were asked for.
    #[error("disk request {tag} asked for {expected} bytes, {found} came")]
    Length {
        /// The request.
        tag: u32,
        /// Bytes asked for.
        expected: u32,
        /// Bytes that came.
        found: usize,
    },
    /// A saved state of a version this program does not read.
    #[error("state of '{kind}' has version {found}, this program reads version {supported}")]
    Version {
        /// The chip.
        kind: &'static str,
        /// Version of the saved state.
        found: u16,
        /// Version of this program.
        supported: u16,
    },
    /// A saved state that cannot be decoded.
    #[error("state of '{kind}': {error}")]
    Decode {
        /// The chip.
        kind: &'static str,
        /// What the codec found.
        error: LogError,
    },
    /// A saved state no chip can have.
    #[error("state of '{kind}' is impossible: {what}")]
    Impossible {
        /// The chip.
        kind: &'static str,
        /// What is wrong.
        what: &'static str,
    },
}

/// A chip whose state can be taken out and put back.
///
/// What never changes while a machine lives (a hardware address, a capacity) is not in the state: it
/// comes from the machine's configuration.
pub trait Stateful {
    /// Everything that tells two such chips apart.
    type State: Serialize + DeserializeOwned + Clone + PartialEq + std::fmt::Debug;
    /// Name of the chip in a snapshot.
    const KIND: &'static str;
    /// Version of [`Stateful::State`].
    const VERSION: u16;

    /// The state.
    fn save(&self) -> Self::State;

    /// Takes on `state`, which is not trusted: what is accepted never makes the chip panic later.
    ///
    /// # Errors
    /// [`DeviceError::Impossible`]; the chip is unchanged then.
    fn restore(&mut self, state: Self::State) -> Result<(), DeviceError>;
}

/// A [`Stateful`] chip whose state is bytes.
pub trait Chip {
    /// Name of the chip in a snapshot.
    fn kind(&self) -> &'static str;

    /// Version of its state.
    fn version(&self) -> u16;

    /// Its state.
    fn save_bytes(&self) -> Vec<u8>;

    /// Takes on the state in `bytes`, which are not trusted.
    ///
    /// # Errors
    /// If the version differs, or the bytes are not exactly one possible state; the chip is unchanged
    /// then.
    fn restore_bytes(&mut self, version: u16, bytes: &[u8]) -> Result<(), DeviceError>;
}

impl<T: Stateful> Chip for T {
    fn kind(&self) -> &'static str {
        T::KIND
    }

    fn version(&self) -> u16 {
        T::VERSION
    }

    fn save_bytes(&self) -> Vec<u8> {
        to_bytes(&self.save())
    }

    fn restore_bytes(&mut self, version: u16, bytes: &[u8]) -> Result<(), DeviceError> {
        let kind = T::KIND;
        if version != T::VERSION {
            let (found, supported) = (version, T::VERSION);
            return Err(DeviceError::Version {
                kind,
                found,
                supported,
            });
        }
        let state = from_bytes(bytes).map_err(|error| DeviceError::Decode { kind, error })?;
        self.restore(state)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// What every chip must pass: change, save, restore, equal; and damaged bytes change nothing.
    pub(crate) fn conforms<T: Stateful>(mut fresh: T, changed: &T) {
        let initial = fresh.save();
        let (state, bytes) = (changed.save(), changed.save_bytes());
        assert_ne!(initial, state, "the test must change the chip");
        assert!(matches!(
            fresh.restore_bytes(T::VERSION + 1, &bytes),
            Err(DeviceError::Version { .. })
        ));
        for cut in 0..bytes.len() {
            assert!(
                fresh.restore_bytes(T::VERSION, &bytes[..cut]).is_err(),
                "cut at {cut}"
            );
            assert_eq!(fresh.save(), initial, "a refusal changes nothing");
        }
        let longer = [&bytes[..], &[0]].concat();
        assert!(fresh.restore_bytes(T::VERSION, &longer).is_err());
        assert_eq!(fresh.save(), initial);
        fresh.restore_bytes(T::VERSION, &bytes).expect("own bytes");
        assert_eq!(fresh.save(), state);
    }
}
