//! The space of the model of time, and the same with one fault built in each time.

mod told;

use model::lease::{Break, Leases, NOTHING_LATE, ONE_WRITES};
use told::{find, search};

/// A quarter of a second, in which three things change.
const SHORT: Leases = Leases {
    steps: 26,
    changes: 3,
    drift_permille: 50,
    broken: None,
};

#[test]
fn one_of_the_two_writes() {
    search("leases", SHORT);
}

#[test]
#[ignore = "the whole space: minutes"]
fn whole_leases() {
    search(
        "leases",
        Leases {
            steps: 40,
            changes: 4,
            ..SHORT
        },
    );
}

#[test]
fn every_fault_that_is_built_in_is_found() {
    let faults = [
        (Break::AsksTooSoon, ONE_WRITES),
        (Break::LeaseFromReading, ONE_WRITES),
        (Break::LeaseTooLong, ONE_WRITES),
        (Break::ClockTooFast, ONE_WRITES),
        (Break::ClosedThoughAlive, ONE_WRITES),
        (Break::TrustsAll, NOTHING_LATE),
    ];
    for (fault, what) in faults {
        find(
            &format!("{fault:?}"),
            Leases {
                broken: Some(fault),
                ..SHORT
            },
            &[what],
        );
    }
}
