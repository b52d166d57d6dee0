//! How late timer ticks were: delivered minus due.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Buckets in each power of two.
const STEPS: u64 = 16;
/// log2 of [`STEPS`].
const STEP_BITS: u32 = 4;
/// From the last bucket's start on (2^25 us less 1/32, about half a minute) all are counted in it.
const BUCKETS: usize = 352;

/// A log-linear histogram of microseconds, written by the vCPU thread and readable by any.
///
/// Invariant: below 32 us each value has a bucket of its own; above, a bucket is no wider than 1/16 of
/// the values in it.
#[derive(Debug)]
pub struct Lateness {
    counts: [AtomicU64; BUCKETS],
}

impl Default for Lateness {
    fn default() -> Self {
        Self {
            counts: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }
}

fn bucket(us: u64) -> usize {
    let shift = (u64::BITS - us.leading_zeros()).saturating_sub(STEP_BITS + 1);
    let index = u64::from(shift) * STEPS + (us >> shift);
    usize::try_from(index).map_or(BUCKETS - 1, |index| index.min(BUCKETS - 1))
}

/// The largest value of bucket `index`.
fn upper(index: usize) -> u64 {
    let index = index as u64;
    let shift = (index / STEPS).saturating_sub(1);
    ((index - shift * STEPS) << shift) + ((1 << shift) - 1)
}

impl Lateness {
    /// Counts a tick that came `ns` nanoseconds after it was due.
    pub fn record(&self, ns: u64) {
        self.counts[bucket(ns.div_ceil(1000))].fetch_add(1, Relaxed);
    }

    /// What was counted so far, rising: (microseconds at most, ticks), where there are any.
    #[must_use]
    pub fn snapshot(&self) -> Vec<(u64, u64)> {
        let counts = self
            .counts
            .iter()
            .enumerate()
            .map(|(n, count)| (upper(n), count.load(Relaxed)));
        counts.filter(|(_, count)| *count > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_its_values_and_is_narrow() {
        for us in (0..5_000).chain([70_000, 999_999, 30_000_000]) {
            let index = bucket(us);
            assert!(
                upper(index) >= us && upper(index) - us <= us / STEPS,
                "{us}"
            );
            assert!(index == 0 || upper(index - 1) < us, "{us}");
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn ticks_are_counted_in_microseconds_rounded_up() {
        let lateness = Lateness::default();
        for ns in [0, 1, 1_000, 1_001, 40_000] {
            lateness.record(ns);
        }
        assert_eq!(lateness.snapshot(), [(0, 1), (1, 2), (2, 1), (41, 1)]);
    }
}
