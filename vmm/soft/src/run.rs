//! Running: blocks, exact stops, exceptions, exits.

use crate::block::{Block, Blocks, Place};
use crate::cpu::Cpu;
use crate::decode::Features;
use crate::execute::debug;
use crate::flags;
use crate::memory::Physical;
use crate::model::Model;
use crate::op::slot;
use crate::translate::{Kind, STRETCH, Translator};
use crate::trap::{Access, Cause, Exception, Trap, vector};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, Ordering};

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The clock reached the stop.
    Stopped,
    /// The kick flag was set. The processor stands between two instructions, as at every exit.
    Kicked,
    /// Something outside is read: [`Soft::answer`] comes before the next run. RIP is that of the
    /// instruction that reads.
    Read(Access),
    /// Something outside is written. RIP is that of the next instruction.
    Write(Access),
    /// It halted. RIP is that of the next instruction.
    Halt,
    /// An exception could not be delivered, nor the double fault after it.
    TripleFault,
    /// It executes an instruction that exists and that we lack, or fetches one from where there is no
    /// RAM.
    Unimplemented,
}

/// A processor and its decoded instructions.
pub struct Soft {
    /// The processor. It is large, and translated code has its tables where they are.
    pub cpu: Box<Cpu>,
    pub(crate) blocks: Blocks,
    /// Linear addresses of the instructions that are probed.
    pub(crate) probes: Vec<u64>,
}

impl Soft {
    /// A processor over `physical` memory, everything zero.
    #[must_use]
    pub fn new(physical: Physical, model: Model) -> Self {
        let blocks = Blocks::new(Features::of(&model));
        Self {
            cpu: Box::new(Cpu::new(physical, model)),
            blocks,
            probes: Vec::new(),
        }
    }

    /// From now on runs what is run often as host code, of which at most `bytes` are kept. What the guest does and
    /// what the clock reads stay the same.
    ///
    /// # Errors
    /// If the host has no memory, or lets nobody run what was written.
    pub fn translate(&mut self, bytes: NonZeroUsize) -> std::io::Result<()> {
        self.blocks.set_translator(Translator::new(bytes)?);
        Ok(())
    }

    /// Translates blocks when they run for the `runs`th time: for tests.
    #[doc(hidden)]
    pub fn warm(&mut self, runs: u8) {
        if let Some(translator) = &mut self.blocks.translator {
            translator.warm = runs;
        }
    }

    /// Instructions run as host code so far.
    #[doc(hidden)]
    #[must_use]
    pub fn translated(&self) -> u64 {
        self.blocks.translator.as_ref().map_or(0, |t| t.ran)
    }

    /// Leaves what the last run's instruction has to do outside undone: for tests.
    #[doc(hidden)]
    pub fn drop_access(&mut self) {
        self.cpu.outside = Default::default();
    }

    /// Why the instruction at RIP cannot be executed, for a message.
    #[must_use]
    pub fn describe(&mut self) -> String {
        crate::describe::lacking(&mut self.cpu)
    }

    /// Bytes and disassembly of the instruction at RIP.
    ///
    /// # Errors
    /// Why there is none.
    pub fn instruction(&mut self) -> Result<String, String> {
        crate::describe::instruction(&mut self.cpu)
    }

    /// Whether the instruction that ended the last run has more to do outside: the processor's registers are
    /// not all there is to it.
    #[must_use]
    pub fn is_under_way(&self) -> bool {
        self.cpu.outside.is_answered() || !self.cpu.outside.posted.is_empty()
    }

    /// Bytes and disassembly of the instruction that made the write the last run ended with; `None` if it
    /// is there no more.
    #[must_use]
    pub fn writer(&self) -> Option<String> {
        let (linear, long) = self.cpu.outside.last;
        crate::describe::at(&self.cpu, linear, long)
    }

    /// Answers the read the last run ended with.
    pub fn answer(&mut self, value: u64) {
        self.cpu.outside.answer(value);
    }

    /// Somebody else wrote to physical page number `page`.
    pub fn page_written(&mut self, page: u64) {
        self.cpu.wrote(page * crate::memory::PAGE);
        if self.cpu.physical.has_code(page * crate::memory::PAGE) {
            self.blocks.invalidate(&mut self.cpu, page);
        }
    }

    /// Forgets every translation, as a processor does that was just switched on: the next accesses walk the
    /// guest's tables. Decoded instructions, a mere cache, stay.
    pub fn flush_translations(&mut self) {
        self.cpu.tlb.flush(true);
    }

    /// From now on notes to which of the first `pages` pages of RAM somebody writes; with 0, to none. A
    /// multiple of 64.
    pub fn note_writes(&mut self, pages: u64) {
        self.cpu.note_writes(pages);
    }

    /// The pages written to since this was last asked, or noting began: a bit each, 64 a word, from page 0 on.
    pub fn take_written(&mut self) -> Vec<u64> {
        self.cpu.take_written()
    }

    /// Forgets every translation and every decoded instruction: the state was replaced.
    pub fn forget(&mut self) {
        self.cpu.tlb.flush(true);
        self.blocks.clear(&mut self.cpu);
        self.cpu.outside = Default::default();
    }

    /// Makes the next run take external interrupt `vector` before any other instruction. Only where [`Cpu::interruptible`]. What goes wrong in
    /// delivering it comes out of the next run.
    pub fn interrupt(&mut self, vector: u8) {
        self.cpu.halted = false;
        self.cpu.pending_interrupt = Some(vector);
    }

    /// The interrupt that is to be taken next, if there is one.
    #[must_use]
    pub fn pending_interrupt(&self) -> Option<u8> {
        self.cpu.pending_interrupt
    }

    /// Takes back an interrupt that was not taken yet.
    pub fn forget_interrupt(&mut self) {
        self.cpu.pending_interrupt = None;
    }

    /// Runs until the clock reads `until`, an exit, or `kick`; with `window`, at most until an interrupt can
    /// be taken.
    ///
    /// Each retired instruction counts one on the clock (for REP see [`crate::Cpu`]'s string
    /// instructions), and so does each exception delivered instead of one. Whoever handles an exit may add to the clock.
    pub fn run(&mut self, until: u64, window: bool, kick: &AtomicBool) -> Exit {
        if let Some(exit) = self.settle() {
            return exit;
        }
        loop {
            if self.cpu.clock >= until {
                return Exit::Stopped;
            }
            if kick.load(Ordering::Relaxed) {
                return Exit::Kicked;
            }
            // Where an interrupt can be taken already, the block that runs is the last.
            let exit = if window && self.cpu.interruptible() {
                self.block(until)
            } else {
                self.stretch(until, window)
            };
            if let Some(exit) = exit {
                return exit;
            }
            // Whatever lets interrupts in ends its block.
            if window && self.cpu.interruptible() {
                return Exit::Stopped;
            }
        }
    }

    /// Carries out the instruction at RIP and delivers nothing: for tests of single instructions.
    ///
    /// # Errors
    /// Why it did not retire.
    #[doc(hidden)]
    pub fn one(&mut self) -> Result<(), Cause> {
        while self.attempt(false, false) == Retirement::Failed {
            match self.cpu.cause {
                Cause::CodeWrite(page) => self.blocks.invalidate(&mut self.cpu, page),
                cause => return Err(cause),
            }
        }
        Ok(())
    }

    /// Does what is left of the instruction that ended the last run, then takes the interrupt handed over.
    pub(crate) fn settle(&mut self) -> Option<Exit> {
        if let Some(write) = self.cpu.outside.posted.pop_front() {
            return Some(Exit::Write(write));
        }
        // The instruction that waited for an answer ends first, then the interrupt is taken.
        if self.cpu.outside.is_answered()
            && let Some(exit) = self.single(true, true)
        {
            return Some(exit);
        }
        let vector = self.cpu.pending_interrupt.take()?;
        self.deliver(|cpu| cpu.deliver_interrupt(vector))
    }

    /// Runs one block, or as much of it as `until` allows.
    #[inline(always)]
    pub(crate) fn block(&mut self, until: u64) -> Option<Exit> {
        if self.cpu.steps() {
            return self.single(false, true);
        }
        match self.blocks.find(&mut self.cpu) {
            Ok(place) => self.interpret(place, until),
            Err(_) => self.trapped(),
        }
    }

    /// As [`Soft::block`], and as many blocks after it as are translated and can be run without looking up, up to
    /// [`STRETCH`] instructions.
    #[inline(always)]
    pub(crate) fn stretch(&mut self, until: u64, window: bool) -> Option<Exit> {
        if self.cpu.steps() {
            return self.single(false, true);
        }
        let place = match self.blocks.find(&mut self.cpu) {
            Ok(place) => place,
            Err(_) => return self.trapped(),
        };
        if let Place::Kept(number) = place
            && let Some(code) = self.blocks.code(&self.cpu, number)
        {
            let left = (until - self.cpu.clock).min(STRETCH);
            if left >= self.blocks.get(place).ops.len() as u64 {
                return self.run_code(code, left, window, until);
            }
        }
        self.interpret(place, until)
    }

    /// Runs translated code for at most `left` instructions, and what it leaves to the interpreter, which goes no
    /// further than `until`.
    fn run_code(&mut self, code: u64, left: u64, window: bool, until: u64) -> Option<Exit> {
        let translator = self.blocks.translator.as_mut().expect("it made the code");
        let record = translator.run(&mut self.cpu, code, left, window);
        let place = Place::Kept(record.block);
        let index = usize::from(record.index);
        match record.kind {
            Kind::Next | Kind::Elsewhere => None,
            // More was to run at once than may: what may is interpreted, once it is fetched: code that leads to an
            // instruction across pages has looked at the first only.
            Kind::Stop => self.block(until),
            Kind::Last if self.cpu.native.retired != 0 => None,
            Kind::Handler | Kind::Last => self.broken_off(index, place),
            Kind::Rest => self.rest(place, index),
        }
    }

    /// Runs a block from instruction `index` on; clock and RIP are still those of its start.
    fn rest(&mut self, place: Place, index: usize) -> Option<Exit> {
        let block = self.blocks.get(place);
        let cpu = &mut self.cpu;
        cpu.set_slot(slot::BLOCK, cpu.rip);
        cpu.next_rip = cpu.rip.wrapping_add(block.bytes);
        for (n, op) in block.ops.iter().enumerate().skip(index) {
            if (op.run)(cpu, op).is_err() {
                return self.broken_off(n, place);
            }
        }
        cpu.clock += block.ops.len() as u64;
        cpu.rip = cpu.next_rip;
        None
    }

    /// Interprets a block, or as much of it as `until` allows.
    #[inline(always)]
    fn interpret(&mut self, place: Place, until: u64) -> Option<Exit> {
        let block = self.blocks.get(place);
        let cpu = &mut self.cpu;
        cpu.set_slot(slot::BLOCK, cpu.rip);
        let allowed = until - cpu.clock;
        if allowed < block.ops.len() as u64 {
            return self.part(place, allowed as usize);
        }
        cpu.next_rip = cpu.rip.wrapping_add(block.bytes);
        for (n, op) in block.ops.iter().enumerate() {
            if (op.run)(cpu, op).is_err() {
                return self.broken_off(n, place);
            }
        }
        cpu.clock += block.ops.len() as u64;
        cpu.rip = cpu.next_rip;
        None
    }

    /// Runs the first `count` instructions of a block.
    #[inline(never)]
    fn part(&mut self, place: Place, count: usize) -> Option<Exit> {
        let block = self.blocks.get(place);
        let cpu = &mut self.cpu;
        let after = &block.ops[count];
        cpu.next_rip = cpu.rip.wrapping_add(u64::from(after.start));
        for (n, op) in block.ops[..count].iter().enumerate() {
            if (op.run)(cpu, op).is_err() {
                return self.broken_off(n, place);
            }
        }
        cpu.clock += count as u64;
        cpu.rip = cpu.next_rip;
        None
    }

    /// Instruction `n` of the block did not retire.
    #[inline(never)]
    fn broken_off(&mut self, n: usize, place: Place) -> Option<Exit> {
        let block: &Block = self.blocks.get(place);
        let cpu = &mut self.cpu;
        cpu.clock += n as u64;
        let op = &block.ops[n];
        cpu.rip = cpu.rip.wrapping_add(op.start.into());
        match cpu.cause {
            Cause::Halt => {
                cpu.clock += 1;
                cpu.rip = cpu.rip.wrapping_add(op.len.into());
            }
            Cause::Stepped => {
                cpu.clock += 1;
                cpu.rip = cpu.next_rip;
            }
            _ => cpu.judge_fault(op),
        }
        self.trapped()
    }

    /// The instruction at RIP did not retire, or did with something to follow.
    fn trapped(&mut self) -> Option<Exit> {
        match self.cpu.cause {
            Cause::Exception(exception) => {
                let exit = self.deliver(|cpu| cpu.deliver_exception(exception));
                // In the place of the instruction that did not retire: a guest that does nothing but fault
                // gets on, too.
                self.cpu.clock += u64::from(exit.is_none());
                exit
            }
            Cause::CodeWrite(page) => {
                self.blocks.invalidate(&mut self.cpu, page);
                self.single(false, false)
            }
            Cause::Access(access) if access.value.is_none() => Some(Exit::Read(access)),
            Cause::Access(_) => self.single(true, true),
            Cause::Stepped => {
                self.cpu.debug[6] |= debug::SINGLE_STEP;
                self.deliver(|cpu| cpu.deliver_exception(Exception::plain(vector::DB)))
            }
            Cause::Halt => {
                self.cpu.halted = true;
                Some(Exit::Halt)
            }
            Cause::TripleFault => Some(Exit::TripleFault),
            Cause::Unimplemented => Some(Exit::Unimplemented),
        }
    }

    /// Delivers an interrupt or exception, dropping the instructions its frame is written over.
    fn deliver(&mut self, body: impl Fn(&mut Cpu) -> Result<(), Trap>) -> Option<Exit> {
        loop {
            if body(&mut self.cpu).is_ok() {
                return None;
            }
            match self.cpu.cause {
                Cause::CodeWrite(page) => self.blocks.invalidate(&mut self.cpu, page),
                Cause::TripleFault => return Some(Exit::TripleFault),
                // Tables or stacks in device memory, too.
                _ => return Some(Exit::Unimplemented),
            }
        }
    }

    /// Carries out the instruction at RIP by itself, with all that can follow one instruction: the end of
    /// an interrupt shadow, the single-step trap, breakpoints.
    ///
    /// `post`: its writes to the outside may be posted. `keep`: it may be kept decoded; not so if it is to
    /// write over itself.
    fn single(&mut self, post: bool, mut keep: bool) -> Option<Exit> {
        let touched = if self.cpu.watches_data() {
            self.data_hits()
        } else {
            0
        };
        let cpu = &mut self.cpu;
        let (shadow, before) = (cpu.shadow, cpu.system_flags);
        if before & flags::RF == 0 && cpu.at_breakpoint() {
            return self.deliver(|cpu| cpu.deliver_exception(Exception::plain(vector::DB)));
        }
        let outcome = loop {
            let outcome = self.attempt(post, keep);
            let cpu = &mut self.cpu;
            if outcome != Retirement::Failed {
                break outcome;
            }
            cpu.shadow = shadow;
            cpu.system_flags |= before & flags::RF;
            if let Cause::CodeWrite(page) = cpu.cause {
                self.blocks.invalidate(cpu, page);
                keep = false;
                continue;
            }
            if !matches!(cpu.cause, Cause::Access(_)) {
                cpu.outside.commit();
            }
            return self.trapped();
        };
        let cpu = &mut self.cpu;
        cpu.outside.commit();
        let traced = before & flags::TF != 0 && !std::mem::take(&mut cpu.untraced);
        let mut hits = touched;
        if traced || outcome == Retirement::Stepped {
            hits |= debug::SINGLE_STEP;
        }
        if hits != 0 {
            cpu.debug[6] |= hits;
            let exit = self.deliver(|cpu| cpu.deliver_exception(Exception::plain(vector::DB)));
            if exit.is_some() {
                return exit;
            }
        } else if outcome == Retirement::Halted {
            cpu.halted = true;
            return Some(Exit::Halt);
        }
        self.cpu.outside.posted.pop_front().map(Exit::Write)
    }

    /// Tries the instruction at RIP.
    fn attempt(&mut self, post: bool, keep: bool) -> Retirement {
        let found = if keep {
            self.blocks.find(&mut self.cpu)
        } else {
            self.blocks.one(&mut self.cpu)
        };
        let Ok(place) = found else {
            return Retirement::Failed;
        };
        let op = self.blocks.get(place).ops[0];
        let cpu = &mut self.cpu;
        cpu.outside.last = (cpu.linear_rip(), cpu.long_code);
        cpu.set_slot(slot::BLOCK, cpu.rip);
        cpu.next_rip = cpu.rip.wrapping_add(op.len.into());
        cpu.shadow = false;
        cpu.untraced = false;
        cpu.system_flags &= !flags::RF;
        cpu.outside.start();
        cpu.outside.posting = post;
        let result = (op.run)(cpu, &op);
        cpu.outside.posting = false;
        let outcome = match (result, cpu.cause) {
            (Ok(()), _) => Retirement::Retired,
            (_, Cause::Halt) => Retirement::Halted,
            (_, Cause::Stepped) => Retirement::Stepped,
            _ => {
                cpu.outside.posted.clear();
                cpu.judge_fault(&op);
                return Retirement::Failed;
            }
        };
        cpu.clock += 1;
        cpu.rip = cpu.next_rip;
        outcome
    }
}

/// What became of one instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Retirement {
    /// It retired.
    Retired,
    /// It retired, and the processor halts.
    Halted,
    /// It retired, and a single-step trap follows.
    Stepped,
    /// It did not retire: [`Cpu::cause`] says why.
    Failed,
}
