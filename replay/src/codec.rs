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
//! This is the one module that uses bincode; everything decoded is under a size limit.

use crate::anchor::Anchor;
use crate::error::LogError;
use crate::event::{Arrival, Event, LogEntry, Question, Stand};
use crate::point::{Clock, RegisterDigest};
use serde::{Serialize, de::DeserializeOwned};

/// Most bytes of one encoded entry. A disk request is bounded by 256 KiB, a frame by 64 KiB.
pub const ENTRY_MAX: usize = 1 << 20;
/// Most bytes [`from_bytes`] accepts: room for the largest state there is, that of a disk with 64 writes of
/// 256 KiB under way.
pub const BLOB_MAX: usize = 32 << 20;
/// Most bytes that bincode may count for one encoded byte. Its limit is on what values take when decoded,
/// not on what they take encoded: a number of 128 bits, or of 64, may be one byte.
const COUNTED_MAX: usize = 16;

/// Kinds on the wire. Numbers are for ever: golden logs of every format version must still be read.
mod wire {
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
    pub const KINDS: usize = 26;
    /// RIP is that of the last entry of the same kind: the block trap, mostly.
    pub const SAME_RIP: u8 = 0x80;
    /// RIP is that of the entry of the same kind before: a guest alternates between trap and halt.
    pub const OTHER_RIP: u8 = 0x40;
    /// RIP is not recorded: arrivals in derived time.
    pub const NO_RIP: u8 = SAME_RIP | OTHER_RIP;
    /// An anchor follows the register digest.
    pub const ANCHOR: u8 = 0x20;
}

/// A value for which bincode counts at most `COUNTED` bytes, and how many encoded bytes it took.
fn decode<const COUNTED: usize, T: DeserializeOwned>(
    bytes: &[u8],
) -> Result<(T, usize), bincode::error::DecodeError> {
    let config = bincode::config::standard().with_limit::<COUNTED>();
    bincode::serde::decode_from_slice(bytes, config)
}

/// A value and how many bytes it took. Whatever is whole in `bytes` is decoded; the limit is there so that
/// a length within, which nobody has checked, sizes no allocation far beyond what was received.
fn decode_any<T: DeserializeOwned>(
    bytes: &[u8],
) -> Result<(T, usize), bincode::error::DecodeError> {
    const SMALL: usize = 1 << 10;
    const MEDIUM: usize = 64 << 10;
    const LARGE: usize = 1 << 20;
    let length = bytes.len();
    if length <= SMALL {
        decode::<{ SMALL * COUNTED_MAX }, T>(bytes)
    } else if length <= MEDIUM {
        decode::<{ MEDIUM * COUNTED_MAX }, T>(bytes)
    } else if length <= LARGE {
        decode::<{ LARGE * COUNTED_MAX }, T>(bytes)
    } else {
        decode::<{ BLOB_MAX * COUNTED_MAX }, T>(bytes)
    }
}

/// Any plain value as bytes (device states, configurations, headers).
///
/// # Panics
/// If the value cannot be serialised at all, which is a bug of its type.
#[must_use]
pub fn to_bytes<T: Serialize>(value: &T) -> Vec<u8> {
    bincode::serde::encode_to_vec(value, bincode::config::standard())
        .expect("plain values serialise")
}

/// The value in `bytes`, which must hold nothing else and at most [`BLOB_MAX`] bytes.
///
/// # Errors
/// [`LogError::Malformed`] for anything but exactly one value.
pub fn from_bytes<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, LogError> {
    let malformed = |what: String, offset: usize| LogError::Malformed {
        what,
        offset: offset as u64,
        entry: 0,
    };
    if bytes.len() > BLOB_MAX {
        return Err(malformed("a value of too many bytes".into(), BLOB_MAX));
    }
    let (value, used) =
        decode_any(bytes).map_err(|e| malformed(format!("undecodable value: {e}"), 0))?;
    if used != bytes.len() {
        return Err(malformed("bytes left over after a value".into(), used));
    }
    Ok(value)
}

/// The kind whose RIPs those of `kind` are told from: merged ticks come where single ones do.
fn rip_kind(kind: u8) -> u8 {
    match kind {
        wire::TIMER_MANY => wire::TIMER,
        other => other,
    }
}

/// What both directions remember of the entries before.
#[derive(Clone, Debug)]
struct Deltas {
    clock: u64,
    /// The last two of each kind that differed, the later one first.
    rip: [[u64; 2]; wire::KINDS],
    answer: [u64; wire::KINDS],
}

impl Default for Deltas {
    fn default() -> Self {
        // Images begin at 1 MiB.
        let rip = [[0x10_0000; 2]; wire::KINDS];
        Self {
            clock: 0,
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
    /// An encoder at the beginning of a stream.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
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
            .checked_sub(self.deltas.clock)
            .expect("the clock never steps back");
        self.deltas.clock = entry.clock.0;
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
    entries: u64,
    offset: u64,
}

impl Decoder {
    /// A decoder at the beginning of a stream.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A decoder at the beginning of a stream written before file format 4, which told the RIPs of
    /// merged timer ticks from each other.
    #[must_use]
    pub fn before_format_4() -> Self {
        Self {
            merged_apart: true,
            ..Self::default()
        }
    }

    /// Entries decoded so far.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.entries
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
            entry: self.entries,
        })?;
        self.offset += (before - bytes.len()) as u64;
        self.entries += 1;
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
            .clock
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
        self.deltas.clock = clock;
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
            wire::DISK_DONE => {
                let tag = u32::try_from(take_varint(body)?).map_err(|_| "disk tag out of range")?;
                let ok = match take(body, 1)?[0] {
                    0 => false,
                    1 => true,
                    _ => return Err("disk status out of range"),
                };
                Event::Arrival(Arrival::DiskDone {
                    tag,
                    ok,
                    data: rest(body),
                })
            }
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
            _ => return Err("entry of unknown kind"),
        })
    }
}

fn kind_of(event: &Event) -> u8 {
    match event {
        Event::Progress => wire::PROGRESS,
        Event::Answer { question, .. } => match question {
            Question::Tsc => wire::TSC,
            Question::WallClock => wire::WALL_CLOCK,
            Question::PitElapsed(_) => wire::PIT,
            Question::PmElapsed => wire::PM_TIMER,
            Question::Entropy => wire::ENTROPY,
        },
        Event::Arrival(arrival) => match arrival {
            Arrival::Timer { periods: 1 } => wire::TIMER,
            Arrival::Timer { .. } => wire::TIMER_MANY,
            Arrival::Frame(_) => wire::FRAME,
            Arrival::DiskDone { .. } => wire::DISK_DONE,
            Arrival::Console(_) => wire::CONSOLE,
            Arrival::IrqWindow => wire::IRQ_WINDOW,
            Arrival::Stop => wire::STOP,
        },
        Event::Output { .. } => wire::OUTPUT,
        Event::State { .. } => wire::STATE,
        Event::End { .. } => wire::END,
    }
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push((value & 0x7f) as u8);
}

fn take_varint(bytes: &mut &[u8]) -> Result<u64, &'static str> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = take(bytes, 1)?[0];
        let bits = u64::from(byte & 0x7f);
        if shift == 63 && bits > 1 {
            return Err("number too large");
        }
        value |= bits << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err("number too long")
}

fn put_zigzag(out: &mut Vec<u8>, value: u64, last: &mut u64) {
    let delta = value.wrapping_sub(*last).cast_signed();
    *last = value;
    put_varint(out, (delta << 1 ^ delta >> 63).cast_unsigned());
}

fn take_zigzag(bytes: &mut &[u8], last: &mut u64) -> Result<u64, &'static str> {
    let raw = take_varint(bytes)?;
    let delta = (raw >> 1) ^ (raw & 1).wrapping_neg();
    *last = last.wrapping_add(delta);
    Ok(*last)
}

fn take<'a>(bytes: &mut &'a [u8], count: usize) -> Result<&'a [u8], &'static str> {
    let (head, tail) = bytes.split_at_checked(count).ok_or("entry cut short")?;
    *bytes = tail;
    Ok(head)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::point::{ExecPoint, Here};
    use proptest::prelude::*;

    fn event() -> impl Strategy<Value = Event> {
        let bytes = || proptest::collection::vec(any::<u8>(), 0..64);
        prop_oneof![
            (1..9u32).prop_map(|periods| Event::Arrival(Arrival::Timer { periods })),
            bytes().prop_map(|b| Event::Arrival(Arrival::Frame(b))),
            bytes().prop_map(|b| Event::Arrival(Arrival::Console(b))),
            (any::<u32>(), any::<bool>(), bytes())
                .prop_map(|(tag, ok, data)| Event::Arrival(Arrival::DiskDone { tag, ok, data })),
            Just(Event::Arrival(Arrival::IrqWindow)),
            Just(Event::Arrival(Arrival::Stop)),
            any::<u64>().prop_map(|value| Event::Answer {
                question: Question::Tsc,
                value
            }),
            any::<u64>().prop_map(|value| Event::Answer {
                question: Question::WallClock,
                value
            }),
            (0..3u8, any::<u64>()).prop_map(|(c, value)| Event::Answer {
                question: Question::PitElapsed(c),
                value
            }),
            (any::<bool>(), any::<u64>()).prop_map(|(entropy, value)| Event::Answer {
                question: if entropy {
                    Question::Entropy
                } else {
                    Question::PmElapsed
                },
                value
            }),
            any::<u32>().prop_map(|digest| Event::Output { digest }),
            Just(Event::Progress),
            (any::<u64>(), any::<u32>(), any::<u64>()).prop_map(|(first_page, pages, digest)| {
                Event::State {
                    first_page,
                    pages,
                    digest,
                }
            }),
            (any::<u32>(), any::<u64>()).prop_map(|(code, digest)| Event::End { code, digest }),
        ]
    }

    fn entries() -> impl Strategy<Value = Vec<LogEntry>> {
        let anchor = proptest::option::of(prop_oneof![0..4u64, 0..u64::MAX / Anchor::STEP_NS]);
        let one = (0..1u64 << 40, any::<u64>(), any::<u32>(), event(), anchor);
        proptest::collection::vec(one, 0..40).prop_map(|raw| {
            let mut clock = 0;
            raw.into_iter()
                .map(|(delta, rip, check, event, anchor)| {
                    clock += delta;
                    match event {
                        Event::Progress => LogEntry::progress(Clock(clock)),
                        Event::Arrival(arrival) => {
                            LogEntry::arrival(&here(clock, rip, check), arrival, anchor.map(Anchor))
                        }
                        event => LogEntry::at(&here(clock, rip, check), event),
                    }
                })
                .collect()
        })
    }

    fn here(clock: u64, rip: u64, check: u32) -> Here {
        let (clock, rcx) = (Clock(clock), 0);
        Here {
            point: ExecPoint { clock, rip, rcx },
            registers: RegisterDigest(check),
        }
    }

    fn encode(entries: &[LogEntry]) -> Vec<u8> {
        let (mut encoder, mut bytes) = (Encoder::new(), Vec::new());
        for entry in entries {
            encoder.encode(entry, &mut bytes);
        }
        bytes
    }

    fn decode(mut bytes: &[u8]) -> Result<Vec<LogEntry>, LogError> {
        let (mut decoder, mut entries) = (Decoder::new(), Vec::new());
        while !bytes.is_empty() {
            entries.push(decoder.decode(&mut bytes)?);
        }
        Ok(entries)
    }

    proptest! {
        #[test]
        fn entries_survive_the_codec(entries in entries()) {
            prop_assert_eq!(decode(&encode(&entries)).unwrap(), entries);
        }

        #[test]
        fn a_cut_stream_yields_a_prefix_and_an_error(entries in entries(), cut in any::<prop::sample::Index>()) {
            let bytes = encode(&entries);
            prop_assume!(!bytes.is_empty());
            let cut = cut.index(bytes.len());
            let (mut decoder, mut rest) = (Decoder::new(), &bytes[..cut]);
            let mut got = Vec::new();
            while !rest.is_empty() {
                match decoder.decode(&mut rest) {
                    Ok(entry) => got.push(entry),
                    Err(_) => break,
                }
            }
            prop_assert!(got.len() < entries.len());
            prop_assert_eq!(&got[..], &entries[..got.len()]);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _ = decode(&bytes);
        }
    }

    /// What is encoded in `length` bytes is decoded.
    fn returns<T>(value: &T, length: usize)
    where
        T: Serialize + DeserializeOwned + PartialEq,
    {
        let bytes = to_bytes(value);
        assert_eq!(bytes.len(), length);
        assert!(from_bytes::<T>(&bytes).unwrap() == *value);
    }

    #[test]
    fn the_largest_values_are_decoded_whatever_they_are_made_of() {
        // Where the limit steps, and the largest of all: a length of 5 bytes, or of 3, before them.
        for length in [1 << 10, 1 << 16] {
            returns(&vec![0u64; length - 3], length);
            returns(&vec![0u128; length - 3], length);
            let count = (length - 3) / 9;
            let prefix = if count <= 250 { 1 } else { 3 };
            returns(&vec![u64::MAX; count], prefix + 9 * count);
            returns(&"x".repeat(length - 3), length);
        }
        returns(&vec![0u64; (1 << 20) - 5], 1 << 20);
        returns(&vec![(0u32, false, Some(0u16)); 1 << 20], 5 + (4 << 20));
        returns(&vec![0xaau8; BLOB_MAX - 5], BLOB_MAX);
        returns(&"x".repeat(BLOB_MAX - 5), BLOB_MAX);
    }

    #[test]
    fn a_value_beyond_the_limit_is_refused() {
        let bytes = to_bytes(&vec![0xaau8; BLOB_MAX - 4]);
        let error = from_bytes::<Vec<u8>>(&bytes).unwrap_err();
        assert!(error.to_string().contains("too many bytes"), "{error}");
        // A length that is not there is refused before it is made room for.
        let lengths = [u64::MAX, 1 << 40, 1 << 24];
        for bytes in lengths.map(|length| to_bytes(&length)) {
            let error = from_bytes::<String>(&bytes).unwrap_err();
            assert!(error.to_string().contains("LimitExceeded"), "{error}");
        }
    }

    #[test]
    fn the_largest_entry_is_decoded_and_no_larger_one() {
        // Kind, clock delta, RIP as before, register digest.
        let head = 1 + 4 + 1 + 4;
        let frame = |length: usize| {
            let event = Event::Arrival(Arrival::Frame(vec![7; length]));
            LogEntry::at(&here(1 << 27, 0x10_0001, 7), event)
        };
        let largest = [frame(ENTRY_MAX - head)];
        let bytes = encode(&largest);
        assert_eq!(bytes.len(), 3 + ENTRY_MAX);
        assert_eq!(decode(&bytes).unwrap(), largest);
        let disk = LogEntry::at(
            &here(1 << 27, 0x10_0001, 7),
            Event::Arrival(Arrival::DiskDone {
                tag: u32::MAX,
                ok: true,
                data: vec![1; 256 << 10],
            }),
        );
        assert_eq!(
            decode(&encode(std::slice::from_ref(&disk))).unwrap(),
            [disk]
        );
        let mut larger = Vec::new();
        put_varint(&mut larger, ENTRY_MAX as u64 + 1);
        larger.resize(larger.len() + ENTRY_MAX + 1, 0);
        assert!(decode(&larger).is_err());
    }

    #[test]
    fn a_timer_interrupt_costs_at_most_twelve_bytes() {
        // A 1 GHz block clock, ten ticks a second, the vCPU now in the trap, now halted.
        let tick = |n: u64| {
            let here = here(n * 100_000_000, 0x10_00e9 + (n % 2) * 0xae0, n as u32);
            LogEntry::arrival(&here, Arrival::Timer { periods: 1 }, None)
        };
        longest(12, (1..1000).map(tick));
    }

    #[test]
    fn a_late_one_that_stands_for_several_does_too() {
        // A host that does not let the vCPU run for up to 127 periods, now and then.
        let tick = |n: u64| {
            let here = here(n * 100_000_000, 0x10_00e9 + (n % 2) * 0xae0, n as u32);
            let periods = if n.is_multiple_of(10) { 127 } else { 1 };
            LogEntry::arrival(&here, Arrival::Timer { periods }, None)
        };
        longest(12, (1..1000).map(tick));
    }

    fn longest(limit: usize, entries: impl Iterator<Item = LogEntry>) {
        let (mut encoder, mut bytes) = (Encoder::new(), Vec::new());
        for entry in entries {
            bytes.clear();
            encoder.encode(&entry, &mut bytes);
            assert!(bytes.len() <= limit, "{} bytes for {entry:?}", bytes.len());
        }
    }

    /// A RIP anywhere in the 64-bit address space, another one each time.
    fn anywhere(n: u64) -> u64 {
        n.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    #[test]
    fn so_it_does_in_derived_time_wherever_the_guest_stands() {
        // Up to 2^28 counts and 2^27 ns (134 ms) of waiting from one tick to the next.
        let tick = |n: u64| {
            let here = here(n * ((1 << 28) - 1), anywhere(n), n as u32);
            let anchor = Anchor::reaching(0, (1 << 27) - Anchor::STEP_NS);
            LogEntry::arrival(&here, Arrival::Timer { periods: 1 }, Some(anchor))
        };
        longest(12, (0..1000).map(tick));
    }

    #[test]
    fn the_documented_example_is_encoded_so() {
        let here = here(3_800_000, 0xffff_ffff_8100_0000, 0x89ab_cdef);
        let anchor = Anchor::reaching(here.point.clock.0, here.point.clock.0 + 150_000);
        let entry = LogEntry::arrival(&here, Arrival::Timer { periods: 1 }, Some(anchor));
        let bytes = [10, 0xe1, 0xc0, 0xf7, 0xe7, 1, 0xef, 0xcd, 0xab, 0x89, 0x13];
        assert_eq!(encode(&[entry]), bytes);
    }

    #[test]
    fn a_frame_does_not_cost_more_in_derived_time() {
        // Half a minute of silence before each.
        let frame = |n: u64| {
            let here = here(n * ((1 << 35) - 1), anywhere(n), n as u32);
            let anchor = Anchor::reaching(0, 30_000_000_000);
            LogEntry::arrival(&here, Arrival::Frame(vec![0; 1514]), Some(anchor))
        };
        longest(1514 + 16, (0..100).map(frame));
    }

    #[test]
    fn anchors_out_of_place_are_refused() {
        let with = |kind: u8, rest: &[u8]| {
            let body = [&[kind, 0][..], rest].concat();
            decode(&[&[body.len() as u8][..], &body].concat())
        };
        let both = wire::NO_RIP | wire::ANCHOR;
        assert!(with(wire::TIMER | both, &[0, 0, 0, 0, 5]).is_ok());
        assert!(with(wire::TIMER | both, &[0, 0, 0, 0, 0]).is_err(), "zero");
        let huge = [0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f];
        assert!(with(wire::TIMER | both, &huge).is_err(), "over 64 bits");
        assert!(with(wire::OUTPUT | both, &[0, 0, 0, 0, 5, 1, 2, 3, 4]).is_err());
        assert!(with(wire::OUTPUT | wire::NO_RIP, &[0, 0, 0, 0, 1, 2, 3, 4]).is_err());
        assert!(with(wire::PROGRESS | wire::ANCHOR, &[5]).is_err());
    }

    #[test]
    fn a_frame_costs_at_most_sixteen_bytes_more_than_its_length() {
        let frame = |n: u64| {
            let event = Event::Arrival(Arrival::Frame(vec![0; 1514]));
            LogEntry::at(&here(n * 30_000_000, (n % 2) << 31, 7), event)
        };
        let entries: Vec<_> = (0..100).map(frame).collect();
        assert!(encode(&entries).len() <= 100 * (1514 + 16));
    }
}
