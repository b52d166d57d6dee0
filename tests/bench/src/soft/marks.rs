//! Where in a recording the guest printed a line.
//!
//! The log has no output, but a digest of each: who knows what was printed finds the entry, and with it the
//! instruction clock at that line, exactly.

use crate::error::{BenchError, Outcome};
use replay::file::LogReader;
use replay::{Event, Output, digest};
use std::collections::BTreeMap;
use std::path::Path;

/// The log at one entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// The instruction clock.
    pub clock: u64,
    /// Bytes of the log up to the frame it is in.
    pub bytes: u64,
}

/// The marks of a recording.
#[derive(Debug, Default)]
pub struct Marks {
    lines: BTreeMap<String, Mark>,
}

impl Marks {
    /// Looks for `lines`, as the console showed them, in the whole recording at `path`. A line that left the
    /// guest in parts is not found.
    pub fn find(path: &Path, lines: impl IntoIterator<Item = String>) -> Outcome<Self> {
        // A terminal ends lines so.
        let digest = |line: &String| digest::output(&Output::Console(format!("{line}\r\n").into()));
        let mut wanted: BTreeMap<u32, String> = lines
            .into_iter()
            .map(|line| (digest(&line), line))
            .collect();
        let mut found = Self::default();
        let mut reader = LogReader::open(path)?;

        while let Some((entry, _)) = reader.read()? {
            let Event::Output { digest } = entry.event else {
                continue;
            };
            if let Some(line) = wanted.remove(&digest) {
                let clock = entry.clock.0;
                found.lines.insert(
                    line,
                    Mark {
                        clock,
                        bytes: reader.offset(),
                    },
                );
            }
        }
        if !reader.ended() {
            return Err(BenchError::said(format!(
                "{}: the recording has no end",
                path.display()
            )));
        }
        Ok(found)
    }

    /// Where this line was printed.
    #[must_use]
    pub fn at(&self, line: &str) -> Option<Mark> {
        self.lines.get(line).copied()
    }

    /// Instructions from one line to another.
    #[must_use]
    pub fn instructions(&self, from: &str, to: &str) -> Option<u64> {
        self.at(to)?.clock.checked_sub(self.at(from)?.clock)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use replay::codec::to_bytes;
    use replay::file::{LogHeader, LogWriter};
    use replay::{Clock, ClockKind, ExecPoint, Here, LogEntry, LogSink, RegisterDigest};

    /// A log with these outputs on the console, each at its clock.
    fn log(path: &Path, outputs: &[(u64, &str)], end: bool) {
        let header = LogHeader {
            cpu_model: "v2".into(),
            clock_kind: ClockKind::Instructions,
            config: to_bytes(&0u8),
            base: replay::Base::alone(1),
        };
        let mut log = LogWriter::create(path, &header, || 0).unwrap();
        let mut append = |clock, event| {
            let point = ExecPoint {
                clock: Clock(clock),
                rip: 0x10_0000,
                rcx: 0,
            };
            let registers = RegisterDigest(7);
            log.append(&LogEntry::at(&Here { point, registers }, event))
                .unwrap();
        };
        for (clock, text) in outputs {
            let digest = digest::output(&Output::Console((*text).into()));
            append(*clock, Event::Output { digest });
        }
        if end {
            append(9000, Event::End { code: 0, digest: 5 });
        }
        log.flush().unwrap();
    }

    #[test]
    fn lines_are_found_where_they_were_printed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let outputs = [
            (10, "begin\r\n"),
            (15, "par"),
            (20, "ted\r\n"),
            (70, "end\r\n"),
        ];
        log(&path, &outputs, true);
        let lines = ["begin", "end", "parted"].map(String::from);
        let marks = Marks::find(&path, lines).unwrap();
        assert_eq!(marks.instructions("begin", "end"), Some(60));
        assert_eq!(marks.instructions("end", "begin"), None);
        assert_eq!(marks.at("parted"), None, "it left in two parts");
        assert!(marks.at("end").unwrap().bytes > 0);
    }

    #[test]
    fn a_recording_without_an_end_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        log(&path, &[(10, "begin\r\n")], false);
        let refused = Marks::find(&path, ["begin".into()]).unwrap_err();
        assert!(refused.to_string().contains("no end"), "{refused}");
    }
}
