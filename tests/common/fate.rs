//! The end of a pair under test, and the judgement of it.

use super::LIMIT;
use kit::daemon::Daemon;
use kit::fate::{self, Fate};
use kit::{Judged, Line};

/// Asks the one that serves to end, waits for both, and judges what they noted, which `noted` tells, and how they
/// ended. `killed`: a replica was killed (SIGKILL) on purpose.
///
/// # Panics
/// If anything is wrong.
#[track_caller]
pub fn end(
    mut pair: [Daemon; 2],
    noted: impl Fn() -> Vec<Line>,
    killed: bool,
) -> (Fate, Vec<Line>) {
    let solo = noted().into_iter().find(|line| line.event == "solo");
    if solo.is_some_and(|line| line.who == "backup") {
        pair.reverse();
    }
    pair[0].ask_to_end();
    let ends = pair.each_mut().map(|daemon| {
        let status = daemon.wait(LIMIT).expect("it ends");
        let (name, complaint) = (daemon.name(), daemon.complaint());
        (status, format!("the {name}: {status}{complaint}"))
    });
    let lines = noted();
    let fate = fate::of_pair(&lines).unwrap_or_else(|why| panic!("{why}: {lines:#?}"));
    let [(served, how_it_ended), (others, how_the_other_ended)] = ends;
    assert!(served.success(), "{how_it_ended} {lines:#?}");
    let as_it_must = match (&fate, killed) {
        (Fate::Whole, _) => others.success(),
        (Fate::Alone(_), true) => pair[1].was_killed(),
        (Fate::Alone(_), false) => others.code() == Some(1),
    };
    assert!(as_it_must, "{how_the_other_ended} {lines:#?}");
    (fate, lines)
}

/// Checks that the clients noticed no more than a pause, and that something was written.
///
/// # Panics
/// If not.
#[track_caller]
pub fn nobody_noticed(seen: &Judged) {
    let lost = seen.verdict.lost_writes;
    assert!(
        seen.is_good(),
        "{lost} acknowledged writes lost, {} connections broken; {}",
        seen.broken,
        seen.explain()
    );
    assert!(seen.verdict.acked_writes > 0, "nothing was written");
}
