//! x87: what its instructions check first, and the control instructions.

pub(crate) mod control;

use crate::cpu::bits;
use crate::fpu::ES;
use crate::trap::{Exception, vector};
use crate::{Cpu, Trap};

impl Cpu {
    /// What an x87 instruction that does not wait checks first (SDM volume 3, 2.5, CR0.EM and CR0.TS).
    #[inline(always)]
    pub(crate) fn check_x87(&mut self) -> Result<(), Trap> {
        if self.control.cr0 & (bits::CR0_EM | bits::CR0_TS) == 0 {
            return Ok(());
        }
        Err(self.raise(Exception::plain(vector::NM)))
    }

    /// What every other one checks: no error may be pending, either. Without CR0.NE it would be an
    /// interrupt by way of the board (IRQ 13), which no system in long mode asks for: #MF all the same.
    #[inline(always)]
    pub(crate) fn check_x87_waiting(&mut self) -> Result<(), Trap> {
        self.check_x87()?;
        if self.fpu.fsw & ES == 0 {
            return Ok(());
        }
        Err(self.raise(Exception::plain(vector::MF)))
    }
}
