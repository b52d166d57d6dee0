//! Control transfers between segments and privileges: INT, IRET, SYSCALL, SYSRET, far JMP, CALL and RET
//! (SDM volume 2, and volume 3 chapter 5; AMD's rules for SYSCALL and SYSRET, APM volume 3).

use super::branch::next;
use super::exceptions::{Interruption, Origin};
use super::loose::{self, cut};
use super::segments::{Descriptor, attribute, is_null, named, null_segment, system_type};
use crate::cpu::{Segment, bits, segment};
use crate::flags;
use crate::op::{Op, slot};
use crate::trap::{Cause, vector};
use crate::watch::Transfer;
use crate::{Cpu, Trap};

/// Flags IRET and POPF load at any privilege.
const USER_FLAGS: u64 =
    flags::ARITHMETIC | flags::TF | flags::DF | flags::NT | flags::AC | flags::ID;

/// Flat 64-bit code, present, accessed; DPL 0.
const CODE_64: u16 = 0xa9b;
/// Flat 32-bit code, present, accessed; DPL 0.
const CODE_32: u16 = 0xc9b;
/// Flat data, present, accessed, writable; DPL 0.
const DATA: u16 = 0xc93;

fn flat(selector: u16, attributes: u16, dpl: u16) -> Segment {
    Segment {
        base: 0,
        limit: u32::MAX,
        selector,
        attributes: attributes | dpl << 5,
    }
}

impl Cpu {
    /// Flags POPF may change at the present privilege.
    pub(crate) fn flags_writable(&self) -> u64 {
        let mut mask = USER_FLAGS;
        if self.cpl <= self.iopl() {
            mask |= flags::IF;
        }
        if self.cpl == 0 {
            mask |= flags::IOPL;
        }
        mask
    }

    /// Sets the flags in `mask` from `value`.
    pub(crate) fn load_flags(&mut self, value: u64, mask: u64) {
        self.set_rflags(self.rflags() & !mask | value & mask);
    }

    /// The code segment a return to `selector` goes to.
    fn return_segment(&mut self, selector: u16) -> Result<Descriptor, Trap> {
        if is_null(selector) {
            return Err(self.general_protection(0));
        }
        let found = self.descriptor(selector, vector::GP, 0)?;
        let rpl = (selector & 3) as u8;
        let fits = if found.has(attribute::CONFORMING) {
            found.dpl() <= rpl
        } else {
            found.dpl() == rpl
        };
        if !found.is_code() || rpl < self.cpl || !fits {
            return Err(self.general_protection(named(selector)));
        }
        if !found.has(attribute::PRESENT) {
            return Err(self.raise_with(vector::NP, named(selector)));
        }
        self.check_code_size(found, selector, 0)?;
        Ok(found)
    }

    /// Refuses an instruction pointer the code segment does not reach.
    fn check_entry(&mut self, code: Descriptor, rip: u64) -> Result<(), Trap> {
        if code.has(attribute::LONG) {
            return self.check_target(rip);
        }
        if rip > u64::from(code.limit()) {
            return Err(self.general_protection(0));
        }
        Ok(())
    }

    /// After a step that ends what TF began: no trap for this instruction.
    fn untraced_if_traced(&mut self) {
        self.untraced = self.system_flags & flags::TF != 0;
    }
}

/// `int`, `int3`, `into` (if OF), `int1`: vector in [`Op::imm`]; [`Op::dst`] is 1 for `int1`, which does not
/// heed the gate's privilege, and 2 for `into`.
pub(crate) fn interrupt(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    if op.dst == 2 && !cpu.arithmetic.overflow() {
        return Ok(());
    }
    let event = Interruption {
        vector: op.imm as u8,
        error: None,
        origin: if op.dst == 1 {
            Origin::Hardware
        } else {
            Origin::Software
        },
        rip: next(cpu, op),
        rflags: cpu.rflags() & !flags::RF,
    };
    let traced = cpu.system_flags & flags::TF != 0;
    cpu.deliver(event)?;
    cpu.untraced = traced;
    Ok(())
}

/// `iret`, `iretd`, `iretq`: operand size in [`Op::extra`].
pub(crate) fn iret(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    if cpu.system_flags & flags::NT != 0 {
        return Err(cpu.general_protection(0));
    }
    let size = loose::size(op);
    let rip = cpu.stacked(0, size)?;
    let selector = cpu.stacked(size, size)? as u16;
    let rflags = cpu.stacked(2 * size, size)?;
    let mut code = cpu.return_segment(selector)?;
    let cpl = (selector & 3) as u8;
    let outer = cpl > cpu.cpl;
    let long = code.has(attribute::LONG);
    // 64-bit code pops the stack whatever its privilege.
    let stack = if outer || cpu.long_code {
        let rsp = cpu.stacked(3 * size, size)?;
        let ss = cpu.stacked(4 * size, size)? as u16;
        Some((rsp, cpu.stack_segment(ss, cpl, long, vector::GP)?))
    } else {
        None
    };
    cpu.check_entry(code, rip)?;
    cpu.mark_accessed(&mut code)?;
    let mut mask = cpu.flags_writable() | flags::RF;
    if cpu.cpl == 0 {
        mask |= flags::VIF | flags::VIP;
    }
    if size == 2 {
        mask &= 0xffff;
    }
    let rsp = cpu.slot(slot::RSP).wrapping_add(3 * size);
    let rsp = cpu.stack(rsp).0;
    cpu.set_slot(slot::RSP, rsp);
    if let Some((rsp, ss)) = stack {
        cpu.set_slot(slot::RSP, rsp);
        cpu.segments[segment::SS] = ss;
    }
    cpu.load_flags(rflags, mask);
    cpu.set_code_segment(code.segment(selector), cpl);
    if outer {
        cpu.drop_inner_segments(cpl);
        cpu.refresh_mode();
    }
    cpu.next_rip = rip;
    cpu.transfer = Some(Transfer::Return);
    Ok(())
}

/// `syscall`.
pub(crate) fn syscall(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    if cpu.control.efer & bits::EFER_SCE == 0 {
        return Err(cpu.undefined());
    }
    let entry = if cpu.long_code {
        cpu.msrs.lstar
    } else {
        cpu.msrs.cstar
    };
    let back = next(cpu, op);
    let rflags = cpu.rflags() & !flags::RF;
    let selector = (cpu.msrs.star >> 32) as u16 & !3;
    cpu.untraced_if_traced();
    cpu.set_slot(slot::RCX, back);
    cpu.set_slot(slot::R11, rflags);
    cpu.segments[segment::SS] = flat(selector.wrapping_add(8), DATA, 0);
    cpu.set_rflags(rflags & !cpu.msrs.fmask);
    cpu.set_code_segment(flat(selector, CODE_64, 0), 0);
    cpu.next_rip = entry;
    cpu.transfer = Some(Transfer::Call);
    cpu.traced_after()
}

/// `sysret` to 64-bit code ([`Op::extra`] 8) or compatibility mode (4).
///
/// As on AMD, a return address that is not canonical faults when it is fetched, in ring 3, and the stack
/// segment keeps what it had but for selector and privilege.
pub(crate) fn sysret(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    if cpu.control.efer & bits::EFER_SCE == 0 {
        return Err(cpu.undefined());
    }
    cpu.check_ring_0()?;
    let base = (cpu.msrs.star >> 48) as u16;
    let rcx = cpu.slot(slot::RCX);
    let (selector, attributes, rip) = if loose::size(op) == 8 {
        (base.wrapping_add(16), CODE_64, rcx)
    } else {
        (base, CODE_32, rcx & 0xffff_ffff)
    };
    cpu.untraced_if_traced();
    let ss = &mut cpu.segments[segment::SS];
    ss.selector = base.wrapping_add(8) | 3;
    ss.attributes |= 3 << 5;
    let dropped = flags::RF | flags::VM;
    let known = USER_FLAGS | flags::IF | flags::IOPL | flags::VIF | flags::VIP;
    cpu.set_rflags(cpu.slot(slot::R11) & known & !dropped);
    cpu.set_code_segment(flat(selector, attributes, 3), 3);
    cpu.next_rip = rip;
    cpu.transfer = Some(Transfer::Return);
    cpu.traced_after()
}

impl Cpu {
    /// SYSCALL and SYSRET trap for the TF they leave, not the one they find.
    fn traced_after(&mut self) -> Result<(), Trap> {
        if self.system_flags & flags::TF == 0 {
            return Ok(());
        }
        Err(self.stop(Cause::Stepped))
    }

    /// The selector and offset of a far branch: direct in [`Op::imm`] (offset, selector above it) or in
    /// memory.
    fn far_pointer(&mut self, op: &Op) -> Result<(u16, u64), Trap> {
        if !loose::in_memory(op) {
            return Ok(((op.imm >> 32) as u16, op.imm & 0xffff_ffff));
        }
        let size = loose::size(op);
        let address = loose::linear(self, op);
        let offset = self.load_sized(address, size)?;
        let selector = self.load::<u16>(address.wrapping_add(size))?;
        Ok((selector, offset))
    }

    /// Refuses a code segment that a far branch may not reach directly.
    fn check_direct(&mut self, code: Descriptor, selector: u16) -> Result<(), Trap> {
        let rpl = (selector & 3) as u8;
        let fits = if code.has(attribute::CONFORMING) {
            code.dpl() <= self.cpl
        } else {
            rpl <= self.cpl && code.dpl() == self.cpl
        };
        if !fits {
            return Err(self.general_protection(named(selector)));
        }
        if !code.has(attribute::PRESENT) {
            return Err(self.raise_with(vector::NP, named(selector)));
        }
        self.check_code_size(code, selector, 0)
    }

    /// The code segment and entry behind a 64-bit call gate.
    fn call_gate(
        &mut self,
        gate: Descriptor,
        selector: u16,
    ) -> Result<(u16, Descriptor, u64), Trap> {
        let rpl = (selector & 3) as u8;
        if gate.dpl() < self.cpl.max(rpl) {
            return Err(self.general_protection(named(selector)));
        }
        if !gate.has(attribute::PRESENT) {
            return Err(self.raise_with(vector::NP, named(selector)));
        }
        let upper = self.descriptor_upper(selector, vector::GP)?;
        let entry = gate.raw & 0xffff | gate.raw >> 32 & 0xffff_0000 | upper << 32;
        let target = (gate.raw >> 16) as u16;
        if is_null(target) {
            return Err(self.general_protection(0));
        }
        let code = self.descriptor(target, vector::GP, 0)?;
        let long = code.has(attribute::LONG) && !code.has(attribute::BIG);
        if !code.is_code() || code.dpl() > self.cpl || !long {
            return Err(self.general_protection(named(target)));
        }
        if !code.has(attribute::PRESENT) {
            return Err(self.raise_with(vector::NP, named(target)));
        }
        self.check_target(entry)?;
        Ok((target, code, entry))
    }

    /// Checks, then writes `words` of `size` bytes below `top` (a stack pointer), the first one highest.
    fn push_words(&mut self, top: u64, words: &[u64], size: u64) -> Result<u64, Trap> {
        let length = words.len() as u64 * size;
        let (rsp, address) = self.stack(top.wrapping_sub(length));
        let mut write = || {
            self.check_writable(address, length)?;
            for (n, word) in words.iter().rev().enumerate() {
                self.store_sized(address.wrapping_add(n as u64 * size), *word, size)?;
            }
            Ok(())
        };
        let result = write();
        result.map_err(|trap| self.as_stack_fault(trap))?;
        Ok(rsp)
    }
}

/// Far `jmp` and, with [`Op::dst`] 1, far `call`.
pub(crate) fn branch(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let (selector, offset) = cpu.far_pointer(op)?;
    let call = op.dst == 1;
    if is_null(selector) {
        return Err(cpu.general_protection(0));
    }
    let found = cpu.descriptor(selector, vector::GP, 0)?;
    match found.system_type() {
        None if found.is_code() => {}
        Some(system_type::CALL_GATE) => return through_gate(cpu, op, found, selector),
        // Task gates and task switches do not exist in long mode.
        _ => return Err(cpu.general_protection(named(selector))),
    }
    let mut code = found;
    cpu.check_direct(code, selector)?;
    cpu.check_entry(code, offset)?;
    cpu.mark_accessed(&mut code)?;
    if call {
        let size = loose::size(op);
        let back = [cpu.segments[segment::CS].selector.into(), next(cpu, op)];
        let rsp = cpu.push_words(cpu.slot(slot::RSP), &back, size)?;
        cpu.set_slot(slot::RSP, rsp);
    }
    cpu.set_code_segment(code.segment(selector), cpu.cpl);
    cpu.next_rip = offset;
    Ok(())
}

/// A far branch through a call gate.
fn through_gate(cpu: &mut Cpu, op: &Op, gate: Descriptor, selector: u16) -> Result<(), Trap> {
    let call = op.dst == 1;
    let (target, mut code, entry) = cpu.call_gate(gate, selector)?;
    let conforming = code.has(attribute::CONFORMING);
    let inner = call && !conforming && code.dpl() < cpu.cpl;
    if !call && !conforming && code.dpl() != cpu.cpl {
        return Err(cpu.general_protection(named(target)));
    }
    let cpl = if inner { code.dpl() } else { cpu.cpl };
    let (ss, rsp) = (cpu.segments[segment::SS].selector, cpu.slot(slot::RSP));
    let cs = cpu.segments[segment::CS].selector;
    let words = [ss.into(), rsp, cs.into(), next(cpu, op)];
    let mut after = rsp;
    cpu.mark_accessed(&mut code)?;
    if inner {
        let top = cpu.tss_stack(4 + u64::from(cpl) * 8, 0)?;
        after = cpu.push_frame(&words, cpl, top, 0)?;
    } else if call {
        after = cpu.push_frame(&words[2..], cpl, rsp, 0)?;
    }
    if inner {
        cpu.segments[segment::SS] = null_segment(cpl.into(), cpl);
    }
    cpu.set_slot(slot::RSP, after);
    cpu.set_code_segment(code.segment(target), cpl);
    cpu.next_rip = entry;
    Ok(())
}

/// Far `ret`: bytes of parameters in [`Op::imm`].
pub(crate) fn ret(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let size = loose::size(op);
    let rip = cpu.stacked(0, size)?;
    let selector = cpu.stacked(size, size)? as u16;
    let mut code = cpu.return_segment(selector)?;
    let cpl = (selector & 3) as u8;
    let outer = cpl > cpu.cpl;
    let after = 2 * size + op.imm;
    let stack = if outer {
        let rsp = cpu.stacked(after, size)?;
        let ss = cpu.stacked(after + size, size)? as u16;
        let long = code.has(attribute::LONG);
        let ss = cpu.stack_segment(ss, cpl, long, vector::GP)?;
        (rsp.wrapping_add(op.imm), Some(ss))
    } else {
        (cpu.stack(cpu.slot(slot::RSP).wrapping_add(after)).0, None)
    };
    cpu.check_entry(code, rip)?;
    cpu.mark_accessed(&mut code)?;
    cpu.set_slot(slot::RSP, cut(stack.0, if cpu.long_code { 8 } else { 4 }));
    if let Some(ss) = stack.1 {
        cpu.segments[segment::SS] = ss;
    }
    cpu.set_code_segment(code.segment(selector), cpl);
    if outer {
        cpu.drop_inner_segments(cpl);
        cpu.refresh_mode();
    }
    cpu.next_rip = rip;
    Ok(())
}
