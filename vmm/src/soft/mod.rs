//! The software engine: the processor of the `tandem-soft` crate as a vCPU of the machine.
//!
//! It needs no KVM, stops after any instruction, and counts either instructions or, for guests that count
//! for themselves, blocks; so it can follow a recording made on KVM.

mod convert;
mod executor;
pub mod looking;
mod vcpu;

pub use convert::restore;
pub use executor::{Executor, can_translate};
pub use looking::Debuggable;
pub use vcpu::{SoftEngine, processor};
