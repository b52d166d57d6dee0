//! The primary of a protected Linux is killed (SIGKILL) under load: connections stay open, and nothing
//! that was acked is lost (P1, P9).

use super::common::{cluster, machine, os, text};
use super::servers::{Clients, Http, Memcached, Talk};
use super::{LIMIT, images};
use check::{CheckOptions, Load, LoadOptions, Pace, check, read_all};
use kit::cluster::{Cluster, Pair, PairOptions};
use std::path::Path;
use std::time::Duration;

/// Clients with one connection each.
const CLIENTS: usize = 4;
/// Replies each has had when the primary is killed, and has after it.
const REPLIES: u64 = 50;

/// A pair that runs `image`. Patient: a backup that gets little of the CPU is no dead one.
pub fn pair(cluster: &Cluster, vm: &str, image: &Path, more: &[&str]) -> Pair {
    let options = PairOptions {
        network: true,
        both: os(&["--suspect-ms", "5000"]),
        ..PairOptions::default()
    };
    let words = os(&[&[text(image), "--cpu", "v2"], more].concat());
    cluster.start_pair(vm, &words, &options).expect("a pair")
}

fn kill(pair: &mut Pair) {
    pair.primary.kill();
    pair.primary.wait(LIMIT).expect("it is gone");
    assert!(pair.primary.was_killed(), "it ended by itself before");
}

/// The survivor is live, and ends in an orderly way.
fn end(mut pair: Pair) {
    pair.wait_event("backup", "live").expect("it is live");
    pair.backup.ask_to_end();
    let status = pair.backup.wait(LIMIT).expect("it ends");
    assert!(status.success(), "{status}{}", pair.backup.complaint());
}

#[test]
fn p9_redis_keeps_what_it_acked() {
    let _machine = machine();
    let Some(image) = images::redis() else { return };
    let cluster = cluster("file");
    let mut pair = pair(&cluster, "redis", &image, &[]);
    pair.wait_ready_within("Ready to accept connections", LIMIT)
        .expect("redis serves");
    let options = LoadOptions {
        clients: 8,
        seed: 1,
        pace: Pace::Think(Duration::from_millis(2)),
        reply_limit: LIMIT,
        ..LoadOptions::default()
    };
    let load = Load::start(cluster.server(), options).expect("clients");
    assert!(load.wait_replies(1000, LIMIT), "too few replies");
    let killed_at = load.epoch().now_ns();
    kill(&mut pair);
    assert!(
        load.wait_all_replied(killed_at, LIMIT),
        "a client hears no more"
    );
    let more = load.replies() + 500;
    assert!(load.wait_replies(more, LIMIT), "too few replies afterwards");
    let epoch = load.epoch();
    let mut history = load.stop();
    read_all(cluster.server(), epoch, LIMIT, &mut history).expect("the last reads");
    assert!(history.breaks.is_empty(), "{:?}", history.breaks);
    let options = CheckOptions {
        lease_slack_ms: 2000,
        ..CheckOptions::default()
    };
    let verdict = check(&history, options);
    assert!(
        verdict.linearizable() && verdict.lost_writes == 0,
        "{}",
        verdict.explain()
    );
    end(pair);
}

/// Clients of a kind at a server on `port`, through one failover.
fn through_failover<T: Talk>(vm: &str, image: &Path, port: u16) {
    let mut cluster = cluster("file");
    let server = cluster.serve(port).expect("a way to the guest");
    let mut pair = pair(&cluster, vm, image, &[]);
    // Neither server says when it listens; this is the last line before it is started.
    pair.wait_ready_within("tandem: runs", LIMIT)
        .expect("it boots");
    wait_open::<T>(&pair, server);
    let clients = Clients::start::<T>(server, CLIENTS);
    clients.wait_each(REPLIES);
    kill(&mut pair);
    clients.wait_each(REPLIES);
    let broken = clients.stop();
    assert!(broken.is_empty(), "{broken:?}");
    end(pair);
}

/// Waits until the server answers.
fn wait_open<T: Talk>(pair: &Pair, server: std::net::SocketAddr) {
    let deadline = std::time::Instant::now() + LIMIT;
    loop {
        match T::open(server, u64::MAX).and_then(|mut talk| talk.ask()) {
            Ok(()) => return,
            Err(e) => {
                let late = std::time::Instant::now() > deadline;
                assert!(!late && !pair.primary.has_ended(), "no server: {e}");
            }
        }
        // A refused connection is answered at once; another try is all there is to wait on.
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn p9_memcached_keeps_what_it_acked() {
    let _machine = machine();
    let Some(image) = images::image("memcached") else {
        return;
    };
    through_failover::<Memcached>("memcached", &image, 11211);
}

#[test]
fn p1_nginx_keeps_its_connections() {
    let _machine = machine();
    let Some(image) = images::image("nginx") else {
        return;
    };
    through_failover::<Http>("nginx", &image, 80);
}

/// The guest reboots again and again. Its primary dies in its second life, early or late; the survivor brings
/// that to its end, and begins the next by itself.
#[test]
fn p9_a_linux_that_reboots_goes_on_with_it_on_the_survivor() {
    let _machine = machine();
    let Some(image) = images::redis() else { return };
    let cluster = cluster("file");
    let again = ["--append", "tandem.run=reboot,-f", "--on-reset", "restart"];
    let (runs, restarts) = ("tandem: runs reboot -f", "reboot: Restarting system");
    let mut pair = pair(&cluster, "reboot", &image, &again);
    let primary = &pair.primary;
    let line = primary.wait_line(LIMIT, |line| line.contains(restarts));
    line.expect("the first life ends");
    let lines = primary.said().len();
    let line = primary.wait_nth_line(LIMIT, lines, |_| true);
    line.expect("the second begins");
    kill(&mut pair);
    let has_run = |line: &str| line.contains(runs);
    let restarted = |line: &str| line.contains(restarts);
    let dead = pair.primary.said();
    let lives = dead.iter().filter(|line| restarted(line)).count();
    assert_eq!(lives, 1, "it died in its second life: {dead:?}");
    let line = pair.backup.wait_nth_line(LIMIT, 1, has_run);
    line.unwrap_or_else(|e| panic!("{e} {:?} {:?}", pair.backup.said(), pair.events()));
    let lines = pair.backup.said();
    let mut second = lines.iter().skip_while(|line| !has_run(line)).skip(1);
    let ended = second.find(|line| has_run(line) || restarted(line));
    assert!(ended.is_some_and(|line| restarted(line)), "{lines:?}");
    end(pair);
}
