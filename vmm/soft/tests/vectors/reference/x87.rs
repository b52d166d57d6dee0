//! x87 numbers: 80-bit registers, operands in memory, NaNs, flags, and rounding under a control word (SDM
//! volume 1, 4.8.3, 8.1.5, 8.5; APM volume 1, 6.4, 6.8).

use super::number::{Direction, Exact, Fitted, Format, Rounded};
use super::sse::{DOUBLE, Lane, SINGLE, Value};
use std::cmp::Ordering;

pub const IE: u16 = 1 << 0;
pub const DE: u16 = 1 << 1;
pub const ZE: u16 = 1 << 2;
pub const OE: u16 = 1 << 3;
pub const UE: u16 = 1 << 4;
pub const PE: u16 = 1 << 5;
pub const C1: u16 = 1 << 9;
/// Errors of operands.
pub const BEFORE: u16 = IE | DE | ZE;

const SIGN: u128 = 1 << 79;
pub const INFINITY: u128 = 0x7fff << 64 | 1 << 63;
const LARGEST: u128 = 0x7ffe << 64 | u64::MAX as u128;
pub const INDEFINITE: u128 = 0xffff << 64 | 3 << 62;
const QUIET: u128 = 1 << 62;
/// Exponent of the least normal number.
const LEAST: i32 = -16382;
/// How far an unmasked overflow or underflow moves the exponent of a result in a register.
const WRAP: i32 = 24576;

/// A result and the status flags raised, [`C1`] among them.
pub type Raised = (u128, u16);

#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// No number: what the 8087 knew and no processor since the 387 does.
    Unsupported,
    /// Whether it signals.
    Nan(bool),
    Infinity,
    Zero,
    Number(Exact),
}

/// An operand as a register holds it, and whether it is, or was in memory, a denormal.
#[derive(Clone, Copy, Debug)]
pub struct Operand {
    pub register: u128,
    pub kind: Kind,
    pub denormal: bool,
}

impl Operand {
    /// A register's.
    pub fn register(bits: u128) -> Self {
        let exponent = (bits >> 64) as i32 & 0x7fff;
        let significand = bits as u64;
        let integer = significand >> 63 != 0;
        let negative = bits & SIGN != 0;
        let kind = match (exponent, integer, significand << 1) {
            (0, _, _) if significand == 0 => Kind::Zero,
            (0x7fff, true, 0) => Kind::Infinity,
            (0x7fff, true, fraction) => Kind::Nan(fraction >> 63 == 0),
            (1.., false, _) => Kind::Unsupported,
            _ => Kind::Number(Exact::new(
                negative,
                exponent.max(1) - 16383 - 63,
                significand.into(),
            )),
        };
        Self {
            register: bits,
            kind,
            denormal: exponent == 0 && significand != 0,
        }
    }

    /// A single or double number of memory, as a register holds it.
    pub fn lane(lane: Lane, bits: u64) -> Self {
        let sign = if lane.negative(bits) { SIGN } else { 0 };
        let fraction = u128::from(bits) << (64 - lane.fraction()) & u128::from(u64::MAX);
        let (register, denormal) = match lane.value(bits) {
            Value::Nan(_) | Value::Infinity => (INFINITY | fraction >> 1, false),
            Value::Zero => (0, false),
            Value::Number(x, denormal) => (pack(x, Direction::Zero).0 & !SIGN, denormal),
        };
        Self {
            denormal,
            ..Self::register(register | sign)
        }
    }

    pub fn integer(value: i64) -> Self {
        let exact = Exact::new(value < 0, 0, value.unsigned_abs().into());
        Self::register(if value == 0 {
            0
        } else {
            pack(exact, Direction::Zero).0
        })
    }

    pub fn negative(self) -> bool {
        self.register & SIGN != 0
    }

    /// A pseudo-denormal as the normal number it stands for.
    fn normalised(self) -> u128 {
        let pseudo = self.denormal && self.register >> 63 & 1 != 0;
        self.register | u128::from(pseudo) << 64
    }

    /// Only the sign turned.
    pub fn negated(self) -> Self {
        Self::register(self.register ^ SIGN).with_denormal(self.denormal)
    }

    fn with_denormal(self, denormal: bool) -> Self {
        Self { denormal, ..self }
    }

    pub fn is_nan(self) -> bool {
        matches!(self.kind, Kind::Nan(_))
    }

    fn signals(self) -> bool {
        matches!(self.kind, Kind::Nan(true))
    }

    pub fn is_unsupported(self) -> bool {
        matches!(self.kind, Kind::Unsupported)
    }
}

fn signed(negative: bool, magnitude: u128) -> u128 {
    magnitude | if negative { SIGN } else { 0 }
}

/// A register for a number that fits, exact.
fn pack(exact: Exact, direction: Direction) -> Raised {
    Control {
        direction,
        precision: 64,
        masks: 0x3f,
    }
    .round(exact)
}

fn encode(rounded: Rounded, precision: u32) -> u128 {
    let spare = 64 - precision;
    let significand = rounded.significand << spare;
    let exponent = rounded.exponent - spare as i32 + 63 + 16383;
    let field = if significand >> 63 == 0 {
        0
    } else {
        exponent as u128
    };
    signed(rounded.negative, field << 64 | significand)
}

/// The control word's part.
#[derive(Clone, Copy, Debug)]
pub struct Control {
    pub direction: Direction,
    precision: u32,
    masks: u16,
}

impl Control {
    /// Precision control 1 is reserved; the processor under test takes it for 64 bits.
    pub fn of(fcw: u16) -> Self {
        Self {
            direction: Direction::of((fcw >> 10).into()),
            precision: [24, 64, 53, 64][usize::from(fcw >> 8 & 3)],
            masks: fcw & 0x3f,
        }
    }

    /// With 64 bits, whatever the precision control.
    pub fn full(self) -> Self {
        Self {
            precision: 64,
            ..self
        }
    }

    pub fn towards_zero(self) -> Self {
        Self {
            direction: Direction::Zero,
            ..self
        }
    }

    pub fn masks(self, flag: u16) -> bool {
        self.masks & flag != 0
    }

    /// The register an exact result becomes. An overflow or underflow that is not masked leaves the number
    /// rounded as if exponents had no bounds, its exponent moved by [`WRAP`].
    pub fn round(self, exact: Exact) -> Raised {
        if exact.is_zero() {
            return (signed(exact.negative, 0), 0);
        }
        let format = Format {
            precision: self.precision,
            least: LEAST,
            most: 16383,
        };
        let Fitted {
            unbounded,
            tiny,
            huge,
            denormal,
        } = exact.fit(format, self.direction);
        let inexact = |r: Rounded| (if r.inexact { PE } else { 0 }) | if r.up { C1 } else { 0 };
        // FSCALE can go further than that: to zero and to infinity, inexact (SDM volume 1, 8.5.4 and 8.5.5).
        let wrapped = |by: i32, flag: u16| {
            let exponent = unbounded.exponent + by;
            let top = exponent + self.precision as i32 - 1;
            let (massive, up) = match top {
                ..LEAST => (0, 0),
                16384.. => (INFINITY, C1),
                _ => {
                    let result = encode(
                        Rounded {
                            exponent,
                            ..unbounded
                        },
                        self.precision,
                    );
                    return (result, flag | inexact(unbounded));
                }
            };
            (signed(exact.negative, massive), flag | PE | up)
        };
        if huge && self.masks(OE) {
            let infinite = unbounded.overflows_to_infinity(self.direction);
            let magnitude = match (infinite, self.precision) {
                (true, _) => INFINITY,
                (_, precision) => LARGEST >> (64 - precision) << (64 - precision),
            };
            let up = if infinite { C1 } else { 0 };
            return (signed(exact.negative, magnitude), OE | PE | up);
        }
        if huge {
            return wrapped(-WRAP, OE);
        }
        if tiny && !self.masks(UE) {
            return wrapped(WRAP, UE);
        }
        let flags = inexact(denormal);
        let underflow = if tiny && flags & PE != 0 { UE } else { 0 };
        (encode(denormal, self.precision), flags | underflow)
    }

    /// What unsupported operands and NaNs make of an operation: the NaN that does not signal before one that
    /// does, else the one of the larger significand, else the positive one; made quiet.
    pub fn nans(a: Operand, b: Operand) -> Option<Raised> {
        if a.is_unsupported() || b.is_unsupported() {
            return Some((INDEFINITE, IE));
        }
        let flags = if a.signals() || b.signals() { IE } else { 0 };
        let chosen = match (a.is_nan(), b.is_nan()) {
            (false, false) => return None,
            (true, false) => a,
            (false, true) => b,
            _ if a.signals() != b.signals() => {
                if a.signals() {
                    b
                } else {
                    a
                }
            }
            _ => match (a.register as u64).cmp(&(b.register as u64)) {
                Ordering::Greater => a,
                Ordering::Less => b,
                Ordering::Equal => {
                    if a.negative() {
                        b
                    } else {
                        a
                    }
                }
            },
        };
        Some((chosen.register | QUIET, flags))
    }

    fn denormals(a: Operand, b: Operand) -> u16 {
        if a.denormal || b.denormal { DE } else { 0 }
    }

    pub fn add(self, a: Operand, b: Operand) -> Raised {
        if let Some(raised) = Self::nans(a, b) {
            return raised;
        }
        let differ = a.negative() != b.negative();
        let zero = match differ {
            true => signed(self.direction == Direction::Down, 0),
            false => signed(a.negative(), 0),
        };
        let (value, flags) = match (a.kind, b.kind) {
            (Kind::Infinity, Kind::Infinity) if differ => (INDEFINITE, IE),
            (Kind::Infinity, _) => (a.register, 0),
            (_, Kind::Infinity) => (b.register, 0),
            (Kind::Zero, Kind::Zero) => (zero, 0),
            (Kind::Number(x), Kind::Zero) | (Kind::Zero, Kind::Number(x)) => self.round(x),
            (Kind::Number(x), Kind::Number(y)) => {
                let sum = x.plus(y);
                if sum.is_zero() {
                    (zero, 0)
                } else {
                    self.round(sum)
                }
            }
            _ => unreachable!(),
        };
        (value, flags | Self::denormals(a, b))
    }

    pub fn subtract(self, a: Operand, b: Operand) -> Raised {
        // The sign of a NaN stays.
        Self::nans(a, b).unwrap_or_else(|| self.add(a, b.negated()))
    }

    pub fn multiply(self, a: Operand, b: Operand) -> Raised {
        if let Some(raised) = Self::nans(a, b) {
            return raised;
        }
        let negative = a.negative() != b.negative();
        let (value, flags) = match (a.kind, b.kind) {
            (Kind::Infinity, Kind::Zero) | (Kind::Zero, Kind::Infinity) => return (INDEFINITE, IE),
            (Kind::Infinity, _) | (_, Kind::Infinity) => (signed(negative, INFINITY), 0),
            (Kind::Number(x), Kind::Number(y)) => self.round(x.times(y)),
            _ => (signed(negative, 0), 0),
        };
        (value, flags | Self::denormals(a, b))
    }

    pub fn divide(self, a: Operand, b: Operand) -> Raised {
        if let Some(raised) = Self::nans(a, b) {
            return raised;
        }
        let negative = a.negative() != b.negative();
        let (value, flags) = match (a.kind, b.kind) {
            (Kind::Infinity, Kind::Infinity) | (Kind::Zero, Kind::Zero) => return (INDEFINITE, IE),
            (Kind::Number(_), Kind::Zero) => return (signed(negative, INFINITY), ZE),
            (Kind::Infinity, _) => (signed(negative, INFINITY), 0),
            (Kind::Number(x), Kind::Number(y)) => self.round(x.over(y)),
            _ => (signed(negative, 0), 0),
        };
        (value, flags | Self::denormals(a, b))
    }

    pub fn root(self, a: Operand) -> Raised {
        if let Some(raised) = Self::nans(a, a) {
            return raised;
        }
        match a.kind {
            Kind::Zero => (a.register, 0),
            _ if a.negative() => (INDEFINITE, IE),
            Kind::Number(x) => {
                let (value, flags) = self.round(x.root());
                (value, flags | Self::denormals(a, a))
            }
            _ => (a.register, 0),
        }
    }

    /// How two operands compare (`None`: not at all), and the flags.
    pub fn compare(a: Operand, b: Operand, quiet: bool) -> (Option<Ordering>, u16) {
        if let Some((_, flags)) = Self::nans(a, b) {
            return (None, if quiet { flags } else { IE });
        }
        let order = match (a.kind, b.kind) {
            (Kind::Zero, Kind::Zero) => Ordering::Equal,
            (Kind::Infinity, Kind::Infinity) if !(a.negative() ^ b.negative()) => Ordering::Equal,
            (Kind::Infinity, _) | (_, Kind::Zero) => {
                if a.negative() {
                    Ordering::Less
                } else {
                    Ordering::Greater
                }
            }
            (_, Kind::Infinity) | (Kind::Zero, _) => {
                if b.negative() {
                    Ordering::Greater
                } else {
                    Ordering::Less
                }
            }
            (Kind::Number(x), Kind::Number(y)) => x.compare(y),
            _ => unreachable!(),
        };
        (Some(order), Self::denormals(a, b))
    }

    /// To an integer in a register.
    pub fn integral(self, a: Operand) -> Raised {
        if let Some(raised) = Self::nans(a, a) {
            return raised;
        }
        let Kind::Number(x) = a.kind else {
            return (a.register, 0);
        };
        let denormal = Self::denormals(a, a);
        if x.exponent >= 0 {
            return (a.register, denormal);
        }
        let rounded = x.at(0, self.direction);
        let up = if rounded.up { C1 } else { 0 };
        let flags = if rounded.inexact { PE | up } else { 0 };
        let whole = Exact::new(x.negative, 0, rounded.significand);
        (pack(whole, Direction::Zero).0, flags | denormal)
    }

    /// `a * 2^b`, `b` cut to an integer.
    pub fn scale(self, a: Operand, b: Operand) -> Raised {
        if let Some(raised) = Self::nans(a, b) {
            return raised;
        }
        let power = match b.kind {
            Kind::Number(y) => {
                // Beyond 2^20, it is all the same.
                let large = y.significand.leading_zeros() as i32 - y.exponent < 107;
                let whole = y.at(y.exponent.max(0), Direction::Zero);
                let magnitude = match large {
                    true => 1 << 20,
                    false => (whole.significand << whole.exponent) as i32,
                };
                if y.negative { -magnitude } else { magnitude }
            }
            _ => 0,
        };
        let (value, flags) = match (a.kind, b.kind) {
            (Kind::Zero, Kind::Infinity) if !b.negative() => return (INDEFINITE, IE),
            (Kind::Infinity, Kind::Infinity) if b.negative() => return (INDEFINITE, IE),
            (_, Kind::Infinity) if b.negative() => (signed(a.negative(), 0), 0),
            (_, Kind::Infinity) => (signed(a.negative(), INFINITY), 0),
            // Not even an underflow, where that is an error.
            (Kind::Number(_), Kind::Zero) => (a.normalised(), 0),
            (Kind::Number(x), _) => self.round(Exact {
                exponent: x.exponent + power,
                ..x
            }),
            _ => (a.register, 0),
        };
        (value, flags | Self::denormals(a, b))
    }

    /// Exponent and significand.
    pub fn extract(a: Operand) -> (u128, Raised) {
        if let Some(raised) = Self::nans(a, a) {
            return (raised.0, raised);
        }
        match a.kind {
            Kind::Zero => (SIGN | INFINITY, (a.register, ZE)),
            Kind::Infinity => (INFINITY, (a.register, 0)),
            Kind::Number(x) => {
                let top = 127 - x.significand.leading_zeros() as i32;
                let significand = Exact {
                    exponent: -top,
                    ..x
                };
                let exponent = Operand::integer((x.exponent + top).into()).register;
                (
                    exponent,
                    (pack(significand, Direction::Zero).0, Self::denormals(a, a)),
                )
            }
            _ => unreachable!(),
        }
    }

    /// To a single or double number of memory; one that does not fit is not stored where that is an error.
    pub fn store(self, lane: Lane, a: Operand) -> (Option<u64>, u16) {
        let a_sign = if a.negative() { lane.sign() } else { 0 };
        match a.kind {
            Kind::Unsupported => (Some(lane.indefinite()), IE),
            Kind::Nan(signals) => {
                let fraction = (a.register as u64) << 1 >> (64 - lane.fraction());
                let quiet = lane.infinity() | lane.quiet();
                (
                    Some(a_sign | quiet | fraction),
                    if signals { IE } else { 0 },
                )
            }
            Kind::Infinity => (Some(a_sign | lane.infinity()), 0),
            Kind::Zero => (Some(a_sign), 0),
            Kind::Number(x) => {
                let fitted = x.fit(lane.format(), self.direction);
                let inexact =
                    |r: Rounded| (if r.inexact { PE } else { 0 }) | if r.up { C1 } else { 0 };
                if fitted.huge && self.masks(OE) {
                    let infinite = fitted.unbounded.overflows_to_infinity(self.direction);
                    let magnitude = if infinite {
                        lane.infinity()
                    } else {
                        lane.infinity() - 1
                    };
                    let up = if infinite { C1 } else { 0 };
                    return (Some(a_sign | magnitude), OE | PE | up);
                }
                // What is not stored is not reported to be inexact (SDM volume 1, 8.5.6).
                if fitted.huge {
                    return (None, OE);
                }
                if fitted.tiny && !self.masks(UE) {
                    return (None, UE);
                }
                let rounded = fitted.denormal;
                let flags = inexact(rounded);
                let underflow = if fitted.tiny && flags & PE != 0 {
                    UE
                } else {
                    0
                };
                let value = lane.encode(x.negative, rounded.exponent, rounded.significand);
                (Some(value), flags | underflow)
            }
        }
    }

    /// The integer `a` is rounded to, if its magnitude is below `bound` (or equal to it, if `a` is negative and
    /// `even`), and the flags.
    pub fn integer(self, a: Operand, bound: u128, even: bool) -> (Option<(bool, u128)>, u16) {
        let invalid = (None, IE);
        match a.kind {
            Kind::Zero => (Some((a.negative(), 0)), 0),
            Kind::Number(x) => {
                if x.significand.leading_zeros() as i32 - x.exponent < 60 {
                    return invalid;
                }
                let rounded = x.at(x.exponent.max(0), self.direction);
                let magnitude = rounded.significand << rounded.exponent;
                if magnitude > bound || magnitude == bound && !(even && x.negative) {
                    return invalid;
                }
                let up = if rounded.up { C1 } else { 0 };
                let flags = if rounded.inexact { PE | up } else { 0 };
                (Some((x.negative, magnitude)), flags)
            }
            _ => invalid,
        }
    }
}

/// The lane a memory format of 32 or 64 bits is.
pub fn lane_of(bits: u32) -> Lane {
    if bits == 32 { SINGLE } else { DOUBLE }
}
