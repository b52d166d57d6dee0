//! Failover of the guests that are no key-value server (P1, P9): a connection to `echo` stays open with
//! every byte in its place, and what `clock` and `counter` print goes on as if nothing had happened.
//! Primaries are killed from outside (SIGKILL), in the middle of their work.

use super::common::{LIMIT, cluster, have_kvm, machine, os, switch_cluster, tandem};
use super::patient;
use check::rng::Rng;
use kit::cluster::{Cluster, Pair, PairOptions};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Instant;

/// Where `echo` listens.
const ECHO: u16 = 7;

fn kill(pair: &mut Pair) {
    pair.primary.kill();
    pair.primary.wait(LIMIT).expect("it is gone");
    assert!(pair.primary.was_killed(), "it ended by itself before");
}

fn connect(server: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect_timeout(&server, LIMIT).expect("the guest answers");
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.set_write_timeout(Some(LIMIT)).unwrap();
    stream
}

/// Sends bytes and reads them back over one connection; the primary is killed once `kill_after` of them
/// are back.
fn echo_through_failover(cluster: &mut Cluster, kill_after: usize) {
    let server = cluster.serve(ECHO).unwrap();
    let options = PairOptions {
        network: true,
        ..patient()
    };
    let vm = format!("echo-{kill_after}");
    let mut pair = cluster.start_pair(&vm, &os(&["echo"]), &options).unwrap();
    let ready = |line: &str| line.contains("ready");
    pair.primary.wait_line(LIMIT, ready).unwrap();
    let mut rng = Rng::new(kill_after as u64, 0);
    let bytes: Vec<u8> = (0..1 << 20).map(|_| rng.next_u64() as u8).collect();
    let mut stream = connect(server);
    let mut writer = stream.try_clone().unwrap();
    let mut back = vec![0; bytes.len()];
    std::thread::scope(|scope| {
        let writing = scope.spawn(|| writer.write_all(&bytes));
        stream.read_exact(&mut back[..kill_after]).unwrap();
        kill(&mut pair);
        stream.read_exact(&mut back[kill_after..]).unwrap();
        writing.join().unwrap().unwrap();
    });
    let wrong = back.iter().zip(&bytes).position(|(a, b)| a != b);
    assert_eq!(wrong, None, "the first byte that differs");
    pair.wait_event("backup", "live").unwrap();
    // The same connection again, and a new one.
    for mut stream in [stream, connect(server)] {
        let mut back = [0; 5];
        stream.write_all(b"still").unwrap();
        stream.read_exact(&mut back).unwrap();
        assert_eq!(&back, b"still");
    }
    pair.backup.ask_to_end();
    let status = pair.backup.wait(LIMIT).unwrap();
    assert!(status.success(), "{status}{}", pair.backup.complaint());
}

#[test]
fn p1_a_connection_to_echo_stays_open_with_every_byte_in_its_place() {
    let _machine = machine();
    if !have_kvm("echo failover") {
        return;
    }
    let mut cluster = cluster("file");
    for kill_after in [1, 100_000, 700_000] {
        echo_through_failover(&mut cluster, kill_after);
    }
}

#[test]
fn p1_a_connection_to_echo_stays_open_on_the_userspace_switch() {
    let _machine = machine();
    if !have_kvm("echo failover on the switch") {
        return;
    }
    echo_through_failover(&mut switch_cluster("file"), 300_000);
}

/// What is left of a line that two runs have in common: values that follow from time are cut out.
fn shape(line: &str) -> String {
    let timed = ["tsc=", "wall=", "first=", "last=", "checksum=", "ns="];
    let words = line.split(' ').map(|word| {
        let key = timed.iter().find(|key| word.starts_with(**key));
        key.map_or(word, |key| *key)
    });
    words.collect::<Vec<_>>().join(" ")
}

/// What an outsider saw of a console: the primary's lines, then the backup's. Those the primary printed
/// just before it died may come again, as they were (P9); so the seam is where most lines agree.
fn seen(primary: &[String], backup: &[String]) -> Vec<String> {
    let most = primary.len().min(backup.len());
    let again = (0..=most)
        .rev()
        .find(|count| primary[primary.len() - count..] == backup[..*count]);
    let again = again.expect("no lines at all agree with none");
    [primary, &backup[again..]].concat()
}

/// Runs `guest` unprotected, and then as a pair whose primary is killed when `ripe`: the two consoles
/// must say the same, but for times, and for values of `free` keys.
fn console_goes_on(
    cluster: &Cluster,
    vm: &str,
    guest: &[&str],
    free: &str,
    ripe: impl Fn(&Pair) -> bool,
) -> Vec<String> {
    let plain = |line: &String| {
        let cut = |word: &str| match word.split_once('=') {
            Some((key, _)) if key == free => format!("{key}="),
            _ => word.to_owned(),
        };
        let line = shape(line);
        line.split(' ').map(cut).collect::<Vec<_>>().join(" ")
    };
    let alone = tandem(&[&["run"], guest].concat());
    assert!(alone.status.success());
    let alone = String::from_utf8(alone.stdout).unwrap();
    let alone: Vec<String> = alone.lines().map(str::to_owned).collect();
    let mut pair = cluster.start_pair(vm, &os(guest), &patient()).unwrap();
    let begun = Instant::now();
    while !ripe(&pair) {
        assert!(begun.elapsed() < LIMIT, "{vm}: {:?}", pair.events());
        assert!(!pair.primary.has_ended(), "{vm}: {:?}", pair.events());
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    kill(&mut pair);
    let live = pair.wait_event("backup", "live");
    live.unwrap_or_else(|failure| panic!("{vm}: {failure} {:?}", pair.events()));
    let status = pair.backup.wait(LIMIT).unwrap();
    assert!(status.success(), "{status}{}", pair.backup.complaint());
    let (first, second) = (pair.primary.said(), pair.backup.said());
    let seen = seen(&first, &second);
    assert_eq!(
        seen.iter().map(plain).collect::<Vec<_>>(),
        alone.iter().map(plain).collect::<Vec<_>>(),
        "{vm}: primary {first:?}, backup {second:?}"
    );
    assert!(!second.is_empty(), "{vm}: nothing was left to say");
    seen
}

/// The value of `key` in a line.
fn value(line: &str, key: &str) -> Option<u64> {
    let word = line.split(' ').find_map(|word| word.strip_prefix(key));
    word.and_then(|value| value.parse().ok())
}

#[test]
fn p9_clock_prints_each_line_once_and_time_goes_on() {
    let _machine = machine();
    if !have_kvm("clock failover") {
        return;
    }
    let cluster = cluster("file");
    let guest = ["clock", "--arg", "reads=8000", "--arg", "rtc=80"];
    for lines in [1, 7, 33, 60] {
        let ripe = |pair: &Pair| pair.primary.said().len() >= lines;
        let seen = console_goes_on(&cluster, &format!("clock-{lines}"), &guest, "", ripe);
        assert_eq!(seen.len(), 81);
        // The guest ends with status 1 if a clock stands still or goes back; what was printed agrees.
        let times: Vec<u64> = seen.iter().filter_map(|line| value(line, "tsc=")).collect();
        assert_eq!(times.len(), 80);
        assert!(times.is_sorted_by(|a, b| a < b), "{times:?}");
        let last = seen.last().unwrap();
        assert!(value(last, "first=") < Some(times[0]), "{last}");
        assert!(value(last, "last=") > times.last().copied(), "{last}");
    }
}

/// Entries of the primary that its backup has.
fn acked(pair: &Pair) -> u64 {
    let metrics = pair.metrics();
    let line = metrics.last().map_or("{}", |line| &line.detail);
    let metrics: serde_json::Value = serde_json::from_str(line).unwrap();
    metrics["cursors"]["acked"].as_u64().unwrap_or(0)
}

/// Iterations of the counter that is killed in the middle of its work: some seconds of them.
const WORK: u64 = 1_000_000_000;

#[test]
fn p9_counter_counts_on() {
    let _machine = machine();
    if !have_kvm("counter failover") {
        return;
    }
    let cluster = cluster("file");
    // Ended by its ticks: not one is lost or counted twice ...
    let by_ticks = ["counter", "--arg", "hz=1000", "--arg", "ticks=2500"];
    let ripe = |pair: &Pair| acked(pair) > 300;
    let seen = console_goes_on(&cluster, "ticks", &by_ticks, "iterations", ripe);
    assert_eq!(value(&seen[0], "ticks="), Some(2500));
    // Guest time passes with the host's: 2500 ticks are 2.5 s and what the outage took.
    assert!(value(&seen[0], "ns=") >= Some(2_490_000_000), "{seen:?}");
    // ... and by its iterations: so many that a host ten times as fast still has most of them to do when
    // the primary dies.
    let iterations = format!("iterations={WORK}");
    let by_work = ["counter", "--arg", "hz=500", "--arg", &iterations];
    let ripe = |pair: &Pair| acked(pair) > 100;
    let seen = console_goes_on(&cluster, "work", &by_work, "ticks", ripe);
    assert_eq!(value(&seen[0], "iterations="), Some(WORK));
    assert!(value(&seen[0], "ticks=") > Some(100), "{seen:?}");
}
