//! Results that cannot be written: a full disk is a failure, a reader who has left is none.

use crate::common::{LIMIT, PROGRAM, assert_last_line, machine, os, tandem, text};
use kit::daemon::Daemon;
use std::fs::File;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// A short recording in `folder`; its path.
fn recorded(folder: &Path) -> String {
    let log = folder.join("log");
    let ticks = ["--arg", "ticks=3"];
    let record = ["record", "counter", "--quiet", "-o", text(&log)];
    let recorded = tandem(&[&record[..], &ticks].concat());
    assert!(recorded.status.success());
    text(&log).to_owned()
}

/// Runs the program with its standard output on a device that is full.
fn on_full(words: &[&str]) -> Output {
    let full = File::options().write(true).open("/dev/full");
    Command::new(PROGRAM)
        .args(words)
        .stdout(Stdio::from(full.expect("Linux has it")))
        .output()
        .unwrap()
}

#[test]
fn results_that_do_not_fit_are_a_failure_of_every_command() {
    let _machine = machine();
    let folder = tempfile::tempdir().unwrap();
    let log = recorded(folder.path());
    let log = log.as_str();
    let other = folder.path().join("other");
    let counter = ["counter", "--arg", "ticks=3"];
    let record = ["record", "-o", text(&other)];
    for words in [
        vec!["--help"],
        vec!["--version"],
        vec!["log", "--help"],
        vec!["doctor"],
        vec!["doctor", "--json"],
        vec!["log", log],
        vec!["log", log, "--json"],
        vec!["log", log, "--entries"],
        vec!["replay", log],
        vec!["replay", log, "--json"],
        vec!["replay", log, "--console"],
        vec!["replay", log, "--at", "5"],
        vec!["replay", log, "--at", "5", "--json"],
        [&["run"][..], &counter].concat(),
        [&record[..], &counter].concat(),
        [&record[..], &counter, &["--json", "--quiet"]].concat(),
    ] {
        let output = on_full(&words);
        assert_last_line(&output, 1, &["cannot write to standard output", "space"]);
    }
}

#[test]
fn a_replica_whose_console_is_full_says_so_at_its_end() {
    let _machine = machine();
    let folder = tempfile::tempdir().unwrap();
    let flags = format!("file:{}", folder.path().display());
    let replica = ["--arbiter", &flags];
    let events = folder.path().join("events");
    let listen = ["backup", "--listen", "127.0.0.1:0", "--quiet"];
    let words = [&listen[..], &replica, &["--events", text(&events)]].concat();
    let errors = folder.path().join("errors");
    let mut backup = Daemon::start("backup", os(&words), errors).unwrap();
    let port = loop {
        let said = std::fs::read_to_string(&events).unwrap_or_default();
        let mut whole = said.split_inclusive('\n').filter(|l| l.ends_with('\n'));
        if let Some(line) = whole.find(|line| line.contains("\"listening\"")) {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            break line["detail"].as_str().unwrap().to_owned();
        }
        assert!(!backup.has_ended(), "{said}");
        std::thread::yield_now();
    };
    let primary = ["primary", "counter", "--arg", "ticks=3", "--backup", &port];
    let output = on_full(&[&primary[..], &replica].concat());
    assert_last_line(&output, 1, &["cannot write to standard output", "space"]);
    assert!(backup.wait(LIMIT).unwrap().success(), "it has no console");
}

/// What nobody reads any more is no failure of the program's: it ends as if all had been read.
#[test]
fn closed_pipes_end_nothing_in_a_panic() {
    let folder = tempfile::tempdir().unwrap();
    let log = recorded(folder.path());
    let log = log.as_str();
    let commands = [
        vec!["--help"],
        vec!["doctor", "--json"],
        vec!["log", log],
        vec!["log", log, "--json"],
        vec!["log", log, "--entries"],
        vec!["replay", log],
        vec!["replay", log, "--json"],
    ];
    for words in commands {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        drop(reader);
        let output = Command::new(PROGRAM)
            .args(&words)
            .stdout(Stdio::from(writer))
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "{words:?}: {}: {errors}",
            output.status
        );
        assert!(!errors.contains("panicked"), "{words:?}: {errors}");
    }
    // With nobody to complain to, failures are failures still.
    let (reader, writer) = nix::unistd::pipe().unwrap();
    drop(reader);
    let status = Command::new(PROGRAM)
        .args(["log", "/nowhere"])
        .stderr(Stdio::from(writer))
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(1));
}
