//! Kinds on the wire. Numbers are for ever: golden logs of every format version must still be read.

use crate::event::{Arrival, Event, Question};

pub const PROGRESS: u8 = 0;
pub const TIMER: u8 = 1;
pub const TIMER_MANY: u8 = 2;
pub const FRAME: u8 = 3;
pub const DISK_DONE: u8 = 4;
pub const CONSOLE: u8 = 5;
pub const IRQ_WINDOW: u8 = 6;
pub const STOP: u8 = 7;
pub const TSC: u8 = 8;
pub const WALL_CLOCK: u8 = 9;
pub const PIT: u8 = 10;
pub const OUTPUT: u8 = 11;
pub const STATE: u8 = 12;
pub const END: u8 = 13;
// 14 to 23 are not used.
pub const PM_TIMER: u8 = 24;
pub const ENTROPY: u8 = 25;
pub const LEFT: u8 = 26;
/// On the channel only.
pub const DISK_READ: u8 = 27;
pub const CLOCK: u8 = 28;
pub const KINDS: usize = 29;
/// RIP is that of the last entry of the same kind: the block trap, mostly.
pub const SAME_RIP: u8 = 0x80;
/// RIP is that of the entry of the same kind before: a guest alternates between trap and halt.
pub const OTHER_RIP: u8 = 0x40;
/// RIP is not recorded: arrivals in derived time.
pub const NO_RIP: u8 = SAME_RIP | OTHER_RIP;
/// An anchor follows the register digest.
pub const ANCHOR: u8 = 0x20;

/// The kind whose RIPs those of `kind` are told from: merged ticks come where single ones do, and a disk's ends all
/// alike.
pub fn rip_kind(kind: u8) -> u8 {
    match kind {
        TIMER_MANY => TIMER,
        DISK_READ => DISK_DONE,
        other => other,
    }
}

/// The kind `event` has.
pub fn kind_of(event: &Event) -> u8 {
    match event {
        Event::Progress => PROGRESS,
        Event::Answer { question, .. } => match question {
            Question::Tsc => TSC,
            Question::WallClock => WALL_CLOCK,
            Question::PitElapsed(_) => PIT,
            Question::PmElapsed => PM_TIMER,
            Question::Entropy => ENTROPY,
        },
        Event::Arrival(arrival) => match arrival {
            Arrival::Timer { periods: 1 } => TIMER,
            Arrival::Timer { .. } => TIMER_MANY,
            Arrival::Frame(_) => FRAME,
            Arrival::DiskDone { .. } => DISK_DONE,
            Arrival::DiskRead { .. } => DISK_READ,
            Arrival::Console(_) => CONSOLE,
            Arrival::Clock { .. } => CLOCK,
            Arrival::IrqWindow => IRQ_WINDOW,
            Arrival::Stop => STOP,
        },
        Event::Output { .. } => OUTPUT,
        Event::State { .. } => STATE,
        Event::End { .. } => END,
        Event::Left { .. } => LEFT,
    }
}
