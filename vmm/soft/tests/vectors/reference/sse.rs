//! One lane of an SSE instruction: formats, NaNs, flags, DAZ and FTZ (SDM volume 1, 4.8.3, 10.2.3, 11.5;
//! APM volume 1, 4.8).

use super::number::{Direction, Exact, Format};
use std::cmp::Ordering;

pub const IE: u32 = 1 << 0;
pub const DE: u32 = 1 << 1;
pub const ZE: u32 = 1 << 2;
pub const OE: u32 = 1 << 3;
pub const UE: u32 = 1 << 4;
pub const PE: u32 = 1 << 5;
/// Errors of operands.
pub const BEFORE: u32 = IE | DE | ZE;

/// A result and the flags raised.
pub type Raised = (u64, u32);

/// A lane's encoding.
#[derive(Clone, Copy, Debug)]
pub struct Lane {
    /// Bits of the lane.
    pub width: u32,
    /// Bits of the fraction.
    fraction: u32,
    format: Format,
}

pub const SINGLE: Lane = Lane {
    width: 32,
    fraction: 23,
    format: Format {
        precision: 24,
        least: -126,
        most: 127,
    },
};

pub const DOUBLE: Lane = Lane {
    width: 64,
    fraction: 52,
    format: Format {
        precision: 53,
        least: -1022,
        most: 1023,
    },
};

/// What a lane holds.
#[derive(Clone, Copy, Debug)]
pub enum Value {
    /// Whether it signals.
    Nan(bool),
    Infinity,
    Zero,
    Number(Exact, Denormal),
}

/// Whether a number is a denormal.
type Denormal = bool;

impl Lane {
    pub fn fraction(self) -> u32 {
        self.fraction
    }

    pub fn format(self) -> Format {
        self.format
    }

    pub fn sign(self) -> u64 {
        1 << (self.width - 1)
    }

    pub fn infinity(self) -> u64 {
        (self.sign() - 1) >> self.fraction << self.fraction
    }

    pub fn quiet(self) -> u64 {
        1 << (self.fraction - 1)
    }

    /// The NaN that answers an invalid operation.
    pub fn indefinite(self) -> u64 {
        self.sign() | self.infinity() | self.quiet()
    }

    pub fn negative(self, bits: u64) -> bool {
        bits & self.sign() != 0
    }

    fn signed(self, negative: bool, magnitude: u64) -> u64 {
        magnitude | if negative { self.sign() } else { 0 }
    }

    pub fn is_nan(self, bits: u64) -> bool {
        bits & (self.sign() - 1) > self.infinity()
    }

    /// An encoding's meaning.
    pub fn value(self, bits: u64) -> Value {
        let magnitude = bits & (self.sign() - 1);
        let fraction = magnitude & ((1 << self.fraction) - 1);
        let exponent = (magnitude >> self.fraction) as i32;
        let lowest = self.format.least - self.fraction as i32;
        let number = |exponent, significand: u64| {
            Exact::new(self.negative(bits), exponent, significand.into())
        };
        match (magnitude.cmp(&self.infinity()), exponent, fraction) {
            (Ordering::Greater, ..) => Value::Nan(bits & self.quiet() == 0),
            (Ordering::Equal, ..) => Value::Infinity,
            (_, 0, 0) => Value::Zero,
            (_, 0, _) => Value::Number(number(lowest, fraction), true),
            _ => Value::Number(
                number(lowest + exponent - 1, fraction | 1 << self.fraction),
                false,
            ),
        }
    }

    /// The encoding of a significand of this precision, or less.
    pub fn encode(self, negative: bool, exponent: i32, significand: u128) -> u64 {
        let lowest = self.format.least - self.fraction as i32;
        let significand = significand as u64;
        if significand >> self.fraction == 0 {
            assert!(exponent == lowest || significand == 0);
            return self.signed(negative, significand);
        }
        let field = (exponent - lowest + 1) as u64;
        self.signed(
            negative,
            field << self.fraction | significand & ((1 << self.fraction) - 1),
        )
    }

    /// A NaN of another format in this one, quiet.
    fn nan_from(self, other: Self, bits: u64) -> u64 {
        let fraction = bits & ((1 << other.fraction) - 1);
        let fraction = if self.fraction > other.fraction {
            fraction << (self.fraction - other.fraction)
        } else {
            fraction >> (other.fraction - self.fraction)
        };
        self.signed(
            other.negative(bits),
            self.infinity() | fraction | self.quiet(),
        )
    }
}

/// MXCSR's part in it.
#[derive(Clone, Copy, Debug)]
pub struct Control {
    pub direction: Direction,
    daz: bool,
    /// Only where underflow is masked.
    ftz: bool,
    /// The exceptions, as flags, that are not masked.
    unmasked: u32,
}

impl Control {
    pub fn of(mxcsr: u32) -> Self {
        let unmasked = !mxcsr >> 7 & 0x3f;
        Self {
            direction: Direction::of(mxcsr >> 13),
            daz: mxcsr & 1 << 6 != 0,
            ftz: mxcsr & 1 << 15 != 0 && unmasked & UE == 0,
            unmasked,
        }
    }

    /// Whether flags keep a result from being stored.
    pub fn stops(self, flags: u32) -> bool {
        flags & self.unmasked != 0
    }

    pub fn towards_zero(self) -> Self {
        Self {
            direction: Direction::Zero,
            ..self
        }
    }

    /// An operand as instructions take it: with DAZ, denormals are zeros of their sign.
    pub fn taken(self, lane: Lane, bits: u64) -> u64 {
        match lane.value(bits) {
            Value::Number(_, true) if self.daz => bits & lane.sign(),
            _ => bits,
        }
    }

    /// The lane an exact result becomes; a zero becomes one of its sign.
    pub fn round(self, lane: Lane, exact: Exact) -> Raised {
        if exact.is_zero() {
            return (lane.signed(exact.negative, 0), 0);
        }
        let fitted = exact.fit(lane.format, self.direction);
        let rounded = fitted.denormal;
        let trapped = if fitted.huge { OE } else { UE };
        if (fitted.huge || fitted.tiny) && self.unmasked & trapped != 0 {
            // Nothing is stored; inexact as if exponents had no bounds.
            let inexact = if fitted.unbounded.inexact { PE } else { 0 };
            return (0, trapped | inexact);
        }
        if fitted.huge {
            let magnitude = if rounded.overflows_to_infinity(self.direction) {
                lane.infinity()
            } else {
                lane.infinity() - 1
            };
            return (lane.signed(exact.negative, magnitude), OE | PE);
        }
        if fitted.tiny && self.ftz {
            return (lane.signed(exact.negative, 0), UE | PE);
        }
        let mut flags = if rounded.inexact { PE } else { 0 };
        if fitted.tiny && rounded.inexact {
            flags |= UE;
        }
        (
            lane.encode(exact.negative, rounded.exponent, rounded.significand),
            flags,
        )
    }

    /// NaNs among two operands: the first one that is one, made quiet. One that signals is an error.
    fn nans(lane: Lane, a: u64, b: u64) -> Option<Raised> {
        let signals = |x| matches!(lane.value(x), Value::Nan(true));
        let flags = if signals(a) || signals(b) { IE } else { 0 };
        let chosen = [a, b].into_iter().find(|x| lane.is_nan(*x))?;
        Some((chosen | lane.quiet(), flags))
    }

    pub fn binary(self, operation: Operation, lane: Lane, a: u64, b: u64) -> Raised {
        let (a, b) = (self.taken(lane, a), self.taken(lane, b));
        if let Some(raised) = Self::nans(lane, a, b) {
            return raised;
        }
        let (x, y) = (lane.value(a), lane.value(b));
        let denormal = match (x, y) {
            (Value::Number(_, true), _) | (_, Value::Number(_, true)) => DE,
            _ => 0,
        };
        let b = match operation {
            Operation::Subtract => b ^ lane.sign(),
            _ => b,
        };
        let differ = lane.negative(a) != lane.negative(b);
        let (value, flags) = match operation {
            Operation::Add | Operation::Subtract => self.sum(lane, a, b),
            Operation::Multiply => match (x, y) {
                (Value::Infinity, Value::Zero) | (Value::Zero, Value::Infinity) => {
                    (lane.indefinite(), IE)
                }
                (Value::Infinity, _) | (_, Value::Infinity) => {
                    (lane.signed(differ, lane.infinity()), 0)
                }
                (Value::Number(x, _), Value::Number(y, _)) => self.round(lane, x.times(y)),
                _ => (lane.signed(differ, 0), 0),
            },
            Operation::Divide => match (x, y) {
                (Value::Infinity, Value::Infinity) | (Value::Zero, Value::Zero) => {
                    (lane.indefinite(), IE)
                }
                (Value::Infinity, _) => (lane.signed(differ, lane.infinity()), 0),
                // Before a denormal operand is one (SDM volume 1, 4.9.2).
                (_, Value::Zero) => return (lane.signed(differ, lane.infinity()), ZE),
                (Value::Number(x, _), Value::Number(y, _)) => self.round(lane, x.over(y)),
                _ => (lane.signed(differ, 0), 0),
            },
        };
        (value, flags | denormal)
    }

    fn sum(self, lane: Lane, a: u64, b: u64) -> Raised {
        let differ = lane.negative(a) != lane.negative(b);
        // An exact zero is negative only when rounding down, or when both are.
        let zero = if differ {
            lane.signed(self.direction == Direction::Down, 0)
        } else {
            a & lane.sign()
        };
        match (lane.value(a), lane.value(b)) {
            (Value::Infinity, Value::Infinity) if differ => (lane.indefinite(), IE),
            (Value::Infinity, _) => (a, 0),
            (_, Value::Infinity) => (b, 0),
            (Value::Zero, Value::Zero) => (zero, 0),
            (Value::Number(x, _), Value::Zero) | (Value::Zero, Value::Number(x, _)) => {
                self.round(lane, x)
            }
            (Value::Number(x, _), Value::Number(y, _)) => {
                let sum = x.plus(y);
                if sum.is_zero() {
                    (zero, 0)
                } else {
                    self.round(lane, sum)
                }
            }
            (Value::Nan(_), _) | (_, Value::Nan(_)) => unreachable!(),
        }
    }

    pub fn root(self, lane: Lane, a: u64) -> Raised {
        let a = self.taken(lane, a);
        if let Some(raised) = Self::nans(lane, a, a) {
            return raised;
        }
        match lane.value(a) {
            Value::Zero => (a, 0),
            _ if lane.negative(a) => (lane.indefinite(), IE),
            Value::Number(x, denormal) => {
                let (value, flags) = self.round(lane, x.root());
                (value, flags | if denormal { DE } else { 0 })
            }
            _ => (a, 0),
        }
    }

    /// How two lanes compare (`None`: one is a NaN), and the flags.
    pub fn compare(self, lane: Lane, a: u64, b: u64, signalling: bool) -> (Option<Ordering>, u32) {
        let (a, b) = (self.taken(lane, a), self.taken(lane, b));
        if let Some((_, flags)) = Self::nans(lane, a, b) {
            return (None, if signalling { IE } else { flags });
        }
        let signed = |x: u64, magnitude: Ordering| {
            if lane.negative(x) {
                magnitude.reverse()
            } else {
                magnitude
            }
        };
        let (x, y) = (lane.value(a), lane.value(b));
        let order = match (x, y) {
            (Value::Zero, Value::Zero) => Ordering::Equal,
            (Value::Infinity, Value::Infinity) if a == b => Ordering::Equal,
            (Value::Infinity, _) => signed(a, Ordering::Greater),
            (_, Value::Infinity) | (Value::Zero, _) => signed(b, Ordering::Less),
            (_, Value::Zero) => signed(a, Ordering::Greater),
            (Value::Number(x, _), Value::Number(y, _)) => x.compare(y),
            (Value::Nan(_), _) | (_, Value::Nan(_)) => unreachable!(),
        };
        let denormal = matches!(x, Value::Number(_, true)) || matches!(y, Value::Number(_, true));
        (Some(order), if denormal { DE } else { 0 })
    }

    /// The lesser, or with `most` the greater; the second unless the first is that.
    pub fn extreme(self, lane: Lane, a: u64, b: u64, most: bool) -> Raised {
        let wanted = if most {
            Ordering::Greater
        } else {
            Ordering::Less
        };
        let (order, flags) = self.compare(lane, a, b, true);
        let (first, second) = (self.taken(lane, a), self.taken(lane, b));
        (if order == Some(wanted) { first } else { second }, flags)
    }

    /// From one format to another.
    pub fn convert(self, from: Lane, to: Lane, a: u64) -> Raised {
        let a = self.taken(from, a);
        match from.value(a) {
            Value::Nan(signals) => (to.nan_from(from, a), if signals { IE } else { 0 }),
            Value::Infinity => (to.signed(from.negative(a), to.infinity()), 0),
            Value::Zero => (to.signed(from.negative(a), 0), 0),
            Value::Number(x, denormal) => {
                let (value, flags) = self.round(to, x);
                (value, flags | if denormal { DE } else { 0 })
            }
        }
    }

    pub fn number(self, lane: Lane, value: i64) -> Raised {
        self.round(lane, Exact::new(value < 0, 0, value.unsigned_abs().into()))
    }

    /// To an integer of `width` bits.
    pub fn to_integer(self, lane: Lane, width: u32, a: u64) -> Raised {
        let indefinite = (1 << (width - 1), IE);
        match lane.value(self.taken(lane, a)) {
            Value::Nan(_) | Value::Infinity => indefinite,
            Value::Zero => (0, 0),
            Value::Number(x, _) => {
                if x.significand.leading_zeros() as i32 - x.exponent < 60 {
                    return indefinite;
                }
                let rounded = x.at(x.exponent.max(0), self.direction);
                let magnitude = rounded.significand << rounded.exponent;
                let bound = (1 << (width - 1)) - u128::from(!x.negative);
                if magnitude > bound {
                    return indefinite;
                }
                let value = magnitude as u64;
                let value = if x.negative {
                    value.wrapping_neg()
                } else {
                    value
                };
                let mask = u64::MAX >> (64 - width);
                (value & mask, if rounded.inexact { PE } else { 0 })
            }
        }
    }

    /// To an integer in the same format (ROUNDPS and its kin), which raises no DE.
    pub fn integral(self, lane: Lane, a: u64, quiet: bool) -> Raised {
        let a = self.taken(lane, a);
        match lane.value(a) {
            Value::Nan(signals) => (a | lane.quiet(), if signals { IE } else { 0 }),
            Value::Infinity | Value::Zero => (a, 0),
            Value::Number(x, _) if x.exponent >= 0 => (a, 0),
            Value::Number(x, _) => {
                let rounded = x.at(0, self.direction);
                let whole = Exact::new(x.negative, 0, rounded.significand);
                let flags = if rounded.inexact && !quiet { PE } else { 0 };
                (self.round(lane, whole).0, flags)
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Add,
    Subtract,
    Multiply,
    Divide,
}
