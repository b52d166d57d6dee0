//! Getting a vCPU thread out of the guest.
//!
//! ```text
//!  any thread ── tgkill(SIGRTMIN+1) ──▶ vCPU thread
//!                                        handler: sets the byte its engine looks at
//!                                        KVM_RUN returns EINTR, now or when next called;
//!                                        the software engine sees it before the next block
//! ```
//!
//! The handler closes the window between the last look at the inbox and the guest's entry.

use std::cell::Cell;
use std::ptr::null_mut;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

thread_local! {
    /// The byte to set; null when this thread runs no vCPU.
    static CURRENT: Cell<*mut u8> = const { Cell::new(null_mut()) };
}

/// The signal that kicks.
#[must_use]
pub fn signal() -> libc::c_int {
    libc::SIGRTMIN() + 1
}

extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // `CURRENT` is const-initialised and has no destructor, so this access neither allocates nor locks.
    let flag = CURRENT.with(Cell::get);
    if !flag.is_null() {
        // SAFETY: the pointer is set by the thread that runs this handler, and cleared before the byte
        // goes away; the byte is accessed atomically, as the other side does.
        unsafe { AtomicU8::from_ptr(flag) }.store(1, Ordering::Relaxed);
    }
}

/// Installs the handler, once for the process.
///
/// # Errors
/// If the signal cannot be had.
pub(crate) fn install() -> Result<(), std::io::Error> {
    static DONE: OnceLock<Result<(), i32>> = OnceLock::new();
    DONE.get_or_init(|| {
        vmm_sys_util::signal::register_signal_handler(signal(), on_kick).map_err(|e| e.errno())
    })
    .map_err(std::io::Error::from_raw_os_error)
}

/// Makes kicks to this thread set a byte, while it lives.
pub(crate) struct Target(*mut u8);

impl Target {
    /// # Safety
    /// `flag` must stay valid until the result is dropped, on this same thread, and be accessed atomically
    /// only.
    pub(crate) unsafe fn new(flag: *mut u8) -> Self {
        CURRENT.with(|current| current.set(flag));
        Self(flag)
    }

    /// Takes back a kick that was noticed.
    pub(crate) fn clear(&self) {
        // SAFETY: `new`'s contract keeps the byte alive.
        unsafe { AtomicU8::from_ptr(self.0) }.store(0, Ordering::Relaxed);
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        CURRENT.with(|current| current.set(null_mut()));
    }
}

/// Kicks one thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kicker {
    thread: libc::pid_t,
}

impl Kicker {
    /// A kicker of the calling thread.
    #[must_use]
    pub fn current_thread() -> Self {
        // SAFETY: gettid has no preconditions.
        let thread = unsafe { libc::gettid() };
        Self { thread }
    }

    /// The thread's id.
    #[must_use]
    pub fn thread(&self) -> libc::pid_t {
        self.thread
    }

    /// Sends the signal. A thread that has ended is no error: there is nobody left to kick.
    pub fn kick(&self) {
        // SAFETY: tgkill has no memory preconditions; the worst outcome is ESRCH.
        unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), self.thread, signal()) };
    }
}
