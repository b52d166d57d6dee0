//! The search for a linearization of one key's operations.
//!
//! ```text
//!  events   call a   call b   return b   call c   return a   return c
//!                             ^ b must have happened by now: either b next, or other open
//!                               operations first, or the lease runs out first
//! ```
//!
//! The search is Wing and Gong's with Lowe's two improvements. First, it decides nothing before a
//! return forces it to. Second, it enters no place twice: what was left in vain once would be left
//! in vain again. A place is the event reached, the open operations that have happened, and the
//! state. An open operation that only observes is taken at once if it fits, since no other order
//! can be better.
//!
//! An operation without a reply stays open to the end, and each such operation would double the
//! number of places. Three rules keep the places few. They lose no linearization:
//!
//! - An operation without a reply is taken only where the very next step needs it. A step needs it
//!   if, without it, the step does not fit or leads to another state. Where the step leads to the
//!   same state either way, the operation can be left out: it need not have happened. For the same
//!   reason a next step that has no reply and changes nothing needs nothing. Where no step follows
//!   before the return, the operation can be taken later.
//! - Of several that do the same ([`Classes`]), the one called first is taken first. They can change
//!   places, so one order stands for all.
//! - States that no reply can tell apart ([`Classes`]) are one place.

use std::collections::{HashMap, HashSet};

use super::classes::Classes;
use super::history::{NEVER, Op};
use super::model::{Interner, State, Step};

/// Most operations of one key open at the same time: bits of a [`Mask`].
const SLOTS: usize = 128;

/// Which open operations have happened, by slot.
type Mask = [u64; 2];

fn has(mask: Mask, slot: u8) -> bool {
    mask[usize::from(slot) / 64] >> (slot % 64) & 1 == 1
}

fn with(mut mask: Mask, slot: u8) -> Mask {
    mask[usize::from(slot) / 64] |= 1 << (slot % 64);
    mask
}

fn without(mut mask: Mask, slot: u8) -> Mask {
    mask[usize::from(slot) / 64] &= !(1 << (slot % 64));
    mask
}

/// What a search found.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// A linearization exists.
    Order,
    /// None exists.
    None {
        /// The operation (an index of what was searched) that no order explains.
        stuck: usize,
        /// Operations open when it returned.
        open: Vec<usize>,
        /// The states the key can have been in then.
        states: Vec<State>,
        /// Whether there may be others.
        more: bool,
    },
    /// Too many orders to try them all, or too many operations open at once.
    TooHard,
}

/// One operation, ready to be searched.
#[derive(Clone, Copy)]
struct Entry {
    step: Step,
    slot: u8,
    /// Of an open-ended one: the slot of the last before it that does the same.
    twin: Option<u8>,
}

/// An operation that can come next.
struct Candidate {
    step: Step,
    slot: u8,
    twin: Option<u8>,
    /// What it makes of the state; `None` if it does not fit.
    next: Option<State>,
}

/// A return: its operation must have happened.
struct Return {
    entry: u32,
    at_ns: u64,
    /// Where its open operations begin in `Search::open`.
    open_from: u32,
}

/// A choice made at a return, to come back to.
struct Frame {
    event: u32,
    mask: Mask,
    state: State,
    choices: Vec<(Mask, State)>,
}

struct Search<'a> {
    entries: Vec<Entry>,
    returns: Vec<Return>,
    /// The operations open at each return, one run after the other; the returning one first.
    open: Vec<u32>,
    values: &'a mut Interner,
    classes: Classes,
    seen: HashSet<(u32, Mask, u32)>,
    states: HashMap<State, u32>,
    /// Whether every order counts, also those that the rules for calls without reply leave out.
    every_order: bool,
    /// The furthest return reached, and the states it was reached in: one more than are shown.
    furthest: (u32, Vec<State>),
}

/// Most states a failed search names.
const STATES_SHOWN: usize = 8;
/// Places remembered, at most, to find all states the key can have been in.
const PLACES_TO_EXPLAIN: usize = 100_000;

/// Looks for a linearization of `ops`, all of one key and by `invoke_ns`, from the empty state.
///
/// `max_places` bounds the memory: places remembered, of about 40 bytes each, beside the strings
/// tried.
pub fn search(ops: &[&Op], slack_ns: u64, max_places: usize, values: &mut Interner) -> Found {
    let Some(mut search) = Search::prepare(ops, slack_ns, values) else {
        return Found::TooHard;
    };
    match search.run(max_places) {
        Some(true) => Found::Order,
        Some(false) => {
            let (states, more) = search.possible();
            let event = search.furthest.0;
            let open = search.open_at(event).iter().map(|&e| e as usize).collect();
            Found::None {
                stuck: search.returns[event as usize].entry as usize,
                open,
                states,
                more,
            }
        }
        None => Found::TooHard,
    }
}

/// When `op` must have happened.
fn return_ns(op: &Op) -> u64 {
    if op.open_ended() { NEVER } else { op.return_ns }
}

impl<'a> Search<'a> {
    /// Lays out the events; `None` if too many operations are open at once.
    fn prepare(ops: &[&Op], slack_ns: u64, values: &'a mut Interner) -> Option<Self> {
        let mut events: Vec<(u64, bool, usize)> = Vec::with_capacity(ops.len() * 2);
        for (index, op) in ops.iter().enumerate() {
            if op.open_ended() && !op.call.writes() {
                continue; // a read nobody saw the result of
            }
            events.push((op.invoke_ns, false, index));
            if return_ns(op) != NEVER {
                events.push((return_ns(op), true, index));
            }
        }
        // Calls before returns at the same instant: then the two overlap, which is the milder.
        events.sort_unstable();
        let steps: Vec<Step> = ops
            .iter()
            .map(|op| Step::of(op, slack_ns, values))
            .collect();
        let classes = Classes::of(&steps, values);
        let mut twins: HashMap<Step, u8> = HashMap::new();
        let entries = steps.into_iter().map(|step| Entry {
            step,
            slot: 0,
            twin: None,
        });
        let mut search = Search {
            entries: entries.collect(),
            returns: Vec::new(),
            open: Vec::new(),
            values,
            classes,
            seen: HashSet::new(),
            states: HashMap::new(),
            every_order: false,
            furthest: (0, Vec::new()),
        };
        let mut slots: [Option<u32>; SLOTS] = [None; SLOTS];
        for (at_ns, is_return, index) in events {
            let entry = u32::try_from(index).ok()?;
            if is_return {
                let open_from = u32::try_from(search.open.len()).ok()?;
                let others = slots.iter().flatten().filter(|&&e| e != entry);
                search.open.push(entry);
                search.open.extend(others);
                search.returns.push(Return {
                    entry,
                    at_ns,
                    open_from,
                });
                slots[usize::from(search.entries[index].slot)] = None;
            } else {
                let free = slots.iter().position(Option::is_none)?;
                slots[free] = Some(entry);
                let step = search.entries[index].step;
                search.entries[index].slot = free as u8;
                if step.is_open_ended() {
                    let class = search.classes.class_of_step(step, search.values);
                    search.entries[index].twin = twins.insert(class, free as u8);
                }
            }
        }
        Some(search)
    }

    fn open_at(&self, event: u32) -> &[u32] {
        let from = self.returns[event as usize].open_from as usize;
        match self.returns.get(event as usize + 1) {
            Some(next) => &self.open[from..next.open_from as usize],
            None => &self.open[from..],
        }
    }

    /// Whether a linearization exists; `None` if `max_places` did not do.
    fn run(&mut self, max_places: usize) -> Option<bool> {
        let mut stack: Vec<Frame> = Vec::new();
        let mut place = Some((0, [0; 2], State::EMPTY));
        loop {
            if let Some((event, mask, state)) = place.take() {
                match self.forward(event, mask, state) {
                    None => return Some(true),
                    Some(frame) if self.enter(&frame) => stack.push(frame),
                    Some(_) => {}
                }
                if self.seen.len() > max_places {
                    return None;
                }
            }
            let Some(top) = stack.last_mut() else {
                return Some(false);
            };
            match top.choices.pop() {
                Some((mask, state)) => place = Some((top.event, mask, state)),
                None => {
                    stack.pop();
                }
            }
        }
    }

    /// Goes on until a return forces a choice; `None` at the end of all events.
    fn forward(&mut self, mut event: u32, mut mask: Mask, state: State) -> Option<Frame> {
        while (event as usize) < self.returns.len() {
            mask = self.observe(event, mask, state);
            let slot = self.entries[self.returns[event as usize].entry as usize].slot;
            if !has(mask, slot) {
                let choices = self.choices(event, mask, state);
                return Some(Frame {
                    event,
                    mask,
                    state,
                    choices,
                });
            }
            mask = without(mask, slot);
            event += 1;
        }
        None
    }

    /// Takes every open operation that only observes, and fits.
    fn observe(&mut self, event: u32, mut mask: Mask, state: State) -> Mask {
        let from = self.returns[event as usize].open_from as usize;
        for i in from..from + self.open_at(event).len() {
            let Entry { step, slot, .. } = self.entries[self.open[i] as usize];
            if step.observes() && !has(mask, slot) && step.apply(state, self.values).is_some() {
                mask = with(mask, slot);
            }
        }
        mask
    }

    /// What can happen next, the best last.
    fn choices(&mut self, event: u32, mask: Mask, state: State) -> Vec<(Mask, State)> {
        let ret = &self.returns[event as usize];
        let (at_ns, from) = (ret.at_ns, ret.open_from as usize);
        let must = self.entries[ret.entry as usize].step;
        let open: Vec<Candidate> = (from..from + self.open_at(event).len())
            .map(|i| self.entries[self.open[i] as usize])
            .filter(|entry| !has(mask, entry.slot))
            .map(|Entry { step, slot, twin }| Candidate {
                step,
                slot,
                twin,
                next: step.apply(state, self.values),
            })
            .collect();
        let mut good = Vec::new();
        let mut rest = Vec::new();
        // A lease runs out no earlier than its time: all that has yet to happen may come later.
        if state.expires_ns <= at_ns {
            let leads_on = must.apply(State::EMPTY, self.values).is_some();
            if leads_on { &mut good } else { &mut rest }.push((mask, State::EMPTY));
        }
        for (n, candidate) in open.iter().enumerate().rev() {
            let Candidate { step, twin, .. } = *candidate;
            let Some(next) = candidate.next else { continue };
            if step.observes() {
                continue;
            }
            let twin_first = !self.every_order && twin.is_some_and(|twin| !has(mask, twin));
            if step.is_open_ended() && (twin_first || !self.is_needed(&open, n, state, next, at_ns))
            {
                continue;
            }
            // The first is the one that returns.
            let leads_on = n == 0 || must.apply(next, self.values).is_some();
            if leads_on { &mut good } else { &mut rest }.push((with(mask, candidate.slot), next));
        }
        rest.append(&mut good);
        rest
    }

    /// Whether to take the `n`-th of the `open` operations, an open-ended one that makes `next` of
    /// `state`: whether a step right after it needs it.
    fn is_needed(
        &mut self,
        open: &[Candidate],
        n: usize,
        state: State,
        next: State,
        at_ns: u64,
    ) -> bool {
        if self.every_order {
            return next != state;
        }
        // The next step may also be the end of the lease it brought.
        let lapses = next.expires_ns <= at_ns && state != State::EMPTY && state.expires_ns > at_ns;
        lapses
            || open.iter().enumerate().any(|(other, candidate)| {
                let then = candidate.step.apply(next, self.values);
                let idle = candidate.step.is_open_ended() && then == Some(next);
                other != n && then.is_some() && !idle && then != candidate.next
            })
    }

    /// The first few states the key can have been in at the furthest return, and whether there
    /// may be others.
    ///
    /// The search left out orders that end in other states and lead no further, so this takes all.
    fn possible(&mut self) -> (Vec<State>, bool) {
        let found = std::mem::take(&mut self.furthest);
        self.seen.clear();
        self.states.clear();
        self.every_order = true;
        let all_tried = self.run(PLACES_TO_EXPLAIN).is_some();
        if self.furthest.0 < found.0 {
            self.furthest = found;
        }
        let mut states = std::mem::take(&mut self.furthest.1);
        let more = !all_tried || states.len() > STATES_SHOWN;
        states.truncate(STATES_SHOWN);
        (states, more)
    }

    /// Whether this place is new; notes how far it is.
    fn enter(&mut self, frame: &Frame) -> bool {
        let fresh = self.states.len() as u32;
        let class = if self.every_order {
            frame.state
        } else {
            self.classes.class_of_state(frame.state, self.values)
        };
        let class = *self.states.entry(class).or_insert(fresh);
        if !self.seen.insert((frame.event, frame.mask, class)) {
            return false;
        }
        let (event, states) = &mut self.furthest;
        if frame.event > *event {
            *event = frame.event;
            states.clear();
        }
        if frame.event == *event && states.len() <= STATES_SHOWN && !states.contains(&frame.state) {
            states.push(frame.state);
        }
        true
    }
}
