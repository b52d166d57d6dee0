//! The program `tandem`: parses its arguments, does what they say, prints one line if it fails.

use clap::Parser;
use std::io::IsTerminal;
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    // A bug ends the process, which is the failure the other replica is there to survive; a process
    // without its vCPU thread would only look alive.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
    let cli = tandem::cli::Cli::parse();
    // No times in traces: they may be written on a vCPU thread, which cannot read the clock that way.
    tracing_subscriber::fmt()
        .without_time()
        .with_writer(std::io::stderr)
        // It would complain of a closed stderr, on stderr.
        .log_internal_errors(false)
        .with_ansi(std::io::stderr().is_terminal())
        .with_env_filter(
            EnvFilter::try_from_env("TANDEM_TRACE").unwrap_or_else(|_| EnvFilter::new("warn")),
        )
        .init();
    match tandem::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            tandem::complain!("tandem: {failure}");
            ExitCode::from(failure.code())
        }
    }
}
