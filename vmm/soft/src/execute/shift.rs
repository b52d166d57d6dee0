//! Shifts and rotates: SHL, SHR, SAR, ROL, ROR, RCL, RCR, SHLD, SHRD.
//!
//! Counts are cut to 5 bits, 6 for 64-bit operands. A count of zero changes no flag. AF, undefined, is set by
//! shifts, as AMD's processors (Zen 5 was asked) have it.

use super::operand::{Operand, Place};
use crate::flags::Arithmetic;
use crate::op::Op;
use crate::word::Word;
use crate::{Cpu, Trap};

/// A shift of a word: result and flags.
pub(crate) trait Shift {
    /// The operation. `count` is cut already and not zero; `flags` are those before.
    fn apply<W: Word>(flags: Arithmetic, a: W, count: u32) -> (W, Arithmetic);
}

/// `count` as the processor cuts it for operands like `W`.
#[inline(always)]
fn cut<W: Word>(count: u8) -> u32 {
    u32::from(count) & if W::BITS == 64 { 0x3f } else { 0x1f }
}

/// The top bit of `value`.
#[inline(always)]
fn top<W: Word>(value: W) -> bool {
    value.sext() >> 63 != 0
}

/// `shl`. OF, undefined for counts above 1, is CF against the result's sign for every count.
pub(crate) struct Shl;
/// `shr`. OF, undefined for counts above 1, is the sign bit for a count of 1 and else clear.
pub(crate) struct Shr;
/// `sar`. OF is clear.
pub(crate) struct Sar;
/// `rol`. OF is CF against the result's sign for every count.
pub(crate) struct Rol;
/// `ror`. OF is the result's top bit against the next for every count.
pub(crate) struct Ror;
/// `rcl`. OF is CF against the result's sign for every count.
pub(crate) struct Rcl;
/// `rcr`. OF is the result's top bit against the next for every count.
pub(crate) struct Rcr;

impl Shift for Shl {
    #[inline(always)]
    fn apply<W: Word>(_: Arithmetic, a: W, count: u32) -> (W, Arithmetic) {
        let result = W::cut(a.zext() << count);
        let carry = if W::BITS == 64 {
            a.zext() >> (64 - count) & 1 != 0
        } else {
            a.zext() << count >> W::BITS & 1 != 0
        };
        let flags = Arithmetic::logic(result.sext()).with_half();
        (
            result,
            flags.with_carry_overflow(carry, carry != top(result)),
        )
    }
}

impl Shift for Shr {
    #[inline(always)]
    fn apply<W: Word>(_: Arithmetic, a: W, count: u32) -> (W, Arithmetic) {
        let result = W::cut(a.zext() >> count);
        let carry = a.zext() >> (count - 1) & 1 != 0;
        let flags = Arithmetic::logic(result.sext()).with_half();
        (
            result,
            flags.with_carry_overflow(carry, count == 1 && top(a)),
        )
    }
}

impl Shift for Sar {
    #[inline(always)]
    fn apply<W: Word>(_: Arithmetic, a: W, count: u32) -> (W, Arithmetic) {
        let wide = a.sext() as i64;
        let result = W::cut((wide >> count) as u64);
        let carry = wide >> (count - 1) & 1 != 0;
        let flags = Arithmetic::logic(result.sext()).with_half();
        (result, flags.with_carry_overflow(carry, false))
    }
}

impl Shift for Rol {
    #[inline(always)]
    fn apply<W: Word>(flags: Arithmetic, a: W, count: u32) -> (W, Arithmetic) {
        let turn = count % W::BITS;
        let a = a.zext();
        // Two steps to the right: a turn of zero would shift by all 64 bits.
        let result = W::cut(a << turn | a >> (W::BITS - 1 - turn) >> 1);
        let carry = result.zext() & 1 != 0;
        (
            result,
            flags.with_carry_overflow(carry, carry != top(result)),
        )
    }
}

impl Shift for Ror {
    #[inline(always)]
    fn apply<W: Word>(flags: Arithmetic, a: W, count: u32) -> (W, Arithmetic) {
        let turn = count % W::BITS;
        let a = a.zext();
        let result = W::cut(a >> turn | a << (W::BITS - 1 - turn) << 1);
        let (carry, next) = (top(result), result.sext() >> (W::BITS - 2) & 1 != 0);
        (result, flags.with_carry_overflow(carry, carry != next))
    }
}

/// `a` with `carry` above it, turned left by `count` of its `W::BITS + 1` bits.
#[inline(always)]
fn turn_with_carry<W: Word>(a: W, carry: bool, count: u32) -> (W, bool) {
    let wide = u128::from(carry) << W::BITS | u128::from(a.zext());
    let turned = wide << count | wide >> (W::BITS + 1 - count);
    (W::cut(turned as u64), turned >> W::BITS & 1 != 0)
}

impl Shift for Rcl {
    #[inline(always)]
    fn apply<W: Word>(flags: Arithmetic, a: W, count: u32) -> (W, Arithmetic) {
        let turn = count % (W::BITS + 1);
        let (result, carry) = turn_with_carry(a, flags.carry(), turn);
        (
            result,
            flags.with_carry_overflow(carry, carry != top(result)),
        )
    }
}

impl Shift for Rcr {
    #[inline(always)]
    fn apply<W: Word>(flags: Arithmetic, a: W, count: u32) -> (W, Arithmetic) {
        let turn = count % (W::BITS + 1);
        let (result, carry) = turn_with_carry(a, flags.carry(), W::BITS + 1 - turn);
        let overflow = top(result) != (result.sext() >> (W::BITS - 2) & 1 != 0);
        (result, flags.with_carry_overflow(carry, overflow))
    }
}

/// `O place, count`. The place is written even if the count is zero.
pub(crate) fn shift<O: Shift, W: Word, D: Place, C: Operand>(
    cpu: &mut Cpu,
    op: &Op,
) -> Result<(), Trap> {
    let count = cut::<W>(C::read(cpu, op)?);
    let a: W = D::read_to_modify(cpu, op)?;
    if count == 0 {
        return D::write(cpu, op, a);
    }
    let (result, flags) = O::apply(cpu.arithmetic, a, count);
    D::write(cpu, op, result)?;
    cpu.arithmetic = flags;
    Ok(())
}

/// `shld place, register, count` and, if not `LEFT`, `shrd`.
///
/// A 16-bit operand with a count above 16, which is undefined, goes on with the register's bits once more,
/// as AMD's processors do, and clears CF and, of SHLD, OF; with 16, OF of SHLD is CF. Otherwise OF says for
/// every count whether the sign changed in the last step.
pub(crate) fn double<W: Word, D: Place, C: Operand, const LEFT: bool>(
    cpu: &mut Cpu,
    op: &Op,
) -> Result<(), Trap> {
    let count = cut::<W>(C::read(cpu, op)?);
    let a: W = D::read_to_modify(cpu, op)?;
    if count == 0 {
        return D::write(cpu, op, a);
    }
    let (low, high) = (u128::from(a.zext()), u128::from(W::get(cpu, op.src).zext()));
    let bits = W::BITS;
    let again = if bits == 16 { 16 } else { 0 };
    let (result, carry, overflow);
    if LEFT {
        let wide = ((low << bits | high) << again) | if again == 0 { 0 } else { high };
        let top_bit = 2 * bits + again;
        result = W::cut((wide >> (top_bit - bits - count)) as u64);
        carry = count <= bits && wide >> (top_bit - count) & 1 != 0;
        overflow = carry != (count < bits && top(result));
    } else {
        let wide = high << bits | low | if again == 0 { 0 } else { high << 32 };
        result = W::cut((wide >> count) as u64);
        carry = count <= bits && wide >> (count - 1) & 1 != 0;
        overflow = top(result) != (result.sext() >> (bits - 2) & 1 != 0);
    }
    D::write(cpu, op, result)?;
    let flags = Arithmetic::logic(result.sext()).with_half();
    cpu.arithmetic = flags.with_carry_overflow(carry, overflow);
    Ok(())
}
