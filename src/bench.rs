//! `tandem bench`, as the command line has it.

use crate::cli::BenchArgs;
use crate::failure::Outcome;
use bench::Spec;

/// Measures.
///
/// # Errors
/// If something could not be measured.
pub fn bench(args: &BenchArgs) -> Outcome {
    Ok(bench::bench(&Spec {
        workloads: args.workloads.clone(),
        rounds: args.rounds,
        seconds: args.seconds,
        folder: args.output.clone(),
        image: args.image.clone(),
        network: args.net.clone(),
        tls: args.tls,
        suspect_ms: args.suspect_ms,
        paced: args.paced,
        json: args.json,
    })?)
}
