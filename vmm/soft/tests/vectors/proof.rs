//! Proof that what the host's unit computes for the processor follows from rules: every form that uses it,
//! compared with [`crate::reference`], under every direction, precision and mask.
//!
//! The reference uses no floating-point unit. Where these tests pass, the host's unit follows the rules; so
//! do any two hosts where they pass, and a log replays equal from one to the other.

use crate::forms::{Case, Family, cases_each};
use crate::native::State;
use crate::random::Random;
use crate::reference::sse_forms::{self, DotOrder};
use crate::reference::x87_forms;
use crate::state::{Errors, describe, difference, emulate, place, random_state, ready_unit};
use soft::Exit;
use soft::testing::Machine;
use std::collections::BTreeSet;

/// What the reference says of a case: the state before, the one after, and the exit.
type Answer = Option<(State, State, Exit)>;

/// Compares the processor with the reference, `answer`, on every form the reference has; these are all
/// that the host's floating-point unit computes, `mnemonics` in number. Panics with all that differ.
fn prove(family: Family, mnemonics: usize, answer: impl Fn(&Case, &mut Random) -> Answer) {
    let mut machine = Machine::new(&[], 3);
    let mut failures = Vec::new();
    let mut proved = BTreeSet::new();
    let (mut forms, mut compared) = (0, 0u64);
    let mut last_failed = None;
    for (number, case) in family.forms().iter().enumerate() {
        place(&mut machine, &case.bytes);
        let mut random = Random(number as u64 * 0x5678_9abc_def1);
        for n in 0..case.share_of(cases_each()) {
            let Some((before, expected, wanted)) = answer(case, &mut random) else {
                break;
            };
            if n == 0 {
                forms += 1;
                proved.insert(format!("{:?}", case.code.mnemonic()));
            }
            compared += 1;
            let mut ours = before;
            let exit = emulate(&mut machine, &mut ours);
            let wrong = match exit == wanted {
                true => difference(&ours, &expected, "reference"),
                false => Some(format!("{exit:?}, reference {wanted:?}")),
            };
            if let Some(wrong) = wrong {
                if last_failed != Some(case.code) {
                    failures.push(describe(case, &before, &wrong));
                }
                last_failed = Some(case.code);
                break;
            }
        }
    }
    println!(
        "{} instructions, {forms} forms, {compared} cases",
        proved.len()
    );
    assert!(
        failures.is_empty(),
        "{} differ:\n{}",
        failures.len(),
        failures.join("\n")
    );
    if std::env::var_os("VECTOR_ONLY").is_none() {
        assert_eq!(proved.len(), mnemonics, "{proved:?}");
    }
}

#[test]
fn sse_arithmetic_follows_the_rules() {
    prove(Family::Vector, 74, |case, random| {
        let before = random_state(random, Family::Vector, Errors::Any);
        let (code, immediate, memory) = (case.code, case.immediate, case.memory);
        let order = DotOrder::Once;
        let after = sse_forms::expected(code, immediate, memory, &before, order)?;
        // There is no IDT: an exception ends in a triple fault.
        let exit = if after.fault {
            Exit::TripleFault
        } else {
            Exit::Stopped
        };
        Some((before, after.state, exit))
    });
}

#[test]
fn x87_arithmetic_follows_the_rules() {
    prove(Family::X87, 51, |case, random| {
        let before = ready_unit(random);
        let after = x87_forms::expected(case.code, &before)?;
        Some((before, after, Exit::Stopped))
    });
}
