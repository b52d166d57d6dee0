//! Numbers with 128 bits of significand, in integers: what transcendental functions are computed in.
//!
//! Every operation is off by a few units of 2^-127, relatively, and the same on every host.

use super::{C1, OE, PE, UE};
use std::cmp::Ordering;

/// `± significand / 2^127 * 2^exponent`. The top bit of the significand is set, or it is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wide {
    pub negative: bool,
    pub exponent: i32,
    pub significand: u128,
}

/// A register's infinity.
pub(super) const INFINITY: u128 = 0x7fff_8000_0000_0000_0000;
/// Bias of a register's exponent.
const BIAS: i32 = 0x3fff;
/// What is added to the exponent of a number that is too small where that is an error, and subtracted from
/// one that is too large (SDM volume 1, 8.5.4 and 8.5.5).
const WRAP: i32 = 24576;

impl Wide {
    pub const ZERO: Self = Self::new(0, 0);
    pub const ONE: Self = Self::new(0, 1 << 127);
    pub const LN2: Self = Self::new(-1, 0xb172_17f7_d1cf_79ab_c9e3_b398_03f2_f6af);
    /// Logarithm of e to base 2.
    pub const LOG2_E: Self = Self::new(0, 0xb8aa_3b29_5c17_f0bb_be87_fed0_691d_3e89);
    pub const PI: Self = Self::new(1, 0xc90f_daa2_2168_c234_c4c6_628b_80dc_1cd1);

    pub const fn new(exponent: i32, significand: u128) -> Self {
        Self {
            negative: false,
            exponent,
            significand,
        }
    }

    /// `significand * 2^exponent`, brought to the top.
    fn normal(negative: bool, exponent: i32, significand: u128) -> Self {
        if significand == 0 {
            return Self::ZERO;
        }
        let shift = significand.leading_zeros();
        Self {
            negative,
            exponent: exponent - shift as i32,
            significand: significand << shift,
        }
    }

    /// A small integer.
    pub fn integer(value: i32) -> Self {
        Self::normal(value < 0, 127, value.unsigned_abs().into())
    }

    /// A register's number, which is finite.
    pub fn of(register: u128) -> Self {
        let exponent = ((register >> 64) as i32 & 0x7fff).max(1) - BIAS;
        let significand = u128::from(register as u64) << 64;
        Self::normal(register >> 79 & 1 != 0, exponent, significand)
    }

    pub fn is_zero(self) -> bool {
        self.significand == 0
    }

    pub fn negated(self) -> Self {
        Self {
            negative: !self.negative,
            ..self
        }
    }

    pub fn with_sign(self, negative: bool) -> Self {
        Self { negative, ..self }
    }

    /// For a number known not to be one of 64 bits, but so near to one that its series ended there: the
    /// neighbour on the side the true one is on.
    pub fn nudged(self, away: bool) -> Self {
        if self.is_zero() || self.significand as u64 != 0 {
            return self;
        }
        let significand = if away {
            self.significand | 1
        } else if self.significand == 1 << 127 {
            return Self {
                exponent: self.exponent - 1,
                significand: u128::MAX,
                ..self
            };
        } else {
            self.significand - 1
        };
        Self {
            significand,
            ..self
        }
    }

    /// Times a power of two.
    pub fn scaled(self, power: i32) -> Self {
        Self {
            exponent: self.exponent + power,
            ..self
        }
    }

    /// Compares magnitudes.
    pub fn cmp_magnitude(self, other: Self) -> Ordering {
        match (self.is_zero(), other.is_zero()) {
            (true, true) => Ordering::Equal,
            (true, false) => Ordering::Less,
            (false, true) => Ordering::Greater,
            _ => (self.exponent, self.significand).cmp(&(other.exponent, other.significand)),
        }
    }

    pub fn plus(self, other: Self) -> Self {
        let (a, b) = if self.cmp_magnitude(other).is_ge() {
            (self, other)
        } else {
            (other, self)
        };
        let distance = a.exponent.saturating_sub(b.exponent);
        if b.is_zero() || distance > 127 {
            return a;
        }
        let small = b.significand >> distance;
        if a.negative != b.negative {
            return Self::normal(a.negative, a.exponent, a.significand - small);
        }
        match a.significand.overflowing_add(small) {
            (sum, false) => Self::normal(a.negative, a.exponent, sum),
            (sum, true) => Self::normal(a.negative, a.exponent + 1, sum >> 1 | 1 << 127),
        }
    }

    pub fn minus(self, other: Self) -> Self {
        self.plus(other.negated())
    }

    pub fn times(self, other: Self) -> Self {
        let (high, low) = product(self.significand, other.significand);
        let negative = self.negative != other.negative;
        let exponent = self.exponent + other.exponent + 1;
        if high >> 127 == 0 && high != 0 {
            let significand = high << 1 | low >> 127;
            return Self::normal(negative, exponent - 1, significand);
        }
        Self::normal(negative, exponent, high)
    }

    /// `other` is not zero.
    pub fn over(self, other: Self) -> Self {
        let negative = self.negative != other.negative;
        let (mut rest, divisor) = (self.significand, other.significand);
        let mut exponent = self.exponent - other.exponent;
        if rest < divisor {
            exponent -= 1;
        } else {
            rest -= divisor;
            return Self::normal(negative, exponent, quotient(rest, divisor) >> 1 | 1 << 127);
        }
        Self::normal(negative, exponent, quotient(rest, divisor))
    }

    /// Over a small integer that is not zero.
    pub fn over_integer(self, divisor: u32) -> Self {
        if self.is_zero() {
            return self;
        }
        let divisor = u128::from(divisor);
        let (whole, rest) = (self.significand / divisor, self.significand % divisor);
        let shift = whole.leading_zeros();
        let significand = (whole << shift) | ((rest << shift) / divisor);
        Self::normal(self.negative, self.exponent - shift as i32, significand)
    }

    /// As a register has it, rounded to 64 bits under `control`; and the status flags. Nothing wrong means
    /// that it is exact.
    pub fn round(self, control: u16) -> (u128, u16) {
        let sign = u128::from(self.negative) << 79;
        if self.is_zero() {
            return (sign, 0);
        }
        let mut status = 0;
        let mut exponent = self.exponent + BIAS;
        let mut significand = self.significand;
        let up = |kept: u64, rest: u64| match control >> 10 & 3 {
            0 => rest > 1 << 63 || rest == 1 << 63 && kept & 1 != 0,
            1 => rest != 0 && self.negative,
            2 => rest != 0 && !self.negative,
            _ => false,
        };
        let split = |significand: u128| ((significand >> 64) as u64, significand as u64);
        let (kept, rest) = split(significand);
        if exponent == 0 && kept == u64::MAX && up(kept, rest) {
            // Rounded, it is the least normal number: not too small (SDM volume 1, 4.9.1.5).
            return (sign | 1 << 64 | 1 << 63, PE | C1);
        }
        if exponent <= 0 && control & UE == 0 {
            exponent += WRAP;
            status |= UE;
            if exponent <= 0 {
                // FSCALE alone goes that far (SDM volume 1, 8.5.5).
                return (sign, status | PE);
            }
        } else if exponent <= 0 {
            // To a denormal; what is shifted out is kept as one bit.
            let shift = (1 - exponent).min(127);
            let lost = significand & ((1 << shift) - 1) != 0;
            significand = significand >> shift | u128::from(lost);
            exponent = 0;
        }
        let (mut kept, rest) = split(significand);
        if rest != 0 {
            status |= PE | if exponent == 0 { UE } else { 0 };
            if up(kept, rest) {
                status |= C1;
                kept = kept.wrapping_add(1);
                if kept == 0 {
                    kept = 1 << 63;
                    exponent += 1;
                }
            }
        }
        // The largest denormal may have become the least normal number.
        if exponent == 0 && kept >> 63 != 0 {
            exponent = 1;
        }
        if exponent >= 0x7fff {
            return self.overflow(control, exponent, kept, status);
        }
        (sign | (exponent as u128) << 64 | u128::from(kept), status)
    }

    fn overflow(self, control: u16, exponent: i32, kept: u64, status: u16) -> (u128, u16) {
        let sign = u128::from(self.negative) << 79;
        if control & OE == 0 {
            let exponent = exponent - WRAP;
            if exponent >= 0x7fff {
                // FSCALE alone goes that far (SDM volume 1, 8.5.4).
                return (sign | INFINITY, status | OE | PE | C1);
            }
            return (
                sign | (exponent as u128) << 64 | u128::from(kept),
                status | OE,
            );
        }
        let infinite = match control >> 10 & 3 {
            0 => true,
            1 => self.negative,
            2 => !self.negative,
            _ => false,
        };
        let (magnitude, up) = if infinite {
            (INFINITY, C1)
        } else {
            (0x7ffe_ffff_ffff_ffff_ffff, 0)
        };
        (sign | magnitude, status & !C1 | OE | PE | up)
    }
}

/// All 256 bits of a product: high and low.
fn product(a: u128, b: u128) -> (u128, u128) {
    let mask = u128::from(u64::MAX);
    let (a1, a0, b1, b0) = (a >> 64, a & mask, b >> 64, b & mask);
    let low = a0 * b0;
    let middle = a1 * b0 + (low >> 64);
    let middle2 = a0 * b1 + (middle & mask);
    let high = a1 * b1 + (middle >> 64) + (middle2 >> 64);
    (high, middle2 << 64 | low & mask)
}

/// `rest * 2^128 / divisor`, for `rest` below `divisor`, whose top bit is set.
fn quotient(mut rest: u128, divisor: u128) -> u128 {
    let mut quotient = 0;
    for _ in 0..128 {
        let carry = rest >> 127 != 0;
        rest <<= 1;
        quotient <<= 1;
        if carry || rest >= divisor {
            rest = rest.wrapping_sub(divisor);
            quotient |= 1;
        }
    }
    quotient
}

/// 2 / pi, in 320 bits after the point, highest first.
const TWO_OVER_PI: [u64; 5] = [
    0xa2f9_836e_4e44_1529,
    0xfc27_57d1_f534_ddc0,
    0xdb62_9599_3c43_9041,
    0xfe51_63ab_debb_c561,
    0xb724_6e3a_424d_d2e0,
];

/// `|x|` less the multiple of pi/2 next to it, and that multiple modulo 4. `x` is below 2^63, and has 64
/// bits; pi has as many as it takes.
pub(super) fn reduce(x: Wide) -> (Wide, u8) {
    let x = x.with_sign(false);
    if x.is_zero() || x.exponent < -1 {
        return (x, 0);
    }
    // 384 bits, lowest word first, with the point between bits `point` and `point - 1`.
    let significand = (x.significand >> 64) as u64;
    let mut words = [0u64; 6];
    let mut carry = 0u128;
    for (n, word) in TWO_OVER_PI.iter().rev().enumerate() {
        carry += u128::from(*word) * u128::from(significand);
        words[n] = carry as u64;
        carry >>= 64;
    }
    words[5] = carry as u64;
    let point = (383 - x.exponent) as usize;
    let bit = |words: &[u64; 6], n: usize| n < 384 && words[n / 64] >> (n % 64) & 1 != 0;
    let mut turns = u8::from(bit(&words, point)) | u8::from(bit(&words, point + 1)) << 1;
    let negative = bit(&words, point - 1);
    if negative {
        turns += 1;
        for word in &mut words {
            *word = !*word;
        }
    }
    // The fraction's highest bit, and 128 from there on. (Its complement stands for its negative: the
    // difference is one unit of the last of its 320 and more bits.)
    let Some(top) = (0..point).rev().find(|&n| bit(&words, n)) else {
        return (Wide::ZERO, turns & 3);
    };
    let mut fraction = 0u128;
    for n in 0..128 {
        fraction = fraction << 1 | u128::from(top >= n && bit(&words, top - n));
    }
    let fraction = Wide::new(top as i32 - point as i32, fraction);
    let rest = fraction.times(Wide::PI.scaled(-1));
    (rest.with_sign(negative), turns & 3)
}
