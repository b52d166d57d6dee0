//! Guest time against the host's clock: when the timer is due, and how far derived time is off.
//!
//! ```text
//!  derived ahead of real    hold the vCPU back          (an engine over one count a nanosecond)
//!  real ahead of derived    the next arrival's anchor   (the common side)
//! ```
//!
//! No clock is read here: who asks says what the host's is.

use replay::{Situation, TimerSpec};

/// How far derived time may run ahead of real time before the vCPU is held back.
pub(super) const AHEAD_NS_MAX: u64 = 1_000_000;

/// How far it may fall behind before it gets an anchor with nothing else.
///
/// A guest with a timer never gets there, and one that spins on the TSC without would wait for ever. One
/// entry in 10 ms costs little.
pub(super) const BEHIND_NS_MAX: u64 = 10_000_000;

/// Periods of the timer that ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tick {
    /// How many, at least 1.
    pub periods: u32,
    /// How long ago the first of them did.
    pub late_ns: u64,
}

/// One machine's guest time and timer, by the host's monotonic clock.
#[derive(Clone, Debug)]
pub(super) struct Pace {
    /// Guest time minus the host's monotonic nanoseconds, wrapping.
    offset: u64,
    /// Whether derived time was seen: real time began no earlier than it.
    met: bool,
    spec: TimerSpec,
    due_ns: Option<u64>,
}

impl Pace {
    /// Guest time is `guest_ns` when the host's clock is at `host_ns`; no timer runs.
    pub fn new(guest_ns: u64, host_ns: u64) -> Self {
        Self {
            offset: guest_ns.wrapping_sub(host_ns),
            met: false,
            spec: TimerSpec::default(),
            due_ns: None,
        }
    }

    /// Guest time as it should be when the host's clock is at `host_ns`.
    pub fn real_ns(&self, host_ns: u64) -> u64 {
        host_ns.wrapping_add(self.offset)
    }

    /// When the timer is due, by the host's clock.
    pub fn due_ns(&self) -> Option<u64> {
        self.due_ns
    }

    /// Follows what the guest did with its timer.
    ///
    /// The period begins when it is programmed, by real time or by derived time, whichever is later: so at
    /// the due moment derived time is at the period's end, or an anchor brings it there.
    pub fn follow(&mut self, now: &Situation, host_ns: impl Fn() -> u64) {
        self.meet(now, &host_ns);
        if now.timer == self.spec {
            return;
        }
        self.spec = now.timer;
        self.due_ns = (self.spec.period_ns != 0).then(|| {
            let host_ns = host_ns();
            host_ns + self.ahead_ns(now, host_ns) + self.spec.period_ns
        });
    }

    /// Real time begins where derived time is, if it is not there yet: a replica that caught up faster
    /// than its primary ran must not wait for the difference.
    fn meet(&mut self, now: &Situation, host_ns: impl Fn() -> u64) {
        if self.met || now.time_ns.is_none() {
            return;
        }
        self.met = true;
        let ahead_ns = self.ahead_ns(now, host_ns());
        self.offset = self.offset.wrapping_add(ahead_ns);
    }

    /// How far derived time is ahead of real time.
    pub fn ahead_ns(&self, now: &Situation, host_ns: u64) -> u64 {
        now.time_ns
            .map_or(0, |derived| derived.saturating_sub(self.real_ns(host_ns)))
    }

    /// Whether derived time is so far behind real time that it needs an anchor of its own. A halted guest
    /// does not look at it.
    pub fn is_behind(&self, now: &Situation, host_ns: u64) -> bool {
        now.time_ns.is_some_and(|derived| {
            !now.halted && self.real_ns(host_ns) > derived.saturating_add(BEHIND_NS_MAX)
        })
    }

    /// The timer's tick, if it is due; periods that ended since the last are merged.
    pub fn tick(&mut self, host_ns: u64) -> Option<Tick> {
        let due = self.due_ns?;
        let late_ns = host_ns.checked_sub(due)?;
        let periods = if self.spec.one_shot {
            self.due_ns = None;
            1
        } else {
            let periods = late_ns / self.spec.period_ns + 1;
            self.due_ns = Some(due + periods * self.spec.period_ns);
            periods
        };
        Some(Tick {
            periods: u32::try_from(periods).unwrap_or(u32::MAX),
            late_ns,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn situation(time_ns: Option<u64>, generation: u64, one_shot: bool) -> Situation {
        let timer = TimerSpec {
            period_ns: 1000,
            generation,
            one_shot,
        };
        Situation {
            timer,
            time_ns,
            ..Situation::default()
        }
    }

    #[test]
    fn a_period_begins_when_it_is_programmed() {
        let mut pace = Pace::new(0, 50);
        pace.follow(&situation(None, 1, false), || 100);
        assert_eq!(pace.tick(1099), None);
        let (periods, late_ns) = (1, 1);
        assert_eq!(pace.tick(1101), Some(Tick { periods, late_ns }));
        let (periods, late_ns) = (3, 2000);
        assert_eq!(pace.tick(4100), Some(Tick { periods, late_ns }));
        assert_eq!(pace.due_ns(), Some(5100));
    }

    #[test]
    fn a_one_shot_ticks_once_until_it_is_programmed_again() {
        let mut pace = Pace::new(0, 0);
        pace.follow(&situation(None, 1, true), || 0);
        assert!(pace.tick(9000).is_some_and(|tick| tick.periods == 1));
        pace.follow(&situation(None, 1, true), || 9500);
        assert_eq!(pace.tick(u64::MAX), None);
        pace.follow(&situation(None, 2, true), || 9500);
        assert!(pace.tick(10_499).is_none() && pace.tick(10_500).is_some());
    }

    #[test]
    fn time_that_runs_ahead_has_its_timer_later() {
        let mut pace = Pace::new(0, 0);
        pace.follow(&situation(Some(0), 0, true), || 0);
        // Programmed at 300 of derived time, when real time is at 200.
        pace.follow(&situation(Some(300), 1, true), || 200);
        assert_eq!(pace.due_ns(), Some(1300));
    }

    #[test]
    fn time_that_fell_behind_has_a_whole_period_too() {
        let mut pace = Pace::new(0, 0);
        pace.follow(&situation(Some(300), 1, true), || 200);
        pace.follow(&situation(Some(400), 2, true), || 900);
        assert_eq!(pace.due_ns(), Some(1900));
    }

    #[test]
    fn a_replica_that_is_ahead_when_it_goes_live_goes_on_at_once() {
        let mut pace = Pace::new(1000, 0);
        let now = situation(Some(7_000_000_000), 0, false);
        pace.follow(&now, || 10);
        assert_eq!(pace.ahead_ns(&now, 10), 0);
        assert_eq!(pace.real_ns(15), 7_000_000_005);
    }

    #[test]
    fn a_halted_guest_is_never_behind() {
        let mut pace = Pace::new(0, 0);
        let mut now = situation(Some(0), 0, false);
        pace.follow(&now, || 0);
        assert!(!pace.is_behind(&now, BEHIND_NS_MAX));
        assert!(pace.is_behind(&now, BEHIND_NS_MAX + 1));
        now.halted = true;
        assert!(!pace.is_behind(&now, u64::MAX));
        let logged = situation(None, 0, false);
        assert!(!pace.is_behind(&logged, u64::MAX));
    }
}
