//! Stack instructions beyond PUSH and POP of a register: POP to memory, ENTER, LEAVE, PUSHA, POPA.

use super::operand::{Mem, Place};
use crate::op::{Address, Op, slot};
use crate::word::Word;
use crate::{Cpu, Trap};

/// `pop memory`. An address made with RSP is made with its value after the pop.
pub(crate) fn pop_memory<W: Word, A: Address>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let before = cpu.slot(slot::RSP);
    let (value, rsp) = cpu.peek::<W>()?;
    cpu.set_slot(slot::RSP, rsp);
    <Mem<A>>::write(cpu, op, value).inspect_err(|_| cpu.set_slot(slot::RSP, before))
}

/// `leave`.
pub(crate) fn leave<W: Word>(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    let (frame, address) = cpu.stack(cpu.slot(slot::RBP));
    let value: W = cpu.load(address).map_err(|trap| cpu.stack_trap(trap))?;
    let rsp = cpu.stack(frame.wrapping_add(W::BYTES)).0;
    cpu.set_slot(slot::RSP, rsp);
    value.set(cpu, slot::RBP);
    Ok(())
}

/// `enter bytes, level`: bytes in [`Op::imm`], level (cut to 5 bits) in [`Op::extra`].
///
/// As the last thing it checks that the new top of the stack can be written (SDM volume 2A, ENTER).
pub(crate) fn enter<W: Word>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let level = u64::from(op.extra % 32);
    let (rsp, rbp) = (cpu.slot(slot::RSP), cpu.slot(slot::RBP));
    let frame = below::<W>(cpu, rsp, 1).0;
    let words = level + 1;
    let top = cpu.stack(below::<W>(cpu, rsp, words).0.wrapping_sub(op.imm));
    check_enter::<W>(cpu, level, top.1).map_err(|trap| cpu.stack_trap(trap))?;
    // Nothing can fail any more. What is pushed may lie over the pointers copied: one after the other.
    cpu.store(below::<W>(cpu, rsp, 1).1, W::cut(rbp))?;
    for n in 1..level {
        let pointer: W = cpu.load(below::<W>(cpu, rbp, n).1)?;
        cpu.store(below::<W>(cpu, rsp, n + 1).1, pointer)?;
    }
    if level > 0 {
        cpu.store(below::<W>(cpu, rsp, words).1, W::cut(frame))?;
    }
    cpu.set_slot(slot::RSP, top.0);
    W::cut(frame).set(cpu, slot::RBP);
    Ok(())
}

/// The stack pointer `words` below `from`, and its linear address.
fn below<W: Word>(cpu: &Cpu, from: u64, words: u64) -> (u64, u64) {
    cpu.stack(from.wrapping_sub(words.wrapping_mul(W::BYTES)))
}

/// Checks every access of an ENTER in their order.
fn check_enter<W: Word>(cpu: &mut Cpu, level: u64, top: u64) -> Result<(), Trap> {
    let (rsp, rbp) = (cpu.slot(slot::RSP), cpu.slot(slot::RBP));
    cpu.check_writable(below::<W>(cpu, rsp, 1).1, W::BYTES)?;
    for n in 1..=level {
        if n < level {
            cpu.load::<W>(below::<W>(cpu, rbp, n).1)?;
        }
        cpu.check_writable(below::<W>(cpu, rsp, n + 1).1, W::BYTES)?;
    }
    cpu.check_writable(top, W::BYTES)
}

/// `pusha`, in 32-bit code: EAX, ECX, EDX, EBX, ESP as it was, EBP, ESI, EDI.
pub(crate) fn push_all<W: Word>(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    let rsp = cpu.slot(slot::RSP);
    let at = |cpu: &Cpu, n: u64| cpu.stack(rsp.wrapping_sub((n + 1) * W::BYTES));
    for n in 0..8 {
        cpu.check_writable(at(cpu, n).1, W::BYTES)?;
    }
    for n in 0..8 {
        cpu.store(at(cpu, n).1, W::get(cpu, n as u8))?;
    }
    cpu.set_slot(slot::RSP, at(cpu, 7).0);
    Ok(())
}

/// `popa`, in 32-bit code. What was pushed for ESP is skipped.
pub(crate) fn pop_all<W: Word>(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    let rsp = cpu.slot(slot::RSP);
    let at = |cpu: &Cpu, n: u64| cpu.stack(rsp.wrapping_add(n * W::BYTES));
    let mut values = [W::cut(0); 8];
    for n in 0..8 {
        values[n as usize] = cpu.load(at(cpu, n).1)?;
    }
    for n in 0..8u8 {
        if n != slot::RSP {
            values[7 - usize::from(n)].set(cpu, n);
        }
    }
    cpu.set_slot(slot::RSP, at(cpu, 8).0);
    Ok(())
}
