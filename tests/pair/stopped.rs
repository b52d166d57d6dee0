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

/// The command lines of the processes whose folder for temporary files this is: of demos, and of all they have
/// started. A child that was just forked has the command line of its parent.
fn processes_in(temporary: &Path) -> Vec<String> {
    let theirs = format!("TMPDIR={}", temporary.display()).into_bytes();
    let mut lines = Vec::new();
    for process in std::fs::read_dir("/proc").unwrap().flatten() {
        let environment = std::fs::read(process.path().join("environ")).unwrap_or_default();
        if environment
            .split(|byte| *byte == 0)
            .any(|word| word == theirs)
        {
            let line = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
            lines.push(String::from_utf8_lossy(&line).replace('\0', " "));
        }
    }
    lines
}

/// Whether nobody holds the lock of a demo's folder. A process that ends leaves `/proc` before it has closed its
/// files.
fn is_unlocked(folder: &Path) -> bool {
    let lock = std::fs::File::open(folder.join(".lock")).unwrap();
    nix::fcntl::Flock::lock(lock, nix::fcntl::FlockArg::LockExclusiveNonblock).is_ok()
}

#[test]
fn a_demo_that_is_stopped_leaves_nothing_behind() {
    let _machine = machine();
    if !have_kvm("a stopped demo") {
        return;
    }
    type Phase = fn(&Path) -> bool;
    let pairs = ["demo", "--kills", "1000"].as_slice();
    let same = ["demo", "--kills", "1000", "--same-machine"].as_slice();
    let phases: [(&str, &[&str], Phase); 6] = [
        ("starting", pairs, |temporary| folder(temporary).is_some()),
        ("the pair starts", pairs, |temporary| {
            has_noted(temporary, "kv-0.backup.events", "listening")
        }),
        ("under load", pairs, |temporary| {
            has_noted(temporary, "kv-0.primary.events", "primary")
        }),
        ("after a kill", pairs, |temporary| {
            has_noted(temporary, "kv-0.backup.events", "live")
        }),
        ("at a join", same, |temporary| {
            has_noted(temporary, "kv-same.1.events", "joining")
        }),
        ("after the second kill", same, |temporary| {
            has_noted(temporary, "kv-same.2.events", "live")
        }),
    ];
    for (phase, args, is_there) in phases {
        let temporary = tempfile::tempdir().unwrap();
        let demo = Command::new(PROGRAM)
            .args(args)
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
        let left = processes_in(temporary.path());
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
    let said_at = tempfile::NamedTempFile::new().unwrap();
    let said = said_at.as_file();
    let start = || {
        Command::new(PROGRAM)
            .args(["demo", "--kills", "1000"])
            .env("TMPDIR", temporary.path())
            .stdout(Stdio::null())
            .stderr(Stdio::from(said.try_clone().unwrap()))
            .spawn()
            .unwrap()
    };
    let wait = |what: &str, wanted: &dyn Fn() -> bool| {
        let begun = Instant::now();
        while !wanted() {
            if begun.elapsed() > LIMIT {
                let folders: Vec<_> = std::fs::read_dir(temporary.path()).unwrap().collect();
                let processes = processes_in(temporary.path());
                let said = std::fs::read_to_string(said_at.path()).unwrap();
                panic!("{what}: never; {folders:?}, {processes:#?}, the demos said: {said}");
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    let mut demo = start();
    wait("a pair starts", &|| {
        has_noted(temporary.path(), "kv-0.backup.events", "listening")
    });
    let left = folder(temporary.path()).unwrap();
    demo.kill().unwrap();
    demo.wait().unwrap();
    // Its children die with it, but not before it.
    wait("the killed demo's processes end", &|| {
        processes_in(temporary.path()).is_empty() && is_unlocked(&left)
    });
    assert!(left.exists(), "a process that is killed tidies nothing");
    let mut demo = start();
    wait("the next removes its folder", &|| {
        !left.exists() && folder(temporary.path()).is_some()
    });
    // One that runs keeps its folder, whoever comes.
    let kept = folder(temporary.path()).unwrap();
    let mut other = start();
    wait("two run side by side", &|| {
        std::fs::read_dir(temporary.path()).unwrap().count() == 2
    });
    assert!(kept.exists());
    for demo in [&mut demo, &mut other] {
        demo.kill().unwrap();
        demo.wait().unwrap();
    }
    wait("both demos' processes end", &|| {
        processes_in(temporary.path()).is_empty()
    });
}
