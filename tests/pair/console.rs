//! A replica whose stdout is a pipe nobody reads.

use super::common::{LIMIT, PROGRAM, have_kvm, machine};
use super::{Replica, Site};
use check::resp::{Client, Reply};
use kit::Line;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use vmm::backends::switch::{Forward, Switch};

/// A guest that prints more than a replica holds for a reader.
const WORDY: [&str; 7] = [
    "clock",
    "--arg",
    "reads=500",
    "--arg",
    "rtc=500",
    "--arg",
    "hz=10",
];

/// A pipe that takes nothing any more, and how much it has taken.
fn full_pipe() -> (std::fs::File, OwnedFd, usize) {
    let (reader, writer) = nix::unistd::pipe().unwrap();
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    let mut taken = 0;
    while let Ok(count) = nix::unistd::write(&writer, &[b'.'; 4096]) {
        taken += count;
    }
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
    (reader.into(), writer, taken)
}

/// A primary whose console nobody reads. Killed on drop.
struct Stalled {
    child: Child,
    console: std::fs::File,
    taken: usize,
    replica: std::path::PathBuf,
}

impl Stalled {
    fn start(site: &Site, words: &[&str], backup: &str) -> Self {
        let events = site.path("stalled.events");
        let (console, writer, taken) = full_pipe();
        let child = Command::new(PROGRAM)
            .arg("primary")
            .args(words)
            .args(["--backup", backup])
            .args(site.common(super::VM, &events))
            .stdout(Stdio::from(writer))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self {
            child,
            console,
            taken,
            replica: events,
        }
    }

    fn events(&self) -> Vec<Line> {
        Line::all_in(&self.replica)
    }

    /// The last counters it noted; null before that.
    fn metrics(&self) -> serde_json::Value {
        let metrics = Line::all_in(&self.replica.with_extension("metrics"));
        metrics.last().map_or(serde_json::Value::Null, |line| {
            serde_json::from_str(&line.detail).unwrap()
        })
    }

    /// Waits until its counters are as wanted.
    #[track_caller]
    fn wait_metrics(&self, wanted: impl Fn(&serde_json::Value) -> bool) {
        let begun = Instant::now();
        while !wanted(&self.metrics()) {
            assert!(begun.elapsed() < LIMIT, "{}", self.metrics());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until the console holds at least `bytes` for its reader.
    #[track_caller]
    fn wait_held(&self, bytes: u64) {
        self.wait_metrics(|metrics| metrics["console_held"].as_u64() >= Some(bytes));
    }

    #[track_caller]
    fn is_protected(&self, backup: &Replica) {
        let seen = [self.events(), backup.events()].concat();
        let broken = |event: &str| ["link_end", "hold", "flag_won", "failed"].contains(&event);
        assert!(!seen.iter().any(|line| broken(&line.event)), "{seen:?}");
    }

    fn ask_to_end(&self) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    }

    /// What the guest printed, once its reader comes; to the process's end.
    fn read_all(&mut self) -> String {
        let mut bytes = Vec::new();
        self.console.read_to_end(&mut bytes).unwrap();
        String::from_utf8(bytes.split_off(self.taken)).unwrap()
    }
}

impl Drop for Stalled {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn clients_are_served_though_nobody_reads_the_console() {
    let _machine = machine();
    if !have_kvm("a stalled console") {
        return;
    }
    let site = Site::new();
    let socket = site.path("switch");
    let _switch = Switch::start(&socket).unwrap();
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let server = listener.local_addr().unwrap();
    drop(listener);
    let guest = SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, 2), 6379);
    let _forward = Forward::start(&socket, server, guest).unwrap();
    let net = format!("switch:{}", socket.display());
    let (mut backup, at) = site.backup(&["--net", &net]);
    let mut primary = Stalled::start(&site, &["kv", "--net", &net], &at);
    primary.wait_held(1);
    let mut client = Client::connect(server, LIMIT, LIMIT).unwrap();
    for number in 1..=100 {
        let reply = client.command(&[b"INCR", b"n"]).unwrap();
        assert_eq!(reply, Reply::Int(number));
    }
    primary.is_protected(&backup);
    primary.ask_to_end();
    assert!(primary.read_all().contains("ready"), "held, not lost");
    assert!(primary.child.wait().unwrap().success());
    backup.ends_well();
}

#[test]
fn a_guest_that_prints_too_much_waits_and_its_pair_stays() {
    let _machine = machine();
    if !have_kvm("a console that is full") {
        return;
    }
    let site = Site::new();
    let (mut backup, at) = site.backup(&["--suspect-ms", "300"]);
    let mut primary = Stalled::start(&site, &WORDY, &at);
    primary.wait_held(16 << 10);
    // Three times the silence that makes a replica suspicious.
    std::thread::sleep(Duration::from_millis(900));
    primary.is_protected(&backup);
    let said = primary.read_all();
    has_all_reads(&said, 500);
    assert!(primary.child.wait().unwrap().success());
    backup.ends_well();
}

#[test]
fn a_guest_that_waits_for_a_reader_ends_when_asked() {
    let _machine = machine();
    if !have_kvm("the end of a console that is full") {
        return;
    }
    let site = Site::new();
    let (mut backup, at) = site.backup(&[]);
    let mut primary = Stalled::start(&site, &WORDY, &at);
    primary.wait_held(16 << 10);
    primary.ask_to_end();
    backup.ends_well();
    assert!(primary.child.wait().unwrap().success());
}

/// `count` lines of the guest's, each there and in its place.
#[track_caller]
fn has_all_reads(said: &str, count: usize) {
    let reads: Vec<&str> = said.lines().filter(|line| line.contains("tsc=")).collect();
    assert_eq!(reads.len(), count, "nothing is lost: {said}");
    for (number, line) in reads.iter().enumerate() {
        let begins = format!("clock: read {number}: ");
        assert!(line.starts_with(&begins), "in order: {number}: {line}");
    }
}

/// Kills a primary whose lines nobody has read; its backup has to print the guest's `count` reads.
fn all_is_printed_by_the_survivor(mut primary: Stalled, mut backup: Replica, count: usize) {
    primary.child.kill().unwrap();
    primary.child.wait().unwrap();
    backup.wait_event("flag_won");
    backup.ends_well();
    assert_eq!(primary.read_all(), "", "nobody read, and nothing was cut");
    has_all_reads(&backup.daemon.said().join("\n"), count);
}

/// What a replica's process holds for its reader dies with it, though its guest has ended.
#[test]
fn what_a_killed_primary_held_for_its_reader_is_printed_by_the_survivor() {
    let _machine = machine();
    if !have_kvm("a stalled console's failover") {
        return;
    }
    let site = Site::new();
    let (backup, at) = site.backup(&[]);
    let words = ["clock", "--arg", "reads=50", "--arg", "rtc=50"];
    // It waits for a reader before it says that this was the end, and for long enough to be killed.
    let patient = [&words[..], &["--last-words-ms", "1000000"]].concat();
    let primary = Stalled::start(&site, &patient, &at);
    backup.wait_event("guest_ended");
    all_is_printed_by_the_survivor(primary, backup, 50);
}

#[test]
fn what_a_guest_waits_to_print_outlives_its_primary() {
    let _machine = machine();
    if !have_kvm("the failover of a console that is full") {
        return;
    }
    let site = Site::new();
    let (backup, at) = site.backup(&[]);
    let primary = Stalled::start(&site, &WORDY, &at);
    primary.wait_held(16 << 10);
    // Until heartbeats have told the backup of all that has left.
    let sent = |metrics: &serde_json::Value| metrics["link"]["frames_sent"].as_u64().unwrap();
    let before = sent(&primary.metrics());
    primary.wait_metrics(|metrics| sent(metrics) >= before + 5);
    all_is_printed_by_the_survivor(primary, backup, 500);
}
