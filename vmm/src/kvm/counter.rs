//! The performance counter that a `Branches` clock needs: whether this host has one.

use std::io::{self, Read};
use std::os::fd::FromRawFd;

/// `struct perf_event_attr` as of its first version (PERF_ATTR_SIZE_VER0), which every kernel takes.
#[repr(C)]
#[derive(Default)]
struct PerfEventAttr {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    bp_type: u32,
    config1: u64,
}

const SIZE_VER0: u32 = 64;
const _: () = assert!(size_of::<PerfEventAttr>() == SIZE_VER0 as usize);

const PERF_TYPE_RAW: u32 = 4;
const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 1 << 3;
/// `exclude_kernel` and `exclude_hv`.
const FLAGS: u64 = 1 << 5 | 1 << 6;
/// Retired conditional branches: AMD Zen ex_ret_cond (PPR, PMCx0D1).
const AMD: u64 = 0xd1;
/// Retired conditional branches: Intel BR_INST_RETIRED.CONDITIONAL, of newer models those taken (SDM
/// volume 3B, chapter 20).
const INTEL: u64 = 0x01c4;

/// Branches the probe makes.
const BRANCHES: u64 = 100_000;

/// Counts retired conditional branches of the calling thread over a loop that makes 100,000. How many the
/// counter saw, which is less only if it does not count.
///
/// # Errors
/// What the kernel said to `perf_event_open`: ENOENT, ENODEV or EOPNOTSUPP without such a counter; EACCES
/// or EPERM without the right to it.
pub fn conditional_branches() -> io::Result<u64> {
    let vendor = std::arch::x86_64::__cpuid(0);
    let attr = PerfEventAttr {
        kind: PERF_TYPE_RAW,
        size: SIZE_VER0,
        config: if vendor.ebx == u32::from_le_bytes(*b"Genu") {
            INTEL
        } else {
            AMD
        },
        flags: FLAGS,
        ..Default::default()
    };
    let (this_thread, any_cpu, no_group) = (0, -1, -1);
    // SAFETY: the kernel reads the structure, whose size it is told, and changes no memory of ours.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            &raw const attr,
            this_thread,
            any_cpu,
            no_group,
            PERF_FLAG_FD_CLOEXEC,
        )
    };
    let fd = i32::try_from(fd).unwrap_or(-1);
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    let mut counter = unsafe { std::fs::File::from_raw_fd(fd) };
    let mut left = BRANCHES;
    while std::hint::black_box(left) > 0 {
        left -= 1;
    }
    let mut count = [0; 8];
    counter.read_exact(&mut count)?;
    Ok(u64::from_le_bytes(count))
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_counter_counts_every_branch_or_is_refused() {
        match super::conditional_branches() {
            Ok(count) => assert!(count == 0 || count >= super::BRANCHES, "{count}"),
            Err(error) => testing::skipped::skip_this(&format_args!("no counter: {error}")),
        }
    }
}
