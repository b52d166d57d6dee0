//! Pairs that speak TLS, with strangers at every port.

use super::common::{assert_one_line, have_kvm, machine, tandem, tandem_json, text};
use super::{LONG, Replica, SHORT, Site, VM, die, stop};
use std::path::{Path, PathBuf};

/// A cluster's authority, and identities of its members.
struct Cluster(PathBuf);

impl Cluster {
    fn new(site: &Site, name: &str) -> Self {
        let cluster = Self(site.path(name));
        cluster.init(&[]);
        cluster
    }

    fn init(&self, words: &[&str]) {
        let made = tandem(&[&["init", "--dir", text(&self.0)], words].concat());
        assert!(made.status.success(), "{made:?}");
    }

    /// The identity of a host that may run `vm`.
    fn host(&self, name: &str, vm: &str) -> String {
        self.init(&["--host", name, "--vm", vm]);
        text(&self.0.join("hosts").join(name)).to_owned()
    }

    fn service(&self) -> String {
        self.init(&["--service", "core"]);
        text(&self.0.join("services/core")).to_owned()
    }
}

/// The words of `guest`'s primary on the host whose identity this is.
fn primary(site: &Site, guest: &[&str], at: &str, identity: &str) -> Replica {
    site.primary(&[guest, &["--tls", identity]].concat(), at)
}

#[test]
fn a_pair_with_certificates_survives_its_primary_and_strangers_change_nothing() {
    let _machine = machine();
    if !have_kvm("TLS") {
        return;
    }
    let mut site = Site::new();
    let (ours, theirs) = (Cluster::new(&site, "ours"), Cluster::new(&site, "theirs"));
    let [a, b] = ["a", "b"].map(|name| ours.host(name, VM));
    site.start_arbiter_as(&["--tls", &ours.service()]);
    let (backup, at) = site.backup(&["--tls", &b]);

    // At the backup's port: of another cluster, of another machine, and without any certificate.
    let foreign = theirs.host("a", VM);
    let other = ours.host("d", "other");
    let with = |arbiter: &str, words: &[&str]| {
        let at_arbiter = site.arbiter.replace(arbiter.to_owned());
        let refused = site.primary(&[&SHORT, words].concat(), &at).is_refused();
        *site.arbiter.borrow_mut() = at_arbiter;
        refused
    };
    let elsewhere = site.path("flags");
    let elsewhere = format!("file:{}", elsewhere.display());
    let why = with(&elsewhere, &["--tls", &foreign]);
    assert!(why.contains("not of this cluster's authority"), "{why}");
    let why = with(&elsewhere, &["--tls", &other]);
    assert!(why.contains("host d may not run 'by-hand'"), "{why}");
    let why = with(&elsewhere, &[]);
    assert!(why.contains("the peer speaks TLS"), "{why}");
    // At the arbiter's, likewise: nothing was set.
    let tcp = site.arbiter.borrow().clone();
    let why = with(&tcp, &["--tls", &foreign]);
    assert!(why.contains("not of this cluster's authority"), "{why}");
    let why = with(&tcp, &[]);
    assert!(why.contains("it speaks TLS"), "{why}");

    let leads = primary(&site, &LONG, &at, &a);
    assert_eq!(leads.wait_event("begins").detail, "view 1");
    leads.wait_event("primary");
    assert!(
        backup.count("caller_turned_away") > 0,
        "{:?}",
        backup.events()
    );

    // A failover, by an arbiter that both speak TLS with.
    let mut leads = leads;
    die(&mut leads.daemon);
    assert_eq!(backup.wait_event("solo").detail, "view 2");
    let of = backup.wait_event("backup").detail;
    assert!(of.contains("by-hand of a.primary."), "{of}");
    stop(backup);
}

#[test]
fn a_running_machine_is_handed_over_secretly_and_not_to_a_stranger() {
    let _machine = machine();
    if !have_kvm("a join over TLS") {
        return;
    }
    let site = Site::new();
    let (ours, theirs) = (Cluster::new(&site, "ours"), Cluster::new(&site, "theirs"));
    let [a, b] = ["a", "b"].map(|name| ours.host(name, VM));
    let control = site.path("control");
    let asked = ["--control", text(&control)];
    let (backup, at) = site.backup(&[&["--tls", &b], &asked[..]].concat());
    let mut leads = primary(&site, &LONG, &at, &a);
    leads.wait_event("primary");
    die(&mut leads.daemon);
    backup.wait_event("solo");

    let (mut stranger, at) = site.backup(&["--tls", &theirs.host("a", VM)]);
    let words = ["protect", VM, "--backup", &at];
    let refused = tandem(&[&words, &asked[..]].concat());
    assert_one_line(&refused, 1, &["not of this cluster's authority"]);
    stranger.daemon.ask_to_end();
    stranger.daemon.wait(super::LIMIT).unwrap();

    let (next, at) = site.backup(&["--tls", &a]);
    let words = ["protect", VM, "--backup", &at];
    let protected = tandem(&[&words, &asked[..]].concat());
    assert!(protected.status.success(), "{protected:?}");
    next.wait_event("welcomed");
    let mut backup = backup;
    die(&mut backup.daemon);
    next.wait_event("solo");
    stop(next);
}

#[test]
fn what_is_wrong_with_certificates_is_one_line() {
    let _machine = machine();
    let site = Site::new();
    let ours = Cluster::new(&site, "ours");
    let host = ours.host("a", "web");
    let dir = text(&ours.0);
    let init = |words: &[&str]| tandem(&[&["init", "--dir", dir], words].concat());
    assert_one_line(&init(&[]), 1, &["ca.key", "exists"]);
    assert_one_line(&init(&["--host", "a", "--vm", "web"]), 1, &["--renew"]);
    assert_one_line(
        &init(&["--host", "../a", "--vm", "web"]),
        1,
        &["'../a' is no name"],
    );
    assert!(
        init(&["--host", "a", "--vm", "web", "--renew"])
            .status
            .success()
    );
    let nowhere = site.path("nowhere");
    let nowhere = tandem(&["init", "--dir", text(&nowhere), "--operator", "ann"]);
    assert_one_line(&nowhere, 1, &["no authority here"]);

    let store = site.path("store");
    let arbiter = |words: &[&str]| tandem(&[&["arbiter", "--store", text(&store)], words].concat());
    let anywhere = ["--listen", "0.0.0.0:0"];
    assert_one_line(&arbiter(&anywhere), 1, &["--tls DIR", "--insecure"]);
    assert_one_line(&arbiter(&["--tls", &host]), 1, &["no service's"]);
    assert_one_line(&arbiter(&["--tls", "/nowhere"]), 1, &["/nowhere"]);
    assert!(!Path::new(&store).exists(), "nothing was made");

    let flags = site.arbiter.borrow().clone();
    let backup = |words: &[&str]| {
        let words = [
            &["backup", "--listen", "127.0.0.1:0", "--arbiter", &flags],
            words,
        ]
        .concat();
        tandem(&words)
    };
    assert_one_line(
        &backup(&["--vm", "db", "--tls", &host]),
        1,
        &["may not run 'db'"],
    );
    let named = backup(&["--vm", "web", "--name", "b", "--tls", &host]);
    assert_one_line(&named, 2, &["of host a"]);
}

#[test]
fn no_client_notices_a_kill_of_a_pair_that_speaks_tls() {
    let _machine = machine();
    if !have_kvm("a demo over TLS") {
        return;
    }
    let words = [
        "demo",
        "--tls",
        "--kills",
        "2",
        "--seed",
        "7",
        "--arbiter",
        "server",
        "--json",
    ];
    let shown = tandem_json(&words);
    for (figure, wanted) in [("connections_broken", 0), ("lost_writes", 0), ("kills", 2)] {
        assert_eq!(shown[figure], wanted, "{shown}");
    }
    assert_eq!(shown["linearizable"], true, "{shown}");
}
