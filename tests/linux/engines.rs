//! Which engine runs Linux.

use super::common::skipped::skip_this;
use super::common::{PROGRAM, assert_one_line, core, tandem, text};
use super::{LIMIT, images};
use kit::daemon::Daemon;
use std::process::Command;
use vmm::kvm::KvmKind;

#[test]
fn auto_takes_the_software_engine_for_linux_and_says_so() {
    let _core = core();
    let Some(image) = images::plain() else { return };
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let args = [
        "record",
        text(&image),
        "--cpu",
        "v2",
        "--quiet",
        "-o",
        text(&log),
        "--append",
        "tandem.run=true",
    ];
    let errors = folder.path().join("errors");
    let mut recorder = Daemon::start("recorder", args, errors.clone()).unwrap();
    let status = recorder.wait(LIMIT).unwrap();
    let said = std::fs::read_to_string(errors).unwrap();
    assert!(status.success(), "{said}");
    let line = said.lines().find(|line| line.contains("software engine"));
    assert!(line.is_some_and(|line| line.contains("Linux")), "{said}");
}

#[test]
fn kvm_is_refused_for_linux_in_one_line_that_says_what_to_do() {
    let _core = core();
    if KvmKind::of_this_host() == KvmKind::Hardware {
        skip_this(&"this host's KVM is no software one");
        return;
    }
    let Some(image) = images::plain() else { return };
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    for cpu in ["v1", "v2"] {
        let args = ["--cpu", cpu, "--engine", "kvm"];
        let record = ["record", text(&image), "-o", text(&log)];
        let output = tandem(&[&record[..], &args].concat());
        assert_one_line(&output, 1, &["Linux", "--engine soft"]);
        let output = Command::new(PROGRAM)
            .args(["run", text(&image)])
            .args(args)
            .output()
            .unwrap();
        assert_one_line(&output, 1, &["Linux", "--engine soft"]);
    }
    assert!(!log.exists(), "a recording that never began leaves no log");
}
