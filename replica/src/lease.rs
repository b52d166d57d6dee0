//! How long a primary may go on changing what it shares with its backup: the disk.
//!
//! ```text
//!   heard from the backup            no sign of it
//!   ├──── held ────────────────────▶├─ lapsed: wait ─ ─ ─
//!   0      suspect − 2 heartbeats − round trip   the backup may be live from here on, if it wins the flag
//!          └ renewed with every ack that is believed
//!
//!   link over ─▶ undecided: wait ─┬─ flag won ──▶ free
//!                                 └─ flag lost ─▶ over, for ever
//! ```
//!
//! Why: an acked write waits in the disk's queue. If this process is paused there (SIGSTOP, a frozen
//! host), its backup goes live and writes newer data; the old write must not follow when the process wakes.
//! Whoever writes asks here first, right before the system call.
//!
//! A backup goes live `suspect_ms` after it last heard its primary, at the earliest, or at once after it
//! has closed the link; and the primary sends it something every heartbeat. So two heartbeats are taken
//! off. An ack was true when it was sent, which is up to a round trip before it is read: that is taken off,
//! too, as the handshake measured it. A link that gets slower later is not measured again.
//!
//! What is read right after a pause may be from before the backup went live. So an ack that is not believed
//! (`logchannel/src/trust.rs`) renews nothing; and after a pause as long as the lease nothing at all renews it for
//! `suspect_ms`, by which time a link its other end has closed is over.

// Links tell it of acks, and of their ends, on whatever thread finds them (see clippy.toml).
#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

use logchannel::Settled;
use logchannel::clock::boot_us;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// The term of a lease. It has no clock and no thread of its own: times are given to it, in microseconds of a
/// clock that goes on while the host is suspended.
#[derive(Clone, Copy, Debug)]
struct Term {
    lease_us: u64,
    pause_us: u64,
    heard_us: u64,
    /// Nothing renews the lease before this moment.
    trusted_from_us: u64,
    until_us: u64,
}

impl Term {
    fn new(settled: Settled, now_us: u64) -> Self {
        let suspect_us = u64::from(settled.settings.suspect_ms) * 1_000;
        let beats_us = u64::from(settled.settings.heartbeat_ms) * 2_000;
        let away_us = beats_us + u64::from(settled.round_trip_us);
        // Settings allow a suspicion as short as two heartbeats.
        let lease_us = suspect_us.saturating_sub(away_us).max(suspect_us / 4);
        Self {
            lease_us,
            pause_us: suspect_us,
            heard_us: now_us,
            trusted_from_us: now_us,
            until_us: now_us + lease_us,
        }
    }

    fn heard(&mut self, now_us: u64) {
        if now_us.saturating_sub(self.heard_us) >= self.lease_us {
            self.trusted_from_us = now_us + self.pause_us;
        }
        self.heard_us = now_us;
        if now_us >= self.trusted_from_us {
            self.until_us = now_us + self.lease_us;
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum State {
    Linked(Term),
    /// No link yet, or none any more.
    Undecided,
    /// Nobody else will be live: as `Solo`, or because the guest has ended.
    Free,
    /// Nothing is changed any more.
    Over,
}

/// A primary's right to write, for as long as it lasts. Shared by the link, which renews it, and those
/// who write.
#[derive(Debug)]
pub struct Lease {
    inner: Mutex<Inner>,
    changed: Condvar,
    now_us: fn() -> u64,
}

#[derive(Debug)]
struct Inner {
    state: State,
    /// Threads that wait for `changed`.
    waiting: u32,
}

impl Lease {
    /// A lease that is not held yet.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Self::on_clock(boot_us)
    }

    /// [`Self::new`], on the clock `now_us`.
    pub(crate) fn on_clock(now_us: fn() -> u64) -> Arc<Self> {
        Arc::new(Self {
            inner: Mutex::new(Inner {
                state: State::Undecided,
                waiting: 0,
            }),
            changed: Condvar::new(),
            now_us,
        })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, to: impl FnOnce(&mut State)) {
        let mut inner = self.inner();
        to(&mut inner.state);
        if inner.waiting > 0 {
            self.changed.notify_all();
        }
    }

    /// The link is up.
    pub(crate) fn begin(&self, settled: Settled) {
        let term = Term::new(settled, (self.now_us)());
        self.change(|state| *state = State::Linked(term));
    }

    /// An ack was read that is believed.
    pub(crate) fn heard(&self) {
        self.change(|state| {
            if let State::Linked(term) = state {
                term.heard((self.now_us)());
            }
        });
    }

    /// The link is over, and who will be live is undecided.
    pub(crate) fn suspend(&self) {
        self.change(|state| {
            if let State::Linked(_) = state {
                *state = State::Undecided;
            }
        });
    }

    /// Nobody else will be live.
    pub(crate) fn free(&self) {
        self.change(|state| {
            if !matches!(state, State::Over) {
                *state = State::Free;
            }
        });
    }

    /// Nothing is written any more.
    pub(crate) fn end(&self) {
        self.change(|state| *state = State::Over);
    }

    /// Waits until something may be written; false if it may not, for ever. Not for a vCPU thread.
    ///
    /// Whoever was made to wait between the return of this call and the write asks again (`vmm::backends::fenced`).
    #[must_use]
    pub fn wait(&self) -> bool {
        let mut inner = self.inner();
        loop {
            if let Some(verdict) = self.verdict(inner.state) {
                return verdict;
            }
            inner.waiting += 1;
            inner = self
                .changed
                .wait(inner)
                .unwrap_or_else(PoisonError::into_inner);
            inner.waiting -= 1;
        }
    }

    /// [`Self::verdict`] now.
    #[cfg(test)]
    pub(crate) fn held(&self) -> Option<bool> {
        self.verdict(self.inner().state)
    }

    /// Whether something may be written; none while that is undecided.
    fn verdict(&self, state: State) -> Option<bool> {
        match state {
            State::Linked(term) => ((self.now_us)() < term.until_us).then_some(true),
            State::Undecided => None,
            State::Free => Some(true),
            State::Over => Some(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use logchannel::Settings;
    use std::cell::Cell;

    const NEAR: Settled = Settled {
        settings: Settings {
            heartbeat_ms: 20,
            suspect_ms: 300,
        },
        round_trip_us: 0,
    };
    /// Of a lease, with these settings.
    const LEASE_US: u64 = 260_000;

    thread_local! {
        static NOW: Cell<u64> = const { Cell::new(0) };
    }

    fn now() -> u64 {
        NOW.get()
    }

    #[test]
    fn it_lapses_before_a_backup_may_go_live() {
        let lease = Lease::on_clock(now);
        assert_eq!(lease.held(), None, "not before the link is up");
        lease.begin(NEAR);
        for beat in 1..100 {
            NOW.set(beat * 20_000);
            lease.heard();
        }
        let last = NOW.get();
        NOW.set(last + LEASE_US - 1);
        assert_eq!(lease.held(), Some(true));
        NOW.set(last + LEASE_US);
        assert_eq!(lease.held(), None);
    }

    #[test]
    fn it_lapses_earlier_by_the_distance() {
        let lease = Lease::on_clock(now);
        lease.begin(Settled {
            round_trip_us: 60_000,
            ..NEAR
        });
        NOW.set(LEASE_US - 60_000 - 1);
        assert_eq!(lease.held(), Some(true));
        NOW.set(LEASE_US - 60_000);
        assert_eq!(lease.held(), None);
    }

    #[test]
    fn what_is_read_after_a_pause_does_not_renew_it() {
        let lease = Lease::on_clock(now);
        lease.begin(NEAR);
        NOW.set(1_000_000);
        lease.heard();
        lease.heard();
        NOW.set(1_000_500);
        lease.heard();
        assert_eq!(lease.held(), None);
        // A backup that is there all the same is believed once it could have closed the link.
        for ms in (1_020..1_300).step_by(20) {
            NOW.set(ms * 1_000);
            lease.heard();
            assert_eq!(lease.held(), None, "at {ms} ms");
        }
        NOW.set(1_300_000);
        lease.heard();
        assert_eq!(lease.held(), Some(true));
    }

    /// The acks that a link tells of after a pause, the first of them not believed, and so not heard: as in
    /// `acks_that_are_not_believed_are_not_heard` of `logchannel/src/sender/shared.rs`.
    #[test]
    fn acks_that_are_not_believed_do_not_renew_it() {
        let lease = Lease::on_clock(now);
        lease.begin(NEAR);
        for ms in (20..=1_000).step_by(20) {
            NOW.set(ms * 1_000);
            lease.heard();
            assert_eq!(lease.held(), Some(true), "at {ms} ms");
        }
        for ms in (2_000..2_500).step_by(20) {
            NOW.set(ms * 1_000);
            assert_eq!(lease.held(), None, "at {ms} ms");
        }
        for ms in (2_500..2_800).step_by(20) {
            NOW.set(ms * 1_000);
            lease.heard();
            assert_eq!(lease.held(), None, "at {ms} ms");
        }
        NOW.set(2_800_000);
        lease.heard();
        assert_eq!(lease.held(), Some(true));
    }

    #[test]
    fn the_flag_decides_when_the_link_is_over() {
        let lease = Lease::on_clock(now);
        lease.begin(NEAR);
        lease.suspend();
        assert_eq!(lease.held(), None);
        lease.heard();
        assert_eq!(lease.held(), None, "the last acks renew nothing");
        lease.free();
        NOW.set(u64::MAX);
        assert!(lease.wait());
        lease.suspend();
        assert!(lease.wait(), "running alone it needs no link");
        lease.end();
        assert!(!lease.wait());
        lease.free();
        assert!(!lease.wait(), "halted for ever");
    }

    #[test]
    fn whoever_waits_hears_of_the_decision() {
        for free in [true, false] {
            let lease = Lease::new();
            let waiting = std::thread::spawn({
                let lease = lease.clone();
                move || lease.wait()
            });
            if free {
                lease.free()
            } else {
                lease.end()
            }
            assert_eq!(waiting.join().unwrap(), free);
        }
    }

    #[test]
    fn a_short_suspicion_leaves_a_lease_too() {
        let settings = Settings {
            heartbeat_ms: 100,
            suspect_ms: 200,
        };
        let settled = Settled {
            settings,
            round_trip_us: 50_000,
        };
        let term = Term::new(settled, 0);
        assert!(term.lease_us > 0 && term.lease_us < 200_000);
    }
}
