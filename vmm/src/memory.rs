//! Guest memory, and who wrote to it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use vm_memory::GuestMemoryMmap;
use vm_memory::bitmap::{Bitmap, BitmapSlice, NewBitmap, WithBitmapSlice};

/// Guest memory. What devices write to it is noted for the engine that keeps instructions decoded.
pub type GuestMemory = GuestMemoryMmap<Writes>;

const PAGE: usize = 4096;

/// Pages devices wrote to since somebody last asked; nothing while nobody does.
#[derive(Debug, Default)]
pub struct Writes {
    watched: AtomicBool,
    pages: Mutex<Vec<u64>>,
}

impl Writes {
    /// Begins to note.
    pub fn watch(&self) {
        self.watched.store(true, Ordering::Relaxed);
    }

    /// The pages written to since the last call, as numbers within the region; some may be there twice.
    pub fn take(&self) -> Vec<u64> {
        std::mem::take(&mut *self.pages.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn note(&self, offset: usize, len: usize) {
        if len == 0 || !self.watched.load(Ordering::Relaxed) {
            return;
        }
        let mut pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        let last = offset.saturating_add(len - 1) / PAGE;
        for page in offset / PAGE..=last {
            if pages.last() != Some(&(page as u64)) {
                pages.push(page as u64);
            }
        }
    }
}

impl<'a> WithBitmapSlice<'a> for Writes {
    type S = WritesFrom<'a>;
}

impl Bitmap for Writes {
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.note(offset, len);
    }

    fn dirty_at(&self, _: usize) -> bool {
        false
    }

    fn slice_at(&self, offset: usize) -> WritesFrom<'_> {
        WritesFrom {
            writes: self,
            offset,
        }
    }
}

impl NewBitmap for Writes {
    fn with_len(_: usize) -> Self {
        Self::default()
    }
}

impl<'a> WritesFrom<'a> {
    /// All of them.
    #[must_use]
    pub fn writes(self) -> &'a Writes {
        self.writes
    }
}

/// [`Writes`] seen from an offset.
#[derive(Clone, Copy, Debug)]
pub struct WritesFrom<'a> {
    writes: &'a Writes,
    offset: usize,
}

impl WithBitmapSlice<'_> for WritesFrom<'_> {
    type S = Self;
}

impl BitmapSlice for WritesFrom<'_> {}

impl Bitmap for WritesFrom<'_> {
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.writes.note(self.offset.saturating_add(offset), len);
    }

    fn dirty_at(&self, _: usize) -> bool {
        false
    }

    fn slice_at(&self, offset: usize) -> Self {
        Self {
            offset: self.offset.saturating_add(offset),
            ..*self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

    #[test]
    fn every_page_a_device_writes_is_noted_once_watched() {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        memory.write_obj(1u8, GuestAddress(0)).unwrap();
        let region = memory.iter().next().unwrap();
        assert!(region.bitmap().writes().take().is_empty());
        region.bitmap().writes().watch();
        memory
            .write_slice(&[1; 5000], GuestAddress(0x1ffe))
            .unwrap();
        memory.write_obj(1u64, GuestAddress(0x8ff8)).unwrap();
        memory.read_obj::<u64>(GuestAddress(0xa000)).unwrap();
        assert_eq!(region.bitmap().writes().take(), [1, 2, 3, 8]);
    }
}
