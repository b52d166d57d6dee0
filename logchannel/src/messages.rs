//! What frames carry. All numbers are little-endian.
//!
//! ```text
//!  Hello       magic 8 │ version u16 │ heartbeat_ms u32 │ suspect_ms u32 │ view u64 │ digest u64
//!              │ index u64 │ clock u64 │ origin u8 │ store 16 │ vm: u8 + bytes │ incarnation: u8 + bytes │ config: the rest
//!  HelloReply  magic 8 │ version u16 │ verdict u8 │ reason or remark: the rest
//!  Entries     first u32 (low half of its index) │ count u16 │ entries
//!  Ack         received u64 │ executed u64 │ executed_clock u64 │ answers u64
//!  Heartbeat   released u64 │ printed u64 │ call u64
//!  Bye         reason u8 │ code u32
//!  Probe       number u32
//!  Settled     heartbeat_ms u32 │ suspect_ms u32 │ round_trip_us u32
//!  Base        view u64 │ digest u64 │ index u64 │ clock u64 │ origin u8
//!  State       form u8 │ a piece of a snapshot ([`crate::packing`]); nothing: that was all
//!  Welcome     view u64
//!  Yield       port u16
//!  Disk        at u64 │ zeros u64 │ bytes: the rest; one of the two is none
//! ```
//!
//! An entries frame costs 14 bytes over its entries: header, index and count. The low half of the index
//! is enough, as no buffer holds 2^31 entries.

use crate::cursors::Delivered;
use crate::error::{FrameError, HandshakeError};
use crate::framing::{FrameKind, HEADER_LEN, VERSION, frame};
use replay::{Base, BaseOrigin, Clock, DiskPart, LogIndex, ViewNumber};
use std::num::NonZeroU16;

/// First bytes of either greeting.
const MAGIC: [u8; 8] = *b"TANDEMLC";
/// Most bytes of a VM's name.
pub const VM_MAX: usize = 64;
/// Most bytes of an incarnation.
pub const INCARNATION_MAX: usize = 128;
/// Bytes of an arbiter's store's identity.
pub const STORE_LEN: usize = 16;
/// Most bytes of the configuration in a greeting.
pub const CONFIG_MAX: usize = 64 << 10;
/// Most bytes of a reason to refuse, or of a remark; longer ones are cut.
pub const REASON_MAX: usize = 1 << 10;
/// Bytes before the entries in a frame of them: header, first index, count.
pub const ENTRIES_HEAD: usize = HEADER_LEN + 6;
/// Most entries in one frame.
pub const ENTRIES_MAX: usize = u16::MAX as usize;
/// Longest silence that may be set before suspicion.
const SUSPECT_MAX_MS: u32 = 60_000;

/// Takes fields from the front of a payload.
struct Fields<'a> {
    rest: &'a [u8],
    frame: &'static str,
}

impl<'a> Fields<'a> {
    fn of(kind: FrameKind, rest: &'a [u8]) -> Self {
        Self {
            rest,
            frame: kind.name(),
        }
    }

    fn wrong(&self, what: &'static str) -> FrameError {
        FrameError::Malformed {
            frame: self.frame,
            what,
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], FrameError> {
        let (head, rest) = self
            .rest
            .split_first_chunk()
            .ok_or_else(|| self.wrong("too short"))?;
        self.rest = rest;
        Ok(*head)
    }

    fn u8(&mut self) -> Result<u8, FrameError> {
        self.array().map(u8::from_le_bytes)
    }

    fn u16(&mut self) -> Result<u16, FrameError> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, FrameError> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, FrameError> {
        self.array().map(u64::from_le_bytes)
    }

    fn short_text(&mut self, max: usize) -> Result<String, FrameError> {
        let length = usize::from(self.u8()?);
        if length > max || length > self.rest.len() {
            return Err(self.wrong("text too long"));
        }
        let (text, rest) = self.rest.split_at(length);
        self.rest = rest;
        let text = std::str::from_utf8(text).map_err(|_| self.wrong("text is not UTF-8"))?;
        Ok(text.to_owned())
    }

    fn greeting(&mut self) -> Result<(), FrameError> {
        if self.array().ok() != Some(MAGIC) {
            return Err(FrameError::NotTandem);
        }
        match self.u16()? {
            VERSION => Ok(()),
            theirs => Err(FrameError::Version {
                ours: VERSION,
                theirs,
            }),
        }
    }

    fn base(&mut self) -> Result<Base, FrameError> {
        let base = Base {
            view: ViewNumber(self.u64()?),
            digest: self.u64()?,
            index: LogIndex(self.u64()?),
            clock: Clock(self.u64()?),
            origin: match self.u8()? {
                0 => BaseOrigin::Boot,
                1 => BaseOrigin::State,
                _ => return Err(self.wrong("a base of unknown origin")),
            },
        };
        match base.check() {
            Ok(()) => Ok(base),
            Err(error) => Err(self.wrong(error.what())),
        }
    }

    fn end(self) -> Result<(), FrameError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(self.wrong("too long"))
        }
    }
}

/// How a link watches itself. The primary's hold for both ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Each side sends something at least this often.
    pub heartbeat_ms: u32,
    /// Silence after which a side suspects the other.
    pub suspect_ms: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            heartbeat_ms: 20,
            suspect_ms: 300,
        }
    }
}

impl Settings {
    /// Checks that they can work.
    ///
    /// # Errors
    /// [`HandshakeError::Settings`].
    pub fn check(self) -> Result<Self, HandshakeError> {
        let Self {
            heartbeat_ms,
            suspect_ms,
        } = self;
        let works =
            heartbeat_ms >= 1 && suspect_ms <= SUSPECT_MAX_MS && suspect_ms / 2 >= heartbeat_ms;
        works.then_some(self).ok_or(HandshakeError::Settings {
            heartbeat_ms,
            suspect_ms,
        })
    }
}

impl Settings {
    /// How many round trips have to fit into the time to suspicion.
    const ROUND_TRIPS: u64 = 4;

    /// The settings for two replicas so far apart that an answer takes `round_trip_us`: four answers fit into
    /// the time to suspicion. So a pair on a longer link watches itself more patiently. The lease of its
    /// primary ends a round trip before suspicion comes; this leaves it long enough to be renewed in time.
    ///
    /// # Errors
    /// [`HandshakeError::TooFar`] if that is more than may be set.
    pub fn over(self, round_trip_us: u32) -> Result<Self, HandshakeError> {
        let least_ms = (u64::from(round_trip_us) * Self::ROUND_TRIPS).div_ceil(1_000);
        let suspect_ms = u64::from(self.suspect_ms).max(least_ms);
        match u32::try_from(suspect_ms) {
            Ok(suspect_ms) if suspect_ms <= SUSPECT_MAX_MS => Ok(Self { suspect_ms, ..self }),
            _ => Err(HandshakeError::TooFar {
                round_trip_ms: round_trip_us / 1_000,
                most_ms: SUSPECT_MAX_MS / Self::ROUND_TRIPS as u32,
            }),
        }
    }
}

/// A question of a primary that has been welcomed. The backup's answer is the same frame, and the time until
/// it comes tells how far apart the two are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Which one.
    pub number: u32,
}

impl Probe {
    pub(crate) fn to_frame(self) -> Vec<u8> {
        frame(FrameKind::Probe, |out| {
            out.extend_from_slice(&self.number.to_le_bytes());
        })
    }

    pub(crate) fn parse(payload: &[u8]) -> Result<Self, FrameError> {
        let mut fields = Fields::of(FrameKind::Probe, payload);
        let number = fields.u32()?;
        fields.end()?;
        Ok(Self { number })
    }
}

/// The primary's last word of a handshake: how the link watches itself. From here on each side hears the
/// other, so silence counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settled {
    /// What holds for both ends.
    pub settings: Settings,
    /// How long an answer takes, in microseconds.
    pub round_trip_us: u32,
}

impl Settled {
    pub(crate) fn to_frame(self) -> Vec<u8> {
        frame(FrameKind::Settled, |out| {
            out.extend_from_slice(&self.settings.heartbeat_ms.to_le_bytes());
            out.extend_from_slice(&self.settings.suspect_ms.to_le_bytes());
            out.extend_from_slice(&self.round_trip_us.to_le_bytes());
        })
    }

    pub(crate) fn parse(payload: &[u8]) -> Result<Self, FrameError> {
        let mut fields = Fields::of(FrameKind::Settled, payload);
        let settings = Settings {
            heartbeat_ms: fields.u32()?,
            suspect_ms: fields.u32()?,
        };
        let round_trip_us = fields.u32()?;
        fields.end()?;
        Ok(Self {
            settings,
            round_trip_us,
        })
    }
}

fn write_base(base: &Base, out: &mut Vec<u8>) {
    for number in [base.view.0, base.digest, base.index.0, base.clock.0] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    out.push(match base.origin {
        BaseOrigin::Boot => 0,
        BaseOrigin::State => 1,
    });
}

/// Most bytes a replica says beside the base of a machine it hands over.
pub const BESIDE_MAX: usize = 256;

/// The frame that says where the log of a running machine begins, and what the replica has to say `beside`.
pub(crate) fn base_frame(base: &Base, beside: &[u8]) -> Vec<u8> {
    debug_assert!(beside.len() <= BESIDE_MAX, "it is bounded");
    frame(FrameKind::Base, |out| {
        write_base(base, out);
        out.extend_from_slice(beside);
    })
}

pub(crate) fn parse_base(payload: &[u8]) -> Result<(Base, &[u8]), FrameError> {
    let mut fields = Fields::of(FrameKind::Base, payload);
    let base = fields.base()?;
    if base.origin == BaseOrigin::Boot {
        return Err(fields.wrong("a running machine has booted before"));
    }
    if fields.rest.len() > BESIDE_MAX {
        return Err(fields.wrong("too long"));
    }
    Ok((base, fields.rest))
}

/// The frame of `part` of a disk, which is not empty.
pub(crate) fn disk_frame(part: DiskPart<'_>) -> Vec<u8> {
    let (zeros, bytes) = match part {
        DiskPart::Data { bytes, .. } => (0, bytes),
        DiskPart::Zeros { length, .. } => (length, &[][..]),
    };
    frame(FrameKind::Disk, |out| {
        out.extend_from_slice(&part.at().to_le_bytes());
        out.extend_from_slice(&zeros.to_le_bytes());
        out.extend_from_slice(bytes);
    })
}

pub(crate) fn parse_disk(payload: &[u8]) -> Result<DiskPart<'_>, FrameError> {
    let mut fields = Fields::of(FrameKind::Disk, payload);
    let (at, length) = (fields.u64()?, fields.u64()?);
    match (length, fields.rest) {
        (0, []) => Err(fields.wrong("nothing of the disk")),
        (0, bytes) => Ok(DiskPart::Data { at, bytes }),
        (_, []) => Ok(DiskPart::Zeros { at, length }),
        _ => Err(fields.wrong("zeros and bytes together")),
    }
}

/// The frame that makes a joiner the backup in `view`.
pub(crate) fn welcome_frame(view: ViewNumber) -> Vec<u8> {
    frame(FrameKind::Welcome, |out| {
        out.extend_from_slice(&view.0.to_le_bytes());
    })
}

/// The frame that says that the primary is going to leave the machine, and then waits at `port` as a backup.
pub(crate) fn yield_frame(port: NonZeroU16) -> Vec<u8> {
    frame(FrameKind::Yield, |out| {
        out.extend_from_slice(&port.get().to_le_bytes());
    })
}

pub(crate) fn parse_yield(payload: &[u8]) -> Result<NonZeroU16, FrameError> {
    let mut fields = Fields::of(FrameKind::Yield, payload);
    let port = fields.u16()?;
    let port = NonZeroU16::new(port).ok_or_else(|| fields.wrong("port 0"))?;
    fields.end()?;
    Ok(port)
}

pub(crate) fn parse_welcome(payload: &[u8]) -> Result<ViewNumber, FrameError> {
    let mut fields = Fields::of(FrameKind::Welcome, payload);
    let view = ViewNumber(fields.u64()?);
    fields.end()?;
    Ok(view)
}

/// What a primary says first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Name of the VM.
    pub vm: String,
    /// Which replica this is, as the arbiter will know it.
    pub incarnation: String,
    /// Where the log begins, the pair's view among it: both must stand alike there.
    pub base: Base,
    /// Which store the primary's arbiter keeps its flags in; opaque here. The backup's must be the same.
    pub store: [u8; STORE_LEN],
    /// How the link is to watch itself, if the two are near enough.
    pub settings: Settings,
    /// The machine's configuration; opaque here.
    pub config: Vec<u8>,
}

impl Hello {
    pub(crate) fn to_frame(&self) -> Result<Vec<u8>, HandshakeError> {
        for (what, length, max) in [
            ("VM name", self.vm.len(), VM_MAX),
            ("incarnation", self.incarnation.len(), INCARNATION_MAX),
            ("configuration", self.config.len(), CONFIG_MAX),
        ] {
            if length > max {
                return Err(HandshakeError::TooLong { what, length, max });
            }
        }
        self.settings.check()?;
        self.base.check()?;
        Ok(frame(FrameKind::Hello, |out| {
            out.extend_from_slice(&MAGIC);
            out.extend_from_slice(&VERSION.to_le_bytes());
            out.extend_from_slice(&self.settings.heartbeat_ms.to_le_bytes());
            out.extend_from_slice(&self.settings.suspect_ms.to_le_bytes());
            write_base(&self.base, out);
            out.extend_from_slice(&self.store);
            for text in [&self.vm, &self.incarnation] {
                out.push(u8::try_from(text.len()).expect("checked above"));
                out.extend_from_slice(text.as_bytes());
            }
            out.extend_from_slice(&self.config);
        }))
    }

    pub(crate) fn parse(payload: &[u8]) -> Result<Self, FrameError> {
        let mut fields = Fields::of(FrameKind::Hello, payload);
        fields.greeting()?;
        let settings = Settings {
            heartbeat_ms: fields.u32()?,
            suspect_ms: fields.u32()?,
        };
        let base = fields.base()?;
        let store = fields.array()?;
        let vm = fields.short_text(VM_MAX)?;
        let incarnation = fields.short_text(INCARNATION_MAX)?;
        if fields.rest.len() > CONFIG_MAX {
            return Err(fields.wrong("configuration too long"));
        }
        Ok(Self {
            vm,
            incarnation,
            base,
            store,
            settings,
            config: fields.rest.to_vec(),
        })
    }
}

/// What a backup answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HelloReply {
    /// The primary is welcome.
    Welcome {
        /// What its operator is to know, in one line.
        remark: Option<String>,
    },
    /// It is not.
    Refused {
        /// Why, in one line.
        reason: String,
    },
}

impl HelloReply {
    pub(crate) fn to_frame(&self) -> Vec<u8> {
        let (verdict, text) = match self {
            Self::Welcome { remark } => (0, remark.as_deref().unwrap_or_default()),
            Self::Refused { reason } => (1, reason.as_str()),
        };
        frame(FrameKind::HelloReply, |out| {
            out.extend_from_slice(&MAGIC);
            out.extend_from_slice(&VERSION.to_le_bytes());
            out.push(verdict);
            out.extend_from_slice(&text.as_bytes()[..text.floor_char_boundary(REASON_MAX)]);
        })
    }

    pub(crate) fn parse(payload: &[u8]) -> Result<Self, FrameError> {
        let mut fields = Fields::of(FrameKind::HelloReply, payload);
        fields.greeting()?;
        let verdict = fields.u8()?;
        if fields.rest.len() > REASON_MAX {
            return Err(fields.wrong("reason too long"));
        }
        let text = line(fields.rest);
        match verdict {
            0 => Ok(Self::Welcome {
                remark: Some(text).filter(|text| !text.is_empty()),
            }),
            1 => Ok(Self::Refused { reason: text }),
            _ => Err(fields.wrong("unknown verdict")),
        }
    }
}

/// A peer's words as one line, which may go to a terminal.
fn line(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.replace(char::is_control, "\u{fffd}")
}

/// Log entries as they stand in a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entries<'a> {
    /// Low half of the first one's index.
    pub first_low: u32,
    /// How many.
    pub count: u16,
    /// Encoded by [`replay::codec::Encoder`].
    pub bytes: &'a [u8],
}

impl<'a> Entries<'a> {
    /// Fills in what stands before the entries of a frame whose first [`ENTRIES_HEAD`] bytes were left
    /// free.
    #[allow(clippy::cast_possible_truncation, reason = "the low half is wanted")]
    pub(crate) fn write_head(bytes: &mut [u8], first: LogIndex, count: u16) {
        bytes[HEADER_LEN..HEADER_LEN + 4].copy_from_slice(&(first.0 as u32).to_le_bytes());
        bytes[HEADER_LEN + 4..ENTRIES_HEAD].copy_from_slice(&count.to_le_bytes());
    }

    pub(crate) fn parse(payload: &'a [u8]) -> Result<Self, FrameError> {
        let mut fields = Fields::of(FrameKind::Entries, payload);
        let (first_low, count) = (fields.u32()?, fields.u16()?);
        if count == 0 {
            return Err(fields.wrong("no entries"));
        }
        Ok(Self {
            first_low,
            count,
            bytes: fields.rest,
        })
    }

    /// How far the first index lies past `expected`; negative if before it.
    #[must_use]
    #[allow(clippy::cast_possible_truncation, reason = "compared in the low half")]
    pub fn distance(&self, expected: LogIndex) -> i64 {
        i64::from(self.first_low.wrapping_sub(expected.0 as u32).cast_signed())
    }
}

/// What the backup has. Each index is that of the first entry it does *not* have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack {
    /// Received and checked.
    pub received: LogIndex,
    /// Executed.
    pub executed: LogIndex,
    /// Where its guest stands.
    pub executed_clock: Clock,
    /// The last [`Heartbeat::call`] it heard.
    pub answers: u64,
}

impl Ack {
    /// Of a log that begins at `base`, nothing has come yet.
    pub(crate) fn at(base: &Base) -> Self {
        Self {
            received: base.index,
            executed: base.index,
            executed_clock: base.clock,
            answers: 0,
        }
    }

    pub(crate) fn to_frame(self) -> Vec<u8> {
        frame(FrameKind::Ack, |out| {
            let Self {
                received,
                executed,
                executed_clock,
                answers,
            } = self;
            for value in [received.0, executed.0, executed_clock.0, answers] {
                out.extend_from_slice(&value.to_le_bytes());
            }
        })
    }

    pub(crate) fn parse(payload: &[u8]) -> Result<Self, FrameError> {
        let mut fields = Fields::of(FrameKind::Ack, payload);
        let ack = Self {
            received: LogIndex(fields.u64()?),
            executed: LogIndex(fields.u64()?),
            executed_clock: Clock(fields.u64()?),
            answers: fields.u64()?,
        };
        fields.end()?;
        Ok(ack)
    }
}

/// A sign of life of the primary's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Heartbeat {
    /// What has left.
    pub delivered: Delivered,
    /// The number of the primary's last call. An ack that says it back was made after this was sent.
    pub call: u64,
}

impl Heartbeat {
    pub(crate) fn to_frame(self) -> Vec<u8> {
        frame(FrameKind::Heartbeat, |out| {
            let Delivered { released, printed } = self.delivered;
            for value in [released.0, printed.0, self.call] {
                out.extend_from_slice(&value.to_le_bytes());
            }
        })
    }

    pub(crate) fn parse(payload: &[u8]) -> Result<Self, FrameError> {
        let mut fields = Fields::of(FrameKind::Heartbeat, payload);
        let heartbeat = Self {
            delivered: Delivered {
                released: LogIndex(fields.u64()?),
                printed: LogIndex(fields.u64()?),
            },
            call: fields.u64()?,
        };
        fields.end()?;
        Ok(heartbeat)
    }
}

/// Why a side leaves in an orderly way. The side that said it does not contend any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bye {
    /// The guest switched itself off.
    PowerOff {
        /// Its exit status.
        code: u32,
    },
    /// The operator stopped it.
    Stop,
}

impl std::fmt::Display for Bye {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::PowerOff { code } => {
                write!(f, "the guest switched itself off with status {code}")
            }
            Self::Stop => f.write_str("it was stopped"),
        }
    }
}

impl Bye {
    pub(crate) fn to_frame(self) -> Vec<u8> {
        let (reason, code) = match self {
            Self::PowerOff { code } => (0, code),
            Self::Stop => (1, 0),
        };
        frame(FrameKind::Bye, |out| {
            out.push(reason);
            out.extend_from_slice(&u32::to_le_bytes(code));
        })
    }

    pub(crate) fn parse(payload: &[u8]) -> Result<Self, FrameError> {
        let mut fields = Fields::of(FrameKind::Bye, payload);
        let bye = match (fields.u8()?, fields.u32()?) {
            (0, code) => Self::PowerOff { code },
            (1, 0) => Self::Stop,
            _ => return Err(fields.wrong("unknown reason")),
        };
        fields.end()?;
        Ok(bye)
    }
}
