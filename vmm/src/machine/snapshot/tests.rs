//! A machine goes through a snapshot unchanged; damaged snapshots are refused. No KVM: the vCPU stands
//! still.

use super::*;
use crate::cpu::CpuModel;
use crate::engine::{Bus, Engine, TimeBase, VmEntry, VmExit};
use crate::machine::board::{Board, Write};
use crate::machine::config::MachineConfig;
use crate::machine::state::Machine;
use crate::machine::time::{GuestClock, TscMode};
use crate::machine::{BoardKind, boot};
use crate::memory::{GuestMemory, PageSet};
use crate::state::CpuState;
use replay::{Anchor, Arrival, Clock, ClockKind, ExecPoint, Output, RegisterDigest, Stop};
use std::path::{Path, PathBuf};
use vm_memory::{Bytes, GuestAddress};

/// A vCPU that has a state and never runs.
#[derive(Default)]
struct Still(CpuState, TimeBase);

impl Engine for Still {
    fn clock_kind(&self) -> ClockKind {
        ClockKind::Blocks
    }

    fn run(&mut self, _: VmEntry, _: Stop) -> Result<VmExit, EngineError> {
        Err(EngineError::Unsupported("it never runs".into()))
    }

    fn clock(&self) -> Clock {
        self.0.clock
    }

    fn point(&mut self) -> Result<(ExecPoint, RegisterDigest), EngineError> {
        Ok((ExecPoint::default(), RegisterDigest::default()))
    }

    fn interruptible(&self) -> bool {
        false
    }

    fn inject(&mut self, vector: u8) -> Result<(), EngineError> {
        self.0.injected = Some(vector);
        Ok(())
    }

    fn set_time(&mut self, time: TimeBase) -> Result<(), EngineError> {
        self.1 = time;
        Ok(())
    }

    fn flush_translations(&mut self) -> Result<(), EngineError> {
        Ok(())
    }

    fn note_dirty_pages(&mut self, _: bool) -> Result<(), EngineError> {
        Ok(())
    }

    fn dirty_pages(&mut self) -> Result<PageSet, EngineError> {
        Err(EngineError::not_noted())
    }

    fn save(&mut self) -> Result<CpuState, EngineError> {
        Ok(self.0.clone())
    }

    fn restore(&mut self, state: &CpuState) -> Result<(), EngineError> {
        self.0 = state.clone();
        Ok(())
    }
}

fn config() -> MachineConfig {
    MachineConfig {
        guest: "test".into(),
        image_digest: 5,
        memory_mib: 16,
        cmdline: "a=b".into(),
        cpu: CpuModel::V1,
        clock_kind: ClockKind::Blocks,
        tsc: TscMode::Derived,
        mac: [2, 0, 0, 0, 0, 1],
        disk_sectors: Some(64),
        initrd: None,
        board: BoardKind::Bare,
        reboots: true,
    }
}

fn fresh() -> Machine<Still> {
    of(config())
}

fn of(config: MachineConfig) -> Machine<Still> {
    Machine {
        engine: Still::default(),
        board: Board::new(&config),
        memory: boot::memory(&config).unwrap(),
        time: GuestClock::new(config.tsc),
        config,
        entry: VmEntry::Resume,
        halted: false,
        standing: Standing::BEGIN,
        origin: None,
    }
}

impl<E: Engine> Machine<E> {
    /// Writes as the guest would; what questions come of it are answered 1000.
    pub(in crate::machine) fn write(
        &mut self,
        bus: Bus,
        address: u64,
        size: u8,
        value: u64,
    ) -> Vec<Output> {
        let mut out = Vec::new();
        let write = Write {
            bus,
            address,
            size,
            value,
        };
        self.board
            .write(&self.memory, write, &mut |_| Ok(1000), &mut out)
            .unwrap();
        out
    }
}

impl<E: Engine> Machine<E> {
    /// Its snapshot.
    pub(in crate::machine) fn saved(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.save(&mut bytes).unwrap();
        bytes
    }
}

/// The machine of a snapshot, over memory that never was used.
fn restored(bytes: &[u8]) -> Result<Machine<Still>, SnapshotError> {
    let memory = boot::memory(Snapshot::open(bytes)?.config()).unwrap();
    restored_over(bytes, memory)
}

fn restored_over(bytes: &[u8], memory: GuestMemory) -> Result<Machine<Still>, SnapshotError> {
    Machine::restore(Still::default(), memory, Snapshot::open(bytes)?)
}

impl Machine<Still> {
    fn ports(&mut self, writes: &[(u64, u64)]) {
        for &(port, value) in writes {
            self.write(Bus::Port, port, 1, value);
        }
    }

    fn put<T: vm_memory::ByteValued>(&self, at: u64, value: T) {
        self.memory.write_obj(value, GuestAddress(at)).unwrap();
    }

    /// Sets up the device at `page` with one queue whose parts begin at `at`.
    fn start_device(&mut self, page: u64, queue: u64, at: u64) {
        let features = [(0x24, 1), (0x20, 1), (0x70, 11)];
        let rings = [(0x30, queue), (0x38, 16), (0x80, at), (0x90, at + 0x1000)];
        let rest = [(0xa0, at + 0x2000), (0x44, 1), (0x70, 15)];
        for (register, value) in features.into_iter().chain(rings).chain(rest) {
            self.write(Bus::Mmio, page + register, 4, value);
        }
    }
}

/// Programs the interrupt controller, the timer, the clock's memory and the serial port.
fn program(machine: &mut Machine<Still>) {
    machine.ports(&[
        (0x20, 0x11),
        (0x21, 0x20),
        (0x21, 4),
        (0x21, 1),
        (0x21, 0x5a),
    ]);
    machine.ports(&[(0x43, 0x34), (0x40, 0xa9), (0x40, 4)]);
    machine.ports(&[(0x70, 0x40), (0x71, 0x99)]);
    machine.ports(&[(0x3f9, 1), (0x3f8, b'h'.into()), (0x3f8, b'i'.into())]);
}

/// A machine each part of which is not as it began, with a disk read under way.
fn changed() -> Machine<Still> {
    let mut machine = fresh();
    machine.engine.0.rip = 0x10_0000;
    machine.engine.0.clock = Clock(77);
    machine.halted = true;
    let natural = false;
    machine.standing = Standing::Settled { natural };
    machine.time.advance(Anchor(1234)).unwrap();
    program(&mut machine);
    machine.start_device(abi::NET_PAGE, 1, 0x20_0000);
    machine.start_device(abi::BLOCK_PAGE, 0, 0x30_0000);
    for (n, (address, length, flags)) in [
        (0x40_0000u64, 16u32, 1u16),
        (0x40_1000, 512, 3),
        (0x40_0010, 1, 2),
    ]
    .into_iter()
    .enumerate()
    {
        let at = 0x30_0000 + n as u64 * 16;
        machine.put(at, address);
        machine.put(at + 8, length);
        machine.put(at + 12, flags);
        machine.put(at + 14, n as u16 + 1);
    }
    machine.put(0x30_1002, 1u16);
    let out = machine.write(Bus::Mmio, abi::BLOCK_PAGE + 0x50, 4, 0);
    assert!(matches!(out[..], [Output::DiskRead { len: 512, .. }]));
    let typed = Arrival::Console(vec![b'x'; 200]);
    machine.board.deliver(&machine.memory, typed).unwrap();
    machine.put(0xff_fff8, 0x0123_4567_89ab_cdefu64);
    machine
}

#[test]
fn a_machine_goes_through_a_snapshot_unchanged() {
    let mut machine = changed();
    let begun = fresh();
    for (was, is) in begun.board.chips().into_iter().zip(machine.board.chips()) {
        assert_ne!(
            was.save_bytes(),
            is.save_bytes(),
            "the test must change '{}'",
            is.kind()
        );
    }
    assert!(!machine.board.console.is_empty() && !machine.board.typed.is_empty());
    let bytes = machine.saved();
    let mut restored = restored(&bytes).unwrap();
    assert_eq!(
        restored.digest(None).unwrap(),
        machine.digest(None).unwrap()
    );
    assert!(restored.saved() == bytes, "and saves the same");
    assert_eq!(restored.engine.1, machine.time.base(), "RDTSC goes on");
    let now = restored.time.now_ns(Clock(77));
    assert_eq!(now, Some(77 + 1234 * Anchor::STEP_NS));
    assert_ne!(fresh().digest(None).unwrap(), machine.digest(None).unwrap());
    // And both go on alike.
    for machine in [&mut machine, &mut restored] {
        let (tag, ok, data) = (0, true, vec![9; 512]);
        let done = Arrival::DiskDone { tag, ok, data };
        machine.board.deliver(&machine.memory, done).unwrap();
        machine
            .board
            .deliver(&machine.memory, Arrival::Timer { periods: 1 })
            .unwrap();
    }
    assert_eq!(
        restored.digest(None).unwrap(),
        machine.digest(None).unwrap()
    );
}

/// Where the payload of each part of pages lies in a snapshot.
fn payloads_of_pages(bytes: &[u8]) -> Vec<std::ops::Range<usize>> {
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    let mut found = Vec::new();
    let mut at = 24;
    loop {
        at = match bytes[at] {
            tag::SECTION => {
                let head = at + 2 + usize::from(bytes[at + 1]) + 2;
                head + 8 + word(head)
            }
            tag::PAGES => {
                let first = at + 13;
                found.push(first..first + word(at + 5) * 4096);
                found.last().unwrap().end
            }
            tag::ZEROS => at + 13,
            _ => break,
        };
    }
    assert_eq!(at + 13, bytes.len(), "the end is the end");
    found
}

/// A snapshot is small, and yet all of it counts.
#[test]
fn damaged_snapshots_are_refused() {
    let bytes = changed().saved();
    let memory = boot::memory(&config()).unwrap();
    let refused = |bytes: &[u8]| restored_over(bytes, memory.clone()).is_err();
    let pages = payloads_of_pages(&bytes);
    let paged: usize = pages.iter().map(ExactSizeIterator::len).sum();
    assert!(
        paged < 16 * 4096 && bytes.len() - paged < 4096,
        "{paged} of {}",
        bytes.len()
    );
    // Of the content of pages every 509th byte, of all the rest every one.
    let sampled =
        |at: &usize| !pages.iter().any(|part| part.contains(at)) || at.is_multiple_of(509);
    let mut damaged = bytes.clone();
    for at in (0..bytes.len()).filter(sampled) {
        damaged[at] ^= 1 << (at % 8);
        assert!(refused(&damaged), "byte {at}");
        damaged[at] = bytes[at];
        assert!(refused(&bytes[..at]), "cut at {at}");
    }
    assert!(refused(&[&bytes[..], &[0]].concat()));
    assert!(!refused(&bytes));
}

#[test]
fn damaged_snapshots_of_old_formats_are_refused() {
    let bytes = golden(4);
    let memory = boot::memory(&golden_config(4)).unwrap();
    let refused = |bytes: &[u8]| restored_over(bytes, memory.clone()).is_err();
    let pages = bytes.len() - (16 << 20);
    let mut damaged = bytes.clone();
    for at in 0..pages {
        damaged[at] ^= 1 << (at % 8);
        assert!(refused(&damaged), "byte {at}");
        damaged[at] = bytes[at];
        assert!(refused(&bytes[..at]), "cut at {at}");
    }
    damaged[pages + 12345] ^= 1;
    assert!(refused(&damaged), "memory");
    assert!(refused(&bytes[..bytes.len() - 1]));
    assert!(refused(&[&bytes[..], &[0]].concat()));
    assert!(!refused(&bytes));
}

/// A reader that ends, and fails if somebody asks for more than a megabyte at once: so much is in no buffer.
struct Short<'a>(&'a [u8]);

impl std::io::Read for Short<'_> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        assert!(into.len() <= 1 << 20, "room for {} bytes", into.len());
        self.0.read(into)
    }
}

#[test]
fn a_length_that_is_claimed_sizes_no_allocation() {
    let bytes = changed().saved();
    // The first section's length, behind its tag, the length of its kind, its kind and its version.
    let length = 24 + 1 + 1 + "machine".len() + 2;
    for claimed in [SECTION_MAX as u32, SECTION_MAX as u32 + 1, u32::MAX] {
        let mut damaged = bytes.clone();
        damaged[length..length + 4].copy_from_slice(&claimed.to_le_bytes());
        let Err(error) = Snapshot::open(Short(&damaged)) else {
            panic!("{claimed} bytes are taken");
        };
        let expected = if u64::from(claimed) > SECTION_MAX {
            "too long"
        } else {
            "cut short"
        };
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn neither_saving_nor_restoring_holds_much_of_memory_at_once() {
    /// Takes pieces, none of them large.
    struct Pieces(Vec<u8>);
    impl std::io::Write for Pieces {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            assert!(
                bytes.len() <= RUN_BYTES_MAX,
                "{} bytes at once",
                bytes.len()
            );
            self.0.extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut machine = changed();
    let full: Vec<u8> = (0..4 << 20).map(|n: u32| (n % 251) as u8 + 1).collect();
    let at = GuestAddress(8 << 20);
    machine.memory.write_slice(&full, at).unwrap();
    let mut pieces = Pieces(Vec::new());
    machine.save(&mut pieces).unwrap();
    let snapshot = Snapshot::open(Short(&pieces.0)).unwrap();
    let memory = boot::memory(snapshot.config()).unwrap();
    let mut restored = Machine::restore(Still::default(), memory, snapshot).unwrap();
    assert_eq!(
        restored.digest(None).unwrap(),
        machine.digest(None).unwrap()
    );
}

/// Memory that is sent while the guest runs on: pages come again, and the last time counts.
#[test]
fn pages_that_change_while_they_are_sent_are_sent_again() {
    let mut machine = changed();
    let mut writer = SnapshotWriter::begin(Vec::new(), &machine.config).unwrap();
    writer.pages(&machine.memory, 0..4096).unwrap();
    let full = writer.full_pages();
    machine.put(0x70_0000, 5u64);
    machine.put(0x20_0000, 0u64);
    for page in [0x200..0x201, 0x700..0x701] {
        writer.pages(&machine.memory, page).unwrap();
    }
    assert_eq!(writer.full_pages(), full + 1);
    let bytes = writer.end(&machine.rest().unwrap()).unwrap();
    let mut restored = restored(&bytes).unwrap();
    assert!(restored.saved() == machine.saved());
}

#[test]
fn a_snapshot_that_lacks_a_page_is_refused() {
    for pages in [[0..4095, 0..0], [1..4096, 7..9], [0..100, 101..4096]] {
        let mut machine = changed();
        let mut writer = SnapshotWriter::begin(Vec::new(), &machine.config).unwrap();
        for pages in pages {
            writer.pages(&machine.memory, pages).unwrap();
        }
        let bytes = writer.end(&machine.rest().unwrap()).unwrap();
        let error = restored(&bytes).err().unwrap().to_string();
        assert!(error.contains("1 pages are not there"), "{error}");
    }
}

#[test]
fn what_was_in_memory_before_is_gone_where_the_snapshot_has_zeros() {
    let bytes = changed().saved();
    let memory = boot::memory(&config()).unwrap();
    let dirt = vec![0x55; 16 << 20];
    memory.write_slice(&dirt, GuestAddress(0)).unwrap();
    let mut restored = restored_over(&bytes, memory).unwrap();
    assert_eq!(
        restored.digest(None).unwrap(),
        changed().digest(None).unwrap()
    );
}

#[test]
fn none_is_taken_where_the_machine_is_not_whole() {
    let mut machine = fresh();
    assert!(machine.can_be_saved().unwrap());
    machine.entry = VmEntry::ReadData(0);
    assert!(!machine.can_be_saved().unwrap());
    assert!(matches!(machine.save(Vec::new()), Err(SnapshotError::Busy)));
    let natural = false;
    for standing in [Standing::Stopped { natural }, Standing::Inside(Stop::Never)] {
        let mut machine = fresh();
        machine.standing = standing;
        assert!(!machine.can_be_saved().unwrap());
        let mut out = Vec::new();
        assert!(matches!(machine.save(&mut out), Err(SnapshotError::Busy)));
        assert!(out.is_empty());
    }
}

#[test]
fn a_stream_that_fails_is_told_as_it_is() {
    /// Has no room.
    struct Full;
    impl std::io::Write for Full {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let error = fresh().save(Full).unwrap_err();
    assert!(matches!(error, SnapshotError::Stream(_)), "{error}");
}

/// Formats before 6 know the first board for Linux only.
fn golden_config(version: u32) -> MachineConfig {
    let board = match version {
        ..6 => BoardKind::FirstPc,
        _ => BoardKind::Pc,
    };
    MachineConfig { board, ..config() }
}

/// The machine all golden snapshots were taken of, but for what the guest wrote to the register of the exit
/// status, which format 3 does not have.
fn golden_machine(version: u32) -> Machine<Still> {
    let mut machine = of(golden_config(version));
    machine.standing = Standing::Settled { natural: true };
    machine.engine.0 = CpuState {
        clock: Clock(0x1_2345_6789),
        general: std::array::from_fn(|n| 0x1111_1111_1111_1111 * n as u64),
        rip: 0xffff_ffff_8100_0000,
        rflags: 0x246,
        control: [0x8005_0033, 0x7fff_0000, 0x1000, 0x6f0, 0],
        efer: 0xd01,
        msrs: crate::cpu::SAVED_MSRS
            .map(|index| (index, u64::from(index) << 4))
            .to_vec(),
        debug: [0x1000, 0, 0, 0x2000, 1 << 14, 2],
        tsc_offset: 77,
        injected: Some(0x30),
        ..CpuState::default()
    };
    machine.engine.0.fpu.xmm[3] = [7; 16];
    machine.time.advance(Anchor(1234)).unwrap();
    program(&mut machine);
    machine.start_device(abi::NET_PAGE, 1, 0x1000);
    machine.start_device(abi::BLOCK_PAGE, 0, 0x4000);
    let chain = [(0x7000u64, 16u32, 1u16), (0x7100, 512, 3), (0x7010, 1, 2)];
    for (n, (address, length, flags)) in (0u64..).zip(chain) {
        machine.put(0x4000 + n * 16, address);
        machine.put(0x4000 + n * 16 + 8, length);
        machine.put(0x4000 + n * 16 + 12, flags);
        machine.put(0x4000 + n * 16 + 14, n as u16 + 1);
    }
    machine.put(0x5002, 1u16);
    let out = machine.write(Bus::Mmio, abi::BLOCK_PAGE + 0x50, 4, 0);
    assert!(matches!(out[..], [Output::DiskRead { len: 512, .. }]));
    let typed = Arrival::Console(vec![b'x'; 200]);
    machine.board.deliver(&machine.memory, typed).unwrap();
    machine.put(0x7ff8, 0x0123_4567_89ab_cdefu64);
    machine
}

fn golden_path(version: u32) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/machine/snapshot/golden");
    folder.join(format!("v{version}.snapshot"))
}

/// The golden snapshot. The files of formats 3 and 4 lack the zeros at the end of memory.
fn golden(version: u32) -> Vec<u8> {
    let mut bytes = std::fs::read(golden_path(version)).unwrap();
    if version < 5 {
        let length = (16u64 << 20).to_le_bytes();
        let mut windows = bytes.windows(8);
        let memory = windows.position(|window| window == length).unwrap() + 12;
        bytes.resize(memory + (16 << 20), 0);
    }
    bytes
}

/// Digest of the machine of today's golden snapshot.
const GOLDEN_DIGEST: u64 = 0x6fb6_a86f_5bc2_c499;

/// To add a format, write a new file with `TANDEM_GOLDEN=write` and never touch the old ones.
#[test]
fn snapshots_of_every_format_that_is_read_are_the_machine_they_were_taken_of() {
    let exit_status = abi::CONTROL_PAGE + abi::control::EXIT_STATUS;
    for version in 3..=FORMAT_VERSION {
        let mut machine = golden_machine(version);
        if version > 3 {
            machine.write(Bus::Mmio, exit_status, 1, 3);
        }
        let digest = match version {
            3 => 0x6afb_f6c7_4fdf_ba53,
            4 | 5 => 0xa5ae_3896_5ca1_8f44,
            _ => GOLDEN_DIGEST,
        };
        assert_eq!(machine.digest(None).unwrap(), digest, "format {version}");
        if version == FORMAT_VERSION && std::env::var_os("TANDEM_GOLDEN").is_some() {
            std::fs::write(golden_path(version), machine.saved()).unwrap();
        }
        let mut restored = restored(&golden(version)).unwrap();
        assert!(restored.saved() == machine.saved(), "format {version}");
        assert_eq!(restored.digest(None).unwrap(), digest, "format {version}");
        assert!(
            version < FORMAT_VERSION || machine.saved() == golden(version),
            "the format changed: give it a new version, and a golden file of its own"
        );
    }
}
