//! Results for people: tables and timelines in plain text, plots as SVG.
//!
//! Nothing here measures or decides; it takes figures and gives text.

pub mod plot;
pub mod table;
pub mod timeline;

pub use table::{Align, Table};
pub use timeline::{Colour, Source, Timeline};

use crate::failure::{Failure, Outcome};
use std::io::{ErrorKind, Write};
use std::sync::OnceLock;
use vmm::backends::console::stdout_failure;

/// What a command that could not write its results complains of.
pub const UNSAID: &str = "cannot write to standard output";

/// The first failure of standard output that is one.
static FAILED: OnceLock<std::io::Error> = OnceLock::new();

/// Writes `text` to standard output, and nothing else does but a guest's console. If nobody reads it any
/// more, as behind `head`, that is no failure; any other is remembered for [`all_said`].
pub fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    heed(out.write_all(text.as_bytes()).and_then(|()| out.flush()));
}

/// Remembers a failure to write results for [`all_said`]; false if there is no point in writing more.
pub fn heed(written: std::io::Result<()>) -> bool {
    let Err(error) = written else { return true };
    if error.kind() != ErrorKind::BrokenPipe {
        // Of several the first says most.
        let _ = FAILED.set(error);
    }
    false
}

/// Whether all that was to be read on standard output, results and console, could be written there.
///
/// # Errors
/// If it could not, for another reason than that its reader is gone.
pub fn all_said() -> Outcome {
    let failed = FAILED.get().map(ToString::to_string);
    let console = || stdout_failure().map(|error| error.to_string());
    match failed.or_else(console) {
        None => Ok(()),
        Some(error) => Err(Failure::new(format!("{UNSAID}: {error}"))),
    }
}

/// Writes `text` to standard error. Whether anybody reads it is no matter of ours: `eprintln!` would
/// panic, and a panic ends a replica.
pub fn complain(text: &str) {
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
}

/// As `println!`, by [`say`].
#[macro_export]
macro_rules! sayln {
    ($($argument:tt)*) => {
        $crate::report::say(&format!("{}\n", format_args!($($argument)*)))
    };
}

/// As `eprintln!`, by [`complain`].
#[macro_export]
macro_rules! complain {
    ($($argument:tt)*) => {
        $crate::report::complain(&format!("{}\n", format_args!($($argument)*)))
    };
}
