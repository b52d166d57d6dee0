//! A machine's state as a stream.
//!
//! ```text
//!   0  magic    8   "TANDEMSN"
//!   8  version  u32 LE, 6
//!  12  memory   u64 LE, bytes of guest memory
//!  20  crc      u32 LE, of the 20 bytes before
//!  24  parts, each:
//!      tag      u8
//!      head     1 section:  kind length u8, kind, version u16 LE, payload length u32 LE
//!               2 pages:    first page u32 LE, count u32 LE, 64 at most; the payload is these pages
//!               3 zeros:    first page u32 LE, count u32 LE; no payload
//!               0 end:      number of parts before it u64 LE; no payload
//!      crc      u32 LE, of tag, head and payload
//!      payload
//! ```
//!
//! The parts in their order: the section `machine`, which is the configuration; the memory; the sections
//! `cpu`, `pending` (what the board keeps besides its chips), `loop` (where in the run loop it stands), `time`
//! (nothing where it is logged), and one for each chip; the end. A page may come several times, and the last
//! time counts: so memory can be sent while the guest still runs ([`SnapshotWriter`]). Each comes once at
//! least. Bytes behind the end are an error.
//!
//! Neither side holds guest memory a second time: 64 pages at most are under way. What a length in a stream
//! claims sizes nothing; memory for a payload is taken as its bytes come.
//!
//! Format 5 differs in the kinds of boards there are, and is read alike. Formats 3 and 4 (`old`) are read, too.
//! None of them is written any more.

mod old;
mod read;
mod write;

pub use read::Snapshot;
pub use write::{Rest, SnapshotWriter};

use super::config::ConfigError;
use super::state::Standing;
use super::time::TimeError;
use crate::devices::DeviceError;
use crate::engine::EngineError;
use crate::memory::PAGE_BYTES;

const MAGIC: [u8; 8] = *b"TANDEMSN";
/// The format that is written.
pub const FORMAT_VERSION: u32 = 6;
/// The oldest format that is a stream of parts.
const PARTS_SINCE: u32 = 5;
/// Most bytes of one section.
const SECTION_MAX: u64 = replay::codec::BLOB_MAX as u64;
/// Version of the sections that are no chip's.
const SECTION_VERSION: u16 = 1;
/// Pages of one part, at most.
const RUN_PAGES_MAX: u64 = 64;
/// Bytes of one part of pages, at most.
const RUN_BYTES_MAX: usize = (RUN_PAGES_MAX * PAGE_BYTES) as usize;

/// What a part is.
mod tag {
    pub const END: u8 = 0;
    pub const SECTION: u8 = 1;
    pub const PAGES: u8 = 2;
    pub const ZEROS: u8 = 3;
}

/// What is wrong with a snapshot, or with taking one.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The vCPU cannot be read or written.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The vCPU waits for data, or the machine stands in the middle of a step: not a place to take one.
    #[error("a snapshot cannot be taken while the guest waits for a device's answer")]
    Busy,
    /// The bytes are no snapshot of ours.
    #[error("snapshot: {0}")]
    Malformed(String),
    /// The stream cannot be written, or not be read.
    #[error("snapshot: {0}")]
    Stream(#[source] std::io::Error),
    /// A chip refuses its section.
    #[error("snapshot: {0}")]
    Device(#[from] DeviceError),
    /// Its guest time is not one.
    #[error("snapshot: {0}")]
    Time(#[from] TimeError),
    /// The configuration in it is out of bounds.
    #[error("snapshot: {0}")]
    Config(#[from] ConfigError),
}

fn malformed(what: impl Into<String>) -> SnapshotError {
    SnapshotError::Malformed(what.into())
}

/// The section `loop`: nothing for a machine that has not run; else whether the stop it stands at is natural.
type Settled = Option<bool>;

impl Standing {
    /// As it is saved; `None` where no snapshot can be taken.
    fn saved(self) -> Option<Settled> {
        match self {
            Self::BEGIN => Some(None),
            Self::Settled { natural } => Some(Some(natural)),
            Self::Stopped { .. } | Self::Inside(_) => None,
        }
    }

    fn restored(settled: Settled) -> Self {
        settled.map_or(Self::BEGIN, |natural| Self::Settled { natural })
    }
}

#[cfg(test)]
mod tests;
