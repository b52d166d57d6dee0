//! Frames on the wire.
//!
//! ```text
//!  byte  0      1      2      3      4      5      6      7      8 ...
//!      ┌──────┬────────────────────┬───────────────────────────┬───────────────┐
//!      │ kind │ length             │ crc32                     │ payload       │
//!      │ u8   │ u24 LE             │ u32 LE                    │ length bytes  │
//!      └──────┴────────────────────┴───────────────────────────┴───────────────┘
//!       `length` counts the payload only, at most 1152 KiB; the CRC covers bytes 0..4 and the payload
//! ```
//!
//! This header, the magic number and the place of the version are the same in every version of the
//! protocol, so that two versions can always tell each other apart. Payloads: [`crate::messages`].
//!
//! [`FrameBuffer`] has a fixed size: nothing is ever allocated by a length the peer chose.

use crate::error::FrameError;
use crate::messages::{self, Ack, Bye, Entries, Heartbeat, Hello, HelloReply, Probe, Settled};
use replay::{Base, DiskPart, ViewNumber};
use std::num::NonZeroU16;

/// Version of the protocol.
pub const VERSION: u16 = 10;
/// Bytes of a header.
pub const HEADER_LEN: usize = 8;
/// Most bytes of a payload: the largest entry, behind as many smaller ones as a frame takes.
pub const PAYLOAD_MAX: usize = replay::codec::ENTRY_MAX + (128 << 10);
/// Room of a [`FrameBuffer`]: one frame of the largest size and what usually comes behind it.
const BUFFER_LEN: usize = HEADER_LEN + PAYLOAD_MAX + (64 << 10);

const _: () = assert!(HEADER_LEN == size_of::<u8>() + 3 + size_of::<u32>());
const _: () = assert!(HEADER_LEN <= 12 && PAYLOAD_MAX < 1 << 24);

/// What a frame is. The numbers are for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// The primary greets.
    Hello = 1,
    /// The backup answers.
    HelloReply = 2,
    /// Log entries.
    Entries = 3,
    /// What the backup has; also its heartbeat.
    Ack = 4,
    /// What the primary released; also its heartbeat.
    Heartbeat = 5,
    /// An orderly end.
    Bye = 6,
    /// A question whose answer, the same, tells how far apart the two are.
    Probe = 7,
    /// How the link watches itself, now that the distance is known.
    Settled = 8,
    /// Where the log of a running machine begins.
    Base = 9,
    /// Part of a running machine's state.
    State = 10,
    /// The joiner is the backup now.
    Welcome = 11,
    /// Where the primary waits once it has left the machine.
    Yield = 12,
    /// Part of the contents of a running machine's disk.
    Disk = 13,
}

impl FrameKind {
    fn from_u8(kind: u8) -> Option<Self> {
        Some(match kind {
            1 => Self::Hello,
            2 => Self::HelloReply,
            3 => Self::Entries,
            4 => Self::Ack,
            5 => Self::Heartbeat,
            6 => Self::Bye,
            7 => Self::Probe,
            8 => Self::Settled,
            9 => Self::Base,
            10 => Self::State,
            11 => Self::Welcome,
            12 => Self::Yield,
            13 => Self::Disk,
            _ => return None,
        })
    }

    /// Its name in errors.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Hello => "hello",
            Self::HelloReply => "hello-reply",
            Self::Entries => "entries",
            Self::Ack => "ack",
            Self::Heartbeat => "heartbeat",
            Self::Bye => "bye",
            Self::Probe => "probe",
            Self::Settled => "settled",
            Self::Base => "base",
            Self::State => "state",
            Self::Welcome => "welcome",
            Self::Yield => "yield",
            Self::Disk => "disk",
        }
    }
}

/// A frame that arrived whole and sound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// The primary greets.
    Hello(Hello),
    /// The backup answers.
    HelloReply(HelloReply),
    /// Log entries, not yet decoded.
    Entries(Entries<'a>),
    /// What the backup has.
    Ack(Ack),
    /// What the primary released.
    Heartbeat(Heartbeat),
    /// An orderly end.
    Bye(Bye),
    /// How far apart are the two?
    Probe(Probe),
    /// How the link watches itself.
    Settled(Settled),
    /// Where the log of a running machine begins, and what else its primary says of it there.
    Base(Base, &'a [u8]),
    /// Part of its state, as it is or compressed (LZ4); nothing: that was all.
    State(&'a [u8]),
    /// The joiner is the backup in this view now.
    Welcome(ViewNumber),
    /// The primary is going to leave the machine, and waits at this port of its host then, as a backup.
    Yield(NonZeroU16),
    /// Part of its disk's contents.
    Disk(DiskPart<'a>),
}

impl Frame<'_> {
    /// What it is.
    #[must_use]
    pub fn kind(&self) -> FrameKind {
        match self {
            Self::Hello(_) => FrameKind::Hello,
            Self::HelloReply(_) => FrameKind::HelloReply,
            Self::Entries(_) => FrameKind::Entries,
            Self::Ack(_) => FrameKind::Ack,
            Self::Heartbeat(_) => FrameKind::Heartbeat,
            Self::Bye(_) => FrameKind::Bye,
            Self::Probe(_) => FrameKind::Probe,
            Self::Settled(_) => FrameKind::Settled,
            Self::Base(..) => FrameKind::Base,
            Self::State(_) => FrameKind::State,
            Self::Welcome(_) => FrameKind::Welcome,
            Self::Yield(_) => FrameKind::Yield,
            Self::Disk(_) => FrameKind::Disk,
        }
    }
}

fn checksum(head: &[u8], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(head);
    hasher.update(payload);
    hasher.finalize()
}

/// Writes the header of a frame that fills `frame`, whose first [`HEADER_LEN`] bytes were left free.
///
/// # Panics
/// If the payload is over [`PAYLOAD_MAX`]: whoever builds a frame keeps below.
pub fn seal(kind: FrameKind, frame: &mut [u8]) {
    let (header, payload) = frame.split_at_mut(HEADER_LEN);
    assert!(
        payload.len() <= PAYLOAD_MAX,
        "{} frame of {} bytes",
        kind.name(),
        payload.len()
    );
    let length = u32::try_from(payload.len()).expect("checked above");
    header[0] = kind as u8;
    header[1..4].copy_from_slice(&length.to_le_bytes()[..3]);
    let crc = checksum(&header[..4], payload);
    header[4..].copy_from_slice(&crc.to_le_bytes());
}

/// A whole frame around the payload that `write` appends.
///
/// # Panics
/// As [`seal`].
pub fn frame(kind: FrameKind, write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = vec![0; HEADER_LEN];
    write(&mut bytes);
    seal(kind, &mut bytes);
    bytes
}

/// Cuts the bytes of a stream into frames.
///
/// Use: read into [`Self::space`], say how much by [`Self::filled`], take frames by [`Self::next`]
/// until it has none. After an error the stream is of no more use.
pub struct FrameBuffer {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Default for FrameBuffer {
    fn default() -> Self {
        Self::new()
    }
}

impl FrameBuffer {
    /// An empty buffer. Its pages are touched only as far as they are used.
    #[must_use]
    pub fn new() -> Self {
        Self {
            bytes: vec![0; BUFFER_LEN].into_boxed_slice(),
            start: 0,
            end: 0,
        }
    }

    /// Where to read to. Never empty once [`Self::next`] has said that it has no frame.
    pub fn space(&mut self) -> &mut [u8] {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.bytes.len() - self.end < BUFFER_LEN - HEADER_LEN - PAYLOAD_MAX {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        &mut self.bytes[self.end..]
    }

    /// Says that `count` bytes were read into [`Self::space`].
    ///
    /// # Panics
    /// If that is more than there was space.
    pub fn filled(&mut self, count: usize) {
        self.end += count;
        assert!(self.end <= self.bytes.len(), "more filled than there was");
    }

    /// Bytes that are no whole frame yet.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.end - self.start
    }

    /// The next whole frame, if there is one.
    ///
    /// # Errors
    /// See [`FrameError`].
    #[allow(
        clippy::should_implement_trait,
        reason = "frames borrow from the buffer"
    )]
    pub fn next(&mut self) -> Result<Option<Frame<'_>>, FrameError> {
        let held = &self.bytes[self.start..self.end];
        // No frame begins so.
        if tls::is_tls(held) {
            return Err(FrameError::Tls);
        }
        let Some((header, rest)) = held.split_first_chunk::<HEADER_LEN>() else {
            return Ok(None);
        };
        let kind =
            FrameKind::from_u8(header[0]).ok_or(FrameError::UnknownKind { kind: header[0] })?;
        let length = u32::from_le_bytes([header[1], header[2], header[3], 0]) as usize;
        if length > PAYLOAD_MAX {
            return Err(FrameError::TooLong {
                length,
                max: PAYLOAD_MAX,
            });
        }
        let Some(payload) = rest.get(..length) else {
            return Ok(None);
        };
        let found = u32::from_le_bytes([header[4], header[5], header[6], header[7]]);
        let computed = checksum(&header[..4], payload);
        if found != computed {
            return Err(FrameError::Checksum { found, computed });
        }
        self.start += HEADER_LEN + length;
        parse(kind, payload).map(Some)
    }
}

fn parse(kind: FrameKind, payload: &[u8]) -> Result<Frame<'_>, FrameError> {
    Ok(match kind {
        FrameKind::Hello => Frame::Hello(Hello::parse(payload)?),
        FrameKind::HelloReply => Frame::HelloReply(HelloReply::parse(payload)?),
        FrameKind::Entries => Frame::Entries(Entries::parse(payload)?),
        FrameKind::Ack => Frame::Ack(Ack::parse(payload)?),
        FrameKind::Heartbeat => Frame::Heartbeat(Heartbeat::parse(payload)?),
        FrameKind::Bye => Frame::Bye(Bye::parse(payload)?),
        FrameKind::Probe => Frame::Probe(Probe::parse(payload)?),
        FrameKind::Settled => Frame::Settled(Settled::parse(payload)?),
        FrameKind::Base => {
            let (base, beside) = messages::parse_base(payload)?;
            Frame::Base(base, beside)
        }
        FrameKind::State => Frame::State(payload),
        FrameKind::Welcome => Frame::Welcome(messages::parse_welcome(payload)?),
        FrameKind::Yield => Frame::Yield(messages::parse_yield(payload)?),
        FrameKind::Disk => Frame::Disk(messages::parse_disk(payload)?),
    })
}
