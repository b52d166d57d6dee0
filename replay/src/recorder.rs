//! Live inputs, logged: the primary's side, and that of a machine running alone.
//!
//! ```text
//!            questions, arrivals                 outputs
//!   Source ─────────────────────▶ Recorder ─────────────────▶ Outlet (gate or backends)
//!                                    │ entries
//!                                    ▼
//!                                 LogSink (channel, file, nothing)
//! ```
//!
//! The twin of [`crate::replayer`].

use crate::anchor::Anchor;
use crate::digest;
use crate::event::{Arrival, Event, LogEntry, LogIndex, Output, Question};
use crate::inputs::{Delivery, Inputs, InputsError, Situation, StateWindow, Stop};
use crate::point::{Clock, Here};
use crate::sink::{LogSink, Outlet, Source};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Pages in one rolling state digest: 1 MiB.
pub const STATE_PAGES: u32 = 256;

/// Entries between two digests as long as [`Recorder::see_all_memory`] is not done.
const SOON_ENTRIES: u64 = 256;

/// How often the state is digested along the way.
#[derive(Clone, Copy, Debug)]
pub struct StatePace {
    /// Entries between two digests; 0 for none.
    pub every_entries: u64,
}

impl Default for StatePace {
    fn default() -> Self {
        Self {
            every_entries: 4096,
        }
    }
}

/// Memory that was not digested yet since somebody new follows.
struct Unseen {
    pages: u64,
    /// Where the clock is left at which all was.
    seen: Arc<AtomicU64>,
}

/// Logs what the live world does.
pub struct Recorder<S, L, O> {
    source: S,
    log: L,
    outlet: O,
    pace: StatePace,
    entries: u64,
    since_state: u64,
    next_page: u64,
    memory_pages: u64,
    /// That all memory is to be digested soon.
    unseen: Option<Unseen>,
    last_clock: Clock,
    /// Where the last entry was logged, `Progress` aside. If that is the present stop, a replica stops here
    /// too.
    marked_at: Option<Clock>,
    /// Whether the entry of an output is appended and not flushed yet.
    flush_due: bool,
}

impl<S: Source, L: LogSink, O: Outlet> Recorder<S, L, O> {
    /// A recorder for a machine of `memory_pages` pages of 4 KiB, which stands where `log` does.
    pub fn new(source: S, log: L, outlet: O, pace: StatePace, memory_pages: u64) -> Self {
        let last_clock = log.place().clock;
        Self {
            source,
            log,
            outlet,
            pace,
            entries: 0,
            since_state: 0,
            next_page: 0,
            memory_pages: memory_pages.max(1),
            unseen: None,
            last_clock,
            marked_at: None,
            flush_due: false,
        }
    }

    /// The live world.
    pub fn source_mut(&mut self) -> &mut S {
        &mut self.source
    }

    /// The log.
    pub fn log_mut(&mut self) -> &mut L {
        &mut self.log
    }

    /// Entries appended by this recorder so far.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// How often the state is digested from here on; entries before do not count.
    pub fn set_pace(&mut self, pace: StatePace) {
        self.pace = pace;
        self.since_state = 0;
    }

    /// Has all memory digested soon, window by window, whatever the pace: somebody new follows, who has got
    /// memory a page at a time. `seen` is set to the clock of the last of these digests: a follower that has
    /// passed that, and has not diverged, has the same memory.
    pub fn see_all_memory(&mut self, seen: Arc<AtomicU64>) {
        // The window that memory's end cuts short counts as a whole one.
        let pages = self.memory_pages + u64::from(STATE_PAGES);
        self.unseen = Some(Unseen { pages, seen });
    }

    /// Where outputs go.
    pub fn outlet_mut(&mut self) -> &mut O {
        &mut self.outlet
    }

    /// Ends the recording while its machine runs on: its log gets no entry after this. To be called where
    /// the machine stands at a stop, with everything done there but entering the guest; `digest` covers the
    /// whole machine, so that a replay can tell that it got there.
    ///
    /// # Errors
    /// If the log cannot be written.
    pub fn leave(&mut self, here: &Here, digest: u64) -> Result<(), InputsError> {
        self.append(&LogEntry::at(here, Event::Left { digest }))?;
        self.flush_due = false;
        Ok(self.log.flush()?)
    }

    fn append(&mut self, entry: &LogEntry) -> Result<LogIndex, InputsError> {
        self.last_clock = entry.clock;
        if !matches!(entry.event, Event::Progress) {
            self.marked_at = Some(entry.clock);
            self.since_state += 1;
        }
        self.entries += 1;
        Ok(self.log.append(entry)?)
    }

    fn arrived(
        &mut self,
        now: &Situation,
        arrival: Arrival,
    ) -> Result<Option<Delivery>, InputsError> {
        // The clock is read after the arrival came, so the moment at which a timer was due is past by then.
        let anchor = now
            .time_ns
            .map(|derived_ns| Anchor::reaching(derived_ns, self.source.guest_ns()));
        let entry = LogEntry::arrival(&now.here, arrival, anchor);
        self.append(&entry)?;
        let Event::Arrival(arrival) = entry.event else {
            unreachable!("it was made an arrival above")
        };
        let anchor = entry.anchor;
        Ok(Some(Delivery { arrival, anchor }))
    }
}

impl<S: Source, L: LogSink, O: Outlet> Inputs for Recorder<S, L, O> {
    fn answer(&mut self, here: &Here, question: Question) -> Result<u64, InputsError> {
        let value = self.source.answer(question);
        self.append(&LogEntry::at(here, Event::Answer { question, value }))?;
        Ok(value)
    }

    fn arrival(&mut self, now: &Situation) -> Result<Option<Delivery>, InputsError> {
        loop {
            if let Some(arrival) = self.source.poll(now)? {
                return self.arrived(now, arrival);
            }
            let marked = self.marked_at == Some(now.here.point.clock);
            if now.interrupt_pending && now.interruptible && !now.natural && !marked {
                return self.arrived(now, Arrival::IrqWindow);
            }
            if !now.halted || now.interrupt_pending {
                return Ok(None);
            }
            if self.source.pause_asked() {
                return Err(InputsError::Paused);
            }
            self.flush_due = false;
            self.log.flush()?;
            self.source.wait(now)?;
        }
    }

    fn output(&mut self, here: &Here, output: Output) -> Result<(), InputsError> {
        let event = Event::Output {
            digest: digest::output(&output),
        };
        let index = self.append(&LogEntry::at(here, event))?;
        // Flushed before the guest goes on: all outputs of one exit leave together.
        self.flush_due |= output.is_gated();
        self.outlet.emit(index, output)
    }

    fn next_stop(&mut self, now: &Situation) -> Result<Stop, InputsError> {
        if std::mem::take(&mut self.flush_due) {
            self.log.flush()?;
        }
        self.log.before_entry()?;
        if now.interrupt_pending {
            return Ok(Stop::Window);
        }
        Ok(self.source.next_stop(now))
    }

    fn kicked(&mut self, clock: Clock) -> Result<(), InputsError> {
        if self.log.is_followed() && self.source.is_progress_due() {
            if clock > self.last_clock {
                self.append(&LogEntry::progress(clock))?;
            }
            self.log.flush()?;
        }
        Ok(())
    }

    fn state_due(&mut self, here: &Here) -> Result<Option<StateWindow>, InputsError> {
        // Only at an entry, since a replica stops there in any case.
        let every = match self.unseen {
            None => self.pace.every_entries,
            Some(_) => self.pace.every_entries.min(SOON_ENTRIES),
        };
        let due =
            every != 0 && self.since_state >= every && self.marked_at == Some(here.point.clock);
        if !due {
            return Ok(None);
        }
        let window = StateWindow {
            first_page: self.next_page,
            pages: STATE_PAGES,
        };
        self.next_page = (self.next_page + u64::from(STATE_PAGES)) % self.memory_pages;
        Ok(Some(window))
    }

    fn state(&mut self, here: &Here, window: StateWindow, digest: u64) -> Result<(), InputsError> {
        let StateWindow { first_page, pages } = window;
        self.append(&LogEntry::at(
            here,
            Event::State {
                first_page,
                pages,
                digest,
            },
        ))?;
        self.since_state = 0;
        if let Some(unseen) = &mut self.unseen {
            unseen.pages = unseen.pages.saturating_sub(pages.into());
            if unseen.pages == 0 {
                unseen.seen.store(here.point.clock.0, Ordering::Relaxed);
                self.unseen = None;
            }
        }
        Ok(())
    }

    fn end(&mut self, here: &Here, code: u32, digest: u64) -> Result<(), InputsError> {
        self.append(&LogEntry::at(here, Event::End { code, digest }))?;
        self.log.flush()?;
        Ok(())
    }
}
