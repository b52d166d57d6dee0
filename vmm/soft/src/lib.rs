//! A software x86-64 processor with an exact instruction clock.
//!
//! It needs no hardware virtualisation and no performance counter: it can be stopped after any
//! instruction, on any host, and runs the same everywhere.
//!
//! ```text
//!  Soft::run ─▶ block (decoded once, by physical page) ─▶ handler, handler, handler ─▶ next block
//!                 │                                         │
//!                 │ decode/: bytes to ops                   ├─ memory/: TLB, page walks
//!                 │                                         ├─ outside: ports, devices ─▶ Exit
//!                 │                                         └─ exceptions ─▶ handlers of the guest
//! ```
//!
//! The interpreter is the reference: whatever runs guest code faster shares its state, its TLB and its
//! slow paths, and must agree with it bit for bit.

mod block;
pub mod cpu;
mod decode;
pub mod describe;
mod execute;
pub mod flags;
pub mod fpu;
pub mod memory;
pub mod model;
pub mod op;
mod outside;
mod run;
#[doc(hidden)]
pub mod testing;
pub mod trap;
pub mod watch;
pub mod word;

pub use cpu::Cpu;
pub use run::{Exit, Soft};
pub use trap::Trap;
