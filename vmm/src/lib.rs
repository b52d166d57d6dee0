//! The machine: vCPU engines, devices, run loop, snapshots, backends.
//!
//! ```text
//!  kvm/ ── Engine ──▶ machine/ ◀── chips ── devices/
//!                        │ replay::Inputs
//!                        ▼
//!      live world (backends/), recorder or replayer
//! ```

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

#[cfg(test)]
#[path = "../../tests/common/skipped.rs"]
mod skipped;
