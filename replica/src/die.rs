//! Where a replica kills its own process, for tests: at an entry of its log, or at a step of a join.
//!
//! ```text
//!   a replica that leads                          one that is given the machine
//!   N            the entry with index N           greeted      it is called
//!   begun+N      N entries after it began to      state+N      N pieces of the state came
//!                give the machine to a backup     restored     it has the machine, and has not said so
//!   level        that has the machine             accepted     it has said so
//!   sealed       the flag is won                  welcomed     it is the backup
//!   welcoming    the backup is told so            executed+N   it executed entry N of its log
//!   base+N       entry N of the backup's log
//!   unsent+N     that, which is not sent
//! ```
//!
//! The entry it dies at is sent, but for `unsent`, and the output that this marks waits in the gate. An output of a
//! machine that runs alone has left. N counts from 0.

// The vCPU's thread runs here (see clippy.toml).
#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

use crate::journal::{Channel, Journal};
use logchannel::Bye;
use replay::{LogEntry, LogError, LogIndex, LogPlace, LogSink, Output};
use std::str::FromStr;

/// A step of a replica's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Entry,
    Begun,
    Level,
    Sealed,
    Welcoming,
    Base,
    Unsent,
    Greeted,
    State,
    Restored,
    Accepted,
    Welcomed,
    Executed,
}

/// By its name, and whether it is counted. An entry has no name.
const STEPS: [(&str, Step, bool); 12] = [
    ("begun", Step::Begun, true),
    ("level", Step::Level, false),
    ("sealed", Step::Sealed, false),
    ("welcoming", Step::Welcoming, false),
    ("base", Step::Base, true),
    ("unsent", Step::Unsent, true),
    ("greeted", Step::Greeted, false),
    ("state", Step::State, true),
    ("restored", Step::Restored, false),
    ("accepted", Step::Accepted, false),
    ("welcomed", Step::Welcomed, false),
    ("executed", Step::Executed, true),
];

/// Where a replica kills its own process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DieAt {
    step: Step,
    /// How many of its kind come before.
    after: u64,
}

impl FromStr for DieAt {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // Rust's own would take a sign before it.
        let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        let number = |text: &str| text.parse().ok().filter(|_| is_number(text));
        if let Some(after) = number(text) {
            let step = Step::Entry;
            return Ok(Self { step, after });
        }
        let (name, after) = match text.split_once('+') {
            Some((name, after)) => (name, number(after)),
            None => (text, None),
        };
        let known = STEPS.iter().find(|(known, ..)| *known == name);
        match (known, after) {
            (Some((_, step, true)), Some(after)) => Ok(Self { step: *step, after }),
            (Some((_, step, false)), None) if text == name => Ok(Self {
                step: *step,
                after: 0,
            }),
            _ => Err("it is no index, and no step of a join".into()),
        }
    }
}

/// How many of `step` come before the one to die at; none if it is to die elsewhere, or nowhere.
pub(crate) fn count(die_at: Option<DieAt>, step: Step) -> Option<u64> {
    die_at.filter(|at| at.step == step).map(|at| at.after)
}

/// `step` is reached, for the first time: this process ends if it is the one to die at.
pub(crate) fn reached(die_at: Option<DieAt>, step: Step) {
    if count(die_at, step) == Some(0) {
        now();
    }
}

/// Ends this process, as if its host had lost power.
pub(crate) fn now() {
    // SAFETY: ending this very process is what is asked for.
    unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
}

/// The journal of a replica that may have to die at one of its entries.
pub struct Mortal {
    journal: Journal,
    die_at: Option<DieAt>,
    /// The entry to die at, once it is known which that is.
    last: Option<LogIndex>,
}

impl Mortal {
    /// Of a replica that is to die at `die_at`.
    pub(crate) fn new(journal: Journal, die_at: Option<DieAt>) -> Self {
        Self {
            journal,
            die_at,
            last: count(die_at, Step::Entry).map(LogIndex),
        }
    }

    /// From here on the machine is being given to a new backup.
    pub(crate) fn begin_join(&mut self) {
        self.count_from_here(Step::Begun);
    }

    /// From here on entries go to a new backup, whose log begins here.
    pub(crate) fn link(&mut self, channel: Box<Channel>, under_way: &[Output]) {
        self.journal = Journal::Linked(channel);
        // The link before, which knew of the same, is gone by now.
        if let Journal::Linked(channel) = &self.journal {
            channel.begin_reads(under_way);
        }
        self.count_from_here(Step::Base);
        self.count_from_here(Step::Unsent);
    }

    /// [`Journal::leave`].
    pub(crate) fn leave(&mut self, bye: Bye) {
        self.journal.leave(bye);
    }

    fn count_from_here(&mut self, step: Step) {
        if let Some(after) = count(self.die_at, step) {
            self.last = Some(LogIndex(self.place().index.0 + after));
        }
    }

    /// Sends what there is and ends this process, if the entry to die at is appended. Not at once then: an
    /// output it marks goes into the gate first. Sent before that, a backup could ack it and hear that there is
    /// nothing to make again.
    fn die_if_due(&mut self) -> Result<(), LogError> {
        let is_due = |last: LogIndex| self.journal.place().index > last;
        if self.last.is_some_and(is_due) {
            if count(self.die_at, Step::Unsent).is_none() {
                self.journal.send()?;
            }
            now();
        }
        Ok(())
    }
}

impl LogSink for Mortal {
    fn append(&mut self, entry: &LogEntry) -> Result<LogIndex, LogError> {
        self.die_if_due()?;
        self.journal.append(entry)
    }

    fn flush(&mut self) -> Result<(), LogError> {
        self.die_if_due()?;
        self.journal.flush()
    }

    fn place(&self) -> LogPlace {
        self.journal.place()
    }

    fn before_entry(&mut self) -> Result<(), LogError> {
        self.die_if_due()?;
        self.journal.before_entry()
    }

    fn is_followed(&self) -> bool {
        self.journal.is_followed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use replay::{Clock, NoLog};

    #[test]
    fn a_place_to_die_at_is_an_index_or_a_step() {
        let at = |text: &str| text.parse::<DieAt>().ok().map(|at| (at.step, at.after));
        assert_eq!(at("17"), Some((Step::Entry, 17)));
        assert_eq!(at("base+0"), Some((Step::Base, 0)));
        assert_eq!(at("begun+40"), Some((Step::Begun, 40)));
        assert_eq!(at("sealed"), Some((Step::Sealed, 0)));
        for nonsense in [
            "", "-1", "+1", "base", "base+", "base+x", "base-1", "sealed+", "sealed+1", "entry+1",
        ] {
            assert_eq!(at(nonsense), None, "{nonsense}");
        }
    }

    /// That it does die is for the tests of processes to see.
    #[test]
    fn entries_are_counted_from_where_the_join_has_come_to() {
        let last_of = |die_at: &str| {
            let from = LogPlace {
                index: LogIndex(100),
                clock: Clock(0),
            };
            let journal = Journal::Alone(NoLog::at(from));
            let mut mortal = Mortal::new(journal, Some(die_at.parse().unwrap()));
            let before = mortal.last;
            mortal.begin_join();
            (before, mortal.last)
        };
        assert_eq!(last_of("7"), (Some(LogIndex(7)), Some(LogIndex(7))));
        assert_eq!(last_of("begun+3"), (None, Some(LogIndex(103))));
        assert_eq!(last_of("base+3"), (None, None));
        assert_eq!(last_of("sealed"), (None, None));
    }
}
