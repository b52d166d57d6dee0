//! Results for people: tables and timelines in plain text, plots as SVG.
//!
//! Nothing here measures or decides; it takes figures and gives text.

pub mod plot;
pub mod table;
pub mod timeline;

pub use table::{Align, Table};
pub use timeline::{Colour, Source, Timeline};
