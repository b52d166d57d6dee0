//! Logs of every format version there was must be read for ever, entry by entry.
//!
//! `v2.log` holds one entry of every kind; `v2.txt` says what it says; `v1` are those of version 1. To add
//! a version, write a new pair with `TANDEM_GOLDEN=write` and never touch the old ones.

use replay::file::{FORMAT_VERSION, LogHeader, LogReader, LogWriter};
use replay::{
    Arrival, Clock, ClockKind, Event, LogEntry, LogIndex, LogSink, Question, RegisterDigest, Stand,
};
use std::path::{Path, PathBuf};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// One entry of every kind, with values that need short and long numbers.
fn entries() -> Vec<LogEntry> {
    let events = vec![
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
        Event::Output {
            digest: 0xdead_beef,
        },
        Event::State {
            first_page: 256,
            pages: 256,
            digest: 0x0123_4567_89ab_cdef,
        },
        Event::Arrival(Arrival::Stop),
        Event::End {
            code: 3,
            digest: u64::MAX,
        },
    ];
    let numbered = (1u64..).zip(events);
    let entry = |(n, event): (u64, Event)| {
        let registers = RegisterDigest(0x9e37_79b9u32.wrapping_mul(n as u32));
        let stand = Stand {
            rip: 0x10_0000 + n * n * n * 977,
            registers,
        };
        let stand = (event != Event::Progress).then_some(stand);
        LogEntry {
            clock: Clock(n * n * n * 1_000_003),
            stand,
            event,
        }
    };
    numbered.map(entry).collect()
}

fn text(path: &Path) -> String {
    let mut reader = LogReader::open(path).unwrap();
    let mut text = format!("{:?}\n", reader.header());
    let mut index = 0;
    while let Some((entry, bytes)) = reader.read().unwrap() {
        text += &format!("{bytes} bytes: {entry:?}\n");
        index += 1;
    }
    assert!(reader.ended() && reader.tail().is_none());
    text + &format!("{} entries\n", LogIndex(index))
}

fn write(path: &Path) {
    let header = LogHeader {
        cpu_model: "v1".into(),
        clock_kind: ClockKind::Blocks,
        config: b"a machine".to_vec(),
        first_state: 0xfeed_f00d,
    };
    let mut writer = LogWriter::create(path, &header, || 0).unwrap();
    for entry in entries() {
        writer.append(&entry).unwrap();
        if matches!(entry.event, Event::Progress | Event::Output { .. }) {
            writer.flush().unwrap();
        }
    }
    writer.flush().unwrap();
}

#[test]
fn logs_of_every_version_are_read_as_they_were_written() {
    let (log, expected) = (folder().join("v2.log"), folder().join("v2.txt"));
    if std::env::var_os("TANDEM_GOLDEN").is_some() {
        write(&log);
        std::fs::write(&expected, text(&log)).unwrap();
    }
    for version in 1..=FORMAT_VERSION {
        let (log, expected) = ["log", "txt"]
            .map(|kind| folder().join(format!("v{version}.{kind}")))
            .into();
        assert_eq!(LogReader::open(&log).unwrap().version(), version);
        assert_eq!(text(&log), std::fs::read_to_string(&expected).unwrap());
    }
}

#[test]
fn todays_writer_still_writes_version_2() {
    let folder_now = tempfile::tempdir().unwrap();
    let now = folder_now.path().join("log");
    write(&now);
    let golden = std::fs::read(folder().join("v2.log")).unwrap();
    assert_eq!(
        std::fs::read(&now).unwrap(),
        golden,
        "the format changed: give it a new version, and golden files of its own"
    );
}
