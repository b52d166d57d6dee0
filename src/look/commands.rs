//! What to run to look at one place of a log, with each of the tools: said wherever a replay diverges, two logs differ,
//! or a log is kept because something went wrong.

use super::point::Point;
use std::path::Path;

/// A line for each tool, which opens `log` at `point`; with what each shows.
#[must_use]
pub fn commands(log: &Path, point: Point) -> String {
    let log = quoted(&log.display().to_string());
    let at = format!("replay {log} --at {point}");
    let ways = [
        ("registers, code, entries", at.clone()),
        ("gdb, forward and backward", format!("{at} --gdb 1234")),
        ("drgn, crash", format!("{at} --core out.core")),
        ("Wireshark", format!("replay {log} --pcap out.pcapng")),
        ("asciinema", format!("replay {log} --cast out.cast")),
        (
            "what its kernel did",
            format!("trace {log} --perfetto out.pftrace"),
        ),
        (
            "its entries as tracks",
            format!("log {log} --perfetto out.pftrace"),
        ),
    ];
    let mut lines = String::from("to look there:");
    for (shown, command) in ways {
        lines += &format!("\n  tandem {command}  # {shown}");
    }
    lines
}

/// `word` as a shell takes it for one.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:=,@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;
    use clap::Parser;
    use replay::LogIndex;

    /// What is told to be run can be run.
    #[test]
    fn each_line_is_a_command() {
        let said = commands(Path::new("target/a.log"), Point::Entry(LogIndex(7)));
        let lines: Vec<&str> = said.lines().skip(1).collect();
        assert!(lines.len() >= 5, "{said}");
        for line in lines {
            let (command, _) = line.split_once("  # ").expect("a word about it");
            let words = command.split_whitespace();
            Cli::try_parse_from(words).unwrap_or_else(|e| panic!("{command}: {e}"));
        }
        assert!(said.contains("--at entry:7 --core "), "{said}");
    }

    #[test]
    fn a_shell_takes_a_path_for_one_word() {
        assert_eq!(quoted("/tmp/a-1.log"), "/tmp/a-1.log");
        assert_eq!(quoted("my log"), "'my log'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted("$(x)"), "'$(x)'");
    }
}
