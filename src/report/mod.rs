//! Results for people: tables and timelines in plain text, plots as SVG.
//!
//! Nothing here measures or decides; it takes figures and gives text.

pub mod plot;
pub mod table;
pub mod timeline;

pub use table::{Align, Table};
pub use timeline::{Colour, Source, Timeline};

/// Writes `text` to standard output, and nothing else does but a guest's console. If nobody reads it any more, as behind `head`, that is no failure.
pub fn say(text: &str) {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Writes `text` to standard error. Whether anybody reads it is no matter of ours: `eprintln!` would
/// panic, and a panic ends a replica.
pub fn complain(text: &str) {
    use std::io::Write;
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
