//! Monotonic clocks, by system call.

/// Microseconds of `CLOCK_MONOTONIC`.
///
/// Why not `std::time::Instant`: that reads the TSC through the vDSO, and a thread that runs a guest
/// may have the TSC switched off (`PR_TSC_SIGSEGV`). The system call itself always works.
///
/// # Panics
/// If the kernel has no monotonic clock.
#[must_use]
pub fn now_us() -> u64 {
    read_us(libc::CLOCK_MONOTONIC)
}

/// Microseconds of processor time the calling thread has used.
///
/// # Panics
/// If the kernel has no such clock.
#[must_use]
pub fn thread_cpu_us() -> u64 {
    read_us(libc::CLOCK_THREAD_CPUTIME_ID)
}

/// Microseconds of `CLOCK_BOOTTIME`: monotonic, and it goes on while the host is suspended, which is a
/// pause like any other.
///
/// # Panics
/// If the kernel has no such clock.
#[must_use]
pub fn boot_us() -> u64 {
    read_us(libc::CLOCK_BOOTTIME)
}

/// Microseconds of `clock`, which must not step, by system call.
///
/// # Panics
/// If the kernel has no such clock.
fn read_us(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the call writes one timespec to the address given, which is that of a live local.
    let result = unsafe { libc::syscall(libc::SYS_clock_gettime, clock, &raw mut time) };
    assert_eq!(result, 0, "clock_gettime({clock})");
    let seconds = u64::try_from(time.tv_sec).expect("monotonic time is positive");
    let nanoseconds = u64::try_from(time.tv_nsec).expect("nanoseconds are positive");
    seconds * 1_000_000 + nanoseconds / 1_000
}

#[cfg(test)]
mod tests {
    #[test]
    fn goes_with_the_clock_of_std() {
        let (std_before, before) = (std::time::Instant::now(), super::now_us());
        while super::now_us() - before < 2_000 {
            std::hint::spin_loop();
        }
        assert!(std_before.elapsed().as_micros() >= 1_999);
    }
}
