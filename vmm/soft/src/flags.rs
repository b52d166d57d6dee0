//! RFLAGS, with the six arithmetic flags kept lazily.
//!
//! ```text
//!  result   the last result, sign-extended to 64 bits     ZF: result == 0
//!  aux      bit 63    carry out of the top bit            CF
//!           bit 62    carry into the top bit, as OF ^ CF  OF = bit 63 ^ bit 62
//!           bit 3     carry out of bit 3                  AF
//!           bit 0     correction of the sign              SF = bit 63 of result ^ bit 0
//!           bits 8-15 correction of the low byte          PF = even parity of (result ^ correction)
//! ```
//!
//! The corrections are zero except after flags were loaded as a whole (`popf`, `sahf`, `iretq`), where
//! they need not fit any result. An instruction stores two words; nobody computes a flag nobody reads.

/// Carry.
pub const CF: u64 = 1 << 0;
/// Parity of the low byte.
pub const PF: u64 = 1 << 2;
/// Carry out of bit 3.
pub const AF: u64 = 1 << 4;
/// Zero.
pub const ZF: u64 = 1 << 6;
/// Sign.
pub const SF: u64 = 1 << 7;
/// Trap after the next instruction.
pub const TF: u64 = 1 << 8;
/// Interrupts can be taken.
pub const IF: u64 = 1 << 9;
/// Strings go down.
pub const DF: u64 = 1 << 10;
/// Overflow.
pub const OF: u64 = 1 << 11;
/// I/O privilege level, two bits.
pub const IOPL: u64 = 3 << 12;
/// Nested task.
pub const NT: u64 = 1 << 14;
/// Resume: no instruction breakpoint.
pub const RF: u64 = 1 << 16;
/// Virtual 8086 mode; never set here.
pub const VM: u64 = 1 << 17;
/// Alignment check, and with SMAP the right of the supervisor to user pages.
pub const AC: u64 = 1 << 18;
/// Virtual interrupt flag; without effect here.
pub const VIF: u64 = 1 << 19;
/// Virtual interrupt pending; without effect here.
pub const VIP: u64 = 1 << 20;
/// CPUID can be asked.
pub const ID: u64 = 1 << 21;

/// The six flags kept lazily.
pub const ARITHMETIC: u64 = CF | PF | AF | ZF | SF | OF;
/// The one reserved flag that reads as 1 (SDM volume 1, 3.4.3).
pub const FIXED: u64 = 1 << 1;

const CARRY: u64 = 1 << 63;
const CARRY_IN: u64 = 1 << 62;
const HALF: u64 = 1 << 3;

/// The arithmetic flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Arithmetic {
    /// The last result, sign-extended from its size.
    pub result: u64,
    /// See the module.
    pub aux: u64,
}

impl Arithmetic {
    /// From the bits of RFLAGS.
    #[inline]
    #[must_use]
    pub fn from_bits(bits: u64) -> Self {
        let carry = bits & CF;
        let carry_in = (bits >> 11 & 1) ^ carry;
        let result = u64::from(bits & ZF == 0) << 8;
        // The result has an even low byte and no sign: what differs is corrected.
        let sign = bits >> 7 & 1;
        let odd = u64::from(bits & PF == 0) << 8;
        Self {
            result,
            aux: carry << 63 | carry_in << 62 | (bits >> 4 & 1) << 3 | sign | odd,
        }
    }

    /// As bits of RFLAGS.
    #[inline]
    #[must_use]
    pub fn bits(self) -> u64 {
        u64::from(self.carry())
            | u64::from(self.parity()) << 2
            | (self.aux & HALF) << 1
            | u64::from(self.zero()) << 6
            | u64::from(self.sign()) << 7
            | u64::from(self.overflow()) << 11
    }

    /// CF.
    #[inline(always)]
    #[must_use]
    pub fn carry(self) -> bool {
        self.aux & CARRY != 0
    }

    /// OF.
    #[inline(always)]
    #[must_use]
    pub fn overflow(self) -> bool {
        (self.aux ^ self.aux << 1) & CARRY != 0
    }

    /// ZF.
    #[inline(always)]
    #[must_use]
    pub fn zero(self) -> bool {
        self.result == 0
    }

    /// SF.
    #[inline(always)]
    #[must_use]
    pub fn sign(self) -> bool {
        (self.result >> 63 ^ self.aux) & 1 != 0
    }

    /// PF.
    #[inline(always)]
    #[must_use]
    pub fn parity(self) -> bool {
        ((self.result ^ self.aux >> 8) as u8).count_ones() & 1 == 0
    }

    /// AF.
    #[inline(always)]
    #[must_use]
    pub fn half(self) -> bool {
        self.aux & HALF != 0
    }

    /// After a logic operation: CF, OF and AF clear.
    #[inline(always)]
    #[must_use]
    pub fn logic(result: u64) -> Self {
        Self { result, aux: 0 }
    }

    /// From the carries out of every bit of an operation on `bits` bits.
    #[inline(always)]
    #[must_use]
    pub fn from_carries(result: u64, carries: u64, bits: u32) -> Self {
        Self {
            result,
            aux: (carries << (64 - bits)) & (CARRY | CARRY_IN) | carries & HALF,
        }
    }

    /// The same with another CF, OF as it was.
    #[inline(always)]
    #[must_use]
    pub fn with_carry(self, carry: bool) -> Self {
        let overflow = u64::from(self.overflow());
        let carry = u64::from(carry);
        Self {
            aux: self.aux & !(CARRY | CARRY_IN) | carry << 63 | (carry ^ overflow) << 62,
            ..self
        }
    }

    /// The same with AF set.
    #[inline(always)]
    #[must_use]
    pub fn with_half(self) -> Self {
        Self {
            aux: self.aux | HALF,
            ..self
        }
    }

    /// The same with other CF and OF.
    #[inline(always)]
    #[must_use]
    pub fn with_carry_overflow(self, carry: bool, overflow: bool) -> Self {
        let (carry, overflow) = (u64::from(carry), u64::from(overflow));
        Self {
            aux: self.aux & !(CARRY | CARRY_IN) | carry << 63 | (carry ^ overflow) << 62,
            ..self
        }
    }

    /// Condition code `code` (SDM volume 1, appendix B): 0 O, 2 B, 4 Z, 6 BE, 8 S, 10 P, 12 L, 14 LE;
    /// the odd ones are the opposites.
    #[inline(always)]
    #[must_use]
    pub fn holds<const CODE: u8>(self) -> bool {
        let holds = match CODE >> 1 {
            0 => self.overflow(),
            1 => self.carry(),
            2 => self.zero(),
            3 => self.carry() || self.zero(),
            4 => self.sign(),
            5 => self.parity(),
            6 => self.sign() != self.overflow(),
            _ => self.zero() || self.sign() != self.overflow(),
        };
        holds != (CODE & 1 != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_combination_survives_the_way_there_and_back() {
        for n in 0..64u64 {
            let bits = (n & 1)
                | (n >> 1 & 1) << 2
                | (n >> 2 & 1) << 4
                | (n >> 3 & 1) << 6
                | (n >> 4 & 1) << 7
                | (n >> 5 & 1) << 11;
            let flags = Arithmetic::from_bits(bits);
            assert_eq!(flags.bits(), bits);
            assert_eq!(flags.with_carry(true).bits(), bits | CF);
            assert_eq!(flags.with_carry(false).bits(), bits & !CF);
        }
    }
}
