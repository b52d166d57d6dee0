//! What the machine and its bare-metal guests agree on.
//!
//! ```text
//! 0x0000_0000  RAM (`--memory`, 16 MiB at least)
//!   0x0000_1000   page tables and GDT the machine starts with
//!   0x0000_6000   hvm_start_info (PVH), RBX and RSI point to it at entry
//!   0x0000_7000   command line, NUL-terminated
//!   0x0010_0000   the guest's image (ELF64, entered at e_entry in 64-bit mode, ring 0, IF=0)
//! 0xd000_0000  clock page: one u64, the block budget (host memory, not RAM, in no digest)
//! 0xd000_1000  control page (MMIO)
//! 0xd000_2000  virtio-mmio 0: network, IRQ 10
//! 0xd000_3000  virtio-mmio 1: block, IRQ 11
//! 0xd000_4000  virtio-mmio 2: entropy, IRQ 5 (Linux guests only)
//! ```
//!
//! At entry the low 4 GiB are mapped one to one, writable, executable and accessible from ring 3,
//! in 2 MiB pages whose accessed and dirty bits are set already.
//!
//! # The block clock
//!
//! Each counted basic block runs `sub qword [CLOCK_PAGE], 1; jz trap`. At zero the guest stores any
//! 32-bit value to [`CONTROL_PAGE`] + [`control::TRAP`]; the machine refills the word before the
//! guest goes on. The guest must never use the word in any other way, and the counting code must
//! leave the arithmetic flags in a fixed state: what the budget is differs between replicas.
//!
//! # Example
//!
//! ```
//! // The low 4 GiB hold RAM first, and the devices' windows above all RAM there can be.
//! const MOST_RAM: u64 = 3072 << 20;
//! assert!(MOST_RAM <= abi::CLOCK_PAGE);
//! assert_eq!(abi::CONTROL_PAGE, abi::CLOCK_PAGE + abi::WINDOW);
//!
//! // What the guest `counter` takes on its command line, `key=value` each.
//! let keys: Vec<&str> = abi::arguments::of("counter").unwrap().map(|(key, _)| key).collect();
//! assert_eq!(keys, ["hz", "ticks", "iterations"]);
//! ```
#![no_std]

pub mod arguments;

/// End of the memory the guest's low part may use up to the image.
pub const IMAGE_BASE: u64 = 0x10_0000;
/// Start of the PVH start info.
pub const START_INFO: u64 = 0x6000;
/// Start of the command line.
pub const CMDLINE: u64 = 0x7000;
/// Most bytes of a command line, NUL included.
pub const CMDLINE_MAX: usize = 2048;

/// The page holding the block budget.
pub const CLOCK_PAGE: u64 = 0xd000_0000;
/// The page of [`control`] registers.
pub const CONTROL_PAGE: u64 = 0xd000_1000;
/// virtio-mmio registers of the network device.
pub const NET_PAGE: u64 = 0xd000_2000;
/// virtio-mmio registers of the block device.
pub const BLOCK_PAGE: u64 = 0xd000_3000;
/// virtio-mmio registers of the entropy device.
pub const RNG_PAGE: u64 = 0xd000_4000;
/// Bytes of one device's register window.
pub const WINDOW: u64 = 0x1000;

/// PIC input of the PIT.
pub const TIMER_IRQ: u8 = 0;
/// PIC input of the 16550.
pub const SERIAL_IRQ: u8 = 4;
/// PIC input of the entropy device.
pub const RNG_IRQ: u8 = 5;
/// PIC input of the RTC.
pub const RTC_IRQ: u8 = 8;
/// PIC input of the network device.
pub const NET_IRQ: u8 = 10;
/// PIC input of the block device.
pub const BLOCK_IRQ: u8 = 11;

/// I/O port of the first 16550.
pub const SERIAL_PORT: u16 = 0x3f8;
/// Frequency of the time-stamp counter the guest sees, in Hz: always this, on every host.
pub const TSC_HZ: u64 = 1_000_000_000;
/// Input frequency of the PIT, in Hz (8254: 1.193182 MHz).
pub const PIT_HZ: u64 = 1_193_182;

/// Registers of the control page, as offsets.
pub mod control {
    /// Write, 32 bits: the block budget ran out.
    pub const TRAP: u64 = 0x00;
    /// Read, 64 bits: the time-stamp counter ([`super::TSC_HZ`]).
    pub const TSC: u64 = 0x08;
    /// Write, 32 bits: switch the machine off; the value is the exit status.
    pub const POWER_OFF: u64 = 0x10;
    /// Write, 32 bits: reset the machine, which starts over with memory cleared and the image loaded again.
    pub const RESET: u64 = 0x18;
    /// Read and write, 8 bits, and the only register on the board for Linux: the exit status a power-off by
    /// ACPI ends with. 0 until it is written.
    pub const EXIT_STATUS: u64 = 0x20;
}
