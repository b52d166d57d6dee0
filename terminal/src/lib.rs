//! A command and its terminal: results on standard output, complaints on standard error, tables, and being
//! asked to end.
//!
//! Nothing here measures or decides. It guarantees of what a command says: a result that could not be written
//! is a failure of the command, unless its reader is gone; a complaint that nobody reads is none.
//!
//! # Example
//!
//! ```
//! use terminal::{Align, Table, sayln};
//!
//! let mut table = Table::new(&[("workload", Align::Left), ("Mbit/s", Align::Right)]);
//! table.row(["counter", "0.4"]).row(["kv", "12.5"]);
//! sayln!("{table}");
//! assert_eq!(
//!     table.to_string(),
//!     "workload  Mbit/s\n\
//!      --------  ------\n\
//!      counter      0.4\n\
//!      kv          12.5\n"
//! );
//!
//! // Asked last: a result that was not written is a failure.
//! assert!(terminal::unsaid().is_none());
//! ```

pub mod figures;
pub mod signals;
pub mod table;

pub use table::{Align, Table};

use std::borrow::Cow;
use std::io::{ErrorKind, Write};
use std::sync::OnceLock;

/// What a command that could not write its results complains of.
pub const UNSAID: &str = "cannot write to standard output";

/// The first failure of standard output that is one.
static FAILED: OnceLock<std::io::Error> = OnceLock::new();

/// Writes `text` to standard output, and nothing else does but a guest's console. If nobody reads it any
/// more, as behind `head`, that is no failure; any other is remembered for [`unsaid`].
pub fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    heed(out.write_all(text.as_bytes()).and_then(|()| out.flush()));
}

/// Remembers a failure to write results for [`unsaid`]; false if there is no point in writing more.
pub fn heed(written: std::io::Result<()>) -> bool {
    let Err(error) = written else { return true };
    if error.kind() != ErrorKind::BrokenPipe {
        // Of several the first says most.
        let _ = FAILED.set(error);
    }
    false
}

/// Why not all that was said could be written, if so, for another reason than that its reader is gone. A
/// command asks this last, and fails with it.
#[must_use]
pub fn unsaid() -> Option<&'static std::io::Error> {
    FAILED.get()
}

/// Writes `text` to standard error. Whether anybody reads it is no matter of ours: `eprintln!` would
/// panic, and a panic ends a replica.
///
/// A complaint often quotes what somebody else chose: a guest, a peer, a file. So control characters are
/// made [`visible`], all but the ends of its own lines.
pub fn complain(text: &str) {
    let lines: Vec<_> = text.split('\n').map(visible).collect();
    let _ = std::io::stderr()
        .lock()
        .write_all(lines.join("\n").as_bytes());
}

/// `text` with its control characters as their numbers (`\u001b`): none of them moves a cursor, changes a
/// title or begins a line when it is printed.
///
/// Why: a terminal does what control characters say, and a guest chooses the names of its tasks and symbols.
/// A JSON text stays JSON, and says the same: there, too, this is how such a character is written.
#[must_use]
pub fn visible(text: &str) -> Cow<'_, str> {
    if !text.contains(char::is_control) {
        return text.into();
    }
    let mut seen = String::with_capacity(text.len() + 5);
    for c in text.chars() {
        if c.is_control() {
            // All of them are below U+00A0.
            seen.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            seen.push(c);
        }
    }
    seen.into()
}

/// As `println!`, by [`say`].
#[macro_export]
macro_rules! sayln {
    ($($argument:tt)*) => {
        $crate::say(&format!("{}\n", format_args!($($argument)*)))
    };
}

/// As `eprintln!`, by [`complain()`].
#[macro_export]
macro_rules! complain {
    ($($argument:tt)*) => {
        $crate::complain(&format!("{}\n", format_args!($($argument)*)))
    };
}

#[cfg(test)]
mod tests {
    use super::visible;

    #[test]
    fn control_characters_are_seen_and_not_obeyed() {
        assert_eq!(visible("Größe 漢"), "Größe 漢");
        let seen = visible("a\x1b]0;b\x07c\r\n\td\u{9b}2J\x7f");
        assert_eq!(seen, r"a\u001b]0;b\u0007c\u000d\u000a\u0009d\u009b2J\u007f");
    }
}
