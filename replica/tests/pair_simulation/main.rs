//! Simulated replicas: the real role machines, output gates and suppressed outputs, with no socket, clock or
//! thread. Every interleaving is chosen by the test.
//!
//! | module | simulates |
//! |---|---|
//! | `pair` | one pair up to its first failover; proptest shrinks what fails |
//! | `lives` | whole lives: failovers, joins, and failovers again, generation after generation |
//! | `breaks` | lives with one fault built in, each of which the oracle has to find |
//!
//! `lives` stands on these:
//!
//! ```text
//!   plan ──steps──▶ world ──▶ replica, link ──▶ guest
//!                     └─ every step ─▶ oracle
//! ```
//!
//! The oracle: outsiders see one machine's history, and at most one replica is live in any view.

mod breaks;
mod guest;
mod link;
mod lives;
mod oracle;
mod pair;
mod plan;
mod replica;
mod world;
