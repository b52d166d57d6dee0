//! The way from the machine's entry to the program, and back to power-off.
//!
//! ```text
//! _start (boot.s, ring 0) ──▶ enter_program (ring 3) ──▶ start_program ──▶ guest_main ──▶ power_off
//!                                                          │ heap, command line
//! ```
//!
//! Memory as the runtime lays it out (virtual is physical, but for the devices):
//!
//! ```text
//! 0x0000_0000  not mapped
//! 0x0000_1000  what the machine left: start info, command line
//! 0x0000_f000  not mapped: stack overflow ends here
//! 0x0001_0000  the program's stack, 512 KiB
//! 0x0009_0000  not mapped
//! 0x0010_0000  image, then heap to the end of RAM
//! 0x7fe0_0000  the machine's clock, control and device pages (physical 0xd000_0000): here a 32-bit
//!              displacement reaches them, which keeps the block clock short
//! ```

use crate::{args::Args, control, heap};

/// Where the program's stack ends.
const STACK_BOTTOM: u64 = 0x1_0000;
/// Where the program's stack starts.
const STACK_TOP: u64 = 0x9_0000;
/// Virtual address of the 2 MiB at [`abi::CLOCK_PAGE`], which hold every device.
const DEVICES: u64 = 0x7fe0_0000;
/// End of the memory a guest can use.
pub const RAM_LIMIT: u64 = DEVICES;

/// Exit status of a guest that met an exception it cannot handle.
const EXCEPTION_STATUS: u32 = 101;

/// The virtual address of a device register at physical address `physical`.
#[must_use]
pub const fn device_address(physical: u64) -> u64 {
    assert!(physical >= abi::CLOCK_PAGE && physical - abi::CLOCK_PAGE < 0x20_0000);
    physical - abi::CLOCK_PAGE + DEVICES
}

core::arch::global_asm!(
    include_str!("boot.s"),
    KERNEL_CODE = const 0x08,
    USER_DATA = const 0x1b,
    USER_CODE = const 0x23,
    TSS = const 0x28,
    STACK_BOTTOM = const STACK_BOTTOM,
    STACK_TOP = const STACK_TOP,
    IMAGE = const abi::IMAGE_BASE,
    DEVICES = const abi::CLOCK_PAGE,
    CLOCK = const device_address(abi::CLOCK_PAGE),
    CONTROL_TRAP = const device_address(abi::CONTROL_PAGE + abi::control::TRAP),
    CONTROL_TSC = const device_address(abi::CONTROL_PAGE + abi::control::TSC),
    CONTROL_POWER_OFF = const device_address(abi::CONTROL_PAGE + abi::control::POWER_OFF),
    EXCEPTION_STATUS = const EXCEPTION_STATUS,
);

unsafe extern "C" {
    /// Vector, error code, RIP and CR2 of the exception that ended the program.
    static exception_report: [u64; 4];
}

unsafe extern "Rust" {
    /// The program, made by [`crate::entry!`].
    safe fn guest_main(args: &Args) -> u32;
}

/// Ring 3 begins here.
#[unsafe(no_mangle)]
extern "C" fn start_program() -> ! {
    heap::init();
    let args = Args::from_machine();
    control::power_off(guest_main(&args))
}

/// Says what exception happened and switches off; the ring 0 stub comes here on a fresh stack.
#[unsafe(no_mangle)]
extern "C" fn report_exception() -> ! {
    // SAFETY: the stub wrote it before coming here, and nothing writes it again.
    let [vector, code, rip, address] = unsafe { exception_report };
    crate::println!("exception {vector} at {rip:#x}: error code {code:#x}, CR2 {address:#x}");
    control::power_off(EXCEPTION_STATUS)
}

/// Only ever named by unwind tables, which the image does not keep.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}
