//! Looking inside replays: with gdb, forward and backward, and at one point.

#[path = "../common/mod.rs"]
mod common;
mod drive;
mod strays;
mod travel;

use common::{machine, tandem, tandem_json, text};
use drive::{Gdb, Guest, have_gdb};
use std::path::Path;

/// Records the counter: `ticks` ticks.
fn record_counter(log: &Path, more: &[&str]) -> serde_json::Value {
    let mut args = vec!["record", "-o", text(log), "--json", "--quiet"];
    args.extend(["--engine", "soft", "--digest-every", "8"]);
    args.extend(["counter", "--arg", "hz=1000", "--arg", "ticks=20"]);
    args.extend(more);
    tandem_json(&args)
}

/// What the replay in `gdb`'s hands says at its end must be what the recording said.
fn assert_same_end(recorded: &serde_json::Value, replayed: &serde_json::Value) {
    for key in ["entries", "clock", "clock_kind", "digest", "exit_status"] {
        assert_eq!(recorded[key], replayed[key], "{key}");
    }
    assert!(replayed["divergence"].is_null());
}

/// Breakpoints, steps, watchpoints, and all of them backwards, on a guest interrupted by ticks.
fn gdb_goes_forward_and_back(more: &[&str]) {
    let _machine = machine();
    if !have_gdb() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let recorded = record_counter(&log, more);
    let guest = Guest::built_in("counter");
    let main = guest.symbol("guest_main");
    let ticks = guest.symbol("interrupt_notes");

    let gdb = Gdb::start(&log);
    let show = "printf \"regs %lx %lx %lx %lx %lx %lx %x\\n\", $rip, $rsp, $rax, $rcx, $rdx, $rsi, $eflags";
    let count = format!("printf \"ticks %ld\\n\", *(long *){ticks:#x}");
    let script = [
        format!("hbreak *{main:#x}"),
        "continue".into(),
        show.into(),
        "x/16xb $rip".into(),
        "delete".into(),
        // The tick's stub counts it: the first write is the first tick.
        format!("watch *(long *){ticks:#x}"),
        "continue".into(),
        count.clone(),
        "continue".into(),
        count.clone(),
        "continue".into(),
        count.clone(),
        show.into(),
        "stepi".into(),
        "stepi".into(),
        "stepi".into(),
        show.into(),
        "reverse-stepi".into(),
        "reverse-stepi".into(),
        "reverse-stepi".into(),
        show.into(),
        // Backwards it stops before the instruction that counts.
        "reverse-continue".into(),
        count.clone(),
        "reverse-continue".into(),
        count.clone(),
        "delete".into(),
        format!("hbreak *{main:#x}"),
        "reverse-continue".into(),
        show.into(),
        "reverse-continue".into(),
        "delete".into(),
        format!("rwatch *(long *){ticks:#x}"),
        "continue".into(),
        count,
        "delete".into(),
        // Nothing may be changed.
        "set var $rax = 1".into(),
        format!("set var *(long *){ticks:#x} = 7"),
        "continue".into(),
        "monitor where".into(),
        "detach".into(),
    ];
    let (output, errors, replayed) = gdb.run(&script);

    let registers = output.after("regs ");
    assert_eq!(registers.len(), 5, "{output}");
    assert!(registers[0].starts_with(&format!("{main:x} ")), "{output}");
    assert_ne!(registers[1], registers[2], "{output}");
    assert_eq!(registers[1], registers[3], "{output}");
    assert_eq!(registers[0], registers[4], "{output}");
    assert_eq!(output.bytes_at(main), guest.bytes(main, 16), "{output}");
    let counts = output.after("ticks ");
    assert_eq!(&counts[..3], ["1", "2", "3"], "{output}");
    // Back at the third tick's and the second's, before they are counted.
    assert_eq!(counts[3], "2", "{output}");
    assert_eq!(counts[4], "1", "{output}");
    assert!(
        output.0.contains("Reached end of recorded history")
            || output.0.contains("No more reverse-execution history"),
        "{output}"
    );
    assert!(errors.contains("a replay cannot be changed"), "{errors}");
    assert_same_end(&recorded, &replayed);
}

#[test]
fn gdb_goes_forward_and_back_in_a_guest_that_counts_its_blocks() {
    gdb_goes_forward_and_back(&[]);
}

#[test]
fn gdb_goes_forward_and_back_where_the_processor_counts() {
    gdb_goes_forward_and_back(&["--clock", "instructions"]);
}

#[test]
fn a_point_is_shown_and_is_where_gdb_starts() {
    let _machine = machine();
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let recorded = record_counter(&log, &["--clock", "instructions"]);
    let end = recorded["clock"].as_u64().unwrap();
    let at = |point: &str| tandem_json(&["replay", text(&log), "--at", point, "--json"]);
    let first = at("0");
    assert_eq!(first["clock"], 0);
    assert_eq!(first["instructions"], 0);
    let half = at(&(end / 2).to_string());
    let clock = half["clock"].as_u64().unwrap();
    assert!((end / 2..end / 2 + 4).contains(&clock), "{half}");
    assert!(half["error"].is_null());
    let lines = half["disassembly"].as_array().unwrap();
    assert_eq!(lines.len(), 8, "{half}");
    let rip = format!("{:#x}", lines[0]["rip"].as_u64().unwrap());
    assert_eq!(half["registers"]["rip"], *rip, "{half}");
    let guest = Guest::built_in("counter");
    let bytes: Vec<u8> = serde_json::from_value(lines[0]["bytes"].clone()).unwrap();
    let rip = lines[0]["rip"].as_u64().unwrap();
    assert_eq!(guest.bytes(rip, bytes.len()), bytes, "{half}");
    let entry = at("entry:5");
    assert_eq!(entry["next_entry"], 6, "{entry}");
    let last = at("end");
    let replayed_last = last["clock"].as_u64().unwrap();
    assert!(replayed_last < end && end - replayed_last < 8, "{last}");
    for beyond in [format!("{}", end + 1), "entry:100000".into()] {
        let output = tandem(&["replay", text(&log), "--at", &beyond]);
        common::assert_one_line(&output, 1, &["the replay ends at clock", "before"]);
    }
    let wrong = tandem(&["replay", text(&log), "--at", "entry:"]);
    assert_eq!(wrong.status.code(), Some(2));
    if !have_gdb() {
        return;
    }
    let (output, _, replayed) = Gdb::start_with(&log, &["--at", "entry:5"])
        .run(&["printf \"rip %lx\\n\", $rip".into(), "detach".into()]);
    let rip = entry["registers"]["rip"].as_str().unwrap();
    assert_eq!(output.after("rip "), [rip.trim_start_matches("0x")]);
    assert_same_end(&recorded, &replayed);
}

#[test]
fn gdb_goes_back_to_the_state_a_log_begins_at() {
    let _machine = machine();
    if !have_gdb() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    // A part of a run of two seconds.
    let mut args = vec!["record", "-o", text(&log), "--json", "--quiet"];
    args.extend(["--engine", "soft", "--after", "0.2", "--for", "0.1"]);
    args.extend(["counter", "--arg", "ticks=200"]);
    let recorded = tandem_json(&args);
    let base = &recorded["base"];
    let begins = tandem_json(&[
        "replay",
        text(&log),
        "--at",
        &base["clock"].to_string(),
        "--json",
    ]);
    let where_it_begins = begins["registers"]["rip"].as_str().unwrap();
    let ticks = Guest::built_in("counter").symbol("interrupt_notes");

    let show = "printf \"rip %lx\\n\", $rip";
    let count = format!("printf \"ticks %ld\\n\", *(long *){ticks:#x}");
    let script = [
        show.into(),
        count.clone(),
        format!("watch *(long *){ticks:#x}"),
        "continue".into(),
        count.clone(),
        "reverse-continue".into(),
        count.clone(),
        "delete".into(),
        "reverse-continue".into(),
        show.into(),
        count,
        "monitor where".into(),
        "detach".into(),
    ];
    let (output, errors, replayed) = Gdb::start(&log).run(&script);
    let rip = where_it_begins.trim_start_matches("0x");
    assert_eq!(output.after("rip "), [rip, rip], "{output}");
    let counts = output.after("ticks ");
    let first: u64 = counts[0].parse().unwrap();
    let [before, after] = [first, first + 1].map(|n| n.to_string());
    assert!(first > 0, "the log begins in the middle: {output}");
    assert_eq!(counts, [&before, &after, &before, &before], "{output}");
    assert!(
        output.0.contains(&format!("next: entry {}", base["index"])),
        "{output}"
    );
    assert_eq!(errors, "", "{output}");
    for key in ["base", "entries", "clock", "clock_kind", "left", "digest"] {
        assert_eq!(recorded[key], replayed[key], "{key}");
    }
    assert_eq!(recorded["left"], true);
    assert!(replayed["divergence"].is_null());
}
