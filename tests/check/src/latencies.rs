//! Latencies, counted by an HDR histogram.

use hdrhistogram::Histogram;

/// Significant decimal digits of a latency that is kept.
const DIGITS: u8 = 3;

/// Latencies, in microseconds rounded up.
///
/// Invariant: below 2048 us each is kept as it is; above, 3 significant digits of it, so quantiles err
/// upwards by at most 1/1024. The longest is kept as it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Latencies {
    counts: Histogram<u64>,
    max_us: u64,
}

impl Default for Latencies {
    fn default() -> Self {
        let counts = Histogram::new(DIGITS).expect("it takes 0 to 5 digits");
        Self { counts, max_us: 0 }
    }
}

impl Latencies {
    /// Counts one of `ns` nanoseconds.
    pub fn record(&mut self, ns: u64) {
        let us = ns.div_ceil(1000);
        // The range grows as far as needed, which for a count of microseconds is half a megabyte at most.
        self.counts.record(us).expect("it grows");
        self.max_us = self.max_us.max(us);
    }

    /// Adds everything `other` counted.
    pub fn merge(&mut self, other: &Self) {
        self.counts.add(&other.counts).expect("it grows");
        self.max_us = self.max_us.max(other.max_us);
    }

    /// How many were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.len()
    }

    /// The longest, in microseconds; 0 if there is none.
    #[must_use]
    pub fn max_us(&self) -> u64 {
        self.max_us
    }

    /// Each latency that occurred, in microseconds, with how many there are up to it; rising.
    ///
    /// The crate's own quantiles multiply floating-point numbers, which can be a rank too far.
    fn ranks(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.counts.iter_recorded().scan(0, |seen, value| {
            *seen += value.count_since_last_iteration();
            Some((value.value_iterated_to().min(self.max_us), *seen))
        })
    }

    /// The least latency that `per_mille` of all do not exceed (nearest rank), in microseconds; 0 if there is
    /// none.
    ///
    /// # Panics
    /// If `per_mille` is above 1000.
    #[must_use]
    pub fn quantile_us(&self, per_mille: u32) -> u64 {
        assert!(per_mille <= 1000, "{per_mille} in a thousand");
        let rank = (u128::from(self.count()) * u128::from(per_mille))
            .div_ceil(1000)
            .max(1);
        self.ranks()
            .find(|(_, seen)| u128::from(*seen) >= rank)
            .map_or(0, |(us, _)| us)
    }

    /// The cumulative distribution for a plot: (latency in us, share of all up to it), rising.
    #[must_use]
    pub fn cdf(&self) -> Vec<(f64, f64)> {
        self.ranks()
            .map(|(us, seen)| (us as f64, seen as f64 / self.count() as f64))
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
    fn latencies_are_exact_to_two_milliseconds_and_the_largest_can_be_kept() {
        for us in 0..2048 {
            let mut one = Latencies::default();
            one.record(us * 1000);
            // A longer one beside it, so that the longest does not bound it.
            one.record(u64::MAX);
            assert_eq!(one.quantile_us(500), us);
            assert_eq!(one.quantile_us(1000), u64::MAX.div_ceil(1000));
        }
    }

    #[test]
    fn a_part_of_a_microsecond_counts_as_one() {
        for (ns, us) in [(0, 0), (1, 1), (1000, 1), (1001, 2)] {
            let mut one = Latencies::default();
            one.record(ns);
            assert_eq!((one.quantile_us(500), one.max_us()), (us, us));
        }
    }

    #[test]
    fn no_values_give_zeros() {
        assert_eq!(Latencies::default().quantile_us(990), 0);
        assert_eq!(Latencies::default().max_us(), 0);
        assert_eq!(quantile(&mut [], 500), 0);
        assert!(Latencies::default().cdf().is_empty());
    }

    proptest! {
        #[test]
        fn a_latency_is_kept_to_three_digits(us in 0..u64::MAX / 1000) {
            let mut all = Latencies::default();
            all.record(us * 1000);
            all.record(u64::MAX);
            let kept = all.quantile_us(500);
            prop_assert!(kept >= us && kept - us <= us / 1024, "{kept} for {us}");
        }

        #[test]
        fn quantiles_are_the_exact_ones_but_for_the_digits(
            mut values in prop::collection::vec(0u64..10_000_000_000, 1..200), per_mille in 0u32..=1000
        ) {
            let mut parts = [Latencies::default(), Latencies::default()];
            for (n, value) in values.iter().enumerate() {
                parts[n % 2].record(*value);
            }
            let [mut all, other] = parts;
            all.merge(&other);
            let exact = quantile(&mut values, per_mille).div_ceil(1000);
            let got = all.quantile_us(per_mille);
            prop_assert!(got >= exact && got - exact <= exact / 1024, "{got} for {exact}");
            prop_assert_eq!(all.count(), values.len() as u64);
            prop_assert_eq!(all.max_us(), values.last().unwrap().div_ceil(1000));
            prop_assert_eq!(all.cdf().last().unwrap().1, 1.0);
        }
    }
}
