//! Where in a recording the guest printed a line.
//!
//! The log has no output, but a digest of each: who knows what was printed finds the entry, and with it the
//! instruction clock at that line, exactly.

use crate::failure::{Failure, Outcome};
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
    /// The clock at the end.
    pub end: u64,
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
            found.end = entry.clock.0;
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
            return Err(Failure::new(format!(
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
