//! Which values the replies on one key can never tell apart.
//!
//! ```text
//!  a reply shows "w1.1w2.1"
//!    "w1.1"   begins it                appends can make it what was shown: it counts as itself
//!    "w3.1"   begins nothing shown     appends never can: any other of its length will do
//! ```
//!
//! A value that no reply shows matters in two ways only: it is there, and, where strings are appended
//! to, it has a length. So the search takes all such values (of one length) for one value. Likewise it
//! takes the calls without a reply that would write them for one call. A value that begins with a digit
//! or a minus always counts as itself, since it is a number or can grow into one.

use std::collections::HashMap;

use super::model::{Interner, State, Step, ValueId};

/// The classes of the values on one key.
#[derive(Debug)]
pub struct Classes {
    /// Every string a reply shows, in order.
    shown: Vec<String>,
    /// Whether anything is appended on this key, and lengths so matter.
    grows: bool,
    /// The first value met of each length (where lengths matter) that begins nothing shown.
    unseen: HashMap<usize, ValueId>,
    /// The same for tails, which are not in anything shown.
    unseen_tails: HashMap<usize, ValueId>,
    /// Answers already given.
    known: HashMap<ValueId, ValueId>,
}

impl Classes {
    /// The classes on a key with these operations.
    #[must_use]
    pub fn of(steps: &[Step], values: &Interner) -> Self {
        let mut shown: Vec<String> = steps
            .iter()
            .filter_map(|step| match step {
                Step::Saw(value) => values.value(*value).map(ToString::to_string),
                _ => None,
            })
            .collect();
        shown.sort_unstable();
        shown.dedup();
        let grows = |step: &Step| matches!(step, Step::Append(..) | Step::MaybeAppend(_));
        Self {
            shown,
            grows: steps.iter().any(grows),
            unseen: HashMap::new(),
            unseen_tails: HashMap::new(),
            known: HashMap::new(),
        }
    }

    /// `state` with one value standing for all of its class: whatever follows from the one
    /// follows from the other.
    pub fn class_of_state(&mut self, state: State, values: &Interner) -> State {
        let value = match self.known.get(&state.value) {
            Some(&stand_in) => stand_in,
            None => {
                let stand_in = self.stand_in(state.value, values);
                self.known.insert(state.value, stand_in);
                stand_in
            }
        };
        State { value, ..state }
    }

    /// The step that stands for all that do the same as `step`.
    pub fn class_of_step(&mut self, step: Step, values: &Interner) -> Step {
        match step {
            Step::MaybeWrite(new) => Step::MaybeWrite(self.class_of_state(new, values)),
            Step::MaybeWriteNew(new) => Step::MaybeWriteNew(self.class_of_state(new, values)),
            Step::MaybeAppend(tail) => Step::MaybeAppend(self.tail(tail, values)),
            other => other,
        }
    }

    fn stand_in(&mut self, value: ValueId, values: &Interner) -> ValueId {
        let Some(text) = plain_text(value, values) else {
            return value;
        };
        let after = self.shown.partition_point(|shown| *shown < text);
        if self.shown.get(after).is_some_and(|s| s.starts_with(&text)) {
            return value;
        }
        let len = if self.grows { text.len() } else { 0 };
        *self.unseen.entry(len).or_insert(value)
    }

    fn tail(&mut self, tail: ValueId, values: &Interner) -> ValueId {
        match plain_text(tail, values) {
            Some(text) if !self.shown.iter().any(|shown| shown.contains(&text)) => {
                *self.unseen_tails.entry(text.len()).or_insert(tail)
            }
            _ => tail,
        }
    }
}

/// The text of `value`; `None` for nothing, and if it is a number or appended to can become one
/// (as "" can): those are counted on.
fn plain_text(value: ValueId, values: &Interner) -> Option<String> {
    let text = values.value(value)?.to_string();
    let first = text.chars().next()?;
    (!first.is_ascii_digit() && first != '-').then_some(text)
}

#[cfg(test)]
mod tests {
    use super::super::history::{NEVER, Value};
    use super::super::model::NOTHING;
    use super::*;

    fn holding(value: ValueId) -> State {
        State {
            value,
            expires_ns: NEVER,
        }
    }

    #[test]
    fn values_nobody_saw_are_one_and_those_on_the_way_to_one_shown_are_not() {
        let mut values = Interner::default();
        let mut id = |text: &str| values.id(&Value::from_bytes(text.as_bytes()));
        let shown = id("w1.1w2.1");
        let ids = ["w1.1", "w2.1", "w3.1", "w33.1", "7", "-", ""].map(&mut id);
        let [begins, ends, unseen, longer, number, minus, empty] = ids;
        let append = Step::Append(ends, 8);
        for (steps, by_length) in [
            (vec![Step::Saw(shown)], false),
            (vec![Step::Saw(shown), append], true),
        ] {
            let mut classes = Classes::of(&steps, &values);
            let mut stand_in = |value| classes.class_of_state(holding(value), &values).value;
            assert_eq!(stand_in(unseen), stand_in(ends));
            assert_eq!(stand_in(longer) == stand_in(unseen), !by_length);
            for itself in [shown, begins, number, minus, empty, NOTHING] {
                assert_eq!(stand_in(itself), itself);
            }
            // What ends a string shown may yet be appended to what begins it.
            let mut tail = |value| classes.class_of_step(Step::MaybeAppend(value), &values);
            assert_eq!(tail(ends), Step::MaybeAppend(ends));
            assert_eq!(tail(unseen), Step::MaybeAppend(unseen));
            assert_ne!(tail(longer), tail(unseen));
        }
    }

    #[test]
    fn leases_of_different_lengths_are_not_the_same() {
        let mut values = Interner::default();
        let mut lease = |client, expires_ns| {
            Step::MaybeWriteNew(State {
                value: values.id(&Value::Token(client, 1)),
                expires_ns,
            })
        };
        let (one, same, longer) = (lease(1, 5), lease(2, 5), lease(3, 6));
        let mut classes = Classes::of(&[one, same, longer], &values);
        assert_eq!(
            classes.class_of_step(one, &values),
            classes.class_of_step(same, &values)
        );
        assert_ne!(
            classes.class_of_step(one, &values),
            classes.class_of_step(longer, &values)
        );
    }
}
