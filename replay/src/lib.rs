//! The replicated log of a virtual machine: entries, codec, recorder, replayer, log file.
//!
//! This crate is the ground the others stand on; it knows neither KVM nor sockets.
//!
//! # Example
//!
//! A guest asks for entropy. The recorder has the answer from the world and logs it; the replayer has it from the
//! log, and notices a guest that does something else.
//!
//! ```
//! use replay::file::{LogHeader, LogReader, LogWriter};
//! use replay::recorder::{Recorder, StatePace};
//! use replay::replayer::Replayer;
//! use replay::{Base, ClockKind, Here, Inputs, InputsError, Outlet, Question, Source};
//! # use replay::{Arrival, LogIndex, Output, Situation, Stop};
//! # use std::hash::{BuildHasher, RandomState};
//!
//! /// A world whose answers nobody can guess, and where nothing else happens.
//! struct World;
//!
//! impl Source for World {
//!     fn answer(&mut self, _: Question) -> u64 {
//!         RandomState::new().hash_one("entropy")
//!     }
//! #   fn guest_ns(&mut self) -> u64 { 0 }
//! #   fn poll(&mut self, _: &Situation) -> Result<Option<Arrival>, InputsError> { Ok(None) }
//! #   fn wait(&mut self, _: &Situation) -> Result<(), InputsError> { Ok(()) }
//! #   fn is_progress_due(&mut self) -> bool { false }
//! #   fn next_stop(&mut self, _: &Situation) -> Stop { Stop::Never }
//! }
//! # /// Where no output goes, since this guest makes none.
//! # struct Nowhere;
//! # impl Outlet for Nowhere {
//! #   fn emit(&mut self, _: LogIndex, _: Output) -> Result<(), InputsError> { Ok(()) }
//! # }
//!
//! let folder = tempfile::tempdir()?;
//! let path = folder.path().join("log");
//! let header = LogHeader {
//!     cpu_model: "v1".into(),
//!     clock_kind: ClockKind::Instructions,
//!     config: Vec::new(),
//!     base: Base::alone(0),
//! };
//! let here = Here::default();
//!
//! let log = LogWriter::create(&path, &header, || 0)?;
//! let mut recorder = Recorder::new(World, log, Nowhere, StatePace::default(), 1);
//! let recorded = recorder.answer(&here, Question::Entropy)?;
//! recorder.end(&here, 0, 0)?;
//!
//! let mut replayer = Replayer::new(LogReader::open(&path)?, Nowhere);
//! assert_eq!(replayer.answer(&here, Question::Entropy)?, recorded);
//! let other = replayer.answer(&here, Question::Tsc);
//! assert!(matches!(other, Err(InputsError::Diverged(_))));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

// Any of this may run on a vCPU's thread, where reading the clock kills the process (see clippy.toml).
#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

pub mod anchor;
pub mod base;
pub mod codec;
pub mod digest;
pub mod disk;
pub mod divergence;
pub mod duty;
pub mod error;
pub mod event;
pub mod file;
pub mod inputs;
pub mod point;
pub mod recorder;
pub mod replayer;
pub mod sink;

pub use anchor::Anchor;
pub use base::{Base, BaseError, BaseOrigin, LogPlace};
pub use disk::DiskPart;
pub use duty::{Duty, Succession};
pub use error::LogError;
pub use event::{Arrival, Event, Kind, LogEntry, LogIndex, Output, Question, Stand};
pub use inputs::{Delivery, Inputs, InputsError, Situation, StateWindow, Stop, TimerSpec};
pub use names::ViewNumber;
pub use point::{Clock, ClockKind, ExecPoint, Here, RegisterDigest};
pub use sink::{LogSink, LogSource, NextEntry, NoLog, Outlet, Rewind, Source};
