//! Loads, stores and moves.

use super::host::{self, CONSTANTS, source};
use super::{C1, IE, INDEFINITE, OE, PE, UE};
use crate::execute::simd::Any;
use crate::op::{Address, Op};
use crate::{Cpu, Trap};

/// In [`Op::imm`] of a store: pop afterwards.
pub(crate) const POP: u64 = 1;
/// In [`Op::imm`] of a store: truncate, whatever the rounding control says.
pub(crate) const TRUNCATE: u64 = 2;

/// In [`Op::imm`] of a store: an empty register is popped without being stored (`fstpnce`).
pub(crate) const UNCHECKED: u64 = 4;

/// Bytes of a format.
fn size(form: u8) -> usize {
    match form {
        source::INT16 => 2,
        source::SINGLE | source::INT32 => 4,
        source::DOUBLE | source::INT64 => 8,
        _ => 10,
    }
}

/// The memory operand, of the format in [`Op::extra`].
pub(super) fn memory_operand(cpu: &mut Cpu, op: &Op) -> Result<u128, Trap> {
    let address = Any::linear(cpu, op);
    Ok(match size(op.extra) {
        2 => u128::from(cpu.load::<u16>(address)?),
        4 => u128::from(cpu.load::<u32>(address)?),
        8 => u128::from(cpu.load::<u64>(address)?),
        _ => {
            let low: u64 = cpu.load(address)?;
            let high: u16 = cpu.load(address.wrapping_add(8))?;
            u128::from(high) << 64 | u128::from(low)
        }
    })
}

/// `fld m`, `fild`, `fbld`.
pub(crate) fn load(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.check_x87_waiting()?;
    let value = memory_operand(cpu, op)?;
    let fpu = &mut cpu.fpu;
    if !fpu.is_empty(7) {
        if fpu.stack_fault(true) {
            fpu.push(INDEFINITE);
        }
        return Ok(());
    }
    let (value, status) = if op.extra == source::DECIMAL {
        (decimal(value), 0)
    } else {
        let host = host::load(op.extra, fpu.fcw, value);
        (host.st0, host.status)
    };
    // A denormal is loaded even where it is an error.
    if fpu.take_status(status, C1) || status & IE == 0 {
        fpu.push(value);
    }
    Ok(())
}

/// The register for a packed decimal, always exact. Digits above 9, whose result both manuals leave undefined
/// (FBLD), count as what their bits say.
fn decimal(image: u128) -> u128 {
    let digit = |n: u32| (image >> (n * 4) & 15) as u64;
    let magnitude = (0..18).rev().fold(0, |sum, n| sum * 10 + digit(n));
    let sign = image & 1 << 79;
    if magnitude == 0 {
        return sign;
    }
    let shift = magnitude.leading_zeros();
    sign | u128::from(0x403e - shift) << 64 | u128::from(magnitude << shift)
}

/// `fld st(i)`.
pub(crate) fn load_register(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.check_x87_waiting()?;
    let fpu = &mut cpu.fpu;
    let underflow = fpu.is_empty(op.src);
    if underflow || !fpu.is_empty(7) {
        if fpu.stack_fault(!underflow) {
            fpu.push(INDEFINITE);
        }
        return Ok(());
    }
    fpu.fsw &= !C1;
    let value = fpu.st(op.src);
    fpu.push(value);
    Ok(())
}

/// `fld1` and the other constants. [`Op::imm`]: which of [`CONSTANTS`].
pub(crate) fn load_constant(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.check_x87_waiting()?;
    let fpu = &mut cpu.fpu;
    if !fpu.is_empty(7) {
        if fpu.stack_fault(true) {
            fpu.push(INDEFINITE);
        }
        return Ok(());
    }
    let run = CONSTANTS[op.imm as usize % CONSTANTS.len()];
    let value = run(fpu.fcw, 0, 0).st0;
    fpu.fsw &= !C1;
    fpu.push(value);
    Ok(())
}

/// What a store of an empty register stores.
fn indefinite(form: u8) -> u128 {
    match form {
        source::SINGLE => 0xffc0_0000,
        source::DOUBLE => 0xfff8_0000_0000_0000,
        source::INT16 => 0x8000,
        source::INT32 => 0x8000_0000,
        source::INT64 => 0x8000_0000_0000_0000,
        // Packed decimal has the same.
        _ => INDEFINITE,
    }
}

/// `fst m`, `fist`, `fisttp`, `fbstp` and their popping forms.
pub(crate) fn store(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.check_x87_waiting()?;
    let address = Any::linear(cpu, op);
    let before = cpu.fpu;
    let fpu = &mut cpu.fpu;
    let done;
    let value;
    if fpu.is_empty(0) {
        done = fpu.stack_fault(false);
        value = indefinite(op.extra);
    } else {
        let rounding = if op.imm & TRUNCATE != 0 { 0xc00 } else { 0 };
        let host = host::store(op.extra, fpu.fcw | rounding, fpu.st(0));
        // A number that does not fit is not stored when that is an error, and then neither inexact nor
        // rounded up (SDM volume 1, 8.5.6).
        let fits = host.status & !fpu.fcw & (OE | UE) == 0;
        let hidden = if fits { 0 } else { PE | C1 };
        done = fpu.take_status(host.status & !hidden, C1) && fits;
        value = host.other;
    }
    // Whether memory can be written is found out even if nothing is.
    let stored = if done {
        store_value(cpu, address, op.extra, value)
    } else {
        cpu.check_writable(address, size(op.extra) as u64)
    };
    if stored.is_err() {
        cpu.fpu = before;
        return stored;
    }
    if done && op.imm & POP != 0 {
        cpu.fpu.pop();
    }
    Ok(())
}

fn store_value(cpu: &mut Cpu, address: u64, form: u8, value: u128) -> Result<(), Trap> {
    match size(form) {
        2 => cpu.store(address, value as u16),
        4 => cpu.store(address, value as u32),
        8 => cpu.store(address, value as u64),
        _ => {
            cpu.check_writable(address, 10)?;
            cpu.store(address, value as u64)?;
            cpu.store(address.wrapping_add(8), (value >> 64) as u16)
        }
    }
}

/// `fst st(i)`, `fstp st(i)`.
pub(crate) fn store_register(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.check_x87_waiting()?;
    let fpu = &mut cpu.fpu;
    if fpu.is_empty(0) && op.imm & UNCHECKED != 0 {
        fpu.fsw &= !C1;
        fpu.pop();
        return Ok(());
    }
    let value = if fpu.is_empty(0) {
        if !fpu.stack_fault(false) {
            return Ok(());
        }
        INDEFINITE
    } else {
        fpu.fsw &= !C1;
        fpu.st(0)
    };
    fpu.set_st(op.dst, value);
    if op.imm & POP != 0 {
        fpu.pop();
    }
    Ok(())
}

/// `fxch st(i)`.
pub(crate) fn exchange(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.check_x87_waiting()?;
    let fpu = &mut cpu.fpu;
    let other = op.src;
    if fpu.is_empty(0) || fpu.is_empty(other) {
        if !fpu.stack_fault(false) {
            return Ok(());
        }
        for n in [0, other] {
            if fpu.is_empty(n) {
                fpu.set_st(n, INDEFINITE);
            }
        }
    } else {
        fpu.fsw &= !C1;
    }
    let (a, b) = (fpu.st(0), fpu.st(other));
    fpu.set_st(0, b);
    fpu.set_st(other, a);
    Ok(())
}

/// `fcmovCC`. [`Op::imm`]: 0 to 3 for B, E, BE, U; 4 to 7 for their opposites. C1 stays, as AMD has it.
pub(crate) fn conditional(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.check_x87_waiting()?;
    let flags = cpu.arithmetic;
    let holds = match op.imm & 3 {
        0 => flags.carry(),
        1 => flags.zero(),
        2 => flags.carry() || flags.zero(),
        _ => flags.parity(),
    } != (op.imm & 4 != 0);
    let fpu = &mut cpu.fpu;
    if fpu.is_empty(0) || fpu.is_empty(op.src) {
        if fpu.stack_fault(false) {
            fpu.set_st(0, INDEFINITE);
        }
        return Ok(());
    }
    if holds {
        let value = fpu.st(op.src);
        fpu.set_st(0, value);
    }
    Ok(())
}

/// `ffree st(i)`, and `ffreep`, which also pops. [`Op::imm`]: [`POP`].
pub(crate) fn free(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.check_x87_waiting()?;
    cpu.fpu.fsw &= !C1;
    cpu.fpu.free(op.dst);
    if op.imm & POP != 0 {
        cpu.fpu.pop();
    }
    Ok(())
}

/// `fincstp` and `fdecstp`. [`Op::imm`]: what is added to TOP.
pub(crate) fn rotate(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.check_x87_waiting()?;
    let fpu = &mut cpu.fpu;
    fpu.fsw &= !C1;
    fpu.set_top(fpu.top() + op.imm as usize);
    Ok(())
}
