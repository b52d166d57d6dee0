//! Exchanges: XCHG, XADD, CMPXCHG, CMPXCHG8B, CMPXCHG16B.
//!
//! There is one processor: LOCK costs nothing and changes nothing.

use super::alu::{Add, Alu, Cmp};
use super::operand::Place;
use crate::flags::{self, Arithmetic};
use crate::op::{Address, Op, slot};
use crate::word::Word;
use crate::{Cpu, Trap};

/// `xchg place, register`.
pub(crate) fn xchg<W: Word, D: Place>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let old: W = D::read_to_modify(cpu, op)?;
    let new = W::get(cpu, op.src);
    D::write(cpu, op, new)?;
    old.set(cpu, op.src);
    Ok(())
}

/// `xadd register, register`. If both are one it gets the sum.
pub(crate) fn xadd<W: Word>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let old = W::get(cpu, op.dst);
    let (sum, flags) = Add::apply(cpu.arithmetic, old, W::get(cpu, op.src));
    old.set(cpu, op.src);
    sum.set(cpu, op.dst);
    cpu.arithmetic = flags;
    Ok(())
}

/// `xadd memory, register`.
pub(crate) fn xadd_memory<W: Word, A: Address>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let address = A::linear(cpu, op);
    let old: W = cpu.load_to_modify(address)?;
    let (sum, flags) = Add::apply(cpu.arithmetic, old, W::get(cpu, op.src));
    cpu.store(address, sum)?;
    old.set(cpu, op.src);
    cpu.arithmetic = flags;
    Ok(())
}

/// `cmpxchg place, register`. If the two differ, a 32-bit register keeps its upper half; memory must be
/// writable all the same.
pub(crate) fn cmpxchg<W: Word, D: Place>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let old: W = D::read_to_modify(cpu, op)?;
    let expected = W::get(cpu, slot::RAX);
    let (_, flags) = Cmp::apply(cpu.arithmetic, expected, old);
    if old == expected {
        let new = W::get(cpu, op.src);
        D::write(cpu, op, new)?;
    } else {
        old.set(cpu, slot::RAX);
    }
    cpu.arithmetic = flags;
    Ok(())
}

/// Every flag as it was but ZF.
fn with_zero(flags: Arithmetic, zero: bool) -> Arithmetic {
    let zero = u64::from(zero) * flags::ZF;
    Arithmetic::from_bits(flags.bits() & !flags::ZF | zero)
}

/// `cmpxchg8b memory`.
pub(crate) fn cmpxchg8b<A: Address>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let pair =
        |cpu: &Cpu, high, low| u64::from(u32::get(cpu, high)) << 32 | u64::from(u32::get(cpu, low));
    let address = A::linear(cpu, op);
    let old: u64 = cpu.load_to_modify(address)?;
    let equal = old == pair(cpu, slot::RDX, slot::RAX);
    if equal {
        cpu.store(address, pair(cpu, slot::RCX, slot::RBX))?;
    } else {
        cpu.store(address, old)?;
        (old as u32).set(cpu, slot::RAX);
        ((old >> 32) as u32).set(cpu, slot::RDX);
    }
    cpu.arithmetic = with_zero(cpu.arithmetic, equal);
    Ok(())
}

/// `cmpxchg16b memory`, which must be aligned. On a stack within 16 bytes of what is not canonical a
/// misaligned one raises #SS, where the processor raises #GP.
pub(crate) fn cmpxchg16b<A: Address>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let pair = |cpu: &Cpu, high, low| u128::from(cpu.slot(high)) << 64 | u128::from(cpu.slot(low));
    let address = A::linear(cpu, op);
    if address % 16 != 0 {
        return Err(cpu.general_protection(0));
    }
    cpu.check_writable(address, 16)?;
    let old = cpu.load128(address)?;
    let equal = old == pair(cpu, slot::RDX, slot::RAX);
    if equal {
        cpu.store128(address, pair(cpu, slot::RCX, slot::RBX))?;
    } else {
        cpu.store128(address, old)?;
        cpu.set_slot(slot::RAX, old as u64);
        cpu.set_slot(slot::RDX, (old >> 64) as u64);
    }
    cpu.arithmetic = with_zero(cpu.arithmetic, equal);
    Ok(())
}
