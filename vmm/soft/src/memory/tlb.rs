//! Translations remembered.
//!
//! Direct-mapped, one table per [`Mode`] for data and one per privilege for instructions, so that a
//! change of mode needs no flush. Its geometry is part of the machine's definition (see [`super`]).

use super::walk::{Found, Intent};
use super::{OFFSET, PAGE};

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

const ENTRIES: usize = 1024;
const CODE_ENTRIES: usize = 512;
/// No page has this tag.
const NONE: u64 = 1;

/// A data translation.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct Entry {
    /// The page, if it may be read straight from host memory.
    pub read: u64,
    /// The page, if it may be written straight to host memory.
    pub write: u64,
    /// Host address minus virtual address.
    addend: u64,
    /// Physical address of the page, and flags.
    physical: u64,
}

/// Flags in [`Entry::physical`].
mod flag {
    pub const GLOBAL: u64 = 1;
    pub const LARGE: u64 = 2;
    pub const WRITABLE: u64 = 4;
    pub const VALID: u64 = 8;
}

const EMPTY: Entry = Entry {
    read: NONE,
    write: NONE,
    addend: 0,
    physical: 0,
};

impl Entry {
    #[inline(always)]
    pub fn pointer(&self, address: u64) -> *mut u8 {
        std::ptr::with_exposed_provenance_mut(address.wrapping_add(self.addend) as usize)
    }
}

/// An instruction translation.
#[derive(Clone, Copy, Debug)]
struct CodeEntry {
    page: u64,
    physical: u64,
}

const CODE_EMPTY: CodeEntry = CodeEntry {
    page: NONE,
    physical: 0,
};

/// All translations.
#[derive(Clone)]
pub struct Tlb {
    /// With whose rights the running program accesses data.
    pub mode: Mode,
    data: Box<[[Entry; ENTRIES]; 3]>,
    /// Page numbers behind the tags, for the entries whose tags say nothing (device memory, code).
    pages: Box<[[u64; ENTRIES]; 3]>,
    code: Box<[[CodeEntry; CODE_ENTRIES]; 2]>,
    /// Which data entries are in use, so that a flush touches no others.
    used: Vec<(u8, u16)>,
}

impl Default for Tlb {
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            data: Box::new([[EMPTY; ENTRIES]; 3]),
            pages: Box::new([[NONE; ENTRIES]; 3]),
            code: Box::new([[CODE_EMPTY; CODE_ENTRIES]; 2]),
            used: Vec::new(),
        }
    }
}

fn index(address: u64) -> usize {
    (address / PAGE) as usize % ENTRIES
}

fn code_index(address: u64) -> usize {
    (address / PAGE) as usize % CODE_ENTRIES
}

impl Tlb {
    /// The entry `address` would be in.
    #[inline(always)]
    pub(super) fn entry(&self, address: u64) -> &Entry {
        &self.data[self.mode as usize][index(address)]
    }

    /// The physical address of the instruction at `address`, if its page is remembered.
    #[inline(always)]
    pub(crate) fn code(&self, address: u64, user: bool) -> Option<u64> {
        let entry = &self.code[usize::from(user)][code_index(address)];
        (entry.page == address & !OFFSET).then_some(entry.physical & !OFFSET | address & OFFSET)
    }

    /// The page of `address` for this kind of access, if remembered.
    pub(super) fn lookup(&self, address: u64, intent: Intent, mode: Mode) -> Option<u64> {
        let page = address & !OFFSET;
        if intent == Intent::Execute {
            let entry = &self.code[usize::from(mode == Mode::User)][code_index(address)];
            return (entry.page == page).then_some(entry.physical & !OFFSET);
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
        if intent == Intent::Execute {
            let entry = &mut self.code[usize::from(mode == Mode::User)][code_index(address)];
            *entry = CodeEntry { page, physical };
            return;
        }
        // Writable here means: writable and dirty already, so that the first write walks.
        physical |= (u64::from(found.writable) * flag::WRITABLE) | flag::VALID;
        let n = index(address);
        let entry = &mut self.data[mode as usize][n];
        if entry.physical & flag::VALID == 0 {
            self.used.push((mode as u8, n as u16));
        }
        self.pages[mode as usize][n] = page;
        let addend = host.map_or(0, |h| (h.expose_provenance() as u64).wrapping_sub(page));
        *entry = Entry {
            read: if host.is_some() { page } else { NONE },
            write: if host.is_some() && found.writable && !guarded {
                page
            } else {
                NONE
            },
            addend,
            physical,
        };
    }

    /// Forgets everything but, unless `global`, global pages (a write to CR3; SDM volume 3, 4.10.4.1).
    pub fn flush(&mut self, global: bool) {
        let (data, pages) = (&mut self.data, &mut self.pages);
        self.used.retain(|&(mode, n)| {
            let (mode, n) = (usize::from(mode), usize::from(n));
            let keep = !global && data[mode][n].physical & flag::GLOBAL != 0;
            if !keep {
                data[mode][n] = EMPTY;
                pages[mode][n] = NONE;
            }
            keep
        });
        for entry in self.code.iter_mut().flatten() {
            if global || entry.physical & flag::GLOBAL == 0 {
                *entry = CODE_EMPTY;
            }
        }
    }

    /// Forgets the page of `address` (INVLPG), and every large page, which we keep in pieces.
    pub fn flush_page(&mut self, address: u64) {
        let page = address & !OFFSET;
        let (data, pages) = (&mut self.data, &mut self.pages);
        self.used.retain(|&(mode, n)| {
            let (mode, n) = (usize::from(mode), usize::from(n));
            let keep = pages[mode][n] != page && data[mode][n].physical & flag::LARGE == 0;
            if !keep {
                data[mode][n] = EMPTY;
                pages[mode][n] = NONE;
            }
            keep
        });
        for entry in self.code.iter_mut().flatten() {
            if entry.page == page || entry.physical & flag::LARGE != 0 {
                *entry = CODE_EMPTY;
            }
        }
    }

    /// Takes on the translations of `other`, a copy made earlier, as `is_guarded` says which physical pages
    /// are not written straight now.
    pub(crate) fn put_back(&mut self, other: &Self, is_guarded: impl Fn(u64) -> bool) {
        self.clone_from(other);
        self.tag_writes(is_guarded);
    }

    /// Lets pages be written straight, or not, as `is_guarded` says of their physical addresses.
    pub(super) fn tag_writes(&mut self, is_guarded: impl Fn(u64) -> bool) {
        for &(mode, n) in &self.used {
            let (mode, n) = (usize::from(mode), usize::from(n));
            let entry = &mut self.data[mode][n];
            let direct = entry.read != NONE && entry.physical & flag::WRITABLE != 0;
            entry.write = if direct && !is_guarded(entry.physical & !OFFSET) {
                self.pages[mode][n]
            } else {
                NONE
            };
        }
    }

    /// Makes writes to physical `page` (an address) go the slow way: it has decoded instructions now.
    pub(crate) fn guard(&mut self, page: u64) {
        for &(mode, n) in &self.used {
            let entry = &mut self.data[usize::from(mode)][usize::from(n)];
            if entry.physical & !OFFSET == page {
                entry.write = NONE;
            }
        }
    }

    /// The opposite of [`Tlb::guard`].
    pub(super) fn unguard(&mut self, page: u64) {
        for &(mode, n) in &self.used {
            let (mode, n) = (usize::from(mode), usize::from(n));
            let entry = &mut self.data[mode][n];
            let ram = entry.read != NONE;
            if entry.physical & !OFFSET == page && ram && entry.physical & flag::WRITABLE != 0 {
                entry.write = self.pages[mode][n];
            }
        }
    }
}
