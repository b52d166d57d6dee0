//! The forms of instructions: every one the assembler knows, with registers and with memory.

use iced_x86::{Code, CpuidFeature as F, Encoder, Instruction, OpCodeOperandKind, Register};
use soft::testing::CODE;

/// Which comparison an instruction belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// MMX and SSE.
    Vector,
    /// x87, but for the next.
    X87,
    /// Functions whose last place makers disagree on, and that are our own choice.
    Transcendental,
}

/// All of them.
pub const FAMILIES: [Family; 3] = [Family::Vector, Family::X87, Family::Transcendental];

impl Family {
    /// That of an instruction of the sets these tests are about.
    fn of(code: Code) -> Option<Self> {
        const TRANSCENDENTAL: [&str; 8] = [
            "F2xm1", "Fyl2x", "Fyl2xp1", "Fptan", "Fpatan", "Fsin", "Fcos", "Fsincos",
        ];
        let sets = code.cpuid_features();
        let all_of = |known: &[F]| sets.iter().all(|set| known.contains(set));
        let x87 = [F::FPU, F::FPU287, F::FPU387];
        if sets.iter().any(|set| x87.contains(set)) {
            let name = format!("{:?}", code.mnemonic());
            let known = all_of(&[F::FPU, F::FPU287, F::FPU387, F::CMOV, F::SSE3]);
            return known.then_some(match TRANSCENDENTAL.contains(&name.as_str()) {
                true => Self::Transcendental,
                false => Self::X87,
            });
        }
        let vector = [
            F::MMX,
            F::SSE,
            F::SSE2,
            F::SSE3,
            F::SSSE3,
            F::SSE4_1,
            F::SSE4_2,
        ];
        (all_of(&vector) && is_vector(code)).then_some(Self::Vector)
    }

    /// Its forms, with each kind of operands and each immediate; of those `VECTOR_ONLY` names, if it is set.
    pub fn forms(self) -> Vec<Case> {
        let only = std::env::var("VECTOR_ONLY")
            .unwrap_or_default()
            .to_lowercase();
        let named = |case: &Case| format!("{:?}", case.code).to_lowercase().contains(&only);
        self.all_forms().into_iter().filter(named).collect()
    }

    /// Its forms, all.
    pub fn all_forms(self) -> Vec<Case> {
        Code::values()
            .filter(|code| code.op_code().is_instruction() && code.op_code().mode64())
            .filter(|code| Self::of(*code) == Some(self))
            .flat_map(|code| [false, true].map(|memory| (code, memory)))
            .flat_map(|(code, memory)| {
                let encodings = assemble(code, memory).into_iter();
                encodings.map(move |bytes| Case::new(code, bytes, memory))
            })
            .collect()
    }
}

/// A form with its bytes.
#[derive(Clone)]
pub struct Case {
    pub code: Code,
    pub family: Family,
    pub bytes: Vec<u8>,
    /// The last byte, where there is an immediate.
    pub immediate: u8,
    /// It has a memory operand.
    pub memory: bool,
}

impl Case {
    pub fn new(code: Code, bytes: Vec<u8>, memory: bool) -> Self {
        let immediate = bytes[bytes.len() - 1];
        Self {
            code,
            family: Family::of(code).expect("a form of these tests"),
            bytes,
            immediate,
            memory,
        }
    }

    /// A form with an immediate comes 256 times.
    pub fn has_immediate(&self) -> bool {
        let kinds = self.code.op_code().op_kinds();
        kinds.contains(&OpCodeOperandKind::imm8)
    }

    /// Whether the host has what it needs: otherwise there is nothing to compare with.
    pub fn host_has(&self) -> bool {
        let mut features = self.code.cpuid_features().iter();
        features.all(|feature| match feature {
            F::SSE3 => is_x86_feature_detected!("sse3"),
            F::SSSE3 => is_x86_feature_detected!("ssse3"),
            F::SSE4_1 => is_x86_feature_detected!("sse4.1"),
            F::SSE4_2 => is_x86_feature_detected!("sse4.2"),
            _ => true,
        })
    }

    /// Its name: code and kind of operands.
    pub fn name(&self) -> String {
        let kind = if self.memory { " memory" } else { "" };
        format!("{:?}{kind}", self.code)
    }

    /// How many cases it gets of what a form gets.
    pub fn share_of(&self, cases: u64) -> u64 {
        if self.has_immediate() {
            cases / 50
        } else {
            cases
        }
    }
}

/// How many cases each form gets.
pub fn cases_each() -> u64 {
    std::env::var("VECTOR_CASES").map_or(2000, |n| n.parse().expect("a number"))
}

/// Encodings of `code`, with a memory operand if it can have one.
fn assemble(code: Code, memory: bool) -> Vec<Vec<u8>> {
    use OpCodeOperandKind as K;
    let kinds = code.op_code().op_kinds();
    let mut has_memory = false;
    let mut has_immediate = false;
    let mut instruction = Instruction::default();
    instruction.set_code(code);
    for (n, kind) in kinds.iter().enumerate() {
        let n = n as u32;
        let mut register = |r: Register| instruction.set_op_register(n, r);
        match kind {
            K::mem | K::mem_offs => has_memory = true,
            K::xmm_or_mem
            | K::mm_or_mem
            | K::r32_or_mem
            | K::r64_or_mem
            | K::r16_or_mem
            | K::r8_or_mem
                if memory =>
            {
                has_memory = true
            }
            K::xmm_or_mem | K::xmm_rm => register(Register::XMM2),
            K::xmm_reg => register(Register::XMM1),
            K::mm_or_mem | K::mm_rm => register(Register::MM2),
            K::mm_reg => register(Register::MM1),
            K::r32_or_mem | K::r32_rm => register(Register::ECX),
            K::r32_reg => register(Register::EDX),
            K::r64_or_mem | K::r64_rm => register(Register::RCX),
            K::r64_reg => register(Register::RDX),
            K::st0 => register(Register::ST0),
            K::sti_opcode => register(Register::ST3),
            K::ax => register(Register::AX),
            K::imm8 | K::imm8_const_1 => has_immediate = true,
            // Left out here: `maskmov*` name their memory by RDI alone.
            _ => return Vec::new(),
        }
        if has_memory && kind_is_memory(*kind, memory) {
            instruction.set_op_kind(n, iced_x86::OpKind::Memory);
            instruction.set_memory_base(Register::RSI);
        }
        if matches!(kind, K::imm8) {
            instruction.set_op_kind(n, iced_x86::OpKind::Immediate8);
        }
    }
    if memory && !has_memory
        || !memory && has_memory && kinds.iter().any(|k| kind_is_memory(*k, false))
    {
        // The same as the other, or only there.
        if !(memory && has_memory) {
            return Vec::new();
        }
    }
    let immediates: Vec<u8> = if has_immediate {
        (0..=255).collect()
    } else {
        vec![0]
    };
    let mut all = Vec::new();
    for immediate in immediates {
        if has_immediate {
            instruction.set_immediate8(immediate);
        }
        let mut encoder = Encoder::new(64);
        let encoded = encoder.encode(&instruction, CODE).is_ok();
        let bytes = encoder.take_buffer();
        // A waiting form is two instructions.
        if encoded && (bytes[0] != 0x9b || bytes.len() == 1) {
            all.push(bytes);
        }
    }
    all
}

fn kind_is_memory(kind: OpCodeOperandKind, memory: bool) -> bool {
    use OpCodeOperandKind as K;
    match kind {
        K::mem | K::mem_offs => true,
        K::xmm_or_mem
        | K::mm_or_mem
        | K::r32_or_mem
        | K::r64_or_mem
        | K::r16_or_mem
        | K::r8_or_mem => memory,
        _ => false,
    }
}

/// Integer instructions, and those of the system, that need an SSE set: other tests' matter.
fn is_vector(code: Code) -> bool {
    let name = format!("{:?}", code.mnemonic()).to_lowercase();
    let others = [
        "prefetch", "fence", "pause", "crc32", "popcnt", "clflush", "monitor", "mwait", "ldmxcsr",
        "stmxcsr", "movnti",
    ];
    !others.iter().any(|other| name.contains(other))
}
