//! Looking inside a replay: `tandem replay --gdb`, `tandem replay --at`; and files made of one: `--core`, `--pcap`,
//! `--cast`.
//!
//! ```text
//!  gdb ── remote protocol ──▶ gdb ──▶ travel ──▶ machine under examination + replayer
//!  --at POINT ─▶ point ───────────────┤
//!        --core ─▶ core ──────────────┘
//!  tandem trace ─▶ trace ──▶ machine under examination + replayer
//!  tandem log --perfetto ─▶ logged
//!  where something went wrong ─▶ commands: what to run of these
//!  --pcap ─▶ pcap, --cast, --speed ─▶ cast ──▶ witness, of a replay from its beginning to its end
//! ```

pub mod cast;
pub mod commands;
pub mod core;
pub mod gdb;
pub mod kernel;
pub mod logged;
pub mod mappings;
pub mod pcap;
pub mod perfetto;
pub mod point;
mod protobuf;
mod registers;
pub mod trace;
pub mod travel;
pub mod witness;
