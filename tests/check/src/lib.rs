//! Real clients over TCP, what they saw, and the judgement of it.
//!
//! ```text
//!  workload --> clients --> history --> verdict (search on model and classes, lost) --> Verdict
//!                 |            `------> stall
//!                resp
//!                 |
//!               speed ----> latencies
//! ```
//!
//! # Example
//!
//! Two clients of one key. The first was told that its write is done; the second reads later, and finds nothing.
//!
//! ```
//! use check::history::{Call, Observed, Op, Value};
//! use check::{CheckOptions, History, check};
//!
//! let op = |client, call, outcome, invoke_ns| Op {
//!     client,
//!     key: 0,
//!     call,
//!     outcome,
//!     invoke_ns,
//!     return_ns: invoke_ns + 100,
//! };
//! let written = Value::Token(0, 1);
//! let mut history = History {
//!     keys: vec!["a".into()],
//!     clients: 2,
//!     ops: vec![
//!         op(0, Call::set(written.clone()), Observed::Ok, 0),
//!         op(1, Call::Get, Observed::Nil, 1000),
//!     ],
//!     ..History::default()
//! };
//! let verdict = check(&history, CheckOptions::default());
//! assert!(!verdict.linearizable());
//! assert_eq!((verdict.acked_writes, verdict.lost_writes), (1, 1));
//!
//! // Had the read found it, or begun before the reply, all would be well.
//! history.ops[1].invoke_ns = 50;
//! assert!(check(&history, CheckOptions::default()).linearizable());
//! history.ops[1] = op(1, Call::Get, Observed::Value(written), 1000);
//! assert!(check(&history, CheckOptions::default()).linearizable());
//! ```

mod classes;
pub mod clients;
pub mod history;
pub mod latencies;
pub mod lost;
mod model;
pub mod resp;
pub mod rng;
mod search;
pub mod speed;
pub mod stall;
pub mod verdict;
pub mod workload;

#[cfg(test)]
mod clients_tests;
#[cfg(test)]
mod simulate;
#[cfg(test)]
mod test_server;
#[cfg(test)]
mod verdict_tests;

pub use clients::{Load, LoadError, LoadOptions, Pace, read_all};
pub use history::{Epoch, History};
pub use stall::{Stall, stalls};
pub use verdict::{CheckOptions, Verdict, Violation, check};
pub use workload::Mix;
