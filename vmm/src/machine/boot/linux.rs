//! Linux kernels, by the 64-bit boot protocol (Linux, Documentation/arch/x86/{boot,zero-page}.rst).
//!
//! ```text
//!  0x0000_1000  page tables, GDT: as for bare-metal guests, but __BOOT_CS 0x10, __BOOT_DS 0x18
//!  0x0000_6000  zero page (struct boot_params); RSI points to it
//!  0x0000_7000  command line
//!  0x000e_0000  ACPI tables
//!  0x0010_0000  the kernel, as it comes; it unpacks itself to its preferred address
//!       ...
//!               initrd: page-aligned, as high as kernel and memory allow
//! ```

use super::elf::Elf;
use super::{BootError, GuestImage, acpi, fits, tables};
use crate::machine::config::MachineConfig;
use crate::memory::GuestMemory;
use crate::state::CpuState;
use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::{BzImage, KernelLoader};
use std::io::Cursor;
use vm_memory::{Bytes, GuestAddress};

const ZERO_PAGE: u64 = 0x6000;
const PAGE: u64 = 4096;
/// The setup header's magic number, at 0x202 of a bzImage: "HdrS".
const HEADER_MAGIC: u32 = 0x5372_6448;
/// Boot sector signature, at 0x1fe.
const BOOT_FLAG: u16 = 0xaa55;
/// Least bytes of a bzImage: through the field `init_size` of its setup header.
const BZIMAGE_MIN: usize = 0x264;
/// The first protocol with `xloadflags`.
const PROTOCOL_MIN: u16 = 0x20c;
/// xloadflags: there is a 64-bit entry, 0x200 after the start.
const XLF_KERNEL_64: u16 = 1;
const ENTRY_64: u64 = 0x200;
/// type_of_loader: none of the known ones.
const LOADER_UNDEFINED: u8 = 0xff;
/// loadflags: the kernel lies at 1 MiB and above.
const LOADED_HIGH: u8 = 1;
/// Memory map: memory, and not to be used.
const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;
/// Where the extended BIOS data area would be, and where memory ends that a PC's text screen is in.
const LOW_RAM_END: u64 = 0x9_fc00;
const SCREEN: u64 = 0xa_0000;
/// screen_info.orig_video_mode: 320x200 in 16 colours. There is RAM where a PC's text screen is, and a
/// kernel that tries it out takes it for one; not so in a graphics mode it has no text for.
const GRAPHICS_MODE: u8 = 0x0d;

/// Whether `kernel` has a Linux setup header.
pub(super) fn is_bzimage(kernel: &[u8]) -> bool {
    kernel.len() >= BZIMAGE_MIN
        && kernel[0x1fe..0x200] == BOOT_FLAG.to_le_bytes()
        && kernel[0x202..0x206] == HEADER_MAGIC.to_le_bytes()
}

/// Loads a bzImage.
pub(super) fn load_bzimage(
    config: &MachineConfig,
    image: &GuestImage<'_>,
    memory: &GuestMemory,
) -> Result<CpuState, BootError> {
    let kernel = image.kernel;
    let protocol = u16::from_le_bytes([kernel[0x206], kernel[0x207]]);
    let flags = u16::from_le_bytes([kernel[0x236], kernel[0x237]]);
    if protocol < PROTOCOL_MIN || flags & XLF_KERNEL_64 == 0 {
        return Err(BootError::OldKernel { protocol });
    }
    // Nothing in memory's way: the loader bounds what it copies, but says little when it fails.
    fits(config, abi::IMAGE_BASE + kernel.len() as u64)?;
    let base = GuestAddress(abi::IMAGE_BASE);
    let loaded = BzImage::load(memory, Some(base), &mut Cursor::new(kernel), None)
        .map_err(|e| BootError::Image(e.to_string()))?;
    let mut header = loaded
        .setup_header
        .ok_or_else(|| BootError::Image("it has no setup header".into()))?;
    header.code32_start = abi::IMAGE_BASE as u32;
    // It unpacks itself there, and what it needs until it has read its memory map is init_size.
    let unpacked = { header.pref_address }
        .checked_add(header.init_size.into())
        .ok_or_else(|| BootError::Image("its preferred address has no end".into()))?;
    let end = loaded.kernel_end.max(unpacked);
    enter(
        config,
        image,
        memory,
        header,
        end,
        abi::IMAGE_BASE + ENTRY_64,
    )
}

/// Loads a `vmlinux`, which is entered where a bzImage enters it after unpacking: at its 64-bit entry.
pub(super) fn load_elf(
    config: &MachineConfig,
    image: &GuestImage<'_>,
    elf: Elf,
    memory: &GuestMemory,
) -> Result<CpuState, BootError> {
    fits(config, elf.end)?;
    let entry = elf.load(image.kernel, memory)?;
    // The setup header is in the part of a bzImage that is not here. Of its fields, a kernel that is
    // unpacked reads the loader's only.
    let header = setup_header {
        boot_flag: BOOT_FLAG,
        header: HEADER_MAGIC,
        version: PROTOCOL_MIN,
        initrd_addr_max: 0x7fff_ffff,
        cmdline_size: abi::CMDLINE_MAX as u32 - 1,
        ..Default::default()
    };
    enter(config, image, memory, header, elf.end, entry)
}

/// What both have in common; `end`: first address after what the kernel needs.
fn enter(
    config: &MachineConfig,
    image: &GuestImage<'_>,
    memory: &GuestMemory,
    mut header: setup_header,
    end: u64,
    entry: u64,
) -> Result<CpuState, BootError> {
    fits(config, end)?;
    let most = header.cmdline_size;
    if config.cmdline.len() > most as usize {
        let length = config.cmdline.len();
        return Err(BootError::Cmdline { length, most });
    }
    let mut cmdline = config.cmdline.clone().into_bytes();
    cmdline.push(0);
    write(memory, abi::CMDLINE, &cmdline);
    header.cmd_line_ptr = abi::CMDLINE as u32;
    header.type_of_loader = LOADER_UNDEFINED;
    header.loadflags |= LOADED_HIGH;
    if let Some(initrd) = image.initrd.filter(|initrd| !initrd.is_empty()) {
        let at = place_initrd(config, initrd.len(), end, header.initrd_addr_max)?;
        write(memory, at.into(), initrd);
        header.ramdisk_image = at;
        header.ramdisk_size = u32::try_from(initrd.len()).expect("it fits below 4 GiB");
    }
    let rsdp = acpi::write(config, memory);
    write_zero_page(config, memory, header, rsdp)?;
    tables::write_pages(memory);
    let descriptors = [0, 0, tables::CODE, tables::DATA];
    tables::write_gdt(memory, &descriptors);
    let mut state = tables::long_mode(entry, [0x10, 0x18], descriptors.len());
    state.general[4] = ZERO_PAGE; // RSI
    state.general[6] = ZERO_PAGE; // RSP: below it, for a kernel that pushes before it has its stack
    Ok(state)
}

/// Memory that was checked to be there.
fn write(memory: &GuestMemory, at: u64, bytes: &[u8]) {
    memory
        .write_slice(bytes, GuestAddress(at))
        .expect("the place was chosen within memory");
}

/// Where an initrd of `length` bytes goes: as high as `addr_max`, its greatest last address, and memory
/// allow, and not below `from`.
fn place_initrd(
    config: &MachineConfig,
    length: usize,
    from: u64,
    addr_max: u32,
) -> Result<u32, BootError> {
    let to = config.memory_bytes().min(u64::from(addr_max) + 1);
    let at = to
        .checked_sub(length as u64)
        .map(|at| at - at % PAGE)
        .filter(|at| *at >= from)
        .ok_or(BootError::Initrd {
            bytes: length,
            from,
            to,
            mib: config.memory_mib,
        })?;
    Ok(u32::try_from(at).expect("memory ends below 4 GiB"))
}

fn write_zero_page(
    config: &MachineConfig,
    memory: &GuestMemory,
    header: setup_header,
    rsdp: u64,
) -> Result<(), BootError> {
    let mut params = boot_params {
        hdr: header,
        acpi_rsdp_addr: rsdp,
        ..Default::default()
    };
    params.screen_info.orig_video_mode = GRAPHICS_MODE;
    let map = memory_map(config);
    params.e820_table[..map.len()].copy_from_slice(&map);
    params.e820_entries = map.len() as u8;
    let params = BootParams::new(&params, GuestAddress(ZERO_PAGE));
    LinuxBootConfigurator::write_bootparams(&params, memory)
        .map_err(|e| BootError::Image(e.to_string()))
}

fn memory_map(config: &MachineConfig) -> [boot_e820_entry; 4] {
    let range = |addr: u64, end: u64, kind: u32| boot_e820_entry {
        addr,
        size: end - addr,
        r#type: kind,
    };
    [
        range(0, LOW_RAM_END, E820_RAM),
        range(LOW_RAM_END, SCREEN, E820_RESERVED),
        range(acpi::TABLES, abi::IMAGE_BASE, E820_RESERVED),
        range(abi::IMAGE_BASE, config.memory_bytes(), E820_RAM),
    ]
}

#[cfg(test)]
#[path = "linux_tests.rs"]
mod tests;
