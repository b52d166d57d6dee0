//! One machine on this host: its configuration, what stands behind its devices, its vCPU thread.

mod arguments;
pub mod engine;
pub mod last_words;
mod outside;
pub mod replica;
pub mod setup;
pub mod single;
pub mod unlike;
