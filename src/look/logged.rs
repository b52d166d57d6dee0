//! The entries of a log as tracks of a trace for Perfetto: `tandem log --perfetto`.

use super::perfetto::{Detail, Trace, Track};
use crate::failure::Outcome;
use replay::{Arrival, Event, Kind, LogEntry, LogIndex};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

/// A log's tracks.
pub struct Logged {
    trace: Trace<BufWriter<File>>,
    group: Track,
    kinds: BTreeMap<Kind, Track>,
    bytes: Track,
    behind: Option<Track>,
    /// By how much guest time is ahead of the clock, where it is derived.
    skipped_ns: Option<u64>,
    written: u64,
    /// When the part of the log was written that was read last.
    at_us: u64,
}

impl Logged {
    /// None yet, in a new file at `path`; of a machine whose time is ahead of the clock by `skipped_ns` where the log
    /// begins, if it is derived.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn create(path: &Path, skipped_ns: Option<u64>) -> Outcome<Self> {
        let mut trace = Trace::create(path)?;
        let group = trace.group("log");
        let bytes = trace.counter("bytes of entries", "bytes", group);
        let behind =
            skipped_ns.map(|_| trace.counter("guest time behind the recording's", "us", group));
        Ok(Self {
            trace,
            group,
            kinds: BTreeMap::new(),
            bytes,
            behind,
            skipped_ns,
            written: 0,
            at_us: 0,
        })
    }

    /// Adds entry `index`, of so many bytes, which is of a part of the log that was written `at_us` after its begin.
    pub fn add(&mut self, index: LogIndex, entry: &LogEntry, bytes: u64, at_us: u64) {
        // What is out of range cannot be replayed, and is shown all the same.
        let anchor_ns = entry.anchor.ns().unwrap_or(0);
        self.skipped_ns = self.skipped_ns.map(|ns| ns.saturating_add(anchor_ns));
        let recorded_ns = at_us.saturating_mul(1000);
        let now = self
            .skipped_ns
            .map_or(recorded_ns, |ns| ns.saturating_add(entry.clock.0));
        self.written += bytes;
        if std::mem::replace(&mut self.at_us, at_us) != at_us {
            self.trace.reads(now, self.bytes, self.written);
            if let Some(track) = self.behind {
                self.trace
                    .reads(now, track, recorded_ns.saturating_sub(now) / 1000);
            }
        }
        let kind = entry.event.kind();
        let (trace, group) = (&mut self.trace, self.group);
        let track = *self
            .kinds
            .entry(kind)
            .or_insert_with(|| trace.track(&kind.to_string(), group));
        let mut details = vec![
            Detail::Number("entry", index.0),
            Detail::Number("clock", entry.clock.0),
            Detail::Number("bytes of the log", bytes),
        ];
        details.extend(detail(&entry.event));
        self.trace
            .instant(now, track, name(&entry.event), "entry", &details);
    }

    /// All is written; in words, where.
    ///
    /// # Errors
    /// If it could not be, at any time.
    pub fn finish(&mut self) -> Outcome<String> {
        self.trace.finish()?;
        Ok(format!("the entries are in {}", self.trace.path()))
    }
}

fn name(event: &Event) -> &'static str {
    match event {
        Event::Answer { .. } => "answer",
        Event::Arrival(Arrival::Timer { .. }) => "timer interrupt",
        Event::Arrival(Arrival::Frame(_)) => "frame",
        Event::Arrival(Arrival::DiskDone { .. } | Arrival::DiskRead { .. }) => "disk request done",
        Event::Arrival(Arrival::Console(_)) => "typed",
        Event::Arrival(Arrival::Clock { .. }) => "real-time clock",
        Event::Arrival(Arrival::IrqWindow) => "interrupt window",
        Event::Arrival(Arrival::Stop) => "stop",
        Event::Output { .. } => "output",
        Event::Progress => "progress",
        Event::State { .. } => "state digest",
        Event::Left { .. } => "recording left",
        Event::End { .. } => "end",
    }
}

fn detail(event: &Event) -> Option<Detail<'static>> {
    Some(match event {
        Event::Answer { value, .. } => Detail::Number("value", *value),
        Event::Arrival(Arrival::Timer { periods }) => Detail::Number("periods", (*periods).into()),
        Event::Arrival(Arrival::Frame(frame)) => Detail::Number("length", frame.len() as u64),
        Event::Arrival(Arrival::DiskDone { data, .. }) => {
            Detail::Number("length", data.len() as u64)
        }
        Event::Arrival(Arrival::Console(bytes)) => Detail::Number("length", bytes.len() as u64),
        Event::End { code, .. } => Detail::Number("status", (*code).into()),
        _ => return None,
    })
}
