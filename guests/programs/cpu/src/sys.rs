//! The few system calls there are, and how the program begins.

use core::arch::{asm, global_asm};
use core::fmt;

// Linux enters with RSP at argc, argv[..], a null; the frame of a function wants it 16-aligned before the call.
global_asm!(
    ".globl _start",
    "_start:",
    "xor ebp, ebp",
    "mov rdi, rsp",
    "and rsp, -16",
    "call {begin}",
    "ud2",
    begin = sym super::begin,
);

// Unwinding tables of the library name it; nothing unwinds.
global_asm!(".globl rust_eh_personality", "rust_eh_personality:", "ud2");

// What the compiler calls by name; those of the guests' runtime.
global_asm!(include_str!("../../../runtime/src/mem.s"));

// Numbers: arch/x86/entry/syscalls/syscall_64.tbl of Linux.
const WRITE: u64 = 1;
const MMAP: u64 = 9;
const MUNMAP: u64 = 11;
const MADVISE: u64 = 28;
const GETPPID: u64 = 110;
const CLOCK_GETTIME: u64 = 228;
const EXIT_GROUP: u64 = 231;

/// Error numbers are -1 to -4095.
const ERRORS_FROM: u64 = -4095i64 as u64;

/// # Safety
/// As the call asks for.
unsafe fn call(number: u64, args: [u64; 6]) -> u64 {
    let result;
    // SAFETY: the kernel changes RAX, RCX, R11 and what the call's arguments point to.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") args[0],
            in("rsi") args[1],
            in("rdx") args[2],
            in("r10") args[3],
            in("r8") args[4],
            in("r9") args[5],
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result
}

/// Ends the program.
pub fn exit(status: u32) -> ! {
    // SAFETY: it takes no pointer and does not come back.
    unsafe {
        call(EXIT_GROUP, [status.into(), 0, 0, 0, 0, 0]);
    }
    loop {
        core::hint::spin_loop();
    }
}

/// Writes all of `bytes` to standard output; ends the program if that fails.
pub fn print(mut bytes: &[u8]) {
    while !bytes.is_empty() {
        // SAFETY: the kernel reads so many bytes there.
        let written = unsafe {
            call(
                WRITE,
                [1, bytes.as_ptr() as u64, bytes.len() as u64, 0, 0, 0],
            )
        };
        match usize::try_from(written) {
            Ok(n) if written < ERRORS_FROM => bytes = bytes.get(n..).unwrap_or_default(),
            _ => exit(2),
        }
    }
}

/// A line in the making: written at once, so that it arrives at one time.
pub struct Line {
    bytes: [u8; 120],
    len: usize,
}

impl Line {
    /// An empty one.
    pub const fn new() -> Self {
        Self {
            bytes: [0; 120],
            len: 0,
        }
    }

    /// Prints it.
    pub fn print(&self) {
        print(&self.bytes[..self.len]);
    }
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = self.len + text.len();
        let place = self.bytes.get_mut(self.len..end).ok_or(fmt::Error)?;
        place.copy_from_slice(text.as_bytes());
        self.len = end;
        Ok(())
    }
}

/// The processor time this program has taken, in nanoseconds.
pub fn cpu_ns() -> u64 {
    let mut time = [0u64; 2];
    // SAFETY: the kernel writes a timespec (two words) there. Clock 2 is CLOCK_PROCESS_CPUTIME_ID.
    unsafe {
        call(CLOCK_GETTIME, [2, time.as_mut_ptr() as u64, 0, 0, 0, 0]);
    }
    time[0] * 1_000_000_000 + time[1]
}

/// A call that does next to nothing, and whose answer no kernel remembers for the program.
pub fn parent() -> u64 {
    // SAFETY: it takes no arguments.
    unsafe { call(GETPPID, [0; 6]) }
}

/// Fresh memory in pages of 4 KiB, none of them there yet; given back when dropped.
pub struct Pages {
    start: *mut u8,
    len: usize,
}

impl Pages {
    /// `len` bytes, a multiple of 4096.
    pub fn map(len: usize) -> Self {
        const READ_WRITE: u64 = 3;
        const PRIVATE_ANONYMOUS: u64 = 0x22;
        const NO_HUGE_PAGE: u64 = 15;
        // SAFETY: a mapping the kernel places where nothing is.
        let start = unsafe {
            call(
                MMAP,
                [0, len as u64, READ_WRITE, PRIVATE_ANONYMOUS, u64::MAX, 0],
            )
        };
        if start >= ERRORS_FROM {
            exit(3);
        }
        // A kernel without huge pages refuses this, and needs it not.
        // SAFETY: it changes no byte of that mapping.
        unsafe {
            call(MADVISE, [start, len as u64, NO_HUGE_PAGE, 0, 0, 0]);
        }
        Self {
            start: start as *mut u8,
            len,
        }
    }

    /// The bytes.
    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: they are mapped until this is dropped, read as zero, and nobody else knows them.
        unsafe { core::slice::from_raw_parts_mut(self.start, self.len) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: `bytes` lends no longer than `self` lives.
        unsafe {
            call(MUNMAP, [self.start as u64, self.len as u64, 0, 0, 0, 0]);
        }
    }
}
