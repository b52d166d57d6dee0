//! The logging channel: entries out, acks back, heartbeats; and how a link begins and ends.
//!
//! ```text
//!  PRIMARY                                                              BACKUP
//!  vCPU ──append──▶ Sender ──Entries──▶ TCP ──▶ Receiver ──next──▶ vCPU (replaying)
//!                      ▲                            │
//!  Leader ◀────acked───┴────────── Ack ◀────────────┘
//!    outputs held
//!    for it leave   Sender ── Heartbeat { delivered } ─▶ Receiver ─delivered─▶ suppressed outputs
//! ```
//!
//! What holds outputs and what suppresses them is the replica's: the sender knows its [`Leader`], the receiver
//! nobody.
//!
//! The data path uses plain threads and blocking sockets, since the time from append to ack is what
//! counts. Its cores touch no socket and no clock: [`framing`], [`heartbeat`], [`calls`] and [`trust`].
//!
//! Every thread that calls [`Sender`] or [`Receiver`] may be a vCPU thread. Reading the clock through the
//! vDSO faults there. So this crate never reads the clock through `std` (see [`clock`]), and only
//! `poll(2)` waits with a time limit.
//!
//! # Example
//!
//! A primary sends an entry to its backup, and leaves once the backup has it.
//!
//! ```
//! use logchannel::{
//!     Bye, Hello, Leader, Received, Receiver, ReceiverOptions, Sender, SenderOptions, Settings, answer, offer,
//! };
//! use replay::{Arrival, Base, Event, Here, InputsError, LogEntry, LogIndex, LogSink};
//! use std::net::{TcpListener, TcpStream};
//! use std::sync::Arc;
//! use std::time::Duration;
//! # use logchannel::Settled;
//!
//! const LIMIT: Duration = Duration::from_secs(20);
//!
//! /// A primary without outputs.
//! struct Silent;
//!
//! impl Leader for Silent {
//!     fn acked(&self, _upto: LogIndex) -> Result<(), InputsError> {
//!         Ok(()) // outputs marked by entries below `_upto` may leave now
//!     }
//! #   fn begins(&self, _: Settled) {}
//! #   fn heard(&self, _: u64) {}
//! #   fn unprinted(&self) -> Option<LogIndex> { None }
//! #   fn undecided(&self) {}
//! #   fn solo(&self) -> Result<(), InputsError> { Ok(()) }
//! #   fn undisputed(&self) {}
//! #   fn halted(&self) {}
//! #   fn closed(&self) {}
//! }
//!
//! let listener = TcpListener::bind("127.0.0.1:0")?;
//! let address = listener.local_addr()?;
//! let backup = std::thread::spawn(move || {
//!     let (socket, _) = listener.accept().unwrap();
//!     let (connection, _hello) = answer(socket, LIMIT, |_hello| Ok(None)).unwrap();
//!     let mut receiver = Receiver::start(connection, ReceiverOptions::default(), |_end| ()).unwrap();
//!     let mut entries = Vec::new();
//!     while let Received::Entry(_, entry) = receiver.next(true) {
//!         entries.push(entry);
//!     }
//!     entries
//! });
//!
//! let hello = Hello {
//!     vm: "web".into(),
//!     incarnation: "host-a.771".into(),
//!     base: Base::alone(0),
//!     store: *b"where flags are.",
//!     settings: Settings { suspect_ms: 10_000, ..Settings::default() },
//!     config: Vec::new(),
//! };
//! let connection = offer(TcpStream::connect(address)?, &hello, LIMIT)?;
//! let mut sender = Sender::start(connection, Arc::new(Silent), SenderOptions::default(), |_end| ())?;
//! let entry = LogEntry::at(&Here::default(), Event::Arrival(Arrival::Timer { periods: 1 }));
//! sender.append(&entry)?;
//! assert!(sender.bye(Bye::PowerOff { code: 0 }));
//! assert_eq!(backup.join().unwrap(), [entry]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

// Any of this may run on a vCPU's thread, where reading the clock kills the process (see clippy.toml).
#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

pub mod backlog;
pub mod calls;
pub mod clock;
pub mod cursors;
pub mod error;
pub mod framing;
pub mod handshake;
pub mod heartbeat;
pub mod leader;
mod link;
pub mod messages;
pub mod metrics;
mod outgoing;
mod packing;
mod prompt;
pub mod receiver;
pub mod sender;
mod tether;
pub mod transfer;
pub mod trust;

pub use cursors::{Cursors, Delivered};
pub use error::{FrameError, HandshakeError, LinkEnd, LinkLost};
pub use handshake::{Caller, Connection, answer, offer};
pub use leader::Leader;
pub use messages::{Ack, Bye, Hello, Settings, Settled};
pub use metrics::{Metrics, MetricsSnapshot};
pub use prompt::{
    StandsBack, be_prompt, be_punctual, leisure, make_prompt, may_be_prompt, stand_back,
};
pub use receiver::{Received, Receiver, ReceiverHandle, ReceiverOptions};
pub use sender::{Lag, Sender, SenderHandle, SenderOptions};
pub use tether::Tether;
pub use transfer::{DiskSink, Given, StateReader, StateWriter, offer_running};
