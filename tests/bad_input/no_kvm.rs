//! Hosts without KVM, and users who may not open it: played in a mount namespace with a `/dev` of its own, by
//! a process without any capability.

use crate::common::skipped::skip_this;
use crate::common::{PROGRAM, assert_one_line, machine, text};
use std::path::Path;
use std::process::{Command, Output};

/// Runs its arguments where `/dev` has a `kvm` only if `$KVM` is not empty, which nobody may open.
///
/// Without capabilities (and with `noroot`, by which root gains none in `exec`) a file of mode 0 is closed to
/// its owner, too.
const INSIDE: &str = r#"
mount -t tmpfs -o size=64k,mode=755 tandem "$DEV"
for node in null zero full random urandom; do
    : >"$DEV/$node"
    mount --bind "/dev/$node" "$DEV/$node"
done
if [ -n "$KVM" ]; then
    : >"$DEV/kvm"
    chmod 0 "$DEV/kvm"
fi
mount --rbind "$DEV" /dev
exec setpriv --securebits +noroot --bounding-set -all --inh-caps -all --ambient-caps -all "$@"
"#;

/// What makes a mount namespace here: for users, or for a root whose kernel grants users none.
const UNSHARE: [&[&str]; 2] = [&["--user", "--map-root-user", "--mount"], &["--mount"]];

/// A host whose `/dev/kvm` is missing, or closed.
struct Host {
    unshare: &'static [&'static str],
    kvm: &'static str,
    folder: tempfile::TempDir,
}

impl Host {
    /// One with a `/dev/kvm` nobody may open, or none; `None`, counted as skipped, where none can be played.
    fn new(closed: bool) -> Option<Self> {
        let host = UNSHARE.into_iter().find_map(|unshare| {
            let host = Self {
                unshare,
                kvm: if closed { "closed" } else { "" },
                folder: tempfile::tempdir().unwrap(),
            };
            std::fs::create_dir(host.folder.path().join("dev")).unwrap();
            host.run(&["true"]).status.success().then_some(host)
        });
        if host.is_none() {
            skip_this(&"no mount namespace can be made here");
        }
        host
    }

    fn run(&self, words: &[&str]) -> Output {
        Command::new("unshare")
            .args(self.unshare)
            .args(["sh", "-euc", INSIDE, "sh"])
            .args(words)
            .env("DEV", self.folder.path().join("dev"))
            .env("KVM", self.kvm)
            .output()
            .expect("Debian's util-linux is essential")
    }

    fn record(&self, engine: &str, log: &Path) -> Output {
        let record = [PROGRAM, "record", "counter", "--quiet", "-o", text(log)];
        let how = ["--arg", "ticks=3", "--engine", engine];
        self.run(&[&record[..], &how].concat())
    }
}

/// With `kvm` it is an error, with `auto` a warning; both have `why`.
fn refused_or_warned(closed: bool, why: &str) {
    let _machine = machine();
    let Some(host) = Host::new(closed) else {
        return;
    };
    let log = host.folder.path().join("log");
    assert_one_line(&host.record("kvm", &log), 1, &[why]);
    assert!(!log.exists(), "a recording that never began leaves no log");

    let recorded = host.record("auto", &log);
    let said = String::from_utf8_lossy(&recorded.stderr);
    assert_eq!(recorded.status.code(), Some(0), "{said}");
    let warnings: Vec<_> = said.lines().filter(|line| line.contains("WARN")).collect();
    let [warning] = warnings.as_slice() else {
        panic!("{said}");
    };
    assert!(warning.contains("software engine"), "{warning}");
    assert!(warning.contains(why), "{warning}");
    let listed = host.run(&[PROGRAM, "log", text(&log), "--json"]);
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!(
        (&listed["engine"], &listed["whole"]),
        (&"soft".into(), &true.into())
    );
}

#[test]
fn a_host_without_kvm_is_told_or_runs_the_software_engine() {
    refused_or_warned(false, "no /dev/kvm");
}

#[test]
fn a_user_who_may_not_open_kvm_is_told_or_runs_the_software_engine() {
    refused_or_warned(true, "no right to open /dev/kvm");
}
