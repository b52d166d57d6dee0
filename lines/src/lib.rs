//! A line protocol over TCP, as arbiter and viewservice speak it: one JSON object a line.
//!
//! ```text
//!   client: {"protocol":"tandem-arbiter","version":1}     greeting
//!           {"op":"holder","vm":"web","view":3}           request
//!   server: {"protocol":"tandem-arbiter","version":1}
//!           {"reply":"holder","holder":"host-b.771"}      reply
//! ```
//!
//! The client need not wait for the server's greeting. A server of another protocol or version answers
//! the greeting with a refusal and closes. Every quantity a peer controls is bounded.

mod client;
mod greeting;
pub mod names;
pub mod server;

pub use client::{CallError, Client};
pub use greeting::Protocol;
pub use names::{NameError, ViewNumber, VmId};
pub use server::{Answer, Answerer, Limits, serve};

use serde::Serialize;

/// A message as a line.
///
/// # Panics
/// If it is no plain JSON, as a map with keys that are no text.
#[must_use]
pub fn to_line<T: Serialize>(message: &T) -> Vec<u8> {
    let mut line = serde_json::to_vec(message).expect("messages are plain JSON");
    line.push(b'\n');
    line
}
