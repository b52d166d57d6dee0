//! What is read out of real recordings without a replay: `tandem diff`, `tandem log --sizing`.

use super::common::{machine, tandem, tandem_json, text};
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
