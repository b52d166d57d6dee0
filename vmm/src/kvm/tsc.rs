//! The time-stamp counter of a vCPU's thread.

use super::vm::KvmKind;
use crate::hostclock;

/// Makes `rdtsc` in ring 3 trap where only the thread's own flag does that (see `hostclock`).
pub(super) struct TscTrap {
    set: bool,
}

impl TscTrap {
    /// Sets the flag of the calling thread, until this is dropped there.
    pub(super) fn set() -> Self {
        let set = KvmKind::of_this_host() == KvmKind::Software;
        if set {
            hostclock::without_counter();
            Self::prctl(libc::PR_TSC_SIGSEGV);
        }
        Self { set }
    }

    fn prctl(mode: libc::c_int) {
        // SAFETY: PR_SET_TSC takes a plain number. It cannot fail on x86.
        unsafe { libc::prctl(libc::PR_SET_TSC, mode) };
    }
}

impl Drop for TscTrap {
    fn drop(&mut self) {
        if self.set {
            Self::prctl(libc::PR_TSC_ENABLE);
        }
    }
}
