//! Entries as bytes.
//!
//! ```text
//!  length   varint   bytes of this entry after the length
//!  kind     u8       see `wire`; bit 7: RIP is that of the last entry of the same kind,
//!                    bit 6: that of the one before it, both: it is not recorded; in each of
//!                    these cases `rip` is absent; bit 5: an anchor follows `check`;
//!                    merged timer ticks and single ones are of the same kind here
//!  clock    varint   delta to the entry before
//!  rip      varint   zigzag delta to the last entry of the same kind,  ┐ absent in
//!                    in the beginning to 1 MiB                         │ Progress
//!  check    u32 LE   register digest                                   ┘
//!  anchor   varint   steps derived time moves, 1 or more; arrivals only, if bit 5 is set
//!  payload           bincode, by kind; clock answers as zigzag deltas, random bytes as they are
//! ```
//!
//! A timer interrupt in a running guest is 12 bytes or fewer, a frame its own length and at most 16; in
//! derived time, where an anchor takes the place of RIP, too.
//! Encoder and decoder carry state, so a stream is decoded from its beginning.
//!
//! Payloads and other values of many fields are bincode's (`value`): everything decoded is under a size limit.

mod value;
mod varint;
mod wire;

pub use self::value::{BLOB_MAX, from_bytes, to_bytes};

use self::varint::{put_varint, put_zigzag, take, take_varint, take_zigzag};
use self::wire::{kind_of, rip_kind};
use crate::anchor::Anchor;
use crate::base::LogPlace;
use crate::error::LogError;
use crate::event::{Arrival, Event, LogEntry, Question, Stand};
use crate::point::{Clock, RegisterDigest};

/// Most bytes of one encoded entry. A disk request is bounded by 256 KiB, a frame by 64 KiB.
pub const ENTRY_MAX: usize = 1 << 20;

/// What both directions remember of the entries before.
#[derive(Clone, Debug)]
struct Deltas {
    /// Where the next entry stands.
    place: LogPlace,
    /// The last two of each kind that differed, the later one first.
    rip: [[u64; 2]; wire::KINDS],
    answer: [u64; wire::KINDS],
}

impl Default for Deltas {
    fn default() -> Self {
        // Images begin at 1 MiB.
        let rip = [[0x10_0000; 2]; wire::KINDS];
        Self {
            place: LogPlace::default(),
            rip,
            answer: [0; wire::KINDS],
        }
    }
}

/// Turns entries into bytes.
#[derive(Clone, Debug, Default)]
pub struct Encoder {
    deltas: Deltas,
    body: Vec<u8>,
}

impl Encoder {
    /// An encoder at the beginning of a stream that is that of a run, too.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// An encoder at the beginning of a stream whose first entry stands at `place`.
    #[must_use]
    pub fn at(place: LogPlace) -> Self {
        let mut encoder = Self::default();
        encoder.deltas.place = place;
        encoder
    }

    /// The place of the next entry.
    #[must_use]
    pub fn place(&self) -> LogPlace {
        self.deltas.place
    }

    /// Appends `entry` to `out`.
    ///
    /// # Panics
    /// If the clock steps back, or the entry is over [`ENTRY_MAX`]: bugs of the recorder.
    pub fn encode(&mut self, entry: &LogEntry, out: &mut Vec<u8>) {
        let kind = kind_of(&entry.event);
        let slot = usize::from(kind);
        let mut body = std::mem::take(&mut self.body);
        body.clear();
        body.push(kind);
        let delta = entry
            .clock
            .0
            .checked_sub(self.deltas.place.clock.0)
            .expect("the clock never steps back");
        self.deltas.place = LogPlace {
            index: self.deltas.place.index.next(),
            clock: entry.clock,
        };
        put_varint(&mut body, delta);
        if let Some(stand) = entry.stand {
            assert!(kind != wire::PROGRESS, "progress has no registers");
            let [last, other] = &mut self.deltas.rip[usize::from(rip_kind(kind))];
            match stand.rip {
                None => body[0] |= wire::NO_RIP,
                Some(rip) if rip == *last => body[0] |= wire::SAME_RIP,
                Some(rip) if rip == *other => {
                    body[0] |= wire::OTHER_RIP;
                    std::mem::swap(last, other);
                }
                Some(rip) => {
                    *other = *last;
                    put_zigzag(&mut body, rip, last);
                }
            }
            body.extend_from_slice(&stand.registers.0.to_le_bytes());
            if entry.is_anchored() {
                assert!(
                    matches!(entry.event, Event::Arrival(_)),
                    "only arrivals have anchors"
                );
            }
            if entry.anchor != Anchor::NONE {
                body[0] |= wire::ANCHOR;
                put_varint(&mut body, entry.anchor.0);
            }
        } else {
            assert!(kind == wire::PROGRESS, "only progress has no registers");
        }
        self.payload(&entry.event, slot, &mut body);
        assert!(body.len() <= ENTRY_MAX, "entry of {} bytes", body.len());
        put_varint(out, body.len() as u64);
        out.extend_from_slice(&body);
        self.body = body;
    }

    fn payload(&mut self, event: &Event, slot: usize, body: &mut Vec<u8>) {
        match event {
            Event::Progress | Event::Arrival(Arrival::IrqWindow | Arrival::Stop) => {}
            Event::Arrival(Arrival::Timer { periods }) => {
                if *periods != 1 {
                    put_varint(body, u64::from(*periods));
                }
            }
            Event::Arrival(Arrival::Frame(bytes) | Arrival::Console(bytes)) => {
                body.extend_from_slice(bytes);
            }
            Event::Arrival(Arrival::DiskDone { tag, ok, data }) => {
                put_varint(body, u64::from(*tag));
                body.push(u8::from(*ok));
                body.extend_from_slice(data);
            }
            Event::Arrival(Arrival::DiskRead { tag }) => put_varint(body, u64::from(*tag)),
            Event::Arrival(Arrival::Clock { wall_ns }) => {
                put_zigzag(body, *wall_ns, &mut self.deltas.answer[slot]);
            }
            Event::Answer {
                question: Question::Entropy,
                value,
            } => body.extend_from_slice(&value.to_le_bytes()),
            Event::Answer { question, value } => {
                if let Question::PitElapsed(channel) = question {
                    body.push(*channel);
                }
                put_zigzag(body, *value, &mut self.deltas.answer[slot]);
            }
            Event::Output { digest } => body.extend_from_slice(&digest.to_le_bytes()),
            Event::State {
                first_page,
                pages,
                digest,
            } => {
                body.extend_from_slice(&to_bytes(&(*first_page, *pages, *digest)));
            }
            Event::Left { digest } => body.extend_from_slice(&digest.to_le_bytes()),
            Event::End { code, digest } => body.extend_from_slice(&to_bytes(&(*code, *digest))),
        }
    }
}

/// Turns bytes into entries.
#[derive(Clone, Debug, Default)]
pub struct Decoder {
    deltas: Deltas,
    /// Merged ticks have RIPs of their own: file formats before 4.
    merged_apart: bool,
    /// There is no [`Event::Left`]: file formats before 6.
    never_left: bool,
    /// There is no [`Arrival::Clock`]: file formats before 7.
    no_clock: bool,
    /// The data of every disk read is in the log: files.
    all_data: bool,
    offset: u64,
}

impl Decoder {
    /// A decoder at the beginning of a stream that is that of a run, too.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A decoder at the beginning of a stream whose first entry stands at `place`.
    #[must_use]
    pub fn at(place: LogPlace) -> Self {
        let mut decoder = Self::default();
        decoder.deltas.place = place;
        decoder
    }

    /// A decoder at the beginning of the entries of a file of format `version`, the first of which stands at
    /// `place`.
    #[must_use]
    pub(crate) fn of_format(version: u32, place: LogPlace) -> Self {
        Self {
            merged_apart: version < 4,
            never_left: version < 6,
            no_clock: version < 7,
            all_data: true,
            ..Self::at(place)
        }
    }

    /// The place of the next entry.
    #[must_use]
    pub fn place(&self) -> LogPlace {
        self.deltas.place
    }

    /// Takes one entry from the front of `bytes`.
    ///
    /// # Errors
    /// [`LogError::Malformed`] naming the byte (counted over everything decoded so far) and the entry.
    /// After an error the decoder is of no more use.
    pub fn decode(&mut self, bytes: &mut &[u8]) -> Result<LogEntry, LogError> {
        let before = bytes.len();
        let entry = self.entry(bytes).map_err(|what| LogError::Malformed {
            what: what.into(),
            offset: self.offset,
            entry: self.deltas.place.index.0,
        })?;
        self.offset += (before - bytes.len()) as u64;
        self.deltas.place = LogPlace {
            index: self.deltas.place.index.next(),
            clock: entry.clock,
        };
        Ok(entry)
    }

    fn entry(&mut self, bytes: &mut &[u8]) -> Result<LogEntry, &'static str> {
        let length = usize::try_from(take_varint(bytes)?).map_err(|_| "entry too long")?;
        if length > ENTRY_MAX {
            return Err("entry too long");
        }
        let mut body = take(bytes, length)?;
        let body = &mut body;
        let head = take(body, 1)?[0];
        let kind = head & !(wire::NO_RIP | wire::ANCHOR);
        let slot = usize::from(kind);
        if slot >= wire::KINDS {
            return Err("entry of unknown kind");
        }
        let clock = self
            .deltas
            .place
            .clock
            .0
            .checked_add(take_varint(body)?)
            .ok_or("clock overflows")?;
        let mut anchor = Anchor::NONE;
        let stand = if kind == wire::PROGRESS {
            if head != kind {
                return Err("progress with a register flag");
            }
            None
        } else {
            let told_from = if self.merged_apart {
                kind
            } else {
                rip_kind(kind)
            };
            let [last, other] = &mut self.deltas.rip[usize::from(told_from)];
            match head & wire::NO_RIP {
                wire::OTHER_RIP => std::mem::swap(last, other),
                0 => {
                    *other = *last;
                    take_zigzag(body, last)?;
                }
                _ => {}
            }
            let rip = (head & wire::NO_RIP != wire::NO_RIP).then_some(*last);
            let check = take(body, 4)?;
            let registers = RegisterDigest(u32::from_le_bytes(check.try_into().expect("4 bytes")));
            if head & wire::ANCHOR != 0 {
                anchor = Anchor(take_varint(body)?);
                if anchor == Anchor::NONE || anchor.ns().is_none() {
                    return Err("anchor out of range");
                }
            }
            Some(Stand { rip, registers })
        };
        let event = self.event(kind, body)?;
        let anchored = head & wire::ANCHOR != 0 || head & wire::NO_RIP == wire::NO_RIP;
        if anchored && !matches!(event, Event::Arrival(_)) {
            return Err("an anchor, or no RIP, in an entry that is no arrival");
        }
        if !body.is_empty() {
            return Err("bytes left over in an entry");
        }
        Ok(LogEntry {
            clock: Clock(clock),
            stand,
            anchor,
            event,
        })
    }

    fn event(&mut self, kind: u8, body: &mut &[u8]) -> Result<Event, &'static str> {
        let slot = usize::from(kind);
        let rest = |body: &mut &[u8]| std::mem::take(body).to_vec();
        let blob = "undecodable payload";
        Ok(match kind {
            wire::PROGRESS => Event::Progress,
            wire::TIMER => Event::Arrival(Arrival::Timer { periods: 1 }),
            wire::TIMER_MANY => match u32::try_from(take_varint(body)?) {
                Ok(periods) if periods > 1 => Event::Arrival(Arrival::Timer { periods }),
                _ => return Err("timer periods out of range"),
            },
            wire::FRAME => Event::Arrival(Arrival::Frame(rest(body))),
            wire::CONSOLE => Event::Arrival(Arrival::Console(rest(body))),
            wire::DISK_DONE => Event::Arrival(disk_done(body)?),
            wire::DISK_READ if !self.all_data => Event::Arrival(Arrival::DiskRead {
                tag: disk_tag(body)?,
            }),
            wire::CLOCK if !self.no_clock => Event::Arrival(Arrival::Clock {
                wall_ns: take_zigzag(body, &mut self.deltas.answer[slot])?,
            }),
            wire::IRQ_WINDOW => Event::Arrival(Arrival::IrqWindow),
            wire::STOP => Event::Arrival(Arrival::Stop),
            wire::ENTROPY => {
                let value = u64::from_le_bytes(take(body, 8)?.try_into().expect("8 bytes"));
                let question = Question::Entropy;
                Event::Answer { question, value }
            }
            wire::TSC | wire::WALL_CLOCK | wire::PIT | wire::PM_TIMER => {
                let question = match kind {
                    wire::TSC => Question::Tsc,
                    wire::WALL_CLOCK => Question::WallClock,
                    wire::PM_TIMER => Question::PmElapsed,
                    _ => match take(body, 1)?[0] {
                        channel @ 0..=2 => Question::PitElapsed(channel),
                        _ => return Err("PIT channel out of range"),
                    },
                };
                let value = take_zigzag(body, &mut self.deltas.answer[slot])?;
                Event::Answer { question, value }
            }
            wire::OUTPUT => {
                let digest = take(body, 4)?.try_into().expect("4 bytes");
                Event::Output {
                    digest: u32::from_le_bytes(digest),
                }
            }
            wire::STATE => {
                let (first_page, pages, digest) = from_bytes(body).map_err(|_| blob)?;
                *body = &[];
                Event::State {
                    first_page,
                    pages,
                    digest,
                }
            }
            wire::END => {
                let (code, digest) = from_bytes(body).map_err(|_| blob)?;
                *body = &[];
                Event::End { code, digest }
            }
            wire::LEFT if !self.never_left => {
                let digest = take(body, 8)?.try_into().expect("8 bytes");
                Event::Left {
                    digest: u64::from_le_bytes(digest),
                }
            }
            _ => return Err("entry of unknown kind"),
        })
    }
}

fn disk_tag(body: &mut &[u8]) -> Result<u32, &'static str> {
    u32::try_from(take_varint(body)?).map_err(|_| "disk tag out of range")
}

fn disk_done(body: &mut &[u8]) -> Result<Arrival, &'static str> {
    let tag = disk_tag(body)?;
    let ok = match take(body, 1)?[0] {
        0 => false,
        1 => true,
        _ => return Err("disk status out of range"),
    };
    let data = std::mem::take(body).to_vec();
    Ok(Arrival::DiskDone { tag, ok, data })
}

#[cfg(test)]
mod tests;
