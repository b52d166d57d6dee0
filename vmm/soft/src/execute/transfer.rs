//! Moves: MOV, MOVZX, MOVSX, LEA, PUSH, POP, XLAT; and NOP.

use super::operand::{Operand, Place};
use crate::op::{Address, Op, narrow_offset, offset, slot};
use crate::trap::{Cause, Exception, vector};
use crate::word::Word;
use crate::{Cpu, Trap};

/// `mov place, source`.
pub(crate) fn mov<W: Word, D: Place, S: Operand>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let value: W = S::read(cpu, op)?;
    D::write(cpu, op, value)
}

/// `movzx register, source`: from `F` to `T`.
pub(crate) fn movzx<F: Word, T: Word, S: Operand>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let value: F = S::read(cpu, op)?;
    T::cut(value.zext()).set(cpu, op.dst);
    Ok(())
}

/// `movsx register, source` and `movsxd`.
pub(crate) fn movsx<F: Word, T: Word, S: Operand>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let value: F = S::read(cpu, op)?;
    T::cut(value.sext()).set(cpu, op.dst);
    Ok(())
}

/// `lea register, address`. [`Op::extra`]: 1 if the address is 32 bits wide.
pub(crate) fn lea<W: Word>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let address = if op.extra == 1 {
        narrow_offset(cpu, op)
    } else {
        offset(cpu, op)
    };
    W::cut(address).set(cpu, op.dst);
    Ok(())
}

impl Cpu {
    /// Pushes a word. The stack pointer is 64 bits wide in 64-bit code, else 32 (a 16-bit stack does not
    /// exist in long mode with the flat segments this processor's guests use).
    pub(crate) fn push<W: Word>(&mut self, value: W) -> Result<(), Trap> {
        let (rsp, address) = self.stack(self.slot(slot::RSP).wrapping_sub(W::BYTES));
        self.store(address, value)
            .map_err(|trap| self.stack_trap(trap))?;
        self.set_slot(slot::RSP, rsp);
        Ok(())
    }

    /// Reads the word at the top of the stack; returns it with the stack pointer after.
    pub(crate) fn peek<W: Word>(&mut self) -> Result<(W, u64), Trap> {
        let (rsp, address) = self.stack(self.slot(slot::RSP));
        let value = self.load(address).map_err(|trap| self.stack_trap(trap))?;
        Ok((value, self.stack(rsp.wrapping_add(W::BYTES)).0))
    }

    /// What an access to the stack failed with: a #GP, for an address that is not canonical, is a #SS there
    /// (SDM volume 1, 3.3.7.1).
    #[cold]
    pub(crate) fn stack_trap(&mut self, trap: Trap) -> Trap {
        if self.cause == Cause::Exception(Exception::with_error(vector::GP, 0)) {
            return self.raise(Exception::with_error(vector::SS, 0));
        }
        trap
    }

    /// A stack pointer cut to its width, and the linear address it stands for.
    pub(crate) fn stack(&self, rsp: u64) -> (u64, u64) {
        if self.long_code {
            return (rsp, rsp);
        }
        let rsp = rsp & 0xffff_ffff;
        let base = self.segments[crate::cpu::segment::SS].base;
        (rsp, rsp.wrapping_add(base) & 0xffff_ffff)
    }
}

/// `push source`.
pub(crate) fn push<W: Word, S: Operand>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let value: W = S::read(cpu, op)?;
    cpu.push(value)
}

/// `pop register`.
pub(crate) fn pop<W: Word>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let (value, rsp) = cpu.peek::<W>()?;
    cpu.set_slot(slot::RSP, rsp);
    value.set(cpu, op.dst);
    Ok(())
}

/// `xlat`: AL from the table at the memory operand, which lacks the AL that indexes it.
pub(crate) fn xlat<A: Address>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let op = Op {
        disp: op.disp.wrapping_add(cpu.slot(slot::RAX) & 0xff),
        ..*op
    };
    let value: u8 = cpu.load(A::linear(cpu, &op))?;
    value.set(cpu, slot::RAX);
    Ok(())
}

/// NOP, hints, fences: nothing. A memory operand is not touched.
pub(crate) fn nothing(_: &mut Cpu, _: &Op) -> Result<(), Trap> {
    Ok(())
}
