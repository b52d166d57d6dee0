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
//!
//! # Example
//!
//! A server that says back what it is asked, and one call.
//!
//! ```
//! use lines::{Answer, Answerer, Asker, Client, Limits, Protocol, serve, to_line};
//! use std::sync::Arc;
//!
//! const ECHO: Protocol = Protocol { name: "echo", version: 1 };
//!
//! struct Echo;
//!
//! impl Answerer for Echo {
//!     fn answer(&self, _asker: &Asker, line: Option<&[u8]>, first: bool) -> Answer {
//!         match line {
//!             None => Answer::Last(to_line(&"too long a line")),
//!             Some(line) if first => match ECHO.check(line) {
//!                 Ok(()) => Answer::Reply(ECHO.greeting()),
//!                 Err(why) => Answer::Last(to_line(&why)),
//!             },
//!             Some(line) => Answer::Reply([line, b"\n"].concat()),
//!         }
//!     }
//! }
//!
//! let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
//! let reply = runtime.block_on(async {
//!     let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
//!     let address = listener.local_addr()?.to_string();
//!     // Calls block.
//!     let call = tokio::task::spawn_blocking(move || {
//!         let client = Client::new(&address, ECHO, 1024).expect("an address");
//!         client.call(&["hello"])
//!     });
//!     let mut reply = None;
//!     let called = async { reply = Some(call.await) };
//!     let limits = Limits::for_lines(1024);
//!     serve(listener, tls::Security::Loopback, limits, Arc::new(Echo), called).await;
//!     Ok::<_, std::io::Error>(reply.expect("it served until there was one"))
//! })???;
//! assert_eq!(reply, br#"["hello"]"#);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod client;
mod greeting;
pub mod server;

pub use client::{CallError, Client, check_address};
pub use greeting::Protocol;
pub use server::{Answer, Answerer, Asker, Limits, serve};

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
