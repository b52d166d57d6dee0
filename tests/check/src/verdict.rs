//! The verdict on a history: is it that of one machine, and is every acknowledged write there?
//!
//! Linearizability is local (Herlihy, Wing 1990): a history is linearizable if that of each key
//! is, so the keys are searched one by one.

use std::fmt::{self, Write as _};

use super::history::{History, NEVER, Observed, Op};
use super::lost;
use super::model::{Interner, State};
use super::search::{self, Found};

/// How to judge.
#[derive(Clone, Copy, Debug)]
pub struct CheckOptions {
    /// How much earlier than asked a lease may run out: milliseconds, for the clocks' grain.
    pub lease_slack_ms: u64,
    /// Places the search of one key may remember, about 40 bytes each beside the strings they
    /// hold; more gives no verdict.
    pub max_places: usize,
}

impl Default for CheckOptions {
    fn default() -> Self {
        Self {
            lease_slack_ms: 1,
            max_places: 5_000_000,
        }
    }
}

/// Operations on one key that no single machine can have answered like that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The key, by index.
    pub key: u16,
    /// Its name.
    pub name: String,
    /// The operation that nothing explains.
    pub stuck: Op,
    /// What the key can have held when it returned, going by everything before; nil is nothing.
    pub possible: Vec<String>,
    /// Whether it can have held others too: only the first few are named.
    pub more: bool,
    /// The smallest part of the history that shows it: `stuck`, what was open at the time, and the
    /// writes that brought the possible values and the one it saw. By `invoke_ns`.
    pub window: Vec<Op>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "key {}: no single machine answers like this (times in ms)",
            self.name
        )?;
        for op in &self.window {
            writeln!(f, "  {} {op}", if *op == self.stuck { '>' } else { ' ' })?;
        }
        let how = if self.more {
            "have held, among others"
        } else {
            "only have held"
        };
        write!(f, "  by then it can {how}: {}", self.possible.join(", "))
    }
}

/// What the history of a run comes to.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// Operations judged.
    pub ops: usize,
    /// Writes with a reply that says they were done.
    pub acked_writes: usize,
    /// Operations without a reply, or with an error for one.
    pub open_ended: usize,
    /// Acknowledged writes that a later reply proves gone; see [`lost::lost_writes`].
    pub lost_writes: usize,
    /// Keys whose history is not linearizable.
    pub violations: Vec<Violation>,
    /// Keys with too many orders to try.
    pub undecided: Vec<String>,
}

impl Verdict {
    /// Whether every key was found linearizable.
    #[must_use]
    pub fn linearizable(&self) -> bool {
        self.violations.is_empty() && self.undecided.is_empty()
    }

    /// Everything that is wrong, for people; empty if nothing is.
    #[must_use]
    pub fn explain(&self) -> String {
        let mut text = String::new();
        for violation in &self.violations {
            let _ = writeln!(text, "{violation}");
        }
        for name in &self.undecided {
            let _ = writeln!(
                text,
                "key {name}: too many orders to try them all, no verdict"
            );
        }
        text
    }
}

/// Judges `history`: linearizability of every key, and acknowledged writes that are gone.
///
/// For the second to catch a write nobody read again, end the history with a read of every key
/// ([`super::clients::read_all`]).
#[must_use]
pub fn check(history: &History, options: CheckOptions) -> Verdict {
    let mut by_key: Vec<Vec<&Op>> = vec![Vec::new(); history.keys.len()];
    for op in &history.ops {
        by_key[usize::from(op.key)].push(op);
    }
    let mut verdict = Verdict {
        ops: history.ops.len(),
        acked_writes: history.ops.iter().filter(|op| op.acked_write()).count(),
        open_ended: history.ops.iter().filter(|op| op.open_ended()).count(),
        ..Verdict::default()
    };
    for (key, mut ops) in by_key.into_iter().enumerate() {
        ops.sort_by_key(|op| op.invoke_ns);
        let name = &history.keys[key];
        let mut values = Interner::default();
        let slack_ns = options.lease_slack_ms * 1_000_000;
        match search::search(&ops, slack_ns, options.max_places, &mut values) {
            Found::Order => {}
            Found::TooHard => verdict.undecided.push(name.clone()),
            Found::None {
                stuck,
                open,
                states,
                more,
            } => {
                verdict.lost_writes += lost::lost_writes(&ops, slack_ns);
                let found = explain(&ops, name, stuck, &open, &states, more, &values);
                verdict.violations.push(found);
            }
        }
    }
    verdict
}

fn explain(
    ops: &[&Op],
    name: &str,
    stuck: usize,
    open: &[usize],
    states: &[State],
    more: bool,
    values: &Interner,
) -> Violation {
    let mut shown: Vec<_> = states
        .iter()
        .map(|state| values.value(state.value))
        .collect();
    let possible = shown
        .iter()
        .map(|v| v.map_or("nothing".into(), |v| v.to_string()))
        .collect();
    let seen = match &ops[stuck].outcome {
        Observed::Value(value) => Some(value),
        _ => None,
    };
    shown.extend(seen.map(Some));
    let mut window: Vec<usize> = open.to_vec();
    // The last write of each value that matters, and the last before the operation.
    let before = |n: &usize| ops[*n].invoke_ns <= ops[stuck].return_ns && *n != stuck;
    for value in shown.into_iter().flatten() {
        window.extend(
            (0..ops.len())
                .rev()
                .filter(before)
                .find(|&n| lost::wrote(ops[n], value)),
        );
    }
    let done = |n: &usize| before(n) && ops[*n].acked_write() && ops[*n].return_ns != NEVER;
    window.extend((0..ops.len()).rev().find(done));
    window.push(stuck);
    window.sort_unstable();
    window.dedup();
    Violation {
        key: ops[stuck].key,
        name: name.into(),
        stuck: ops[stuck].clone(),
        possible,
        more,
        window: window.into_iter().map(|n| ops[n].clone()).collect(),
    }
}
