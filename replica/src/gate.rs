//! The output gate (invariant 1).
//!
//! ```text
//!            hold(index, output)           acked(up to)
//!   vCPU ─────────────▶ [ 7 | 8 | 8 | 12 ] ◀──────────── reader thread
//!                         │ all below the acked cursor, in order
//!                         ▼
//!                       outlet
//!
//!   Closed ──open()──▶ Open: everything passes (Solo)
//!      └─────┴──halt()──▶ Halted: everything is dropped, for ever
//! ```

// The vCPU's thread and those of links call it (see clippy.toml).
#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

use replay::{InputsError, LogIndex, Output, sink::Outlet};
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum State {
    Closed,
    Open,
    Halted,
}

/// Holds guest output until the backup has acked the entry that marks it.
///
/// Why: a backup going live must never contradict output that was seen.
/// Order: what comes out has the order of what went in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct OutputGate<T> {
    held: VecDeque<(LogIndex, T)>,
    acked: LogIndex,
    state: State,
}

impl<T> OutputGate<T> {
    /// A closed gate for the outputs of a log whose first entry is `first`; nothing of it is acked.
    #[must_use]
    pub fn new(first: LogIndex) -> Self {
        Self {
            held: VecDeque::new(),
            acked: first,
            state: State::Closed,
        }
    }

    /// Takes the output that entry `index` marks. True if [`Self::next`] has something to emit now.
    ///
    /// # Panics
    /// If the gate is closed and the entry was acked already: the output should have been held before
    /// its entry could be sent, or the released cursor would have passed it by.
    pub fn hold(&mut self, index: LogIndex, output: T) -> bool {
        match self.state {
            State::Halted => return false,
            State::Closed => assert!(
                index >= self.acked,
                "output of entry {index} held after entries below {} were acked",
                self.acked
            ),
            State::Open => {}
        }
        self.held.push_back((index, output));
        self.state == State::Open
    }

    /// The backup holds every entry below `upto`. A step back is ignored.
    pub fn acked(&mut self, upto: LogIndex) {
        self.acked = self.acked.max(upto);
    }

    /// Opens the gate for good: this replica runs alone. Does nothing after [`Self::halt`].
    pub fn open(&mut self) {
        if self.state == State::Closed {
            self.state = State::Open;
        }
    }

    /// Drops everything held, and everything to come.
    pub fn halt(&mut self) {
        self.state = State::Halted;
        self.held = VecDeque::new();
    }

    /// Takes the next output that may leave.
    #[allow(clippy::should_implement_trait, reason = "more may come after none")]
    pub fn next(&mut self) -> Option<(LogIndex, T)> {
        let (index, _) = self.held.front()?;
        let may_leave = match self.state {
            State::Open => true,
            State::Closed => *index < self.acked,
            State::Halted => false,
        };
        may_leave.then(|| self.held.pop_front().expect("looked at above"))
    }

    /// How many outputs are held.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Whether outputs may still leave, now or later.
    #[must_use]
    pub fn is_halted(&self) -> bool {
        self.state == State::Halted
    }
}

/// An [`OutputGate`] before an outlet, shared by the vCPU (which fills it), the thread that reads acks
/// (which empties it into the outlet without a further hop), and the one that opens or halts it.
///
/// Order of locks: `outlet`, then `gate`. The outlet's lock is held while emitting, so that outputs
/// leave in order and [`SharedGate::halt`] can wait for the one on its way.
pub struct SharedGate {
    gate: Mutex<OutputGate<Output>>,
    outlet: Mutex<Box<dyn Outlet + Send>>,
}

impl SharedGate {
    /// A closed gate before `outlet`, which must not call back into the gate, for the outputs of a log
    /// whose first entry is `first`.
    #[must_use]
    pub fn new(outlet: Box<dyn Outlet + Send>, first: LogIndex) -> Self {
        Self {
            gate: Mutex::new(OutputGate::new(first)),
            outlet: Mutex::new(outlet),
        }
    }

    fn gate(&self) -> MutexGuard<'_, OutputGate<Output>> {
        self.gate.lock().expect("no panic while the gate is locked")
    }

    /// Emits everything that may leave.
    fn drain(&self) -> Result<(), InputsError> {
        let mut outlet = self.outlet.lock().expect("no panic in the outlet");
        loop {
            // A statement of its own: the gate's lock must not be held while emitting.
            let next = self.gate().next();
            let Some((index, output)) = next else {
                return Ok(());
            };
            if let Err(error) = outlet.emit(index, output) {
                self.gate().halt();
                return Err(error);
            }
        }
    }

    /// Takes an output; emits it at once if the gate is open. See [`OutputGate::hold`].
    ///
    /// # Errors
    /// The outlet's; the gate has halted then.
    ///
    /// # Panics
    /// As [`OutputGate::hold`].
    pub fn hold(&self, index: LogIndex, output: Output) -> Result<(), InputsError> {
        let emit = self.gate().hold(index, output);
        if emit { self.drain() } else { Ok(()) }
    }

    /// Emits an output that needs no gate, unless halted.
    ///
    /// # Errors
    /// The outlet's; the gate has halted then.
    pub fn pass(&self, index: LogIndex, output: Output) -> Result<(), InputsError> {
        let mut outlet = self.outlet.lock().expect("no panic in the outlet");
        if self.gate().is_halted() {
            return Ok(());
        }
        outlet
            .emit(index, output)
            .inspect_err(|_| self.gate().halt())
    }

    /// Emits, in the calling thread, what entries below `upto` mark.
    ///
    /// # Errors
    /// The outlet's; the gate has halted then.
    pub fn acked(&self, upto: LogIndex) -> Result<(), InputsError> {
        self.gate().acked(upto);
        self.drain()
    }

    /// Opens the gate for good and emits everything held. Only the winner of the flag may.
    ///
    /// # Errors
    /// The outlet's; the gate has halted then.
    pub fn open(&self) -> Result<(), InputsError> {
        self.gate().open();
        self.drain()
    }

    /// Drops everything held and to come. When this returns, no output is on its way and none will
    /// leave any more, whatever other threads do.
    pub fn halt(&self) {
        self.gate().halt();
        drop(self.outlet.lock());
    }

    /// How many outputs are held.
    #[must_use]
    pub fn held(&self) -> usize {
        self.gate().held()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::mpsc;

    fn drain(gate: &mut OutputGate<char>) -> String {
        std::iter::from_fn(|| gate.next())
            .map(|(_, output)| output)
            .collect()
    }

    #[test]
    fn outputs_wait_for_the_ack_of_their_entry_and_keep_their_order() {
        let mut gate = OutputGate::new(LogIndex(0));
        for (index, output) in [(3, 'a'), (5, 'b'), (5, 'c'), (6, 'd')] {
            assert!(!gate.hold(LogIndex(index), output));
        }
        assert_eq!(drain(&mut gate), "");
        gate.acked(LogIndex(3));
        assert_eq!(drain(&mut gate), "", "entry 3 itself is not acked yet");
        gate.acked(LogIndex(6));
        assert_eq!(drain(&mut gate), "abc");
        gate.acked(LogIndex(2));
        assert_eq!(drain(&mut gate), "");
        gate.open();
        assert_eq!(drain(&mut gate), "d");
        assert!(gate.hold(LogIndex(0), 'e'), "open: passes");
        assert_eq!(drain(&mut gate), "e");
    }

    #[test]
    fn a_halted_gate_stays_shut() {
        let mut gate = OutputGate::new(LogIndex(0));
        gate.hold(LogIndex(0), 'a');
        gate.halt();
        gate.acked(LogIndex(9));
        gate.open();
        gate.hold(LogIndex(9), 'b');
        assert_eq!(drain(&mut gate), "");
        assert_eq!(gate.held(), 0);
    }

    #[test]
    #[should_panic(expected = "held after entries below 2 were acked")]
    fn an_output_held_too_late_is_a_bug() {
        let mut gate = OutputGate::new(LogIndex(0));
        gate.acked(LogIndex(2));
        gate.hold(LogIndex(1), 'a');
    }

    #[test]
    #[should_panic(expected = "held after entries below 1000 were acked")]
    fn so_is_one_of_an_entry_before_the_log() {
        OutputGate::new(LogIndex(1_000)).hold(LogIndex(999), 'a');
    }

    struct Slow(mpsc::Sender<LogIndex>, mpsc::Receiver<()>);
    impl Outlet for Slow {
        fn emit(&mut self, index: LogIndex, _: Output) -> Result<(), InputsError> {
            self.0.send(index).expect("the test listens");
            self.1.recv().expect("the test says go");
            Ok(())
        }
    }

    #[test]
    fn halting_waits_for_the_output_on_its_way_and_stops_the_rest() {
        let (seen, emitted) = mpsc::channel();
        let (go, gone) = mpsc::channel();
        let gate = Arc::new(SharedGate::new(Box::new(Slow(seen, gone)), LogIndex(0)));
        for index in 0..3 {
            gate.hold(LogIndex(index), Output::Frame(vec![])).unwrap();
        }
        let draining = std::thread::spawn({
            let gate = gate.clone();
            move || gate.acked(LogIndex(3)).unwrap()
        });
        assert_eq!(emitted.recv().unwrap(), LogIndex(0));
        let halting = std::thread::spawn({
            let gate = gate.clone();
            move || gate.halt()
        });
        while gate.held() > 0 {
            std::thread::yield_now();
        }
        assert!(!halting.is_finished(), "an output is on its way");
        go.send(()).unwrap();
        halting.join().unwrap();
        draining.join().unwrap();
        gate.hold(LogIndex(4), Output::Frame(vec![])).unwrap();
        gate.open().unwrap();
        assert!(emitted.try_recv().is_err(), "nothing after the halt");
    }

    struct Broken;
    impl Outlet for Broken {
        fn emit(&mut self, _: LogIndex, _: Output) -> Result<(), InputsError> {
            Err(InputsError::Backend("gone".into()))
        }
    }

    #[test]
    fn a_failed_outlet_halts_the_gate() {
        let gate = SharedGate::new(Box::new(Broken), LogIndex(0));
        gate.hold(LogIndex(0), Output::Console(vec![1])).unwrap();
        gate.hold(LogIndex(1), Output::Console(vec![2])).unwrap();
        assert!(gate.acked(LogIndex(1)).is_err());
        assert_eq!(gate.held(), 0);
        assert!(gate.open().is_ok(), "halted: nothing left to fail");
    }
}
