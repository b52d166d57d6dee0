//! Exact numbers, and the one function that rounds them.

use std::cmp::Ordering;

/// `±(significand + part) * 2^exponent`; `part` is zero, or, with `rest`, something between 0 and 1.
#[derive(Clone, Copy, Debug)]
pub struct Exact {
    pub negative: bool,
    pub exponent: i32,
    pub significand: u128,
    pub rest: bool,
}

/// Rounding control, as MXCSR and the x87 control word encode it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Nearest,
    Down,
    Up,
    Zero,
}

impl Direction {
    /// From the two bits of a control register.
    pub fn of(bits: u32) -> Self {
        [Self::Nearest, Self::Down, Self::Up, Self::Zero][bits as usize & 3]
    }
}

/// A format of binary numbers: bits of its significand, exponents of its least normal number and of its
/// largest.
#[derive(Clone, Copy, Debug)]
pub struct Format {
    pub precision: u32,
    pub least: i32,
    pub most: i32,
}

/// A multiple of a power of two that is near an exact number.
#[derive(Clone, Copy, Debug)]
pub struct Rounded {
    pub negative: bool,
    /// Of the significand's lowest bit.
    pub exponent: i32,
    pub significand: u128,
    pub inexact: bool,
    /// The magnitude is larger than the exact one.
    pub up: bool,
}

/// What becomes of an exact number, not zero, in a format.
#[derive(Clone, Copy, Debug)]
pub struct Fitted {
    /// Rounded as if exponents had no bounds.
    pub unbounded: Rounded,
    /// That is below the least normal number: tiny after rounding.
    pub tiny: bool,
    /// That is above the largest number.
    pub huge: bool,
    /// Rounded to the format's multiple of its least denormal: the masked response to `tiny`.
    pub denormal: Rounded,
}

impl Exact {
    pub fn new(negative: bool, exponent: i32, significand: u128) -> Self {
        Self {
            negative,
            exponent,
            significand,
            rest: false,
        }
    }

    pub fn is_zero(self) -> bool {
        self.significand == 0 && !self.rest
    }

    /// Of the highest bit.
    fn top(self) -> i32 {
        assert_ne!(self.significand, 0);
        self.exponent + 127 - self.significand.leading_zeros() as i32
    }

    /// The same number, its significand's highest bit at bit `bit`, which is not below where it is.
    fn raised(self, bit: u32) -> Self {
        let shift = self.significand.leading_zeros() as i32 - 127 + bit as i32;
        assert!(shift >= 0 && !self.rest);
        Self {
            exponent: self.exponent - shift,
            significand: self.significand << shift,
            ..self
        }
    }

    pub fn negated(self) -> Self {
        Self {
            negative: !self.negative,
            ..self
        }
    }

    /// A sum, which may be zero; significands have 64 bits at most.
    pub fn plus(self, other: Self) -> Self {
        if self.is_zero() || other.is_zero() {
            return if self.is_zero() { other } else { self };
        }
        let (mut a, mut b) = (self.raised(126), other.raised(126));
        let order = |x: &Self| (x.exponent, x.significand);
        if order(&a) < order(&b) {
            (a, b) = (b, a);
        }
        let shift = (a.exponent - b.exponent) as u32;
        let (small, lost) = match shift {
            0..128 => (
                b.significand >> shift,
                b.significand & ((1 << shift) - 1) != 0,
            ),
            _ => (0, true),
        };
        let significand = if a.negative == b.negative {
            a.significand + small
        } else {
            a.significand - small - u128::from(lost)
        };
        Self {
            significand,
            rest: lost,
            ..a
        }
    }

    /// A product; significands have 64 bits at most.
    pub fn times(self, other: Self) -> Self {
        Self::new(
            self.negative != other.negative,
            self.exponent + other.exponent,
            self.significand * other.significand,
        )
    }

    /// A quotient, of 126 bits at least; significands have 64 bits at most, and are not zero.
    pub fn over(self, other: Self) -> Self {
        let (a, b) = (self.raised(63), other.raised(63));
        let high = (a.significand << 64) / b.significand;
        let left = (a.significand << 64) % b.significand;
        let low = (left << 62) / b.significand;
        Self {
            negative: a.negative != b.negative,
            exponent: a.exponent - b.exponent - 126,
            significand: high << 62 | low,
            rest: (left << 62) % b.significand != 0,
        }
    }

    /// A square root, of 80 bits; the significand has 64 bits at most, and is not zero.
    pub fn root(self) -> Self {
        let mut x = self.raised(63);
        if x.exponent & 1 != 0 {
            x.significand <<= 1;
            x.exponent -= 1;
        }
        // Digit by digit: two bits of the number for each of the root, zeros behind its end.
        let (mut root, mut left) = (0u128, 0u128);
        for step in (0..80).map(|n| 32 - n) {
            let digits = if step >= 0 {
                x.significand >> (2 * step) & 3
            } else {
                0
            };
            left = left << 2 | digits;
            let try_one = root << 2 | 1;
            root <<= 1;
            if left >= try_one {
                left -= try_one;
                root |= 1;
            }
        }
        Self {
            negative: false,
            exponent: x.exponent / 2 - 47,
            significand: root,
            rest: left != 0,
        }
    }

    /// Rounded to a multiple of 2^`place`.
    pub fn at(self, place: i32, direction: Direction) -> Rounded {
        let cut = place - self.exponent;
        if cut <= 0 {
            assert!(
                !self.rest && (self.is_zero() || self.significand.leading_zeros() as i32 >= -cut)
            );
            return Rounded {
                negative: self.negative,
                exponent: place,
                significand: self.significand << -cut,
                inexact: false,
                up: false,
            };
        }
        let below = |n: i32| if n >= 128 { u128::MAX } else { (1 << n) - 1 };
        let kept = if cut >= 128 {
            0
        } else {
            self.significand >> cut
        };
        let half = cut <= 128 && self.significand >> (cut - 1) & 1 != 0;
        let more = self.rest || self.significand & below(cut - 1) != 0;
        let inexact = half || more;
        let up = match direction {
            Direction::Nearest => half && (more || kept & 1 != 0),
            Direction::Down => inexact && self.negative,
            Direction::Up => inexact && !self.negative,
            Direction::Zero => false,
        };
        Rounded {
            negative: self.negative,
            exponent: place,
            significand: kept + u128::from(up),
            inexact,
            up,
        }
    }

    /// Fitted into a format; not zero.
    pub fn fit(self, format: Format, direction: Direction) -> Fitted {
        let precision = format.precision as i32;
        let mut unbounded = self.at(self.top() - precision + 1, direction);
        if unbounded.significand >> precision != 0 {
            unbounded.significand >>= 1;
            unbounded.exponent += 1;
        }
        let exponent = unbounded.exponent + precision - 1;
        let (tiny, huge) = (exponent < format.least, exponent > format.most);
        let denormal = if tiny {
            self.at(format.least - precision + 1, direction)
        } else {
            unbounded
        };
        Fitted {
            unbounded,
            tiny,
            huge,
            denormal,
        }
    }

    /// Which of two numbers is larger.
    pub fn compare(self, other: Self) -> Ordering {
        let difference = self.plus(other.negated());
        match (difference.is_zero(), difference.negative) {
            (true, _) => Ordering::Equal,
            (_, true) => Ordering::Less,
            _ => Ordering::Greater,
        }
    }
}

impl Rounded {
    /// What overflow makes of a number of this sign: infinity (or else the largest number).
    pub fn overflows_to_infinity(self, direction: Direction) -> bool {
        match direction {
            Direction::Nearest => true,
            Direction::Down => self.negative,
            Direction::Up => !self.negative,
            Direction::Zero => false,
        }
    }
}
