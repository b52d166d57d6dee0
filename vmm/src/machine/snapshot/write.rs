//! A machine into a stream.

use super::{
    FORMAT_VERSION, MAGIC, RUN_BYTES_MAX, RUN_PAGES_MAX, SECTION_MAX, SECTION_VERSION,
    SnapshotError, tag,
};
use crate::engine::{Engine, EngineError, VmEntry};
use crate::machine::config::MachineConfig;
use crate::machine::state::Machine;
use crate::memory::{GuestMemory, PAGE_BYTES, PageSet, is_zero, populated};
use replay::codec::to_bytes;
use std::io::Write;
use std::ops::Range;
use vm_memory::{Bytes, GuestAddress};

/// A snapshot that is being written: its beginning, then all pages, in any order and as often as they change,
/// then the [`Rest`]. What [`Machine::save`] does at one place, for a guest that runs on while its memory is
/// sent.
pub struct SnapshotWriter<W> {
    out: W,
    parts: u64,
    /// One part of pages.
    run: Box<[u8]>,
    /// The pages that were not zero when they were last written.
    full: PageSet,
}

/// All there is to a machine but its memory, as it was where [`Machine::rest`] took it.
pub struct Rest(Vec<(&'static str, u16, Vec<u8>)>);

impl<W: Write> SnapshotWriter<W> {
    /// Begins a snapshot of a machine of this `config` in `out`.
    ///
    /// # Errors
    /// If the stream takes no more.
    pub fn begin(out: W, config: &MachineConfig) -> Result<Self, SnapshotError> {
        let mut writer = Self {
            out,
            parts: 0,
            run: vec![0; RUN_BYTES_MAX].into(),
            full: PageSet::new(config.memory_bytes() / PAGE_BYTES),
        };
        let mut head = MAGIC.to_vec();
        head.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        head.extend_from_slice(&config.memory_bytes().to_le_bytes());
        let crc = crc32fast::hash(&head);
        head.extend_from_slice(&crc.to_le_bytes());
        writer.out.write_all(&head).map_err(SnapshotError::Stream)?;
        writer.section("machine", SECTION_VERSION, &to_bytes(config))?;
        Ok(writer)
    }

    /// Where it is written to.
    pub fn out_mut(&mut self) -> &mut W {
        &mut self.out
    }

    /// How many pages were not zero when they were last written.
    #[must_use]
    pub fn full_pages(&self) -> u64 {
        self.full.len()
    }

    fn section(&mut self, kind: &str, version: u16, payload: &[u8]) -> Result<(), SnapshotError> {
        assert!(payload.len() as u64 <= SECTION_MAX, "'{kind}' is bounded");
        let mut head = vec![u8::try_from(kind.len()).expect("kinds are short")];
        head.extend_from_slice(kind.as_bytes());
        head.extend_from_slice(&version.to_le_bytes());
        let length = u32::try_from(payload.len()).expect("sections are bounded");
        head.extend_from_slice(&length.to_le_bytes());
        put(&mut self.out, &mut self.parts, tag::SECTION, &head, payload)
    }

    fn zeros(&mut self, pages: Range<u64>) -> Result<(), SnapshotError> {
        if pages.is_empty() {
            return Ok(());
        }
        put(
            &mut self.out,
            &mut self.parts,
            tag::ZEROS,
            &span(&pages),
            &[],
        )
    }

    /// Puts `pages` of `memory`, by number, into the snapshot as they are now, in place of what they were
    /// before. A page the guest writes meanwhile may be put in half written: it is to be put in again.
    ///
    /// # Errors
    /// If the stream takes no more.
    ///
    /// # Panics
    /// If they are not all pages of the memory.
    pub fn pages(&mut self, memory: &GuestMemory, pages: Range<u64>) -> Result<(), SnapshotError> {
        // Of a few pages it is sooner known by a look.
        let many = pages.end - pages.start > RUN_PAGES_MAX;
        let there = many.then(|| populated(memory, pages.clone()));
        let mut zeros = pages.start..pages.start;
        let mut first = pages.start;
        while first < pages.end {
            let last = pages.end.min(first + RUN_PAGES_MAX);
            if let Some(there) = &there
                && !(first..last).any(|page| there.contains(page))
            {
                self.full.remove(first..last);
                zeros.end = last;
                first = last;
                continue;
            }
            let bytes = ((last - first) * PAGE_BYTES) as usize;
            memory
                .read_slice(&mut self.run[..bytes], GuestAddress(first * PAGE_BYTES))
                .expect("the pages are memory");
            let mut at = first;
            while at < last {
                let from = |page: u64| ((page - first) * PAGE_BYTES) as usize;
                let zero = is_zero(&self.run[from(at)..from(at + 1)]);
                let same = |page: &u64| is_zero(&self.run[from(*page)..from(*page + 1)]) == zero;
                let to = (at + 1..last).find(|page| !same(page)).unwrap_or(last);
                if zero {
                    self.full.remove(at..to);
                    zeros.end = to;
                } else {
                    self.full.insert(at..to);
                    self.zeros(zeros)?;
                    zeros = to..to;
                    let payload = &self.run[from(at)..from(to)];
                    let head = span(&(at..to));
                    put(&mut self.out, &mut self.parts, tag::PAGES, &head, payload)?;
                }
                at = to;
            }
            first = last;
        }
        self.zeros(zeros)
    }

    /// Ends the snapshot with everything but memory, of which each page must be there as it was where `rest`
    /// was taken. The stream, flushed, is handed back.
    ///
    /// # Errors
    /// If the stream takes no more.
    pub fn end(mut self, rest: &Rest) -> Result<W, SnapshotError> {
        for (kind, version, payload) in &rest.0 {
            self.section(kind, *version, payload)?;
        }
        let parts = self.parts.to_le_bytes();
        put(&mut self.out, &mut self.parts, tag::END, &parts, &[])?;
        self.out.flush().map_err(SnapshotError::Stream)?;
        Ok(self.out)
    }
}

fn put(
    out: &mut impl Write,
    parts: &mut u64,
    tag: u8,
    head: &[u8],
    payload: &[u8],
) -> Result<(), SnapshotError> {
    let mut part = vec![tag];
    part.extend_from_slice(head);
    let mut crc = crc32fast::Hasher::new();
    crc.update(&part);
    crc.update(payload);
    part.extend_from_slice(&crc.finalize().to_le_bytes());
    out.write_all(&part).map_err(SnapshotError::Stream)?;
    out.write_all(payload).map_err(SnapshotError::Stream)?;
    *parts += 1;
    Ok(())
}

fn span(pages: &Range<u64>) -> [u8; 8] {
    let word = |n: u64| u32::try_from(n).expect("at most 3 GiB").to_le_bytes();
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&word(pages.start));
    bytes[4..].copy_from_slice(&word(pages.end - pages.start));
    bytes
}

impl<E: Engine> Machine<E> {
    /// Whether a snapshot can be taken here, and all that is to be done for it.
    fn settle(&mut self) -> Result<Option<bool>, SnapshotError> {
        if self.entry != VmEntry::Resume {
            return Err(SnapshotError::Busy);
        }
        let settled = self.standing.saved().ok_or(SnapshotError::Busy)?;
        self.engine.settle()?;
        Ok(settled)
    }

    /// Whether the machine can be saved where [`Machine::run_until`] paused. It cannot where the guest is in the
    /// middle of an instruction that makes several accesses; a little later it can.
    ///
    /// # Errors
    /// If the vCPU cannot be read.
    pub fn can_be_saved(&mut self) -> Result<bool, SnapshotError> {
        match self.settle() {
            Ok(_) => Ok(true),
            Err(SnapshotError::Busy | SnapshotError::Engine(EngineError::Unsupported(_))) => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// The whole machine into `out`. Only before the first run, or where [`Machine::run_until`] paused.
    ///
    /// # Errors
    /// See [`SnapshotError`]. What was written till then is no snapshot.
    pub fn save(&mut self, out: impl Write) -> Result<(), SnapshotError> {
        let rest = self.rest()?;
        let mut writer = SnapshotWriter::begin(out, &self.config)?;
        writer.pages(&self.memory, 0..self.config.memory_bytes() / PAGE_BYTES)?;
        writer.end(&rest)?;
        Ok(())
    }

    /// Everything but memory, as it is now. Only where [`Machine::save`] may be called.
    ///
    /// # Errors
    /// See [`SnapshotError`].
    pub fn rest(&mut self) -> Result<Rest, SnapshotError> {
        let settled = self.settle()?;
        let cpu = to_bytes(&self.engine.save()?);
        let mut sections: Vec<_> = [
            ("cpu", cpu),
            ("pending", to_bytes(&self.pending())),
            ("loop", to_bytes(&settled)),
            ("time", to_bytes(&self.time.saved())),
        ]
        .map(|(kind, payload)| (kind, SECTION_VERSION, payload))
        .into();
        for chip in self.board.chips() {
            sections.push((chip.kind(), chip.version(), chip.save_bytes()));
        }
        Ok(Rest(sections))
    }
}
