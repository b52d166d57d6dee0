//! Two KVM hosts with processors of different makers or families: refused, vouched for, warned of.

use super::common::{LIMIT, have_kvm, machine};
use super::{Replica, SHORT, Site};
use vmm::processor::HostProcessor;

/// A processor, as the hidden flag takes it.
fn as_argument(processor: HostProcessor) -> String {
    let HostProcessor {
        maker,
        family,
        model,
        stepping,
    } = processor;
    let maker = std::str::from_utf8(&maker).unwrap();
    format!("{maker}:{family}:{model}:{stepping}")
}

/// One that is not of this host's maker.
fn foreign() -> HostProcessor {
    let here = HostProcessor::of_this_host();
    let makers = [*b"GenuineIntel", *b"AuthenticAMD"];
    let maker = makers
        .into_iter()
        .find(|maker| *maker != here.maker)
        .unwrap();
    HostProcessor { maker, ..here }
}

/// A primary on KVM whose host says that it has this processor.
fn primary(site: &Site, at: &str, processor: HostProcessor, more: &[&str]) -> Replica {
    let pretended = as_argument(processor);
    let pretend = ["--engine", "kvm", "--host-processor", &pretended];
    site.primary(&[&SHORT[..], &pretend, more].concat(), at)
}

/// Both end well; each was warned, in these words, or not at all.
#[track_caller]
fn both_end(mut primary: Replica, mut backup: Replica, warned: Option<&str>) {
    primary.ends_well();
    backup.ends_well();
    for replica in [&primary, &backup] {
        let noted = replica
            .events()
            .into_iter()
            .find(|line| line.event == "unlike_hosts");
        let said = replica.said();
        match warned {
            Some(words) => {
                assert!(noted.unwrap().detail.contains(words));
                assert!(said.contains(words), "{said}");
            }
            None => {
                assert!(noted.is_none());
                assert!(!said.contains("processor"), "{said}");
            }
        }
    }
}

#[test]
fn processors_of_different_makers_are_refused_unless_vouched_for() {
    let _machine = machine();
    if !have_kvm("processors of different makers") {
        return;
    }
    let site = Site::new();
    let (backup, at) = site.backup(&["--engine", "kvm"]);
    let why = primary(&site, &at, foreign(), &[]).is_refused();
    let theirs = format!("the primary's processor is {}", foreign());
    let ours = format!("the backup's {}", HostProcessor::of_this_host());
    for words in [
        &theirs,
        &ours,
        "undefined flags",
        "--engine soft",
        "--unlike-hosts",
    ] {
        assert!(why.contains(words), "'{words}' in: {why}");
    }
    // The backup has said the same, goes on listening, and takes the one that is vouched for; the refused
    // one has left no mark that keeps the machine from beginning.
    backup.wait_said(&theirs);
    let vouched = primary(&site, &at, foreign(), &["--unlike-hosts"]);
    both_end(vouched, backup, Some(&theirs));
}

#[test]
fn families_of_one_maker_are_warned_of_on_both_sides() {
    let _machine = machine();
    if !have_kvm("processors of different families") {
        return;
    }
    let site = Site::new();
    let (backup, at) = site.backup(&["--engine", "kvm"]);
    let here = HostProcessor::of_this_host();
    let other = HostProcessor {
        family: here.family + 1,
        ..here
    };
    let primary = primary(&site, &at, other, &[]);
    both_end(primary, backup, Some("families of one maker may differ"));
}

#[test]
fn the_software_engine_follows_whoever_made_the_processor() {
    let _machine = machine();
    if !have_kvm("a software backup of another maker's KVM") {
        return;
    }
    let site = Site::new();
    let (backup, at) = site.backup(&["--engine", "soft"]);
    both_end(primary(&site, &at, foreign(), &[]), backup, None);
}

#[test]
fn models_and_steppings_are_not_compared() {
    let _machine = machine();
    if !have_kvm("processors of different models") {
        return;
    }
    let site = Site::new();
    let (backup, at) = site.backup(&["--engine", "kvm"]);
    let here = HostProcessor::of_this_host();
    let other = HostProcessor {
        model: here.model ^ 1,
        stepping: here.stepping ^ 1,
        ..here
    };
    both_end(primary(&site, &at, other, &[]), backup, None);
}

#[test]
fn a_greeting_with_less_than_a_processor_is_refused() {
    use logchannel::{Hello, Settings, offer};
    use replay::ViewNumber;
    let _machine = machine();
    let site = Site::new();
    let (mut backup, at) = site.backup(&[]);
    let arbiter = testandset::parse(&site.arbiter.borrow(), &tls::Security::Loopback).unwrap();
    let store = arbiter.store().unwrap().to_bytes();
    // What the version before this one sent: a machine, its engine, and no processor.
    for config in [&b""[..], &[0xff; 40], &[7; 60_000]] {
        let hello = Hello {
            vm: "by-hand".into(),
            incarnation: "a".into(),
            base: replay::Base::boot(ViewNumber(1), 0),
            store,
            settings: Settings::default(),
            config: config.to_vec(),
        };
        let socket = std::net::TcpStream::connect(at.as_str()).unwrap();
        let why = offer(socket, &hello, LIMIT).unwrap_err().to_string();
        assert!(why.contains("the machine's configuration"), "{why}");
    }
    backup.daemon.ask_to_end();
    backup.is_refused();
}
