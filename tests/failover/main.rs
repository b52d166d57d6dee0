//! Failover with the primary killed at every log index of a short run (P9): whatever the backup has
//! been sent when its primary dies, a client sees one machine.
//!
//! The primary kills itself with SIGKILL once entry N is sent, for N from the first entry on until a run
//! ends without reaching N. `TANDEM_EVERY=k` tries every k-th index only.

#[path = "../common/mod.rs"]
mod common;
mod etcd;
mod guests;
mod mixed;

use check::resp::{Client, Reply};
use common::{LIMIT, cluster, have_kvm, machine, os};
use kit::cluster::{Cluster, PairOptions};
use std::time::Duration;

/// Replicas that take no silence of a slow host for death. A killed primary is noticed all the same: its
/// connection closes.
fn patient() -> PairOptions {
    PairOptions {
        both: os(&["--suspect-ms", "5000"]),
        ..PairOptions::default()
    }
}

/// How many of the run's indexes to try: every one, unless told otherwise.
fn step() -> usize {
    testing::numbers::number("TANDEM_EVERY").map_or(1, |n| usize::try_from(n).unwrap())
}

/// What one client does, and must see, over one connection, whoever answers.
fn script(client: &mut Client) {
    let mut ask = |words: &[&str]| -> Reply {
        let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
        client
            .command(&words)
            .unwrap_or_else(|e| panic!("{words:?}: {e}"))
    };
    let bulk = |text: &str| Reply::Bulk(Some(text.as_bytes().to_vec()));
    let ok = || Reply::Simple("OK".into());
    assert_eq!(ask(&["SET", "a", "1"]), ok());
    assert_eq!(ask(&["INCR", "n"]), Reply::Int(1));
    assert_eq!(ask(&["SET", "lock", "me", "NX", "PX", "60000"]), ok());
    assert_eq!(ask(&["GET", "a"]), bulk("1"));
    assert_eq!(ask(&["INCR", "n"]), Reply::Int(2));
    assert_eq!(
        ask(&["SET", "lock", "you", "NX", "PX", "60000"]),
        Reply::Bulk(None)
    );
    assert_eq!(ask(&["APPEND", "a", "2"]), Reply::Int(2));
    assert_eq!(ask(&["INCR", "n"]), Reply::Int(3));
    assert_eq!(ask(&["GET", "a"]), bulk("12"));
    assert_eq!(ask(&["GET", "n"]), bulk("3"));
}

/// One run whose primary dies at entry `at`; false if it got through without reaching it.
fn run(cluster: &Cluster, at: usize) -> bool {
    let options = PairOptions {
        network: true,
        primary: os(&["--die-at", &at.to_string()]),
        ..patient()
    };
    let mut pair = cluster
        .start_pair(&format!("at-{at}"), &os(&["kv"]), &options)
        .unwrap();
    // The guest says so on either replica's console: its primary may be dead before it is ready.
    let begun = std::time::Instant::now();
    while ![&pair.primary, &pair.backup]
        .iter()
        .any(|d| d.said().iter().any(|l| l.contains("ready")))
    {
        assert!(
            begun.elapsed() < LIMIT,
            "entry {at}: never ready: {:?} {:?} {:?}",
            pair.events(),
            pair.primary.said(),
            pair.backup.said()
        );
        std::thread::sleep(Duration::from_millis(2));
    }
    let mut client = Client::connect(cluster.server(), LIMIT, LIMIT).unwrap();
    script(&mut client);
    let mut died = pair.primary.has_ended();
    if !died {
        // It may still die of the entries its end makes.
        pair.primary.ask_to_end();
        let status = pair.primary.wait(LIMIT).unwrap();
        died = pair.primary.was_killed();
        let complaint = pair.primary.complaint();
        assert!(
            died || status.success(),
            "entry {at}: primary: {status}{complaint}"
        );
    } else {
        pair.wait_event("backup", "live").unwrap();
    }
    pair.backup.ask_to_end();
    let status = pair.backup.wait(LIMIT).unwrap();
    let (events, complaint) = (pair.events(), pair.backup.complaint());
    assert!(
        status.success(),
        "entry {at}: backup: {status}{complaint} {events:?}"
    );
    died
}

#[test]
fn p9_killed_at_every_log_index_nothing_is_lost() {
    let _machine = machine();
    if !have_kvm("failover at every index") {
        return;
    }
    let cluster = cluster("file");
    let mut tried = 0;
    let mut at = 0;
    // Beyond what the script needs entries come from the timer alone, for ever: stop at the first run
    // that was over before it got there.
    while run(&cluster, at) {
        tried += 1;
        at += step();
        assert!(at < 5000, "the run never ends");
    }
    eprintln!("killed at {tried} indexes, up to {at}");
    assert!(
        at > 20,
        "only {tried} indexes, up to {at}: the run is too short to prove anything"
    );
}

/// Before a reset, at it and behind it: the guest counts its lives on its disk, and ends with 1 if anything
/// is left of one but the disk.
#[test]
fn p9_a_guest_that_resets_itself_starts_over_on_whichever_replica_lives() {
    let _machine = machine();
    if !have_kvm("failover of a guest that resets itself") {
        return;
    }
    let cluster = cluster("file");
    let disk = cluster.folder().join("disk.img");
    let mut killed = 0;
    for at in (1..).step_by(5) {
        std::fs::write(&disk, vec![0; 1 << 20]).unwrap();
        let options = PairOptions {
            disk: Some(disk.clone()),
            primary: os(&["--die-at", &at.to_string()]),
            ..patient()
        };
        let guest = os(&["reset", "--arg", "resets=2", "--arg", "ticks=2"]);
        let mut pair = cluster
            .start_pair(&format!("reset-{at}"), &guest, &options)
            .unwrap();
        let status = pair.backup.wait(LIMIT).unwrap();
        let complaint = pair.backup.complaint();
        let said = [pair.primary.said(), pair.backup.said()].concat();
        assert!(
            status.success(),
            "entry {at}: {status}{complaint} {said:?} {:?}",
            pair.events()
        );
        for life in 0..=2 {
            let told = said
                .iter()
                .any(|line| line.contains(&format!("life {life} ")));
            assert!(told, "entry {at}: life {life} is not told of: {said:?}");
        }
        assert_eq!(
            std::fs::read(&disk).unwrap()[8],
            2,
            "entry {at}: the disk's count"
        );
        pair.primary.wait(LIMIT).unwrap();
        if !pair.primary.was_killed() {
            break;
        }
        killed += 1;
    }
    assert!(killed >= 8, "the primary died only {killed} times");
}

#[test]
fn p17_disk_requests_under_way_are_issued_again() {
    let _machine = machine();
    if !have_kvm("disk failover") {
        return;
    }
    let cluster = cluster("file");
    let disk = cluster.folder().join("disk.img");
    let mut killed = 0;
    for at in (3..300).step_by(17) {
        std::fs::write(&disk, vec![0x5a; 4 << 20]).unwrap();
        let options = PairOptions {
            disk: Some(disk.clone()),
            primary: os(&["--die-at", &at.to_string()]),
            ..patient()
        };
        let guest = os(&["disk", "--arg", "rounds=10"]);
        let mut pair = cluster
            .start_pair(&format!("disk-{at}"), &guest, &options)
            .unwrap();
        let status = pair.backup.wait(LIMIT).unwrap();
        let complaint = pair.backup.complaint();
        // The guest reads back what it wrote and ends with 1 if anything is amiss.
        assert!(
            status.success(),
            "entry {at}: {status}{complaint} {:?}",
            pair.events()
        );
        pair.primary.wait(LIMIT).unwrap();
        if pair.primary.was_killed() {
            killed += 1;
            let said = [pair.primary.said(), pair.backup.said()].concat();
            let told = said.iter().any(|line| line.contains("checksum"));
            assert!(told, "entry {at}: the guest's last line is lost: {said:?}");
        }
    }
    assert!(killed >= 10, "the primary died only {killed} times");
}
