//! The console of a recording that is replayed, as it was seen: `tandem replay --cast` and `--speed`.
//!
//! The file is asciicast, version 2 (docs.asciinema.org, "asciicast v2"): a line of JSON for the terminal, then one for
//! each time something was printed.

#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

use super::witness::{Now, Sheet, Witness};
use crate::failure::Outcome;
use replay::{Event, Output};
use serde_json::json;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::num::NonZeroU32;
use std::path::Path;
use std::time::Duration;
use vmm::hostclock::monotonic_ns;

/// The terminal a guest's serial console takes for granted.
const SIZE: (u32, u32) = (80, 25);

/// The console as a file that is being written.
struct Recording<W> {
    sheet: Sheet<W>,
    /// The beginning of a character whose end was not printed yet.
    rest: Vec<u8>,
    at_us: u64,
}

impl<W: Write> Recording<W> {
    fn new(mut sheet: Sheet<W>) -> Self {
        let head = json!({ "version": 2, "width": SIZE.0, "height": SIZE.1 });
        sheet.write(format!("{head}\n").as_bytes());
        Self {
            sheet,
            rest: Vec::new(),
            at_us: 0,
        }
    }

    /// Adds what was printed at `at_us`. Bytes that are no characters become the one that says so.
    fn add(&mut self, at_us: u64, bytes: &[u8]) {
        self.at_us = at_us;
        let mut all = std::mem::take(&mut self.rest);
        all.extend_from_slice(bytes);
        // The end may be a character whose other bytes are still to come.
        let cut = all.len() - incomplete(&all);
        self.rest = all.split_off(cut);
        self.write(&all);
    }

    fn write(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let seconds = self.at_us as f64 / 1e6;
        let line = json!([seconds, "o", String::from_utf8_lossy(bytes)]);
        self.sheet.write(format!("{line}\n").as_bytes());
    }

    /// Adds what is left of a character that did not end.
    fn end(&mut self) {
        let rest = std::mem::take(&mut self.rest);
        self.write(&rest);
    }
}

/// How many bytes at the end of `bytes` are the beginning of a character, and not all of it.
fn incomplete(bytes: &[u8]) -> usize {
    let longest = bytes.len().min(3);
    let begins = |n: &usize| {
        let tail = &bytes[bytes.len() - n..];
        std::str::from_utf8(tail).is_err_and(|e| e.valid_up_to() == 0 && e.error_len().is_none())
    };
    (1..=longest).find(begins).unwrap_or(0)
}

/// `--cast`.
pub struct Cast(Recording<BufWriter<File>>);

impl Cast {
    /// A new file at `path`.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn create(path: &Path) -> Outcome<Self> {
        Ok(Self(Recording::new(Sheet::create(path)?)))
    }
}

impl Witness for Cast {
    fn heard(&mut self, _: Now, _: &Event) {}

    fn said(&mut self, now: Now, output: &Output) {
        if let Output::Console(bytes) = output {
            self.0.add(now.at_us, bytes);
        }
    }

    fn finish(&mut self) -> Outcome<String> {
        self.0.end();
        self.0.sheet.finish()?;
        Ok(format!("the console is in {}", self.0.sheet.path()))
    }
}

/// `--speed`: has the guest say nothing sooner than it did.
pub struct Pace {
    /// By the clock that a vCPU's thread can read.
    begun_ns: u64,
    speed: NonZeroU32,
}

impl Pace {
    /// So many times as fast as it was recorded, from now on.
    pub fn new(speed: NonZeroU32) -> Self {
        Self {
            begun_ns: monotonic_ns(),
            speed,
        }
    }
}

impl Witness for Pace {
    fn heard(&mut self, _: Now, _: &Event) {}

    fn said(&mut self, now: Now, output: &Output) {
        if let Output::Console(_) = output {
            let due = Duration::from_micros(now.at_us) / self.speed.get();
            // That time is what was asked for.
            let gone = Duration::from_nanos(monotonic_ns() - self.begun_ns);
            std::thread::sleep(due.saturating_sub(gone));
        }
    }

    fn finish(&mut self) -> Outcome<String> {
        Ok(String::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(prints: &[(u64, &[u8])]) -> Vec<serde_json::Value> {
        let mut recording = Recording::new(Sheet::new(Path::new("it"), Vec::new()));
        for (at_us, bytes) in prints {
            recording.add(*at_us, bytes);
        }
        recording.end();
        let text = std::str::from_utf8(recording.sheet.out()).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    #[test]
    fn what_is_printed_is_there_with_its_time() {
        let lines = lines(&[(0, b"a\r\n"), (1_500_000, b"\x1b[1mb")]);
        assert_eq!(lines[0], json!({ "version": 2, "width": 80, "height": 25 }));
        assert_eq!(
            lines[1..],
            [json!([0.0, "o", "a\r\n"]), json!([1.5, "o", "\u{1b}[1mb"])]
        );
    }

    #[test]
    fn a_character_printed_in_parts_is_one() {
        let euro = "€".as_bytes();
        let lines = lines(&[(0, &euro[..1]), (1, &euro[1..2]), (2, &euro[2..])]);
        assert_eq!(lines[1..], [json!([0.000002, "o", "€"])]);
    }

    #[test]
    fn what_is_no_character_is_told_so_and_holds_nothing_up() {
        let lines = lines(&[(0, b"\xff"), (1, b"\xffa\xe2"), (2, b"b\xe2\x82")]);
        let printed = |n: usize| lines[n][2].as_str().unwrap().to_owned();
        assert_eq!(printed(1), "\u{fffd}");
        assert_eq!(printed(2), "\u{fffd}a");
        assert_eq!(printed(3), "\u{fffd}b");
        assert_eq!(printed(4), "\u{fffd}");
    }
}
