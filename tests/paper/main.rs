//! The paper's promises, a test each, on real processes. P2 to P5 and P17 are also in
//! `record_replay`, P9 in `failover`.

#[path = "../common/mod.rs"]
mod common;
mod proxy;

use common::{LIMIT, cluster, have_kvm, machine, os, pair};
use nix::sys::signal::Signal;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tandem::demo::cluster::{Cluster, Pair, PairOptions};
use tandem::load::resp::{Client, Reply};

fn connect(server: SocketAddr) -> Client {
    Client::connect(server, LIMIT, LIMIT).expect("the guest answers")
}

fn ask(client: &mut Client, words: &[&str]) -> Reply {
    let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
    client
        .command(&words)
        .unwrap_or_else(|e| panic!("{words:?}: {e}"))
}

/// Sends a request without waiting for its reply.
fn tell(client: &mut Client, words: &[&str]) {
    let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
    let mut bytes = Vec::new();
    tandem::load::resp::encode(&mut bytes, &words);
    client.send(&bytes, 1).unwrap();
}

fn ok() -> Reply {
    Reply::Simple("OK".into())
}

fn ready(cluster: &Cluster, vm: &str, both: &[&str]) -> Pair {
    let options = PairOptions {
        network: true,
        both: os(both),
        ..PairOptions::default()
    };
    let pair = cluster
        .start_pair(vm, &os(&["kv"]), &options)
        .expect("a pair");
    pair.wait_ready("ready").expect("the guest gets ready");
    pair
}

fn kill(daemon: &mut tandem::demo::daemon::Daemon) {
    daemon.kill();
    daemon.wait(LIMIT).expect("it is gone");
}

fn end(daemon: &mut tandem::demo::daemon::Daemon) {
    daemon.ask_to_end();
    let status = daemon.wait(LIMIT).expect("it ends");
    assert!(status.success(), "{status}{}", daemon.complaint());
}

#[test]
fn p1_an_open_connection_survives_the_failover() {
    let _machine = machine();
    if !have_kvm("P1") {
        return;
    }
    let cluster = cluster("file");
    let mut pair = ready(&cluster, "p1", &[]);
    let mut client = connect(cluster.server());
    assert_eq!(ask(&mut client, &["SET", "a", "before"]), ok());
    kill(&mut pair.primary);
    assert_eq!(
        ask(&mut client, &["GET", "a"]),
        Reply::Bulk(Some(b"before".to_vec()))
    );
    assert_eq!(ask(&mut client, &["SET", "a", "after"]), ok());
    pair.wait_event("backup", "live").unwrap();
    assert_eq!(
        ask(&mut client, &["GET", "a"]),
        Reply::Bulk(Some(b"after".to_vec()))
    );
    end(&mut pair.backup);
}

#[test]
fn p2_both_end_in_the_same_state() {
    let _machine = machine();
    if !have_kvm("P2") {
        return;
    }
    let cluster = cluster("file");
    let mut pair = pair(
        &cluster,
        "p2",
        &["counter", "--arg", "hz=1000", "--arg", "ticks=300"],
    );
    for daemon in [&mut pair.primary, &mut pair.backup] {
        let status = daemon.wait(LIMIT).unwrap();
        // The last entry has the digest of all memory and devices: a backup in another state diverges.
        assert!(status.success(), "{status}{}", daemon.complaint());
    }
    assert!(
        pair.events().iter().all(|line| line.event != "flag_won"),
        "nobody failed over"
    );
}

#[test]
fn p7_no_output_leaves_before_its_entry_is_acked() {
    let _machine = machine();
    if !have_kvm("P7") {
        return;
    }
    let cluster = cluster("file");
    let mut pair = ready(&cluster, "p7", &["--suspect-ms", "30000"]);
    let mut client = connect(cluster.server());
    assert_eq!(ask(&mut client, &["SET", "a", "1"]), ok());
    pair.backup.signal(Signal::SIGSTOP);
    tell(&mut client, &["SET", "a", "2"]);
    let silent = Client::connect(cluster.server(), Duration::from_millis(700), LIMIT);
    assert!(
        silent.is_err(),
        "not even a handshake may leave while the backup acks nothing"
    );
    pair.backup.signal(Signal::SIGCONT);
    assert_eq!(client.receive().unwrap(), ok());
    end(&mut pair.primary);
    assert!(pair.backup.wait(LIMIT).unwrap().success());
}

#[test]
fn p8_the_backups_output_is_discarded() {
    let _machine = machine();
    if !have_kvm("P8") {
        return;
    }
    let cluster = cluster("file");
    let mut pair = ready(&cluster, "p8", &[]);
    let mut client = connect(cluster.server());
    assert_eq!(ask(&mut client, &["SET", "a", "1"]), ok());
    end(&mut pair.primary);
    assert!(pair.backup.wait(LIMIT).unwrap().success());
    assert!(
        pair.primary
            .said()
            .iter()
            .any(|line| line.contains("ready"))
    );
    assert_eq!(
        pair.backup.said(),
        Vec::<String>::new(),
        "the backup's guest printed"
    );
}

#[test]
fn p10_the_lock_server_keeps_its_word() {
    let _machine = machine();
    if !have_kvm("P10") {
        return;
    }
    let cluster = cluster("file");
    let mut pair = ready(&cluster, "p10", &[]);
    let (mut first, mut second) = (connect(cluster.server()), connect(cluster.server()));
    // A long lease outlives the failover, a short one ends by the guest's clock, which goes on.
    assert_eq!(
        ask(&mut first, &["SET", "long", "c1", "NX", "PX", "60000"]),
        ok()
    );
    let begun = Instant::now();
    assert_eq!(
        ask(&mut first, &["SET", "short", "c1", "NX", "PX", "1500"]),
        ok()
    );
    kill(&mut pair.primary);
    assert_eq!(
        ask(&mut second, &["SET", "long", "c2", "NX", "PX", "60000"]),
        Reply::Bulk(None)
    );
    let told = loop {
        let reply = ask(&mut second, &["SET", "short", "c2", "NX", "PX", "60000"]);
        if reply != Reply::Bulk(None) {
            break reply;
        }
        assert!(begun.elapsed() < LIMIT, "the lease never ends");
    };
    assert_eq!(told, ok());
    assert!(
        begun.elapsed() >= Duration::from_millis(1480),
        "ended early: {:?}",
        begun.elapsed()
    );
    assert_eq!(
        ask(&mut first, &["GET", "short"]),
        Reply::Bulk(Some(b"c2".to_vec()))
    );
    assert_eq!(
        ask(&mut first, &["GET", "long"]),
        Reply::Bulk(Some(b"c1".to_vec()))
    );
    end(&mut pair.backup);
}

#[test]
fn p11_a_silent_primary_is_noticed_and_halts_when_it_wakes() {
    let _machine = machine();
    if !have_kvm("P11") {
        return;
    }
    let cluster = cluster("server");
    let mut pair = ready(&cluster, "p11", &[]);
    let mut client = connect(cluster.server());
    assert_eq!(ask(&mut client, &["INCR", "n"]), Reply::Int(1));
    pair.primary.signal(Signal::SIGSTOP);
    assert_eq!(ask(&mut client, &["INCR", "n"]), Reply::Int(2));
    let noticed = pair.wait_event("backup", "link_end").unwrap();
    assert!(
        noticed.detail.contains("nothing heard"),
        "{}",
        noticed.detail
    );
    pair.primary.signal(Signal::SIGCONT);
    let status = pair.primary.wait(LIMIT).unwrap();
    assert_eq!(
        status.code(),
        Some(1),
        "it lost the flag: {}",
        pair.primary.complaint()
    );
    assert!(
        pair.primary.complaint().contains("has the flag"),
        "{}",
        pair.primary.complaint()
    );
    assert_eq!(ask(&mut client, &["INCR", "n"]), Reply::Int(3));
    end(&mut pair.backup);
}

#[test]
fn p11_without_its_backup_the_primary_goes_on_alone() {
    let _machine = machine();
    if !have_kvm("P11") {
        return;
    }
    let cluster = cluster("file");
    let mut pair = ready(&cluster, "p11b", &[]);
    let mut client = connect(cluster.server());
    assert_eq!(ask(&mut client, &["INCR", "n"]), Reply::Int(1));
    kill(&mut pair.backup);
    assert_eq!(ask(&mut client, &["INCR", "n"]), Reply::Int(2));
    pair.wait_event("primary", "solo").unwrap();
    assert_eq!(ask(&mut client, &["INCR", "n"]), Reply::Int(3));
    end(&mut pair.primary);
}

#[test]
fn p12_of_a_partitioned_pair_exactly_one_goes_live() {
    let _machine = machine();
    if !have_kvm("P12") {
        return;
    }
    let cluster = cluster("file");
    let options = PairOptions {
        network: true,
        via: Some(proxy::start),
        ..PairOptions::default()
    };
    let mut pair = cluster.start_pair("p12", &os(&["kv"]), &options).unwrap();
    pair.wait_ready("ready").unwrap();
    let mut client = connect(cluster.server());
    assert_eq!(ask(&mut client, &["INCR", "n"]), Reply::Int(1));
    proxy::cut();
    assert_eq!(ask(&mut client, &["INCR", "n"]), Reply::Int(2));
    let deadline = Instant::now() + LIMIT;
    let (won, lost) = loop {
        let events = pair.events();
        let who = |what: &str| -> Vec<String> {
            events
                .iter()
                .filter(|line| line.event == what)
                .map(|line| line.who.clone())
                .collect()
        };
        let (won, lost) = (who("flag_won"), who("halted"));
        if (!won.is_empty() && !lost.is_empty()) || Instant::now() > deadline {
            break (won, lost);
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    assert_eq!((won.len(), lost.len()), (1, 1), "{:?}", pair.events());
    assert_ne!(won, lost);
    assert_eq!(ask(&mut client, &["INCR", "n"]), Reply::Int(3));
    let survivor = if won[0] == "primary" {
        &mut pair.primary
    } else {
        &mut pair.backup
    };
    end(survivor);
}

#[test]
fn p12_while_the_arbiter_is_out_of_reach_nobody_goes_live() {
    let _machine = machine();
    if !have_kvm("P12") {
        return;
    }
    let cluster = cluster("server");
    let mut pair = ready(&cluster, "p12b", &[]);
    let mut client = connect(cluster.server());
    assert_eq!(ask(&mut client, &["INCR", "n"]), Reply::Int(1));
    cluster
        .arbiter_daemon()
        .expect("a server")
        .signal(Signal::SIGSTOP);
    kill(&mut pair.primary);
    tell(&mut client, &["INCR", "n"]);
    // Not at the first refusal only: it asks again, and must not guess then either.
    let deadline = Instant::now() + LIMIT;
    let refusals = || {
        let events = pair.events();
        events
            .iter()
            .filter(|line| line.event == "arbiter_unreachable")
            .count()
    };
    while refusals() < 2 {
        assert!(Instant::now() < deadline, "it does not ask again");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(
        pair.events().iter().all(|line| line.event != "live"),
        "{:?}",
        pair.events()
    );
    cluster
        .arbiter_daemon()
        .expect("a server")
        .signal(Signal::SIGCONT);
    assert_eq!(client.receive().unwrap(), Reply::Int(2));
    end(&mut pair.backup);
}

#[test]
fn p13_the_new_primary_announces_its_address() {
    let _machine = machine();
    if !have_kvm("P13") {
        return;
    }
    let cluster = cluster("file");
    let mut pair = ready(&cluster, "p13", &[]);
    kill(&mut pair.primary);
    pair.wait_event("backup", "announced").unwrap();
    let at = |name: &str| {
        let events = pair.events();
        events
            .iter()
            .find(|line| line.event == name)
            .map(|line| line.at_ns)
            .unwrap()
    };
    pair.wait_event("backup", "live").unwrap();
    assert!(at("announced") < at("live"));
    // A client that never spoke before finds it there.
    assert_eq!(
        ask(&mut connect(cluster.server()), &["PING"]),
        Reply::Simple("PONG".into())
    );
    end(&mut pair.backup);
}

#[test]
fn p16_power_off_travels_in_the_log() {
    let _machine = machine();
    if !have_kvm("P16") {
        return;
    }
    let cluster = cluster("file");
    // By the guest ...
    let mut by_guest = ready(&cluster, "p16a", &[]);
    let mut client = connect(cluster.server());
    tell(&mut client, &["SHUTDOWN"]);
    assert!(by_guest.primary.wait(LIMIT).unwrap().success());
    assert!(by_guest.backup.wait(LIMIT).unwrap().success());
    // ... and by the operator.
    let mut by_operator = ready(&cluster, "p16b", &[]);
    end(&mut by_operator.primary);
    assert!(by_operator.backup.wait(LIMIT).unwrap().success());
    for pair in [by_guest, by_operator] {
        assert!(
            pair.events().iter().all(|line| line.event != "flag_won"),
            "{:?}",
            pair.events()
        );
    }
}
