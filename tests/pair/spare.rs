//! A machine whose views a viewservice keeps: it gets its new backups by itself, without any command.

use super::common::{LIMIT, machine, os, tandem_json};
use super::{GUEST, LOOK, Mute, Replica, Site, VM, die, stop};
use kit::daemon::Daemon;
use kit::join::Joined;
use serde_json::Value;
use std::io::{self, Read};
use std::net::{Shutdown, TcpStream};
use std::time::Instant;
use viewservice::{Address, Client, HostId, Ping, VmId};

/// About half of the bytes by which the machine of these tests is given to a backup.
const HALF_A_STATE: u64 = 128 << 10;

/// A site with a viewservice.
pub(super) struct Served<'a> {
    site: &'a Site,
    views: Daemon,
    at: String,
}

impl<'a> Served<'a> {
    pub(super) fn new(site: &'a Site) -> Self {
        let (views, at) = Self::start(site, "127.0.0.1:0");
        Self { site, views, at }
    }

    /// Where the service listens.
    pub(super) fn at(&self) -> &str {
        &self.at
    }

    fn start(site: &Site, listen: &str) -> (Daemon, String) {
        let mut args = os(&["viewservice", "--listen", listen, "--store"]);
        args.push(site.path("views").into());
        let views = Daemon::start("viewservice", &args, site.path("views.err")).unwrap();
        let line = views
            .wait_line(LIMIT, |line| line.starts_with("listening on "))
            .unwrap();
        (views, line.trim_start_matches("listening on ").to_owned())
    }

    /// Starts the service again where it was.
    fn start_again(&mut self) {
        self.views = Self::start(self.site, &self.at).0;
    }

    /// A replica on the host of this name.
    fn replica(&self, name: &str, words: &[&str]) -> Replica {
        let more = ["--viewservice", &self.at, "--name", name];
        self.site.start(words, &more)
    }

    /// A backup that listens, and where.
    fn backup(&self, name: &str) -> (Replica, String) {
        let words = ["backup", "--listen", "127.0.0.1:0", "--engine", "soft"];
        let replica = self.replica(name, &words);
        let at = replica.wait_event("listening").detail;
        (replica, at)
    }

    /// The machine on hosts a and b, primary first.
    fn pair(&self) -> (Replica, Replica) {
        let (backup, at) = self.backup("b");
        // A primary's backup is refused that the service has not heard of.
        self.wait_live("b");
        let to = ["--backup", &at, "--backup-name", "b"];
        let primary = self.replica("a", &[&["primary"], &GUEST[..], &to].concat());
        primary.wait_event("primary");
        backup.wait_event("backup");
        self.wait_pair(1, "a", "b");
        (primary, backup)
    }

    /// The machine alone on host b, in view 2.
    fn survivor(&self) -> Replica {
        let (mut primary, backup) = self.pair();
        die(&mut primary.daemon);
        backup.wait_event("live");
        self.wait_vm(|vm| vm["role"] == "solo" && vm["view"] == 2);
        backup
    }

    /// Waits until the service says this.
    #[track_caller]
    fn wait_status(&self, wanted: impl Fn(&Value) -> bool) {
        let begun = Instant::now();
        loop {
            let status = tandem_json(&["status", "--viewservice", &self.at, "--json"]);
            if wanted(&status) {
                return;
            }
            assert!(begun.elapsed() < LIMIT, "{status}");
            std::thread::sleep(LOOK);
        }
    }

    /// Waits until the service says this of the machine.
    #[track_caller]
    pub(super) fn wait_vm(&self, wanted: impl Fn(&Value) -> bool) {
        self.wait_status(|status| wanted(&status["vms"][0]));
    }

    /// Waits until the service has heard of the host of this name.
    #[track_caller]
    pub(super) fn wait_live(&self, name: &str) {
        let is_it = |host: &Value| host["name"] == name && host["state"] == "live";
        self.wait_status(|status| status["hosts"].as_array().unwrap().iter().any(is_it));
    }

    /// Waits until the machine is a pair on these hosts in this view, which its primary has acknowledged.
    #[track_caller]
    fn wait_pair(&self, view: u64, primary: &str, backup: &str) {
        self.wait_vm(|vm| {
            vm["role"] == "primary"
                && vm["view"] == view
                && vm["primary"] == primary
                && vm["backup"] == backup
                && vm["named"].is_null()
                && vm["roles"][backup] == "backup"
        });
    }
}

/// Tells the service that a backup waits at `at`, on the host of this name, until the replica that `leads` calls there.
#[track_caller]
fn offer(served: &Served<'_>, name: &str, at: &str, leads: &Replica) {
    let ping = Ping {
        host: HostId::new(name).unwrap(),
        address: Address::new(at).unwrap(),
        held: Vec::new(),
        waits: vec![VmId::new(VM).unwrap()],
        of: None,
    };
    let client = Client::new(served.at()).unwrap();
    let begun = Instant::now();
    let calls = |line: &kit::Line| line.event == "joining" && line.detail == at;
    while !leads.events().iter().any(calls) {
        client.ping(&ping).unwrap();
        assert!(begun.elapsed() < LIMIT, "{:?}", leads.events());
        std::thread::sleep(LOOK);
    }
}

/// A call that is passed on to a backup as far as some byte, and all that this answers.
struct Relay {
    caller: TcpStream,
    backup: TcpStream,
}

impl Relay {
    /// Passes on so many bytes of what `caller` says to the backup at `at`, and then no more.
    #[track_caller]
    fn pass(caller: TcpStream, at: &str, bytes: u64) -> Self {
        let backup = TcpStream::connect(at).unwrap();
        let (mut from, mut to) = (backup.try_clone().unwrap(), caller.try_clone().unwrap());
        let answers = move || {
            // Either may be closed at any time, as the test's end is.
            let _ = io::copy(&mut from, &mut to);
        };
        std::thread::spawn(answers);
        caller.set_read_timeout(Some(LIMIT)).unwrap();
        let passed = io::copy(&mut (&caller).take(bytes), &mut &backup).unwrap();
        assert_eq!(passed, bytes, "the caller has more to say");
        Self { caller, backup }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        for side in [&self.caller, &self.backup] {
            // It may be closed already.
            let _ = side.shutdown(Shutdown::Both);
        }
    }
}

#[test]
fn a_machine_is_given_a_new_backup_after_each_failover() {
    let _machine = machine();
    let site = Site::new();
    let served = Served::new(&site);
    let mut leads = served.survivor();
    let mut primary = "b";
    for (backup, view) in [("c", 3), ("d", 5)] {
        let (next, _) = served.backup(backup);
        next.wait_event("welcomed");
        let noted = leads.wait_event("protected").detail;
        assert!(noted.starts_with(&format!("view {view}")), "{noted}");
        served.wait_pair(view, primary, backup);
        die(&mut leads.daemon);
        assert_eq!(next.wait_event("solo").detail, format!("view {}", view + 1));
        (leads, primary) = (next, backup);
    }
    stop(leads);
    served.wait_vm(Value::is_null);
}

#[test]
fn a_spare_that_died_before_it_was_asked_is_replaced() {
    let _machine = machine();
    let site = Site::new();
    let served = Served::new(&site);
    let (mut primary, backup) = served.pair();
    let (mut spare, _) = served.backup("c");
    served.wait_live("c");
    die(&mut spare.daemon);
    die(&mut primary.daemon);
    backup.wait_event("live");
    let (mut next, _) = served.backup("d");
    next.wait_event("welcomed");
    served.wait_pair(3, "b", "d");
    stop(backup);
    next.ends_well();
}

#[test]
fn a_spare_that_dies_while_it_is_given_the_machine_is_replaced() {
    let _machine = machine();
    let site = Site::new();
    let served = Served::new(&site);
    let leads = served.survivor();
    // It is called, says nothing, and is gone.
    let (mute, at) = Mute::new();
    offer(&served, "c", &at, &leads);
    drop((mute.called(), mute));
    leads.wait_event("join_failed");
    // Another one is killed when it has about half of the machine's state. Nothing of what is behind that comes
    // to it, so it cannot be the backup by then.
    let (mut killed, killed_at) = site.backup(&["--engine", "soft"]);
    let (front, at) = Mute::new();
    offer(&served, "d", &at, &leads);
    let relay = Relay::pass(front.called(), &killed_at, HALF_A_STATE);
    die(&mut killed.daemon);
    drop((relay, front));
    assert_eq!(killed.count("backup"), 0, "{:?}", killed.events());
    let (mut next, _) = served.backup("e");
    next.wait_event("welcomed");
    served.wait_pair(3, "b", "e");
    let of_it = |line: &&kit::Line| line.event == "join_failed" && line.detail.starts_with(&at);
    let failed = leads.events();
    let why = &failed.iter().find(of_it).expect("it was lost").detail;
    assert!(!why.contains("cannot reach"), "{why}");
    let joined = Joined::parse(&leads.wait_event("protected").detail).unwrap();
    assert!(joined.sent_bytes > HALF_A_STATE * 3 / 2, "{joined:?}");
    assert_eq!(leads.count("protected"), 1);
    stop(leads);
    next.ends_well();
}

#[test]
fn a_machine_whose_viewservice_was_down_is_given_its_backup_when_that_is_back() {
    let _machine = machine();
    let site = Site::new();
    let mut served = Served::new(&site);
    let (mut primary, leads) = served.pair();
    die(&mut served.views);
    die(&mut primary.daemon);
    leads.wait_event("live");
    let (mut next, _) = served.backup("c");
    served.start_again();
    next.wait_event("welcomed");
    served.wait_pair(3, "b", "c");
    assert_eq!(leads.count("join_failed"), 0);
    stop(leads);
    next.ends_well();
}
