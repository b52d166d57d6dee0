//! `tandem diff`: where two recordings first differ.
//!
//! Two runs of the same guest are the same until something from outside differs: what came, or when. The first
//! entry that is not the same says which; all behind it follows from it.

use crate::cli::DiffArgs;
use crate::failure::{During, Failure, Outcome};
use crate::look::commands::commands;
use crate::look::point::Point;
use replay::file::LogReader;
use replay::replayer::describe;
use replay::{Arrival, Event, LogEntry, LogIndex};
use replica::machine::Origin;
use serde::Serialize;
use std::collections::VecDeque;
use std::path::{Path, PathBuf};

/// Entries shown that both have before the first that differs.
const CONTEXT: usize = 3;

/// What was found.
#[derive(Debug, Default, Serialize)]
struct Found {
    /// Parts of the machine's description that are not the same, and what they are.
    machine: Vec<Part>,
    /// Why the machines were not compared, if they were not.
    #[serde(skip_serializing_if = "Option::is_none")]
    machines_unknown: Option<String>,
    /// Logs that are not whole: what is wrong, and where.
    cut: Vec<String>,
    /// Entries that are the same, from the beginning on.
    same: u64,
    /// Where the first of them is that is not, or is in one only.
    entry: Option<u64>,
    /// What of it is not the same.
    what: Vec<String>,
    /// The entry in either; none where that log has no more.
    left: Option<String>,
    right: Option<String>,
    /// The last entries that both have.
    #[serde(skip)]
    before: VecDeque<String>,
}

/// A part of the machine's description.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Part {
    name: String,
    left: serde_json::Value,
    right: serde_json::Value,
}

impl Found {
    fn same(&self) -> bool {
        self.machine.is_empty() && self.entry.is_none() && self.cut.is_empty()
    }
}

/// Says where two logs first differ.
pub fn diff(args: &DiffArgs) -> Outcome {
    let paths = [&args.left, &args.right];
    let [mut left, mut right] = [LogReader::open(paths[0])?, LogReader::open(paths[1])?];
    let bases = [&left, &right].map(|log| log.header().base.index);
    if bases[0] != bases[1] {
        return Err(Failure::new(format!(
            "{} begins at entry {}, {} at entry {}: there is nothing to compare",
            paths[0].display(),
            bases[0],
            paths[1].display(),
            bases[1]
        )));
    }
    let mut found = Found::default();
    machines([&left, &right], paths, &mut found)?;
    entries(&mut left, &mut right, &mut found)?;
    for (log, path) in [&left, &right].into_iter().zip(paths) {
        let path = path.display();
        let why = match log.tail() {
            Some(tail) => format!("{} at byte {}", tail.what, tail.offset),
            // Known only of logs that were read to where they stop.
            None if found.entry.is_none() && !log.ended() => "it has no end entry".into(),
            None => continue,
        };
        found.cut.push(format!("{path}: {why}"));
    }
    if args.json {
        crate::sayln!("{}", serde_json::to_string(&found).during("report")?);
    } else {
        print(&found, args);
    }
    match found.entry {
        _ if found.same() => Ok(()),
        Some(entry) => Err(Failure::new(format!("they differ from entry {entry} on"))),
        None if found.machine.is_empty() => Err(Failure::new(format!(
            "they are the same as far as they go: {}",
            found.cut.join("; ")
        ))),
        None => Err(Failure::new("they are of different machines")),
    }
}

/// Compares entry by entry, to the first that differs.
fn entries(left: &mut LogReader, right: &mut LogReader, found: &mut Found) -> Outcome {
    let first = left.header().base.index.0;
    loop {
        let index = LogIndex(first + found.same);
        let pair = [left.read()?, right.read()?].map(|read| read.map(|(entry, _)| entry));
        let told = |entry: &Option<LogEntry>| entry.as_ref().map(|entry| describe(index, entry));
        match &pair {
            [None, None] => return Ok(()),
            [Some(one), Some(other)] if one == other => {
                if found.before.len() == CONTEXT {
                    found.before.pop_front();
                }
                found.before.push_back(describe(index, one));
                found.same += 1;
            }
            [one, other] => {
                found.entry = Some(index.0);
                (found.left, found.right) = (told(one), told(other));
                if let [Some(one), Some(other)] = &pair {
                    found.what = differences(one, other);
                }
                return Ok(());
            }
        }
    }
}

/// What of two entries is not the same.
fn differences(one: &LogEntry, other: &LogEntry) -> Vec<String> {
    let mut what = Vec::new();
    let mut note = |differs: bool, word: &str| {
        if differs {
            what.push(word.to_owned());
        }
    };
    note(one.clock != other.clock, "clock");
    note(one.stand != other.stand, "registers");
    note(one.anchor != other.anchor, "anchor");
    if one.event.kind() != other.event.kind() {
        note(true, "kind");
    } else if one.event != other.event {
        match (bytes(&one.event), bytes(&other.event)) {
            (Some(one), Some(other)) if one != other => {
                let at = one.iter().zip(other).take_while(|(a, b)| a == b).count();
                note(true, &format!("contents from byte {at} on"));
            }
            _ => note(true, "contents"),
        }
    }
    what
}

/// The bytes an event is about.
fn bytes(event: &Event) -> Option<&[u8]> {
    match event {
        Event::Arrival(Arrival::Frame(bytes) | Arrival::Console(bytes)) => Some(bytes),
        Event::Arrival(Arrival::DiskDone { data, .. }) => Some(data),
        _ => None,
    }
}

/// Notes the parts in which the machines of two logs differ. Nothing is known of a log's of an old format.
fn machines(logs: [&LogReader; 2], paths: [&PathBuf; 2], found: &mut Found) -> Outcome {
    let mut origins = Vec::new();
    for (log, path) in logs.into_iter().zip(paths) {
        if let Err(error) = log.check_replayable() {
            found.machines_unknown = Some(error.to_string());
            return Ok(());
        }
        origins.push(described(log, path)?);
    }
    compare("", &origins[0], &origins[1], &mut found.machine);
    Ok(())
}

/// A log's machine and beginning, part by part.
fn described(log: &LogReader, path: &Path) -> Outcome<serde_json::Value> {
    let origin = Origin::of_log(log, path)?;
    let origin = serde_json::to_value(origin).during("the machine")?;
    let base = serde_json::to_value(log.header().base).during("the log's beginning")?;
    Ok(serde_json::json!({ "machine": origin, "begins": base }))
}

/// Notes the leaves that are not the same, by their path.
fn compare(name: &str, left: &serde_json::Value, right: &serde_json::Value, parts: &mut Vec<Part>) {
    use serde_json::Value::Object;
    match (left, right) {
        (Object(one), Object(other)) => {
            let more = other.keys().filter(|key| !one.contains_key(*key));
            for key in one.keys().chain(more) {
                let path = if name.is_empty() {
                    key.clone()
                } else {
                    format!("{name}.{key}")
                };
                compare(&path, &left[key], &right[key], parts);
            }
        }
        _ if left != right => parts.push(Part {
            name: name.to_owned(),
            left: left.clone(),
            right: right.clone(),
        }),
        _ => {}
    }
}

fn print(found: &Found, args: &DiffArgs) {
    for part in &found.machine {
        crate::sayln!("{}: {} and {}", part.name, part.left, part.right);
    }
    if let Some(why) = &found.machines_unknown {
        crate::sayln!("their machines are not compared: {why}");
    }
    for cut in &found.cut {
        crate::sayln!("{cut}");
    }
    let Some(entry) = found.entry else {
        let what = if found.same() {
            "the same"
        } else {
            "the same entries"
        };
        crate::sayln!("{what}: {}", found.same);
        return;
    };
    crate::sayln!("the first {} entries are the same", found.same);
    for line in &found.before {
        crate::sayln!("    {line}");
    }
    for (path, said) in [(&args.left, &found.left), (&args.right, &found.right)] {
        let said = said.as_deref().unwrap_or("no more");
        crate::sayln!("{}:\n    {said}", path.display());
    }
    if !found.what.is_empty() {
        crate::sayln!("not the same: {}", found.what.join(", "));
    }
    if let Some(last) = entry.checked_sub(1)
        && found.same > 0
    {
        // What both came to is the same in either.
        crate::sayln!("{}", commands(&args.left, Point::Entry(LogIndex(last))));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use replay::{Anchor, Clock, RegisterDigest, Stand};

    fn entry(clock: u64, frame: &[u8]) -> LogEntry {
        LogEntry {
            clock: Clock(clock),
            stand: Some(Stand {
                rip: None,
                registers: RegisterDigest(7),
            }),
            anchor: Anchor::NONE,
            event: Event::Arrival(Arrival::Frame(frame.to_vec())),
        }
    }

    #[test]
    fn each_part_of_an_entry_that_differs_is_named() {
        let one = entry(5, b"abcd");
        let what = |other| differences(&one, &other);
        assert_eq!(what(entry(6, b"abcd")), ["clock"]);
        assert_eq!(what(entry(5, b"abXd")), ["contents from byte 2 on"]);
        assert_eq!(what(entry(5, b"abc")), ["contents from byte 3 on"]);
        let other = LogEntry {
            event: Event::Arrival(Arrival::Timer { periods: 1 }),
            ..entry(5, b"")
        };
        assert_eq!(what(other), ["kind"]);
    }

    #[test]
    fn only_the_leaves_that_differ_are_named() {
        let json = |text: &str| -> serde_json::Value { serde_json::from_str(text).unwrap() };
        let (one, other) = (
            json(r#"{"a": {"b": 1, "c": [2]}, "d": null}"#),
            json(r#"{"a": {"b": 1, "c": [3]}, "e": 4}"#),
        );
        let mut parts = Vec::new();
        compare("", &one, &other, &mut parts);
        let names: Vec<&str> = parts.iter().map(|part| part.name.as_str()).collect();
        assert_eq!(names, ["a.c", "e"]);
        assert_eq!(
            (&parts[1].left, &parts[1].right),
            (&json("null"), &json("4"))
        );
    }
}
