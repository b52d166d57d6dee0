//! Operands whose form is looked at when the instruction runs: for instructions too rare to have a handler
//! for every form.
//!
//! [`Op::extra`] has the size in bytes and two flags; a register is [`Op::src`].

use crate::op::{Address, Full, Narrow, Op, slot};
use crate::{Cpu, Trap};

/// The operand is in memory.
pub(crate) const MEMORY: u8 = 0x40;
/// Its address is cut to 32 bits.
pub(crate) const NARROW: u8 = 0x80;

/// Bytes of the operand: 1, 2, 4 or 8.
pub(crate) fn size(op: &Op) -> u64 {
    u64::from(op.extra & 0xf)
}

/// Whether the operand is in memory.
pub(crate) fn in_memory(op: &Op) -> bool {
    op.extra & MEMORY != 0
}

/// The low `size` bytes of `value`.
pub(crate) fn cut(value: u64, size: u64) -> u64 {
    value & u64::MAX >> (64 - size * 8)
}

/// Linear address of the memory operand.
pub(crate) fn linear(cpu: &Cpu, op: &Op) -> u64 {
    if op.extra & NARROW != 0 {
        Narrow::linear(cpu, op)
    } else {
        Full::linear(cpu, op)
    }
}

impl Cpu {
    /// Reads `size` bytes (1, 2, 4 or 8) at a linear address.
    ///
    /// # Errors
    /// As for [`Cpu::load`].
    pub(crate) fn load_sized(&mut self, address: u64, size: u64) -> Result<u64, Trap> {
        Ok(match size {
            1 => self.load::<u8>(address)?.into(),
            2 => self.load::<u16>(address)?.into(),
            4 => self.load::<u32>(address)?.into(),
            _ => self.load::<u64>(address)?,
        })
    }

    /// Writes the low `size` bytes (1, 2, 4 or 8) of `value` at a linear address.
    ///
    /// # Errors
    /// As for [`Cpu::store`].
    pub(crate) fn store_sized(&mut self, address: u64, value: u64, size: u64) -> Result<(), Trap> {
        match size {
            1 => self.store(address, value as u8),
            2 => self.store(address, value as u16),
            4 => self.store(address, value as u32),
            _ => self.store(address, value),
        }
    }

    /// Sets the low `size` bytes of a register; four clear the upper half.
    pub(crate) fn set_sized(&mut self, register: u8, value: u64, size: u64) {
        let old = self.slot(register);
        let value = cut(value, size);
        let kept = match size {
            1 => old & !0xff,
            2 => old & !0xffff,
            _ => 0,
        };
        self.set_slot(register, kept | value);
    }

    /// The operand, at its size.
    ///
    /// # Errors
    /// As for [`Cpu::load`].
    pub(crate) fn loose(&mut self, op: &Op) -> Result<u64, Trap> {
        if in_memory(op) {
            let address = linear(self, op);
            return self.load_sized(address, size(op));
        }
        Ok(cut(self.slot(op.src), size(op)))
    }

    /// The operand as a selector: 16 bits whatever its size.
    ///
    /// # Errors
    /// As for [`Cpu::load`].
    pub(crate) fn loose_selector(&mut self, op: &Op) -> Result<u16, Trap> {
        if in_memory(op) {
            let address = linear(self, op);
            return self.load(address);
        }
        Ok(self.slot(op.src) as u16)
    }

    /// Sets the operand, a register at its size, memory always at 16 bits: what SMSW, SLDT, STR and moves
    /// from segment registers do.
    ///
    /// # Errors
    /// As for [`Cpu::store`].
    pub(crate) fn set_loose_selector(&mut self, op: &Op, value: u64) -> Result<(), Trap> {
        if in_memory(op) {
            let address = linear(self, op);
            return self.store(address, value as u16);
        }
        self.set_sized(op.src, value, size(op));
        Ok(())
    }

    /// The word of `size` bytes, `offset` bytes above the top of the stack.
    ///
    /// # Errors
    /// As for [`Cpu::load`], but #SS where that says #GP.
    pub(crate) fn stacked(&mut self, offset: u64, size: u64) -> Result<u64, Trap> {
        let (_, address) = self.stack(self.slot(slot::RSP).wrapping_add(offset));
        let result = self.load_sized(address, size);
        result.map_err(|trap| self.as_stack_fault(trap))
    }

    /// Pushes the low `size` bytes of `value`.
    ///
    /// # Errors
    /// As for [`Cpu::store`], but #SS where that says #GP.
    pub(crate) fn push_sized(&mut self, value: u64, size: u64) -> Result<(), Trap> {
        let (rsp, address) = self.stack(self.slot(slot::RSP).wrapping_sub(size));
        let result = self.store_sized(address, value, size);
        result.map_err(|trap| self.as_stack_fault(trap))?;
        self.set_slot(slot::RSP, rsp);
        Ok(())
    }

    /// A #GP(0) of a stack access is a #SS(0) (SDM volume 1, 3.3.7.1).
    pub(crate) fn as_stack_fault(&mut self, trap: Trap) -> Trap {
        use crate::trap::{Cause, Exception, vector};
        if self.cause == Cause::Exception(Exception::with_error(vector::GP, 0)) {
            return self.raise_with(vector::SS, 0);
        }
        trap
    }
}
