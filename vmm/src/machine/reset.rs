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

use super::boot::{self, BootError};
use super::error::MachineError;
use super::origin::{ImageSource, Origin};
use super::state::Machine;
use crate::engine::{Engine, VmEntry};
use crate::memory;
use crate::state::CpuState;

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
        memory::clear(&self.memory, 0..self.config.memory_bytes());
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

#[cfg(test)]
#[path = "reset_tests.rs"]
pub(crate) mod tests;
