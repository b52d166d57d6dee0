//! Getting a vCPU thread out of the guest.
//!
//! ```text
//!  any thread ── tgkill(SIGRTMIN+1) ──▶ vCPU thread
//!                                        handler: kvm_run.immediate_exit = 1
//!                                        KVM_RUN returns EINTR, now or when next called
//! ```
//!
//! The handler closes the window between the last look at the inbox and KVM_RUN.

use kvm_bindings::kvm_run;
use std::cell::Cell;
use std::ptr::null_mut;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

thread_local! {
    /// The vCPU this thread runs; null when it runs none.
    static CURRENT: Cell<*mut kvm_run> = const { Cell::new(null_mut()) };
}

/// The signal that kicks.
#[must_use]
pub fn signal() -> libc::c_int {
    libc::SIGRTMIN() + 1
}

extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // `CURRENT` is const-initialised and has no destructor, so this access neither allocates nor locks.
    let run = CURRENT.with(Cell::get);
    if !run.is_null() {
        // SAFETY: the pointer is set by the thread that runs this handler, and cleared before the mapping
        // goes away; the byte is written atomically, as the other side does.
        unsafe { immediate_exit(run) }.store(1, Ordering::Relaxed);
    }
}

/// The flag KVM looks at on entry.
///
/// # Safety
/// `run` must point to a live `kvm_run` mapping for the lifetime of the result.
unsafe fn immediate_exit<'a>(run: *mut kvm_run) -> &'a AtomicU8 {
    // SAFETY: as promised by the caller; the field is one byte, so alignment holds.
    unsafe { AtomicU8::from_ptr(&raw mut (*run).immediate_exit) }
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

/// Makes kicks to this thread reach the vCPU behind `run`, while it lives.
pub(super) struct Target(*mut kvm_run);

impl Target {
    /// # Safety
    /// `run` must stay mapped until the result is dropped, on this same thread.
    pub(super) unsafe fn new(run: *mut kvm_run) -> Self {
        CURRENT.with(|current| current.set(run));
        Self(run)
    }

    /// Takes back a kick that was noticed.
    pub(super) fn clear(&self) {
        // SAFETY: `new`'s contract keeps the mapping alive.
        unsafe { immediate_exit(self.0) }.store(0, Ordering::Relaxed);
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
