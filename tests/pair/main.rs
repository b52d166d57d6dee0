//! Pairs started by hand, without a viewservice: who may begin, and what the outside can do to them.

#[path = "../common/mod.rs"]
mod common;
mod console;
mod far;
mod fence;
mod stopped;
mod stores;
mod unlike;
mod unreachable;

use common::{LIMIT, have_kvm, machine, os};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tandem::demo::daemon::Daemon;
use tandem::node::replica::Line;

/// A folder with an arbiter in it.
struct Site {
    folder: tempfile::TempDir,
    started: std::cell::Cell<u32>,
    /// The arbiter's process, and where it listens, if it is not the folder.
    server: Option<(Daemon, String)>,
    /// What replicas are told from now on.
    arbiter: std::cell::RefCell<String>,
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
        let at = self.server.take().map(|(_, at)| at);
        let mut args = os(&[
            "arbiter",
            "--listen",
            at.as_deref().unwrap_or("127.0.0.1:0"),
        ]);
        args.extend(["--store".into(), self.path("store").into()]);
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
        daemon.kill();
        daemon.wait(LIMIT).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn common(&self, events: &Path) -> Vec<OsString> {
        let mut args = os(&["--vm", "by-hand", "--arbiter"]);
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
        let number = self.started.get();
        self.started.set(number + 1);
        let events = self.path(&format!("{number}.events"));
        let mut args = os(words);
        args.extend(self.common(&events));
        args.extend(os(more));
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
    fn said_on_stderr(&self) -> String {
        std::fs::read_to_string(&self.errors).unwrap()
    }

    fn events(&self) -> Vec<Line> {
        Line::all_in(&self.events)
    }

    #[track_caller]
    fn wait_event(&self, event: &str) -> Line {
        let begun = Instant::now();
        loop {
            if let Some(line) = self.events().into_iter().find(|line| line.event == event) {
                return line;
            }
            let over = begun.elapsed() > LIMIT || self.daemon.has_ended();
            assert!(
                !over || self.events().iter().any(|line| line.event == event),
                "no '{event}' in {:?}{}",
                self.events(),
                self.daemon.complaint()
            );
            std::thread::sleep(Duration::from_millis(2));
        }
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
            std::thread::sleep(Duration::from_millis(2));
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
        replica.daemon.signal(nix::sys::signal::Signal::SIGSTOP);
    }
    for replica in [&mut backup, &mut primary] {
        replica.daemon.kill();
        replica.daemon.wait(LIMIT).unwrap();
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
