//! Real clients over TCP, what they saw, and the judgement of it.
//!
//! ```text
//!  workload --> clients --> history --> check (search on model and classes, lost) --> Verdict
//!                 |            `------> stall
//!                resp
//!                 |
//!               bench ----> histogram
//! ```

pub mod bench;
pub mod check;
mod classes;
pub mod clients;
pub mod histogram;
pub mod history;
pub mod lost;
mod model;
pub mod resp;
pub mod rng;
mod search;
pub mod stall;
pub mod workload;

#[cfg(test)]
mod check_tests;
#[cfg(test)]
mod clients_tests;
#[cfg(test)]
mod simulate;
#[cfg(test)]
mod test_server;

pub use check::{CheckOptions, Verdict, Violation, check};
pub use clients::{Load, LoadError, LoadOptions, Pace, read_all};
pub use history::{Epoch, History};
pub use stall::{Stall, stalls};
pub use workload::Mix;
