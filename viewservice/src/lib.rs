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
//!
//! # Example
//!
//! Two hosts, a machine on both, and what the service takes from the one that survives the other.
//!
//! ```
//! use viewservice::{
//!     Address, Held, HostId, Ping, Register, Report, Role, Settings, State, ViewEvent, ViewNumber, Views, VmId,
//! };
//!
//! let vm = VmId::new("web")?;
//! let (a, b) = (HostId::new("a")?, HostId::new("b")?);
//! let ping = |host: &HostId, held: Vec<Held>| {
//!     let address = Address::new(format!("{host}:7000")).unwrap();
//!     ViewEvent::Ping(Ping { host: host.clone(), address, held, waits: Vec::new(), of: None })
//! };
//! let mut views = Views::new(State::default(), Settings::default());
//! views.handle(&ping(&a, Vec::new()))?;
//! views.handle(&ping(&b, Vec::new()))?;
//!
//! let wish = Register { vm: vm.clone(), primary: Some(a.clone()), backup: None };
//! let named = views.handle(&ViewEvent::Register(wish))?;
//! assert_eq!(named[0].to_string(), "web: named view 1: primary a, backup b");
//! let held = Held { vm: vm.clone(), view: ViewNumber(1), role: Role::Primary, lag_ms: None, backup: None };
//! let acked = views.handle(&ping(&a, vec![held]))?;
//! assert_eq!(acked[0].to_string(), "web: view 1 acknowledged");
//!
//! // Host a died, and b won the flag of view 1.
//! let report = Report::Solo { host: b, vm, view: ViewNumber(2) };
//! let solo = views.handle(&ViewEvent::Report(report))?;
//! assert_eq!(solo[0].to_string(), "web: went solo in view 2: primary b, no backup");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod client;
mod error;
mod fleet;
mod hosts;
mod life;
mod machine;
mod metrics;
mod placing;
mod protocol;
mod routes;
mod server;
mod state;
mod status;
mod store;
mod watch;

pub use client::Client;
pub use error::ViewError;
pub use fleet::{
    Engine, FAILED_MAX, Failed, HostOrders, HostPing, Leave, Machine, NAMES_MAX, REASON_MAX,
    REPLICA_MIB, Room, Up, Wanted, cut,
};
pub use hosts::{Address, HostId};
pub use machine::{Change, Rejected, Settings, ViewEvent, Views};
pub use names::{NameError, Role, ViewNumber, VmId};
pub use protocol::{Assignment, Held, Orders, Ping, Register, Registered, Report};
pub use server::serve;
pub use state::{State, View};
pub use status::{HostState, HostStatus, Status, VmStatus};
pub use store::Store;
