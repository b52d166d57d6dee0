//! Arithmetic and comparisons on the register stack.

use super::host::{self, ARITHMETIC, Binary, source};
use super::remainder::normalised;
use super::transcendental::{INVALID, Raised, SIGN, denormals, is_infinite, is_zero, odd_one};
use super::transfer::memory_operand;
use super::wide::{INFINITY, Wide};
use super::{C0, C1, C2, C3, CONDITIONS, INDEFINITE};
use crate::flags::{Arithmetic, CF, PF, ZF};
use crate::fpu::Fpu;
use crate::op::Op;
use crate::{Cpu, Trap};

/// In [`Op::imm`]: pop once afterwards.
pub(crate) const POP: u64 = 1 << 8;
/// In [`Op::imm`]: pop twice afterwards.
pub(crate) const POP_TWICE: u64 = 2 << 8;
/// In [`Op::imm`] of a comparison: QNaNs are no error.
pub(crate) const UNORDERED: u64 = 1;
/// In [`Op::imm`] of a comparison: the result goes to RFLAGS.
pub(crate) const TO_FLAGS: u64 = 2;

fn pop_times(fpu: &mut Fpu, imm: u64) {
    for _ in 0..imm >> 8 & 3 {
        fpu.pop();
    }
}

/// The operand besides the register: memory, or ST([`Op::src`]). `None` if that is empty.
fn second(cpu: &mut Cpu, op: &Op) -> Result<Option<u128>, Trap> {
    if op.extra != source::REGISTER {
        return memory_operand(cpu, op).map(Some);
    }
    if cpu.fpu.is_empty(op.src) {
        return Ok(None);
    }
    Ok(Some(cpu.fpu.st(op.src)))
}

/// `fadd`, `fmul`, `fsub`, `fsubr`, `fdiv`, `fdivr`, with their popping and integer forms:
/// `ST(dst) = ST(dst) op source`. [`Op::extra`]: the source's format. [`Op::imm`]: which of
/// [`ARITHMETIC`], and [`POP`].
pub(crate) fn arithmetic(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.check_x87_waiting()?;
    let b = second(cpu, op)?;
    let fpu = &mut cpu.fpu;
    let result = match b {
        Some(b) if !fpu.is_empty(op.dst) => {
            let run = ARITHMETIC[op.imm as usize & 7];
            let host = run(op.extra, fpu.fcw, fpu.st(op.dst), b);
            if !fpu.take_status(host.status, C1) {
                return Ok(());
            }
            host.st0
        }
        _ => {
            if !fpu.stack_fault(false) {
                return Ok(());
            }
            INDEFINITE
        }
    };
    fpu.set_st(op.dst, result);
    pop_times(fpu, op.imm);
    Ok(())
}

/// `fcom`, `fucom`, `fcomi`, `fucomi` and their popping and integer forms: ST(0) with the source.
pub(crate) fn compare(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.check_x87_waiting()?;
    let b = second(cpu, op)?;
    let fpu = &mut cpu.fpu;
    let (conditions, done) = match b {
        Some(b) if !fpu.is_empty(0) => {
            let run: Binary = if op.imm & UNORDERED != 0 {
                host::fucom
            } else {
                host::fcom
            };
            let host = run(op.extra, fpu.fcw, fpu.st(0), b);
            let clear = if op.imm & TO_FLAGS != 0 { 0 } else { C1 };
            (
                host.status & CONDITIONS,
                fpu.take_status(host.status, clear),
            )
        }
        _ => (C0 | C2 | C3, fpu.stack_fault(false)),
    };
    if op.imm & TO_FLAGS == 0 {
        // Unmasked errors keep it from popping, not from comparing.
        fpu.fsw = fpu.fsw & !(C0 | C2 | C3) | conditions & !C1;
    }
    if done {
        pop_times(fpu, op.imm);
    }
    if op.imm & TO_FLAGS != 0 {
        let flag = |condition: u16, flag: u64| if conditions & condition != 0 { flag } else { 0 };
        cpu.arithmetic = Arithmetic::from_bits(flag(C0, CF) | flag(C2, PF) | flag(C3, ZF));
    }
    Ok(())
}

/// `ftst`: ST(0) with zero.
pub(crate) fn ftst(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    cpu.check_x87_waiting()?;
    let fpu = &mut cpu.fpu;
    let conditions = if fpu.is_empty(0) {
        fpu.stack_fault(false);
        C0 | C2 | C3
    } else {
        let host = host::ftst(fpu.fcw, fpu.st(0), 0);
        fpu.take_status(host.status, C1);
        host.status
    };
    fpu.fsw = fpu.fsw & !(C0 | C2 | C3) | conditions & (C0 | C2 | C3);
    Ok(())
}

/// `fxam`: what ST(0) is; C1 is its sign, empty or not.
pub(crate) fn fxam(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    cpu.check_x87_waiting()?;
    let fpu = &mut cpu.fpu;
    let value = fpu.st(0);
    let class = if fpu.is_empty(0) {
        C3 | C0
    } else {
        let exponent = (value >> 64) as u16 & 0x7fff;
        let significand = value as u64;
        match (exponent, significand >> 63, significand << 1) {
            (0, 0, 0) => C3,
            (0, ..) => C3 | C2,
            (_, 0, _) => 0,
            (0x7fff, _, 0) => C2 | C0,
            (0x7fff, ..) => C0,
            _ => C2,
        }
    };
    let sign = if value >> 79 != 0 { C1 } else { 0 };
    fpu.fsw = fpu.fsw & !CONDITIONS | class | sign;
    Ok(())
}

/// `fsqrt`, `frndint`, `fscale`: on ST(0), and ST(1) for the last. [`Op::imm`] is the function's number in
/// [`UNARY`].
pub(crate) fn unary(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.check_x87_waiting()?;
    let fpu = &mut cpu.fpu;
    let (run, needs_two) = UNARY[op.imm as usize % UNARY.len()];
    if fpu.is_empty(0) || needs_two && fpu.is_empty(1) {
        if fpu.stack_fault(false) {
            fpu.set_st(0, INDEFINITE);
        }
        return Ok(());
    }
    let (value, status) = run(fpu.fcw, fpu.st(0), fpu.st(1));
    if fpu.take_status(status, C1) {
        fpu.set_st(0, value);
    }
    Ok(())
}

/// A function of a control word, ST(0) and ST(1).
type Function = fn(u16, u128, u128) -> Raised;

/// Functions of [`unary`], and whether they use ST(1).
const UNARY: [(Function, bool); 3] = [
    (|control, a, b| host::fsqrt(control, a, b).raised(), false),
    (|control, a, b| host::frndint(control, a, b).raised(), false),
    (scaled, true),
];

/// `fscale`: `a` times 2 to the power `b`, which is cut to an integer; in integers.
fn scaled(control: u16, a: u128, b: u128) -> Raised {
    if let Some(raised) = odd_one(a, b) {
        return raised;
    }
    let denormal = denormals(a, b);
    if is_infinite(b) {
        let grows = b & SIGN == 0;
        if grows && is_zero(a) || !grows && is_infinite(a) {
            return INVALID;
        }
        let magnitude = if grows { INFINITY } else { 0 };
        return (a & SIGN | magnitude, denormal);
    }
    if is_zero(a) || is_infinite(a) || is_zero(b) {
        // With a power of 0 not even an underflow, where that is an error.
        return (normalised(a), denormal);
    }
    let power = match (b >> 64 & 0x7fff) as i32 - 0x3fff {
        ..0 => 0,
        exponent @ 0..20 => (b as u64 >> (63 - exponent)) as i32,
        // More than every exponent there is.
        20.. => 1 << 20,
    };
    let power = if b & SIGN == 0 { power } else { -power };
    let (value, status) = Wide::of(a).scaled(power).round(control);
    (value, status | denormal)
}

/// `fxtract`: ST(0) becomes its exponent, and its significand is pushed.
pub(crate) fn fxtract(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    cpu.check_x87_waiting()?;
    let fpu = &mut cpu.fpu;
    if fpu.is_empty(0) || !fpu.is_empty(7) {
        let overflow = !fpu.is_empty(0);
        if fpu.stack_fault(overflow) {
            fpu.set_st(0, INDEFINITE);
            fpu.push(INDEFINITE);
        }
        return Ok(());
    }
    let host = host::fxtract(fpu.fcw, fpu.st(0), 0);
    if fpu.take_status(host.status, C1) {
        fpu.set_st(0, host.st1);
        fpu.push(host.st0);
    }
    Ok(())
}

/// `fabs` and `fchs`: sign bits, of NaNs too. [`Op::imm`]: 1 for the latter.
pub(crate) fn sign(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.check_x87_waiting()?;
    let fpu = &mut cpu.fpu;
    if fpu.is_empty(0) {
        if fpu.stack_fault(false) {
            fpu.set_st(0, INDEFINITE);
        }
        return Ok(());
    }
    fpu.fsw &= !C1;
    let value = fpu.st(0);
    let bit = 1 << 79;
    fpu.set_st(
        0,
        if op.imm == 1 {
            value ^ bit
        } else {
            value & !bit
        },
    );
    Ok(())
}
