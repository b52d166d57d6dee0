//! Logs of every format version there was must be read for ever, entry by entry.
//!
//! Each version's `.log` holds one entry of every kind, its `.txt` what that says; version 1 had no
//! anchors. From version 6 on there is a second pair, `v6-state`, of a log that begins at a state in the middle
//! of a run, and is left before its machine ends. To add a version, write new pairs with
//! `TANDEM_GOLDEN=write` and never touch the old ones.

use replay::LogError;
use replay::file::{FORMAT_VERSION, LogHeader, LogReader, LogWriter};
use replay::{
    Anchor, Arrival, Base, BaseOrigin, Clock, ClockKind, Event, ExecPoint, Here, LogEntry,
    LogIndex, LogSink, Question, RegisterDigest, ViewNumber,
};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// Oldest version whose logs may begin at a state.
const STATE_SINCE: u32 = 6;

/// The log of `version`, and what it says.
fn golden(version: u32) -> [PathBuf; 2] {
    named(&format!("v{version}"))
}

/// The log of `version` that begins at a state, and what it says.
fn golden_of_state(version: u32) -> [PathBuf; 2] {
    named(&format!("v{version}-state"))
}

fn named(name: &str) -> [PathBuf; 2] {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    ["log", "txt"].map(|kind| folder.join(format!("{name}.{kind}")))
}

/// One entry of every kind, with values that need short and long numbers; anchors at two and none at a
/// third arrival of derived time.
fn entries(base: &Base, last: Event) -> Vec<LogEntry> {
    let anchored = [
        (Arrival::Timer { periods: 1 }, Anchor(480)),
        (Arrival::Frame((0..64).collect()), Anchor(1 << 40)),
        (Arrival::IrqWindow, Anchor::NONE),
    ];
    let mut events: Vec<(Event, Option<Anchor>)> = anchored
        .into_iter()
        .map(|(arrival, anchor)| (Event::Arrival(arrival), Some(anchor)))
        .collect();
    events.extend(plain().into_iter().map(|event| (event, None)));
    events.push((last, None));
    let entry = |(n, (event, anchor)): (u64, (Event, Option<Anchor>))| {
        let here = Here {
            point: ExecPoint {
                clock: Clock(base.clock.0 + n * n * n * 1_000_003),
                rip: 0x10_0000 + n * n * n * 977,
                rcx: 0,
            },
            registers: RegisterDigest(0x9e37_79b9u32.wrapping_mul(n as u32)),
        };
        match event {
            Event::Progress => LogEntry::progress(here.point.clock),
            Event::Arrival(arrival) => LogEntry::arrival(&here, arrival, anchor),
            event => LogEntry::at(&here, event),
        }
    };
    (1u64..).zip(events).map(entry).collect()
}

/// One event of every kind but those that end a log.
fn plain() -> Vec<Event> {
    vec![
        Event::Arrival(Arrival::Timer { periods: 1 }),
        Event::Progress,
        Event::Arrival(Arrival::Timer { periods: 300 }),
        Event::Arrival(Arrival::Frame((0..64).collect())),
        Event::Arrival(Arrival::DiskDone {
            tag: 7,
            ok: true,
            data: vec![0xab; 512],
        }),
        Event::Arrival(Arrival::DiskDone {
            tag: 8,
            ok: false,
            data: Vec::new(),
        }),
        Event::Arrival(Arrival::Console(b"typed".to_vec())),
        Event::Arrival(Arrival::IrqWindow),
        Event::Answer {
            question: Question::Tsc,
            value: 123_456_789_012,
        },
        Event::Answer {
            question: Question::Tsc,
            value: 123_456_790_000,
        },
        Event::Answer {
            question: Question::WallClock,
            value: 1_700_000_000_000_000_000,
        },
        Event::Answer {
            question: Question::PitElapsed(2),
            value: 54_925_000,
        },
        Event::Answer {
            question: Question::PmElapsed,
            value: 1_000_000_007,
        },
        Event::Answer {
            question: Question::Entropy,
            value: 0x0123_4567_89ab_cdef,
        },
        Event::Output {
            digest: 0xdead_beef,
        },
        Event::State {
            first_page: 256,
            pages: 256,
            digest: 0x0123_4567_89ab_cdef,
        },
        Event::Arrival(Arrival::Clock {
            wall_ns: 1_700_000_001_000_000_000,
        }),
        Event::Arrival(Arrival::Clock {
            wall_ns: 1_700_000_002_000_000_123,
        }),
        Event::Arrival(Arrival::Stop),
    ]
}

/// An entry in words; what version 1 did not have is named only where it is.
fn line(entry: &LogEntry) -> String {
    let stand = entry.stand.map(|stand| {
        let rip = stand.rip.map_or("none".to_owned(), |rip| rip.to_string());
        format!("Stand {{ rip: {rip}, registers: {:?} }}", stand.registers)
    });
    let stand = stand.map_or("None".to_owned(), |stand| format!("Some({stand})"));
    let anchor = if entry.anchor == Anchor::NONE {
        String::new()
    } else {
        format!("anchor: {}, ", entry.anchor.0)
    };
    format!(
        "LogEntry {{ clock: {:?}, stand: {stand}, {anchor}event: {:?} }}",
        entry.clock, entry.event
    )
}

fn text(path: &Path) -> String {
    let mut reader = LogReader::open(path).unwrap();
    let mut text = header_line(&reader);
    if let Some(mut state) = reader.state().unwrap() {
        let (length, mut words) = (state.size(), String::new());
        state.read_to_string(&mut words).unwrap();
        text += &format!("state of {length} bytes: {words}\n");
    }
    let mut index = reader.header().base.index.0;
    while let Some((entry, bytes)) = reader.read().unwrap() {
        text += &format!("{bytes} bytes: {}\n", line(&entry));
        index += 1;
    }
    assert!(reader.ended() && reader.tail().is_none());
    text + &format!("{} entries\n", LogIndex(index))
}

/// The header in words; where a log begins is named only where it may be elsewhere than at a boot.
fn header_line(reader: &LogReader) -> String {
    let LogHeader {
        cpu_model,
        clock_kind,
        config,
        base,
    } = reader.header();
    let begins = if reader.version() < STATE_SINCE {
        assert_eq!(*base, Base::alone(base.digest));
        format!("first_state: {}", base.digest)
    } else {
        format!("{base:?}")
    };
    format!(
        "LogHeader {{ cpu_model: {cpu_model:?}, clock_kind: {clock_kind:?}, config: {config:?}, {begins} }}\n"
    )
}

fn header(base: Base) -> LogHeader {
    LogHeader {
        cpu_model: "v1".into(),
        clock_kind: ClockKind::Blocks,
        config: b"a machine".to_vec(),
        base,
    }
}

/// A log from a boot to the machine's end.
fn write(path: &Path) {
    let base = Base::alone(0xfeed_f00d);
    let end = Event::End {
        code: 3,
        digest: u64::MAX,
    };
    let writer = LogWriter::create(path, &header(base), || 0).unwrap();
    write_entries(writer, &base, end);
}

/// A log from a state in the middle of a run to where it was left.
fn write_from_state(path: &Path) {
    let base = Base {
        view: ViewNumber(7),
        index: LogIndex(1_000),
        clock: Clock(1_000_000_000),
        digest: 0xfeed_f00d,
        origin: BaseOrigin::State,
    };
    let mut state = LogWriter::create_with_state(path, &header(base), || 0).unwrap();
    for part in ["where the ", "machine stood"] {
        state.write_all(part.as_bytes()).unwrap();
        state.flush().unwrap();
    }
    let left = Event::Left { digest: u64::MAX };
    write_entries(state.finish().unwrap(), &base, left);
}

fn write_entries(mut writer: LogWriter, base: &Base, last: Event) {
    for entry in entries(base, last) {
        writer.append(&entry).unwrap();
        if matches!(entry.event, Event::Progress | Event::Output { .. }) {
            writer.flush().unwrap();
        }
    }
    writer.flush().unwrap();
}

/// A log's two files, and what writes the log.
type Written = ([PathBuf; 2], fn(&Path));

/// The golden logs of today's version.
fn todays() -> [Written; 2] {
    [
        (golden(FORMAT_VERSION), write),
        (golden_of_state(FORMAT_VERSION), write_from_state),
    ]
}

#[test]
fn logs_of_every_version_are_read_as_they_were_written() {
    if std::env::var_os("TANDEM_GOLDEN").is_some() {
        for ([log, expected], write) in todays() {
            write(&log);
            std::fs::write(&expected, text(&log)).unwrap();
        }
    }
    let of_states =
        (STATE_SINCE..=FORMAT_VERSION).map(|version| (version, golden_of_state(version)));
    let all = (1..=FORMAT_VERSION).map(|version| (version, golden(version)));
    for (version, [log, expected]) in all.chain(of_states) {
        assert_eq!(LogReader::open(&log).unwrap().version(), version);
        assert_eq!(text(&log), std::fs::read_to_string(&expected).unwrap());
    }
}

#[test]
fn logs_of_an_old_version_are_listed_and_not_replayed() {
    for version in 1..3 {
        let old = LogReader::open(&golden(version)[0]).unwrap();
        assert!(matches!(old.check_replayable(), Err(LogError::Foreign(_))));
    }
    for version in 3..=FORMAT_VERSION {
        let new = LogReader::open(&golden(version)[0]).unwrap();
        assert!(new.check_replayable().is_ok());
    }
}

#[test]
fn todays_writer_still_writes_todays_version() {
    let folder_now = tempfile::tempdir().unwrap();
    let now = folder_now.path().join("log");
    for ([golden, _], write) in todays() {
        write(&now);
        assert_eq!(
            std::fs::read(&now).unwrap(),
            std::fs::read(&golden).unwrap(),
            "the format changed: give it a new version, and golden files of its own"
        );
    }
}
