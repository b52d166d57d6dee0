//! SSE floating point: MXCSR, exceptions, and the operations the host's SSE2 carries out.
//!
//! ```text
//!  guest's MXCSR ─▶ every exception masked, flags clear ─▶ host's MXCSR ─▶ instruction ─▶ flags
//!                                                                                          │
//!               all masked: flags stick, result written ◀──────────────────────────────────┤
//!               one is not: flags stick, #XM (#UD without CR4.OSXMMEXCPT), no result ◀─────┘
//! ```
//!
//! IEEE 754 and the rules for NaNs leave these instructions one result, the same on every processor; only
//! the approximations ([`Rcpps`] and its kin) have none, so theirs is made of exact instructions.

use super::Input;
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
const ZE: u32 = 1 << 2;
/// Underflow.
const UE: u32 = 1 << 4;
/// Precision.
pub(crate) const PE: u32 = 1 << 5;
/// All flags.
const FLAGS: u32 = 0x3f;
/// All masks, seven bits above their flags.
const MASKS: u32 = FLAGS << 7;
/// Denormals are zeros.
pub(crate) const DAZ: u32 = 1 << 6;
/// Flush to zero.
const FTZ: u32 = 1 << 15;
/// MXCSR as Rust code wants it.
const RUST: u32 = 0x1f80;

/// A result and the flags raised.
pub(crate) type Raised = (u128, u32);

/// Which lanes of a result can be too small for a normal number.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tiny {
    /// None.
    Never,
    /// 32-bit lanes, this many.
    Single(usize),
    /// 64-bit lanes, this many.
    Double(usize),
}

/// A floating-point operation on two vectors (and an immediate byte).
pub(crate) trait Float {
    /// Where underflow can be.
    const TINY: Tiny = Tiny::Never;
    /// The result and the flags, under an MXCSR with every exception masked and no flags.
    fn apply(mxcsr: u32, a: u128, b: u128, imm: u8) -> Raised;
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

macro_rules! floats {
    ($($name:ident = $text:literal, $tiny:expr;)*) => {$(
        pub(crate) struct $name;
        impl Float for $name {
            const TINY: Tiny = $tiny;
            #[inline(always)]
            fn apply(mxcsr: u32, a: u128, b: u128, _: u8) -> Raised {
                host!(mxcsr, a, b, concat!($text, " {a}, {b}"))
            }
        }
    )*};
}

floats! {
    Addps = "addps", Tiny::Single(4);
    Addpd = "addpd", Tiny::Double(2);
    Addss = "addss", Tiny::Single(1);
    Addsd = "addsd", Tiny::Double(1);
    Subps = "subps", Tiny::Single(4);
    Subpd = "subpd", Tiny::Double(2);
    Subss = "subss", Tiny::Single(1);
    Subsd = "subsd", Tiny::Double(1);
    Mulps = "mulps", Tiny::Single(4);
    Mulpd = "mulpd", Tiny::Double(2);
    Mulss = "mulss", Tiny::Single(1);
    Mulsd = "mulsd", Tiny::Double(1);
    Divps = "divps", Tiny::Single(4);
    Divpd = "divpd", Tiny::Double(2);
    Divss = "divss", Tiny::Single(1);
    Divsd = "divsd", Tiny::Double(1);
    Minps = "minps", Tiny::Never;
    Minpd = "minpd", Tiny::Never;
    Minss = "minss", Tiny::Never;
    Minsd = "minsd", Tiny::Never;
    Maxps = "maxps", Tiny::Never;
    Maxpd = "maxpd", Tiny::Never;
    Maxss = "maxss", Tiny::Never;
    Maxsd = "maxsd", Tiny::Never;
    Sqrtps = "sqrtps", Tiny::Never;
    Sqrtpd = "sqrtpd", Tiny::Never;
    Sqrtss = "sqrtss", Tiny::Never;
    Sqrtsd = "sqrtsd", Tiny::Never;
    Cvtps2pd = "cvtps2pd", Tiny::Never;
    Cvtpd2ps = "cvtpd2ps", Tiny::Single(2);
    Cvtss2sd = "cvtss2sd", Tiny::Never;
    Cvtsd2ss = "cvtsd2ss", Tiny::Single(1);
    Cvtdq2ps = "cvtdq2ps", Tiny::Never;
    Cvtdq2pd = "cvtdq2pd", Tiny::Never;
    Cvtps2dq = "cvtps2dq", Tiny::Never;
    Cvttps2dq = "cvttps2dq", Tiny::Never;
    Cvtpd2dq = "cvtpd2dq", Tiny::Never;
    Cvttpd2dq = "cvttpd2dq", Tiny::Never;
}

/// Operations with more to them than one instruction.
macro_rules! composed {
    ($($name:ident, $tiny:expr, |$mxcsr:ident, $a:ident, $b:ident, $imm:pat_param| $body:expr;)*) => {$(
        pub(crate) struct $name;
        impl Float for $name {
            const TINY: Tiny = $tiny;
            fn apply($mxcsr: u32, $a: u128, $b: u128, $imm: u8) -> Raised {
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
            $name, Tiny::Never, |mxcsr, a, b, imm| match imm & 7 {
                0 => host!(mxcsr, a, b, concat!($text, " {a}, {b}, 0")),
                1 => host!(mxcsr, a, b, concat!($text, " {a}, {b}, 1")),
                2 => host!(mxcsr, a, b, concat!($text, " {a}, {b}, 2")),
                3 => host!(mxcsr, a, b, concat!($text, " {a}, {b}, 3")),
                4 => host!(mxcsr, a, b, concat!($text, " {a}, {b}, 4")),
                5 => host!(mxcsr, a, b, concat!($text, " {a}, {b}, 5")),
                6 => host!(mxcsr, a, b, concat!($text, " {a}, {b}, 6")),
                _ => host!(mxcsr, a, b, concat!($text, " {a}, {b}, 7")),
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
    Haddps, Tiny::Single(4), |mxcsr, a, b, _| {
        Addps::apply(mxcsr, pick32(a, b, [0, 2, 4, 6]), pick32(a, b, [1, 3, 5, 7]), 0)
    };
    Haddpd, Tiny::Double(2), |mxcsr, a, b, _| {
        Addpd::apply(mxcsr, pick64(a, b, [0, 2]), pick64(a, b, [1, 3]), 0)
    };
    Hsubps, Tiny::Single(4), |mxcsr, a, b, _| {
        Subps::apply(mxcsr, pick32(a, b, [0, 2, 4, 6]), pick32(a, b, [1, 3, 5, 7]), 0)
    };
    Hsubpd, Tiny::Double(2), |mxcsr, a, b, _| {
        Subpd::apply(mxcsr, pick64(a, b, [0, 2]), pick64(a, b, [1, 3]), 0)
    };
    Addsubps, Tiny::Single(4), |mxcsr, a, b, _| alternate(
        Subps::apply(mxcsr, a & !ODD_SINGLES, b & !ODD_SINGLES, 0),
        Addps::apply(mxcsr, a & ODD_SINGLES, b & ODD_SINGLES, 0),
        ODD_SINGLES,
    );
    Addsubpd, Tiny::Double(2), |mxcsr, a, b, _| alternate(
        Subpd::apply(mxcsr, a & !ODD_DOUBLES, b & !ODD_DOUBLES, 0),
        Addpd::apply(mxcsr, a & ODD_DOUBLES, b & ODD_DOUBLES, 0),
        ODD_DOUBLES,
    );
    // From MMX operands; the upper half stays.
    Cvtpi2ps, Tiny::Never, |mxcsr, a, b, _| {
        let (low, flags) = Cvtdq2ps::apply(mxcsr, 0, b & u128::from(u64::MAX), 0);
        (a >> 64 << 64 | u128::from(low as u64), flags)
    };
    // To MMX operands: what comes out is in the low half.
    Cvtps2pi, Tiny::Never, |mxcsr, a, b, _| {
        Cvtps2dq::apply(mxcsr, a, b & u128::from(u64::MAX), 0)
    };
    Cvttps2pi, Tiny::Never, |mxcsr, a, b, _| {
        Cvttps2dq::apply(mxcsr, a, b & u128::from(u64::MAX), 0)
    };
}

/// Four ones.
const ONES: u128 = 0x3f80_0000_3f80_0000_3f80_0000_3f80_0000;

/// What approximations are computed under: everything masked, to nearest, denormals are zeros both ways.
const APPROXIMATE: u32 = RUST | DAZ | FTZ;

/// The approximations of this processor: the reciprocal is 1/x correctly rounded to nearest, that of the
/// square root 1/sqrt(x) rounded after each of its two steps; denormals are zeros, in and out, no flag is
/// raised and MXCSR does not matter. That is within the bounds every vendor promises (relative error
/// 1.5 * 2^-12), and the same everywhere.
fn reciprocal(b: u128) -> u128 {
    Divps::apply(APPROXIMATE, ONES, b, 0).0
}

fn reciprocal_root(b: u128) -> u128 {
    reciprocal(Sqrtps::apply(APPROXIMATE, 0, b, 0).0)
}

fn low_single(a: u128, b: u128) -> u128 {
    a >> 32 << 32 | b & 0xffff_ffff
}

composed! {
    Rcpps, Tiny::Never, |_mxcsr, _a, b, _| (reciprocal(b), 0);
    Rcpss, Tiny::Never, |_mxcsr, a, b, _| (low_single(a, reciprocal(b)), 0);
    Rsqrtps, Tiny::Never, |_mxcsr, _a, b, _| (reciprocal_root(b), 0);
    Rsqrtss, Tiny::Never, |_mxcsr, a, b, _| (low_single(a, reciprocal_root(b)), 0);
}

/// An operation from a general register or memory integer.
macro_rules! from_integer {
    ($($name:ident = $text:literal;)*) => {$(
        pub(crate) struct $name;
        impl Float for $name {
            fn apply(mxcsr: u32, a: u128, b: u128, _: u8) -> Raised {
                let mut a = super::lanes::host(a);
                let flags = under!(mxcsr, [$text], a = inout(xmm_reg) a, b = in(reg) b as u64,);
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
    fn apply(mxcsr: u32, a: u128, b: u128) -> (u64, u32);
}

macro_rules! to_integer {
    ($($name:ident = $text:literal;)*) => {$(
        pub(crate) struct $name;
        impl ToInteger for $name {
            fn apply(mxcsr: u32, _: u128, b: u128) -> (u64, u32) {
                let b = super::lanes::host(b);
                let result: u64;
                let flags = under!(mxcsr, [$text], b = in(xmm_reg) b, r = out(reg) result,);
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
            fn apply(mxcsr: u32, a: u128, b: u128) -> (u64, u32) {
                let (carry, parity, zero): (u8, u8, u8);
                let raised = under!(
                    mxcsr,
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

/// The guest's MXCSR with every exception masked and no flags. Flushing to zero is for masked underflow
/// only (SDM volume 1, 10.2.3.3).
#[inline(always)]
fn masked(mxcsr: u32) -> u32 {
    let mut control = mxcsr & !FLAGS | MASKS;
    if mxcsr & UE << 7 == 0 {
        control &= !FTZ;
    }
    control
}

impl Cpu {
    /// Makes `flags` stick; [`Trap`] if one of them is not masked. `result` tells underflow that was
    /// exact, which counts only where underflow is not masked (SDM volume 1, 4.9.1.5).
    ///
    /// # Errors
    /// [`Trap`]: #XM, #UD without CR4.OSXMMEXCPT.
    #[inline(always)]
    fn raise_float(&mut self, flags: u32, result: u128, tiny: Tiny) -> Result<(), Trap> {
        if self.fpu.mxcsr & MASKS != MASKS {
            return self.raise_float_unmasked(flags, result, tiny);
        }
        self.fpu.mxcsr |= flags;
        Ok(())
    }

    #[cold]
    #[inline(never)]
    fn raise_float_unmasked(
        &mut self,
        mut flags: u32,
        result: u128,
        tiny: Tiny,
    ) -> Result<(), Trap> {
        let unmasked = !self.fpu.mxcsr >> 7 & FLAGS;
        // What operands raise comes before what results raise (SDM volume 1, 11.5.1).
        let before = flags & (IE | DE | ZE);
        if before & unmasked != 0 {
            flags = before;
        } else if unmasked & UE != 0 && has_denormal(result, tiny) {
            flags |= UE;
        }
        self.fpu.mxcsr |= flags;
        if flags & unmasked == 0 {
            return Ok(());
        }
        if self.control.cr4 & bits::CR4_OSXMMEXCPT == 0 {
            return Err(self.undefined());
        }
        Err(self.raise(Exception::plain(vector::XM)))
    }
}

/// Whether a lane is a denormal.
fn has_denormal(result: u128, tiny: Tiny) -> bool {
    match tiny {
        Tiny::Never => false,
        Tiny::Single(count) => u32s(result)[..count]
            .iter()
            .any(|lane| lane & 0x7f80_0000 == 0 && lane << 1 != 0),
        Tiny::Double(count) => u64s(result)[..count]
            .iter()
            .any(|lane| lane & 0x7ff0_0000_0000_0000 == 0 && lane << 1 != 0),
    }
}

/// `O xmm, input(, imm)`.
pub(crate) fn float<O: Float, I: Input>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.check_sse()?;
    let b = I::read(cpu, op)?;
    let a = cpu.fpu.xmm(op.dst);
    let (result, flags) = O::apply(masked(cpu.fpu.mxcsr), a, b, op.imm as u8);
    cpu.raise_float(flags, result, O::TINY)?;
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
    let (result, flags) = O::apply(masked(cpu.fpu.mxcsr), 0, b, 0);
    cpu.raise_float(flags, result, O::TINY)?;
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
    let (result, flags) = O::apply(masked(cpu.fpu.mxcsr), 0, b);
    cpu.raise_float(flags, 0, Tiny::Never)?;
    W::cut(result).set(cpu, op.dst);
    Ok(())
}

/// `comiss` and its kin: ZF, PF and CF are the result, the others are clear.
pub(crate) fn float_compare<O: ToInteger, I: Input>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.check_sse()?;
    let b = I::read(cpu, op)?;
    let (result, flags) = O::apply(masked(cpu.fpu.mxcsr), cpu.fpu.xmm(op.dst), b);
    cpu.raise_float(flags, 0, Tiny::Never)?;
    cpu.arithmetic = Arithmetic::from_bits(result & (CF | PF | ZF));
    Ok(())
}
