//! What the guest's page tables map, all of it.
//!
//! Four levels, pages of 4 KiB, 2 MiB and 1 GiB (SDM volume 3, 4.5). The tables are the guest's to fill as it likes:
//! a table may be its own entry, and map the same page without end. So they are read up to a bound.

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use vmm::memory::{GuestMemory, PAGE_BYTES};
use vmm::state::CpuState;

/// Linear addresses that are mapped to as many physical ones, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// The first linear address.
    pub linear: u64,
    /// The first physical one, which is RAM, as all that follow are.
    pub physical: u64,
    /// Bytes.
    pub len: u64,
}

impl Mapping {
    /// What is to be added to a physical address of it, modulo 2^64.
    pub fn distance(&self) -> u64 {
        self.linear.wrapping_sub(self.physical)
    }
}

/// What is mapped.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Mappings {
    /// By rising linear address.
    pub all: Vec<Mapping>,
    /// Whether a bound was met: there is more.
    pub cut: bool,
}

/// Most tables that are read: those of a guest that maps all memory a machine can have by its smallest pages forty
/// times over.
const TABLES_MAX: usize = 1 << 16;
/// Most mappings that are told of: an ELF file's header has no number for more ([`super::core`]).
const MAPPINGS_MAX: usize = 60_000;

const PRESENT: u64 = 1;
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = (1 << 52) - PAGE_BYTES;
/// EFER: long mode active.
const LMA: u64 = 1 << 10;
/// CR4: five levels, which no processor here has.
const LA57: u64 = 1 << 12;

/// What a vCPU in `state` has mapped to RAM in `memory`; nothing outside 64-bit mode.
pub fn mappings(memory: &GuestMemory, state: &CpuState) -> Mappings {
    let [_, _, cr3, cr4, _] = state.control;
    let mut walk = Walk {
        memory,
        found: Mappings::default(),
        tables: 0,
    };
    if state.efer & LMA != 0 && cr4 & LA57 == 0 {
        walk.table(cr3 & ADDRESS, 3, 0);
    }
    walk.found
}

struct Walk<'a> {
    memory: &'a GuestMemory,
    found: Mappings,
    tables: usize,
}

impl Walk<'_> {
    /// Reads the table of `level` at physical address `at`, which maps from `linear` on.
    fn table(&mut self, at: u64, level: u32, linear: u64) {
        let mut bytes = [0; PAGE_BYTES as usize];
        if self
            .memory
            .read_slice(&mut bytes, GuestAddress(at))
            .is_err()
        {
            return; // nothing is there: nothing is present
        }
        self.tables += 1;
        let (entries, _) = bytes.as_chunks::<8>();
        for (number, entry) in (0u64..).zip(entries) {
            let entry = u64::from_le_bytes(*entry);
            if entry & PRESENT == 0 {
                continue;
            }
            if self.tables > TABLES_MAX || self.found.all.len() >= MAPPINGS_MAX {
                self.found.cut = true;
                return;
            }
            let size = PAGE_BYTES << (9 * level);
            let mut linear = linear + number * size;
            if level == 3 && number >= 256 {
                linear |= 0xffff << 48;
            }
            match level {
                1..=3 if level == 3 || entry & LARGE == 0 => {
                    self.table(entry & ADDRESS, level - 1, linear);
                }
                _ => self.page(linear, entry & ADDRESS & !(size - 1), size),
            }
        }
    }

    /// `len` bytes are mapped, of which those that are RAM are kept.
    fn page(&mut self, linear: u64, physical: u64, len: u64) {
        for region in self.memory.iter() {
            let (start, end) = (region.start_addr().0, region.start_addr().0 + region.len());
            let from = physical.max(start);
            let to = physical.saturating_add(len).min(end);
            if from < to {
                self.add(Mapping {
                    linear: linear + (from - physical),
                    physical: from,
                    len: to - from,
                });
            }
        }
    }

    fn add(&mut self, more: Mapping) {
        match self.found.all.last_mut() {
            Some(last)
                if last.linear + last.len == more.linear
                    && last.physical + last.len == more.physical =>
            {
                last.len += more.len;
            }
            _ => self.found.all.push(more),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: u64 = 0x1000;

    fn memory(entries: &[(u64, u64)]) -> GuestMemory {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 16 << 20)]).unwrap();
        for (at, entry) in entries {
            memory
                .write_slice(&entry.to_le_bytes(), GuestAddress(*at))
                .unwrap();
        }
        memory
    }

    fn state() -> CpuState {
        CpuState {
            control: [0, 0, ROOT, 0, 0],
            efer: LMA,
            ..CpuState::default()
        }
    }

    #[test]
    fn pages_that_follow_each_other_are_one_mapping_and_what_is_no_ram_is_none() {
        let memory = memory(&[
            (ROOT + 511 * 8, 0x2000 | PRESENT),
            (0x2000 + 510 * 8, 0x3000 | PRESENT),
            // A large page, and tables of small ones behind it.
            (0x3000 + 8 * 8, 0x20_0000 | PRESENT | LARGE),
            (0x3000 + 9 * 8, 0x4000 | PRESENT),
            (0x4000, 0x40_0000 | PRESENT),
            (0x4008, 0x40_1000 | PRESENT | 1 << 63),
            (0x4010, 0x7_0000_0000 | PRESENT),
            (0x4018, 0x6000 | PRESENT),
        ]);
        let found = mappings(&memory, &state());
        let begin = 0xffff_ffff_8100_0000;
        let expected = [
            (begin, 0x20_0000, 0x20_2000),
            (begin + 0x20_3000, 0x6000, 0x1000),
        ];
        let expected = expected.map(|(linear, physical, len)| Mapping {
            linear,
            physical,
            len,
        });
        assert_eq!(found.all, expected);
        assert!(!found.cut);
        let unpaged = CpuState::default();
        assert_eq!(mappings(&memory, &unpaged), Mappings::default());
    }

    #[test]
    fn tables_that_lead_back_to_themselves_end() {
        let own: Vec<(u64, u64)> = (0..512).map(|n| (ROOT + n * 8, ROOT | PRESENT)).collect();
        let found = mappings(&memory(&own), &state());
        assert!(found.cut);
        assert_eq!(found.all.len(), MAPPINGS_MAX);
    }
}
