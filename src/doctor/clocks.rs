//! Whether an instruction clock works here, found out by using it.
//!
//! ```text
//!  tandem record counter ──▶ log ──▶ tandem replay
//!     ticks arrive                     every entry checked
//!        └── digest, clock ──── equal? ──┘
//! ```
//!
//! Both are processes of their own: a vCPU that cannot be stopped, as where KVM does not single-step,
//! takes nothing down with it.

use super::{Check, Trouble};
use kit::Daemon;
use kit::guest::value_of;
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::path::Path;
use std::time::{Duration, Instant};
use vmm::kvm::counter;

/// Longest time for one of the two runs. Stepping through a guest on an emulated processor takes some
/// seconds.
const LIMIT: Duration = Duration::from_secs(60);

/// What the self-test saw.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SelfTest {
    /// Timer ticks that arrived in the recording.
    pub ticks: u64,
    /// Iterations the guest made.
    pub iterations: u64,
    /// What the clock counted meanwhile.
    pub clock: u64,
    /// Entries of the log.
    pub entries: u64,
    /// Digest of memory and all state at the end, the same twice.
    pub digest: String,
    /// Milliseconds both runs took.
    pub ms: u64,
}

/// A clock, and whether it works.
#[derive(Clone, Debug, Serialize)]
pub struct ClockCheck {
    /// Its name, and the verdict.
    #[serde(flatten)]
    pub check: Check,
    /// What the self-test saw, if it went well.
    pub self_test: Option<SelfTest>,
}

/// What `tandem record` and `tandem replay` report, as far as it matters here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
struct Run {
    entries: u64,
    clock: u64,
    digest: Option<String>,
}

/// Tests the clock called `name` (`blocks` or `instructions`) in `folder`.
#[must_use]
pub fn test(name: &'static str, folder: &Path) -> ClockCheck {
    match self_test(name, folder) {
        Ok(seen) => {
            let why = format!(
                "{} ticks amid {} iterations: recorded and replayed to the same digest",
                seen.ticks, seen.iterations
            );
            ClockCheck {
                check: Check::yes(name, why),
                self_test: Some(seen),
            }
        }
        Err(trouble) => ClockCheck {
            check: Check::no(name, trouble),
            self_test: None,
        },
    }
}

fn self_test(name: &str, folder: &Path) -> Result<SelfTest, Trouble> {
    let begun = Instant::now();
    let log = folder.join(format!("{name}.log"));
    // A single step takes microseconds, on an emulated processor a hundred: few iterations there, and no
    // more ticks than leave time for them; a tenth of a second elsewhere.
    let (hz, end) = match name {
        "instructions" => ("hz=50", "iterations=5000"),
        _ => ("hz=1000", "ticks=100"),
    };
    let words = [
        "record", "counter", "--memory", "16", "--arg", hz, "--arg", end,
    ];
    let mut args: Vec<OsString> = words.map(OsString::from).to_vec();
    args.extend(["--clock", name, "--json", "--output"].map(OsString::from));
    args.push(log.clone().into());
    let recording = child("recording", &args, folder)?;
    let recorded = report(&recording)?;
    let line = said(&recording, "counter: ")?;
    let number =
        |key| value_of(&line, key).ok_or_else(|| Trouble::new(format!("the guest said '{line}'")));
    let seen = SelfTest {
        ticks: number("ticks")?,
        iterations: number("iterations")?,
        clock: recorded.clock,
        entries: recorded.entries,
        digest: recorded.digest.clone().unwrap_or_default(),
        ms: 0,
    };
    // Before the replay: a clock that does not count cannot stop a replay either.
    judge_counting(&seen)?;
    let replay: [OsString; 3] = ["replay".into(), log.into(), "--json".into()];
    let replayed = report(&child("replay", &replay, folder)?)?;
    judge_replay(&recorded, &replayed)?;
    Ok(SelfTest {
        ms: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
        ..seen
    })
}

/// Runs this program to its end.
fn child(name: &str, args: &[OsString], folder: &Path) -> Result<Daemon, Trouble> {
    let errors = folder.join(format!("{name}.err"));
    let _ = std::fs::remove_file(&errors);
    let trouble = |e: kit::KitError| Trouble::new(e.to_string());
    let mut daemon = Daemon::start(name, args, errors).map_err(trouble)?;
    let Ok(status) = daemon.wait(LIMIT) else {
        return Err(Trouble::new(format!(
            "the {name} of a small guest did not end within {} s",
            LIMIT.as_secs()
        )));
    };
    if status.success() {
        return Ok(daemon);
    }
    Err(Trouble::new(format!(
        "the {name} failed ({status}){}",
        daemon.complaint()
    )))
}

/// A line of an ended child's output.
fn said(child: &Daemon, word: &str) -> Result<String, Trouble> {
    child
        .wait_line(Duration::ZERO, |line| line.starts_with(word))
        .map_err(|_| Trouble::new(format!("the {} said nothing of '{word}'", child.name())))
}

fn report(child: &Daemon) -> Result<Run, Trouble> {
    let line = said(child, "{")?;
    serde_json::from_str(&line).map_err(|e| Trouble::new(format!("the {}: {e}", child.name())))
}

fn judge_counting(seen: &SelfTest) -> Result<(), Trouble> {
    if seen.clock < seen.iterations {
        return Err(Trouble::new(format!(
            "it counted {} while the guest made {} iterations: no single steps come from ring 3 here",
            seen.clock, seen.iterations
        ))
        .help("the clock 'blocks', which needs no single steps"));
    }
    if seen.ticks == 0 {
        return Err(Trouble::new(
            "no timer tick reached the guest while it computed",
        ));
    }
    Ok(())
}

fn judge_replay(recorded: &Run, replayed: &Run) -> Result<(), Trouble> {
    if recorded == replayed && recorded.digest.is_some() {
        return Ok(());
    }
    Err(Trouble::new(format!(
        "recording and replay differ: {} and {} entries, clock {} and {}, digest {} and {}",
        recorded.entries,
        replayed.entries,
        recorded.clock,
        replayed.clock,
        recorded.digest.as_deref().unwrap_or("none"),
        replayed.digest.as_deref().unwrap_or("none")
    )))
}

/// Whether there is a counter for the clock `branches`, which no engine uses yet.
#[must_use]
pub fn branches() -> ClockCheck {
    let help = "the clock 'blocks' needs no counter";
    let trouble = match counter::conditional_branches() {
        Ok(0) => Trouble::new("the performance counter is there, but counts nothing").help(help),
        Ok(count) => Trouble::new(format!(
            "not supported yet, though this host has a counter of retired conditional branches \
             (it saw {count})"
        ))
        .help(help),
        Err(e) if matches!(e.raw_os_error(), Some(libc::EACCES | libc::EPERM)) => {
            Trouble::new("no right to performance counters, and not supported yet").help(format!(
                "run as root, or sysctl kernel.perf_event_paranoid=2; {help}"
            ))
        }
        Err(e) => Trouble::new(format!(
            "this host has no counter of retired conditional branches ({e}), and the clock is not \
             supported yet"
        ))
        .help(format!("bare metal, or a virtual PMU; {help}")),
    };
    ClockCheck {
        check: Check::no("branches", trouble),
        self_test: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(clock: u64, ticks: u64) -> SelfTest {
        let digest = "d".to_owned();
        SelfTest {
            ticks,
            iterations: 5000,
            clock,
            entries: 9,
            digest,
            ms: 1,
        }
    }

    #[test]
    fn a_clock_that_does_not_count_or_is_never_interrupted_is_refused() {
        assert!(judge_counting(&seen(5000, 1)).is_ok());
        let trouble = judge_counting(&seen(4999, 1)).unwrap_err();
        assert!(trouble.why.contains("single steps") && trouble.help.is_some());
        assert!(
            judge_counting(&seen(5000, 0))
                .unwrap_err()
                .why
                .contains("tick")
        );
    }

    #[test]
    fn any_difference_of_replay_and_recording_counts() {
        let run = |entries, clock, digest: Option<&str>| Run {
            entries,
            clock,
            digest: digest.map(str::to_owned),
        };
        let recorded = run(5, 7, Some("a"));
        assert!(judge_replay(&recorded, &recorded.clone()).is_ok());
        for other in [
            run(4, 7, Some("a")),
            run(5, 8, Some("a")),
            run(5, 7, Some("b")),
        ] {
            assert!(judge_replay(&recorded, &other).is_err());
        }
        assert!(judge_replay(&run(5, 7, None), &run(5, 7, None)).is_err());
    }

    #[test]
    fn reports_are_read() {
        let text = r#"{"entries":3,"clock":12,"clock_kind":"blocks","digest":"ab","seconds":0.1}"#;
        let run: Run = serde_json::from_str(text).unwrap();
        assert_eq!(
            run,
            Run {
                entries: 3,
                clock: 12,
                digest: Some("ab".into())
            }
        );
    }
}
