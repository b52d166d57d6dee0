//! The network of a recording as a capture file, read by tshark.

use super::common::{tandem, tandem_json, text};
use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;
use testing::skipped::skip_this;

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

/// That `log`, of a guest with address `guest`, can be captured, and that the capture has what the log has.
pub fn holds_what_was_recorded(log: &Path, guest: &str) {
    let file = log.with_extension("pcapng");
    let report = tandem_json(&["replay", text(log), "--json", "--pcap", text(&file)]);
    let Some(frames) = read(&file) else { return };
    assert_eq!(report["frames"], frames.len() as u64);
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

/// What tshark reads in `file`; nothing if it is not installed.
fn read(file: &Path) -> Option<Vec<Frame>> {
    let fields = [
        "frame.comment",
        "frame.packet_flags_direction",
        "ip.src",
        "frame.time_relative",
    ];
    let mut command = Command::new("tshark");
    command.args(["-r", text(file), "-T", "fields", "-E", "separator=;"]);
    command.args(fields.iter().flat_map(|field| ["-e", field]));
    let read = match command.output() {
        Err(e) if e.kind() == ErrorKind::NotFound => {
            skip_this(&"tshark is missing");
            return None;
        }
        read => read.expect("tshark"),
    };
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
