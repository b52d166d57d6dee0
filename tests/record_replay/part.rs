//! Recordings of a part of a machine's run: begun while it runs, left before it ends.

use super::common::{
    LIMIT, assert_last_line, assert_one_line, cluster, have_kvm, machine, os, tandem, tandem_json,
    text,
};
use check::{Load, LoadOptions};
use kit::cluster::Cluster;
use kit::daemon::Daemon;
use replay::file::{LogHeader, LogReader, LogWriter};
use replay::{Base, LogSink};
use std::io::Read;
use std::path::Path;
use std::time::Instant;

const ENGINES: [&str; 2] = ["soft", "kvm"];
/// Part of a run of two seconds.
const PART: [&str; 4] = ["--after", "0.2", "--for", "0.1"];
/// A guest that computes for two seconds, as its ticks are of real time.
const COUNTER: [&str; 3] = ["counter", "--arg", "ticks=200"];
/// The same with five times the ticks.
const TICKING: [&str; 5] = ["counter", "--arg", "ticks=1000", "--arg", "hz=500"];

/// The engines of this host: what is to be shown on KVM as well is counted as skipped where there is none.
fn engines(test: &str) -> &'static [&'static str] {
    let count = if have_kvm(test) { 2 } else { 1 };
    &ENGINES[..count]
}

fn record(log: &Path, more: &[&str], guest: &[&str]) -> serde_json::Value {
    let head = ["record", "-o", text(log), "--json", "--quiet"];
    tandem_json(&[&head, more, guest].concat())
}

/// `log`, of which `recorded` tells, does the same on every engine. How many of its entries are states.
#[track_caller]
fn assert_replayed(log: &Path, recorded: &serde_json::Value, engines: &[&str]) -> u64 {
    for engine in engines {
        let replayed = tandem_json(&["replay", text(log), "--json", "--engine", engine]);
        for key in [
            "base",
            "entries",
            "clock",
            "clock_kind",
            "left",
            "digest",
            "divergence",
        ] {
            assert_eq!(
                recorded[key], replayed[key],
                "{key} on {engine}: {recorded}"
            );
        }
        let status = if recorded["left"] == true {
            &serde_json::Value::Null
        } else {
            &recorded["exit_status"]
        };
        assert_eq!(&replayed["exit_status"], status, "{replayed}");
    }
    let listed = tandem_json(&["log", text(log), "--json"]);
    for key in ["base", "entries", "clock"] {
        assert_eq!(recorded[key], listed[key], "{key}: {listed}");
    }
    let end = if recorded["left"] == true {
        "left"
    } else {
        "machine"
    };
    assert_eq!(listed["end"], end, "{listed}");
    let has_state = recorded["base"]["origin"] == "state";
    assert_eq!(listed["state_bytes"].is_u64(), has_state, "{listed}");
    listed["kinds"]["state"]["count"].as_u64().unwrap_or(0)
}

/// Where the recording begins: index and clock.
fn begins(recorded: &serde_json::Value) -> (u64, u64) {
    let of = |key| recorded["base"][key].as_u64().unwrap();
    (of("index"), of("clock"))
}

#[test]
fn a_part_of_a_run_is_recorded_and_replayed_on_either_engine() {
    let _machine = machine();
    let engines = engines("parts of a run");
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    for recorder in engines {
        // What runs on KVM for a moment takes the software engine long.
        let part = match *recorder {
            "kvm" => ["--after", "0.2", "--for", "0.05"],
            _ => ["--after", "0.2", "--for", "0.3"],
        };
        let more = [&part[..], &["--digest-every", "2", "--engine", recorder]].concat();
        let recorded = record(&log, &more, &TICKING);
        let (index, clock) = begins(&recorded);
        assert!(index > 0 && clock > 0, "{recorded}");
        assert_eq!(recorded["left"], true);
        assert_eq!(recorded["exit_status"], 0);
        assert!(recorded["entries"].as_u64() > Some(4), "{recorded}");
        assert!(recorded["clock"].as_u64() > Some(clock), "{recorded}");
        let states = assert_replayed(&log, &recorded, engines);
        assert!(states > 0, "{states} states");
    }
}

#[test]
fn either_end_of_a_recording_may_be_the_machines_own() {
    let _machine = machine();
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let soft = ["--engine", "soft"];
    for clock in ["blocks", "instructions"] {
        let guest = [&COUNTER[..], &["--clock", clock]].concat();
        let recorded = record(&log, &[&soft[..], &PART[..2]].concat(), &guest);
        assert_eq!(recorded["left"], false, "{recorded}");
        assert!(begins(&recorded).1 > 0, "{recorded}");
        assert_replayed(&log, &recorded, &ENGINES[..1]);

        let recorded = record(&log, &[&soft[..], &PART[2..]].concat(), &guest);
        assert_eq!(recorded["left"], true, "{recorded}");
        assert_eq!(recorded["base"]["origin"], "boot");
        assert_replayed(&log, &recorded, &ENGINES[..1]);
    }
}

#[test]
fn what_is_recorded_is_told_in_words_too() {
    let _machine = machine();
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let record = ["record", "-o", text(&log), "--engine", "soft", "--quiet"];
    let output = tandem(&[&record[..], &PART, &COUNTER].concat());
    assert!(output.status.success(), "{output:?}");
    let listed = tandem_json(&["log", text(&log), "--json"]);
    let (index, clock) = begins(&listed);
    let said = String::from_utf8(output.stderr).unwrap();
    let lines: Vec<&str> = said.lines().collect();
    let begins = format!("the recording begins at entry {index}, clock {clock}");
    let ends = format!(
        "ends at clock {} with {} entries",
        listed["clock"], listed["entries"]
    );
    let all = format!(
        "recorded {} entries from entry {index} at clock {clock} on, clock {}",
        listed["entries"], listed["clock"]
    );
    assert_eq!(lines.len(), 3, "{said}");
    for (line, words) in lines.iter().zip([begins, ends, all]) {
        assert!(line.contains(&words), "'{words}' in: {said}");
    }
    let listed = tandem(&["log", text(&log)]);
    let listed = String::from_utf8(listed.stdout).unwrap();
    let words =
        format!("begins at entry {index}, clock {clock}, in view 0, with the machine's state");
    assert!(listed.contains(&words), "{listed}");
}

#[test]
fn a_guests_disk_is_in_the_part_that_is_recorded() {
    let _machine = machine();
    let engines = engines("parts of a run with a disk");
    let folder = tempfile::tempdir().unwrap();
    let [log, image] = ["log", "disk.img"].map(|name| folder.path().join(name));
    for (recorder, tsc) in engines.iter().zip(["logged", "derived"]) {
        std::fs::write(&image, vec![0x5a; 8 << 20]).unwrap();
        let rounds = [
            "--arg",
            "rounds=1000000",
            "--arg",
            "ms=1500",
            "--arg",
            "hz=100",
        ];
        let guest = [&["disk", "--disk", text(&image), "--tsc", tsc][..], &rounds].concat();
        let more = ["--after", "0.2", "--for", "0.05", "--engine", recorder];
        let recorded = record(&log, &more, &guest);
        assert_eq!(recorded["left"], true, "{recorded}");
        let listed = tandem_json(&["log", text(&log), "--json"]);
        assert!(
            listed["kinds"]["disk"]["count"].as_u64() > Some(0),
            "{listed}"
        );
        // The replay has the data from the log.
        std::fs::remove_file(&image).unwrap();
        assert_replayed(&log, &recorded, engines);
    }
}

#[test]
fn a_guest_resets_its_machine_behind_the_state_it_was_restored_from() {
    let _machine = machine();
    let engines = engines("resets in a part of a run");
    let folder = tempfile::tempdir().unwrap();
    let [log, image] = ["log", "disk.img"].map(|name| folder.path().join(name));
    for recorder in engines {
        std::fs::write(&image, vec![0; 1 << 20]).unwrap();
        // Two lives of half a second.
        let lives = ["--arg", "resets=1", "--arg", "hz=100", "--arg", "ticks=50"];
        let guest = [&["reset", "--disk", text(&image)][..], &lives].concat();
        let engine = ["--engine", recorder];
        // What is recorded on KVM of a guest that computes is replayed there: it would take a minute.
        let replayers = if *recorder == "kvm" {
            &ENGINES[1..]
        } else {
            engines
        };
        let recorded = record(&log, &[&engine[..], &["--after", "0.3"]].concat(), &guest);
        assert_eq!(
            (&recorded["left"], &recorded["exit_status"]),
            (&false.into(), &0.into())
        );
        assert_eq!(recorded["base"]["origin"], "state");
        assert_replayed(&log, &recorded, replayers);
    }
}

/// Records a part of the run of a server, and ends it once `drive` is done with it.
fn serve(
    cluster: &Cluster,
    log: &Path,
    engine: &str,
    drive: impl FnOnce(&Daemon),
) -> serde_json::Value {
    let args = [
        "-o",
        text(log),
        "--json",
        "--engine",
        engine,
        "--after",
        "0.3",
        "--for",
        "0.3",
    ];
    let mut server = cluster
        .start_single("record", &os(&["kv"]), &os(&args), true)
        .unwrap();
    server
        .wait_line(LIMIT, |line| line.contains("ready"))
        .unwrap();
    drive(&server);
    server.ask_to_end();
    assert!(
        server.wait(LIMIT).unwrap().success(),
        "{}",
        server.complaint()
    );
    serde_json::from_str(server.said().last().unwrap()).unwrap()
}

/// Whether the machine runs on behind its recording in `log`.
fn is_left(server: &Daemon, log: &Path) -> bool {
    let said = server.complaint();
    said.contains("the machine runs on") && said.contains(text(log))
}

#[test]
fn a_server_is_recorded_while_its_clients_are_connected() {
    let _machine = machine();
    let engines = engines("a part of a server's run");
    let mut cluster = cluster("file");
    let address = cluster.serve(6379).unwrap();
    for recorder in engines {
        let log = cluster.folder().join(recorder);
        let recorded = serve(&cluster, &log, recorder, |server| {
            let options = LoadOptions {
                clients: 3,
                seed: 11,
                ..LoadOptions::default()
            };
            let load = Load::start(address, options).unwrap();
            let begun = Instant::now();
            while !is_left(server, &log) {
                assert!(load.wait_replies(20, LIMIT), "it serves");
                assert!(begun.elapsed() < LIMIT, "the recording does not end");
            }
            let history = load.stop();
            assert!(history.breaks.is_empty(), "{:?}", history.breaks);
        });
        assert_eq!(recorded["left"], true, "{recorded}");
        assert!(recorded["entries"].as_u64() > Some(50), "{recorded}");
        assert_replayed(&log, &recorded, engines);
    }
}

#[test]
fn a_machine_is_recorded_from_a_halt_on() {
    let _machine = machine();
    let engines = engines("recordings of a halted guest");
    let cluster = cluster("file");
    for recorder in engines {
        let log = cluster.folder().join(recorder);
        let recorded = serve(&cluster, &log, recorder, |server| {
            let begun = Instant::now();
            while !is_left(server, &log) {
                assert!(begun.elapsed() < LIMIT, "the recording does not end");
                std::thread::yield_now();
            }
        });
        assert_eq!(recorded["left"], true, "{recorded}");
        assert_replayed(&log, &recorded, engines);
    }
}

#[test]
fn a_machine_that_ends_before_its_recording_begins_leaves_no_log() {
    let _machine = machine();
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let late = ["--after", "600", "--engine", "soft", "--quiet"];
    let record = [&["record", "-o", text(&log)][..], &late].concat();
    let short = ["counter", "--arg", "ticks=3"];
    let words = ["nothing was recorded", "600 s"];
    for more in [&[][..], &["--json"], &["--for", "1"]] {
        let output = tandem(&[&record[..], &short, more].concat());
        assert_one_line(&output, 1, &words);
        assert!(output.stdout.is_empty(), "{output:?}");
        assert!(!log.exists());
    }
    // A guest that cannot go on ends its machine, too.
    let guest = folder.path().join("guest");
    let undefined = [0x0f, 0x0b];
    std::fs::write(&guest, super::common::bare::elf(&undefined)).unwrap();
    let output = tandem(&[&record[..], &[text(&guest)]].concat());
    assert_last_line(&output, 1, &["cannot go on", "nothing was recorded"]);
    assert!(!log.exists());
    // What was there before is still there.
    std::fs::write(&log, "an older log").unwrap();
    assert_one_line(&tandem(&[&record[..], &short].concat()), 1, &words);
    assert_eq!(std::fs::read(&log).unwrap(), b"an older log");
}

#[test]
fn a_path_that_cannot_be_written_is_told_before_the_guest_runs() {
    let _machine = machine();
    let folder = tempfile::tempdir().unwrap();
    let nowhere = folder.path().join("no/log");
    for path in [&nowhere, &folder.path().to_owned()] {
        let record = [
            "record",
            "-o",
            text(path),
            "--after",
            "600",
            "--engine",
            "soft",
        ];
        let output = tandem(&[&record[..], &["counter", "--arg", "ticks=3"]].concat());
        assert_one_line(&output, 1, &["cannot create the log", text(path)]);
        assert!(output.stdout.is_empty(), "the guest has run: {output:?}");
    }
}

#[test]
fn a_state_that_was_cut_or_altered_is_refused_with_its_place() {
    let _machine = machine();
    let folder = tempfile::tempdir().unwrap();
    let [log, other] = ["log", "other"].map(|name| folder.path().join(name));
    record(&log, &[&PART[..], &["--engine", "soft"]].concat(), &COUNTER);
    let whole = std::fs::read(&log).unwrap();
    let header = u32::from_le_bytes(whole[12..16].try_into().unwrap()) as usize;
    let state = 20 + header;
    let size = LogReader::open(&log)
        .unwrap()
        .state()
        .unwrap()
        .unwrap()
        .size();
    let size = usize::try_from(size).unwrap();
    let replay = ["replay", text(&other), "--engine", "soft"];
    let refused = |bytes: &[u8], words: &[&str]| {
        std::fs::write(&other, bytes).unwrap();
        for more in [&[][..], &["--at", "end"]] {
            let output = tandem(&[&replay[..], more].concat());
            assert_one_line(&output, 1, &[words, &["other"]].concat());
        }
    };
    let place = format!("at byte {state}");
    refused(&whole[..state + size / 2], &["state cut short", &place]);
    for at in [state + 8, state + 8 + size.min(1 << 20) / 2] {
        let mut altered = whole.clone();
        altered[at] ^= 0x20;
        refused(&altered, &["state chunk checksum wrong", &place]);
    }

    // Good checksums around another state, or another digest.
    let mut bytes = Vec::new();
    let reader = LogReader::open(&log).unwrap();
    reader
        .state()
        .unwrap()
        .unwrap()
        .read_to_end(&mut bytes)
        .unwrap();
    let base = reader.header().base;
    let forged = |base: Base, bytes: &[u8], words: &[&str]| {
        let header = LogHeader {
            base,
            ..reader.header().clone()
        };
        let mut state = LogWriter::create_with_state(&other, &header, || 0).unwrap();
        std::io::copy(&mut &*bytes, &mut state).unwrap();
        state.finish().unwrap().flush().unwrap();
        assert_one_line(&tandem(&replay), 1, words);
    };
    forged(
        base,
        &bytes[..bytes.len() - 1],
        &["the state the log begins at"],
    );
    let digest = base.digest ^ 1;
    forged(
        Base { digest, ..base },
        &bytes,
        &["the first state here has digest"],
    );
}

#[test]
fn a_point_of_such_a_log_is_shown() {
    let _machine = machine();
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let recorded = record(&log, &[&PART[..], &["--engine", "soft"]].concat(), &COUNTER);
    let (index, clock) = begins(&recorded);
    let end = recorded["clock"].as_u64().unwrap();
    let at = |point: &str| tandem_json(&["replay", text(&log), "--at", point, "--json"]);
    let first = at(&clock.to_string());
    assert_eq!(
        (&first["clock"], &first["next_entry"]),
        (&clock.into(), &index.into())
    );
    let half = (clock + end) / 2;
    let shown = at(&half.to_string())["clock"].as_u64().unwrap();
    assert!((half..half + 4).contains(&shown), "{shown} for {half}");
    assert_eq!(at(&format!("entry:{index}"))["next_entry"], index + 1);
    let last = at("end")["clock"].as_u64().unwrap();
    assert!(last <= end && end - last < 8, "{last} of {end}");
    for before in [format!("{}", clock - 1), format!("entry:{}", index - 1)] {
        let output = tandem(&["replay", text(&log), "--at", &before]);
        assert_one_line(
            &output,
            1,
            &[&format!("begins at entry {index}, clock {clock}")],
        );
    }
}
