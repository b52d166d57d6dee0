//! Near branches: JMP, Jcc, CALL, RET, LOOP, JRCXZ.

use super::operand::Operand;
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

/// `jmp rel` with a 16-bit operand: the target is cut.
pub(crate) fn jump_short(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.next_rip = target(cpu, op) & 0xffff;
    Ok(())
}

/// `jCC rel` with a 16-bit operand.
pub(crate) fn jump_if_short<const CODE: u8>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    if cpu.arithmetic.holds::<CODE>() {
        cpu.next_rip = target(cpu, op) & 0xffff;
    }
    Ok(())
}

/// `call rel`. The direct target lies within 2 GiB of canonical code: what is not canonical faults when it
/// is fetched.
pub(crate) fn call<W: Word>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let back = W::cut(next(cpu, op));
    cpu.push(back)?;
    cpu.next_rip = W::cut(target(cpu, op)).zext();
    Ok(())
}

/// `jmp source`.
pub(crate) fn jump_to<W: Word, S: Operand>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let target: W = S::read(cpu, op)?;
    cpu.check_target(target.zext())?;
    cpu.next_rip = target.zext();
    Ok(())
}

/// `call source`. A fault of the stack comes before one of the target.
pub(crate) fn call_to<W: Word, S: Operand>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let target: W = S::read(cpu, op)?;
    if cpu.check_target(target.zext()).is_err() {
        let (_, address) = cpu.stack(cpu.slot(slot::RSP).wrapping_sub(W::BYTES));
        cpu.check_writable(address, W::BYTES)
            .map_err(|trap| cpu.stack_trap(trap))?;
        return Err(cpu.general_protection(0));
    }
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

/// What ends a loop besides its count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Until {
    /// `loop`: nothing.
    Count,
    /// `loope`: ZF is clear.
    NotEqual,
    /// `loopne`: ZF is set.
    Equal,
}

impl Until {
    /// As [`Op::extra`] has it.
    fn holds(code: u8, zero: bool) -> bool {
        code == Self::NotEqual as u8 && !zero || code == Self::Equal as u8 && zero
    }
}

/// `loop`, `loope`, `loopne` on a counter like `W`; [`Op::extra`]: an [`Until`]; [`Op::imm`]:
/// the bits a target has.
pub(crate) fn count_down<W: Word>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let count = W::cut(W::get(cpu, slot::RCX).zext().wrapping_sub(1));
    if count.zext() != 0 && !Until::holds(op.extra, cpu.arithmetic.zero()) {
        cpu.next_rip = target(cpu, op) & op.imm;
    }
    count.set(cpu, slot::RCX);
    Ok(())
}

/// `jrcxz`, `jecxz` and `jcxz`, by the counter's size; [`Op::imm`] as above.
pub(crate) fn jump_if_counted<W: Word>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    if W::get(cpu, slot::RCX).zext() == 0 {
        cpu.next_rip = target(cpu, op) & op.imm;
    }
    Ok(())
}
