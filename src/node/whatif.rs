//! A machine from any point of a recording, which goes on live: `tandem replay --to POINT --save STATE`, and
//! `tandem run STATE`.
//!
//! ```text
//!  recording   ├───────────────── POINT ─ ─ ─ ─ ─ ─ ─ ┤
//!                                   │ state
//!  what if                          └─▶ run, with a network and a disk of its own
//! ```
//!
//! From there on it is no longer the recording: other frames come, at other times. The file is a log that begins at the
//! machine's state and ends there: `tandem log` reads it, and there is nothing in it to replay. Any log that begins at a
//! state can be run.

use super::library::Library;
use super::replayed;
use crate::cli::{MachineArgs, ReplayArgs};
use crate::failure::{During, Failure, Outcome};
use crate::look::point::Point;
use crate::look::witness::check_apart;
use replay::file::{LogHeader, LogReader, LogWriter, MAGIC};
use replay::replayer::Replayer;
use replay::{
    Base, BaseOrigin, Clock, Event, InputsError, LogEntry, LogIndex, LogSink, Outlet, Output,
    ViewNumber,
};
use replica::machine::{AnyMachine, EngineChoice, Origin, Prepared, disk_sectors, follow, prepare};
use serde::Serialize;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;
use vmm::engine::Engine;
use vmm::hostclock::monotonic_ns;
use vmm::machine::TscMode;
use vmm::machine::live::GuestTime;

/// Outputs of a replay: what the guest writes to its disk goes to a copy of that, if there is one; all else nowhere.
struct ToCopy(Option<File>);

impl Outlet for ToCopy {
    fn emit(&mut self, _: LogIndex, output: Output) -> Result<(), InputsError> {
        if let (Some(copy), Output::DiskWrite { offset, data, .. }) = (&self.0, output) {
            copy.write_all_at(&data, offset).map_err(|e| {
                InputsError::Backend(format!("cannot write the copy of the disk: {e}"))
            })?;
        }
        Ok(())
    }
}

/// What `tandem replay --save --json` says.
#[derive(Serialize)]
struct Saved<'a> {
    /// Where the machine stands.
    base: Base,
    /// The file it is in.
    state: &'a Path,
}

/// Replays to a point, and saves the machine there. On the vCPU's thread.
///
/// # Errors
/// If the replay does not come there, or the state cannot be written.
pub fn save(args: &ReplayArgs, point: Point, state: &Path) -> Outcome {
    let (image, initrd) = (args.image.as_deref(), args.initrd.as_deref());
    let (reader, prepared) = replayed::open(&args.log, args.engine, image, initrd)?;
    let config = prepared.config();
    check_derived(&args.log, config.tsc)?;
    let copy = disk(config.disk_sectors, args.disk.as_deref())?;
    let clock = clock_of(&args.log, &reader, point)?;
    let mut header = reader.header().clone();
    let mut machine = replayed::begin(&reader, prepared)?;
    let mut replayer = Replayer::new(reader, ToCopy(copy));
    replayer.stop_at(clock);
    loop {
        let there = |now: &replay::Situation| now.here.point.clock >= clock;
        match machine.run_until(&mut replayer, there) {
            Ok(None) if machine.can_be_saved()? => break,
            Ok(None) => {}
            Ok(Some(_)) => return Err(ends(&args.log, machine.engine().clock())),
            Err(e) => return Err(e).during(args.log.display()),
        }
    }
    if let ToCopy(Some(copy)) = replayer.suppressed_mut() {
        copy.sync_all()
            .during("cannot write the copy of the disk")?;
    }
    machine.flush_for_join()?;
    let base = Base {
        view: ViewNumber(0),
        index: replayer.index(),
        clock: machine.engine().clock(),
        digest: machine.digest(None)?,
        origin: BaseOrigin::State,
    };
    header.base = base;
    write(state, &header, &mut machine)?;
    let Base { index, clock, .. } = base;
    if args.json {
        let saved = Saved { base, state };
        crate::sayln!("{}", serde_json::to_string(&saved).during("report")?);
        return Ok(());
    }
    let path = state.display();
    crate::sayln!("the machine before entry {index}, at clock {clock}, is in {path}");
    let disk = args
        .disk
        .as_deref()
        .map_or(String::new(), |disk| format!(" --disk {}", disk.display()));
    crate::sayln!("to go on from there: tandem run {path}{disk}");
    Ok(())
}

fn write(state: &Path, header: &LogHeader, machine: &mut AnyMachine) -> Outcome {
    let mut out = LogWriter::create_with_state(state, header, || monotonic_ns() / 1000)?;
    machine
        .save(&mut out)
        .during(format_args!("cannot write {}", state.display()))?;
    let mut log = out.finish()?;
    let event = Event::Left {
        digest: header.base.digest,
    };
    log.append(&LogEntry::at(&machine.here()?, event))?;
    Ok(log.flush()?)
}

fn ends(log: &Path, clock: Clock) -> Failure {
    Failure::new(format!(
        "{}: the machine ends at clock {clock}: there is nothing that could go on",
        log.display()
    ))
}

/// That a machine of the log at `path`, whose time is `tsc`, can go on where nothing else of it is.
fn check_derived(path: &Path, tsc: TscMode) -> Outcome {
    if tsc == TscMode::Derived {
        return Ok(());
    }
    Err(Failure::new(format!(
        "{}: its machine's time is logged, and not derived: it cannot go on elsewhere",
        path.display()
    )))
}

/// The copy of the disk, if the machine has one.
fn disk(sectors: Option<u64>, copy: Option<&Path>) -> Outcome<Option<File>> {
    match (sectors, copy) {
        (None, None) => Ok(None),
        (None, Some(_)) => Err(Failure::usage(
            "--disk: the recording's machine has no disk",
        )),
        (Some(_), None) => Err(Failure::usage(
            "the recording's machine has a disk: name a copy of it with --disk, as it was when the recording began. \
             What the guest wrote up to the point is written to it",
        )),
        (Some(sectors), Some(path)) => {
            if disk_sectors(path)? != sectors {
                return Err(Failure::usage(format!(
                    "{}: not a copy of the recording's disk, which has {sectors} sectors",
                    path.display()
                )));
            }
            let file = File::options().write(true).open(path);
            Ok(Some(
                file.during(format_args!("cannot write {}", path.display()))?,
            ))
        }
    }
}

/// The clock at `point`.
fn clock_of(path: &Path, reader: &LogReader, point: Point) -> Outcome<Clock> {
    let base = reader.header().base;
    point.check(&base)?;
    let clock = match point {
        Point::Clock(clock) => clock,
        Point::End => return Err(Failure::usage("--to takes a clock value or entry:N here")),
        Point::Entry(wanted) => {
            let mut log = LogReader::open(path)?;
            let mut index = base.index;
            loop {
                match log.read()? {
                    Some((entry, _)) if index == wanted => break entry.clock,
                    Some(_) if index < wanted => index = index.next(),
                    _ => {
                        return Err(Failure::new(format!(
                            "{}: there is no entry {wanted} in it",
                            path.display()
                        )));
                    }
                }
            }
        }
    };
    Ok(clock)
}

/// That the log at `path`, whose header is `header`, goes on behind where it begins, and is no state alone.
///
/// # Errors
/// If it is one: nothing in it can be replayed.
pub fn check_goes_on(path: &Path, header: &LogHeader) -> Outcome {
    let base = header.base;
    if base.origin != BaseOrigin::State {
        return Ok(());
    }
    // A log that cannot be read is told of where it is replayed.
    let first = LogReader::open(path).and_then(|mut log| log.read());
    match first {
        Ok(Some((entry, _)))
            if entry.clock == base.clock && matches!(entry.event, Event::Left { .. }) =>
        {
            Err(Failure::usage(format!(
                "{0}: a machine's state, with nothing behind it to replay: tandem run {0} has it go on",
                path.display()
            )))
        }
        _ => Ok(()),
    }
}

/// That `args` ask for nothing that the machine saved at `path` has already.
///
/// # Errors
/// What they ask for.
fn check_unasked(args: &MachineArgs, path: &Path) -> Outcome {
    let asked = [
        ("--initrd", args.initrd.is_some()),
        ("--append", args.append.is_some()),
        ("--memory", args.memory.is_some()),
        ("--arg", !args.args.is_empty()),
        ("--cpu", args.cpu.is_some()),
        ("--clock", args.clock.is_some()),
        ("--tsc", args.tsc.is_some()),
        ("--on-reset", args.on_reset.is_some()),
        ("--mac", args.mac.is_some()),
    ];
    match asked.iter().find(|(_, asked)| *asked) {
        None => Ok(()),
        Some((option, _)) => Err(Failure::usage(format!(
            "{option}: {} is a machine that has run, and stays as it was made",
            path.display()
        ))),
    }
}

/// A log that begins at a machine's state, which is to go on.
pub struct State {
    reader: LogReader,
}

impl State {
    /// What the guest of `args` names, if that is a log; with what its machine is prepared of. What comes of the machine
    /// is to be recorded to `output`, if there is one.
    ///
    /// # Errors
    /// If it is one that no machine can go on from, or that would be overwritten.
    pub fn of(args: &mut MachineArgs, output: Option<&Path>) -> Outcome<Option<(Self, Prepared)>> {
        let path = Path::new(&args.guest).to_owned();
        let mut magic = [0; MAGIC.len()];
        let begins = File::open(&path).and_then(|mut file| file.read_exact(&mut magic));
        if begins.is_err() || magic != MAGIC {
            return Ok(None);
        }
        check_unasked(args, &path)?;
        check_apart(&path, [output, args.disk.as_deref()].into_iter().flatten())?;
        let reader = LogReader::open(&path)?;
        reader.check_replayable()?;
        let base = reader.header().base;
        if base.origin != BaseOrigin::State {
            return Err(Failure::usage(format!(
                "{}: a log that begins with a boot: tandem replay {0} replays it, and with --to POINT --save STATE \
                 makes a state that can go on",
                path.display()
            )));
        }
        let mut config = Origin::of_log(&reader, &path)?.config;
        check_derived(&path, config.tsc)?;
        let sectors = args.disk.as_deref().map(disk_sectors).transpose()?;
        if sectors != config.disk_sectors {
            return Err(Failure::usage(format!(
                "{}: its machine's disk has {} sectors, that of --disk {}",
                path.display(),
                config.disk_sectors.unwrap_or(0),
                sectors.unwrap_or(0)
            )));
        }
        let image = std::mem::take(&mut config.guest);
        args.guest.clone_from(&image);
        config.guest = image;
        let blueprint = follow(config, &Library, None, None)
            .during(format_args!("{} cannot be run", path.display()))?;
        let engine = match args.engine {
            EngineChoice::Auto => EngineChoice::Soft,
            chosen => chosen,
        };
        let prepared = prepare(blueprint, engine)?;
        // It is said what it is, as its frames would be taken for those of a machine that was never elsewhere.
        crate::complain!(
            "tandem: {}: goes on from entry {}, clock {}, on its own: no longer the recording",
            path.display(),
            base.index,
            base.clock
        );
        Ok(Some((Self { reader }, prepared)))
    }

    /// The machine as it was. On the vCPU's thread.
    ///
    /// # Errors
    /// If it is not the machine meant.
    pub fn restore(&self, prepared: Prepared) -> Outcome<AnyMachine> {
        replayed::begin(&self.reader, prepared)
    }

    /// Where it begins.
    pub fn base(&self) -> Base {
        self.reader.header().base
    }
}

/// The time of a machine that goes on now, on from where it stood.
pub fn time(machine: &AnyMachine) -> GuestTime {
    let stood = machine.guest_ns().unwrap_or(0);
    GuestTime {
        tsc: (stood, monotonic_ns()),
        wall_ns: 0,
    }
}
