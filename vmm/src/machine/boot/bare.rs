//! Bare-metal guests: an ELF image, the start info, first registers.
//!
//! The addresses are those of the `abi` crate. The guest is entered at its ELF entry in 64-bit mode, as
//! `hvm_start_info` (the PVH boot protocol) promises its memory map and command line, in RBX and RSI.

use super::elf::Elf;
use super::tables;
use super::{BootError, fits};
use crate::machine::config::MachineConfig;
use crate::memory::GuestMemory;
use crate::state::CpuState;
use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_start_info};
use vm_memory::{Bytes, GuestAddress};

const MEMORY_MAP: u64 = 0x4000;
/// hvm_start_info.magic: "xEn3" with the high bit set (Xen's public/arch-x86/hvm/start_info.h).
const START_INFO_MAGIC: u32 = 0x336e_c578;

/// Puts image, start info and page tables into `memory` and returns the first registers.
///
/// # Errors
/// If the image is broken or does not fit.
pub(super) fn load(
    config: &MachineConfig,
    image: &[u8],
    memory: &GuestMemory,
) -> Result<CpuState, BootError> {
    let elf = Elf::parse(image)?;
    fits(config, elf.end)?;
    let entry = elf.load(image, memory)?;
    write_start_info(config, memory)?;
    tables::write_pages(memory);
    let descriptors = [0, tables::CODE, tables::DATA];
    tables::write_gdt(memory, &descriptors);
    let mut state = tables::long_mode(entry, [8, 16], descriptors.len());
    state.general[1] = abi::START_INFO; // RBX
    state.general[4] = abi::START_INFO; // RSI
    state.general[6] = abi::START_INFO; // RSP: below the start info, for the first few pushes
    Ok(state)
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
