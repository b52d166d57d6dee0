//! `tandem chaos`, as the command line has it.

use crate::cli::{ChaosArgs, GuestArg};
use crate::failure::{During, Outcome};
use chaos::{Guest, Spec};

/// Tries a machine on three hosts.
///
/// # Errors
/// If a promise was broken, or there are no hosts to try it on.
pub fn chaos(args: &ChaosArgs) -> Outcome {
    let guest = match args.guest {
        GuestArg::Kv => Guest::Kv,
        GuestArg::Linux => Guest::Linux(image::cache_folder()?),
    };
    if let Some(path) = &args.history {
        // Now, and not after an hour.
        std::fs::File::create(path).during(format_args!("cannot write {}", path.display()))?;
    }
    let suspect_ms = args.suspect_ms.to_string();
    let words = ["--engine", args.engine.name(), "--suspect-ms", &suspect_ms];
    Ok(chaos::chaos(&Spec {
        guest,
        lasts: args.lasts,
        words: words.map(Into::into).to_vec(),
        clients: u16::try_from(args.clients).during("--clients")?,
        seed: args.seed,
        history: args.history.clone(),
        json: args.json,
    })?)
}
