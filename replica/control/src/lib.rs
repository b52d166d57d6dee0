//! Speaking to a replica that runs, from another process of its host: what it is, and what is wanted of it.
//!
//! ```text
//!  control folder        replica's process                        command
//!    web.4711.sock ◀──── Socket::bind, serve ◀──── one line ──── Leader::find, ask
//!    web.4712.sock         │  ▲                ───── lines ────▶   │
//!                          ▼  │                                    ▼
//!                  replica::Handle, replica::Told            one line, exit code
//! ```
//!
//! Each replica has a socket in the folder, which only its own user can open. A command asks the sockets of a
//! machine which replica leads it, asks that one, and waits for the end of it.
//!
//! # Example
//!
//! Gives a machine that runs alone on this host a new backup.
//!
//! ```no_run
//! use control::{Leader, Request};
//! use names::VmId;
//! use replica::Told;
//!
//! let leader = Leader::find(&VmId::new("web").unwrap(), None)?;
//! let backup = "192.0.2.3:7800".to_owned();
//! let done = |told: &Told| matches!(told, Told::Protected { .. } | Told::Failed { .. });
//! let told = leader.ask(&Request::Protect { backup }, done, |before| println!("{before:?}"))?;
//! println!("{told:?}");
//! # Ok::<(), replica::ReplicaError>(())
//! ```

mod client;
mod folder;
mod protocol;
mod server;
mod socket;

pub use client::Leader;
pub use protocol::{Request, Status, VERSION};
pub use server::Server;
pub use socket::Socket;
