//! The disk (virtio 1.2, section 5.2).
//!
//! ```text
//!  notify ──▶ request taken apart, write data copied out ──▶ Output::Disk* with a tag
//!  Arrival::DiskDone { tag, data } ──▶ bounce buffer copied in, status, used ring ──▶ interrupt
//! ```
//!
//! Where a request's data goes is fixed when it is made: a guest that rewrites the chain meanwhile
//! changes nothing (P4, P17).

use super::VirtioDevice;
use super::ring::{Chain, Piece, Ring, gather, length, scatter};
use crate::devices::DeviceError;
use crate::memory::GuestMemory;
use replay::Output;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, VecDeque};

/// Feature bits (5.2.3): most bytes of a segment, most segments, flush.
const F_SIZE_MAX: u64 = 1 << 1;
const F_SEG_MAX: u64 = 1 << 2;
const F_FLUSH: u64 = 1 << 9;
/// Request types (5.2.6).
const T_IN: u32 = 0;
const T_OUT: u32 = 1;
const T_FLUSH: u32 = 4;
const T_GET_ID: u32 = 8;
/// Request status.
const S_OK: u8 = 0;
const S_IOERR: u8 = 1;
const S_UNSUPP: u8 = 2;

/// Bytes of a sector.
const SECTOR: u64 = 512;
/// Bytes of a request's header: type, reserved, sector.
const HEADER: usize = 16;
/// Most bytes of one request's data; it bounds a log entry.
pub const DATA_MAX: u32 = 256 << 10;
/// Most bytes of a segment, and most segments, of one request's data: a driver that keeps to both (Linux
/// knows no other bound) keeps to [`DATA_MAX`].
const SIZE_MAX: u32 = 16 << 10;
const SEG_MAX: u32 = DATA_MAX / SIZE_MAX;
/// Most sectors of a disk: 512 TiB. With it, no place on the disk overflows 64 bits.
pub const SECTORS_MAX: u64 = 1 << 40;
/// Requests under way at most that the driver waits for; what is over it ends with an error. With
/// two descriptors each, its queue holds no more.
pub const OUTSTANDING_MAX: usize = 32;
/// Requests under way at most, with those nobody waits for any more: a driver that begins anew has room
/// for its own.
pub const UNDER_WAY_MAX: usize = 2 * OUTSTANDING_MAX;
/// The answer to `T_GET_ID`, 20 bytes.
const NAME: &[u8; 20] = b"tandem-disk\0\0\0\0\0\0\0\0\0";

/// The disk.
pub struct Block {
    sectors: u64,
    state: State,
}

/// What of a disk is state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    next_tag: u32,
    /// Oldest first.
    under_way: VecDeque<Request>,
}

/// A request under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Request {
    tag: u32,
    head: u16,
    kind: Kind,
    /// Byte offset on the disk.
    offset: u64,
    /// Where read data goes.
    into: Vec<Piece>,
    status: Piece,
    /// The driver stopped the queue meanwhile: nobody waits for it any more.
    abandoned: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Kind {
    Read { len: u32 },
    Write { data: Vec<u8> },
    Flush,
}

impl Request {
    fn output(&self) -> Output {
        let (tag, offset) = (self.tag, self.offset);
        match &self.kind {
            Kind::Read { len } => Output::DiskRead {
                tag,
                offset,
                len: *len,
            },
            Kind::Write { data } => Output::DiskWrite {
                tag,
                offset,
                data: data.clone(),
            },
            Kind::Flush => Output::DiskFlush { tag },
        }
    }
}

/// A chain taken apart.
struct Parsed {
    kind: u32,
    sector: u64,
    /// Readable data after the header.
    data: Vec<Piece>,
    into: Vec<Piece>,
    status: Piece,
}

impl Block {
    /// A disk of this many sectors, at most [`SECTORS_MAX`].
    #[must_use]
    pub fn new(sectors: u64) -> Self {
        Self {
            sectors: sectors.min(SECTORS_MAX),
            state: State::default(),
        }
    }

    /// Requests under way, as the outputs that made them, oldest first.
    #[must_use]
    pub fn outstanding(&self) -> Vec<Output> {
        self.state.under_way.iter().map(Request::output).collect()
    }

    /// Splits header and status byte off a chain, wherever its pieces end (2.7.4.2: no framing).
    fn parse(memory: &GuestMemory, chain: &Chain) -> Option<Parsed> {
        if chain.broken {
            return None;
        }
        let header = gather(memory, &chain.readable, HEADER);
        let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("4 bytes"));
        if header.len() != HEADER {
            return None;
        }
        let mut into = chain.writable.clone();
        while into.last().is_some_and(|piece| piece.length == 0) {
            into.pop();
        }
        let last = into.last_mut()?;
        last.length -= 1;
        let status = Piece {
            address: last.address + u64::from(last.length),
            length: 1,
        };
        Some(Parsed {
            kind: word(0),
            sector: u64::from(word(8)) | u64::from(word(12)) << 32,
            data: skip(&chain.readable, HEADER),
            into,
            status,
        })
    }

    /// What a request asks for, or the status it ends with at once.
    fn accept(&self, memory: &GuestMemory, parsed: &Parsed) -> Result<(Kind, u64), u8> {
        let kind = match parsed.kind {
            T_IN => Kind::Read {
                len: data_length(&parsed.into)?,
            },
            T_OUT => {
                let len = data_length(&parsed.data)?;
                Kind::Write {
                    data: gather(memory, &parsed.data, len as usize),
                }
            }
            T_FLUSH => return self.admit(Kind::Flush, 0),
            _ => return Err(S_UNSUPP),
        };
        let len = match &kind {
            Kind::Read { len } => u64::from(*len),
            Kind::Write { data } => data.len() as u64,
            Kind::Flush => 0,
        };
        let end = parsed.sector.checked_add(len / SECTOR).ok_or(S_IOERR)?;
        if end > self.sectors {
            return Err(S_IOERR);
        }
        self.admit(kind, parsed.sector * SECTOR)
    }

    fn admit(&self, kind: Kind, offset: u64) -> Result<(Kind, u64), u8> {
        let under_way = &self.state.under_way;
        let awaited = under_way.iter().filter(|request| !request.abandoned);
        if under_way.len() < UNDER_WAY_MAX && awaited.count() < OUTSTANDING_MAX {
            Ok((kind, offset))
        } else {
            Err(S_IOERR)
        }
    }

    /// Begins the request in `chain`; one that ends at once is given back, and whether the driver wants
    /// an interrupt for that is returned.
    fn begin(
        &mut self,
        ring: &mut Ring,
        memory: &GuestMemory,
        chain: &Chain,
        out: &mut Vec<Output>,
    ) -> bool {
        let Some(parsed) = Self::parse(memory, chain) else {
            return ring.push(memory, chain.head, 0);
        };
        if parsed.kind == T_GET_ID {
            let written = scatter(memory, &parsed.into, NAME);
            scatter(memory, &[parsed.status], &[S_OK]);
            return ring.push(memory, chain.head, u32::try_from(written).expect("20") + 1);
        }
        match self.accept(memory, &parsed) {
            Ok((kind, offset)) => {
                let tag = self.state.next_tag;
                self.state.next_tag = tag.wrapping_add(1);
                let Parsed { into, status, .. } = parsed;
                let head = chain.head;
                let request = Request {
                    tag,
                    head,
                    kind,
                    offset,
                    into,
                    status,
                    abandoned: false,
                };
                out.push(request.output());
                self.state.under_way.push_back(request);
                false
            }
            Err(status) => {
                scatter(memory, &[parsed.status], &[status]);
                ring.push(memory, chain.head, 1)
            }
        }
    }

    /// Ends request `tag`: data and status into guest memory, the chain back to the driver. Whether it
    /// wants an interrupt.
    ///
    /// # Errors
    /// [`DeviceError::UnknownTag`], [`DeviceError::Length`]; nothing is changed then.
    pub(super) fn complete(
        &mut self,
        ring: &mut Ring,
        memory: &GuestMemory,
        tag: u32,
        ok: bool,
        data: &[u8],
    ) -> Result<bool, DeviceError> {
        let place = self
            .state
            .under_way
            .iter()
            .position(|request| request.tag == tag);
        let place = place.ok_or(DeviceError::UnknownTag(tag))?;
        let expected = match &self.state.under_way[place].kind {
            Kind::Read { len } if ok => *len,
            _ => 0,
        };
        if data.len() != expected as usize {
            return Err(DeviceError::Length {
                tag,
                expected,
                found: data.len(),
            });
        }
        let request = self.state.under_way.remove(place).expect("found above");
        if request.abandoned {
            return Ok(false);
        }
        let written = scatter(memory, &request.into, data);
        scatter(
            memory,
            &[request.status],
            &[if ok { S_OK } else { S_IOERR }],
        );
        let written = u32::try_from(written).expect("bounded by DATA_MAX");
        Ok(ring.push(memory, request.head, written + 1))
    }
}

/// `pieces` without their first `count` bytes.
fn skip(pieces: &[Piece], count: usize) -> Vec<Piece> {
    let mut left = count;
    let mut rest = Vec::new();
    for piece in pieces {
        let gone = left.min(piece.length as usize);
        left -= gone;
        let length = piece.length - u32::try_from(gone).expect("within the piece");
        if length > 0 {
            rest.push(Piece {
                address: piece.address + gone as u64,
                length,
            });
        }
    }
    rest
}

/// Bytes of a request's data, whole sectors within the bound.
fn data_length(pieces: &[Piece]) -> Result<u32, u8> {
    match u32::try_from(length(pieces)) {
        Ok(len) if len <= DATA_MAX && u64::from(len) % SECTOR == 0 => Ok(len),
        _ => Err(S_IOERR),
    }
}

impl VirtioDevice for Block {
    const ID: u32 = 2;
    const QUEUES: usize = 1;
    const QUEUE_SIZE: u16 = 64;
    const KIND: &'static str = "virtio-blk";
    type State = State;

    fn features(&self) -> u64 {
        F_SIZE_MAX | F_SEG_MAX | F_FLUSH
    }

    fn config(&self) -> Vec<u8> {
        // virtio_blk_config: capacity, size_max, seg_max.
        let mut config = self.sectors.to_le_bytes().to_vec();
        config.extend_from_slice(&SIZE_MAX.to_le_bytes());
        config.extend_from_slice(&SEG_MAX.to_le_bytes());
        config
    }

    fn notify(
        &mut self,
        _: usize,
        rings: &mut [Ring],
        memory: &GuestMemory,
        out: &mut Vec<Output>,
    ) -> bool {
        let ring = &mut rings[0];
        let mut wanted = false;
        for _ in 0..ring.available(memory).unwrap_or(0) {
            let Some(chain) = ring.pop(memory) else { break };
            wanted |= self.begin(ring, memory, &chain, out);
        }
        wanted
    }

    fn stopped(&mut self, _: usize) {
        // Their ends still arrive: they are remembered until then, and touch nothing.
        self.state
            .under_way
            .iter_mut()
            .for_each(|request| request.abandoned = true);
    }

    fn save(&self) -> State {
        self.state.clone()
    }

    fn restore(&mut self, state: State) -> Result<(), &'static str> {
        if state.under_way.len() > UNDER_WAY_MAX {
            return Err("too many disk requests under way");
        }
        let sound = |request: &Request| {
            let len = match &request.kind {
                Kind::Read { len } => u64::from(*len),
                Kind::Write { data } => data.len() as u64,
                Kind::Flush => 0,
            };
            len <= u64::from(DATA_MAX)
                && request.status.length == 1
                && request
                    .offset
                    .checked_add(len)
                    .is_some_and(|end| end <= self.sectors * SECTOR)
        };
        if !state.under_way.iter().all(sound) {
            return Err("a disk request out of range");
        }
        let tags: BTreeSet<u32> = state.under_way.iter().map(|r| r.tag).collect();
        if tags.len() != state.under_way.len() || tags.contains(&state.next_tag) {
            return Err("two disk requests with one tag");
        }
        self.state = state;
        Ok(())
    }
}

#[cfg(test)]
#[path = "block_tests.rs"]
mod tests;
