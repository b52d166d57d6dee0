//! How a piece of a machine's state goes over the wire: as it is, or compressed where that is sooner there.
//!
//! ```text
//!  payload of a state frame; an empty one says that there is no more
//!  byte  0     1               5
//!      ┌─────┬────────────────────────────────────┐
//!      │ 0   │ the piece                          │  as it is
//!      ├─────┼───────────────┬────────────────────┤
//!      │ 1   │ length u32 LE │ the piece as one   │  compressed; `length` is the piece's, at most 256 KiB
//!      │     │               │ block of LZ4       │
//!      ├─────┼───────────────┴────────────────────┘
//!      │ 2   │  nothing: from here on the guest stands still
//!      └─────┘
//! ```
//!
//! **The rule.** It is measured, for either form, how long a piece took: from when it was whole until the
//! socket had taken it, and the wait for the pace it is held to. Compressing is part of that.
//!
//! * What a form costs is the median of its last three pieces, for each byte of state. One piece that the
//!   host was busy for moves nothing.
//! * A piece goes compressed if that costs less by a fifth at least; else as it is.
//! * The first piece goes as it is, and the second compressed.
//! * Now and then a piece goes in the form that is not chosen, since the wire may have changed: after 16
//!   pieces, then after twice as many each time that changed nothing, up to 64.
//! * No piece is compressed to try it while pieces go faster as they are than the compressor takes them in:
//!   it could not win. So on a fast wire the second piece is the only one that is compressed.
//!
//! A piece that does not shrink goes as it is, whatever was chosen.
//!
//! What is inside is not checked here but for its length: a frame has a checksum over what is sent, each part of
//! a snapshot one over what is restored.

use crate::error::FrameError;
use crate::framing::{FrameKind, HEADER_LEN, PAYLOAD_MAX, seal};
use lz4_flex::block::{
    CompressTable, compress_into_with_table, decompress_into, get_maximum_output_size,
};

/// Most bytes of a state in one piece.
pub(crate) const PIECE_MAX: usize = 256 << 10;
/// Bytes of a frame before a piece as it is.
const PLAIN_HEAD: usize = HEADER_LEN + 1;
/// Bytes of a frame before a compressed piece.
const PACKED_HEAD: usize = PLAIN_HEAD + 4;
const _: () = assert!(PLAIN_HEAD - HEADER_LEN + PIECE_MAX <= PAYLOAD_MAX);

/// Of smaller pieces the time says little.
const MEASURED_MIN: usize = PIECE_MAX / 4;
/// Pieces between two trials of the other form, at first.
const GAP_MIN: u32 = 16;
/// The same where trials change nothing.
const GAP_MAX: u32 = 64;

/// How a piece goes. The numbers stand in frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Form {
    /// As it is.
    Plain = 0,
    /// Compressed.
    Packed = 1,
}

/// What the last three pieces cost, in picoseconds a byte.
#[derive(Clone, Copy, Debug, Default)]
struct Cost {
    last: [u64; 3],
    known: usize,
}

impl Cost {
    fn note(&mut self, cost: u64) {
        self.last.rotate_right(1);
        self.last[0] = cost;
        self.known = self.last.len().min(self.known + 1);
    }

    /// Their median; of two the lesser. `None` if there was none.
    fn median(&self) -> Option<u64> {
        let mut known = self.last;
        let known = &mut known[..self.known];
        known.sort_unstable();
        known.get(known.len().saturating_sub(1) / 2).copied()
    }
}

/// What a piece took on its way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Took {
    pub form: Form,
    /// Bytes of the piece.
    pub bytes: usize,
    /// Microseconds the compressor took.
    pub packing_us: u64,
    /// Microseconds in all.
    pub us: u64,
}

/// Chooses the form of each piece by what the last ones took. It reads no clock.
///
/// Use: [`Self::next`], then [`Self::took`], and [`Self::held`] for each wait behind it.
#[derive(Debug)]
pub(crate) struct Rule {
    chosen: Form,
    plain: Cost,
    packed: Cost,
    /// The compressor alone.
    packing: Cost,
    /// Pieces since the other form was last tried.
    since: u32,
    /// After how many it is tried.
    gap: u32,
    /// The last piece, which may be held back still.
    last: Option<Took>,
    was_held: bool,
}

impl Default for Rule {
    fn default() -> Self {
        Self {
            chosen: Form::Plain,
            plain: Cost::default(),
            packed: Cost::default(),
            packing: Cost::default(),
            since: 0,
            gap: GAP_MIN,
            last: None,
            was_held: false,
        }
    }
}

impl Rule {
    /// How the next piece is to go.
    pub(crate) fn next(&mut self) -> Form {
        if let Some(last) = self.last.take() {
            self.note(last);
        }
        match self.chosen {
            Form::Plain if self.packed_is_due() => Form::Packed,
            Form::Packed if self.since >= self.gap => Form::Plain,
            chosen => chosen,
        }
    }

    /// Whether it is to be tried whether compressed pieces are sooner there.
    fn packed_is_due(&self) -> bool {
        match (self.plain.median(), self.packing.median()) {
            (None, _) => false,
            (_, None) => true,
            (Some(plain), Some(packing)) => self.since >= self.gap && plain > packing,
        }
    }

    /// What the piece took that went last.
    pub(crate) fn took(&mut self, took: Took) {
        self.last = Some(took);
    }

    /// So many microseconds it was waited behind the last piece, since more would have been too fast.
    pub(crate) fn held(&mut self, us: u64) {
        if let Some(last) = &mut self.last
            && us > 0
        {
            last.us += us;
            self.was_held = true;
        }
    }

    /// From now on nothing is held back: what was measured then holds no more.
    pub(crate) fn hold_no_more(&mut self) {
        if self.was_held {
            *self = Self::default();
        }
    }

    fn note(&mut self, took: Took) {
        if took.bytes < MEASURED_MIN {
            return;
        }
        let each = |us: u64| us * 1_000_000 / took.bytes as u64;
        match took.form {
            Form::Plain => self.plain.note(each(took.us)),
            Form::Packed => {
                self.packed.note(each(took.us));
                self.packing.note(each(took.packing_us));
            }
        }
        let best = match (self.plain.median(), self.packed.median()) {
            (Some(plain), Some(packed)) if packed <= plain - plain / 5 => Form::Packed,
            _ => Form::Plain,
        };
        if best != self.chosen {
            (self.chosen, self.since, self.gap) = (best, 0, GAP_MIN);
        } else if took.form != best {
            (self.since, self.gap) = (0, GAP_MAX.min(self.gap * 2));
        } else {
            self.since += 1;
        }
    }
}

/// A piece of a state that is gathered, and becomes a frame where it stands: all memory for that is taken once.
pub(crate) struct Piece {
    /// Room for the head of a frame, and the piece.
    plain: Vec<u8>,
    /// A compressed one, if there was one ever.
    packed: Vec<u8>,
    table: CompressTable,
}

impl Piece {
    pub(crate) fn new() -> Self {
        let mut plain = Vec::with_capacity(PLAIN_HEAD + PIECE_MAX);
        plain.resize(PLAIN_HEAD, 0);
        Self {
            plain,
            packed: Vec::new(),
            table: CompressTable::large(),
        }
    }

    /// Takes as much of `bytes` as there is room for; how many that are.
    pub(crate) fn gather(&mut self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(PIECE_MAX - self.len());
        self.plain.extend_from_slice(&bytes[..count]);
        count
    }

    pub(crate) fn len(&self) -> usize {
        self.plain.len() - PLAIN_HEAD
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn is_full(&self) -> bool {
        self.len() == PIECE_MAX
    }

    /// Nothing is gathered any more.
    pub(crate) fn clear(&mut self) {
        self.plain.truncate(PLAIN_HEAD);
    }

    /// The frame of it, compressed if that is wanted and shorter. An empty one has no form.
    pub(crate) fn frame(&mut self, form: Form) -> &[u8] {
        if self.is_empty() {
            let head = &mut self.plain[..HEADER_LEN];
            seal(FrameKind::State, head);
            return head;
        }
        if form == Form::Packed
            && let Some(length) = self.pack()
        {
            let frame = &mut self.packed[..length];
            seal(FrameKind::State, frame);
            return frame;
        }
        self.plain[HEADER_LEN] = Form::Plain as u8;
        seal(FrameKind::State, &mut self.plain);
        &self.plain
    }

    /// Compresses it behind the head of a frame. How long that frame is, if it is shorter than the other.
    fn pack(&mut self) -> Option<usize> {
        let piece = &self.plain[PLAIN_HEAD..];
        self.packed
            .resize(PACKED_HEAD + get_maximum_output_size(PIECE_MAX), 0);
        let (head, block) = self.packed.split_at_mut(PACKED_HEAD);
        let packed = compress_into_with_table(piece, block, &mut self.table).ok()?;
        let length = u32::try_from(piece.len()).expect("a piece is bounded");
        head[HEADER_LEN] = Form::Packed as u8;
        head[PLAIN_HEAD..].copy_from_slice(&length.to_le_bytes());
        let length = PACKED_HEAD + packed;
        (length < self.plain.len()).then_some(length)
    }
}

/// The payload that says that the guest stands still from here on.
pub(crate) const STANDS_STILL: [u8; 1] = [2];

/// What a payload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Came {
    /// A piece.
    Piece,
    /// That there is no more.
    All,
    /// That the guest stands still.
    StandsStill,
}

/// Puts the piece that is in `payload`, if one is, into `piece`, in place of what is there.
///
/// # Errors
/// If it is nothing a primary says. What is in `piece` then has no meaning, and is not over [`PIECE_MAX`].
pub(crate) fn unpack(payload: &[u8], piece: &mut Vec<u8>) -> Result<Came, FrameError> {
    const PLAIN: u8 = Form::Plain as u8;
    const PACKED: u8 = Form::Packed as u8;
    let malformed = |what| {
        let frame = FrameKind::State.name();
        FrameError::Malformed { frame, what }
    };
    match payload {
        [] => return Ok(Came::All),
        _ if *payload == STANDS_STILL => return Ok(Came::StandsStill),
        [PLAIN, bytes @ ..] if (1..=PIECE_MAX).contains(&bytes.len()) => {
            piece.clear();
            piece.extend_from_slice(bytes);
        }
        [PLAIN, ..] => return Err(malformed("a piece of no length there is")),
        [PACKED, rest @ ..] => {
            let (length, block) = rest
                .split_first_chunk()
                .ok_or_else(|| malformed("too short"))?;
            let length = u32::from_le_bytes(*length) as usize;
            if !(1..=PIECE_MAX).contains(&length) {
                return Err(malformed("a piece of no length there is"));
            }
            piece.resize(length, 0);
            if decompress_into(block, piece).ok() != Some(length) {
                return Err(malformed("not what was compressed"));
            }
        }
        _ => return Err(malformed("unknown form")),
    }
    Ok(Came::Piece)
}

#[cfg(test)]
#[path = "packing_tests.rs"]
mod tests;
