//! The traits between recorder and replayer and what is around them.

use crate::base::LogPlace;
use crate::error::LogError;
use crate::event::{Arrival, LogEntry, LogIndex, Output, Question};
use crate::inputs::{InputsError, Situation, Stop};

/// Where a recorder puts entries: a file, a logging channel, or nowhere.
pub trait LogSink {
    /// Takes the next entry; may wait while the sink's bounded buffer is full.
    ///
    /// # Errors
    /// If the entry could not be kept.
    fn append(&mut self, entry: &LogEntry) -> Result<LogIndex, LogError>;

    /// The place of the next entry: an entry's clock is no less than that of the one before it.
    fn place(&self) -> LogPlace;

    /// Sends on whatever has been appended.
    ///
    /// # Errors
    /// If it could not be.
    fn flush(&mut self) -> Result<(), LogError>;

    /// Told before the guest runs on. A sink whose follower is behind may hold the guest back here, after it
    /// has sent on what was appended.
    ///
    /// # Errors
    /// If that could not be sent.
    fn before_entry(&mut self) -> Result<(), LogError> {
        Ok(())
    }

    /// Whether somebody follows this log as it grows, and so needs [`crate::Event::Progress`].
    fn is_followed(&self) -> bool;
}

/// A sink that keeps nothing: a machine running alone. The default is that of one about to boot.
#[derive(Debug, Default)]
pub struct NoLog {
    next: LogPlace,
}

impl NoLog {
    /// A sink for the entries of a run from `next` on: what nobody keeps is numbered all the same.
    #[must_use]
    pub fn at(next: LogPlace) -> Self {
        Self { next }
    }
}

impl LogSink for NoLog {
    fn append(&mut self, entry: &LogEntry) -> Result<LogIndex, LogError> {
        let index = self.next.index;
        self.next = LogPlace {
            index: index.next(),
            clock: entry.clock,
        };
        Ok(index)
    }

    fn place(&self) -> LogPlace {
        self.next
    }

    fn flush(&mut self) -> Result<(), LogError> {
        Ok(())
    }

    fn is_followed(&self) -> bool {
        false
    }
}

/// What [`LogSource::next`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NextEntry {
    /// The next entry.
    Entry(LogEntry),
    /// None is here yet (only when not waiting).
    Nothing,
    /// There will be no more.
    Ended,
}

/// Where a replayer takes entries from.
pub trait LogSource {
    /// Takes the next entry; waits for it if `wait`.
    ///
    /// # Errors
    /// If the log is malformed, or this replica was stopped.
    fn next(&mut self, wait: bool) -> Result<NextEntry, InputsError>;

    /// The place of the entry that is taken next.
    fn place(&self) -> LogPlace;
}

/// A source that can be read again from an earlier place.
pub trait Rewind: LogSource {
    /// A place in the log.
    type Mark;

    /// The place it is at.
    fn mark(&self) -> Self::Mark;

    /// Goes to a place it was at.
    ///
    /// # Errors
    /// If the log cannot be read there, or is another one now.
    fn rewind(&mut self, mark: &Self::Mark) -> Result<(), LogError>;
}

/// The live world of a machine: its clocks, and what arrives from its backends.
pub trait Source {
    /// Answers a question about the world.
    fn answer(&mut self, question: Question) -> u64;

    /// What derived guest time should be by the world's clock, in nanoseconds. Never less than it said
    /// before.
    fn guest_ns(&mut self) -> u64;

    /// What has arrived and can be delivered in this situation.
    ///
    /// # Errors
    /// If a backend failed.
    fn poll(&mut self, now: &Situation) -> Result<Option<Arrival>, InputsError>;

    /// Waits until [`Source::poll`] would have something, or until kicked.
    ///
    /// # Errors
    /// If a backend failed.
    fn wait(&mut self, now: &Situation) -> Result<(), InputsError>;

    /// Whether it is time to tell a follower how far the guest got.
    fn is_progress_due(&mut self) -> bool;

    /// Where the vCPU has to stop. It is [`Stop::Soon`] if something waits for delivery.
    fn next_stop(&mut self, now: &Situation) -> Stop;

    /// Whether somebody wants the machine to pause, for its state to be taken. A halted guest is not waited
    /// for then: [`Source::wait`] returns, and the machine stands where it is.
    fn pause_asked(&self) -> bool {
        false
    }
}

/// Where outputs go: straight to the backends, or into an output gate until `index` is acked.
pub trait Outlet {
    /// Takes an output that was marked by entry `index`.
    ///
    /// # Errors
    /// If a backend failed in a way the machine cannot go on from.
    fn emit(&mut self, index: LogIndex, output: Output) -> Result<(), InputsError>;
}
