//! Translations remembered.
//!
//! One table per [`Mode`] for data, direct-mapped, and one per privilege for instructions, in pairs, so that a change
//! of mode needs no flush. Its geometry is part of the machine's definition (see [`super`]).

use super::walk::{Found, Intent};
use super::{OFFSET, PAGE};
use std::mem::offset_of;

/// With whose rights memory is accessed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Mode {
    /// Rings 0 to 2.
    #[default]
    Supervisor = 0,
    /// Rings 0 to 2 under SMAP with AC clear.
    SupervisorStrict = 1,
    /// Ring 3.
    User = 2,
}

/// Data translations of each mode.
pub(crate) const ENTRIES: usize = 4096;
/// Pairs of instruction translations of each privilege.
pub(crate) const CODE_PAIRS: usize = 4096;
/// By so many bits a page number is moved and laid over itself for its place among them: programs and libraries lie
/// far apart, and their pages would have the same places.
pub(crate) const CODE_FOLD: u8 = CODE_PAIRS.trailing_zeros() as u8;
/// Bytes of one of a pair.
pub(crate) const CODE_ENTRY: usize = size_of::<CodeEntry>();

/// The tag of entry `n` if it is for no page. It is no multiple of a page, and so no page's.
///
/// Translated code takes a tag from an address and looks whether that is less than a page: no address that is looked up
/// in this entry is so near.
const fn none(n: usize) -> u64 {
    if n < 2 { 2 * PAGE + PAGE / 2 } else { PAGE / 2 }
}

/// A data translation.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Entry {
    /// The page, if it may be read straight from host memory.
    pub read: u64,
    /// The page, if it may be written straight to host memory.
    pub write: u64,
    /// Where the page is in the host.
    pub host: u64,
    /// Physical address of the page, and flags.
    physical: u64,
}

/// Flags in [`Entry::physical`].
mod flag {
    pub const GLOBAL: u64 = 1;
    pub const LARGE: u64 = 2;
    pub const WRITABLE: u64 = 4;
    pub const VALID: u64 = 8;
    /// It is in [`super::Tlb::local`].
    pub const LISTED_LOCAL: u64 = 16;
    /// It is in [`super::Tlb::global`].
    pub const LISTED_GLOBAL: u64 = 32;
    pub const LISTED: u64 = LISTED_LOCAL | LISTED_GLOBAL;
}

/// Entry `n` when it has no translation.
const fn empty(n: usize) -> Entry {
    Entry {
        read: none(n),
        write: none(n),
        host: 0,
        physical: 0,
    }
}

impl Entry {
    #[inline(always)]
    pub fn pointer(&self, address: u64) -> *mut u8 {
        std::ptr::with_exposed_provenance_mut((self.host + (address & OFFSET)) as usize)
    }
}

/// An instruction translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
struct CodeEntry {
    page: u64,
    /// Physical address of the page. Translated code reads this and the page.
    frame: u64,
    /// Of [`flag`].
    flags: u64,
    /// Of the first of a pair: the pair is in [`Tlb::code_used`]. It stays where it is when the translation moves.
    listed: u64,
}

impl CodeEntry {
    /// Has no translation from now on. It is listed, or not, as before.
    fn clear(&mut self) {
        *self = Self {
            listed: self.listed,
            ..CODE_EMPTY
        };
    }
}

/// The translation the stack was found with lately, where translated code has it without looking: a copy of what the
/// table has.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct Window {
    /// The page.
    pub page: u64,
    /// Where in it reads of up to 8 bytes have to begin before; 0 for nowhere.
    pub reads: u64,
    /// The same for writes.
    pub writes: u64,
    /// Where the page is in the host.
    pub host: u64,
}

/// No page has this number or address.
const NONE: u64 = 1;

const CODE_EMPTY: CodeEntry = CodeEntry {
    page: NONE,
    frame: 0,
    flags: 0,
    listed: 0,
};

/// All translations.
#[derive(Clone)]
#[repr(C)]
pub struct Tlb {
    /// With whose rights the running program accesses data.
    pub mode: Mode,
    data: Box<[[Entry; ENTRIES]; 3]>,
    /// The second of a pair is what the first was before.
    code: Box<[[[CodeEntry; 2]; CODE_PAIRS]; 2]>,
    /// Page numbers behind the tags, for the entries whose tags say nothing (device memory, code).
    pages: Box<[[u64; ENTRIES]; 3]>,
    /// For each mode.
    windows: [Window; 3],
    /// Which data entries are in use for pages that are not global, or were since the last flush, so that a flush
    /// touches no others.
    local: Vec<(u8, u16)>,
    /// The same for global pages.
    global: Vec<(u8, u16)>,
    /// The same for pairs of instruction translations of either kind.
    code_used: Vec<(u8, u16)>,
    /// Counts whenever an instruction translation that was there is no more. It never goes back.
    changes: u64,
    /// By a hash of its 1 GiB, whether a piece of a large page was remembered since all was forgotten.
    large: u64,
}

/// As many times `row`, where a stack need not have room for all.
fn rows<T: Clone, const N: usize>(row: &T) -> Box<[T; N]> {
    let rows = vec![row.clone(); N].into_boxed_slice();
    rows.try_into().ok().expect("as many as were made")
}

impl Default for Tlb {
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            data: rows(&std::array::from_fn(empty)),
            code: rows(&[[CODE_EMPTY; 2]; CODE_PAIRS]),
            pages: rows(&[NONE; ENTRIES]),
            windows: [Window::default(); 3],
            local: Vec::new(),
            global: Vec::new(),
            code_used: Vec::new(),
            changes: 0,
            large: 0,
        }
    }
}

fn index(address: u64) -> usize {
    (address / PAGE) as usize % ENTRIES
}

/// The bit of an address in [`Tlb::large`].
fn large_bit(address: u64) -> u64 {
    1 << ((address >> LARGEST) % 64)
}

/// log2 of the largest page.
const LARGEST: u64 = 30;

fn code_index(address: u64) -> usize {
    let page = address / PAGE;
    (page ^ page >> CODE_FOLD) as usize % CODE_PAIRS
}

impl Tlb {
    /// Where the data translations are, for each mode. They stay there as long as this is not replaced.
    pub(crate) fn data_tables(&mut self) -> [u64; 3] {
        let tables = self.data.each_mut();
        tables.map(|table| table.as_mut_ptr().expose_provenance() as u64)
    }

    /// Where the instruction translations are, for supervisor and user; as [`Tlb::data_tables`].
    ///
    /// They are in pairs. One is [`CODE_ENTRY`] bytes: the page's virtual address, its physical address, and more.
    pub(crate) fn code_tables(&mut self) -> [u64; 2] {
        let tables = self.code.each_mut();
        tables.map(|table| table.as_mut_ptr().expose_provenance() as u64)
    }

    /// Where the window of `mode` is in it.
    pub(crate) fn window_at(mode: Mode) -> usize {
        offset_of!(Self, windows) + mode as usize * size_of::<Window>()
    }

    /// Shuts the window of `mode` if it shows data entry `n`, which is about to be another.
    fn shut(&mut self, mode: usize, n: usize) {
        if index(self.windows[mode].page) == n {
            self.windows[mode] = Window::default();
        }
    }

    /// Where [`Tlb::changes`] is in it.
    pub(crate) const CHANGES_AT: usize = offset_of!(Self, changes);

    /// Counts a change of what jumps lead to.
    pub(crate) fn count_change(&mut self) {
        self.changes += 1;
    }

    /// Whether it remembers what `other` does, which is of a processor with memory elsewhere in the host.
    #[doc(hidden)]
    #[must_use]
    pub fn remembers_as(&self, other: &Self) -> bool {
        let data = |tlb: &Self| {
            let entries = tlb.data.as_flattened().iter();
            entries
                .map(|e| (e.read, e.write, e.physical))
                .collect::<Vec<_>>()
        };
        self.mode == other.mode
            && data(self) == data(other)
            && (&self.pages, &self.code) == (&other.pages, &other.code)
            && (&self.local, &self.global) == (&other.local, &other.global)
            && self.code_used == other.code_used
    }

    /// The entry `address` would be in.
    #[inline(always)]
    pub(super) fn entry(&self, address: u64) -> &Entry {
        &self.data[self.mode as usize][index(address)]
    }

    /// The physical address of the instruction at `address`, if its page is remembered.
    #[inline(always)]
    pub(crate) fn code(&self, address: u64, user: bool) -> Option<u64> {
        let pair = &self.code[usize::from(user)][code_index(address)];
        let entry = pair.iter().find(|entry| entry.page == address & !OFFSET)?;
        Some(entry.frame | address & OFFSET)
    }

    /// The page of `address` for this kind of access, if remembered.
    pub(super) fn lookup(&self, address: u64, intent: Intent, mode: Mode) -> Option<u64> {
        let page = address & !OFFSET;
        if intent == Intent::Execute {
            return self.code(page, mode == Mode::User);
        }
        let entry = &self.data[mode as usize][index(address)];
        let known = entry.physical & flag::VALID != 0
            && self.pages[mode as usize][index(address)] == page
            && (intent == Intent::Read || entry.physical & flag::WRITABLE != 0);
        known.then_some(entry.physical & !OFFSET)
    }

    /// Remembers what a walk found. `host`: where the page is, if it is RAM; `guarded`: something is to be
    /// noticed about writes to it, and so it is not written straight.
    pub(super) fn fill(
        &mut self,
        address: u64,
        intent: Intent,
        mode: Mode,
        found: &Found,
        host: Option<*mut u8>,
        guarded: bool,
    ) {
        let page = address & !OFFSET;
        let mut physical = found.physical & !OFFSET;
        physical |= u64::from(found.global) * flag::GLOBAL;
        physical |= u64::from(found.large) * flag::LARGE;
        if found.large {
            self.large |= large_bit(address);
        }
        if intent == Intent::Execute {
            let entry = CodeEntry {
                page,
                frame: physical & !OFFSET,
                flags: physical & OFFSET,
                listed: 0,
            };
            self.fill_code(entry, mode == Mode::User);
            return;
        }
        // Writable here means: writable and dirty already, so that the first write walks.
        physical |= (u64::from(found.writable) * flag::WRITABLE) | flag::VALID;
        let n = index(address);
        self.shut(mode as usize, n);
        let entry = &mut self.data[mode as usize][n];
        let (list, listed) = if found.global {
            (&mut self.global, flag::LISTED_GLOBAL)
        } else {
            (&mut self.local, flag::LISTED_LOCAL)
        };
        if entry.physical & listed == 0 {
            list.push((mode as u8, n as u16));
        }
        physical |= entry.physical & flag::LISTED | listed;
        self.pages[mode as usize][n] = page;
        *entry = Entry {
            read: if host.is_some() { page } else { none(n) },
            write: if host.is_some() && found.writable && !guarded {
                page
            } else {
                none(n)
            },
            host: host.map_or(0, |h| h.expose_provenance() as u64),
            physical,
        };
    }

    /// Remembers an instruction translation as the first of its pair. The first before becomes the second, which goes.
    fn fill_code(&mut self, entry: CodeEntry, user: bool) {
        let n = code_index(entry.page);
        let pair = &mut self.code[usize::from(user)][n];
        if pair[0].listed == 0 {
            self.code_used.push((user.into(), n as u16));
        }
        if ![NONE, entry.page].contains(&pair[0].page) {
            pair.swap(0, 1);
        }
        let gone = std::mem::replace(&mut pair[0], CodeEntry { listed: 1, ..entry });
        if pair[1].page == entry.page {
            pair[1] = CODE_EMPTY;
        }
        pair[1].listed = 0;
        self.changes += u64::from(gone.page != NONE);
    }

    /// Forgets everything but, unless `global`, global pages (a write to CR3; SDM volume 3, 4.10.4.1).
    pub fn flush(&mut self, global: bool) {
        self.changes += 1;
        self.windows = Default::default();
        for (mode, n) in self.local.drain(..) {
            let (mode, n) = (usize::from(mode), usize::from(n));
            let physical = self.data[mode][n].physical;
            if physical & flag::GLOBAL == 0 {
                self.data[mode][n] = empty(n);
                self.data[mode][n].physical = physical & flag::LISTED_GLOBAL;
                self.pages[mode][n] = NONE;
            } else {
                self.data[mode][n].physical &= !flag::LISTED_LOCAL;
            }
        }
        if global {
            self.large = 0;
            for (mode, n) in self.global.drain(..) {
                let (mode, n) = (usize::from(mode), usize::from(n));
                self.data[mode][n] = empty(n);
                self.pages[mode][n] = NONE;
            }
        }
        let code = &mut self.code;
        self.code_used.retain(|&(user, n)| {
            let pair = &mut code[usize::from(user)][usize::from(n)];
            for entry in pair.iter_mut() {
                if global || entry.flags & flag::GLOBAL == 0 {
                    *entry = CODE_EMPTY;
                }
            }
            let used = pair.iter().any(|entry| entry.page != NONE);
            pair[0].listed = used.into();
            used
        });
    }

    /// Forgets the page of `address` (INVLPG). Of a large page, which we keep in pieces, all of them have to go, and we
    /// do not know how large it was: it is all of the 1 GiB.
    pub fn flush_page(&mut self, address: u64) {
        let (n, page) = (index(address), address & !OFFSET);
        for mode in 0..3 {
            if self.pages[mode][n] == page {
                self.drop(mode, n);
            }
        }
        for code in self.code.iter_mut() {
            for entry in &mut code[code_index(address)] {
                if entry.page == page {
                    entry.clear();
                    self.changes += 1;
                }
            }
        }
        if self.large & large_bit(address) != 0 {
            self.flush_pieces(address);
        }
    }

    /// Forgets every piece of large pages in the 1 GiB of `address`.
    fn flush_pieces(&mut self, address: u64) {
        self.changes += 1;
        let near = |page: u64| page >> LARGEST == address >> LARGEST;
        for at in 0..self.local.len() + self.global.len() {
            let (mode, n) = self.used(at);
            if self.data[mode][n].physical & flag::LARGE != 0 && near(self.pages[mode][n]) {
                self.drop(mode, n);
            }
        }
        for &(user, n) in &self.code_used {
            for entry in &mut self.code[usize::from(user)][usize::from(n)] {
                if entry.flags & flag::LARGE != 0 && near(entry.page) {
                    entry.clear();
                }
            }
        }
    }

    /// Which table and entry the data entry is that is listed as number `at`. One may be listed twice.
    fn used(&self, at: usize) -> (usize, usize) {
        let beyond = at.wrapping_sub(self.local.len());
        let (mode, n) = *self.local.get(at).unwrap_or_else(|| &self.global[beyond]);
        (mode.into(), n.into())
    }

    /// Forgets a data translation.
    fn drop(&mut self, mode: usize, n: usize) {
        self.shut(mode, n);
        let listed = self.data[mode][n].physical & flag::LISTED;
        self.data[mode][n] = empty(n);
        self.data[mode][n].physical = listed;
        self.pages[mode][n] = NONE;
    }

    /// A copy made earlier is to take the place of `before`, as `is_guarded` says which physical pages are not written
    /// straight now.
    pub(crate) fn replace(&mut self, before: &Self, is_guarded: impl Fn(u64) -> bool) {
        self.changes = self.changes.max(before.changes) + 1;
        self.tag_writes(is_guarded);
    }

    /// Lets pages be written straight, or not, as `is_guarded` says of their physical addresses.
    pub(super) fn tag_writes(&mut self, is_guarded: impl Fn(u64) -> bool) {
        self.windows = Default::default();
        for at in 0..self.local.len() + self.global.len() {
            let (mode, n) = self.used(at);
            let entry = &mut self.data[mode][n];
            let direct = entry.read != none(n) && entry.physical & flag::WRITABLE != 0;
            entry.write = if direct && !is_guarded(entry.physical & !OFFSET) {
                self.pages[mode][n]
            } else {
                none(n)
            };
        }
    }

    /// Makes writes to physical `page` (an address) go the slow way: it has decoded instructions now.
    pub(crate) fn guard(&mut self, page: u64) {
        self.windows = Default::default();
        for at in 0..self.local.len() + self.global.len() {
            let (mode, n) = self.used(at);
            let entry = &mut self.data[mode][n];
            if entry.physical & !OFFSET == page {
                entry.write = none(n);
            }
        }
    }

    /// The opposite of [`Tlb::guard`].
    pub(super) fn unguard(&mut self, page: u64) {
        self.windows = Default::default();
        for at in 0..self.local.len() + self.global.len() {
            let (mode, n) = self.used(at);
            let entry = &mut self.data[mode][n];
            let ram = entry.read != none(n);
            if entry.physical & !OFFSET == page && ram && entry.physical & flag::WRITABLE != 0 {
                entry.write = self.pages[mode][n];
            }
        }
    }
}
