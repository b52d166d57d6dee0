//! FPREM and FPREM1, in integers: how far one step of a long reduction goes is the processor's choice.

use super::wide::Wide;
use super::{C0, C1, C2, C3, CONDITIONS, DE, IE, INDEFINITE, UE, host};
use crate::op::Op;
use crate::{Cpu, Trap};

/// In [`Op::imm`]: the quotient is rounded to nearest (FPREM1), else cut.
pub(crate) const NEAREST: u64 = 1;

/// A number that is not zero: `significand * 2^(exponent - 16446)`, the top bit of the significand set.
#[derive(Clone, Copy)]
struct Normal {
    exponent: i32,
    significand: u64,
}

impl Normal {
    fn of(value: u128) -> Self {
        let significand = value as u64;
        let shift = significand.leading_zeros();
        let exponent = ((value >> 64) as i32 & 0x7fff).max(1);
        Self {
            exponent: exponent - shift as i32,
            significand: significand << shift,
        }
    }
}

/// `significand * 2^(exponent - 16446)` as a register has it; exact.
fn pack(negative: bool, exponent: i32, significand: u64) -> u128 {
    let sign = u128::from(negative) << 79;
    if significand == 0 {
        return sign;
    }
    // The exponent cannot go below that of the least denormal, whose own is 1.
    let shift = (significand.leading_zeros() as i32).min(exponent - 1);
    let (significand, exponent) = if shift >= 0 {
        (significand << shift, exponent - shift)
    } else {
        (significand >> -shift, 1)
    };
    let field = if significand >> 63 == 0 { 0 } else { exponent };
    sign | (field as u128) << 64 | u128::from(significand)
}

/// `fprem` and `fprem1`. A reduction over 64 exponents or more does 32 to 63 of them at once, such that
/// what is left is a multiple of 32, and sets C2. C0, C3 and C1 are bits 2, 1 and 0 of the quotient.
pub(crate) fn fprem(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.check_x87_waiting()?;
    let fpu = &mut cpu.fpu;
    fpu.fsw &= !C2;
    if fpu.is_empty(0) || fpu.is_empty(1) {
        if fpu.stack_fault(false) {
            fpu.set_st(0, INDEFINITE);
        }
        return Ok(());
    }
    let (a, b) = (fpu.st(0), fpu.st(1));
    // Division has the same NaNs, invalid operands (but for the roles of zero and infinity) and flags.
    let divided = host::ARITHMETIC[4](host::source::REGISTER, fpu.fcw, a, b);
    let special = |v: u128| v >> 64 & 0x7fff == 0x7fff;
    let zero = |v: u128| v << 49 == 0;
    if divided.status & IE != 0 || is_nan(divided.st0) && (special(a) || special(b)) {
        if fpu.take_status(divided.status & (IE | DE), C1) {
            fpu.set_st(0, divided.st0);
        }
        return Ok(());
    }
    if special(a) || zero(b) {
        if fpu.take_status(IE, C1) {
            fpu.set_st(0, INDEFINITE);
        }
        return Ok(());
    }
    let denormal = |v: u128| v >> 64 & 0x7fff == 0 && !zero(v);
    let raised = if denormal(a) || denormal(b) { DE } else { 0 };
    if !fpu.take_status(raised, C1) {
        return Ok(());
    }
    let (value, conditions) = if zero(a) || special(b) {
        (normalised(a), 0)
    } else {
        reduce(a, b, op.imm & NEAREST != 0)
    };
    fpu.fsw = fpu.fsw & !CONDITIONS | conditions;
    // Exact, and so an underflow only where that is an error.
    let value = if denormal(value) && fpu.fcw & UE == 0 {
        let (value, status) = Wide::of(value).round(fpu.fcw);
        fpu.take_status(status, 0);
        value
    } else {
        value
    };
    fpu.set_st(0, value);
    Ok(())
}

fn is_nan(value: u128) -> bool {
    value >> 64 & 0x7fff == 0x7fff && value << 65 != 0
}

/// A pseudo-denormal as the normal number it stands for.
pub(super) fn normalised(value: u128) -> u128 {
    if value >> 64 & 0x7fff == 0 && value >> 63 & 1 != 0 {
        return value | 1 << 64;
    }
    value
}

/// The remainder of numbers that are neither zero nor special, and the condition codes.
fn reduce(a: u128, b: u128, nearest: bool) -> (u128, u16) {
    let negative = a >> 79 != 0;
    let (x, y) = (Normal::of(a), Normal::of(b));
    let distance = x.exponent - y.exponent;
    // Twice or more below the divisor: the quotient is 0 either way.
    if distance < -1 || distance < 0 && !nearest {
        return (normalised(a), 0);
    }
    let steps = if distance < 64 {
        distance.max(0)
    } else {
        distance & 31 | 32
    };
    let mut rest = u128::from(x.significand);
    let divisor = u128::from(y.significand);
    if distance == -1 {
        return below(a, negative, y, x);
    }
    let mut quotient = 0u64;
    for step in 0..=steps {
        if step > 0 {
            rest <<= 1;
        }
        quotient <<= 1;
        if rest >= divisor {
            rest -= divisor;
            quotient |= 1;
        }
    }
    if distance >= 64 {
        let exponent = x.exponent - steps;
        return (pack(negative, exponent, rest as u64), C2);
    }
    let mut negative = negative;
    if nearest && (rest * 2 > divisor || rest * 2 == divisor && quotient & 1 != 0) {
        rest = divisor - rest;
        quotient += 1;
        negative = !negative;
    }
    if rest == 0 {
        negative = a >> 79 != 0;
    }
    let bit = |n: u32, condition: u16| {
        if quotient >> n & 1 != 0 { condition } else { 0 }
    };
    let conditions = bit(2, C0) | bit(1, C3) | bit(0, C1);
    (pack(negative, y.exponent, rest as u64), conditions)
}

/// FPREM1 of an `x` between a quarter of and the whole divisor `y`: the quotient is 0 or 1.
fn below(a: u128, negative: bool, y: Normal, x: Normal) -> (u128, u16) {
    // `x` is `x.significand / 2` at the divisor's exponent: more than half of it, if so.
    if x.significand <= y.significand {
        return (normalised(a), 0);
    }
    // In units of half the divisor's last place.
    let rest = u128::from(y.significand) * 2 - u128::from(x.significand);
    (pack(!negative, y.exponent - 1, rest as u64), C1)
}
