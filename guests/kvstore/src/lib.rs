//! A key-value store that speaks RESP, the protocol of Redis, without any I/O.
//!
//! ```text
//!           bytes of one connection              replies of that connection
//!                     │                                      ▲
//!                     ▼                                      │
//!  Client    frame: commands, in place or joined     output: what is not sent yet
//!                     │                                      ▲
//!                     ▼                                      │
//!  Server    command table ───▶ commands/* ───▶ store (values, deadlines)
//!                                                 ▲
//!            set_time, sweep ─────────────────────┘
//! ```
//!
//! Everything is a function of what was put in: the bytes, the times, and [`Limits`]. There is no clock, no thread and no randomness, and no float. Replies, error
//! texts and refusals are those of Redis 7.0, as far as the commands go ([`Server`] lists them).
//!
//! Invariants:
//! 1. No byte of a client makes this panic, and no length a client names sizes an allocation.
//! 2. Memory stays within [`Limits::store_bytes_max`] and [`Limits::buffer_bytes_max`] but for what
//!    one command may add to a connection's buffers, whatever clients do.
//! 3. How a connection's bytes are cut into pieces does not change its replies.
//! 4. Once a command shape has been seen, GET, INCR and SET of a known key of the same size
//!    allocate nothing.
//!
//! Tests run on the host, from outside this workspace (whose cargo configuration is the guests'):
//! `cargo test --manifest-path guests/kvstore/Cargo.toml` at the root of the repository.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod command;
mod commands;
mod error;
mod frame;
mod glob;
mod number;
mod reply;
mod server;
mod store;
mod transaction;
mod watch;

pub use error::ProtocolError;
pub use server::{Client, Clock, Limits, Server};
pub use store::{Expiry, Full, Store};
