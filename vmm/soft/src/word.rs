//! Operand sizes.

use crate::Cpu;
use crate::op::slot;

/// An unsigned integer of an operand's size.
pub trait Word: Copy + Eq + Ord + std::fmt::Debug + 'static {
    /// Bits.
    const BITS: u32;
    /// Bytes.
    const BYTES: u64 = Self::BITS as u64 / 8;
    /// The low bits of `value`.
    fn cut(value: u64) -> Self;
    /// Zero-extended.
    fn zext(self) -> u64;
    /// Sign-extended.
    fn sext(self) -> u64;
    /// Register `number` (or a high byte, see [`slot::HIGH`]) at this size.
    fn get(cpu: &Cpu, number: u8) -> Self;
    /// Sets it: 32 bits clear the upper half, 8 and 16 leave the rest.
    fn set(self, cpu: &mut Cpu, number: u8);
}

macro_rules! word {
    ($type:ty, $signed:ty, $set:expr) => {
        impl Word for $type {
            const BITS: u32 = <$type>::BITS;
            #[inline(always)]
            fn cut(value: u64) -> Self {
                value as $type
            }
            #[inline(always)]
            fn zext(self) -> u64 {
                self.into()
            }
            #[inline(always)]
            fn sext(self) -> u64 {
                self as $signed as i64 as u64
            }
            #[inline(always)]
            fn get(cpu: &Cpu, number: u8) -> Self {
                cpu.slot(number) as $type
            }
            #[inline(always)]
            fn set(self, cpu: &mut Cpu, number: u8) {
                let old = cpu.slot(number);
                let merge: fn(u64, u64) -> u64 = $set;
                cpu.set_slot(number, merge(old, self.into()));
            }
        }
    };
}

word!(u16, i16, |old, new| old & !0xffff | new);
word!(u32, i32, |_, new| new);
word!(u64, i64, |_, new| new);

impl Word for u8 {
    const BITS: u32 = 8;
    #[inline(always)]
    fn cut(value: u64) -> Self {
        value as u8
    }
    #[inline(always)]
    fn zext(self) -> u64 {
        self.into()
    }
    #[inline(always)]
    fn sext(self) -> u64 {
        self as i8 as i64 as u64
    }
    #[inline(always)]
    fn get(cpu: &Cpu, number: u8) -> Self {
        let shift = u32::from(number >> 7) * 8;
        (cpu.slot(number & !slot::HIGH) >> shift) as u8
    }
    #[inline(always)]
    fn set(self, cpu: &mut Cpu, number: u8) {
        let shift = u32::from(number >> 7) * 8;
        let number = number & !slot::HIGH;
        let old = cpu.slot(number);
        cpu.set_slot(number, old & !(0xff << shift) | u64::from(self) << shift);
    }
}
