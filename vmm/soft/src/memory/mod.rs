//! Guest memory as instructions see it: virtual addresses, rights, faults.
//!
//! ```text
//!  virtual address ─▶ TLB ──hit──▶ host memory
//!                      │ miss, or not plain RAM
//!                      ▼
//!                     walk ─▶ page fault
//!                      └────▶ RAM, or an access for somebody outside
//! ```
//!
//! The TLB is part of the machine's definition, not a mere cache: what a guest sees that changes its
//! tables and does not flush depends on it, and so it must be the same in every run. Nothing that differs
//! between runs (where a run was stopped, which blocks were decoded) may fill it or empty it.
//!
//! What of the architecture is not here: alignment checks (CR0.AM with RFLAGS.AC never raise #AC), and in
//! compatibility mode the limits and types of data segments when they are used (they are judged when they
//! are loaded; bases count). The code segment's limit is judged by far transfers alone.

mod physical;
mod tlb;
mod walk;

pub use physical::{Physical, Region};
pub(crate) use tlb::{CODE_ENTRY, CODE_FOLD, CODE_PAIRS, ENTRIES, Entry, Window};
pub use tlb::{Mode, Tlb};
pub use walk::Intent;

use crate::trap::{Cause, Exception, Space, vector};
use crate::word::Word;
use crate::{Cpu, Trap};

/// Bytes of a page.
pub const PAGE: u64 = 4096;
/// Its offset bits.
pub const OFFSET: u64 = PAGE - 1;

impl Cpu {
    /// Copies memory at linear `address` out, up to where it is no RAM, and returns how many bytes that
    /// is. Rights do not matter, and nothing the guest could notice changes.
    pub fn look(&self, address: u64, bytes: &mut [u8]) -> usize {
        let mut done = 0;
        while done < bytes.len() {
            let at = address.wrapping_add(done as u64);
            if (at as i64) << 16 >> 16 != at as i64 {
                break;
            }
            let on_page = (PAGE - (at & OFFSET)) as usize;
            let end = bytes.len().min(done + on_page);
            let read = walk::look(self, at)
                .is_some_and(|physical| self.physical.read_bytes(physical, &mut bytes[done..end]));
            if !read {
                break;
            }
            done = end;
        }
        done
    }

    /// The physical address that linear `address` is mapped to. Nothing the guest could notice changes.
    #[must_use]
    pub fn physical_of(&self, address: u64) -> Option<u64> {
        walk::look(self, address)
    }

    /// Reads a word at linear address `address`.
    ///
    /// # Errors
    /// [`Trap`]: page fault, or not RAM.
    #[inline(always)]
    pub fn load<T: Word>(&mut self, address: u64) -> Result<T, Trap> {
        let entry = self.tlb.entry(address);
        if entry.read == address.wrapping_add(T::BYTES - 1) & !OFFSET {
            // SAFETY: a read tag is only set for a page of RAM that is at `host`, and
            // the access does not leave the page.
            return Ok(unsafe { entry.pointer(address).cast::<T>().read_unaligned() });
        }
        self.load_slowly::<T>(address).map(T::cut)
    }

    /// Writes a word at linear address `address`.
    ///
    /// # Errors
    /// [`Trap`]: page fault, not RAM, or a page with decoded instructions. Nothing was written.
    #[inline(always)]
    pub fn store<T: Word>(&mut self, address: u64, value: T) -> Result<(), Trap> {
        let entry = self.tlb.entry(address);
        if entry.write == address.wrapping_add(T::BYTES - 1) & !OFFSET {
            // SAFETY: as in `load`, for the write tag; the page is writable.
            unsafe { entry.pointer(address).cast::<T>().write_unaligned(value) };
            return Ok(());
        }
        self.store_slowly(address, value.zext(), T::BYTES)
    }

    /// Reads a word that the same instruction writes next: it must be writable, too.
    ///
    /// # Errors
    /// As for [`Cpu::store`].
    #[inline(always)]
    pub fn load_to_modify<T: Word>(&mut self, address: u64) -> Result<T, Trap> {
        let entry = self.tlb.entry(address);
        if entry.write == address.wrapping_add(T::BYTES - 1) & !OFFSET {
            // SAFETY: as in `store`; what can be written can be read.
            return Ok(unsafe { entry.pointer(address).cast::<T>().read_unaligned() });
        }
        self.check_writable(address, T::BYTES)?;
        self.load_slowly::<T>(address).map(T::cut)
    }

    /// Reads 16 bytes, aligned or not.
    ///
    /// # Errors
    /// As for [`Cpu::load`].
    #[inline]
    pub fn load128(&mut self, address: u64) -> Result<u128, Trap> {
        let entry = self.tlb.entry(address);
        if entry.read == address.wrapping_add(15) & !OFFSET {
            // SAFETY: as in `load`.
            return Ok(unsafe { entry.pointer(address).cast::<u128>().read_unaligned() });
        }
        let low: u64 = self.load(address)?;
        let high: u64 = self.load(address.wrapping_add(8))?;
        Ok(u128::from(low) | u128::from(high) << 64)
    }

    /// Writes 16 bytes, aligned or not.
    ///
    /// # Errors
    /// As for [`Cpu::store`].
    #[inline]
    pub fn store128(&mut self, address: u64, value: u128) -> Result<(), Trap> {
        let entry = self.tlb.entry(address);
        if entry.write == address.wrapping_add(15) & !OFFSET {
            // SAFETY: as in `store`.
            unsafe { entry.pointer(address).cast::<u128>().write_unaligned(value) };
            return Ok(());
        }
        self.check_writable(address, 16)?;
        self.store(address, value as u64)?;
        self.store(address.wrapping_add(8), (value >> 64) as u64)
    }

    /// Reads `bytes.len()` bytes.
    ///
    /// # Errors
    /// As for [`Cpu::load`].
    pub fn load_bytes(&mut self, address: u64, bytes: &mut [u8]) -> Result<(), Trap> {
        for (n, byte) in bytes.iter_mut().enumerate() {
            *byte = self.load(address.wrapping_add(n as u64))?;
        }
        Ok(())
    }

    /// Writes `bytes`, all or none.
    ///
    /// # Errors
    /// As for [`Cpu::store`].
    pub fn store_bytes(&mut self, address: u64, bytes: &[u8]) -> Result<(), Trap> {
        self.check_writable(address, bytes.len() as u64)?;
        for (n, byte) in bytes.iter().enumerate() {
            self.store(address.wrapping_add(n as u64), *byte)?;
        }
        Ok(())
    }

    /// Checks that a write of `size` bytes (at most a page) would succeed, page by page, changing
    /// nothing but accessed and dirty bits.
    ///
    /// # Errors
    /// As for [`Cpu::store`], but not for memory that is not RAM.
    pub fn check_writable(&mut self, address: u64, size: u64) -> Result<(), Trap> {
        self.check_canonical(address, size)?;
        let mode = self.tlb.mode;
        let last = address.wrapping_add(size - 1);
        let second = (last & !OFFSET != address & !OFFSET).then_some(last & !OFFSET);
        for page in [Some(address), second].into_iter().flatten() {
            let physical = self.translate(page, Intent::Write, mode)?;
            if self.physical.has_code(physical) {
                return Err(self.stop(Cause::CodeWrite(physical / PAGE)));
            }
        }
        Ok(())
    }

    /// Runs `body` with the supervisor's rights, as implicit accesses to descriptor tables and stacks
    /// have them (SDM volume 3, 4.6.1).
    ///
    /// # Errors
    /// What `body` says.
    pub fn as_supervisor<T>(
        &mut self,
        body: impl FnOnce(&mut Self) -> Result<T, Trap>,
    ) -> Result<T, Trap> {
        let mode = self.tlb.mode;
        self.tlb.mode = if self.control.cr4 & crate::cpu::bits::CR4_SMAP != 0 {
            Mode::SupervisorStrict
        } else {
            Mode::Supervisor
        };
        let result = body(self);
        self.tlb.mode = mode;
        result
    }

    #[cold]
    #[inline(never)]
    fn load_slowly_sized(&mut self, address: u64, size: u64) -> Result<u64, Trap> {
        self.check_canonical(address, size)?;
        let mode = self.tlb.mode;
        let first = self.translate(address, Intent::Read, mode)?;
        let on_first = PAGE - (address & OFFSET);
        if on_first >= size {
            return self.read_physical_or_outside(first, size);
        }
        let second = self.translate(address.wrapping_add(on_first), Intent::Read, mode)?;
        let low = self.read_physical_or_outside(first, on_first)?;
        let high = self.read_physical_or_outside(second, size - on_first)?;
        Ok(low | high << (on_first * 8))
    }

    #[inline(always)]
    fn load_slowly<T: Word>(&mut self, address: u64) -> Result<u64, Trap> {
        self.load_slowly_sized(address, T::BYTES)
    }

    #[cold]
    #[inline(never)]
    fn store_slowly(&mut self, address: u64, value: u64, size: u64) -> Result<(), Trap> {
        self.check_canonical(address, size)?;
        let mode = self.tlb.mode;
        let first = self.translate(address, Intent::Write, mode)?;
        let on_first = (PAGE - (address & OFFSET)).min(size);
        let second = if on_first < size {
            Some(self.translate(address.wrapping_add(on_first), Intent::Write, mode)?)
        } else {
            None
        };
        for page in [Some(first), second].into_iter().flatten() {
            if self.physical.has_code(page) {
                return Err(self.stop(Cause::CodeWrite(page / PAGE)));
            }
        }
        self.write_physical_or_outside(first, value, on_first)?;
        if let Some(second) = second {
            self.write_physical_or_outside(second, value >> (on_first * 8), size - on_first)?;
        }
        Ok(())
    }

    /// #GP (a stack access makes it #SS: [`Cpu::judge_fault`], [`Cpu::as_stack_fault`]) for addresses
    /// outside the 48 canonical bits (SDM volume 1, 3.3.7.1).
    pub(crate) fn check_canonical(&mut self, address: u64, size: u64) -> Result<(), Trap> {
        let canonical = |a: u64| (a as i64) << 16 >> 16 == a as i64;
        if !(canonical(address) && canonical(address.wrapping_add(size - 1))) {
            return Err(self.general_protection(0));
        }
        Ok(())
    }

    /// The physical address of linear `address`, for an access of this kind.
    ///
    /// # Errors
    /// [`Trap`] with a page fault, CR2 set.
    pub fn translate(&mut self, address: u64, intent: Intent, mode: Mode) -> Result<u64, Trap> {
        if let Some(physical) = self.tlb.lookup(address, intent, mode) {
            return Ok(physical | address & OFFSET);
        }
        match walk::walk(self, address, intent, mode) {
            Ok(found) => {
                let page = found.physical & !OFFSET;
                let host = self.physical.page(page);
                let guarded = self.physical.is_guarded(page);
                self.tlb.fill(address, intent, mode, &found, host, guarded);
                Ok(page | address & OFFSET)
            }
            Err(walk::Fault::Code(page)) => Err(self.stop(Cause::CodeWrite(page))),
            Err(walk::Fault::Page(error)) => {
                self.control.cr2 = address;
                Err(self.raise(Exception::with_error(vector::PF, error)))
            }
        }
    }

    /// RAM at physical `address` is written, by the guest or somebody else: noted, if that is asked for. All
    /// writes come here but those by a TLB entry's write tag, which a page gets when its first was noted.
    pub(crate) fn wrote(&mut self, address: u64) {
        if self.physical.note_write(address) {
            self.unguard(address & !OFFSET);
        }
    }

    /// Lets writes to physical `page` (an address) go by the TLB again, unless something is to be noticed
    /// about them.
    pub(crate) fn unguard(&mut self, page: u64) {
        if !self.physical.is_guarded(page) {
            self.tlb.unguard(page);
        }
    }

    /// From now on notes writes to the first `pages` pages of RAM, a multiple of 64; with 0, to none.
    pub(crate) fn note_writes(&mut self, pages: u64) {
        self.physical.note_writes(pages);
        self.tag_writes();
    }

    /// The pages written to since this was last asked, or noting began: a bit each, 64 a word.
    pub(crate) fn take_written(&mut self) -> Vec<u64> {
        let written = self.physical.take_written();
        self.tag_writes();
        written
    }

    fn tag_writes(&mut self) {
        let physical = &self.physical;
        self.tlb.tag_writes(|page| physical.is_guarded(page));
    }

    fn read_physical_or_outside(&mut self, address: u64, size: u64) -> Result<u64, Trap> {
        match self.physical.read(address, size) {
            Some(value) => Ok(value),
            None => self.read_outside(Space::Memory, address, size as u8),
        }
    }

    fn write_physical_or_outside(
        &mut self,
        address: u64,
        value: u64,
        size: u64,
    ) -> Result<(), Trap> {
        let mask = u64::MAX >> (64 - size * 8);
        if self.physical.write(address, value, size) {
            self.wrote(address);
            return Ok(());
        }
        self.write_outside(Space::Memory, address, size as u8, value & mask)
    }
}
