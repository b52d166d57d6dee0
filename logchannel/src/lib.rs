//! The logging channel: entries out, acks back, output gate, heartbeats, roles.
//!
//! ```text
//!  PRIMARY                                                              BACKUP
//!  vCPU ──append──▶ Sender ──Entries──▶ TCP ──▶ Receiver ──next──▶ vCPU (replaying)
//!   │ outputs          ▲                            │                │ outputs
//!   ▼                  │                            │                ▼
//!  OutputGate ◀──acked─┴────────── Ack ◀────────────┘            Suppressed
//!   │ released                                                       ▲
//!   ▼                                                                │
//!  outlet        Sender ── Heartbeat { delivered } ─▶ Receiver ─delivered
//! ```
//!
//! The data path uses plain threads and blocking sockets, because what counts is the time from append
//! to ack. The cores of it touch no socket and no clock: [`brake`], [`framing`], [`gate`],
//! [`heartbeat`], [`role`], [`suppressed`] and `trust`.
//!
//! Every thread that calls [`Sender`] or [`Receiver`] may be a vCPU thread on which reading the clock
//! through the vDSO faults. So nothing in this crate reads the clock through `std` (see [`clock`]) or
//! waits with a time limit but in `poll(2)`.

mod backlog;
pub mod brake;
pub mod clock;
pub mod cursors;
pub mod error;
pub mod framing;
pub mod gate;
pub mod handshake;
pub mod heartbeat;
pub mod lease;
mod link;
pub mod messages;
pub mod metrics;
mod outgoing;
mod prompt;
pub mod receiver;
pub mod role;
pub mod sender;
pub mod suppressed;
mod trust;

pub use brake::{Brake, Moment};
pub use cursors::{Cursors, Delivered};
pub use error::{FrameError, HandshakeError, LinkEnd, LinkLost};
pub use gate::{OutputGate, SharedGate};
pub use handshake::{Caller, Connection, answer, offer};
pub use lease::Lease;
pub use messages::{Ack, Bye, Hello, Settings};
pub use metrics::{Metrics, MetricsSnapshot};
pub use prompt::{be_prompt, leisure, make_prompt, may_be_prompt};
pub use receiver::{Next, Receiver, ReceiverHandle, ReceiverOptions};
pub use role::{Command, Event, Role, RoleMachine, ViewNumber};
pub use sender::{GateOutlet, Lag, Sender, SenderHandle, SenderOptions, Unprinted};
pub use suppressed::Suppressed;
