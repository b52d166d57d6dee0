//! Pairs whose arbiter is etcd: what they say when it cannot be used, and what they do when it is gone.

use super::common::{LIMIT, assert_one_line, machine, tandem};
use super::{GUEST, Replica, Site, die, stop};
use nix::sys::signal::{Signal, kill};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::Instant;
use testandset_testing::{Etcd, Options, is_here};

/// A site whose arbiter is these members.
fn site(etcd: &Etcd) -> Site {
    let site = Site::new();
    *site.arbiter.borrow_mut() = format!("etcd:{}", etcd.words());
    site
}

/// Three members that serve.
fn three() -> Etcd {
    let mut etcd = Etcd::start(3, Options::default());
    (0..3).for_each(|n| etcd.wait_until_serving(n));
    etcd
}

fn pair(site: &Site) -> (Replica, Replica) {
    let (backup, at) = site.backup(&[]);
    let primary = site.primary(&GUEST, &at);
    primary.wait_event("primary");
    backup.wait_event("backup");
    (primary, backup)
}

/// It has said once, in a line, that none of the members answers.
#[track_caller]
fn has_told(replica: &Replica, etcd: &Etcd) {
    let said = replica.said();
    let lines: Vec<_> = said
        .lines()
        .filter(|line| line.contains("out of reach"))
        .collect();
    let [line] = lines.as_slice() else {
        panic!("one line: {said}");
    };
    assert!(
        line.contains(&etcd.words()) && line.contains("nobody goes live"),
        "{line}"
    );
}

#[test]
fn a_replica_that_cannot_use_etcd_says_why_in_a_line() {
    let _machine = machine();
    let refused = |words: &str, parts: &[&str]| {
        let arbiter = format!("etcd:{words}");
        let backup = ["backup", "--listen", "127.0.0.1:0", "--arbiter", &arbiter];
        assert_one_line(&tandem(&backup), 1, parts);
    };
    let gone = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = gone.local_addr().unwrap().to_string();
    drop(gone);
    refused(&at, &["out of reach", "refused", &at]);
    refused(&format!("{at},password=x"), &["not for the command line"]);
    refused(
        &format!("{at},ca=/nowhere/ca.pem"),
        &["CA file /nowhere/ca.pem"],
    );

    // As etcd 3.3 answers, and many others.
    let old = TcpListener::bind("127.0.0.1:0").unwrap();
    let old_at = old.local_addr().unwrap().to_string();
    let answers = std::thread::spawn(move || {
        let (mut asked, _) = old.accept().unwrap();
        let _ = asked.read(&mut [0; 4096]);
        let reply = "HTTP/1.1 404 Not Found\r\nContent-Length: 10\r\n\r\nNot Found\n";
        asked.write_all(reply.as_bytes()).unwrap();
    });
    refused(&old_at, &["no /v3", "3.4", &old_at]);
    answers.join().unwrap();

    if !is_here() {
        return;
    }
    let mut etcd = Etcd::start(1, Options::default());
    etcd.wait_until_serving(0);
    let password = etcd.dir.path().join("password");
    std::fs::write(&password, "wrong\n").unwrap();
    for (path, body) in [
        ("auth/user/add", r#"{"name":"root","password":"right"}"#),
        ("auth/user/grant", r#"{"user":"root","role":"root"}"#),
        ("auth/enable", "{}"),
    ] {
        etcd.api(0, path, body);
    }
    let words = etcd.words();
    refused(&words, &["lets nobody in without user="]);
    let login = format!("{words},user=root,password-file={}", password.display());
    refused(&login, &["user 'root' or its password is wrong"]);
    // `tandem doctor` says the same, and that all is well where it is.
    let doctor = |words: &str| tandem(&["doctor", "--json", "--arbiter", &format!("etcd:{words}")]);
    let report = |output: &std::process::Output| -> serde_json::Value {
        serde_json::from_slice(&output.stdout).expect("JSON")
    };
    let output = doctor(&login);
    assert_eq!(output.status.code(), Some(1));
    let why = report(&output)["arbiter"]["why"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(why.contains("password is wrong"), "{why}");
    std::fs::write(&password, "right\n").unwrap();
    assert_eq!(report(&doctor(&login))["arbiter"]["usable"], true);
}

#[test]
fn a_pair_whose_sides_use_different_keys_of_etcd_is_refused_at_the_start() {
    let _machine = machine();
    if !is_here() {
        return;
    }
    let mut etcd = Etcd::start(1, Options::default());
    etcd.wait_until_serving(0);
    let site = site(&etcd);
    let (backup, at) = site.backup(&[]);
    let same = site.arbiter.borrow().clone();
    *site.arbiter.borrow_mut() = format!("{same},prefix=/other");
    let why = site.primary(&GUEST, &at).is_refused();
    assert!(why.contains("keeps its flags in store"), "{why}");
    // Nobody is the worse for it.
    *site.arbiter.borrow_mut() = same;
    let primary = site.primary(&GUEST, &at);
    backup.wait_event("backup");
    stop(primary);
}

#[test]
fn a_backup_whose_etcd_is_gone_waits_for_it() {
    let _machine = machine();
    if !is_here() {
        return;
    }
    let mut etcd = three();
    let site = site(&etcd);
    let (mut primary, backup) = pair(&site);
    (0..3).for_each(|n| etcd.kill(n));
    die(&mut primary.daemon);
    backup.wait_nth("arbiter_unreachable", 3);
    // One member alone is nobody.
    etcd.start_member(1);
    let before = backup.count("arbiter_unreachable");
    backup.wait_nth("arbiter_unreachable", before + 1);
    assert_eq!(backup.count("live"), 0, "{:?}", backup.events());
    has_told(&backup, &etcd);
    etcd.start_member(2);
    backup.wait_event("live");
    stop(backup);
}

#[test]
fn of_two_that_wait_for_etcd_one_goes_on() {
    let _machine = machine();
    if !is_here() {
        return;
    }
    let etcd = three();
    let site = site(&etcd).that_suspects_soon();
    let (mut primary, mut backup) = pair(&site);
    for n in 0..3 {
        kill(etcd.pid(n), Signal::SIGSTOP).unwrap();
    }
    // The primary takes it for dead, and hangs up on it; both live, and neither is told who goes on.
    backup.daemon.stand_still().unwrap();
    primary.wait_event("arbiter_unreachable");
    backup.daemon.signal(Signal::SIGCONT);
    backup.wait_event("arbiter_unreachable");
    for replica in [&primary, &backup] {
        assert_eq!(replica.count("solo"), 0, "{:?}", replica.events());
        has_told(replica, &etcd);
    }
    for n in 0..3 {
        kill(etcd.pid(n), Signal::SIGCONT).unwrap();
    }
    let begun = Instant::now();
    let won = loop {
        assert!(begun.elapsed() < LIMIT, "neither goes on");
        let won = [&primary, &backup].map(|replica| replica.count("solo") > 0);
        if won[0] || won[1] {
            break won;
        }
        std::thread::sleep(super::LOOK);
    };
    let (winner, loser) = if won[0] {
        (primary, &mut backup)
    } else {
        (backup, &mut primary)
    };
    let said = loser.is_refused();
    assert!(said.contains("has the flag of view 1"), "{said}");
    assert_eq!(loser.count("solo"), 0, "{:?}", loser.events());
    stop(winner);
}
