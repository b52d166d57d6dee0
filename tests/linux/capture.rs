//! A recording as the files other tools read: its network, read by tshark, and its console.

use super::common::{tandem, text};
use std::path::Path;
use std::process::Command;
use testing::skipped::skip_without;

/// A frame as tshark tells of it.
struct Frame {
    /// The log's entry it came or went with.
    entry: u64,
    inbound: bool,
    /// Who sent it, if it is of IPv4.
    from: String,
    /// Since the first.
    seconds: f64,
}

/// That `log`, of a guest with address `guest` that printed the lines `console`, can be written as such files, and that
/// they have what the log has.
pub fn holds_what_was_recorded(log: &Path, guest: &str, console: &[String]) {
    let [file, cast] = ["pcapng", "cast"].map(|extension| log.with_extension(extension));
    let files = ["--pcap", text(&file), "--cast", text(&cast)];
    let replayed = tandem(&[&["replay", text(log)][..], &files].concat());
    assert_eq!(printed(&cast).lines().collect::<Vec<_>>(), console);
    std::fs::remove_file(&cast).expect("it is there");
    let Some(frames) = read(&file) else { return };
    let words = String::from_utf8(replayed.stdout).expect("words");
    let counted = format!("{} frames in", frames.len());
    assert!(words.contains(&counted), "{counted}: {words}");
    let said = tandem(&["log", text(log), "--entries"]);
    let entries = String::from_utf8(said.stdout).expect("words");
    let arrived: Vec<u64> = entries
        .lines()
        .filter(|line| line.contains(" frame of "))
        .map(|line| line.split(' ').nth(1).unwrap().parse().unwrap())
        .collect();
    let captured = frames.iter().filter(|frame| frame.inbound);
    assert!(arrived.into_iter().eq(captured.map(|frame| frame.entry)));
    let said = frames.iter().filter(|frame| !frame.inbound);
    let own = said.filter(|frame| frame.from == guest).count();
    assert!(own > 100, "the guest said {own} things");
    let heard = frames.iter().filter(|frame| frame.inbound);
    assert!(heard.clone().count() > 100 && heard.clone().all(|frame| frame.from != guest));
    let in_order =
        |pair: &[Frame]| pair[0].entry <= pair[1].entry && pair[0].seconds <= pair[1].seconds;
    assert!(frames.windows(2).all(in_order));
    std::fs::remove_file(&file).expect("it is there");
}

/// All that an asciicast file says was printed, at times that never go back.
fn printed(file: &Path) -> String {
    let text = std::fs::read_to_string(file).expect("a cast");
    let mut lines = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"));
    let head: serde_json::Value = lines.next().expect("a first line");
    assert_eq!(head["version"], 2);
    let events: Vec<(f64, String, String)> = lines
        .map(|event| serde_json::from_value(event).expect("an event"))
        .collect();
    assert!(events.iter().all(|(_, kind, _)| kind == "o"));
    assert!(events.windows(2).all(|pair| pair[0].0 <= pair[1].0));
    events.into_iter().map(|(_, _, printed)| printed).collect()
}

/// What tshark reads in `file`; nothing if it is not installed.
fn read(file: &Path) -> Option<Vec<Frame>> {
    if skip_without(&["tshark"]) {
        return None;
    }
    let fields = [
        "frame.comment",
        "frame.packet_flags_direction",
        "ip.src",
        "frame.time_relative",
    ];
    let mut command = Command::new("tshark");
    command.args(["-r", text(file), "-T", "fields", "-E", "separator=;"]);
    command.args(fields.iter().flat_map(|field| ["-e", field]));
    let read = command.output().expect("tshark");
    let words = String::from_utf8_lossy(&read.stderr);
    assert!(read.status.success(), "{words}");
    let lines = String::from_utf8(read.stdout).expect("words");
    Some(lines.lines().map(frame).collect())
}

fn frame(line: &str) -> Frame {
    let mut fields = line.split(';');
    let mut next = || fields.next().unwrap_or_else(|| panic!("{line}"));
    let (comment, direction, from, seconds) = (next(), next(), next(), next());
    let entry = comment
        .strip_prefix("entry ")
        .unwrap_or_else(|| panic!("{line}"));
    let entry = entry.split(',').next().unwrap_or_default();
    Frame {
        entry: entry.parse().expect(line),
        inbound: match direction {
            "1" | "0x01" | "0x00000001" => true,
            "2" | "0x02" | "0x00000002" => false,
            other => panic!("direction {other}: {line}"),
        },
        from: from.to_owned(),
        seconds: seconds.parse().expect(line),
    }
}
