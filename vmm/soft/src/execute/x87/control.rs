//! FNINIT, FLDCW, FNSTCW, FNSTSW, FNCLEX, FWAIT, FNOP, EMMS.

use super::SF;
use crate::execute::simd::Any;
use crate::fpu::{BUSY, ES, EXCEPTIONS, Fpu};
use crate::op::{Address, Op, slot};
use crate::word::Word;
use crate::{Cpu, Trap};

/// `fninit`: registers stay, they are all empty.
pub(crate) fn fninit(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    cpu.check_x87()?;
    initialise(&mut cpu.fpu);
    Ok(())
}

/// The unit as after FNINIT.
pub(super) fn initialise(fpu: &mut Fpu) {
    fpu.fcw = 0x37f;
    fpu.fsw = 0;
    fpu.tags = 0;
}

/// `fnclex`.
pub(crate) fn fnclex(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    cpu.check_x87()?;
    cpu.fpu.fsw &= !(EXCEPTIONS | SF | ES | BUSY);
    Ok(())
}

/// `fldcw`.
pub(crate) fn fldcw(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.check_x87_waiting()?;
    let value = cpu.load(Any::linear(cpu, op))?;
    cpu.fpu.set_control(value);
    Ok(())
}

/// `fnstcw`.
pub(crate) fn fnstcw(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.check_x87()?;
    cpu.store(Any::linear(cpu, op), cpu.fpu.fcw)
}

/// `fnstsw m`.
pub(crate) fn fnstsw(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.check_x87()?;
    cpu.store(Any::linear(cpu, op), cpu.fpu.fsw)
}

/// `fnstsw ax`.
pub(crate) fn fnstsw_ax(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    cpu.check_x87()?;
    cpu.fpu.fsw.set(cpu, slot::RAX);
    Ok(())
}

/// `fwait`: heeds CR0.TS only with CR0.MP, and not CR0.EM.
pub(crate) fn fwait(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    cpu.check_wait()?;
    cpu.check_no_error()
}

/// `fnop`.
pub(crate) fn fnop(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    cpu.check_x87_waiting()
}

/// `fneni`, `fndisi`, `fnsetpm`: without effect since the 387.
pub(crate) fn ignored(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    cpu.check_x87()
}

/// `emms`: every register is empty; TOP is 0, as after every MMX instruction.
pub(crate) fn emms(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    cpu.check_mmx_waiting()?;
    cpu.fpu.enter_mmx();
    cpu.fpu.tags = 0;
    Ok(())
}
