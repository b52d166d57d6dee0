//! Which part of a machine's run is recorded.
//!
//! ```text
//!  run      ├──────────────┬─────────────────────────┬───────────────┤
//!             unrecorded     recorded: state, entries   unrecorded
//!           └── --after ───┘└──────── --for ─────────┘
//! ```
//!
//! A recording without `--after` begins where the machine starts: with its boot, or at the state it goes on from. One
//! with it begins at the machine's state, where the guest comes to a pause. A thread beside the vCPU's asks for these
//! pauses, as a vCPU's thread cannot wait until a time.

use crate::failure::{During, Failure, Outcome};
use replay::codec::to_bytes;
use replay::file::{LogHeader, LogWriter};
use replay::recorder::{Recorder, StatePace};
use replay::{Base, BaseOrigin, Clock, LogSink, NoLog, ViewNumber};
use replica::machine::{AnyMachine, Origin};
use replica::{Exit, Journal};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;
use vmm::engine::Engine;
use vmm::machine::Ended;
use vmm::machine::live::{Inbox, Live};

/// The inputs of a machine that runs alone, recorded or not.
pub type AloneInputs = Recorder<Live, Journal, Exit>;

/// No state is digested along the way.
const NO_STATES: StatePace = StatePace { every_entries: 0 };

/// What is to be recorded of a run.
pub struct Plan {
    /// The log's file.
    pub path: PathBuf,
    /// How often the state is digested in it.
    pub pace: StatePace,
    /// For how long the machine runs before; none if it is recorded from where it starts on.
    pub after: Option<Duration>,
    /// How long it lasts; none if to the machine's end.
    pub lasts: Option<Duration>,
}

/// A recording that ended.
#[derive(Clone, Copy, Debug)]
pub struct Recorded {
    /// Where it begins.
    pub base: Base,
    /// Its entries.
    pub entries: u64,
    /// The clock where it ends.
    pub clock: Clock,
    /// Digest of the whole machine there.
    pub digest: u64,
    /// Whether the machine ran on.
    pub left: bool,
}

/// How far a recording is.
enum Stage {
    /// The machine runs, and is not recorded yet.
    Ahead(Reserved),
    /// Entries go to the file, from here on.
    UnderWay(Base),
    /// It ended, and the machine runs on.
    Left(Recorded),
}

/// The recording of a machine that runs alone: told of each of its pauses, it does what is due.
pub struct Recording {
    plan: Plan,
    /// The log's header, but for its base.
    header: LogHeader,
    inbox: Arc<Inbox>,
    alarm: Alarm,
    stage: Stage,
}

impl Recording {
    /// A recording by `plan` of the machine `origin`, whose arrivals come by `inbox` and which starts at `first`; and
    /// where its first entries go. Before the guest runs.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn begin(
        plan: Plan,
        alarm: Alarm,
        inbox: Arc<Inbox>,
        origin: &Origin,
        first: Base,
    ) -> Outcome<(Self, Journal)> {
        let header = LogHeader {
            cpu_model: origin.config.cpu.name().to_owned(),
            clock_kind: origin.config.clock_kind,
            config: to_bytes(origin),
            base: first,
        };
        let (stage, journal) = if plan.after.is_some() || first.origin == BaseOrigin::State {
            let reserved = Reserved::at(&plan.path)?;
            alarm.ring_after_if(plan.after);
            let nowhere = Journal::Alone(NoLog::at(first.place()));
            (Stage::Ahead(reserved), nowhere)
        } else {
            let file = LogWriter::create(&plan.path, &header, now_us)?;
            alarm.ring_after_if(plan.lasts);
            (Stage::UnderWay(first), Journal::File(Box::new(file)))
        };
        let recording = Self {
            plan,
            header,
            inbox,
            alarm,
            stage,
        };
        Ok((recording, journal))
    }

    /// How often the state is to be digested at first.
    pub fn pace(&self) -> StatePace {
        match self.stage {
            Stage::UnderWay(_) => self.plan.pace,
            Stage::Ahead(_) | Stage::Left(_) => NO_STATES,
        }
    }

    /// Does what is due where `machine` starts: begins the recording if that is at a state, and no time is to pass
    /// before. On the vCPU's thread, before the guest runs.
    ///
    /// # Errors
    /// If the file cannot be written, or the machine not be saved.
    pub fn start(&mut self, machine: &mut AnyMachine, inputs: &mut AloneInputs) -> Outcome {
        match (&self.stage, self.plan.after) {
            (Stage::Ahead(_), None) => self.take_up(machine, inputs),
            _ => Ok(()),
        }
    }

    /// Does what is due where `machine` has paused: begins the recording, or leaves it. On the vCPU's thread.
    ///
    /// # Errors
    /// If the file cannot be written, or the machine not be saved.
    pub fn turn(&mut self, machine: &mut AnyMachine, inputs: &mut AloneInputs) -> Outcome {
        let begins = matches!(self.stage, Stage::Ahead(_));
        if begins && !machine.can_be_saved()? {
            return Ok(()); // the pause is still wanted, and comes again at the next stop
        }
        self.inbox.want_pause(false);
        match self.stage {
            Stage::Ahead(_) => self.take_up(machine, inputs),
            Stage::UnderWay(base) => self.leave(base, machine, inputs),
            Stage::Left(_) => Ok(()),
        }
    }

    /// The recording begins, at the machine's state.
    fn take_up(&mut self, machine: &mut AnyMachine, inputs: &mut AloneInputs) -> Outcome {
        machine.flush_for_join()?;
        let base = Base {
            view: ViewNumber(0),
            index: inputs.log_mut().place().index,
            clock: machine.engine().clock(),
            digest: machine.digest(None)?,
            origin: BaseOrigin::State,
        };
        self.header.base = base;
        let mut state = LogWriter::create_with_state(&self.plan.path, &self.header, now_us)?;
        machine
            .save(&mut state)
            .during("cannot write the state into the log")?;
        *inputs.log_mut() = Journal::File(Box::new(state.finish()?));
        inputs.set_pace(self.plan.pace);
        if let Stage::Ahead(reserved) = std::mem::replace(&mut self.stage, Stage::UnderWay(base)) {
            reserved.keep();
        }
        self.alarm.ring_after_if(self.plan.lasts);
        crate::complain!(
            "tandem: the recording begins at entry {}, clock {}: {}",
            base.index,
            base.clock,
            self.plan.path.display()
        );
        Ok(())
    }

    /// The recording, which began at `base`, ends before its machine.
    fn leave(&mut self, base: Base, machine: &mut AnyMachine, inputs: &mut AloneInputs) -> Outcome {
        let here = machine.here()?;
        let digest = machine.digest(None)?;
        inputs.leave(&here, digest)?;
        let place = inputs.log_mut().place();
        *inputs.log_mut() = Journal::Alone(NoLog::at(place));
        inputs.set_pace(NO_STATES);
        let recorded = Recorded {
            base,
            entries: place.index.0 - base.index.0,
            clock: here.point.clock,
            digest,
            left: true,
        };
        self.stage = Stage::Left(recorded);
        crate::complain!(
            "tandem: the recording ends at clock {} with {} entries, the machine runs on: {}",
            recorded.clock,
            recorded.entries,
            self.plan.path.display()
        );
        Ok(())
    }

    /// What was recorded of a machine that ended so.
    ///
    /// # Errors
    /// If that was before the recording was to begin.
    pub fn finish(&self, inputs: &mut AloneInputs, ended: &Ended) -> Outcome<Recorded> {
        self.check_begun()?;
        match self.stage {
            Stage::Left(recorded) => Ok(recorded),
            Stage::Ahead(_) | Stage::UnderWay(_) => {
                let base = self.header.base;
                Ok(Recorded {
                    base,
                    entries: inputs.log_mut().place().index.0 - base.index.0,
                    clock: ended.clock,
                    digest: ended.digest,
                    left: false,
                })
            }
        }
    }

    /// That the recording began before the machine ended.
    ///
    /// # Errors
    /// If it did not.
    pub fn check_begun(&self) -> Outcome {
        let (Stage::Ahead(_), Some(after)) = (&self.stage, self.plan.after) else {
            return Ok(());
        };
        Err(Failure::new(format!(
            "nothing was recorded: the machine ended before the recording was to begin, {} s after its start",
            after.as_secs_f64()
        )))
    }
}

fn now_us() -> u64 {
    vmm::hostclock::monotonic_ns() / 1000
}

/// Has the machine pause some time after it is told to, by a thread of its own.
pub struct Alarm(Sender<Duration>);

impl Alarm {
    /// For the machine whose arrivals come by `inbox`. Not to be called on its vCPU's thread, where no thread may
    /// be started that waits until a time.
    ///
    /// # Errors
    /// If there is no thread for it.
    pub fn start(inbox: Arc<Inbox>) -> Outcome<Self> {
        let (set, rings) = channel::<Duration>();
        let wait = move || {
            while let Ok(after) = rings.recv() {
                // Nothing else comes before the machine paused; nobody is there any more if it ended.
                if rings.recv_timeout(after) == Err(RecvTimeoutError::Timeout) {
                    inbox.want_pause(true);
                }
            }
        };
        std::thread::Builder::new()
            .name("alarm".into())
            .spawn(wait)
            .during("cannot start a thread")?;
        Ok(Self(set))
    }

    fn ring_after(&self, after: Duration) {
        // The thread is there as long as this is.
        let _ = self.0.send(after);
    }

    /// The same, if there is such a time.
    fn ring_after_if(&self, after: Option<Duration>) {
        if let Some(after) = after {
            self.ring_after(after);
        }
    }
}

/// The file of a recording that is still to begin: it was seen that it can be written. One made for that is
/// removed again unless it is kept. One that was there before stays as it is until the recording begins.
struct Reserved {
    path: PathBuf,
    made: bool,
}

impl Reserved {
    fn at(path: &Path) -> Outcome<Self> {
        let made = !path.exists();
        // A pipe or a device is opened once, by the log's writer: its reader would see an end here.
        if made || path.is_file() || path.is_dir() {
            File::options()
                .write(true)
                .create(true)
                .truncate(false)
                .open(path)
                .during(format_args!("cannot create the log {}", path.display()))?;
        }
        Ok(Self {
            path: path.to_owned(),
            made,
        })
    }

    /// The log is in it.
    fn keep(mut self) {
        self.made = false;
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if self.made {
            // Best effort: an empty file is no log, and says so.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_file_that_was_made_for_the_recording_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let [new, old] = ["new", "old"].map(|name| folder.path().join(name));
        std::fs::write(&old, "a log").unwrap();
        for path in [&new, &old] {
            let reserved = Reserved::at(path).unwrap();
            assert!(path.exists());
            drop(reserved);
        }
        assert!(!new.exists());
        assert_eq!(std::fs::read(&old).unwrap(), b"a log");
        Reserved::at(&new).unwrap().keep();
        assert!(new.exists());
        assert!(Reserved::at(folder.path()).is_err(), "a folder");
        assert!(Reserved::at(&folder.path().join("no/log")).is_err());
    }
}
