//! Integer instructions.

use crate::makers::Maker;
use crate::random::Random;
use crate::state::{AT, Case, Fx, State};
use crate::{Family, compare, compare_cases};
use iced_x86::{
    Code, CpuidFeature, Decoder, DecoderOptions, EncodingKind, Mnemonic, OpCodeOperandKind,
};

/// Instruction sets with nothing but integer instructions, and those whose others are excluded by their
/// operands.
const SETS: [CpuidFeature; 12] = [
    CpuidFeature::INTEL8086,
    CpuidFeature::INTEL186,
    CpuidFeature::INTEL286,
    CpuidFeature::INTEL386,
    CpuidFeature::INTEL486,
    CpuidFeature::X64,
    CpuidFeature::CMOV,
    CpuidFeature::CX8,
    CpuidFeature::CMPXCHG16B,
    CpuidFeature::POPCNT,
    CpuidFeature::SSE4_2,
    CpuidFeature::MULTIBYTENOP,
];

/// Not compared, and why.
const LEFT_OUT: [(&[Mnemonic], &str); 5] = [
    (
        &[
            Mnemonic::Int,
            Mnemonic::Int1,
            Mnemonic::Int3,
            Mnemonic::Into,
            Mnemonic::Syscall,
            Mnemonic::Iret,
            Mnemonic::Iretd,
            Mnemonic::Iretq,
        ],
        "they enter or leave the host's kernel",
    ),
    (
        &[
            Mnemonic::In,
            Mnemonic::Out,
            Mnemonic::Insb,
            Mnemonic::Insw,
            Mnemonic::Insd,
            Mnemonic::Outsb,
            Mnemonic::Outsw,
            Mnemonic::Outsd,
            Mnemonic::Cli,
            Mnemonic::Sti,
            Mnemonic::Pushf,
            Mnemonic::Pushfd,
            Mnemonic::Pushfq,
            Mnemonic::Popf,
            Mnemonic::Popfd,
            Mnemonic::Popfq,
        ],
        "what they do depends on rights the host gives",
    ),
    (
        &[
            Mnemonic::Lar,
            Mnemonic::Lsl,
            Mnemonic::Verr,
            Mnemonic::Verw,
            Mnemonic::Sgdt,
            Mnemonic::Sidt,
            Mnemonic::Sldt,
            Mnemonic::Str,
            Mnemonic::Smsw,
            Mnemonic::Arpl,
            Mnemonic::Lds,
            Mnemonic::Les,
            Mnemonic::Lss,
            Mnemonic::Lfs,
            Mnemonic::Lgs,
        ],
        "they see the host's descriptors",
    ),
    (
        &[Mnemonic::Ud0, Mnemonic::Ud1, Mnemonic::Ud2],
        "always undefined",
    ),
    (&[Mnemonic::Wait], "of the x87"),
];

/// Operands of other families, or that the arena cannot have.
fn is_foreign(kind: OpCodeOperandKind) -> bool {
    use OpCodeOperandKind as K;
    matches!(
        kind,
        K::xmm_reg
            | K::xmm_rm
            | K::xmm_or_mem
            | K::seg_reg
            | K::cr_reg
            | K::dr_reg
            | K::tr_reg
            | K::es
            | K::cs
            | K::ss
            | K::ds
            | K::fs
            | K::gs
            | K::farbr2_2
            | K::farbr4_2
    )
}

/// The integer instructions of code of this size.
pub fn codes(bitness: u32) -> Vec<Code> {
    Code::values()
        .filter(|code| belongs(*code, bitness))
        .collect()
}

fn belongs(code: Code, bitness: u32) -> bool {
    let info = code.op_code();
    let decoded = if bitness == 64 {
        info.amd_decoder64()
    } else {
        info.amd_decoder32()
    };
    let shared = if bitness == 64 {
        info.intel_decoder64()
    } else {
        info.intel_decoder32()
    };
    info.is_instruction()
        && info.encoding() == EncodingKind::Legacy
        && info.is_available_in_mode(bitness)
        && decoded
        && (shared || is_amd())
        && info.cpl3()
        && !info.must_be_cpl0()
        && !info.fwait()
        && code.cpuid_features().iter().all(|f| SETS.contains(f))
        && !info.op_kinds().iter().any(|kind| is_foreign(*kind))
        && !code.is_far()
        && !LEFT_OUT
            .iter()
            .any(|(mnemonics, _)| mnemonics.contains(&code.mnemonic()))
        && (!is_amds_own(code) || is_amd())
        && info.address_size() != 16
}

/// What AMD's processors do otherwise: they refuse the unnamed ones of opcode 0F 0D with a register
/// operand; MOVSXD reads 32 bits for a 16-bit register.
fn is_amds_own(code: Code) -> bool {
    matches!(
        code,
        Code::Reservednop_rm16_r16_0F0D
            | Code::Reservednop_rm32_r32_0F0D
            | Code::Reservednop_rm64_r64_0F0D
            | Code::Movsxd_r16_rm16
    )
}

trait Far {
    /// Whether it branches to another segment.
    fn is_far(&self) -> bool;
}

impl Far for Code {
    fn is_far(&self) -> bool {
        self.is_call_far()
            || self.is_jmp_far()
            || self.is_call_far_indirect()
            || self.is_jmp_far_indirect()
            || self.mnemonic() == Mnemonic::Retf
    }
}

/// Whether the host has AMD's near branches with 16-bit operands.
fn is_amd() -> bool {
    Maker::of_host() == Some(Maker::Amd)
}

#[test]
fn integer_instructions_of_64_bit_code() {
    compare(&Family {
        name: "integer, 64 bits",
        bitness: 64,
        codes: codes(64),
        fill_fx: None,
        cases: 250_000,
    });
}

#[test]
fn integer_instructions_of_32_bit_code() {
    compare(&Family {
        name: "integer, 32 bits",
        bitness: 32,
        codes: codes(32),
        fill_fx: None,
        cases: 250_000,
    });
}

/// The addressing forms of 16-bit ModRM: what cannot be mapped below 64 KiB is not read, so `lea` shows
/// them.
#[test]
fn addresses_of_16_bits_as_lea_makes_them() {
    let mut cases = Vec::new();
    for n in 0..4000u64 {
        let mut random = Random::new(16, n);
        let (mode, rm) = (random.below(3) as u8, random.below(8) as u8);
        let into = random.below(8) as u8;
        let mut bytes = vec![0x67, 0x8d, mode << 6 | into << 3 | rm];
        if random.percent(30) {
            bytes.insert(0, 0x66);
        }
        let displacement = match (mode, rm) {
            (0, 6) | (2, _) => 2,
            (0, _) => 0,
            _ => 1,
        };
        bytes.extend((0..displacement).map(|_| random.next() as u8));
        let mut regs = [0; 16];
        for register in &mut regs[..8] {
            *register = random.word() & 0xffff_ffff;
        }
        let instruction = Decoder::with_ip(32, &bytes, AT, DecoderOptions::NONE).decode();
        assert_eq!(instruction.mnemonic(), Mnemonic::Lea);
        cases.push(Case {
            instruction,
            bytes,
            bitness: 32,
            state: State {
                regs,
                rip: AT,
                flags: 0x202,
                fx: Fx::default(),
            },
            pokes: Vec::new(),
        });
    }
    compare_cases(&cases);
}
