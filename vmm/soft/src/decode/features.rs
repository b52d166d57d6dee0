//! Which instructions a model has.

use crate::model::Model;
use iced_x86::{CpuidFeature, DecoderOptions, Instruction};

/// The instruction sets of one model.
#[derive(Clone, Debug)]
pub(crate) struct Features {
    /// For each of iced's sets, by its number.
    has: [bool; SETS],
    ignored_prefixes: u32,
}

/// More sets than iced knows.
const SETS: usize = 256;

/// Sets every x86-64 processor has; they have no CPUID bit, or one that is always set here.
const ALWAYS: [CpuidFeature; 16] = [
    CpuidFeature::INTEL8086,
    CpuidFeature::INTEL186,
    CpuidFeature::INTEL286,
    CpuidFeature::INTEL386,
    CpuidFeature::INTEL486,
    CpuidFeature::X64,
    CpuidFeature::CPUID,
    // CR4.TSD governs RDTSC, not its CPUID bit.
    CpuidFeature::TSC,
    CpuidFeature::FPU,
    CpuidFeature::FPU287,
    CpuidFeature::FPU387,
    CpuidFeature::MULTIBYTENOP,
    CpuidFeature::PAUSE,
    CpuidFeature::RDPMC,
    CpuidFeature::SMM,
    // `endbr64` and its kin are no-ops where they are not known.
    CpuidFeature::CET_IBT,
];

/// Sets behind a CPUID bit: leaf, register (EAX to EDX are 0 to 3), bit.
const BY_BIT: [(CpuidFeature, u32, usize, u32); 20] = [
    (CpuidFeature::MSR, 1, 3, 5),
    (CpuidFeature::CX8, 1, 3, 8),
    (CpuidFeature::SEP, 1, 3, 11),
    (CpuidFeature::CMOV, 1, 3, 15),
    (CpuidFeature::CLFSH, 1, 3, 19),
    (CpuidFeature::MMX, 1, 3, 23),
    (CpuidFeature::FXSR, 1, 3, 24),
    (CpuidFeature::SSE, 1, 3, 25),
    (CpuidFeature::SSE2, 1, 3, 26),
    (CpuidFeature::SSE3, 1, 2, 0),
    (CpuidFeature::SSSE3, 1, 2, 9),
    (CpuidFeature::CMPXCHG16B, 1, 2, 13),
    (CpuidFeature::SSE4_1, 1, 2, 19),
    (CpuidFeature::SSE4_2, 1, 2, 20),
    (CpuidFeature::MOVBE, 1, 2, 22),
    (CpuidFeature::POPCNT, 1, 2, 23),
    (CpuidFeature::SMAP, 7, 1, 20),
    (CpuidFeature::SYSCALL, 0x8000_0001, 3, 11),
    (CpuidFeature::RDTSCP, 0x8000_0001, 3, 27),
    (CpuidFeature::PREFETCHW, 0x8000_0001, 2, 8),
];

/// Prefixes that make another instruction only where that one exists: TZCNT, LZCNT and WBNOINVD are BSF, BSR and
/// WBINVD where they are not known.
const IGNORED: [(CpuidFeature, u32); 3] = [
    (CpuidFeature::BMI1, DecoderOptions::NO_MPFX_0FBC),
    (CpuidFeature::LZCNT, DecoderOptions::NO_MPFX_0FBD),
    (CpuidFeature::WBNOINVD, DecoderOptions::NO_WBNOINVD),
];

impl Features {
    /// Those of `model`.
    pub fn of(model: &Model) -> Self {
        let mut has = [false; SETS];
        for feature in ALWAYS {
            has[feature as usize] = true;
        }
        for (feature, leaf, register, bit) in BY_BIT {
            has[feature as usize] = model.has(leaf, register, bit);
        }
        let ignored_prefixes = IGNORED
            .into_iter()
            .filter(|&(feature, _)| !has[feature as usize])
            .fold(DecoderOptions::NONE, |all, (_, option)| all | option);
        Self {
            has,
            ignored_prefixes,
        }
    }

    /// Decoder options for prefixes that make another instruction only where that one exists.
    pub fn ignored_prefixes(&self) -> u32 {
        self.ignored_prefixes
    }

    /// Whether `instruction` exists.
    pub fn allow(&self, instruction: &Instruction) -> bool {
        instruction
            .cpuid_features()
            .iter()
            .all(|f| self.has[*f as usize])
    }
}
