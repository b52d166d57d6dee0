//! Cases kept in the tree, `makers.txt`: what the processors of the two makers do where they differ.
//!
//! A developer on a host by one maker sees with them a fault that shows on the other's only: what ours does
//! has to be the column `amd`, and with [`Maker::expected`] the column `intel`. On a host by either maker,
//! its own processor has to do what its column says, too.
//!
//! ```text
//!  32 a6 rcx=15 rsi=38000b61 rdi=38000b69 flags=e97 | #14@38000b61 | #14@38000b69
//!  │  │  registers that are not zero, flags,         │ amd          │ intel: what differs from before
//!  │  bytes                                          registers, flags, m@address=bytes, #vector@address
//!  code size       m@address=bytes: memory that is not as [`Harness::fill_always_alike`] leaves it
//! ```
//!
//! `TANDEM_DIFFERENTIAL_CAPTURE=FILE` makes [`crate::compare`] add to FILE such a line for every kind of
//! difference it meets, with what this host did in its maker's column; in the other's what the model says.

use crate::makers::{self, Maker, Writes};
use crate::state::{ARENA, ARENA_ALL, AT, Case, Ending, Fault, Fx, State};
use crate::{Harness, NAMES, breaks_off_halfway, flag_mask};
use iced_x86::{Decoder, DecoderOptions, OpKind};
use std::collections::BTreeMap;
use std::fmt::Write;

const KEPT: &str = include_str!("makers.txt");

/// A case and what each maker's processor does with it.
struct Vector {
    case: Case,
    amd: String,
    intel: String,
}

impl Vector {
    fn column(&self, maker: Maker) -> &str {
        match maker {
            Maker::Amd => &self.amd,
            Maker::Intel => &self.intel,
        }
    }

    fn parse(line: &str) -> Self {
        let columns: Vec<&str> = line.split(" | ").collect();
        let [before, amd, intel] = columns[..] else {
            panic!("three columns: {line}");
        };
        let mut words = before.split(' ');
        let bitness = words.next().and_then(|w| w.parse().ok()).expect("32 or 64");
        let bytes = from_hex(words.next().expect("bytes"));
        let mut state = State {
            regs: [0; 16],
            rip: AT,
            flags: 0,
            fx: Fx::default(),
        };
        let mut pokes = Writes::new();
        for word in words {
            let (name, value) = word.split_once('=').expect("name=value");
            if let Some(address) = name.strip_prefix("m@") {
                pokes.push((number(address), from_hex(value)));
            } else if name == "flags" {
                state.flags = number(value);
            } else {
                let n = NAMES.iter().position(|n| *n == name).expect("a register");
                state.regs[n] = number(value);
            }
        }
        let case = Case {
            instruction: Decoder::with_ip(bitness, &bytes, AT, DecoderOptions::AMD).decode(),
            bytes,
            bitness,
            state,
            pokes,
        };
        Self {
            case,
            amd: amd.to_owned(),
            intel: intel.to_owned(),
        }
    }
}

fn number(text: &str) -> u64 {
    u64::from_str_radix(text, 16).expect("a hexadecimal number")
}

fn from_hex(text: &str) -> Vec<u8> {
    let digits: Vec<char> = text.chars().collect();
    digits
        .chunks(2)
        .map(|pair| number(&pair.iter().collect::<String>()) as u8)
        .collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// What an outcome says beside what was: a column of the file.
fn column(case: &Case, outcome: &Ending, before: &[u8], after: &[u8]) -> String {
    let mut words = Vec::new();
    if let Some(Fault {
        vector, address, ..
    }) = outcome.fault
    {
        words.push(match address {
            Some(address) => format!("#{vector}@{address:x}"),
            None => format!("#{vector}"),
        });
    }
    let (was, is) = (&case.state, &outcome.state);
    for (n, name) in NAMES.iter().enumerate() {
        if was.regs[n] != is.regs[n] {
            words.push(format!("{name}={:x}", is.regs[n]));
        }
    }
    let mask = flag_mask(case);
    if (was.flags ^ is.flags) & mask != 0 {
        words.push(format!("flags={:x}", is.flags & mask));
    }
    for (address, bytes) in changes(before, after) {
        words.push(format!("m@{address:x}={}", hex(&bytes)));
    }
    if words.is_empty() {
        words.push("-".to_owned());
    }
    words.join(" ")
}

/// The runs of bytes that differ.
fn changes(before: &[u8], after: &[u8]) -> Writes {
    let mut runs = Writes::new();
    for (n, (was, is)) in before.iter().zip(after).enumerate() {
        if was == is {
            continue;
        }
        let address = ARENA + n as u64;
        match runs.last_mut() {
            Some((start, bytes)) if *start + bytes.len() as u64 == address => bytes.push(*is),
            _ => runs.push((address, vec![*is])),
        }
    }
    runs
}

/// What ours, each maker's and the host's do, as columns.
struct Columns {
    ours: String,
    amd: String,
    intel: String,
    /// As AMD's that have the destination of CMPS fault.
    destination_first: String,
    host: String,
}

impl Harness {
    fn columns(&mut self, case: &Case) -> Columns {
        let mut before = self.template.clone();
        makers::overlay(&case.pokes, ARENA, &mut before);
        let (host, ours) = self.run(case);
        let native = self.native.arena().to_vec();
        let of = |maker: Maker| {
            let expected = maker.expected(case, &ours, &self.template);
            let mut after = self.after.clone();
            makers::overlay(&expected.writes, ARENA, &mut after);
            column(case, &expected.outcome, &before, &after)
        };
        let mut destination = ours.clone();
        if makers::cmps(case).is_some() {
            makers::destination_first(case, &mut destination);
        }
        let columns = Columns {
            destination_first: column(case, &destination, &before, &self.after),
            ours: column(case, &ours, &before, &self.after),
            amd: of(Maker::Amd),
            intel: of(Maker::Intel),
            host: column(case, &host, &before, &native),
        };
        self.restore();
        columns
    }
}

#[test]
fn what_each_maker_does_is_what_was_captured() {
    // Only the columns are compared here, so any maker will do.
    let mut harness = Harness::new(Maker::Amd);
    harness.fill_always_alike();
    let mut wrong = Vec::new();
    let lines = KEPT.lines().filter(|line| !line.starts_with('#'));
    for line in lines.clone() {
        let vector = Vector::parse(line);
        let got = harness.columns(&vector.case);
        let mut check = |who: &str, got: &str, kept: &str| {
            if got != kept {
                wrong.push(format!("{who}: {got}\nkept: {kept}\nof {line}\n"));
            }
        };
        check("ours", &got.ours, &vector.amd);
        check("AMD's by the model", &got.amd, &vector.amd);
        check("Intel's by the model", &got.intel, &vector.intel);
        if let Some(maker) = Maker::of_host() {
            let kept = match harness.has_destination_first(&vector.case) {
                true => &got.destination_first,
                false => vector.column(maker),
            };
            check("this host", &got.host, kept);
        }
    }
    assert!(lines.count() > 100, "vectors went missing");
    assert!(
        wrong.is_empty(),
        "{} differ\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

/// Collects cases for the file: some of each form and kind of difference.
pub struct Capture {
    file: String,
    kept: Vec<Case>,
    seen: BTreeMap<String, u32>,
}

/// Cases kept of each form and kind of difference.
const OF_EACH: u32 = 2;
/// Most bytes of memory a case may bring along.
const MOST_BYTES: usize = 120;

impl Capture {
    /// If the environment asks for it.
    pub fn from_environment() -> Option<Self> {
        Some(Self {
            file: std::env::var("TANDEM_DIFFERENTIAL_CAPTURE").ok()?,
            kept: Vec::new(),
            seen: BTreeMap::new(),
        })
    }

    /// Looks at a case of which ours made `ours`; `template` is memory before it, but for its own words.
    pub fn look(&mut self, case: &Case, ours: &Ending, template: &[u8]) {
        if breaks_off_halfway(case) {
            return;
        }
        let intel = Maker::Intel.expected(case, ours, template);
        let mask = flag_mask(case);
        let mut kinds = String::new();
        for (n, name) in NAMES.iter().enumerate() {
            if intel.outcome.state.regs[n] != ours.state.regs[n] {
                kinds += name;
            }
        }
        let vectors = [intel.outcome.fault, ours.fault].map(|fault| fault.map(|f| f.vector));
        if intel.outcome.fault != ours.fault {
            let _ = write!(kinds, "{vectors:?}");
        }
        if (intel.outcome.state.flags ^ ours.state.flags) & mask != 0 {
            kinds += "flags";
        }
        if !intel.writes.is_empty() {
            kinds += "memory";
        }
        if kinds.is_empty() {
            return;
        }
        let kind = format!("{} {:?} {kinds}", case.bitness, case.instruction.code());
        let alone = stands_alone(case, ours, template);
        let count = self.seen.entry(kind).or_default();
        if *count < OF_EACH
            && alone
                .pokes
                .iter()
                .map(|(_, bytes)| bytes.len())
                .sum::<usize>()
                <= MOST_BYTES
        {
            *count += 1;
            self.kept.push(alone);
        }
    }

    /// Adds the lines to the file.
    pub fn write(self, harness: &mut Harness) {
        harness.fill_always_alike();
        let mut text = String::new();
        for case in &self.kept {
            let columns = harness.columns(case);
            let (amd, intel) = match Maker::of_host() {
                Some(Maker::Amd) => (columns.host, columns.intel),
                Some(Maker::Intel) => (columns.amd, columns.host),
                None => (columns.amd, columns.intel),
            };
            if amd != intel {
                let _ = writeln!(text, "{} | {amd} | {intel}", first_column(case));
            }
        }
        let mut file = std::fs::File::options()
            .append(true)
            .create(true)
            .open(&self.file)
            .expect("the file can be written");
        std::io::Write::write_all(&mut file, text.as_bytes()).expect("the file can be written");
    }
}

/// The case with all memory that matters to it among its own words.
fn stands_alone(case: &Case, ours: &Ending, template: &[u8]) -> Case {
    let i = &case.instruction;
    let mut windows = Vec::new();
    for n in 0..i.op_count() {
        let size = i.memory_size().size() as u64;
        match i.op_kind(n) {
            OpKind::Memory => windows.push((makers::place(case, n), size)),
            OpKind::MemorySegRSI | OpKind::MemorySegESI => {
                windows.push(string_window(case, ours, 6, size));
            }
            OpKind::MemoryESRDI | OpKind::MemoryESEDI => {
                windows.push(string_window(case, ours, 7, size));
            }
            _ => {}
        }
    }
    let mut alone = case.clone();
    alone.pokes.clear();
    for (address, len) in windows {
        let end = address.saturating_add(len).min(ARENA + ARENA_ALL);
        let start = address.max(ARENA);
        if start < end {
            let bytes = makers::was(case, template, start, (end - start) as usize);
            alone.pokes.push((start, bytes.expect("in the arena")));
        }
    }
    alone
}

/// What a string instruction has looked at through index register `register`, and the next element.
fn string_window(case: &Case, ours: &Ending, register: usize, size: u64) -> (u64, u64) {
    let mask = if makers::narrow(case) {
        0xffff_ffff
    } else {
        u64::MAX
    };
    let (first, next) = (
        case.state.regs[register] & mask,
        ours.state.regs[register] & mask,
    );
    (first.min(next), first.abs_diff(next).saturating_add(size))
}

/// The line's part before the outcomes.
fn first_column(case: &Case) -> String {
    let mut text = format!("{} {}", case.bitness, hex(&case.bytes));
    for (name, value) in NAMES.iter().zip(case.state.regs) {
        if value != 0 {
            let _ = write!(text, " {name}={value:x}");
        }
    }
    let _ = write!(text, " flags={:x}", case.state.flags);
    for (address, bytes) in &case.pokes {
        let _ = write!(text, " m@{address:x}={}", hex(bytes));
    }
    text
}
