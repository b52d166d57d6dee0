//! Named CPU models: what the guest sees in CPUID, the same on every host.
//!
//! The levels are those of the x86-64 psABI. Hidden on purpose: the TSC's frequency leaves, RDRAND,
//! RDSEED, XSAVE and all that cannot be replayed or saved, and every paravirtual leaf.

use serde::{Deserialize, Serialize};

/// Model-specific registers that are part of a vCPU's state (SDM volume 4).
pub const SAVED_MSRS: [u32; 9] = [
    0x174,       // IA32_SYSENTER_CS
    0x175,       // IA32_SYSENTER_ESP
    0x176,       // IA32_SYSENTER_EIP
    0x277,       // IA32_PAT
    0xc000_0081, // IA32_STAR
    0xc000_0082, // IA32_LSTAR
    0xc000_0083, // IA32_CSTAR
    0xc000_0084, // IA32_FMASK
    0xc000_0102, // IA32_KERNEL_GS_BASE
];

/// A named CPUID table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CpuModel {
    /// x86-64-v1: SSE2.
    #[default]
    V1,
    /// x86-64-v2: v1, SSE3 to SSE4.2, POPCNT, CMPXCHG16B, LAHF.
    V2,
}

/// One CPUID leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// EAX going in.
    pub function: u32,
    /// ECX going in, where it matters.
    pub index: u32,
    /// EAX, EBX, ECX, EDX coming out.
    pub registers: [u32; 4],
}

/// CPUID.1:EDX, by name and bit (SDM volume 2A, CPUID).
const EDX_V1: [(&str, u32); 17] = [
    ("fpu", 0),
    ("de", 2),
    ("pse", 3),
    ("msr", 5),
    ("pae", 6),
    ("cx8", 8),
    ("sep", 11),
    ("pge", 13),
    ("cmov", 15),
    ("pat", 16),
    ("pse36", 17),
    ("clfsh", 19),
    ("mmx", 23),
    ("fxsr", 24),
    ("sse", 25),
    ("sse2", 26),
    ("mca", 14),
];
/// CPUID.1:ECX beyond v1.
const ECX_V2: [(&str, u32); 6] = [
    ("sse3", 0),
    ("ssse3", 9),
    ("cx16", 13),
    ("sse4_1", 19),
    ("sse4_2", 20),
    ("popcnt", 23),
];

impl CpuModel {
    /// Every model there is.
    pub const ALL: [CpuModel; 2] = [CpuModel::V1, CpuModel::V2];

    /// The name used on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::V1 => "v1",
            Self::V2 => "v2",
        }
    }

    /// The CPUID table.
    #[must_use]
    pub fn leaves(self) -> Vec<Leaf> {
        let bits = |set: &[(&str, u32)]| set.iter().fold(0u32, |word, (_, bit)| word | 1 << bit);
        let v2 = self == Self::V2;
        let ecx1 = if v2 { bits(&ECX_V2) } else { 0 } | 1 << 31; // hypervisor present
        let lahf = u32::from(v2);
        let leaf = |function, registers| Leaf {
            function,
            index: 0,
            registers,
        };
        let text = |s: &[u8; 4]| u32::from_le_bytes(*s);
        let name = |a: &[u8; 16]| {
            std::array::from_fn(|i| u32::from_le_bytes(a[i * 4..i * 4 + 4].try_into().expect("4")))
        };
        vec![
            leaf(0, [1, text(b"Auth"), text(b"cAMD"), text(b"enti")]),
            // Family 15, model 6, stepping 1; CLFLUSH line of 8 quadwords; one logical processor.
            leaf(1, [0x0f61, 0x0001_0800, ecx1, bits(&EDX_V1)]),
            leaf(
                0x4000_0000,
                [0x4000_0000, text(b"Tand"), text(b"emVM"), text(b"\0\0\0\0")],
            ),
            leaf(
                0x8000_0000,
                [0x8000_0008, text(b"Auth"), text(b"cAMD"), text(b"enti")],
            ),
            // SYSCALL, NX, long mode; LAHF in 64-bit mode from v2 on.
            leaf(0x8000_0001, [0x0f61, 0, lahf, 1 << 11 | 1 << 20 | 1 << 29]),
            leaf(0x8000_0002, name(b"Tandem virtual C")),
            leaf(
                0x8000_0003,
                name(if v2 {
                    b"PU x86-64-v2\0\0\0\0"
                } else {
                    b"PU x86-64-v1\0\0\0\0"
                }),
            ),
            leaf(0x8000_0004, [0; 4]),
            // 40 physical, 48 virtual address bits.
            leaf(0x8000_0008, [0x0000_3028, 0, 0, 0]),
        ]
    }

    /// Names of the features this model has and `supported` (CPUID leaf 1: ECX, EDX) lacks.
    #[must_use]
    pub fn missing(self, ecx: u32, edx: u32) -> Vec<&'static str> {
        let v2: &[_] = if self == Self::V2 { &ECX_V2 } else { &[] };
        let lacks = |word: u32| move |(_, bit): &&(&str, u32)| word & 1 << bit == 0;
        let edx = EDX_V1.iter().filter(lacks(edx));
        edx.chain(v2.iter().filter(lacks(ecx)))
            .map(|(name, _)| *name)
            .collect()
    }
}

impl std::fmt::Display for CpuModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for CpuModel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|model| model.name() == text)
            .ok_or_else(|| format!("no CPU model '{text}' (there are v1 and v2)"))
    }
}
