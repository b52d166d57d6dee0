//! The brake: how much of its speed a primary keeps while its backup is behind.
//!
//! ```text
//!  speed  1 ──────────╮                    a doubling of the pause for every eighth
//!                      ╲                   of the way from the start to the bound
//!                        ╲__
//!  1/256                    ╲________
//!         0        half the bound  the bound        lag
//! ```
//!
//! Sans-I/O: the caller says how far behind the backup is and what time it is.
//!
//! Why the speed settles: lag grows as long as the primary is faster than its backup, and shrinks as long
//! as it is slower. The brake takes more speed away the more lag there is. So lag comes to rest where the two
//! replicas are equally fast, whether it was larger before or smaller. Every eighth of the way to the bound
//! doubles the pause, so this works alike for a backup half as fast and for one a hundredth as fast.
//!
//! Up to half the bound nothing is held back at all. So the bound has to lie well above the lag that a busy
//! scheduler causes to a backup that does keep up: some 100 ms at the worst. Where lag is estimated from a
//! backlog and a speed (see `backlog`), those 100 ms may look like 200.

// The vCPU's thread runs here (see clippy.toml).
#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

/// Doublings of the pause from where the brake begins to the bound.
const DOUBLINGS: u64 = 8;
/// Most doublings, beyond the bound.
const DOUBLINGS_MAX: u64 = 10;
/// Parts of a unit in the ratios below.
const UNIT: u64 = 1024;
/// Shortest pause worth a sleep, in microseconds: the kernel adds some 50 to each.
const PAUSE_MIN_US: u64 = 200;
/// Longest pause in one piece, in microseconds: what has changed meanwhile is looked at after it.
const PAUSE_MAX_US: u64 = 5_000;
/// Longest time in microseconds that a guest is kept from running altogether. After it the guest runs for a
/// moment, so that a timer's tick, or a wish to end the machine, reaches it.
const HOLD_MAX_US: u64 = 100_000;
/// Longest run that a guest has to pay for by rest, in microseconds. Older run is forgiven.
const RAN_MAX_US: u64 = 10_000;

/// A moment on the thread that runs the guest, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Monotonic time.
    pub wall_us: u64,
    /// Processor time the thread has used. While the guest is halted it stands still, so that is no run.
    pub cpu_us: u64,
}

/// How a primary is slowed down.
#[derive(Clone, Debug)]
pub struct Brake {
    begins_us: u64,
    /// When the guest was last looked at; none while the brake is off.
    last: Option<Moment>,
    /// Since when the guest is held; none while it runs.
    held_since_us: Option<u64>,
    /// Run that is not paid for yet, and the rest the guest has had since.
    ran_us: u64,
    rested_us: u64,
}

impl Brake {
    /// A brake that keeps execution lag below `lag_max_ms`, if any speed of the primary can.
    #[must_use]
    pub fn new(lag_max_ms: u32) -> Self {
        Self {
            begins_us: u64::from(lag_max_ms).max(1) * 1_000 / 2,
            last: None,
            held_since_us: None,
            ran_us: 0,
            rested_us: 0,
        }
    }

    /// Whether the brake is on, or would be at a lag of `lag_us`. If not, nothing else need be asked of it.
    #[must_use]
    pub fn is_on(&self, lag_us: u64) -> bool {
        self.last.is_some() || lag_us > self.begins_us
    }

    /// Time to pause for every 1024 of run at a lag of `lag_us`: 0 up to where the brake begins.
    fn pause_ratio(&self, lag_us: u64) -> u64 {
        let over_us = lag_us.saturating_sub(self.begins_us);
        // The way to the bound is as long as that to where the brake begins.
        let doublings = over_us.saturating_mul(DOUBLINGS * UNIT) / self.begins_us;
        let doublings = doublings.min(DOUBLINGS_MAX * UNIT);
        // Between whole powers of two on a line.
        ((UNIT + doublings % UNIT) << (doublings / UNIT)) - UNIT
    }

    /// The share of its speed that the guest keeps at a lag of `lag_us`, in thousandths, at least 1.
    #[must_use]
    pub fn speed_permille(&self, lag_us: u64) -> u64 {
        (1_000 * UNIT / (UNIT + self.pause_ratio(lag_us))).max(1)
    }

    /// How long the guest has to pause now, in microseconds; 0 if it may run on. The caller asks again after
    /// each pause.
    pub fn pause_us(&mut self, lag_us: u64, now: Moment) -> u64 {
        if let Some(last) = self.last.replace(now) {
            let cpu_us = now.cpu_us.saturating_sub(last.cpu_us);
            let wall_us = now.wall_us.saturating_sub(last.wall_us);
            self.ran_us = self.ran_us.saturating_add(cpu_us).min(RAN_MAX_US);
            self.rested_us = self
                .rested_us
                .saturating_add(wall_us.saturating_sub(cpu_us));
        }
        let ratio = self.pause_ratio(lag_us);
        if ratio == 0 {
            self.release();
            return 0;
        }
        let owed_us = self.ran_us * ratio / UNIT;
        if owed_us <= self.rested_us {
            (self.ran_us, self.rested_us) = (0, 0);
            self.held_since_us = None;
            return 0;
        }
        let pause_us = owed_us - self.rested_us;
        let since_us = *self.held_since_us.get_or_insert(now.wall_us);
        if pause_us < PAUSE_MIN_US || now.wall_us.saturating_sub(since_us) >= HOLD_MAX_US {
            self.held_since_us = None;
            return 0;
        }
        pause_us.min(PAUSE_MAX_US)
    }

    /// Takes the brake off, and forgets what the guest owed.
    pub fn release(&mut self) {
        self.last = None;
        self.held_since_us = None;
        (self.ran_us, self.rested_us) = (0, 0);
    }
}

#[cfg(test)]
#[path = "brake_tests.rs"]
mod tests;
