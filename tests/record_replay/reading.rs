//! What is read out of real recordings without a replay: `tandem diff`, `tandem log --sizing`.

use super::common::{assert_one_line, machine, tandem, tandem_json, text};
use std::path::Path;

fn record(log: &Path, ticks: &str) {
    let args = [
        "record",
        "clock",
        "--engine",
        "soft",
        "--quiet",
        "--json",
        "-o",
        text(log),
    ];
    tandem_json(&[&args[..], &["--arg", ticks]].concat());
}

fn entries(log: &Path) -> Vec<String> {
    let said = tandem(&["log", text(log), "--entries"]).stdout;
    let said = String::from_utf8(said).expect("words");
    said.lines().map(str::to_owned).collect()
}

/// What `tandem diff` says, and its exit code.
fn diff(left: &Path, right: &Path) -> (serde_json::Value, Option<i32>) {
    let output = tandem(&["diff", text(left), text(right), "--json"]);
    let found = serde_json::from_slice(&output.stdout).expect("JSON on stdout");
    (found, output.status.code())
}

#[test]
fn two_recordings_differ_where_the_first_of_their_entries_do() {
    let _machine = machine();
    let folder = tempfile::tempdir().unwrap();
    let [one, other, longer, cut] =
        ["one", "other", "longer", "cut"].map(|name| folder.path().join(name));
    record(&one, "ticks=5");
    record(&other, "ticks=5");
    record(&longer, "ticks=6");

    let all = entries(&one);
    let (found, code) = diff(&one, &one);
    assert_eq!((&found["same"], code), (&all.len().into(), Some(0)));
    assert!(found["entry"].is_null(), "{found}");

    // What time it is is not the same.
    let (found, code) = diff(&one, &other);
    let place = all.iter().zip(entries(&other)).position(|(a, b)| *a != b);
    assert_eq!(
        (found["entry"].as_u64(), code),
        (place.map(|n| n as u64), Some(1))
    );
    assert_eq!(found["left"], all[place.unwrap()].as_str());
    assert!(found["machine"].as_array().unwrap().is_empty(), "{found}");

    // A machine with another argument is another.
    let (found, _) = diff(&one, &longer);
    let parts = found["machine"].as_array().unwrap();
    assert!(
        parts
            .iter()
            .any(|part| part["name"] == "machine.config.cmdline"),
        "{found}"
    );

    let bytes = std::fs::read(&one).unwrap();
    std::fs::write(&cut, &bytes[..bytes.len() / 2]).unwrap();
    let whole = entries(&cut).len();
    let (found, code) = diff(&one, &cut);
    assert_eq!(
        (found["same"].as_u64(), code),
        (Some(whole as u64), Some(1))
    );
    assert_eq!(found["left"], all[whole].as_str());
    assert!(found["right"].is_null(), "{found}");
    // As far as they go they are the same: that is not all that was recorded.
    let (found, code) = diff(&cut, &cut);
    assert_eq!(
        (found["same"].as_u64(), code),
        (Some(whole as u64), Some(1))
    );
    assert!(
        found["entry"].is_null() && found["cut"].as_array().unwrap().len() == 2,
        "{found}"
    );
}

#[test]
fn a_log_says_what_link_it_needs() {
    let _machine = machine();
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    record(&log, "ticks=5");
    let said = tandem_json(&["log", text(&log), "--sizing", "--json"]);
    let number = |value: &serde_json::Value| value.as_f64().expect("a number");
    let kinds = said["kinds"].as_object().unwrap();
    for (kind, share) in kinds {
        let rate = &said["sizing"]["kinds"][kind];
        assert_eq!(share["mbit_s"], rate["average"], "{kind}");
        let (bytes, busiest) = (number(&share["bytes"]), number(&rate["second"]) * 125_000.0);
        // So many seconds there are, or begin.
        let seconds = number(&said["seconds"]).floor() + 1.0;
        assert!(busiest < bytes + 1.0, "{kind}: {said}");
        assert!(busiest * seconds > bytes - 1.0, "{kind}: {said}");
    }
    let sizing = &said["sizing"];
    assert!(
        number(&sizing["tenth"]) >= number(&sizing["second"]),
        "{said}"
    );
    assert_eq!(sizing["paper"], 0.0, "nothing came in");
}

#[test]
fn a_console_is_shown_at_the_speed_it_was_recorded_at() {
    let _machine = machine();
    let folder = tempfile::tempdir().unwrap();
    let [log, cast] = ["log", "cast"].map(|name| folder.path().join(name));
    record(&log, "ticks=5");
    // Whatever engine this host takes, whose thread may not read every clock.
    let shown = |more: &[&str]| {
        let output = tandem(&[&["replay", text(&log), "--console"][..], more].concat());
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{more:?}: {words}");
        let said = String::from_utf8(output.stdout).expect("words");
        let lines = said.lines().filter(|line| !line.starts_with("replayed "));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let plain = shown(&[]);
    assert!(plain.len() > 3, "{plain:?}");
    assert_eq!(plain, shown(&["--speed", "1"]));
    let begun = std::time::Instant::now();
    shown(&["--cast", text(&cast), "--speed", "1"]);
    let took = begun.elapsed().as_secs_f64();
    let cast = std::fs::read_to_string(&cast).unwrap();
    let last: serde_json::Value = serde_json::from_str(cast.lines().last().unwrap()).unwrap();
    assert!(took >= last[0].as_f64().unwrap(), "{took} s for {last}");
}

#[test]
fn no_file_is_written_over_the_log() {
    let _machine = machine();
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    record(&log, "ticks=1");
    let before = std::fs::read(&log).unwrap();
    for outputs in [
        &["replay", "--pcap"][..],
        &["replay", "--cast"],
        &["replay", "--at", "end", "--core"],
        &["replay", "--to", "5", "--save"],
        &["replay", "--to", "5", "--save", "other", "--disk"],
        &["trace", "--folded"],
        &["trace", "--pprof"],
        &["trace", "--perfetto"],
        &["log", "--perfetto"],
    ] {
        let args = [&[outputs[0], text(&log)][..], &outputs[1..], &[text(&log)]].concat();
        assert_one_line(&tandem(&args), 2, &["would overwrite"]);
        assert_eq!(std::fs::read(&log).unwrap(), before, "{outputs:?}");
    }
}
