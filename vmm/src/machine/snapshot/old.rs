//! Formats 3 and 4.
//!
//! ```text
//!   0  magic     8   "TANDEMSN"
//!   8  version   u32 LE
//!  12  sections  u32 LE
//!      section:  kind length u8, kind, version u16 LE, payload length u32 LE, crc u32 LE, payload
//!      memory:   length u64 LE, crc u32 LE, then all of it
//! ```
//!
//! The sections are those of format 5, in its order. Format 3 has none for the register of the exit status,
//! which nobody has written there.

use super::read::{Bounded, Saved, decode};
use super::{RUN_BYTES_MAX, SECTION_MAX, SnapshotError, malformed};
use crate::devices::{Chip, exit_status};
use crate::machine::board::Board;
use crate::machine::config::MachineConfig;
use crate::memory::GuestMemory;
use std::io::Read;
use vm_memory::{Bytes, GuestAddress};

/// Sections that are no chip's.
const OTHERS: usize = 5;

/// A snapshot of an old format, behind its first section.
pub(super) struct Old<R> {
    from: Bounded<R>,
    version: u32,
    sections: u32,
}

impl<R: Read> Old<R> {
    /// Reads on behind magic number and version.
    pub(super) fn open(
        mut from: Bounded<R>,
        version: u32,
    ) -> Result<(Self, MachineConfig), SnapshotError> {
        let sections = from.u32()?;
        let mut old = Self {
            from,
            version,
            sections,
        };
        let config = decode("machine", old.section("machine")?)?;
        Ok((old, config))
    }

    /// The next section's version and payload, which must be of this kind.
    fn section(&mut self, kind: &'static str) -> Result<(u16, Vec<u8>), SnapshotError> {
        let [length] = self.from.array()?;
        let found = self.from.bytes(length.into())?;
        if found != kind.as_bytes() {
            let found = String::from_utf8_lossy(&found);
            return Err(malformed(format!("'{found}' where '{kind}' should be")));
        }
        let version = u16::from_le_bytes(self.from.array()?);
        let length = u64::from(self.from.u32()?);
        let crc = self.from.u32()?;
        if length > SECTION_MAX {
            return Err(malformed(format!("'{kind}' is too long")));
        }
        let payload = self.from.bytes(length)?;
        if crc32fast::hash(&payload) != crc {
            return Err(malformed(format!("checksum of '{kind}' wrong")));
        }
        Ok((version, payload))
    }

    /// Puts the memory into `memory`, and takes the rest out, to the end of the stream.
    pub(super) fn read(
        mut self,
        config: MachineConfig,
        memory: &GuestMemory,
    ) -> Result<Saved, SnapshotError> {
        let version = self.version;
        let has = |chip: &dyn Chip| version > 3 || chip.kind() != exit_status::KIND;
        let board = Board::new(&config);
        let chips = board.chips().into_iter().filter(|chip| has(*chip)).count();
        if self.sections as usize != chips + OTHERS {
            return Err(malformed(format!("{} sections", self.sections)));
        }
        let bytes = config.memory_bytes();
        let saved = Saved::read(config, has, |kind| self.section(kind))?;
        self.memory(bytes, memory)?;
        Ok(saved)
    }

    fn memory(&mut self, bytes: u64, memory: &GuestMemory) -> Result<(), SnapshotError> {
        if self.from.u64()? != bytes {
            return Err(malformed("memory of another size"));
        }
        let expected = self.from.u32()?;
        let mut crc = crc32fast::Hasher::new();
        let mut run = vec![0; RUN_BYTES_MAX];
        for at in (0..bytes).step_by(RUN_BYTES_MAX) {
            let length = (bytes - at).min(RUN_BYTES_MAX as u64) as usize;
            let piece = &mut run[..length];
            self.from.fill(piece)?;
            crc.update(piece);
            memory
                .write_slice(piece, GuestAddress(at))
                .map_err(|e| malformed(e.to_string()))?;
        }
        if crc.finalize() != expected {
            return Err(malformed("checksum of memory wrong"));
        }
        self.from.end()
    }
}
