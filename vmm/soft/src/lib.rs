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
//!
//! # Example
//!
//! A loop of a thousand rounds, stopped after its second instruction and then run to its halt. [`testing`] has a
//! processor in 64-bit mode with 16 MiB of memory; a machine brings its own.
//!
//! ```
//! use soft::Exit;
//! use soft::op::slot;
//! use soft::testing::Machine;
//!
//! let code = [
//!     0xb9, 0xe8, 0x03, 0, 0, // mov ecx, 1000
//!     0x01, 0xc8, // top: add eax, ecx
//!     0x83, 0xe9, 0x01, // sub ecx, 1
//!     0x75, 0xf9, // jnz top
//!     0xf4, // hlt
//! ];
//! let mut machine = Machine::new(&code, 0);
//! assert_eq!(machine.run(2), Exit::Stopped);
//! assert_eq!(machine.soft.cpu.slot(slot::RAX), 1000);
//! assert_eq!(machine.soft.instruction()?, "[83, e9, 01] (sub $1,%ecx) at 0x100007");
//!
//! assert_eq!(machine.run(1_000_000), Exit::Halt);
//! assert_eq!(machine.soft.cpu.slot(slot::RAX), 500_500);
//! assert_eq!(machine.soft.cpu.clock, 1 + 3 * 1000 + 1);
//! # Ok::<(), String>(())
//! ```

// Any of this may run on a vCPU's thread, where reading the clock kills the process (see clippy.toml).
#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

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
mod translate;
pub mod trap;
pub mod watch;
pub mod word;

/// Code memory a processor is given unless somebody wants it otherwise: 64 MiB, of which the host gives what is used.
pub const CODE_MEMORY: std::num::NonZeroUsize =
    std::num::NonZeroUsize::new(64 << 20).expect("not zero");

pub use cpu::Cpu;
pub use run::{Exit, Soft};
pub use translate::can_translate;
pub use trap::Trap;
