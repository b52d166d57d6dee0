//! One machine on this host, as the command line asks for it.

pub mod blueprint;
mod bundled;
pub mod library;
pub mod pair;
pub mod recording;
mod replayed;
pub mod single;
pub mod traced;
mod whatif;
