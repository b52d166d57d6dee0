//! The software processor against the host's own, and its translator against its interpreter ([`translated`]).
//!
//! Instructions are made from iced's table of all there are, with random operands, registers and memory;
//! each runs once natively in ring 3 and once in software from the same state. Registers, flags, memory
//! and faults must come out alike. Flags the architecture leaves undefined are left out, unless
//! `TANDEM_DIFFERENTIAL_STRICT` is set.
//!
//! `TANDEM_DIFFERENTIAL_CASES`: cases of each test, instead of a few seconds' worth.
//! `TANDEM_DIFFERENTIAL_SEED`: another seed. `TANDEM_DIFFERENTIAL_ONLY`: only codes whose name has this.
//!
//! For another family: a list of codes like [`integer::codes`], and registers to fill
//! ([`generate::Generator::fill_fx`]).
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

mod emulated;
mod generate;
mod integer;
#[path = "../host/maker.rs"]
mod maker;
mod makers;
mod native;
mod random;
mod state;
mod translated;
mod twins;
mod vectors;

use emulated::Emulated;
use generate::Generator;
use iced_x86::{Code, Decoder, DecoderOptions, Mnemonic, RflagsBits};
use makers::{Cmps, Expected, Maker, Writes};
use native::Native;
use random::Random;
use state::{ARENA, ARENA_ALL, ARENA_LEN, AT, Case, Ending, Fx, State};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use vectors::Capture;

/// A family of instructions to compare.
pub struct Family {
    /// What it is called in reports.
    pub name: &'static str,
    /// 64 or 32.
    pub bitness: u32,
    /// The instructions.
    pub codes: Vec<Code>,
    /// Fills the x87 and SSE registers, which are compared then.
    pub fill_fx: Option<fn(&mut Random) -> Fx>,
    /// Cases, unless the environment says how many.
    pub cases: u64,
}

/// Both processors with the same memory.
struct Harness {
    maker: Maker,
    native: Native,
    emulated: Emulated,
    /// What the arena holds between cases.
    template: Vec<u8>,
    after: Vec<u8>,
    /// The case has words of its own in the page that can only be read.
    read_only_changed: bool,
    capture: Option<Capture>,
    /// The host is AMD's, and of two operands of these that fault has the destination do so.
    destination_first: BTreeSet<Cmps>,
}

impl Harness {
    fn new(maker: Maker) -> Self {
        let mut harness = Self {
            maker,
            native: Native::new(),
            emulated: Emulated::new(),
            template: vec![0; ARENA_ALL as usize],
            after: vec![0; ARENA_ALL as usize],
            read_only_changed: false,
            capture: Capture::from_environment(),
            destination_first: BTreeSet::new(),
        };
        harness.native.protect(true);
        if Maker::of_host() == Some(Maker::Amd) {
            harness.destination_first = harness.faults_in_destination();
        }
        harness
    }

    /// The forms of CMPS of which the host has the destination fault: it is made to compare strings it may not read.
    fn faults_in_destination(&mut self) -> BTreeSet<Cmps> {
        let (source, destination) = (ARENA - 0x800, ARENA + ARENA_ALL);
        let mut regs = [0; 16];
        (regs[1], regs[6], regs[7]) = (1, source, destination);
        let (prefixes, opcodes) = (
            [&[][..], &[0xf2], &[0xf3]],
            [&[0xa6][..], &[0x66, 0xa7], &[0xa7], &[0x48, 0xa7]],
        );
        let all = prefixes
            .iter()
            .flat_map(|prefix| opcodes.iter().map(move |code| [*prefix, *code].concat()));
        let mut found = BTreeSet::new();
        for bytes in all {
            let case = Case {
                instruction: Decoder::with_ip(64, &bytes, AT, DecoderOptions::NONE).decode(),
                bytes,
                bitness: 64,
                state: State {
                    regs,
                    rip: AT,
                    flags: 0x202,
                    fx: Fx::default(),
                },
                pokes: Vec::new(),
            };
            let fault = self.native.run(&case).fault;
            let address = fault.and_then(|fault| fault.address);
            assert!(
                [Some(source), Some(destination)].contains(&address),
                "{fault:x?}"
            );
            if address == Some(destination) {
                found.extend(makers::cmps(&case));
            }
        }
        found
    }

    /// Whether the host is one of AMD's that have the destination of this CMPS fault.
    fn has_destination_first(&self, case: &Case) -> bool {
        makers::cmps(case).is_some_and(|form| self.destination_first.contains(&form))
    }

    /// Fills the arena anew.
    fn fill(&mut self, random: &mut Random) {
        self.fill_with(|| random.word());
    }

    /// Fills it as [`vectors`] takes it to be.
    fn fill_always_alike(&mut self) {
        let mut random = Random::new(0, 0);
        self.fill_with(|| random.next());
    }

    fn fill_with(&mut self, mut word: impl FnMut() -> u64) {
        for chunk in self.template.as_chunks_mut::<8>().0 {
            *chunk = word().to_le_bytes();
        }
        self.native.protect(false);
        self.native.arena().copy_from_slice(&self.template);
        self.native.protect(true);
        self.emulated.poke(ARENA, &self.template);
    }

    /// Puts back what a case changed.
    fn restore(&mut self) {
        let len = ARENA_LEN as usize;
        if self.read_only_changed {
            self.native.protect(false);
            self.native.arena()[len..].copy_from_slice(&self.template[len..]);
            self.native.protect(true);
            self.emulated.poke(ARENA + ARENA_LEN, &self.template[len..]);
            self.read_only_changed = false;
        }
        let same = |a: &[u8], b: &[u8]| a == b;
        for at in (0..len).step_by(64) {
            let range = at..at + 64;
            let wanted = &self.template[range.clone()];
            if !same(&self.native.arena()[range.clone()], wanted) {
                self.native.arena()[range.clone()].copy_from_slice(wanted);
            }
            if !same(&self.after[range], wanted) {
                self.emulated.poke(ARENA + at as u64, wanted);
            }
        }
    }

    /// Runs `case` on both; returns what the host and what ours did. Memory is as they left it, ours in
    /// `after`, until [`Harness::restore`].
    fn run(&mut self, case: &Case) -> (Ending, Ending) {
        let end = |(address, bytes): &(u64, Vec<u8>)| address - ARENA + bytes.len() as u64;
        self.read_only_changed = case.pokes.iter().any(|poke| end(poke) > ARENA_LEN);
        if self.read_only_changed {
            self.native.protect(false);
        }
        for (address, bytes) in &case.pokes {
            let at = (address - ARENA) as usize;
            self.native.arena()[at..at + bytes.len()].copy_from_slice(bytes);
            self.emulated.poke(*address, bytes);
        }
        if self.read_only_changed {
            self.native.protect(true);
        }
        let native = self.native.run(case);
        let emulated = self.emulated.run(case);
        self.emulated.arena(&mut self.after);
        (native, emulated)
    }

    /// Runs `case` on both; returns what differs, and whether it retired.
    fn compare(&mut self, case: &Case, mask: u64, fx: bool) -> Result<bool, String> {
        let (native, emulated) = self.run(case);
        if let Some(capture) = &mut self.capture {
            capture.look(case, &emulated, &self.template);
        }
        let Expected { outcome, writes } = self.maker.expected(case, &emulated, &self.template);
        let mut emulated = outcome;
        if self.maker == Maker::Amd && self.has_destination_first(case) {
            makers::destination_first(case, &mut emulated);
        }
        let native = with_known_vector(case, native, &emulated);
        let halfway =
            self.maker == Maker::Amd && breaks_off_halfway(case) && native.fault.is_some();
        let mut difference = fault_difference(&native, &emulated);
        if !halfway {
            difference += &differences(&native, &emulated, mask, fx);
            difference += &self.memory_differences(&writes);
        }
        self.restore();
        if difference.is_empty() {
            return Ok(native.fault.is_none());
        }
        Err(difference)
    }

    /// Where memory is not what ours left and `writes` put over it.
    fn memory_differences(&mut self, writes: &Writes) -> String {
        let mut text = String::new();
        let arena = self.native.arena();
        let mut wanted = Cow::Borrowed(&self.after);
        for (address, bytes) in writes {
            let at = (address - ARENA) as usize;
            wanted.to_mut()[at..at + bytes.len()].copy_from_slice(bytes);
        }
        if *wanted != arena {
            for (n, (native, emulated)) in arena.iter().zip(wanted.iter()).enumerate() {
                if native != emulated {
                    let address = ARENA + n as u64;
                    let _ = writeln!(
                        text,
                        "  memory {address:#x}: {native:02x}, not {emulated:02x}"
                    );
                }
            }
        }
        text
    }
}

/// Whether a fault in its middle leaves the host's processor with some of what it does done: ours does
/// all or nothing.
fn breaks_off_halfway(case: &Case) -> bool {
    use Mnemonic as M;
    matches!(
        case.instruction.mnemonic(),
        M::Enter | M::Pusha | M::Pushad | M::Popa | M::Popad
    )
}

/// What `native` would be but for what is known to differ: a CMPXCHG16B that is misaligned and not
/// canonical raises #GP, ours #SS if it is on the stack.
fn with_known_vector(case: &Case, mut native: Ending, emulated: &Ending) -> Ending {
    let vectors = (
        native.fault.map(|f| f.vector),
        emulated.fault.map(|f| f.vector),
    );
    if case.instruction.mnemonic() == Mnemonic::Cmpxchg16b && vectors == (Some(13), Some(12)) {
        native.fault = emulated.fault;
    }
    native
}

const NAMES: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
];

fn fault_difference(native: &Ending, emulated: &Ending) -> String {
    if native.fault == emulated.fault {
        return String::new();
    }
    format!("  fault {:x?}, not {:x?}\n", native.fault, emulated.fault)
}

/// What differs between the two in registers, line by line.
fn differences(native: &Ending, emulated: &Ending, mask: u64, fx: bool) -> String {
    let mut text = String::new();
    let (a, b) = (&native.state, &emulated.state);
    for (name, (a, b)) in NAMES.iter().zip(a.regs.iter().zip(b.regs)) {
        if *a != b {
            let _ = writeln!(text, "  {name} {a:#x}, not {b:#x}");
        }
    }
    if a.rip != b.rip {
        let _ = writeln!(text, "  rip {:#x}, not {:#x}", a.rip, b.rip);
    }
    if (a.flags ^ b.flags) & mask != 0 {
        let (a, b) = (a.flags & mask, b.flags & mask);
        let _ = writeln!(text, "  flags {a:#x}, not {b:#x} (differ: {:#x})", a ^ b);
    }
    if fx {
        fx_differences(&mut text, &a.fx.compared(), &b.fx.compared());
    }
    text
}

fn fx_differences(text: &mut String, a: &Fx, b: &Fx) {
    for n in 0..16 {
        if a.xmm[n] != b.xmm[n] {
            let _ = writeln!(text, "  xmm{n} {:#034x}, not {:#034x}", a.xmm[n], b.xmm[n]);
        }
    }
    for n in 0..8 {
        let wide = u128::from_le_bytes;
        if a.st[n] != b.st[n] {
            let _ = writeln!(
                text,
                "  st{n} {:#x}, not {:#x}",
                wide(a.st[n]),
                wide(b.st[n])
            );
        }
    }
    let words = [
        ("fcw", u32::from(a.fcw), u32::from(b.fcw)),
        ("fsw", u32::from(a.fsw), u32::from(b.fsw)),
        ("tags", u32::from(a.ftw), u32::from(b.ftw)),
        ("mxcsr", a.mxcsr, b.mxcsr),
    ];
    for (name, a, b) in words {
        if a != b {
            let _ = writeln!(text, "  {name} {a:#x}, not {b:#x}");
        }
    }
}

/// The flags compared: the arithmetic ones and DF, without those the instruction leaves undefined.
fn flag_mask(case: &Case) -> u64 {
    const ALL: u64 = 0xcd5;
    if std::env::var_os("TANDEM_DIFFERENTIAL_STRICT").is_some() {
        return ALL;
    }
    let undefined = case.instruction.rflags_undefined();
    let bits = [
        (RflagsBits::CF, 0),
        (RflagsBits::PF, 2),
        (RflagsBits::AF, 4),
        (RflagsBits::ZF, 6),
        (RflagsBits::SF, 7),
        (RflagsBits::OF, 11),
    ];
    bits.iter()
        .filter(|(flag, _)| undefined & flag != 0)
        .fold(ALL, |mask, (_, bit)| mask & !(1 << bit))
}

fn describe(case: &Case, seed: u64, number: u64, difference: &str) -> String {
    let State {
        regs, flags, fx, ..
    } = &case.state;
    let mut text = format!(
        "seed {seed} case {number}: {:?}: {} ({:02x?}, {} bits)\nnative, not emulated:\n{difference}before:\n",
        case.instruction.code(),
        case.instruction,
        case.bytes,
        case.bitness,
    );
    for (name, value) in NAMES.iter().zip(regs) {
        let _ = write!(text, " {name}={value:#x}");
    }
    let _ = writeln!(
        text,
        " flags={flags:#x} fcw={:#x} mxcsr={:#x}",
        fx.fcw, fx.mxcsr
    );
    text
}

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Compares a family; panics with the first difference of each instruction.
pub fn compare(family: &Family) {
    let cases = from_environment("TANDEM_DIFFERENTIAL_CASES").unwrap_or(family.cases);
    let seed = from_environment("TANDEM_DIFFERENTIAL_SEED").unwrap_or(1);
    let only = std::env::var("TANDEM_DIFFERENTIAL_ONLY").unwrap_or_default();
    let codes: Vec<Code> = family
        .codes
        .iter()
        .copied()
        .filter(|code| format!("{code:?}").contains(&only))
        .collect();
    assert!(!codes.is_empty(), "no instruction to compare");
    let generator = Generator {
        bitness: family.bitness,
        any_segment: false,
        fill_fx: family.fill_fx,
    };
    let Some(maker) = Maker::of_host_or_skip() else {
        return;
    };
    let mut harness = Harness::new(maker);
    let mut failures = BTreeMap::new();
    // Cases that retired, and all.
    let mut counts = vec![(0u64, 0u64); codes.len()];
    for number in 0..cases {
        let mut random = Random::new(seed, number);
        if number % 256 == 0 {
            harness.fill(&mut Random::new(seed, !number));
        }
        let which = (number % codes.len() as u64) as usize;
        let made = (0..20).find_map(|_| generator.case(codes[which], &mut random));
        let Some(case) = made else {
            continue;
        };
        counts[which].1 += 1;
        match harness.compare(&case, flag_mask(&case), family.fill_fx.is_some()) {
            Ok(retired) => counts[which].0 += u64::from(retired),
            Err(difference) => {
                let failure = failures
                    .entry(codes[which] as usize)
                    .or_insert_with(|| (0, describe(&case, seed, number, &difference)));
                failure.0 += 1;
            }
        }
    }
    if let Some(capture) = harness.capture.take() {
        capture.write(&mut harness);
    }
    report(family.name, &codes, &counts);
    let text: Vec<String> = failures
        .values()
        .map(|(n, text)| format!("{n} times: {text}"))
        .collect();
    assert!(
        text.is_empty(),
        "{} instructions differ\n{}",
        text.len(),
        text.join("\n")
    );
    let never: Vec<&Code> = codes
        .iter()
        .zip(&counts)
        .filter(|(_, n)| n.0 == 0)
        .map(|(c, _)| c)
        .collect();
    let enough = cases >= 100 * codes.len() as u64;
    assert!(!enough || never.is_empty(), "never retired: {never:?}");
}

/// Compares cases made by hand: all of them must come out alike, and retire.
pub fn compare_cases(cases: &[Case]) {
    let Some(maker) = Maker::of_host_or_skip() else {
        return;
    };
    let mut harness = Harness::new(maker);
    for case in cases {
        let result = harness.compare(case, flag_mask(case), false);
        assert_eq!(
            result,
            Ok(true),
            "{} ({:02x?})",
            case.instruction,
            case.bytes
        );
    }
}

fn report(name: &str, codes: &[Code], counts: &[(u64, u64)]) {
    let all: u64 = counts.iter().map(|n| n.1).sum();
    let retired: u64 = counts.iter().map(|n| n.0).sum();
    let made = counts.iter().filter(|n| n.1 > 0).count();
    println!(
        "{name}: {made} of {} instruction forms, {all} cases, {retired} retired",
        codes.len()
    );
    for (code, n) in codes.iter().zip(counts) {
        if n.1 == 0 {
            println!("  never made: {code:?}");
        }
    }
}
