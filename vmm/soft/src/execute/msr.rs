//! Model-specific registers (SDM volume 4; APM volume 2, appendix A). One we do not know raises #GP.

use crate::cpu::{TimeBase, bits, segment};
use crate::op::{Op, slot};
use crate::trap::Space;
use crate::{Cpu, Trap};

/// Numbers.
mod number {
    pub const TSC: u32 = 0x10;
    pub const APIC_BASE: u32 = 0x1b;
    pub const BIOS_SIGN_ID: u32 = 0x8b;
    pub const MTRR_CAP: u32 = 0xfe;
    pub const SYSENTER_CS: u32 = 0x174;
    pub const SYSENTER_ESP: u32 = 0x175;
    pub const SYSENTER_EIP: u32 = 0x176;
    pub const MCG_CAP: u32 = 0x179;
    pub const MCG_STATUS: u32 = 0x17a;
    pub const PAT: u32 = 0x277;
    pub const MTRR_DEF_TYPE: u32 = 0x2ff;
    pub const EFER: u32 = 0xc000_0080;
    pub const STAR: u32 = 0xc000_0081;
    pub const LSTAR: u32 = 0xc000_0082;
    pub const CSTAR: u32 = 0xc000_0083;
    pub const FMASK: u32 = 0xc000_0084;
    pub const FS_BASE: u32 = 0xc000_0100;
    pub const GS_BASE: u32 = 0xc000_0101;
    pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
}

/// Bits of EFER that can be set.
const EFER_KNOWN: u64 = bits::EFER_SCE | bits::EFER_LME | bits::EFER_LMA | bits::EFER_NXE;
/// What APIC_BASE says: at its usual place, the boot processor's, switched off.
const APIC_BASE: u64 = 0xfee0_0100;

fn canonical(address: u64) -> bool {
    (address as i64) << 16 >> 16 == address as i64
}

/// Whether all eight memory types of a PAT value exist (SDM volume 3, 12.12.4).
fn is_pat(value: u64) -> bool {
    value
        .to_le_bytes()
        .iter()
        .all(|t| matches!(t, 0 | 1 | 4..=7))
}

impl Cpu {
    fn read_msr(&mut self, register: u32, before: u64) -> Result<u64, Trap> {
        let m = &self.msrs;
        Ok(match register {
            number::TSC => self.time_stamp(before)?,
            number::APIC_BASE => APIC_BASE,
            // No microcode, no MTRRs, no machine-check banks.
            number::BIOS_SIGN_ID | number::MTRR_CAP | number::MTRR_DEF_TYPE => 0,
            number::MCG_CAP | number::MCG_STATUS => 0,
            number::SYSENTER_CS => m.sysenter[0],
            number::SYSENTER_ESP => m.sysenter[1],
            number::SYSENTER_EIP => m.sysenter[2],
            number::PAT => m.pat,
            number::EFER => self.control.efer,
            number::STAR => m.star,
            number::LSTAR => m.lstar,
            number::CSTAR => m.cstar,
            number::FMASK => m.fmask,
            number::FS_BASE => self.segments[segment::FS].base,
            number::GS_BASE => self.segments[segment::GS].base,
            number::KERNEL_GS_BASE => m.kernel_gs_base,
            _ => return Err(self.general_protection(0)),
        })
    }

    fn write_msr(&mut self, register: u32, value: u64, before: u64) -> Result<(), Trap> {
        let addresses = [
            number::LSTAR,
            number::CSTAR,
            number::FS_BASE,
            number::GS_BASE,
            number::KERNEL_GS_BASE,
            number::SYSENTER_ESP,
            number::SYSENTER_EIP,
        ];
        if addresses.contains(&register) && !canonical(value) {
            return Err(self.general_protection(0));
        }
        let m = &mut self.msrs;
        match register {
            number::TSC => return self.set_time_stamp(value, before),
            number::EFER => return self.set_efer(value),
            number::APIC_BASE if value == APIC_BASE => {}
            number::BIOS_SIGN_ID => {}
            number::MCG_STATUS if value == 0 => {}
            number::PAT if is_pat(value) => m.pat = value,
            number::SYSENTER_CS => m.sysenter[0] = value & 0xffff_ffff,
            number::SYSENTER_ESP => m.sysenter[1] = value,
            number::SYSENTER_EIP => m.sysenter[2] = value,
            number::STAR => m.star = value,
            number::LSTAR => m.lstar = value,
            number::CSTAR => m.cstar = value,
            number::FMASK => m.fmask = value & 0xffff_ffff,
            number::KERNEL_GS_BASE => m.kernel_gs_base = value,
            number::FS_BASE => {
                self.segments[segment::FS].base = value;
                self.refresh_mode();
            }
            number::GS_BASE => {
                self.segments[segment::GS].base = value;
                self.refresh_mode();
            }
            _ => return Err(self.general_protection(0)),
        }
        Ok(())
    }

    fn set_time_stamp(&mut self, value: u64, before: u64) -> Result<(), Trap> {
        match self.time {
            TimeBase::Outside => self.write_outside(Space::Tsc, 0, 8, value),
            TimeBase::Clock(base) => {
                let now = self.clock.wrapping_add(before).wrapping_add(base);
                self.time_offset = value.wrapping_sub(now);
                Ok(())
            }
        }
    }

    /// LMA is read only; LME cannot change while paging is on.
    fn set_efer(&mut self, value: u64) -> Result<(), Trap> {
        let now = self.control.efer;
        let paging = self.control.cr0 & bits::CR0_PG != 0;
        if value & !EFER_KNOWN != 0 || paging && (value ^ now) & bits::EFER_LME != 0 {
            return Err(self.general_protection(0));
        }
        self.control.efer = value & !bits::EFER_LMA | now & bits::EFER_LMA;
        // Translations are remembered with what NXE allowed.
        if (value ^ now) & bits::EFER_NXE != 0 {
            self.tlb.flush(true);
        }
        Ok(())
    }
}

/// `rdmsr`: instructions of its block before it in [`Op::imm`].
pub(crate) fn rdmsr(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.check_ring_0()?;
    let value = cpu.read_msr(cpu.slot(slot::RCX) as u32, op.imm)?;
    cpu.set_edx_eax(value);
    Ok(())
}

/// `wrmsr`: instructions of its block before it in [`Op::imm`].
pub(crate) fn wrmsr(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.check_ring_0()?;
    let value = cpu.slot(slot::RDX) << 32 | cpu.slot(slot::RAX) & 0xffff_ffff;
    cpu.write_msr(cpu.slot(slot::RCX) as u32, value, op.imm)
}
