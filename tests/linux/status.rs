//! What an image's command ends with is what the machine ends with, and the program: alone, recorded and
//! replayed, on both sides of a pair, and on its survivor.

use super::common::{assert_last_line, cluster, core, machine, os, tandem, text};
use super::failover::pair;
use super::recorded::{Log, Ran, replay_equals, start};
use super::{LIMIT, images};
use bundle::Bundle;
use std::net::TcpStream;

/// A kernel command line that runs `command` in the guest.
fn append(command: &str) -> String {
    format!("tandem.ip=none tandem.run=\"{command}\"")
}

#[test]
fn a_commands_status_is_the_programs() {
    let _core = core();
    let Some(image) = images::plain() else { return };
    let run = |command: &str| tandem(&["run", text(&image), "--append", &append(command)]);
    for (command, status) in [
        ("exit 3", 3),
        ("exit 255", 255),
        ("no-such-program", 127),
        ("kill -9 $$", 137),
    ] {
        let output = run(command);
        let said = format!("the guest ended with status {status}");
        assert_last_line(&output, status, &[&said]);
        let console = String::from_utf8_lossy(&output.stdout);
        let line = format!("tandem: ended with status {status}");
        assert!(console.contains(&line), "{command}: {console}");
    }
    let output = run("true");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let console = String::from_utf8_lossy(&output.stdout);
    assert!(console.contains("tandem: ended with status 0"), "{console}");
}

#[test]
fn a_status_is_recorded_and_replayed() {
    let _core = core();
    let Some(image) = images::plain() else { return };
    let log = Log::new("status");
    let words = append("exit 42");
    let args = ["record", text(&image), "--json", "--append", &words, "-o"];
    let mut args = os(&args);
    args.push(log.as_os_str().into());
    let mut recorder = start("recorder", args, &log);
    let status = recorder.wait(LIMIT).expect("it ends");
    assert_eq!(status.code(), Some(42), "{}", recorder.complaint());
    let mut console = recorder.said();
    let last = console.pop().expect("a report");
    let report = serde_json::from_str(&last).expect("a report in the last line");
    let recorded = Ran { report, console };
    assert_eq!(recorded.report["exit_status"], 42);
    // A replay that did as the recording did is a success.
    replay_equals(&recorded, &log);
}

#[test]
fn a_status_is_that_of_both_replicas_and_of_a_survivor() {
    let _machine = machine();
    let Some(image) = images::plain() else { return };
    let cluster = cluster("file");
    for killed in [false, true] {
        let vm = if killed { "survived" } else { "whole" };
        // It ends once somebody has called, which is behind the kill.
        let command = match killed {
            true => "tandem.run=\"nc -l -p 6379 >/dev/null; exit 5\"".to_owned(),
            false => append("exit 4"),
        };
        let mut pair = pair(&cluster, vm, &image, &["--append", &command]);
        if killed {
            pair.wait_ready_within("tandem: runs", LIMIT)
                .expect("it boots");
            pair.primary.kill();
            pair.primary.wait(LIMIT).expect("it is gone");
            assert!(pair.primary.was_killed(), "it ended by itself before");
            let deadline = std::time::Instant::now() + LIMIT;
            while TcpStream::connect(cluster.server()).is_err() {
                let late = std::time::Instant::now() > deadline;
                assert!(!late && !pair.backup.has_ended(), "nobody listens");
                // A refused connection is answered at once; another try is all there is to wait on.
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
        } else {
            let status = pair.primary.wait(LIMIT).expect("it ends");
            assert_eq!(status.code(), Some(4), "{}", pair.primary.complaint());
        }
        let status = pair.backup.wait(LIMIT).expect("it ends");
        let expected = if killed { 5 } else { 4 };
        assert_eq!(status.code(), Some(expected), "{}", pair.backup.complaint());
    }
}

#[test]
fn an_image_that_cannot_tell_a_status_says_so() {
    let _core = core();
    let Some(image) = images::plain() else { return };
    let bytes = std::fs::read(&image).unwrap();
    let mut bundle = Bundle::parse(&bytes).unwrap();
    assert!(bundle.manifest.tells_status, "made by this version");
    bundle.manifest.tells_status = false;
    let folder = tempfile::tempdir().unwrap();
    let old = folder.path().join("old.img");
    std::fs::write(&old, bundle.write().unwrap()).unwrap();
    // It is told before anything else can fail.
    let warning = "older version, whose guests end with status 0";
    for (image, warned) in [(&old, true), (&image, false)] {
        let output = tandem(&["run", text(image), "--memory", "16"]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert_eq!(said.contains(warning), warned, "{said}");
    }
}
