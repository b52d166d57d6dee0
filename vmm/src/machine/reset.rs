//! A guest's reset: the machine starts over.
//!
//! ```text
//!  write to a reset register ─▶ console flushed ─▶ memory cleared, image loaded again
//!                                                ─▶ vCPU and chips as they were switched on
//!  go on: instruction clock, log, guest time, wall clock; the disk's contents and its tags;
//!         what was typed and not read yet
//! ```
//!
//! It is the guest's own doing, at an exit that every replica sees at the same place, and what is loaded
//! has the digest the configuration names. So the log has no entry for it, and all replicas, and a replay,
//! do the same. Disk requests under way stay under way, and their ends stay arrivals; nobody in the new
//! life waits for them, and they touch nothing.

use super::boot::{self, BootError, GuestImage};
use super::run::{Machine, MachineError};
use crate::engine::{Engine, VmEntry};
use crate::memory::GuestMemory;
use crate::state::CpuState;
use std::borrow::Cow;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

/// Bytes cleared at a time.
const PIECE: usize = 64 << 10;

/// An image that was read again.
pub struct KeptImage {
    /// [`GuestImage::kernel`].
    pub kernel: Cow<'static, [u8]>,
    /// [`GuestImage::initrd`].
    pub initrd: Option<Vec<u8>>,
}

impl KeptImage {
    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> GuestImage<'_> {
        GuestImage {
            kernel: &self.kernel,
            initrd: self.initrd.as_deref(),
        }
    }
}

/// Where a machine that starts over has its image from. It need not keep the bytes.
pub trait ImageSource {
    /// The image, as the machine began with. Not trusted: its digest is compared.
    ///
    /// # Errors
    /// Why it cannot be had.
    fn read_again(&mut self) -> Result<KeptImage, String>;
}

/// What a machine needs to start over.
pub(super) struct Origin {
    source: Box<dyn ImageSource>,
    /// The vCPU as it was switched on: all registers, also those [`boot::load`] leaves to the engine.
    cpu: CpuState,
}

impl<E: Engine> Machine<E> {
    /// Lets the machine, which has not run yet, start over from `source` when its guest resets it.
    ///
    /// # Errors
    /// If the vCPU's state cannot be read.
    pub fn starts_over_from(&mut self, source: Box<dyn ImageSource>) -> Result<(), MachineError> {
        let cpu = self.engine.save()?;
        self.origin = Some(Origin { source, cpu });
        Ok(())
    }

    /// The machine as it was switched on, at the present clock.
    ///
    /// # Errors
    /// If it has nothing to start over from, or the image is not what it was. The machine is of no more
    /// use then.
    pub(super) fn start_over(&mut self) -> Result<(), MachineError> {
        let again = |why: &str| BootError::Again(why.to_owned());
        let origin = self.origin.as_mut();
        let origin = origin.ok_or_else(|| again("the machine was not given its image to keep"))?;
        let image = origin.source.read_again().map_err(|why| again(&why))?;
        let (found, expected) = (image.bytes().digest(), self.config.image_digest);
        if found != expected {
            let guest = self.config.guest.clone();
            return Err(BootError::Changed {
                guest,
                found,
                expected,
            }
            .into());
        }
        self.engine.abandon()?;
        clear(&self.memory);
        boot::load(&self.config, &image.bytes(), &self.memory)?;
        let state = CpuState {
            clock: self.engine.clock(),
            ..origin.cpu.clone()
        };
        self.engine.restore(&state)?;
        self.engine.set_time(self.time.base())?;
        self.board.reset(&self.config);
        self.entry = VmEntry::Resume;
        self.halted = false;
        Ok(())
    }
}

/// Fills memory with zeros. What is zero already is not written, so that memory the guest never used
/// stays memory the host need not have.
fn clear(memory: &GuestMemory) {
    let zeros = vec![0; PIECE];
    let mut piece = vec![0; PIECE];
    for region in memory.iter() {
        let (first, bytes) = (region.start_addr().0, region.len());
        for offset in (0..bytes).step_by(PIECE) {
            let length = usize::try_from(bytes - offset).map_or(PIECE, |left| left.min(PIECE));
            let at = GuestAddress(first + offset);
            let there = "the region is this long";
            memory.read_slice(&mut piece[..length], at).expect(there);
            if piece[..length] != zeros[..length] {
                memory.write_slice(&zeros[..length], at).expect(there);
            }
        }
    }
}

#[cfg(test)]
#[path = "reset_tests.rs"]
pub(crate) mod tests;
