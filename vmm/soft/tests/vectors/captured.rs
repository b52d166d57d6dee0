//! Cases in which makers' processors differ, as seen on them, in `captured.txt`: checked against the
//! processor under test and the makers' models on any host, and against the host's processor on one of that
//! maker.
//!
//! ```text
//!  form bytes | state before | what AMD leaves | what Intel leaves | who was seen
//! ```
//!
//! A state is its fields that differ from [`State::default`], and after the instruction those that changed.
//! The last column names the makers whose processor was seen to do it; the other column is the model's.
//!
//! The ignored test `capture` prints cases of the host's for the file (`docs/TESTING.md`).

use crate::compared::tolerate;
use crate::forms::{Case, FAMILIES, Family, cases_each};
use crate::makers::Maker;
use crate::native::{Native, State};
use crate::random::Random;
use crate::state::{Errors, difference, emulate, place, random_state};
use soft::Exit;
use soft::testing::Machine;
use std::collections::BTreeMap;

const TEXT: &str = include_str!("captured.txt");

/// Most cases of a form that are printed.
const MOST: usize = 16;

/// Fields of a state by name, as numbers.
fn fields(state: &State) -> Vec<(String, u128)> {
    let mut fields: Vec<(String, u128)> = Vec::new();
    let mut add = |name: &str, value: u128| fields.push((name.to_string(), value));
    for n in 0..8 {
        add(&format!("st{n}"), state.fx.st[n]);
    }
    for n in 0..16 {
        add(&format!("xmm{n}"), state.fx.xmm[n]);
    }
    add("fcw", state.fx.fcw.into());
    add("fsw", state.fx.fsw.into());
    add("tags", state.fx.tags.into());
    add("mxcsr", state.fx.mxcsr.into());
    for (n, name) in ["rax", "rcx", "rdx", "rbx"].iter().enumerate() {
        add(name, state.regs[n].into());
    }
    add("flags", state.flags.into());
    for (n, bytes) in state.memory.chunks_exact(16).enumerate() {
        let value = u128::from_le_bytes(bytes.try_into().expect("16 bytes"));
        add(&format!("memory{n}"), value);
    }
    fields
}

/// Sets one.
fn set_field(state: &mut State, name: &str, value: u128) {
    let digits = name.trim_start_matches(|c: char| c.is_ascii_alphabetic());
    let n = digits.parse().unwrap_or(0);
    match &name[..name.len() - digits.len()] {
        "st" => state.fx.st[n] = value,
        "xmm" => state.fx.xmm[n] = value,
        "fcw" => state.fx.fcw = value as u16,
        "fsw" => state.fx.fsw = value as u16,
        "tags" => state.fx.tags = value as u8,
        "mxcsr" => state.fx.mxcsr = value as u32,
        "rax" => state.regs[0] = value as u64,
        "rcx" => state.regs[1] = value as u64,
        "rdx" => state.regs[2] = value as u64,
        "rbx" => state.regs[3] = value as u64,
        "flags" => state.flags = value as u64,
        "memory" => state.memory[n * 16..][..16].copy_from_slice(&value.to_le_bytes()),
        _ => panic!("no field {name}"),
    }
}

/// A state's fields that differ from another's.
fn write(state: &State, base: &State) -> String {
    let fields = fields(state).into_iter().zip(fields(base));
    let changed = fields.filter(|(new, old)| new != old);
    let words: Vec<String> = changed
        .map(|((name, value), _)| format!("{name}={value:x}"))
        .collect();
    words.join(" ")
}

fn read(text: &str, base: &State) -> State {
    let mut state = *base;
    for word in text.split_whitespace() {
        let (name, value) = word.split_once('=').expect("name=value");
        let value = u128::from_str_radix(value, 16).expect("a hexadecimal number");
        set_field(&mut state, name, value);
    }
    state
}

/// Lines of a file, comments left out, by columns.
fn columns(text: &str) -> impl Iterator<Item = Vec<&str>> {
    let lines = text
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty());
    lines.map(|line| line.split('|').map(str::trim).collect())
}

/// The cases of a file: form, state before, and who was seen.
fn cases_of(text: &str) -> Vec<(Case, State, String)> {
    let forms: Vec<Case> = FAMILIES.into_iter().flat_map(Family::all_forms).collect();
    let by_bytes: BTreeMap<String, &Case> = forms.iter().map(|case| (hex(case), case)).collect();
    columns(text)
        .map(|columns| {
            let (name, bytes) = columns[0].split_once(' ').expect("form and bytes");
            let case = by_bytes[bytes].clone();
            assert_eq!(name, format!("{:?}", case.code));
            let before = read(columns[1], &State::default());
            let seen = columns.get(4).copied().unwrap_or_default().to_string();
            (case, before, seen)
        })
        .collect()
}

fn hex(case: &Case) -> String {
    case.bytes
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[test]
fn captured_cases_are_what_processor_and_models_make() {
    let mut machine = Machine::new(&[], 3);
    let mut native = Native::new();
    let maker = Maker::of_host();
    let mut differing = 0;
    for ((case, before, seen), columns) in cases_of(TEXT).into_iter().zip(columns(TEXT)) {
        let context = columns.join(" | ");
        let [_, _, amd, intel, _] = columns[..] else {
            panic!("not five columns: {context}");
        };
        let (amd, intel) = (read(amd, &before), read(intel, &before));
        place(&mut machine, &case.bytes);
        let mut ours = before;
        assert_eq!(emulate(&mut machine, &mut ours), Exit::Stopped, "{context}");
        same(&case, &before, &ours, &amd, "amd", &context);
        Maker::Intel.adjust(&case, &before, &mut ours, false);
        same(&case, &before, &ours, &intel, "intel", &context);
        differing += usize::from(amd != intel);
        let known = ["amd", "intel", "amd intel"].contains(&seen.as_str());
        assert!(known, "{context}");
        let Some(maker) = maker.filter(|_| case.host_has()) else {
            continue;
        };
        if maker.leaves_out(&case, &before) {
            continue;
        }
        let mut theirs = before;
        native.set(&case.bytes);
        native.run(&mut theirs);
        let expected = match maker {
            Maker::Amd => amd,
            Maker::Intel => intel,
        };
        same(&case, &before, &expected, &theirs, "host", &context);
    }
    println!("{differing} cases differ");
    assert!(differing > 0);
}

/// Asserts that two states are the same, but for what need not be.
fn same(case: &Case, before: &State, a: &State, b: &State, who: &str, context: &str) {
    let [mut a, mut b] = [*a, *b];
    tolerate(case, before, &mut a, &mut b);
    assert_eq!(difference(&a, &b, who), None, "{context}");
}

/// What an instruction of these leaves alone: of the state before a captured case, only the rest is kept.
fn reduced(case: &Case, before: &State) -> State {
    let mut state = State::default();
    state.memory[..16].copy_from_slice(&before.memory[..16]);
    if case.family == Family::Vector {
        state.fx.xmm[1] = before.fx.xmm[1];
        state.fx.xmm[2] = before.fx.xmm[2];
        state.fx.mxcsr = before.fx.mxcsr;
        state.regs[1] = before.regs[1];
        return state;
    }
    for n in [0, 1, 3] {
        state.fx.st[n] = before.fx.st[n];
    }
    state.fx.fcw = before.fx.fcw;
    state.fx.fsw = before.fx.fsw;
    state.fx.tags = before.fx.tags;
    state
}

/// The states before that are tried of a form.
fn candidates(case: &Case, number: usize) -> impl Iterator<Item = State> + use<'_> {
    let mut random = Random(number as u64 ^ 0x6361_7074_7572_6564);
    (0..case.share_of(cases_each()))
        .map(move |_| reduced(case, &random_state(&mut random, case.family, Errors::None)))
}

/// Prints cases for `captured.txt`: those in which the host's processor does not do what ours does, at most
/// [`MOST`] of a form, one of an immediate. `VECTOR_CAPTURE=FILE` prints those of such a file instead, of
/// which the first two columns count, with the host's.
#[test]
#[ignore = "prints cases for captured.txt"]
fn capture() {
    let mut native = Native::new();
    let mut machine = Machine::new(&[], 3);
    if let Ok(path) = std::env::var("VECTOR_CAPTURE") {
        let text = std::fs::read_to_string(path).expect("the file can be read");
        for (case, before, seen) in cases_of(&text) {
            let (ours, theirs) = on_both(&mut machine, &mut native, &case, &before);
            print_case(&case, &before, &ours, &theirs, &seen);
        }
        return;
    }
    let mut printed: BTreeMap<String, usize> = BTreeMap::new();
    for (number, case) in FAMILIES.into_iter().flat_map(Family::forms).enumerate() {
        if !case.host_has() {
            continue;
        }
        for before in candidates(&case, number) {
            let (ours, theirs) = on_both(&mut machine, &mut native, &case, &before);
            let [mut a, mut b] = [ours, theirs];
            tolerate(&case, &before, &mut a, &mut b);
            let so_far = printed.entry(case.name()).or_default();
            if a != b && *so_far < MOST {
                print_case(&case, &before, &ours, &theirs, "");
                *so_far += 1;
                if case.has_immediate() {
                    break;
                }
            }
        }
    }
}

/// A case's state after it on the processor under test, and on the host's.
fn on_both(
    machine: &mut Machine,
    native: &mut Native,
    case: &Case,
    before: &State,
) -> (State, State) {
    native.set(&case.bytes);
    place(machine, &case.bytes);
    let (mut ours, mut theirs) = (*before, *before);
    assert!(!native.run(&mut theirs));
    assert_eq!(emulate(machine, &mut ours), Exit::Stopped);
    // What is not ours to compare.
    let (last, mask, rest) = (ours.fx.last, ours.fx.mxcsr_mask, ours.fx.rest);
    (theirs.fx.last, theirs.fx.mxcsr_mask, theirs.fx.rest) = (last, mask, rest);
    (ours, theirs)
}

fn print_case(case: &Case, before: &State, ours: &State, theirs: &State, seen: &str) {
    let maker = Maker::of_host().expect("a processor by AMD or Intel");
    let [mut amd, mut intel] = [*ours; 2];
    Maker::Intel.adjust(case, before, &mut intel, false);
    match maker {
        Maker::Amd => amd = *theirs,
        Maker::Intel => intel = *theirs,
    }
    let both = !seen.is_empty() && seen != maker.name();
    println!(
        "{:?} {} | {} | {} | {} | {}",
        case.code,
        hex(case),
        write(before, &State::default()),
        write(&amd, before),
        write(&intel, before),
        if both { "amd intel" } else { maker.name() },
    );
}
