//! What the processor under test made of each form's cases when `golden.txt` was written: one digest a form.
//! A host whose unit computes anything else fails here with the form's name, whoever made it.
//!
//! `VECTOR_BLESS=1` writes the file anew.

use crate::forms::{Case, FAMILIES, Family};
use crate::native::State;
use crate::random::Random;
use crate::state::{Errors, emulate, place, random_state, ready_unit};
use soft::Exit;
use soft::testing::Machine;
use std::collections::BTreeMap;
use std::fmt::Write;

/// Cases of a form; of one with an immediate, this many for each of the 256.
const CASES: u64 = 1000;
const CASES_OF_IMMEDIATE: u64 = 4;

/// FNV-1a, 64 bits.
struct Digest(u64);

impl Digest {
    fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        }
    }

    fn add_state(&mut self, state: &State) {
        for register in state.fx.xmm.iter().chain(&state.fx.st) {
            self.add(&register.to_le_bytes());
        }
        for word in [state.fx.fcw, state.fx.fsw, state.fx.tags.into()] {
            self.add(&word.to_le_bytes());
        }
        self.add(&state.fx.mxcsr.to_le_bytes());
        for register in state.regs.iter().chain(&[state.flags]) {
            self.add(&register.to_le_bytes());
        }
        // FNSAVE writes the most.
        self.add(&state.memory[..128]);
    }
}

fn digest(machine: &mut Machine, case: &Case, digest: &mut Digest) {
    place(machine, &case.bytes);
    let mut seed = Digest::new();
    seed.add(&case.bytes);
    let mut random = Random(seed.0);
    let count = if case.has_immediate() {
        CASES_OF_IMMEDIATE
    } else {
        CASES
    };
    for n in 0..count {
        let mut state = match case.family {
            Family::Vector => random_state(&mut random, case.family, Errors::Any),
            _ if n % 2 == 0 => random_state(&mut random, case.family, Errors::Any),
            _ => ready_unit(&mut random),
        };
        let exit = emulate(machine, &mut state);
        digest.add(&[u8::from(exit == Exit::Stopped)]);
        digest.add_state(&state);
    }
}

/// The file, as of now.
fn recompute() -> String {
    let mut machine = Machine::new(&[], 3);
    let mut digests: BTreeMap<String, Digest> = BTreeMap::new();
    for case in FAMILIES.into_iter().flat_map(Family::forms) {
        let form = digests.entry(case.name()).or_insert_with(Digest::new);
        digest(&mut machine, &case, form);
    }
    let mut text = String::new();
    for (name, digest) in digests {
        writeln!(text, "{:016x} {name}", digest.0).expect("a string takes all");
    }
    text
}

#[test]
fn every_form_is_what_it_was() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/golden.txt");
    let now = recompute();
    if std::env::var_os("VECTOR_BLESS").is_some() {
        std::fs::write(path, &now).expect("the file can be written");
    }
    let golden = std::fs::read_to_string(path).expect("the file can be read");
    let only = std::env::var("VECTOR_ONLY")
        .unwrap_or_default()
        .to_lowercase();
    let wanted = |line: &&str| line[17..].to_lowercase().contains(&only);
    let was: Vec<&str> = golden.lines().filter(wanted).collect();
    let is: Vec<&str> = now.lines().collect();
    let differ: Vec<&&str> = is.iter().filter(|line| !was.contains(line)).collect();
    assert!(
        differ.is_empty(),
        "{} forms differ: {differ:#?}",
        differ.len()
    );
    assert_eq!(was.len(), is.len(), "forms that are no more");
}
