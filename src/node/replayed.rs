//! A log that is to be replayed: its machine, where that begins, and what counts as its end.

use super::library::Library;
use super::whatif;
use crate::failure::{During, Failure, Outcome};
use crate::look::commands::commands;
use crate::look::point::Point;
use replay::InputsError;
use replay::file::LogReader;
use replica::ReplicaError;
use replica::machine::{AnyMachine, EngineChoice, Origin, Prepared, check_replay, follow, prepare};
use std::path::Path;
use vmm::engine::Engine;
use vmm::machine::{Ended, Machine, MachineError};
use vmm::soft::SoftEngine;

/// The log at `path` and the machine to replay it, by `engine`, its image found where these say if they do. What is to
/// be known of the two is said.
///
/// # Errors
/// If it is no log that can be replayed, or its machine is not to be had.
pub fn open(
    path: &Path,
    engine: EngineChoice,
    image: Option<&str>,
    initrd: Option<&str>,
) -> Outcome<(LogReader, Prepared)> {
    let reader = LogReader::open(path)?;
    reader.check_replayable()?;
    whatif::check_goes_on(path, reader.header())?;
    let origin = Origin::of_log(&reader, path)?;
    let (config, recorded_by) = (origin.config.clone(), origin.engine);
    let clock = config.clock_kind;
    let blueprint = follow(config, &Library, image, initrd)
        .during(format_args!("{} cannot be replayed", path.display()))?;
    let prepared = prepare(blueprint, engine.following(recorded_by, clock))?.silent();
    if recorded_by != prepared.engine_kind() {
        crate::complain!(
            "tandem: {}: recorded on {recorded_by}, replayed on {}",
            path.display(),
            prepared.engine_kind()
        );
    }
    if let Some(warning) = check_replay(&origin, &prepared.origin()) {
        crate::complain!("tandem: {}: {warning}", path.display());
    }
    Ok((reader, prepared))
}

/// The machine where `log` begins: at its boot, or as it was where the recording began. On the vCPU's thread.
///
/// # Errors
/// If it cannot be made, or is not the one that was recorded.
pub fn begin(log: &LogReader, prepared: Prepared) -> Outcome<AnyMachine> {
    let made = match log.state()? {
        None => prepared.boot()?,
        Some(state) => rejoined(prepared.restore(state))?,
    };
    checked(log, made)
}

/// The same on the software engine, whichever was chosen.
///
/// # Errors
/// As [`begin`].
pub fn begin_soft(log: &LogReader, prepared: Prepared) -> Outcome<Machine<SoftEngine>> {
    let made = match log.state()? {
        None => prepared.boot_soft()?,
        Some(state) => rejoined(prepared.restore_soft(state))?,
    };
    checked(log, made)
}

/// A machine that was restored, made the same as the one that ran on behind the log's beginning; with the digest of its
/// state.
fn rejoined<E: Engine>(restored: Result<Machine<E>, ReplicaError>) -> Outcome<(Machine<E>, u64)> {
    let mut machine = restored.during("the state the log begins at")?;
    machine.flush_for_join()?;
    let state = machine.digest(None)?;
    Ok((machine, state))
}

/// The machine, if it has the digest that `log` begins with.
fn checked<E: Engine>(log: &LogReader, made: (Machine<E>, u64)) -> Outcome<Machine<E>> {
    let ((machine, state), recorded) = (made, log.header().base.digest);
    if state == recorded {
        return Ok(machine);
    }
    Err(Failure::new(format!(
        "the first state here has digest {state:016x}, the log's {recorded:016x}: \
         another version of this program, or another kind of KVM, recorded it"
    )))
}

/// A replay that got to the end of its log.
pub struct Done {
    /// The machine's exit status; none if it ran on when the recording was ended.
    pub code: Option<u32>,
    /// Digest of the whole machine there.
    pub digest: u64,
}

/// The end of a replay, unless there is more in its log: then that is no log of this run alone.
///
/// # Errors
/// Why the replay did not get to the log's end.
pub fn all_read(
    log: &mut LogReader,
    ended: Result<Ended, MachineError>,
) -> Result<Done, MachineError> {
    let (code, digest) = match ended {
        Ok(ended) => (Some(ended.code), ended.digest),
        Err(MachineError::Inputs(InputsError::Left { digest, .. })) => (None, digest),
        Err(error) => return Err(error),
    };
    match log.check_end() {
        Ok(()) => Ok(Done { code, digest }),
        Err(error) => Err(MachineError::Inputs(InputsError::Log(error))),
    }
}

/// Why the replay of `path`, of which `entries` were replayed, did not get to its end; and how to look at where it
/// stopped, if it diverged.
pub fn failure(path: &Path, error: &MachineError, entries: u64) -> Failure {
    let line = format!("{}: {error} ({entries} entries replayed)", path.display());
    Failure::new(match error.divergence() {
        Some(_) => format!("{line}\n{}", commands(path, Point::End)),
        None => line,
    })
}
