//! The host's clocks, for threads that may not use the vDSO.
//!
//! A vCPU thread on software-virtualised KVM runs under `PR_TSC_SIGSEGV`, so that the guest's `rdtsc`
//! traps; the vDSO's `clock_gettime` would die of it. In a process with such a thread these go through the
//! system call, in all others through the vDSO: the machine looks at the clock several times at each stop of its
//! guest, and a system call takes several times as long.

use std::sync::atomic::{AtomicBool, Ordering};

/// Whether a thread of this process has, or had, its time-stamp counter switched off.
static SWITCHED_OFF: AtomicBool = AtomicBool::new(false);

/// To be called before a thread of this process switches its time-stamp counter off.
pub(crate) fn without_counter() {
    // Only the thread that does so, and those it starts, depend on it: they see this store.
    SWITCHED_OFF.store(true, Ordering::Relaxed);
}

/// Nanoseconds of the host's monotonic clock.
#[must_use]
pub fn monotonic_ns() -> u64 {
    read(libc::CLOCK_MONOTONIC)
}

/// Nanoseconds since 1970-01-01 UTC by the host's clock.
#[must_use]
pub fn wall_ns() -> u64 {
    read(libc::CLOCK_REALTIME)
}

fn read(clock: libc::clockid_t) -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let result = if SWITCHED_OFF.load(Ordering::Relaxed) {
        // SAFETY: the system call writes one timespec to the valid pointer it is given.
        unsafe { libc::syscall(libc::SYS_clock_gettime, clock, &raw mut now) }
    } else {
        // SAFETY: it writes one timespec to the valid pointer it is given, and this thread has its counter.
        unsafe { libc::clock_gettime(clock, &raw mut now) }.into()
    };
    assert!(result == 0, "clock {clock} cannot be read");
    let part = |value: i64| u64::try_from(value).unwrap_or(0);
    part(now.tv_sec) * 1_000_000_000 + part(now.tv_nsec)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_without_its_counter_reads_the_clock() {
        let read = || {
            without_counter();
            // SAFETY: it takes a plain number, and this thread reads no counter any more.
            unsafe { libc::prctl(libc::PR_SET_TSC, libc::PR_TSC_SIGSEGV) };
            let read = (monotonic_ns(), monotonic_ns(), wall_ns());
            // SAFETY: as above; what ends the thread may read it.
            unsafe { libc::prctl(libc::PR_SET_TSC, libc::PR_TSC_ENABLE) };
            read
        };
        let before = monotonic_ns();
        let (first, second, wall) = std::thread::spawn(read).join().unwrap();
        assert!(before <= first && first <= second && second <= monotonic_ns());
        assert!(wall > 0);
    }
}
