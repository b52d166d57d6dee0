//! One machine alone: `tandem run`, `record`, `replay`.

use super::engine::EngineArg;
use super::last_words::of_status;
use super::outside::{self, Direct, Discard};
use super::setup::{self, Origin, Prepared};
use super::unlike;
use crate::cli::{ForwardArg, MachineArgs, NetArg, RecordArgs, ReplayArgs, RunArgs};
use crate::failure::{During, Failure, Outcome};
use crate::look::gdb::{self, Left};
use crate::look::point::{self, View};
use crate::look::travel::Travel;
use crate::signals;
use replay::codec::to_bytes;
use replay::divergence::Divergence;
use replay::file::{LogHeader, LogReader, LogWriter};
use replay::recorder::{Recorder, StatePace};
use replay::replayer::Replayer;
use replay::{Arrival, ClockKind, InputsError, LogSink, NoLog};
use serde::Serialize;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Instant;
use vmm::backends::ArrivalSink;
use vmm::backends::console::{Console, ConsoleInput};
use vmm::backends::switch::{Forward, Switch};
use vmm::engine::Engine;
use vmm::machine::live::{GuestTime, Inbox, Live};
use vmm::machine::{Ended, MachineError};

/// `tandem run`.
pub fn run(args: RunArgs) -> Outcome {
    let ran = live(
        args,
        "vcpu",
        |_, _| Ok(NoLog::default()),
        StatePace { every_entries: 0 },
    )?;
    report_end(&ran)
}

/// What `tandem record` and `tandem replay` say.
#[derive(Serialize)]
struct Report {
    entries: u64,
    clock: u64,
    clock_kind: ClockKind,
    divergence: Option<Divergence>,
    /// What ended the run early, if something did.
    error: Option<String>,
    exit_status: Option<u32>,
    digest: Option<String>,
    seconds: f64,
}

/// `tandem record`.
pub fn record(args: RecordArgs) -> Outcome {
    let begun = Instant::now();
    let path = args.output.clone();
    let pace = StatePace {
        every_entries: args.digest_every,
    };
    let make = move |origin: &Origin, first_state| {
        let header = LogHeader {
            cpu_model: origin.config.cpu.name().to_owned(),
            clock_kind: origin.config.clock_kind,
            config: to_bytes(origin),
            first_state,
        };
        Ok(LogWriter::create(&path, &header, || {
            vmm::hostclock::monotonic_ns() / 1000
        })?)
    };
    let ran = live(args.run, "vcpu", make, pace)?;
    let Ran {
        ended,
        entries,
        clock_kind,
        ..
    } = ran;
    let seconds = begun.elapsed().as_secs_f64();
    if args.json {
        let report = Report {
            entries,
            clock: ended.clock.0,
            clock_kind,
            divergence: None,
            error: None,
            exit_status: Some(ended.code),
            digest: Some(format!("{:016x}", ended.digest)),
            seconds,
        };
        crate::sayln!("{}", serde_json::to_string(&report).during("report")?);
    } else {
        crate::complain!(
            "recorded {entries} entries, clock {} ({clock_kind}), {seconds:.2} s: {}",
            ended.clock,
            args.output.display()
        );
    }
    report_end(&ran)
}

fn report_end(ran: &Ran) -> Outcome {
    match ran.ended.code {
        0 => Ok(()),
        code => Err(Failure::of_guest(code, of_status(code, ran.why.as_deref()))),
    }
}

/// A run that ended.
struct Ran {
    ended: Ended,
    entries: u64,
    clock_kind: ClockKind,
    /// Why the guest gave up, if it said so.
    why: Option<String>,
}

/// Runs a machine with live inputs to its end; entries go to what `make_log` makes.
fn live<L: LogSink>(
    args: RunArgs,
    thread: &str,
    make_log: impl FnOnce(&Origin, u64) -> Outcome<L> + Send,
    pace: StatePace,
) -> Outcome<Ran> {
    let set = signals::block()?;
    let mut machine_args = args.machine;
    let blueprint = setup::blueprint(&machine_args)?;
    let prepared = setup::prepare(blueprint, machine_args.engine)?;
    let inbox = Inbox::new();
    let _network = forward(args.forward, args.guest_ip, &mut machine_args)?;
    let sink: Arc<dyn ArrivalSink> = inbox.clone();
    let outside = outside::for_machine(&machine_args, outside::Use::Alone, &sink)?;
    let _typing = args
        .input
        .then(|| ConsoleInput::stdin(sink.clone()))
        .transpose()
        .during("stdin")?;
    let stop = inbox.clone();
    signals::watch(set, move || {
        stop.push(Arrival::Stop);
    })?;
    let origin = prepared.origin();
    let vcpu = move || -> Outcome<Ran> {
        let (mut machine, first_state) = prepared.boot()?;
        let log = make_log(&origin, first_state)?;
        let live = Live::new(inbox, GuestTime::default(), false).during("no timer")?;
        let pages = machine.config().memory_bytes() / 4096;
        let direct = Direct(outside.clone());
        let mut recorder = Recorder::new(live, log, direct, pace, pages);
        let ended = machine.run(&mut recorder)?;
        Ok(Ran {
            ended,
            entries: recorder.entries(),
            clock_kind: machine.config().clock_kind,
            why: outside.why(),
        })
    };
    on_vcpu_thread(thread, vcpu)
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

/// A switch in this process with a port forward on it, if asked for.
fn forward(
    ports: Option<ForwardArg>,
    guest_ip: Option<Ipv4Addr>,
    args: &mut MachineArgs,
) -> Outcome<Option<(Forward, Switch, tempfile::TempDir)>> {
    let Some(ForwardArg { host, guest }) = ports else {
        return Ok(None);
    };
    let folder = tempfile::tempdir().during("cannot make a folder for the switch's socket")?;
    let socket = folder.path().join("switch");
    let switch = Switch::start(&socket)?;
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, host));
    let ip = guest_ip.map_or_else(|| setup::guest_ip(&args.args), Ok)?;
    let to = SocketAddrV4::new(ip, guest);
    let forward = Forward::start(&socket, listen, to)?;
    args.net = Some(NetArg::Switch(socket));
    Ok(Some((forward, switch, folder)))
}

/// `tandem replay`.
pub fn replay(mut args: ReplayArgs) -> Outcome {
    let begun = Instant::now();
    let looking = args.gdb.is_some() || args.at.is_some();
    if looking {
        if args.engine == EngineArg::Kvm {
            return Err(Failure::usage("--gdb and --at need the software engine"));
        }
        args.engine = EngineArg::Soft;
    }
    let reader = LogReader::open(&args.log)?;
    reader.check_replayable()?;
    let origin = Origin::of_log(&reader, &args.log)?;
    let (config, engine) = (origin.config.clone(), origin.engine);
    let clock = config.clock_kind;
    let blueprint = setup::follow(config, args.image.as_deref(), args.initrd.as_deref())
        .during(format_args!("{} cannot be replayed", args.log.display()))?;
    let prepared = setup::prepare(blueprint, args.engine.following(engine, clock))?.silent();
    if engine != prepared.engine_kind() {
        crate::complain!(
            "tandem: {}: recorded on {engine}, replayed on {}",
            args.log.display(),
            prepared.engine_kind()
        );
    }
    if let Some(warning) = unlike::replay(&origin, &prepared.origin()) {
        crate::complain!("tandem: {}: {warning}", args.log.display());
    }
    let console = args.console.then(Console::stdout);
    let replayed = on_vcpu_thread("vcpu", || {
        if looking {
            look(&args, reader, prepared, console, begun)
        } else {
            straight(reader, prepared, console).map(Some)
        }
    })?;
    match replayed {
        Some(replayed) => replayed.report(&args, begun.elapsed().as_secs_f64()),
        None => Ok(()),
    }
}

/// Compares the first state with the log's.
fn check_first(header: &LogHeader, first_state: u64) -> Outcome {
    if first_state == header.first_state {
        return Ok(());
    }
    Err(Failure::new(format!(
        "the first state here has digest {first_state:016x}, the log's {:016x}: \
         another version of this program, or another kind of KVM, recorded it",
        header.first_state
    )))
}

/// Replays from beginning to end.
fn straight(reader: LogReader, prepared: Prepared, console: Option<Console>) -> Outcome<Replayed> {
    let (mut machine, first_state) = prepared.boot()?;
    check_first(reader.header(), first_state)?;
    let mut replayer = Replayer::new(reader, Discard { console });
    let result = machine
        .run(&mut replayer)
        .and_then(|ended| all_read(replayer.log_mut(), ended));
    Ok(Replayed {
        result,
        entries: replayer.index().0,
        clock: machine.engine().clock().0,
        clock_kind: machine.config().clock_kind,
    })
}

/// The end of a replay, unless there is more in its log: then that is no log of this run alone.
fn all_read(log: &mut LogReader, ended: Ended) -> Result<Ended, MachineError> {
    match log.check_end() {
        Ok(()) => Ok(ended),
        Err(error) => Err(MachineError::Inputs(InputsError::Log(error))),
    }
}

/// `--at`, `--gdb`. Nothing if the replay was not taken to its end.
fn look(
    args: &ReplayArgs,
    reader: LogReader,
    prepared: Prepared,
    console: Option<Console>,
    begun: Instant,
) -> Outcome<Option<Replayed>> {
    let (machine, first_state) = prepared.boot_soft()?;
    check_first(reader.header(), first_state)?;
    let mut travel = Travel::new(machine, reader, console)?;
    if let Some(point) = args.at {
        point::go(&mut travel, point).during(args.log.display())?;
    }
    let Some(port) = args.gdb else {
        let view = View::new(&travel, begun.elapsed().as_secs_f64());
        if args.json {
            crate::sayln!("{}", serde_json::to_string(&view).during("view")?);
        } else {
            view.print(&travel);
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
    let result = travel
        .finish()
        .and_then(|ended| all_read(travel.log_mut(), ended));
    Ok(Some(Replayed {
        result,
        entries: travel.replayer().index().0,
        clock: travel.engine().clock().0,
        clock_kind: travel.clock_kind(),
    }))
}

/// How a replay went.
struct Replayed {
    result: Result<Ended, MachineError>,
    entries: u64,
    clock: u64,
    clock_kind: ClockKind,
}

impl Replayed {
    fn report(self, args: &ReplayArgs, seconds: f64) -> Outcome {
        let Self {
            result,
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
        let ended = result.as_ref().ok();
        if args.json {
            let report = Report {
                entries,
                clock,
                clock_kind,
                divergence,
                error,
                exit_status: ended.map(|ended| ended.code),
                digest: ended.map(|ended| format!("{:016x}", ended.digest)),
                seconds,
            };
            crate::sayln!("{}", serde_json::to_string(&report).during("report")?);
        } else if ended.is_some() {
            crate::sayln!(
                "replayed {entries} entries, clock {clock} ({clock_kind}), {seconds:.2} s: \
                 every entry and digest as recorded"
            );
        }
        result.map(|_| ()).map_err(|e| {
            Failure::new(format!(
                "{}: {e} ({entries} entries replayed)",
                args.log.display()
            ))
        })
    }
}
