//! What cannot be is one clear line, and leaves nothing behind.

use super::common::{LIMIT, assert_last_line, assert_one_line, machine, os, tandem, text};
use super::site::{HOST_MIB, Site};
use kit::daemon::Daemon;

#[test]
fn what_cannot_be_placed_is_one_clear_line() {
    let _machine = machine();
    let site = Site::new();
    let web = site.recipe("web", "");
    let up = |path: &std::path::Path| site.ask(&["up", text(path)]);
    assert_one_line(
        &up(&web),
        1,
        &["no two hosts have room for web", "no host pings"],
    );
    let a = site.host("a");
    let alone = ["64", "one alone is no pair"];
    assert_one_line(&up(&web), 1, &alone[1..]);
    let b = site.host("b");

    // Spelled wrongly: told before anybody is asked.
    let wrong = site.recipe("wrong", "memroy = 64");
    assert_one_line(&up(&wrong), 2, &["wrong.toml:6:1: unknown field `memroy`"]);
    let large = site.recipe("large", "memory = 2048");
    let said = [
        "no two hosts have room for large",
        "a has 300 of 300 MiB left",
        "2120 MiB",
    ];
    assert_one_line(&up(&large), 1, &said);
    // A file that is not on the hosts.
    let missing = site.path("missing.toml");
    let words = "name = 'missing'\nguest = '/no/such/guest'\nmemory = 64\nengine = 'soft'\n";
    std::fs::write(&missing, words).unwrap();
    let said = [
        "'missing' was not started: host b",
        "host b cannot read /no/such/guest",
        "No such file",
    ];
    assert_one_line(&up(&missing), 1, &said);
    // A name that is taken.
    site.say(&["up", text(&web)]);
    assert_one_line(
        &up(&web),
        1,
        &["VM web is there already, view ", ": primary a, backup b"],
    );
    // Both hosts have room for one more replica, and no third host has any.
    site.say(&["up", text(&site.recipe("db", ""))]);
    let third = site.recipe("third", "");
    assert_one_line(
        &up(&third),
        1,
        &["a has 28 of 300 MiB left", "b has 28 of 300 MiB left"],
    );
    assert_one_line(
        &site.ask(&["drain", "nobody"]),
        1,
        &["there is no host nobody"],
    );
    assert_one_line(
        &site.ask(&["failover", "nobody"]),
        1,
        &["there is no VM nobody"],
    );
    assert_one_line(
        &site.ask(&["logs", "nobody"]),
        1,
        &["there is no machine 'nobody'"],
    );

    // A spare that is too small is none, and the reason stands where a person looks.
    let _c = site.start_host("c", &site.at, 100);
    site.wait_host("c", |host| host["left_mib"] == 100);
    a.kill_replica("web");
    // The host itself has room for what it lost.
    site.wait_pair("web", 2, "b", "a");
    site.say(&["drain", "a", "--no-wait"]);
    a.kill_replica("web");
    site.wait_status(|status| {
        let web = status["vms"]
            .as_array()
            .unwrap()
            .iter()
            .find(|vm| vm["name"] == "web");
        let trouble = web
            .and_then(|web| web["trouble"].as_str())
            .unwrap_or_default();
        trouble.contains("no spare: a is drained; c has 100 of 100 MiB left")
    });
    assert!(site.say(&["status"]).contains("web: no spare: "));
    for vm in ["web", "db"] {
        site.say(&["down", vm]);
        a.wait_no_replica(vm);
        b.wait_no_replica(vm);
    }
    site.wait_status(|status| status["vms"].as_array().unwrap().is_empty());
}

#[test]
fn a_host_that_cannot_be_one_says_why() {
    let _machine = machine();
    let site = Site::new();
    let arbiter = format!("file:{}", text(&site.path("flags")));
    let state = site.path("state");
    let host = |more: &[&str]| {
        let words = [
            "host",
            "--viewservice",
            &site.at,
            "--arbiter",
            &arbiter,
            "--state",
            text(&state),
        ];
        tandem(&[&words, more].concat())
    };
    assert_one_line(
        &host(&["--listen", "127.0.0.1:0"]),
        2,
        &["--name is needed"],
    );
    let everywhere = ["--name", "a", "--insecure", "--listen", "0.0.0.0:0"];
    assert_one_line(&host(&everywhere), 2, &["name one that they reach"]);
    let other = ["--name", "a", "--listen", "192.0.2.1:7702"];
    assert_one_line(&host(&other), 1, &["cannot listen on 192.0.2.1:7702"]);
    let nothing = ["--name", "a", "--arbiter", "carrier-pigeon:"];
    assert_eq!(host(&nothing).status.code(), Some(2), "given twice");

    // Two of one name, and two of one folder.
    let first = site.host("a");
    let folder = format!("{}", site.path("host-a").display());
    let same = [
        "host",
        "--viewservice",
        &site.at,
        "--arbiter",
        &arbiter,
        "--state",
        &folder,
    ];
    let same = tandem(&[&same[..], &["--name", "a", "--listen", "127.0.0.1:0"]].concat());
    assert_last_line(&same, 1, &["is another supervisor's, which runs"]);
    let words = [
        "host",
        "--viewservice",
        &site.at,
        "--arbiter",
        &arbiter,
        "--state",
        text(&state),
        "--name",
        "a",
        "--listen",
        "127.0.0.1:0",
    ];
    let second = Daemon::start("host", os(&words), site.path("second.err")).unwrap();
    let says = |word: &str| {
        let begun = std::time::Instant::now();
        while !std::fs::read_to_string(site.path("second.err"))
            .unwrap()
            .contains(word)
        {
            assert!(begun.elapsed() < LIMIT, "it does not say {word}");
            std::thread::sleep(super::site::LOOK);
        }
    };
    says("host a is another supervisor's, at 127.0.0.1:");
    // Its place is free once the first is gone for a while.
    drop(first);
    says("orders: the viewservice answers");
    drop(second);
    let _ = HOST_MIB;
}
