//! A machine's state as bytes, and digests of it.
//!
//! ```text
//!   0  magic     8   "TANDEMSN"
//!   8  version   u32 LE
//!  12  sections  u32 LE
//!      section:  kind length u8, kind, version u16 LE, payload length u32 LE, crc u32 LE, payload
//!      memory:   length u64 LE, crc u32 LE, then the pages
//! ```
//!
//! The first section is the machine's configuration; then the vCPU, what the board keeps besides its
//! chips, where in the run loop it stands, guest time (none where it is logged), each chip, and last the
//! memory.
//! Bytes left over are an error.

use super::board::Board;
use super::config::{ConfigError, MachineConfig};
use super::run::{Machine, MachineError};
use super::time::{GuestClock, TimeError};
use crate::devices::{Chip, DeviceError};
use crate::engine::{Engine, EngineError, VmEntry};
use crate::memory::GuestMemory;
use crate::state::CpuState;
use replay::StateWindow;
use replay::codec::{from_bytes, to_bytes};
use replay::digest::StateHasher;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

const MAGIC: [u8; 8] = *b"TANDEMSN";
const VERSION: u32 = 4;
const PAGE: u64 = 4096;
/// Most bytes of one section that is not memory.
const SECTION_MAX: usize = replay::codec::BLOB_MAX;

/// What is wrong with a snapshot, or with taking one.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The vCPU cannot be read or written.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The vCPU waits for data, or the guest halts in the middle: not a place to take one.
    #[error("a snapshot cannot be taken while the guest waits for a device's answer")]
    Busy,
    /// The bytes are no snapshot of ours.
    #[error("snapshot: {0}")]
    Malformed(String),
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

/// What the board keeps besides its chips.
#[derive(serde::Serialize, serde::Deserialize)]
struct Pending {
    console: Vec<u8>,
    typed: Vec<u8>,
    halted: bool,
}

/// Where in the run loop a machine stands: see [`Machine::run_until`].
type Settled = Option<bool>;

impl Board {
    fn chips(&self) -> Vec<&dyn Chip> {
        let mut chips: Vec<&dyn Chip> =
            vec![&self.pic, &self.pit, &self.rtc, &self.uart, &self.net];
        chips.extend(self.block.as_ref().map(|block| block as &dyn Chip));
        if let Some(pc) = &self.pc {
            chips.extend([&pc.pm as &dyn Chip, &pc.rng, &pc.exit]);
        }
        chips
    }

    fn chips_mut(&mut self) -> Vec<&mut dyn Chip> {
        let mut chips: Vec<&mut dyn Chip> = vec![
            &mut self.pic,
            &mut self.pit,
            &mut self.rtc,
            &mut self.uart,
            &mut self.net,
        ];
        chips.extend(self.block.as_mut().map(|block| block as &mut dyn Chip));
        if let Some(pc) = &mut self.pc {
            chips.extend([&mut pc.pm as &mut dyn Chip, &mut pc.rng, &mut pc.exit]);
        }
        chips
    }
}

/// Digest of the vCPU, every chip, and the pages of `window` (all memory if `None`).
pub(super) fn digest<E: Engine>(
    machine: &mut Machine<E>,
    window: Option<StateWindow>,
) -> Result<u64, SnapshotError> {
    let mut hash = StateHasher::default();
    let cpu = machine.engine.save()?;
    hash.update(&to_bytes(&cpu));
    Ok(digest_rest(machine, hash, window))
}

/// Digest of all memory and every chip, without the vCPU: for a guest that cannot go on, whose registers
/// engines leave in different states.
pub(super) fn digest_without_vcpu<E>(machine: &mut Machine<E>) -> u64 {
    digest_rest(machine, StateHasher::default(), None)
}

fn digest_rest<E>(
    machine: &mut Machine<E>,
    mut hash: StateHasher,
    window: Option<StateWindow>,
) -> u64 {
    for chip in machine.board.chips() {
        hash.update(&chip.save_bytes());
    }
    hash.update(&to_bytes(&pending(machine)));
    if let Some(skipped_ns) = machine.time.saved() {
        hash.update(&skipped_ns.to_le_bytes());
    }
    let pages = machine.config.memory_bytes() / PAGE;
    let window = window.unwrap_or(StateWindow {
        first_page: 0,
        pages: u32::try_from(pages).expect("at most 3 GiB"),
    });
    let first = window.first_page.min(pages);
    let last = first.saturating_add(window.pages.into()).min(pages);
    let mut page = [0u8; PAGE as usize];
    for number in first..last {
        machine
            .memory
            .read_slice(&mut page, GuestAddress(number * PAGE))
            .expect("the window was clipped to memory");
        hash.update(&page);
    }
    hash.finish()
}

fn pending<E>(machine: &Machine<E>) -> Pending {
    Pending {
        console: machine.board.console.clone(),
        typed: machine.board.typed.clone(),
        halted: machine.halted,
    }
}

fn put(out: &mut Vec<u8>, kind: &str, version: u16, payload: &[u8]) {
    out.push(u8::try_from(kind.len()).expect("kinds are short"));
    out.extend_from_slice(kind.as_bytes());
    out.extend_from_slice(&version.to_le_bytes());
    out.extend_from_slice(
        &u32::try_from(payload.len())
            .expect("sections are small")
            .to_le_bytes(),
    );
    out.extend_from_slice(&crc32fast::hash(payload).to_le_bytes());
    out.extend_from_slice(payload);
}

fn take<'a>(bytes: &mut &'a [u8], count: usize) -> Result<&'a [u8], SnapshotError> {
    let (head, rest) = bytes
        .split_at_checked(count)
        .ok_or_else(|| SnapshotError::Malformed("it is cut short".into()))?;
    *bytes = rest;
    Ok(head)
}

fn take_u32(bytes: &mut &[u8]) -> Result<u32, SnapshotError> {
    Ok(u32::from_le_bytes(
        take(bytes, 4)?.try_into().expect("4 bytes"),
    ))
}

/// The next section's payload, which must be of this kind; with its version.
fn section<'a>(bytes: &mut &'a [u8], kind: &str) -> Result<(u16, &'a [u8]), SnapshotError> {
    let length = usize::from(take(bytes, 1)?[0]);
    let found = take(bytes, length)?;
    if found != kind.as_bytes() {
        let found = String::from_utf8_lossy(found).into_owned();
        return Err(SnapshotError::Malformed(format!(
            "'{found}' where '{kind}' should be"
        )));
    }
    let version = u16::from_le_bytes(take(bytes, 2)?.try_into().expect("2 bytes"));
    let length = take_u32(bytes)? as usize;
    let crc = take_u32(bytes)?;
    if length > SECTION_MAX {
        return Err(SnapshotError::Malformed(format!("'{kind}' is too long")));
    }
    let payload = take(bytes, length)?;
    if crc32fast::hash(payload) != crc {
        return Err(SnapshotError::Malformed(format!(
            "checksum of '{kind}' wrong"
        )));
    }
    Ok((version, payload))
}

/// Sections that are no chip's.
const OTHERS: usize = 5;
/// Version of the sections that are no chip's.
const SECTION_VERSION: u16 = 1;

/// What the next section, which is no chip's, says.
fn decode<T: serde::de::DeserializeOwned>(
    bytes: &mut &[u8],
    kind: &str,
) -> Result<T, SnapshotError> {
    let (version, payload) = section(bytes, kind)?;
    if version != SECTION_VERSION {
        return Err(SnapshotError::Malformed(format!(
            "'{kind}' has version {version}, this program reads version {SECTION_VERSION}"
        )));
    }
    from_bytes(payload).map_err(|e| SnapshotError::Malformed(format!("'{kind}': {e}")))
}

/// What the board is made of, and whether the guest halts.
pub(super) struct Chips {
    pending: Pending,
    states: Vec<(u16, Vec<u8>)>,
}

impl<E> Machine<E> {
    /// The board's state.
    pub(super) fn chips(&self) -> Chips {
        let chips = self.board.chips().into_iter();
        Chips {
            pending: pending(self),
            states: chips.map(|c| (c.version(), c.save_bytes())).collect(),
        }
    }

    /// Puts [`Machine::chips`] back.
    ///
    /// # Errors
    /// If they are not this board's.
    pub(super) fn put_chips_back(&mut self, saved: &Chips) -> Result<(), SnapshotError> {
        for (chip, (version, bytes)) in self.board.chips_mut().into_iter().zip(&saved.states) {
            chip.restore_bytes(*version, bytes)?;
        }
        self.board.console.clone_from(&saved.pending.console);
        self.board.typed.clone_from(&saved.pending.typed);
        self.halted = saved.pending.halted;
        Ok(())
    }
}

impl<E: Engine> Machine<E> {
    /// The whole machine as bytes. Only before the first run, or where [`Machine::run_until`] paused.
    ///
    /// # Errors
    /// See [`SnapshotError`].
    pub fn save(&mut self) -> Result<Vec<u8>, SnapshotError> {
        if self.entry != VmEntry::Resume {
            return Err(SnapshotError::Busy);
        }
        let mut out = Vec::with_capacity(usize::try_from(self.config.memory_bytes()).unwrap_or(0));
        self.engine.settle()?;
        let cpu = self.engine.save()?;
        let chips = self.board.chips();
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(
            &u32::try_from(chips.len() + OTHERS)
                .expect("few")
                .to_le_bytes(),
        );
        put(
            &mut out,
            "machine",
            SECTION_VERSION,
            &to_bytes(&self.config),
        );
        put(&mut out, "cpu", SECTION_VERSION, &to_bytes(&cpu));
        let pending = to_bytes(&pending(self));
        put(&mut out, "pending", SECTION_VERSION, &pending);
        let settled: Settled = self.settled;
        put(&mut out, "loop", SECTION_VERSION, &to_bytes(&settled));
        let time = to_bytes(&self.time.saved());
        put(&mut out, "time", SECTION_VERSION, &time);
        for chip in chips {
            put(&mut out, chip.kind(), chip.version(), &chip.save_bytes());
        }
        let bytes = self.config.memory_bytes();
        out.extend_from_slice(&bytes.to_le_bytes());
        let mut memory = vec![0; usize::try_from(bytes).expect("at most 3 GiB")];
        self.memory
            .read_slice(&mut memory, GuestAddress(0))
            .expect("all memory is there");
        out.extend_from_slice(&crc32fast::hash(&memory).to_le_bytes());
        out.extend_from_slice(&memory);
        Ok(out)
    }

    /// The configuration a snapshot was taken of.
    ///
    /// # Errors
    /// If it is no snapshot, or its configuration is out of bounds.
    pub fn snapshot_config(mut bytes: &[u8]) -> Result<MachineConfig, SnapshotError> {
        head(&mut bytes)?;
        let config: MachineConfig = decode(&mut bytes, "machine")?;
        config.check()?;
        Ok(config)
    }

    /// This machine, which has not run yet, as it was when `bytes` were saved. Unlike one made by
    /// [`Machine::restore`] it can start over when its guest resets it, if it could before: the snapshot
    /// has neither the image nor the vCPU as it was switched on.
    ///
    /// # Errors
    /// If the bytes are not a whole snapshot of this machine, by its configuration.
    pub fn restored_from(self, bytes: &[u8]) -> Result<Self, MachineError> {
        if Self::snapshot_config(bytes)? != self.config {
            return Err(SnapshotError::Malformed("it is of another machine".into()).into());
        }
        let restored = Self::restore(self.engine, self.memory, bytes)?;
        Ok(Self {
            origin: self.origin,
            ..restored
        })
    }

    /// A machine from a snapshot, on an engine that never ran over `memory`, made for
    /// [`Machine::snapshot_config`]. Its guest cannot reset it: see [`Machine::restored_from`].
    ///
    /// # Errors
    /// If the bytes are not a whole snapshot of a machine of this version.
    pub fn restore(
        mut engine: E,
        memory: GuestMemory,
        mut bytes: &[u8],
    ) -> Result<Self, MachineError> {
        let config = Self::snapshot_config(bytes)?;
        let bytes = &mut bytes;
        let sections = head(bytes)?;
        section(bytes, "machine")?;
        let cpu: CpuState = decode(bytes, "cpu")?;
        let pending: Pending = decode(bytes, "pending")?;
        let settled: Settled = decode(bytes, "loop")?;
        let saved: Option<u64> = decode(bytes, "time")?;
        let time = GuestClock::restored(config.tsc, saved).map_err(SnapshotError::from)?;
        let mut board = Board::new(&config);
        let chips = board.chips_mut();
        if sections as usize != chips.len() + OTHERS {
            return Err(SnapshotError::Malformed(format!("{sections} sections")).into());
        }
        for chip in chips {
            let (version, payload) = section(bytes, chip.kind())?;
            chip.restore_bytes(version, payload)
                .map_err(SnapshotError::from)?;
        }
        board.console = pending.console;
        board.typed = pending.typed;
        restore_memory(bytes, &config, &memory)?;
        engine.restore(&cpu)?;
        engine.set_time(time.base())?;
        let (entry, halted) = (VmEntry::Resume, pending.halted);
        Ok(Self {
            engine,
            board,
            memory,
            config,
            time,
            entry,
            halted,
            settled,
            origin: None,
        })
    }
}

fn head(bytes: &mut &[u8]) -> Result<u32, SnapshotError> {
    if take(bytes, 8)? != MAGIC {
        return Err(SnapshotError::Malformed("wrong magic number".into()));
    }
    match take_u32(bytes)? {
        VERSION => take_u32(bytes),
        other => Err(SnapshotError::Malformed(format!(
            "format {other}, but this program reads format {VERSION}"
        ))),
    }
}

fn restore_memory(
    bytes: &mut &[u8],
    config: &MachineConfig,
    memory: &GuestMemory,
) -> Result<(), SnapshotError> {
    let malformed = |what: &str| SnapshotError::Malformed(what.into());
    let length = u64::from_le_bytes(take(bytes, 8)?.try_into().expect("8 bytes"));
    if length != config.memory_bytes() || memory.last_addr().0 + 1 != length {
        return Err(malformed("memory of another size"));
    }
    let crc = take_u32(bytes)?;
    let pages = take(
        bytes,
        usize::try_from(length).map_err(|_| malformed("too large"))?,
    )?;
    if !bytes.is_empty() {
        return Err(malformed("bytes left over"));
    }
    if crc32fast::hash(pages) != crc {
        return Err(malformed("checksum of memory wrong"));
    }
    memory
        .write_slice(pages, GuestAddress(0))
        .map_err(|e| malformed(&e.to_string()))
}

#[cfg(test)]
#[path = "snapshot_tests.rs"]
mod tests;
