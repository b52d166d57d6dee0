//! What SSE and x87 instructions make of numbers, by the manuals' rules alone: exact integers, one function
//! that rounds, and rules for NaNs and flags. Nothing here is shared with the processor under test, and
//! nothing is computed by the host's floating-point unit.
//!
//! ```text
//!  operands ─▶ class (NaN, infinity, zero, number) ─▶ exact result ─▶ rounded ─▶ result and flags
//!                    │
//!                    └─▶ rule for NaNs and invalid operations ─────────────────▶ result and flags
//! ```

pub mod number;
pub mod sse;
pub mod sse_forms;
pub mod x87;
pub mod x87_forms;
