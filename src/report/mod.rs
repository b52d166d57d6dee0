//! Results for people: tables and timelines in plain text, plots as SVG.
//!
//! Nothing here measures or decides; it takes figures and gives text.

pub mod plot;
pub mod table;
pub mod timeline;

pub use table::{Align, Table};
pub use timeline::{Colour, Source, Timeline};

/// Writes `text` to standard output. If nobody reads it any more, as behind `head`, that is no failure.
pub fn say(text: &str) {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
