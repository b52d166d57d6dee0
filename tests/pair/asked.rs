//! A machine that is protected anew, moved and left to its backup by command, for several lives in a row; and what
//! those are told whose wish cannot be fulfilled.

use super::common::{LIMIT, PROGRAM, assert_one_line, have_kvm, limit, machine, tandem, text};
use super::spare::Served;
use super::{GUEST, Mute, Replica, Site, VM, die, stop};
use kit::daemon::Daemon;
use nix::sys::signal::Signal;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

/// Callers that say nothing: more than a control socket serves at a time, and more than wait there to be served.
const SILENT: usize = 40;
/// A caller that says nothing is hung up on after 5 s. Whoever is served before that has waited for none.
const BEFORE_THE_SILENT_LEAVE: Duration = Duration::from_secs(4);

/// Replicas on one host, with a control folder.
struct Host<'a> {
    site: &'a Site,
    folder: PathBuf,
    /// What its replicas are told besides.
    more: Vec<String>,
}

impl<'a> Host<'a> {
    fn new(site: &'a Site) -> Self {
        Self::with(site, "control", &[])
    }

    fn with(site: &'a Site, folder: &str, more: &[&str]) -> Self {
        Self {
            site,
            folder: site.path(folder),
            more: more.iter().map(ToString::to_string).collect(),
        }
    }

    /// A backup that listens, and where.
    fn backup(&self) -> (Replica, String) {
        self.backup_with(&[])
    }

    fn backup_with(&self, more: &[&str]) -> (Replica, String) {
        let words = ["backup", "--listen", "127.0.0.1:0", "--engine", "soft"];
        let replica = self.start(&words, more);
        let address = replica.wait_event("listening").detail;
        (replica, address)
    }

    fn primary(&self, backup: &str, more: &[&str]) -> Replica {
        let words = [&["primary"], &GUEST[..], &["--backup", backup]].concat();
        self.start(&words, more)
    }

    fn start(&self, words: &[&str], more: &[&str]) -> Replica {
        let mut args = vec!["--control", text(&self.folder)];
        args.extend(self.more.iter().map(String::as_str));
        args.extend(more);
        self.site.start(words, &args)
    }

    /// A pair whose guest runs, primary first.
    fn pair(&self) -> (Replica, Replica) {
        let (backup, at) = self.backup();
        let primary = self.primary(&at, &[]);
        primary.wait_event("primary");
        backup.wait_event("backup");
        (primary, backup)
    }

    /// A machine that runs alone, in view 2.
    fn survivor(&self) -> Replica {
        let (mut primary, backup) = self.pair();
        die(&mut primary.daemon);
        backup.wait_event("live");
        backup
    }

    /// The words of a command.
    fn words<'w>(&'w self, words: &[&'w str]) -> Vec<&'w str> {
        [words, &["--control", text(&self.folder)]].concat()
    }

    /// Runs a command to its end.
    #[track_caller]
    fn ask(&self, words: &[&str]) -> Output {
        self.begin(words).output()
    }

    /// What a command says that does what it was to.
    #[track_caller]
    fn done(&self, words: &[&str]) -> String {
        let output = self.ask(words);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{words:?}: {errors}");
        assert_eq!(errors, "", "{words:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// A command fails, with these words.
    #[track_caller]
    fn refused(&self, words: &[&str], why: &[&str]) {
        let output = self.ask(words);
        assert_one_line(&output, 1, why);
        assert!(output.stdout.is_empty());
    }

    /// Starts a command.
    fn begin(&self, words: &[&str]) -> Asking {
        let errors = self.site.path(&format!("{}.asking", self.site.number()));
        let daemon = Daemon::start(words[0], self.words(words), errors.clone()).unwrap();
        Asking { daemon, errors }
    }

    fn socket_of(&self, replica: &Replica) -> PathBuf {
        self.folder
            .join(format!("{VM}.{}.sock", replica.daemon.pid()))
    }

    fn files(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(&self.folder).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    }
}

/// A command that was started.
struct Asking {
    daemon: Daemon,
    errors: PathBuf,
}

impl Asking {
    /// All there is to it when it has ended.
    #[track_caller]
    fn output(mut self) -> Output {
        let status = self.daemon.wait(LIMIT).unwrap();
        let said = self.daemon.said();
        let lines = said.iter().map(|line| format!("{line}\n"));
        Output {
            status,
            stdout: lines.collect::<String>().into_bytes(),
            stderr: std::fs::read(&self.errors).unwrap(),
        }
    }

    /// It fails, with these words.
    #[track_caller]
    fn fails(self, why: &[&str]) {
        assert_one_line(&self.output(), 1, why);
    }
}

#[test]
fn a_machine_lives_on_by_command_from_host_to_host() {
    let _machine = machine();
    let site = Site::new();
    let host = Host::new(&site);
    let (mut leads, mut follows) = host.pair();
    for life in 1..=3 {
        let left = host.socket_of(&leads);
        die(&mut leads.daemon);
        assert!(left.exists(), "whoever is killed tidies nothing");
        follows.wait_event("live");
        let (next, at) = host.backup();
        assert!(!left.exists(), "the next replica does it");
        let said = host.done(&["protect", VM, "--backup", &at]);
        let view = 2 * life + 1;
        assert_eq!(
            said,
            format!("'{VM}' is protected, view {view}: backup at {at}\n")
        );
        let noted = follows.wait_event("protected").detail;
        assert!(noted.starts_with(&format!("view {view}")), "{noted}");
        next.wait_event("welcomed");
        (leads, follows) = (follows, next);
    }
    // In view 7 it is a pair. Its primary leaves.
    let said = host.done(&["failover", VM, "--leave"]);
    assert!(
        said.starts_with(&format!("'{VM}' is left to its backup at 127.0.0.1:")),
        "{said}"
    );
    assert!(said.ends_with(", view 8\n"), "{said}");
    leads.ends_well();
    follows.wait_event("live");
    let (next, at) = host.backup();
    let said = host.done(&["move", VM, &at]);
    assert_eq!(
        said,
        format!("'{VM}' has moved, view 10: it runs at {at}\n")
    );
    follows.ends_well();
    next.wait_event("live");
    assert_eq!(next.wait_event("solo").detail, "view 10");
    assert_eq!(host.files(), [host.socket_of(&next)]);
    stop(next);
    assert!(host.files().is_empty());
}

#[test]
fn what_came_of_it_is_told_as_json() {
    let _machine = machine();
    let site = Site::new();
    let host = Host::new(&site);
    let mut leads = host.survivor();
    let json = |words: &[&str]| -> serde_json::Value {
        serde_json::from_str(&host.done(&[words, &["--json"]].concat())).unwrap()
    };
    let (mut next, at) = host.backup();
    assert_eq!(
        json(&["protect", VM, "--backup", &at]),
        serde_json::json!({"vm": VM, "result": "protected", "view": 3, "backup": at})
    );
    assert_eq!(
        json(&["failover", VM, "--leave"]),
        serde_json::json!({"vm": VM, "result": "failed_over", "view": 4, "to": at})
    );
    leads.ends_well();
    next.wait_event("live");
    // A host goes by its name, too.
    let (last, at) = host.backup();
    let named = at.replace("127.0.0.1", "localhost");
    assert_eq!(
        json(&["move", VM, &named]),
        serde_json::json!({"vm": VM, "result": "moved", "view": 6, "to": named})
    );
    next.ends_well();
    last.wait_event("live");
    stop(last);
}

#[test]
fn a_wish_that_cannot_be_fulfilled_is_refused_in_one_line() {
    let _machine = machine();
    let site = Site::new();
    let host = Host::new(&site);
    // Nobody listens there any more.
    let nobody = Mute::new().1;
    let protect = ["protect", VM, "--backup", &nobody];
    host.refused(&protect, &["control folder", text(&host.folder)]);
    let (backup, at) = host.backup();
    host.refused(
        &["protect", "web", "--backup", &nobody],
        &["no replica of 'web' on this host", text(&host.folder)],
    );
    host.refused(&["failover", VM], &["no replica of 'by-hand'", "leads it"]);
    let elsewhere = Host::with(&site, "elsewhere", &[]);
    let mut primary = elsewhere.primary(&at, &[]);
    primary.wait_event("primary");
    backup.wait_event("backup");
    // On the backup's host.
    host.refused(&["failover", VM], &["is its backup"]);
    elsewhere.refused(&protect, &["has a backup already"]);
    elsewhere.refused(
        &["move", VM, &nobody],
        &["was not moved", "has a backup already"],
    );
    die(&mut primary.daemon);
    backup.wait_event("live");
    host.refused(&["failover", VM], &["runs alone"]);
    host.refused(&protect, &["cannot reach the backup", &nobody]);
    host.refused(
        &["move", VM, "nowhere.invalid:7800"],
        &["nowhere.invalid:7800", "not found"],
    );
    // One that knows another machine only.
    let words = ["backup", "--listen", "127.0.0.1:0", "--engine", "soft"];
    let control = ["--control", text(&host.folder)];
    let mut other = site.start_as("other", &words, &control);
    let at = other.wait_event("listening").detail;
    host.refused(
        &["protect", VM, "--backup", &at],
        &["has got no new backup", "for 'other', not for 'by-hand'"],
    );
    die(&mut other.daemon);
    // One whose host has no room for the machine's 64 MiB.
    let (mut small, at) = host.backup();
    let has = std::fs::read_to_string(format!("/proc/{}/statm", small.daemon.pid())).unwrap();
    let pages: u64 = has.split(' ').next().unwrap().parse().unwrap();
    limit(
        small.daemon.pid(),
        libc::RLIMIT_AS,
        pages * 4096 + (32 << 20),
    );
    let protect = ["protect", VM, "--backup", &at];
    host.refused(
        &protect,
        &["has got no new backup", "Cannot allocate memory"],
    );
    die(&mut small.daemon);
    // It is none the worse for all that.
    let (next, at) = host.backup();
    host.done(&["protect", VM, "--backup", &at]);
    next.wait_event("welcomed");
    stop(backup);
    let mut next = next;
    next.ends_well();
}

/// A guest that counts instructions, as KVM does not without a counter.
#[test]
fn an_engine_that_cannot_follow_is_no_backup() {
    let _machine = machine();
    if !have_kvm("a backup whose engine cannot follow") {
        return;
    }
    let site = Site::new();
    let host = Host::with(&site, "control", &[]);
    let (backup, at) = host.backup();
    let mut primary = host.start(
        &[
            &["primary"],
            &GUEST[..],
            &["--clock", "instructions", "--backup", &at],
        ]
        .concat(),
        &[],
    );
    primary.wait_event("primary");
    die(&mut primary.daemon);
    backup.wait_event("live");
    let words = ["backup", "--listen", "127.0.0.1:0", "--engine", "kvm"];
    let mut other = host.start(&words, &[]);
    let at = other.wait_event("listening").detail;
    host.refused(
        &["protect", VM, "--backup", &at],
        &["has got no new backup"],
    );
    assert_eq!(backup.count("join_failed"), 1);
    die(&mut other.daemon);
    stop(backup);
}

#[test]
fn a_machine_is_given_to_one_backup_at_a_time_and_whoever_asked_may_leave() {
    let _machine = machine();
    let site = Site::new();
    let host = Host::new(&site);
    let mut leads = host.survivor();
    let (mute, at) = Mute::new();
    let asking = host.begin(&["protect", VM, "--backup", &at]);
    leads.wait_event("joining");
    let called = mute.called();
    host.refused(
        &["protect", VM, "--backup", "127.0.0.1:1"],
        &["is being given to", &at],
    );
    drop((called, mute));
    asking.fails(&["has got no new backup", "greeting"]);
    // Whoever asked is stopped; the machine goes on as if it had waited.
    let (mute, at) = Mute::new();
    let asking = host.begin(&["move", VM, &at]);
    leads.wait_nth("joining", 2);
    let called = mute.called();
    asking.daemon.signal(Signal::SIGINT);
    assert!(!asking.output().status.success());
    drop((called, mute));
    leads.wait_nth("join_failed", 3);
    let (next, at) = host.backup();
    host.done(&["protect", VM, "--backup", &at]);
    next.wait_event("welcomed");
    host.done(&["failover", VM, "--leave"]);
    leads.ends_well();
    next.wait_event("live");
    stop(next);
}

#[test]
fn a_replica_that_dies_while_it_is_asked_is_told_of() {
    let _machine = machine();
    let site = Site::new();
    let host = Host::new(&site);
    let mut leads = host.survivor();
    let (mute, at) = Mute::new();
    let asking = host.begin(&["protect", VM, "--backup", &at]);
    let _called = mute.called();
    die(&mut leads.daemon);
    asking.fails(&["ended before it told what came of it"]);
    // Its socket is removed by the next who looks.
    assert!(host.socket_of(&leads).exists());
    host.refused(&["failover", VM], &["no replica of 'by-hand' on this host"]);
    assert!(host.files().is_empty());
}

/// A machine is not left to a backup that may be dead, though that is not known yet; and a replica that hangs keeps
/// nobody from asking another.
#[test]
fn replicas_that_stand_still_are_left_nothing_and_waited_for_by_nobody() {
    let _machine = machine();
    let site = Site::new();
    let host = Host::new(&site);
    let elsewhere = Host::with(&site, "elsewhere", &[]);
    let (mut backup, at) = elsewhere.backup();
    let primary = host.primary(&at, &["--suspect-ms", "2000"]);
    primary.wait_event("primary");
    backup.wait_event("backup");
    backup.daemon.stand_still().unwrap();
    host.refused(
        &["failover", VM],
        &["was not left to its backup", "was lost first"],
    );
    primary.wait_event("solo");
    die(&mut backup.daemon);
    let (mut stopped, _) = host.backup();
    stopped.daemon.stand_still().unwrap();
    let (mut next, at) = host.backup();
    host.done(&["protect", VM, "--backup", &at]);
    next.wait_event("welcomed");
    die(&mut stopped.daemon);
    stop(primary);
    next.ends_well();
}

/// A replica that is asked to end tells those who wait before it does.
#[test]
fn a_replica_that_ends_while_it_is_asked_says_so() {
    let _machine = machine();
    let site = Site::new();
    let host = Host::new(&site);
    let mut leads = host.survivor();
    let (mute, at) = Mute::new();
    let asking = host.begin(&["protect", VM, "--backup", &at]);
    let _called = mute.called();
    leads.daemon.ask_to_end();
    asking.fails(&["has got no new backup"]);
    leads.ends_well();
    assert!(host.files().is_empty());
}

/// What is answered to whoever calls at the control socket `path` and says this.
fn says(path: &Path, said: &[u8]) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    match stream.write_all(said) {
        // It hung up before all of it was said.
        Err(e) if e.kind() == ErrorKind::BrokenPipe => {}
        other => other?,
    }
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[test]
fn the_socket_is_its_users_alone_and_takes_no_nonsense() {
    let _machine = machine();
    let site = Site::new();
    let host = Host::new(&site);
    let (primary, backup) = host.pair();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&host.folder), 0o700);
    let path = host.socket_of(&primary);
    assert!(std::fs::metadata(&path).unwrap().file_type().is_socket());
    assert_eq!(mode(&path), 0o600);
    let status = says(&path, b"{\"ask\":\"status\"}\n").unwrap();
    assert!(status.contains(r#""role":"primary","view":1"#), "{status}");
    for said in [&b""[..], b"GET / HTTP/1.1\r\n\r\n", &[0xff; 4000]] {
        let answer = says(&path, &[said, b"\n"].concat()).unwrap();
        assert!(
            answer.starts_with(r#"{"is":"failed","why":"#) && answer.lines().count() == 1,
            "{answer}"
        );
    }
    // It is hung up on in the midst of what it says, and may lose the answer by that.
    match says(&path, &[b'['; 1 << 20]) {
        Ok(answer) => assert!(answer.contains(r#""is":"failed""#), "{answer}"),
        Err(e) => assert_eq!(e.kind(), ErrorKind::ConnectionReset, "{e}"),
    }
    // Nobody was harmed, and many who say nothing keep nobody out.
    let begun = Instant::now();
    let silent: Vec<_> = (0..SILENT)
        .map(|_| UnixStream::connect(&path).unwrap())
        .collect();
    loop {
        let output = host.ask(&["failover", VM, "--leave"]);
        if output.status.success() {
            break;
        }
        // As long as the silent wait to be accepted there may be no room in the queue, which the caller is told.
        assert_one_line(&output, 1, &["temporarily unavailable"]);
        assert!(begun.elapsed() < BEFORE_THE_SILENT_LEAVE);
    }
    assert!(begun.elapsed() < BEFORE_THE_SILENT_LEAVE);
    drop(silent);
    let mut primary = primary;
    primary.ends_well();
    backup.wait_event("live");
    stop(backup);
}

#[test]
fn a_folder_that_cannot_be_trusted_or_is_too_long_is_refused() {
    let _machine = machine();
    let site = Site::new();
    let arbiter = site.arbiter.borrow().clone();
    let backup = |folder: &Path| {
        let words = ["backup", "--listen", "127.0.0.1:0", "--arbiter", &arbiter];
        tandem(&[&words[..], &["--control", text(folder)]].concat())
    };
    let open = site.path("open");
    std::fs::create_dir(&open).unwrap();
    std::fs::set_permissions(&open, PermissionsExt::from_mode(0o777)).unwrap();
    assert_one_line(&backup(&open), 1, &["others may write", text(&open)]);
    let host = Host::with(&site, "open", &[]);
    host.refused(&["failover", VM], &["others may write"]);
    let long = site.path(&"x".repeat(100));
    assert_one_line(&backup(&long), 1, &["107 at most", "--control"]);
    let nowhere = site.path("no/where");
    assert_one_line(&backup(&nowhere), 1, &["cannot make the control folder"]);
    // The default is only a wish: what fails is what was asked for.
    let primary = ["primary", "counter", "--backup", "127.0.0.1:1"];
    let output = Command::new(PROGRAM)
        .args([&primary[..], &["--arbiter", &arbiter]].concat())
        .env("XDG_RUNTIME_DIR", &nowhere)
        .output()
        .unwrap();
    assert_one_line(&output, 1, &["cannot reach the backup"]);
}

/// A machine whose views a service keeps fails over by command, and takes no backup the service knows nothing of: the
/// old primary waits until it is named.
#[test]
fn a_machine_with_a_viewservice_fails_over_too() {
    let _machine = machine();
    let site = Site::new();
    let served = Served::new(&site);
    let host = Host::with(&site, "control", &["--viewservice", served.at()]);
    let (mut backup, at) = host.backup_with(&["--name", "b"]);
    served.wait_live("b");
    let primary = host.primary(&at, &["--name", "a", "--backup-name", "b"]);
    primary.wait_event("primary");
    let protect = ["protect", VM, "--backup", "127.0.0.1:1"];
    host.refused(&protect, &["viewservice keeps"]);
    host.done(&["failover", VM]);
    backup.wait_event("live");
    let noted = backup.wait_event("protected").detail;
    assert!(noted.starts_with("view 3;"), "{noted}");
    primary.wait_event("welcomed");
    served.wait_vm(|vm| vm["role"] == "primary" && vm["primary"] == "b" && vm["backup"] == "a");
    die(&mut backup.daemon);
    primary.wait_event("live");
    served.wait_vm(|vm| vm["role"] == "solo" && vm["primary"] == "a");
    host.refused(&protect, &["viewservice keeps"]);
    stop(primary);
}

/// The same two processes all the time, each with its half of a network and the disk both share.
#[test]
fn the_replicas_of_a_pair_change_roles_by_command() {
    let _machine = machine();
    let site = Site::new();
    let disk = site.path("disk.img");
    std::fs::write(&disk, vec![0; 1 << 20]).unwrap();
    let host = Host::with(&site, "control", &["--disk", text(&disk)]);
    let (mut leads, mut follows) = host.pair();
    for swap in 1..=4usize {
        let said = host.done(&["failover", VM]);
        let view = 2 * swap;
        let told = format!(", view {view}; the replica here waits to be its new one\n");
        assert!(said.ends_with(&told), "{said}");
        // Of each the events of all its lives are in one file.
        let nth = swap.div_ceil(2);
        follows.wait_nth("live", nth);
        let noted = follows.wait_nth("protected", nth).detail;
        assert!(noted.starts_with(&format!("view {}", view + 1)), "{noted}");
        leads.wait_nth("welcomed", nth);
        assert_eq!(host.files().len(), 2, "they answer where they did");
        (leads, follows) = (follows, leads);
    }
    die(&mut leads.daemon);
    follows.wait_nth("live", 3);
    stop(follows);
}
