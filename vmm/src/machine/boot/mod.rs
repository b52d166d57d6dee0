//! The first state of a machine: image, what it is told of the machine, page tables, registers.
//!
//! ```text
//!  GuestImage ── an ELF linked to low addresses ──▶ bare    start info, ELF entry
//!             ── an ELF linked to the upper half ─┐
//!             ── a bzImage ───────────────────────┴▶ linux  zero page, initrd, ACPI tables (acpi)
//!                                                    tables page tables, GDT, registers of both
//! ```
//!
//! Which it is also says what board the machine has: see [`BoardKind`].

mod acpi;
mod bare;
mod elf;
mod linux;
mod tables;

use super::config::{BoardKind, ConfigError, MachineConfig};
use crate::memory::GuestMemory;
use crate::state::CpuState;
use elf::Elf;
use vm_memory::GuestAddress;
use xxhash_rust::xxh3::{Xxh3Default, xxh3_64};

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
    /// The image is none this program knows, or a broken one.
    #[error(
        "the guest's image cannot be loaded: {0} \
         (an ELF64 executable or a Linux bzImage, for x86-64, is needed)"
    )]
    Image(String),
    /// The image is for another processor.
    #[error("the guest's image is for another architecture ({0}): one for x86-64 is needed")]
    Architecture(String),
    /// A Linux kernel that cannot be entered in 64-bit mode.
    #[error(
        "the guest's kernel speaks boot protocol {}.{:02} without a 64-bit entry: \
         it takes a 64-bit kernel, of Linux 3.8 or later",
        protocol >> 8,
        protocol & 0xff
    )]
    OldKernel {
        /// Its boot protocol: major number in the high byte, minor in the low.
        protocol: u16,
    },
    /// The image does not fit.
    #[error("the guest's image ends at {end:#x}, beyond its {mib} MiB of memory: give it more")]
    TooLittleMemory {
        /// First byte after the image.
        end: u64,
        /// The memory it has.
        mib: u32,
    },
    /// The initial file system does not fit beside the kernel.
    #[error(
        "the initrd of {bytes} bytes does not fit between the kernel's end at {from:#x} and {to:#x}: \
         give the guest more memory (it has {mib} MiB)"
    )]
    Initrd {
        /// Its size.
        bytes: usize,
        /// First address after what the kernel needs.
        from: u64,
        /// First address it must lie below.
        to: u64,
        /// The memory there is.
        mib: u32,
    },
    /// An initial file system for a guest that knows none.
    #[error("an initrd is for Linux kernels; this guest is none")]
    NoInitrd,
    /// The kernel takes a shorter command line.
    #[error("the guest's command line has {length} bytes, its kernel takes {most}")]
    Cmdline {
        /// Bytes it has.
        length: usize,
        /// Bytes the kernel takes.
        most: u32,
    },
    /// The image cannot be had a second time.
    #[error("the guest's reset cannot start it over: {0}")]
    Again(String),
    /// The image is another than the machine began with.
    #[error(
        "the guest's reset cannot start it over: its image '{guest}' was changed meanwhile \
         (digest {found:016x}, it began with {expected:016x})"
    )]
    Changed {
        /// The guest's name.
        guest: String,
        /// Digest of the image as it is.
        found: u64,
        /// Digest of the image the machine began with.
        expected: u64,
    },
    /// The configuration names another kind of board than the image needs.
    #[error("the guest's image needs the board '{needed}', the machine has '{configured}'")]
    Board {
        /// What the image needs.
        needed: BoardKind,
        /// What the configuration says.
        configured: BoardKind,
    },
}

/// What a machine starts from.
#[derive(Clone, Copy, Debug)]
pub struct GuestImage<'a> {
    /// A bare-metal guest's ELF file, or a Linux kernel.
    pub kernel: &'a [u8],
    /// A Linux kernel's initial file system.
    pub initrd: Option<&'a [u8]>,
}

/// What `kernel` is.
enum Format {
    Bare,
    LinuxElf(Elf),
    BzImage,
}

impl<'a> GuestImage<'a> {
    /// An image without an initrd.
    #[must_use]
    pub fn new(kernel: &'a [u8]) -> Self {
        Self {
            kernel,
            initrd: None,
        }
    }

    /// Digest of all of it (xxh3-64): of the kernel alone, or of the kernel's length, kernel and initrd.
    #[must_use]
    pub fn digest(&self) -> u64 {
        let Some(initrd) = self.initrd else {
            return xxh3_64(self.kernel);
        };
        let mut hash = Xxh3Default::new();
        hash.update(&(self.kernel.len() as u64).to_le_bytes());
        hash.update(self.kernel);
        hash.update(initrd);
        hash.digest()
    }

    /// The board it needs.
    ///
    /// # Errors
    /// If it is no image this program knows.
    pub fn board(&self) -> Result<BoardKind, BootError> {
        Ok(match self.format()? {
            Format::Bare => BoardKind::Bare,
            Format::LinuxElf(_) | Format::BzImage => BoardKind::Pc,
        })
    }

    fn format(&self) -> Result<Format, BootError> {
        if Elf::is(self.kernel) {
            let elf = Elf::parse(self.kernel)?;
            return Ok(if elf.high {
                Format::LinuxElf(elf)
            } else {
                Format::Bare
            });
        }
        if linux::is_bzimage(self.kernel) {
            return Ok(Format::BzImage);
        }
        // The headers of Linux's Documentation/arch/{arm64/booting,riscv/boot-image-header}.rst.
        match self.kernel.get(0x38..0x3c) {
            Some(b"ARM\x64") => Err(BootError::Architecture("an arm64 kernel".into())),
            Some(b"RSC\x05") => Err(BootError::Architecture("a RISC-V kernel".into())),
            _ => Err(BootError::Image("it is neither".into())),
        }
    }
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

/// Puts the guest into `memory` and returns the first registers.
///
/// # Errors
/// If the image is broken, does not fit, or needs another board than `config` has.
pub fn load(
    config: &MachineConfig,
    image: &GuestImage<'_>,
    memory: &GuestMemory,
) -> Result<CpuState, BootError> {
    let (needed, configured) = (image.board()?, config.board);
    if !configured.serves(needed) {
        return Err(BootError::Board { needed, configured });
    }
    match image.format()? {
        Format::Bare if image.initrd.is_some() => Err(BootError::NoInitrd),
        Format::Bare => bare::load(config, image.kernel, memory),
        Format::LinuxElf(elf) => linux::load_elf(config, image, elf, memory),
        Format::BzImage => linux::load_bzimage(config, image, memory),
    }
}

/// Refuses what ends beyond memory.
fn fits(config: &MachineConfig, end: u64) -> Result<(), BootError> {
    if end > config.memory_bytes() {
        return Err(BootError::TooLittleMemory {
            end,
            mib: config.memory_mib,
        });
    }
    Ok(())
}
