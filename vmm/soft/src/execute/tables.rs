//! Descriptor tables and segment registers: LGDT, LIDT, LLDT, LTR and their opposites, moves to and from
//! segment registers, LAR, LSL, VERR, VERW, ARPL.

use super::loose;
use super::segments::{Descriptor, attribute, is_null, named, null_segment, system_type};
use crate::cpu::{Table, segment};
use crate::flags;
use crate::op::{Op, slot};
use crate::trap::vector;
use crate::{Cpu, Trap};

/// `lgdt` and, with [`Op::dst`] 1, `lidt`.
pub(crate) fn load_table(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.check_ring_0()?;
    let address = loose::linear(cpu, op);
    let limit = cpu.load::<u16>(address)?;
    let size = if cpu.long_code { 8 } else { 4 };
    let base = cpu.load_sized(address.wrapping_add(2), size)?;
    cpu.check_target(base)?;
    let table = Table { base, limit };
    if op.dst == 1 {
        cpu.idt = table;
    } else {
        cpu.gdt = table;
    }
    Ok(())
}

/// `sgdt` and, with [`Op::dst`] 1, `sidt`.
pub(crate) fn store_table(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let table = if op.dst == 1 { cpu.idt } else { cpu.gdt };
    let address = loose::linear(cpu, op);
    let size = if cpu.long_code { 8 } else { 4 };
    cpu.check_writable(address, size + 2)?;
    cpu.store::<u16>(address, table.limit)?;
    cpu.store_sized(address.wrapping_add(2), table.base, size)
}

/// `sldt` and, with [`Op::dst`] [`segment::TR`], `str`.
pub(crate) fn store_system(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let selector = cpu.segments[usize::from(op.dst & 7)].selector;
    cpu.set_loose_selector(op, selector.into())
}

/// `lldt`.
pub(crate) fn lldt(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.check_ring_0()?;
    let selector = cpu.loose_selector(op)?;
    if is_null(selector) {
        cpu.segments[segment::LDTR] = null_segment(selector, 0);
        return Ok(());
    }
    let (found, upper) = cpu.system_descriptor(selector, system_type::LDT)?;
    cpu.segments[segment::LDTR] = found.segment(selector);
    cpu.segments[segment::LDTR].base |= upper << 32;
    Ok(())
}

/// `ltr`.
pub(crate) fn ltr(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.check_ring_0()?;
    let selector = cpu.loose_selector(op)?;
    if is_null(selector) {
        return Err(cpu.general_protection(0));
    }
    let (mut found, upper) = cpu.system_descriptor(selector, system_type::TSS_AVAILABLE)?;
    found.raw |= u64::from(system_type::TSS_BUSY) << 40;
    let byte = (found.raw >> 40) as u8;
    cpu.as_supervisor(|cpu| cpu.store::<u8>(found.address.wrapping_add(5), byte))?;
    cpu.segments[segment::TR] = found.segment(selector);
    cpu.segments[segment::TR].base |= upper << 32;
    Ok(())
}

impl Cpu {
    /// The present system descriptor of type `kind` in the GDT at `selector`, and its upper half.
    fn system_descriptor(&mut self, selector: u16, kind: u16) -> Result<(Descriptor, u64), Trap> {
        if selector & 4 != 0 {
            return Err(self.general_protection(named(selector)));
        }
        let found = self.descriptor(selector, vector::GP, 0)?;
        if found.system_type() != Some(kind) {
            return Err(self.general_protection(named(selector)));
        }
        if !found.has(attribute::PRESENT) {
            return Err(self.raise_with(vector::NP, named(selector)));
        }
        let upper = self.descriptor_upper(selector, vector::GP)?;
        self.check_target(found.base() | upper << 32)?;
        Ok((found, upper))
    }

    /// Loads segment register `register` with `selector`; no interrupt and no single-step trap comes
    /// right after SS was loaded.
    fn load_segment(&mut self, register: usize, selector: u16) -> Result<(), Trap> {
        let found = self.movable_segment(register, selector)?;
        self.set_segment(register, found);
        if register == segment::SS {
            self.shadow = true;
            self.untraced = self.system_flags & flags::TF != 0;
        }
        Ok(())
    }

    /// The descriptor LAR, LSL, VERR and VERW judge: `None` if the program may not see it.
    fn visible(&mut self, selector: u16) -> Result<Option<Descriptor>, Trap> {
        if is_null(selector) {
            return Ok(None);
        }
        let Some(found) = self.find_descriptor(selector)? else {
            return Ok(None);
        };
        let conforming = attribute::CODE | attribute::CONFORMING;
        let free = found.has(attribute::MEMORY) && found.attributes() & conforming == conforming;
        let rpl = (selector & 3) as u8;
        Ok((free || found.dpl() >= self.cpl.max(rpl)).then_some(found))
    }

    fn set_zf(&mut self, zero: bool) {
        let zf = if zero { flags::ZF } else { 0 };
        self.load_flags(zf, flags::ZF);
    }
}

/// `mov segment, source`: register in [`Op::dst`].
pub(crate) fn to_segment(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let selector = cpu.loose_selector(op)?;
    cpu.load_segment(op.dst.into(), selector)
}

/// `push segment`: operand size in [`Op::extra`].
pub(crate) fn push_segment(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let selector = cpu.segments[usize::from(op.dst & 7)].selector;
    cpu.push_sized(selector.into(), loose::size(op))
}

/// `pop segment`: operand size in [`Op::extra`].
pub(crate) fn pop_segment(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let size = loose::size(op);
    let selector = cpu.stacked(0, size)? as u16;
    // What SS is afterwards does not change how wide the pointer is.
    let rsp = cpu.stack(cpu.slot(slot::RSP).wrapping_add(size)).0;
    cpu.load_segment(op.dst.into(), selector)?;
    cpu.set_slot(slot::RSP, rsp);
    Ok(())
}

/// `lss`, `lfs`, `lgs`, `lds`, `les`: segment register in [`Op::imm`], general one in [`Op::dst`].
pub(crate) fn load_pointer(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let size = loose::size(op);
    let address = loose::linear(cpu, op);
    let offset = cpu.load_sized(address, size)?;
    let selector = cpu.load::<u16>(address.wrapping_add(size))?;
    cpu.load_segment(op.imm as usize & 7, selector)?;
    cpu.set_sized(op.dst, offset, size);
    Ok(())
}

/// `lar`: destination in [`Op::dst`], its size in [`Op::imm`]. Bits 16 to 19, which are undefined, read
/// as 0.
pub(crate) fn lar(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let selector = cpu.loose_selector(op)?;
    let found = cpu.visible(selector)?.filter(|d| {
        let known = [
            system_type::LDT,
            system_type::TSS_AVAILABLE,
            system_type::TSS_BUSY,
            system_type::CALL_GATE,
        ];
        d.system_type().is_none_or(|kind| known.contains(&kind))
    });
    if let Some(found) = found {
        cpu.set_sized(op.dst, found.raw >> 32 & 0x00f0_ff00, op.imm);
    }
    cpu.set_zf(found.is_some());
    Ok(())
}

/// `lsl`: as [`lar`].
pub(crate) fn lsl(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let selector = cpu.loose_selector(op)?;
    let found = cpu.visible(selector)?.filter(|d| {
        let known = [
            system_type::LDT,
            system_type::TSS_AVAILABLE,
            system_type::TSS_BUSY,
        ];
        d.system_type().is_none_or(|kind| known.contains(&kind))
    });
    if let Some(found) = found {
        cpu.set_sized(op.dst, found.limit().into(), op.imm);
    }
    cpu.set_zf(found.is_some());
    Ok(())
}

/// `verr` and, with [`Op::dst`] 1, `verw`.
pub(crate) fn verify(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let selector = cpu.loose_selector(op)?;
    let found = cpu.visible(selector)?;
    let fits = found.is_some_and(|d| {
        let readable = !d.has(attribute::CODE) || d.has(attribute::WRITE);
        if op.dst == 1 {
            d.is_writable_data()
        } else {
            d.has(attribute::MEMORY) && readable
        }
    });
    cpu.set_zf(fits);
    Ok(())
}

/// `arpl selector, register`: raises the selector's privilege number to that of the one in register
/// [`Op::dst`] (SDM volume 2A). Only 32-bit code has it.
pub(crate) fn arpl(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let wanted = cpu.slot(op.dst) & 3;
    if loose::in_memory(op) {
        cpu.check_writable(loose::linear(cpu, op), 2)?;
    }
    let selector = u64::from(cpu.loose_selector(op)?);
    let raises = selector & 3 < wanted;
    if raises {
        cpu.set_loose_selector(op, selector & !3 | wanted)?;
    }
    cpu.set_zf(raises);
    Ok(())
}
