//! Arbiters that lose their store, and pairs whose sides have different ones.

use super::common::{LIMIT, assert_one_line, have_kvm, machine, os, tandem, tandem_json, text};
use super::{LONG, SHORT, Site};
use kit::daemon::Daemon;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A `tandem arbiter` that can be stopped and started again.
struct Server {
    address: String,
    store: PathBuf,
    errors: PathBuf,
    daemon: Option<Daemon>,
}

impl Server {
    fn start(site: &Site) -> Self {
        // Free a moment ago.
        let probe = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut server = Self {
            address: probe.local_addr().unwrap().to_string(),
            store: site.path("store"),
            errors: site.path("arbiter.err"),
            daemon: None,
        };
        drop(probe);
        server.run();
        *site.arbiter.borrow_mut() = format!("tcp:{}", server.address);
        server
    }

    fn run(&mut self) {
        let mut args = os(&["arbiter", "--listen", &self.address, "--store"]);
        args.push(self.store.clone().into());
        let daemon = Daemon::start("arbiter", args, self.errors.clone()).unwrap();
        daemon
            .wait_line(LIMIT, |line| line.contains("listening"))
            .unwrap();
        self.daemon = Some(daemon);
    }

    fn stop(&mut self) {
        let mut daemon = self.daemon.take().expect("it runs");
        daemon.ask_to_end();
        assert!(daemon.wait(LIMIT).unwrap().success());
    }

    fn complaints(&self) -> String {
        std::fs::read_to_string(&self.errors).unwrap()
    }
}

#[test]
fn a_pair_whose_sides_have_different_stores_is_refused_at_the_start() {
    let _machine = machine();
    if !have_kvm("two stores") {
        return;
    }
    let site = Site::new();
    let (mut backup, at) = site.backup(&[]);
    // As where the shared storage is mounted on one host only.
    let other = site.path("not-mounted");
    std::fs::create_dir(&other).unwrap();
    let mine = site.arbiter.replace(format!("file:{}", other.display()));
    let why = site.primary(&SHORT, &at).is_refused();
    assert!(why.contains("keeps its flags in store"), "{why}");
    // Nobody is the worse for it.
    *site.arbiter.borrow_mut() = mine;
    let mut primary = site.primary(&SHORT, &at);
    primary.ends_well();
    backup.ends_well();
}

#[test]
fn a_survivor_takes_no_word_of_an_arbiter_that_lost_its_store() {
    let _machine = machine();
    if !have_kvm("a lost store") {
        return;
    }
    let site = Site::new();
    let mut server = Server::start(&site);
    assert!(server.complaints().contains("made a new, empty store"));
    let (mut backup, at) = site.backup(&[]);
    let mut primary = site.primary(&LONG, &at);
    primary.wait_event("primary");
    let (mut waiting, waits_at) = site.backup(&[]);

    server.stop();
    let saved = site.path("saved");
    std::fs::rename(&server.store, &saved).unwrap();
    server.run();
    let told = server.complaints();
    let new = told
        .lines()
        .filter(|line| line.contains("made a new, empty store"));
    assert_eq!(new.count(), 2, "{told}");

    // A second primary is begun by the new store, but not with a backup that knows the old one.
    let why = site.primary(&LONG, &waits_at).is_refused();
    assert!(why.contains("keeps its flags in store"), "{why}");
    waiting.daemon.kill();

    primary.daemon.kill();
    backup.wait_nth("arbiter_other_store", 3);
    assert_eq!(backup.count("live"), 0, "{:?}", backup.events());
    let said = backup.said();
    let lines = said
        .lines()
        .filter(|line| line.contains("has lost the store"));
    assert_eq!(lines.count(), 1, "{said}");

    // The right store is put back: it goes on.
    server.stop();
    std::fs::remove_dir_all(&server.store).unwrap();
    std::fs::rename(&saved, &server.store).unwrap();
    server.run();
    backup.wait_event("live");
    backup.daemon.ask_to_end();
    backup.ends_well();
}

#[test]
fn a_viewservice_that_lost_its_store_lists_the_machine_again_and_can_end_it() {
    let _machine = machine();
    if !have_kvm("a lost store of views") {
        return;
    }
    let site = Site::new();
    let store = site.path("views");
    let service = |address: &str| {
        let mut args = os(&["viewservice", "--listen", address, "--store"]);
        args.push(store.clone().into());
        let daemon = Daemon::start("viewservice", args, site.path("viewservice.err")).unwrap();
        let line = daemon
            .wait_line(LIMIT, |line| line.contains("listening on"))
            .unwrap();
        (daemon, line.rsplit_once(' ').unwrap().1.to_owned())
    };
    let (mut daemon, address) = service("127.0.0.1:0");
    let (mut backup, at) = site.backup(&["--viewservice", &address, "--name", "b"]);
    let more = [
        "--viewservice",
        &address,
        "--name",
        "a",
        "--backup-name",
        "b",
    ];
    let mut primary = site.primary(&[&LONG, more.as_slice()].concat(), &at);
    primary.wait_event("primary");

    daemon.ask_to_end();
    assert!(daemon.wait(LIMIT).unwrap().success());
    std::fs::remove_dir_all(&store).unwrap();
    let (_daemon, _) = service(&address);
    let begun = Instant::now();
    loop {
        let status = tandem_json(&["status", "--viewservice", &address, "--json"]);
        let vm = &status["vms"][0];
        if vm["backup"] == "b" {
            assert_eq!(
                (vm["name"].as_str(), vm["primary"].as_str()),
                (Some("by-hand"), Some("a"))
            );
            assert_eq!(vm["view"], 1);
            break;
        }
        assert!(begun.elapsed() < LIMIT, "{status}");
        std::thread::sleep(Duration::from_millis(20));
    }
    let output = tandem(&["down", "by-hand", "--viewservice", &address]);
    assert!(output.status.success(), "{output:?}");
    primary.ends_well();
    backup.ends_well();
    let status = tandem_json(&["status", "--viewservice", &address, "--json"]);
    assert_eq!(status["vms"], serde_json::json!([]), "{status}");
}

#[test]
fn an_arbiter_that_is_to_find_its_store_makes_none() {
    let _machine = machine();
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    let arbiter = |store: &Path| {
        let store = text(store);
        tandem(&[
            "arbiter",
            "--listen",
            "127.0.0.1:0",
            "--store",
            store,
            "--existing",
        ])
    };
    assert_one_line(&arbiter(&store), 1, &[text(&store), "no store of flags"]);
    assert!(!store.exists());
}
