//! `--at POINT`: one place in a replay, and what is there.

use super::kernel;
use super::travel::{Place, Travel};
use crate::failure::{Failure, Outcome};
use replay::replayer::describe;
use replay::{Base, Clock, ClockKind, LogIndex};
use serde::Serialize;
use std::str::FromStr;
use vmm::engine::Engine;
use vmm::soft::looking::{Debuggable, Line};
use vmm::state::CpuState;

/// Instructions shown.
const LINES: usize = 8;

/// A point in a replay, as the command line has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// Where the log's clock first reads this, or more.
    Clock(Clock),
    /// Where this entry was just replayed.
    Entry(LogIndex),
    /// The last instruction.
    End,
}

impl FromStr for Point {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |digits: &str| {
            digits
                .parse()
                .map_err(|_| format!("'{text}' is no point: a clock value, entry:N, or end"))
        };
        match text.strip_prefix("entry:") {
            Some(digits) => number(digits).map(|n| Self::Entry(LogIndex(n))),
            None if text == "end" => Ok(Self::End),
            None => number(text).map(|n| Self::Clock(Clock(n))),
        }
    }
}

impl std::fmt::Display for Point {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Clock(clock) => write!(f, "{clock}"),
            Self::Entry(index) => write!(f, "entry:{index}"),
            Self::End => f.write_str("end"),
        }
    }
}

impl Point {
    /// That it is in a log that begins at `base`.
    ///
    /// # Errors
    /// If the log begins behind it.
    pub fn check(self, base: &Base) -> Outcome {
        let is_before = match self {
            Self::Clock(clock) => clock < base.clock,
            Self::Entry(index) => index < base.index,
            Self::End => false,
        };
        if !is_before {
            return Ok(());
        }
        let Base { index, clock, .. } = base;
        Err(Failure::new(format!(
            "the log begins at entry {index}, clock {clock}, behind that point"
        )))
    }
}

/// Takes `travel`, through a log that begins at `base`, to `point`.
///
/// # Errors
/// If the log begins behind it, or the replay ends before.
pub fn go(travel: &mut Travel, base: &Base, point: Point) -> Outcome {
    let poll = &mut || false;
    point.check(base)?;
    match point {
        Point::Clock(clock) => travel.to_clock(clock, poll),
        Point::Entry(index) => travel.to_entry(index, poll),
        Point::End => travel.run_to(u64::MAX, poll).map(drop),
    }
}

/// What is at a place.
#[derive(Serialize)]
pub struct View {
    clock: u64,
    clock_kind: ClockKind,
    /// Instructions executed before it.
    instructions: u64,
    /// Index of the entry to be replayed next.
    next_entry: u64,
    registers: serde_json::Map<String, serde_json::Value>,
    /// By how much a Linux kernel is moved from where it was linked to, if one is mapped.
    kernel_offset: Option<String>,
    disassembly: Vec<Line>,
    /// The last entries replayed, then the next.
    entries: Vec<String>,
    /// Why the replay cannot go on from here, if it was seen to fail.
    error: Option<String>,
    seconds: f64,
}

impl View {
    /// What is where `travel` is, after `seconds`.
    #[must_use]
    pub fn new(travel: &Travel, seconds: f64) -> Self {
        let (engine, replayer) = (travel.engine(), travel.replayer());
        let Place { steps, .. } = travel.place();
        let index = replayer.index();
        let mut entries: Vec<String> = replayer.last().map(str::to_owned).collect();
        entries.extend(replayer.next_entry().map(|next| describe(index, next)));
        let named = named(&engine.view()).into_iter();
        Self {
            clock: engine.clock().0,
            clock_kind: travel.clock_kind(),
            instructions: steps,
            next_entry: index.0,
            registers: named
                .map(|(name, value)| (name, format!("{value:#x}").into()))
                .collect(),
            kernel_offset: kernel::offset(engine).map(|offset| format!("{offset:#x}")),
            disassembly: engine.disassemble(LINES),
            entries,
            error: travel.result().and_then(|r| r.clone().err()),
            seconds,
        }
    }

    /// Prints it for people.
    pub fn print(&self, travel: &Travel) {
        crate::sayln!(
            "clock {} ({}), {} instructions, before entry {}",
            self.clock,
            self.clock_kind,
            self.instructions,
            self.next_entry
        );
        for row in named(&travel.engine().view()).chunks(4) {
            let row: Vec<String> = row
                .iter()
                .map(|(name, value)| format!("{name:>7} {value:016x}"))
                .collect();
            crate::sayln!("{}", row.join(" "));
        }
        if let Some(offset) = kernel::offset(travel.engine()) {
            crate::sayln!("{}", kernel::words(offset));
        }
        crate::sayln!("");
        for line in &self.disassembly {
            let bytes: Vec<String> = line.bytes.iter().map(|b| format!("{b:02x}")).collect();
            crate::sayln!("{:#18x}  {:<24} {}", line.rip, bytes.join(" "), line.text);
        }
        crate::sayln!("");
        for (n, entry) in self.entries.iter().enumerate() {
            let next = travel.replayer().next_entry().is_some() && n + 1 == self.entries.len();
            crate::sayln!("{} {entry}", if next { "    next" } else { "replayed" });
        }
        if let Some(error) = &self.error {
            crate::sayln!("\nthe replay goes no further: {error}");
        }
    }
}

/// Registers by name.
fn named(state: &CpuState) -> Vec<(String, u64)> {
    const GENERAL: [&str; 8] = ["rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp"];
    const SEGMENTS: [&str; 8] = ["cs", "ds", "es", "fs", "gs", "ss", "tr", "ldtr"];
    let mut all: Vec<(String, u64)> = Vec::new();
    for (n, value) in state.general.iter().enumerate() {
        let name = GENERAL.get(n).map_or(format!("r{n}"), |n| (*n).to_owned());
        all.push((name, *value));
    }
    let [cr0, cr2, cr3, cr4, _] = state.control;
    let rest = [("rip", state.rip), ("rflags", state.rflags)];
    all.extend(rest.map(|(name, value)| (name.to_owned(), value)));
    for (name, segment) in SEGMENTS.iter().zip(&state.segments) {
        all.push(((*name).to_owned(), segment.selector.into()));
        if ["fs", "gs"].contains(name) {
            all.push((format!("{name}_base"), segment.base));
        }
    }
    let control = [
        ("cr0", cr0),
        ("cr2", cr2),
        ("cr3", cr3),
        ("cr4", cr4),
        ("efer", state.efer),
    ];
    all.extend(control.map(|(name, value)| (name.to_owned(), value)));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_clocks_entries_or_the_end() {
        assert_eq!("17".parse(), Ok(Point::Clock(Clock(17))));
        assert_eq!("entry:3".parse(), Ok(Point::Entry(LogIndex(3))));
        assert_eq!("end".parse(), Ok(Point::End));
        for point in ["17", "entry:3", "end"] {
            assert_eq!(point.parse::<Point>().unwrap().to_string(), point);
        }
        for wrong in ["", "entry:", "entry:x", "-1", "End"] {
            assert!(wrong.parse::<Point>().is_err(), "{wrong}");
        }
    }
}
