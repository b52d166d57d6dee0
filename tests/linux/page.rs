//! The page "A bug, found with a recording": its commands, run as they stand there.

use super::common::{PROGRAM, machine};
use std::path::Path;
use std::process::Command;

const PAGE: &str = include_str!("../../docs/BUG.md");

/// All that the page has its reader type, in one script that tidies up whatever becomes of it.
fn script() -> String {
    let blocks = PAGE.split("```sh\n").skip(1);
    let commands = blocks.map(|block| block.split("```").next().expect("a block"));
    let tidy = "trap 'kill $(jobs -p) 2>/dev/null; ip link del tap-bug 2>/dev/null' EXIT\n";
    format!("set -e\n{tidy}{}", commands.collect::<String>())
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
    // As long as the client's acknowledgement takes, and then no more.
    let seconds = said.lines().filter_map(|line| line.strip_suffix(" s"));
    let seconds: Vec<f64> = seconds.filter_map(|s| s.parse().ok()).collect();
    let [slow, fixed] = [0..6, 6..12].map(|range| {
        let mut of_one: Vec<f64> = seconds.get(range).expect(&all).to_vec();
        of_one.sort_by(f64::total_cmp);
        of_one[of_one.len() / 2]
    });
    assert!(slow > 0.035 && fixed < slow / 2.0, "{slow} {fixed}: {all}");
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
