//! Named CPU models: what the guest sees in CPUID, the same on every host.
//!
//! The levels are those of the x86-64 psABI. Hidden on purpose: the TSC's frequency leaves, RDRAND,
//! RDSEED, XSAVE and all that cannot be replayed or saved, the APIC and PCID, and every paravirtual leaf.
//!
//! An unmodified x86-64 kernel insists on FPU, PSE, MSR, PAE, CX8, PGE, FXSR, CMOV, SSE, SSE2, SYSCALL,
//! NX and long mode, which the least model has.

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

/// How much of a model an engine can keep its word on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offer {
    /// KVM's: RDTSC cannot be replayed where it executes, so there is none; no supervisor-mode protection.
    Bare,
    /// That of an engine which executes every instruction itself: the TSC, whose rate never changes, SMEP
    /// and SMAP besides.
    Full,
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

/// CPUID.1:EDX of [`Offer::Full`].
const EDX_FULL: [(&str, u32); 1] = [("tsc", 4)];
/// CPUID.(7,0):EBX of [`Offer::Full`].
const EBX7_FULL: [(&str, u32); 2] = [("smep", 7), ("smap", 20)];
/// CPUID.80000007:EDX of [`Offer::Full`]: the TSC counts at one rate in every state.
const EDX_POWER_FULL: [(&str, u32); 1] = [("invariant_tsc", 8)];

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

    /// The CPUID table, as the engine can `offer` it, ordered by leaf. A leaf that is not in it is zero.
    #[must_use]
    pub fn leaves(self, offer: Offer) -> Vec<Leaf> {
        let mut leaves = self.bare_leaves();
        if offer == Offer::Bare {
            return leaves;
        }
        let bits = |set: &[(&str, u32)]| set.iter().fold(0u32, |word, (_, bit)| word | 1 << bit);
        for leaf in &mut leaves {
            match leaf.function {
                0 => leaf.registers[0] = 7, // the last leaf
                1 => leaf.registers[3] |= bits(&EDX_FULL),
                _ => {}
            }
        }
        let more = |function, registers| Leaf {
            function,
            index: 0,
            registers,
        };
        leaves.push(more(7, [0, bits(&EBX7_FULL), 0, 0]));
        leaves.push(more(0x8000_0007, [0, 0, 0, bits(&EDX_POWER_FULL)]));
        leaves.sort_by_key(|leaf| leaf.function);
        leaves
    }

    fn bare_leaves(self) -> Vec<Leaf> {
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
            .ok_or_else(|| {
                format!(
                    "no CPU model '{text}': there are v1 (x86-64, to SSE2) and v2 (x86-64-v2, to SSE4.2); \
                     AVX, and with it v3, is not offered"
                )
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registers(model: CpuModel, offer: Offer, function: u32) -> [u32; 4] {
        let leaves = model.leaves(offer);
        let leaf = leaves.iter().find(|leaf| leaf.function == function);
        leaf.map_or([0; 4], |leaf| leaf.registers)
    }

    #[test]
    fn the_table_of_old_recordings_stays_as_it_was() {
        let table: Vec<_> = CpuModel::ALL
            .into_iter()
            .flat_map(|model| model.leaves(Offer::Bare))
            .flat_map(|leaf| [&[leaf.function, leaf.index], &leaf.registers[..]].concat())
            .flat_map(u32::to_le_bytes)
            .collect();
        assert_eq!(
            xxhash_rust::xxh3::xxh3_64(&table),
            11_226_559_217_633_741_711
        );
    }

    #[test]
    fn only_a_full_offer_has_a_tsc_smep_and_smap() {
        for model in CpuModel::ALL {
            assert_eq!(registers(model, Offer::Bare, 1)[3] & 1 << 4, 0);
            assert_eq!(registers(model, Offer::Bare, 7), [0; 4]);
            assert_eq!(registers(model, Offer::Full, 1)[3] & 1 << 4, 1 << 4);
            assert_eq!(registers(model, Offer::Full, 7)[1], 1 << 7 | 1 << 20);
            assert_eq!(registers(model, Offer::Full, 0x8000_0007)[3], 1 << 8);
        }
    }

    #[test]
    fn a_full_offer_lists_every_leaf_once_and_in_order() {
        for model in CpuModel::ALL {
            let leaves: Vec<u32> = model
                .leaves(Offer::Full)
                .iter()
                .map(|l| l.function)
                .collect();
            assert!(leaves.is_sorted_by(|a, b| a < b), "{leaves:x?}");
            assert_eq!(registers(model, Offer::Full, 0)[0], 7);
        }
    }

    #[test]
    fn an_unmodified_kernel_finds_what_it_insists_on_and_nothing_that_cannot_be_replayed() {
        let [_, _, ecx, edx] = registers(CpuModel::V1, Offer::Full, 1);
        for (name, bit) in [
            ("fpu", 0),
            ("pse", 3),
            ("msr", 5),
            ("pae", 6),
            ("cx8", 8),
            ("pge", 13),
            ("cmov", 15),
            ("fxsr", 24),
            ("sse", 25),
            ("sse2", 26),
        ] {
            assert!(edx & 1 << bit != 0, "{name}");
        }
        let extended = registers(CpuModel::V1, Offer::Full, 0x8000_0001)[3];
        for (name, bit) in [("syscall", 11), ("nx", 20), ("lm", 29)] {
            assert!(extended & 1 << bit != 0, "{name}");
        }
        assert_eq!(edx & 1 << 9, 0, "apic");
        for (name, bit) in [("pcid", 17), ("xsave", 26), ("osxsave", 27), ("rdrand", 30)] {
            assert_eq!(ecx & 1 << bit, 0, "{name}");
        }
    }
}
