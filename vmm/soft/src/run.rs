//! Running: blocks, exact stops, exceptions, exits.

use crate::block::{Block, Blocks, Place};
use crate::cpu::Cpu;
use crate::decode::Features;
use crate::flags;
use crate::memory::Physical;
use crate::model::Model;
use crate::op::slot;
use crate::trap::{Access, Cause, Exception, vector};
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
    /// The processor.
    pub cpu: Cpu,
    blocks: Blocks,
}

impl Soft {
    /// A processor over `physical` memory, everything zero.
    #[must_use]
    pub fn new(physical: Physical, model: Model) -> Self {
        let blocks = Blocks::new(Features::of(&model));
        Self {
            cpu: Cpu::new(physical, model),
            blocks,
        }
    }

    /// Answers the read the last run ended with.
    pub fn answer(&mut self, value: u64) {
        self.cpu.outside.answer(value);
    }

    /// Somebody else wrote to physical page number `page`.
    pub fn page_written(&mut self, page: u64) {
        if self.cpu.physical.has_code(page * crate::memory::PAGE) {
            self.blocks.invalidate(&mut self.cpu, page);
        }
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

    /// Runs until the clock reads `until`, an exit, or `kick`.
    ///
    /// Each retired instruction counts one on the clock (for REP see [`crate::Cpu`]'s string
    /// instructions). Whoever handles an exit may add to the clock.
    pub fn run(&mut self, until: u64, kick: &AtomicBool) -> Exit {
        if let Some(write) = self.cpu.outside.posted.pop_front() {
            return Exit::Write(write);
        }
        // The instruction that waited for an answer ends first, then the interrupt is taken.
        if self.cpu.outside.is_answered() {
            if let Some(exit) = self.step_alone() {
                return exit;
            }
        }
        if let Some(vector) = self.cpu.pending_interrupt.take() {
            if self.cpu.deliver_interrupt(vector).is_err() {
                return Exit::TripleFault;
            }
        }
        loop {
            if self.cpu.clock >= until {
                return Exit::Stopped;
            }
            if kick.load(Ordering::Relaxed) {
                return Exit::Kicked;
            }
            if let Some(exit) = self.block(until) {
                return exit;
            }
        }
    }

    /// Carries out the instruction at RIP and delivers nothing: for tests of single instructions.
    ///
    /// # Errors
    /// Why it did not retire.
    #[doc(hidden)]
    pub fn step(&mut self) -> Result<(), Cause> {
        loop {
            let Ok(place) = self.blocks.find(&mut self.cpu) else {
                return Err(self.cpu.cause);
            };
            let op = self.blocks.get(place).ops[0];
            let cpu = &mut self.cpu;
            cpu.set_slot(slot::BLOCK, cpu.rip);
            cpu.next_rip = cpu.rip.wrapping_add(op.len.into());
            cpu.outside.start();
            if (op.run)(cpu, &op).is_ok() {
                cpu.clock += 1;
                cpu.rip = cpu.next_rip;
                return Ok(());
            }
            match cpu.cause {
                Cause::CodeWrite(page) => self.blocks.invalidate(cpu, page),
                cause => return Err(cause),
            }
        }
    }

    /// Runs one block, or as much of it as `until` allows.
    #[inline(always)]
    fn block(&mut self, until: u64) -> Option<Exit> {
        let place = match self.blocks.find(&mut self.cpu) {
            Ok(place) => place,
            Err(_) => return self.trapped(),
        };
        let block = self.blocks.get(place);
        let cpu = &mut self.cpu;
        let mut allowed = until - cpu.clock;
        let single = cpu.shadow || cpu.system_flags & flags::TF != 0;
        if single {
            allowed = 1;
            cpu.shadow = false;
        }
        cpu.set_slot(slot::BLOCK, cpu.rip);
        if allowed < block.ops.len() as u64 {
            return self.part(place, allowed as usize);
        }
        cpu.next_rip = cpu.rip.wrapping_add(block.bytes);
        for (n, op) in block.ops.iter().enumerate() {
            if (op.run)(cpu, op).is_err() {
                return self.broken_off(n, place);
            }
        }
        let cpu = &mut self.cpu;
        cpu.clock += block.ops.len() as u64;
        cpu.rip = cpu.next_rip;
        if single {
            return self.single();
        }
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
        self.cpu.clock += count as u64;
        self.cpu.rip = self.cpu.next_rip;
        self.single()
    }

    /// After an instruction carried out by itself: the interrupt shadow ends, the trap flag traps.
    fn single(&mut self) -> Option<Exit> {
        let cpu = &mut self.cpu;
        let _ = cpu;
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
        if cpu.cause == Cause::Halt {
            cpu.clock += 1;
            cpu.rip = cpu.rip.wrapping_add(op.len.into());
        }
        self.trapped()
    }

    /// The instruction at RIP did not retire.
    fn trapped(&mut self) -> Option<Exit> {
        match self.cpu.cause {
            Cause::Exception(exception) => self.except(exception),
            Cause::CodeWrite(page) => {
                self.blocks.invalidate(&mut self.cpu, page);
                None
            }
            Cause::Access(access) if access.value.is_none() => Some(Exit::Read(access)),
            Cause::Access(_) => self.step_alone(),
            Cause::Halt => {
                self.cpu.halted = true;
                Some(Exit::Halt)
            }
            Cause::TripleFault => Some(Exit::TripleFault),
            Cause::Unimplemented => Some(Exit::Unimplemented),
        }
    }

    fn except(&mut self, exception: Exception) -> Option<Exit> {
        debug_assert!(exception.vector != vector::DF || exception.error == Some(0));
        match self.cpu.deliver_exception(exception) {
            Ok(()) => None,
            Err(_) => Some(Exit::TripleFault),
        }
    }

    /// Carries out the instruction at RIP by itself: its answers are there, its writes may be posted.
    fn step_alone(&mut self) -> Option<Exit> {
        loop {
            let place = match self.blocks.find(&mut self.cpu) {
                Ok(place) => place,
                Err(_) => return self.trapped(),
            };
            let block = self.blocks.get(place);
            let cpu = &mut self.cpu;
            let op = block.ops[0];
            cpu.set_slot(slot::BLOCK, cpu.rip);
            cpu.next_rip = cpu.rip.wrapping_add(op.len.into());
            cpu.outside.start();
            cpu.outside.posting = true;
            let result = (op.run)(cpu, &op);
            cpu.outside.posting = false;
            if result.is_err() {
                if let Cause::CodeWrite(page) = cpu.cause {
                    cpu.outside.posted.clear();
                    self.blocks.invalidate(cpu, page);
                    continue;
                }
                if !matches!(cpu.cause, Cause::Access(_)) {
                    cpu.outside.commit();
                }
                return self.trapped();
            }
            cpu.outside.commit();
            cpu.clock += 1;
            cpu.rip = cpu.next_rip;
            return cpu.outside.posted.pop_front().map(Exit::Write);
        }
    }
}
