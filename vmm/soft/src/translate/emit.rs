//! Writing a trace: the frame around its instructions, registers, memory operands.
//!
//! ```text
//!  sub left, length ── jc ──────────────────────────▶ Stop
//!  load the two registers this trace uses most
//!  instruction: code of its own, or a call of its handler
//!     memory operand ── not in the TLB ─▶ handler ──▶ back behind the instruction
//!                                           └ did not retire ─▶ out
//!     branch the other way ─▶ the next block, if that is translated
//!  jump to the next block, or round again
//! ```
//!
//! What is rarely run lies behind: [`super::cold`]. Between traces, and whenever a handler may run, the guest's flags
//! are in [`super::state::Native::flags`]; [`super::pending`] tells where they are meanwhile.

use super::asm::*;
use super::cold::{Cold, Exit, Shut};
use super::pending::{Pending, State};
use super::plan::{Address, Arg, Plan, Work};
use super::state::{self, FREE, Kind, Record, field, pinned, slot_at};
use super::thunks::{self, Jump, Thunks};
use super::trace::{Part, Then, Trace};
use crate::memory::{ENTRIES, Entry, Mode, Window};
use crate::op::slot;
use std::mem::offset_of;

/// How often a trace names a register that is worth loading it once.
const WORTH: u32 = 3;

/// A trace being written.
pub(super) struct Emit<'a> {
    pub asm: Asm,
    trace: &'a Trace<'a>,
    /// With whose rights it runs.
    mode: Mode,
    pub thunks: Thunks,
    /// Where the code of another block of this page is, by its physical address.
    known: &'a dyn Fn(u64) -> Option<u64>,
    /// The block being written, and its instruction.
    step: usize,
    at: usize,
    pub flags: State,
    /// Whether somebody sees the flags after this instruction.
    pub live: bool,
    /// Checks of this instruction that lead to its handler.
    pub checks: Vec<Hole>,
    /// Looks of this instruction through the window on the stack.
    pub shut: Vec<Shut>,
    /// What this instruction put in the stash, which its handler does not.
    pub stashed: Option<(Mem, Pending)>,
    pub cold: Vec<Cold>,
    /// Guest registers in [`FREE`].
    free: [Option<u8>; FREE.len()],
    /// Which of them have changed since they were loaded, a bit each.
    pub dirty: u8,
    /// Whether SSE was found to be allowed.
    pub sse: bool,
    /// Whether the host heeds the guest's MXCSR.
    pub float: bool,
    /// Where the trace's code begins.
    entry: u64,
    /// What goes round: where it begins, and how things are there.
    round: Option<(u64, State, bool)>,
}

impl<'a> Emit<'a> {
    /// The code of `trace` for `mode`, to run at `base`. `known` says where another block of this page is.
    pub fn trace(
        trace: &'a Trace<'a>,
        mode: Mode,
        thunks: Thunks,
        base: u64,
        known: &'a dyn Fn(u64) -> Option<u64>,
    ) -> Vec<u8> {
        let mut emit = Self {
            asm: Asm::new(base),
            trace,
            mode,
            thunks,
            known,
            step: 0,
            at: 0,
            flags: State::SAVED,
            live: true,
            checks: Vec::new(),
            shut: Vec::new(),
            stashed: None,
            cold: Vec::new(),
            free: used_most(trace),
            dirty: 0,
            sse: false,
            float: false,
            entry: base,
            round: None,
        };
        emit.charge();
        emit.load_free();
        let live = emit.live_after();
        for (step, live) in live.into_iter().enumerate() {
            emit.step = step;
            if emit.trace.again == Some(step) {
                emit.begin_round();
            }
            if !emit.block(&live) {
                break;
            }
        }
        emit.end();
        emit.asm.bytes().to_vec()
    }

    /// The block being written.
    pub fn part(&self) -> &'a Part<'a> {
        self.trace.part(self.step)
    }

    /// The block's first byte in its page.
    pub fn start(&self) -> i64 {
        self.part().start()
    }

    /// The byte behind the block.
    pub fn behind(&self) -> i64 {
        self.start() + self.part().block.bytes as i64
    }

    /// How the trace goes on behind the block.
    pub fn then(&self) -> Then {
        self.trace.then(self.step)
    }

    /// The step behind all those whose instructions were counted together with this one's.
    fn counted_to(&self) -> usize {
        match self.trace.again {
            Some(again) if self.step < again => again,
            _ => self.trace.len(),
        }
    }

    /// Counts the instructions from here to where they are counted again.
    fn charge(&mut self) {
        let count = self.trace.count(self.step, self.counted_to());
        self.at = 0;
        self.asm.alu_value(5, 8, field!(native.left), count);
        let from = self.asm.jump_if(2);
        let mut cold = self.cold(from, Exit::Leave(self.record(Kind::Stop)));
        // Not even this block was begun.
        cold.credit = count;
        self.cold.push(cold);
    }

    /// Instructions that were counted and are behind this block.
    fn credit(&self) -> i32 {
        self.trace.count(self.step + 1, self.counted_to())
    }

    /// For each instruction, whether somebody sees the flags it leaves.
    fn live_after(&self) -> Vec<Vec<bool>> {
        let mut live = true;
        let mut all: Vec<Vec<bool>> = (0..self.trace.len())
            .rev()
            .map(|step| {
                // Where a round begins, a run may stop.
                live |= self.trace.again == Some(step + 1);
                let goes_on = self.trace.then(step) != Then::Ends;
                let plans = self.trace.part(step).plans.iter().rev();
                let mut after: Vec<bool> = plans
                    .map(|plan| {
                        let after = live;
                        let jumps = goes_on && matches!(plan.work, Work::Jump { .. });
                        let leaves = plan.leaves && !jumps;
                        live = plan.flags.reads || leaves || plan.flags.keeps && live;
                        after
                    })
                    .collect();
                // It may be left before it is begun, and then somebody sees them.
                live |= self.trace.part(step).block.second.is_some();
                after.reverse();
                after
            })
            .collect();
        all.reverse();
        all
    }

    /// One block; whether another follows.
    fn block(&mut self, live: &[bool]) -> bool {
        if let Some(second) = self.part().block.second {
            self.fetch(second);
        }
        for (at, live) in live.iter().enumerate() {
            (self.at, self.live) = (at, *live);
            let plan = self.part().plans[at];
            if matches!(plan.work, Work::Rest) {
                let is_last = at + 1 == self.part().plans.len();
                let record = self.record(if is_last { Kind::Last } else { Kind::Rest });
                let from = self.asm.jump();
                let cold = self.cold(from, Exit::Leave(record));
                self.cold.push(cold);
                return false;
            }
            self.instruction(&plan);
        }
        if self.step + 1 < self.trace.len() {
            return true;
        }
        let ends = self.part().plans.last().is_some_and(|plan| plan.ends);
        match self.then() {
            Then::Ends if ends => {}
            Then::Ends => {
                self.settle();
                self.go_to(self.behind());
            }
            _ => self.end_round(),
        }
        false
    }

    /// Leaves unless the instruction TLB has the page behind this one at physical address `second`, where the block's
    /// one instruction goes on. Whoever comes here next fetches it.
    fn fetch(&mut self, second: u64) {
        self.at = 0;
        self.spill_flags();
        self.asm.load(8, RAX, field!(native.page));
        self.asm.alu_value(0, 8, RAX, 4096);
        let unknown = thunks::code_entry(&mut self.asm, self.mode, RAX, RAX);
        self.asm.set(RAX, second);
        self.asm.alu(7, 8, RAX, Mem::at(R10, 8));
        let elsewhere = self.asm.jump_if(5);
        let mut record = self.record(Kind::Next);
        record.target = self.start();
        let mut cold = self.cold(unknown, Exit::Leave(record));
        cold.from.push(elsewhere);
        // Not even this block was begun.
        cold.credit = self.trace.count(self.step, self.counted_to());
        self.cold.push(cold);
    }

    /// Where a round begins.
    fn begin_round(&mut self) {
        self.spill_flags();
        for step in self.step..self.trace.len() {
            for plan in &self.trace.part(step).plans {
                self.note_written(plan.written());
            }
        }
        self.round = Some((self.asm.here(), self.flags, self.float));
        self.charge();
    }

    /// Round again, if all is as it was there; else as if the trace were entered.
    fn end_round(&mut self) {
        let (label, flags, float) = self.round.expect("it was begun");
        self.spill_flags();
        if !float {
            self.end_float();
        }
        if (self.flags, self.float) == (flags, float) {
            self.asm.jump_to(label);
        } else {
            self.settle();
            self.asm.jump_to(self.entry);
        }
    }

    /// Has everything where other code expects it.
    pub fn settle(&mut self) {
        self.settle_flags();
        self.end_float();
        self.store_free(self.dirty);
        self.dirty = 0;
    }

    /// One instruction.
    fn instruction(&mut self, plan: &Plan) {
        if matches!(plan.work, Work::Handler) {
            self.handler();
            return;
        }
        let written = plan.written();
        self.before_writing(written, plan.flags.keeps && self.live);
        // A check, or a handler, changes the host's flags.
        if plan.leaves && !matches!(plan.work, Work::JumpIf { .. } | Work::Jump { .. }) {
            self.spill_flags();
        }
        let asks = plan.flags.reads || matches!(plan.work, Work::Step { .. });
        if plan.address.is_some() && asks && !self.flags.is_settled() {
            self.settle_flags();
            self.spill_flags();
        }
        if plan.ends && self.then() == Then::Ends && !matches!(plan.work, Work::JumpIf { .. }) {
            self.settle();
            self.spill_flags();
        }
        let (flags, dirty) = (self.flags, self.dirty);
        self.work(plan);
        self.note_written(written);
        let (from, stashed) = (std::mem::take(&mut self.checks), self.stashed.take());
        let shut = std::mem::take(&mut self.shut);
        if from.is_empty() && shut.is_empty() {
            return;
        }
        let exit = if plan.ends {
            Exit::Leave(self.record(Kind::Rest))
        } else {
            let mut record = self.record(Kind::Handler);
            record.writes_flags = plan.flags.writes;
            Exit::Handle {
                record,
                back: self.asm.here(),
                with_flags: self.flags.in_host(),
                with_float: self.float,
                stashed,
            }
        };
        let cold = Cold {
            from,
            shut,
            flags,
            dirty,
            credit: self.credit(),
            float: self.float,
            exit,
        };
        self.cold.push(cold);
    }

    /// Calls the handler of this instruction.
    fn handler(&mut self) {
        let mut record = self.record(Kind::Handler);
        record.writes_flags = true;
        let from = self.asm.jump();
        let exit = Exit::Handle {
            record,
            back: self.asm.here(),
            with_flags: false,
            // It may unmask exceptions: what heeds MXCSR next has to look again.
            with_float: false,
            stashed: None,
        };
        let cold = self.cold(from, exit);
        self.cold.push(cold);
        self.flags = State::SAVED;
        self.dirty = 0;
        self.float = false;
    }

    /// Makes `from` lead out, because of this instruction.
    pub fn leave_from(&mut self, from: Hole, kind: Kind) {
        let cold = self.cold(from, Exit::Leave(self.record(kind)));
        self.cold.push(cold);
    }

    /// Code behind the trace to which `from` leads as everything is now.
    pub fn cold(&self, from: Hole, exit: Exit) -> Cold {
        Cold {
            from: vec![from],
            shut: Vec::new(),
            flags: self.flags,
            dirty: self.dirty,
            credit: self.credit(),
            float: self.float,
            exit,
        }
    }

    /// What this instruction says of itself.
    pub fn record(&self, kind: Kind) -> Record {
        let part = self.part();
        let block = part.block;
        Record {
            op: block.ops[self.at],
            page: block.physical & !0xfff,
            link: 0,
            target: 0,
            block: part.number,
            start: (block.physical & 0xfff) as u16,
            length: block.ops.len() as u8,
            index: self.at as u8,
            kind,
            writes_flags: false,
            bytes: block.bytes as u16,
            unused: [0; 4],
        }
    }

    /// Goes on `target` bytes into the page; everything is settled.
    pub fn go_to(&mut self, target: i64) {
        let hole = self.asm.jump();
        self.lead_to(hole, target);
    }

    /// Makes `hole` lead to the code `target` bytes into the page; everything is settled, or is in code behind the
    /// trace.
    pub fn lead_to(&mut self, hole: Hole, target: i64) {
        let mut record = self.record(Kind::Next);
        record.target = target;
        let cold = self.cold(hole, Exit::To(record));
        match self.code_at(target) {
            Some(code) if cold.is_settled() => self.asm.fill(hole, code),
            _ => self.cold.push(cold),
        }
    }

    /// The code `target` bytes into the page, if there is some.
    pub fn code_at(&self, target: i64) -> Option<u64> {
        if !(0..4096).contains(&target) {
            return None;
        }
        let head = self.trace.part(0);
        if target == head.start() {
            return Some(self.entry);
        }
        (self.known)(head.block.physical & !0xfff | target as u64)
    }

    /// See [`thunks::known_jump`].
    pub fn known_jump(&mut self) -> [Hole; 2] {
        thunks::known_jump(&mut self.asm, self.mode)
    }

    /// Goes on where the jump at R10 leads.
    pub fn jump_known(&mut self) {
        let code = Mem::at(R10, offset_of!(Jump, code) as i32);
        self.asm.op(4, one(0xff), 4, code);
    }

    /// Goes on at virtual address RAX.
    pub fn find(&mut self) {
        self.asm.call(self.thunks.find[self.mode as usize]);
        self.asm.go(4, R11);
    }

    /// Notes that guest registers `written` changed.
    fn note_written(&mut self, written: u16) {
        for (n, free) in self.free.into_iter().enumerate() {
            if free.is_some_and(|guest| written >> guest & 1 != 0) {
                self.dirty |= 1 << n;
            }
        }
    }

    /// Loads the registers of [`FREE`].
    pub fn load_free(&mut self) {
        for (guest, host) in self.free.into_iter().zip(FREE) {
            if let Some(guest) = guest {
                self.asm.load(8, host, slot_at(guest));
            }
        }
    }

    /// Stores those that `dirty` has.
    pub fn store_free(&mut self, dirty: u8) {
        for (n, (guest, host)) in self.free.into_iter().zip(FREE).enumerate() {
            if let Some(guest) = guest
                && dirty >> n & 1 != 0
            {
                self.asm.store(8, slot_at(guest), host);
            }
        }
    }

    /// The host register that has guest register `number`, if one does.
    pub fn home(&self, number: u8) -> Option<Reg> {
        let free = self.free.iter().position(|free| *free == Some(number));
        free.map(|n| FREE[n]).or_else(|| pinned(number))
    }

    /// Guest register `number`, in the host's that has it or else loaded to `spare`.
    pub fn reg(&mut self, number: u8, spare: Reg) -> Reg {
        self.home(number).unwrap_or_else(|| {
            self.asm.load(8, spare, slot_at(number));
            spare
        })
    }

    /// Guest register `number` as an operand.
    pub fn rm(&self, number: u8) -> Rm {
        self.home(number)
            .map_or_else(|| slot_at(number).into(), Rm::Reg)
    }

    /// `from`, all 64 bits, becomes guest register `number`.
    pub fn set_reg(&mut self, number: u8, from: Reg) {
        match self.home(number) {
            Some(host) => self.asm.copy(host, from),
            None => self.asm.store(8, slot_at(number), from),
        }
    }

    /// The low `size` bytes of `from` become those of guest register `number`; four clear the upper half.
    pub fn set_reg_sized(&mut self, size: u8, number: u8, from: Reg) {
        match self.home(number) {
            Some(host) => self.asm.load(size, host, from),
            None if size == 4 => {
                self.asm.load(4, from, from);
                self.asm.store(8, slot_at(number), from);
            }
            None => self.asm.store(size, slot_at(number), from),
        }
    }

    /// Leads to the handler if `condition` holds.
    pub fn check(&mut self, condition: u8) {
        let hole = self.asm.jump_if(condition);
        self.checks.push(hole);
    }

    /// RAX becomes the linear address of a memory operand. Flags change.
    pub fn linear(&mut self, address: &Address) {
        let (size, disp) = (if address.narrow { 4 } else { 8 }, address.disp);
        if address.base == slot::BLOCK {
            self.asm.load(8, RAX, field!(native.page));
            let disp = i64::from(disp) + self.start();
            self.asm.set(R10, disp as u64);
            self.asm.lea(size, RAX, Mem::indexed(Some(RAX), R10, 0, 0));
        } else {
            let base = (address.base != slot::ZERO).then(|| self.reg(address.base, RAX));
            let index = (address.index != slot::ZERO).then(|| self.reg(address.index, R10));
            match (base, index) {
                (base, Some(index)) => {
                    let mem = Mem::indexed(base, index, address.scale, disp);
                    self.asm.lea(size, RAX, mem);
                }
                (Some(base), None) => self.asm.lea(size, RAX, Mem::at(base, disp)),
                (None, None) if address.narrow => self.asm.set(RAX, u64::from(disp as u32)),
                (None, None) => self.asm.set(RAX, i64::from(disp) as u64),
            }
        }
        if let Some(segment) = address.segment {
            self.asm.alu(0, 8, RAX, slot_at(segment));
        }
    }

    /// RAX, a linear address, becomes where that is in the host; else the handler does it all. Flags change, and R10.
    pub fn translate(&mut self, size: u8, write: bool) {
        const SHIFT: u8 = 12 - size_of::<Entry>().trailing_zeros() as u8;
        const MASK: i32 = ((ENTRIES - 1) * size_of::<Entry>()) as i32;
        let tag = if write {
            offset_of!(Entry, write)
        } else {
            offset_of!(Entry, read)
        };
        self.asm.load(4, R10, RAX);
        self.asm.shift(5, 4, R10, SHIFT);
        self.asm.alu_value(4, 4, R10, MASK);
        self.asm.alu(0, 8, R10, state::data_table(self.mode));
        let entry = |field: usize| Mem::at(R10, field as i32);
        // What is left is where in the page it is, if it is that page.
        self.asm.alu(5, 8, RAX, entry(tag));
        self.asm.alu_value(7, 8, RAX, 4096 - i32::from(size));
        self.check(7);
        self.asm.alu(0, 8, RAX, entry(offset_of!(Entry, host)));
    }

    /// RAX becomes where the memory operand is in the host.
    pub fn memory(&mut self, plan: &Plan, size: u8, write: bool) {
        let address = plan.address.expect("it has a memory operand");
        self.linear(&address);
        if address.is_on_stack() && size <= 8 {
            self.translate_stack(write);
        } else {
            self.translate(size, write);
        }
    }

    /// The same as [`Emit::translate`] for up to 8 bytes that RSP points near to, through the window on the stack.
    pub fn translate_stack(&mut self, write: bool) {
        let window = state::window(self.mode);
        let at = |field: usize| Mem::at(RBP, window + field as i32);
        self.asm.alu(5, 8, RAX, at(offset_of!(Window, page)));
        let limit = if write {
            offset_of!(Window, writes)
        } else {
            offset_of!(Window, reads)
        };
        self.asm.alu(7, 8, RAX, at(limit));
        let hole = self.asm.jump_if(3);
        self.asm.alu(0, 8, RAX, at(offset_of!(Window, host)));
        self.shut.push(Shut {
            from: hole,
            back: self.asm.here(),
            open: self.thunks.open[self.mode as usize][usize::from(write)],
        });
    }

    /// Operand `arg` for reading: where it is. A memory operand is at RAX then.
    pub fn source(&mut self, plan: &Plan, arg: Arg, size: u8) -> Rm {
        match arg {
            Arg::Reg(number) => self.rm(number),
            Arg::Mem => {
                self.memory(plan, size, false);
                Mem::at(RAX, 0).into()
            }
            Arg::Value(value) => {
                self.asm.set(R10, i64::from(value) as u64);
                R10.into()
            }
        }
    }
}

/// The registers of the guest that are worth to be in [`FREE`]: those of the others that `trace` names most often.
fn used_most(trace: &Trace) -> [Option<u8>; FREE.len()] {
    let mut uses = [0_u32; 16];
    for step in 0..trace.len() {
        for plan in &trace.part(step).plans {
            for number in plan.named() {
                uses[usize::from(number)] += 1;
            }
        }
    }
    [(); FREE.len()].map(|()| {
        let others = (0..16).filter(|number| pinned(*number).is_none());
        let most = others.max_by_key(|number| uses[usize::from(*number)])?;
        (std::mem::take(&mut uses[usize::from(most)]) >= WORTH).then_some(most)
    })
}
