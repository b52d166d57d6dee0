//! Instructions that ask the flags or set single ones: SETcc, CMOVcc, LAHF, SAHF, CLC to STD.

use super::operand::{Operand, Place};
use crate::flags::{self, Arithmetic};
use crate::op::{Op, slot};
use crate::word::Word;
use crate::{Cpu, Trap};

/// Whether condition `code` (see [`Arithmetic::holds`]) holds.
pub(crate) fn holds(flags: Arithmetic, code: u8) -> bool {
    let holds = match code >> 1 & 7 {
        0 => flags.holds::<0>(),
        1 => flags.holds::<2>(),
        2 => flags.holds::<4>(),
        3 => flags.holds::<6>(),
        4 => flags.holds::<8>(),
        5 => flags.holds::<10>(),
        6 => flags.holds::<12>(),
        _ => flags.holds::<14>(),
    };
    holds != (code & 1 != 0)
}

/// `setCC register`.
pub(crate) fn set_if<const CODE: u8>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    u8::from(cpu.arithmetic.holds::<CODE>()).set(cpu, op.dst);
    Ok(())
}

/// `setCC place`; the condition is in [`Op::extra`].
pub(crate) fn set<D: Place>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let holds = holds(cpu.arithmetic, op.extra);
    D::write(cpu, op, u8::from(holds))
}

/// `cmovCC register, register`. The register is written (and a 32-bit one extended) either way.
pub(crate) fn move_if<W: Word, const CODE: u8>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let from = if cpu.arithmetic.holds::<CODE>() {
        op.src
    } else {
        op.dst
    };
    W::get(cpu, from).set(cpu, op.dst);
    Ok(())
}

/// `cmovCC register, source`, which is read either way; the condition is in [`Op::extra`].
pub(crate) fn conditional_move<W: Word, S: Operand>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let mut value: W = S::read(cpu, op)?;
    if !holds(cpu.arithmetic, op.extra) {
        value = W::get(cpu, op.dst);
    }
    value.set(cpu, op.dst);
    Ok(())
}

/// AH, as a byte register.
const AH: u8 = slot::HIGH;
/// The flags of AH: all arithmetic ones but OF.
const LOW_FLAGS: u64 = flags::ARITHMETIC & 0xff;

/// `lahf`.
pub(crate) fn lahf(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    (cpu.rflags() as u8).set(cpu, AH);
    Ok(())
}

/// `sahf`.
pub(crate) fn sahf(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    let low = u64::from(u8::get(cpu, AH)) & LOW_FLAGS;
    cpu.arithmetic = Arithmetic::from_bits(cpu.arithmetic.bits() & flags::OF | low);
    Ok(())
}

/// `clc`.
pub(crate) fn clc(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    cpu.arithmetic = cpu.arithmetic.with_carry(false);
    Ok(())
}

/// `stc`.
pub(crate) fn stc(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    cpu.arithmetic = cpu.arithmetic.with_carry(true);
    Ok(())
}

/// `cmc`.
pub(crate) fn cmc(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    cpu.arithmetic = cpu.arithmetic.with_carry(!cpu.arithmetic.carry());
    Ok(())
}

/// `cld`.
pub(crate) fn cld(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    cpu.system_flags &= !flags::DF;
    Ok(())
}

/// `std`.
pub(crate) fn std(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    cpu.system_flags |= flags::DF;
    Ok(())
}
