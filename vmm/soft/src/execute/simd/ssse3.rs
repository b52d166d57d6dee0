//! SSSE3 and SSE4.1 integer operations, and PCMPGTQ, lane by lane: the host need not have them.

use super::integer::{beside, own};
use super::lanes::*;
use super::{Input, Packed};
use crate::flags::{Arithmetic, CF, ZF};
use crate::op::Op;
use crate::{Cpu, Trap};

/// Sums or differences of neighbours: those of `a`, then those of `b`.
macro_rules! horizontal {
    ($($name:ident, $to:ident, $from:ident, $half:expr, $f:expr;)*) => {
        own! {$(
            $name: |a, b, _| {
                let (a, b) = ($to(a), $to(b));
                $from(std::array::from_fn(|n| {
                    let (from, n) = if n < $half { (&a, n) } else { (&b, n - $half) };
                    $f(from[n * 2], from[n * 2 + 1])
                }))
            }, Self::xmm(beside(a, b), 0, 0) as u64;
        )*}
    };
}

horizontal! {
    Phaddw, i16s, from_i16s, 4, i16::wrapping_add;
    Phaddd, i32s, from_i32s, 2, i32::wrapping_add;
    Phaddsw, i16s, from_i16s, 4, i16::saturating_add;
    Phsubw, i16s, from_i16s, 4, i16::wrapping_sub;
    Phsubd, i32s, from_i32s, 2, i32::wrapping_sub;
    Phsubsw, i16s, from_i16s, 4, i16::saturating_sub;
}

/// One lane of two at a time.
macro_rules! lanewise {
    ($($name:ident, $to:ident, $from:ident, $f:expr;)*) => {
        own! {$(
            $name: |a, b, _| $from(zip($to(a), $to(b), $f));
        )*}
    };
}

lanewise! {
    Psignb, i8s, from_i8s, |a: i8, b: i8| a.wrapping_mul(b.signum());
    Psignw, i16s, from_i16s, |a: i16, b: i16| a.wrapping_mul(b.signum());
    Psignd, i32s, from_i32s, |a: i32, b: i32| a.wrapping_mul(b.signum());
    Pabsb, i8s, from_i8s, |_: i8, b: i8| b.wrapping_abs();
    Pabsw, i16s, from_i16s, |_: i16, b: i16| b.wrapping_abs();
    Pabsd, i32s, from_i32s, |_: i32, b: i32| b.wrapping_abs();
    Pmulhrsw, i16s, from_i16s, |a: i16, b: i16| {
        ((((i32::from(a) * i32::from(b)) >> 14) + 1) >> 1) as i16
    };
    Pmulld, i32s, from_i32s, |a: i32, b: i32| a.wrapping_mul(b);
    Pcmpeqq, u64s, from_u64s, |a: u64, b: u64| u64::from(a == b).wrapping_neg();
    Pcmpgtq, i64s, from_i64s, |a: i64, b: i64| -i64::from(a > b);
    Pminsb, i8s, from_i8s, |a: i8, b: i8| a.min(b);
    Pmaxsb, i8s, from_i8s, |a: i8, b: i8| a.max(b);
    Pminuw, u16s, from_u16s, |a: u16, b: u16| a.min(b);
    Pmaxuw, u16s, from_u16s, |a: u16, b: u16| a.max(b);
    Pminsd, i32s, from_i32s, |a: i32, b: i32| a.min(b);
    Pmaxsd, i32s, from_i32s, |a: i32, b: i32| a.max(b);
    Pminud, u32s, from_u32s, |a: u32, b: u32| a.min(b);
    Pmaxud, u32s, from_u32s, |a: u32, b: u32| a.max(b);
}

/// The low lanes of a vector made wider.
macro_rules! widen {
    ($($name:ident, $to:ident, $from:ident;)*) => {
        own! {$(
            $name: |_a, b, _| {
                let b = $to(b);
                $from(std::array::from_fn(|n| b[n].into()))
            };
        )*}
    };
}

widen! {
    Pmovsxbw, i8s, from_i16s;
    Pmovsxbd, i8s, from_i32s;
    Pmovsxbq, i8s, from_i64s;
    Pmovsxwd, i16s, from_i32s;
    Pmovsxwq, i16s, from_i64s;
    Pmovsxdq, i32s, from_i64s;
    Pmovzxbw, u8s, from_u16s;
    Pmovzxbd, u8s, from_u32s;
    Pmovzxbq, u8s, from_u64s;
    Pmovzxwd, u16s, from_u32s;
    Pmovzxwq, u16s, from_u64s;
    Pmovzxdq, u32s, from_u64s;
}

/// Lanes of `b` where the immediate has their bit, else of `a`.
macro_rules! blend {
    ($($name:ident, $to:ident, $from:ident;)*) => {
        own! {$(
            $name: |a, b, imm| {
                let (a, b) = ($to(a), $to(b));
                $from(std::array::from_fn(|n| if imm & 1 << n != 0 { b[n] } else { a[n] }))
            };
        )*}
    };
}

blend! {
    Blendps, u32s, from_u32s;
    Blendpd, u64s, from_u64s;
    Pblendw, u16s, from_u16s;
}

/// Lane `imm` of `a` replaced by `b`.
macro_rules! insert {
    ($($name:ident, $to:ident, $from:ident, $lane:ty, $count:expr;)*) => {
        own! {$(
            $name: |a, b, imm| {
                let mut a = $to(a);
                a[usize::from(imm) % $count] = b as $lane;
                $from(a)
            };
        )*}
    };
}

insert! {
    Pinsrb, u8s, from_u8s, u8, 16;
    Pinsrd, u32s, from_u32s, u32, 4;
    Pinsrq, u64s, from_u64s, u64, 2;
}

own! {
    Pshufb: |a, b, _| {
        let a = u8s(a);
        from_u8s(u8s(b).map(|n| if n & 0x80 != 0 { 0 } else { a[usize::from(n & 15)] }))
    }, Self::xmm(a.into(), u128::from(b & 0x8787_8787_8787_8787), 0) as u64;
    Pmaddubsw: |a, b, _| {
        let (a, b) = (u8s(a), i8s(b));
        from_i16s(std::array::from_fn(|n| {
            let product = |n: usize| i16::from(a[n]) * i16::from(b[n]);
            product(n * 2).saturating_add(product(n * 2 + 1))
        }))
    };
    // Bytes from `imm` on of `b`, then `a`.
    Palignr: |a, b, imm| match imm {
        0 => b,
        1..16 => b >> (imm * 8) | a << (128 - imm * 8),
        16..32 => a >> ((imm - 16) * 8),
        _ => 0,
    }, if imm < 16 { (beside(b, a) >> (imm * 8)) as u64 } else { 0 };
    Pmuldq: |a, b, _| {
        let (a, b) = (i32s(a), i32s(b));
        from_i64s([0, 2].map(|n| i64::from(a[n]) * i64::from(b[n])))
    };
    Packusdw: |a, b, _| {
        let (a, b) = (i32s(a), i32s(b));
        from_u16s(std::array::from_fn(|n| {
            let lane = if n < 4 { a[n] } else { b[n - 4] };
            lane.clamp(0, 0xffff) as u16
        }))
    };
    // The smallest word and the first place it is at.
    Phminposuw: |_a, b, _| {
        let (place, word) = u16s(b).into_iter().enumerate().min_by_key(|&(_, w)| w).unwrap_or((0, 0));
        (place as u128) << 16 | u128::from(word)
    };
    // Sums of absolute differences of four bytes of `b` and eight overlapping fours of `a`.
    Mpsadbw: |a, b, imm| {
        let (a, b) = (u8s(a), u8s(b));
        let a = &a[usize::from(imm >> 2 & 1) * 4..];
        let b = &b[usize::from(imm & 3) * 4..];
        from_u16s(std::array::from_fn(|n| {
            (0..4).map(|k| u16::from(a[n + k].abs_diff(b[k]))).sum()
        }))
    };
    // Bits 6-7: the lane of `b` (0 where it is memory); 4-5: where it goes; 0-3: lanes cleared.
    Insertps: |a, b, imm| {
        let mut lanes = u32s(a);
        lanes[usize::from(imm >> 4 & 3)] = u32s(b)[usize::from(imm >> 6)];
        from_u32s(std::array::from_fn(|n| if imm & 1 << n != 0 { 0 } else { lanes[n] }))
    };
}

/// What the sign of a lane of XMM0 selects.
pub(crate) trait Select {
    /// All ones in the lanes of `mask` that are negative.
    fn spread(mask: u128) -> u128;
}

/// By bytes.
pub(crate) struct ByBytes;
/// By 32-bit lanes.
pub(crate) struct BySingles;
/// By 64-bit lanes.
pub(crate) struct ByDoubles;

impl Select for ByBytes {
    fn spread(mask: u128) -> u128 {
        from_i8s(i8s(mask).map(|lane| lane >> 7))
    }
}

impl Select for BySingles {
    fn spread(mask: u128) -> u128 {
        from_i32s(i32s(mask).map(|lane| lane >> 31))
    }
}

impl Select for ByDoubles {
    fn spread(mask: u128) -> u128 {
        from_i64s(i64s(mask).map(|lane| lane >> 63))
    }
}

/// `pblendvb`, `blendvps`, `blendvpd`: lanes of the input where XMM0 is negative.
pub(crate) fn blend_by_xmm0<S: Select, I: Input>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.check_sse()?;
    let b = I::read(cpu, op)?;
    let mask = S::spread(cpu.fpu.xmm(0));
    let a = cpu.fpu.xmm(op.dst);
    cpu.fpu.set_xmm(op.dst, a & !mask | b & mask);
    Ok(())
}

/// `ptest`: ZF if no bit of the input is set in the register, CF if all of them are; the rest clear.
pub(crate) fn ptest<I: Input>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.check_sse()?;
    let b = I::read(cpu, op)?;
    let a = cpu.fpu.xmm(op.dst);
    let mut flags = 0;
    if a & b == 0 {
        flags |= ZF;
    }
    if !a & b == 0 {
        flags |= CF;
    }
    cpu.arithmetic = Arithmetic::from_bits(flags);
    Ok(())
}
