//! The host's clocks, for threads that may not use the vDSO.
//!
//! A vCPU thread on software-virtualised KVM runs under `PR_TSC_SIGSEGV`, so that the guest's `rdtsc`
//! traps; the vDSO's `clock_gettime` would die of it. These go through the system call.

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
    // SAFETY: the system call writes one timespec to the valid pointer it is given.
    let result = unsafe { libc::syscall(libc::SYS_clock_gettime, clock, &raw mut now) };
    assert!(result == 0, "clock {clock} cannot be read");
    let part = |value: i64| u64::try_from(value).unwrap_or(0);
    part(now.tv_sec) * 1_000_000_000 + part(now.tv_nsec)
}
