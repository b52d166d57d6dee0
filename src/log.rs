//! `tandem log`: what is in a log.

use crate::cli::LogArgs;
use crate::failure::{During, Outcome};
use crate::node::setup::Origin;
use crate::report::table::{Align, Table};
use replay::file::{LogReader, Tail};
use replay::{ClockKind, Kind};
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use vmm::engine::EngineKind;
use vmm::processor::HostProcessor;

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
    /// Whether the log ends with its `End` entry.
    whole: bool,
    tail: Option<Tail>,
    kinds: BTreeMap<Kind, Share>,
}

/// Bandwidth of `bytes` in `us` microseconds.
#[must_use]
pub fn mbit_s(bytes: u64, us: u64) -> f64 {
    if us == 0 {
        0.0
    } else {
        bytes as f64 * 8.0 / us as f64
    }
}

/// Says what is in a log.
pub fn log(args: &LogArgs) -> Outcome {
    let mut reader = LogReader::open(&args.log)?;
    let (guest, engine, processor) = machine(&reader, &args.log)?;
    let mut kinds: BTreeMap<Kind, Share> = BTreeMap::new();
    let (mut entries, mut clock) = (0, 0);
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    while let Some((entry, bytes)) = reader.read()? {
        let share = kinds.entry(entry.event.kind()).or_default();
        share.count += 1;
        share.bytes += bytes as u64;
        clock = entry.clock.0;
        if args.entries {
            let text = replay::replayer::describe(replay::LogIndex(entries), &entry);
            if !crate::report::heed(writeln!(out, "{text}")) {
                return Ok(()); // nothing more can be written, or is read
            }
        }
        entries += 1;
    }
    crate::report::heed(out.flush());
    drop(out);
    for share in kinds.values_mut() {
        share.mbit_s = mbit_s(share.bytes, reader.at_us());
    }
    let summary = Summary {
        guest,
        cpu_model: reader.header().cpu_model.clone(),
        engine,
        processor: processor.map(|processor| processor.to_string()),
        clock_kind: reader.header().clock_kind,
        entries,
        clock,
        seconds: reader.at_us() as f64 / 1e6,
        file_bytes: reader.offset(),
        whole: reader.ended(),
        tail: reader.tail().cloned(),
        kinds,
    };
    if args.json {
        crate::sayln!("{}", serde_json::to_string(&summary).during("report")?);
    } else if !args.entries {
        print(&summary);
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

/// The guest's name, what ran it, and the processor under that; a log of an old format has a machine configuration this program does
/// not read.
fn machine(
    reader: &LogReader,
    path: &Path,
) -> Outcome<(String, Option<EngineKind>, Option<HostProcessor>)> {
    if reader.check_replayable().is_err() {
        let name = format!("unknown (log format {})", reader.version());
        return Ok((name, None, None));
    }
    let origin = Origin::of_log(reader, path)?;
    Ok((origin.config.guest, Some(origin.engine), origin.processor))
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
            &kind_name(*kind),
            share.count,
            share.bytes,
            share.mbit_s,
        ));
    }
    table.row(row("all", count, bytes, rate));
    crate::report::say(&table.to_string());
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

/// A kind's name as in JSON.
#[must_use]
pub fn kind_name(kind: Kind) -> String {
    serde_json::to_string(&kind)
        .unwrap_or_default()
        .trim_matches('"')
        .to_owned()
}
