//! FXSAVE, FXRSTOR, LDMXCSR, STMXCSR.
//!
//! ```text
//!  0    FCW FSW FTW(8, one bit each) . FOP
//!  8    FIP, FDP                            always zero: no last-instruction pointers are kept
//!  24   MXCSR, MXCSR mask
//!  32   ST0 to ST7, 16 bytes each
//!  160  XMM0 to XMM7, or to XMM15 in 64-bit code
//!  416  left alone
//! ```

use super::Any;
use crate::cpu::bits;
use crate::fpu::MXCSR_MASK;
use crate::op::{Address, Op};
use crate::{Cpu, Trap};

/// Bytes FXSAVE writes at most.
const SIZE: usize = 416;

/// Checks both do first: #NM, then alignment (SDM volume 2A, FXSAVE).
fn area(cpu: &mut Cpu, op: &Op) -> Result<u64, Trap> {
    cpu.check_x87()?;
    let address = Any::linear(cpu, op);
    cpu.check_aligned16(address)?;
    Ok(address)
}

/// How many XMM registers are saved: none without CR4.OSFXSR, as AMD has it.
fn xmms(cpu: &Cpu) -> usize {
    if cpu.control.cr4 & bits::CR4_OSFXSR == 0 {
        return 0;
    }
    if cpu.long_code { 16 } else { 8 }
}

/// `fxsave`, `fxsave64`.
pub(crate) fn fxsave(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let address = area(cpu, op)?;
    let mut bytes = [0u8; SIZE];
    let fpu = &cpu.fpu;
    bytes[0..2].copy_from_slice(&fpu.fcw.to_le_bytes());
    bytes[2..4].copy_from_slice(&fpu.fsw.to_le_bytes());
    bytes[4] = fpu.tags;
    bytes[24..28].copy_from_slice(&fpu.mxcsr.to_le_bytes());
    bytes[28..32].copy_from_slice(&MXCSR_MASK.to_le_bytes());
    for n in 0..8 {
        let at = 32 + n * 16;
        bytes[at..at + 10].copy_from_slice(&fpu.st_bytes(n));
    }
    let count = xmms(cpu);
    for (n, xmm) in cpu.fpu.xmm[..count].iter().enumerate() {
        let at = 160 + n * 16;
        bytes[at..at + 16].copy_from_slice(&xmm.to_le_bytes());
    }
    cpu.store_bytes(address, &bytes[..160 + count * 16])
}

/// `fxrstor`, `fxrstor64`.
pub(crate) fn fxrstor(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let address = area(cpu, op)?;
    let mut bytes = [0u8; SIZE];
    let count = xmms(cpu);
    cpu.load_bytes(address, &mut bytes[..160 + count * 16])?;
    let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    let mxcsr = u32::from(word(24)) | u32::from(word(26)) << 16;
    if count > 0 {
        check_mxcsr(cpu, mxcsr)?;
        cpu.fpu.mxcsr = mxcsr;
    }
    let fpu = &mut cpu.fpu;
    fpu.set_control(word(0));
    fpu.set_status(word(2));
    fpu.tags = bytes[4];
    for n in 0..8 {
        let at = 32 + n * 16;
        let mut st = [0; 10];
        st.copy_from_slice(&bytes[at..at + 10]);
        fpu.set_st_bytes(n, st);
    }
    for (n, xmm) in fpu.xmm[..count].iter_mut().enumerate() {
        let at = 160 + n * 16;
        let mut value = [0; 16];
        value.copy_from_slice(&bytes[at..at + 16]);
        *xmm = u128::from_le_bytes(value);
    }
    Ok(())
}

/// #GP for reserved bits of MXCSR.
fn check_mxcsr(cpu: &mut Cpu, value: u32) -> Result<(), Trap> {
    if value & !MXCSR_MASK != 0 {
        return Err(cpu.general_protection(0));
    }
    Ok(())
}

/// `ldmxcsr`.
pub(crate) fn ldmxcsr(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.check_sse()?;
    let value: u32 = cpu.load(Any::linear(cpu, op))?;
    check_mxcsr(cpu, value)?;
    cpu.fpu.mxcsr = value;
    Ok(())
}

/// `stmxcsr`.
pub(crate) fn stmxcsr(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.check_sse()?;
    cpu.store(Any::linear(cpu, op), cpu.fpu.mxcsr)
}
