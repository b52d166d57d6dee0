//! How long a backup would take to execute what it was sent: what a failover would have to wait for.
//!
//! ```text
//!           anchor                     ack
//!  ───────────┼─────────────────────────┼──▶ time
//!      ▲      executed_clock: c1        c2
//!      └ the oldest entry not executed was sent here: busy all the time from anchor to ack,
//!        so its speed is (c2 - c1) / time, and the rest takes (sent - c2) / speed
//! ```
//!
//! The age of the oldest entry not executed tells the same only where both replicas are equally fast.
//! One that is sixty times slower is two seconds behind after 30 ms; and the age of what the primary
//! said before it was slowed keeps growing while the backup makes up for it.
//!
//! Sans-I/O: acks in, microseconds out. The backup's numbers may be anything.

use replay::Clock;

/// Shortest time the speed is measured over, in microseconds, but for the first: one slow enough is to be
/// known soon. Acks come every 20 ms at least.
const WINDOW_US: u64 = 50_000;
/// An estimate is believed up to this many times the age of the oldest entry when the last ack came: a
/// backup that stopped for a moment looks slow at first.
const AGE_FACTOR: u64 = 4;
/// Fixed point of the speed: counts per `SCALE` microseconds.
const SCALE: u64 = 1 << 16;

/// Estimates how long the backup needs for its backlog.
#[derive(Clone, Debug, Default)]
pub(crate) struct Backlog {
    /// When the present window began, and where the backup stood.
    anchor: Option<(u64, Clock)>,
    /// Counts per `SCALE` microseconds, once it was seen at work without a pause.
    speed: Option<u64>,
    /// The last ack: when it came, where the backup stood, the age of the oldest entry not executed.
    last: (u64, Clock, u64),
}

impl Backlog {
    /// An ack at `now_us`: the backup stands at `executed`, and the oldest entry it has not executed is
    /// `age_us` old.
    pub(crate) fn acked(&mut self, now_us: u64, executed: Clock, age_us: u64) {
        self.last = (now_us, executed, age_us);
        match self.anchor {
            // At work the whole time.
            Some((at_us, from)) if now_us.saturating_sub(at_us) <= age_us => {
                let took_us = now_us.saturating_sub(at_us);
                if took_us >= WINDOW_US || self.speed.is_none() && took_us >= WINDOW_US / 4 {
                    let counts = executed.0.saturating_sub(from.0);
                    self.measured(counts.saturating_mul(SCALE) / took_us);
                    self.anchor = Some((now_us, executed));
                }
            }
            _ => self.anchor = Some((now_us, executed)),
        }
    }

    /// How long the backup needs from `now_us` on to get to `sent`, in microseconds, if it works on as it
    /// did. As long as its speed is not known, as much as the age allows.
    pub(crate) fn drain_us(&self, now_us: u64, sent: Clock) -> u64 {
        let (at_us, executed, age_us) = self.last;
        let most_us = age_us.saturating_mul(AGE_FACTOR);
        let Some(speed) = self.speed else {
            return most_us;
        };
        let backlog = sent.0.saturating_sub(executed.0);
        let drain_us = backlog.saturating_mul(SCALE) / speed.max(1);
        drain_us
            .saturating_sub(now_us.saturating_sub(at_us))
            .min(most_us)
    }

    /// The mean of what was believed and what was seen.
    fn measured(&mut self, speed: u64) {
        self.speed = Some(self.speed.map_or(speed, |old| old / 2 + speed / 2));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Acks every 20 ms of a backup that executes `speed` counts a microsecond, after `sent` counts
    /// came at once; the estimates.
    fn drain(backlog: &mut Backlog, speed: u64, sent: u64) -> Vec<(u64, u64)> {
        let mut estimates = Vec::new();
        for now_us in (0..).step_by(20_000) {
            let executed = now_us * speed;
            if executed >= sent {
                return estimates;
            }
            let left_us = (sent - executed) / speed;
            backlog.acked(now_us, Clock(executed), now_us);
            let told = backlog.drain_us(now_us, Clock(sent));
            estimates.push((left_us, told));
        }
        unreachable!("it gets there")
    }

    #[test]
    fn the_estimate_is_the_time_the_backup_needs() {
        let estimates = drain(&mut Backlog::default(), 3, 3_000_000);
        for (at, (left_us, told)) in estimates.into_iter().enumerate().skip(11) {
            assert!(told.abs_diff(left_us) <= 2, "ack {at}: {told}, {left_us}");
        }
    }

    #[test]
    fn before_the_speed_is_known_the_worst_is_expected() {
        let mut backlog = Backlog::default();
        backlog.acked(1_000, Clock(0), 0);
        assert_eq!(backlog.drain_us(2_000, Clock(1 << 40)), 0);
        backlog.acked(31_000, Clock(9), 30_000);
        assert_eq!(backlog.drain_us(32_000, Clock(1 << 40)), 120_000);
    }

    #[test]
    fn a_backup_that_keeps_up_is_never_far_behind() {
        let mut backlog = Backlog::default();
        // Acks name what came last before it is executed, at most a few milliseconds old; after a quiet
        // second there is a burst.
        for n in 0..10_000u64 {
            let rate = if n % 1_000 < 900 { 10 } else { 1_000_000 };
            let clock = n * 1_000_000;
            backlog.acked(n * 1_000, Clock(clock), 4_000);
            let told = backlog.drain_us(n * 1_000, Clock(clock + rate));
            assert!(told <= 4_000 * AGE_FACTOR, "{told}");
        }
    }

    #[test]
    fn a_backup_that_stands_still_counts_by_its_age() {
        let mut backlog = Backlog::default();
        for n in 0..100u64 {
            backlog.acked(n * 20_000, Clock(5), n * 20_000);
        }
        let told = backlog.drain_us(99 * 20_000, Clock(1_000_000));
        assert_eq!(told, 99 * 20_000 * AGE_FACTOR);
    }

    #[test]
    fn numbers_that_make_no_sense_do_no_harm() {
        let mut backlog = Backlog::default();
        for (now_us, executed, sent, age_us) in [
            (0, u64::MAX, 0, u64::MAX),
            (u64::MAX, 0, u64::MAX, u64::MAX),
            (5, 7, u64::MAX, u64::MAX),
            (200_000, u64::MAX, u64::MAX, u64::MAX),
            (400_000, 0, u64::MAX, u64::MAX),
        ] {
            backlog.acked(now_us, Clock(executed), age_us);
            backlog.drain_us(now_us, Clock(sent));
            backlog.drain_us(0, Clock(sent));
        }
    }
}
