//! Where operands are: registers, immediates, memory.

use crate::op::{Address, Op, slot};
use crate::word::Word;
use crate::{Cpu, Trap};
use std::marker::PhantomData;

/// Something to read.
pub(crate) trait Operand {
    /// Its value.
    fn read<W: Word>(cpu: &mut Cpu, op: &Op) -> Result<W, Trap>;
}

/// Something to read and write back.
pub(crate) trait Place: Operand {
    /// Its value, if it can be written, too.
    fn read_to_modify<W: Word>(cpu: &mut Cpu, op: &Op) -> Result<W, Trap>;
    /// Writes it.
    fn write<W: Word>(cpu: &mut Cpu, op: &Op, value: W) -> Result<(), Trap>;
}

/// Register [`Op::dst`].
pub(crate) struct Dst;
/// Register [`Op::src`].
pub(crate) struct Src;
/// Immediate [`Op::imm`].
pub(crate) struct Imm;
/// CL, zero-extended: a shift's count.
pub(crate) struct Cl;
/// The memory operand.
pub(crate) struct Mem<A>(PhantomData<A>);

impl Operand for Dst {
    #[inline(always)]
    fn read<W: Word>(cpu: &mut Cpu, op: &Op) -> Result<W, Trap> {
        Ok(W::get(cpu, op.dst))
    }
}

impl Place for Dst {
    #[inline(always)]
    fn read_to_modify<W: Word>(cpu: &mut Cpu, op: &Op) -> Result<W, Trap> {
        Ok(W::get(cpu, op.dst))
    }
    #[inline(always)]
    fn write<W: Word>(cpu: &mut Cpu, op: &Op, value: W) -> Result<(), Trap> {
        value.set(cpu, op.dst);
        Ok(())
    }
}

impl Operand for Src {
    #[inline(always)]
    fn read<W: Word>(cpu: &mut Cpu, op: &Op) -> Result<W, Trap> {
        Ok(W::get(cpu, op.src))
    }
}

impl Operand for Imm {
    #[inline(always)]
    fn read<W: Word>(_: &mut Cpu, op: &Op) -> Result<W, Trap> {
        Ok(W::cut(op.imm))
    }
}

impl Operand for Cl {
    #[inline(always)]
    fn read<W: Word>(cpu: &mut Cpu, _: &Op) -> Result<W, Trap> {
        Ok(W::cut(cpu.slot(slot::RCX) & 0xff))
    }
}

impl<A: Address> Operand for Mem<A> {
    #[inline(always)]
    fn read<W: Word>(cpu: &mut Cpu, op: &Op) -> Result<W, Trap> {
        cpu.load(A::linear(cpu, op))
    }
}

impl<A: Address> Place for Mem<A> {
    #[inline(always)]
    fn read_to_modify<W: Word>(cpu: &mut Cpu, op: &Op) -> Result<W, Trap> {
        cpu.load_to_modify(A::linear(cpu, op))
    }
    #[inline(always)]
    fn write<W: Word>(cpu: &mut Cpu, op: &Op, value: W) -> Result<(), Trap> {
        cpu.store(A::linear(cpu, op), value)
    }
}
