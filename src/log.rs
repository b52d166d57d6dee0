//! `tandem log`: what is in a log.

use crate::cli::LogArgs;
use crate::failure::{During, Outcome};
use crate::look::logged::Logged;
use crate::look::witness::check_apart;
use crate::sizing::{Counter, Sizing};
use replay::file::{LogEnd, LogReader, Tail};
use replay::{Arrival, Base, BaseOrigin, ClockKind, Event, Kind, LogIndex};
use replica::machine::Origin;
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use terminal::figures::mbit_s;
use terminal::table::{Align, Table};
use vmm::engine::EngineKind;
use vmm::machine::TscMode;
use vmm::machine::snapshot::Snapshot;

/// Entries of one kind.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Share {
    /// How many.
    pub count: u64,
    /// Their encoded bytes.
    pub bytes: u64,
    /// Their bandwidth over the whole log.
    pub mbit_s: f64,
}

/// What a log holds.
#[derive(Debug, Serialize)]
struct Summary {
    guest: String,
    cpu_model: String,
    /// What recorded it; null in logs of version 1.
    engine: Option<EngineKind>,
    /// The processor under it, where the guest ran on that and the log says so.
    processor: Option<String>,
    clock_kind: ClockKind,
    entries: u64,
    clock: u64,
    seconds: f64,
    file_bytes: u64,
    /// Where the log begins.
    base: Base,
    /// Bytes of the state it begins at; null if it begins with a boot.
    state_bytes: Option<u64>,
    /// Whether the log ends with an entry that says so.
    whole: bool,
    /// How: with its machine, or before it; null if it does not.
    end: Option<LogEnd>,
    tail: Option<Tail>,
    kinds: BTreeMap<Kind, Share>,
    /// Timer ticks the guest got no interrupt for: periods that had ended when a tick came late, beyond
    /// the one it stands for.
    ticks_merged: u64,
    /// What link it needs, if that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    sizing: Option<Sizing>,
}

/// Timer ticks `event` stands for besides its own.
fn ticks_merged(event: &Event) -> u64 {
    match event {
        Event::Arrival(Arrival::Timer { periods }) => u64::from(*periods).saturating_sub(1),
        _ => 0,
    }
}

/// Says what is in a log.
pub fn log(args: &LogArgs) -> Outcome {
    check_apart(&args.log, args.perfetto.as_deref())?;
    let mut reader = LogReader::open(&args.log)?;
    let Named { guest, origin } = named(&reader, &args.log)?;
    let mut tracks = match &args.perfetto {
        Some(path) => Some(Logged::create(path, ahead_ns(&reader, origin.as_ref())?)?),
        None => None,
    };
    let mut kinds: BTreeMap<Kind, Share> = BTreeMap::new();
    let base = reader.header().base;
    let state_bytes = reader.state()?.map(|state| state.size());
    let (mut entries, mut clock, mut merged) = (0, base.clock.0, 0);
    let mut sizing = Counter::default();
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let mut listed = args.entries;
    while let Some((entry, bytes)) = reader.read()? {
        let share = kinds.entry(entry.event.kind()).or_default();
        share.count += 1;
        share.bytes += bytes as u64;
        clock = entry.clock.0;
        sizing.add(reader.at_us(), &entry.event, bytes as u64);
        merged += ticks_merged(&entry.event);
        let index = LogIndex(base.index.0 + entries);
        if let Some(tracks) = &mut tracks {
            tracks.add(index, &entry, bytes as u64, reader.at_us());
        }
        if listed {
            let text = replay::replayer::describe(index, &entry);
            listed = terminal::heed(writeln!(out, "{text}"));
            if !listed && tracks.is_none() {
                return Ok(()); // nothing more can be written, or is read
            }
        }
        entries += 1;
    }
    terminal::heed(out.flush());
    drop(out);
    let written = tracks.as_mut().map(Logged::finish).transpose()?;
    for share in kinds.values_mut() {
        share.mbit_s = mbit_s(share.bytes, reader.at_us());
    }
    let summary = Summary {
        guest,
        cpu_model: reader.header().cpu_model.clone(),
        engine: origin.as_ref().map(|origin| origin.engine),
        processor: origin
            .and_then(|origin| origin.processor)
            .map(|processor| processor.to_string()),
        clock_kind: reader.header().clock_kind,
        entries,
        clock,
        seconds: reader.at_us() as f64 / 1e6,
        file_bytes: reader.offset(),
        base,
        state_bytes,
        whole: reader.ended(),
        end: reader.end(),
        tail: reader.tail().cloned(),
        kinds,
        ticks_merged: merged,
        sizing: args.sizing.then(|| sizing.sizing(reader.at_us())),
    };
    if args.json {
        crate::sayln!("{}", serde_json::to_string(&summary).during("report")?);
    } else if let Some(sizing) = &summary.sizing {
        sizing.print();
    } else if !args.entries {
        print(&summary);
    }
    if let Some(written) = written
        && !args.json
    {
        crate::sayln!("{written}");
    }
    // What is there was counted, as was asked: a log that is cut is no failure of this command.
    if let Some(tail) = &summary.tail {
        crate::complain!(
            "tandem: {}: {} at byte {}: nothing from entry {} on is counted",
            args.log.display(),
            tail.what,
            tail.offset,
            tail.entry
        );
    } else if !summary.whole {
        crate::complain!(
            "tandem: {}: the recording was cut off: it has no end entry",
            args.log.display()
        );
    }
    Ok(())
}

/// What a log says of its machine.
struct Named {
    /// The guest's name.
    guest: String,
    /// The rest, if it can be read.
    origin: Option<Origin>,
}

/// By how much guest time is ahead of the clock where the log begins, in nanoseconds; none where it is not derived.
fn ahead_ns(reader: &LogReader, origin: Option<&Origin>) -> Outcome<Option<u64>> {
    if origin.is_none_or(|origin| origin.config.tsc != TscMode::Derived) {
        return Ok(None);
    }
    match reader.state()? {
        None => Ok(Some(0)),
        Some(state) => Snapshot::open(state)
            .and_then(Snapshot::skipped_ns)
            .during("the state the log begins at"),
    }
}

/// What `reader` says of its machine; a log of an old format has a configuration this program does not read.
fn named(reader: &LogReader, path: &Path) -> Outcome<Named> {
    if reader.check_replayable().is_err() {
        return Ok(Named {
            guest: format!("unknown (log format {})", reader.version()),
            origin: None,
        });
    }
    let origin = Origin::of_log(reader, path)?;
    Ok(Named {
        guest: origin.config.guest.clone(),
        origin: Some(origin),
    })
}

fn print(summary: &Summary) {
    crate::sayln!(
        "guest {} on CPU model {}, {}{}, clock {} ({}), {:.2} s",
        summary.guest,
        summary.cpu_model,
        summary
            .engine
            .map_or("engine not recorded".into(), |engine| engine.to_string()),
        summary
            .processor
            .as_ref()
            .map_or(String::new(), |processor| format!(" on {processor}")),
        summary.clock,
        summary.clock_kind,
        summary.seconds
    );
    let base = summary.base;
    if base.origin == BaseOrigin::State {
        crate::sayln!(
            "begins at entry {}, clock {}, in view {}, with the machine's state of {} bytes",
            base.index,
            base.clock,
            base.view,
            summary.state_bytes.unwrap_or(0)
        );
    }
    if summary.end == Some(LogEnd::Left) {
        crate::sayln!("ends before its machine, which ran on");
    }
    let columns = [
        ("kind", Align::Left),
        ("entries", Align::Right),
        ("bytes", Align::Right),
        ("bytes/entry", Align::Right),
        ("Mbit/s", Align::Right),
    ];
    let mut table = Table::new(&columns);
    let (mut count, mut bytes, mut rate) = (0, 0, 0.0);
    for (kind, share) in &summary.kinds {
        count += share.count;
        bytes += share.bytes;
        rate += share.mbit_s;
        table.row(row(
            &kind.to_string(),
            share.count,
            share.bytes,
            share.mbit_s,
        ));
    }
    table.row(row("all", count, bytes, rate));
    terminal::say(&table.to_string());
    if summary.ticks_merged > 0 {
        crate::sayln!(
            "{} timer ticks came too late for an interrupt of their own",
            summary.ticks_merged
        );
    }
}

fn row(name: &str, count: u64, bytes: u64, rate: f64) -> [String; 5] {
    [
        name.to_owned(),
        count.to_string(),
        bytes.to_string(),
        format!("{:.1}", bytes as f64 / count.max(1) as f64),
        format!("{rate:.3}"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_tick_stands_for_the_ticks_before_it_too() {
        let tick = |periods| ticks_merged(&Event::Arrival(Arrival::Timer { periods }));
        assert_eq!([tick(1), tick(2), tick(300)], [0, 1, 299]);
        assert_eq!(ticks_merged(&Event::Progress), 0);
    }
}
