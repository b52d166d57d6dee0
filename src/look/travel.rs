//! Forward and backward through a replay.
//!
//! ```text
//!  kept:  0 ─────────────── 1 ─────── 2 ──── 3 ── 4   ▶ here      fewer, the further back
//!
//!  back to a place: the last kept before it is put back, and replayed to the very instruction
//! ```
//!
//! A checkpoint is the whole machine and the place in the log; memory that did not change is shared with
//! the checkpoint before. Their number and their memory are bounded: beyond, the one goes whose loss makes
//! the least difference, seen from here. The first, where the log begins, always stays.
//!
//! Going back is replaying again, so it is checked against the log like any replay.

use crate::failure::{During, Failure, Outcome};
use replay::file::{self, LogReader};
use replay::replayer::{Mark, Replayer};
use replay::{Clock, ClockKind, InputsError, LogIndex, Outlet, Output};
use vmm::backends::console::Console;
use vmm::engine::Engine;
use vmm::machine::examine::{Advance, Checkpoint, Examined};
use vmm::machine::{Ended, Machine, MachineError};
use vmm::memory::GuestMemory;
use vmm::soft::SoftEngine;
use vmm::soft::looking::{self, Debuggable, Pause, Watch};

/// Most checkpoints kept.
const KEPT_MAX: usize = 48;
/// Most memory they keep, in bytes, besides the first's.
const KEPT_BYTES_MAX: u64 = 1 << 30;
/// Least steps between checkpoints on the way forward.
const INTERVAL_MIN: u64 = 1 << 22;
/// Going back leaves a checkpoint at most this many steps behind, so that the next step back is quick.
const NEAR: u64 = 1 << 18;
/// Steps between two looks at whether the user wants to interrupt.
const SLICE: u64 = 1 << 20;

/// An instruction about to be attempted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Instructions before it. One that faults does not count, so several places may have the same number.
    pub steps: u64,
    /// Its address.
    pub rip: u64,
}

/// How a motion ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrived {
    /// Where it was asked to go, or at what it was watched for.
    Paused(Pause),
    /// At the first instruction of the log.
    Begin,
    /// At the last instruction of the replay.
    End,
    /// The user interrupted it.
    Interrupted,
}

/// Outputs of a replay: none leaves; the console's may be shown, once however often they are replayed.
pub struct Once {
    /// Where console bytes go.
    pub console: Option<Console>,
    next: LogIndex,
}

impl Outlet for Once {
    fn emit(&mut self, index: LogIndex, output: Output) -> Result<(), InputsError> {
        if index < self.next {
            return Ok(());
        }
        self.next = index.next();
        if let (Output::Console(bytes), Some(console)) = (output, &self.console) {
            console.write(&bytes);
        }
        Ok(())
    }
}

struct Kept {
    place: Place,
    machine: Checkpoint<looking::Checkpoint>,
    log: Mark<file::Mark>,
}

/// A replay one can move about in.
pub struct Travel {
    examined: Examined<SoftEngine>,
    replayer: Replayer<LogReader, Once>,
    /// In the order of their places.
    kept: Vec<Kept>,
    interval: u64,
    /// How the replay ended, or why it could not go on, once it was there.
    result: Option<Result<Ended, String>>,
}

/// Whether the user wants to interrupt.
pub type Poll<'a> = &'a mut dyn FnMut() -> bool;

impl Travel {
    /// At the first instruction of `machine`, which stands where `log` begins.
    ///
    /// # Errors
    /// If the log cannot be read, or the machine not be entered.
    pub fn new(
        machine: Machine<SoftEngine>,
        log: LogReader,
        console: Option<Console>,
    ) -> Outcome<Self> {
        let interval = INTERVAL_MIN.max(machine.config().memory_bytes() / 4);
        let outlet = Once {
            console,
            next: LogIndex(0),
        };
        let mut travel = Self {
            examined: Examined::new(machine),
            replayer: Replayer::new(log, outlet),
            kept: Vec::new(),
            interval,
            result: None,
        };
        let mut watch = Watch::next();
        travel
            .examined
            .advance(&mut travel.replayer, &mut watch)
            .during("the machine cannot begin")?;
        travel.keep();
        Ok(travel)
    }

    /// The vCPU, to look at.
    pub fn engine(&self) -> &SoftEngine {
        self.examined.engine()
    }

    /// The guest's memory, to look at.
    pub fn memory(&self) -> &GuestMemory {
        self.examined.machine().memory()
    }

    /// The replayer, to look at.
    pub fn replayer(&self) -> &Replayer<LogReader, Once> {
        &self.replayer
    }

    /// What the log's clock counts.
    pub fn clock_kind(&self) -> ClockKind {
        self.engine().clock_kind()
    }

    /// Where it is.
    pub fn place(&self) -> Place {
        let engine = self.engine();
        Place {
            steps: engine.steps(),
            rip: engine.rip(),
        }
    }

    /// How the replay ended, if it was seen to its end: why not, if it diverged.
    pub fn result(&self) -> Option<&Result<Ended, String>> {
        self.result.as_ref()
    }

    /// Places of the checkpoints kept, and bytes of memory they take.
    pub fn kept(&self) -> (Vec<Place>, u64) {
        let places = self.kept.iter().map(|kept| kept.place).collect();
        (
            places,
            self.kept_bytes() + self.examined.machine().config().memory_bytes(),
        )
    }

    /// Runs on to the end; how the machine ended.
    ///
    /// # Errors
    /// Divergence, or whatever else a replay fails by.
    pub fn finish(&mut self) -> Result<Ended, MachineError> {
        loop {
            let mut watch = Watch::default();
            self.engine().leave(&mut watch);
            let advance = self.examined.advance(&mut self.replayer, &mut watch);
            if let Advance::Ended(ended) = advance? {
                return Ok(ended);
            }
        }
    }

    /// The log, to look for more behind a replay that is finished.
    pub fn log_mut(&mut self) -> &mut LogReader {
        self.replayer.log_mut()
    }

    /// Goes forward until `watch` says pause, or to the end.
    ///
    /// # Errors
    /// If the replay cannot be taken back from its end.
    pub fn forward(&mut self, watch: &mut Watch, poll: Poll<'_>) -> Outcome<Arrived> {
        let goal = watch.until;
        let arrived = loop {
            match self.slice(watch, goal)? {
                Some(arrived) => break arrived,
                None if poll() => break Arrived::Interrupted,
                None => {}
            }
        };
        watch.until = goal;
        if arrived == Arrived::End {
            self.go_to_last()?;
        }
        Ok(arrived)
    }

    /// A part of the way to `goal` or a pause; `None` if there is more to go. After [`Arrived::End`] the
    /// machine is of use only to be put back.
    fn slice(&mut self, watch: &mut Watch, goal: Option<u64>) -> Outcome<Option<Arrived>> {
        let here = self.engine().steps();
        let goal = goal.unwrap_or(u64::MAX);
        watch.until = Some(goal.min(here + SLICE));
        self.engine().leave(watch);
        let advance = self.examined.advance(&mut self.replayer, watch);
        match advance {
            Ok(Advance::Paused(Pause::Reached)) => {
                let here = self.engine().steps();
                let last = self.kept.iter().rfind(|kept| kept.place.steps <= here);
                if last.is_none_or(|kept| here - kept.place.steps >= self.interval) {
                    self.keep();
                }
                let there = watch.one || here >= goal;
                Ok(there.then_some(Arrived::Paused(Pause::Reached)))
            }
            Ok(Advance::Paused(pause)) => Ok(Some(Arrived::Paused(pause))),
            Ok(Advance::Ended(ended)) => {
                self.result = Some(Ok(ended));
                Ok(Some(Arrived::End))
            }
            Err(error) => {
                self.result = Some(Err(error.to_string()));
                Ok(Some(Arrived::End))
            }
        }
    }

    /// Goes to the first place that has at least `steps` instructions before it; the end, if none has.
    ///
    /// # Errors
    /// As for [`Travel::forward`].
    pub fn run_to(&mut self, steps: u64, poll: Poll<'_>) -> Outcome<Arrived> {
        if self.engine().steps() >= steps {
            return Ok(Arrived::Paused(Pause::Reached));
        }
        let mut watch = Watch::until(steps);
        self.forward(&mut watch, poll)
    }

    /// Goes forward one instruction, or to the handler of its fault.
    ///
    /// # Errors
    /// As for [`Travel::forward`].
    pub fn step(&mut self) -> Outcome<Arrived> {
        let mut watch = Watch::next();
        self.forward(&mut watch, &mut || false)
    }

    /// Goes back to the place before this one.
    ///
    /// # Errors
    /// If the replay takes another way than before: a bug.
    pub fn step_back(&mut self) -> Outcome<Arrived> {
        let here = self.place();
        Ok(match self.place_before(here)? {
            Some(place) => {
                self.go_to(place)?;
                Arrived::Paused(Pause::Reached)
            }
            None => Arrived::Begin,
        })
    }

    /// Goes to the last place of the replay, whose end was seen.
    fn go_to_last(&mut self) -> Outcome {
        let steps = self.engine().steps() + 1;
        let end = Place {
            steps,
            rip: u64::MAX,
        };
        match self.place_before(end)? {
            Some(place) => self.go_to(place),
            None => self.put_back(0),
        }
    }

    /// The place before `end`, found by replaying a little from before it, or more if it must be.
    fn place_before(&mut self, end: Place) -> Outcome<Option<Place>> {
        for distance in [8, 512, 1 << 15, u64::MAX] {
            let start = end.steps.saturating_sub(distance);
            self.approach(start)?;
            let mut last = None;
            let mut watch = Watch::next();
            loop {
                let place = self.place();
                if place == end || place.steps > end.steps {
                    break;
                }
                last = Some(place);
                if self.slice(&mut watch, None)? == Some(Arrived::End) {
                    break;
                }
            }
            if last.is_some() {
                return Ok(last);
            }
        }
        Ok(None)
    }

    /// Goes to `place`, where it was before.
    ///
    /// # Errors
    /// If the replay takes another way than before: a bug.
    pub fn go_to(&mut self, place: Place) -> Outcome {
        self.approach(place.steps)?;
        let mut watch = Watch::next();
        while self.place() != place {
            let lost = self.place().steps > place.steps;
            if lost || self.slice(&mut watch, None)? == Some(Arrived::End) {
                let Place { steps, rip } = place;
                return Err(Failure::new(format!(
                    "the replay did not come by {rip:#x} after {steps} instructions again"
                )));
            }
        }
        Ok(())
    }

    /// Goes to the first place of those with `steps` instructions before them, or a place a little
    /// further, from a checkpoint before it. Leaves a checkpoint near there.
    fn approach(&mut self, steps: u64) -> Outcome {
        let before = self.kept.iter().rposition(|kept| kept.place.steps < steps);
        self.put_back(before.unwrap_or(0))?;
        let mut watch = Watch::default();
        let near = steps.saturating_sub(NEAR / 2);
        if near.saturating_sub(self.engine().steps()) > NEAR / 2 {
            while self.engine().steps() < near {
                if self.slice(&mut watch, Some(near))? == Some(Arrived::End) {
                    return Ok(());
                }
            }
            self.keep();
        }
        while self.engine().steps() < steps {
            if self.slice(&mut watch, Some(steps))? == Some(Arrived::End) {
                break;
            }
        }
        Ok(())
    }

    /// Goes back to where `watch` last said pause, or to the beginning. At an access to watched data
    /// that is the place before the instruction, as going back undoes the access.
    ///
    /// # Errors
    /// If the replay takes another way than before: a bug.
    pub fn backward(&mut self, watch: &Watch, poll: Poll<'_>) -> Outcome<Arrived> {
        let here = self.place();
        let mut end = here;
        // The first time the pause at the end itself is not meant.
        let mut inclusive = false;
        let first = self.kept[0].place;
        while end != first {
            let start = self
                .kept
                .iter()
                .rposition(|kept| kept.place.steps < end.steps);
            let start = start.unwrap_or(0);
            let begin = self.kept[start].place;
            self.put_back(start)?;
            match self.last_pause(watch, end, inclusive, poll)? {
                Some(Found::Pause(mut place, pause)) => {
                    if matches!(pause, Pause::Data(_)) {
                        place = self.place_before(place)?.unwrap_or(first);
                    }
                    self.go_to(place)?;
                    return Ok(Arrived::Paused(pause));
                }
                Some(Found::Interrupted) => {
                    self.go_to(here)?;
                    return Ok(Arrived::Interrupted);
                }
                None => {}
            }
            (end, inclusive) = (begin, true);
        }
        self.put_back(0)?;
        Ok(Arrived::Begin)
    }

    /// The last pause `watch` makes from here to `end`.
    fn last_pause(
        &mut self,
        watch: &Watch,
        end: Place,
        inclusive: bool,
        poll: Poll<'_>,
    ) -> Outcome<Option<Found>> {
        let mut watch = watch.clone();
        let mut last = None;
        if watch.breakpoints.contains(&self.place().rip) {
            last = Some(Found::Pause(self.place(), Pause::Breakpoint));
        }
        loop {
            let arrived = self.slice(&mut watch, Some(end.steps))?;
            let place = self.place();
            let over = place == end || place.steps > end.steps || arrived == Some(Arrived::End);
            let data = matches!(arrived, Some(Arrived::Paused(Pause::Data(_))));
            if over && (place != end || !inclusive && !data) {
                return Ok(last);
            }
            match arrived {
                Some(Arrived::Paused(Pause::Reached)) if !over => watch.one = true,
                Some(Arrived::Paused(Pause::Reached)) => {}
                Some(Arrived::Paused(pause)) => last = Some(Found::Pause(place, pause)),
                None if poll() => return Ok(Some(Found::Interrupted)),
                _ => {}
            }
            if over {
                return Ok(last);
            }
        }
    }

    /// Puts checkpoint `number` back.
    fn put_back(&mut self, number: usize) -> Outcome {
        let kept = &self.kept[number];
        self.examined.put_back(&kept.machine)?;
        self.replayer.rewind(&kept.log)?;
        Ok(())
    }

    /// Keeps a checkpoint of here, if there is none.
    fn keep(&mut self) {
        let place = self.place();
        let at = self
            .kept
            .partition_point(|kept| kept.place.steps < place.steps);
        if self
            .kept
            .get(at)
            .is_some_and(|kept| kept.place.steps == place.steps)
        {
            return;
        }
        let before = at.checked_sub(1).map(|n| &self.kept[n].machine);
        let kept = Kept {
            place,
            machine: self.examined.checkpoint(before),
            log: self.replayer.mark(),
        };
        self.kept.insert(at, kept);
        while self.kept.len() > KEPT_MAX
            || self.kept.len() > 3 && self.kept_bytes() > KEPT_BYTES_MAX
        {
            self.thin(place.steps);
        }
    }

    /// Drops the checkpoint whose loss makes the least difference, seen from `here`: the one in the gap
    /// that is smallest in proportion to how far away it is.
    fn thin(&mut self, here: u64) {
        let at = |n: usize| self.kept[n].place.steps;
        let gap = |n: usize| u128::from(at(n + 1) - at(n - 1));
        let away = |n: usize| u128::from(here.abs_diff(at(n))) + 1;
        let least =
            (1..self.kept.len() - 1).min_by(|&a, &b| (gap(a) * away(b)).cmp(&(gap(b) * away(a))));
        if let Some(n) = least {
            self.kept.remove(n);
        }
    }

    /// Bytes of memory all but the first checkpoint take.
    fn kept_bytes(&self) -> u64 {
        let pairs = self.kept.windows(2);
        pairs
            .map(|pair| pair[1].machine.bytes_beyond(Some(&pair[0].machine)))
            .sum()
    }

    /// Goes to the first place at which the log's clock reads at least `clock`.
    ///
    /// # Errors
    /// If the replay ends before.
    pub fn to_clock(&mut self, clock: Clock, poll: Poll<'_>) -> Outcome {
        while self.engine().clock() < clock {
            let left = clock.0 - self.engine().clock().0;
            // An instruction counts up to four: itself or its block, and the times it leaves the guest.
            let steps = match self.clock_kind() {
                ClockKind::Instructions => left,
                _ => (left / 4).max(1),
            };
            let here = self.engine().steps();
            if self.run_to(here.saturating_add(steps), poll)? == Arrived::End {
                return Err(self.beyond(&format!("clock {clock}")));
            }
        }
        Ok(())
    }

    /// Goes to where entry `index` was just replayed.
    ///
    /// # Errors
    /// If the replay ends before.
    pub fn to_entry(&mut self, index: LogIndex, poll: Poll<'_>) -> Outcome {
        while self.replayer.index() <= index {
            let here = self.engine().clock();
            let next = self.replayer.next_entry().map_or(here, |entry| entry.clock);
            if next > here {
                self.to_clock(next, poll)?;
            } else if self.step()? == Arrived::End {
                return Err(self.beyond(&format!("entry {index}")));
            }
        }
        Ok(())
    }

    fn beyond(&self, what: &str) -> Failure {
        let clock = self.engine().clock();
        let why = match &self.result {
            Some(Err(why)) => format!(": {why}"),
            _ => String::new(),
        };
        Failure::new(format!(
            "the replay ends at clock {clock}, before {what}{why}"
        ))
    }
}

/// What a look back found.
enum Found {
    Pause(Place, Pause),
    Interrupted,
}
