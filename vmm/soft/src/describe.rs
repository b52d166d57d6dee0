//! Words for an instruction that cannot be executed, or that did what it must not.

use crate::Cpu;
use crate::cpu::bits;
use crate::memory::{Intent, Mode};
use crate::trap::{Access, Cause, Space};
use iced_x86::{
    Decoder, DecoderOptions, Formatter, GasFormatter, Instruction, Mnemonic, OpKind, Register,
};

/// Bytes an instruction can have.
const LONGEST: usize = crate::decode::LONGEST;

/// Why the instruction at RIP ended the run: it is one we lack, or there is none, or what it leads to
/// cannot be done.
pub(crate) fn lacking(cpu: &mut Cpu) -> String {
    let (cause, long_mode) = (cpu.cause, cpu.control.efer & bits::EFER_LMA != 0);
    let what = match instruction(cpu) {
        Ok(what) => what,
        Err(why) => return why,
    };
    match cause {
        // Instructions wait for accesses; deliveries cannot.
        Cause::Access(access) => format!(
            "an interrupt or exception is delivered by way of {:#x}, where there is no RAM: {what}",
            access.address
        ),
        _ if !long_mode => format!("it takes an exception outside of long mode: {what}"),
        _ => format!("the software processor lacks the instruction {what}"),
    }
}

/// Bytes and disassembly of the instruction at RIP.
///
/// # Errors
/// Why there is none.
pub(crate) fn instruction(cpu: &mut Cpu) -> Result<String, String> {
    let linear = cpu.linear_rip();
    if let Some(what) = at(cpu, linear, cpu.long_code) {
        return Ok(what);
    }
    let mode = if cpu.cpl == 3 {
        Mode::User
    } else {
        Mode::Supervisor
    };
    Err(match cpu.translate(linear, Intent::Execute, mode) {
        Ok(physical) => {
            format!("it executes at {linear:#x}, physical {physical:#x}, where there is no RAM")
        }
        Err(_) => format!("it executes at {linear:#x}, which is not mapped"),
    })
}

/// Bytes and disassembly of the instruction at a linear address; `None` if no RAM is there.
pub(crate) fn at(cpu: &Cpu, linear: u64, long: bool) -> Option<String> {
    let mut bytes = [0; LONGEST];
    let there = cpu.look(linear, &mut bytes);
    disassemble(&bytes[..there], linear, long)
}

/// Bytes and disassembly of the instruction `bytes` begin with, which stands at `linear`; `None` if there
/// are no bytes.
#[must_use]
pub fn disassemble(bytes: &[u8], linear: u64, long: bool) -> Option<String> {
    let bytes = &bytes[..bytes.len().min(LONGEST)];
    if bytes.is_empty() {
        return None;
    }
    let instruction = decode(bytes, linear, long);
    let mut text = String::new();
    GasFormatter::new().format(&instruction, &mut text);
    let taken = instruction.len().clamp(1, bytes.len());
    Some(format!("{:02x?} ({text}) at {linear:#x}", &bytes[..taken]))
}

fn decode(bytes: &[u8], linear: u64, long: bool) -> Instruction {
    let bitness = if long { 64 } else { 32 };
    Decoder::with_ip(bitness, bytes, linear, DecoderOptions::AMD).decode()
}

/// Registers as a search for an instruction wants them.
#[derive(Clone, Copy, Debug)]
pub struct Standing<'a> {
    /// General registers, in the order instructions encode them.
    pub general: &'a [u64; 16],
    /// Linear address of the next instruction.
    pub rip: u64,
    /// It is 64-bit code.
    pub long: bool,
}

/// Length of the 64-bit instruction before `now` that made `write`, `before` being the bytes up to there.
/// For engines that tell of a write when its instruction is behind them.
///
/// `physical` translates a linear address. `None` if it cannot be told: instructions that alter the
/// registers their address is made of, 32-bit code, or nothing that fits.
#[must_use]
pub fn length_of_writer(
    before: &[u8],
    now: Standing<'_>,
    write: &Access,
    physical: impl Fn(u64) -> Option<u64>,
) -> Option<usize> {
    if !now.long {
        return None;
    }
    // The longest first: prefixes belong to it.
    (1..=before.len().min(LONGEST)).rev().find(|&length| {
        let start = now.rip.wrapping_sub(length as u64);
        let instruction = decode(&before[before.len() - length..], start, true);
        instruction.len() == length && fits(&instruction, now, write, &physical)
    })
}

/// Whether `instruction` can have made `write`.
fn fits(
    instruction: &Instruction,
    now: Standing<'_>,
    write: &Access,
    physical: &impl Fn(u64) -> Option<u64>,
) -> bool {
    let size = usize::from(write.size);
    if write.space == Space::Port {
        let port = match instruction.op0_kind() {
            OpKind::Immediate8 => u64::from(instruction.immediate8()),
            _ => now.general[2] & 0xffff,
        };
        return match instruction.mnemonic() {
            Mnemonic::Out => port == write.address && instruction.op1_register().size() == size,
            Mnemonic::Outsb | Mnemonic::Outsw | Mnemonic::Outsd => {
                now.general[2] & 0xffff == write.address && instruction.memory_size().size() == size
            }
            _ => false,
        };
    }
    if instruction.op0_kind() != OpKind::Memory || instruction.memory_size().size() != size {
        return false;
    }
    let linear = instruction.virtual_address(0, 0, |register, _, _| match register {
        // Bases of the flat segments; those of FS and GS are not known here.
        Register::ES | Register::CS | Register::SS | Register::DS => Some(0),
        register if register.is_gpr() => {
            let value = *now.general.get(register.full_register().number())?;
            Some(value & u64::MAX >> (64 - 8 * register.size().min(8)))
        }
        _ => None,
    });
    linear.and_then(physical) == Some(write.address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(before: &[u8], space: Space, address: u64, size: u8) -> Option<usize> {
        let mut general = [0; 16];
        general[2] = 0xacd;
        general[3] = 0x5000;
        let now = Standing {
            general: &general,
            rip: 0x1010,
            long: true,
        };
        let write = Access {
            space,
            address,
            size,
            value: Some(0),
        };
        length_of_writer(before, now, &write, |linear| Some(linear + 0x10_0000))
    }

    #[test]
    fn the_instruction_before_is_the_one_that_makes_the_write() {
        // out %al, (%dx) behind what would be out %al, $0xee with it.
        assert_eq!(found(&[0xe6, 0xee], Space::Port, 0xacd, 1), Some(1));
        assert_eq!(found(&[0xe6, 0xee], Space::Port, 0xee, 1), Some(2));
        assert_eq!(found(&[0x66, 0xef], Space::Port, 0xacd, 2), Some(2));
        assert_eq!(found(&[0x66, 0xef], Space::Port, 0xacd, 4), Some(1));
        assert_eq!(found(&[0x90, 0xee], Space::Port, 0xacc, 1), None);
        // mov %eax, 8(%rbx)
        let store = [0x90, 0x89, 0x43, 8];
        assert_eq!(found(&store, Space::Memory, 0x10_5008, 4), Some(3));
        assert_eq!(found(&store, Space::Memory, 0x10_5004, 4), None);
        assert_eq!(found(&store, Space::Memory, 0x10_5008, 8), None);
        assert_eq!(found(&[], Space::Memory, 0x10_5008, 8), None);
    }

    #[test]
    fn bytes_and_words() {
        let text = disassemble(&[0x0f, 0x0b, 0x90], 0x40, true);
        assert_eq!(text.as_deref(), Some("[0f, 0b] (ud2) at 0x40"));
        assert_eq!(disassemble(&[], 0x40, true), None);
    }
}
