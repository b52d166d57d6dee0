//! A demo stopped by Ctrl-C, in each of its phases: nothing is left behind. One that was killed leaves its
//! folder to the next.

use super::common::{LIMIT, PROGRAM, have_kvm, machine};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The demo's folder, once it has made it.
fn folder(temporary: &Path) -> Option<PathBuf> {
    std::fs::read_dir(temporary)
        .unwrap()
        .flatten()
        .map(|entry| entry.path())
        .next()
}

/// Whether the replica that writes `events` has noted `event`.
fn has_noted(temporary: &Path, events: &str, event: &str) -> bool {
    let Some(folder) = folder(temporary) else {
        return false;
    };
    let text = std::fs::read_to_string(folder.join(events)).unwrap_or_default();
    text.contains(&format!("\"{event}\""))
}

/// Processes that have `word` on their command lines.
fn processes_with(word: &str) -> Vec<String> {
    std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok())
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .filter(|line| line.contains(word))
        .collect()
}

#[test]
fn a_demo_that_is_stopped_leaves_nothing_behind() {
    let _machine = machine();
    if !have_kvm("a stopped demo") {
        return;
    }
    type Phase = fn(&Path) -> bool;
    let phases: [(&str, Phase); 4] = [
        ("starting", |temporary| folder(temporary).is_some()),
        ("the pair starts", |temporary| {
            has_noted(temporary, "kv-0.backup.events", "listening")
        }),
        ("under load", |temporary| {
            has_noted(temporary, "kv-0.primary.events", "primary")
        }),
        ("after a kill", |temporary| {
            has_noted(temporary, "kv-0.backup.events", "live")
        }),
    ];
    for (phase, is_there) in phases {
        let temporary = tempfile::tempdir().unwrap();
        let demo = Command::new(PROGRAM)
            .args(["demo", "--kills", "1000"])
            .env("TMPDIR", temporary.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let begun = Instant::now();
        while !is_there(temporary.path()) {
            assert!(begun.elapsed() < LIMIT, "{phase}: never");
            std::thread::sleep(Duration::from_millis(1));
        }
        kill(
            Pid::from_raw(i32::try_from(demo.id()).unwrap()),
            Signal::SIGINT,
        )
        .unwrap();
        let output = demo.wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(130), "{phase}: {stderr}");
        let lines = stderr.lines().filter(|line| !line.contains(" kills, "));
        assert_eq!(lines.count(), 1, "beside progress, {phase}: {stderr}");
        assert_eq!(folder(temporary.path()), None, "{phase}");
        let left = processes_with(temporary.path().to_str().unwrap());
        assert!(left.is_empty(), "{phase}: {left:?}");
    }
}

#[test]
fn the_next_demo_removes_what_a_killed_one_has_left() {
    let _machine = machine();
    if !have_kvm("a killed demo") {
        return;
    }
    let temporary = tempfile::tempdir().unwrap();
    let start = || {
        Command::new(PROGRAM)
            .args(["demo", "--kills", "1000"])
            .env("TMPDIR", temporary.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    };
    let wait = |wanted: &dyn Fn() -> bool| {
        let begun = Instant::now();
        while !wanted() {
            assert!(begun.elapsed() < LIMIT);
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    let mut demo = start();
    wait(&|| has_noted(temporary.path(), "kv-0.backup.events", "listening"));
    let left = folder(temporary.path()).unwrap();
    demo.kill().unwrap();
    demo.wait().unwrap();
    // Its children die with it, but not before it.
    wait(&|| processes_with(temporary.path().to_str().unwrap()).is_empty());
    assert!(left.exists(), "a process that is killed tidies nothing");
    let mut demo = start();
    wait(&|| !left.exists() && folder(temporary.path()).is_some());
    // One that runs keeps its folder, whoever comes.
    let kept = folder(temporary.path()).unwrap();
    let mut other = start();
    wait(&|| std::fs::read_dir(temporary.path()).unwrap().count() == 2);
    assert!(kept.exists());
    for demo in [&mut demo, &mut other] {
        demo.kill().unwrap();
        demo.wait().unwrap();
    }
    wait(&|| processes_with(temporary.path().to_str().unwrap()).is_empty());
}
