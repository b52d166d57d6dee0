//! What fuzzers throw bytes at: every decoder of what peers, files and guests say.
//!
//! Each target takes any bytes. It must not panic, hang, or take memory as the bytes please. Where a checksum would
//! keep all but sound bytes away, the target computes it anew, so that what lies behind it is tried.
//!
//! `tests/corpora.rs` tries all that is in `corpora`; `guided` finds more, by coverage.

mod devices;
mod network;
mod stored;
mod wire;

/// A target.
pub struct Target {
    /// Its name, and that of its folder in `corpora`.
    pub name: &'static str,
    /// Takes any bytes.
    pub take: fn(&[u8]),
}

/// All targets.
pub const TARGETS: [Target; 9] = [
    Target {
        name: "frames",
        take: wire::frames,
    },
    Target {
        name: "entries",
        take: wire::entries,
    },
    Target {
        name: "handover",
        take: wire::handover,
    },
    Target {
        name: "log",
        take: stored::log,
    },
    Target {
        name: "snapshot",
        take: stored::snapshot,
    },
    Target {
        name: "bundle",
        take: stored::bundle,
    },
    Target {
        name: "block",
        take: devices::block,
    },
    Target {
        name: "net",
        take: devices::net,
    },
    Target {
        name: "switch",
        take: network::switch,
    },
];

/// The target of this name.
#[must_use]
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

/// Numbers and bytes, taken from the front of what the fuzzer made; 0 where that is at its end.
pub(crate) struct Bytes<'a>(pub(crate) &'a [u8]);

impl<'a> Bytes<'a> {
    pub(crate) fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    pub(crate) fn u8(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    pub(crate) fn u16(&mut self) -> u16 {
        u16::from_le_bytes([self.u8(), self.u8()])
    }

    pub(crate) fn u32(&mut self) -> u32 {
        u32::from(self.u16()) | u32::from(self.u16()) << 16
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
