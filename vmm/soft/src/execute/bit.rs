//! Single bits and bits counted: BT, BTS, BTR, BTC, BSF, BSR, POPCNT, TZCNT, LZCNT, BSWAP, MOVBE, CRC32.

use super::operand::{Operand, Place};
use crate::flags::{self, Arithmetic};
use crate::op::{Address, Op, slot};
use crate::word::Word;
use crate::{Cpu, Trap};

/// What is done to the bit tested.
pub(crate) trait Bit {
    /// Whether anything is.
    const WRITES: bool = true;
    /// `word` with the bit of `mask` changed.
    fn change(word: u64, mask: u64) -> u64;
}

/// `bt`.
pub(crate) struct Look;
/// `bts`.
pub(crate) struct Set;
/// `btr`.
pub(crate) struct Reset;
/// `btc`.
pub(crate) struct Flip;

impl Bit for Look {
    const WRITES: bool = false;
    #[inline(always)]
    fn change(word: u64, _: u64) -> u64 {
        word
    }
}
impl Bit for Set {
    #[inline(always)]
    fn change(word: u64, mask: u64) -> u64 {
        word | mask
    }
}
impl Bit for Reset {
    #[inline(always)]
    fn change(word: u64, mask: u64) -> u64 {
        word & !mask
    }
}
impl Bit for Flip {
    #[inline(always)]
    fn change(word: u64, mask: u64) -> u64 {
        word ^ mask
    }
}

/// `B place, bit`, the bit's number cut to the operand's size. Every flag but CF stays.
pub(crate) fn bit<B: Bit, W: Word, D: Place, S: Operand>(
    cpu: &mut Cpu,
    op: &Op,
) -> Result<(), Trap> {
    let number = S::read::<W>(cpu, op)?.zext() % u64::from(W::BITS);
    let word: W = if B::WRITES {
        D::read_to_modify(cpu, op)?
    } else {
        D::read(cpu, op)?
    };
    let word = word.zext();
    if B::WRITES {
        D::write(cpu, op, W::cut(B::change(word, 1 << number)))?;
    }
    cpu.arithmetic = cpu.arithmetic.with_carry(word >> number & 1 != 0);
    Ok(())
}

/// `B memory, register`: the register counts bits, signed, from the operand's address.
pub(crate) fn bit_string<B: Bit, W: Word, A: Address>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let number = W::get(cpu, op.src).sext() as i64;
    let words = number >> W::BITS.trailing_zeros();
    let away = (words as u64).wrapping_mul(W::BYTES);
    let op = Op {
        disp: op.disp.wrapping_add(away),
        ..*op
    };
    let address = A::linear(cpu, &op);
    let number = number as u64 % u64::from(W::BITS);
    let word: Result<W, Trap> = if B::WRITES {
        cpu.load_to_modify(address)
    } else {
        cpu.load(address)
    };
    let on_stack = matches!(op.base, slot::RSP | slot::RBP) && op.scale_segment >> 2 == slot::ZERO;
    let word = match word {
        Err(trap) if on_stack && cpu.long_code => return Err(cpu.stack_trap(trap)),
        word => word?.zext(),
    };
    if B::WRITES {
        cpu.store(address, W::cut(B::change(word, 1 << number)))?;
    }
    cpu.arithmetic = cpu.arithmetic.with_carry(word >> number & 1 != 0);
    Ok(())
}

/// `bsf register, source`. Of zero: the register stays as it is, all of it. The undefined flags are as on
/// AMD's processors (Zen 5 was asked): PF is that of the result, or set, the others are clear.
pub(crate) fn bsf<W: Word, S: Operand>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let value = S::read::<W>(cpu, op)?.zext();
    scanned::<W>(cpu, op, value, value.trailing_zeros())
}

/// `bsr register, source`; otherwise as [`bsf`].
pub(crate) fn bsr<W: Word, S: Operand>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let value = S::read::<W>(cpu, op)?.zext();
    scanned::<W>(cpu, op, value, 63 ^ value.leading_zeros())
}

#[inline(always)]
fn scanned<W: Word>(cpu: &mut Cpu, op: &Op, value: u64, found: u32) -> Result<(), Trap> {
    if value == 0 {
        cpu.arithmetic = Arithmetic::logic(0);
        return Ok(());
    }
    // Bit 8 tells a result of zero from a source of zero, and is in no flag but ZF.
    cpu.arithmetic = Arithmetic::logic(u64::from(found) | 1 << 8);
    W::cut(found.into()).set(cpu, op.dst);
    Ok(())
}

/// `tzcnt register, source`. CF: the source is zero; ZF: the result is; every other flag stays.
pub(crate) fn tzcnt<W: Word, S: Operand>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let value = S::read::<W>(cpu, op)?.zext();
    counted::<W>(cpu, op, value, value.trailing_zeros().min(W::BITS))
}

/// `lzcnt register, source`; flags as for [`tzcnt`].
pub(crate) fn lzcnt<W: Word, S: Operand>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let value = S::read::<W>(cpu, op)?.zext();
    counted::<W>(cpu, op, value, value.leading_zeros() - (64 - W::BITS))
}

#[inline(always)]
fn counted<W: Word>(cpu: &mut Cpu, op: &Op, value: u64, count: u32) -> Result<(), Trap> {
    let changed = (u64::from(value == 0) * flags::CF) | (u64::from(count == 0) * flags::ZF);
    let kept = cpu.arithmetic.bits() & !(flags::CF | flags::ZF);
    cpu.arithmetic = Arithmetic::from_bits(kept | changed);
    W::cut(count.into()).set(cpu, op.dst);
    Ok(())
}

/// `popcnt register, source`.
pub(crate) fn popcnt<W: Word, S: Operand>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let count = S::read::<W>(cpu, op)?.zext().count_ones();
    W::cut(count.into()).set(cpu, op.dst);
    cpu.arithmetic = Arithmetic::from_bits(u64::from(count == 0) * flags::ZF);
    Ok(())
}

/// `value` with its bytes the other way round.
#[inline(always)]
fn swapped<W: Word>(value: W) -> W {
    W::cut(value.zext().swap_bytes() >> (64 - W::BITS))
}

/// `bswap register`. Of a 16-bit register, which is undefined: zero.
pub(crate) fn bswap<W: Word>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let value = if W::BITS == 16 {
        W::cut(0)
    } else {
        swapped(W::get(cpu, op.dst))
    };
    value.set(cpu, op.dst);
    Ok(())
}

/// `movbe place, source`.
pub(crate) fn movbe<W: Word, D: Place, S: Operand>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let value: W = S::read(cpu, op)?;
    D::write(cpu, op, swapped(value))
}

/// The CRC of each byte, by the Castagnoli polynomial 0x1EDC6F41, bits reflected (SDM volume 2A, CRC32).
const CRC: [u32; 256] = {
    let mut table = [0; 256];
    let mut n = 0;
    while n < 256 {
        let mut crc = n as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = (crc >> 1) ^ ((crc & 1) * 0x82f6_3b78);
            bit += 1;
        }
        table[n] = crc;
        n += 1;
    }
    table
};

/// `crc32 register, source`. The result clears the upper half of the register.
pub(crate) fn crc32<W: Word, S: Operand>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let mut value = S::read::<W>(cpu, op)?.zext();
    let mut crc = u32::get(cpu, op.dst);
    for _ in 0..W::BYTES {
        crc = (crc >> 8) ^ CRC[usize::from(crc as u8 ^ value as u8)];
        value >>= 8;
    }
    crc.set(cpu, op.dst);
    Ok(())
}
