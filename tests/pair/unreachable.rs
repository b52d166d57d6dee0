//! An arbiter that is gone when a machine is to stop: the stop is obeyed, in bounded time, and the end says
//! what is left undone.

use super::common::{LIMIT, have_kvm, machine};
use super::{LONG, Replica, SHORT, Site};
use std::time::{Duration, Instant};

/// Longest time from a stop to the end: suspicion and two seconds of asking, on a busy host.
const SOON: Duration = Duration::from_secs(20);

/// It ends with this code, and soon; what it said last.
#[track_caller]
fn ends(replica: &mut Replica, code: i32) -> String {
    let begun = Instant::now();
    let status = replica.daemon.wait(LIMIT).unwrap();
    let said = replica.daemon.complaint();
    assert_eq!(status.code(), Some(code), "{said}");
    assert!(begun.elapsed() < SOON, "{:?}{said}", begun.elapsed());
    said
}

/// A pair whose guest runs; its arbiter is a server.
fn pair(site: &Site) -> (Replica, Replica) {
    let (backup, at) = site.backup(&[]);
    let primary = site.primary(&LONG, &at);
    primary.wait_event("primary");
    backup.wait_event("backup");
    (primary, backup)
}

/// With the arbiter there again, the machine begins where the operator says that nobody runs it.
fn begins_again(mut site: Site, view: &str) {
    site.start_arbiter();
    let (mut backup, at) = site.backup(&[]);
    let why = site.primary(&SHORT, &at).is_refused();
    assert!(why.contains(&format!("--view {view}")), "{why}");
    let mut primary = site.primary(&[&SHORT[..], &["--view", view]].concat(), &at);
    primary.ends_well();
    backup.ends_well();
}

#[test]
fn a_whole_pair_that_is_stopped_says_that_its_flag_is_unmarked() {
    let _machine = machine();
    if !have_kvm("a stop without an arbiter") {
        return;
    }
    let mut site = Site::with_server();
    let (mut primary, mut backup) = pair(&site);
    site.kill_arbiter();
    primary.daemon.ask_to_end();
    for replica in [&mut primary, &mut backup] {
        let said = ends(replica, 1);
        assert!(
            said.contains("the flag of view 1 is left unmarked"),
            "{said}"
        );
        assert!(said.contains("--view 2"), "{said}");
    }
    begins_again(site, "2");
}

#[test]
fn a_primary_asked_to_stop_that_loses_its_backup_does_not_ask_for_ever() {
    let _machine = machine();
    if !have_kvm("a stop with neither backup nor arbiter") {
        return;
    }
    let mut site = Site::with_server().that_suspects_soon();
    let (mut primary, mut backup) = pair(&site);
    site.kill_arbiter();
    // Silent, but not gone: the stop is asked while the pair is whole, and the loss comes after it.
    backup.daemon.stand_still().unwrap();
    primary.daemon.ask_to_end();
    primary.wait_event("stop_asked");
    primary.wait_event("arbiter_unreachable");
    let said = ends(&mut primary, 1);
    assert!(said.contains("asked to stop"), "{said}");
    assert!(said.contains("flag of view 1"), "{said}");
    backup.daemon.kill();
    backup.daemon.wait(LIMIT).unwrap();
    begins_again(site, "2");
}

#[test]
fn a_primary_whose_guest_ended_without_backup_and_arbiter_ends_when_asked() {
    let _machine = machine();
    if !have_kvm("an end with neither backup nor arbiter") {
        return;
    }
    let mut site = Site::with_server();
    let (mut primary, mut backup) = pair(&site);
    site.kill_arbiter();
    backup.daemon.kill();
    backup.daemon.wait(LIMIT).unwrap();
    primary.wait_event("arbiter_unreachable");
    primary.daemon.ask_to_end();
    let said = ends(&mut primary, 1);
    assert!(said.contains("flag of view 1"), "{said}");
    begins_again(site, "2");
}

#[test]
fn a_backup_asked_to_stop_while_it_asks_does_not_call_that_a_good_end() {
    let _machine = machine();
    if !have_kvm("a backup stopped while it asks") {
        return;
    }
    let mut site = Site::with_server();
    let (mut primary, mut backup) = pair(&site);
    site.kill_arbiter();
    primary.daemon.kill();
    primary.daemon.wait(LIMIT).unwrap();
    backup.wait_event("arbiter_unreachable");
    backup.daemon.ask_to_end();
    let said = ends(&mut backup, 1);
    assert!(said.contains("flag of view 1"), "{said}");
    begins_again(site, "2");
}

#[test]
fn an_arbiter_that_comes_back_in_time_is_told_of_the_end() {
    let _machine = machine();
    if !have_kvm("a stop while the arbiter starts anew") {
        return;
    }
    let mut site = Site::with_server();
    let (mut primary, mut backup) = pair(&site);
    site.kill_arbiter();
    site.start_arbiter();
    primary.daemon.ask_to_end();
    ends(&mut primary, 0);
    ends(&mut backup, 0);
    primary.wait_event("marked");
}
