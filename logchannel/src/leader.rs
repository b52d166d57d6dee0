//! What a link tells the replica that leads over it.

use crate::messages::Settled;
use replay::{InputsError, LogIndex};

/// The replica that leads over a link, as far as the [`crate::Sender`] has to do with it: whoever keeps its
/// outputs back until they are acked, and decides whether it may still change what it shares with its backup.
///
/// ```text
///   begins ─▶ (heard? ─▶ acked)* ─▶ undecided ─┬─▶ solo ─▶ undisputed
///                 │                            └─▶ halted
///                 └──────────▶ undisputed (it leaves in an orderly way)
/// ```
///
/// The link's threads call all this, the vCPU's thread, and whoever has a [`crate::SenderHandle`]. So an
/// implementation reads the clock by system call only ([`crate::clock`]), and never calls that sender. Some
/// calls are made while the sender is locked; each such method says that it must not wait. It may take a lock
/// that nobody holds for long.
pub trait Leader: Send + Sync {
    /// The link begins, with what both ends settled on. The first call, and the only one of its kind for this
    /// link, by the thread that starts the sender.
    fn begins(&self, settled: Settled);

    /// The backup has heard what was said to it at `since_us`, on the clock of [`crate::clock::boot_us`], and not
    /// gone live before: an ack was read that is believed and answers a heartbeat that was sent then. Called by
    /// the thread that reads acks, with moments that grow, before [`Self::acked`] of the same ack. It may come
    /// once more after [`Self::undecided`] or what follows that, and must have no effect then. Must not wait.
    fn heard(&self, since_us: u64);

    /// The backup holds every entry below `upto`, and the outputs that those mark may leave. Called by the
    /// thread that reads acks, for every ack that is believed (of several read at once, for the last). So they
    /// come in order, though `upto` may stay the same. Only when it has returned do these outputs count as released, and is there room for more.
    ///
    /// It may take the time that the outputs take. Nobody is suspected meanwhile.
    ///
    /// # Errors
    /// If an output could not be delivered. The link ends then ([`crate::LinkEnd::OutletFailed`]).
    fn acked(&self, upto: LogIndex) -> Result<(), InputsError>;

    /// The backup has executed every entry below `upto`, and what they ask of its disk. Called by the thread that reads
    /// acks, after [`Self::acked`] of the same ack. Must not wait.
    fn executed(&self, upto: LogIndex) {
        let _ = upto;
    }

    /// Which entry marks the first console output that may leave, and is not yet where its reader finds it. It
    /// counts as released all the same and takes no room in the buffer, since a console nobody reads is no
    /// reason to stop a guest that serves others. Asked at every heartbeat, by any of the link's threads. Must
    /// not wait.
    fn unprinted(&self) -> Option<LogIndex>;

    /// The link is over, and who will be live is undecided: this replica may change nothing that it shares
    /// until it is told more. Called once at most, by the thread that noticed, maybe the vCPU's, before the
    /// owner of the sender is told and before a waiting append goes on. Not called if the replica was halted or
    /// the sender dropped before. After [`Self::undisputed`], when it has left in an orderly way, it must have no
    /// effect. Must not wait.
    fn undecided(&self);

    /// The flag was won: every output held leaves, and every one to come leaves at once. Called by the thread
    /// that calls [`crate::SenderHandle::solo`], after [`Self::undecided`] and while appends still wait. After
    /// [`Self::halted`] or [`Self::closed`] it is called as well, and must have no effect.
    ///
    /// # Errors
    /// If an output could not be delivered. [`Self::undisputed`] is not called then.
    fn solo(&self) -> Result<(), InputsError>;

    /// Nobody else will be live: this replica runs alone (after [`Self::solo`] and before an append goes on),
    /// or it leaves in an orderly way (everything is released, and the goodbye not yet said). What is still on
    /// its way may arrive. After [`Self::halted`] it must have no effect. Must not wait.
    fn undisputed(&self);

    /// This replica stops for good, whatever state it is in. When this returns, no output is on its way and
    /// none will leave any more, and nothing shared is changed any more, whatever other threads do. Called by
    /// the thread that calls [`crate::SenderHandle::halt`], while the link may still be up; maybe several times.
    fn halted(&self);

    /// The sender is dropped, its link is over, and no more entries will be sent. When this returns, no output
    /// is on its way and none will leave any more. What left the gate before may go on its way as far as it
    /// was allowed to. Called by the thread that drops the sender, before it waits for the link's threads.
    fn closed(&self);
}
