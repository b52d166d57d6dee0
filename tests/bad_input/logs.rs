//! Logs that are cut, or have more than a log: what is there is counted and replayed, what is wrong is named by
//! its place; docs/LOG_FORMAT.md, "A torn tail", has the table.

use crate::common::{assert_last_line, machine, tandem, text};
use replay::file::{LogReader, LogWriter};
use replay::{Event, LogEntry, LogSink};
use std::path::Path;

fn record(log: &Path) {
    let record = ["record", "counter", "--engine", "soft", "--quiet"];
    let short = ["--arg", "ticks=20", "-o", text(log)];
    let recorded = tandem(&[&record[..], &short].concat());
    assert!(recorded.status.success());
}

fn listed(log: &Path) -> (serde_json::Value, String) {
    let output = tandem(&["log", text(log), "--json"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{said}");
    (serde_json::from_slice(&output.stdout).unwrap(), said)
}

/// `tandem log` counts `entries` of `log` and says `words` on stderr; `tandem replay` replays so many and fails
/// with them.
#[track_caller]
fn assert_told(log: &Path, entries: &serde_json::Value, words: &[&str]) {
    let (report, said) = listed(log);
    assert_eq!(&report["entries"], entries);
    assert_eq!(said.lines().count(), 1, "{said}");
    for word in words {
        assert!(said.contains(word), "'{word}' in: {said}");
    }
    let output = tandem(&["log", text(log), "--entries"]);
    assert_eq!(output.status.code(), Some(0));
    let lines = String::from_utf8(output.stdout).unwrap().lines().count();
    assert_eq!(Some(lines as u64), entries.as_u64());

    let replayed = format!("({entries} entries replayed)");
    for more in [&[][..], &["--json"]] {
        let replay = ["replay", text(log), "--engine", "soft"];
        let output = tandem(&[&replay[..], more].concat());
        assert_last_line(&output, 1, &[words, &[&replayed]].concat());
        assert!(!String::from_utf8_lossy(&output.stdout).contains("as recorded"));
    }
}

#[test]
fn cut_and_overlong_logs_are_told_alike_by_both_commands() {
    let _machine = machine();
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    record(&log);
    let (whole, said) = listed(&log);
    assert_eq!((&whole["whole"], said.as_str()), (&true.into(), ""));
    let bytes = std::fs::read(&log).unwrap();

    // Cut in a frame.
    std::fs::write(&log, &bytes[..bytes.len() - 5]).unwrap();
    let (cut, _) = listed(&log);
    assert_eq!(cut["whole"], false);
    assert!(cut["entries"].as_u64() < whole["entries"].as_u64());
    let place = format!("at byte {}", cut["file_bytes"]);
    assert_told(&log, &cut["entries"], &["frame cut short", &place]);

    // Cut between two frames.
    let between = usize::try_from(cut["file_bytes"].as_u64().unwrap()).unwrap();
    std::fs::write(&log, &bytes[..between]).unwrap();
    assert_told(&log, &cut["entries"], &["end entry"]);

    // Something behind the end: zeros, and the log once more.
    let place = format!("at byte {}", bytes.len());
    let again = bytes.clone();
    for more in [&[0; 1000][..], &[0], &again] {
        std::fs::write(&log, [&bytes, more].concat()).unwrap();
        let words = ["bytes after the end of the log", &place];
        assert_told(&log, &whole["entries"], &words);
    }
}

/// No recorder writes this: an entry behind the end, in the frame of the end.
#[test]
fn an_entry_behind_the_end_is_neither_counted_nor_ignored() {
    let _machine = machine();
    let folder = tempfile::tempdir().unwrap();
    let [log, forged] = ["log", "forged"].map(|name| folder.path().join(name));
    record(&log);
    let (whole, _) = listed(&log);
    let mut reader = LogReader::open(&log).unwrap();
    let mut writer = LogWriter::create(&forged, reader.header(), || 0).unwrap();
    while let Some((entry, _)) = reader.read().unwrap() {
        if matches!(entry.event, Event::End { .. }) {
            let clock = entry.clock;
            writer.append(&entry).unwrap();
            writer.append(&LogEntry::progress(clock)).unwrap();
        } else {
            writer.append(&entry).unwrap();
        }
    }
    writer.flush().unwrap();
    assert_told(
        &forged,
        &whole["entries"],
        &["entries after the end of the log", "at byte"],
    );
}

#[test]
fn a_file_that_is_no_log_is_refused_by_both() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    for bytes in [&b""[..], b"not a log, but long enough to be one"] {
        std::fs::write(&file, bytes).unwrap();
        for command in ["log", "replay"] {
            let output = tandem(&[command, text(&file)]);
            assert_last_line(&output, 1, &["not a Tandem log"]);
        }
    }
}
