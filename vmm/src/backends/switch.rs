//! A layer-2 switch in user space: a network for hosts without TAP.
//!
//! ```text
//!             ┌──────────── Switch (unix socket) ───────────┐
//!  clients    │  port          port            port         │
//!     │       └───┬─────────────┬───────────────┬───────────┘
//!     ▼ TCP       │             │               │
//!  Forward ───────┘        primary's guest  backup's guest
//!  (own TCP stack)            SwitchPort      SwitchPort
//! ```
//!
//! Each port says which address is behind it, and hears all frames for that address or for several.
//! Nothing is learned: two replicas say the same address and hear the same, so the one that goes live has
//! what the other did not log (see [`super::shadow`]), and nothing has to be told who is live.
//!
//! # The wire
//!
//! One packet of a `SOCK_SEQPACKET` connection is one frame. The first one from a port is its hello:
//! [`HELLO`] and six bytes of address; the switch answers [`WELCOME`].

mod connection;
mod forward;
mod link;
mod port;
mod server;
mod tcp;

pub use forward::{Forward, ForwardError, ForwardedPort};
pub use link::LinkError;
pub use port::SwitchPort;
pub use server::{Switch, SwitchError};

/// How a port's first packet begins. The digit is the version of the wire.
pub const HELLO: &[u8; 16] = b"tandem-switch 1\n";
/// What the switch answers to a hello it takes.
pub const WELCOME: &[u8; 8] = b"welcome\n";
/// Bytes asked of the kernel for frames under way; it may give less.
const SOCKET_BUFFER_BYTES: usize = 1 << 20;
