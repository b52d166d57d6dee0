//! Who watches a replay from its beginning to its end, and writes down what it sees.
//!
//! ```text
//!  log ── entries ──▶ Heard ──▶ replayer ──▶ outputs ──▶ Said ──▶ (nowhere, or the console)
//!                       │ what came to the guest           │ what it said
//!                       └─────────▶ witnesses ◀────────────┘
//! ```

use crate::failure::Outcome;
use replay::file::LogReader;
use replay::{Event, InputsError, LogIndex, LogPlace, LogSource, NextEntry, Outlet, Output};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// An entry of the log, by its number.
#[derive(Clone, Copy, Debug, Default)]
pub struct Now {
    /// Its number.
    pub index: LogIndex,
    /// The clock there.
    pub clock: u64,
    /// When it was recorded: microseconds from the recording's begin on.
    pub at_us: u64,
}

/// One that watches.
pub trait Witness {
    /// Entry `now` was read: next it is replayed.
    fn heard(&mut self, now: Now, event: &Event);

    /// The guest said something, at entry `now`.
    fn said(&mut self, now: Now, output: &Output);

    /// The replay is over, for whatever reason. What was written, in words.
    ///
    /// # Errors
    /// If it could not be written, at any time.
    fn finish(&mut self) -> Outcome<String>;
}

/// All that watch one replay.
#[derive(Clone, Default)]
pub struct Witnesses {
    all: Vec<Rc<RefCell<dyn Witness>>>,
    /// The entry read last.
    now: Rc<Cell<Now>>,
}

impl Witnesses {
    /// Has `witness` watch as well.
    pub fn add(&mut self, witness: impl Witness + 'static) {
        self.all.push(Rc::new(RefCell::new(witness)));
    }

    /// Has all of them finish; what each wrote.
    ///
    /// # Errors
    /// The first failure.
    pub fn finish(&self) -> Outcome<Vec<String>> {
        let all = self.all.iter();
        all.map(|witness| witness.borrow_mut().finish()).collect()
    }
}

/// A log that is read before witnesses.
pub struct Heard {
    /// The log.
    pub log: LogReader,
    /// Who watches.
    pub witnesses: Witnesses,
}

impl LogSource for Heard {
    fn next(&mut self, wait: bool) -> Result<NextEntry, InputsError> {
        let index = self.log.place().index;
        let next = self.log.next(wait)?;
        if let NextEntry::Entry(entry) = &next {
            let now = Now {
                index,
                clock: entry.clock.0,
                at_us: self.log.at_us(),
            };
            self.witnesses.now.set(now);
            for witness in &self.witnesses.all {
                witness.borrow_mut().heard(now, &entry.event);
            }
        }
        Ok(next)
    }

    fn place(&self) -> LogPlace {
        self.log.place()
    }
}

/// An outlet whose outputs are seen by witnesses on their way.
pub struct Said<O> {
    /// Where they go.
    pub outlet: O,
    /// Who watches.
    pub witnesses: Witnesses,
}

impl<O: Outlet> Outlet for Said<O> {
    fn emit(&mut self, index: LogIndex, output: Output) -> Result<(), InputsError> {
        let now = self.witnesses.now.get();
        // The replayer reads an entry, and the next when all of that is done: this is the one read last.
        debug_assert_eq!(now.index, index);
        for witness in &self.witnesses.all {
            witness.borrow_mut().said(now, &output);
        }
        self.outlet.emit(index, output)
    }
}
