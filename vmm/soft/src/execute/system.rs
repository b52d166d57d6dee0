//! System instructions: what may be used, control and debug registers, flags, CPUID, time.

use crate::cpu::{TimeBase, bits};
use crate::flags;
use crate::op::{Op, slot};
use crate::trap::{Cause, Exception, Space, vector};
use crate::{Cpu, Trap};

impl Cpu {
    /// Refuses SSE instructions the guest has not switched on (SDM volume 3, table 13-1).
    ///
    /// # Errors
    /// [`Trap`]: #UD with CR0.EM or without CR4.OSFXSR, #NM with CR0.TS.
    #[inline(always)]
    pub fn check_sse(&mut self) -> Result<(), Trap> {
        let off = self.control.cr0 & (bits::CR0_EM | bits::CR0_TS) != 0;
        if off || self.control.cr4 & bits::CR4_OSFXSR == 0 {
            return Err(self.refuse_sse());
        }
        Ok(())
    }

    #[cold]
    #[inline(never)]
    fn refuse_sse(&mut self) -> Trap {
        if self.control.cr0 & bits::CR0_EM != 0 || self.control.cr4 & bits::CR4_OSFXSR == 0 {
            self.undefined()
        } else {
            self.raise(Exception::plain(vector::NM))
        }
    }

    /// Refuses x87 instructions while CR0.EM or CR0.TS is set, and FXSAVE and FXRSTOR.
    ///
    /// # Errors
    /// [`Trap`]: #NM.
    #[inline(always)]
    pub fn check_x87(&mut self) -> Result<(), Trap> {
        if self.control.cr0 & (bits::CR0_EM | bits::CR0_TS) != 0 {
            return Err(self.raise(Exception::plain(vector::NM)));
        }
        Ok(())
    }

    /// Refuses MMX instructions (SDM volume 3, table 12-1).
    ///
    /// # Errors
    /// [`Trap`]: #UD with CR0.EM, #NM with CR0.TS.
    #[inline(always)]
    pub fn check_mmx(&mut self) -> Result<(), Trap> {
        if self.control.cr0 & bits::CR0_EM != 0 {
            return Err(self.undefined());
        }
        self.check_x87()
    }

    /// Refuses `wait`/`fwait` while both CR0.MP and CR0.TS are set.
    ///
    /// # Errors
    /// [`Trap`]: #NM.
    pub fn check_wait(&mut self) -> Result<(), Trap> {
        let both = bits::CR0_MP | bits::CR0_TS;
        if self.control.cr0 & both == both {
            return Err(self.raise(Exception::plain(vector::NM)));
        }
        Ok(())
    }

    /// #GP outside ring 0.
    pub(crate) fn check_ring_0(&mut self) -> Result<(), Trap> {
        if self.cpl != 0 {
            return Err(self.general_protection(0));
        }
        Ok(())
    }

    /// The I/O privilege level.
    pub(crate) fn iopl(&self) -> u8 {
        (self.system_flags >> 12 & 3) as u8
    }
}
