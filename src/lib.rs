//! Tandem, put together: the command line over machine, log, channel, arbiter and viewservice.
//!
//! ```text
//!  cli ─▶ node (one machine, one replica) ─▶ vmm, replay, logchannel, testandset, viewservice
//!     ├─▶ control (speaks to a replica that runs, over its socket) ─▶ replica
//!     ├─▶ look (inside a replay: gdb, a view of one point)
//!     ├─▶ image (a Linux guest from Debian packages)
//!     └─▶ demo, bench (many processes of this program, by way of kit) ─▶ check (clients, verdict)
//! ```
//!
//! It is a library so that the end-to-end tests can look inside; the program is the only other user.
//!
//! # Example
//!
//! What the program does with `tandem record counter ...` and `tandem replay LOG`:
//!
//! ```
//! use clap::Parser;
//! use tandem::cli::Cli;
//! # use tandem::failure::Failure;
//!
//! let folder = tempfile::tempdir()?;
//! let log = folder.path().join("counter.log").display().to_string();
//! let record = ["tandem", "record", "counter", "--arg", "ticks=5", "--engine", "soft", "-o", &log];
//! tandem::run(Cli::try_parse_from(record)?)?;
//! tandem::run(Cli::try_parse_from(["tandem", "replay", &log])?)?;
//! # Ok::<(), Failure>(())
//! ```

pub mod bench;
pub mod chaos;
pub mod cli;
pub mod cluster;
pub mod control;
pub mod daemons;
pub mod demo;
pub mod diff;
pub mod doctor;
pub mod events;
pub mod failure;
pub mod generate;
pub mod host;
pub mod image;
pub mod init;
pub mod log;
pub mod look;
pub mod metrics;
pub mod node;
pub mod sizing;
pub mod timeline;

pub use terminal::{complain, sayln, signals};

use cli::{Cli, Command};
use failure::{During, Failure, Outcome};
use vmm::backends::console::stdout_failure;
use vmm::soft::Executor;

/// Does what the command line says.
///
/// # Errors
/// The one line to print.
pub fn run(cli: Cli) -> Outcome {
    cli.executor.use_in_process();
    if cli.report_absent {
        vmm::machine::report_absent();
    }
    let outcome = match cli.command {
        Command::Run(args) => node::single::run(args),
        Command::Record(args) => node::single::record(args),
        Command::Replay(args) => node::single::replay(args),
        Command::Trace(args) => node::traced::trace(&args),
        Command::Log(args) => log::log(&args),
        Command::Timeline(args) => timeline::timeline(&args),
        Command::Diff(args) => diff::diff(&args),
        Command::Primary(args) => node::pair::primary(args),
        Command::Backup(args) => node::pair::backup(args),
        Command::Generate(args) => generate::generate(&args),
        Command::Init(args) => init::init(&args),
        Command::Arbiter(args) => daemons::arbiter(&args),
        Command::Viewservice(args) => daemons::viewservice(&args),
        Command::Host(args) => host::host(&args),
        Command::Up(args) => cluster::up::up(&args),
        Command::Status(args) => cluster::status::status(&args),
        Command::Logs(args) => cluster::logs::logs(&args),
        Command::Drain(args) => cluster::drain::drain(&args),
        Command::Down(args) => cluster::down(&args),
        Command::Protect(args) => control::protect(&args),
        Command::Move(args) => control::move_to(&args),
        Command::Failover(args) => control::failover(&args),
        Command::Demo(args) => children_are_ours().and_then(|()| demo::demo(&args)),
        Command::Chaos(args) => children_are_ours().and_then(|()| chaos::chaos(&args)),
        Command::Bench(args) => children_are_ours().and_then(|()| bench::bench(&args)),
        Command::Image(args) => image::image(&args),
        Command::Doctor(args) => children_are_ours().and_then(|()| doctor::doctor(&args)),
    };
    outcome.and_then(|()| all_said())
}

/// Makes children of this very program, where a command starts some.
fn children_are_ours() -> Outcome {
    kit::use_program(std::env::current_exe().during("cannot find this program")?);
    let executor = Executor::of_process();
    if executor != Executor::default() {
        kit::use_options(["--executor", executor.name()]);
    }
    Ok(())
}

/// Whether all that was to be read on standard output, results and console, could be written there.
fn all_said() -> Outcome {
    let failed = terminal::unsaid().map(ToString::to_string);
    let console = || stdout_failure().map(|error| error.to_string());
    match failed.or_else(console) {
        None => Ok(()),
        Some(error) => Err(Failure::new(format!("{}: {error}", terminal::UNSAID))),
    }
}
