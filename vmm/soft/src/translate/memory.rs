//! Memory that code is written to and run from, through two mappings: one can be written, the other run.

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use std::ffi::c_void;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;

/// A mapping of the whole, until it is dropped.
struct Mapping {
    start: NonNull<c_void>,
    len: NonZeroUsize,
}

impl Mapping {
    fn new(file: &OwnedFd, len: NonZeroUsize, rights: ProtFlags) -> nix::Result<Self> {
        // SAFETY: the kernel picks a place nobody uses.
        let start = unsafe { mmap(None, len, rights, MapFlags::MAP_SHARED, file, 0) }?;
        Ok(Self { start, len })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: it is ours, and nobody runs what is there any more: its processor goes with it. That it fails
        // cannot be.
        let _ = unsafe { munmap(self.start, self.len.get()) };
    }
}

/// Memory for code, filled from its start.
pub(super) struct CodeMemory {
    written: Mapping,
    run: Mapping,
    used: usize,
}

impl CodeMemory {
    /// Memory for `len` bytes of code, of which the host gives what is used.
    ///
    /// # Errors
    /// If it is more than 1 GiB, the host has none, or lets nobody run what was written.
    pub fn new(len: NonZeroUsize) -> nix::Result<Self> {
        // Jumps within it reach 2 GiB.
        if len.get() > 1 << 30 {
            return Err(nix::Error::EINVAL);
        }
        let file = memfd_create(c"tandem code", MFdFlags::MFD_CLOEXEC)?;
        nix::unistd::ftruncate(&file, len.get() as i64)?;
        let (read, write) = (ProtFlags::PROT_READ, ProtFlags::PROT_WRITE);
        Ok(Self {
            written: Mapping::new(&file, len, read | write)?,
            run: Mapping::new(&file, len, read | ProtFlags::PROT_EXEC)?,
            used: 0,
        })
    }

    /// Where the next code will run.
    pub fn next(&self) -> u64 {
        self.run.start.as_ptr().expose_provenance() as u64 + self.used as u64
    }

    /// Bytes in use.
    pub fn used(&self) -> usize {
        self.used
    }

    /// Keeps the first `used` bytes.
    pub fn truncate(&mut self, used: usize) {
        self.used = self.used.min(used);
    }

    /// Adds `code`, made to run at [`CodeMemory::next`]. False if there is no room.
    pub fn add(&mut self, code: &[u8]) -> bool {
        // What follows is aligned to a cache line.
        let end = (self.used + code.len()).next_multiple_of(64);
        if end > self.written.len.get() {
            return false;
        }
        // SAFETY: the bytes from `used` to `end` are in the mapping, and nothing runs there or refers to them.
        unsafe {
            let to = self.written.start.as_ptr().cast::<u8>().add(self.used);
            std::ptr::copy_nonoverlapping(code.as_ptr(), to, code.len());
        }
        self.used = end;
        true
    }

    /// Makes the jump whose distance is at `place` lead to `target`. Both lie in code that was added.
    pub fn patch(&mut self, place: u64, target: u64) {
        let start = self.run.start.as_ptr().expose_provenance() as u64;
        let at = place.wrapping_sub(start) as usize;
        assert!(at + 4 <= self.used, "a jump of ours");
        let distance = super::asm::distance(place, target).to_le_bytes();
        // SAFETY: checked above; the one thread that runs this code is here.
        unsafe {
            let to = self.written.start.as_ptr().cast::<u8>().add(at);
            std::ptr::copy_nonoverlapping(distance.as_ptr(), to, 4);
        }
    }
}
