//! The machine a replica runs: what it is made from, on which engine, and whether two hosts may share it.

mod engine;
mod setup;
mod unlike;

pub use engine::{AnyMachine, EngineChoice};
pub use setup::{
    Blueprint, Image, Images, Origin, Prepared, Proposal, disk_sectors, follow, prepare,
};
pub use unlike::{Unlike, pair as check_pair, replay as check_replay};
