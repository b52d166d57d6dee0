//! A decoded instruction: a handler and its operands, in 32 bytes.
//!
//! Handlers are ordinary functions, made for each form of an instruction at compile time: what kind of
//! operands it has, how wide they are and how an address is put together is in the type parameters, so
//! that nothing is asked twice.

use crate::{Cpu, Trap};

/// Executes one instruction.
///
/// # Errors
/// [`Trap`]: it did not retire and, but for what the architecture says otherwise (accessed bits, finished
/// iterations of a string instruction), it changed nothing.
pub type Handler = fn(&mut Cpu, &Op) -> Result<(), Trap>;

/// A decoded instruction.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Op {
    /// What it does.
    pub run: Handler,
    /// Immediate operand, sign-extended to 64 bits, or a handler's own.
    pub imm: u64,
    /// Displacement of the memory operand, sign-extended; relative to [`slot::BLOCK`] if its base is RIP.
    /// For a branch: the target, relative to [`slot::BLOCK`].
    pub disp: u64,
    /// First register operand (see [`slot`]), or a handler's own.
    pub dst: u8,
    /// Second register operand, or a handler's own.
    pub src: u8,
    /// Base register of the memory operand.
    pub base: u8,
    /// Index register of the memory operand.
    pub index: u8,
    /// Bits 0-1: log2 of the index's scale. Bits 2-7: the slot of the segment base.
    pub scale_segment: u8,
    /// A handler's own.
    pub extra: u8,
    /// Distance of its first byte from the block's.
    pub start: u8,
    /// Its length in bytes.
    pub len: u8,
}

impl Op {
    /// One that does nothing, without operands.
    pub(crate) const NOTHING: Self = Self {
        run: crate::execute::transfer::nothing,
        imm: 0,
        disp: 0,
        dst: 0,
        src: 0,
        base: slot::ZERO,
        index: slot::ZERO,
        scale_segment: slot::ZERO << 2,
        extra: 0,
        start: 0,
        len: 0,
    };
}

/// Slots of [`Cpu::regs`].
pub mod slot {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15 are 0 to 15, as instructions encode them.
    pub const RAX: u8 = 0;
    /// RCX.
    pub const RCX: u8 = 1;
    /// RDX.
    pub const RDX: u8 = 2;
    /// RBX.
    pub const RBX: u8 = 3;
    /// RSP.
    pub const RSP: u8 = 4;
    /// RBP.
    pub const RBP: u8 = 5;
    /// RSI.
    pub const RSI: u8 = 6;
    /// RDI.
    pub const RDI: u8 = 7;
    /// R11.
    pub const R11: u8 = 11;
    /// Always zero: the base or index a memory operand has not, and flat segments.
    pub const ZERO: u8 = 16;
    /// Virtual address of the first byte of the block that runs: RIP-relative operands count from here.
    pub const BLOCK: u8 = 17;
    /// Base of ES; the other five follow: CS, SS, DS, FS, GS.
    pub const SEGMENTS: u8 = 18;
    /// Base of FS.
    pub const FS: u8 = SEGMENTS + 4;
    /// Base of GS.
    pub const GS: u8 = SEGMENTS + 5;
    /// Always zero, too: the flat segment of an operand whose address is cut to 32 bits, and so is canonical.
    pub const FLAT_NARROW: u8 = SEGMENTS + 6;
    /// Slots there are; a power of two, so that masking takes the place of bounds checks.
    pub const COUNT: usize = 32;
    /// In [`super::Op::index`] of a [`super::Narrow`] operand: its offset is cut to 16 bits, not 32.
    pub const SHORT: u8 = 0x40;
    /// In [`super::Op::dst`] and [`super::Op::src`] of byte instructions: bits 8 to 15 of register 0 to 3
    /// (AH, CH, DH, BH).
    pub const HIGH: u8 = 0x80;
}

/// How a memory operand's address is put together.
pub trait Address {
    /// The linear address of `op`'s memory operand.
    fn linear(cpu: &Cpu, op: &Op) -> u64;
}

/// Base and displacement only, 64-bit, flat segment.
#[derive(Debug)]
pub struct Simple;
/// Everything, 64-bit.
#[derive(Debug)]
pub struct Full;
/// Everything, with the offset cut to 32 bits (16 with [`slot::SHORT`]) before the segment base is added:
/// address-size prefix, and compatibility mode.
#[derive(Debug)]
pub struct Narrow;

impl Address for Simple {
    #[inline(always)]
    fn linear(cpu: &Cpu, op: &Op) -> u64 {
        cpu.slot(op.base).wrapping_add(op.disp)
    }
}

impl Address for Full {
    #[inline(always)]
    fn linear(cpu: &Cpu, op: &Op) -> u64 {
        offset(cpu, op).wrapping_add(cpu.slot(op.scale_segment >> 2))
    }
}

impl Address for Narrow {
    #[inline(always)]
    fn linear(cpu: &Cpu, op: &Op) -> u64 {
        let linear = narrow_offset(cpu, op).wrapping_add(cpu.slot(op.scale_segment >> 2));
        if cpu.long_code {
            linear
        } else {
            linear & 0xffff_ffff
        }
    }
}

/// As [`offset`], cut to what a [`Narrow`] address has.
#[inline(always)]
pub fn narrow_offset(cpu: &Cpu, op: &Op) -> u64 {
    // The flag is 64: four times too much of a shift by 16.
    let mask = u32::MAX >> ((op.index & slot::SHORT) >> 2);
    offset(cpu, op) & u64::from(mask)
}

/// Base, index and displacement, without segment (what `lea` wants).
#[inline(always)]
pub fn offset(cpu: &Cpu, op: &Op) -> u64 {
    cpu.slot(op.base)
        .wrapping_add(cpu.slot(op.index) << (op.scale_segment & 3))
        .wrapping_add(op.disp)
}

const _: () = assert!(size_of::<Op>() == 32);
