//! Accesses that somebody outside the processor does: ports, device memory, the time-stamp counter.
//!
//! ```text
//!  read    the handler traps ─▶ exit ─▶ answered ─▶ the instruction starts over, finds the answer, retires
//!  write   the handler traps ─▶ the instruction starts over, posts the write, retires ─▶ exit
//! ```
//!
//! An instruction may do several (`rep outsb`, `add [device], 1`): answers given so far stay until it
//! retires or commits an iteration.

use crate::trap::{Access, Cause, Space};
use crate::{Cpu, Trap};
use std::collections::VecDeque;

/// Accesses of the present instruction.
#[derive(Clone, Debug, Default)]
pub struct OutsideAccesses {
    /// Answers had, in the order the instruction asks.
    answers: Vec<u64>,
    /// How many of them the present attempt has used.
    used: usize,
    /// Writes may be posted: the instruction is carried out alone.
    pub(crate) posting: bool,
    /// Writes posted and not done yet, oldest first.
    pub(crate) posted: VecDeque<Access>,
    /// Linear address of the last instruction carried out alone, as all that post writes are, and whether
    /// it is of 64-bit code: for messages only.
    pub(crate) last: (u64, bool),
}

impl OutsideAccesses {
    /// The instruction starts (over).
    pub(crate) fn start(&mut self) {
        self.used = 0;
    }

    /// The instruction, or an iteration of it, is done with.
    pub(crate) fn commit(&mut self) {
        self.answers.clear();
        self.used = 0;
    }

    /// Whether the present attempt has gone outside: it used an answer or posted a write.
    pub(crate) fn is_under_way(&self) -> bool {
        self.used > 0 || !self.posted.is_empty()
    }

    /// Whether an answer was given that its instruction has not used up.
    pub(crate) fn is_answered(&self) -> bool {
        !self.answers.is_empty()
    }

    /// The answer to the read that ended the last attempt.
    pub(crate) fn answer(&mut self, value: u64) {
        self.answers.push(value);
    }
}

impl Cpu {
    /// Reads from outside.
    ///
    /// # Errors
    /// [`Trap`] until the answer is there.
    pub fn read_outside(&mut self, space: Space, address: u64, size: u8) -> Result<u64, Trap> {
        if let Some(&value) = self.outside.answers.get(self.outside.used) {
            self.outside.used += 1;
            return Ok(value);
        }
        Err(self.stop(Cause::Access(Access {
            space,
            address,
            size,
            value: None,
        })))
    }

    /// Writes outside.
    ///
    /// # Errors
    /// [`Trap`] unless the instruction is carried out alone.
    pub fn write_outside(
        &mut self,
        space: Space,
        address: u64,
        size: u8,
        value: u64,
    ) -> Result<(), Trap> {
        let access = Access {
            space,
            address,
            size,
            value: Some(value),
        };
        if !self.outside.posting {
            return Err(self.stop(Cause::Access(access)));
        }
        self.outside.posted.push_back(access);
        Ok(())
    }
}
