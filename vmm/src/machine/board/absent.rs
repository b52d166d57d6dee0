//! Ports and addresses at which a PC has nothing: what answers there, and who is told of it.
//!
//! On a PC's buses an access that no chip claims still ends: a read sees all ones, a write goes nowhere. Whether
//! there is a chip follows from the machine's configuration alone, so no entry of a log is needed.
//!
//! Telling is for the operator: `--report-absent` has each such place told once, on standard error. It is in no
//! state and no digest, so a replay may tell of what its recording did not.

use super::legacy;
use crate::engine::Bus;
use std::sync::atomic::{AtomicBool, Ordering};

/// Places of one machine that are told of, at most: a guest chooses how many it touches.
const TOLD_MAX: usize = 64;

/// Whether machines of this process tell.
static REPORTED: AtomicBool = AtomicBool::new(false);

/// Has all machines of this process tell of the places they touch where nothing is; for the command line.
pub fn report() {
    REPORTED.store(true, Ordering::Relaxed);
}

/// What an access of `size` bytes reads where nothing is.
#[must_use]
pub fn ones(size: u8) -> u64 {
    match size {
        8.. => u64::MAX,
        size => (1 << (8 * size)) - 1,
    }
}

/// The places that were told of.
#[derive(Debug, Default)]
pub(super) struct Absent {
    told: Vec<(Bus, u64)>,
}

impl Absent {
    /// The guest touched `size` bytes at `address`, where nothing is. `verb`: "reads" or "writes". Tells of it if
    /// that is asked for and new.
    pub(super) fn touched(&mut self, verb: &'static str, bus: Bus, address: u64, size: u8) {
        if REPORTED.load(Ordering::Relaxed)
            && let Some(line) = self.line(verb, bus, address, size)
        {
            tracing::warn!("{line}");
        }
    }

    /// What is to be told of it, if anything.
    fn line(&mut self, verb: &'static str, bus: Bus, address: u64, size: u8) -> Option<String> {
        if self.told.len() > TOLD_MAX || self.told.contains(&(bus, address)) {
            return None;
        }
        self.told.push((bus, address));
        if self.told.len() > TOLD_MAX {
            return Some(
                "the guest touches more places where nothing is, of which no more is told".into(),
            );
        }
        let place = match bus {
            Bus::Port => "port",
            Bus::Mmio | Bus::Tsc => "address",
        };
        let known = u16::try_from(address).ok().filter(|_| bus == Bus::Port);
        let why = known.and_then(|port| legacy::why_tolerated(port, size));
        let why = why.map_or(String::new(), |why| format!(" ({why})"));
        let plural = if size == 1 { "" } else { "s" };
        Some(format!(
            "the guest {verb} {size} byte{plural} at {place} {address:#x}, where nothing is{why}"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_bus_is_all_ones() {
        assert_eq!(
            [1, 2, 4, 8].map(ones),
            [0xff, 0xffff, 0xffff_ffff, u64::MAX]
        );
    }

    #[test]
    fn each_place_is_told_once_and_not_without_end() {
        let mut absent = Absent::default();
        let line = absent.line("reads", Bus::Port, 0x4e, 1);
        let expected = "the guest reads 1 byte at port 0x4e, where nothing is";
        assert_eq!(line.as_deref(), Some(expected));
        assert_eq!(absent.line("writes", Bus::Port, 0x4e, 1), None);
        let line = absent.line("writes", Bus::Port, 0x2e8, 2).unwrap();
        assert!(
            line.ends_with("2 bytes at port 0x2e8, where nothing is (COM4: probed)"),
            "{line}"
        );
        let line = absent.line("reads", Bus::Mmio, 0x4e, 4).unwrap();
        assert!(line.contains("4 bytes at address 0x4e"), "{line}");
        let lines = (0..1000).filter_map(|n| absent.line("reads", Bus::Mmio, 0xd000_0000 + n, 1));
        let lines: Vec<String> = lines.collect();
        assert_eq!(lines.len(), TOLD_MAX - 3 + 1);
        assert!(lines.last().unwrap().contains("no more"), "{lines:?}");
    }
}
