//! Inputs from a log, every one checked: the backup's side, and that of a replay from a file.
//!
//! It is the twin of [`crate::recorder`], and never lets the vCPU past the last entry it holds (invariant
//! 2). Before the vCPU is entered the replayer must know the next entry: the clock value of that entry
//! becomes the stop. A method that finds the log ended has changed nothing. So whoever takes over, as in a
//! backup that goes live, can be asked the same again.

use crate::anchor::Anchor;
use crate::base::LogPlace;
use crate::digest;
use crate::divergence::Divergence;
use crate::error::LogError;
use crate::event::{Arrival, Event, LogEntry, LogIndex, Output, Question};
use crate::inputs::{Delivery, Inputs, InputsError, Situation, StateWindow, Stop};
use crate::point::{Clock, ExecPoint, Here};
use crate::sink::{LogSource, NextEntry, Outlet, Rewind};
use std::collections::VecDeque;
use std::fmt::Write as _;

/// Entries kept to explain a divergence.
const CONTEXT: usize = 8;

/// Replays a log.
pub struct Replayer<L, O> {
    log: L,
    suppressed: O,
    /// The next entry that is not `Progress`.
    held: Option<LogEntry>,
    /// Index of the first entry of this replay.
    first: LogIndex,
    /// That of `held`, or of the entry to come, and the clock of the entry before it.
    place: LogPlace,
    /// The vCPU may run to here.
    limit: Clock,
    /// The vCPU is to stop here as well, though the log has no entry here.
    extra: Option<Clock>,
    last: VecDeque<String>,
}

impl<L: LogSource, O: Outlet> Replayer<L, O> {
    /// A replayer for a machine that stands where `log` does; outputs the guest makes go to `suppressed`
    /// with the index of their entry.
    pub fn new(log: L, suppressed: O) -> Self {
        let place = log.place();
        Self {
            log,
            suppressed,
            held: None,
            first: place.index,
            place,
            limit: place.clock,
            extra: None,
            last: VecDeque::new(),
        }
    }

    /// Makes the vCPU stop at `clock` as well, or at the first stop behind it, so that somebody can look. The
    /// guest does not notice, since nothing is delivered at a stop of which the log knows nothing.
    pub fn stop_at(&mut self, clock: Clock) {
        self.extra = Some(clock);
    }

    /// Index of the next entry to replay.
    pub fn index(&self) -> LogIndex {
        self.place.index
    }

    /// The place of the next entry to replay.
    pub fn place(&self) -> LogPlace {
        self.place
    }

    /// Entries replayed so far.
    pub fn entries(&self) -> u64 {
        self.place.index.0 - self.first.0
    }

    /// The log.
    pub fn log_mut(&mut self) -> &mut L {
        &mut self.log
    }

    /// Where suppressed outputs went.
    pub fn suppressed_mut(&mut self) -> &mut O {
        &mut self.suppressed
    }

    /// Makes sure that the next entry is held, `Progress` aside; waits for it if `wait`. Returns false if it
    /// has not come yet. A wait also ends, with false, when `Progress` comes.
    fn hold(&mut self, at: ExecPoint, wait: bool) -> Result<bool, InputsError> {
        while self.held.is_none() {
            match self.log.next(wait)? {
                NextEntry::Entry(entry) => {
                    self.limit = self.limit.max(entry.clock);
                    if matches!(entry.event, Event::Progress) {
                        self.pass(&entry);
                        if wait {
                            return Ok(false);
                        }
                    } else {
                        self.held = Some(entry);
                    }
                }
                NextEntry::Nothing => return Ok(false),
                NextEntry::Ended => {
                    return Err(InputsError::LogEnded {
                        entries: self.place.index.0,
                        at,
                    });
                }
            }
        }
        Ok(true)
    }

    /// Waits until either the next entry is held or the vCPU may run past `at`.
    fn hold_past(&mut self, at: ExecPoint) -> Result<(), InputsError> {
        while !self.hold(at, false)? && self.limit <= at.clock {
            self.hold(at, true)?;
        }
        Ok(())
    }

    /// `entry` is replayed.
    fn pass(&mut self, entry: &LogEntry) {
        if self.last.len() == CONTEXT {
            self.last.pop_front();
        }
        self.last.push_back(describe(self.place.index, entry));
        self.place = LogPlace {
            index: self.place.index.next(),
            clock: entry.clock,
        };
    }

    /// Takes the held entry, after checking that the vCPU stands where it did.
    fn take(&mut self, here: &Here, found: &str) -> Result<LogEntry, InputsError> {
        let entry = self.held.take().expect("an entry is held");
        let stand = entry.stand.expect("only progress has no registers");
        let same = entry.clock == here.point.clock
            && stand.rip.is_none_or(|rip| rip == here.point.rip)
            && stand.registers == here.registers;
        if !same {
            return Err(self.diverged(here, entry, found));
        }
        self.pass(&entry);
        Ok(entry)
    }

    fn diverged(&mut self, here: &Here, entry: LogEntry, found: &str) -> InputsError {
        let mut context = String::new();
        for line in &self.last {
            let _ = write!(context, "\n  replayed {line}");
        }
        let mut following = Some(entry.clone());
        for ahead in 0..3 {
            let Some(entry) = following.take() else { break };
            let _ = write!(
                context,
                "\n  expected {}",
                describe(LogIndex(self.place.index.0 + ahead), &entry)
            );
            if let Ok(NextEntry::Entry(next)) = self.log.next(false) {
                following = Some(next);
            }
        }
        let divergence = Divergence {
            index: self.place.index,
            at: here.point,
            expected: describe(self.place.index, &entry),
            found: format!("{found} with registers {:08x}", here.registers.0),
            context,
        };
        self.held = Some(entry);
        InputsError::Diverged(Box::new(divergence))
    }

    /// Takes the next entry, which must be the one that the guest's own doing asks for right here.
    fn expect(
        &mut self,
        here: &Here,
        found: &str,
        matches: impl Fn(&Event) -> bool,
    ) -> Result<Event, InputsError> {
        while !self.hold(here.point, true)? {
            if self.limit > here.point.clock {
                // Progress past this point, yet no entry for it: the primary did not do this.
                let entry = LogEntry::progress(self.limit);
                return Err(self.diverged(here, entry, found));
            }
        }
        let entry = self.take(here, found)?;
        if matches(&entry.event) {
            Ok(entry.event)
        } else {
            Err(self.diverged(here, entry, found))
        }
    }
}

/// A place in a replayer's log, to go back to. Outputs made since then are not taken back.
pub struct Mark<M> {
    log: M,
    held: Option<LogEntry>,
    place: LogPlace,
    limit: Clock,
    last: VecDeque<String>,
}

impl<L: Rewind, O> Replayer<L, O> {
    /// Where it is.
    pub fn mark(&self) -> Mark<L::Mark> {
        Mark {
            log: self.log.mark(),
            held: self.held.clone(),
            place: self.place,
            limit: self.limit,
            last: self.last.clone(),
        }
    }

    /// Goes back to where it was, to replay the same again.
    ///
    /// # Errors
    /// If the log cannot be read there.
    pub fn rewind(&mut self, mark: &Mark<L::Mark>) -> Result<(), LogError> {
        self.log.rewind(&mark.log)?;
        self.held.clone_from(&mark.held);
        self.place = mark.place;
        self.limit = mark.limit;
        self.last.clone_from(&mark.last);
        Ok(())
    }

    /// The last entries replayed, oldest first, each in one line.
    pub fn last(&self) -> impl Iterator<Item = &str> {
        self.last.iter().map(String::as_str)
    }

    /// The entry to be replayed next, if it is known already.
    pub fn next_entry(&self) -> Option<&LogEntry> {
        self.held.as_ref()
    }
}

/// An entry in one line, for people.
#[must_use]
pub fn describe(index: LogIndex, entry: &LogEntry) -> String {
    let mut text = format!("entry {index} clock {}", entry.clock);
    if let Some(stand) = entry.stand {
        if let Some(rip) = stand.rip {
            let _ = write!(text, " rip {rip:#x}");
        }
        let _ = write!(text, " registers {:08x}", stand.registers.0);
    }
    if entry.anchor != Anchor::NONE {
        let _ = write!(text, " anchor {}", entry.anchor.0);
    }
    let _ = match &entry.event {
        Event::Arrival(Arrival::Frame(bytes)) => write!(text, " frame of {} bytes", bytes.len()),
        Event::Arrival(Arrival::DiskDone { tag, ok, data }) => {
            write!(
                text,
                " disk request {tag} done ok={ok} with {} bytes",
                data.len()
            )
        }
        other => write!(text, " {other:?}"),
    };
    text
}

impl<L: LogSource, O: Outlet> Inputs for Replayer<L, O> {
    fn answer(&mut self, here: &Here, question: Question) -> Result<u64, InputsError> {
        let found = format!("guest asks {question:?}");
        let same =
            |event: &Event| matches!(event, Event::Answer { question: q, .. } if *q == question);
        match self.expect(here, &found, same)? {
            Event::Answer { value, .. } => Ok(value),
            _ => unreachable!("matched above"),
        }
    }

    fn arrival(&mut self, now: &Situation) -> Result<Option<Delivery>, InputsError> {
        let here = &now.here;
        self.hold_past(here.point)?;
        let due = self
            .held
            .as_ref()
            .is_some_and(|e| e.clock == here.point.clock && matches!(e.event, Event::Arrival(_)));
        if due {
            let entry = self.take(here, "vCPU stopped for an arrival")?;
            if now.time_ns.is_none() && entry.is_anchored() {
                return Err(self.diverged(here, entry, "a machine whose time is not derived"));
            }
            let anchor = entry.anchor;
            let Event::Arrival(arrival) = entry.event else {
                unreachable!("looked at above")
            };
            return Ok(Some(Delivery { arrival, anchor }));
        }
        if now.halted && !now.interrupt_pending {
            // Whatever comes next must come here: a halted guest does not move.
            while !self.hold(here.point, true)? {}
            let entry = self.held.take().expect("just held");
            if entry.clock == here.point.clock
                && matches!(
                    entry.event,
                    Event::Arrival(_)
                        | Event::State { .. }
                        | Event::Left { .. }
                        | Event::End { .. }
                )
            {
                let arrival = matches!(entry.event, Event::Arrival(_));
                self.held = Some(entry);
                return if arrival { self.arrival(now) } else { Ok(None) };
            }
            return Err(self.diverged(here, entry, "guest halted"));
        }
        Ok(None)
    }

    fn output(&mut self, here: &Here, output: Output) -> Result<(), InputsError> {
        let index = self.check_output(here, &output)?;
        self.suppressed.emit(index, output)
    }

    fn next_stop(&mut self, now: &Situation) -> Result<Stop, InputsError> {
        let here = &now.here;
        self.hold_past(here.point)?;
        let clock = self.held.as_ref().map_or(self.limit, |entry| entry.clock);
        if clock <= here.point.clock {
            let entry = self.held.take().expect("the limit lies ahead otherwise");
            return Err(self.diverged(here, entry, "vCPU about to go on"));
        }
        let extra = self.extra.filter(|extra| *extra > here.point.clock);
        Ok(Stop::At(extra.map_or(clock, |extra| extra.min(clock))))
    }

    fn kicked(&mut self, _: Clock) -> Result<(), InputsError> {
        Ok(())
    }

    fn state_due(&mut self, here: &Here) -> Result<Option<StateWindow>, InputsError> {
        self.hold_past(here.point)?;
        Ok(self.held.as_ref().and_then(|entry| match entry.event {
            Event::State {
                first_page, pages, ..
            } if entry.clock == here.point.clock => Some(StateWindow { first_page, pages }),
            Event::Left { .. } if entry.clock == here.point.clock => Some(StateWindow::ALL),
            _ => None,
        }))
    }

    fn state(&mut self, here: &Here, window: StateWindow, digest: u64) -> Result<(), InputsError> {
        let StateWindow { first_page, pages } = window;
        if matches!(&self.held, Some(entry) if matches!(entry.event, Event::Left { .. })) {
            return self.left(here, digest);
        }
        let state = Event::State {
            first_page,
            pages,
            digest,
        };
        let found = format!("state digest {digest:016x} of {pages} pages from {first_page}");
        self.expect(here, &found, |e| *e == state)?;
        Ok(())
    }

    fn end(&mut self, here: &Here, code: u32, digest: u64) -> Result<(), InputsError> {
        let end = Event::End { code, digest };
        let found = format!("machine ends with {code} and state {digest:016x}");
        self.expect(here, &found, |e| *e == end)?;
        Ok(())
    }
}

impl<L: LogSource, O: Outlet> Replayer<L, O> {
    /// That the log marks `output` as made `here`; the index of its entry. What becomes of the output is the
    /// caller's matter: at the end of the log nothing has changed, and it is still whole.
    ///
    /// # Errors
    /// As [`Inputs::output`].
    pub fn check_output(&mut self, here: &Here, output: &Output) -> Result<LogIndex, InputsError> {
        let digest = digest::output(output);
        let found = format!("guest outputs {} ({digest:08x})", name(output));
        let index = self.index_of_next(here.point)?;
        self.expect(here, &found, |e| *e == Event::Output { digest })?;
        Ok(index)
    }

    /// The recording ends here, if the machine with this digest is the recorded one.
    fn left(&mut self, here: &Here, digest: u64) -> Result<(), InputsError> {
        let found = format!("machine has state {digest:016x} where the recording ends");
        self.expect(here, &found, |event| *event == Event::Left { digest })?;
        Err(InputsError::Left {
            entries: self.place.index.0,
            at: here.point,
            digest,
        })
    }

    /// Index the next entry of substance has, once it is here.
    fn index_of_next(&mut self, at: ExecPoint) -> Result<LogIndex, InputsError> {
        while !self.hold(at, true)? {
            if self.limit > at.clock {
                break;
            }
        }
        Ok(self.place.index)
    }
}

fn name(output: &Output) -> String {
    match output {
        Output::Frame(bytes) => format!("a frame of {} bytes", bytes.len()),
        Output::Console(bytes) => format!("console {:?}", String::from_utf8_lossy(bytes)),
        Output::DiskRead { tag, offset, len } => format!("disk read {tag} of {len} at {offset}"),
        Output::DiskWrite { tag, offset, data } => {
            format!("disk write {tag} of {} at {offset}", data.len())
        }
        Output::DiskFlush { tag } => format!("disk flush {tag}"),
        Output::PowerOff { code } => format!("power-off {code}"),
    }
}
