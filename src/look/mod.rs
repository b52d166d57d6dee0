//! Looking inside a replay: `tandem replay --gdb`, `tandem replay --at`, `tandem replay --pcap`.
//!
//! ```text
//!  gdb ── remote protocol ──▶ gdb ──▶ travel ──▶ machine under examination + replayer
//!  --at POINT ─▶ point ───────────────┘
//! ```

pub mod gdb;
pub mod kernel;
pub mod pcap;
pub mod point;
mod registers;
pub mod travel;
