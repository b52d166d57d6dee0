//! `tandem doctor`: what this host can do; for each 'no', why, and what would help.

mod clocks;

use crate::cli::{DoctorArgs, SecurityArgs};
use crate::failure::{During, Failure, Outcome};
use clocks::ClockCheck;
use kit::host::{self, HostFacts};
use serde::Serialize;
use std::fmt::Write as _;
use std::time::{Duration, Instant};
use terminal::say;
use terminal::table::WIDTH;
use terminal::table::wrap;
use vmm::backends::fenced;
use vmm::backends::netns::{PrivateNetwork, PrivateNetworkError};
use vmm::backends::tap::TapError;
use vmm::cpu::CpuModel;
use vmm::kvm::{Host, KvmError, KvmKind};
use vmm::processor::HostProcessor;
use vmm::soft::can_translate;

/// Columns of the section, of the name, of yes or no; the text stands behind them.
const SECTION: usize = 10;
const NAME: usize = 13;
const VERDICT: usize = 4;
const INDENT: usize = SECTION + NAME + VERDICT;

/// Longest wait for a thread that has looked up a name.
const LOOKED_UP: Duration = Duration::from_secs(1);

/// Why something cannot be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// The reason.
    pub why: String,
    /// What would help.
    pub help: Option<String>,
}

impl Trouble {
    /// A trouble nobody knows help for.
    pub fn new(why: impl Into<String>) -> Self {
        Self {
            why: why.into(),
            help: None,
        }
    }

    /// The same, with what would help.
    #[must_use]
    pub fn help(self, help: impl Into<String>) -> Self {
        Self {
            help: Some(help.into()),
            ..self
        }
    }
}

/// Whether something can be had here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Its name, as on the command line.
    pub name: &'static str,
    /// Whether it can.
    pub usable: bool,
    /// How that was found out, or why not.
    pub why: String,
    /// What would help, where something would.
    pub help: Option<String>,
}

impl Check {
    fn yes(name: &'static str, why: impl Into<String>) -> Self {
        Self {
            name,
            usable: true,
            why: why.into(),
            help: None,
        }
    }

    fn no(name: &'static str, trouble: Trouble) -> Self {
        Self {
            name,
            usable: false,
            why: trouble.why,
            help: trouble.help,
        }
    }

    /// In words, in at most 80 columns.
    fn lines(&self, section: &str) -> String {
        let verdict = if self.usable { "yes" } else { "no" };
        let mut out = format!("{section:SECTION$}{:NAME$}{verdict:VERDICT$}", self.name);
        let help = self
            .help
            .as_ref()
            .map(|help| format!("what would help: {help}"));
        let texts = [Some(&self.why), help.as_ref()];
        let lines = texts
            .into_iter()
            .flatten()
            .flat_map(|text| wrap(text, WIDTH - INDENT));
        for (n, line) in lines.enumerate() {
            let indent = if n == 0 { 0 } else { INDENT };
            let _ = writeln!(out, "{:indent$}{line}", "");
        }
        out
    }
}

#[derive(Debug, Serialize)]
struct EngineCheck {
    #[serde(flatten)]
    check: Check,
    kind: KvmKind,
}

#[derive(Debug, Serialize)]
struct ModelCheck {
    #[serde(flatten)]
    check: Check,
    missing: Vec<&'static str>,
}

/// What this host can do.
#[derive(Debug, Serialize)]
struct Report {
    host: HostFacts,
    engines: Vec<EngineCheck>,
    clocks: Vec<ClockCheck>,
    networks: Vec<Check>,
    cpu_models: Vec<ModelCheck>,
    heartbeats: Check,
    disk: Check,
    executor: Check,
    /// Of the arbiter that was named, if one was.
    arbiter: Option<Check>,
    can_protect: bool,
}

/// Looks at this host. Fails if no guest can be protected on it, or not with the arbiter that is named.
pub fn doctor(args: &DoctorArgs) -> Outcome {
    // On the host's own network, which is left next.
    let arbiter = args
        .arbiter
        .as_deref()
        .map(|address| arbiter(address, &args.security));
    // A network of one's own can only be made before any thread is.
    let networks = networks();
    let host = HostFacts::gather();
    let (engine, cpu_models) = engine();
    let words = !args.json;
    if words {
        say(&section("host", &host.describe()));
        let processor = HostProcessor::of_this_host();
        say(&section(
            "processor",
            &format!("{processor}; on KVM both hosts of a pair need one of this maker"),
        ));
        say(&engine.check.lines("engine"));
    }
    let clocks = clocks(&engine.check, |clock| {
        if words {
            say(&clock.check.lines("clock"));
        }
    })?;
    let usable = |check: &Check| check.usable;
    let can_protect = engine.check.usable
        && clocks.iter().any(|clock| usable(&clock.check))
        && networks.iter().any(usable)
        && cpu_models.iter().any(|model| usable(&model.check));
    let report = Report {
        host,
        engines: vec![engine],
        clocks,
        networks,
        cpu_models,
        heartbeats: heartbeats(logchannel::may_be_prompt()),
        disk: disk(fenced::is_fenced()),
        executor: executor(can_translate().err()),
        arbiter,
        can_protect,
    };
    if words {
        report
            .networks
            .iter()
            .for_each(|check| say(&check.lines("network")));
        report
            .cpu_models
            .iter()
            .for_each(|model| say(&model.check.lines("CPU model")));
        say(&report.heartbeats.lines("heartbeat"));
        say(&report.disk.lines("disk"));
        say(&report.executor.lines("executor"));
        if let Some(check) = &report.arbiter {
            say(&check.lines("arbiter"));
        }
    } else {
        say(&(serde_json::to_string(&report).during("report")? + "\n"));
    }
    if !can_protect {
        return Err(Failure::new("no guest can be protected on this host"));
    }
    if let Some(check) = report.arbiter.filter(|check| !check.usable) {
        return Err(Failure::new(check.why));
    }
    if words {
        say("\nA guest can be protected on this host: tandem demo shows it.\n");
    }
    Ok(())
}

/// A text of a section of its own, in at most 80 columns.
fn section(name: &str, text: &str) -> String {
    let mut out = String::new();
    for (n, line) in wrap(text, WIDTH - SECTION).iter().enumerate() {
        let name = if n == 0 { name } else { "" };
        let _ = writeln!(out, "{name:SECTION$}{line}");
    }
    out
}

fn networks() -> Vec<Check> {
    let tap = match PrivateNetwork::enter(&["tandem0"]) {
        Ok(_) => Check::yes(
            "tap",
            "TAP and bridge in a network namespace of one's own were made",
        ),
        Err(e) => Check::no("tap", network_trouble(&e)),
    };
    vec![
        tap,
        Check::yes(
            "switch",
            "a userspace switch over unix sockets, which needs nothing",
        ),
    ]
}

fn network_trouble(error: &PrivateNetworkError) -> Trouble {
    let trouble = Trouble::new(match error {
        // The message has the help in it.
        PrivateNetworkError::Tap(TapError::Missing) => "/dev/net/tun is missing".to_owned(),
        PrivateNetworkError::Tap(TapError::NoRight) => "no right to open /dev/net/tun".to_owned(),
        other => other.to_string(),
    });
    match error {
        PrivateNetworkError::Tap(TapError::Missing) => trouble.help("modprobe tun"),
        PrivateNetworkError::Tap(TapError::NoRight) => trouble.help("run as root"),
        PrivateNetworkError::Unshare(_) => trouble.help(
            "run as root, or let users have namespaces (sysctl user.max_user_namespaces=10000, and \
             kernel.apparmor_restrict_unprivileged_userns=0 where there is AppArmor)",
        ),
        PrivateNetworkError::Step { .. } => {
            trouble.help("run as root, on a kernel with bridges (modprobe bridge)")
        }
        PrivateNetworkError::Threads(_) | PrivateNetworkError::Tap(_) => trouble,
    }
}

/// Whether a busy host sends its heartbeats in time.
fn heartbeats(prompt: bool) -> Check {
    if prompt {
        let why = "sent and watched before all other work of this host (SCHED_RR)";
        return Check::yes("prompt", why);
    }
    let trouble = Trouble::new(
        "real-time scheduling is not allowed: on a host with more to run than processors a replica may \
         be taken for dead",
    );
    let help = "run as root, or raise RLIMIT_RTPRIO to 2 (ulimit -r)";
    Check::no("prompt", trouble.help(help))
}

/// Whether an arbiter would take a flag. Its store is made if there is none.
fn arbiter(address: &str, security: &SecurityArgs) -> Check {
    let given = address.split_once(':').map(|(kind, _)| kind);
    let kind = ["file", "tcp", "etcd"]
        .into_iter()
        .find(|kind| given == Some(kind));
    let name = kind.unwrap_or("unknown");
    let looked = match security.open() {
        Ok(security) => testandset::look(address, &security),
        Err(error) => return Check::no(name, Trouble::new(error.to_string())),
    };
    // A name is looked up on a thread, which may be about to end.
    let begun = Instant::now();
    let threads = || std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    while threads() > 1 && begun.elapsed() < LOOKED_UP {
        std::thread::yield_now();
    }
    match looked {
        Ok(store) => Check::yes(name, format!("it would take a flag, in its store {store}")),
        Err(error) => Check::no(name, Trouble::new(error.to_string())),
    }
}

/// Whether the software engine may run guests as host code.
fn executor(forbidden: Option<std::io::Error>) -> Check {
    let Some(why) = forbidden else {
        return Check::yes("translate", "the software engine runs guests as host code");
    };
    let trouble = Trouble::new(format!("no code that was written may be run: {why}"));
    Check::no(
        "translate",
        trouble.help(
            "allow this program executable memory; until then it interprets, several times slower",
        ),
    )
}

/// Whether a primary that was stopped can write to a shared disk when it wakes.
fn disk(fenced: bool) -> Check {
    if fenced {
        return Check::yes(
            "fenced",
            "a primary that is stopped before a write does not begin it late",
        );
    }
    let trouble =
        Trouble::new("the C library registers no restartable sequences: a write may come late");
    Check::no(
        "fenced",
        trouble.help("use glibc 2.35 or later, with glibc.pthread.rseq on"),
    )
}

fn engine() -> (EngineCheck, Vec<ModelCheck>) {
    let kind = KvmKind::of_this_host();
    let opened = Host::open();
    let check = match &opened {
        Ok(_) => Check::yes("kvm", host::kind_in_words(kind)),
        Err(e) => Check::no("kvm", kvm_trouble(e)),
    };
    let models = CpuModel::ALL.map(|model| {
        let missing = opened.as_ref().map(|host| host.missing_features(model));
        model_check(model, missing.unwrap_or(Ok(Vec::new())), opened.is_ok())
    });
    (EngineCheck { check, kind }, models.into())
}

fn kvm_trouble(error: &KvmError) -> Trouble {
    match error {
        KvmError::Missing => Trouble::new("no /dev/kvm: this host has no KVM").help(
            "modprobe kvm_intel, kvm_amd or kvm_pvm; in a virtual machine, have nested \
             virtualisation enabled",
        ),
        KvmError::Denied => Trouble::new("no right to open /dev/kvm")
            .help("run as root, or join the group that owns it (usually 'kvm')"),
        KvmError::Lacking(_) => Trouble::new(error.to_string()).help("a newer kernel"),
        KvmError::Ioctl { .. } => Trouble::new(error.to_string()),
    }
}

fn model_check(
    model: CpuModel,
    missing: Result<Vec<&'static str>, KvmError>,
    kvm: bool,
) -> ModelCheck {
    let name = model.name();
    let (check, missing) = match missing {
        Ok(_) if !kvm => (
            Check::no(name, Trouble::new("there is no KVM to ask")),
            Vec::new(),
        ),
        Ok(missing) if missing.is_empty() => {
            (Check::yes(name, "KVM has every feature of it"), missing)
        }
        Ok(missing) => {
            let trouble = Trouble::new(format!("KVM lacks {}", missing.join(", ")))
                .help("a host with a newer processor, or one that passes these features on");
            (Check::no(name, trouble), missing)
        }
        Err(e) => (Check::no(name, Trouble::new(e.to_string())), Vec::new()),
    };
    ModelCheck { check, missing }
}

/// Tests each clock, and tells of each as soon as it is known.
fn clocks(engine: &Check, tell: impl Fn(&ClockCheck)) -> Outcome<Vec<ClockCheck>> {
    let folder = tempfile::tempdir().during("cannot make a folder for the self-tests")?;
    let mut all = Vec::new();
    for name in ["blocks", "instructions", "branches"] {
        let clock = if !engine.usable {
            let trouble = Trouble {
                why: "it needs KVM".into(),
                help: engine.help.clone(),
            };
            ClockCheck {
                check: Check::no(name, trouble),
                self_test: None,
            }
        } else if name == "branches" {
            clocks::branches()
        } else {
            clocks::test(name, folder.path())
        };
        tell(&clock);
        all.push(clock);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(usable: bool) -> Check {
        let why = "a reason that is told in so many words that it takes a second line".to_owned();
        Check {
            name: "instructions",
            usable,
            why,
            help: (!usable).then(|| "another host".into()),
        }
    }

    #[test]
    fn words_fit_into_eighty_columns_and_end_with_the_help() {
        let text = check(false).lines("CPU model");
        assert!(
            text.lines().all(|line| line.chars().count() <= WIDTH),
            "{text}"
        );
        assert!(
            text.starts_with("CPU model instructions no  a reason"),
            "{text}"
        );
        assert!(text.ends_with("what would help: another host\n"), "{text}");
        assert!(check(true).lines("clock").contains("yes a reason"));
        let text = section("processor", &"words ".repeat(30));
        assert!(text.starts_with("processor words words"), "{text}");
        assert!(text.lines().all(|line| line.len() <= WIDTH), "{text}");
    }

    #[test]
    fn the_report_has_what_scripts_look_for() {
        let missing = vec!["popcnt", "sse4_2"];
        let report = Report {
            host: HostFacts::gather(),
            engines: vec![EngineCheck {
                check: Check::no("kvm", kvm_trouble(&KvmError::Denied)),
                kind: KvmKind::Hardware,
            }],
            clocks: vec![ClockCheck {
                check: check(false),
                self_test: None,
            }],
            networks: vec![check(true)],
            cpu_models: vec![model_check(CpuModel::V2, Ok(missing), true)],
            heartbeats: heartbeats(false),
            disk: disk(false),
            executor: executor(None),
            arbiter: Some(arbiter("tcp:127.0.0.1:1", &SecurityArgs::default())),
            can_protect: false,
        };
        let json = serde_json::to_value(&report).unwrap();
        let processor = &json["host"]["processor"];
        assert!(processor["maker"].is_string(), "{processor}");
        for number in ["family", "model", "stepping"] {
            assert!(processor[number].is_u64(), "{processor}");
        }
        assert_eq!(json["engines"][0]["name"], "kvm");
        assert_eq!(json["engines"][0]["usable"], false);
        assert_eq!(json["engines"][0]["kind"], "hardware");
        assert!(
            json["engines"][0]["help"]
                .as_str()
                .unwrap()
                .contains("group")
        );
        assert_eq!(json["clocks"][0]["name"], "instructions");
        assert_eq!(json["networks"][0]["help"], serde_json::Value::Null);
        assert_eq!(json["cpu_models"][0]["missing"][1], "sse4_2");
        let arbiter = &json["arbiter"];
        assert_eq!(
            (arbiter["name"].as_str(), arbiter["usable"].as_bool()),
            (Some("tcp"), Some(false))
        );
        assert!(
            arbiter["why"].as_str().unwrap().contains("out of reach"),
            "{arbiter}"
        );
        assert_eq!(json["cpu_models"][0]["why"], "KVM lacks popcnt, sse4_2");
    }

    #[test]
    fn every_trouble_a_user_can_mend_comes_with_help() {
        for error in [
            KvmError::Missing,
            KvmError::Denied,
            KvmError::Lacking("x".into()),
        ] {
            assert!(kvm_trouble(&error).help.is_some(), "{error}");
        }
        for error in [TapError::Missing, TapError::NoRight] {
            assert!(network_trouble(&error.into()).help.is_some());
        }
        let without = model_check(CpuModel::V1, Ok(Vec::new()), false);
        assert!(!without.check.usable);
    }
}
