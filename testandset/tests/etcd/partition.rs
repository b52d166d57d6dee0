//! A leader that is cut off from the other members, while a replica reaches it: in network namespaces.
//!
//! ```text
//!   namespace of the test:  bridge 10.93.0.254 ── clients
//!        │         │         │
//!     10.93.0.1 10.93.0.2 10.93.0.3     a namespace and a member each
//!        ╰─ cut ─╯                      a route that leads nowhere, on the side of the one that is cut off
//! ```

use crate::rigs::etcd::{Etcd, Options, PATIENCE, is_here, patient};
use crate::{flag, impatient, line, who};
use std::process::{Command, Stdio};
use std::time::Instant;
use testandset::{Arbiter, ArbiterError, EtcdArbiter, Verdict};
use testing::skipped::skip_this;

/// Set in the process that is in namespaces of its own.
const INSIDE: &str = "TANDEM_TEST_INSIDE";

/// What that process says when it has tried all.
const DONE: &str = "rounds of cutting a leader off";

/// Runs `command` and its arguments, in words; whether it ended well.
fn runs(words: &str) -> bool {
    let mut words = words.split(' ');
    let mut command = Command::new(words.next().unwrap());
    let output = command.args(words).stdin(Stdio::null()).output();
    output.is_ok_and(|output| output.status.success())
}

fn run(words: &str) {
    assert!(runs(words), "{words}");
}

#[test]
fn a_leader_that_is_cut_off_gives_no_verdict_and_no_old_answer() {
    if !is_here() {
        return;
    }
    if std::env::var_os(INSIDE).is_some() {
        return inside();
    }
    let namespaces =
        "unshare --user --map-root-user --net --mount --pid --fork --kill-child --mount-proc";
    if !runs(&format!("{namespaces} ip link add name br0 type bridge")) {
        return skip_this(&"no network namespace with a bridge can be made here");
    }
    let me = std::env::current_exe().unwrap();
    let name = "partition::a_leader_that_is_cut_off_gives_no_verdict_and_no_old_answer";
    let output = Command::new("unshare")
        .args(namespaces.split(' ').skip(1))
        .arg(me)
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success(), "inside the namespaces: {said}");
    let ran = said.contains(" 1 passed") && said.contains(DONE);
    assert!(ran, "nothing was tried: {said}");
    println!("{said}");
}

/// The namespaces of three members, each kept by a process that sleeps.
struct Net {
    keepers: Vec<std::process::Child>,
}

impl Net {
    fn make() -> Self {
        run("ip link set lo up");
        run("ip link add name br0 type bridge");
        run("ip address add 10.93.0.254/24 dev br0");
        run("ip link set br0 up");
        let keepers = (1..=3).map(|n| {
            let mut keeper = Command::new("unshare");
            // It says so when it has the namespace.
            keeper.args(["--net", "sh", "-c", "echo; exec sleep 1000"]);
            let mut keeper = keeper.stdout(Stdio::piped()).spawn().unwrap();
            let mut there = [0];
            let told = keeper.stdout.as_mut().unwrap();
            std::io::Read::read_exact(told, &mut there).unwrap();
            let pid = keeper.id();
            run(&format!(
                "ip link add v{n} type veth peer name e0 netns {pid}"
            ));
            run(&format!("ip link set v{n} master br0 up"));
            for words in [
                format!("ip address add 10.93.0.{n}/24 dev e0"),
                "ip link set e0 up".into(),
                "ip link set lo up".into(),
            ] {
                run(&format!("nsenter --target {pid} --net {words}"));
            }
            keeper
        });
        Self {
            keepers: keepers.collect(),
        }
    }

    fn prefix(&self, member: usize) -> Vec<String> {
        let pid = self.keepers[member].id().to_string();
        ["nsenter", "--target", &pid, "--net"]
            .map(String::from)
            .to_vec()
    }

    /// Cuts `member` off from the other members, or ends that.
    fn cut(&self, member: usize, how: &str) {
        for other in (0..3).filter(|other| *other != member) {
            let words = self.prefix(member).join(" ");
            run(&format!(
                "{words} ip route {how} blackhole 10.93.0.{}/32",
                other + 1
            ));
        }
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for keeper in &mut self.keepers {
            let _ = keeper.kill();
            let _ = keeper.wait();
        }
    }
}

fn inside() {
    let rounds = testing::numbers::number("TANDEM_ETCD_CUTS").unwrap_or(1);
    let net = Net::make();
    let places = (1..=3).map(|n| (format!("10.93.0.{n}:2379"), format!("10.93.0.{n}:2380")));
    let prefixes = (0..3).map(|n| net.prefix(n)).collect();
    let mut etcd = Etcd::start_at(places.collect(), prefixes, Options::default());
    let words = etcd.words();
    let all = EtcdArbiter::new(&words).unwrap();
    etcd.wait_for(|| all.check());
    assert_eq!(all.test_and_set(&flag(1), &who("a")).unwrap(), Verdict::Won);
    for view in 2..2 + rounds {
        let leader = etcd.leader();
        let left_alone = impatient(&etcd.members[leader].client);
        etcd.wait_for(|| left_alone.check());
        net.cut(leader, "add");
        // Whoever reaches the old leader alone learns nothing, not even what it knows.
        for error in [
            left_alone.test_and_set(&flag(view), &who("b")).unwrap_err(),
            left_alone.holder(&flag(1)).unwrap_err(),
            left_alone.newest(&flag(1).vm).unwrap_err(),
        ] {
            assert!(
                matches!(error, ArbiterError::Unreachable { .. }),
                "{}",
                line(&error)
            );
        }
        // The others elect another, and whoever asks all of them is told.
        let deadline = Instant::now() + PATIENCE;
        let verdict = loop {
            match all.test_and_set(&flag(view), &who("a")) {
                Ok(verdict) => break verdict,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
        };
        assert_eq!(
            verdict,
            Verdict::Won,
            "what the old leader was told counts nothing"
        );
        left_alone.test_and_set(&flag(view), &who("b")).unwrap_err();
        net.cut(leader, "delete");
        let left_alone = patient(&etcd.members[leader].client);
        etcd.wait_for(|| left_alone.check());
        let verdict = left_alone.test_and_set(&flag(view), &who("b")).unwrap();
        assert_eq!(verdict, Verdict::Lost { holder: who("a") });
        for before in 1..view {
            assert_eq!(left_alone.holder(&flag(before)).unwrap(), Some(who("a")));
        }
    }
    drop(etcd);
    drop(net);
    println!("{rounds} {DONE}");
}
