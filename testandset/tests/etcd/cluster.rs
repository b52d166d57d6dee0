//! Three members, of which some are killed or stand still; and one whose database is full.

use crate::rigs::etcd::{Etcd, Options, PATIENCE, is_here, patient};
use crate::{flag, impatient, line, who};
use nix::sys::signal::{Signal, kill};
use std::time::{Duration, Instant};
use testandset::{Arbiter, ArbiterError, EtcdArbiter, Verdict};

fn lost_to(name: &str) -> Verdict {
    Verdict::Lost { holder: who(name) }
}

/// The verdict on a flag, which is asked for as a replica does: until there is one.
fn until_told(arbiter: &dyn Arbiter, view: u64, name: &str) -> Verdict {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match arbiter.test_and_set(&flag(view), &who(name)) {
            Ok(verdict) => return verdict,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
    }
}

#[test]
fn the_leader_is_killed_and_every_flag_is_kept() {
    if !is_here() {
        return;
    }
    let mut etcd = Etcd::start(3, Options::default());
    let words = etcd.words();
    etcd.wait_until_serving(0);
    let (a, b) = (
        EtcdArbiter::new(&words).unwrap(),
        EtcdArbiter::new(&words).unwrap(),
    );
    assert_eq!(until_told(&a, 0, "a"), Verdict::Won);
    for view in 1..4 {
        let leader = etcd.leader();
        etcd.kill(leader);
        assert_eq!(
            until_told(&a, view, "a"),
            Verdict::Won,
            "leader {leader} killed"
        );
        assert_eq!(until_told(&b, view, "b"), lost_to("a"));
        for before in 0..view {
            assert_eq!(until_told(&b, before, "b"), lost_to("a"), "view {before}");
        }
        etcd.start_member(leader);
        etcd.wait_until_serving(leader);
    }
    // Each member tells all of it, the killed ones too.
    for member in &etcd.members {
        let one = patient(&member.client);
        for view in 0..4 {
            assert_eq!(one.holder(&flag(view)).unwrap(), Some(who("a")));
        }
    }
}

#[test]
fn a_minority_has_no_verdict_and_a_majority_goes_on() {
    if !is_here() {
        return;
    }
    let mut etcd = Etcd::start(3, Options::default());
    let words = etcd.words();
    let arbiter = impatient(&words);
    etcd.wait_for(|| arbiter.check());
    assert_eq!(until_told(&arbiter, 1, "a"), Verdict::Won);
    let leader = etcd.leader();
    let follower = (leader + 1) % 3;
    // One member stands still, the leader as the worst: the others elect another.
    kill(etcd.pid(leader), Signal::SIGSTOP).unwrap();
    assert_eq!(until_told(&arbiter, 2, "a"), Verdict::Won);
    // So does a second one. What is left knows the flags, and may not say so.
    kill(etcd.pid(follower), Signal::SIGSTOP).unwrap();
    let began = Instant::now();
    for error in [
        arbiter.test_and_set(&flag(3), &who("a")).unwrap_err(),
        arbiter.holder(&flag(1)).unwrap_err(),
        arbiter.newest(&flag(1).vm).unwrap_err(),
    ] {
        assert!(matches!(error, ArbiterError::Unreachable { .. }), "{error}");
        let line = line(&error);
        assert!(
            etcd.members.iter().all(|m| line.contains(&m.client)),
            "{line}"
        );
    }
    let took = began.elapsed();
    println!("three calls without a majority took {took:?}");
    assert!(
        took < Duration::from_secs(30),
        "each has less than a second: {took:?}"
    );
    // Both wake, and the flag that nobody was told of is set or not, but once.
    kill(etcd.pid(leader), Signal::SIGCONT).unwrap();
    let other = EtcdArbiter::new(&words).unwrap();
    let verdict = until_told(&other, 3, "b");
    kill(etcd.pid(follower), Signal::SIGCONT).unwrap();
    let expected = match verdict {
        Verdict::Won => lost_to("b"),
        Verdict::Lost { holder } => {
            assert_eq!(holder, who("a"));
            Verdict::Won
        }
    };
    assert_eq!(until_told(&arbiter, 3, "a"), expected);
    for view in [1, 2] {
        assert_eq!(until_told(&other, view, "b"), lost_to("a"));
    }
}

#[test]
fn a_member_that_is_gone_or_silent_is_passed_over() {
    if !is_here() {
        return;
    }
    let mut etcd = Etcd::start(3, Options::default());
    let words = etcd.words();
    let arbiter = EtcdArbiter::new(&words).unwrap();
    etcd.wait_for(|| arbiter.check());
    assert_eq!(until_told(&arbiter, 1, "a"), Verdict::Won);
    // The member it is connected to: the first that serves.
    etcd.kill(0);
    assert_eq!(until_told(&arbiter, 2, "a"), Verdict::Won);
    etcd.start_member(0);
    etcd.wait_until_serving(0);
    kill(etcd.pid(1), Signal::SIGSTOP).unwrap();
    assert_eq!(until_told(&arbiter, 3, "a"), Verdict::Won);
    // Who comes anew does not know which one is silent, and gets through in one call.
    let mut shuffled = etcd
        .members
        .iter()
        .map(|m| m.client.as_str())
        .collect::<Vec<_>>();
    shuffled.rotate_left(1);
    let anew = EtcdArbiter::new(&shuffled.join(","))
        .unwrap()
        .with_patience(Duration::from_secs(2));
    assert_eq!(anew.holder(&flag(3)).unwrap(), Some(who("a")));
    kill(etcd.pid(1), Signal::SIGCONT).unwrap();
    // All are gone: one line, that names them.
    (0..3).for_each(|n| etcd.kill(n));
    let line = line(&arbiter.test_and_set(&flag(4), &who("a")).unwrap_err());
    assert!(
        line.contains(&words) && line.contains("out of reach"),
        "{line}"
    );
    assert!(
        line.contains("refused") && line.contains("nobody goes live"),
        "{line}"
    );
}

#[test]
fn a_full_database_takes_no_flag_and_tells_those_that_are_set() {
    if !is_here() {
        return;
    }
    let quota = ["--quota-backend-bytes", "4000000"].map(String::from);
    let mut etcd = Etcd::start(
        1,
        Options {
            more: quota.to_vec(),
            tls: false,
        },
    );
    let arbiter = patient(&etcd.words());
    etcd.wait_for(|| arbiter.check());
    assert_eq!(
        arbiter.test_and_set(&flag(1), &who("a")).unwrap(),
        Verdict::Won
    );
    // 300 KB a time, until there is no room.
    let value = "eHh4".repeat(100_000);
    let put = format!(r#"{{"key":"ZmlsbGVy","value":"{value}"}}"#);
    let mut puts = 0;
    while etcd.try_api(0, "kv/put", &put, None).0 == 200 {
        puts += 1;
        assert!(puts < 100, "the quota holds");
    }
    for error in [
        arbiter.test_and_set(&flag(2), &who("a")).unwrap_err(),
        arbiter.check().unwrap_err(),
    ] {
        let line = line(&error);
        assert!(line.contains("database is full (alarm NOSPACE)"), "{line}");
    }
    assert_eq!(
        arbiter.test_and_set(&flag(1), &who("a")).unwrap(),
        Verdict::Won
    );
    assert_eq!(
        arbiter.test_and_set(&flag(1), &who("b")).unwrap(),
        lost_to("a")
    );
    assert_eq!(arbiter.holder(&flag(2)).unwrap(), None);
    // As the message says; an alarm is a member's.
    let status = etcd.api(0, "kv/range", r#"{"key":"ZmlsbGVy","keys_only":true}"#);
    let revision = status["header"]["revision"].as_str().unwrap();
    etcd.api(
        0,
        "kv/compaction",
        &format!(r#"{{"revision":"{revision}","physical":true}}"#),
    );
    etcd.api(0, "kv/deleterange", r#"{"key":"ZmlsbGVy"}"#);
    etcd.api(0, "maintenance/defragment", "{}");
    let member =
        etcd.api(0, "maintenance/alarm", r#"{"action":"GET"}"#)["alarms"][0]["memberID"].clone();
    let disarm = format!(r#"{{"action":"DEACTIVATE","alarm":"NOSPACE","memberID":{member}}}"#);
    etcd.api(0, "maintenance/alarm", &disarm);
    assert_eq!(
        arbiter.test_and_set(&flag(2), &who("a")).unwrap(),
        Verdict::Won
    );
}
