//! What two replicas must agree on before either runs.

use super::time::TscMode;
use crate::cpu::CpuModel;
use crate::devices::virtio::block::SECTORS_MAX;
use replay::ClockKind;
use serde::{Deserialize, Serialize};

/// Least guest memory, in MiB.
pub const MEMORY_MIB_MIN: u32 = 16;
/// Most guest memory, in MiB: what lies below the device windows.
pub const MEMORY_MIB_MAX: u32 = 3072;

/// What surrounds the vCPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BoardKind {
    /// What bare-metal guests need, and nothing an access to would be a mistake.
    #[default]
    Bare,
    /// What an unmodified Linux kernel needs besides, as it was up to log format 6: ACPI, an entropy source,
    /// and the ports a kernel was known to try out. An access anywhere else ends the machine. Machines of old
    /// logs and snapshots have it, new ones do not.
    #[serde(rename = "pc")]
    FirstPc,
    /// What an unmodified Linux kernel needs besides: ACPI, an entropy source, a clock that interrupts, and a
    /// bus that answers where nothing is.
    #[serde(rename = "pc-2")]
    Pc,
}

impl BoardKind {
    /// Whether it is one for Linux.
    #[must_use]
    pub fn is_pc(self) -> bool {
        self != Self::Bare
    }

    /// Whether an image that needs the board `needed` runs on this one.
    #[must_use]
    pub fn serves(self, needed: Self) -> bool {
        self.is_pc() == needed.is_pc()
    }
}

impl std::fmt::Display for BoardKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Bare => "bare",
            Self::FirstPc => "pc",
            Self::Pc => "pc-2",
        })
    }
}

/// Reads a hardware address of one station, as 52:54:00:7a:4d:01.
///
/// # Errors
/// What is wrong with it.
pub fn parse_mac(text: &str) -> Result<[u8; 6], String> {
    let parts: Vec<u8> = text
        .split(':')
        .map(|part| u8::from_str_radix(part, 16).map_err(|e| format!("'{part}': {e}")))
        .collect::<Result<_, _>>()?;
    match <[u8; 6]>::try_from(parts) {
        Ok(bytes @ [first, ..]) if first % 2 == 0 && bytes != [0; 6] => Ok(bytes),
        Ok(_) => Err("it is no single station's address".into()),
        Err(_) => Err("it takes six bytes, as 52:54:00:7a:4d:01".into()),
    }
}

/// A machine's configuration: everything its first state depends on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineConfig {
    /// The guest: the name of a built-in one, or a path.
    pub guest: String,
    /// Digest of its image ([`super::boot::GuestImage::digest`]).
    pub image_digest: u64,
    /// Guest memory in MiB.
    pub memory_mib: u32,
    /// The guest's command line.
    pub cmdline: String,
    /// What CPUID says.
    pub cpu: CpuModel,
    /// What the clock counts.
    pub clock_kind: ClockKind,
    /// Where guest time comes from.
    pub tsc: TscMode,
    /// Address of the network device.
    pub mac: [u8; 6],
    /// Size of the disk in sectors of 512 bytes, [`SECTORS_MAX`] at most; no disk if absent.
    pub disk_sectors: Option<u64>,
    /// The path of a Linux kernel's initrd, if it has one.
    pub initrd: Option<String>,
    /// What surrounds the vCPU, as the image needs it ([`super::boot::GuestImage::board`]).
    pub board: BoardKind,
    /// Whether the machine starts over when the guest resets it; if not, it ends with
    /// [`super::RESET_STATUS`].
    pub reboots: bool,
}

/// Why a configuration cannot be run.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Memory outside the bounds.
    #[error("{0} MiB of guest memory: it takes {MEMORY_MIB_MIN} to {MEMORY_MIB_MAX}")]
    Memory(u32),
    /// The command line is too long, or has a NUL or line break in it.
    #[error(
        "the guest's command line must be under {} bytes, without NUL",
        abi::CMDLINE_MAX
    )]
    Cmdline,
    /// A multicast or zero hardware address.
    #[error("{0:02x?} is no hardware address for one device")]
    Mac([u8; 6]),
    /// The disk is too large.
    #[error("a disk of {0} sectors: it takes at most {SECTORS_MAX}")]
    Disk(u64),
}

impl MachineConfig {
    /// A machine for the bare-metal guest `guest`, whose image has the digest `image_digest`, with the least
    /// of everything: no disk, no time but what is logged. It counts blocks, so that any engine runs it.
    #[must_use]
    pub fn bare(guest: &str, image_digest: u64, cmdline: &str) -> Self {
        Self {
            guest: guest.to_owned(),
            image_digest,
            memory_mib: MEMORY_MIB_MIN,
            cmdline: cmdline.to_owned(),
            cpu: CpuModel::V1,
            clock_kind: ClockKind::Blocks,
            tsc: TscMode::Logged,
            mac: [0x52, 0x54, 0, 0x7a, 0x4d, 1],
            disk_sectors: None,
            initrd: None,
            board: BoardKind::Bare,
            reboots: true,
        }
    }

    /// Checks the bounds. A configuration from a peer or a file is not to be used before.
    ///
    /// # Errors
    /// What is out of bounds.
    pub fn check(&self) -> Result<(), ConfigError> {
        if !(MEMORY_MIB_MIN..=MEMORY_MIB_MAX).contains(&self.memory_mib) {
            return Err(ConfigError::Memory(self.memory_mib));
        }
        if self.cmdline.len() >= abi::CMDLINE_MAX || self.cmdline.contains('\0') {
            return Err(ConfigError::Cmdline);
        }
        if self.mac[0] & 1 != 0 || self.mac == [0; 6] {
            return Err(ConfigError::Mac(self.mac));
        }
        match self.disk_sectors {
            Some(sectors) if sectors > SECTORS_MAX => Err(ConfigError::Disk(sectors)),
            _ => Ok(()),
        }
    }

    /// Guest memory in bytes.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        u64::from(self.memory_mib) << 20
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> MachineConfig {
        MachineConfig {
            guest: "test".into(),
            image_digest: 0,
            memory_mib: MEMORY_MIB_MIN,
            cmdline: String::new(),
            cpu: CpuModel::V1,
            clock_kind: ClockKind::Blocks,
            tsc: TscMode::Logged,
            mac: [2, 0, 0, 0, 0, 1],
            disk_sectors: None,
            initrd: None,
            board: BoardKind::Bare,
            reboots: true,
        }
    }

    #[test]
    fn bounds_are_checked() {
        assert_eq!(config().check(), Ok(()));
        let with = |change: fn(&mut MachineConfig)| {
            let mut config = config();
            change(&mut config);
            config.check()
        };
        assert_eq!(with(|c| c.memory_mib = 15), Err(ConfigError::Memory(15)));
        assert_eq!(
            with(|c| c.memory_mib = 3073),
            Err(ConfigError::Memory(3073))
        );
        assert_eq!(
            with(|c| c.cmdline = "a\0".into()),
            Err(ConfigError::Cmdline)
        );
        assert_eq!(
            with(|c| c.cmdline = "a".repeat(abi::CMDLINE_MAX)),
            Err(ConfigError::Cmdline)
        );
        assert_eq!(with(|c| c.mac = [0; 6]), Err(ConfigError::Mac([0; 6])));
        assert_eq!(with(|c| c.mac = [1; 6]), Err(ConfigError::Mac([1; 6])));
        assert_eq!(with(|c| c.disk_sectors = Some(SECTORS_MAX)), Ok(()));
        let more = SECTORS_MAX + 1;
        assert_eq!(
            with(|c| c.disk_sectors = Some(SECTORS_MAX + 1)),
            Err(ConfigError::Disk(more))
        );
        assert!(with(|c| c.disk_sectors = Some(u64::MAX)).is_err());
    }
}
