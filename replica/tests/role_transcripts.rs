//! The role machine against transcripts: `tests/transcripts/*.txt`.
//!
//! `role view N` begins, `> event` goes in, `< command` must come out in that order, `= state` must be
//! the state then. `#` begins a comment.

use replay::ViewNumber;
use replica::role::{RoleCommand, RoleEvent, RoleMachine};
use std::collections::VecDeque;
use std::path::Path;

fn event(text: &str) -> RoleEvent {
    let (name, rest) = text.split_once(' ').unwrap_or((text, ""));
    match name {
        "link-lost" => RoleEvent::LinkLost,
        "peer-bye" => RoleEvent::PeerBye,
        "flag-won" => RoleEvent::FlagWon,
        "flag-lost" => RoleEvent::FlagLost {
            holder: rest.into(),
        },
        "vm-ended" => RoleEvent::VmEnded,
        "flag-unreachable" => RoleEvent::FlagUnreachable,
        "retry-tick" => RoleEvent::RetryTick,
        "flag-given-up" => RoleEvent::FlagGivenUp,
        "drained" => RoleEvent::Drained,
        "diverged" => RoleEvent::Diverged,
        "failed" => RoleEvent::Failed { why: rest.into() },
        "power-off" => RoleEvent::PowerOff,
        "stop-asked" => RoleEvent::StopAsked,
        "join-offered" => RoleEvent::JoinOffered,
        "joiner-level" => RoleEvent::JoinerLevel,
        "welcomed" => RoleEvent::Welcomed,
        other => panic!("unknown event {other}"),
    }
}

fn command(command: &RoleCommand) -> String {
    match command {
        RoleCommand::HoldOutputs => "hold-outputs".into(),
        RoleCommand::TestAndSet { view } => format!("test-and-set {view}"),
        RoleCommand::RetryLater => "retry-later".into(),
        RoleCommand::Drain => "drain".into(),
        RoleCommand::Reemit => "reemit".into(),
        RoleCommand::OpenGate => "open-gate".into(),
        RoleCommand::Announce => "announce".into(),
        RoleCommand::ReportView { view } => format!("report-view {view}"),
        RoleCommand::GoLive { view } => format!("go-live {view}"),
        RoleCommand::StopGuest => "stop-guest".into(),
        RoleCommand::Halt { why } => format!("halt {why}"),
        RoleCommand::BeginJoin => "begin-join".into(),
        RoleCommand::CloseGate => "close-gate".into(),
        RoleCommand::Welcome { view } => format!("welcome {view}"),
        RoleCommand::ReportPair { view } => format!("report-pair {view}"),
        RoleCommand::End => "end".into(),
        RoleCommand::MarkEnd { view } => format!("mark-end {view}"),
    }
}

fn begin(line: &str) -> RoleMachine {
    match line.split_whitespace().collect::<Vec<_>>()[..] {
        ["primary", "view", view] => RoleMachine::primary(ViewNumber(view.parse().unwrap())),
        ["backup", "view", view] => RoleMachine::backup(ViewNumber(view.parse().unwrap())),
        ["joiner", "view", view] => RoleMachine::joiner(ViewNumber(view.parse().unwrap())),
        _ => panic!("bad first line: {line}"),
    }
}

fn play(path: &Path) {
    let text = std::fs::read_to_string(path).unwrap();
    let mut machine = None;
    let mut out = VecDeque::new();
    for (number, line) in text.lines().enumerate() {
        let place = format!("{}:{}", path.display(), number + 1);
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let Some(machine) = machine.as_mut() else {
            machine = Some(begin(line));
            continue;
        };
        if let Some(want) = line.strip_prefix("< ") {
            let got = out.pop_front();
            assert_eq!(got.as_deref(), Some(want), "{place}");
            continue;
        }
        assert!(out.is_empty(), "{place}: commands not expected: {out:?}");
        if let Some(text) = line.strip_prefix("> ") {
            out = RoleMachine::handle(machine, event(text))
                .iter()
                .map(command)
                .collect();
        } else if let Some(state) = line.strip_prefix("= ") {
            assert_eq!(machine.to_string(), state, "{place}");
        } else {
            panic!("{place}: not understood");
        }
    }
    assert!(
        out.is_empty(),
        "{}: commands not expected: {out:?}",
        path.display()
    );
}

#[test]
fn transcripts() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts");
    let mut count = 0;
    for file in std::fs::read_dir(folder).unwrap() {
        play(&file.unwrap().path());
        count += 1;
    }
    assert!(count >= 20, "only {count} transcripts found");
}
