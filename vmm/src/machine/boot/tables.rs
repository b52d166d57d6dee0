//! Page tables, descriptors and registers of a vCPU that starts in 64-bit mode.

use crate::memory::GuestMemory;
use crate::state::{CpuState, Fpu, Segment, Table};
use vm_memory::{Bytes, GuestAddress};

const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const GDT: u64 = 0x3000;
const PAGE_DIRECTORIES: u64 = 0x8000;
/// Page table entry: present, writable, user, accessed, dirty (SDM volume 3, table 4-15). Accessed and
/// dirty are set from the beginning: when a processor would set them is not ours to know.
const TABLE_ENTRY: u64 = 0x67;
/// And of 2 MiB.
const PAGE_ENTRY: u64 = TABLE_ENTRY | 1 << 7;

/// Descriptor of 64-bit code, accessed (SDM volume 3, 3.4.5).
pub(super) const CODE: u64 = 0x00af_9b00_0000_ffff;
/// Descriptor of data, accessed.
pub(super) const DATA: u64 = 0x00cf_9300_0000_ffff;

fn put(memory: &GuestMemory, at: u64, value: u64) {
    memory
        .write_obj(value, GuestAddress(at))
        .expect("the first page is always there");
}

/// Maps the low 4 GiB one to one.
pub(super) fn write_pages(memory: &GuestMemory) {
    put(memory, PML4, PDPT | TABLE_ENTRY);
    for gib in 0..4 {
        let directory = PAGE_DIRECTORIES + gib * 0x1000;
        put(memory, PDPT + gib * 8, directory | TABLE_ENTRY);
        for page in 0..512 {
            put(
                memory,
                directory + page * 8,
                (gib << 30 | page << 21) | PAGE_ENTRY,
            );
        }
    }
}

/// The GDT for the selectors the guest starts with.
pub(super) fn write_gdt(memory: &GuestMemory, descriptors: &[u64]) {
    for (at, descriptor) in (GDT..).step_by(8).zip(descriptors) {
        put(memory, at, *descriptor);
    }
}

/// Registers of 64-bit mode at `entry` with interrupts off; `code` and `data` select [`CODE`] and
/// [`DATA`] in a GDT of `descriptors` entries.
pub(super) fn long_mode(entry: u64, [code, data]: [u16; 2], descriptors: usize) -> CpuState {
    let code = Segment {
        limit: u32::MAX,
        selector: code,
        attributes: 0xa9b,
        ..Default::default()
    };
    let data = Segment {
        limit: u32::MAX,
        selector: data,
        attributes: 0xc93,
        ..Default::default()
    };
    let task = Segment {
        limit: 0x67,
        attributes: 0x8b,
        ..Default::default()
    };
    let none = Segment {
        attributes: 1 << 12,
        ..Default::default()
    };
    CpuState {
        rip: entry,
        rflags: 2,
        segments: [code, data, data, data, data, data, task, none],
        tables: [
            Table {
                base: GDT,
                limit: u16::try_from(descriptors * 8 - 1).expect("a few"),
            },
            Table::default(),
        ],
        // PG, WP, NE, ET, MP, PE; PAE, OSFXSR, OSXMMEXCPT (SDM volume 3, 2.5).
        control: [0x8001_0033, 0, PML4, 0x620, 0],
        efer: 0xd00, // NXE, LMA, LME
        fpu: Fpu {
            fcw: 0x37f,
            mxcsr: 0x1f80,
            ..Default::default()
        },
        ..Default::default()
    }
}
