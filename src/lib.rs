//! Tandem, put together: the command line over machine, log, channel, arbiter and viewservice.
//!
//! ```text
//!  cli ─▶ node (one machine, one replica) ─▶ vmm, replay, logchannel, testandset, viewservice
//!     ├─▶ look (inside a replay: gdb, a view of one point)
//!     ├─▶ image (a Linux guest from Debian packages)
//!     └─▶ demo, bench (many processes of this program) ─▶ load (clients, verdict), report
//! ```
//!
//! It is a library so that the end-to-end tests can build their own installations from
//! [`demo::cluster`]; the program is the only other user.

pub mod address;
pub mod bench;
pub mod cli;
pub mod daemons;
pub mod demo;
pub mod doctor;
pub mod failure;
pub mod image;
pub mod images;
pub mod load;
pub mod log;
pub mod look;
pub mod node;
pub mod report;
pub mod signals;

#[cfg(test)]
#[path = "../tests/common/skipped.rs"]
mod skipped;

use cli::{Cli, Command};
use failure::Outcome;

/// Does what the command line says.
///
/// # Errors
/// The one line to print.
pub fn run(cli: Cli) -> Outcome {
    let outcome = match cli.command {
        Command::Run(args) => node::single::run(args),
        Command::Record(args) => node::single::record(args),
        Command::Replay(args) => node::single::replay(args),
        Command::Log(args) => log::log(&args),
        Command::Primary(args) => node::replica::primary(args),
        Command::Backup(args) => node::replica::backup(args),
        Command::Arbiter(args) => daemons::arbiter(&args),
        Command::Viewservice(args) => daemons::viewservice(&args),
        Command::Status(args) => daemons::status(&args),
        Command::Down(args) => daemons::down(&args),
        Command::Demo(args) => demo::demo(&args),
        Command::Bench(args) => bench::bench(&args),
        Command::Image(args) => image::image(&args),
        Command::Doctor(args) => doctor::doctor(&args),
    };
    outcome.and_then(|()| report::all_said())
}
