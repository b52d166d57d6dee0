//! What a log costs: of a running primary by its counters, of a recording by its file.

use crate::error::{BenchError, Outcome};
use kit::During;
use kit::Line;
use replay::file::LogReader;
use replay::{Arrival, Event, Kind};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// What a primary notes of itself, as far as it is used here.
#[derive(Clone, Debug, Deserialize)]
pub struct Counters {
    link: Link,
    lag: Lag,
    /// How late ticks were: (microseconds at most, how many), rising.
    pub tick_late_us: Vec<(u64, u64)>,
}

#[derive(Clone, Debug, Deserialize)]
struct Link {
    bytes_sent: u64,
    kinds: Vec<KindCount>,
}

#[derive(Clone, Debug, Deserialize)]
struct KindCount {
    kind: Kind,
    entries: u64,
    bytes: u64,
}

#[derive(Clone, Debug, Deserialize)]
struct Lag {
    us: u64,
}

/// Entries of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// How many.
    pub entries: u64,
    /// Their encoded bytes.
    pub bytes: u64,
}

/// A log, or the part of it that was sent in some time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogCost {
    /// The time.
    pub us: u64,
    /// Bytes on the wire, frames and heartbeats and all.
    pub wire_bytes: u64,
    /// Entries by kind.
    pub kinds: BTreeMap<Kind, Share>,
    /// The longest execution lag seen.
    pub lag_us_max: u64,
}

impl LogCost {
    /// Counts `other` in.
    pub fn add(&mut self, other: &Self) {
        self.us += other.us;
        self.wire_bytes += other.wire_bytes;
        self.lag_us_max = self.lag_us_max.max(other.lag_us_max);
        for (kind, share) in &other.kinds {
            let mine = self.kinds.entry(*kind).or_default();
            mine.entries += share.entries;
            mine.bytes += share.bytes;
        }
    }

    /// Bytes of entries.
    #[must_use]
    pub fn entry_bytes(&self) -> u64 {
        self.kinds.values().map(|share| share.bytes).sum()
    }
}

/// The counters in a primary's notes, with their times in nanoseconds.
pub fn counters(lines: &[Line]) -> Outcome<Vec<(u64, Counters)>> {
    lines
        .iter()
        .map(|line| {
            let counters = serde_json::from_str(&line.detail).during("a primary's counters")?;
            Ok((line.at_ns, counters))
        })
        .collect()
}

/// What was logged from the first to the last of `counters` within `from_ns..=to_ns`.
pub fn cost_between(counters: &[(u64, Counters)], from_ns: u64, to_ns: u64) -> Outcome<LogCost> {
    let mut within = counters
        .iter()
        .filter(|(at, _)| (from_ns..=to_ns).contains(at));
    let (Some((begun, first)), Some((ended, last))) = (within.next(), within.next_back()) else {
        return Err(BenchError::said(
            "the primary noted too few counters: measure for longer",
        ));
    };
    let mut cost = cost_so_far(last, (ended - begun) / 1000);
    cost.wire_bytes -= first.link.bytes_sent.min(cost.wire_bytes);
    for count in &first.link.kinds {
        let share = cost.kinds.entry(count.kind).or_default();
        share.entries -= count.entries.min(share.entries);
        share.bytes -= count.bytes.min(share.bytes);
    }
    cost.kinds.retain(|_, share| share.entries > 0);
    let between = counters
        .iter()
        .filter(|(at, _)| (*begun..=*ended).contains(at));
    cost.lag_us_max = between
        .map(|(_, counters)| counters.lag.us)
        .max()
        .unwrap_or(0);
    Ok(cost)
}

/// What was logged up to these counters, in `us` microseconds.
#[must_use]
pub fn cost_so_far(counters: &Counters, us: u64) -> LogCost {
    let share = |count: &KindCount| Share {
        entries: count.entries,
        bytes: count.bytes,
    };
    LogCost {
        us,
        wire_bytes: counters.link.bytes_sent,
        kinds: counters
            .link
            .kinds
            .iter()
            .map(|count| (count.kind, share(count)))
            .collect(),
        lag_us_max: counters.lag.us,
    }
}

/// How many entries take how many bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Bytes {
    /// Entries by their bytes.
    pub entries_by_bytes: BTreeMap<u64, u64>,
}

impl Bytes {
    fn count(&mut self, bytes: u64) {
        *self.entries_by_bytes.entry(bytes).or_default() += 1;
    }

    /// Counts `other` in.
    pub fn add(&mut self, other: &Self) {
        for (bytes, entries) in &other.entries_by_bytes {
            *self.entries_by_bytes.entry(*bytes).or_default() += entries;
        }
    }

    /// Whether nothing was counted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries_by_bytes.is_empty()
    }

    /// The most of any; 0 if there are none.
    #[must_use]
    pub fn max(&self) -> u64 {
        self.entries_by_bytes
            .last_key_value()
            .map_or(0, |(bytes, _)| *bytes)
    }

    /// What `per_mille` of all do not exceed.
    #[must_use]
    pub fn quantile(&self, per_mille: u64) -> u64 {
        let counts: Vec<_> = self
            .entries_by_bytes
            .iter()
            .map(|(b, n)| (*b, *n))
            .collect();
        quantile_of_counts(&counts, per_mille)
    }
}

/// What entries of a recording take.
#[derive(Clone, Debug, Default)]
pub struct EntryBytes {
    /// Of timer interrupts.
    pub timer: Bytes,
    /// Of received frames, beyond the frames' own length.
    pub frame_extra: Bytes,
}

impl EntryBytes {
    /// Counts the entries of the recording at `path`, which must be whole.
    pub fn of_recording(path: &Path) -> Outcome<Self> {
        let mut reader = LogReader::open(path)?;
        let mut found = Self::default();
        while let Some((entry, bytes)) = reader.read()? {
            match &entry.event {
                Event::Arrival(Arrival::Timer { .. }) => found.timer.count(bytes as u64),
                Event::Arrival(Arrival::Frame(frame)) => {
                    found
                        .frame_extra
                        .count((bytes as u64).saturating_sub(frame.len() as u64));
                }
                _ => {}
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

    /// Counts `other` in.
    pub fn add(&mut self, other: &Self) {
        self.timer.add(&other.timer);
        self.frame_extra.add(&other.frame_extra);
    }
}

/// The least value that `per_mille` of all counted do not exceed, of pairs (value, how many), rising; 0 for
/// none.
#[must_use]
pub fn quantile_of_counts(counts: &[(u64, u64)], per_mille: u64) -> u64 {
    let total: u64 = counts.iter().map(|(_, count)| count).sum();
    let rank = (total * per_mille).div_ceil(1000).max(1);
    let mut seen = 0;
    let reached = counts.iter().find(|(_, count)| {
        seen += count;
        seen >= rank
    });
    reached.map_or(0, |(value, _)| *value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(at_ns: u64, bytes_sent: u64, timers: u64, frames: u64, lag_us: u64) -> Line {
        let kinds = serde_json::json!([
            {"kind": "timer", "entries": timers, "bytes": timers * 9},
            {"kind": "frame", "entries": frames, "bytes": frames * 70},
        ]);
        let detail = serde_json::json!({
            "link": {"bytes_sent": bytes_sent, "stalls": 3, "kinds": kinds},
            "cursors": {},
            "lag": {"us": lag_us, "entries": 4},
            "tick_late_us": [[40, 9], [41, 1]],
        });
        Line {
            at_ns,
            who: "primary".into(),
            event: "metrics".into(),
            detail: detail.to_string(),
        }
    }

    #[test]
    fn a_window_costs_what_its_counters_differ_by() {
        let lines = [
            line(1_000_000, 10, 0, 5, 9),
            line(2_000_000, 100, 1, 5, 1),
            line(3_000_000, 400, 3, 5, 700),
            line(4_000_000, 600, 4, 5, 2),
            line(9_000_000, 9000, 40, 50, 3),
        ];
        let counters = counters(&lines).unwrap();
        let cost = cost_between(&counters, 1_500_000, 4_000_000).unwrap();
        let timer = Share {
            entries: 3,
            bytes: 27,
        };
        let kinds = BTreeMap::from([(Kind::Timer, timer)]);
        assert_eq!(
            cost,
            LogCost {
                us: 2000,
                wire_bytes: 500,
                kinds,
                lag_us_max: 700
            }
        );
        assert!(
            cost_between(&counters, 1_500_000, 2_500_000).is_err(),
            "one is no window"
        );
        let mut twice = cost.clone();
        twice.add(&cost);
        assert_eq!((twice.us, twice.entry_bytes()), (4000, 54));
        assert_eq!(counters[0].1.tick_late_us, [(40, 9), (41, 1)]);
    }

    #[test]
    fn quantiles_of_counts_are_nearest_ranks() {
        let counts = [(10, 98), (20, 1), (500, 1)];
        assert_eq!(quantile_of_counts(&counts, 500), 10);
        assert_eq!(quantile_of_counts(&counts, 990), 20);
        assert_eq!(quantile_of_counts(&counts, 1000), 500);
        assert_eq!(quantile_of_counts(&[], 990), 0);
    }

    #[test]
    fn a_recording_is_read_by_entry() {
        use replay::codec::to_bytes;
        use replay::file::{LogHeader, LogWriter};
        use replay::{Clock, ClockKind, ExecPoint, Here, LogEntry, LogSink, RegisterDigest};
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let header = LogHeader {
            cpu_model: "v1".into(),
            clock_kind: ClockKind::Blocks,
            config: to_bytes(&0u8),
            base: replay::Base::alone(1),
        };
        let mut log = LogWriter::create(&path, &header, || 0).unwrap();
        let at = |clock, event| {
            let point = ExecPoint {
                clock: Clock(clock),
                rip: 0x10_0000,
                rcx: 0,
            };
            LogEntry::at(
                &Here {
                    point,
                    registers: RegisterDigest(7),
                },
                event,
            )
        };
        let frame = Arrival::Frame(vec![1; 600]);
        log.append(&at(1, Event::Arrival(Arrival::Timer { periods: 1 })))
            .unwrap();
        log.append(&at(2, Event::Arrival(frame))).unwrap();
        log.flush().unwrap();
        let cut = EntryBytes::of_recording(&path).unwrap_err();
        assert!(cut.to_string().contains("no end"), "{cut}");
        log.append(&at(3, Event::End { code: 0, digest: 5 }))
            .unwrap();
        log.flush().unwrap();
        let found = EntryBytes::of_recording(&path).unwrap();
        assert!((1..=16).contains(&found.timer.max()), "{:?}", found.timer);
        assert!(
            (1..=16).contains(&found.frame_extra.max()),
            "{:?}",
            found.frame_extra
        );
        let mut twice = found.timer.clone();
        twice.add(&found.timer);
        assert_eq!(twice.entries_by_bytes.values().sum::<u64>(), 2);
        assert_eq!(
            (twice.quantile(990), Bytes::default().max()),
            (twice.max(), 0)
        );
    }
}
