//! A machine goes through a snapshot unchanged; damaged snapshots are refused. No KVM: the vCPU stands
//! still.

use super::*;
use crate::cpu::CpuModel;
use crate::engine::{Bus, TimeBase, VmExit};
use crate::machine::board::Write;
use crate::machine::time::TscMode;
use crate::machine::{BoardKind, boot};
use replay::{Anchor, Arrival, Clock, ClockKind, ExecPoint, Output, RegisterDigest, Stop};

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
    let config = config();
    Machine {
        engine: Still::default(),
        board: Board::new(&config),
        memory: boot::memory(&config).unwrap(),
        time: GuestClock::new(config.tsc),
        config,
        entry: VmEntry::Resume,
        halted: false,
        settled: None,
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

/// A machine each part of which is not as it began, with a disk read under way.
fn changed() -> Machine<Still> {
    let mut machine = fresh();
    machine.engine.0.rip = 0x10_0000;
    machine.engine.0.clock = Clock(77);
    machine.halted = true;
    machine.settled = Some(false);
    machine.time.advance(Anchor(1234)).unwrap();
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
    let bytes = machine.save().unwrap();
    assert_eq!(Machine::<Still>::snapshot_config(&bytes).unwrap(), config());
    let memory = boot::memory(&config()).unwrap();
    let mut restored = Machine::restore(Still::default(), memory, &bytes).unwrap();
    assert_eq!(
        restored.digest(None).unwrap(),
        machine.digest(None).unwrap()
    );
    assert!(restored.save().unwrap() == bytes, "and saves the same");
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

#[test]
fn damaged_snapshots_are_refused() {
    let bytes = changed().save().unwrap();
    let memory = boot::memory(&config()).unwrap();
    let refused = |bytes: &[u8]| Machine::restore(Still::default(), memory.clone(), bytes).is_err();
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

#[test]
fn none_is_taken_while_the_guest_waits_for_data() {
    let mut machine = fresh();
    machine.entry = VmEntry::ReadData(0);
    assert!(matches!(machine.save(), Err(SnapshotError::Busy)));
}
