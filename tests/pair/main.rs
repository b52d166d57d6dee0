//! Pairs started by hand, without a viewservice: who may begin, and what the outside can do to them.

mod asked;
#[path = "../common/mod.rs"]
mod common;
mod console;
mod disks;
mod etcd;
mod far;
mod fence;
mod metrics;
mod secret;
mod spare;
mod stopped;
mod stores;
mod unlike;
mod unreachable;

use common::{LIMIT, have_kvm, machine, os};
use kit::Line;
use kit::daemon::Daemon;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::ffi::OsString;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What the replicas of a site call their machine, if nothing else is said.
const VM: &str = "by-hand";
/// A busy host is no death, where it is not tried how soon silence is suspected.
const PATIENT: [&str; 2] = ["--suspect-ms", "5000"];
/// Time between two looks at what a replica has noted.
const LOOK: Duration = Duration::from_millis(2);

/// A folder with an arbiter in it.
struct Site {
    folder: tempfile::TempDir,
    started: std::cell::Cell<u32>,
    /// The arbiter's process, and where it listens, if it is not the folder.
    server: Option<(Daemon, String)>,
    /// What replicas are told from now on.
    arbiter: std::cell::RefCell<String>,
    /// How soon they suspect silence, unless that is said.
    patience: &'static [&'static str],
}

impl Site {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let flags = folder.path().join("flags");
        std::fs::create_dir(&flags).unwrap();
        Self {
            arbiter: format!("file:{}", flags.display()).into(),
            folder,
            started: 0.into(),
            server: None,
            patience: &PATIENT,
        }
    }

    /// The same, whose replicas suspect silence as soon as they do by default.
    fn that_suspects_soon(self) -> Self {
        Self {
            patience: &[],
            ..self
        }
    }

    /// The same, with an arbiter that is a process.
    fn with_server() -> Self {
        let mut site = Self::new();
        site.start_arbiter();
        site
    }

    /// Starts the arbiter, where it was before if it was.
    fn start_arbiter(&mut self) {
        self.start_arbiter_as(&[]);
    }

    fn start_arbiter_as(&mut self, more: &[&str]) {
        let at = self.server.take().map(|(_, at)| at);
        let mut args = os(&[
            "arbiter",
            "--listen",
            at.as_deref().unwrap_or("127.0.0.1:0"),
        ]);
        args.extend(["--store".into(), self.path("store").into()]);
        args.extend(os(more));
        let daemon = Daemon::start("arbiter", &args, self.path("arbiter.err")).unwrap();
        let line = daemon
            .wait_line(LIMIT, |line| line.starts_with("listening on "))
            .unwrap();
        let at = line.trim_start_matches("listening on ").to_owned();
        *self.arbiter.borrow_mut() = format!("tcp:{at}");
        self.server = Some((daemon, at));
    }

    /// Kills it (SIGKILL).
    fn kill_arbiter(&mut self) {
        let (daemon, _) = self.server.as_mut().unwrap();
        die(daemon);
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A number that nobody has been given yet.
    fn number(&self) -> u32 {
        self.started.replace(self.started.get() + 1)
    }

    fn common(&self, vm: &str, events: &Path) -> Vec<OsString> {
        let mut args = os(&["--vm", vm, "--arbiter"]);
        args.push(self.arbiter.borrow().as_str().into());
        args.push("--events".into());
        args.push(events.into());
        args.push("--metrics".into());
        args.push(events.with_extension("metrics").into());
        args
    }

    /// A backup that listens, and where.
    fn backup(&self, more: &[&str]) -> (Replica, String) {
        let replica = self.start(&["backup", "--listen", "127.0.0.1:0"], more);
        let address = replica.wait_event("listening").detail;
        (replica, address)
    }

    fn primary(&self, guest: &[&str], backup: &str) -> Replica {
        self.start(&[&["primary"], guest, &["--backup", backup]].concat(), &[])
    }

    fn start(&self, words: &[&str], more: &[&str]) -> Replica {
        self.start_as(VM, words, more)
    }

    /// Starts a replica of the machine `vm`.
    fn start_as(&self, vm: &str, words: &[&str], more: &[&str]) -> Replica {
        let number = self.number();
        let events = self.path(&format!("{number}.events"));
        let mut args = os(words);
        args.extend(self.common(vm, &events));
        args.extend(os(more));
        if !args.iter().any(|arg| arg == PATIENT[0]) {
            args.extend(os(self.patience));
        }
        let errors = self.path(&format!("{number}.err"));
        let daemon = Daemon::start(words[0], &args, errors.clone()).unwrap();
        Replica {
            daemon,
            events,
            errors,
        }
    }
}

struct Replica {
    daemon: Daemon,
    events: PathBuf,
    errors: PathBuf,
}

impl Replica {
    fn events(&self) -> Vec<Line> {
        Line::all_in(&self.events)
    }

    /// Waits until it has noted this event.
    #[track_caller]
    fn wait_event(&self, event: &str) -> Line {
        self.wait_nth(event, 1)
    }

    /// Waits until it has noted this event for the n-th time.
    #[track_caller]
    fn wait_nth(&self, event: &str, nth: usize) -> Line {
        let begun = Instant::now();
        loop {
            // It may note something and end right then.
            let over = begun.elapsed() > LIMIT || self.daemon.has_ended();
            let events = self.events();
            let mut such = events.iter().filter(|line| line.event == event);
            if let Some(line) = such.nth(nth - 1) {
                return line.clone();
            }
            assert!(
                !over,
                "no '{event}' ({nth}) in {events:?}{}",
                self.daemon.complaint()
            );
            std::thread::sleep(LOOK);
        }
    }

    /// How often it has noted this event.
    fn count(&self, event: &str) -> usize {
        let events = self.events();
        events.iter().filter(|line| line.event == event).count()
    }

    /// All it has said on stderr.
    fn said(&self) -> String {
        std::fs::read_to_string(&self.errors).unwrap()
    }

    /// Waits until it has said this on stderr.
    #[track_caller]
    fn wait_said(&self, words: &str) {
        let begun = Instant::now();
        while !self.said().contains(words) {
            assert!(begun.elapsed() < LIMIT, "no '{words}' in: {}", self.said());
            std::thread::sleep(LOOK);
        }
    }

    #[track_caller]
    fn ends_well(&mut self) {
        let status = self.daemon.wait(LIMIT).unwrap();
        assert!(status.success(), "{status}{}", self.daemon.complaint());
    }

    /// It is refused; with which words.
    #[track_caller]
    fn is_refused(&mut self) -> String {
        let status = self.daemon.wait(LIMIT).unwrap();
        assert_eq!(status.code(), Some(1));
        self.daemon.complaint()
    }
}

/// Kills a process (SIGKILL), and waits until it is gone.
fn die(daemon: &mut Daemon) {
    daemon.kill();
    daemon.wait(LIMIT).unwrap();
}

/// Ends a replica that leads alone, and with it the machine.
#[track_caller]
fn stop(mut replica: Replica) {
    replica.daemon.ask_to_end();
    replica.ends_well();
}

/// A backup that is called and says nothing.
struct Mute(TcpListener);

impl Mute {
    fn new() -> (Self, String) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap().to_string();
        (Self(listener), at)
    }

    /// The call of whoever calls next.
    #[track_caller]
    fn called(&self) -> TcpStream {
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        let limit = PollTimeout::try_from(LIMIT).unwrap();
        assert_eq!(poll(&mut fds, limit), Ok(1), "nobody called");
        self.0.accept().unwrap().0
    }
}

/// Runs for ever, as far as a test is concerned, on any host.
const GUEST: [&str; 7] = [
    "counter",
    "--arg",
    "hz=100",
    "--arg",
    "ticks=1000000",
    "--engine",
    "soft",
];
/// Runs for ever, as far as a test is concerned.
const LONG: [&str; 5] = ["counter", "--arg", "hz=100", "--arg", "ticks=1000000"];
/// Is over at once.
const SHORT: [&str; 5] = ["counter", "--arg", "hz=1000", "--arg", "ticks=20"];

#[test]
fn a_machine_is_not_begun_twice() {
    let _machine = machine();
    if !have_kvm("two primaries") {
        return;
    }
    let site = Site::new();
    let (mut backup, at) = site.backup(&[]);
    let mut first = site.primary(&LONG, &at);
    assert_eq!(first.wait_event("begins").detail, "view 1");
    first.wait_event("primary");
    let (mut other_backup, other_at) = site.backup(&[]);
    let why = site.primary(&LONG, &other_at).is_refused();
    assert!(why.contains("may be running in view 1"), "{why}");
    assert!(why.contains("--view 2"), "{why}");
    // The one that was first has heard nothing of it, and neither has the other's backup.
    first.daemon.ask_to_end();
    first.ends_well();
    backup.ends_well();
    // Ended in an orderly way it may begin again, with the very backup that waits.
    let mut second = site.primary(&SHORT, &other_at);
    assert_eq!(second.wait_event("begins").detail, "view 3");
    second.ends_well();
    other_backup.ends_well();
}

#[test]
fn a_pair_that_died_begins_again_when_the_operator_vouches_for_it() {
    let _machine = machine();
    if !have_kvm("a new view by hand") {
        return;
    }
    let site = Site::new();
    let (mut backup, at) = site.backup(&[]);
    let mut primary = site.primary(&LONG, &at);
    primary.wait_event("primary");
    for replica in [&mut backup, &mut primary] {
        replica.daemon.stand_still().unwrap();
    }
    for replica in [&mut backup, &mut primary] {
        die(&mut replica.daemon);
    }
    let (mut backup, at) = site.backup(&[]);
    let why = site.primary(&SHORT, &at).is_refused();
    assert!(why.contains("--view 2"), "{why}");
    let mut args = SHORT.to_vec();
    args.extend(["--view", "2"]);
    let mut primary = site.primary(&args, &at);
    assert_eq!(primary.wait_event("begins").detail, "view 2");
    primary.ends_well();
    backup.ends_well();
}

#[test]
fn a_machine_that_failed_over_begins_again_after_its_end() {
    let _machine = machine();
    if !have_kvm("a start after a failover") {
        return;
    }
    let site = Site::new();
    let (mut backup, at) = site.backup(&[]);
    let mut primary = site.primary(&LONG, &at);
    primary.wait_event("primary");
    primary.daemon.kill();
    backup.wait_event("live");
    let (mut next_backup, at) = site.backup(&[]);
    let why = site.primary(&SHORT, &at).is_refused();
    assert!(why.contains("may be running in view 2"), "{why}");
    backup.daemon.ask_to_end();
    backup.ends_well();
    let mut next = site.primary(&SHORT, &at);
    assert_eq!(next.wait_event("begins").detail, "view 4");
    next.ends_well();
    next_backup.ends_well();
}

#[test]
fn silent_connections_keep_no_primary_from_its_backup() {
    let _machine = machine();
    if !have_kvm("silent connections") {
        return;
    }
    let site = Site::new();
    let (mut backup, at) = site.backup(&[]);
    let connect = || std::net::TcpStream::connect(at.as_str()).unwrap();
    let silent = [connect(), connect(), connect()];
    let begun = Instant::now();
    let mut primary = site.primary(&SHORT, &at);
    primary.ends_well();
    backup.ends_well();
    // Each was waited for, for 20 s, once.
    assert!(begun.elapsed() < Duration::from_secs(15));
    drop(silent);
}

#[test]
fn a_backup_somebody_is_connected_to_ends_when_asked() {
    let _machine = machine();
    let site = Site::new();
    let (mut backup, at) = site.backup(&[]);
    let silent = std::net::TcpStream::connect(at.as_str()).unwrap();
    let begun = Instant::now();
    backup.daemon.ask_to_end();
    let why = backup.is_refused();
    assert!(why.contains("stopped before a primary came"), "{why}");
    assert!(begun.elapsed() < Duration::from_secs(10));
    drop(silent);
}
