//! The machine: a vCPU, its memory and its board, and the loop that runs them.
//!
//! ```text
//!  examine ──▶ run ──▶ reset ──▶ boot       snapshot      digest
//!     │         │        │                     │             │
//!     └─────────┴────────┴───▶ state ◀─────────┴─────────────┘
//!                                │
//!                                └──▶ board, time, config, origin
//! ```
//!
//! | part | what it is |
//! |---|---|
//! | `state` | the machine: vCPU, memory, board, guest time, and where in the run loop it stands |
//! | `run` | the loop: exit ▶ board ▶ arrivals ▶ injection ▶ entry |
//! | `examine` | the same loop paused anywhere, and taken back |
//! | `reset` | the guest's reset: all as it was switched on, from its `origin` |
//! | `snapshot` | all of it as a stream |
//! | `join` | what both sides of a join do there |
//! | `digest` | all of it, or a part, in 64 bits |
//! | `boot` | image, what it is told, and first registers into an empty machine |
//! | `board` | ports and MMIO to chips; arrivals into chips; outputs out of them |
//! | `time` | guest time: logged, or derived from the clock |
//! | `live` | the live world: inbox, timer, clocks (a `replay::Source`) |
//! | `lateness` | how late its timer ticks were |
//! | `pace` | guest time against the host's, and when the timer is due |
//! | `error` | why a machine stops for good |

pub mod board;
pub mod boot;
mod config;
mod digest;
mod error;
pub mod examine;
mod join;
pub mod lateness;
pub mod live;
mod origin;
mod pace;
mod reset;
mod run;
pub mod snapshot;
mod state;
pub mod time;

pub use board::absent::report as report_absent;
pub use board::legacy::RESET_STATUS;
pub use boot::GuestImage;
pub use config::{
    BoardKind, ConfigError, MEMORY_MIB_MAX, MEMORY_MIB_MIN, MachineConfig, parse_mac,
};
pub use error::MachineError;
pub use origin::{ImageSource, KeptImage};
pub use run::{Ended, FAULT_STATUS, HALT_STATUS};
pub use state::Machine;
pub use time::{TSC_HZ, TscMode};

#[cfg(test)]
mod derived_tests;
/// Machines with a few bytes of guest.
#[cfg(test)]
pub(crate) use reset::tests as small;
