//! The views: who is primary and backup of each VM.
//!
//! ```text
//!    hosts ──ping: what I run──▶ ┌───────────────┐ ──orders: what you are to be──▶ hosts
//!    winner ──Solo in view n+1─▶ │ Views (pure)  │
//!    CLI ──register, down──────▶ └──────┬────────┘ ──status──▶ CLI
//!                                       │ changes: durable first, then told
//!                                  views.json
//! ```
//!
//! [`Views`] is the machine, without I/O: events and the time in, changes out. [`serve`] puts it behind
//! TCP on a durable [`Store`]; [`Client`] asks it.
//!
//! The service names views; it decides no failover. Who goes live when a pair breaks is the arbiter's
//! to say, and the winner's report is taken as the truth. It is not on the data path: a protected pair
//! runs on, and fails over, while the service is down, so callers may ignore a failed call and ping
//! again. Calls block and read the host's clock: never make them on a vCPU thread.

mod client;
mod error;
mod machine;
mod names;
mod protocol;
mod server;
mod state;
mod status;
mod store;

pub use client::Client;
pub use error::ViewError;
pub use lines::{NameError, ViewNumber, VmId};
pub use machine::{Change, Event, Rejected, Settings, Views};
pub use names::{Address, HostId};
pub use protocol::{Assignment, Held, Orders, Ping, Register, Registered, Report};
pub use server::serve;
pub use state::{Role, State, View};
pub use status::{HostState, HostStatus, Status, VmStatus};
pub use store::Store;
