//! Guest memory, and who wrote to it.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use vm_memory::bitmap::{Bitmap, BitmapSlice, NewBitmap, WithBitmapSlice};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

/// Guest memory. What devices write to it is noted for the engine that keeps instructions decoded.
pub type GuestMemory = GuestMemoryMmap<Writes>;

/// Bytes of a page of guest memory.
pub const PAGE_BYTES: u64 = 4096;
const PAGE: usize = PAGE_BYTES as usize;

/// The numbers of the pages that were written to since this was last asked, through [`GuestMemory`] as it is
/// seen here; some may be there twice. Nothing where nobody watches.
pub fn written(memory: &GuestMemory) -> impl Iterator<Item = u64> {
    memory.iter().flat_map(|region| {
        let first = region.start_addr().0 / PAGE_BYTES;
        let pages = region.bitmap().writes().take();
        pages.into_iter().map(move |page| first + page)
    })
}

/// How many pages there are, up to the last.
#[must_use]
pub fn page_count(memory: &GuestMemory) -> u64 {
    memory.last_addr().0 / PAGE_BYTES + 1
}

/// The pages of `pages`, by number, that the host has given memory for. All others are zero, and it takes no
/// look at them to know that: a look at each page of a large memory takes long, and the host tables for it.
///
/// Where the host does not say, it is all of them. A page that is written meanwhile may be missing.
#[must_use]
pub fn populated(memory: &GuestMemory, pages: Range<u64>) -> PageSet {
    let mut found = PageSet::new(page_count(memory));
    let pagemap = File::open("/proc/self/pagemap").and_then(|pagemap| {
        // It may be there and tell nothing: of a page that is surely there it has to say so.
        let (sure, mut seen) = (std::hint::black_box(1u8), PageSet::new(1));
        look_up(
            &pagemap,
            &raw const sure as u64 / PAGE_BYTES,
            0..1,
            &mut seen,
        )?;
        let tells = seen.contains(0);
        tells
            .then_some(pagemap)
            .ok_or(io::ErrorKind::Unsupported.into())
    });
    for region in memory.iter() {
        let first = region.start_addr().0 / PAGE_BYTES;
        let within = pages.start.max(first)..pages.end.min(first + region.len() / PAGE_BYTES);
        if within.is_empty() {
            continue;
        }
        let host = region.as_ptr() as u64 / PAGE_BYTES + (within.start - first);
        // What is shared may be there without being in this process's tables.
        let private = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let looked = match &pagemap {
            Ok(pagemap) if region.flags() & private == private => {
                look_up(pagemap, host, within.clone(), &mut found).is_ok()
            }
            _ => false,
        };
        if !looked {
            found.insert(within);
        }
    }
    found
}

/// Adds the pages of `pages` that are present or swapped out, as `pagemap` says of the host's pages from number
/// `host` on: a word of 64 bits each (Linux, Documentation/admin-guide/mm/pagemap.rst).
fn look_up(pagemap: &File, host: u64, pages: Range<u64>, found: &mut PageSet) -> io::Result<()> {
    /// Bit 63: present; bit 62: swapped out.
    const THERE: u64 = 3 << 62;
    const WORDS: u64 = 8 << 10;
    let mut words = vec![0; (WORDS.min(pages.end - pages.start) * 8) as usize];
    let mut page = pages.start;
    while page < pages.end {
        let count = WORDS.min(pages.end - page);
        let bytes = &mut words[..(count * 8) as usize];
        pagemap.read_exact_at(bytes, (host + page - pages.start) * 8)?;
        for (number, word) in (page..).zip(bytes.as_chunks::<8>().0) {
            if u64::from_ne_bytes(*word) & THERE != 0 {
                found.insert(number..number + 1);
            }
        }
        page += count;
    }
    Ok(())
}

/// Bytes [`clear`] looks at together.
const PIECE: u64 = 64 << 10;

/// Fills `range`, of whole pages, with zeros. What is zero already is not written, so that memory the guest never
/// used stays memory the host need not have.
///
/// # Panics
/// If the range is not all memory, or not of whole pages.
pub fn clear(memory: &GuestMemory, range: Range<u64>) {
    assert!(
        [range.start, range.end]
            .iter()
            .all(|at| at.is_multiple_of(PAGE_BYTES))
    );
    if range.end - range.start <= PIECE {
        return clear_each(memory, range);
    }
    let pages = range.start / PAGE_BYTES..range.end / PAGE_BYTES;
    for run in populated(memory, pages).runs() {
        clear_each(memory, run.start * PAGE_BYTES..run.end * PAGE_BYTES);
    }
}

/// [`clear`], of what the host has memory for.
fn clear_each(memory: &GuestMemory, range: Range<u64>) {
    let zeros = [0; PIECE as usize];
    let mut piece = [0; PIECE as usize];
    let mut first = range.start;
    while first < range.end {
        let length = PIECE.min(range.end - first) as usize;
        let (at, there) = (GuestAddress(first), "the range is memory");
        memory.read_slice(&mut piece[..length], at).expect(there);
        if piece[..length] != zeros[..length] {
            memory.write_slice(&zeros[..length], at).expect(there);
        }
        first += length as u64;
    }
}

/// Whether all of `bytes` are zero.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    // Whole words: they are checked at the speed of memory.
    let (words, rest) = bytes.as_chunks::<16>();
    words.iter().all(|word| *word == [0; 16]) && rest.iter().all(|byte| *byte == 0)
}

/// A set of guest pages, by number: one bit for each page there is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PageSet {
    words: Vec<u64>,
    pages: u64,
}

impl PageSet {
    /// An empty set out of `pages` pages.
    #[must_use]
    pub fn new(pages: u64) -> Self {
        let words = usize::try_from(pages.div_ceil(64)).expect("the pages of memory");
        Self {
            words: vec![0; words],
            pages,
        }
    }

    /// Adds these pages; those that there are not are left out.
    pub fn insert(&mut self, pages: Range<u64>) {
        for page in pages.start..pages.end.min(self.pages) {
            self.words[(page / 64) as usize] |= 1 << (page % 64);
        }
    }

    /// Adds the pages of `other`.
    pub fn extend(&mut self, other: &Self) {
        self.insert_words(&other.words);
    }

    /// Takes these pages out.
    pub fn remove(&mut self, pages: Range<u64>) {
        for page in pages.start..pages.end.min(self.pages) {
            self.words[(page / 64) as usize] &= !(1 << (page % 64));
        }
    }

    /// Adds the pages whose bits are set in these words: 64 pages each, from page 0 on. Those that there
    /// are not are left out.
    pub fn insert_words(&mut self, words: &[u64]) {
        for (word, more) in self.words.iter_mut().zip(words) {
            *word |= more;
        }
        if let (Some(last), used @ 1..) = (self.words.last_mut(), self.pages % 64) {
            *last &= (1 << used) - 1;
        }
    }

    /// Whether the page is in it.
    #[must_use]
    pub fn contains(&self, page: u64) -> bool {
        let word = self.words.get((page / 64) as usize);
        word.is_some_and(|word| word >> (page % 64) & 1 != 0)
    }

    /// How many are in it.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.words
            .iter()
            .map(|word| u64::from(word.count_ones()))
            .sum()
    }

    /// Whether none is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// The pages, rising.
    pub fn iter(&self) -> impl Iterator<Item = u64> {
        (0u64..).zip(&self.words).flat_map(|(n, word)| {
            let some = |word: u64| (word != 0).then_some(word);
            let bits = std::iter::successors(some(*word), move |word| some(word & (word - 1)));
            bits.map(move |word| n * 64 + u64::from(word.trailing_zeros()))
        })
    }

    /// The pages, rising, as the longest runs there are.
    pub fn runs(&self) -> impl Iterator<Item = Range<u64>> {
        let mut pages = self.iter().peekable();
        std::iter::from_fn(move || {
            let first = pages.next()?;
            let mut end = first + 1;
            while pages.next_if_eq(&end).is_some() {
                end += 1;
            }
            Some(first..end)
        })
    }
}

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

    /// Notes nothing from now on, and forgets what was noted.
    pub fn unwatch(&self) {
        self.watched.store(false, Ordering::Relaxed);
        self.take();
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

    #[test]
    fn a_set_of_pages_says_what_was_put_into_it_and_no_more() {
        let mut set = PageSet::new(70);
        assert!(set.is_empty() && set.iter().next().is_none());
        set.insert(3..4);
        set.insert(62..66);
        set.insert(69..90);
        assert_eq!(set.iter().collect::<Vec<_>>(), [3, 62, 63, 64, 65, 69]);
        assert_eq!(set.runs().collect::<Vec<_>>(), [3..4, 62..66, 69..70]);
        assert!(set.contains(69) && !set.contains(70) && !set.contains(1 << 40));
        set.insert_words(&[1, u64::MAX, 7]);
        assert_eq!(set.len(), 4 + 6);
        assert!(set.contains(0) && set.contains(66) && !set.is_empty());
        assert_eq!(set.runs().last(), Some(62..70));
        set.remove(1..65);
        set.remove(70..90);
        assert_eq!(set.runs().collect::<Vec<_>>(), [0..1, 65..70]);
        let mut more = PageSet::new(70);
        more.insert(7..9);
        more.extend(&set);
        assert_eq!(more.runs().collect::<Vec<_>>(), [0..1, 7..9, 65..70]);
    }

    #[test]
    fn what_the_host_has_no_memory_for_is_known_without_a_look() {
        let parts = [
            (GuestAddress(0), 64 << 20),
            (GuestAddress(64 << 20), 1 << 20),
        ];
        let memory = GuestMemory::from_ranges(&parts).unwrap();
        assert!(populated(&memory, 0..page_count(&memory)).is_empty());
        let written = [0, 77, 0x3fff, 0x4000, 0x40ff];
        for page in written {
            memory
                .write_obj(1u8, GuestAddress(page * PAGE_BYTES + 9))
                .unwrap();
        }
        let all = populated(&memory, 0..page_count(&memory));
        // The host may have given a larger page than was asked for.
        assert!(written.iter().all(|page| all.contains(*page)));
        let some = populated(&memory, 78..0x4001);
        assert!(some.contains(0x3fff) && some.contains(0x4000));
        assert!(!some.contains(77) && !some.contains(0x40ff));
        clear(&memory, 0..65 << 20);
        let mut found = vec![1; 65 << 20];
        memory.read_slice(&mut found, GuestAddress(0)).unwrap();
        assert!(found.iter().all(|byte| *byte == 0));
    }

    #[test]
    fn memory_is_cleared_in_the_range_and_nowhere_else() {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let all = vec![7; 1 << 20];
        memory.write_slice(&all, GuestAddress(0)).unwrap();
        clear(&memory, 0x3000..0x2_5000);
        let mut found = vec![0; 1 << 20];
        memory.read_slice(&mut found, GuestAddress(0)).unwrap();
        let mut expected = all;
        expected[0x3000..0x2_5000].fill(0);
        assert!(found == expected);
    }

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
