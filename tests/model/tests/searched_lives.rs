//! The spaces of the model of lives: small ones here, the whole of them on demand, and with one fault built in each
//! time, which has to be found.
//!
//! ```sh
//! cargo test --release -p tandem-model -- --ignored --nocapture
//! ```

mod told;

use model::lives::{Break, GOES_ON, Lives, name_of};
use model::oracle::Rule;
use model::world::Left;
use told::{find, search};

/// Nothing goes wrong.
const CALM: Left = Left {
    crashes: 0,
    suspicions: 0,
    faults: 0,
    silences: 0,
    divergences: 0,
    rivals: 0,
    ticks: 0,
    restarts: 0,
};

/// A replica dies, and one suspects the other wrongly.
const BOTH: Left = Left {
    crashes: 1,
    suspicions: 1,
    ..CALM
};

/// A pair and a host that waits, which take two inputs.
const THREE: Lives = Lives {
    replicas: 3,
    entries: 2,
    left: BOTH,
    views: false,
    broken: None,
};

fn lives(left: Left) -> Lives {
    Lives { left, ..THREE }
}

/// The same with a viewservice, whose backups are named by it, and one input.
fn with_views(left: Left) -> Lives {
    Lives {
        views: true,
        entries: 1,
        ..lives(left)
    }
}

#[test]
fn replicas_that_die_and_replicas_that_only_seem_to() {
    search("one crash, one suspicion", THREE);
}

#[test]
fn a_backup_diverges() {
    search(
        "a divergence",
        lives(Left {
            divergences: 1,
            suspicions: 1,
            ..CALM
        }),
    );
}

#[test]
fn a_viewservice_names_the_backups() {
    search(
        "a viewservice",
        with_views(Left {
            crashes: 1,
            ticks: 2,
            restarts: 1,
            ..CALM
        }),
    );
}

#[test]
#[ignore = "the whole space: minutes"]
fn whole_two_crashes_and_two_suspicions() {
    search(
        "two crashes, two suspicions",
        lives(Left {
            crashes: 2,
            suspicions: 2,
            ..BOTH
        }),
    );
}

#[test]
#[ignore = "the whole space: minutes"]
fn whole_arbiter_without_an_answer() {
    let three_entries = Lives {
        entries: 3,
        ..lives(Left {
            silences: 1,
            ..BOTH
        })
    };
    search(
        "an arbiter that is silent once, three inputs",
        three_entries,
    );
}

#[test]
#[ignore = "the whole space: minutes"]
fn whole_frames_lost_repeated_and_swapped() {
    search("a stream tampered with", lives(Left { faults: 1, ..BOTH }));
}

#[test]
#[ignore = "the whole space: minutes"]
fn whole_divergence_and_rival() {
    search(
        "a divergence, a rival",
        lives(Left {
            divergences: 1,
            rivals: 1,
            ..BOTH
        }),
    );
}

#[test]
#[ignore = "the whole space: minutes"]
fn whole_four_replicas() {
    let four = Lives {
        replicas: 4,
        entries: 1,
        ..lives(Left { crashes: 2, ..BOTH })
    };
    search("four replicas", four);
}

#[test]
#[ignore = "the whole space: minutes"]
fn whole_views() {
    search(
        "a viewservice and suspicion",
        with_views(Left {
            ticks: 1,
            restarts: 1,
            ..BOTH
        }),
    );
}

#[test]
fn every_fault_that_is_built_in_is_found() {
    let silent = Left {
        silences: 1,
        ..BOTH
    };
    let lossy = Left {
        faults: 1,
        crashes: 1,
        ..CALM
    };
    let diverges = Left {
        divergences: 1,
        ..BOTH
    };
    let output_rule = name_of(Rule::OutputRule);
    let one_live = name_of(Rule::OneLive);
    let kept = name_of(Rule::OutputsKept);
    let diverged = name_of(Rule::Diverged);
    let one_history = name_of(Rule::OneHistory);
    let members = name_of(Rule::Members);
    let faults: [(Break, Left, &[&'static str]); 16] = [
        (Break::AckBeforeReceipt, BOTH, &[output_rule, one_history]),
        (
            Break::GateOpenedBySuspicion,
            BOTH,
            &[output_rule, one_history],
        ),
        (Break::GateLeftOpen, BOTH, &[one_history]),
        (Break::WelcomeBeforeFlag, BOTH, &[one_live]),
        (Break::JoinerContends, BOTH, &[members, one_history]),
        (Break::GuestRunsOnWhileGiven, BOTH, &[one_history]),
        (Break::SuppressedForgotten, BOTH, &[kept]),
        (Break::SuppressedBackwards, BOTH, &[kept]),
        (Break::ReleasedTooFar, BOTH, &[kept]),
        (Break::DrainSkipped, BOTH, &[one_history]),
        (Break::DivergenceIgnored, diverges, &[diverged]),
        (Break::ArbiterForgets, BOTH, &[one_live]),
        (Break::RefusalIgnored, BOTH, &[one_live]),
        (Break::ArbiterGuessed, silent, &[one_live]),
        (Break::RetryForgotten, silent, &[GOES_ON]),
        (Break::LossUnnoticed, lossy, &[one_history]),
    ];
    for (fault, left, what) in faults {
        let broken = Lives {
            broken: Some(fault),
            ..lives(left)
        };
        find(&format!("{fault:?}"), broken, what);
    }
    let ticks = Left {
        crashes: 1,
        ticks: 2,
        ..CALM
    };
    let broken = Lives {
        broken: Some(Break::NamesUnacked),
        ..with_views(ticks)
    };
    find("NamesUnacked", broken, &[name_of(Rule::Views)]);
}
