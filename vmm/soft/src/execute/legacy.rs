//! Instructions that only 32-bit code has: decimal arithmetic and BOUND (SDM volume 2).
//!
//! Flags the architecture leaves undefined are as on AMD's processors (Zen 5 was asked): those of the
//! addition or subtraction of bytes, for AAA and AAS words, that each is made of.

use super::alu::{Add, Alu, Sub};
use crate::flags::{self, Arithmetic};
use crate::op::{Address, Op, slot};
use crate::trap::{Exception, vector};
use crate::word::Word;
use crate::{Cpu, Trap};

const AL: u8 = slot::RAX;
const AH: u8 = slot::RAX | slot::HIGH;

/// `a + b`, or `a - b` if `DOWN`, and its flags.
fn step<W: Word, const DOWN: bool>(a: W, b: W) -> (W, Arithmetic) {
    let flags = Arithmetic::default();
    if DOWN {
        Sub::apply(flags, a, b)
    } else {
        Add::apply(flags, a, b)
    }
}

/// `flags` with these AF and CF.
fn with_half_and_carry(flags: Arithmetic, half: bool, carry: bool) -> Arithmetic {
    let kept = flags.bits() & !(flags::AF | flags::CF);
    let half = u64::from(half) * flags::AF;
    Arithmetic::from_bits(kept | half | u64::from(carry))
}

/// `daa`, or `das` if `DOWN`.
pub(crate) fn decimal_adjust<const DOWN: bool>(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    let (old, before) = (u8::get(cpu, AL), cpu.arithmetic);
    let half = old & 0xf > 9 || before.half();
    let high = old > 0x99 || before.carry();
    let by = if half { 6 } else { 0 } + if high { 0x60 } else { 0 };
    let (al, flags) = step::<u8, DOWN>(old, by);
    al.set(cpu, AL);
    // A borrow of the low step alone is one, too; a carry out of it is not without `high`.
    let carry = high || DOWN && half && old < 6;
    cpu.arithmetic = with_half_and_carry(flags, half, carry);
    Ok(())
}

/// `aaa`, or `aas` if `DOWN`.
pub(crate) fn ascii_adjust<const DOWN: bool>(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    let ax = u16::get(cpu, slot::RAX);
    let adjust = ax & 0xf > 9 || cpu.arithmetic.half();
    let by = if adjust { 0x106 } else { 0 };
    let (ax, flags) = step::<u16, DOWN>(ax, by);
    (ax & 0xff0f).set(cpu, slot::RAX);
    cpu.arithmetic = with_half_and_carry(flags, adjust, adjust);
    Ok(())
}

/// `aam base`.
pub(crate) fn aam(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let (al, base) = (u8::get(cpu, AL), op.imm as u8);
    if base == 0 {
        return Err(cpu.divide_error());
    }
    (al / base).set(cpu, AH);
    (al % base).set(cpu, AL);
    cpu.arithmetic = Arithmetic::logic((al % base).sext());
    Ok(())
}

/// `aad base`.
pub(crate) fn aad(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let (al, ah) = (u8::get(cpu, AL), u8::get(cpu, AH));
    let (value, flags) = step::<u8, false>(al, ah.wrapping_mul(op.imm as u8));
    u16::from(value).set(cpu, slot::RAX);
    cpu.arithmetic = flags;
    Ok(())
}

/// `salc`: AL is all CF. Not documented, there on every processor.
pub(crate) fn salc(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    let al = if cpu.arithmetic.carry() { 0xff } else { 0 };
    u8::set(al, cpu, AL);
    Ok(())
}

/// `bound register, memory`: #BR unless the register is within the two signed bounds there.
pub(crate) fn bound<W: Word, A: Address>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let address = A::linear(cpu, op);
    let lower = cpu.load::<W>(address)?.sext() as i64;
    let upper = cpu.load::<W>(address.wrapping_add(W::BYTES))?.sext() as i64;
    if (lower..=upper).contains(&(W::get(cpu, op.dst).sext() as i64)) {
        return Ok(());
    }
    Err(cpu.raise(Exception::plain(vector::BR)))
}
