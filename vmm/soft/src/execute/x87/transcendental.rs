//! F2XM1, FYL2X, FYL2XP1, FPATAN, FSIN, FCOS, FSINCOS, FPTAN.
//!
//! Results are computed in integers ([`super::functions`]), never by the host's instructions, which differ
//! between vendors. Zeros, infinities and NaNs are as SDM volume 2A has them.

use super::functions::{arc_tangent, exp2_minus_one, log2, log2_of_one_plus, sine_cosine};
use super::host::{self, source};
use super::wide::{INFINITY, Wide};
use super::{C1, C2, DE, IE, INDEFINITE, PE, ZE};
use crate::fpu::Fpu;
use crate::op::Op;
use crate::{Cpu, Trap};

/// 1.
const ONE: u128 = 0x3fff_8000_0000_0000_0000;
/// The sign.
pub(super) const SIGN: u128 = 1 << 79;

/// A result and the status flags raised.
pub(super) type Raised = (u128, u16);

pub(super) fn is_infinite(value: u128) -> bool {
    value & !SIGN == INFINITY
}

pub(super) fn is_zero(value: u128) -> bool {
    value & !SIGN == 0
}

fn is_denormal(value: u128) -> bool {
    value >> 64 & 0x7fff == 0 && !is_zero(value)
}

/// NaNs and numbers that are none: what an addition makes of them.
pub(super) fn odd_one(a: u128, b: u128) -> Option<Raised> {
    let odd = |v: u128| {
        let exponent = v >> 64 & 0x7fff;
        exponent == 0x7fff && !is_infinite(v) || exponent != 0 && v >> 63 & 1 == 0
    };
    if !odd(a) && !odd(b) {
        return None;
    }
    let host = host::ARITHMETIC[0](source::REGISTER, 0x37f, a, b);
    Some((host.st0, host.status & (IE | DE)))
}

/// The flag for denormal operands.
pub(super) fn denormals(a: u128, b: u128) -> u16 {
    if is_denormal(a) || is_denormal(b) {
        DE
    } else {
        0
    }
}

pub(super) const INVALID: Raised = (INDEFINITE, IE);

/// `f2xm1`. Outside -1 to 1, where it is undefined, the operand stays, as AMD has it.
fn f2xm1(control: u16, x: u128) -> Raised {
    if let Some(raised) = odd_one(x, x) {
        return raised;
    }
    if x == INFINITY | SIGN {
        return (ONE | SIGN, 0);
    }
    if is_zero(x) || is_infinite(x) {
        return (x, 0);
    }
    if x & !SIGN > ONE {
        return (x, PE);
    }
    let (value, status) = exp2_minus_one(Wide::of(x)).round(control);
    (value, status | denormals(x, x))
}

/// `fyl2x`: y * log2(x).
fn fyl2x(control: u16, x: u128, y: u128) -> Raised {
    if let Some(raised) = odd_one(x, y) {
        return raised;
    }
    if is_zero(x) {
        let sign = !y & SIGN;
        return match (is_zero(y), is_infinite(y)) {
            (true, _) => INVALID,
            (_, true) => (INFINITY | sign, 0),
            _ => (INFINITY | sign, ZE),
        };
    }
    if x & SIGN != 0 {
        return INVALID;
    }
    let denormal = denormals(x, y);
    // The sign of the logarithm.
    let below = if x < ONE { SIGN } else { 0 };
    if is_infinite(x) || is_infinite(y) {
        if is_zero(y) || x == ONE {
            return INVALID;
        }
        return (INFINITY | (y ^ below) & SIGN, denormal);
    }
    if is_zero(y) || x == ONE {
        return ((y ^ below) & SIGN, denormal);
    }
    let (value, status) = Wide::of(y).times(log2(Wide::of(x))).round(control);
    (value, status | denormal)
}

/// `fyl2xp1`: y * log2(x + 1). Defined for |x| below 1 - sqrt(1/2); beyond, the function goes on, and
/// below -1 the operation is invalid.
fn fyl2xp1(control: u16, x: u128, y: u128) -> Raised {
    if let Some(raised) = odd_one(x, y) {
        return raised;
    }
    let sign = (x ^ y) & SIGN;
    let denormal = denormals(x, y);
    if x & SIGN != 0 && x & !SIGN >= ONE {
        if x & !SIGN == ONE && !is_zero(y) {
            let flags = if is_infinite(y) { 0 } else { ZE };
            return (INFINITY | sign, flags | denormal);
        }
        return INVALID;
    }
    if is_infinite(x) || is_infinite(y) {
        if is_zero(x) || is_zero(y) {
            return INVALID;
        }
        return (INFINITY | sign, denormal);
    }
    if is_zero(x) || is_zero(y) {
        return (sign, denormal);
    }
    let logarithm = log2_of_one_plus(Wide::of(x));
    let (value, status) = Wide::of(y).times(logarithm).round(control);
    (value, status | denormal)
}

/// `fpatan`: the angle of the point (x, y).
fn fpatan(control: u16, x: u128, y: u128) -> Raised {
    if let Some(raised) = odd_one(x, y) {
        return raised;
    }
    let denormal = denormals(x, y);
    let quarters = if is_infinite(x) && is_infinite(y) {
        if x & SIGN != 0 { 3 } else { 1 }
    } else if is_infinite(y) || is_zero(x) && !is_zero(y) {
        2
    } else if is_infinite(x) || is_zero(y) {
        if x & SIGN == 0 {
            return (y & SIGN, denormal);
        }
        4
    } else {
        let (value, status) = arc_tangent(Wide::of(y), Wide::of(x))
            .nudged(false)
            .round(control);
        // No angle but zero is a number of 64 bits.
        return (value, status | PE | denormal);
    };
    let angle = Wide::PI.scaled(-2).times(Wide::integer(quarters));
    let (value, status) = angle.with_sign(y & SIGN != 0).round(control);
    (value, status | denormal)
}

/// Sine and cosine of a number; `None` if it is out of range.
fn trigonometric(control: u16, x: u128) -> Option<(Raised, Raised)> {
    if let Some(raised) = odd_one(x, x) {
        return Some((raised, raised));
    }
    if is_infinite(x) {
        return Some((INVALID, INVALID));
    }
    if is_zero(x) {
        return Some(((x, 0), (ONE, 0)));
    }
    if x >> 64 & 0x7fff >= 0x3fff + 63 {
        return None;
    }
    let (sine, cosine) = sine_cosine(Wide::of(x));
    let inexact = |(value, status): Raised| (value, status | PE | denormals(x, x));
    // Both are a little less than what they end at: themselves, and 1.
    let [sine, cosine] = [sine, cosine].map(|value| value.nudged(false).round(control));
    Some((inexact(sine), inexact(cosine)))
}

/// The tangent; `None` if the number is out of range.
fn tangent(control: u16, x: u128) -> Option<Raised> {
    let (sine, _) = trigonometric(control, x)?;
    if sine.1 & IE != 0 || is_zero(x) || odd_one(x, x).is_some() {
        return Some(sine);
    }
    let (sine, cosine) = sine_cosine(Wide::of(x));
    let (value, status) = sine.over(cosine).nudged(true).round(control);
    Some((value, status | PE | denormals(x, x)))
}

/// The functions by [`Op::imm`].
pub(crate) mod function {
    /// `f2xm1`.
    pub const F2XM1: u64 = 0;
    /// `fsin`.
    pub const FSIN: u64 = 1;
    /// `fcos`.
    pub const FCOS: u64 = 2;
    /// `fyl2x`.
    pub const FYL2X: u64 = 3;
    /// `fyl2xp1`.
    pub const FYL2XP1: u64 = 4;
    /// `fpatan`.
    pub const FPATAN: u64 = 5;
    /// `fsincos`.
    pub const FSINCOS: u64 = 6;
    /// `fptan`.
    pub const FPTAN: u64 = 7;
}

/// `f2xm1`, `fsin`, `fcos`: in ST(0).
pub(crate) fn of_one(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.check_x87_waiting()?;
    let fpu = &mut cpu.fpu;
    if op.imm != function::F2XM1 {
        fpu.fsw &= !C2;
    }
    if fpu.is_empty(0) {
        if fpu.stack_fault(false) {
            fpu.set_st(0, INDEFINITE);
        }
        return Ok(());
    }
    let x = fpu.st(0);
    let result = match op.imm {
        function::F2XM1 => Some(f2xm1(fpu.fcw, x)),
        function::FSIN => trigonometric(fpu.fcw, x).map(|(sine, _)| sine),
        _ => trigonometric(fpu.fcw, x).map(|(_, cosine)| cosine),
    };
    let Some((value, status)) = result else {
        out_of_range(fpu);
        return Ok(());
    };
    if fpu.take_status(status, C1) {
        fpu.set_st(0, value);
    }
    Ok(())
}

/// `fyl2x`, `fyl2xp1`, `fpatan`: in ST(1), ST(0) popped.
pub(crate) fn of_two(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.check_x87_waiting()?;
    let fpu = &mut cpu.fpu;
    let value = if fpu.is_empty(0) || fpu.is_empty(1) {
        if !fpu.stack_fault(false) {
            return Ok(());
        }
        INDEFINITE
    } else {
        let run = match op.imm {
            function::FYL2X => fyl2x,
            function::FYL2XP1 => fyl2xp1,
            _ => fpatan,
        };
        let (value, status) = run(fpu.fcw, fpu.st(0), fpu.st(1));
        if !fpu.take_status(status, C1) {
            return Ok(());
        }
        value
    };
    fpu.set_st(1, value);
    fpu.pop();
    Ok(())
}

/// `fsincos` and `fptan`: one result in ST(0), then the cosine, or 1, pushed.
pub(crate) fn two_of_one(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.check_x87_waiting()?;
    let fpu = &mut cpu.fpu;
    fpu.fsw &= !C2;
    if fpu.is_empty(0) || !fpu.is_empty(7) {
        let overflow = !fpu.is_empty(0);
        if fpu.stack_fault(overflow) {
            fpu.set_st(0, INDEFINITE);
            fpu.push(INDEFINITE);
        }
        return Ok(());
    }
    let x = fpu.st(0);
    let result = if op.imm == function::FSINCOS {
        trigonometric(fpu.fcw, x)
    } else {
        tangent(fpu.fcw, x).map(|tangent| {
            // A NaN is pushed for a NaN.
            let second = if is_nan(tangent.0) { tangent.0 } else { ONE };
            (tangent, (second, 0))
        })
    };
    let Some(((first, status), (second, status2))) = result else {
        out_of_range(fpu);
        return Ok(());
    };
    if fpu.take_status(status | status2, C1) {
        fpu.set_st(0, first);
        fpu.push(second);
    }
    Ok(())
}

fn is_nan(value: u128) -> bool {
    value >> 64 & 0x7fff == 0x7fff && value << 65 != 0
}

/// An operand of 2^63 and more is left as it is, and C2 says so.
fn out_of_range(fpu: &mut Fpu) {
    fpu.fsw = fpu.fsw & !C1 | C2;
}
