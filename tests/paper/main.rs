//! The paper's promises, a test each, on real processes. P2 to P5 and P17 are also in
//! `record_replay`, P9 in `failover`.

#[path = "../common/mod.rs"]
mod common;
mod disks;
mod proxy;
mod valve;
mod wire;

use check::resp::{Client, Reply};
use check::{LoadOptions, Pace};
use common::chains::under_load;
use common::{LIMIT, cluster, have_kvm, machine, os, pair, switch_cluster};
use kit::Judged;
use kit::chain::{ChainOptions, Protection};
use kit::cluster::{Cluster, Pair, PairOptions, TAPS};
use kit::failover::host_ns_at;
use kit::guest::Served;
use kit::join::Join;
use nix::sys::signal::Signal;
use replay::{Clock, LogIndex};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use wire::Tapped;

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
    check::resp::encode(&mut bytes, &words);
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

fn kill(daemon: &mut kit::daemon::Daemon) {
    daemon.kill();
    daemon.wait(LIMIT).expect("it is gone");
}

fn end(daemon: &mut kit::daemon::Daemon) {
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

/// Time the thread called `vcpu` of a process has been given a CPU.
fn vcpu_time(process: u32) -> Duration {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).expect("it runs");
    let is_vcpu = |task: &std::path::PathBuf| {
        std::fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim_end() == "vcpu")
    };
    let mut tasks = tasks.map(|task| task.unwrap().path());
    let task = tasks.find(is_vcpu).expect("it has a vCPU");
    let stat = std::fs::read_to_string(task.join("stat")).unwrap();
    // proc(5): fields 14 and 15, in ticks of 10 ms; field 3 is the first behind the name's bracket.
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    let ticks = |field: usize| fields[field - 3].parse::<u64>().unwrap();
    Duration::from_millis(10 * (ticks(14) + ticks(15)))
}

/// Where an ack says that the backup is. Which heartbeat it answers is another thing: that goes on.
fn place(ack: &logchannel::Ack) -> (LogIndex, LogIndex, Clock) {
    (ack.received, ack.executed, ack.executed_clock)
}

/// The backup, which was given `entries` and no more, stands still while the primary goes on: by all it
/// says of itself, and by the time its vCPU gets. Returns its guest's clock, as of its last stop.
fn stands_still(pair: &Pair, entries: usize) -> u64 {
    valve::wait(LIMIT, "it does not come to a stop", |acks, _| {
        let (Some(last), Some(early)) = (acks.last(), acks.len().checked_sub(6)) else {
            return false;
        };
        let same = |ack: &logchannel::Ack| place(ack) == place(last);
        last.received.0 == entries as u64 && acks[early..].iter().all(same)
    });
    let stood = *valve::acks_so_far().last().expect("some came");
    let (acks_then, sent_then) = (valve::acks_so_far().len(), valve::sent());
    let time_then = vcpu_time(pair.backup.pid());
    // Acks are heartbeats too, 20 ms apart: this is a third of a second or more.
    valve::wait(LIMIT, "one of the two does not go on", |acks, sent| {
        acks.len() > acks_then + 15 && sent > sent_then + 15
    });
    let took = vcpu_time(pair.backup.pid()) - time_then;
    assert!(took < Duration::from_millis(100), "its vCPU ran {took:?}");
    for ack in &valve::acks_so_far()[acks_then..] {
        assert_eq!(place(ack), place(&stood), "it moved");
    }
    assert!(stood.executed.0 <= entries as u64, "{stood:?}");
    stood.executed_clock.0
}

#[test]
fn p6_the_backup_waits_for_the_first_entry_and_stops_at_the_last_it_has() {
    let _machine = machine();
    if !have_kvm("P6") {
        return;
    }
    let cluster = cluster("file");
    let options = PairOptions {
        via: Some(valve::start),
        ..PairOptions::default()
    };
    // It spins without a single exit: nothing but the log's end can stop it.
    let guest = os(&["counter", "--arg", "hz=1000", "--arg", "ticks=1000000000"]);
    let mut pair = cluster.start_pair("p6", &guest, &options).unwrap();
    valve::wait(LIMIT, "no entries", |_, sent| sent > 50);
    assert_eq!(stands_still(&pair, 0), 0, "it ran without an entry");
    let mut stood = 0;
    for entries in [1, 2, 10, 30, 50] {
        valve::open_to(entries);
        let last = valve::last_passed().expect("there are more than 50");
        let stands = stands_still(&pair, entries);
        assert!(stands <= last.0, "it stands at {stands}, past {last}");
        assert!(stands > stood || entries < 10, "it does not follow");
        stood = stands;
    }
    kill(&mut pair.primary);
    pair.wait_event("backup", "live").unwrap();
    let events = pair.events();
    assert!(
        events.iter().all(|line| line.event != "diverged"),
        "{events:?}"
    );
    end(&mut pair.backup);
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
    pair.backup.stand_still().unwrap();
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
    pair.primary.stand_still().unwrap();
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
fn p11_a_host_that_stands_still_for_a_while_is_nobodys_death() {
    let _machine = machine();
    if !have_kvm("P11 on a host that stands still") {
        return;
    }
    let cluster = cluster("file");
    let mut pair = ready(&cluster, "p11c", &[]);
    let mut client = connect(cluster.server());
    // Longer than the time to suspicion, and shorter ones soon after each other; either wakes first.
    for (round, pause_ms) in [1_000, 250, 250, 500, 2_000].into_iter().enumerate() {
        let mut replicas = [&pair.primary, &pair.backup];
        if round % 2 == 1 {
            replicas.reverse();
        }
        tell(&mut client, &["INCR", "n"]);
        for replica in replicas {
            replica.signal(Signal::SIGSTOP);
        }
        // The pause itself is what is tested.
        std::thread::sleep(Duration::from_millis(pause_ms));
        for replica in replicas {
            replica.signal(Signal::SIGCONT);
        }
        let count = i64::try_from(round).unwrap() + 1;
        assert_eq!(client.receive().unwrap(), Reply::Int(count));
    }
    let events = pair.events();
    assert!(
        events.iter().all(|line| line.event != "link_end"),
        "{events:?}"
    );
    // They are a pair still: a primary that stands still alone is noticed.
    pair.primary.stand_still().unwrap();
    assert_eq!(ask(&mut client, &["INCR", "n"]), Reply::Int(6));
    let noticed = pair.wait_event("backup", "link_end").unwrap();
    assert!(
        noticed.detail.contains("nothing heard"),
        "{}",
        noticed.detail
    );
    kill(&mut pair.primary);
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
        .stand_still()
        .unwrap();
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

/// The guest's hardware address.
const GUEST_MAC: [u8; 6] = [0x52, 0x54, 0, 0x7a, 0x4d, 1];

/// A reverse ARP request (RFC 903) by the guest for itself, to all, as it stands on the wire: what the
/// paper's hypervisor sends to have switches learn the way.
fn announcement() -> Vec<u8> {
    let mut frame = [[0xff; 6], GUEST_MAC].concat();
    // Type, Ethernet, IPv4, lengths of their addresses, request.
    frame.extend([0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3]);
    for _ in 0..2 {
        frame.extend(GUEST_MAC);
        frame.extend([0; 4]);
    }
    frame.resize(60, 0);
    frame
}

/// Kills the primary and hears the announcement on the wire. Returns what was heard until a client was
/// answered, from the first frame on.
fn hear_announcement(cluster: &Cluster, vm: &str, wire: &Tapped) -> Vec<Vec<u8>> {
    let mut pair = ready(cluster, vm, &[]);
    let mut client = connect(cluster.server());
    assert_eq!(ask(&mut client, &["INCR", "n"]), Reply::Int(1));
    let mut heard = wire.take();
    assert!(
        !heard.contains(&announcement()),
        "announced while its primary lives: {heard:02x?}"
    );
    kill(&mut pair.primary);
    heard.clear();
    pair.wait_event("backup", "live").unwrap();
    let at = |name: &str| {
        let events = pair.events();
        let line = events.iter().find(|line| line.event == name);
        line.map(|line| line.at_ns)
    };
    assert!(at("flag_won") < at("announced") && at("announced") < at("live"));
    assert_eq!(ask(&mut client, &["INCR", "n"]), Reply::Int(2));
    // A client that never spoke before finds it there.
    assert_eq!(
        ask(&mut connect(cluster.server()), &["PING"]),
        Reply::Simple("PONG".into())
    );
    let deadline = Instant::now() + LIMIT;
    while !heard.contains(&announcement()) {
        assert!(Instant::now() < deadline, "not announced: {heard:02x?}");
        heard.extend(wire.take());
        std::thread::sleep(Duration::from_millis(1));
    }
    end(&mut pair.backup);
    heard
}

#[test]
fn p13_the_new_primary_announces_its_address() {
    let _machine = machine();
    if !have_kvm("P13") {
        return;
    }
    let cluster = cluster("file");
    if let Some(switch) = cluster.switch_socket() {
        hear_announcement(&cluster, "p13", &Tapped::switch(switch));
        return;
    }
    let wire = Tapped::interface(TAPS[1]);
    let heard = hear_announcement(&cluster, "p13", &wire);
    // The backup's TAP was silent before, so this is the first frame to leave by it.
    assert_eq!(heard[0], announcement(), "{heard:02x?}");
    assert!(heard.len() > 1, "its replies left by the same way");
}

#[test]
fn p13_the_new_primary_announces_its_address_on_the_userspace_switch() {
    let _machine = machine();
    if !have_kvm("P13 on the switch") {
        return;
    }
    let cluster = switch_cluster("file");
    let wire = Tapped::switch(cluster.switch_socket().expect("it is the network"));
    hear_announcement(&cluster, "p13s", &wire);
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

/// The paper's machines stand still for a second at most while they get a new backup.
#[test]
fn p14_a_machine_gets_a_new_backup_with_no_more_than_a_short_pause() {
    let _machine = machine();
    if !have_kvm("P14") {
        return;
    }
    const MOST: Duration = Duration::from_secs(1);
    let cluster = cluster("file");
    let options = LoadOptions {
        clients: 4,
        pace: Pace::Think(Duration::from_millis(1)),
        ..LoadOptions::default()
    };
    let guest = ["kv", "--memory", "256"];
    let (mut chain, load) = under_load(&cluster, "p14", &guest, ChainOptions::default(), options);
    let epoch_ns = host_ns_at(load.epoch());
    let served = || load.wait_replies(400, LIMIT) && load.broken() == 0;
    let mut protections = Vec::new();
    for _ in 0..3 {
        assert!(served());
        let loss = chain.kill_leader().unwrap();
        chain.leader().wait_event("live", loss.at_ns).unwrap();
        protections.push(chain.protect().unwrap());
    }
    assert!(served());
    let history = load.stop();
    let seen = Judged::of(&history, &Served::kv());
    assert!(seen.is_good(), "{}", seen.explain());
    for Protection { leads, follows } in protections {
        let join = Join::of(&history, epoch_ns, chain.noted(leads, follows)).unwrap();
        // As the replica tells it, and as the clients saw it.
        for us in [join.told.still_us, join.gap_us] {
            assert!(Duration::from_micros(us) <= MOST, "{}", join.timeline());
        }
    }
    chain.end().unwrap();
}
