//! How much memory a replica's process takes beside its guest's.

use kit::host::{field, kib};
use kit::{Daemon, Pair};
use serde::Serialize;

/// Guest memory in every measurement, in MiB: what the command line gives a guest that asks for no more.
pub const GUEST_MIB: u32 = 64;

/// Most memory of the replicas beside their guest's, in KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Of the primary.
    pub primary_kib: u64,
    /// Of the backup.
    pub backup_kib: u64,
}

impl Memory {
    /// Looks at the processes of `pair`.
    pub fn look(&mut self, pair: &Pair) {
        let guest_kib = u64::from(GUEST_MIB) << 10;
        let over = |daemon: &Daemon| over_guest_kib(daemon.pid(), guest_kib).unwrap_or(0);
        self.primary_kib = self.primary_kib.max(over(&pair.primary));
        self.backup_kib = self.backup_kib.max(over(&pair.backup));
    }

    /// The larger of `self` and `other`, each for itself.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self {
            primary_kib: self.primary_kib.max(other.primary_kib),
            backup_kib: self.backup_kib.max(other.backup_kib),
        }
    }
}

/// The most memory the process `pid` had resident, less what its guest's memory of `guest_kib` has of it
/// now; none if the process is gone.
///
/// Right as long as the guest's memory has grown as far as it does when the most was reached.
#[must_use]
fn over_guest_kib(pid: u32, guest_kib: u64) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let maps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).ok()?;
    let peak = field(&status, "VmHWM").and_then(kib)?;
    Some(peak.saturating_sub(guest_resident_kib(&maps, guest_kib)))
}

/// Resident part of the mapping that holds the guest's memory: of those large enough, the fullest.
fn guest_resident_kib(maps: &str, guest_kib: u64) -> u64 {
    let (mut size, mut most) = (0, 0);
    for line in maps.lines() {
        let Some((key, value)) = line.split_once(':') else {
            continue;
        };
        match (key, kib(value.trim())) {
            ("Size", Some(value)) => size = value,
            ("Rss", Some(value)) if size >= guest_kib => most = most.max(value),
            _ => {}
        }
    }
    most
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
55d0c8a00000-55d0c8b00000 r-xp 00000000 00:1f 12    /bin/x
Size:               1024 kB
Rss:                 900 kB
7f00f8000000-7f00fc001000 rw-p 00000000 00:00 0
Size:              65540 kB
KernelPageSize:        4 kB
Rss:                2100 kB
Pss:                2100 kB
7f0100000000-7f0110000000 ---p 00000000 00:00 0
Size:             262144 kB
Rss:                   0 kB
";

    #[test]
    fn the_guests_memory_is_the_fullest_mapping_of_its_size() {
        assert_eq!(guest_resident_kib(MAPS, 65536), 2100);
        assert_eq!(guest_resident_kib(MAPS, 1024), 2100);
        assert_eq!(guest_resident_kib(MAPS, 1 << 20), 0);
    }

    #[test]
    fn this_process_has_some_and_one_that_is_gone_has_none() {
        assert!(over_guest_kib(std::process::id(), u64::MAX).is_some_and(|kib| kib > 100));
        assert_eq!(over_guest_kib(u32::MAX, 1), None);
    }
}
