//! System instructions: what may be used, control and debug registers, flags, CPUID, time.

use super::loose;
use crate::cpu::{TimeBase, bits, segment};
use crate::flags;
use crate::memory::Intent;
use crate::op::{Op, slot};
use crate::trap::{Cause, Exception, Space, vector};
use crate::{Cpu, Trap};

impl Cpu {
    /// Refuses SSE instructions the guest has not switched on (SDM volume 3, table 13-1).
    ///
    /// # Errors
    /// [`Trap`]: #UD with CR0.EM or without CR4.OSFXSR, #NM with CR0.TS.
    #[inline(always)]
    pub fn check_sse(&mut self) -> Result<(), Trap> {
        let off = self.control.cr0 & (bits::CR0_EM | bits::CR0_TS) != 0;
        if off || self.control.cr4 & bits::CR4_OSFXSR == 0 {
            return Err(self.refuse_sse());
        }
        Ok(())
    }

    #[cold]
    #[inline(never)]
    fn refuse_sse(&mut self) -> Trap {
        if self.control.cr0 & bits::CR0_EM != 0 || self.control.cr4 & bits::CR4_OSFXSR == 0 {
            self.undefined()
        } else {
            self.raise(Exception::plain(vector::NM))
        }
    }

    /// Refuses x87 instructions while CR0.EM or CR0.TS is set, and FXSAVE and FXRSTOR.
    ///
    /// # Errors
    /// [`Trap`]: #NM.
    #[inline(always)]
    pub fn check_x87(&mut self) -> Result<(), Trap> {
        if self.control.cr0 & (bits::CR0_EM | bits::CR0_TS) != 0 {
            return Err(self.raise(Exception::plain(vector::NM)));
        }
        Ok(())
    }

    /// Refuses MMX instructions (SDM volume 3, table 12-1).
    ///
    /// # Errors
    /// [`Trap`]: #UD with CR0.EM, #NM with CR0.TS.
    #[inline(always)]
    pub fn check_mmx(&mut self) -> Result<(), Trap> {
        if self.control.cr0 & bits::CR0_EM != 0 {
            return Err(self.undefined());
        }
        self.check_x87()
    }

    /// Refuses `wait`/`fwait` while both CR0.MP and CR0.TS are set.
    ///
    /// # Errors
    /// [`Trap`]: #NM.
    pub fn check_wait(&mut self) -> Result<(), Trap> {
        let both = bits::CR0_MP | bits::CR0_TS;
        if self.control.cr0 & both == both {
            return Err(self.raise(Exception::plain(vector::NM)));
        }
        Ok(())
    }

    /// #GP outside ring 0.
    pub(crate) fn check_ring_0(&mut self) -> Result<(), Trap> {
        if self.cpl != 0 {
            return Err(self.general_protection(0));
        }
        Ok(())
    }

    /// The I/O privilege level.
    pub(crate) fn iopl(&self) -> u8 {
        (self.system_flags >> 12 & 3) as u8
    }
}

/// Bits of CR0 there are.
const CR0_KNOWN: u64 = 0xe005_003f;
/// CR0: protected mode.
const CR0_PE: u64 = 1 << 0;
/// CR0: extension type; always set.
const CR0_ET: u64 = 1 << 4;
/// CR0: not write-through.
const CR0_NW: u64 = 1 << 29;
/// CR0: no cache.
const CR0_CD: u64 = 1 << 30;
/// Bits of CR4 behind a CPUID bit: bit, leaf, register (EAX to EDX are 0 to 3), CPUID bit.
const CR4_BY_FEATURE: [(u32, u32, usize, u32); 11] = [
    (3, 1, 3, 2),   // DE
    (4, 1, 3, 3),   // PSE
    (5, 1, 3, 6),   // PAE
    (6, 1, 3, 7),   // MCE
    (7, 1, 3, 13),  // PGE
    (9, 1, 3, 24),  // OSFXSR: FXSR
    (10, 1, 3, 25), // OSXMMEXCPT: SSE
    (20, 7, 1, 7),  // SMEP
    (21, 7, 1, 20), // SMAP
    // TSD and PCE may be set by anybody.
    (2, 0, 0, 0),
    (8, 0, 0, 0),
];
/// Physical address bits above the 40 there are.
pub(crate) const PHYSICAL_RESERVED: u64 = !((1 << 40) - 1);

impl Cpu {
    /// Whether bit `bit` of CR4 may be set.
    fn cr4_has(&self, bit: u32) -> bool {
        CR4_BY_FEATURE.iter().any(|&(b, leaf, register, feature)| {
            b == bit && (leaf == 0 || self.model.has(leaf, register, feature))
        })
    }

    fn set_cr0(&mut self, value: u64) -> Result<(), Trap> {
        let paging = value & bits::CR0_PG != 0;
        if value >> 32 != 0
            || paging && value & CR0_PE == 0
            || value & CR0_NW != 0 && value & CR0_CD == 0
            || !paging && self.long_code
        {
            return Err(self.general_protection(0));
        }
        if !paging {
            // Out of long mode.
            return Err(self.stop(Cause::Unimplemented));
        }
        let changed = self.control.cr0 ^ value;
        self.control.cr0 = value & CR0_KNOWN | CR0_ET;
        // Translations are remembered with what WP allowed.
        if changed & (bits::CR0_WP | bits::CR0_PG) != 0 {
            self.tlb.flush(true);
        }
        Ok(())
    }

    fn set_cr3(&mut self, value: u64) -> Result<(), Trap> {
        if value & PHYSICAL_RESERVED != 0 {
            return Err(self.general_protection(0));
        }
        self.control.cr3 = value;
        self.tlb.flush(false);
        Ok(())
    }

    fn set_cr4(&mut self, value: u64) -> Result<(), Trap> {
        let unknown = (0..64).any(|bit| value >> bit & 1 != 0 && !self.cr4_has(bit));
        if unknown || value & bits::CR4_PAE == 0 {
            return Err(self.general_protection(0));
        }
        let changed = self.control.cr4 ^ value;
        self.control.cr4 = value;
        // Translations are remembered with what SMEP and SMAP allowed, and global ones as such.
        let seen = bits::CR4_PGE | bits::CR4_PAE | bits::CR4_SMEP | bits::CR4_SMAP;
        if changed & seen != 0 {
            self.tlb.flush(true);
        }
        self.refresh_mode();
        Ok(())
    }
}

/// `mov register, crN`: number in [`Op::dst`].
pub(crate) fn read_control(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.check_ring_0()?;
    let c = &cpu.control;
    let value = match op.dst {
        0 => c.cr0,
        2 => c.cr2,
        3 => c.cr3,
        4 => c.cr4,
        8 => c.cr8,
        _ => return Err(cpu.undefined()),
    };
    cpu.set_sized(op.src, value, loose::size(op));
    Ok(())
}

/// `mov crN, register`.
pub(crate) fn write_control(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    if !matches!(op.dst, 0 | 2 | 3 | 4 | 8) {
        return Err(cpu.undefined());
    }
    cpu.check_ring_0()?;
    let value = cpu.loose(op)?;
    match op.dst {
        0 => cpu.set_cr0(value),
        2 => {
            cpu.control.cr2 = value;
            Ok(())
        }
        3 => cpu.set_cr3(value),
        4 => cpu.set_cr4(value),
        _ if value > 15 => Err(cpu.general_protection(0)),
        _ => {
            cpu.control.cr8 = value;
            Ok(())
        }
    }
}

/// `clts`.
pub(crate) fn clts(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    cpu.check_ring_0()?;
    cpu.control.cr0 &= !bits::CR0_TS;
    Ok(())
}

/// `lmsw`: PE, which it cannot clear, MP, EM, TS.
pub(crate) fn lmsw(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.check_ring_0()?;
    let value = u64::from(cpu.loose_selector(op)?);
    cpu.control.cr0 = cpu.control.cr0 & !0xe | value & 0xe;
    Ok(())
}

/// `smsw`.
pub(crate) fn smsw(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.set_loose_selector(op, cpu.control.cr0)
}

/// `invlpg`. An address that is not canonical does nothing.
pub(crate) fn invlpg(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.check_ring_0()?;
    let address = loose::linear(cpu, op);
    cpu.tlb.flush_page(address);
    Ok(())
}

/// `wbinvd`, `invd`: there is no cache.
pub(crate) fn flush_caches(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    cpu.check_ring_0()
}

/// `clflush`: there is no cache, but the byte must be readable.
pub(crate) fn flush_line(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let address = loose::linear(cpu, op);
    let canonical = (address as i64) << 16 >> 16 == address as i64;
    if !canonical {
        return Err(cpu.general_protection(0));
    }
    cpu.translate(address, Intent::Read, cpu.tlb.mode)?;
    Ok(())
}

/// `rdpmc`: there are no counters.
pub(crate) fn rdpmc(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    Err(cpu.general_protection(0))
}

/// `cpuid`.
pub(crate) fn cpuid(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    let function = cpu.slot(slot::RAX) as u32;
    let index = cpu.slot(slot::RCX) as u32;
    let [a, b, c, d] = cpu.model.cpuid(function, index);
    for (register, value) in [
        (slot::RAX, a),
        (slot::RBX, b),
        (slot::RCX, c),
        (slot::RDX, d),
    ] {
        cpu.set_slot(register, value.into());
    }
    Ok(())
}

impl Cpu {
    /// The time-stamp counter, for an instruction that `before` others of its block come before: what the
    /// clock reads before it retires, plus the offset.
    ///
    /// # Errors
    /// [`Trap`] until somebody outside has answered.
    pub(crate) fn time_stamp(&mut self, before: u64) -> Result<u64, Trap> {
        match self.time {
            TimeBase::Outside => self.read_outside(Space::Tsc, 0, 8),
            TimeBase::Clock(base) => {
                let since = self.clock.wrapping_add(before).wrapping_add(base);
                Ok(since.wrapping_add(self.time_offset))
            }
        }
    }

    /// Sets EDX:EAX.
    pub(crate) fn set_edx_eax(&mut self, value: u64) {
        self.set_slot(slot::RAX, value & 0xffff_ffff);
        self.set_slot(slot::RDX, value >> 32);
    }
}

/// `rdtsc`: instructions of its block before it in [`Op::imm`].
pub(crate) fn rdtsc(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    if cpu.control.cr4 & bits::CR4_TSD != 0 {
        cpu.check_ring_0()?;
    }
    let value = cpu.time_stamp(op.imm)?;
    cpu.set_edx_eax(value);
    Ok(())
}

/// `cli`.
pub(crate) fn cli(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    if cpu.cpl > cpu.iopl() {
        return Err(cpu.general_protection(0));
    }
    cpu.system_flags &= !flags::IF;
    Ok(())
}

/// `sti`: no interrupt before the next instruction, if none could be taken before.
pub(crate) fn sti(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    if cpu.cpl > cpu.iopl() {
        return Err(cpu.general_protection(0));
    }
    cpu.shadow |= cpu.system_flags & flags::IF == 0;
    cpu.system_flags |= flags::IF;
    Ok(())
}

/// `hlt`.
pub(crate) fn hlt(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    cpu.check_ring_0()?;
    Err(cpu.stop(Cause::Halt))
}

/// `clac` and, with [`Op::imm`] 1, `stac`.
pub(crate) fn set_ac(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    if cpu.cpl != 0 {
        return Err(cpu.undefined());
    }
    cpu.system_flags &= !flags::AC;
    cpu.system_flags |= op.imm * flags::AC;
    cpu.refresh_mode();
    Ok(())
}

/// `pushf`: operand size in [`Op::extra`]. RF and VM read as 0.
pub(crate) fn pushf(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let value = cpu.rflags() & !(flags::RF | flags::VM);
    cpu.push_sized(value, loose::size(op))
}

/// `popf`: operand size in [`Op::extra`].
pub(crate) fn popf(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let size = loose::size(op);
    let value = cpu.stacked(0, size)?;
    let rsp = cpu.stack(cpu.slot(slot::RSP).wrapping_add(size)).0;
    cpu.set_slot(slot::RSP, rsp);
    let mut mask = cpu.flags_writable();
    if size == 2 {
        mask &= 0xffff;
    }
    cpu.load_flags(value, mask);
    Ok(())
}

/// `swapgs`.
pub(crate) fn swapgs(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    cpu.check_ring_0()?;
    let gs = &mut cpu.segments[segment::GS];
    std::mem::swap(&mut gs.base, &mut cpu.msrs.kernel_gs_base);
    cpu.set_slot(slot::GS, cpu.segments[segment::GS].base);
    Ok(())
}

/// #UD.
pub(crate) fn undefined(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    Err(cpu.undefined())
}
