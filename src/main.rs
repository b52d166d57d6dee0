//! The program `tandem`: parses its arguments, does what they say, prints one line if it fails.

use clap::Parser;
use std::io::{ErrorKind, IsTerminal, Write};
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
    let cli = match tandem::cli::Cli::try_parse() {
        Ok(cli) => cli,
        Err(told) => return tell(&told),
    };
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
            terminal::complain!("tandem: {failure}");
            ExitCode::from(failure.code())
        }
    }
}

/// Wrong usage, or what was asked for with `--help` or `--version`: that is a result, and fails as one.
fn tell(told: &clap::Error) -> ExitCode {
    let printed = told.print().and_then(|()| std::io::stdout().flush());
    match printed {
        Err(error) if !told.use_stderr() && error.kind() != ErrorKind::BrokenPipe => {
            terminal::complain!("tandem: {}: {error}", terminal::UNSAID);
            ExitCode::FAILURE
        }
        _ => ExitCode::from(u8::try_from(told.exit_code()).unwrap_or(1)),
    }
}
