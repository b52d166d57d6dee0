//! Moves between XMM and MMX registers, general registers and memory.

use super::integer::byte_signs;
use super::lanes::{u16s, u32s, u64s};
use super::{Any, Input};
use crate::op::{Address, Op};
use crate::word::Word;
use crate::{Cpu, Trap};

/// `xmm = input`, the rest zero.
pub(crate) fn load<I: Input>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.check_sse()?;
    let value = I::read(cpu, op)?;
    cpu.fpu.set_xmm(op.dst, value);
    Ok(())
}

/// `mm = input`.
pub(crate) fn load_mm<I: Input>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.check_mmx_waiting()?;
    let value = I::read(cpu, op)?;
    cpu.fpu.enter_mmx();
    cpu.fpu.set_mm(op.dst, value as u64);
    Ok(())
}

/// 16 bytes to memory.
pub(crate) fn store<A: Address>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.check_sse()?;
    cpu.store128(A::linear(cpu, op), cpu.fpu.xmm(op.src))
}

/// 16 bytes to memory that has to be aligned.
pub(crate) fn store_aligned<A: Address>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.check_sse()?;
    let address = A::linear(cpu, op);
    cpu.check_aligned16(address)?;
    cpu.store128(address, cpu.fpu.xmm(op.src))
}

/// The low word to memory.
pub(crate) fn store_low<A: Address, W: Word>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.check_sse()?;
    let value = W::cut(cpu.fpu.xmm(op.src) as u64);
    cpu.store(A::linear(cpu, op), value)
}

/// The high half to memory.
pub(crate) fn store_high(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.check_sse()?;
    let value = (cpu.fpu.xmm(op.src) >> 64) as u64;
    cpu.store(Any::linear(cpu, op), value)
}

/// The low word of an MMX register to memory.
pub(crate) fn store_mm<W: Word>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.check_mmx_waiting()?;
    let value = W::cut(cpu.fpu.mm(op.src));
    cpu.store(Any::linear(cpu, op), value)?;
    cpu.fpu.enter_mmx();
    Ok(())
}

/// The low word to a general register.
pub(crate) fn to_general<W: Word>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.check_sse()?;
    W::cut(cpu.fpu.xmm(op.src) as u64).set(cpu, op.dst);
    Ok(())
}

/// The low word of an MMX register to a general register.
pub(crate) fn mm_to_general<W: Word>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.check_mmx_waiting()?;
    cpu.fpu.enter_mmx();
    W::cut(cpu.fpu.mm(op.src)).set(cpu, op.dst);
    Ok(())
}

/// `movdq2q mm, xmm`.
pub(crate) fn movdq2q(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.check_sse()?;
    cpu.check_mmx_waiting()?;
    cpu.fpu.enter_mmx();
    let value = cpu.fpu.xmm(op.src) as u64;
    cpu.fpu.set_mm(op.dst, value);
    Ok(())
}

/// `movq2dq xmm, mm`.
pub(crate) fn movq2dq(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.check_sse()?;
    cpu.check_mmx_waiting()?;
    cpu.fpu.enter_mmx();
    let value = cpu.fpu.mm(op.src).into();
    cpu.fpu.set_xmm(op.dst, value);
    Ok(())
}

/// `movnti m, r`.
pub(crate) fn movnti<W: Word>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let value = W::get(cpu, op.src);
    cpu.store(Any::linear(cpu, op), value)
}

/// `maskmovdqu`: the bytes whose mask has its sign set, to DS:RDI. The memory operand is `base` RDI. The
/// whole range has to be writable if any byte is written; a mask of none touches nothing.
pub(crate) fn maskmov(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.check_sse()?;
    let signs = byte_signs(cpu.fpu.xmm(op.src));
    store_masked(cpu, op, cpu.fpu.xmm(op.dst), signs, 16)
}

/// `maskmovq`.
pub(crate) fn maskmov_mm(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.check_mmx_waiting()?;
    let signs = byte_signs(cpu.fpu.mm(op.src).into());
    store_masked(cpu, op, cpu.fpu.mm(op.dst).into(), signs, 8)?;
    cpu.fpu.enter_mmx();
    Ok(())
}

fn store_masked(cpu: &mut Cpu, op: &Op, value: u128, signs: u32, size: u64) -> Result<(), Trap> {
    if signs == 0 {
        return Ok(());
    }
    let address = Any::linear(cpu, op);
    cpu.check_writable(address, size)?;
    for (n, byte) in value.to_le_bytes().into_iter().enumerate() {
        if signs & 1 << n != 0 {
            cpu.store(address.wrapping_add(n as u64), byte)?;
        }
    }
    Ok(())
}

/// Which sign bits a mask is made of.
pub(crate) trait Signs {
    /// They, lane 0's in bit 0.
    fn of(vector: u128) -> u32;
}

/// Of bytes.
pub(crate) struct Bytes;
/// Of 32-bit lanes.
pub(crate) struct Doubles;
/// Of 64-bit lanes.
pub(crate) struct Quads;

impl Signs for Bytes {
    #[inline(always)]
    fn of(vector: u128) -> u32 {
        byte_signs(vector)
    }
}

impl Signs for Doubles {
    #[inline(always)]
    fn of(vector: u128) -> u32 {
        let [a, b, c, d] = u32s(vector).map(|lane| lane >> 31);
        a | b << 1 | c << 2 | d << 3
    }
}

impl Signs for Quads {
    #[inline(always)]
    fn of(vector: u128) -> u32 {
        let [a, b] = u64s(vector).map(|lane| (lane >> 63) as u32);
        a | b << 1
    }
}

/// `pmovmskb`, `movmskps`, `movmskpd`.
pub(crate) fn mask<S: Signs>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.check_sse()?;
    let signs = S::of(cpu.fpu.xmm(op.src));
    cpu.set_slot(op.dst, signs.into());
    Ok(())
}

/// `pmovmskb r, mm`.
pub(crate) fn mask_mm(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.check_mmx_waiting()?;
    cpu.fpu.enter_mmx();
    let signs = byte_signs(cpu.fpu.mm(op.src).into());
    cpu.set_slot(op.dst, signs.into());
    Ok(())
}

/// `pextrw r, xmm, imm`.
pub(crate) fn pextrw(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.check_sse()?;
    let word = u16s(cpu.fpu.xmm(op.src))[op.imm as usize % 8];
    cpu.set_slot(op.dst, word.into());
    Ok(())
}

/// `pextrw r, mm, imm`.
pub(crate) fn pextrw_mm(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.check_mmx_waiting()?;
    cpu.fpu.enter_mmx();
    let word = u16s(cpu.fpu.mm(op.src).into())[op.imm as usize % 4];
    cpu.set_slot(op.dst, word.into());
    Ok(())
}

/// `pextrb`, `pextrd`, `pextrq`, `extractps` and `pextrw m`: lane `imm` of words to a general register,
/// zero-extended.
pub(crate) fn extract<W: Word>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.check_sse()?;
    let value = extracted::<W>(cpu, op);
    cpu.set_slot(op.dst, value.zext());
    Ok(())
}

/// The same to memory.
pub(crate) fn extract_to_memory<W: Word>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.check_sse()?;
    let value = extracted::<W>(cpu, op);
    cpu.store(Any::linear(cpu, op), value)
}

fn extracted<W: Word>(cpu: &Cpu, op: &Op) -> W {
    let lane = op.imm as u32 % (128 / W::BITS);
    W::cut((cpu.fpu.xmm(op.src) >> (lane * W::BITS)) as u64)
}
