//! One-operand arithmetic: INC, DEC, NEG, NOT.

use super::alu::{add_carries, sub_borrows};
use super::operand::Place;
use crate::flags::Arithmetic;
use crate::op::Op;
use crate::word::Word;
use crate::{Cpu, Trap};

/// An operation on one word: result and flags.
pub(crate) trait Unary {
    /// The operation; `flags` are those before.
    fn apply<W: Word>(flags: Arithmetic, a: W) -> (W, Arithmetic);
}

/// `inc`: every flag of an addition but CF.
pub(crate) struct Inc;
/// `dec`: every flag of a subtraction but CF.
pub(crate) struct Dec;
/// `neg`: a subtraction from zero.
pub(crate) struct Neg;
/// `not`: no flags.
pub(crate) struct Not;

impl Unary for Inc {
    #[inline(always)]
    fn apply<W: Word>(flags: Arithmetic, a: W) -> (W, Arithmetic) {
        let a = a.zext();
        let sum = a.wrapping_add(1);
        let result = W::cut(sum);
        let after = Arithmetic::from_carries(result.sext(), add_carries(a, 1, sum), W::BITS);
        (result, after.with_carry(flags.carry()))
    }
}

impl Unary for Dec {
    #[inline(always)]
    fn apply<W: Word>(flags: Arithmetic, a: W) -> (W, Arithmetic) {
        let a = a.zext();
        let difference = a.wrapping_sub(1);
        let result = W::cut(difference);
        let borrows = sub_borrows(a, 1, difference);
        let after = Arithmetic::from_carries(result.sext(), borrows, W::BITS);
        (result, after.with_carry(flags.carry()))
    }
}

impl Unary for Neg {
    #[inline(always)]
    fn apply<W: Word>(_: Arithmetic, a: W) -> (W, Arithmetic) {
        let a = a.zext();
        let difference = 0u64.wrapping_sub(a);
        let result = W::cut(difference);
        let borrows = sub_borrows(0, a, difference);
        (
            result,
            Arithmetic::from_carries(result.sext(), borrows, W::BITS),
        )
    }
}

impl Unary for Not {
    #[inline(always)]
    fn apply<W: Word>(flags: Arithmetic, a: W) -> (W, Arithmetic) {
        (W::cut(!a.zext()), flags)
    }
}

/// `O place`.
pub(crate) fn unary<O: Unary, W: Word, D: Place>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let a: W = D::read_to_modify(cpu, op)?;
    let (result, flags) = O::apply(cpu.arithmetic, a);
    D::write(cpu, op, result)?;
    cpu.arithmetic = flags;
    Ok(())
}
