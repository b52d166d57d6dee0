//! Which blocks are translated as one.
//!
//! A trace begins with a block that runs often and goes on where that went most often when it was interpreted, as
//! long as that is in the same page. A loop is laid out twice or more: the first time as it is entered, then as it
//! goes round.
//!
//! ```text
//!  A ─▶ B ─▶ C ─▶ D             A ─▶ B ─▶ A ─▶ B ─▶ A ─▶ B ┐
//!       └─▶ elsewhere                     ▲ again          │
//!                                         └────────────────┘
//! ```

use super::plan::{Plan, Work};
use crate::block::Block;

/// Most instructions of a trace.
const INSTRUCTIONS: usize = 96;
/// Most blocks of a round.
const BLOCKS: usize = 16;
/// What goes round in a loop has at least so many instructions.
const LOOP: usize = 24;

/// A block of a trace.
pub(super) struct Part<'a> {
    /// Its number.
    pub number: u32,
    pub block: &'a Block,
    /// What becomes of its instructions.
    pub plans: Vec<Plan>,
}

impl Part<'_> {
    /// Its first byte in its page.
    pub fn start(&self) -> i64 {
        (self.block.physical & 0xfff) as i64
    }
}

/// How a trace goes on behind a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    /// Not at all.
    Ends,
    /// Behind its last instruction.
    Falls,
    /// Where its branch goes.
    Branches,
    /// Where the call came from that its return belongs to: so many bytes into the page.
    Returns(i64),
}

/// Blocks one behind the other.
pub(super) struct Trace<'a> {
    parts: Vec<Part<'a>>,
    /// Of which part each step is, and what follows.
    steps: Vec<(usize, Then)>,
    /// The step the last one leads back to.
    pub again: Option<usize>,
}

impl<'a> Trace<'a> {
    /// The trace that begins with `head`. `block` knows the other blocks of its page, by where they begin in it, and
    /// `plans` what becomes of one; `rarely` is how often one ran at least that is gone on with.
    pub fn follow(
        head: Part<'a>,
        rarely: u8,
        block: &dyn Fn(i64) -> Option<(u32, &'a Block)>,
        plans: &dyn Fn(&Block) -> Vec<Plan>,
    ) -> Self {
        let ran = |at| block(at).map_or(0, |(_, block)| block.translations.interpreted());
        let mut calls = Vec::new();
        let mut trace = Self {
            parts: vec![head],
            steps: vec![(0, Then::Ends)],
            again: None,
        };
        let mut length = trace.parts[0].plans.len();
        loop {
            let last = trace.parts.len() - 1;
            let Some((then, target)) = next(&trace.parts[last], &mut calls, &ran) else {
                return trace;
            };
            if target == trace.parts[0].start() {
                trace.steps[last].1 = then;
                trace.go_round(length);
                return trace;
            }
            let again = trace.parts.iter().any(|part| part.start() == target);
            let Some((number, block)) = block(target).filter(|_| !again) else {
                return trace;
            };
            length += block.ops.len();
            if ran(target) < rarely || length > INSTRUCTIONS || trace.parts.len() == BLOCKS {
                return trace;
            }
            let plans = plans(block);
            trace.parts.push(Part {
                number,
                block,
                plans,
            });
            trace.steps[last].1 = then;
            trace.steps.push((last + 1, Then::Ends));
        }
    }

    /// Lays a loop of `length` instructions out more than once.
    fn go_round(&mut self, length: usize) {
        let rounds = 1 + LOOP.div_ceil(length);
        if rounds * length > INSTRUCTIONS {
            let last = self.steps.len() - 1;
            self.steps[last].1 = Then::Ends;
            return;
        }
        self.again = Some(self.steps.len());
        self.steps = self.steps.repeat(rounds);
    }

    /// How many blocks there are one behind the other.
    pub fn len(&self) -> usize {
        self.steps.len()
    }

    /// The block of a step.
    pub fn part(&self, step: usize) -> &Part<'a> {
        &self.parts[self.steps[step].0]
    }

    /// What follows a step.
    pub fn then(&self, step: usize) -> Then {
        self.steps[step].1
    }

    /// Instructions of steps `from` to `to`.
    pub fn count(&self, from: usize, to: usize) -> i32 {
        let length = |(part, _): &(usize, Then)| self.parts[*part].plans.len() as i32;
        self.steps[from..to].iter().map(length).sum()
    }
}

/// How a trace goes on behind `part`, and where in the page that is.
fn next(part: &Part, calls: &mut Vec<i64>, ran: &dyn Fn(i64) -> u8) -> Option<(Then, i64)> {
    let behind = part.start() + part.block.bytes as i64;
    let target = |target: i64| part.start() + target;
    if part
        .plans
        .iter()
        .any(|plan| matches!(plan.work, Work::Rest))
    {
        return None;
    }
    let (then, at) = match part.plans.last()?.work {
        Work::JumpIf { target: to, .. } => {
            let there = target(to);
            let (taken, not) = (ran(there), ran(behind));
            // What goes back is a loop, if nothing tells otherwise.
            if in_page(there) && (taken > not || taken == not && to <= 0) {
                (Then::Branches, there)
            } else {
                (Then::Falls, behind)
            }
        }
        Work::Jump { target: to } => (Then::Branches, target(to)),
        Work::Call { target: to } => {
            calls.push(behind);
            (Then::Branches, target(to))
        }
        Work::Return { .. } => {
            let back = calls.pop()?;
            (Then::Returns(back), back)
        }
        Work::JumpTo { .. } | Work::CallTo { .. } => return None,
        _ => (Then::Falls, behind),
    };
    in_page(at).then_some((then, at))
}

fn in_page(at: i64) -> bool {
    (0..4096).contains(&at)
}
