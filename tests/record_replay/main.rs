//! Every guest recorded and replayed, and what becomes of a log that was tampered with.

#[path = "../common/mod.rs"]
mod common;
mod outside;
mod part;
mod reading;

use check::{Load, LoadOptions};
use common::{have_kvm, machine, tandem, tandem_json, text};
use kit::cluster::Cluster;
use replay::codec::to_bytes;
use replay::file::{LogHeader, LogReader, LogWriter};
use replay::{Event, LogEntry, LogSink};
use replica::machine::Origin;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use vmm::processor::HostProcessor;

/// Pairs of recording and replay a guest goes through here; many more, on a busy host, in `pairs`.
const PAIRS: u64 = 8;

fn record(log: &Path, guest: &[&str]) -> serde_json::Value {
    let mut args = vec![
        "record",
        "-o",
        text(log),
        "--json",
        "--quiet",
        "--digest-every",
        "64",
    ];
    args.extend(guest);
    tandem_json(&args)
}

fn replay(log: &Path) -> serde_json::Value {
    tandem_json(&["replay", text(log), "--json"])
}

/// Records and replays `guest` with arguments that change from pair to pair.
fn repeat(name: &str, guest: impl Fn(u64) -> Vec<String>) {
    let _machine = machine();
    if !have_kvm(name) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    for seed in 0..PAIRS {
        let words = guest(seed);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let recorded = record(&log, &words);
        let replayed = replay(&log);
        for key in ["entries", "clock", "clock_kind", "digest", "exit_status"] {
            assert_eq!(
                recorded[key], replayed[key],
                "{key} of seed {seed}: {words:?}"
            );
        }
        assert!(replayed["divergence"].is_null());
        assert!(recorded["entries"].as_u64() > Some(2), "{recorded}");
    }
}

/// Writes `log` anew as if it had been recorded on a host with this processor.
fn recorded_on(log: &Path, to: &Path, processor: HostProcessor) {
    let mut reader = LogReader::open(log).unwrap();
    let mut origin = Origin::of_log(&reader, log).unwrap();
    assert_eq!(origin.processor, Some(HostProcessor::of_this_host()));
    origin.processor = Some(processor);
    let header = LogHeader {
        config: to_bytes(&origin),
        ..reader.header().clone()
    };
    let mut writer = LogWriter::create(to, &header, || 0).unwrap();
    while let Some((entry, _)) = reader.read().unwrap() {
        writer.append(&entry).unwrap();
    }
    writer.flush().unwrap();
}

/// Writes `log` anew as if the recording had been left at the stop of its `nth` arrival or output, or of the last
/// one, by a machine with this digest. How many entries that makes.
fn left_at(log: &Path, to: &Path, nth: usize, digest: u64) -> u64 {
    let mut reader = LogReader::open(log).unwrap();
    let mut entries = Vec::new();
    while let Some((entry, _)) = reader.read().unwrap() {
        entries.push(entry);
    }
    let ends_a_stop = |pair: &&[LogEntry]| {
        let is_one = matches!(pair[0].event, Event::Arrival(_) | Event::Output { .. });
        is_one && pair[0].clock < pair[1].clock
    };
    let stops = entries.windows(2).filter(ends_a_stop);
    let last = stops.take(nth + 1).last().unwrap()[0].clone();
    let mut writer = LogWriter::create(to, reader.header(), || 0).unwrap();
    for entry in entries.iter().take_while(|entry| entry.clock <= last.clock) {
        writer.append(entry).unwrap();
    }
    let event = Event::Left { digest };
    writer.append(&LogEntry { event, ..last }).unwrap();
    writer.flush().unwrap();
    writer.entries()
}

#[test]
fn a_recording_left_before_its_machine_ends_is_replayed_so_far() {
    let _machine = machine();
    let folder = tempfile::tempdir().unwrap();
    let [log, left] = ["log", "left"].map(|name| folder.path().join(name));
    record(&log, &["counter", "--arg", "ticks=50", "--engine", "soft"]);
    // Two timer ticks, and what the guest says in the end.
    for nth in [0, 20, 1_000] {
        // A machine with another digest there is another machine.
        let entries = left_at(&log, &left, nth, 0);
        let args = ["replay", text(&left), "--json", "--engine", "soft"];
        let other = tandem(&args);
        assert_eq!(other.status.code(), Some(1));
        let other: serde_json::Value = serde_json::from_slice(&other.stdout).unwrap();
        let found = other["divergence"]["found"].as_str().unwrap();
        let words: Vec<&str> = found.split(' ').collect();
        assert!(found.contains("where the recording ends"), "{found}");
        let digest = words[words.iter().position(|word| *word == "state").unwrap() + 1];

        let same = u64::from_str_radix(digest, 16).unwrap();
        assert_eq!(left_at(&log, &left, nth, same), entries);
        let replayed = tandem_json(&args);
        assert_eq!(replayed["entries"], entries);
        assert_eq!(replayed["digest"], digest);
        for key in ["divergence", "error", "exit_status"] {
            assert!(replayed[key].is_null(), "{key}: {replayed}");
        }
        let said = tandem(&args[..2]);
        let said = String::from_utf8(said.stdout).unwrap();
        assert!(said.contains("the machine ran on"), "{said}");

        let listed = tandem_json(&["log", text(&left), "--json"]);
        assert_eq!(
            (&listed["whole"], &listed["end"]),
            (&true.into(), &"left".into())
        );
        assert_eq!(listed["entries"], entries);
        let listed = tandem(&["log", text(&left), "--entries"]);
        let listed = String::from_utf8(listed.stdout).unwrap();
        let last = listed.lines().last().unwrap();
        assert!(last.contains("Left"), "{last}");
    }
}

#[test]
fn a_log_of_another_makers_processor_is_replayed_with_a_warning() {
    let _machine = machine();
    if !have_kvm("a log of another maker's processor") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let guest = ["counter", "--arg", "hz=1000", "--arg", "ticks=20"];
    record(&log, &[&["--engine", "kvm"], &guest[..]].concat());
    let foreign = folder.path().join("foreign.log");
    let here = HostProcessor::of_this_host();
    let warned = |log: &Path, engine: &str| {
        let output = tandem(&["replay", text(log), "--engine", engine]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        said
    };
    assert_eq!(warned(&log, "kvm"), "", "its own");
    let maker = *b"OtherMakerCo";
    recorded_on(&log, &foreign, HostProcessor { maker, ..here });
    let said = warned(&foreign, "kvm");
    assert!(said.contains("recorded on OtherMakerCo family"), "{said}");
    assert!(said.contains("--engine soft"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    // The software engine is of no maker; that it is another engine is told.
    let said = warned(&foreign, "soft");
    assert!(!said.contains("OtherMakerCo"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    let listed = tandem_json(&["log", text(&foreign), "--json"]);
    let named = listed["processor"].as_str().unwrap();
    assert!(named.starts_with("OtherMakerCo family"), "{listed}");

    let family = here.family + 1;
    recorded_on(&log, &foreign, HostProcessor { family, ..here });
    let said = warned(&foreign, "kvm");
    assert!(said.contains("families of one maker may differ"), "{said}");

    record(&log, &[&["--engine", "soft"], &guest[..]].concat());
    let listed = tandem_json(&["log", text(&log), "--json"]);
    assert!(listed["processor"].is_null(), "{listed}");
}

fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|word| (*word).to_owned()).collect()
}

#[test]
fn p2_p3_counter_is_interrupted_at_the_same_instructions() {
    repeat("counter", |seed| {
        let hz = [100, 250, 1000, 2000][seed as usize % 4];
        words(&[
            "counter",
            "--arg",
            &format!("hz={hz}"),
            "--arg",
            &format!("ticks={}", hz / 5),
        ])
    });
}

#[test]
fn p5_clock_is_told_the_same_times() {
    repeat("clock", |seed| {
        words(&["clock", "--arg", &format!("reads={}", 200 + seed * 37)])
    });
}

#[test]
fn p4_p17_disk_reads_never_race_with_the_guest() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("disk.img");
    std::fs::write(&image, vec![0x5a; 8 << 20]).unwrap();
    repeat("disk", |seed| {
        let rounds = format!("rounds={}", 20 + seed);
        words(&["disk", "--disk", text(&image), "--arg", &rounds])
    });
}

#[test]
fn a_guest_that_resets_itself_starts_over() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("disk.img");
    repeat("reset", |seed| {
        std::fs::write(&image, vec![0; 1 << 20]).unwrap();
        let resets = format!("resets={}", 1 + seed);
        words(&["reset", "--disk", text(&image), "--arg", &resets])
    });
    let _machine = machine();
    if !have_kvm("a reset that ends the machine") {
        return;
    }
    std::fs::write(&image, vec![0; 1 << 20]).unwrap();
    let log = folder.path().join("log");
    let guest = ["reset", "--disk", text(&image), "--on-reset", "end"];
    let output = tandem(&[&["record", "-o", text(&log)], &guest[..]].concat());
    common::assert_last_line(&output, 1, &["reset (status 3321)", "--on-reset"]);
    let replayed = replay(&log);
    assert_eq!(replayed["exit_status"], 3321);
}

#[test]
fn an_image_that_was_changed_is_not_started_over() {
    let _machine = machine();
    if !have_kvm("a reset with another image") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name| folder.path().join(name);
    let (guest, disk, log) = (path("guest"), path("disk.img"), path("log"));
    let built_in = guests::BUILT_IN.iter();
    let (_, _, bytes) = built_in
        .clone()
        .find(|(name, ..)| *name == "reset")
        .unwrap();
    std::fs::write(&guest, bytes).unwrap();
    std::fs::write(&disk, vec![0; 1 << 20]).unwrap();
    // Long enough a life to change the file in.
    let words = [text(&guest), "--disk", text(&disk), "--arg", "ticks=3000"];
    let mut child = std::process::Command::new(common::PROGRAM)
        .args(["run"])
        .args(words)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = [0; 12];
    let stdout = child.stdout.as_mut().unwrap();
    stdout.read_exact(&mut said).unwrap();
    let mut changed = bytes.to_vec();
    *changed.last_mut().unwrap() ^= 1;
    std::fs::write(&guest, &changed).unwrap();
    let output = child.wait_with_output().unwrap();
    common::assert_last_line(&output, 1, &["was changed meanwhile", text(&guest)]);
    // The name going to another file is no change of this one.
    std::fs::write(&guest, bytes).unwrap();
    std::fs::write(&disk, vec![0; 1 << 20]).unwrap();
    let words = [text(&guest), "--disk", text(&disk), "--arg", "ticks=300"];
    let head = ["record", "-o", text(&log), "--json"];
    let mut child = std::process::Command::new(common::PROGRAM)
        .args(head)
        .args(words)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    child
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut said)
        .unwrap();
    std::fs::remove_file(&guest).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn derived_time_is_not_in_the_log_and_replays_the_same() {
    repeat("derived time", |seed| {
        let reads = format!("reads={}", 200 + seed * 37);
        let hz = format!("hz={}", 100 + seed * 400);
        let ticking = ["counter", "--arg", "ticks=50", "--arg", &hz];
        let reading = ["clock", "--arg", &reads];
        let guest = if seed % 2 == 0 {
            &ticking[..]
        } else {
            &reading[..]
        };
        words(&[guest, &["--tsc", "derived"]].concat())
    });
    let _machine = machine();
    if !have_kvm("the log of derived time") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    record(&log, &["clock", "--tsc", "derived"]);
    let kinds = &tandem_json(&["log", text(&log), "--json"])["kinds"];
    assert!(kinds["tsc"].is_null(), "{kinds}");
    record(&log, &["clock"]);
    let kinds = &tandem_json(&["log", text(&log), "--json"])["kinds"];
    assert!(kinds["tsc"]["count"].as_u64() > Some(0), "{kinds}");
}

/// Records a server on the network that `make` makes while `drive` talks to it, stops it, and replays.
fn repeat_server(
    guest: &str,
    port: u16,
    make: impl Fn(&str) -> Cluster,
    drive: impl Fn(SocketAddr, u64),
) {
    let _machine = machine();
    if !have_kvm(guest) {
        return;
    }
    let mut cluster = make("file");
    let server = cluster.serve(port).unwrap();
    let log = cluster.folder().join("log");
    for seed in 0..PAIRS {
        let args = ["-o", text(&log), "--json", "--digest-every", "64"];
        let mut machine = cluster
            .start_single("record", &common::os(&[guest]), &common::os(&args), true)
            .unwrap();
        machine
            .wait_line(common::LIMIT, |line| line.contains("ready"))
            .unwrap();
        drive(server, seed);
        machine.ask_to_end();
        assert!(
            machine.wait(common::LIMIT).unwrap().success(),
            "{}",
            machine.complaint()
        );
        let said = machine.said();
        let recorded: serde_json::Value = serde_json::from_str(said.last().unwrap()).unwrap();
        let replayed = replay(&log);
        for key in ["entries", "clock", "digest"] {
            assert_eq!(recorded[key], replayed[key], "{key} of seed {seed}");
        }
        assert!(recorded["entries"].as_u64() > Some(50), "{recorded}");
    }
}

fn ask_kv(server: SocketAddr, seed: u64) {
    let options = LoadOptions {
        clients: 6,
        seed,
        ..LoadOptions::default()
    };
    let load = Load::start(server, options).unwrap();
    assert!(load.wait_replies(400 + 100 * seed % 1000, common::LIMIT));
    let history = load.stop();
    assert!(history.breaks.is_empty(), "{:?}", history.breaks);
}

fn have_echoed(server: SocketAddr, seed: u64) {
    let mut stream = TcpStream::connect(server).unwrap();
    let bytes: Vec<u8> = (0..40_000u64)
        .map(|n| ((n * (seed + 3)) >> 2) as u8)
        .collect();
    let mut back = vec![0; bytes.len()];
    let mut reader = stream.try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| reader.read_exact(&mut back).unwrap());
        stream.write_all(&bytes).unwrap();
    });
    assert_eq!(back, bytes);
}

#[test]
fn p2_kv_is_replayed_with_its_clients_requests() {
    repeat_server("kv", 6379, common::cluster, ask_kv);
}

#[test]
fn p2_kv_is_replayed_on_the_userspace_switch() {
    repeat_server("kv", 6379, common::switch_cluster, ask_kv);
}

#[test]
fn p2_echo_is_replayed_with_its_clients_bytes() {
    repeat_server("echo", 7, common::cluster, have_echoed);
}

#[test]
fn p2_echo_is_replayed_on_the_userspace_switch() {
    repeat_server("echo", 7, common::switch_cluster, have_echoed);
}

#[test]
fn a_log_altered_at_any_place_is_refused_with_the_place_named() {
    let _machine = machine();
    if !have_kvm("altered logs") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    record(&log, &["counter", "--arg", "ticks=20", "--arg", "hz=1000"]);
    let whole = std::fs::read(&log).unwrap();
    let other = folder.path().join("other");
    let step = (whole.len() / 40).max(1);
    for at in (0..whole.len()).step_by(step) {
        let mut altered = whole.clone();
        altered[at] ^= 0x20;
        std::fs::write(&other, &altered).unwrap();
        let output = tandem(&["replay", text(&other)]);
        common::assert_one_line(&output, 1, &["other"]);
        std::fs::write(&other, &whole[..at]).unwrap();
        let output = tandem(&["replay", text(&other)]);
        common::assert_one_line(&output, 1, &["other"]);
    }
}

#[test]
fn a_forged_entry_with_a_good_checksum_is_a_divergence_that_names_it() {
    let _machine = machine();
    if !have_kvm("forged logs") {
        return;
    }
    use replay::file::{LogReader, LogWriter};
    use replay::{Clock, LogSink};
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    record(&log, &["counter", "--arg", "ticks=30", "--arg", "hz=1000"]);
    let mut reader = LogReader::open(&log).unwrap();
    let forged = folder.path().join("forged");
    let mut writer = LogWriter::create(&forged, reader.header(), || 0).unwrap();
    let mut index = 0;
    while let Some((mut entry, _)) = reader.read().unwrap() {
        if index == 10 {
            entry.clock = Clock(entry.clock.0 + 1001); // a microsecond or so later
        }
        writer.append(&entry).unwrap();
        index += 1;
    }
    drop(writer);
    let output = tandem(&["replay", text(&forged), "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["divergence"]["index"], 10, "{report}");
    assert!(
        report["divergence"]["context"]
            .as_str()
            .unwrap()
            .contains("entry 9"),
        "{report}"
    );
    // For people there is what to run to look at it, each of which can be run.
    let output = tandem(&["replay", text(&forged)]);
    let words = String::from_utf8_lossy(&output.stderr);
    let path = text(&forged);
    for way in [
        format!("  tandem replay {path} --at end  #"),
        format!("  tandem replay {path} --at end --core out.core  #"),
        format!("  tandem replay {path} --pcap out.pcapng  #"),
        format!("  tandem trace {path} --perfetto out.pftrace  #"),
    ] {
        assert!(words.contains(&way), "{way}: {words}");
    }
    let core = folder.path().join("core");
    let there = tandem(&["replay", path, "--at", "end", "--core", text(&core)]);
    let words = String::from_utf8_lossy(&there.stdout);
    assert!(
        words.contains("the replay goes no further: divergence"),
        "{words}"
    );
    assert!(std::fs::read(&core).unwrap().starts_with(b"\x7fELF"));
}

#[test]
fn a_log_of_another_guest_is_refused() {
    let _machine = machine();
    if !have_kvm("foreign logs") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    record(&log, &["counter", "--arg", "ticks=5"]);
    let output = tandem(&["replay", text(&log), "--image", "clock"]);
    common::assert_one_line(&output, 1, &["not the one meant", "--image"]);
}
