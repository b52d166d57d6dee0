//! `tandem chaos`: as its user runs it.

use crate::common::{PROGRAM, assert_last_line, assert_one_line, have_kvm, machine, tandem, text};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::process::{Command, Output, Stdio};
use testing::numbers::number;
use testing::skipped::skip_this;

/// Whether the run could not begin, which is counted.
fn is_skipped(output: &Output) -> bool {
    let said = String::from_utf8_lossy(&output.stderr);
    let why = ["no hosts can be made here", "no link can be cut here"];
    let skipped = why.iter().any(|why| said.contains(why));
    if skipped {
        skip_this(&said.trim());
    }
    skipped
}

/// Faults of all kinds for `TANDEM_CHAOS_SECONDS`, by the seed `TANDEM_SEED`.
#[test]
fn a_machine_outlives_faults_of_every_kind() {
    let _machine = machine();
    if !have_kvm("chaos") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let history = folder.path().join("history.jsonl");
    let seconds = number("TANDEM_CHAOS_SECONDS").unwrap_or(25);
    let lasts = format!("{seconds}s");
    let seed = number("TANDEM_SEED").unwrap_or(1).to_string();
    let words = [
        "chaos",
        "--for",
        &lasts,
        "--seed",
        &seed,
        "--clients",
        "4",
        "--json",
    ];
    let output = tandem(&[&words[..], &["--history", text(&history)]].concat());
    if is_skipped(&output) {
        return;
    }
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON on stdout");
    println!("{report:#}");
    for (what, is) in [
        ("connections_broken", Value::from(0)),
        ("lost_writes", Value::from(0)),
        ("linearizable", Value::from(true)),
        ("protected", Value::from(true)),
    ] {
        assert_eq!(report[what], is, "{what}");
    }
    // Each takes some seconds at most, on a host with other work, too.
    assert!(
        report["faults"].as_u64() >= Some(seconds / 8),
        "so few faults"
    );
    assert!(report["acked_writes"].as_u64() > Some(0));
    let lines = std::fs::read_to_string(&history).expect("a history");
    let ops: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert_eq!(
        ops.len() as u64,
        report["operations"].as_u64().expect("a number")
    );
    assert!(
        ops.iter()
            .all(|op| op["call"].is_u64() && op["kind"].is_string())
    );
}

#[test]
fn one_that_is_stopped_leaves_nothing_behind() {
    let _machine = machine();
    if !have_kvm("chaos, stopped") {
        return;
    }
    let temporary = tempfile::tempdir().expect("a folder");
    let mut chaos = Command::new(PROGRAM)
        .args(["chaos", "--for", "1h", "--clients", "2"])
        .env("TMPDIR", temporary.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let said = BufReader::new(chaos.stdout.take().expect("a pipe"));
    // When the first fault is over.
    let began = said
        .lines()
        .map_while(Result::ok)
        .any(|line| line.contains("all well again"));
    let pid = i32::try_from(chaos.id()).expect("small");
    // All that it has started, by what their folder is.
    let mark = temporary.path().display().to_string();
    let of_it = || {
        let all = std::fs::read_dir("/proc").expect("processes").flatten();
        let words = all.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
        words
            .filter(|words| String::from_utf8_lossy(words).contains(&mark))
            .count()
    };
    if began {
        assert!(of_it() >= 5, "it runs replicas and services");
        kill(Pid::from_raw(pid), Signal::SIGINT).expect("it is there");
    }
    let output = chaos.wait_with_output().expect("it ends");
    if !began && is_skipped(&output) {
        return;
    }
    assert_last_line(&output, 130, &["stopped; nothing is left running"]);
    assert_eq!(of_it(), 0, "processes are left");
    let left: Vec<_> = std::fs::read_dir(temporary.path())
        .expect("it")
        .flatten()
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn what_cannot_be_is_said_in_a_line() {
    let _machine = machine();
    let output = tandem(&["chaos", "--for", "1s", "--history", "/no/such/folder/file"]);
    assert_one_line(&output, 1, &["cannot write /no/such/folder/file"]);
    for time in ["5", "m", "-1s", "0s", "5d", ""] {
        let output = tandem(&["chaos", &format!("--for={time}")]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{time}: {said}");
        assert!(said.contains("--for"), "{time}: {said}");
    }
}
