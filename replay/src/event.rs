//! What a log entry can say.
//!
//! *Answers* are input the guest asked for at an exit; *arrivals* are input nobody asked for;
//! *outputs* leave the machine.

use crate::anchor::Anchor;
use crate::point::{Clock, Here, RegisterDigest};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::Range;

/// The gapless number of a log entry; the first of a machine's run is 0.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct LogIndex(pub u64);

impl LogIndex {
    /// The index after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl std::fmt::Display for LogIndex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Something the guest asks at an exit that its own state does not determine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Question {
    /// The time-stamp counter, in ticks of the machine's fixed TSC frequency.
    Tsc,
    /// Wall-clock time for the RTC, in nanoseconds since 1970-01-01 UTC.
    WallClock,
    /// Nanoseconds since the machine began. PIT channel `0` to `2` counts by them: they are asked for when
    /// the channel begins to run, and when its count is read.
    PitElapsed(u8),
    /// Nanoseconds since the machine began. The ACPI timer counts by them.
    PmElapsed,
    /// Eight random bytes for the entropy device.
    Entropy,
}

/// Input nobody asked for, delivered at an [`ExecPoint`](crate::ExecPoint) that the primary chose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Arrival {
    /// PIT channel 0 ended `periods` periods (more than one only after a stall or an outage,
    /// where lost ticks are merged): one edge on IRQ 0, however many. Their number changes nothing in the
    /// machine; it is there to tell how many ticks the guest lost (`tandem log`).
    Timer {
        /// Periods that ended since the last tick, at least 1.
        periods: u32,
    },
    /// A frame for the network device, without virtio header.
    Frame(Vec<u8>),
    /// The block device's request `tag` ended.
    DiskDone {
        /// The request, as numbered by [`Output::DiskRead`], [`Output::DiskWrite`], [`Output::DiskFlush`].
        tag: u32,
        /// Whether the backend succeeded.
        ok: bool,
        /// The bytes read (empty for writes and flushes): the bounce buffer's content.
        data: Vec<u8>,
    },
    /// The block device's read `tag` ended well. What it read stands on the disk, where whoever follows reads it, and
    /// delivers it as [`Arrival::DiskDone`]: no machine is given this.
    DiskRead {
        /// The request, as numbered by [`Output::DiskRead`].
        tag: u32,
    },
    /// Bytes typed at the console.
    Console(Vec<u8>),
    /// The real-time clock is told the time, since an interrupt of its waits for it.
    Clock {
        /// Wall-clock time in nanoseconds since 1970-01-01 UTC.
        wall_ns: u64,
    },
    /// Nothing but a stop. Here an interrupt that is pending in the interrupt controller can be taken, or
    /// derived guest time is brought up to real time.
    IrqWindow,
    /// The operator asks the machine to end here.
    Stop,
}

/// Something that leaves the machine (or, for disk reads, a request that leaves it).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Output {
    /// A frame sent by the network device.
    Frame(Vec<u8>),
    /// Console bytes.
    Console(Vec<u8>),
    /// A request to read `len` bytes at byte `offset`. It changes nothing outside, so it needs no gate.
    DiskRead {
        /// Number of the request, unique among those outstanding.
        tag: u32,
        /// Byte offset.
        offset: u64,
        /// Length in bytes, bounded by the device.
        len: u32,
    },
    /// A request to write `data` at byte `offset`.
    DiskWrite {
        /// Number of the request, unique among those outstanding.
        tag: u32,
        /// Byte offset.
        offset: u64,
        /// What to write.
        data: Vec<u8>,
    },
    /// A request to make earlier writes durable.
    DiskFlush {
        /// Number of the request, unique among those outstanding.
        tag: u32,
    },
    /// The guest switched itself off.
    PowerOff {
        /// The guest's exit status.
        code: u32,
    },
}

impl Output {
    /// Whether the output rule holds this back until its entry is acked.
    #[must_use]
    pub fn is_gated(&self) -> bool {
        !matches!(self, Self::DiskRead { .. })
    }

    /// How many bytes it carries.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match self {
            Self::Frame(bytes) | Self::Console(bytes) => bytes.len(),
            Self::DiskWrite { data, .. } => data.len(),
            Self::DiskRead { .. } | Self::DiskFlush { .. } | Self::PowerOff { .. } => 0,
        }
    }

    /// The bytes of the disk it is about, if it reads or writes any.
    #[must_use]
    pub fn disk_bytes(&self) -> Option<Range<u64>> {
        let (offset, length) = match self {
            Self::DiskRead { offset, len, .. } => (*offset, u64::from(*len)),
            Self::DiskWrite { offset, data, .. } => (*offset, data.len() as u64),
            _ => return None,
        };
        Some(offset..offset.saturating_add(length))
    }

    /// The tag, if this is a disk request.
    #[must_use]
    pub fn disk_tag(&self) -> Option<u32> {
        match self {
            Self::DiskRead { tag, .. } | Self::DiskWrite { tag, .. } | Self::DiskFlush { tag } => {
                Some(*tag)
            }
            _ => None,
        }
    }
}

/// What one log entry says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// The answer to a question the guest asked here.
    Answer {
        /// What was asked.
        question: Question,
        /// What was answered.
        value: u64,
    },
    /// Input delivered here.
    Arrival(Arrival),
    /// An output was made here. Its bytes are not in the log, since the backup makes its own.
    Output {
        /// [`crate::digest::output`] of what was sent.
        digest: u32,
    },
    /// Nothing happened, but the primary got this far.
    Progress,
    /// The state here, in part: registers, devices and a window of memory.
    State {
        /// First page (of 4 KiB) of the memory window.
        first_page: u64,
        /// Pages in the window.
        pages: u32,
        /// The digest over all of it.
        digest: u64,
    },
    /// The recording ends here, and the machine ran on; always the last entry of a log, and only in a file.
    Left {
        /// Digest of the whole machine: vCPU, devices and memory.
        digest: u64,
    },
    /// The machine ended here, in an orderly way; always the last entry of a log.
    End {
        /// The guest's exit status, or 0 when it was stopped from outside.
        code: u32,
        /// Digest of the whole memory and every device.
        digest: u64,
    },
}

/// A coarse class of entries, for statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Time-stamp reads.
    Tsc,
    /// Other clocks asked.
    ClockRead,
    /// Timer interrupts, those of the real-time clock too.
    Timer,
    /// Received frames.
    Frame,
    /// Random bytes.
    Entropy,
    /// Finished disk requests.
    Disk,
    /// Console input.
    Console,
    /// Interrupt windows.
    IrqWindow,
    /// Outputs marked.
    Output,
    /// Progress.
    Progress,
    /// State digests.
    State,
    /// Control: stop, end, and a recording left.
    Control,
}

impl fmt::Display for Kind {
    /// Its name as in JSON.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

impl Event {
    /// The class this event is counted under.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Answer {
                question: Question::Tsc,
                ..
            } => Kind::Tsc,
            Self::Answer {
                question: Question::Entropy,
                ..
            } => Kind::Entropy,
            Self::Answer { .. } => Kind::ClockRead,
            Self::Arrival(arrival) => match arrival {
                Arrival::Timer { .. } | Arrival::Clock { .. } => Kind::Timer,
                Arrival::Frame(_) => Kind::Frame,
                Arrival::DiskDone { .. } | Arrival::DiskRead { .. } => Kind::Disk,
                Arrival::Console(_) => Kind::Console,
                Arrival::IrqWindow => Kind::IrqWindow,
                Arrival::Stop => Kind::Control,
            },
            Self::Output { .. } => Kind::Output,
            Self::Progress => Kind::Progress,
            Self::State { .. } => Kind::State,
            Self::Left { .. } | Self::End { .. } => Kind::Control,
        }
    }
}

/// One logged event.
///
/// RCX is not among its fields. [`RegisterDigest`] covers it, and a timer interrupt may take twelve bytes
/// only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// When it happened.
    pub clock: Clock,
    /// The registers there; `None` for [`Event::Progress`], which names a clock value only.
    pub stand: Option<Stand>,
    /// How far it moves derived guest time; only arrivals have one.
    pub anchor: Anchor,
    /// What happened.
    pub event: Event,
}

/// What a log entry says of the registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stand {
    /// Instruction pointer. `None` for arrivals in derived time, where its bytes pay for the anchor's.
    pub rip: Option<u64>,
    /// Digest of all of them, RIP included.
    pub registers: RegisterDigest,
}

impl LogEntry {
    /// An entry for something that happened `here`.
    #[must_use]
    pub fn at(here: &Here, event: Event) -> Self {
        Self {
            clock: here.point.clock,
            stand: Some(Stand {
                rip: Some(here.point.rip),
                registers: here.registers,
            }),
            anchor: Anchor::NONE,
            event,
        }
    }

    /// The entry of an arrival delivered `here`. A machine whose time is derived gives an `anchor`, though it
    /// may move time by nothing; a machine whose time is logged gives none.
    #[must_use]
    pub fn arrival(here: &Here, arrival: Arrival, anchor: Option<Anchor>) -> Self {
        let entry = Self::at(here, Event::Arrival(arrival));
        let Some(anchor) = anchor else { return entry };
        let registers = here.registers;
        let stand = Some(Stand {
            rip: None,
            registers,
        });
        Self {
            stand,
            anchor,
            ..entry
        }
    }

    /// Whether it is an entry that only a machine in derived time makes.
    #[must_use]
    pub fn is_anchored(&self) -> bool {
        self.anchor != Anchor::NONE || self.stand.is_some_and(|stand| stand.rip.is_none())
    }

    /// The entry that says the guest got to `clock`.
    #[must_use]
    pub fn progress(clock: Clock) -> Self {
        Self {
            clock,
            stand: None,
            anchor: Anchor::NONE,
            event: Event::Progress,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_called_as_in_json() {
        assert_eq!(Kind::Tsc.to_string(), "tsc");
        assert_eq!(Kind::IrqWindow.to_string(), "irq_window");
    }
}
