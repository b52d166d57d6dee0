//! I/O ports. The task state segment of boot.s lets the program use those below 0x400. (IOPL would be
//! shorter, but a KVM without hardware support does not keep it.)
//!
//! The machine looks at all registers at an access, and flags that an instruction before it leaves undefined are
//! not the same on all processors. So each access to a device, here and elsewhere in the runtime, begins with
//! `cmp eax, eax`, which defines them.

/// Writes a byte to `port`.
///
/// # Safety
/// The device there must not be one that changes memory on such a write.
pub unsafe fn write(port: u16, value: u8) {
    // SAFETY: as promised by the caller.
    unsafe {
        core::arch::asm!("cmp eax, eax", "out dx, al", in("dx") port, in("al") value, options(nostack));
    }
}

/// Reads a byte from `port`.
///
/// # Safety
/// The device there must not be one that changes memory on such a read.
#[must_use]
pub unsafe fn read(port: u16) -> u8 {
    let value: u8;
    // SAFETY: as promised by the caller.
    unsafe {
        core::arch::asm!("cmp eax, eax", "in al, dx", in("dx") port, out("al") value, options(nostack));
    }
    value
}
