//! How many instructions were executed where: stacks, each with a number.

use super::symbols::Symbols;
use crate::failure::Outcome;
use crate::look::protobuf::Message;
use crate::look::witness::Sheet;
use std::collections::{BTreeMap, HashMap};
use std::io::Write;

/// What ran, from the innermost out.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Stack {
    task: String,
    /// A program ran, and not the kernel.
    program: bool,
    callers: Vec<u64>,
}

/// Stacks, and how often each was seen.
#[derive(Default)]
pub struct Profile {
    stacks: BTreeMap<Stack, u64>,
    every: u64,
}

/// Fields of a profile and its parts (github.com/google/pprof, proto/profile.proto).
mod field {
    pub const SAMPLE_TYPE: u64 = 1;
    pub const SAMPLE: u64 = 2;
    pub const LOCATION: u64 = 4;
    pub const FUNCTION: u64 = 5;
    pub const STRINGS: u64 = 6;
    pub const PERIOD_TYPE: u64 = 11;
    pub const PERIOD: u64 = 12;
    /// Of a type: what is counted, and in what.
    pub const TYPE: u64 = 1;
    pub const UNIT: u64 = 2;
    /// Of a sample: locations, the innermost first, and values.
    pub const LOCATIONS: u64 = 1;
    pub const VALUES: u64 = 2;
    /// Of a location and of a function: its number.
    pub const ID: u64 = 1;
    /// Of a location: a line, which is of a function.
    pub const LINE: u64 = 4;
    pub const LINE_FUNCTION: u64 = 1;
    /// Of a function.
    pub const NAME: u64 = 2;
}

impl Profile {
    /// A sample that stands for `every` instructions: of `task`, in a program or in the kernel's functions `callers`.
    pub fn add(&mut self, task: &str, program: bool, callers: &[u64], every: u64) {
        self.every = every;
        let stack = Stack {
            task: task.to_owned(),
            program,
            callers: callers.to_vec(),
        };
        *self.stacks.entry(stack).or_default() += 1;
    }

    /// How many there are.
    pub fn samples(&self) -> u64 {
        self.stacks.values().sum()
    }

    /// Instructions by named stack, the outermost first.
    fn named(&self, symbols: &Symbols) -> BTreeMap<Vec<String>, u64> {
        let mut named = BTreeMap::<_, u64>::new();
        for (stack, samples) in &self.stacks {
            *named.entry(stack.names(symbols)).or_default() += samples * self.every;
        }
        named
    }

    /// Functions by the samples they were the innermost of, most first.
    pub fn functions(&self, symbols: &Symbols) -> Vec<(String, u64)> {
        let mut by_name = BTreeMap::<String, u64>::new();
        for (stack, samples) in &self.stacks {
            let name = match stack.program {
                true => format!("{} (program)", stack.task),
                false => stack.names(symbols).pop().unwrap_or_default(),
            };
            *by_name.entry(name).or_default() += samples;
        }
        let mut functions: Vec<(String, u64)> = by_name.into_iter().collect();
        functions.sort_by_key(|(_, samples)| std::cmp::Reverse(*samples));
        functions
    }

    /// Writes a line for each stack, as flame graphs are made of: its functions, the outermost first, and instructions.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write_folded(&self, symbols: &Symbols, sheet: &mut Sheet<impl Write>) -> Outcome {
        for (names, instructions) in self.named(symbols) {
            let line = format!("{} {instructions}\n", names.join(";"));
            sheet.write(line.as_bytes());
        }
        sheet.finish()
    }

    /// Writes it for pprof.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write_pprof(
        &self,
        symbols: &Symbols,
        every: u64,
        sheet: &mut Sheet<impl Write>,
    ) -> Outcome {
        sheet.write(self.pprof(symbols, every).encoded());
        sheet.finish()
    }

    fn pprof(&self, symbols: &Symbols, every: u64) -> Message {
        let mut strings = Strings::default();
        strings.number("");
        let mut kind = || {
            Message::new()
                .number(field::TYPE, strings.number("instructions"))
                .number(field::UNIT, strings.number("count"))
        };
        let mut profile = Message::new()
            .message(field::SAMPLE_TYPE, &kind())
            .message(field::PERIOD_TYPE, &kind())
            .number(field::PERIOD, every);
        let mut functions = Strings::default();
        for (names, instructions) in self.named(symbols) {
            let ids: Vec<u64> = names
                .iter()
                .rev()
                .map(|name| functions.number(name) + 1)
                .collect();
            let sample = Message::new()
                .numbers(field::LOCATIONS, ids)
                .numbers(field::VALUES, [instructions]);
            profile = profile.message(field::SAMPLE, &sample);
        }
        for (id, name) in (1..).zip(&functions.all) {
            let line = Message::new().number(field::LINE_FUNCTION, id);
            let location = Message::new()
                .number(field::ID, id)
                .message(field::LINE, &line);
            let function = Message::new()
                .number(field::ID, id)
                .number(field::NAME, strings.number(name));
            profile = profile
                .message(field::LOCATION, &location)
                .message(field::FUNCTION, &function);
        }
        for text in &strings.all {
            profile = profile.text(field::STRINGS, text);
        }
        profile
    }
}

impl Stack {
    /// Its names, the outermost first: the task, then the kernel's functions, or that it is a program.
    fn names(&self, symbols: &Symbols) -> Vec<String> {
        // No name may have what parts them in a file, or what a terminal obeys.
        let mut names = vec![plain(&self.task)];
        if self.program {
            names.push("(program)".to_owned());
        }
        let (innermost, outer) = match self.callers.split_first() {
            Some((innermost, outer)) => (Some(innermost), outer),
            None => (None, &[][..]),
        };
        let name = |at: u64| symbols.name(at).map_or("(unknown)".to_owned(), plain);
        // A call may be the last of its function: where it returns to is another.
        names.extend(outer.iter().rev().map(|at| name(at - 1)));
        names.extend(innermost.map(|at| name(*at)));
        names
    }
}

/// Texts, each by the number it was first met as.
#[derive(Default)]
struct Strings {
    numbers: HashMap<String, u64>,
    all: Vec<String>,
}

impl Strings {
    fn number(&mut self, text: &str) -> u64 {
        if let Some(number) = self.numbers.get(text) {
            return *number;
        }
        let number = self.all.len() as u64;
        self.numbers.insert(text.to_owned(), number);
        self.all.push(text.to_owned());
        number
    }
}

/// A name that the guest chose, without what parts names in a file of stacks and without control characters.
fn plain(name: &str) -> String {
    name.replace(|c: char| c == ';' || c.is_control(), "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stacks_have_the_outermost_first_and_all_their_instructions() {
        let mut symbols = Symbols::default();
        let at = |n: u64| 0xffff_ffff_8100_0000 + n;
        symbols.extend([(at(0), "outer".into()), (at(0x100), "in;n\x1ber".into())]);
        let mut profile = Profile::default();
        // The call is the last instruction of `outer`.
        profile.add("a;b", false, &[at(0x110), at(0x100)], 10);
        profile.add("a;b", false, &[at(0x120), at(0x80)], 10);
        profile.add("a\nb", true, &[], 10);
        let named = profile.named(&symbols);
        let names = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        assert_eq!(named[&names(&["a_b", "outer", "in_n_er"])], 20);
        assert_eq!(named[&names(&["a_b", "(program)"])], 10);
        assert_eq!(profile.functions(&symbols)[0], ("in_n_er".into(), 2));
        assert_eq!(profile.samples(), 3);
    }
}
