//! MMX and SSE: operands, and the handlers every packed operation shares.
//!
//! ```text
//!  packed::<O, I>      xmm[dst] = O::xmm(xmm[dst], I, imm)
//!  packed_mm::<O, I>   mm[dst]  = O::mm(mm[dst], I, imm)
//! ```
//!
//! Vectors are `u128`s, lane 0 in the low bits. Of the host only SSE2 is assumed, which every x86-64
//! processor has.

pub(crate) mod control;
pub(crate) mod float;
pub(crate) mod integer;
pub(crate) mod lanes;
pub(crate) mod moves;
pub(crate) mod rounding;
pub(crate) mod ssse3;
pub(crate) mod state;
pub(crate) mod strings;

use crate::fpu::Fpu;
use crate::op::{Address, Full, Narrow, Op};
use crate::word::Word;
use crate::{Cpu, Trap};
use std::marker::PhantomData;

/// In [`Op::base`] of an [`Any`] address: the offset is cut to 32 bits.
pub(crate) const NARROW: u8 = 0x80;

/// Any form of address, told apart when it is used: for instructions too rare to have an instance for
/// each form.
pub(crate) struct Any;

impl Address for Any {
    #[inline(always)]
    fn linear(cpu: &Cpu, op: &Op) -> u64 {
        if op.base & NARROW != 0 {
            return Narrow::linear(cpu, op);
        }
        Full::linear(cpu, op)
    }
}

impl Cpu {
    /// What an MMX instruction checks first: that it is allowed, and that no x87 error is pending.
    #[inline(always)]
    pub(crate) fn check_mmx_waiting(&mut self) -> Result<(), Trap> {
        self.check_mmx()?;
        self.check_no_error()
    }

    /// #GP unless `address` is a multiple of 16.
    #[inline(always)]
    pub(crate) fn check_aligned16(&mut self, address: u64) -> Result<(), Trap> {
        if address & 15 == 0 {
            return Ok(());
        }
        Err(self.general_protection(0))
    }
}

impl Fpu {
    /// XMM register `number`.
    #[inline(always)]
    pub(crate) fn xmm(&self, number: u8) -> u128 {
        self.xmm[usize::from(number) % 16]
    }

    /// Sets XMM register `number`.
    #[inline(always)]
    pub(crate) fn set_xmm(&mut self, number: u8, value: u128) {
        self.xmm[usize::from(number) % 16] = value;
    }

    /// MMX register `number`.
    #[inline(always)]
    pub(crate) fn mm(&self, number: u8) -> u64 {
        self.x87[usize::from(number) % 8] as u64
    }

    /// Sets MMX register `number`; its exponent becomes all ones (SDM volume 1, 9.5.1).
    #[inline(always)]
    pub(crate) fn set_mm(&mut self, number: u8, value: u64) {
        self.x87[usize::from(number) % 8] = 0xffff << 64 | u128::from(value);
    }

    /// What every MMX instruction but EMMS does besides: TOP is 0, no register is empty.
    #[inline(always)]
    pub(crate) fn enter_mmx(&mut self) {
        self.fsw &= !crate::fpu::TOP;
        self.tags = 0xff;
    }
}

/// A source operand.
pub(crate) trait Input {
    /// Its value, zero-extended.
    fn read(cpu: &mut Cpu, op: &Op) -> Result<u128, Trap>;
}

/// XMM register [`Op::src`].
pub(crate) struct Xmm;
/// MMX register [`Op::src`].
pub(crate) struct Mm;
/// General register [`Op::src`].
pub(crate) struct Gpr<W>(PhantomData<W>);
/// The immediate.
pub(crate) struct Count;
/// 16 bytes of memory that have to be aligned.
pub(crate) struct Aligned<A>(PhantomData<A>);
/// 16 bytes of memory.
pub(crate) struct Unaligned<A>(PhantomData<A>);
/// A word of memory.
pub(crate) struct Scalar<A, W>(PhantomData<(A, W)>);

impl Input for Xmm {
    #[inline(always)]
    fn read(cpu: &mut Cpu, op: &Op) -> Result<u128, Trap> {
        Ok(cpu.fpu.xmm(op.src))
    }
}

impl Input for Mm {
    #[inline(always)]
    fn read(cpu: &mut Cpu, op: &Op) -> Result<u128, Trap> {
        Ok(cpu.fpu.mm(op.src).into())
    }
}

impl<W: Word> Input for Gpr<W> {
    #[inline(always)]
    fn read(cpu: &mut Cpu, op: &Op) -> Result<u128, Trap> {
        Ok(W::get(cpu, op.src).zext().into())
    }
}

impl Input for Count {
    #[inline(always)]
    fn read(_: &mut Cpu, op: &Op) -> Result<u128, Trap> {
        Ok((op.imm & 0xff).into())
    }
}

impl<A: Address> Input for Aligned<A> {
    #[inline(always)]
    fn read(cpu: &mut Cpu, op: &Op) -> Result<u128, Trap> {
        let address = A::linear(cpu, op);
        cpu.check_aligned16(address)?;
        cpu.load128(address)
    }
}

impl<A: Address> Input for Unaligned<A> {
    #[inline(always)]
    fn read(cpu: &mut Cpu, op: &Op) -> Result<u128, Trap> {
        cpu.load128(A::linear(cpu, op))
    }
}

impl<A: Address, W: Word> Input for Scalar<A, W> {
    #[inline(always)]
    fn read(cpu: &mut Cpu, op: &Op) -> Result<u128, Trap> {
        let value: W = cpu.load(A::linear(cpu, op))?;
        Ok(value.zext().into())
    }
}

/// An operation on two vectors (and an immediate byte) that sets no flags.
pub(crate) trait Packed {
    /// On XMM registers.
    fn xmm(a: u128, b: u128, imm: u8) -> u128;
    /// On MMX registers.
    #[inline(always)]
    fn mm(a: u64, b: u64, imm: u8) -> u64 {
        Self::xmm(a.into(), b.into(), imm) as u64
    }
}

/// `O xmm, input(, imm)`.
pub(crate) fn packed<O: Packed, I: Input>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.check_sse()?;
    let b = I::read(cpu, op)?;
    let result = O::xmm(cpu.fpu.xmm(op.dst), b, op.imm as u8);
    cpu.fpu.set_xmm(op.dst, result);
    Ok(())
}

/// `O mm, input(, imm)`.
pub(crate) fn packed_mm<O: Packed, I: Input>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.check_mmx_waiting()?;
    let b = I::read(cpu, op)? as u64;
    cpu.fpu.enter_mmx();
    let result = O::mm(cpu.fpu.mm(op.dst), b, op.imm as u8);
    cpu.fpu.set_mm(op.dst, result);
    Ok(())
}
