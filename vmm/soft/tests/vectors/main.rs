//! MMX, SSE and x87 instructions, here and on the host's processor: every form the assembler knows, on
//! random and remarkable numbers, compared in registers, flags, status and memory.
//!
//! ```text
//!  compared     ours = the host's, but for what its maker is known to do otherwise (makers.rs)
//!  captured     ours = what processors of each maker were seen to do, on any host
//!  proof        ours = a reference in integers, for all the host's unit computes, on any host
//!  golden       ours = what it was, form by form, on any host
//! ```
//!
//! `VECTOR_CASES` sets how many cases each form gets, `VECTOR_ONLY` which ones run (part of a name).

mod captured;
mod compared;
mod faults;
mod forms;
mod golden;
#[path = "../host/maker.rs"]
mod maker;
mod makers;
mod native;
mod proof;
mod random;
mod reference;
mod state;
