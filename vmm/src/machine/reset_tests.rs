//! What a reset leaves of the life before.

use super::*;
use crate::cpu::{CpuModel, Offer};
use crate::engine::Bus;
use crate::machine::snapshot::Snapshot;
use crate::machine::{BoardKind, GuestImage, KeptImage, MachineConfig, TscMode};
use crate::memory::GuestMemory;
use crate::soft::SoftEngine;
use replay::{Arrival, Clock, ClockKind, Output};
use std::borrow::Cow;
use vm_memory::{Bytes, GuestAddress};

/// A guest that halts at once.
const HALT: &[u8] = &[0xf4];

/// An ELF file whose only segment, at 1 MiB, is `code`.
pub(crate) fn elf(code: &[u8]) -> Vec<u8> {
    let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
    bytes.resize(16, 0);
    let mut put = |values: &[(u64, usize)]| {
        for (value, size) in values {
            bytes.extend_from_slice(&value.to_le_bytes()[..*size]);
        }
    };
    let at = abi::IMAGE_BASE;
    put(&[(2, 2), (62, 2), (1, 4), (at, 8), (64, 8), (0, 8)]);
    put(&[(0, 4), (64, 2), (56, 2), (1, 2), (64, 2), (0, 2), (0, 2)]);
    put(&[(1, 4), (5, 4), (120, 8), (at, 8), (at, 8)]);
    let length = code.len() as u64;
    put(&[(length, 8), (length, 8), (0x1000, 8)]);
    bytes.extend_from_slice(code);
    bytes
}

/// A machine whose image is `elf`.
pub(crate) fn config(elf: &[u8]) -> MachineConfig {
    MachineConfig {
        guest: "test".into(),
        image_digest: GuestImage::new(elf).digest(),
        memory_mib: 16,
        cmdline: "a=b".into(),
        cpu: CpuModel::V1,
        clock_kind: ClockKind::Instructions,
        tsc: TscMode::Derived,
        mac: [2, 0, 0, 0, 0, 1],
        disk_sectors: Some(64),
        initrd: None,
        board: BoardKind::Bare,
        reboots: true,
    }
}

/// An image that is what it is.
struct Fixed(Vec<u8>);

impl ImageSource for Fixed {
    fn read_again(&mut self) -> Result<KeptImage, String> {
        Ok(KeptImage {
            kernel: Cow::Owned(self.0.clone()),
            initrd: None,
        })
    }
}

/// A vCPU on the software engine for a machine of this configuration.
pub(in crate::machine) fn engine(config: &MachineConfig, memory: &GuestMemory) -> SoftEngine {
    SoftEngine::new(memory.clone(), config.cpu, Offer::Bare, config.clock_kind).unwrap()
}

/// A machine whose guest is `code`, in ring 0 of 64-bit mode.
pub(in crate::machine) fn machine_of(code: &[u8]) -> Machine<SoftEngine> {
    let image = elf(code);
    let config = config(&image);
    let memory = boot::memory(&config).unwrap();
    let engine = engine(&config, &memory);
    Machine::boot(engine, memory, config, &GuestImage::new(&image)).unwrap()
}

/// A machine whose guest halts at once, interrupts disabled.
pub(in crate::machine) fn machine() -> Machine<SoftEngine> {
    machine_of(HALT)
}

fn kept() -> Machine<SoftEngine> {
    let mut machine = machine();
    machine
        .starts_over_from(Box::new(Fixed(elf(HALT))))
        .unwrap();
    machine
}

/// Brings the clock to `clock`, leaving the rest.
fn at(machine: &mut Machine<SoftEngine>, clock: u64) {
    let state = machine.engine.save().unwrap();
    let clock = Clock(clock);
    machine
        .engine
        .restore(&CpuState { clock, ..state })
        .unwrap();
}

impl Machine<SoftEngine> {
    /// Makes no part of it as it was switched on.
    fn spoil(&mut self) {
        let state = self.engine.save().unwrap();
        let spoilt = CpuState {
            general: [7; 16],
            rip: 0x1234,
            rflags: 0x202,
            control: [0x8001_0033, 5, 0x1000, 0x620, 3],
            msrs: state.msrs.iter().map(|(index, _)| (*index, 9)).collect(),
            debug: [1, 2, 3, 4, 0, 0],
            tsc_offset: 77,
            halted: true,
            ..state
        };
        self.engine.restore(&spoilt).unwrap();
        self.halted = true;
        for place in [0, 0x1000, 0x6000, abi::IMAGE_BASE, (16 << 20) - 8] {
            let there = GuestAddress(place);
            self.memory.write_obj(0xabcd_u64, there).unwrap();
        }
        for (port, value) in [
            (0x20, 0x11),
            (0x43, 0x34),
            (0x40, 0),
            (0x40, 1),
            (0x70, 0x40),
            (0x71, 9),
            (0x3f9, 1),
            (0x3f8, u64::from(b'x')),
        ] {
            self.write(Bus::Port, port, 1, value);
        }
        for page in [abi::NET_PAGE, abi::BLOCK_PAGE] {
            self.write(Bus::Mmio, page + 0x70, 4, 3);
        }
    }

    /// Starts the disk with a ring at 2 MiB, and reads its first sector.
    fn read_disk(&mut self) -> Vec<Output> {
        let at = 0x20_0000;
        let put = |at: u64, value: u64| self.memory.write_obj(value, GuestAddress(at)).unwrap();
        // Descriptors: header, data, status; then the available ring with the first of them.
        let chain = [(0x4000, 16, 1, 1), (0x5000, 512, 3, 2), (0x6000, 1, 2, 0)];
        for (n, (offset, length, flags, next)) in (0u64..).zip(chain) {
            put(at + n * 16, at + offset);
            put(at + n * 16 + 8, length | flags << 32 | next << 48);
        }
        put(at + 0x1000, 1 << 16);
        let begin = [(0x24, 1), (0x20, 1), (0x70, 11), (0x38, 16)];
        let rings = [(0x80, at), (0x90, at + 0x1000), (0xa0, at + 0x2000)];
        for (register, value) in begin.into_iter().chain(rings) {
            self.write(Bus::Mmio, abi::BLOCK_PAGE + register, 4, value);
        }
        for (register, value) in [(0x44, 1), (0x70, 15)] {
            self.write(Bus::Mmio, abi::BLOCK_PAGE + register, 4, value);
        }
        self.write(Bus::Mmio, abi::BLOCK_PAGE + 0x50, 4, 0)
    }
}

#[test]
fn everything_is_as_it_was_switched_on_but_the_clock() {
    let (mut spoilt, mut fresh) = (kept(), kept());
    spoilt.spoil();
    at(&mut spoilt, 500);
    at(&mut fresh, 500);
    assert_ne!(spoilt.digest(None).unwrap(), fresh.digest(None).unwrap());
    spoilt.start_over().unwrap();
    assert_eq!(spoilt.engine.clock(), Clock(500));
    // But for how often the timer was programmed, which is counted on.
    fresh.board.pit.follows(&spoilt.board.pit);
    spoilt.start_over().unwrap();
    assert_eq!(spoilt.digest(None).unwrap(), fresh.digest(None).unwrap());
    assert_eq!(
        spoilt
            .memory
            .read_obj::<u8>(GuestAddress(abi::IMAGE_BASE))
            .unwrap(),
        0xf4
    );
}

#[test]
fn the_timer_is_another_than_before_though_it_was_never_programmed() {
    let mut machine = kept();
    let before = machine.board.timer();
    machine.start_over().unwrap();
    assert_ne!(machine.board.timer(), before);
}

#[test]
fn the_end_of_an_old_request_touches_nothing_and_its_tag_is_not_used_again() {
    let mut machine = kept();
    let read = machine.read_disk();
    let [Output::DiskRead { tag: 0, .. }] = read[..] else {
        panic!("{read:?}");
    };
    machine.start_over().unwrap();
    assert_eq!(machine.board.outstanding_disk(), read, "still under way");
    let again = machine.read_disk();
    assert!(
        matches!(again[..], [Output::DiskRead { tag: 1, .. }]),
        "{again:?}"
    );
    let done = |tag, byte| Arrival::DiskDone {
        tag,
        ok: true,
        data: vec![byte; 512],
    };
    let data = GuestAddress(0x20_5000);
    let memory = machine.memory.clone();
    let read = || memory.read_obj::<u8>(data).unwrap();
    machine.board.deliver(&memory, done(0, 0xaa)).unwrap();
    assert_eq!(read(), 0);
    machine.board.deliver(&memory, done(1, 0xbb)).unwrap();
    assert_eq!(read(), 0xbb);
    assert!(machine.board.outstanding_disk().is_empty());
}

#[test]
fn what_was_typed_and_not_read_is_not_lost() {
    let mut machine = kept();
    let typed = vec![b'x'; 1000];
    let memory = machine.memory.clone();
    machine
        .board
        .deliver(&memory, Arrival::Console(typed))
        .unwrap();
    let waiting = machine.board.typed.len();
    assert!(waiting > 900);
    machine.start_over().unwrap();
    assert_eq!(machine.board.typed.len(), waiting);
}

#[test]
fn another_image_is_refused_by_name() {
    let mut machine = machine();
    let mut changed = elf(HALT);
    *changed.last_mut().unwrap() = 0x90;
    machine.starts_over_from(Box::new(Fixed(changed))).unwrap();
    let error = machine.start_over().unwrap_err().to_string();
    assert!(error.contains("'test' was changed meanwhile"), "{error}");
}

#[test]
fn a_machine_without_its_image_cannot_start_over() {
    let error = machine().start_over().unwrap_err().to_string();
    assert!(error.contains("cannot start it over"), "{error}");
}

#[test]
fn a_machine_restored_in_mid_life_starts_over_like_the_one_that_was_saved() {
    let mut machine = kept();
    machine.spoil();
    at(&mut machine, 500);
    let saved = machine.saved();
    let mut restored = kept()
        .restored_from(Snapshot::open(&saved[..]).unwrap())
        .unwrap();
    assert!(restored.saved() == saved, "as it was saved");
    for machine in [&mut machine, &mut restored] {
        machine.start_over().unwrap();
    }
    assert!(machine.saved() == restored.saved());
    assert_eq!(
        machine.digest(None).unwrap(),
        restored.digest(None).unwrap()
    );
}

#[test]
fn a_machine_takes_no_snapshot_of_another() {
    let mut other = config(&elf(HALT));
    other.mac[5] = 9;
    let memory = boot::memory(&other).unwrap();
    let engine = engine(&other, &memory);
    let image = elf(HALT);
    let other = Machine::boot(engine, memory, other, &GuestImage::new(&image));
    let saved = other.unwrap().saved();
    let error = kept()
        .restored_from(Snapshot::open(&saved[..]).unwrap())
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("another machine"), "{error}");
}
