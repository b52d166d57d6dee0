//! How long a backup would take to execute what it was sent: what a failover would have to wait for.
//!
//! ```text
//!           anchor                     ack, a window later
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
//! Two kinds of window tell of the speed. One in which the backup was busy throughout is a measurement.
//! One in which it had caught up is a bound: it is at least so fast. A backup that keeps up is hardly ever
//! busy for a whole window, but when the scheduler has kept it from running; its bounds say that this is
//! not its speed. As long as nothing was measured the age is all that is known, and is believed as it is.
//!
//! Sans-I/O: acks in, microseconds out. The backup's numbers may be anything.

use replay::Clock;

/// Shortest window, in microseconds; half of it for the first measurement, so that one much slower is soon
/// known. Acks come every 20 ms at least, and say where the backup stood at most 20 ms before.
const WINDOW_US: u64 = 40_000;
/// Part of what was believed that a measurement replaces.
const SHARE: u64 = 4;
/// Fixed point of the speed: counts per `SCALE` microseconds.
const SCALE: u64 = 1 << 16;

/// Estimates how long the backup needs for its backlog.
#[derive(Clone, Debug, Default)]
pub(crate) struct Backlog {
    /// When the present window began, and where the backup stood.
    anchor: Option<(u64, Clock)>,
    /// Counts per `SCALE` microseconds, once that was measured.
    speed: Option<u64>,
    /// It is as fast as this at least.
    bound: u64,
    /// The last ack: when it came, where the backup stood, the age of the oldest entry not executed.
    last: (u64, Clock, u64),
}

impl Backlog {
    /// An ack at `now_us`: the backup stands at `executed`, and the oldest entry it has not executed is
    /// `age_us` old.
    pub(crate) fn acked(&mut self, now_us: u64, executed: Clock, age_us: u64) {
        self.last = (now_us, executed, age_us);
        let (at_us, from) = *self.anchor.get_or_insert((now_us, executed));
        let took_us = now_us.saturating_sub(at_us);
        let is_busy = age_us >= took_us;
        let least_us = if is_busy && self.speed.is_none() {
            WINDOW_US / 2
        } else {
            WINDOW_US
        };
        let counts = executed.0.saturating_sub(from.0);
        // One that is at work and has not got anywhere may be in the midst of something long.
        if took_us < least_us || is_busy && counts == 0 {
            return;
        }
        self.anchor = Some((now_us, executed));
        let speed = counts.saturating_mul(SCALE) / took_us;
        if is_busy {
            self.measured(speed);
        } else {
            self.bound = self.bound.max(speed);
            self.speed = self.speed.map(|believed| believed.max(speed));
        }
    }

    /// How long the backup needs from `now_us` on to get to `sent`, in microseconds, if it works on as it
    /// did. As long as its speed is not known, the age.
    pub(crate) fn drain_us(&self, now_us: u64, sent: Clock) -> u64 {
        let (at_us, executed, age_us) = self.last;
        let Some(speed) = self.speed else {
            return age_us;
        };
        let backlog = sent.0.saturating_sub(executed.0);
        let drain_us = backlog.saturating_mul(SCALE) / speed.max(1);
        drain_us.saturating_sub(now_us.saturating_sub(at_us))
    }

    fn measured(&mut self, speed: u64) {
        let believed = self.speed.unwrap_or(speed.max(self.bound));
        self.speed = Some(believed - believed / SHARE + speed / SHARE);
        // What it could do before it may be unable to do now: the speed may fall below the bound.
        self.bound = 0;
    }
}

#[cfg(test)]
#[path = "backlog_tests.rs"]
mod tests;
