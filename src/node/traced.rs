//! `tandem trace`: a recording is replayed, and what its kernel did meanwhile is counted, told and written.

use super::replayed::{self, all_read};
use super::single::on_vcpu_thread;
use crate::cli::TraceArgs;
use crate::failure::{During, Outcome};
use crate::look::trace::{Findings, Plan, Source, Tracer};
use crate::look::witness::check_apart;
use replica::machine::EngineChoice;
use serde::Serialize;
use std::path::Path;
use std::time::Instant;
use terminal::table::{Align, Table};
use vmm::engine::Engine;

/// Functions that are listed.
const LISTED: usize = 20;

/// What is said of a trace.
#[derive(Serialize)]
struct Report {
    entries: u64,
    clock: u64,
    /// Why the replay did not get to the log's end.
    error: Option<String>,
    /// Instructions between two looks, and how often it was looked.
    every: u64,
    samples: u64,
    /// The functions most instructions are in.
    functions: Vec<Share>,
    /// What could not be found out.
    lacks: Option<&'static str>,
    seconds: f64,
}

/// A function's part.
#[derive(Serialize)]
struct Share {
    name: String,
    samples: u64,
    share: f64,
}

/// Runs the command.
///
/// # Errors
/// If the log cannot be replayed, symbols are those of another kernel, or a file cannot be written. What was found
/// until then is written.
pub fn trace(args: &TraceArgs) -> Outcome {
    let begun = Instant::now();
    let sources = match &args.symbols {
        Source::File(path) => Some(path.as_path()),
        Source::Memory => None,
    };
    let written = [&args.folded, &args.pprof, &args.perfetto];
    let written: Vec<&Path> = written.into_iter().flatten().map(|p| p.as_path()).collect();
    check_apart(&args.log, written.iter().copied())?;
    if let Some(symbols) = sources {
        check_apart(symbols, written)?;
    }
    let (image, initrd) = (args.image.as_deref(), args.initrd.as_deref());
    let (reader, prepared) = replayed::open(&args.log, EngineChoice::Soft, image, initrd)?;
    on_vcpu_thread("vcpu", || {
        let machine = replayed::begin_soft(&reader, prepared)?;
        let plan = Plan {
            symbols: args.symbols.clone(),
            every: args.every,
            folded: args.folded.clone(),
            pprof: args.pprof.clone(),
            perfetto: args.perfetto.clone(),
        };
        let mut tracer = Tracer::new(machine, reader, plan)?;
        let ended = tracer.run()?;
        let result = all_read(tracer.replayer().log_mut(), ended);
        let found = tracer.finish()?;
        let entries = tracer.replayer().entries();
        let clock = tracer.machine().engine().clock().0;
        let error = result.as_ref().err().map(ToString::to_string);
        report(args, begun, found, (entries, clock), error)?;
        result
            .map(drop)
            .map_err(|error| replayed::failure(&args.log, &error, entries))
    })
}

fn report(
    args: &TraceArgs,
    begun: Instant,
    found: Findings,
    (entries, clock): (u64, u64),
    error: Option<String>,
) -> Outcome {
    let every = args.every.get();
    let share = |(name, samples): (String, u64)| Share {
        name,
        samples,
        share: samples as f64 / found.samples.max(1) as f64,
    };
    let functions = found.functions.into_iter().map(share);
    let report = Report {
        entries,
        clock,
        error,
        every,
        samples: found.samples,
        functions: functions.collect(),
        lacks: found.lacks,
        seconds: begun.elapsed().as_secs_f64(),
    };
    if args.json {
        // JSON lets some control characters be, and the names are the guest's.
        let text = serde_json::to_string(&report).during("report")?;
        crate::sayln!("{}", terminal::visible(&text));
        return Ok(());
    }
    crate::sayln!(
        "replayed {entries} entries, clock {clock}, {:.2} s; looked at what ran {} times, every {every} instructions",
        report.seconds,
        report.samples
    );
    let columns = [
        ("share", Align::Right),
        ("looks", Align::Right),
        ("function", Align::Left),
    ];
    let mut table = Table::new(&columns);
    for function in report.functions.iter().take(LISTED) {
        table.row([
            format!("{:.1} %", 100.0 * function.share),
            function.samples.to_string(),
            function.name.clone(),
        ]);
    }
    terminal::say(&table.to_string());
    for words in found.written {
        crate::sayln!("{words}");
    }
    if let Some(lacks) = report.lacks {
        crate::complain!("tandem: {}: {lacks}", args.log.display());
    }
    Ok(())
}
