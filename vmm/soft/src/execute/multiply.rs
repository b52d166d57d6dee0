//! Multiplication and division: MUL, IMUL, DIV, IDIV, and the widening before it (CBW to CQO).
//!
//! Flags the architecture leaves undefined are as on AMD's processors (Zen 5 was asked): a product leaves SF,
//! ZF, AF and PF; a division sets AF, clears SF, ZF and PF, and leaves CF and OF.

use super::operand::Operand;
use crate::flags::Arithmetic;
use crate::op::{Op, slot};
use crate::trap::{Exception, vector};
use crate::word::Word;
use crate::{Cpu, Trap};

/// Sets the flags of a product: CF and OF say that its upper half matters.
#[inline(always)]
fn set_product_flags(cpu: &mut Cpu, wide: bool) {
    cpu.arithmetic = cpu.arithmetic.with_carry_overflow(wide, wide);
}

/// Sets the flags of a division.
#[inline(always)]
fn set_quotient_flags(cpu: &mut Cpu) {
    // Some result that is not zero, not negative and has an odd low byte.
    let flags = Arithmetic::logic(1).with_half();
    let before = cpu.arithmetic;
    cpu.arithmetic = flags.with_carry_overflow(before.carry(), before.overflow());
}

/// Sets the double word in RDX:RAX (AX for bytes).
#[inline(always)]
fn set_double<W: Word>(cpu: &mut Cpu, low: W, high: W) {
    if W::BITS == 8 {
        return (low.zext() as u16 | (high.zext() as u16) << 8).set(cpu, slot::RAX);
    }
    low.set(cpu, slot::RAX);
    high.set(cpu, slot::RDX);
}

/// The double word in RDX:RAX (AX for bytes).
#[inline(always)]
fn double<W: Word>(cpu: &Cpu) -> u128 {
    if W::BITS == 8 {
        return u128::from(cpu.slot(slot::RAX) & 0xffff);
    }
    let high = u128::from(W::get(cpu, slot::RDX).zext());
    high << W::BITS | u128::from(W::get(cpu, slot::RAX).zext())
}

/// `mul source`.
pub(crate) fn mul<W: Word, S: Operand>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let b: W = S::read(cpu, op)?;
    let product = u128::from(W::get(cpu, slot::RAX).zext()) * u128::from(b.zext());
    let (low, high) = (W::cut(product as u64), W::cut((product >> W::BITS) as u64));
    set_double(cpu, low, high);
    set_product_flags(cpu, high.zext() != 0);
    Ok(())
}

/// Signed product: low and high word, and whether the high one matters.
#[inline(always)]
fn signed_product<W: Word>(a: W, b: W) -> (W, W, bool) {
    let product = i128::from(a.sext() as i64) * i128::from(b.sext() as i64);
    let low = W::cut(product as u64);
    let high = W::cut((product >> W::BITS) as u64);
    (low, high, i128::from(low.sext() as i64) != product)
}

/// `imul source`.
pub(crate) fn imul<W: Word, S: Operand>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let b: W = S::read(cpu, op)?;
    let (low, high, wide) = signed_product(W::get(cpu, slot::RAX), b);
    set_double(cpu, low, high);
    set_product_flags(cpu, wide);
    Ok(())
}

/// `imul register, source`.
pub(crate) fn imul_two<W: Word, S: Operand>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let b: W = S::read(cpu, op)?;
    let (low, _, wide) = signed_product(W::get(cpu, op.dst), b);
    low.set(cpu, op.dst);
    set_product_flags(cpu, wide);
    Ok(())
}

/// `imul register, source, immediate`.
pub(crate) fn imul_three<W: Word, S: Operand>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let a: W = S::read(cpu, op)?;
    let (low, _, wide) = signed_product(a, W::cut(op.imm));
    low.set(cpu, op.dst);
    set_product_flags(cpu, wide);
    Ok(())
}

impl Cpu {
    #[cold]
    pub(super) fn divide_error(&mut self) -> Trap {
        self.raise(Exception::plain(vector::DE))
    }
}

/// `div source`.
pub(crate) fn div<W: Word, S: Operand>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let b: W = S::read(cpu, op)?;
    let a = double::<W>(cpu);
    // Where the dividend fits a word so does the division, and is much faster.
    let (quotient, rest) = match (u64::try_from(a), b.zext()) {
        (_, 0) => return Err(cpu.divide_error()),
        (Ok(a), b) => ((a / b).into(), (a % b).into()),
        (_, b) => (a / u128::from(b), a % u128::from(b)),
    };
    if quotient >> W::BITS != 0 {
        return Err(cpu.divide_error());
    }
    set_double(cpu, W::cut(quotient as u64), W::cut(rest as u64));
    set_quotient_flags(cpu);
    Ok(())
}

/// `idiv source`.
pub(crate) fn idiv<W: Word, S: Operand>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let b: W = S::read(cpu, op)?;
    let unused = 128 - 2 * W::BITS;
    let a = (double::<W>(cpu) as i128) << unused >> unused;
    let b = i128::from(b.sext() as i64);
    let narrow = (i64::try_from(a), b as i64);
    let result = match narrow {
        (_, 0) => None,
        (Ok(a), b) if b != -1 => Some(((a / b).into(), (a % b).into())),
        _ => a.checked_div(b).zip(a.checked_rem(b)),
    };
    let Some((quotient, rest)) = result else {
        return Err(cpu.divide_error());
    };
    let low = W::cut(quotient as u64);
    if i128::from(low.sext() as i64) != quotient {
        return Err(cpu.divide_error());
    }
    set_double(cpu, low, W::cut(rest as u64));
    set_quotient_flags(cpu);
    Ok(())
}

/// `cbw`, `cwde`, `cdqe`: the lower half of RAX, as `F`, sign-extended to `T`.
pub(crate) fn widen<F: Word, T: Word>(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    T::cut(F::get(cpu, slot::RAX).sext()).set(cpu, slot::RAX);
    Ok(())
}

/// `cwd`, `cdq`, `cqo`: the sign of RAX in all of RDX.
pub(crate) fn spread<W: Word>(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    let sign = (W::get(cpu, slot::RAX).sext() as i64 >> 63) as u64;
    W::cut(sign).set(cpu, slot::RDX);
    Ok(())
}
