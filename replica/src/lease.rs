//! How long a primary may go on changing what it shares with its backup: the disk.
//!
//! ```text
//!   sent to the backup, which heard it          the backup hears nothing more
//!   ├──── held ──────────────────────────────▶├─ lapsed: wait ─ ─ ─ ─ ─ ─ ─ ─
//!   0                          suspect − suspect / 8   suspect: the backup may be live from here on,
//!          └ renewed with every heartbeat that is answered        if it wins the flag
//!
//!   link over ─▶ undecided: wait ─┬─ flag won ──▶ free
//!                                 └─ flag lost ─▶ over, for ever
//! ```
//!
//! Why: an acked write waits in the disk's queue. If this process is paused there (SIGSTOP, a frozen
//! host), its backup goes live and writes newer data; the old write must not follow when the process wakes.
//! Whoever writes asks here first, right before the system call.
//!
//! A backup that hears nothing goes live `suspect_ms` after it last heard its primary, at the earliest. So the lease
//! counts from the moment before something was *sent* that the backup is known to have heard: a heartbeat it has
//! answered (`logchannel/src/calls.rs`). When the answer is read does not matter, and an ack that answers nothing
//! new renews nothing: where only the way to the backup is cut its acks go on arriving until it is live. Nor does
//! an answer that was found after a pause: it answers what was sent before that.
//!
//! An eighth is taken off, since the two clocks do not run alike.
//!
//! Assumed: a backup whose connection is closed, though it has heard of its primary since, has lost it to a death,
//! not to somebody between the two who resets connections of either. Such a backup goes live at once, and this
//! replica's lease ends when it finds its own end closed.

// Links tell it of acks, and of their ends, on whatever thread finds them (see clippy.toml).
#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

use logchannel::Settled;
use logchannel::clock::boot_us;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Part of the time to suspicion that is taken off: as much as two clocks may differ in that time, and more.
const MARGIN: u64 = 8;

/// The term of a lease. It has no clock and no thread of its own: times are given to it, in microseconds of a
/// clock that goes on while the host is suspended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Term {
    lease_us: u64,
    until_us: u64,
}

impl Term {
    /// Of a link that both ends agreed on, which the backup did a round trip ago or later.
    #[must_use]
    pub fn new(settled: Settled, now_us: u64) -> Self {
        let suspect_us = u64::from(settled.settings.suspect_ms) * 1_000;
        let lease_us = suspect_us - suspect_us / MARGIN;
        let agreed_us = now_us.saturating_sub(settled.round_trip_us.into());
        Self {
            lease_us,
            until_us: agreed_us + lease_us,
        }
    }

    /// The backup has heard what was sent after `since_us`.
    pub fn heard(&mut self, since_us: u64) {
        self.until_us = self.until_us.max(since_us.saturating_add(self.lease_us));
    }

    /// Whether something may be written at `now_us`.
    #[must_use]
    pub fn holds(&self, now_us: u64) -> bool {
        now_us < self.until_us
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

    /// The backup has heard what was sent after `since_us`, and not gone live before.
    pub(crate) fn heard(&self, since_us: u64) {
        self.change(|state| {
            if let State::Linked(term) = state {
                term.heard(since_us);
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

    /// Whether something may be written now; none while that is undecided. Whoever writes asks [`Self::wait`].
    #[must_use]
    pub fn held(&self) -> Option<bool> {
        self.verdict(self.inner().state)
    }

    /// Whether something may be written; none while that is undecided.
    fn verdict(&self, state: State) -> Option<bool> {
        match state {
            State::Linked(term) => term.holds((self.now_us)()).then_some(true),
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
    const LEASE_US: u64 = 262_500;

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
            NOW.set(beat * 20_000 + 5_000);
            lease.heard(beat * 20_000);
        }
        // The backup hears nothing after this.
        let last = 99 * 20_000;
        NOW.set(last + LEASE_US - 1);
        assert_eq!(lease.held(), Some(true));
        NOW.set(last + LEASE_US);
        assert_eq!(lease.held(), None);
    }

    #[test]
    fn it_begins_when_the_backup_agreed() {
        let lease = Lease::on_clock(now);
        NOW.set(1_000_000);
        lease.begin(Settled {
            round_trip_us: 60_000,
            ..NEAR
        });
        NOW.set(1_000_000 + LEASE_US - 60_000 - 1);
        assert_eq!(lease.held(), Some(true));
        NOW.set(1_000_000 + LEASE_US - 60_000);
        assert_eq!(lease.held(), None);
    }

    /// As the link tells it: when the answer is read, late or not, does not matter.
    #[test]
    fn what_was_sent_before_a_pause_does_not_renew_it() {
        let lease = Lease::on_clock(now);
        lease.begin(NEAR);
        lease.heard(80_000);
        NOW.set(1_000_000);
        lease.heard(100_000);
        assert_eq!(lease.held(), None);
        // A backup that is there all the same answers what was sent after it.
        lease.heard(990_000);
        assert_eq!(lease.held(), Some(true));
        NOW.set(990_000 + LEASE_US);
        assert_eq!(lease.held(), None);
        lease.heard(500_000);
        assert_eq!(
            lease.held(),
            None,
            "an older answer takes nothing back and gives nothing"
        );
    }

    #[test]
    fn the_flag_decides_when_the_link_is_over() {
        let lease = Lease::on_clock(now);
        lease.begin(NEAR);
        lease.suspend();
        assert_eq!(lease.held(), None);
        lease.heard(NOW.get());
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

    /// An answer is as old as a heartbeat and a round trip.
    #[test]
    fn a_short_suspicion_leaves_a_lease_too() {
        let settings = Settings {
            heartbeat_ms: 100,
            suspect_ms: 200,
        };
        let round_trip_us = 50_000;
        let mut term = Term::new(
            Settled {
                settings,
                round_trip_us,
            },
            0,
        );
        for beat in 1..10 {
            term.heard(beat * 100_000);
            assert!(term.holds(beat * 100_000 + 100_000 + u64::from(round_trip_us)));
        }
    }
}
