//! Words for an instruction that cannot be executed.

use crate::Cpu;
use crate::memory::{Intent, Mode, PAGE};
use iced_x86::{Decoder, DecoderOptions, Formatter, GasFormatter};

/// That the instruction at RIP is one we lack, or why there is none.
pub(crate) fn lacking(cpu: &mut Cpu) -> String {
    match instruction(cpu) {
        Ok(what) => format!("the software processor lacks the instruction {what}"),
        Err(why) => why,
    }
}

/// Bytes and disassembly of the instruction at RIP.
///
/// # Errors
/// Why there is none.
pub(crate) fn instruction(cpu: &mut Cpu) -> Result<String, String> {
    let rip = cpu.rip;
    let mode = if cpu.cpl == 3 {
        Mode::User
    } else {
        Mode::Supervisor
    };
    let Ok(physical) = cpu.translate(rip, Intent::Execute, mode) else {
        return Err(format!("it executes at {rip:#x}, which is not mapped"));
    };
    let mut bytes = [0; crate::decode::LONGEST];
    let len = (PAGE - physical % PAGE).min(bytes.len() as u64) as usize;
    if !cpu.physical.read_bytes(physical, &mut bytes[..len]) {
        return Err(format!(
            "it executes at {rip:#x}, physical {physical:#x}, where there is no RAM"
        ));
    }
    let bitness = if cpu.long_code { 64 } else { 32 };
    let options = DecoderOptions::AMD;
    let instruction = Decoder::with_ip(bitness, &bytes[..len], rip, options).decode();
    let mut text = String::new();
    GasFormatter::new().format(&instruction, &mut text);
    let taken = instruction.len().clamp(1, len);
    Ok(format!("{:02x?} ({text}) at {rip:#x}", &bytes[..taken]))
}
