//! A replica whose stdout is a pipe nobody reads.

use super::common::{LIMIT, PROGRAM, have_kvm, machine};
use super::{Replica, Site};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tandem::load::resp::{Client, Reply};
use tandem::node::replica::Line;
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
            .args(site.common(&events))
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
        let text = std::fs::read_to_string(&self.replica).unwrap_or_default();
        text.lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }

    /// Waits until the console holds at least `bytes` for its reader.
    fn wait_held(&self, bytes: u64) {
        let begun = Instant::now();
        let held = |line: &Line| {
            let metrics: serde_json::Value = serde_json::from_str(&line.detail).unwrap_or_default();
            metrics["console_held"].as_u64().unwrap_or(0)
        };
        while !self
            .events()
            .iter()
            .any(|line| line.event == "metrics" && held(line) >= bytes)
        {
            assert!(begun.elapsed() < LIMIT, "{:?}", self.events().last());
            std::thread::sleep(Duration::from_millis(5));
        }
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
    let reads: Vec<&str> = said.lines().filter(|line| line.contains("tsc=")).collect();
    assert_eq!(reads.len(), 500, "nothing is lost");
    for (number, line) in reads.iter().enumerate() {
        assert!(
            line.starts_with(&format!("clock: read {number}: ")),
            "in order: {line}"
        );
    }
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
fn has_all_reads(said: &[String], count: usize) {
    let reads: Vec<&String> = said.iter().filter(|line| line.contains("tsc=")).collect();
    assert_eq!(reads.len(), count, "{said:?}");
    for (number, line) in reads.iter().enumerate() {
        let begins = format!("clock: read {number}: ");
        assert!(line.starts_with(&begins), "{number}: {line}");
    }
}

/// What a replica's process holds for its reader dies with it, though its guest has ended.
#[test]
fn what_a_killed_primary_held_for_its_reader_is_printed_by_the_survivor() {
    let _machine = machine();
    if !have_kvm("a stalled console's failover") {
        return;
    }
    // The primary waits a second for its reader before it says that this was the end. On a host that takes
    // longer to run this thread there is nothing to be seen; a primary that does not wait fails every time.
    for _ in 0..5 {
        let site = Site::new();
        let (mut backup, at) = site.backup(&[]);
        let words = ["clock", "--arg", "reads=50", "--arg", "rtc=50"];
        let mut primary = Stalled::start(&site, &words, &at);
        backup.wait_event("guest_ended");
        primary.child.kill().unwrap();
        primary.child.wait().unwrap();
        backup.ends_well();
        if !backup.events().iter().any(|line| line.event == "flag_won") {
            continue;
        }
        assert_eq!(primary.read_all(), "", "nobody read, and nothing was cut");
        has_all_reads(&backup.daemon.said(), 50);
        return;
    }
    panic!("the primary never waited for its reader");
}

#[test]
fn what_a_guest_waits_to_print_outlives_its_primary() {
    let _machine = machine();
    if !have_kvm("the failover of a console that is full") {
        return;
    }
    let site = Site::new();
    let (mut backup, at) = site.backup(&[]);
    let mut primary = Stalled::start(&site, &WORDY, &at);
    primary.wait_held(16 << 10);
    // Until heartbeats have told the backup of all that has left.
    let sent = |primary: &Stalled| {
        let told = primary.events();
        let metrics = told.iter().rev().find(|line| line.event == "metrics");
        let detail = metrics.map_or("{}", |line| &line.detail);
        let metrics: serde_json::Value = serde_json::from_str(detail).unwrap();
        metrics["link"]["frames_sent"].as_u64().unwrap_or(0)
    };
    let (begun, before) = (Instant::now(), sent(&primary));
    while sent(&primary) < before + 5 {
        assert!(begun.elapsed() < LIMIT, "no heartbeat");
        std::thread::sleep(Duration::from_millis(5));
    }
    primary.child.kill().unwrap();
    primary.child.wait().unwrap();
    backup.wait_event("live");
    backup.ends_well();
    assert_eq!(primary.read_all(), "", "nobody read, and nothing was cut");
    has_all_reads(&backup.daemon.said(), 500);
}
