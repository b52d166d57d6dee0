//! Wrong usage: told at once, before anything starts, with exit code 2.

use crate::common::{assert_one_line, tandem, text};
use std::net::TcpListener;

/// Refused as wrong usage, with `words` told.
#[track_caller]
fn assert_wrong(args: &[&str], words: &[&str]) {
    let output = tandem(args);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{args:?}: {said}");
    assert!(!said.contains("panicked"), "{args:?}: {said}");
    assert!(output.stdout.is_empty(), "{args:?}");
    for word in words {
        assert!(said.contains(word), "{args:?}: '{word}' in: {said}");
    }
}

#[test]
fn what_is_no_command_line_exits_with_two() {
    for args in [
        &["frobnicate"][..],
        &["run"],
        &["run", "kv", "--cpu", "v9"],
        &["replay"],
        &["replay", "a.log", "--gdb", "0", "--engine", "kvm"],
        &["run", "counter", "--append", "quiet"],
        &["protect", "web"],
        &["protect", "--backup", "127.0.0.1:1"],
        &["protect", "web", "--backup", "127.0.0.1"],
        &["move", "web"],
        &["move", "web", "127.0.0.1:0"],
        &["failover"],
        &["failover", "web", "--backup", "127.0.0.1:1"],
    ] {
        assert_wrong(args, &[]);
    }
}

#[test]
fn numbers_that_cannot_work_are_wrong_usage_of_either_side() {
    let arbiter = ["--arbiter", "file:/nowhere"];
    let primary = ["primary", "counter", "--backup", "127.0.0.1:1"];
    let backup = ["backup", "--listen", "127.0.0.1:0"];
    for (flag, value) in [
        ("--suspect-ms", "0"),
        ("--suspect-ms", "39"),
        ("--suspect-ms", "60001"),
        ("--log-buffer", "0"),
    ] {
        for command in [&primary[..], &backup] {
            let args = [command, &arbiter, &[flag, value]].concat();
            assert_wrong(&args, &[flag, value]);
        }
    }
    for (flag, value) in [
        ("--lag-max-ms", "0"),
        ("--view", "0"),
        ("--memory", "1"),
        ("--backup", "127.0.0.1:0"),
        ("--mac", "01:00:5e:00:00:01"),
    ] {
        let args = [&["primary", "counter"][..], &arbiter, &[flag, value]].concat();
        assert_wrong(&args, &[flag, value]);
    }
    for (flag, value) in [
        ("--memory", "15"),
        ("--memory", "3073"),
        ("--forward", "0"),
        ("--forward", "7:0"),
        ("--forward", "7:http"),
        ("--forward", "65536"),
        ("--mac", "00:00:00:00:00:00"),
    ] {
        assert_wrong(&["run", "echo", flag, value], &[flag, value]);
        let record = ["record", "echo", "-o", "/nowhere/log", flag, value];
        assert_wrong(&record, &[flag, value]);
    }
    for flag in ["--after", "--for"] {
        for value in ["0", "0.0", "1e-12", "1e10", "nan", "inf", "soon", "1s"] {
            let record = ["record", "echo", "-o", "/nowhere/log", flag, value];
            assert_wrong(&record, &[flag, value, "seconds"]);
        }
    }
    for args in [["--rounds", "0"], ["--seconds", "0"]] {
        assert_wrong(&[&["bench", "counter"][..], &args].concat(), &args);
    }
}

#[test]
fn a_demo_of_one_machine_kills_no_backups() {
    let args = ["demo", "--same-machine", "--kill-backup", "--kills", "3"];
    assert_one_line(&tandem(&args), 2, &["--same-machine", "--kill-backup"]);
}

/// A guest that reads nonsense can only panic; so it is not started.
#[test]
fn arguments_a_guest_cannot_read_are_wrong_usage() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let record = ["record", "-o", text(&log)];
    let primary = ["primary", "--backup", "127.0.0.1:1"];
    let file = format!("file:{}", folder.path().display());
    let primary = [&primary[..], &["--arbiter", &file]].concat();
    for command in [&["run"][..], &record, &primary] {
        for (guest, word, why) in [
            ("counter", "ticks=abc", "a number"),
            ("counter", "tick=3", "hz, ticks, iterations"),
            ("clock", "reads=-1", "a number"),
            ("echo", "port=0", "from 1"),
            ("disk", "mode=both", "read, write, mixed"),
            ("kv", "ip=10.0.0.7", "10.77.0.2/24"),
            ("reset", "resets", "KEY=VALUE"),
        ] {
            let args = [command, &[guest, "--arg", word]].concat();
            assert_wrong(&args, &[word, why]);
            let output = tandem(&args);
            assert_one_line(&output, 2, &[word]);
        }
    }
    assert!(!log.exists());
}

#[test]
fn hosts_go_by_name_wherever_an_address_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let flags = format!("file:{}", folder.path().display());
    // A port that is taken is found out after the name is understood.
    let taken = TcpListener::bind("localhost:0").unwrap();
    let named = format!("localhost:{}", taken.local_addr().unwrap().port());
    for args in [
        ["arbiter", "--listen", &named, "--store", &path("a")],
        ["viewservice", "--listen", &named, "--store", &path("v")],
        ["backup", "--listen", &named, "--arbiter", &flags],
    ] {
        assert_one_line(&tandem(&args), 1, &[&named, "listen"]);
    }
    drop(taken);
    // Nobody is there any more.
    let primary = ["primary", "counter", "--backup", &named];
    let output = tandem(&[&primary[..], &["--arbiter", &flags]].concat());
    assert_one_line(&output, 1, &[&named, "tandem backup"]);
    let output = tandem(&["status", "--viewservice", &named]);
    assert_one_line(&output, 1, &[&named]);
    let output = tandem(&["down", "vm", "--viewservice", &named]);
    assert_one_line(&output, 1, &[&named]);
    // A name without an address: `.invalid` never has one (RFC 2606).
    let nowhere = "nowhere.invalid:7700";
    let store = path("s");
    let output = tandem(&["arbiter", "--listen", nowhere, "--store", &store]);
    assert_one_line(&output, 1, &[nowhere, "not found"]);
    for nonsense in ["localhost", "localhost:http", ":7700", "::1:7700"] {
        let args = ["arbiter", "--listen", nonsense, "--store", &store];
        assert_wrong(&args, &["--listen", nonsense]);
    }
}
