//! Ports: IN, OUT, INS, OUTS (SDM volume 1, chapter 19).
//!
//! With a REP prefix each iteration counts as an instruction that goes to itself.

use super::branch::next;
use super::loose::{self, NARROW, cut};
use crate::cpu::segment;
use crate::flags;
use crate::op::{Op, slot};
use crate::trap::Space;
use crate::{Cpu, Trap};

/// Where the I/O map's offset is in the TSS.
const MAP_OFFSET: u64 = 0x66;

impl Cpu {
    /// Refuses `size` ports from `port` on that the program may not have: by IOPL, then by the TSS's map.
    fn check_port(&mut self, port: u16, size: u64) -> Result<(), Trap> {
        if self.cpl <= self.iopl() {
            return Ok(());
        }
        let tss = self.segments[segment::TR];
        let limit = u64::from(tss.limit);
        if limit < MAP_OFFSET + 1 {
            return Err(self.general_protection(0));
        }
        let at = |offset: u64| tss.base.wrapping_add(offset);
        let map: u16 = self.as_supervisor(|cpu| cpu.load(at(MAP_OFFSET)))?;
        let offset = u64::from(map) + u64::from(port / 8);
        if offset + 1 > limit {
            return Err(self.general_protection(0));
        }
        let allowed: u16 = self.as_supervisor(|cpu| cpu.load(at(offset)))?;
        let mask = (1u16 << size) - 1;
        if allowed >> (port % 8) & mask != 0 {
            return Err(self.general_protection(0));
        }
        Ok(())
    }
}

/// The port: an immediate, or DX if [`Op::dst`] is 1.
fn port(cpu: &Cpu, op: &Op) -> u16 {
    if op.dst == 1 {
        cpu.slot(slot::RDX) as u16
    } else {
        op.imm as u16
    }
}

/// `in`.
pub(crate) fn read(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let (port, size) = (port(cpu, op), loose::size(op));
    cpu.check_port(port, size)?;
    let value = cpu.read_outside(Space::Port, port.into(), size as u8)?;
    cpu.set_sized(slot::RAX, value, size);
    Ok(())
}

/// `out`.
pub(crate) fn write(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let (port, size) = (port(cpu, op), loose::size(op));
    cpu.check_port(port, size)?;
    let value = cut(cpu.slot(slot::RAX), size);
    cpu.write_outside(Space::Port, port.into(), size as u8, value)
}

/// [`Op::extra`]: string registers of 16 bits.
pub(crate) const SHORT: u8 = 0x20;

/// Bytes of the string registers.
fn width(op: &Op) -> u64 {
    match op.extra & (NARROW | SHORT) {
        0 => 8,
        NARROW => 4,
        _ => 2,
    }
}

/// Linear address of the string element `register` points to, in the segment whose base is in [`Op::base`].
fn element(cpu: &Cpu, op: &Op, register: u8) -> u64 {
    let offset = cut(cpu.slot(register), width(op));
    let linear = offset.wrapping_add(cpu.slot(op.base));
    if cpu.long_code {
        linear
    } else {
        linear & 0xffff_ffff
    }
}

/// Whether a string instruction with a REP prefix ([`Op::dst`] 1) is at its end.
fn is_done(cpu: &Cpu, op: &Op) -> bool {
    op.dst == 1 && cut(cpu.slot(slot::RCX), width(op)) == 0
}

/// After an iteration: the pointer moves on, the count goes down, the instruction goes to itself unless
/// that was the last.
fn advance(cpu: &mut Cpu, op: &Op, register: u8) {
    let size = loose::size(op);
    let step = if cpu.system_flags & flags::DF != 0 {
        size.wrapping_neg()
    } else {
        size
    };
    let width = width(op);
    cpu.set_sized(register, cpu.slot(register).wrapping_add(step), width);
    if op.dst == 1 {
        let left = cut(cpu.slot(slot::RCX).wrapping_sub(1), width);
        cpu.set_sized(slot::RCX, left, width);
        if left != 0 {
            cpu.next_rip = next(cpu, op).wrapping_sub(op.len.into());
        }
    }
}

/// `insb`, `insw`, `insd`.
pub(crate) fn read_string(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    if is_done(cpu, op) {
        return Ok(());
    }
    let (port, size) = (cpu.slot(slot::RDX) as u16, loose::size(op));
    cpu.check_port(port, size)?;
    let address = element(cpu, op, slot::RDI);
    cpu.check_writable(address, size)?;
    let value = cpu.read_outside(Space::Port, port.into(), size as u8)?;
    cpu.store_sized(address, value, size)?;
    advance(cpu, op, slot::RDI);
    Ok(())
}

/// `outsb`, `outsw`, `outsd`.
pub(crate) fn write_string(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    if is_done(cpu, op) {
        return Ok(());
    }
    let (port, size) = (cpu.slot(slot::RDX) as u16, loose::size(op));
    cpu.check_port(port, size)?;
    let address = element(cpu, op, slot::RSI);
    let value = cpu.load_sized(address, size)?;
    cpu.write_outside(Space::Port, port.into(), size as u8, value)?;
    advance(cpu, op, slot::RSI);
    Ok(())
}
