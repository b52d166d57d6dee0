//! Going back and forth changes nothing: from wherever one was, the same end.

use crate::common::{LIMIT, machine, os, switch_cluster, text};
use crate::record_counter;
use check::{Load, LoadOptions};
use kit::cluster::Cluster;
use replay::file::LogReader;
use replica::machine::EngineChoice;
use replica::machine::{self as setup, Origin};
use std::path::Path;
use tandem::look::travel::{Arrived, Place, Travel};
use vmm::soft::looking::{Data, Debuggable, Kind, Pause, Watch};

fn open(log: &Path) -> Travel {
    let reader = LogReader::open(log).unwrap();
    let Origin { config, .. } = Origin::of_log(&reader, log).unwrap();
    let blueprint = setup::follow(config, &tandem::node::library::Library, None, None).unwrap();
    let prepared = setup::prepare(blueprint, EngineChoice::Soft).unwrap();
    let (machine, first) = prepared.boot_soft().unwrap();
    assert_eq!(first, reader.header().base.digest);
    Travel::new(machine, reader, None).unwrap()
}

/// A small generator (xorshift), so that places are the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// Everything about a place that can be seen, but memory.
fn seen(travel: &Travel) -> (Place, vmm::state::CpuState, u64) {
    let index = travel.replayer().index().0;
    (travel.place(), travel.engine().view(), index)
}

/// Visits places at random, in any order and by steps, and expects to see the same again each time; then
/// the log's end, checked as in any replay.
fn wander(log: &Path, visits: u64, digest: &str) {
    let mut travel = open(log);
    let origin = travel.place();
    assert_eq!(
        travel.run_to(u64::MAX, &mut || false).unwrap(),
        Arrived::End
    );
    let end = travel.place().steps;
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut been = Vec::new();
    for visit in 0..visits {
        let steps = random.below(end);
        let here = travel.place();
        if steps < here.steps {
            travel.go_to(origin).unwrap();
        }
        travel.run_to(steps, &mut || false).unwrap();
        let place = seen(&travel);
        // Forward a little and back, step by step.
        let hops = 1 + random.below(4);
        for _ in 0..hops {
            travel.step().unwrap();
        }
        for _ in 0..hops {
            assert_ne!(travel.step_back().unwrap(), Arrived::Begin);
        }
        assert_eq!(seen(&travel), place, "visit {visit}");
        been.push(place);
        let other = &been[random.below(been.len() as u64) as usize];
        travel.go_to(other.0).unwrap();
        assert_eq!(seen(&travel), *other, "visit {visit}");
    }
    let ended = travel.finish().unwrap();
    assert_eq!(format!("{:016x}", ended.digest), digest);
}

#[test]
fn wherever_one_was_the_end_is_the_log_s() {
    let _machine = machine();
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    for clock in ["blocks", "instructions"] {
        let recorded = record_counter(&log, &["--clock", clock]);
        wander(&log, 12, recorded["digest"].as_str().unwrap());
    }
}

#[test]
fn a_server_with_clients_is_looked_at_without_being_changed() {
    let _machine = machine();
    let mut cluster: Cluster = switch_cluster("file");
    let server = cluster.serve(6379).unwrap();
    let log = cluster.folder().join("log");
    let args = ["-o", text(&log), "--json", "--digest-every", "64"];
    let args = [&args[..], &["--engine", "soft", "--clock", "instructions"]].concat();
    let mut machine = cluster
        .start_single("record", &os(&["kv"]), &os(&args), true)
        .unwrap();
    machine
        .wait_line(LIMIT, |line| line.contains("ready"))
        .unwrap();
    let options = LoadOptions {
        clients: 2,
        ..LoadOptions::default()
    };
    let load = Load::start(server, options).unwrap();
    assert!(load.wait_replies(60, LIMIT));
    let history = load.stop();
    assert!(history.breaks.is_empty(), "{:?}", history.breaks);
    machine.ask_to_end();
    assert!(machine.wait(LIMIT).unwrap().success());
    let said = machine.said();
    let report: serde_json::Value = serde_json::from_str(said.last().unwrap()).unwrap();
    wander(&log, 6, report["digest"].as_str().unwrap());
}

#[test]
fn watched_data_pauses_by_who_touches_it_forward_and_backward() {
    let _machine = machine();
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    record_counter(&log, &["--clock", "instructions"]);
    let guest = crate::drive::Guest::built_in("counter");
    let ticks = guest.symbol("interrupt_notes");
    let mut travel = open(&log);
    let watch = |kind| Watch::new(Vec::new(), vec![Data::new(ticks, 8, kind).unwrap()]);
    let count = |travel: &Travel| {
        let mut bytes = [0; 8];
        assert_eq!(travel.engine().look(ticks, &mut bytes), 8);
        u64::from_le_bytes(bytes)
    };
    let mut forward = Vec::new();
    for expected in 1..=5 {
        let arrived = travel
            .forward(&mut watch(Kind::Write), &mut || false)
            .unwrap();
        assert!(matches!(arrived, Arrived::Paused(Pause::Data(hit)) if hit.kind == Kind::Write));
        assert_eq!(count(&travel), expected);
        forward.push(seen(&travel));
    }
    // Back, each stop is before the instruction that counts.
    for expected in (0..5).rev() {
        let arrived = travel.backward(&watch(Kind::Write), &mut || false).unwrap();
        assert!(matches!(arrived, Arrived::Paused(Pause::Data(_))));
        assert_eq!(count(&travel), expected);
        let before = travel.place();
        travel.step().unwrap();
        assert_eq!(Some(seen(&travel)), forward.pop());
        travel.go_to(before).unwrap();
    }
    travel
        .forward(&mut watch(Kind::Write), &mut || false)
        .unwrap();
    let before = travel.place();
    // Between two ticks the counter is read, by the loop.
    let arrived = travel
        .forward(&mut watch(Kind::Read), &mut || false)
        .unwrap();
    assert!(matches!(arrived, Arrived::Paused(Pause::Data(hit)) if hit.kind == Kind::Read));
    assert_eq!(count(&travel), 1);
    assert_ne!(travel.place(), before);
    // Before the first tick there is none.
    while travel.backward(&watch(Kind::Write), &mut || false).unwrap() != Arrived::Begin {}
    assert_eq!(travel.place().steps, 0);
    assert_eq!(count(&travel), 0);
    // In the address space of the guest's program, and in another.
    let cr3 = {
        travel
            .forward(&mut watch(Kind::Write), &mut || false)
            .unwrap();
        travel.engine().view().control[2]
    };
    for (cr3, expected) in [(cr3, 2), (cr3 ^ 0x1000, 0)] {
        let data = Data::new(ticks, 8, Kind::Write).unwrap().in_space(cr3);
        let mut watch = Watch::new(Vec::new(), vec![data]);
        let arrived = travel.forward(&mut watch, &mut || false).unwrap();
        match expected {
            0 => assert_eq!(arrived, Arrived::End),
            _ => assert_eq!(count(&travel), expected, "{arrived:?}"),
        }
    }
}
