//! The machine's control page.

use crate::boot::device_address;

/// Reads the time-stamp counter, in ticks of [`abi::TSC_HZ`] (nanoseconds).
///
/// Asks the machine directly, which costs one exit and one log entry; RDTSC would fault first.
#[must_use]
pub fn tsc() -> u64 {
    const TSC: u64 = device_address(abi::CONTROL_PAGE + abi::control::TSC);
    let value: u64;
    // SAFETY: reading the register has no effect on memory.
    unsafe {
        core::arch::asm!("cmp eax, eax", "mov {}, qword ptr [{TSC}]", out(reg) value, TSC = const TSC, options(nostack, readonly));
    }
    value
}

/// Reads the time-stamp counter by the RDTSC instruction, which faults into ring 0 and is answered
/// there by what [`tsc`] reads.
#[must_use]
pub fn rdtsc() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: the instruction, or the ring 0 stub in its place, writes these registers only.
    unsafe {
        core::arch::asm!("rdtsc", out("eax") low, out("edx") high, options(nostack, preserves_flags));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// Resets the machine: it starts over, and nothing but the disk remembers.
pub fn reset() -> ! {
    const RESET: u64 = device_address(abi::CONTROL_PAGE + abi::control::RESET);
    loop {
        // SAFETY: nothing of this program goes on behind it.
        unsafe {
            core::arch::asm!("cmp eax, eax", "mov dword ptr [{RESET}], {:e}", in(reg) 0, RESET = const RESET, options(nostack));
        }
    }
}

/// Switches the machine off with exit status `status`.
pub fn power_off(status: u32) -> ! {
    const POWER_OFF: u64 = device_address(abi::CONTROL_PAGE + abi::control::POWER_OFF);
    loop {
        // SAFETY: the machine ends here.
        unsafe {
            core::arch::asm!("cmp eax, eax", "mov dword ptr [{POWER_OFF}], {:e}", in(reg) status, POWER_OFF = const POWER_OFF, options(nostack));
        }
    }
}
