//! The trials by which strangers broke pairs: replicas and arbiters that stand still, channels cut in one
//! direction, busy hosts, at random moments under load, with real clients.
//!
//! ```text
//!  seed ──▶ which disturbance, of whom, when, for how long
//!             │
//!  pair under load ── disturbance ── until all clients are served again ── judged
//! ```
//!
//! Judged each time: at most one replica wins a view and runs alone in it, which is the one that then serves;
//! no acknowledged write is lost, and what the clients saw is what one machine does, over the connections
//! they opened; a pair whose link was lost has a cause that the trial made.
//!
//! `TANDEM_TORTURE=N` asks for N times the long version, `TANDEM_SEED` for the first trial's seed; each trial
//! adds one. The seed brings back what is done, not how processes race.

mod arbiter;
mod busy;
#[path = "../common/mod.rs"]
mod common;
mod cuts;
mod pauses;
mod trial;
mod verdict;

use std::panic::{AssertUnwindSafe, catch_unwind};
use testing::numbers::number;

/// So many failures end a test: the next will tell nothing new.
const FAILURES_MAX: usize = 5;

/// How many trials of a kind there are.
struct Count {
    /// In `./test`.
    short: u64,
    /// In the long version.
    long: u64,
}

/// Makes the trials of the test `name`, each with a seed of its own; `trial` says in a line what became of it,
/// and panics if that was wrong.
fn make_trials(name: &str, count: &Count, mut trial: impl FnMut(u64) -> String) {
    let trials = number("TANDEM_TORTURE").map_or(count.short, |times| times * count.long);
    let first = number("TANDEM_SEED").unwrap_or(1);
    let mut failures = 0;
    for seed in first..first + trials {
        match catch_unwind(AssertUnwindSafe(|| trial(seed))) {
            Ok(line) => println!("{name}, seed {seed}: {line}"),
            Err(_) => {
                // Its panic was printed.
                println!(
                    "{name}, seed {seed}: FAILED; to repeat: \
                     TANDEM_SEED={seed} cargo test --release --test torture {name} -- --nocapture"
                );
                failures += 1;
                assert!(failures < FAILURES_MAX, "{failures} failures are enough");
            }
        }
    }
    assert_eq!(failures, 0, "failures of {trials} trials");
}
