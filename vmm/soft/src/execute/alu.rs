//! Two-operand arithmetic and logic: ADD, OR, ADC, SBB, AND, SUB, XOR, CMP, TEST.

use super::operand::{Operand, Place};
use crate::flags::Arithmetic;
use crate::op::Op;
use crate::word::Word;
use crate::{Cpu, Trap};

/// An operation on two words: result and flags.
pub(crate) trait Alu {
    /// Whether the result is written back.
    const WRITES: bool = true;
    /// The operation; `flags` are those before.
    fn apply<W: Word>(flags: Arithmetic, a: W, b: W) -> (W, Arithmetic);
}

macro_rules! operation {
    ($name:ident, $writes:expr, $body:expr) => {
        pub(crate) struct $name;
        impl Alu for $name {
            const WRITES: bool = $writes;
            #[inline(always)]
            fn apply<W: Word>(flags: Arithmetic, a: W, b: W) -> (W, Arithmetic) {
                let body: fn(Arithmetic, u64, u64, u32) -> (u64, Option<u64>) = $body;
                let (value, carries) = body(flags, a.zext(), b.zext(), W::BITS);
                let result = W::cut(value);
                let flags = match carries {
                    Some(carries) => Arithmetic::from_carries(result.sext(), carries, W::BITS),
                    None => Arithmetic::logic(result.sext()),
                };
                (result, flags)
            }
        }
    };
}

/// Carries out of each bit of `a + b (+ carry) = sum`.
#[inline(always)]
pub(crate) fn add_carries(a: u64, b: u64, sum: u64) -> u64 {
    a & b | (a | b) & !sum
}

/// Borrows out of each bit of `a - b (- borrow) = difference`.
#[inline(always)]
pub(crate) fn sub_borrows(a: u64, b: u64, difference: u64) -> u64 {
    !a & b | !(a ^ b) & difference
}

operation!(Add, true, |_, a, b, _| {
    let sum = a.wrapping_add(b);
    (sum, Some(add_carries(a, b, sum)))
});
operation!(Adc, true, |flags, a, b, _| {
    let sum = a.wrapping_add(b).wrapping_add(flags.carry().into());
    (sum, Some(add_carries(a, b, sum)))
});
operation!(Sub, true, |_, a, b, _| {
    let difference = a.wrapping_sub(b);
    (difference, Some(sub_borrows(a, b, difference)))
});
operation!(Sbb, true, |flags, a, b, _| {
    let difference = a.wrapping_sub(b).wrapping_sub(flags.carry().into());
    (difference, Some(sub_borrows(a, b, difference)))
});
operation!(Cmp, false, |_, a, b, _| {
    let difference = a.wrapping_sub(b);
    (difference, Some(sub_borrows(a, b, difference)))
});
operation!(And, true, |_, a, b, _| (a & b, None));
operation!(Or, true, |_, a, b, _| (a | b, None));
operation!(Xor, true, |_, a, b, _| (a ^ b, None));
operation!(Test, false, |_, a, b, _| (a & b, None));

/// `O place, source`.
pub(crate) fn alu<O: Alu, W: Word, D: Place, S: Operand>(
    cpu: &mut Cpu,
    op: &Op,
) -> Result<(), Trap> {
    let b: W = S::read(cpu, op)?;
    let a: W = if O::WRITES {
        D::read_to_modify(cpu, op)?
    } else {
        D::read(cpu, op)?
    };
    let (result, flags) = O::apply(cpu.arithmetic, a, b);
    if O::WRITES {
        D::write(cpu, op, result)?;
    }
    cpu.arithmetic = flags;
    Ok(())
}
