//! One machine alone: `tandem run`, `record`, `replay`.

use super::blueprint;
use super::recording::{Alarm, AloneInputs, Plan, Recorded, Recording};
use super::replayed::{self, Done, all_read};
use super::whatif::{self, State};
use crate::cli::{MachineArgs, RecordArgs, ReplayArgs, RunArgs};
use crate::failure::{During, Failure, Outcome};
use crate::look::cast::{Cast, Pace};
use crate::look::core;
use crate::look::gdb::{self, Left};
use crate::look::pcap::Pcap;
use crate::look::point::{self, View};
use crate::look::travel::Travel;
use crate::look::witness::{Heard, Said, Witnesses, check_apart};
use crate::signals;
use replay::divergence::Divergence;
use replay::file::LogReader;
use replay::recorder::{Recorder, StatePace};
use replay::replayer::Replayer;
use replay::{Arrival, Base, BaseOrigin, Clock, ClockKind, LogIndex, NoLog};
use replica::machine::{AnyMachine, EngineChoice, Prepared, prepare};
use replica::outside::{self, Discard, NetPlug, Outside};
use replica::{Exit, Journal, is_well, of_status};
use serde::Serialize;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;
use vmm::backends::ArrivalSink;
use vmm::backends::console::{Console, ConsoleInput};
use vmm::backends::station::Station;
use vmm::backends::switch::{Forward, ForwardedPort, Switch};
use vmm::engine::Engine;
use vmm::machine::live::{GuestTime, Inbox, Live};
use vmm::machine::{Ended, MachineError};

/// `tandem run`.
pub fn run(args: RunArgs) -> Outcome {
    report_end(&live(args, None)?)
}

/// What `tandem record` and `tandem replay` say.
#[derive(Serialize)]
struct Report {
    /// Where the log begins.
    base: Base,
    entries: u64,
    /// The clock where the log ends, or the replay did.
    clock: u64,
    clock_kind: ClockKind,
    /// Whether the recording ended before its machine.
    left: bool,
    divergence: Option<Divergence>,
    /// What ended the run early, if something did.
    error: Option<String>,
    /// Of the machine, which may have run on behind a recording. A replay of that does not know it.
    exit_status: Option<u32>,
    /// Digest of the whole machine at that clock.
    digest: Option<String>,
    seconds: f64,
}

/// `tandem record`.
pub fn record(args: RecordArgs) -> Outcome {
    let begun = Instant::now();
    let plan = Plan {
        path: args.output.clone(),
        pace: StatePace {
            every_entries: args.digest_every,
        },
        after: args.after,
        lasts: args.lasts,
    };
    let ran = live(args.run, Some(plan))?;
    let recorded = ran.recorded.expect("it was recorded by a plan");
    let Recorded {
        base,
        entries,
        clock,
        digest,
        left,
    } = recorded;
    let clock_kind = ran.clock_kind;
    let seconds = begun.elapsed().as_secs_f64();
    if args.json {
        let report = Report {
            base,
            entries,
            clock: clock.0,
            clock_kind,
            left,
            divergence: None,
            error: None,
            exit_status: Some(ran.ended.code),
            digest: Some(format!("{digest:016x}")),
            seconds,
        };
        crate::sayln!("{}", serde_json::to_string(&report).during("report")?);
    } else {
        let from = match base.origin {
            BaseOrigin::Boot => String::new(),
            BaseOrigin::State => {
                format!(" from entry {} at clock {} on", base.index, base.clock)
            }
        };
        let ran_on = if left { "; the machine ran on" } else { "" };
        crate::complain!(
            "recorded {entries} entries{from}, clock {clock} ({clock_kind}), {seconds:.2} s: {}{ran_on}",
            args.output.display()
        );
    }
    report_end(&ran)
}

fn report_end(ran: &Ran) -> Outcome {
    match ran.ended.code {
        0 => Ok(()),
        code => {
            let (why, said) = (ran.why.as_deref(), of_status(code, ran.why.as_deref()));
            Err(if is_well(code, why) {
                Failure::none(said)
            } else {
                Failure::of_guest(code, said)
            })
        }
    }
}

/// A run that ended.
struct Ran {
    ended: Ended,
    /// What was recorded of it, if it was to be.
    recorded: Option<Recorded>,
    clock_kind: ClockKind,
    /// Why the guest gave up, if it said so.
    why: Option<String>,
}

/// Runs a machine with live inputs to its end, recorded as planned.
fn live(args: RunArgs, plan: Option<Plan>) -> Outcome<Ran> {
    let set = signals::block()?;
    let mut machine_args = args.machine;
    let output = plan.as_ref().map(|plan| plan.path.as_path());
    let (state, prepared) = match State::of(&mut machine_args, output)? {
        Some((state, prepared)) => (Some(state), prepared),
        None => {
            let blueprint = blueprint::blueprint(&mut machine_args)?;
            (None, prepare(blueprint, machine_args.engine)?)
        }
    };
    if let Some(remark) = prepared.remark() {
        crate::complain!("tandem: {remark}");
    }
    let inbox = Inbox::new();
    let _network = forward(
        &args.forward,
        args.no_forward,
        args.guest_ip,
        &mut machine_args,
    )?;
    let sink: Arc<dyn ArrivalSink> = inbox.clone();
    let plugs = blueprint::plugs(&machine_args, false);
    let station = Station::of(prepared.config().mac);
    let outside = outside::plug_in(outside::Use::Alone, &plugs, &station, &sink)
        .during("cannot plug the machine in")?;
    let _typing = args
        .input
        .then(|| ConsoleInput::stdin(sink.clone()))
        .transpose()
        .during("stdin")?;
    let stop = inbox.clone();
    signals::watch(set, move || {
        stop.push(Arrival::Stop);
    })?;
    let plan = match plan {
        Some(plan) => Some((plan, Alarm::start(inbox.clone())?)),
        None => None,
    };
    let start = Start {
        state,
        prepared,
        plan,
        inbox,
        station,
        outside,
    };
    on_vcpu_thread("vcpu", || start.run())
}

/// A machine that is plugged in, and about to run.
struct Start {
    /// What it goes on from, if it does not boot.
    state: Option<State>,
    prepared: Prepared,
    plan: Option<(Plan, Alarm)>,
    inbox: Arc<Inbox>,
    station: Arc<Station>,
    outside: Arc<Outside>,
}

impl Start {
    /// Runs it to its end. On the vCPU's thread.
    fn run(self) -> Outcome<Ran> {
        let Self {
            state,
            prepared,
            plan,
            inbox,
            station,
            outside,
        } = self;
        let origin = prepared.origin();
        let (mut machine, base, time) = match &state {
            None => {
                let (machine, first_state) = prepared.boot()?;
                (machine, Base::alone(first_state), GuestTime::default())
            }
            Some(state) => {
                let machine = state.restore(prepared)?;
                let time = whatif::time(&machine);
                (machine, state.base(), time)
            }
        };
        machine.tell_station(station);
        let begin = |(plan, alarm)| Recording::begin(plan, alarm, inbox.clone(), &origin, base);
        let (mut recording, journal) = match plan.map(begin).transpose()? {
            Some((recording, journal)) => (Some(recording), journal),
            None => (None, Journal::Alone(NoLog::at(base.place()))),
        };
        let pace = recording
            .as_ref()
            .map_or(StatePace { every_entries: 0 }, Recording::pace);
        let live = Live::new(inbox.clone(), time, false).during("no timer")?;
        // What the disk was asked for, and had not done.
        for request in machine.outstanding_disk() {
            outside.emit(LogIndex(0), request);
        }
        let pages = machine.config().memory_bytes() / 4096;
        let exit = Exit::Open(outside.clone());
        let mut recorder = Recorder::new(live, journal, exit, pace, pages);
        if let Some(recording) = &mut recording {
            recording.start(&mut machine, &mut recorder)?;
        }
        let clock_kind = machine.config().clock_kind;
        let (ended, recorded) = to_its_end(machine, recorder, &inbox, recording)?;
        Ok(Ran {
            ended,
            recorded,
            clock_kind,
            why: outside.why(),
        })
    }
}

/// Runs `machine` to its end. At each of its pauses, which `inbox` is asked for, `recording` has its turn.
fn to_its_end(
    mut machine: AnyMachine,
    mut inputs: AloneInputs,
    inbox: &Inbox,
    mut recording: Option<Recording>,
) -> Outcome<(Ended, Option<Recorded>)> {
    let ended = loop {
        match machine.run_until(&mut inputs, |_| inbox.pause_wanted()) {
            Ok(Some(ended)) => break ended,
            Ok(None) => {
                if let Some(recording) = &mut recording {
                    recording.turn(&mut machine, &mut inputs)?;
                }
            }
            Err(error) => {
                let error = machine.broke(&mut inputs, error);
                let begun = recording.as_ref().map_or(Ok(()), Recording::check_begun);
                return match begun {
                    Ok(()) => Err(error.into()),
                    Err(nothing) => Err(Failure::new(format!("{error}; {nothing}"))),
                };
            }
        }
    };
    let finish = |recording: Recording| recording.finish(&mut inputs, &ended);
    Ok((ended, recording.map(finish).transpose()?))
}

/// Runs `body` on a thread of its own, since a vCPU thread may not read the clock as others do.
pub fn on_vcpu_thread<T: Send>(name: &str, body: impl FnOnce() -> Outcome<T> + Send) -> Outcome<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn_scoped(scope, body)
            .during("cannot start a thread")?;
        thread
            .join()
            .unwrap_or_else(|_| Err(Failure::new("the vCPU thread failed")))
    })
}

/// A switch in this process with ports forwarded on it, if there are any: those asked for, or else those of the image.
fn forward(
    asked: &[ForwardedPort],
    none: bool,
    guest_ip: Option<Ipv4Addr>,
    args: &mut MachineArgs,
) -> Outcome<Option<(Forward, Switch, tempfile::TempDir)>> {
    let of_image: &[u16] = match none || args.net.is_some() || !asked.is_empty() {
        true => &[],
        false => &args.ports,
    };
    if asked.is_empty() && of_image.is_empty() {
        return Ok(None);
    }
    let ip = guest_ip.map_or_else(|| blueprint::guest_ip(&args.args), Ok)?;
    let mut listeners = Vec::new();
    for ForwardedPort { host, guest } in asked {
        let listener = listen(*host)?;
        listeners.push((listener, SocketAddrV4::new(ip, *guest)));
    }
    for guest in of_image {
        // Whatever port can be had: it may be another's, or root's alone.
        let (listener, but) = match listen(*guest) {
            Ok(listener) => (listener, String::new()),
            Err(why) => (listen(0)?, format!(" ({why})")),
        };
        let at = listener.local_addr().during("forward")?;
        crate::complain!("tandem: {at} leads to the guest's port {guest}{but}");
        listeners.push((listener, SocketAddrV4::new(ip, *guest)));
    }
    let folder = tempfile::tempdir().during("cannot make a folder for the switch's socket")?;
    let socket = folder.path().join("switch");
    let switch = Switch::start(&socket)?;
    let forward = Forward::of(&socket, listeners)?;
    args.net = Some(NetPlug::Switch(socket));
    Ok(Some((forward, switch, folder)))
}

/// Listens on a port of this host, reached from it alone; on any that is free if it is 0.
fn listen(port: u16) -> Outcome<TcpListener> {
    let at = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    TcpListener::bind(at).during(format_args!("cannot listen on {at}"))
}

/// `tandem replay`.
pub fn replay(mut args: ReplayArgs) -> Outcome {
    let begun = Instant::now();
    let looking = args.gdb.is_some() || args.at.is_some();
    if looking {
        if args.engine == EngineChoice::Kvm {
            return Err(Failure::usage("--gdb and --at need the software engine"));
        }
        args.engine = EngineChoice::Soft;
    }
    // The copy of a disk is written to as well.
    let written = [&args.core, &args.save, &args.disk, &args.pcap, &args.cast];
    let written = written.into_iter().flatten().map(PathBuf::as_path);
    check_apart(&args.log, written)?;
    if let (Some(point), Some(state)) = (args.to, &args.save) {
        return on_vcpu_thread("vcpu", || whatif::save(&args, point, state));
    }
    let (image, initrd) = (args.image.as_deref(), args.initrd.as_deref());
    let (reader, prepared) = replayed::open(&args.log, args.engine, image, initrd)?;
    let console = args.console.then(Console::stdout);
    let replayed = on_vcpu_thread("vcpu", || {
        if looking {
            look(&args, reader, prepared, console, begun)
        } else {
            straight(&args, reader, prepared, console).map(Some)
        }
    })?;
    match replayed {
        Some(replayed) => replayed.report(&args, begun.elapsed().as_secs_f64()),
        None => Ok(()),
    }
}

/// Replays from beginning to end.
fn straight(
    args: &ReplayArgs,
    reader: LogReader,
    prepared: Prepared,
    console: Option<Console>,
) -> Outcome<Replayed> {
    let mut machine = replayed::begin(&reader, prepared)?;
    let base = reader.header().base;
    let mut witnesses = Witnesses::default();
    if let Some(path) = &args.pcap {
        witnesses.add(Pcap::create(path)?);
    }
    if let Some(path) = &args.cast {
        witnesses.add(Cast::create(path)?);
    }
    if let Some(speed) = args.speed {
        witnesses.add(Pace::new(speed));
    }
    let skipped_ns = ahead_ns(machine.guest_ns(), base.clock).during(args.log.display())?;
    let heard = Heard::new(reader, witnesses.clone(), skipped_ns);
    let said = Said {
        outlet: Discard { console },
        witnesses: witnesses.clone(),
    };
    let mut replayer = Replayer::new(heard, said);
    let ended = machine.run(&mut replayer);
    let result = all_read(&mut replayer.log_mut().log, ended);
    let written = witnesses.finish(replayer.index());
    Ok(Replayed {
        written,
        result,
        base,
        entries: replayer.entries(),
        clock: machine.engine().clock().0,
        clock_kind: machine.config().clock_kind,
    })
}

/// By how much guest time is ahead of the clock in nanoseconds, where it is derived: it is `guest_ns` where a log
/// begins, by whose own word the clock reads `clock` there.
///
/// # Errors
/// If it is behind: the log says one thing of its beginning, the machine's state in it another.
fn ahead_ns(guest_ns: Option<u64>, clock: Clock) -> Outcome<Option<u64>> {
    let ahead = |ns: u64| {
        ns.checked_sub(clock.0).ok_or_else(|| {
            Failure::new(format!(
                "it begins at clock {clock}, but with the state of a machine whose time is {ns} ns, which is before that"
            ))
        })
    };
    guest_ns.map(ahead).transpose()
}

/// `--at`, `--gdb`. Nothing if the replay was not taken to its end.
fn look(
    args: &ReplayArgs,
    reader: LogReader,
    prepared: Prepared,
    console: Option<Console>,
    begun: Instant,
) -> Outcome<Option<Replayed>> {
    let machine = replayed::begin_soft(&reader, prepared)?;
    let base = reader.header().base;
    let mut travel = Travel::new(machine, reader, console)?;
    if let Some(point) = args.at {
        point::go(&mut travel, &base, point).during(args.log.display())?;
    }
    let Some(port) = args.gdb else {
        let view = View::new(&travel, begun.elapsed().as_secs_f64());
        if args.json {
            crate::sayln!("{}", serde_json::to_string(&view).during("view")?);
        } else {
            view.print(&travel);
        }
        if let Some(path) = &args.core {
            let words = core::write(&travel, path)?;
            if !args.json {
                crate::sayln!("\n{words}");
            }
        }
        return Ok(None);
    };
    if gdb::serve(&mut travel, port)? == Left::Killed {
        crate::complain!(
            "tandem: gdb ended the replay at clock {}; the rest was not replayed",
            travel.engine().clock()
        );
        return Ok(None);
    }
    let ended = travel.finish();
    let result = all_read(travel.log_mut(), ended);
    Ok(Some(Replayed {
        written: Vec::new(),
        result,
        base,
        entries: travel.replayer().entries(),
        clock: travel.engine().clock().0,
        clock_kind: travel.clock_kind(),
    }))
}

/// How a replay went.
struct Replayed {
    /// What was written of it, in words, or why it could not be.
    written: Vec<Outcome<String>>,
    result: Result<Done, MachineError>,
    base: Base,
    entries: u64,
    clock: u64,
    clock_kind: ClockKind,
}

impl Replayed {
    fn report(self, args: &ReplayArgs, seconds: f64) -> Outcome {
        let Self {
            written,
            result,
            base,
            entries,
            clock,
            clock_kind,
        } = self;
        let (divergence, error) = match &result {
            Ok(_) => (None, None),
            Err(error) => match (error.divergence(), error) {
                (Some(divergence), MachineError::Inputs(_)) => (Some(divergence.clone()), None),
                (divergence, error) => (divergence.cloned(), Some(error.to_string())),
            },
        };
        let done = result.as_ref().ok();
        if args.json {
            let report = Report {
                base,
                entries,
                clock,
                clock_kind,
                left: done.is_some_and(|done| done.code.is_none()),
                divergence,
                error,
                exit_status: done.and_then(|done| done.code),
                digest: done.map(|done| format!("{:016x}", done.digest)),
                seconds,
            };
            crate::sayln!("{}", serde_json::to_string(&report).during("report")?);
        } else if let Some(done) = done {
            let ran_on = match done.code {
                Some(_) => "",
                None => "; the recording ends here, the machine ran on",
            };
            crate::sayln!(
                "replayed {entries} entries, clock {clock} ({clock_kind}), {seconds:.2} s: \
                 every entry and digest as recorded{ran_on}"
            );
        }
        let mut failed = None;
        for words in written {
            match words {
                Ok(words) if !args.json && !words.is_empty() => crate::sayln!("{words}"),
                Ok(_) => {}
                Err(failure) => failed = failed.or(Some(failure)),
            }
        }
        if let (Some(failure), Err(_)) = (&failed, &result) {
            // What ends the command is that the replay failed.
            crate::complain!("tandem: {failure}");
        }
        result
            .map(drop)
            .map_err(|error| replayed::failure(&args.log, &error, entries))?;
        failed.map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_whose_state_is_before_its_clock_is_refused() {
        let ahead = |ns, clock| ahead_ns(ns, Clock(clock));
        assert_eq!(ahead(Some(7), 5).unwrap(), Some(2));
        assert_eq!(ahead(Some(7), 7).unwrap(), Some(0));
        assert_eq!(ahead(None, 7).unwrap(), None);
        let why = ahead(Some(7), 8).unwrap_err().to_string();
        assert!(why.contains("clock 8") && !why.contains('\n'), "{why}");
    }
}
