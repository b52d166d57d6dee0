//! What those are told who ask a replica for something.

mod lives;

use lives::{LIMIT, Life, Site, nobody};
use replay::ViewNumber;
use replica::role::Role;
use replica::{HostPort, Told};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Instant;

/// All that is told, to the end.
#[track_caller]
fn all(told: &Receiver<Told>) -> Vec<Told> {
    let deadline = Instant::now() + LIMIT;
    let mut all = Vec::new();
    loop {
        match told.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(one) => all.push(one),
            Err(RecvTimeoutError::Disconnected) => return all,
            Err(RecvTimeoutError::Timeout) => panic!("it does not end: {all:?}"),
        }
    }
}

/// It was refused at once; with which words.
#[track_caller]
fn refused(told: &Receiver<Told>) -> String {
    match &all(told)[..] {
        [Told::Failed { why }] => why.clone(),
        other => panic!("not refused: {other:?}"),
    }
}

/// A backup that waits, and where.
fn waiting(site: &Site) -> (Life, HostPort) {
    let mut backup = site.backup();
    let address = backup.address();
    (backup, address)
}

const LONG: &str = "ticks=1000000000 hz=1000";

#[test]
fn whoever_protects_or_moves_a_machine_is_told_to_the_end() {
    let site = Site::new();
    let solo = site.survivor("counter", LONG);
    let handle = solo.replica.handle();
    let (mut next, address) = waiting(&site);
    let backup = address.to_string();
    let joining = Told::Joining {
        backup: backup.clone(),
    };
    let protected = |view, backup| Told::Protected {
        view: ViewNumber(view),
        backup,
    };
    assert_eq!(
        all(&handle.protect(address)),
        [joining, protected(3, backup)]
    );
    // A pair takes no other backup.
    let other = nobody();
    for told in [handle.protect(other.clone()), handle.move_to(other)] {
        let why = refused(&told);
        assert!(why.contains("has a backup already"), "{why}");
    }
    handle.halt("the host died");
    next.hears("Live");
    assert!(solo.ends().is_err());
    let solo = next;
    let handle = solo.replica.handle();
    let nobody = nobody();
    let told = all(&handle.move_to(nobody));
    let [Told::Joining { .. }, Told::Failed { why }] = &told[..] else {
        panic!("{told:?}");
    };
    assert!(why.contains("cannot reach the backup"), "{why}");
    let (mut next, address) = waiting(&site);
    let to = address.to_string();
    let joining = Told::Joining { backup: to.clone() };
    let left = Told::Left {
        view: ViewNumber(6),
        to: to.clone(),
        follows: false,
    };
    assert_eq!(
        all(&handle.move_to(address)),
        [joining, protected(5, to), left]
    );
    assert_eq!(solo.ends(), Ok(()));
    assert_eq!(all(&handle.failover()), [], "of one that is over");
    next.hears("Live");
    assert_eq!(next.replica.handle().status().view, ViewNumber(6));
    next.replica.handle().stop();
    assert_eq!(next.ends(), Ok(()));
}

#[test]
fn a_primary_leaves_the_machine_to_its_backup() {
    let site = Site::new();
    let [primary, mut backup] = site.pair("counter", LONG);
    let why = refused(&backup.replica.handle().leave());
    assert!(why.contains("is the backup"), "{why}");
    let left = all(&primary.replica.handle().leave());
    let [Told::Left { view, to, follows }] = &left[..] else {
        panic!("{left:?}");
    };
    assert!(!follows);
    assert_eq!(*view, ViewNumber(2));
    assert!(to.starts_with("127.0.0.1:"), "{to}");
    assert_eq!(primary.ends(), Ok(()), "it did not fail");
    backup.hears("Live");
    let handle = backup.replica.handle();
    let status = handle.status();
    assert_eq!((status.role, status.view), (Some(Role::Solo), *view));
    // Whoever runs alone has nobody to leave the machine to.
    let why = refused(&handle.failover());
    assert!(why.contains("runs alone"), "{why}");
    // Of a pair that was formed later, likewise.
    let (mut next, address) = waiting(&site);
    let why = refused(&next.replica.handle().failover());
    assert!(why.contains("waits for its primary"), "{why}");
    handle.protect(address);
    next.hears("Welcomed");
    let left = all(&handle.leave());
    assert!(
        matches!(&left[..], [Told::Left { view, .. }] if *view == ViewNumber(4)),
        "{left:?}"
    );
    assert_eq!(backup.ends(), Ok(()));
    next.hears("Live");
    next.replica.handle().stop();
    assert_eq!(next.ends(), Ok(()));
}

#[test]
fn a_machine_that_is_stopped_is_left_to_nobody() {
    let site = Site::new();
    let [primary, backup] = site.pair("counter", LONG);
    let handle = primary.replica.handle();
    handle.stop();
    let told = all(&handle.failover());
    assert!(
        matches!(&told[..], [] | [Told::Failed { .. }]),
        "it was to end: {told:?}"
    );
    assert_eq!((primary.ends(), backup.ends()), (Ok(()), Ok(())));
}
