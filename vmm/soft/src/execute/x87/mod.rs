//! x87: what its instructions check first, and the control instructions.

pub(crate) mod control;

use crate::fpu::ES;
use crate::trap::{Exception, vector};
use crate::{Cpu, Trap};

impl Cpu {
    /// #MF if an x87 error is pending. Without CR0.NE it would be an interrupt by way of the board
    /// (IRQ 13), which no system in long mode asks for: #MF all the same.
    #[inline(always)]
    pub(crate) fn check_no_error(&mut self) -> Result<(), Trap> {
        if self.fpu.fsw & ES == 0 {
            return Ok(());
        }
        Err(self.raise(Exception::plain(vector::MF)))
    }

    /// What an x87 instruction that waits checks first.
    #[inline(always)]
    pub(crate) fn check_x87_waiting(&mut self) -> Result<(), Trap> {
        self.check_x87()?;
        self.check_no_error()
    }
}
