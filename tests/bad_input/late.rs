//! Guests that cannot go on, long after they began: one line that tells the instruction, a log that is
//! whole and replays to the same line, and a pair that ends with it.

use super::common::bare::after_ticks;
use super::common::{LIMIT, assert_one_line, cluster, have_kvm, machine, os, tandem, text};
use kit::cluster::{Cluster, Pair, PairOptions};
use std::path::{Path, PathBuf};

/// Ticks before the end.
const TICKS: u8 = 60;

/// A way to fail: its code, and what is said of it, in which `{at}` is the address of what fails.
struct Way {
    name: &'static str,
    code: &'static [u8],
    /// Bytes of `code` before the instruction that fails.
    before: u64,
    words: &'static [&'static str],
    /// KVM on a processor that virtualises does the same.
    everywhere: bool,
}

const WAYS: &[Way] = &[
    Way {
        name: "triple fault",
        // lidt of what is behind, ten zero bytes; ud2
        code: b"\x0f\x01\x1d\x02\0\0\0\x0f\x0b\0\0\0\0\0\0\0\0\0\0",
        before: 7,
        words: &["triple fault", "[0f, 0b] (ud2) at {at}"],
        everywhere: true,
    },
    Way {
        name: "unknown instruction",
        // rdrand %eax, which no model has; nobody handles #UD.
        code: b"\x0f\xc7\xf0",
        before: 0,
        words: &["triple fault", "[0f, c7, f0] (rdrand %eax) at {at}"],
        everywhere: false,
    },
    Way {
        name: "missing port",
        // mov $0xacd, %dx; out %al, (%dx)
        code: b"\x66\xba\xcd\x0a\xee",
        before: 4,
        words: &[
            "writes 1 bytes at Port 0xacd",
            "no device: [ee] (out %al,%dx) at {at}",
        ],
        everywhere: true,
    },
    Way {
        name: "missing port, read",
        // in $0xac, %al
        code: b"\xe4\xac",
        before: 0,
        words: &[
            "reads 1 bytes at Port 0xac",
            "no device: [e4, ac] (in $0xAC,%al) at {at}",
        ],
        everywhere: true,
    },
    Way {
        name: "missing device, written",
        // mov $0xfec00000, %eax; movl $1, (%rax)
        code: b"\xb8\0\0\xc0\xfe\xc7\0\x01\0\0\0",
        before: 5,
        words: &[
            "writes 4 bytes at Mmio 0xfec00000",
            "no device: [c7, 00, 01, 00, 00, 00] (movl $1,(%rax)) at {at}",
        ],
        everywhere: true,
    },
    Way {
        name: "missing device, read",
        // mov $0xfec00000, %eax; mov (%rax), %ecx
        code: b"\xb8\0\0\xc0\xfe\x8b\x08",
        before: 5,
        words: &[
            "reads 4 bytes at Mmio 0xfec00000",
            "no device: [8b, 08] (mov (%rax),%ecx) at {at}",
        ],
        everywhere: true,
    },
    Way {
        name: "jump into device memory",
        // mov $0xfec00000, %eax; jmp *%rax
        code: b"\xb8\0\0\xc0\xfe\xff\xe0",
        before: 5,
        words: &["it executes at 0xfec00000", "no RAM", "rip 0xfec00000"],
        everywhere: true,
    },
    Way {
        name: "halt that nothing ends",
        // hlt with interrupts disabled
        code: b"\xf4",
        before: 0,
        words: &["halted with interrupts disabled"],
        everywhere: true,
    },
];

impl Way {
    /// The image, and the words with the address in them.
    fn image(&self) -> (Vec<u8>, Vec<String>) {
        let (image, at) = after_ticks(TICKS, self.code);
        let at = format!("{:#x}", at + self.before);
        let words = self.words.iter().map(|word| word.replace("{at}", &at));
        (image, words.collect())
    }

    fn file(&self, folder: &Path) -> (PathBuf, Vec<String>) {
        let (bytes, words) = self.image();
        let path = folder.join("guest");
        std::fs::write(&path, bytes).unwrap();
        (path, words)
    }
}

/// The one line a run ended with, without the program's name.
#[track_caller]
fn line(output: &std::process::Output, name: &str, words: &[String]) -> String {
    eprintln!("{name}: {}", String::from_utf8_lossy(&output.stderr));
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    assert_one_line(output, 1, &words);
    let line = String::from_utf8_lossy(&output.stderr);
    let line = line.trim_end().trim_start_matches("tandem: ");
    line.to_owned()
}

/// Records each way of `ways` on `engine`, looks at the log, and replays it on each of `replayers`.
fn fail_late(ways: impl Iterator<Item = &'static Way>, engine: &str, replayers: &[&str]) {
    for way in ways {
        let folder = tempfile::tempdir().unwrap();
        let (image, words) = way.file(folder.path());
        let log = folder.path().join("log");
        let recorded = tandem(&[
            "record",
            text(&image),
            "--engine",
            engine,
            "--digest-every",
            "16",
            "-o",
            text(&log),
        ]);
        let line = line(&recorded, way.name, &words);
        let console = String::from_utf8_lossy(&recorded.stdout);
        // Ticks that come while one is handled are merged.
        let dots = console.matches('.').count();
        assert!((30..=usize::from(TICKS)).contains(&dots), "{console}");

        let listed = tandem(&["log", text(&log), "--json"]);
        assert!(listed.status.success(), "{listed:?}");
        let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
        assert_eq!(listed["whole"], true, "{listed}");
        assert!(listed["entries"].as_u64() > Some(2 * 30), "{listed}");
        assert!(
            listed["kinds"]["state"]["count"].as_u64() > Some(3),
            "{listed}"
        );

        for replayer in replayers {
            let replayed = tandem(&["replay", text(&log), "--engine", replayer, "--json"]);
            assert_eq!(replayed.status.code(), Some(1));
            let report: serde_json::Value = serde_json::from_slice(&replayed.stdout).unwrap();
            assert_eq!(report["divergence"], serde_json::Value::Null, "{report}");
            assert_eq!(
                report["entries"], listed["entries"],
                "{}: {report}",
                way.name
            );
            assert_eq!(report["clock"], listed["clock"], "{}: {report}", way.name);
            let error = report["error"].as_str().unwrap();
            if *replayer == engine {
                assert_eq!(error, line);
            }
        }
    }
}

#[test]
fn a_guest_that_fails_after_many_entries_is_told_and_its_log_replays_to_the_same_line() {
    let _machine = machine();
    fail_late(WAYS.iter(), "soft", &["soft"]);
}

#[test]
fn the_same_on_kvm() {
    let _machine = machine();
    if !have_kvm("guests that fail") {
        return;
    }
    fail_late(WAYS.iter().filter(|way| way.everywhere), "kvm", &["kvm"]);
}

/// A pair whose guest fails `way`; the primary with `more`.
fn pair(cluster: &Cluster, way: &Way, more: &[&str]) -> (Pair, Vec<String>) {
    let (image, words) = way.file(cluster.folder());
    let options = PairOptions {
        both: os(&["--engine", "soft", "--suspect-ms", "20000"]),
        primary: os(more),
        ..PairOptions::default()
    };
    let guest = os(&[text(&image), "--clock", "blocks"]);
    let pair = cluster.start_pair("broken", &guest, &options).unwrap();
    (pair, words)
}

/// All a replica said on stderr: one line, with `words` in it. One that was left alone has said that before.
#[track_caller]
fn said(cluster: &Cluster, who: &str, words: &[String]) -> String {
    let path = cluster.folder().join(format!("broken.{who}.err"));
    let said = std::fs::read_to_string(path).unwrap();
    let alone = |line: &&str| line.contains("runs alone from now on");
    let said: String = said
        .lines()
        .skip_while(alone)
        .collect::<Vec<_>>()
        .join("\n");
    assert_eq!(said.lines().count(), 1, "{who}: {said}");
    for word in words {
        assert!(said.contains(word), "{who}: '{word}' in: {said}");
    }
    said
}

#[test]
fn a_guest_that_fails_ends_its_pair_and_nobody_goes_live() {
    let _machine = machine();
    for way in [&WAYS[0], &WAYS[2], &WAYS[6]] {
        let cluster = cluster("file");
        let (mut pair, words) = pair(&cluster, way, &[]);
        for replica in [&mut pair.primary, &mut pair.backup] {
            assert_eq!(replica.wait(LIMIT).unwrap().code(), Some(1), "{}", way.name);
        }
        let primary = said(&cluster, "primary", &words);
        assert_eq!(primary, said(&cluster, "backup", &words));
        let events = pair.events();
        let seen = |who: &str, event: &str| events.iter().any(|e| e.who == who && e.event == event);
        for who in ["primary", "backup"] {
            assert!(seen(who, "guest_broke") && seen(who, "ended"), "{events:?}");
            for vain in [
                "flag_won",
                "flag_lost",
                "drained",
                "live",
                "diverged",
                "halted",
            ] {
                assert!(!seen(who, vain), "{who} {vain}: {events:?}");
            }
        }
        assert!(
            seen("primary", "marked"),
            "it may be started again: {events:?}"
        );
    }
}

#[test]
fn a_backup_that_went_live_ends_with_its_guests_failure() {
    let _machine = machine();
    let cluster = cluster("file");
    let way = &WAYS[2];
    let (mut pair, words) = pair(&cluster, way, &["--die-at", "40"]);
    pair.primary.wait(LIMIT).unwrap();
    assert!(pair.primary.was_killed());
    assert_eq!(pair.backup.wait(LIMIT).unwrap().code(), Some(1));
    said(&cluster, "backup", &words);
    let events = pair.events();
    for event in ["live", "guest_broke", "ended", "marked"] {
        let seen = events.iter().any(|e| e.who == "backup" && e.event == event);
        assert!(seen, "{event}: {events:?}");
    }
}
