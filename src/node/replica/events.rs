//! A replica's trace of what happened to it, for the demo's timeline and for people.

use crate::failure::{During, Outcome};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::Write;
use std::path::Path;
use vmm::hostclock;

/// One line of an events file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Nanoseconds of the host's monotonic clock.
    pub at_ns: u64,
    /// The replica.
    pub who: String,
    /// What happened, in one word.
    pub event: String,
    /// More about it.
    pub detail: String,
}

impl Line {
    /// The whole lines of an events file; none if there is no such file yet.
    pub fn all_in(path: &Path) -> Vec<Self> {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }
}

/// Writes events as they happen; each line goes out whole and at once, so that it outlives the process.
pub struct Events {
    who: String,
    file: Option<File>,
}

impl Events {
    /// Events of `who`, to `path` if given.
    pub fn open(who: &str, path: Option<&Path>) -> Outcome<Self> {
        let file = path
            .map(|path| {
                File::options()
                    .create(true)
                    .append(true)
                    .open(path)
                    .during(format_args!("cannot write events to {}", path.display()))
            })
            .transpose()?;
        Ok(Self {
            who: who.to_owned(),
            file,
        })
    }

    /// Whether there is a file for them.
    pub fn are_kept(&self) -> bool {
        self.file.is_some()
    }

    /// Notes an event.
    pub fn note(&mut self, event: &str, detail: impl std::fmt::Display) {
        self.note_at(hostclock::monotonic_ns(), event, detail);
    }

    /// Notes an event that happened at `at_ns`.
    pub fn note_at(&mut self, at_ns: u64, event: &str, detail: impl std::fmt::Display) {
        let detail = detail.to_string();
        tracing::info!(event, %detail);
        let Some(file) = &mut self.file else { return };
        let line = Line {
            at_ns,
            who: self.who.clone(),
            event: event.to_owned(),
            detail,
        };
        let mut text = serde_json::to_string(&line).expect("a line of plain text");
        text.push('\n');
        // Events are diagnostics: a full disk must not end a replica.
        let _ = file.write_all(text.as_bytes());
    }
}
