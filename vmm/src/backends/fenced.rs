//! A write that is not begun once its thread has been made to wait since a look at the clock.
//!
//! ```text
//!   Watch::begin          the permit's clock        pwrite
//!   ├─ TSC is read ───────┼────────────────── ├─ TSC, compare, syscall ─┤
//!   └─ a pause here makes the difference too ─┘└─ after a pause here the ┘
//!      large: nothing is written                  kernel goes to `broken`
//! ```
//!
//! Why: who may write for a time only has to look at a clock, and then to write. A thread that is stopped between
//! the two (SIGSTOP, a frozen container, a busy host) goes on long after, and writes late. Linux can be told of a few
//! instructions that must not be gone on with after the thread has lost its processor (restartable sequences,
//! rseq(2), since Linux 4.18). The last of those here is the system call itself, so there is no gap: either the
//! kernel has the write, or it is not done. What lies before those instructions is measured by the processor's
//! time-stamp counter.
//!
//! Needs a libc that registers its threads for it: glibc 2.35 or later. Without, a write is not fenced. A host that
//! stands still as a whole, its kernel with it, is out of its kernel's sight.

use std::arch::asm;
use std::arch::x86_64::_rdtsc;
use std::fs::File;
use std::io;
use std::mem::offset_of;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::LazyLock;

/// Most ticks of the time-stamp counter between a look at the clock and the write: 0.2 to 1 ms on processors of
/// 1 to 5 GHz. Those who may write for a time leave milliseconds of it unused.
const TICKS_MAX: u64 = 1 << 20;
/// What glibc registers its threads with, on x86 (`RSEQ_SIG` of its `bits/rseq.h`): the four bytes before the place
/// the kernel goes to.
const SIGNATURE: u32 = 0x5305_3053;
/// No result of a write: it was not begun.
const NOT_BEGUN: i64 = i64::MIN;

/// A thread's word to the kernel (`struct rseq` of `linux/rseq.h`), as far as it is needed.
#[repr(C)]
struct Area {
    cpu_id_start: u32,
    /// The processor the thread is on; negative where it is not registered.
    cpu_id: i32,
    /// The instructions not to be gone on with, or 0.
    section: u64,
}

/// Where glibc keeps each thread's [`Area`], from the thread's pointer on; none where it does not register any.
static AREA_OFFSET: LazyLock<Option<isize>> = LazyLock::new(|| {
    // SAFETY: both names are C strings; glibc (2.35) says that they name constants of these types.
    unsafe {
        let size: *const u32 = libc::dlsym(libc::RTLD_DEFAULT, c"__rseq_size".as_ptr()).cast();
        let offset: *const isize =
            libc::dlsym(libc::RTLD_DEFAULT, c"__rseq_offset".as_ptr()).cast();
        (!size.is_null() && !offset.is_null() && *size != 0).then(|| *offset)
    }
});

/// The calling thread's area, where it is registered.
fn area() -> Option<*mut Area> {
    let offset = (*AREA_OFFSET)?;
    let thread: *mut u8;
    // SAFETY: on x86-64 the thread's pointer stands at its own address (System V ABI, "thread-local storage").
    unsafe { asm!("mov {}, fs:0", out(reg) thread, options(nostack, readonly, preserves_flags)) };
    let area: *mut Area = thread.wrapping_offset(offset).cast();
    // SAFETY: glibc keeps an area for every thread of its own there, for as long as the thread lives.
    let is_registered = unsafe { (*area).cpu_id } >= 0;
    is_registered.then_some(area)
}

/// Whether writes of this process's threads are fenced on this host.
#[must_use]
pub fn is_fenced() -> bool {
    area().is_some()
}

/// Since when a thread is watched.
struct Watch {
    ticks: u64,
    ticks_max: u64,
    /// Times it goes round between the last look at the counter and the write: one, or more for a test that wants to
    /// find it there.
    rounds: u64,
}

impl Watch {
    /// From now on.
    fn begin() -> Self {
        Self {
            // SAFETY: every x86-64 processor has it.
            ticks: unsafe { _rdtsc() },
            ticks_max: TICKS_MAX,
            rounds: 1,
        }
    }

    /// Writes `data` to `file` at `offset` as pwrite(2) does, and returns what that returns; none, with nothing
    /// written, if this thread was made to wait since [`Self::begin`].
    fn pwrite(self, file: &File, data: &[u8], offset: u64) -> Option<io::Result<usize>> {
        let Some(area) = area() else {
            return self.pwrite_unfenced(file, data, offset);
        };
        match self.pwrite_in(area, file, data, offset) {
            NOT_BEGUN => None,
            error if error < 0 => {
                let number = i32::try_from(-error).unwrap_or(libc::EIO);
                Some(Err(io::Error::from_raw_os_error(number)))
            }
            count => Some(Ok(usize::try_from(count).unwrap_or(0))),
        }
    }

    #[inline(never)]
    fn pwrite_in(self, area: *mut Area, file: &File, data: &[u8], offset: u64) -> i64 {
        let result: i64;
        // SAFETY: the area is the calling thread's, and registered. What is described to the kernel is static, and
        // ends with the system call, which reads `data` only. Where the kernel goes to instead stands behind the
        // signature it looks for, and all registers that may have changed by then are given up.
        unsafe {
            asm!(
                // struct rseq_cs: version, flags, first instruction, bytes, where to go.
                ".pushsection .data.rel.ro.fenced, \"aw\", @progbits",
                ".balign 32",
                "2:",
                ".long 0, 0",
                ".quad 3f, 4f - 3f, 5f",
                ".popsection",
                "lea {scratch}, [rip + 2b]",
                "mov qword ptr [{area} + {section}], {scratch}",
                "3:",
                "rdtsc",
                "shl rdx, 32",
                "or rax, rdx",
                "sub rax, {ticks}",
                "cmp rax, {ticks_max}",
                "jae 5f",
                "7:",
                "dec {rounds}",
                "jnz 7b",
                "mov rdx, {len}",
                "mov eax, {pwrite}",
                "syscall",
                "4:",
                "jmp 6f",
                // ud1, so that the signature is an instruction to a disassembler.
                ".byte 0x0f, 0xb9, 0x3d",
                ".long {signature}",
                "5:",
                "mov rax, {not_begun}",
                "6:",
                "mov qword ptr [{area} + {section}], 0",
                area = in(reg) area,
                section = const offset_of!(Area, section),
                scratch = out(reg) _,
                rounds = inout(reg) self.rounds => _,
                ticks = in(reg) self.ticks,
                ticks_max = in(reg) self.ticks_max,
                len = in(reg) data.len(),
                pwrite = const libc::SYS_pwrite64,
                signature = const SIGNATURE,
                not_begun = in(reg) NOT_BEGUN,
                in("rdi") i64::from(file.as_raw_fd()),
                in("rsi") data.as_ptr(),
                in("r10") offset,
                out("rax") result,
                out("rdx") _,
                out("rcx") _,
                out("r11") _,
                options(nostack),
            );
        }
        result
    }

    /// Without the kernel's help: a pause right before the system call is not seen.
    fn pwrite_unfenced(self, file: &File, data: &[u8], offset: u64) -> Option<io::Result<usize>> {
        // SAFETY: every x86-64 processor has it.
        let ticks = unsafe { _rdtsc() }.wrapping_sub(self.ticks);
        (ticks < self.ticks_max).then(|| file.write_at(data, offset))
    }
}

/// Writes all of `data` to `file` at `offset`, asking `may` right before each system call; none, with the rest not
/// written, once that says no.
///
/// # Errors
/// Why the rest was not written.
pub(super) fn write_all_while(
    file: &File,
    mut data: &[u8],
    mut offset: u64,
    mut may: impl FnMut() -> bool,
) -> Option<io::Result<()>> {
    while !data.is_empty() {
        let watch = Watch::begin();
        if !may() {
            return None;
        }
        match watch.pwrite(file, data, offset) {
            // Made to wait meanwhile: what it was told may be no longer so.
            None => {}
            Some(Ok(0)) => return Some(Err(io::ErrorKind::WriteZero.into())),
            Some(Ok(count)) => {
                data = &data[count..];
                offset += count as u64;
            }
            Some(Err(e)) if e.kind() == io::ErrorKind::Interrupted => {}
            Some(Err(e)) => return Some(Err(e)),
        }
    }
    Some(Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backends::testing::isolated;
    use nix::sys::signal::{Signal, kill};
    use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
    use nix::unistd::{ForkResult, Pid, fork};
    use std::io::Write;
    use std::time::Duration;

    fn file() -> File {
        file_of(&[0x11; 64])
    }

    fn file_of(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(bytes).expect("room");
        file
    }

    fn content(file: &File) -> Vec<u8> {
        let mut content = vec![0; 64];
        let count = std::os::unix::fs::FileExt::read_at(file, &mut content, 0).expect("it is ours");
        content.truncate(count);
        content
    }

    #[test]
    fn a_thread_that_was_not_made_to_wait_writes() {
        let file = file();
        // A busy host may take its processor, but not every time.
        let wrote = (0..1000).find_map(|_| Watch::begin().pwrite(&file, b"abc", 2));
        assert_eq!(wrote.expect("at least once").expect("written"), 3);
        assert_eq!(content(&file)[..6], *b"\x11\x11abc\x11");
    }

    #[test]
    fn a_thread_that_waited_before_it_writes_nothing() {
        let file = file();
        let watch = Watch::begin();
        std::thread::sleep(Duration::from_millis(20));
        assert!(watch.pwrite(&file, b"abc", 0).is_none());
        assert_eq!(content(&file), [0x11; 64]);
    }

    #[test]
    fn whoever_waited_for_its_permit_is_asked_again() {
        let file = file();
        let mut asked = 0;
        let wrote = write_all_while(&file, b"abc", 0, || {
            asked += 1;
            if asked == 1 {
                std::thread::sleep(Duration::from_millis(20));
            }
            true
        });
        wrote.expect("it may").expect("written");
        assert!(asked >= 2);
        assert_eq!(content(&file)[..4], *b"abc\x11");
        assert!(write_all_while(&file, b"xyz", 0, || false).is_none());
        assert_eq!(content(&file)[..4], *b"abc\x11");
    }

    /// Ticks of a pause that is found out wherever it begins: many times what the rounds of [`write_on`] take.
    const PAUSE_TICKS: u64 = 1 << 26;

    /// Writes one number after the other to `file`, for as long as `over` is empty.
    fn write_on(file: &File, over: &File) {
        for number in 0u64.. {
            // A millisecond of them: nearly always it is found there.
            let watch = Watch {
                ticks_max: PAUSE_TICKS,
                rounds: 1 << 20,
                ..Watch::begin()
            };
            if over.metadata().expect("it is ours").len() > 0 {
                return;
            }
            let wrote = watch.pwrite(file, &number.to_le_bytes(), 0);
            assert!(wrote.is_none_or(|wrote| wrote.is_ok()));
        }
    }

    /// Waits until a stopped process has lost its processor. It is told of as stopped a moment before; if it may go
    /// on by then, it never was away, and nothing aborts what it is at.
    fn has_left_its_processor(process: Pid) {
        // proc(5): "running", or where it is blocked, once the kernel has seen it off its processor.
        let blocked = format!("/proc/{process}/syscall");
        while std::fs::read_to_string(&blocked).expect("procfs").trim() == "running" {
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_process_that_is_stopped_right_before_the_system_call_writes_nothing() {
        if !is_fenced() {
            println!("SKIPPED: this libc registers no restartable sequences");
            return;
        }
        isolated(|| {
            for _ in 0..10 {
                let (file, over) = (file(), file_of(b""));
                // SAFETY: this process has one thread.
                let child = match unsafe { fork() }.expect("fork") {
                    ForkResult::Child => {
                        write_on(&file, &over);
                        // SAFETY: ends the process here, without the harness's own ending.
                        unsafe { libc::_exit(0) }
                    }
                    ForkResult::Parent { child } => child,
                };
                let before = content(&file);
                while content(&file) == before {
                    std::thread::yield_now();
                }
                kill(child, Signal::SIGSTOP).expect("it is ours");
                let stopped = waitpid(child, Some(WaitPidFlag::WUNTRACED));
                assert_eq!(stopped, Ok(WaitStatus::Stopped(child, Signal::SIGSTOP)));
                has_left_its_processor(child);
                // SAFETY: every x86-64 processor has it.
                let ticks = || unsafe { _rdtsc() };
                let since = ticks();
                (&over).write_all(b"over").expect("room");
                let then = content(&file);
                while ticks().wrapping_sub(since) <= PAUSE_TICKS {
                    std::thread::yield_now();
                }
                kill(child, Signal::SIGCONT).expect("it is ours");
                assert_eq!(waitpid(child, None), Ok(WaitStatus::Exited(child, 0)));
                assert_eq!(content(&file), then, "a late write");
            }
        });
    }

    #[test]
    fn errors_are_those_of_the_system_call() {
        let (read, _write) = nix::unistd::pipe().expect("a pipe");
        let pipe = File::from(read);
        let wrote = write_all_while(&pipe, b"abc", 0, || true).expect("it may");
        assert_eq!(
            wrote.expect_err("a pipe has no places").raw_os_error(),
            Some(libc::ESPIPE)
        );
    }
}
