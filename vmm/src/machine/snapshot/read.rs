//! A stream into a machine. Nothing in it is trusted.

use super::old::Old;
use super::{
    FORMAT_VERSION, MAGIC, PARTS_SINCE, RUN_BYTES_MAX, RUN_PAGES_MAX, SECTION_MAX, SECTION_VERSION,
    Settled, SnapshotError, malformed, tag,
};
use crate::devices::Chip;
use crate::engine::{Engine, VmEntry};
use crate::machine::board::Board;
use crate::machine::boot;
use crate::machine::config::MachineConfig;
use crate::machine::state::{Machine, Pending, Standing};
use crate::machine::time::GuestClock;
use crate::memory::{GuestMemory, PAGE_BYTES, PageSet, clear};
use crate::state::CpuState;
use replay::codec::from_bytes;
use serde::de::DeserializeOwned;
use std::io::{ErrorKind, Read};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

/// A snapshot whose beginning was read: the configuration, by which an engine and memory are made for it.
pub struct Snapshot<R> {
    format: Format<R>,
    config: MachineConfig,
}

enum Format<R> {
    Old(Old<R>),
    Parts(Parts<R>),
}

impl<R: Read> Snapshot<R> {
    /// Reads the beginning of a snapshot. Whoever reads from a file or a socket buffers: parts are small.
    ///
    /// # Errors
    /// If it is no snapshot this program reads, or its configuration is out of bounds.
    pub fn open(from: R) -> Result<Self, SnapshotError> {
        let mut from = Bounded(from);
        let (magic, version) = (from.array()?, from.u32()?);
        if magic != MAGIC {
            return Err(malformed("wrong magic number"));
        }
        let (format, config): (_, MachineConfig) = match version {
            3 | 4 => {
                let (old, config) = Old::open(from, version)?;
                (Format::Old(old), config)
            }
            PARTS_SINCE..=FORMAT_VERSION => {
                let (parts, config) = Parts::open(from, version)?;
                (Format::Parts(parts), config)
            }
            other => {
                return Err(malformed(format!(
                    "format {other}, but this program reads formats 3 to {FORMAT_VERSION}"
                )));
            }
        };
        config.check()?;
        Ok(Self { format, config })
    }

    /// The configuration of the machine it was taken of.
    pub fn config(&self) -> &MachineConfig {
        &self.config
    }

    /// By how much guest time is ahead of the clock in it, in nanoseconds; none where it is not derived. It is read to
    /// its end, and all else in it is checked and forgotten.
    ///
    /// # Errors
    /// If it is not whole, or there is no room to read it.
    pub fn skipped_ns(self) -> Result<Option<u64>, SnapshotError> {
        let memory = boot::memory(&self.config).map_err(|e| malformed(e.to_string()))?;
        Ok(self.read(&memory)?.time.saved())
    }

    /// Puts the memory in it into `memory`, and takes the rest out, to the end of the stream.
    fn read(self, memory: &GuestMemory) -> Result<Saved, SnapshotError> {
        let Self { format, config } = self;
        if memory.last_addr().0 + 1 != config.memory_bytes() {
            return Err(malformed("memory of another size"));
        }
        match format {
            Format::Old(old) => old.read(config, memory),
            Format::Parts(mut parts) => {
                parts.memory(&config, memory)?;
                let saved = Saved::read(config, |_| true, |kind| parts.section(kind))?;
                parts.end()?;
                Ok(saved)
            }
        }
    }
}

/// What is in a snapshot besides memory.
pub(super) struct Saved {
    config: MachineConfig,
    cpu: CpuState,
    pending: Pending,
    settled: Settled,
    time: GuestClock,
    board: Board,
}

impl Saved {
    /// Everything behind the configuration, section by section as `section` reads them. `has`: which chips
    /// there were in the format.
    pub(super) fn read(
        config: MachineConfig,
        has: impl Fn(&dyn Chip) -> bool,
        mut section: impl FnMut(&'static str) -> Result<(u16, Vec<u8>), SnapshotError>,
    ) -> Result<Self, SnapshotError> {
        let cpu = decode("cpu", section("cpu")?)?;
        let pending = decode("pending", section("pending")?)?;
        let settled = decode("loop", section("loop")?)?;
        let time: Option<u64> = decode("time", section("time")?)?;
        let time = GuestClock::restored(config.tsc, time)?;
        let mut board = Board::new(&config);
        for chip in board.chips_mut() {
            if has(chip) {
                let (version, payload) = section(chip.kind())?;
                chip.restore_bytes(version, &payload)?;
            }
        }
        Ok(Self {
            config,
            cpu,
            pending,
            settled,
            time,
            board,
        })
    }
}

/// What a section that is no chip's says.
pub(super) fn decode<T: DeserializeOwned>(
    kind: &str,
    (version, payload): (u16, Vec<u8>),
) -> Result<T, SnapshotError> {
    if version != SECTION_VERSION {
        return Err(malformed(format!(
            "'{kind}' has version {version}, this program reads version {SECTION_VERSION}"
        )));
    }
    from_bytes(&payload).map_err(|e| malformed(format!("'{kind}': {e}")))
}

/// A stream from which no more is taken than comes.
pub(super) struct Bounded<R>(R);

impl<R: Read> Bounded<R> {
    /// Fills `bytes`.
    pub(super) fn fill(&mut self, bytes: &mut [u8]) -> Result<(), SnapshotError> {
        self.0.read_exact(bytes).map_err(|e| match e.kind() {
            ErrorKind::UnexpectedEof => malformed("it is cut short"),
            _ => SnapshotError::Stream(e),
        })
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], SnapshotError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, SnapshotError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, SnapshotError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// `length` bytes, memory for which is taken as they come.
    pub(super) fn bytes(&mut self, length: u64) -> Result<Vec<u8>, SnapshotError> {
        let mut bytes = Vec::new();
        let from = &mut self.0;
        from.take(length)
            .read_to_end(&mut bytes)
            .map_err(SnapshotError::Stream)?;
        if bytes.len() as u64 != length {
            return Err(malformed("it is cut short"));
        }
        Ok(bytes)
    }

    /// The stream is to be over.
    pub(super) fn end(&mut self) -> Result<(), SnapshotError> {
        match self.bytes(1) {
            Ok(_) => Err(malformed("bytes left over")),
            Err(SnapshotError::Malformed(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// The parts of a format from 5 on.
struct Parts<R> {
    from: Bounded<R>,
    /// Bytes of guest memory, as the head says.
    memory: u64,
    /// Parts read.
    read: u64,
    /// The tag of the next part, if it is known.
    next: Option<u8>,
}

/// The next part's tag and the checksum so far.
struct Part {
    tag: u8,
    crc: crc32fast::Hasher,
}

impl<R: Read> Parts<R> {
    /// Reads the head behind magic number and version, and the first section.
    fn open(mut from: Bounded<R>, version: u32) -> Result<(Self, MachineConfig), SnapshotError> {
        let memory = from.u64()?;
        let mut head = MAGIC.to_vec();
        head.extend_from_slice(&version.to_le_bytes());
        head.extend_from_slice(&memory.to_le_bytes());
        if from.u32()? != crc32fast::hash(&head) {
            return Err(malformed("checksum of the head wrong"));
        }
        let mut parts = Self {
            from,
            memory,
            read: 0,
            next: None,
        };
        let config: MachineConfig = decode("machine", parts.section("machine")?)?;
        if config.memory_bytes() != memory {
            return Err(malformed("memory of another size"));
        }
        Ok((parts, config))
    }

    fn begin(&mut self) -> Result<Part, SnapshotError> {
        let tag = match self.next.take() {
            Some(tag) => tag,
            None => self.from.array::<1>()?[0],
        };
        self.read += 1;
        let mut crc = crc32fast::Hasher::new();
        crc.update(&[tag]);
        Ok(Part { tag, crc })
    }

    /// A part of the head of `part`.
    fn head<const N: usize>(&mut self, part: &mut Part) -> Result<[u8; N], SnapshotError> {
        let bytes = self.from.array()?;
        part.crc.update(&bytes);
        Ok(bytes)
    }

    /// The next part, which must be this section: its version and its payload.
    fn section(&mut self, kind: &'static str) -> Result<(u16, Vec<u8>), SnapshotError> {
        let mut part = self.begin()?;
        if part.tag != tag::SECTION {
            let tag = part.tag;
            return Err(malformed(format!("part {tag} where '{kind}' should be")));
        }
        let [length] = self.head(&mut part)?;
        let found = self.from.bytes(length.into())?;
        part.crc.update(&found);
        if found != kind.as_bytes() {
            let found = String::from_utf8_lossy(&found);
            return Err(malformed(format!("'{found}' where '{kind}' should be")));
        }
        let version = u16::from_le_bytes(self.head(&mut part)?);
        let length = u64::from(u32::from_le_bytes(self.head(&mut part)?));
        if length > SECTION_MAX {
            return Err(malformed(format!("'{kind}' is too long")));
        }
        let crc = self.from.u32()?;
        let payload = self.from.bytes(length)?;
        part.crc.update(&payload);
        if part.crc.finalize() != crc {
            return Err(malformed(format!("checksum of '{kind}' wrong")));
        }
        Ok((version, payload))
    }

    /// Puts memory, which comes up to the next section, into `memory`.
    fn memory(
        &mut self,
        config: &MachineConfig,
        memory: &GuestMemory,
    ) -> Result<(), SnapshotError> {
        debug_assert_eq!(self.memory, config.memory_bytes(), "compared when opened");
        let pages = self.memory / PAGE_BYTES;
        let mut seen = PageSet::new(pages);
        let mut run = vec![0; RUN_BYTES_MAX];
        loop {
            let tag = self.from.array::<1>()?[0];
            self.next = Some(tag);
            if !matches!(tag, tag::PAGES | tag::ZEROS) {
                break;
            }
            let mut part = self.begin()?;
            let first = u64::from(u32::from_le_bytes(self.head(&mut part)?));
            let count = u64::from(u32::from_le_bytes(self.head(&mut part)?));
            let crc = self.from.u32()?;
            let most = if tag == tag::PAGES {
                RUN_PAGES_MAX
            } else {
                pages
            };
            if count == 0 || count > most || first + count > pages {
                return Err(malformed(format!("{count} pages from page {first} on")));
            }
            let payload = if tag == tag::PAGES {
                &mut run[..(count * PAGE_BYTES) as usize]
            } else {
                &mut []
            };
            self.from.fill(payload)?;
            part.crc.update(payload);
            if part.crc.finalize() != crc {
                return Err(malformed(format!("checksum of page {first} wrong")));
            }
            let at = first * PAGE_BYTES;
            if tag == tag::PAGES {
                memory
                    .write_slice(payload, GuestAddress(at))
                    .map_err(|e| malformed(e.to_string()))?;
            } else {
                clear(memory, at..at + count * PAGE_BYTES);
            }
            seen.insert(first..first + count);
        }
        if seen.len() != pages {
            let missing = pages - seen.len();
            return Err(malformed(format!("{missing} pages are not there")));
        }
        Ok(())
    }

    /// The end, and nothing behind it.
    fn end(&mut self) -> Result<(), SnapshotError> {
        let mut part = self.begin()?;
        let before = self.read - 1;
        let counted = u64::from_le_bytes(self.head(&mut part)?);
        let crc = self.from.u32()?;
        if part.tag != tag::END || part.crc.finalize() != crc || counted != before {
            return Err(malformed("it has no end"));
        }
        self.from.end()
    }
}

impl<E: Engine> Machine<E> {
    /// This machine, which has not run yet, as it was when the snapshot was taken. Unlike one made by
    /// [`Machine::restore`] it can start over when its guest resets it, if it could before: the snapshot
    /// has neither the image nor the vCPU as it was switched on.
    ///
    /// # Errors
    /// If it is not a whole snapshot of this machine, by its configuration.
    pub fn restored_from<R: Read>(self, snapshot: Snapshot<R>) -> Result<Self, SnapshotError> {
        if *snapshot.config() != self.config {
            return Err(malformed("it is of another machine"));
        }
        let restored = Self::restore(self.engine, self.memory, snapshot)?;
        Ok(Self {
            origin: self.origin,
            ..restored
        })
    }

    /// A machine from a snapshot, on an engine that never ran over `memory`, made for
    /// [`Snapshot::config`]. Its guest cannot reset it: see [`Machine::restored_from`].
    ///
    /// # Errors
    /// If it is not a whole snapshot of a machine of this version. Memory may have been written then.
    pub fn restore<R: Read>(
        mut engine: E,
        memory: GuestMemory,
        snapshot: Snapshot<R>,
    ) -> Result<Self, SnapshotError> {
        let Saved {
            config,
            cpu,
            pending,
            settled,
            time,
            mut board,
        } = snapshot.read(&memory)?;
        board.console = pending.console;
        board.typed = pending.typed;
        engine.restore(&cpu)?;
        engine.set_time(time.base())?;
        Ok(Self {
            engine,
            board,
            memory,
            config,
            time,
            entry: VmEntry::Resume,
            halted: pending.halted,
            standing: Standing::restored(settled),
            origin: None,
        })
    }
}
