//! What instructions do: handlers, one file per family.
//!
//! Rules every handler keeps:
//!
//! - It changes registers, flags and memory only once nothing can fail any more; memory writes come last,
//!   and of several the ones that can fail are checked first ([`crate::Cpu::check_writable`]).
//! - Undefined flags and results have one value, the same on every host, given where the handler is.
//! - Time costs nothing: a handler may not ask the host for anything but arithmetic.

pub(crate) mod alu;
pub(crate) mod bit;
pub(crate) mod branch;
pub(crate) mod condition;
pub(crate) mod debug;
pub(crate) mod exceptions;
pub(crate) mod exchange;
pub(crate) mod far;
pub(crate) mod legacy;
pub(crate) mod loose;
pub(crate) mod msr;
pub(crate) mod multiply;
pub(crate) mod operand;
pub(crate) mod ports;
pub(crate) mod segments;
pub(crate) mod shift;
pub(crate) mod simd;
pub(crate) mod stack;
pub(crate) mod string;
pub(crate) mod system;
pub(crate) mod tables;
pub(crate) mod transfer;
pub(crate) mod unary;
pub(crate) mod x87;
