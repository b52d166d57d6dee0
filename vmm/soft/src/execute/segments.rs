//! Segment descriptors: finding them, judging them, loading segment registers (SDM volume 3, chapters 3
//! and 5).
//!
//! A data segment's base counts in compatibility mode, that of FS and GS always. Limits and types are
//! judged where a register is loaded.

use crate::cpu::{Segment, bits, segment};
use crate::trap::{Cause, Exception, vector};
use crate::{Cpu, Trap};

/// Bits of [`Segment::attributes`].
pub(crate) mod attribute {
    /// Accessed.
    pub const ACCESSED: u16 = 1;
    /// Data: may be written. Code: may be read.
    pub const WRITE: u16 = 1 << 1;
    /// Code: conforming. Data: expands down.
    pub const CONFORMING: u16 = 1 << 2;
    /// It is a code segment.
    pub const CODE: u16 = 1 << 3;
    /// It is a code or data segment, not a system one.
    pub const MEMORY: u16 = 1 << 4;
    /// It is present.
    pub const PRESENT: u16 = 1 << 7;
    /// 64-bit code.
    pub const LONG: u16 = 1 << 9;
    /// 32-bit code or stack.
    pub const BIG: u16 = 1 << 10;
    /// The limit counts pages.
    pub const PAGES: u16 = 1 << 11;
    /// A null selector was loaded.
    pub const UNUSABLE: u16 = 1 << 12;
}

/// Types of system descriptors in long mode (SDM volume 3, table 3-2).
pub(crate) mod system_type {
    /// LDT.
    pub const LDT: u16 = 2;
    /// TSS nobody uses.
    pub const TSS_AVAILABLE: u16 = 9;
    /// TSS in use.
    pub const TSS_BUSY: u16 = 11;
    /// Call gate.
    pub const CALL_GATE: u16 = 12;
}

/// A segment descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Descriptor {
    /// Its eight bytes.
    pub raw: u64,
    /// Linear address it was read from.
    pub address: u64,
}

impl Descriptor {
    /// As [`Segment::attributes`] has them.
    pub fn attributes(self) -> u16 {
        (self.raw >> 40 & 0xff | (self.raw >> 52 & 0xf) << 8) as u16
    }

    /// Whether attribute `bit` is set.
    pub fn has(self, bit: u16) -> bool {
        self.attributes() & bit != 0
    }

    /// Low 32 bits of the base.
    pub fn base(self) -> u64 {
        self.raw >> 16 & 0xff_ffff | self.raw >> 56 << 24
    }

    /// The limit in bytes.
    pub fn limit(self) -> u32 {
        let limit = (self.raw & 0xffff | self.raw >> 32 & 0xf_0000) as u32;
        if self.has(attribute::PAGES) {
            limit << 12 | 0xfff
        } else {
            limit
        }
    }

    /// Privilege level.
    pub fn dpl(self) -> u8 {
        (self.raw >> 45 & 3) as u8
    }

    /// Code, not data and not a system descriptor.
    pub fn is_code(self) -> bool {
        self.has(attribute::MEMORY) && self.has(attribute::CODE)
    }

    /// Data that may be written.
    pub fn is_writable_data(self) -> bool {
        self.has(attribute::MEMORY) && !self.has(attribute::CODE) && self.has(attribute::WRITE)
    }

    /// Type of a system descriptor; none for code and data.
    pub fn system_type(self) -> Option<u16> {
        (!self.has(attribute::MEMORY)).then_some(self.attributes() & 0xf)
    }

    /// The segment register `selector` makes of it.
    pub fn segment(self, selector: u16) -> Segment {
        Segment {
            base: self.base(),
            limit: self.limit(),
            selector,
            attributes: self.attributes(),
        }
    }
}

/// What a null selector makes of a segment register. The base becomes zero (as on Intel, and on AMD from
/// Zen 2 on).
pub(crate) fn null_segment(selector: u16, dpl: u8) -> Segment {
    Segment {
        base: 0,
        limit: 0,
        selector,
        attributes: attribute::UNUSABLE | u16::from(dpl) << 5,
    }
}

/// Whether `selector` is null.
pub(crate) fn is_null(selector: u16) -> bool {
    selector & !3 == 0
}

/// Error code that names `selector`.
pub(crate) fn named(selector: u16) -> u32 {
    u32::from(selector & !3)
}

impl Cpu {
    /// Exception `vector` with `error`.
    #[cold]
    pub(crate) fn raise_with(&mut self, vector: u8, error: u32) -> Trap {
        self.raise(Exception::with_error(vector, error))
    }

    /// Where `selector`'s descriptor is, if its table has one of `size` bytes there.
    fn descriptor_address(&self, selector: u16, size: u64) -> Option<u64> {
        let offset = u64::from(selector & !7);
        let (base, limit) = if selector & 4 == 0 {
            (self.gdt.base, u64::from(self.gdt.limit))
        } else {
            let ldt = &self.segments[segment::LDTR];
            if ldt.attributes & attribute::UNUSABLE != 0 || ldt.attributes & attribute::PRESENT == 0
            {
                return None;
            }
            (ldt.base, u64::from(ldt.limit))
        };
        (offset + size - 1 <= limit).then(|| base.wrapping_add(offset))
    }

    /// The descriptor of `selector`; `None` if its table has none.
    ///
    /// # Errors
    /// [`Trap`]: page fault.
    pub(crate) fn find_descriptor(&mut self, selector: u16) -> Result<Option<Descriptor>, Trap> {
        let Some(address) = self.descriptor_address(selector, 8) else {
            return Ok(None);
        };
        let raw = self.as_supervisor(|cpu| cpu.load::<u64>(address))?;
        Ok(Some(Descriptor { raw, address }))
    }

    /// The descriptor of `selector`.
    ///
    /// # Errors
    /// [`Trap`]: page fault, or `vector` naming the selector (with `ext` in it) if its table has none.
    pub(crate) fn descriptor(
        &mut self,
        selector: u16,
        vector: u8,
        ext: u32,
    ) -> Result<Descriptor, Trap> {
        match self.find_descriptor(selector)? {
            Some(found) => Ok(found),
            None => Err(self.raise_with(vector, named(selector) | ext)),
        }
    }

    /// The upper half of a 16-byte system descriptor.
    ///
    /// # Errors
    /// [`Trap`]: page fault, or `vector` naming the selector if its table ends before, or if the type
    /// bits there are not zero.
    pub(crate) fn descriptor_upper(&mut self, selector: u16, vector: u8) -> Result<u64, Trap> {
        let Some(address) = self.descriptor_address(selector, 16) else {
            return Err(self.raise_with(vector, named(selector)));
        };
        let upper = self.as_supervisor(|cpu| cpu.load::<u64>(address.wrapping_add(8)))?;
        if upper >> 40 & 0x1f != 0 {
            return Err(self.raise_with(vector, named(selector)));
        }
        Ok(upper)
    }

    /// Sets the accessed bit in `descriptor`'s table.
    ///
    /// # Errors
    /// [`Trap`]: page fault.
    pub(crate) fn mark_accessed(&mut self, descriptor: &mut Descriptor) -> Result<(), Trap> {
        if descriptor.has(attribute::ACCESSED) {
            return Ok(());
        }
        descriptor.raw |= u64::from(attribute::ACCESSED) << 40;
        let (address, byte) = (descriptor.address + 5, (descriptor.raw >> 40) as u8);
        self.as_supervisor(|cpu| cpu.store::<u8>(address, byte))
    }

    /// Refuses code segments with L and D both set, which do not exist, and those with neither: 16-bit code,
    /// which we lack. A program that has the kernel make it one gets a fault, not the end of the guest.
    pub(crate) fn check_code_size(
        &mut self,
        descriptor: Descriptor,
        selector: u16,
        ext: u32,
    ) -> Result<(), Trap> {
        if descriptor.has(attribute::LONG) == descriptor.has(attribute::BIG) {
            return Err(self.general_protection(named(selector) | ext));
        }
        Ok(())
    }

    /// Puts `found` into CS and makes `cpl` the privilege level; the mode follows.
    pub(crate) fn set_code_segment(&mut self, found: Segment, cpl: u8) {
        self.segments[segment::CS] = Segment {
            selector: found.selector & !3 | u16::from(cpl),
            ..found
        };
        self.cpl = cpl;
        self.refresh_mode();
    }

    /// What `selector` makes of stack segment register SS at privilege `cpl` (of code that is 64-bit or
    /// not), with errors of `vector`.
    ///
    /// # Errors
    /// [`Trap`]: #SS if it is not present, `vector` if it does not fit, page fault.
    pub(crate) fn stack_segment(
        &mut self,
        selector: u16,
        cpl: u8,
        long: bool,
        vector: u8,
    ) -> Result<Segment, Trap> {
        let rpl = (selector & 3) as u8;
        if is_null(selector) {
            if long && cpl != 3 && rpl == cpl {
                return Ok(null_segment(selector, cpl));
            }
            return Err(self.raise_with(vector, 0));
        }
        let mut found = self.descriptor(selector, vector, 0)?;
        if rpl != cpl || !found.is_writable_data() || found.dpl() != cpl {
            return Err(self.raise_with(vector, named(selector)));
        }
        if !found.has(attribute::PRESENT) {
            return Err(self.raise_with(vector::SS, named(selector)));
        }
        self.mark_accessed(&mut found)?;
        Ok(found.segment(selector))
    }

    /// What `selector` makes of ES, DS, FS or GS.
    ///
    /// # Errors
    /// [`Trap`]: #GP, #NP, page fault.
    pub(crate) fn data_segment(&mut self, selector: u16) -> Result<Segment, Trap> {
        if is_null(selector) {
            return Ok(null_segment(selector, 0));
        }
        let mut found = self.descriptor(selector, vector::GP, 0)?;
        let readable = found.has(attribute::MEMORY)
            && (!found.has(attribute::CODE) || found.has(attribute::WRITE));
        let conforming = found.has(attribute::CODE) && found.has(attribute::CONFORMING);
        let rpl = (selector & 3) as u8;
        if !readable || !conforming && found.dpl() < self.cpl.max(rpl) {
            return Err(self.general_protection(named(selector)));
        }
        if !found.has(attribute::PRESENT) {
            return Err(self.raise_with(vector::NP, named(selector)));
        }
        self.mark_accessed(&mut found)?;
        Ok(found.segment(selector))
    }

    /// What `selector` makes of segment register `register`, one that can be moved to.
    ///
    /// # Errors
    /// As for [`Cpu::stack_segment`] and [`Cpu::data_segment`].
    pub(crate) fn movable_segment(
        &mut self,
        register: usize,
        selector: u16,
    ) -> Result<Segment, Trap> {
        if register == segment::SS {
            self.stack_segment(selector, self.cpl, self.long_code, vector::GP)
        } else {
            self.data_segment(selector)
        }
    }

    /// Sets ES, SS, DS, FS or GS.
    pub(crate) fn set_segment(&mut self, register: usize, found: Segment) {
        self.segments[register] = found;
        self.refresh_mode();
    }

    /// Makes the data segments null that code of privilege `cpl` may not have (SDM volume 2A, IRET).
    pub(crate) fn drop_inner_segments(&mut self, cpl: u8) {
        for register in [segment::ES, segment::DS, segment::FS, segment::GS] {
            let held = &mut self.segments[register];
            let conforming = attribute::CODE | attribute::CONFORMING;
            let dpl = (held.attributes >> 5 & 3) as u8;
            if dpl < cpl
                && held.attributes & conforming != conforming
                && held.attributes & attribute::UNUSABLE == 0
            {
                *held = null_segment(0, 0);
            }
        }
    }

    /// Whether the processor is in long mode: all we have.
    pub(crate) fn check_long_mode(&mut self) -> Result<(), Trap> {
        if self.control.efer & bits::EFER_LMA == 0 {
            return Err(self.stop(Cause::Unimplemented));
        }
        Ok(())
    }
}
