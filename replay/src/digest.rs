//! Digests compared between recording and replay.

use crate::event::Output;
use crate::point::RegisterDigest;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// Digest of RIP, RFLAGS and the sixteen general registers, given in that order.
#[must_use]
pub fn registers(rip: u64, rflags: u64, general: &[u64; 16]) -> RegisterDigest {
    let mut bytes = [0u8; 18 * 8];
    bytes[..8].copy_from_slice(&rip.to_le_bytes());
    bytes[8..16].copy_from_slice(&rflags.to_le_bytes());
    for (chunk, value) in bytes[16..].chunks_exact_mut(8).zip(general) {
        chunk.copy_from_slice(&value.to_le_bytes());
    }
    RegisterDigest(low32(xxh3_64(&bytes)))
}

/// Digest of an output: its kind, place and bytes.
#[must_use]
pub fn output(output: &Output) -> u32 {
    let mut hash = Xxh3::new();
    let mut head = |kind: u8, tag: u32, offset: u64, body: &[u8]| {
        hash.update(&[kind]);
        hash.update(&tag.to_le_bytes());
        hash.update(&offset.to_le_bytes());
        hash.update(body);
    };
    match output {
        Output::Frame(bytes) => head(0, 0, 0, bytes),
        Output::Console(bytes) => head(1, 0, 0, bytes),
        Output::DiskRead { tag, offset, len } => head(2, *tag, *offset, &len.to_le_bytes()),
        Output::DiskWrite { tag, offset, data } => head(3, *tag, *offset, data),
        Output::DiskFlush { tag } => head(4, *tag, 0, &[]),
        Output::PowerOff { code } => head(5, *code, 0, &[]),
    }
    low32(hash.digest())
}

/// A running 64-bit digest over state.
#[derive(Default)]
pub struct StateHasher(Xxh3);

impl StateHasher {
    /// Takes more bytes in.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of everything taken in.
    #[must_use]
    pub fn finish(&self) -> u64 {
        self.0.digest()
    }
}

#[allow(clippy::cast_possible_truncation, reason = "the low half is wanted")]
fn low32(value: u64) -> u32 {
    value as u32
}
