//! `tandem timeline`: what replicas noted of a failover, as a page for a browser, or for Perfetto with their counters.

use crate::cli::TimelineArgs;
use crate::failure::{During, Failure, Outcome};
use crate::look::perfetto::{Detail, Trace};
use crate::look::witness::check_apart;
use kit::Line;
use kit::timeline::{Lane, Timeline};
use std::fs::File;
use std::path::{Path, PathBuf};

/// The lines of one file. Those that are none are left out: the last may be half a line where its writer was killed.
fn lines(path: &Path) -> Outcome<Vec<Line>> {
    File::open(path).during(format_args!("cannot read {}", path.display()))?;
    let lines = Line::all_in(path);
    if lines.is_empty() {
        return Err(Failure::new(format!(
            "{}: no events of a replica in it (tandem primary, tandem backup: --events, --metrics)",
            path.display()
        )));
    }
    Ok(lines)
}

/// Runs the command.
///
/// # Errors
/// If the files have no events, or what is made of them cannot be written.
pub fn timeline(args: &TimelineArgs) -> Outcome {
    let written = [&args.output, &args.perfetto];
    let written: Vec<&Path> = written
        .into_iter()
        .flatten()
        .map(PathBuf::as_path)
        .collect();
    for read in args.events.iter().chain(&args.metrics) {
        check_apart(read, written.iter().copied())?;
    }
    let mut events = Vec::new();
    for path in &args.events {
        events.extend(lines(path)?);
    }
    events.sort_by_key(|line| line.at_ns);
    if let Some(path) = &args.output {
        let zero = events.iter().find(|line| line.event == "link_end");
        let name = zero.map_or("the first event", |_| "where the link was seen to be lost");
        let zero = zero.or(events.first()).map_or(0, |line| line.at_ns);
        let mut timeline = Timeline::default();
        for line in &events {
            let (later, earlier) = (line.at_ns.max(zero), line.at_ns.min(zero));
            let away = i64::try_from((later - earlier) / 1000).unwrap_or(i64::MAX);
            let at_us = if line.at_ns < zero { -away } else { away };
            timeline.event(at_us, Lane::of(line), line.words());
        }
        let page = timeline.page("What the replicas noted", name);
        std::fs::write(path, page).during(format_args!("cannot write {}", path.display()))?;
        crate::sayln!("{} events in {}", events.len(), path.display());
    }
    if let Some(path) = &args.perfetto {
        let counters = args.metrics.as_deref().map_or(Ok(Vec::new()), lines)?;
        perfetto(&events, &counters, path)?;
        crate::sayln!(
            "{} events and {} readings of counters in {}",
            events.len(),
            counters.len(),
            path.display()
        );
    }
    Ok(())
}

/// A counter of a track: its name, its unit, and how it is read.
type Counter = (
    &'static str,
    &'static str,
    fn(&serde_json::Value) -> Option<u64>,
);

/// Entries that are appended and not acked wait in the gate; those that are acked and not released, to leave.
const COUNTERS: [Counter; 4] = [
    ("entries that wait for an ack", "entries", |c| {
        let cursors = &c["cursors"];
        cursors["appended"]
            .as_u64()?
            .checked_sub(cursors["acked"].as_u64()?)
    }),
    ("entries that wait in the gate", "entries", |c| {
        let cursors = &c["cursors"];
        cursors["appended"]
            .as_u64()?
            .checked_sub(cursors["released"].as_u64()?)
    }),
    ("execution lag", "us", |c| c["lag"]["us"].as_u64()),
    ("the guest was held back", "us", |c| c["braked_us"].as_u64()),
];

fn perfetto(events: &[Line], counters: &[Line], path: &Path) -> Outcome {
    let mut trace = Trace::create(path)?;
    let group = trace.group("replicas");
    let tracks = ["primary", "backup"].map(|who| (who, trace.track(who, group)));
    for line in events {
        let (_, track) = tracks[usize::from(Lane::of(line) != Lane::Primary)];
        let details = [Detail::Text("detail", &line.detail)];
        trace.instant(line.at_ns, track, &line.event, "event", &details);
    }
    let tracks = COUNTERS.map(|(name, unit, read)| (trace.counter(name, unit, group), read));
    for line in counters {
        let Ok(value) = serde_json::from_str(&line.detail) else {
            continue;
        };
        for (track, read) in &tracks {
            if let Some(value) = read(&value) {
                trace.reads(line.at_ns, *track, value);
            }
        }
    }
    trace.finish()
}
