//! Packed integer, logic and shuffle operations of MMX, SSE and SSE2.
//!
//! What the host's SSE2 has is done by it: integer instructions have one result on every processor.

use super::Packed;
use super::lanes::{from_u16s, from_u32s, from_u64s, guest, host, u16s, u32s, u64s};
use std::arch::x86_64::*;

/// What an instruction of the host makes of two vectors.
macro_rules! sse2 {
    ($intrinsic:ident, $a:expr, $b:expr) => {{
        // SAFETY: every x86-64 processor has SSE2.
        guest(unsafe { $intrinsic(host($a), host($b)) })
    }};
}

/// An operation the host has under another name.
macro_rules! same {
    ($($name:ident = $intrinsic:ident;)*) => {$(
        pub(crate) struct $name;
        impl Packed for $name {
            #[inline(always)]
            fn xmm(a: u128, b: u128, _: u8) -> u128 {
                sse2!($intrinsic, a, b)
            }
        }
    )*};
}

same! {
    Paddb = _mm_add_epi8;
    Paddw = _mm_add_epi16;
    Paddd = _mm_add_epi32;
    Paddq = _mm_add_epi64;
    Paddsb = _mm_adds_epi8;
    Paddsw = _mm_adds_epi16;
    Paddusb = _mm_adds_epu8;
    Paddusw = _mm_adds_epu16;
    Psubb = _mm_sub_epi8;
    Psubw = _mm_sub_epi16;
    Psubd = _mm_sub_epi32;
    Psubq = _mm_sub_epi64;
    Psubsb = _mm_subs_epi8;
    Psubsw = _mm_subs_epi16;
    Psubusb = _mm_subs_epu8;
    Psubusw = _mm_subs_epu16;
    Pmullw = _mm_mullo_epi16;
    Pmulhw = _mm_mulhi_epi16;
    Pmulhuw = _mm_mulhi_epu16;
    Pmuludq = _mm_mul_epu32;
    Pmaddwd = _mm_madd_epi16;
    Pcmpeqb = _mm_cmpeq_epi8;
    Pcmpeqw = _mm_cmpeq_epi16;
    Pcmpeqd = _mm_cmpeq_epi32;
    Pcmpgtb = _mm_cmpgt_epi8;
    Pcmpgtw = _mm_cmpgt_epi16;
    Pcmpgtd = _mm_cmpgt_epi32;
    Pminub = _mm_min_epu8;
    Pmaxub = _mm_max_epu8;
    Pminsw = _mm_min_epi16;
    Pmaxsw = _mm_max_epi16;
    Pavgb = _mm_avg_epu8;
    Pavgw = _mm_avg_epu16;
    Psadbw = _mm_sad_epu8;
    Psllw = _mm_sll_epi16;
    Pslld = _mm_sll_epi32;
    Psllq = _mm_sll_epi64;
    Psrlw = _mm_srl_epi16;
    Psrld = _mm_srl_epi32;
    Psrlq = _mm_srl_epi64;
    Psraw = _mm_sra_epi16;
    Psrad = _mm_sra_epi32;
}

/// An operation of our own, on XMM registers and on MMX registers.
macro_rules! own {
    ($($name:ident: |$a:ident, $b:ident, $imm:pat_param| $xmm:expr $(, $mm:expr)?;)*) => {$(
        pub(crate) struct $name;
        impl Packed for $name {
            #[inline(always)]
            fn xmm($a: u128, $b: u128, $imm: u8) -> u128 {
                $xmm
            }
            $(
                #[inline(always)]
                fn mm($a: u64, $b: u64, $imm: u8) -> u64 {
                    $mm
                }
            )?
        }
    )*};
}

pub(super) use own;

/// Two MMX operands side by side, the way operations on pairs of lanes want them.
#[inline(always)]
pub(super) fn beside(a: u64, b: u64) -> u128 {
    u128::from(b) << 64 | u128::from(a)
}

/// Interleaves the low halves; of MMX registers the high ones come first by a shift.
macro_rules! unpack {
    ($($low:ident, $high:ident = $low_intrinsic:ident, $high_intrinsic:ident;)*) => {$(
        own! {
            $low: |a, b, _| sse2!($low_intrinsic, a, b);
            $high: |a, b, _| sse2!($high_intrinsic, a, b),
                $low::xmm((a >> 32).into(), (b >> 32).into(), 0) as u64;
        }
    )*};
}

unpack! {
    Punpcklbw, Punpckhbw = _mm_unpacklo_epi8, _mm_unpackhi_epi8;
    Punpcklwd, Punpckhwd = _mm_unpacklo_epi16, _mm_unpackhi_epi16;
    Punpckldq, Punpckhdq = _mm_unpacklo_epi32, _mm_unpackhi_epi32;
    Punpcklqdq, Punpckhqdq = _mm_unpacklo_epi64, _mm_unpackhi_epi64;
}

own! {
    Pand: |a, b, _| a & b;
    Por: |a, b, _| a | b;
    Pxor: |a, b, _| a ^ b;
    Pandn: |a, b, _| !a & b;
    Packsswb: |a, b, _| sse2!(_mm_packs_epi16, a, b),
        Self::xmm(beside(a, b), 0, 0) as u64;
    Packssdw: |a, b, _| sse2!(_mm_packs_epi32, a, b),
        Self::xmm(beside(a, b), 0, 0) as u64;
    Packuswb: |a, b, _| sse2!(_mm_packus_epi16, a, b),
        Self::xmm(beside(a, b), 0, 0) as u64;
    Pslldq: |a, b, _| if b > 15 { 0 } else { a << (b * 8) };
    Psrldq: |a, b, _| if b > 15 { 0 } else { a >> (b * 8) };
    Pshufd: |_a, b, imm| { let b = u32s(b); from_u32s(four(imm).map(|n| b[n])) };
    Pshuflw: |_a, b, imm| b >> 64 << 64 | u128::from(shuffle_words(b as u64, imm));
    Pshufhw: |_a, b, imm| {
        u128::from(shuffle_words((b >> 64) as u64, imm)) << 64 | u128::from(b as u64)
    };
    Pshufw: |_a, b, imm| shuffle_words(b as u64, imm).into();
    Shufps: |a, b, imm| {
        let (a, b) = (u32s(a), u32s(b));
        let [w, x, y, z] = four(imm);
        from_u32s([a[w], a[x], b[y], b[z]])
    };
    Shufpd: |a, b, imm| {
        from_u64s([u64s(a)[usize::from(imm & 1)], u64s(b)[usize::from(imm >> 1 & 1)]])
    };
    Pinsrw: |a, b, imm| { let mut a = u16s(a); a[usize::from(imm) % 8] = b as u16; from_u16s(a) },
        Self::xmm(a.into(), b.into(), imm & 3) as u64;
    // Moves that merge.
    MergeLow32: |a, b, _| a >> 32 << 32 | b & 0xffff_ffff;
    MergeLow64: |a, b, _| a >> 64 << 64 | b & u128::from(u64::MAX);
    MergeHigh64: |a, b, _| u128::from(a as u64) | b << 64;
    HighToLow: |a, b, _| a >> 64 << 64 | b >> 64;
    Low64: |_a, b, _| b & u128::from(u64::MAX);
    Movddup: |_a, b, _| u128::from(b as u64) << 64 | u128::from(b as u64);
    Movsldup: |_a, b, _| { let b = u32s(b); from_u32s([b[0], b[0], b[2], b[2]]) };
    Movshdup: |_a, b, _| { let b = u32s(b); from_u32s([b[1], b[1], b[3], b[3]]) };
}

/// The four two-bit fields of a shuffle's immediate.
#[inline(always)]
fn four(imm: u8) -> [usize; 4] {
    [0, 2, 4, 6].map(|shift| usize::from(imm >> shift & 3))
}

#[inline(always)]
fn shuffle_words(words: u64, imm: u8) -> u64 {
    let words = u16s(words.into());
    let [a, b, c, d] = four(imm).map(|n| u128::from(words[n]));
    (a | b << 16 | c << 32 | d << 48) as u64
}

/// The sign bits of the bytes.
#[inline(always)]
pub(crate) fn byte_signs(vector: u128) -> u32 {
    // SAFETY: every x86-64 processor has SSE2.
    (unsafe { _mm_movemask_epi8(host(vector)) }) as u32
}
