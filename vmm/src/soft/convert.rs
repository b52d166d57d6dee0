//! Between the software processor's registers and a vCPU's neutral state.

use crate::cpu::SAVED_MSRS;
use crate::engine::EngineError;
use crate::state::{CpuState, Fpu, Segment, Table};
use soft::Cpu;
use soft::cpu::{DEBUG_AT_RESET, segment};

/// [`CpuState::general`] has RAX, RBX, RCX, RDX, RSI, RDI, RSP, RBP first; these are their numbers.
const ORDER: [usize; 16] = [0, 3, 1, 2, 6, 7, 4, 5, 8, 9, 10, 11, 12, 13, 14, 15];
/// [`CpuState::segments`] has CS, DS, ES, FS, GS, SS, TR, LDTR.
const SEGMENTS: [usize; 8] = [
    segment::CS,
    segment::DS,
    segment::ES,
    segment::FS,
    segment::GS,
    segment::SS,
    segment::TR,
    segment::LDTR,
];
/// [`CpuState::debug`] has these.
const DEBUG: [usize; 6] = [0, 1, 2, 3, 6, 7];
/// Trap and resume flag, which are in no digest of registers: KVM does not know the guest's everywhere.
pub(super) const NOT_THE_GUESTS: u64 = soft::flags::TF | soft::flags::RF;

/// The general registers in the order of [`CpuState::general`].
pub(super) fn general(cpu: &Cpu) -> [u64; 16] {
    ORDER.map(|n| cpu.regs[n])
}

/// The processor's state.
pub(super) fn save(cpu: &Cpu) -> CpuState {
    let table = |t: &soft::cpu::Table| Table {
        base: t.base,
        limit: t.limit,
    };
    let c = &cpu.control;
    CpuState {
        general: general(cpu),
        rip: cpu.rip,
        rflags: cpu.rflags(),
        segments: SEGMENTS.map(|n| segment_out(&cpu.segments[n])),
        tables: [table(&cpu.gdt), table(&cpu.idt)],
        control: [c.cr0, c.cr2, c.cr3, c.cr4, c.cr8],
        efer: c.efer,
        fpu: fpu_out(&cpu.fpu),
        msrs: SAVED_MSRS.map(|index| (index, msr(cpu, index))).to_vec(),
        halted: cpu.halted,
        injected: cpu.pending_interrupt,
        debug: DEBUG.map(|n| cpu.debug[n] ^ DEBUG_AT_RESET[n]),
        tsc_offset: cpu.time_offset,
        shadow: cpu.shadow,
        ..Default::default()
    }
}

/// Puts a state into a processor.
///
/// # Errors
/// If the state has a model-specific register the processor does not have.
pub fn restore(cpu: &mut Cpu, state: &CpuState) -> Result<(), EngineError> {
    for (value, n) in state.general.iter().zip(ORDER) {
        cpu.regs[n] = *value;
    }
    cpu.rip = state.rip;
    for (from, n) in state.segments.iter().zip(SEGMENTS) {
        cpu.segments[n] = segment_in(from);
    }
    let table = |t: &Table| soft::cpu::Table {
        base: t.base,
        limit: t.limit,
    };
    cpu.gdt = table(&state.tables[0]);
    cpu.idt = table(&state.tables[1]);
    let [cr0, cr2, cr3, cr4, cr8] = state.control;
    cpu.control = soft::cpu::Control {
        cr0,
        cr2,
        cr3,
        cr4,
        cr8,
        efer: state.efer,
    };
    // The privilege level is that of SS (SDM volume 3, 24.4.1 "guest register state").
    cpu.cpl = (cpu.segments[segment::SS].attributes >> 5 & 3) as u8;
    cpu.fpu = fpu_in(&state.fpu);
    for &(index, value) in &state.msrs {
        set_msr(cpu, index, value)?;
    }
    cpu.halted = state.halted;
    cpu.pending_interrupt = state.injected;
    cpu.shadow = state.shadow;
    cpu.time_offset = state.tsc_offset;
    cpu.debug = DEBUG_AT_RESET;
    for (value, n) in state.debug.iter().zip(DEBUG) {
        cpu.debug[n] ^= value;
    }
    cpu.set_rflags(state.rflags);
    Ok(())
}

fn segment_out(s: &soft::cpu::Segment) -> Segment {
    Segment {
        base: s.base,
        limit: s.limit,
        selector: s.selector,
        attributes: s.attributes,
    }
}

fn segment_in(s: &Segment) -> soft::cpu::Segment {
    soft::cpu::Segment {
        base: s.base,
        limit: s.limit,
        selector: s.selector,
        attributes: s.attributes,
    }
}

/// The x87 registers are relative to TOP in the neutral state, as FXSAVE has them.
fn fpu_out(fpu: &soft::fpu::Fpu) -> Fpu {
    let top = usize::from(fpu.fsw >> 11 & 7);
    let mut x87 = [[0; 16]; 8];
    for (n, register) in x87.iter_mut().enumerate() {
        register[..10].copy_from_slice(&fpu.x87[(top + n) % 8].to_le_bytes()[..10]);
    }
    Fpu {
        x87,
        fcw: fpu.fcw,
        fsw: fpu.fsw,
        ftw: fpu.tags,
        xmm: fpu.xmm.map(u128::to_le_bytes),
        mxcsr: fpu.mxcsr,
    }
}

fn fpu_in(fpu: &Fpu) -> soft::fpu::Fpu {
    let top = usize::from(fpu.fsw >> 11 & 7);
    let mut x87 = [0; 8];
    for (n, register) in fpu.x87.iter().enumerate() {
        let mut bytes = [0; 16];
        bytes[..10].copy_from_slice(&register[..10]);
        x87[(top + n) % 8] = u128::from_le_bytes(bytes);
    }
    soft::fpu::Fpu {
        xmm: fpu.xmm.map(u128::from_le_bytes),
        x87,
        fcw: fpu.fcw,
        fsw: fpu.fsw,
        tags: fpu.ftw,
        mxcsr: fpu.mxcsr,
    }
}

fn msr(cpu: &Cpu, index: u32) -> u64 {
    let m = &cpu.msrs;
    match index {
        0x174 => m.sysenter[0],
        0x175 => m.sysenter[1],
        0x176 => m.sysenter[2],
        0x277 => m.pat,
        0xc000_0081 => m.star,
        0xc000_0082 => m.lstar,
        0xc000_0083 => m.cstar,
        0xc000_0084 => m.fmask,
        _ => m.kernel_gs_base,
    }
}

fn set_msr(cpu: &mut Cpu, index: u32, value: u64) -> Result<(), EngineError> {
    let m = &mut cpu.msrs;
    let place = match index {
        0x174 => &mut m.sysenter[0],
        0x175 => &mut m.sysenter[1],
        0x176 => &mut m.sysenter[2],
        0x277 => &mut m.pat,
        0xc000_0081 => &mut m.star,
        0xc000_0082 => &mut m.lstar,
        0xc000_0083 => &mut m.cstar,
        0xc000_0084 => &mut m.fmask,
        0xc000_0102 => &mut m.kernel_gs_base,
        _ => {
            let why = format!("MSR {index:#x} in a vCPU state");
            return Err(EngineError::Unsupported(why));
        }
    };
    *place = value;
    Ok(())
}

#[cfg(test)]
#[path = "convert_tests.rs"]
mod tests;
