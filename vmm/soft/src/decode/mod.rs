//! From bytes to [`Op`]s.
//!
//! iced-x86 decodes; one file per family picks the handler for an instruction's form. An instruction no
//! family knows raises #UD if the model does not have it, and ends the run with a clear word if it does.

mod bits;
mod features;
mod form;
mod general;
mod integer;
mod select;
mod simd;
mod simd_float;
mod simd_later;
mod string;
mod system;
mod x87;

use crate::op::{Op, slot};
use crate::trap::Cause;
use crate::{Cpu, Trap};
use iced_x86::{Decoder, DecoderError, DecoderOptions, Instruction};

pub(crate) use features::Features;
pub(crate) use form::{AddressForm, Form};
pub(crate) use general::{condition, does_nothing, is_conditional, is_no_prefetch};

/// What an instruction became.
#[derive(Clone, Copy)]
pub(crate) struct Lowered {
    /// The handler and its operands.
    pub op: Op,
    /// Nothing after it belongs to the same block: it branches, or changes how what follows is fetched,
    /// decoded or interrupted.
    pub ends: bool,
    /// It reads the clock: its [`Op::imm`] is to be the instructions of its block before it.
    pub counts: bool,
}

/// Why bytes are no instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Undecodable {
    /// More bytes are needed.
    Short,
    /// They are none.
    Invalid,
    /// They are more than an instruction may have.
    Long,
}

/// Longest instruction (SDM volume 2A, 2.3.11).
pub(crate) const LONGEST: usize = 15;

/// Decodes the instruction `bytes` begins with, `start` bytes into its block.
pub(crate) fn decode(
    bytes: &[u8],
    start: u8,
    long: bool,
    features: &Features,
) -> Result<Lowered, Undecodable> {
    let bytes = &bytes[..bytes.len().min(LONGEST)];
    let bitness = if long { 64 } else { 32 };
    // Positions count from the block's first byte: so do RIP-relative operands and branch targets.
    let options = DecoderOptions::AMD | features.ignored_prefixes();
    let mut decoder = Decoder::with_ip(bitness, bytes, start.into(), options);
    let mut instruction = Instruction::default();
    decoder.decode_out(&mut instruction);
    match decoder.last_error() {
        DecoderError::None => {}
        DecoderError::NoMoreBytes if bytes.len() < LONGEST => return Err(Undecodable::Short),
        // Nothing but the limit ends it there: what the bytes say is not looked at.
        _ if decoder.position() == LONGEST => return Err(Undecodable::Long),
        _ => return Err(Undecodable::Invalid),
    }
    let mut form = Form::new(&instruction, start, long);
    if !features.allow(&instruction) && !general::does_nothing(&form) {
        return Ok(form.ending(undefined));
    }
    let lowered = integer::lower(&mut form)
        .or_else(|| string::lower(&mut form))
        .or_else(|| system::lower(&mut form))
        .or_else(|| simd::lower(&mut form))
        .or_else(|| simd_float::lower(&mut form))
        .or_else(|| simd_later::lower(&mut form))
        .or_else(|| x87::lower(&mut form));
    Ok(lowered.unwrap_or_else(|| form.ending(unimplemented)))
}

/// The instruction `bytes` are, `start` bytes into its block of 64-bit code: what [`decode`] made an op of.
pub(crate) fn again(bytes: &[u8], start: u8, features: &Features) -> Option<Instruction> {
    let options = DecoderOptions::AMD | features.ignored_prefixes();
    let mut decoder = Decoder::with_ip(64, bytes, start.into(), options);
    let instruction = decoder.decode();
    (decoder.last_error() == DecoderError::None).then_some(instruction)
}

/// An op for bytes that are no instruction: #UD, or #GP for too many (SDM volume 3, 6.15).
pub(crate) fn undecodable(error: Undecodable, long: bool) -> Lowered {
    let mut instruction = Instruction::default();
    instruction.set_len(1);
    let form = Form::new(&instruction, 0, long);
    form.ending(match error {
        Undecodable::Long => too_long,
        _ => undefined,
    })
}

/// #GP.
fn too_long(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    Err(cpu.general_protection(0))
}

/// #UD.
fn undefined(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    Err(cpu.undefined())
}

/// One we lack.
fn unimplemented(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    Err(cpu.stop(Cause::Unimplemented))
}

const _: () = assert!(slot::COUNT.is_power_of_two());

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::model;
    use std::collections::BTreeSet;

    /// Decodes `bytes`; what it is if we lack it.
    fn lacks(bytes: &[u8], long: bool, features: &Features) -> Option<String> {
        let lowered = decode(bytes, 0, long, features).ok()?;
        std::ptr::fn_addr_eq(lowered.op.run, unimplemented as crate::op::Handler).then(|| {
            let bitness = if long { 64 } else { 32 };
            let options = DecoderOptions::AMD;
            let instruction = Decoder::with_ip(bitness, bytes, 0, options).decode();
            format!("{:?} ({bitness} bits)", instruction.code())
        })
    }

    /// Nothing a program can put into its code ends the guest: all prefixes that make other instructions,
    /// all opcodes of the four maps, all ModRM bytes.
    #[test]
    fn no_instruction_the_model_has_is_lacking() {
        let features = Features::of(&model());
        let prefixes: [&[u8]; 10] = [
            &[],
            &[0x66],
            &[0xf3],
            &[0xf2],
            &[0x67],
            &[0x66, 0xf2],
            &[0x66, 0xf3],
            &[0x48],
            &[0x66, 0x48],
            &[0xf3, 0x48],
        ];
        let maps: [&[u8]; 4] = [&[], &[0x0f], &[0x0f, 0x38], &[0x0f, 0x3a]];
        let mut lacking = BTreeSet::new();
        for prefix in prefixes {
            for map in maps {
                for opcode in 0..=255u8 {
                    for modrm in 0..=255u8 {
                        let mut bytes = prefix.to_vec();
                        bytes.extend(map);
                        bytes.extend([opcode, modrm]);
                        bytes.resize(LONGEST, 0x11);
                        for long in [false, true] {
                            lacking.extend(lacks(&bytes, long, &features));
                        }
                    }
                }
            }
        }
        assert_eq!(lacking, BTreeSet::new());
    }
}
