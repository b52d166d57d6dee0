//! All of a disk's contents: to compare two disks, and to make one of another.
//!
//! What is zero is the same whether the file has a block for it or a hole, and a hole is not read.

use super::blocks::BLOCK_BYTES;
use super::within;
use crate::memory::is_zero;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{Whence, lseek};
use replay::DiskPart;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use xxhash_rust::xxh3::Xxh3Default;

/// Most bytes of one part that are data.
const DATA_MAX: usize = 256 << 10;
/// Most bytes of one part that are zeros. Whoever waits for the next part is not to wait until a whole disk was read,
/// or written, that has nothing else.
const ZEROS_MAX: u64 = 64 << 20;

/// Hands `take` these zeros, if there are any.
fn hand_on_zeros(
    mut zeros: Range<u64>,
    take: &mut impl FnMut(DiskPart<'_>) -> io::Result<()>,
) -> io::Result<()> {
    while !zeros.is_empty() {
        let (at, length) = (zeros.start, ZEROS_MAX.min(zeros.end - zeros.start));
        take(DiskPart::Zeros { at, length })?;
        zeros.start += length;
    }
    Ok(())
}

/// The contents of a disk, which may be in use.
#[derive(Clone, Debug)]
pub struct Contents {
    file: Arc<File>,
    bytes: u64,
}

impl Contents {
    pub(super) fn new(file: Arc<File>, bytes: u64) -> Self {
        Self { file, bytes }
    }

    /// Size of the disk.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Hands `take` what is in these blocks, by number, in order and without a gap. A block that is written
    /// meanwhile may come half written.
    ///
    /// # Errors
    /// If the disk cannot be read, or those of `take`.
    pub fn parts(
        &self,
        blocks: Range<u64>,
        mut take: impl FnMut(DiskPart<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        let place = |block: u64| block.saturating_mul(BLOCK_BYTES).min(self.bytes);
        let (mut at, end) = (place(blocks.start), place(blocks.end));
        let mut zeros = at..at;
        let mut piece = vec![0; DATA_MAX];
        while at < end {
            let data = self.next_data(at)?;
            // Whole blocks, wherever the file system's begin.
            let from = place(data / BLOCK_BYTES).clamp(at, end);
            zeros.end = from;
            at = from;
            let to = end.min(at + DATA_MAX as u64);
            let piece = &mut piece[..(to - at) as usize];
            self.file.read_exact_at(piece, at)?;
            for block in piece.chunks(BLOCK_BYTES as usize) {
                if !is_zero(block) {
                    break;
                }
                zeros.end += block.len() as u64;
            }
            let skip = (zeros.end - at) as usize;
            at = to;
            if skip == piece.len() {
                if zeros.end - zeros.start >= ZEROS_MAX {
                    hand_on_zeros(zeros, &mut take)?;
                    zeros = at..at;
                }
                continue;
            }
            let first = zeros.end;
            hand_on_zeros(zeros, &mut take)?;
            let used = self.runs(&piece[skip..], first, &mut take)?;
            zeros = used..to;
        }
        hand_on_zeros(zeros, &mut take)
    }

    /// Hands on the runs of `bytes`, which begin at `at` with a block that is not zero; the place of the zeros
    /// at their end, which may go on behind them.
    fn runs(
        &self,
        bytes: &[u8],
        at: u64,
        take: &mut impl FnMut(DiskPart<'_>) -> io::Result<()>,
    ) -> io::Result<u64> {
        let block = BLOCK_BYTES as usize;
        let mut first = 0;
        loop {
            let zero = is_zero(&bytes[first..bytes.len().min(first + block)]);
            let same = |chunk: &&[u8]| is_zero(chunk) == zero;
            let count = bytes[first..].chunks(block).take_while(same).count();
            let end = bytes.len().min(first + count * block);
            let place = at + first as u64;
            match zero {
                true if end == bytes.len() => return Ok(place),
                true => take(DiskPart::Zeros {
                    at: place,
                    length: (end - first) as u64,
                })?,
                false => take(DiskPart::Data {
                    at: place,
                    bytes: &bytes[first..end],
                })?,
            }
            if end == bytes.len() {
                return Ok(at + end as u64);
            }
            first = end;
        }
    }

    /// The first place from `at` on that the file has data for; its end, if there is none.
    fn next_data(&self, at: u64) -> io::Result<u64> {
        let offset = i64::try_from(at).map_err(io::Error::other)?;
        match lseek(&*self.file, offset, Whence::SeekData) {
            Ok(data) => Ok(data.unsigned_abs()),
            Err(Errno::ENXIO) => Ok(self.bytes),
            // Its file system knows of no holes.
            Err(Errno::EINVAL) => Ok(at),
            Err(error) => Err(error.into()),
        }
    }

    /// A digest of the size and of every byte. Two disks of the same contents have the same, whatever holes there
    /// are.
    ///
    /// # Errors
    /// If the disk cannot be read.
    pub fn digest(&self) -> io::Result<u64> {
        let mut digest = Xxh3Default::new();
        digest.update(&self.bytes.to_le_bytes());
        self.parts(0..u64::MAX, |piece| {
            if let DiskPart::Data { at, bytes } = piece {
                for (number, block) in (at / BLOCK_BYTES..).zip(bytes.chunks(BLOCK_BYTES as usize))
                {
                    digest.update(&number.to_le_bytes());
                    digest.update(block);
                }
            }
            Ok(())
        })?;
        Ok(digest.digest())
    }

    /// Has what was put there so far on the storage.
    ///
    /// # Errors
    /// If that fails.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Puts `part` in the place of what is there.
    ///
    /// # Errors
    /// If it lies outside the disk, or cannot be written.
    pub fn put(&self, part: DiskPart<'_>) -> io::Result<()> {
        within(self.bytes, part.at(), part.length())?;
        match part {
            DiskPart::Data { at, bytes } => self.file.write_all_at(bytes, at),
            DiskPart::Zeros { length: 0, .. } => Ok(()),
            DiskPart::Zeros { at, length } => self.clear(at..at + length),
        }
    }

    /// Makes these bytes zeros, and if it can a hole.
    fn clear(&self, bytes: Range<u64>) -> io::Result<()> {
        let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let word = |n: u64| i64::try_from(n).map_err(io::Error::other);
        let (at, length) = (word(bytes.start)?, word(bytes.end - bytes.start)?);
        if fallocate(&*self.file, mode, at, length).is_ok() {
            return Ok(());
        }
        // Not every file system makes holes.
        let zeros = vec![0; DATA_MAX];
        let mut at = bytes.start;
        while at < bytes.end {
            let length = (bytes.end - at).min(DATA_MAX as u64);
            self.file.write_all_at(&zeros[..length as usize], at)?;
            at += length;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A disk of these bytes; as far as they are zero it has holes.
    fn disk(bytes: &[u8], sparse: bool) -> (tempfile::NamedTempFile, Contents) {
        let file = tempfile::NamedTempFile::new().expect("a file");
        file.as_file().set_len(bytes.len() as u64).expect("room");
        for (number, block) in bytes.chunks(BLOCK_BYTES as usize).enumerate() {
            if !sparse || !is_zero(block) {
                let at = number as u64 * BLOCK_BYTES;
                file.as_file().write_all_at(block, at).expect("room");
            }
        }
        let again = Arc::new(file.reopen().expect("it is there"));
        (file, Contents::new(again, bytes.len() as u64))
    }

    /// Contents of these blocks, `sectors` of the last.
    fn bytes(blocks: &[u8], sectors: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        for block in blocks {
            bytes.extend_from_slice(&[*block; BLOCK_BYTES as usize]);
        }
        bytes.truncate(bytes.len() - BLOCK_BYTES as usize + sectors * 512);
        bytes
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_disk_is_made_of_anothers_pieces(
            blocks in prop::collection::vec(prop_oneof![3 => Just(0u8), 1 => 1u8..4], 1..200),
            old in prop::collection::vec(0u8..3, 200),
            sectors in 1usize..8,
            sparse: bool,
        ) {
            let expected = bytes(&blocks, sectors);
            let (_file, from) = disk(&expected, sparse);
            let (to_file, to) = disk(&bytes(&old[..blocks.len()], sectors), true);
            let mut next = 0;
            from.parts(0..u64::MAX, |piece| {
                let (at, length) = match piece {
                    DiskPart::Data { at, bytes } => {
                        assert!(bytes.chunks(BLOCK_BYTES as usize).all(|block| !is_zero(block)));
                        assert!(bytes.len() <= DATA_MAX);
                        (at, bytes.len() as u64)
                    }
                    DiskPart::Zeros { at, length } => (at, length),
                };
                assert!(at == next && length > 0, "in order and without a gap");
                next += length;
                to.put(piece)
            }).unwrap();
            prop_assert_eq!(next, expected.len() as u64);
            prop_assert!(std::fs::read(to_file.path()).unwrap() == expected);
            prop_assert_eq!(from.digest().unwrap(), to.digest().unwrap());
        }
    }

    #[test]
    fn the_digest_sees_every_byte_and_the_size_and_no_holes() {
        let plain = bytes(&[0, 7, 0, 0, 9], 8);
        let digest = |bytes: &[u8], sparse| disk(bytes, sparse).1.digest().unwrap();
        let expected = digest(&plain, true);
        assert_eq!(digest(&plain, false), expected);
        for at in [0, 4095, 4096, 9000, plain.len() - 1] {
            let mut other = plain.clone();
            other[at] ^= 1;
            assert_ne!(digest(&other, true), expected, "byte {at}");
        }
        let longer = [plain, vec![0; 512]].concat();
        assert_ne!(digest(&longer, true), expected);
    }

    #[test]
    fn some_blocks_alone_are_those() {
        let (_file, disk) = disk(&bytes(&[1, 0, 2, 3], 3), true);
        let mut pieces = Vec::new();
        let mut take = |piece: DiskPart<'_>| {
            pieces.push(match piece {
                DiskPart::Data { at, bytes } => (at, bytes.len() as u64, bytes[0]),
                DiskPart::Zeros { at, length } => (at, length, 0),
            });
            Ok(())
        };
        disk.parts(1..2, &mut take).unwrap();
        disk.parts(2..4, &mut take).unwrap();
        assert_eq!(pieces, [(4096, 4096, 0), (8192, 4096 + 3 * 512, 2)]);
    }

    #[test]
    fn nothing_is_put_outside_the_disk() {
        let (file, disk) = disk(&[1; 1024], false);
        let bytes = &[2; 512][..];
        for at in [513, 1024, u64::MAX] {
            assert!(disk.put(DiskPart::Data { at, bytes }).is_err());
            assert!(disk.put(DiskPart::Zeros { at, length: 512 }).is_err());
        }
        assert_eq!(std::fs::read(file.path()).unwrap(), [1; 1024]);
    }
}
