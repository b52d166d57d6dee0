//! The four cursors (invariant 8).

use replay::LogIndex;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// How far the log has come. Each is the index of the first entry that has *not* come so far.
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

/// What of the primary's outputs is out of its hands, and need not be made again by who goes live. Each is
/// the index of the first entry of which that is not so.
///
/// Invariant: `released >= printed`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delivered {
    /// Frames have left, power-off was heard of.
    pub released: LogIndex,
    /// Console bytes are where their reader finds them: what a process holds for its reader dies with it.
    pub printed: LogIndex,
}

/// The cursors as threads share them. They only grow; each is checked against its neighbour when
/// written, and all of them when read.
#[derive(Debug, Default)]
pub(crate) struct SharedCursors {
    appended: AtomicU64,
    sent: AtomicU64,
    acked: AtomicU64,
    released: AtomicU64,
}

impl SharedCursors {
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
        SharedCursors::default().advance_acked(LogIndex(1));
    }

    #[test]
    #[should_panic(expected = "invariant 8")]
    fn nothing_is_released_before_it_was_acked() {
        let cursors = SharedCursors::default();
        cursors.append();
        cursors.advance_released(LogIndex(1));
    }

    #[test]
    fn an_ack_proves_that_it_was_sent() {
        let cursors = SharedCursors::default();
        cursors.append();
        cursors.advance_acked(LogIndex(1));
        let one = LogIndex(1);
        let expected = Cursors {
            appended: one,
            sent: one,
            acked: one,
            released: LogIndex(0),
        };
        assert_eq!(cursors.snapshot(), expected);
    }
}
