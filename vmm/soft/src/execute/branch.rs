//! Near branches: JMP, Jcc, CALL, RET.

use super::operand::Source;
use crate::op::{Op, slot};
use crate::word::Word;
use crate::{Cpu, Trap};

/// Where a direct branch goes.
#[inline(always)]
fn target(cpu: &Cpu, op: &Op) -> u64 {
    let target = cpu.slot(slot::BLOCK).wrapping_add(op.disp);
    if cpu.long_code {
        target
    } else {
        target & 0xffff_ffff
    }
}

/// Virtual address of the instruction after `op`.
#[inline(always)]
pub(crate) fn next(cpu: &Cpu, op: &Op) -> u64 {
    cpu.slot(slot::BLOCK)
        .wrapping_add(u64::from(op.start) + u64::from(op.len))
}

impl Cpu {
    /// Refuses a branch out of the canonical addresses (SDM volume 2A, CALL).
    #[inline(always)]
    pub(crate) fn check_target(&mut self, target: u64) -> Result<(), Trap> {
        if (target as i64) << 16 >> 16 == target as i64 {
            return Ok(());
        }
        Err(self.general_protection(0))
    }
}

/// `jmp rel`.
pub(crate) fn jump(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.next_rip = target(cpu, op);
    Ok(())
}

/// `jCC rel`.
pub(crate) fn jump_if<const CODE: u8>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    if cpu.arithmetic.holds::<CODE>() {
        cpu.next_rip = target(cpu, op);
    }
    Ok(())
}

/// `call rel`. The direct target lies within 2 GiB of canonical code: what is not canonical faults when it
/// is fetched.
pub(crate) fn call<W: Word>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let back = W::cut(next(cpu, op));
    cpu.push(back)?;
    cpu.next_rip = target(cpu, op);
    Ok(())
}

/// `jmp source`.
pub(crate) fn jump_to<W: Word, S: Source>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let target: W = S::read(cpu, op)?;
    cpu.check_target(target.zext())?;
    cpu.next_rip = target.zext();
    Ok(())
}

/// `call source`.
pub(crate) fn call_to<W: Word, S: Source>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let target: W = S::read(cpu, op)?;
    cpu.check_target(target.zext())?;
    let back = W::cut(next(cpu, op));
    cpu.push(back)?;
    cpu.next_rip = target.zext();
    Ok(())
}

/// `ret` and `ret imm`.
pub(crate) fn ret<W: Word>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let (target, rsp) = cpu.peek::<W>()?;
    cpu.check_target(target.zext())?;
    let rsp = cpu.stack(rsp.wrapping_add(op.imm)).0;
    cpu.set_slot(slot::RSP, rsp);
    cpu.next_rip = target.zext();
    Ok(())
}
