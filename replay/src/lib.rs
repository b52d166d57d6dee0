//! The replicated log of a virtual machine: entries, codec, recorder, replayer, log file.
//!
//! This crate is the ground the others stand on; it knows neither KVM nor sockets.

pub mod anchor;
pub mod codec;
pub mod digest;
pub mod divergence;
pub mod error;
pub mod event;
pub mod file;
pub mod inputs;
pub mod point;
pub mod recorder;
pub mod replayer;
pub mod sink;

pub use anchor::Anchor;
pub use error::LogError;
pub use event::{Arrival, Event, Kind, LogEntry, LogIndex, Output, Question, Stand};
pub use inputs::{Delivery, Inputs, InputsError, Situation, StateWindow, Stop, TimerSpec};
pub use point::{Clock, ClockKind, ExecPoint, Here, RegisterDigest};
pub use sink::{LogSink, LogSource, Next, NoLog, Outlet, Rewind, Source};
