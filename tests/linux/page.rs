//! The page "A bug, found with a recording": its commands, run as they stand there.

use super::common::{PROGRAM, machine};
use std::path::Path;
use std::process::Command;

const PAGE: &str = include_str!("../../docs/BUG.md");

/// All that the page has its reader type, in one script that tidies up whatever becomes of it.
fn script() -> String {
    let blocks = PAGE.split("```sh\n").skip(1);
    let commands = blocks.map(|block| block.split("```").next().expect("a block"));
    let tidy = "trap '{ kill $(jobs -p); ip link del tap-bug; } 2>/dev/null || true' EXIT\n";
    format!("set -e\n{tidy}{}", commands.collect::<String>())
}

/// The two ends.
const SERVER: &str = "10.77.0.2";
const CLIENT: &str = "10.77.0.1";

/// Who sent how many bytes, of a line that tells of a frame.
fn frame(line: &str) -> Option<(&str, &str)> {
    let mut fields = line.split('\t').skip(1);
    let (from, length) = (fields.next()?, fields.next()?);
    fields
        .next()?
        .starts_with("entry ")
        .then_some((from, length))
}

#[test]
#[ignore = "as root, on a TAP of its own; fetches 300 MB of packages"]
fn the_bugs_page_finds_it_as_it_stands() {
    let _machine = machine();
    let folder = tempfile::tempdir().unwrap();
    let programs = Path::new(PROGRAM).parent().expect("a folder").display();
    let path = std::env::var("PATH").unwrap_or_default();
    let output = Command::new("bash")
        .args(["-c", &script()])
        .env("PATH", format!("{programs}:{path}"))
        .current_dir(folder.path())
        .output()
        .expect("bash");
    let said = String::from_utf8_lossy(&output.stdout);
    let all = format!("{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{all}");
    let frames: Vec<(&str, &str)> = said.lines().filter_map(frame).collect();
    let (slow, fixed) = frames.split_at(frames.len() / 2);
    let behind = |frames: &[(&str, &str)], wanted: [(&str, &str); 2]| {
        let headers = |three: &&[(&str, &str)]| three[0] == (SERVER, "201");
        let answers: Vec<_> = frames.windows(3).filter(headers).collect();
        assert!(!answers.is_empty(), "{all}");
        assert!(
            answers.iter().all(|three| three[1..].starts_with(&wanted)),
            "{all}"
        );
    };
    // The file waits for the client's acknowledgement; and then it does not.
    behind(slow, [(CLIENT, "0"), (SERVER, "267")]);
    behind(fixed, [(SERVER, "267"), (CLIENT, "0")]);
    for words in [
        "every entry and digest as recorded",
        "written, not sent: 267\n",
        "sent, not acknowledged: 201\n",
        "TCP_NODELAY: 0\n",
        " __x64_sys_sendto\n",
        " tcp_rcv_established\n",
    ] {
        assert!(said.contains(words), "{words}: {all}");
    }
}
