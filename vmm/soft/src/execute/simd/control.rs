//! MXCSR as an operation is carried out under it, and what unmasked overflow and underflow raise.
//!
//! ```text
//!  guest's MXCSR ─▶ host: every exception masked, no flags
//!                └▶ unmasked: the exceptions that are errors
//! ```
//!
//! A masked overflow or underflow is inexact as what is stored is; one that is not masked is inexact as the
//! number rounded without bounds to its exponent is, and an exact tiny number is an underflow (SDM volume 1,
//! 4.9.1.5; IEEE 754, 7.4 and 7.5). The host's SSE unit tells only the former. Its x87 unit has the exponents
//! for the latter, and rounds to the same bits.

use super::float::{DAZ, DE, FLAGS, FTZ, IE, MASKS, OE, PE, Raised, UE, ZE};
use super::lanes::{from_u32s, from_u64s, u32s, u64s};
use crate::execute::x87::host::{self, ARITHMETIC, source};

/// What an operation heeds of MXCSR.
#[derive(Clone, Copy)]
pub(crate) struct Control {
    /// The host's MXCSR for it.
    pub host: u32,
    /// The exceptions, as flags, that are not masked.
    pub unmasked: u32,
}

impl Control {
    /// From the guest's MXCSR. Flushing to zero is for masked underflow only (SDM volume 1, 10.2.3.3).
    #[inline(always)]
    pub(super) fn of(mxcsr: u32) -> Self {
        let mut host = mxcsr & !FLAGS | MASKS;
        if mxcsr & UE << 7 == 0 {
            host &= !FTZ;
        }
        Self {
            host,
            unmasked: !mxcsr >> 7 & FLAGS,
        }
    }

    /// With every exception masked.
    pub(super) const fn masked(host: u32) -> Self {
        Self { host, unmasked: 0 }
    }

    /// Whether flags an operation raised keep its result from being stored.
    #[inline(always)]
    pub(super) fn stops(self, flags: u32) -> bool {
        flags & self.unmasked != 0
    }

    /// Whether what the host's unit raises is all: overflow and underflow are masked.
    #[inline(always)]
    pub(super) fn is_bounded(self) -> bool {
        self.unmasked & (OE | UE) == 0
    }

    /// What an operation that raised `flags` leaves of them: an unmasked error of its operands comes before
    /// what its result would raise (SDM volume 1, 11.5.1).
    #[inline(always)]
    pub(super) fn kept(self, flags: u32) -> u32 {
        let before = flags & (IE | DE | ZE);
        if self.stops(before) { before } else { flags }
    }
}

/// What an operation's results can be too large or too small for.
#[derive(Clone, Copy)]
pub(crate) struct Range {
    /// Lanes that are computed.
    lanes: usize,
    /// Operands are doubles.
    from_doubles: bool,
    /// Results are.
    to_doubles: bool,
    /// Which of [`ARITHMETIC`] it is.
    operation: usize,
}

/// A conversion: [`ARITHMETIC`]'s multiplication, by 1.
const CONVERT: usize = ARITHMETIC.len();
/// 1, in a register.
const ONE: u128 = 0x3fff_8000_0000_0000_0000;

impl Range {
    /// Of `lanes` singles; `operation` is the number of one of [`ARITHMETIC`].
    pub(super) const fn singles(lanes: usize, operation: usize) -> Self {
        Self {
            lanes,
            from_doubles: false,
            to_doubles: false,
            operation,
        }
    }

    /// Of `lanes` doubles.
    pub(super) const fn doubles(lanes: usize, operation: usize) -> Self {
        Self {
            lanes,
            from_doubles: true,
            to_doubles: true,
            operation,
        }
    }

    /// Of `lanes` doubles made singles.
    pub(super) const fn narrowing(lanes: usize) -> Self {
        Self {
            lanes,
            from_doubles: true,
            to_doubles: false,
            operation: CONVERT,
        }
    }

    /// The flags an operation raises where overflow or underflow is not masked, `masked` being what it makes
    /// of two vectors where both are.
    #[cold]
    #[inline(never)]
    pub(super) fn flags(
        self,
        control: Control,
        a: u128,
        b: u128,
        masked: impl Fn(u128, u128) -> Raised,
    ) -> u32 {
        (0..self.lanes).fold(0, |flags, n| {
            // The lane alone, in all places.
            let (x, y) = (self.lane(a, n), self.lane(b, n));
            let (result, raised) = masked(self.all(x), self.all(y));
            let tiny = raised & UE != 0 || self.is_denormal(result);
            let large = raised & OE & control.unmasked != 0;
            if !large && (!tiny || control.unmasked & UE == 0) {
                return flags | raised;
            }
            let underflow = if tiny { UE } else { 0 };
            flags | raised & !PE | underflow | self.inexact(control, x, y)
        })
    }

    fn lane(self, vector: u128, n: usize) -> u64 {
        if self.from_doubles {
            u64s(vector)[n]
        } else {
            u32s(vector)[n].into()
        }
    }

    fn all(self, lane: u64) -> u128 {
        if self.from_doubles {
            from_u64s([lane; 2])
        } else {
            from_u32s([lane as u32; 4])
        }
    }

    /// Whether the lowest lane of a result is a denormal.
    fn is_denormal(self, result: u128) -> bool {
        if self.to_doubles {
            let lane = u64s(result)[0];
            return lane & 0x7ff0_0000_0000_0000 == 0 && lane << 1 != 0;
        }
        let lane = u32s(result)[0];
        lane & 0x7f80_0000 == 0 && lane << 1 != 0
    }

    /// [`PE`] if the result, as if exponents had no bounds, is inexact.
    fn inexact(self, control: Control, x: u64, y: u64) -> u32 {
        let form = if self.from_doubles {
            source::DOUBLE
        } else {
            source::SINGLE
        };
        let register = |lane: u64| {
            let number = host::load(form, 0x37f, lane.into());
            if number.status as u32 & DE != 0 && control.host & DAZ != 0 {
                return number.st0 >> 79 << 79;
            }
            number.st0
        };
        let precision = if self.to_doubles { 0x200 } else { 0 };
        let direction = (control.host >> 13 & 3) << 10;
        let word = 0x7f | precision | direction as u16;
        let (run, x, y) = match ARITHMETIC.get(self.operation) {
            Some(run) => (run, register(x), register(y)),
            None => (&ARITHMETIC[1], register(y), ONE),
        };
        u32::from(run(source::REGISTER, word, x, y).status) & PE
    }
}

// The flags have the same places in both units.
const _: () = assert!(IE == 1 && ZE == 4 && PE == 32);
