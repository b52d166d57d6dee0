//! RAM: where it is in the host, which pages have decoded instructions, and which were written to.

use super::{OFFSET, PAGE};

/// A stretch of guest-physical memory backed by host memory.
#[derive(Clone, Copy, Debug)]
pub struct Region {
    /// First guest-physical address; a multiple of a page.
    pub start: u64,
    /// Bytes; a multiple of a page.
    pub len: u64,
    host: *mut u8,
}

impl Region {
    /// Guest memory `start..start + len`, at `host`.
    ///
    /// # Safety
    /// `host` must be a multiple of 16 and point to `len` bytes of memory that can be read and written, that live as long as
    /// every processor using this region, and that nobody else touches while it runs.
    #[must_use]
    pub unsafe fn new(start: u64, len: u64, host: *mut u8) -> Self {
        assert!(start & OFFSET == 0 && len & OFFSET == 0, "whole pages");
        // What is aligned for the guest has to be for the host's instructions.
        assert!(host.addr().is_multiple_of(16), "aligned to 16");
        Self { start, len, host }
    }
}

/// All RAM.
#[derive(Clone, Debug)]
pub struct Physical {
    /// The regions; the first is looked at first.
    regions: Vec<Region>,
    /// For each page of the first region: it has decoded instructions.
    code: Vec<bool>,
    /// For each page whose writes are noted, a bit: it was written to since somebody last asked. Empty
    /// while nobody asks.
    written: Vec<u64>,
}

impl Physical {
    /// RAM of these regions, which do not overlap. Instructions are kept decoded in the first only.
    #[must_use]
    pub fn new(regions: Vec<Region>) -> Self {
        let pages = regions.first().map_or(0, |r| r.start / PAGE + r.len / PAGE);
        let code = vec![false; usize::try_from(pages).expect("fits the host")];
        Self {
            regions,
            code,
            written: Vec::new(),
        }
    }

    /// Where `size` bytes at `address` are in the host; `None` if they are not RAM.
    fn pointer(&self, address: u64, size: u64) -> Option<*mut u8> {
        let region = self.regions.iter().find(|r| {
            address >= r.start && address - r.start < r.len && r.len - (address - r.start) >= size
        })?;
        Some(region.host.wrapping_add((address - region.start) as usize))
    }

    /// Where the page of `address` is in the host.
    pub(super) fn page(&self, address: u64) -> Option<*mut u8> {
        self.pointer(address & !OFFSET, PAGE)
    }

    /// The host's pointer to `address`, good to the end of its page; `None` if that is not RAM.
    pub(crate) fn host(&self, address: u64) -> Option<*mut u8> {
        let page = self.page(address)?;
        Some(page.wrapping_add((address & OFFSET) as usize))
    }

    /// Reads up to 8 bytes.
    #[must_use]
    pub fn read(&self, address: u64, size: u64) -> Option<u64> {
        let from = self.pointer(address, size)?;
        let mut bytes = [0; 8];
        // SAFETY: `pointer` vouches for `size` bytes, at most 8 here.
        unsafe { std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), size.min(8) as usize) };
        Some(u64::from_le_bytes(bytes))
    }

    /// Writes up to 8 bytes; false if they are not RAM.
    pub fn write(&mut self, address: u64, value: u64, size: u64) -> bool {
        let Some(to) = self.pointer(address, size) else {
            return false;
        };
        let bytes = value.to_le_bytes();
        // SAFETY: as in `read`.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, size.min(8) as usize) };
        true
    }

    /// Copies `bytes.len()` bytes out; false if they are not all in one region.
    pub fn read_bytes(&self, address: u64, bytes: &mut [u8]) -> bool {
        let Some(from) = self.pointer(address, bytes.len() as u64) else {
            return false;
        };
        // SAFETY: as in `read`; the slice is ours, not guest memory.
        unsafe { std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), bytes.len()) };
        true
    }

    /// Whether the page of `address` has decoded instructions.
    #[inline]
    #[must_use]
    pub fn has_code(&self, address: u64) -> bool {
        self.code
            .get((address / PAGE) as usize)
            .copied()
            .unwrap_or(false)
    }

    /// Whether something is to be noticed about a write to the page of `address`: it has decoded
    /// instructions, or would be the first one noted.
    #[inline]
    #[must_use]
    pub(crate) fn is_guarded(&self, address: u64) -> bool {
        self.has_code(address) || self.is_clean(address)
    }

    /// Whether writes to the page of `address` are noted and there was none yet.
    fn is_clean(&self, address: u64) -> bool {
        let page = address / PAGE;
        let word = self.written.get((page / 64) as usize);
        word.is_some_and(|word| word >> (page % 64) & 1 == 0)
    }

    /// Notes a write to the page of `address`; whether it is the first.
    pub(super) fn note_write(&mut self, address: u64) -> bool {
        let first = self.is_clean(address);
        if first {
            let page = address / PAGE;
            self.written[(page / 64) as usize] |= 1 << (page % 64);
        }
        first
    }

    /// From now on notes writes to the first `pages` pages, a multiple of 64; with 0, to none.
    pub(crate) fn note_writes(&mut self, pages: u64) {
        assert!(pages.is_multiple_of(64), "whole words");
        self.written = vec![0; (pages / 64) as usize];
    }

    /// The pages noted so far, a bit each; none is from now on.
    pub(crate) fn take_written(&mut self) -> Vec<u64> {
        let clean = vec![0; self.written.len()];
        std::mem::replace(&mut self.written, clean)
    }

    /// Notes whether page `page` has decoded instructions. False if it cannot be noted: instructions
    /// there must not be kept.
    pub(crate) fn set_code(&mut self, page: u64, code: bool) -> bool {
        match self.code.get_mut(page as usize) {
            Some(flag) => {
                *flag = code;
                true
            }
            None => false,
        }
    }
}
