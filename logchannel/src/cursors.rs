//! The four cursors (invariant 8).

use replay::LogIndex;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// How far the log has come. Each cursor is the index of the first entry that has *not* come so far.
///
/// Invariant: `appended >= sent >= acked >= released`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Cursors {
    /// Logged by the primary.
    pub appended: LogIndex,
    /// Handed to the network.
    pub sent: LogIndex,
    /// Held by the backup.
    pub acked: LogIndex,
    /// All outputs up to here have left.
    pub released: LogIndex,
}

impl Cursors {
    /// Asserts invariant 8.
    ///
    /// # Panics
    /// If it does not hold.
    pub fn verify(&self) {
        assert!(
            self.appended >= self.sent && self.sent >= self.acked && self.acked >= self.released,
            "invariant 8 (appended >= sent >= acked >= released): {self:?}"
        );
    }
}

/// How many of the primary's outputs are safe from its death. A backup that goes live re-emits all others.
///
/// Each cursor is the index of the first entry whose output is not known to be safe.
///
/// Invariant: `released >= printed`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Delivered {
    /// Outputs marked by entries below this one have left the gate. For frames and power-off that is enough.
    pub released: LogIndex,
    /// Console bytes marked by entries below this one are where their reader finds them. For these, leaving
    /// the gate is not enough: bytes that a process still holds for a slow reader die with the process.
    pub printed: LogIndex,
}

impl Delivered {
    /// All before `first`, which is where a log begins.
    #[must_use]
    pub fn before(first: LogIndex) -> Self {
        Self {
            released: first,
            printed: first,
        }
    }
}

/// The cursors as threads share them. They only grow; each is checked against its neighbour when
/// written, and all of them when read.
#[derive(Debug)]
pub(crate) struct SharedCursors {
    appended: AtomicU64,
    sent: AtomicU64,
    acked: AtomicU64,
    released: AtomicU64,
}

impl SharedCursors {
    /// Those of a log whose first entry is `first`.
    pub(crate) fn at(first: LogIndex) -> Self {
        let [appended, sent, acked, released] = [first.0; 4].map(AtomicU64::new);
        Self {
            appended,
            sent,
            acked,
            released,
        }
    }

    pub(crate) fn appended(&self) -> LogIndex {
        LogIndex(self.appended.load(SeqCst))
    }

    pub(crate) fn acked(&self) -> LogIndex {
        LogIndex(self.acked.load(SeqCst))
    }

    pub(crate) fn released(&self) -> LogIndex {
        LogIndex(self.released.load(SeqCst))
    }

    /// One more entry; only one thread appends. Returns its index.
    pub(crate) fn append(&self) -> LogIndex {
        LogIndex(self.appended.fetch_add(1, SeqCst))
    }

    pub(crate) fn advance_sent(&self, to: LogIndex) {
        self.sent.fetch_max(to.0, SeqCst);
        assert!(to <= self.appended(), "invariant 8: sent before appended");
    }

    /// An ack also proves that the entries were sent, which the sending thread may not have noted yet.
    pub(crate) fn advance_acked(&self, to: LogIndex) {
        self.advance_sent(to);
        self.acked.fetch_max(to.0, SeqCst);
    }

    pub(crate) fn advance_released(&self, to: LogIndex) {
        self.released.fetch_max(to.0, SeqCst);
        assert!(to <= self.acked(), "invariant 8: released before acked");
    }

    /// All four. Read from the last to the first, so that growth meanwhile cannot break their order.
    pub(crate) fn snapshot(&self) -> Cursors {
        let released = self.released();
        let acked = self.acked();
        let sent = LogIndex(self.sent.load(SeqCst));
        let cursors = Cursors {
            appended: self.appended(),
            sent,
            acked,
            released,
        };
        cursors.verify();
        cursors
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "invariant 8")]
    fn nothing_is_acked_before_it_was_appended() {
        SharedCursors::at(LogIndex(0)).advance_acked(LogIndex(1));
    }

    #[test]
    #[should_panic(expected = "invariant 8")]
    fn nothing_is_acked_before_it_was_appended_in_the_middle_of_a_run() {
        SharedCursors::at(LogIndex(1_000)).advance_acked(LogIndex(1_001));
    }

    #[test]
    #[should_panic(expected = "invariant 8")]
    fn nothing_is_released_before_it_was_acked() {
        let cursors = SharedCursors::at(LogIndex(0));
        cursors.append();
        cursors.advance_released(LogIndex(1));
    }

    #[test]
    fn an_ack_proves_that_it_was_sent() {
        for first in [LogIndex(0), LogIndex(1_000)] {
            let cursors = SharedCursors::at(first);
            cursors.append();
            cursors.advance_acked(first.next());
            let one = first.next();
            let expected = Cursors {
                appended: one,
                sent: one,
                acked: one,
                released: first,
            };
            assert_eq!(cursors.snapshot(), expected);
        }
    }
}
