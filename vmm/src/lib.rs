//! The machine: vCPU engines, devices, run loop, snapshots, backends.
//!
//! ```text
//!  kvm/ ── Engine ──▶ machine/ ◀── chips ── devices/
//!                        │ replay::Inputs
//!                        ▼
//!      live world (backends/), recorder or replayer
//! ```
//!
//! # Example
//!
//! A machine is recorded, and then run again from its log: the timer's ticks come at the same instructions, and
//! both machines end in the same state.
//!
//! ```
//! use replay::file::{LogHeader, LogReader, LogWriter};
//! use replay::recorder::{Recorder, StatePace};
//! use replay::replayer::Replayer;
//! use replay::{Base, InputsError, LogIndex, Outlet, Output};
//! use vmm::cpu::Offer;
//! use vmm::hostclock::monotonic_ns;
//! use vmm::machine::live::{GuestTime, Inbox, Live};
//! use vmm::machine::{Machine, MachineConfig, MachineError, boot};
//! use vmm::soft::SoftEngine;
//!
//! /// Nobody reads this guest's console.
//! struct Unread;
//!
//! impl Outlet for Unread {
//!     fn emit(&mut self, _: LogIndex, _: Output) -> Result<(), InputsError> {
//!         Ok(())
//!     }
//! }
//!
//! let image = guests::load("counter", None)?;
//! let config = MachineConfig::bare("counter", image.digest, "hz=1000 ticks=5");
//! let booted = || -> Result<Machine<SoftEngine>, MachineError> {
//!     let memory = boot::memory(&config)?;
//!     let vcpu = SoftEngine::new(memory.clone(), config.cpu, Offer::Bare, config.clock_kind)?;
//!     Machine::boot(vcpu, memory, config.clone(), &image.bytes())
//! };
//! let folder = tempfile::tempdir()?;
//! let path = folder.path().join("counter.log");
//!
//! let mut machine = booted()?;
//! let header = LogHeader {
//!     cpu_model: config.cpu.name().into(),
//!     clock_kind: config.clock_kind,
//!     config: replay::codec::to_bytes(&config),
//!     base: Base::alone(machine.digest(None)?),
//! };
//! let log = LogWriter::create(&path, &header, || monotonic_ns() / 1000)?;
//! let live = Live::new(Inbox::new(), GuestTime::default(), false)?;
//! let pages = config.memory_bytes() / 4096;
//! let mut recorder = Recorder::new(live, log, Unread, StatePace::default(), pages);
//! let recorded = machine.run(&mut recorder)?;
//!
//! let mut replayer = Replayer::new(LogReader::open(&path)?, Unread);
//! let replayed = booted()?.run(&mut replayer)?;
//! assert_eq!((replayed.code, replayed.clock), (0, recorded.clock));
//! assert_eq!(replayed.digest, recorded.digest);
//! assert_eq!(replayer.entries(), recorder.entries());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

// Any of this may run on a vCPU's thread, where reading the clock kills the process (see clippy.toml).
#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

pub mod backends;
pub mod cpu;
pub mod devices;
pub mod engine;
pub mod hostclock;
pub mod kick;
pub mod kvm;
pub mod machine;
pub mod memory;
pub mod processor;
pub mod soft;
pub mod state;
