//! Replays that are saved on the way, and machines that go on from there.

use replay::codec::from_bytes;
use replay::file::{LogReader, Mark as LogMark};
use replay::replayer::{Mark, Replayer};
use replay::{Clock, InputsError, LogIndex, Outlet, Output};
use replica::machine::{AnyMachine, EngineChoice};
use replica::machine::{Origin, Prepared, follow, prepare};
use std::path::Path;
use tandem::failure::{During, Outcome};
use tandem::node::library::Library;
use tandem::node::single::on_vcpu_thread;
use vmm::engine::Engine;
use vmm::machine::{Ended, MachineError};
use vmm::state::CpuState;

/// A machine in the middle of a replay.
pub struct Saved {
    /// Its snapshot.
    pub machine: Vec<u8>,
    log: Mark<LogMark>,
    /// Digest of its whole state.
    pub digest: u64,
    /// Where that was.
    pub clock: Clock,
}

/// No output leaves.
struct Nowhere;

impl Outlet for Nowhere {
    fn emit(&mut self, _: LogIndex, _: Output) -> Result<(), InputsError> {
        Ok(())
    }
}

fn prepared(log: &Path, engine: EngineChoice) -> Prepared {
    let reader = LogReader::open(log).unwrap();
    let Origin { config, .. } = Origin::of_log(&reader, log).unwrap();
    prepare(follow(config, &Library, None, None).unwrap(), engine).unwrap()
}

/// Runs to the first place from `place` on at which a machine can be saved; how it ended, if it did before.
fn run_to(
    machine: &mut AnyMachine,
    replayer: &mut Replayer<LogReader, Nowhere>,
    place: Clock,
) -> Result<Option<Ended>, MachineError> {
    replayer.stop_at(place);
    machine.run_until(replayer, |now| now.here.point.clock >= place)
}

/// Replays `log` to its end on `engine`, saved at each of `places`, in their order.
pub fn replay_saving(log: &Path, engine: EngineChoice, places: &[Clock]) -> (Vec<Saved>, Ended) {
    let prepared = prepared(log, engine);
    on_vcpu_thread("vcpu", || {
        let (mut machine, _) = prepared.boot()?;
        let mut replayer = Replayer::new(LogReader::open(log)?, Nowhere);
        let mut saved = Vec::new();
        for &place in places {
            if let Some(ended) = run_to(&mut machine, &mut replayer, place)? {
                return Ok((saved, ended));
            }
            saved.push(Saved {
                machine: bytes(&mut machine)?,
                log: replayer.mark(),
                digest: machine.digest(None)?,
                clock: machine.engine().clock(),
            });
        }
        Ok((saved, machine.run(&mut replayer)?))
    })
    .unwrap()
}

/// The machine as bytes.
fn bytes(machine: &mut AnyMachine) -> Outcome<Vec<u8>> {
    let mut bytes = Vec::new();
    machine.save(&mut bytes).during("cannot save")?;
    Ok(bytes)
}

/// The vCPU in a snapshot: its section (`vmm/src/machine/snapshot` has the layout).
fn vcpu(snapshot: &[u8]) -> CpuState {
    let word = |at: usize| u32::from_le_bytes(snapshot[at..at + 4].try_into().unwrap()) as usize;
    let mut at = 24;
    loop {
        at += match snapshot[at] {
            1 => {
                let kind = at + 2..at + 2 + usize::from(snapshot[at + 1]);
                let (length, payload) = (word(kind.end + 2), kind.end + 10);
                if &snapshot[kind] == b"cpu" {
                    return from_bytes(&snapshot[payload..payload + length]).unwrap();
                }
                payload + length - at
            }
            2 => 13 + word(at + 5) * 4096,
            3 => 13,
            other => panic!("part {other}: there is no vCPU"),
        };
    }
}

/// A snapshot must be `expected`, digest and all.
fn assert_saved(machine: &mut AnyMachine, expected: &Saved, what: &str) {
    let saved = bytes(machine).unwrap();
    assert_eq!(vcpu(&saved), vcpu(&expected.machine), "the vCPU {what}");
    assert!(saved == expected.machine, "devices and memory {what}");
    assert_eq!(machine.digest(None).unwrap(), expected.digest, "{what}");
}

/// Goes on with a machine on `engine`: to `next` if given, where it must be as it was there then, else to
/// the end of the log. How it ended.
pub fn go_on(
    log: &Path,
    engine: EngineChoice,
    saved: &Saved,
    next: Option<&Saved>,
) -> Option<Ended> {
    let prepared = prepared(log, engine);
    on_vcpu_thread("vcpu", || {
        let mut machine = prepared.restore(&saved.machine[..])?;
        assert_saved(&mut machine, saved, "as it was saved");
        let mut replayer = Replayer::new(LogReader::open(log)?, Nowhere);
        replayer.rewind(&saved.log).during("the log")?;
        let Some(next) = next else {
            return Ok(Some(machine.run(&mut replayer)?));
        };
        let ended = run_to(&mut machine, &mut replayer, next.clock)?;
        if ended.is_none() {
            assert_saved(&mut machine, next, "at the next place");
        }
        Ok(ended)
    })
    .unwrap_or_else(|e| panic!("on {engine:?} from clock {}: {e}", saved.clock))
}
