//! The demo on a host that others use, too: it ends well, or says that the host is too loaded. In no case do
//! its clients notice a failover.
//!
//! `TANDEM_CROWDED=N` asks for N kills in each demo instead of 2.

#[path = "../common/mod.rs"]
mod common;

use common::spinners::Spinners;
use common::{PROGRAM, have_kvm, machine};
use std::process::{Child, Command, Output, Stdio};

/// Threads that spin beside the demos.
const SPINNERS: usize = 4;

fn kills() -> String {
    std::env::var("TANDEM_CROWDED").unwrap_or_else(|_| "2".into())
}

/// Starts a demo; `before` is what the command line begins with.
fn demo(before: &[&str], kills: &str) -> Child {
    let words = [before, &[PROGRAM, "demo", "--json", "--kills", kills]].concat();
    Command::new(words[0])
        .args(&words[1..])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("a demo starts")
}

/// What became of a demo, in a line.
#[track_caller]
fn judged(what: &str, output: &Output, kills: &str) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!stderr.contains("panicked"), "{what}: {stderr}");
    // There is no verdict when a demo could not be made, and then the host has to be why.
    let Ok(verdict) = serde_json::from_slice::<serde_json::Value>(&output.stdout) else {
        assert_eq!(output.status.code(), Some(1), "{what}: {stderr}");
        let last = stderr.lines().last().unwrap_or_default();
        assert!(
            last.contains("this host is too loaded for a demo"),
            "{what}: {stderr}"
        );
        return format!("{what}: {last}");
    };
    let expected = [
        ("kills", kills.parse::<u64>().unwrap().into()),
        ("connections_broken", 0.into()),
        ("lost_writes", 0.into()),
        ("linearizable", true.into()),
    ];
    for (name, value) in expected {
        let value: serde_json::Value = value;
        assert_eq!(verdict[name], value, "{what}: {verdict} {stderr}");
    }
    assert!(output.status.success(), "{what}: {stderr}");
    format!("{what}: stall_ms {}", verdict["stall_ms"])
}

#[test]
fn two_demos_at_a_time_on_a_host_with_other_work() {
    let _machine = machine();
    if !have_kvm("two demos at a time") {
        return;
    }
    let _spinners = Spinners::start(SPINNERS);
    let kills = kills();
    let both = ["the one", "the other"].map(|which| (which, demo(&[], &kills)));
    let ended = both.map(|(which, child)| (which, child.wait_with_output().unwrap()));
    for (which, output) in ended {
        println!("{}", judged(which, &output, &kills));
    }
}

#[test]
fn a_demo_that_comes_after_all_others() {
    let _machine = machine();
    if !have_kvm("a demo under nice") {
        return;
    }
    let _spinners = Spinners::start(SPINNERS);
    let kills = kills();
    let output = demo(&["nice", "-n", "19"], &kills)
        .wait_with_output()
        .unwrap();
    println!("{}", judged("under nice", &output, &kills));
}
