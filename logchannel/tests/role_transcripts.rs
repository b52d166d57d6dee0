//! The role machine against transcripts: `tests/transcripts/*.txt`.
//!
//! `role view N` begins, `> event` goes in, `< command` must come out in that order, `= state` must be
//! the state then. `#` begins a comment.

use logchannel::{Command, Event, RoleMachine, ViewNumber};
use std::collections::VecDeque;
use std::path::Path;

fn event(text: &str) -> Event {
    let (name, rest) = text.split_once(' ').unwrap_or((text, ""));
    match name {
        "link-lost" => Event::LinkLost,
        "peer-bye" => Event::PeerBye,
        "flag-won" => Event::FlagWon,
        "flag-lost" => Event::FlagLost {
            holder: rest.into(),
        },
        "vm-ended" => Event::VmEnded,
        "flag-unreachable" => Event::FlagUnreachable,
        "retry-tick" => Event::RetryTick,
        "flag-given-up" => Event::FlagGivenUp,
        "drained" => Event::Drained,
        "diverged" => Event::Diverged,
        "failed" => Event::Failed { why: rest.into() },
        "power-off" => Event::PowerOff,
        "stop-asked" => Event::StopAsked,
        other => panic!("unknown event {other}"),
    }
}

fn command(command: &Command) -> String {
    match command {
        Command::HoldOutputs => "hold-outputs".into(),
        Command::TestAndSet { view } => format!("test-and-set {view}"),
        Command::RetryLater => "retry-later".into(),
        Command::Drain => "drain".into(),
        Command::Reemit => "reemit".into(),
        Command::OpenGate => "open-gate".into(),
        Command::Announce => "announce".into(),
        Command::ReportView { view } => format!("report-view {view}"),
        Command::GoLive { view } => format!("go-live {view}"),
        Command::StopGuest => "stop-guest".into(),
        Command::Halt { why } => format!("halt {why}"),
        Command::End => "end".into(),
        Command::MarkEnd { view } => format!("mark-end {view}"),
    }
}

fn begin(line: &str) -> RoleMachine {
    match line.split_whitespace().collect::<Vec<_>>()[..] {
        ["primary", "view", view] => RoleMachine::primary(ViewNumber(view.parse().unwrap())),
        ["backup", "view", view] => RoleMachine::backup(ViewNumber(view.parse().unwrap())),
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
    assert!(count >= 14, "only {count} transcripts found");
}
