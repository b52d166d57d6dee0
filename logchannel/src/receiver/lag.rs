//! How long entries wait to be executed.

use replay::LogIndex;
use std::collections::VecDeque;

/// Time between two samples, and most samples kept: one a millisecond, for seconds.
const SAMPLE_US: u64 = 1_000;
const SAMPLES_MAX: usize = 8192;

/// When entries came, to tell how long they have been waiting.
#[derive(Default)]
pub(super) struct LagSamples {
    /// Pairs of an index and a moment: at that moment the last entry below that index came.
    samples: VecDeque<(LogIndex, u64)>,
}

impl LagSamples {
    /// The last entry below `end` came.
    pub(super) fn received(&mut self, end: LogIndex, now_us: u64) {
        let full = self.samples.len() >= SAMPLES_MAX;
        match self.samples.back_mut() {
            // An entry that comes within the last sample's time joins it, and so does any while there are too
            // many samples.
            Some((last, at)) if now_us.saturating_sub(*at) < SAMPLE_US => *last = end,
            Some((last, _)) if full => *last = end,
            _ => self.samples.push_back((end, now_us)),
        }
    }

    /// How long the oldest entry from `executed` on has been here, in microseconds.
    pub(super) fn us(&mut self, executed: LogIndex, now_us: u64) -> u64 {
        while self
            .samples
            .front()
            .is_some_and(|(end, _)| *end <= executed)
        {
            self.samples.pop_front();
        }
        let oldest = self.samples.front();
        oldest.map_or(0, |(_, at)| now_us.saturating_sub(*at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lag_is_the_age_of_the_oldest_entry_not_executed() {
        let mut lag = LagSamples::default();
        assert_eq!(lag.us(LogIndex(0), 5), 0);
        lag.received(LogIndex(3), 10_000);
        lag.received(LogIndex(5), 10_400);
        lag.received(LogIndex(8), 30_000);
        assert_eq!(lag.us(LogIndex(2), 40_000), 30_000);
        assert_eq!(lag.us(LogIndex(4), 40_000), 30_000, "one sample with 3");
        assert_eq!(lag.us(LogIndex(5), 40_000), 10_000);
        assert_eq!(lag.us(LogIndex(8), 40_000), 0);
    }

    #[test]
    fn a_backup_far_behind_keeps_a_bounded_number_of_samples() {
        let mut lag = LagSamples::default();
        for n in 1..=3 * SAMPLES_MAX as u64 {
            lag.received(LogIndex(n), n * SAMPLE_US);
        }
        assert_eq!(lag.samples.len(), SAMPLES_MAX);
        let last = 3 * SAMPLES_MAX as u64;
        assert!(lag.us(LogIndex(last - 1), last * SAMPLE_US) > 0);
        assert_eq!(lag.us(LogIndex(last), last * SAMPLE_US), 0);
    }
}
