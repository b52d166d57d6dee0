//! SSE floating point: MXCSR, exceptions, and the operations the host's SSE2 carries out.
//!
//! ```text
//!  guest's MXCSR ─▶ every exception masked, flags clear ─▶ host's MXCSR ─▶ instruction ─▶ flags
//!                                                                                          │
//!               all masked: flags stick, result written ◀──────────────────────────────────┤
//!               one is not: flags stick, #XM (#UD without CR4.OSXMMEXCPT), no result ◀─────┘
//! ```
//!
//! IEEE 754 and the rules for NaNs leave these instructions one result, the same on every processor:
//! `tests/vectors/proof.rs` compares each with a reference in integers. Only the approximations ([`Rcpps`] and
//! its kin) have none, so theirs is made of exact instructions.

use super::Input;
use super::control::{Control, Range};
use super::lanes::{from_u32s, from_u64s, u32s, u64s};
use crate::cpu::bits;
use crate::flags::{Arithmetic, CF, PF, ZF};
use crate::op::Op;
use crate::trap::{Exception, vector};
use crate::word::Word;
use crate::{Cpu, Trap};
use std::arch::asm;

/// Flag and (7 bits up) mask: invalid operation.
pub(crate) const IE: u32 = 1 << 0;
/// Denormal operand.
pub(crate) const DE: u32 = 1 << 1;
/// Division by zero.
pub(super) const ZE: u32 = 1 << 2;
/// Overflow.
pub(super) const OE: u32 = 1 << 3;
/// Underflow.
pub(super) const UE: u32 = 1 << 4;
/// Precision.
pub(crate) const PE: u32 = 1 << 5;
/// All flags.
pub(super) const FLAGS: u32 = 0x3f;
/// In flags an operation raises: it is of several steps, and has left out what the last of them does not raise
/// ([`Control::kept`]). Only where some exception is not masked.
pub(super) const STEPPED: u32 = 1 << 31;
/// All masks, seven bits above their flags.
pub(super) const MASKS: u32 = FLAGS << 7;
/// Denormals are zeros.
pub(crate) const DAZ: u32 = 1 << 6;
/// Flush to zero.
pub(super) const FTZ: u32 = 1 << 15;
/// MXCSR as Rust code wants it.
const RUST: u32 = 0x1f80;

/// A result and the flags raised.
pub(crate) type Raised = (u128, u32);

/// A floating-point operation on two vectors (and an immediate byte).
pub(crate) trait Float {
    /// The result, if every exception were masked, and the flags. `ERRORS`: some are not masked.
    fn apply<const ERRORS: bool>(control: Control, a: u128, b: u128, imm: u8) -> Raised;
}

/// Instructions of the host, under an MXCSR with every exception masked: the flags raised.
macro_rules! under {
    ($mxcsr:expr, [$($text:expr),+], $($operands:tt)*) => {{
        let mut control: u32 = $mxcsr;
        // SAFETY: instructions on registers; MXCSR is what Rust code wants afterwards, and exceptions are
        // masked meanwhile.
        unsafe {
            asm!(
                "ldmxcsr [{control}]",
                $($text,)+
                "stmxcsr [{control}]",
                "ldmxcsr [{rust}]",
                $($operands)*
                control = in(reg) &raw mut control,
                rust = in(reg) &RUST,
                options(nostack),
            );
        }
        control & FLAGS
    }};
}

/// One instruction of the host on two vectors, under an MXCSR: result and flags.
macro_rules! host {
    ($mxcsr:expr, $a:expr, $b:expr, $text:expr) => {{
        let mut a = super::lanes::host($a);
        let b = super::lanes::host($b);
        let flags = under!($mxcsr, [$text], a = inout(xmm_reg) a, b = in(xmm_reg) b,);
        (super::lanes::guest(a), flags)
    }};
}

/// Operations whose results always fit.
macro_rules! floats {
    ($($name:ident = $text:literal;)*) => {$(
        pub(crate) struct $name;
        impl Float for $name {
            #[inline(always)]
            fn apply<const ERRORS: bool>(control: Control, a: u128, b: u128, _: u8) -> Raised {
                host!(control.host, a, b, concat!($text, " {a}, {b}"))
            }
        }
    )*};
}

/// Operations whose results can be too large or too small.
macro_rules! bounded {
    ($($name:ident = $text:literal, $range:expr;)*) => {$(
        pub(crate) struct $name;
        impl Float for $name {
            #[inline(always)]
            fn apply<const ERRORS: bool>(control: Control, a: u128, b: u128, _: u8) -> Raised {
                let (result, flags) = host!(control.host, a, b, concat!($text, " {a}, {b}"));
                if !ERRORS || control.is_bounded() {
                    return (result, flags);
                }
                let masked = |a, b| host!(control.host, a, b, concat!($text, " {a}, {b}"));
                (result, $range.flags(control, a, b, masked))
            }
        }
    )*};
}

/// Numbers of [`crate::execute::x87::host::ARITHMETIC`].
const ADD: usize = 0;
const MULTIPLY: usize = 1;
const SUBTRACT: usize = 2;
const DIVIDE: usize = 4;

bounded! {
    Addps = "addps", Range::singles(4, ADD);
    Addpd = "addpd", Range::doubles(2, ADD);
    Addss = "addss", Range::singles(1, ADD);
    Addsd = "addsd", Range::doubles(1, ADD);
    Subps = "subps", Range::singles(4, SUBTRACT);
    Subpd = "subpd", Range::doubles(2, SUBTRACT);
    Subss = "subss", Range::singles(1, SUBTRACT);
    Subsd = "subsd", Range::doubles(1, SUBTRACT);
    Mulps = "mulps", Range::singles(4, MULTIPLY);
    Mulpd = "mulpd", Range::doubles(2, MULTIPLY);
    Mulss = "mulss", Range::singles(1, MULTIPLY);
    Mulsd = "mulsd", Range::doubles(1, MULTIPLY);
    Divps = "divps", Range::singles(4, DIVIDE);
    Divpd = "divpd", Range::doubles(2, DIVIDE);
    Divss = "divss", Range::singles(1, DIVIDE);
    Divsd = "divsd", Range::doubles(1, DIVIDE);
    Cvtpd2ps = "cvtpd2ps", Range::narrowing(2);
    Cvtsd2ss = "cvtsd2ss", Range::narrowing(1);
}

floats! {
    Minps = "minps";
    Minpd = "minpd";
    Minss = "minss";
    Minsd = "minsd";
    Maxps = "maxps";
    Maxpd = "maxpd";
    Maxss = "maxss";
    Maxsd = "maxsd";
    Sqrtps = "sqrtps";
    Sqrtpd = "sqrtpd";
    Sqrtss = "sqrtss";
    Sqrtsd = "sqrtsd";
    Cvtps2pd = "cvtps2pd";
    Cvtss2sd = "cvtss2sd";
    Cvtdq2ps = "cvtdq2ps";
    Cvtdq2pd = "cvtdq2pd";
    Cvtps2dq = "cvtps2dq";
    Cvttps2dq = "cvttps2dq";
    Cvtpd2dq = "cvtpd2dq";
    Cvttpd2dq = "cvttpd2dq";
}

/// Operations with more to them than one instruction.
macro_rules! composed {
    ($($name:ident, |$control:ident, $a:ident, $b:ident, $imm:pat_param| $body:expr;)*) => {$(
        pub(crate) struct $name;
        impl Float for $name {
            fn apply<const ERRORS: bool>($control: Control, $a: u128, $b: u128, $imm: u8) -> Raised {
                $body
            }
        }
    )*};
}

pub(super) use composed;

/// `cmpps` and its kin: the predicate is in the low three bits of the immediate.
macro_rules! compare {
    ($($name:ident = $text:literal;)*) => {
        composed! {$(
            $name, |control, a, b, imm| match imm & 7 {
                0 => host!(control.host, a, b, concat!($text, " {a}, {b}, 0")),
                1 => host!(control.host, a, b, concat!($text, " {a}, {b}, 1")),
                2 => host!(control.host, a, b, concat!($text, " {a}, {b}, 2")),
                3 => host!(control.host, a, b, concat!($text, " {a}, {b}, 3")),
                4 => host!(control.host, a, b, concat!($text, " {a}, {b}, 4")),
                5 => host!(control.host, a, b, concat!($text, " {a}, {b}, 5")),
                6 => host!(control.host, a, b, concat!($text, " {a}, {b}, 6")),
                _ => host!(control.host, a, b, concat!($text, " {a}, {b}, 7")),
            };
        )*}
    };
}

compare! {
    Cmpps = "cmpps";
    Cmppd = "cmppd";
    Cmpss = "cmpss";
    Cmpsd = "cmpsd";
}

/// The lanes of two vectors of 32-bit lanes, by number: 0 to 3 are `a`'s, 4 to 7 `b`'s, 8 is zero.
#[inline(always)]
fn pick32(a: u128, b: u128, lanes: [usize; 4]) -> u128 {
    let (a, b) = (u32s(a), u32s(b));
    let all = [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], 0];
    from_u32s(lanes.map(|n| all[n]))
}

/// The same for 64-bit lanes: 0, 1, 2, 3, and 4 for zero.
#[inline(always)]
fn pick64(a: u128, b: u128, lanes: [usize; 2]) -> u128 {
    let (a, b) = (u64s(a), u64s(b));
    let all = [a[0], a[1], b[0], b[1], 0];
    from_u64s(lanes.map(|n| all[n]))
}

/// Even lanes of `x`, odd lanes of `y`.
fn alternate(x: Raised, y: Raised, odd: u128) -> Raised {
    (x.0 & !odd | y.0 & odd, x.1 | y.1)
}

const ODD_SINGLES: u128 = 0xffff_ffff_0000_0000_ffff_ffff_0000_0000;
const ODD_DOUBLES: u128 = 0xffff_ffff_ffff_ffff << 64;

composed! {
    Haddps, |control, a, b, _| {
        Addps::apply::<ERRORS>(control, pick32(a, b, [0, 2, 4, 6]), pick32(a, b, [1, 3, 5, 7]), 0)
    };
    Haddpd, |control, a, b, _| {
        Addpd::apply::<ERRORS>(control, pick64(a, b, [0, 2]), pick64(a, b, [1, 3]), 0)
    };
    Hsubps, |control, a, b, _| {
        Subps::apply::<ERRORS>(control, pick32(a, b, [0, 2, 4, 6]), pick32(a, b, [1, 3, 5, 7]), 0)
    };
    Hsubpd, |control, a, b, _| {
        Subpd::apply::<ERRORS>(control, pick64(a, b, [0, 2]), pick64(a, b, [1, 3]), 0)
    };
    Addsubps, |control, a, b, _| alternate(
        Subps::apply::<ERRORS>(control, a & !ODD_SINGLES, b & !ODD_SINGLES, 0),
        Addps::apply::<ERRORS>(control, a & ODD_SINGLES, b & ODD_SINGLES, 0),
        ODD_SINGLES,
    );
    Addsubpd, |control, a, b, _| alternate(
        Subpd::apply::<ERRORS>(control, a & !ODD_DOUBLES, b & !ODD_DOUBLES, 0),
        Addpd::apply::<ERRORS>(control, a & ODD_DOUBLES, b & ODD_DOUBLES, 0),
        ODD_DOUBLES,
    );
    // From MMX operands; the upper half stays.
    Cvtpi2ps, |control, a, b, _| {
        let (low, flags) = Cvtdq2ps::apply::<ERRORS>(control, 0, b & u128::from(u64::MAX), 0);
        (a >> 64 << 64 | u128::from(low as u64), flags)
    };
    // To MMX operands: what comes out is in the low half.
    Cvtps2pi, |control, a, b, _| {
        Cvtps2dq::apply::<ERRORS>(control, a, b & u128::from(u64::MAX), 0)
    };
    Cvttps2pi, |control, a, b, _| {
        Cvttps2dq::apply::<ERRORS>(control, a, b & u128::from(u64::MAX), 0)
    };
}

/// Four ones.
const ONES: u128 = 0x3f80_0000_3f80_0000_3f80_0000_3f80_0000;

/// What approximations are computed under: everything masked, to nearest, denormals are zeros both ways.
const APPROXIMATE: Control = Control::masked(RUST | DAZ | FTZ);

/// The approximations of this processor: the reciprocal is 1/x correctly rounded to nearest, that of the
/// square root 1/sqrt(x) rounded after each of its two steps; denormals are zeros, in and out, no flag is
/// raised and MXCSR does not matter. That is within the bounds every vendor promises (relative error
/// 1.5 * 2^-12), and the same everywhere.
fn reciprocal(b: u128) -> u128 {
    Divps::apply::<false>(APPROXIMATE, ONES, b, 0).0
}

fn reciprocal_root(b: u128) -> u128 {
    reciprocal(Sqrtps::apply::<false>(APPROXIMATE, 0, b, 0).0)
}

fn low_single(a: u128, b: u128) -> u128 {
    a >> 32 << 32 | b & 0xffff_ffff
}

composed! {
    Rcpps, |_control, _a, b, _| (reciprocal(b), 0);
    Rcpss, |_control, a, b, _| (low_single(a, reciprocal(b)), 0);
    Rsqrtps, |_control, _a, b, _| (reciprocal_root(b), 0);
    Rsqrtss, |_control, a, b, _| (low_single(a, reciprocal_root(b)), 0);
}

/// An operation from a general register or memory integer.
macro_rules! from_integer {
    ($($name:ident = $text:literal;)*) => {$(
        pub(crate) struct $name;
        impl Float for $name {
            fn apply<const ERRORS: bool>(control: Control, a: u128, b: u128, _: u8) -> Raised {
                let mut a = super::lanes::host(a);
                let flags = under!(control.host, [$text], a = inout(xmm_reg) a, b = in(reg) b as u64,);
                (super::lanes::guest(a), flags)
            }
        }
    )*};
}

from_integer! {
    Cvtsi2ss32 = "cvtsi2ss {a}, {b:e}";
    Cvtsi2ss64 = "cvtsi2ss {a}, {b:r}";
    Cvtsi2sd32 = "cvtsi2sd {a}, {b:e}";
    Cvtsi2sd64 = "cvtsi2sd {a}, {b:r}";
}

/// An operation with a general register for a result: integer conversions and, with the flags that are
/// the result, ordered comparisons.
pub(crate) trait ToInteger {
    /// The result and the flags of MXCSR.
    fn apply(control: Control, a: u128, b: u128) -> (u64, u32);
}

macro_rules! to_integer {
    ($($name:ident = $text:literal;)*) => {$(
        pub(crate) struct $name;
        impl ToInteger for $name {
            fn apply(control: Control, _: u128, b: u128) -> (u64, u32) {
                let b = super::lanes::host(b);
                let result: u64;
                let flags = under!(control.host, [$text], b = in(xmm_reg) b, r = out(reg) result,);
                (result, flags)
            }
        }
    )*};
}

to_integer! {
    Cvtss2si32 = "cvtss2si {r:e}, {b}";
    Cvtss2si64 = "cvtss2si {r:r}, {b}";
    Cvtsd2si32 = "cvtsd2si {r:e}, {b}";
    Cvtsd2si64 = "cvtsd2si {r:r}, {b}";
    Cvttss2si32 = "cvttss2si {r:e}, {b}";
    Cvttss2si64 = "cvttss2si {r:r}, {b}";
    Cvttsd2si32 = "cvttsd2si {r:e}, {b}";
    Cvttsd2si64 = "cvttsd2si {r:r}, {b}";
}

/// A comparison: the result is CF, PF and ZF as RFLAGS has them.
macro_rules! ordered {
    ($($name:ident = $text:literal;)*) => {$(
        pub(crate) struct $name;
        impl ToInteger for $name {
            fn apply(control: Control, a: u128, b: u128) -> (u64, u32) {
                let (carry, parity, zero): (u8, u8, u8);
                let raised = under!(
                    control.host,
                    [concat!($text, " {a}, {b}"), "setc {carry}", "setp {parity}", "setz {zero}"],
                    a = in(xmm_reg) super::lanes::host(a),
                    b = in(xmm_reg) super::lanes::host(b),
                    carry = out(reg_byte) carry,
                    parity = out(reg_byte) parity,
                    zero = out(reg_byte) zero,
                );
                let flags = u64::from(carry) * CF | u64::from(parity) * PF | u64::from(zero) * ZF;
                (flags, raised)
            }
        }
    )*};
}

ordered! {
    Comiss = "comiss";
    Comisd = "comisd";
    Ucomiss = "ucomiss";
    Ucomisd = "ucomisd";
}

/// Carries out `O`: its result, its flags stick.
///
/// # Errors
/// [`Trap`]: #XM for a flag that is not masked, #UD without CR4.OSXMMEXCPT.
#[inline(always)]
fn compute<O: Float>(cpu: &mut Cpu, a: u128, b: u128, imm: u8) -> Result<u128, Trap> {
    let mxcsr = cpu.fpu.mxcsr;
    if mxcsr & MASKS != MASKS {
        return compute_unmasked::<O>(cpu, a, b, imm);
    }
    let (result, flags) = O::apply::<false>(Control::masked(mxcsr & !FLAGS), a, b, imm);
    cpu.fpu.mxcsr |= flags;
    Ok(result)
}

#[cold]
#[inline(never)]
fn compute_unmasked<O: Float>(cpu: &mut Cpu, a: u128, b: u128, imm: u8) -> Result<u128, Trap> {
    let (result, flags) = O::apply::<true>(Control::of(cpu.fpu.mxcsr), a, b, imm);
    cpu.raise_float(flags)?;
    Ok(result)
}

impl Cpu {
    /// Makes `flags` stick; [`Trap`] if one of them is not masked.
    ///
    /// # Errors
    /// [`Trap`]: #XM, #UD without CR4.OSXMMEXCPT.
    #[inline(always)]
    fn raise_float(&mut self, flags: u32) -> Result<(), Trap> {
        if self.fpu.mxcsr & MASKS != MASKS {
            return self.raise_float_unmasked(flags);
        }
        self.fpu.mxcsr |= flags;
        Ok(())
    }

    #[cold]
    #[inline(never)]
    fn raise_float_unmasked(&mut self, flags: u32) -> Result<(), Trap> {
        let control = Control::of(self.fpu.mxcsr);
        let flags = match flags & STEPPED {
            0 => control.kept(flags),
            _ => flags & FLAGS,
        };
        self.fpu.mxcsr |= flags;
        if !control.stops(flags) {
            return Ok(());
        }
        if self.control.cr4 & bits::CR4_OSXMMEXCPT == 0 {
            return Err(self.undefined());
        }
        Err(self.raise(Exception::plain(vector::XM)))
    }
}

/// `O xmm, input(, imm)`.
pub(crate) fn float<O: Float, I: Input>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.check_sse()?;
    let b = I::read(cpu, op)?;
    let a = cpu.fpu.xmm(op.dst);
    let result = compute::<O>(cpu, a, b, op.imm as u8)?;
    cpu.fpu.set_xmm(op.dst, result);
    Ok(())
}

/// `O xmm, mm`.
pub(crate) fn float_from_mm<O: Float, I: Input>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.check_mmx_waiting()?;
    let flags_before = (cpu.fpu.fsw, cpu.fpu.tags);
    cpu.fpu.enter_mmx();
    let result = float::<O, I>(cpu, op);
    if result.is_err() {
        (cpu.fpu.fsw, cpu.fpu.tags) = flags_before;
    }
    result
}

/// `O mm, input`.
pub(crate) fn float_to_mm<O: Float, I: Input>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.check_sse()?;
    cpu.check_mmx_waiting()?;
    let b = I::read(cpu, op)?;
    let result = compute::<O>(cpu, 0, b, 0)?;
    cpu.fpu.enter_mmx();
    cpu.fpu.set_mm(op.dst, result as u64);
    Ok(())
}

/// `O r, input`.
pub(crate) fn float_to_general<O: ToInteger, W: Word, I: Input>(
    cpu: &mut Cpu,
    op: &Op,
) -> Result<(), Trap> {
    cpu.check_sse()?;
    let b = I::read(cpu, op)?;
    let (result, flags) = O::apply(Control::of(cpu.fpu.mxcsr), 0, b);
    cpu.raise_float(flags)?;
    W::cut(result).set(cpu, op.dst);
    Ok(())
}

/// `comiss` and its kin: ZF, PF and CF are the result, the others are clear.
pub(crate) fn float_compare<O: ToInteger, I: Input>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.check_sse()?;
    let b = I::read(cpu, op)?;
    let (result, flags) = O::apply(Control::of(cpu.fpu.mxcsr), cpu.fpu.xmm(op.dst), b);
    cpu.raise_float(flags)?;
    cpu.arithmetic = Arithmetic::from_bits(result & (CF | PF | ZF));
    Ok(())
}
