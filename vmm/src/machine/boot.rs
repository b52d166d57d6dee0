//! The first state of a machine: image, start info, page tables, registers.
//!
//! The addresses are those of the `abi` crate. The guest is entered at its ELF entry in 64-bit mode, as
//! `hvm_start_info` (the PVH boot protocol) promises its memory map and command line, in RBX and RSI.

use super::config::{ConfigError, MachineConfig};
use crate::memory::GuestMemory;
use crate::state::{CpuState, Fpu, Segment, Table};
use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_start_info};
use linux_loader::loader::{Elf, KernelLoader};
use std::io::Cursor;
use vm_memory::{Bytes, GuestAddress};

const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const GDT: u64 = 0x3000;
const MEMORY_MAP: u64 = 0x4000;
const PAGE_DIRECTORIES: u64 = 0x8000;
/// hvm_start_info.magic: "xEn3" with the high bit set (Xen's public/arch-x86/hvm/start_info.h).
const START_INFO_MAGIC: u32 = 0x336e_c578;
/// Page table entry: present, writable, user, accessed, dirty (SDM volume 3, table 4-15). Accessed and
/// dirty are set from the beginning: when a processor would set them is not ours to know.
const TABLE_ENTRY: u64 = 0x67;
/// And of 2 MiB.
const PAGE_ENTRY: u64 = TABLE_ENTRY | 1 << 7;

/// Why a guest cannot be put into memory.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The configuration is out of bounds.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Host memory for the guest cannot be had.
    #[error("cannot map {mib} MiB of guest memory: {why}")]
    Memory {
        /// How much.
        mib: u32,
        /// Why.
        why: String,
    },
    /// The image is no ELF64 file for x86-64, or a broken one.
    #[error("the guest's image cannot be loaded: {0} (an ELF64 executable for x86-64 is needed)")]
    Image(String),
    /// The image does not fit.
    #[error("the guest's image ends at {end:#x}, beyond its {mib} MiB of memory: give it more")]
    TooLittleMemory {
        /// First byte after the image.
        end: u64,
        /// The memory it has.
        mib: u32,
    },
}

/// Makes the guest's memory.
///
/// # Errors
/// If the configuration is out of bounds or the host has no memory.
pub fn memory(config: &MachineConfig) -> Result<GuestMemory, BootError> {
    config.check()?;
    let bytes = usize::try_from(config.memory_bytes()).expect("at most 3 GiB");
    GuestMemory::from_ranges(&[(GuestAddress(0), bytes)]).map_err(|e| BootError::Memory {
        mib: config.memory_mib,
        why: e.to_string(),
    })
}

/// Puts image, start info and page tables into `memory` and returns the first registers.
///
/// # Errors
/// If the image is broken or does not fit.
pub fn load(
    config: &MachineConfig,
    image: &[u8],
    memory: &GuestMemory,
) -> Result<CpuState, BootError> {
    let end = image_end(image)?;
    if end > config.memory_bytes() {
        return Err(BootError::TooLittleMemory {
            end,
            mib: config.memory_mib,
        });
    }
    let base = GuestAddress(abi::IMAGE_BASE);
    let loaded = Elf::load(memory, None, &mut Cursor::new(image), Some(base))
        .map_err(|e| BootError::Image(e.to_string()))?;
    write_start_info(config, memory)?;
    write_tables(memory);
    Ok(first_registers(loaded.kernel_load.0))
}

/// First address after the image's segments, BSS included, which the loader does not look at.
fn image_end(image: &[u8]) -> Result<u64, BootError> {
    let broken = |why: &str| BootError::Image(why.to_owned());
    let word = |at: usize, size: usize| -> Result<u64, BootError> {
        let bytes = image
            .get(at..at + size)
            .ok_or_else(|| broken("it is cut short"))?;
        let mut value = [0; 8];
        value[..size].copy_from_slice(bytes);
        Ok(u64::from_le_bytes(value))
    };
    // ELF64 header: magic, class 64, little-endian; e_machine at 18, e_phoff at 32, e_phnum at 56.
    if image.get(..6) != Some(b"\x7fELF\x02\x01") || word(18, 2)? != 62 {
        return Err(broken("it is not an ELF64 file for x86-64"));
    }
    let table = usize::try_from(word(32, 8)?).map_err(|_| broken("its header is broken"))?;
    let mut end = 0;
    for n in 0..usize::try_from(word(56, 2)?).expect("16 bits") {
        let at = table
            .checked_add(n * 56)
            .filter(|at| *at < image.len())
            .ok_or_else(|| broken("its program header lies outside the file"))?;
        if word(at, 4)? == 1 {
            let (start, size) = (word(at + 24, 8)?, word(at + 40, 8)?);
            if start < abi::IMAGE_BASE {
                return Err(broken("a segment lies below 1 MiB"));
            }
            let last = start
                .checked_add(size)
                .ok_or_else(|| broken("a segment has no end"))?;
            end = end.max(last);
        }
    }
    if end == 0 {
        return Err(broken("it has nothing to load"));
    }
    Ok(end)
}

fn write_start_info(config: &MachineConfig, memory: &GuestMemory) -> Result<(), BootError> {
    let wrong = |e: &dyn std::fmt::Display| BootError::Image(e.to_string());
    let mut cmdline = config.cmdline.clone().into_bytes();
    cmdline.push(0);
    memory
        .write_slice(&cmdline, GuestAddress(abi::CMDLINE))
        .map_err(|e| wrong(&e))?;
    let ram = |addr: u64, size: u64| hvm_memmap_table_entry {
        addr,
        size,
        type_: 1, // XEN_HVM_MEMMAP_TYPE_RAM
        ..Default::default()
    };
    let map = [
        ram(0, 0xa_0000),
        ram(abi::IMAGE_BASE, config.memory_bytes() - abi::IMAGE_BASE),
    ];
    let info = hvm_start_info {
        magic: START_INFO_MAGIC,
        version: 1,
        cmdline_paddr: abi::CMDLINE,
        memmap_paddr: MEMORY_MAP,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    let mut params = BootParams::new(&info, GuestAddress(abi::START_INFO));
    params.set_sections(&map, GuestAddress(MEMORY_MAP));
    PvhBootConfigurator::write_bootparams(&params, memory).map_err(|e| wrong(&e))
}

/// One-to-one over the low 4 GiB, and a GDT for the selectors the guest starts with.
fn write_tables(memory: &GuestMemory) {
    let put = |at: u64, value: u64| {
        memory
            .write_obj(value, GuestAddress(at))
            .expect("the first page is always there");
    };
    put(PML4, PDPT | TABLE_ENTRY);
    for gib in 0..4 {
        let directory = PAGE_DIRECTORIES + gib * 0x1000;
        put(PDPT + gib * 8, directory | TABLE_ENTRY);
        for page in 0..512 {
            put(directory + page * 8, (gib << 30 | page << 21) | PAGE_ENTRY);
        }
    }
    put(GDT, 0);
    put(GDT + 8, 0x00af_9b00_0000_ffff); // 64-bit code, accessed
    put(GDT + 16, 0x00cf_9300_0000_ffff); // data, accessed
}

fn first_registers(entry: u64) -> CpuState {
    let code = Segment {
        limit: u32::MAX,
        selector: 8,
        attributes: 0xa9b,
        ..Default::default()
    };
    let data = Segment {
        limit: u32::MAX,
        selector: 16,
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
    let mut general = [0; 16];
    general[1] = abi::START_INFO; // RBX
    general[4] = abi::START_INFO; // RSI
    general[6] = abi::START_INFO; // RSP: below the start info, for the first few pushes
    CpuState {
        general,
        rip: entry,
        rflags: 2,
        segments: [code, data, data, data, data, data, task, none],
        tables: [
            Table {
                base: GDT,
                limit: 23,
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
