//! How long a backup would take to execute what it was sent. A failover would have to wait as long.
//!
//! ```text
//!           anchor                     ack, a window later
//!  ───────────┼─────────────────────────┼──▶ time
//!      ▲      executed_clock: c1        c2
//!      └ the oldest entry not executed was sent here: busy all the time from anchor to ack,
//!        so its speed is (c2 - c1) / time, and the rest takes (sent - c2) / speed
//! ```
//!
//! The age of the oldest entry not executed would tell the same only where both replicas are equally fast.
//! A backup sixty times slower is two seconds behind after 30 ms of the primary's run. And when the primary
//! is slowed for that, the age still grows as long as the backup makes up for what came before.
//!
//! The backup's speed is taken from windows between acks, of two kinds. In a window in which the backup was
//! busy throughout, what it executed measures its speed. In one in which it had caught up, what it executed
//! is a lower bound: it is at least so fast. A backup that keeps up is hardly ever busy for a whole window,
//! except when the scheduler has kept it from running. Its bounds then keep that window from being taken for
//! its speed. As long as nothing was measured, the age is all that is known, and is believed as it is.
//!
//! Sans-I/O: acks in, microseconds out. The backup's numbers may be anything.

use replay::Clock;

/// Shortest window, in microseconds. The first measurement takes half of it, so that a backup much slower is
/// soon known. Acks come every 20 ms at least, and say where the backup stood at most 20 ms before.
const WINDOW_US: u64 = 40_000;
/// Part of what was believed that a measurement replaces.
const SHARE: u64 = 4;
/// Fixed point of the speed: counts per `SCALE` microseconds.
const SCALE: u64 = 1 << 16;

/// Estimates how long the backup needs for its backlog.
#[derive(Clone, Debug, Default)]
pub struct Backlog {
    /// When the present window began, and where the backup stood.
    anchor: Option<(u64, Clock)>,
    /// Counts per `SCALE` microseconds, once that was measured.
    speed: Option<u64>,
    /// The backup is at least so fast, in the same unit.
    bound: u64,
    /// The last ack: when it came, where the backup stood, the age of the oldest entry not executed.
    last: (u64, Clock, u64),
}

impl Backlog {
    /// That of a backup that stands at `clock`, where the log begins, with nothing to execute yet.
    pub fn at(clock: Clock) -> Self {
        Self {
            anchor: None,
            speed: None,
            bound: 0,
            last: (0, clock, 0),
        }
    }

    /// An ack at `now_us`: the backup stands at `executed`, and the oldest entry it has not executed is
    /// `age_us` old.
    pub fn acked(&mut self, now_us: u64, executed: Clock, age_us: u64) {
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
        // A backup that is at work and has got nowhere may be in the midst of one long entry.
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
    pub fn drain_us(&self, now_us: u64, sent: Clock) -> u64 {
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
