//! A replica's trace of what happened to it, for the demo's timeline and for people; and its counters.
//!
//! Either file is bounded: at [`FILE_MAX`] it is renamed to one with `.1` behind its name, where the one
//! before is lost, and begun anew.

use crate::failure::{During, Outcome};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use vmm::hostclock;

/// Most bytes of a file before it is begun anew; there are two of them then.
const FILE_MAX: u64 = 16 << 20;

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

/// A file that lines are added to, and that does not grow for ever.
struct Trace {
    path: PathBuf,
    file: File,
    bytes: u64,
    most: u64,
}

impl Trace {
    fn open(path: &Path, most: u64) -> io::Result<Self> {
        let file = File::options().create(true).append(true).open(path)?;
        // Of what is no file, like a pipe, nothing is renamed.
        let kept = file.metadata()?;
        Ok(Self {
            path: path.to_owned(),
            bytes: kept.len(),
            most: if kept.is_file() { most } else { u64::MAX },
            file,
        })
    }

    /// Adds a line, whole. It is for diagnosis: a full disk must not end a replica.
    fn add(&mut self, line: &Line) {
        let mut text = serde_json::to_string(line).expect("a line of plain text");
        text.push('\n');
        if self.bytes >= self.most {
            // Where that fails, the file grows on.
            let _ = self.begin_anew();
        }
        if self.file.write_all(text.as_bytes()).is_ok() {
            self.bytes += text.len() as u64;
        }
    }

    fn begin_anew(&mut self) -> io::Result<()> {
        let mut before = OsString::from(&self.path);
        before.push(".1");
        std::fs::rename(&self.path, before)?;
        *self = Self::open(&self.path, self.most)?;
        Ok(())
    }
}

/// Writes events as they happen; each line goes out whole and at once, so that it outlives the process.
pub struct Events {
    who: String,
    events: Option<Trace>,
    metrics: Option<Trace>,
}

impl Events {
    /// Events of `who`, to the file `events` if given, and counters to `metrics`.
    pub fn open(who: &str, events: Option<&Path>, metrics: Option<&Path>) -> Outcome<Self> {
        let open = |what: &str, path: Option<&Path>| {
            path.map(|path| {
                Trace::open(path, FILE_MAX)
                    .during(format_args!("cannot write {what} to {}", path.display()))
            })
            .transpose()
        };
        Ok(Self {
            who: who.to_owned(),
            events: open("events", events)?,
            metrics: open("metrics", metrics)?,
        })
    }

    /// Whether there is a file for counters.
    pub fn keeps_metrics(&self) -> bool {
        self.metrics.is_some()
    }

    /// Notes counters.
    pub fn note_metrics(&mut self, metrics: &serde_json::Value) {
        let line = self.line(hostclock::monotonic_ns(), "metrics", metrics.to_string());
        if let Some(file) = &mut self.metrics {
            file.add(&line);
        }
    }

    fn line(&self, at_ns: u64, event: &str, detail: String) -> Line {
        Line {
            at_ns,
            who: self.who.clone(),
            event: event.to_owned(),
            detail,
        }
    }

    /// Notes an event.
    pub fn note(&mut self, event: &str, detail: impl std::fmt::Display) {
        self.note_at(hostclock::monotonic_ns(), event, detail);
    }

    /// Notes an event that happened at `at_ns`.
    pub fn note_at(&mut self, at_ns: u64, event: &str, detail: impl std::fmt::Display) {
        let detail = detail.to_string();
        tracing::info!(event, %detail);
        let line = self.line(at_ns, event, detail);
        if let Some(file) = &mut self.events {
            file.add(&line);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_full_is_begun_anew_and_the_one_before_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.events");
        let line = |n: u64| Line {
            at_ns: n,
            who: "primary".into(),
            event: "solo".into(),
            detail: "view 1".into(),
        };
        let most = 20 * serde_json::to_string(&line(1)).unwrap().len() as u64;
        let mut trace = Trace::open(&path, most).unwrap();
        for n in 0..1_000 {
            trace.add(&line(n));
        }
        // One that runs on knows how long its file is.
        drop(trace);
        let mut trace = Trace::open(&path, most).unwrap();
        for n in 1_000..1_010 {
            trace.add(&line(n));
        }
        let before = folder.path().join("x.events.1");
        let all = [Line::all_in(&before), Line::all_in(&path)].concat();
        let first = all[0].at_ns;
        assert!(
            all.iter().map(|line| line.at_ns).eq(first..1_010),
            "none is missing"
        );
        assert!(all.len() >= 20 && all.len() < 50, "{}", all.len());
        let files = std::fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(files, 2);
    }
}
