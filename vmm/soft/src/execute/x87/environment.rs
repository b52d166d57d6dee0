//! FNSTENV, FLDENV, FNSAVE, FRSTOR.
//!
//! ```text
//!  32 bits: FCW, FSW, FTW with ones above; FIP; FCS and opcode; FDP; FDS with ones above    28 bytes
//!  16 bits: FCW, FSW, FTW, FIP, FCS, FDP, FDS                                               14 bytes
//!  FNSAVE: then ST0 to ST7, 10 bytes each
//! ```
//!
//! Pointers and opcode of the last instruction are not kept: zero.

use crate::execute::simd::Any;
use crate::fpu::{EXCEPTIONS, Fpu};
use crate::op::{Address, Op};
use crate::{Cpu, Trap};

/// In [`Op::imm`]: the 16-bit layout.
pub(crate) const NARROW: u64 = 1;

impl Fpu {
    /// The tag word: two bits a physical register, valid, zero, special, empty.
    fn tag_word(&self) -> u16 {
        let mut word = 0;
        for n in 0..8 {
            let value = self.x87[n];
            let exponent = (value >> 64) as u16 & 0x7fff;
            let tag = match (self.tags & 1 << n, exponent, value as u64) {
                (0, ..) => 3,
                (_, 0, 0) => 1,
                (_, 0 | 0x7fff, _) => 2,
                (_, _, significand) if significand >> 63 == 0 => 2,
                _ => 0,
            };
            word |= tag << (n * 2);
        }
        word
    }

    fn set_tag_word(&mut self, word: u16) {
        self.tags = (0..8).fold(0, |tags, n| tags | u8::from(word >> (n * 2) & 3 != 3) << n);
    }
}

/// Bytes of the environment.
fn length(op: &Op) -> usize {
    if op.imm & NARROW != 0 { 14 } else { 28 }
}

fn image(cpu: &Cpu, op: &Op) -> [u8; 108] {
    let mut bytes = [0; 108];
    let fpu = &cpu.fpu;
    let words = [fpu.fcw, fpu.fsw, fpu.tag_word()];
    let step = length(op) / 7;
    for (n, word) in words.into_iter().enumerate() {
        bytes[n * step..n * step + 2].copy_from_slice(&word.to_le_bytes());
        bytes[n * step + 2..(n + 1) * step].fill(0xff);
    }
    if step == 4 {
        bytes[26..28].fill(0xff);
    }
    let start = length(op);
    for n in 0..8 {
        let at = start + n * 10;
        bytes[at..at + 10].copy_from_slice(&fpu.st_bytes(n));
    }
    bytes
}

/// `fnstenv`: every exception is masked afterwards.
pub(crate) fn fnstenv(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.check_x87()?;
    let bytes = image(cpu, op);
    cpu.store_bytes(Any::linear(cpu, op), &bytes[..length(op)])?;
    let control = cpu.fpu.fcw | EXCEPTIONS;
    cpu.fpu.set_control(control);
    Ok(())
}

/// `fnsave`: the unit is initialised afterwards.
pub(crate) fn fnsave(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.check_x87()?;
    let bytes = image(cpu, op);
    cpu.store_bytes(Any::linear(cpu, op), &bytes[..length(op) + 80])?;
    super::control::initialise(&mut cpu.fpu);
    Ok(())
}

fn load(cpu: &mut Cpu, op: &Op, size: usize) -> Result<[u8; 108], Trap> {
    cpu.check_x87_waiting()?;
    let mut bytes = [0; 108];
    cpu.load_bytes(Any::linear(cpu, op), &mut bytes[..size])?;
    let step = length(op) / 7;
    let word = |n: usize| u16::from_le_bytes([bytes[n * step], bytes[n * step + 1]]);
    cpu.fpu.set_control(word(0));
    cpu.fpu.set_status(word(1));
    cpu.fpu.set_tag_word(word(2));
    Ok(bytes)
}

/// `fldenv`.
pub(crate) fn fldenv(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    load(cpu, op, length(op)).map(|_| ())
}

/// `frstor`.
pub(crate) fn frstor(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let bytes = load(cpu, op, length(op) + 80)?;
    for n in 0..8 {
        let at = length(op) + n * 10;
        let mut st = [0; 10];
        st.copy_from_slice(&bytes[at..at + 10]);
        cpu.fpu.set_st_bytes(n, st);
    }
    Ok(())
}
