//! What translated code takes for granted of the host's processor, though its maker's manual leaves it open. Processors
//! of both makers do so; one that does not is left to the interpreter.

use std::arch::asm;

/// AF, in AH.
const AF: u64 = 1 << 12;

/// AH after an instruction of logic that began with AF set.
macro_rules! after {
    ($text:literal) => {{
        let flags: u64;
        // SAFETY: it changes registers that are said to change, and flags.
        unsafe {
            asm!(
                "mov eax, 0x1000",
                "sahf",
                $text,
                "lahf",
                out("rax") flags,
                inout("rcx") 0x0f0f_u64 => _,
                options(nomem, nostack),
            );
        }
        flags
    }};
}

/// Whether the host clears AF after logic, where it is undefined (SDM volume 2A, AND), and the upper half of a register
/// that a 32-bit shift by CL leaves as it is.
pub(super) fn agrees() -> bool {
    let flags = [
        after!("and ecx, 0xff"),
        after!("or ecx, 0xff"),
        after!("xor ecx, 0xff"),
        after!("test ecx, 0xff"),
    ];
    let shifted: u64;
    // SAFETY: as above.
    unsafe {
        asm!(
            "shl eax, cl",
            inout("rax") u64::MAX => shifted,
            in("rcx") 0_u64,
            options(nomem, nostack),
        );
    }
    flags.iter().all(|flags| flags & AF == 0) && shifted == u64::from(u32::MAX)
}
