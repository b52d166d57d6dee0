//! A machine without KVM, recorded and replayed: derived time costs no entries, both replicas see the
//! same, and the guest finds its timer's count ended at each tick. The vCPU runs a short script; the
//! host's clock is simulated, so that each seed is one history.

use super::pace::{AHEAD_NS_MAX, Pace};
use super::state::Standing;
use super::{BoardKind, Machine, MachineConfig, TscMode, boot};
use crate::cpu::CpuModel;
use crate::engine::{Bus, Engine, EngineError, TimeBase, VmEntry, VmExit};
use crate::memory::PageSet;
use crate::state::CpuState;
use proptest::prelude::*;
use replay::codec::{Decoder, Encoder};
use replay::recorder::{Recorder, StatePace};
use replay::replayer::Replayer;
use replay::{
    Anchor, Arrival, Clock, ClockKind, Duty, Event, ExecPoint, Here, InputsError, Kind, LogEntry,
    LogError, LogIndex, LogPlace, LogSink, LogSource, NextEntry, NoLog, Outlet, Output, Question,
    RegisterDigest, Situation, Source, Stop, Succession,
};

/// What the guest does, over and over.
#[derive(Clone, Copy)]
enum Op {
    Work(u64),
    /// Reads the TSC; it must not have stepped back.
    Tsc,
    Out(u16, u8),
    /// Reads a port into the sum.
    In(u16),
    /// Reads a port, of which these bits must be set.
    Expect(u16, u8),
    /// Closes the door to interrupts.
    Cli,
    /// Opens it.
    Sti,
    /// Opens it and sleeps.
    Halt,
    /// Switches off after so many rounds.
    Rounds(u64),
}

/// Sets up the PIC, arms the timer once (mode 0), sleeps, and looks at clock and count when it wakes;
/// then works for a while, with the periodic timer (mode 2) running, and reads the RTC once a round.
const GUEST: &[Op] = &[
    Op::Out(0x20, 0x11),
    Op::Out(0x21, 0x20),
    Op::Out(0x21, 4),
    Op::Out(0x21, 1),
    Op::Out(0x21, 0xfe),
    Op::Work(700),
    Op::Tsc,
    Op::Cli,
    Op::Out(0x43, 0x30),
    Op::Out(0x40, 0x00),
    Op::Out(0x40, 0x04), // 1024 clocks: 858 us
    Op::Tsc,
    Op::Halt,
    Op::Out(0x43, 0xe2), // read-back: status of channel 0
    Op::Expect(0x40, 0x80),
    Op::Tsc,
    Op::Out(0x20, 0x20),
    Op::In(0x40),
    Op::Out(0x43, 0x34),
    Op::Out(0x40, 0x00),
    Op::Out(0x40, 0x01), // 256 clocks: 215 us
    Op::Sti,
    Op::Work(400_000),
    Op::In(0x40),
    Op::Out(0x43, 0x30), // no more ticks; one is in service, one may be pending
    Op::Out(0x20, 0x20),
    Op::Out(0x20, 0x20),
    Op::Out(0x70, 0x00),
    Op::In(0x71),
    Op::Tsc,
    Op::Out(0x3f8, b'.'),
    Op::Out(0x3f8, b'\n'),
    Op::Rounds(6),
];

/// General registers the script uses.
const SUM: usize = 0;
const WORKED: usize = 1;
const LAST_TSC: usize = 2;
const ROUNDS: usize = 3;
/// RFLAGS.IF.
const IF: u64 = 1 << 9;

/// A vCPU that runs [`GUEST`], one operation or unit of work an instruction.
#[derive(Default)]
struct Scripted {
    state: CpuState,
    time: TimeBase,
    /// What the read under way is for.
    reading: Option<Op>,
    /// Instructions after which a primary is kicked out.
    kick_after: Option<u64>,
}

impl Scripted {
    fn new(kick_after: Option<u64>) -> Self {
        Self {
            kick_after,
            ..Self::default()
        }
    }

    fn mix(&mut self, value: u64) {
        let sum = &mut self.state.general[SUM];
        *sum = (*sum ^ value)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(29);
    }

    fn fault(&self, why: String) -> EngineError {
        let at = ExecPoint {
            clock: self.state.clock,
            rip: self.state.rip,
            rcx: 0,
        };
        EngineError::GuestFault { at, why }
    }

    fn see_tsc(&mut self, tsc: u64) -> Result<(), EngineError> {
        let last = self.state.general[LAST_TSC];
        if tsc < last {
            return Err(self.fault(format!("the TSC steps back from {last} to {tsc}")));
        }
        self.state.general[LAST_TSC] = tsc;
        self.mix(tsc);
        Ok(())
    }

    fn take(&mut self, value: u64) -> Result<(), EngineError> {
        match self.reading.take().expect("a read is under way") {
            Op::Tsc => self.see_tsc(value)?,
            Op::Expect(port, bits) if value & u64::from(bits) != u64::from(bits) => {
                return Err(self.fault(format!("port {port:#x} has {value:#x} without {bits:#x}")));
            }
            _ => self.mix(value),
        }
        Ok(())
    }

    /// One instruction; an exit, if it leaves.
    fn step(&mut self) -> Result<Option<VmExit>, EngineError> {
        self.state.clock.0 += 1;
        let op = GUEST[usize::try_from(self.state.rip).expect("a place in the script")];
        if let Op::Work(units) = op {
            self.state.general[WORKED] += 1;
            if self.state.general[WORKED] < units {
                return Ok(None);
            }
            self.state.general[WORKED] = 0;
        }
        self.state.rip += 1;
        let bus = Bus::Port;
        Ok(match op {
            Op::Work(_) => None,
            Op::Tsc => match self.time {
                TimeBase::Derived { ns_at_zero } => {
                    self.see_tsc(self.state.clock.0.wrapping_add(ns_at_zero))?;
                    None
                }
                TimeBase::Exit => {
                    let (bus, address, size) = (Bus::Tsc, 0, 8);
                    self.reading = Some(op);
                    Some(VmExit::Read { bus, address, size })
                }
            },
            Op::In(port) | Op::Expect(port, _) => {
                let (address, size) = (port.into(), 1);
                self.reading = Some(op);
                Some(VmExit::Read { bus, address, size })
            }
            Op::Out(port, value) => Some(VmExit::Write {
                bus,
                address: port.into(),
                size: 1,
                value: value.into(),
            }),
            Op::Cli => {
                self.state.rflags &= !IF;
                None
            }
            Op::Sti => {
                self.state.rflags |= IF;
                None
            }
            Op::Halt => {
                self.state.rflags |= IF;
                self.state.halted = true;
                Some(VmExit::Halt)
            }
            Op::Rounds(rounds) => {
                self.state.general[ROUNDS] += 1;
                self.state.rip = 5;
                let end = VmExit::Write {
                    bus: Bus::Mmio,
                    address: abi::CONTROL_PAGE + abi::control::POWER_OFF,
                    size: 4,
                    value: 0,
                };
                (self.state.general[ROUNDS] == rounds).then_some(end)
            }
        })
    }
}

impl Engine for Scripted {
    fn clock_kind(&self) -> ClockKind {
        ClockKind::Instructions
    }

    fn run(&mut self, entry: VmEntry, stop: Stop) -> Result<VmExit, EngineError> {
        if let VmEntry::ReadData(value) = entry {
            self.take(value)?;
        }
        if let Some(vector) = self.state.injected.take() {
            self.mix(vector.into());
            self.state.halted = false;
        }
        let mut ran = 0;
        loop {
            if stop == Stop::At(self.state.clock) || (stop == Stop::Soon && ran > 0) {
                return Ok(VmExit::Stopped);
            }
            if stop == Stop::Never && self.kick_after.is_some_and(|after| ran >= after) {
                return Ok(VmExit::Kicked);
            }
            if let Some(exit) = self.step()? {
                return Ok(exit);
            }
            ran += 1;
        }
    }

    fn clock(&self) -> Clock {
        self.state.clock
    }

    fn point(&mut self) -> Result<(ExecPoint, RegisterDigest), EngineError> {
        let (clock, rip) = (self.state.clock, self.state.rip);
        let registers = replay::digest::registers(rip, self.state.rflags, &self.state.general);
        let point = ExecPoint { clock, rip, rcx: 0 };
        Ok((point, registers))
    }

    fn interruptible(&self) -> bool {
        self.state.injected.is_none() && self.state.rflags & IF != 0
    }

    fn inject(&mut self, vector: u8) -> Result<(), EngineError> {
        self.state.injected = Some(vector);
        Ok(())
    }

    fn set_time(&mut self, time: TimeBase) -> Result<(), EngineError> {
        self.time = time;
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
        Ok(self.state.clone())
    }

    fn restore(&mut self, state: &CpuState) -> Result<(), EngineError> {
        self.state = state.clone();
        Ok(())
    }
}

/// A live world whose host clock only moves when it is looked at, by a number from the seed.
struct World {
    seed: u64,
    host_ns: u64,
    /// How long one kick's run of the guest takes.
    run_ns: u64,
    pace: Pace,
}

impl World {
    fn new(seed: u64, run_ns: u64, guest_ns: u64) -> Self {
        let host_ns = 1_000_000 + seed % 1_000_000;
        Self {
            seed: seed | 1,
            host_ns,
            run_ns,
            pace: Pace::new(guest_ns, host_ns),
        }
    }

    fn random(&mut self, below: u64) -> u64 {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        self.seed % below
    }

    fn pass(&mut self, ns_max: u64) -> u64 {
        self.host_ns += self.random(ns_max.max(1));
        self.host_ns
    }
}

impl Source for World {
    fn answer(&mut self, question: Question) -> u64 {
        let host_ns = self.pass(1000);
        match question {
            Question::WallClock => 1_700_000_000_000_000_000 + host_ns,
            _ => self.pace.real_ns(host_ns),
        }
    }

    fn guest_ns(&mut self) -> u64 {
        let host_ns = self.pass(1000);
        self.pace.real_ns(host_ns)
    }

    fn poll(&mut self, now: &Situation) -> Result<Option<Arrival>, InputsError> {
        let host_ns = self.pass(1000);
        self.pace.follow(now, || host_ns);
        if let Some(tick) = self.pace.tick(host_ns) {
            let periods = tick.periods;
            return Ok(Some(Arrival::Timer { periods }));
        }
        if self.random(40) == 0 {
            return Ok(Some(Arrival::Console(b"x".to_vec())));
        }
        let behind = self.pace.is_behind(now, host_ns);
        Ok(behind.then_some(Arrival::IrqWindow))
    }

    fn wait(&mut self, _: &Situation) -> Result<(), InputsError> {
        let due = self.pace.due_ns().expect("the guest sleeps with a timer");
        self.host_ns = self.host_ns.max(due);
        Ok(())
    }

    fn is_progress_due(&mut self) -> bool {
        false
    }

    fn next_stop(&mut self, now: &Situation) -> Stop {
        let host_ns = self.pass(self.run_ns);
        self.pace.follow(now, || host_ns);
        let ahead = self.pace.ahead_ns(now, host_ns);
        if ahead > AHEAD_NS_MAX {
            self.host_ns += ahead; // held back
        }
        let due = self.pace.due_ns().is_some_and(|due| due <= self.host_ns);
        if due || self.pace.is_behind(now, self.host_ns) {
            return Stop::Soon;
        }
        Stop::Never
    }
}

/// A log in memory, as bytes.
#[derive(Default)]
struct Log {
    encoder: Encoder,
    bytes: Vec<u8>,
    /// Each entry with its encoded length.
    entries: Vec<(LogEntry, usize)>,
}

impl LogSink for &mut Log {
    fn place(&self) -> LogPlace {
        self.encoder.place()
    }

    fn append(&mut self, entry: &LogEntry) -> Result<LogIndex, LogError> {
        let before = self.bytes.len();
        self.encoder.encode(entry, &mut self.bytes);
        let index = LogIndex(self.entries.len() as u64);
        self.entries
            .push((entry.clone(), self.bytes.len() - before));
        Ok(index)
    }

    fn flush(&mut self) -> Result<(), LogError> {
        Ok(())
    }

    fn is_followed(&self) -> bool {
        false
    }
}

/// The first `left` entries of encoded `rest`.
struct Reading<'a> {
    decoder: Decoder,
    rest: &'a [u8],
    left: usize,
}

impl<'a> Reading<'a> {
    fn new(rest: &'a [u8], left: usize) -> Self {
        let decoder = Decoder::new();
        Self {
            decoder,
            rest,
            left,
        }
    }
}

impl LogSource for Reading<'_> {
    fn place(&self) -> LogPlace {
        self.decoder.place()
    }

    fn next(&mut self, _: bool) -> Result<NextEntry, InputsError> {
        if self.rest.is_empty() || self.left == 0 {
            return Ok(NextEntry::Ended);
        }
        self.left -= 1;
        Ok(NextEntry::Entry(self.decoder.decode(&mut self.rest)?))
    }
}

#[derive(Default, Debug, PartialEq)]
struct Seen(Vec<Output>);

impl Outlet for Seen {
    fn emit(&mut self, _: LogIndex, output: Output) -> Result<(), InputsError> {
        self.0.push(output);
        Ok(())
    }
}

impl Outlet for &mut Seen {
    fn emit(&mut self, index: LogIndex, output: Output) -> Result<(), InputsError> {
        (**self).emit(index, output)
    }
}

fn machine(tsc: TscMode, kick_after: Option<u64>) -> Machine<Scripted> {
    let config = MachineConfig {
        guest: "script".into(),
        image_digest: 0,
        memory_mib: 16,
        cmdline: String::new(),
        cpu: CpuModel::V1,
        clock_kind: ClockKind::Instructions,
        tsc,
        mac: [2, 0, 0, 0, 0, 1],
        disk_sectors: None,
        initrd: None,
        board: BoardKind::Bare,
        reboots: true,
    };
    let memory = boot::memory(&config).unwrap();
    let mut engine = Scripted::new(kick_after);
    let time = super::time::GuestClock::new(tsc);
    engine.set_time(time.base()).unwrap();
    Machine {
        engine,
        board: super::board::Board::new(&config),
        memory,
        config,
        time,
        entry: VmEntry::Resume,
        halted: false,
        standing: Standing::BEGIN,
        origin: None,
    }
}

const PACE: StatePace = StatePace { every_entries: 16 };

fn record(tsc: TscMode, seed: u64, kick_after: u64, run_ns: u64) -> (Log, u64, Seen) {
    let mut log = Log::default();
    let mut machine = machine(tsc, Some(kick_after));
    let world = World::new(seed, run_ns, 0);
    let mut recorder = Recorder::new(world, &mut log, Seen::default(), PACE, 4096);
    let ended = machine.run(&mut recorder).unwrap();
    let seen = std::mem::take(recorder.outlet_mut());
    (log, ended.digest, seen)
}

fn replay(tsc: TscMode, log: &[u8]) -> Result<(u64, Seen), super::MachineError> {
    let mut replayer = Replayer::new(Reading::new(log, usize::MAX), Seen::default());
    let ended = machine(tsc, None).run(&mut replayer)?;
    let seen = std::mem::take(replayer.suppressed_mut());
    Ok((ended.digest, seen))
}

fn count(log: &Log, kind: Kind) -> usize {
    let of_kind = |(entry, _): &&(LogEntry, usize)| entry.event.kind() == kind;
    log.entries.iter().filter(of_kind).count()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Engines from a hundred times too slow to ten times too fast.
    #[test]
    fn a_derived_run_replays_without_a_clock_entry(
        seed in any::<u64>(),
        kick_after in 200..20_000u64,
        slowness in 1..1000u64,
    ) {
        let run_ns = kick_after * slowness / 10;
        let (log, digest, seen) = record(TscMode::Derived, seed, kick_after, run_ns);
        prop_assert_eq!(count(&log, Kind::Tsc), 0);
        prop_assert_eq!(count(&log, Kind::ClockRead), 6, "the RTC, once a round");
        prop_assert!(count(&log, Kind::Timer) >= 6);
        for (entry, bytes) in &log.entries {
            if matches!(entry.event, Event::Arrival(Arrival::Timer { periods: 1 })) {
                prop_assert!(*bytes <= 12, "{} bytes for {:?}", bytes, entry);
            }
        }
        let (again, seen_again) = replay(TscMode::Derived, &log.bytes).unwrap();
        prop_assert_eq!(again, digest);
        prop_assert_eq!(seen_again, seen);
    }

    #[test]
    fn a_logged_run_has_every_reading_and_no_anchor(seed in any::<u64>(), kick_after in 200..20_000u64) {
        let (log, digest, _) = record(TscMode::Logged, seed, kick_after, kick_after);
        prop_assert_eq!(count(&log, Kind::Tsc), 6 * 4);
        prop_assert!(!log.entries.iter().any(|(entry, _)| entry.is_anchored()));
        prop_assert_eq!(replay(TscMode::Logged, &log.bytes).unwrap().0, digest);
    }
}

#[test]
fn an_altered_anchor_is_a_divergence() {
    let (log, ..) = record(TscMode::Derived, 7, 3000, 9000);
    let anchored: Vec<usize> = (0..log.entries.len())
        .filter(|&n| log.entries[n].0.anchor != Anchor::NONE)
        .collect();
    assert!(anchored.len() > 6);
    for altered in anchored {
        let mut bytes = Vec::new();
        let mut encoder = Encoder::new();
        for (n, (entry, _)) in log.entries.iter().enumerate() {
            let mut entry = entry.clone();
            entry.anchor.0 += u64::from(n == altered);
            encoder.encode(&entry, &mut bytes);
        }
        assert!(
            matches!(
                replay(TscMode::Derived, &bytes),
                Err(super::MachineError::Inputs(InputsError::Diverged(_)))
            ),
            "entry {altered}"
        );
    }
}

#[test]
fn anchors_in_a_log_of_logged_time_are_a_divergence_and_huge_ones_an_error() {
    let (log, ..) = record(TscMode::Logged, 7, 3000, 9000);
    for (tsc, anchor) in [
        (TscMode::Logged, Anchor(1)),
        (TscMode::Logged, Anchor::NONE),
        (TscMode::Derived, Anchor(u64::MAX / Anchor::STEP_NS)),
    ] {
        let here = Here {
            registers: replay::digest::registers(0, 0, &[0; 16]),
            ..Here::default()
        };
        let mut bytes = Vec::new();
        let forged = LogEntry::arrival(&here, Arrival::IrqWindow, Some(anchor));
        let mut encoder = Encoder::new();
        encoder.encode(&forged, &mut bytes);
        for (entry, _) in &log.entries {
            encoder.encode(entry, &mut bytes);
        }
        let error = replay(tsc, &bytes).unwrap_err();
        match tsc {
            TscMode::Logged => assert!(
                matches!(error, super::MachineError::Inputs(InputsError::Diverged(_))),
                "{error}"
            ),
            TscMode::Derived => {
                assert!(matches!(error, super::MachineError::Time { .. }), "{error}")
            }
        }
    }
}

/// A backup that may lead as soon as its log ends, in this world.
struct Heir(Option<World>);

impl Succession for Heir {
    type Kept = Seen;
    type Leading = Recorder<World, NoLog, Seen>;

    fn lead(&mut self, from: LogPlace, kept: &mut Seen) -> Result<Self::Leading, InputsError> {
        let world = self.0.take().expect("it goes live once");
        let pace = StatePace { every_entries: 0 };
        let seen = std::mem::take(kept);
        Ok(Recorder::new(world, NoLog::at(from), seen, pace, 4096))
    }
}

#[test]
fn a_backup_goes_live_at_every_entry_and_time_goes_on() {
    let (log, ..) = record(TscMode::Derived, 99, 5000, 20_000);
    assert!(log.entries.len() > 30);
    for entries in 0..log.entries.len() {
        // Its host has seen less time pass than its guest, or a second more.
        for guest_ns in [0, 1_000_000_000] {
            let replayer = Replayer::new(Reading::new(&log.bytes, entries), Seen::default());
            let world = World::new(entries as u64, 20_000, guest_ns);
            let mut inputs = Duty::follow(replayer, Heir(Some(world)));
            let mut backup = machine(TscMode::Derived, Some(5000));
            let ended = backup
                .run(&mut inputs)
                .unwrap_or_else(|e| panic!("{entries} entries: {e}"));
            assert_eq!(ended.code, 0);
            // It sleeps a few times more, and each tick brings it to real time.
            if entries < log.entries.len() / 2 {
                let end_ns = backup.time.now_ns(ended.clock).unwrap();
                assert!(end_ns >= guest_ns, "the outage shows as a step forward");
            }
        }
    }
}

/// A recording that is left at a stop, and what the machine was like there.
struct LeftRecording {
    log: Log,
    here: Here,
    digest: u64,
    seen: Seen,
}

/// Records a machine until its guest has made `stops` stops, and leaves the recording there. None if the
/// machine ended before.
fn record_and_leave(
    tsc: TscMode,
    seed: u64,
    kick_after: u64,
    every_entries: u64,
    stops: u32,
) -> Option<LeftRecording> {
    let (mut log, mut seen) = (Log::default(), Seen::default());
    let mut machine = machine(tsc, Some(kick_after));
    let world = World::new(seed, kick_after * 3, 0);
    let pace = StatePace { every_entries };
    let mut recorder = Recorder::new(world, &mut log, &mut seen, pace, 4096);
    let (mut made, mut here) = (0, Here::default());
    let paused = machine.run_until(&mut recorder, |now| {
        (made, here) = (made + 1, now.here);
        made > stops
    });
    if paused.unwrap().is_some() {
        return None;
    }
    let digest = machine.digest(None).unwrap();
    recorder.leave(&here, digest).unwrap();
    Some(LeftRecording {
        log,
        here,
        digest,
        seen,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// At any stop: with an entry at it, with a state digest at it, too, or with neither.
    #[test]
    fn a_replay_ends_where_its_recording_was_left(
        seed in any::<u64>(),
        kick_after in 200..20_000u64,
        every_entries in prop_oneof![Just(0), Just(1), Just(5)],
        stops in 0..150u32,
        derived in any::<bool>(),
    ) {
        let tsc = if derived { TscMode::Derived } else { TscMode::Logged };
        let left = record_and_leave(tsc, seed, kick_after, every_entries, stops);
        prop_assume!(left.is_some());
        let LeftRecording { log, here, digest, seen } = left.expect("assumed");
        let entries = log.entries.len() as u64;

        let mut seen_again = Seen::default();
        let mut replayer = Replayer::new(Reading::new(&log.bytes, usize::MAX), &mut seen_again);
        let mut again = machine(tsc, None);
        let error = again.run(&mut replayer).unwrap_err();
        let super::MachineError::Inputs(InputsError::Left { entries: got, at, digest: found }) = error else {
            panic!("{error}");
        };
        prop_assert_eq!((got, at, found), (entries, here.point, digest));
        prop_assert_eq!(replayer.entries(), entries);
        prop_assert_eq!(again.here().unwrap(), here, "it went no further");
        prop_assert_eq!(again.digest(None).unwrap(), digest);
        prop_assert_eq!(seen_again, seen);

        // Another machine there is no such replay.
        let mut bytes = Vec::new();
        let mut encoder = Encoder::new();
        for (entry, _) in &log.entries {
            let mut entry = entry.clone();
            if let Event::Left { digest } = &mut entry.event {
                *digest ^= 1;
            }
            encoder.encode(&entry, &mut bytes);
        }
        let error = replay(tsc, &bytes).unwrap_err();
        let divergence = error.divergence().expect("it differs");
        prop_assert!(divergence.found.contains("where the recording ends"), "{}", divergence);
    }
}
