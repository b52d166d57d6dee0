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

/// Pages in one rolling state digest: 1 MiB.
pub const STATE_PAGES: u32 = 256;

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
    last_clock: Clock,
    /// Whether an entry was logged at the present stop: a replica stops here too.
    marked_at: Option<Clock>,
    /// Whether an output waits for its entry to be acked.
    flush_due: bool,
}

impl<S: Source, L: LogSink, O: Outlet> Recorder<S, L, O> {
    /// A recorder for a machine of `memory_pages` pages of 4 KiB.
    pub fn new(source: S, log: L, outlet: O, pace: StatePace, memory_pages: u64) -> Self {
        Self {
            source,
            log,
            outlet,
            pace,
            entries: 0,
            since_state: 0,
            next_page: 0,
            memory_pages: memory_pages.max(1),
            last_clock: Clock(0),
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

    /// Entries appended so far.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// Where outputs go.
    pub fn outlet_mut(&mut self) -> &mut O {
        &mut self.outlet
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
        // Read after the arrival came, so that a timer's due moment lies behind it.
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
        // Only where a replica stops anyway: at an entry.
        let due = self.pace.every_entries != 0
            && self.since_state >= self.pace.every_entries
            && self.marked_at == Some(here.point.clock);
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
        Ok(())
    }

    fn end(&mut self, here: &Here, code: u32, digest: u64) -> Result<(), InputsError> {
        self.append(&LogEntry::at(here, Event::End { code, digest }))?;
        self.log.flush()?;
        Ok(())
    }
}
