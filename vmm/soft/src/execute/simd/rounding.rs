//! SSE4.1 floating point: ROUNDPS and its kin, DPPS, DPPD. Composed of SSE2 and integer arithmetic: the
//! host need not have them.

use super::control::Control;
use super::float::{Addpd, Addps, DAZ, Float, IE, Mulpd, Mulps, PE, Raised, STEPPED, composed};
use super::lanes::{from_u32s, from_u64s, u32s, u64s};

/// A format: bits of the fraction, and of the whole.
#[derive(Clone, Copy)]
struct Format {
    fraction: u32,
    width: u32,
}

const SINGLE: Format = Format {
    fraction: 23,
    width: 32,
};
const DOUBLE: Format = Format {
    fraction: 52,
    width: 64,
};

/// How to round: the rounding control, DAZ, and whether inexactness is flagged.
#[derive(Clone, Copy)]
struct Rounding {
    control: u32,
    daz: bool,
    quiet: bool,
}

impl Rounding {
    /// From the immediate: bits 0-1 the control, bit 2 MXCSR's instead, bit 3 no precision exception.
    fn new(mxcsr: u32, imm: u8) -> Self {
        let control = if imm & 4 != 0 {
            mxcsr >> 13 & 3
        } else {
            u32::from(imm & 3)
        };
        Self {
            control,
            daz: mxcsr & DAZ != 0,
            quiet: imm & 8 != 0,
        }
    }

    /// Whether a magnitude is rounded up: `half` compares what is cut off with a half.
    fn up(self, negative: bool, half: std::cmp::Ordering, odd: bool) -> bool {
        match self.control {
            0 => half.is_gt() || half.is_eq() && odd,
            1 => negative,
            2 => !negative,
            _ => false,
        }
    }

    /// `x` rounded to an integer, and the flags.
    fn integral(self, format: Format, x: u64) -> (u64, u32) {
        let Format { fraction, width } = format;
        let sign = x & 1 << (width - 1);
        let exponent_max = (1 << (width - 1 - fraction)) - 1;
        let exponent = (x >> fraction) as i64 & exponent_max;
        let bits = x & ((1 << fraction) - 1);
        let bias = exponent_max >> 1;
        if exponent == exponent_max {
            let quiet = 1 << (fraction - 1);
            return match bits {
                0 => (x, 0),
                _ if bits & quiet == 0 => (x | quiet, IE),
                _ => (x, 0),
            };
        }
        if exponent == 0 && (bits == 0 || self.daz) {
            return (sign, 0);
        }
        let inexact = if self.quiet { 0 } else { PE };
        let power = exponent - bias;
        if power >= fraction.into() {
            return (x, 0);
        }
        if power < 0 {
            let half = match power {
                -1 => bits.cmp(&0),
                _ => std::cmp::Ordering::Less,
            };
            let up = self.up(sign != 0, half, false);
            let one = (bias as u64) << fraction;
            return (sign | if up { one } else { 0 }, inexact);
        }
        let cut = fraction - power as u32;
        let rest = x & ((1 << cut) - 1);
        if rest == 0 {
            return (x, 0);
        }
        let whole = x - rest;
        // The lowest bit of the integer: of its fraction, or, for 1, of the (odd) exponent of one.
        let odd = whole >> cut & 1 != 0;
        let up = self.up(sign != 0, rest.cmp(&(1 << (cut - 1))), odd);
        (whole + (u64::from(up) << cut), inexact)
    }

    fn singles(self, a: u128, b: u128, count: usize) -> Raised {
        let (mut lanes, mut flags) = (u32s(a), 0);
        for (lane, x) in lanes.iter_mut().zip(u32s(b)).take(count) {
            let (value, raised) = self.integral(SINGLE, x.into());
            *lane = value as u32;
            flags |= raised;
        }
        (from_u32s(lanes), flags)
    }

    fn doubles(self, a: u128, b: u128, count: usize) -> Raised {
        let (mut lanes, mut flags) = (u64s(a), 0);
        for (lane, x) in lanes.iter_mut().zip(u64s(b)).take(count) {
            let (value, raised) = self.integral(DOUBLE, x);
            *lane = value;
            flags |= raised;
        }
        (from_u64s(lanes), flags)
    }
}

composed! {
    Roundps, |control, a, b, imm| Rounding::new(control.host, imm).singles(a, b, 4);
    Roundss, |control, a, b, imm| Rounding::new(control.host, imm).singles(a, b, 1);
    Roundpd, |control, a, b, imm| Rounding::new(control.host, imm).doubles(a, b, 2);
    Roundsd, |control, a, b, imm| Rounding::new(control.host, imm).doubles(a, b, 1);
    // For the NaN that comes out of several, see DETERMINISM.md.
    Dpps, |control, a, b, imm| {
        let mut steps = Steps::new(control);
        let chosen = from_u32s([4, 5, 6, 7].map(|bit| u32::from(imm >> bit & 1).wrapping_neg()));
        let products = steps.step::<Mulps, ERRORS>(a & chosen, b & chosen);
        let [p, q, r, s] = u32s(products & chosen);
        // The two sums of pairs in one, then their sum.
        let pairs = steps.step::<Addps, ERRORS>(from_u32s([p, r, 0, 0]), from_u32s([q, s, 0, 0]));
        let [low, high, ..] = u32s(pairs);
        let sum = steps.step::<Addps, ERRORS>(u128::from(low), u128::from(high)) as u32;
        steps.end(from_u32s([0, 1, 2, 3].map(|bit| sum * u32::from(imm >> bit & 1))))
    };
    Dppd, |control, a, b, imm| {
        let mut steps = Steps::new(control);
        let chosen = from_u64s([4, 5].map(|bit| u64::from(imm >> bit & 1).wrapping_neg()));
        let products = steps.step::<Mulpd, ERRORS>(a & chosen, b & chosen);
        let [p, q] = u64s(products & chosen);
        let sum = steps.step::<Addpd, ERRORS>(u128::from(p), u128::from(q)) as u64;
        steps.end(from_u64s([0, 1].map(|bit| sum * u64::from(imm >> bit & 1))))
    };
}

/// Operations one after the other, each with errors of its own, of which one that is not masked is the last
/// (SDM volume 2, DPPS: "Exceptions are determined separately for each add and multiply operation, in the
/// order of their execution").
struct Steps {
    control: Control,
    flags: u32,
}

impl Steps {
    fn new(control: Control) -> Self {
        Self { control, flags: 0 }
    }

    #[inline(always)]
    fn step<O: Float, const ERRORS: bool>(&mut self, a: u128, b: u128) -> u128 {
        if self.control.stops(self.flags) {
            return 0;
        }
        let (result, flags) = O::apply::<ERRORS>(self.control, a, b, 0);
        self.flags |= self.control.kept(flags);
        result
    }

    #[inline(always)]
    fn end(self, result: u128) -> Raised {
        let stepped = if self.control.unmasked == 0 {
            0
        } else {
            STEPPED
        };
        (result, self.flags | stepped)
    }
}
