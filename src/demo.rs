//! `tandem demo`, as the command line has it.

use crate::cli::{DemoArgs, GuestArg};
use crate::failure::{During, Failure, Outcome};
use demo::{Guest, Spec};
use kit::round::RoundOptions;
use replica::machine::EngineChoice;
use std::ffi::OsString;

/// Runs the demo.
///
/// # Errors
/// If a client noticed more than a pause, or could not be shown that.
pub fn demo(args: &DemoArgs) -> Outcome {
    if args.same_machine && args.kill_backup {
        return Err(Failure::usage(
            "--same-machine kills primaries: it cannot be used with --kill-backup",
        ));
    }
    let guest = match args.guest {
        GuestArg::Kv => Guest::Kv,
        GuestArg::Linux => Guest::Linux(image::cache_folder()?),
    };
    Ok(demo::demo(&Spec {
        guest,
        round: RoundOptions {
            args: [
                engine(args.engine),
                engine(args.backup_engine.unwrap_or(args.engine)),
            ],
            clients: u16::try_from(args.clients).during("--clients")?,
            suspect_ms: args.suspect_ms,
            kill_backup: args.kill_backup,
            keep: args.keep.clone(),
        },
        kills: args.kills,
        same_machine: args.same_machine,
        network: args.net.clone(),
        arbiter: args.arbiter.clone(),
        tls: args.tls,
        seed: args.seed,
        json: args.json,
    })?)
}

/// The option that chooses an engine.
fn engine(engine: EngineChoice) -> Vec<OsString> {
    vec!["--engine".into(), engine.name().into()]
}
