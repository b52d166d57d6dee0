//! One machine on this host, as the command line asks for it.

pub mod blueprint;
pub mod library;
pub mod pair;
pub mod recording;
pub mod single;
