//! ELF64 images: checked before the loader sees them.

use super::BootError;
use crate::memory::GuestMemory;
use linux_loader::loader::{Elf as Loader, KernelLoader};
use std::io::Cursor;
use vm_memory::GuestAddress;

/// `e_machine` of x86-64 (System V ABI, AMD64 supplement, 4.1.1).
const X86_64: u64 = 62;
/// Where virtual addresses of the upper half begin (SDM volume 1, 3.3.7.1): only a kernel that maps
/// itself there is linked to them.
const UPPER_HALF: u64 = 0xffff_8000_0000_0000;
/// Bytes of a program header, and its type for what is to be loaded.
const HEADER_LEN: usize = 56;
const LOAD: u64 = 1;

/// What an ELF file says of its segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Elf {
    /// First physical address after the segments, BSS included, which the loader does not look at.
    pub end: u64,
    /// Whether it is linked to the upper half, as a Linux kernel is, and none of our guests.
    pub high: bool,
}

impl Elf {
    /// Whether `image` is an ELF file at all.
    pub(super) fn is(image: &[u8]) -> bool {
        image.starts_with(b"\x7fELF")
    }

    /// Checks the headers of `image`.
    pub(super) fn parse(image: &[u8]) -> Result<Self, BootError> {
        let broken = |why: &str| BootError::Image(why.to_owned());
        let word = |at: usize, size: usize| -> Result<u64, BootError> {
            let bytes = at
                .checked_add(size)
                .and_then(|end| image.get(at..end))
                .ok_or_else(|| broken("it is cut short"))?;
            let mut value = [0; 8];
            value[..size].copy_from_slice(bytes);
            Ok(u64::from_le_bytes(value))
        };
        // ELF64 header: magic, class 64, little-endian; e_machine at 18, e_phoff at 32, e_phnum at 56.
        if image.get(..6) != Some(b"\x7fELF\x02\x01") {
            return Err(broken("it is not an ELF64 file for x86-64"));
        }
        match word(18, 2)? {
            X86_64 => {}
            other => return Err(BootError::Architecture(format!("ELF machine {other}"))),
        }
        let table = usize::try_from(word(32, 8)?).map_err(|_| broken("its header is broken"))?;
        let (mut end, mut high) = (0, false);
        for n in 0..usize::try_from(word(56, 2)?).expect("16 bits") {
            let at = table
                .checked_add(n * HEADER_LEN)
                .filter(|at| *at < image.len())
                .ok_or_else(|| broken("its program header lies outside the file"))?;
            if word(at, 4)? != LOAD {
                continue;
            }
            let (start, size) = (word(at + 24, 8)?, word(at + 40, 8)?);
            if start < abi::IMAGE_BASE {
                return Err(broken("a segment lies below 1 MiB"));
            }
            let last = start
                .checked_add(size)
                .ok_or_else(|| broken("a segment has no end"))?;
            end = end.max(last);
            high |= word(at + 16, 8)? >= UPPER_HALF;
        }
        if end == 0 {
            return Err(broken("it has nothing to load"));
        }
        Ok(Self { end, high })
    }

    /// Puts the segments into `memory`; the entry's address. [`Elf::end`] must lie within memory.
    pub(super) fn load(self, image: &[u8], memory: &GuestMemory) -> Result<u64, BootError> {
        let base = GuestAddress(abi::IMAGE_BASE);
        let loaded = Loader::load(memory, None, &mut Cursor::new(image), Some(base))
            .map_err(|e| BootError::Image(e.to_string()))?;
        Ok(loaded.kernel_load.0)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// An ELF file with one segment of a few bytes, at `physical`, linked to `linked`.
    pub(crate) fn file(physical: u64, linked: u64, memory_size: u64) -> Vec<u8> {
        let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
        bytes.resize(16, 0);
        for (value, size) in [
            (2u64, 2),
            (X86_64, 2),
            (1, 4),
            (physical, 8),
            (64, 8),
            (0, 8),
        ] {
            bytes.extend_from_slice(&value.to_le_bytes()[..size]);
        }
        for (value, size) in [(0u64, 4), (64, 2), (56, 2), (1, 2), (64, 2), (0, 2), (0, 2)] {
            bytes.extend_from_slice(&value.to_le_bytes()[..size]);
        }
        assert_eq!(bytes.len(), 64);
        for (value, size) in [(1u64, 4), (5, 4), (120, 8), (linked, 8), (physical, 8)] {
            bytes.extend_from_slice(&value.to_le_bytes()[..size]);
        }
        for value in [4u64, memory_size, 0x1000] {
            bytes.extend_from_slice(&value.to_le_bytes());
        }
        bytes.extend_from_slice(&[0xf4; 4]);
        bytes
    }

    #[test]
    fn the_end_counts_what_is_not_in_the_file() {
        let found = Elf::parse(&file(0x10_0000, 0x10_0000, 0x5000)).unwrap();
        let expected = Elf {
            end: 0x10_5000,
            high: false,
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn a_kernel_is_told_by_where_it_is_linked() {
        let linked = 0xffff_ffff_8100_0000;
        assert!(Elf::parse(&file(0x100_0000, linked, 8)).unwrap().high);
    }

    #[test]
    fn broken_files_are_refused() {
        let good = file(0x10_0000, 0x10_0000, 8);
        for cut in 0..112 {
            assert!(Elf::parse(&good[..cut]).is_err(), "cut at {cut}");
        }
        assert!(Elf::parse(&file(0x1000, 0, 8)).is_err(), "below 1 MiB");
        assert!(Elf::parse(&file(u64::MAX, 0, 8)).is_err(), "no end");
        let mut other = good;
        other[18] = 183; // EM_AARCH64
        assert!(matches!(
            Elf::parse(&other),
            Err(BootError::Architecture(_))
        ));
    }
}
