//! Latencies, counted in buckets of at most 1/64 of their value.

use serde::Serialize;

/// Linear buckets in each power of two.
const STEPS: u64 = 64;
/// log2 of [`STEPS`].
const STEP_BITS: u32 = 6;
/// Buckets needed for every `u64`.
const BUCKETS: usize = (64 - STEP_BITS as usize + 1) * STEPS as usize;

/// A log-linear histogram of durations in nanoseconds.
///
/// Invariant: a value below 128 has a bucket of its own; above, a bucket is no wider than 1/64 of
/// the values in it. Quantiles err upwards by at most that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram {
    counts: Vec<u64>,
    count: u64,
    total_ns: u128,
    max_ns: u64,
}

/// The figures people ask of a [`Histogram`], in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Values counted.
    pub count: u64,
    /// Half of all took no longer.
    pub p50_us: u64,
    /// 90 % took no longer.
    pub p90_us: u64,
    /// 99 % took no longer.
    pub p99_us: u64,
    /// The longest.
    pub max_us: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            counts: vec![0; BUCKETS],
            count: 0,
            total_ns: 0,
            max_ns: 0,
        }
    }
}

fn bucket(ns: u64) -> usize {
    let shift = (u64::BITS - ns.leading_zeros()).saturating_sub(STEP_BITS + 1);
    (u64::from(shift) * STEPS + (ns >> shift)) as usize
}

/// The largest value of bucket `index`.
fn upper(index: usize) -> u64 {
    let index = index as u64;
    let shift = (index / STEPS).saturating_sub(1);
    let base = index - shift * STEPS;
    (base << shift) + ((1 << shift) - 1)
}

impl Histogram {
    /// Counts one duration.
    pub fn record(&mut self, ns: u64) {
        self.counts[bucket(ns)] += 1;
        self.count += 1;
        self.total_ns += u128::from(ns);
        self.max_ns = self.max_ns.max(ns);
    }

    /// Adds everything `other` counted.
    pub fn merge(&mut self, other: &Histogram) {
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine += theirs;
        }
        self.count += other.count;
        self.total_ns += other.total_ns;
        self.max_ns = self.max_ns.max(other.max_ns);
    }

    /// How many durations were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The longest; 0 if there is none.
    #[must_use]
    pub fn max_ns(&self) -> u64 {
        self.max_ns
    }

    /// The mean, rounded down; 0 if there is none.
    #[must_use]
    pub fn mean_ns(&self) -> u64 {
        (self.total_ns / u128::from(self.count.max(1))) as u64
    }

    /// The least duration that `per_mille` of all do not exceed (nearest rank); 0 if there is none.
    ///
    /// # Panics
    /// If `per_mille` is above 1000.
    #[must_use]
    pub fn quantile_ns(&self, per_mille: u32) -> u64 {
        assert!(per_mille <= 1000, "{per_mille} in a thousand");
        let rank = (u128::from(self.count) * u128::from(per_mille))
            .div_ceil(1000)
            .max(1);
        let mut seen = 0;
        for (index, &count) in self.counts.iter().enumerate() {
            seen += u128::from(count);
            if seen >= rank {
                return upper(index).min(self.max_ns);
            }
        }
        0
    }

    /// As [`Histogram::quantile_ns`], in microseconds, rounded up.
    #[must_use]
    pub fn quantile_us(&self, per_mille: u32) -> u64 {
        self.quantile_ns(per_mille).div_ceil(1000)
    }

    /// The usual figures.
    #[must_use]
    pub fn summary(&self) -> Summary {
        Summary {
            count: self.count,
            p50_us: self.quantile_us(500),
            p90_us: self.quantile_us(900),
            p99_us: self.quantile_us(990),
            max_us: self.max_ns.div_ceil(1000),
        }
    }

    /// The cumulative distribution for a plot: (duration in us, share of all up to it), rising.
    #[must_use]
    pub fn cdf(&self) -> Vec<(f64, f64)> {
        let mut seen = 0;
        let filled = self
            .counts
            .iter()
            .enumerate()
            .filter(|(_, count)| **count > 0);
        filled
            .map(|(index, count)| {
                seen += count;
                let ns = upper(index).min(self.max_ns);
                (ns as f64 / 1000.0, seen as f64 / self.count as f64)
            })
            .collect()
    }
}

/// The least of `values` that `per_mille` of them do not exceed (nearest rank); 0 for none.
///
/// For few, exact values such as one stall for each client; sorts them.
///
/// # Panics
/// If `per_mille` is above 1000.
pub fn quantile(values: &mut [u64], per_mille: u32) -> u64 {
    assert!(per_mille <= 1000, "{per_mille} in a thousand");
    values.sort_unstable();
    let rank = (values.len() * per_mille as usize).div_ceil(1000).max(1);
    values.get(rank - 1).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn small_values_are_exact_and_the_largest_has_a_bucket() {
        for ns in 0..128 {
            assert_eq!(upper(bucket(ns)), ns);
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
        assert_eq!(upper(BUCKETS - 1), u64::MAX);
    }

    #[test]
    fn no_values_give_zeros() {
        assert_eq!(Histogram::default().quantile_ns(990), 0);
        assert_eq!(Histogram::default().mean_ns(), 0);
        assert_eq!(quantile(&mut [], 500), 0);
        assert!(Histogram::default().cdf().is_empty());
    }

    proptest! {
        #[test]
        fn a_bucket_holds_its_value_and_is_narrow(ns: u64) {
            let index = bucket(ns);
            prop_assert!(upper(index) >= ns);
            prop_assert!(upper(index) - ns <= ns / STEPS);
            prop_assert!(index == 0 || upper(index - 1) < ns);
        }

        #[test]
        fn quantiles_are_the_exact_ones_but_for_the_bucket(
            mut values in prop::collection::vec(0u64..10_000_000, 1..200), per_mille in 0u32..=1000
        ) {
            let mut parts = [Histogram::default(), Histogram::default()];
            for (n, value) in values.iter().enumerate() {
                parts[n % 2].record(*value);
            }
            let [mut all, other] = parts;
            all.merge(&other);
            let exact = quantile(&mut values, per_mille);
            let got = all.quantile_ns(per_mille);
            prop_assert!(got >= exact && got - exact <= exact / STEPS, "{got} for {exact}");
            prop_assert_eq!(all.max_ns(), *values.last().unwrap());
            prop_assert_eq!(all.cdf().last().unwrap().1, 1.0);
        }
    }
}
