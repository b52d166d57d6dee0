//! Looking inside a replay: `tandem replay --gdb`, `tandem replay --at`; and files made of one: `--pcap`, `--cast`.
//!
//! ```text
//!  gdb ── remote protocol ──▶ gdb ──▶ travel ──▶ machine under examination + replayer
//!  --at POINT ─▶ point ───────────────┘
//!  --pcap ─▶ pcap, --cast, --speed ─▶ cast ──▶ witness, of a replay from its beginning to its end
//! ```

pub mod cast;
pub mod gdb;
pub mod kernel;
pub mod pcap;
pub mod point;
mod registers;
pub mod travel;
pub mod witness;
