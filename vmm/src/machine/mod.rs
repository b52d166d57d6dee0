//! The machine: a vCPU, its memory and its board, and the loop that runs them.
//!
//! ```text
//!  boot   image, what it is told, and first registers into an empty machine
//!  board  ports and MMIO to chips; arrivals into chips; outputs out of them
//!  run    the loop: exit ▶ board ▶ arrivals ▶ injection ▶ entry
//!  examine  the loop paused anywhere, and taken back
//!  reset  the guest's reset: all as it was switched on
//!  live   the live world: inbox, timer, clocks (a `replay::Source`)
//!  lateness  how late its timer ticks were
//!  pace   guest time against the host's, and when the timer is due
//!  time   guest time: logged, or derived from the clock
//! ```

pub mod board;
pub mod boot;
mod config;
pub mod examine;
pub mod lateness;
pub mod live;
mod pace;
mod reset;
mod run;
pub mod snapshot;
pub mod time;

pub use board::legacy::RESET_STATUS;
pub use boot::GuestImage;
pub use config::{BoardKind, ConfigError, MEMORY_MIB_MAX, MEMORY_MIB_MIN, MachineConfig};
pub use reset::{ImageSource, KeptImage};
pub use run::{Ended, FAULT_STATUS, Machine, MachineError};
pub use time::{TSC_HZ, TscMode};

#[cfg(test)]
mod derived_tests;
/// Machines with a few bytes of guest.
#[cfg(test)]
pub(crate) use reset::tests as small;
