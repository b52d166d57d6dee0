//! One machine of real processes that outlives its hosts, one after the other, each time with a new backup.

#[path = "../common/mod.rs"]
mod common;
mod joined;

use check::rng::Rng;
use check::{Load, LoadOptions, Pace};
use common::chains::{ends, under_load};
use common::{LIMIT, cluster, have_kvm, machine, os, tandem, tandem_json};
use kit::chain::{Chain, ChainOptions};
use std::time::{Duration, Instant};
use vmm::hostclock;

#[test]
fn a_demo_of_one_machine_says_what_became_of_it() {
    let _machine = machine();
    if !have_kvm("a demo of one machine") {
        return;
    }
    let args = [
        "demo",
        "--same-machine",
        "--kills",
        "3",
        "--seed",
        "7",
        "--json",
    ];
    let said = tandem_json(&args);
    for (name, value) in [
        ("same_machine", serde_json::Value::from(true)),
        ("kills", 3.into()),
        ("killed", "primary".into()),
        ("joins", 3.into()),
        ("connections_broken", 0.into()),
        ("lost_writes", 0.into()),
        ("linearizable", true.into()),
        ("seed", 7.into()),
    ] {
        assert_eq!(said[name], value, "{name}: {said}");
    }
    let number = |value: &serde_json::Value| value.as_f64().unwrap_or_else(|| panic!("{said}"));
    for name in ["stall_ms", "join_gap_ms", "join_pause_ms"] {
        let [p50, p99, max] = ["p50", "p99", "max"].map(|part| number(&said[name][part]));
        assert!(0.0 < p50 && p50 <= p99 && p99 <= max, "{name}: {said}");
    }
    let [p50, max] = ["p50", "max"].map(|part| number(&said["protect_s"][part]));
    assert!(0.0 < p50 && p50 <= max, "{said}");
    let longest = ["join_pause_ms", "join_gap_ms"].map(|name| number(&said[name]["max"]));
    assert!(longest[0] <= longest[1] + 1.0, "{said}");
    let [sent, nonzero] = ["sent_mib", "nonzero_mib"].map(|name| number(&said[name]));
    // Each page that is not zero went once at least: the first piece as it is, of the rest LZ4 leaves no less than a
    // 255th.
    const PLAIN_MIB: f64 = 0.25;
    let least = PLAIN_MIB + (nonzero - PLAIN_MIB) / 255.0;
    assert!(nonzero > PLAIN_MIB && sent >= least, "{said}");
    // 1.3 on a host that has time, and more where its clients write on while it has not.
    assert!(sent < 4.0 * nonzero, "{said}");
    assert!(number(&said["acked_writes"]) > 0.0, "{said}");
}

#[test]
fn a_demo_of_one_machine_is_told_in_words() {
    let _machine = machine();
    if !have_kvm("a demo of one machine, in words") {
        return;
    }
    let kept = tempfile::tempdir().unwrap();
    let args = [
        "demo",
        "--same-machine",
        "--kills",
        "2",
        "--net",
        "switch",
        "--arbiter",
        "server",
        "--keep",
        common::text(kept.path()),
    ];
    let output = tandem(&args);
    let (stdout, stderr) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{stdout}{stderr}");
    for words in [
        "killed with SIGKILL",
        "a new backup listens",
        "protected, view",
        "kills                2 (the primary",
        "joins                2\n",
        "guest stands still   p50",
        "no reply at a join   p50",
        "protected            p50",
        "no client noticed more than a pause",
    ] {
        assert!(stdout.contains(words), "'{words}' in: {stdout}");
    }
    let network = |line: &&str| !line.starts_with("network") && !line.starts_with("arbiter");
    for line in stdout.lines().filter(network) {
        assert!(line.chars().count() <= 80, "{line}");
    }
    for name in ["history.json", "timeline-0.txt", "timeline-1.txt"] {
        assert!(kept.path().join(name).exists(), "{name}");
    }
    for name in ["timeline-0.html", "timeline-1.html"] {
        let page = std::fs::read_to_string(kept.path().join(name)).expect(name);
        assert!(page.contains("killed with SIGKILL"), "{page}");
        assert_eq!(page.matches("<svg ").count(), 2, "{page}");
    }
}

/// Lets the clients have so many more replies, and each of them one at least.
#[track_caller]
fn serve(chain: &Chain<'_>, load: &Load, replies: u64) {
    let now = load.epoch().now_ns();
    let served = load.wait_replies(replies, LIMIT) && load.wait_all_replied(now, LIMIT);
    let noted = chain.leader().events();
    assert!(served && load.broken() == 0, "not served: {noted:#?}");
}

/// Starts a backup, and kills it while it is given the machine, at a moment that `delay` moves: before it greets
/// (without one), or later. The machine then runs alone, whether the two were a pair for a moment or not.
#[track_caller]
fn lose_a_joiner(chain: &mut Chain<'_>, delay: Option<Duration>) {
    let begun_ns = hostclock::monotonic_ns();
    let address = chain.start_backup().unwrap();
    if delay.is_none() {
        chain.follower().unwrap().daemon.stand_still().unwrap();
    }
    let mut request = chain.ask_to_protect(address).unwrap();
    chain.leader().wait_event("joining", begun_ns).unwrap();
    std::thread::sleep(delay.unwrap_or_default());
    chain.kill_follower().unwrap();
    let status = request.wait(LIMIT).unwrap();
    let was_a_pair = joiner_gone(chain, begun_ns);
    println!("{delay:?}: a pair for a moment: {was_a_pair}, {status}");
    assert_eq!(status.success(), was_a_pair, "{status}");
    assert!(was_a_pair || status.code() == Some(1), "{status}");
}

/// Waits until the leader has noted since then that its joiner is gone. Whether the two had been a pair.
#[track_caller]
fn joiner_gone(chain: &Chain<'_>, begun_ns: u64) -> bool {
    let begun = Instant::now();
    loop {
        let mut since = chain.leader().events();
        since.retain(|line| line.at_ns >= begun_ns);
        let has = |event: &str| since.iter().any(|line| line.event == event);
        if has("join_failed") || has("solo") {
            return has("protected");
        }
        assert!(begun.elapsed() < LIMIT, "it is not alone: {since:#?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn backups_killed_in_mid_join_cost_the_clients_nothing_but_a_pause() {
    let _machine = machine();
    if !have_kvm("backups killed in mid-join") {
        return;
    }
    let cluster = cluster("file");
    let options = ChainOptions {
        all: os(&["--suspect-ms", "5000"]),
        ..ChainOptions::default()
    };
    let load_options = LoadOptions {
        clients: 4,
        pace: Pace::Think(Duration::from_millis(1)),
        ..LoadOptions::default()
    };
    let (mut chain, load) = under_load(&cluster, "mid-join", &["kv"], options, load_options);
    let mut rng = Rng::new(1, 0);
    serve(&chain, &load, 200);
    let loss = chain.kill_leader().unwrap();
    chain.leader().wait_event("live", loss.at_ns).unwrap();
    for n in 0..6 {
        let delay = (n > 0).then(|| Duration::from_micros(rng.below(60_000)));
        lose_a_joiner(&mut chain, delay);
        serve(&chain, &load, 100);
    }
    // A good one is still welcome, and outlives the replica that has seen all that.
    chain.protect().unwrap();
    serve(&chain, &load, 200);
    let loss = chain.kill_leader().unwrap();
    chain.leader().wait_event("live", loss.at_ns).unwrap();
    serve(&chain, &load, 200);
    ends(&cluster, chain, load);
}
