//! Writing a block: the frame around its instructions, flags, memory operands.
//!
//! ```text
//!  sub r15, length ── jc ───────────────────────────▶ Stop
//!  instruction: code of its own, or a call of its handler
//!     memory operand ── not in the TLB ─▶ handler ──▶ back behind the instruction
//!                                           └ did not retire ─▶ out
//!  save the flags, if they are the host's
//!  jump to the next block
//! ```
//!
//! # Flags
//! Between blocks, and whenever a handler may run, the guest's flags are in [`super::state::Native::flags`]. After
//! arithmetic they are the host's, and are saved (`lahf; seto al; mov`) only if somebody can still see them and
//! something is about to change the host's.

use super::asm::*;
use super::plan::{Address, Arg, Plan, Work};
use super::state::{self, Kind, Record, field, flags_byte, pinned, slot_at};
use super::thunks::Thunks;
use crate::memory::{ENTRIES, Entry, Mode};
use crate::op::{Op, slot};
use std::mem::offset_of;

/// What a block is, for its translation.
pub(super) struct Source<'a> {
    /// Its instructions.
    pub ops: &'a [Op],
    /// What becomes of each.
    pub plans: &'a [Plan],
    /// Bytes it takes.
    pub bytes: u64,
    /// Physical address of its first byte.
    pub physical: u64,
    /// Its number.
    pub number: u32,
    /// With whose rights it runs.
    pub mode: Mode,
}

/// Where the guest's flags are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flags {
    /// In memory alone.
    Saved,
    /// In the host's alone.
    Host,
    /// In both.
    Both,
    /// Nowhere: nobody will look at them.
    Dead,
}

/// Code that is rarely run, behind the block.
struct Cold {
    /// What leads here.
    from: Hole,
    record: Record,
    /// Where to go on after the handler, and whether with the host's flags; out if nowhere.
    back: Option<(u64, bool)>,
    /// The host heeds the guest's MXCSR.
    float: bool,
}

/// A block being written.
pub(super) struct Emit<'a> {
    pub asm: Asm,
    pub source: Source<'a>,
    pub thunks: Thunks,
    pub flags: Flags,
    /// The number of the instruction being written.
    pub at: usize,
    /// Whether somebody sees the flags after it.
    pub live: bool,
    /// Checks of this instruction that lead to its handler.
    pub checks: Vec<Hole>,
    cold: Vec<Cold>,
    /// Whether SSE was found to be allowed.
    pub sse: bool,
    /// Whether the host heeds the guest's MXCSR.
    pub float: bool,
    /// Where the block's code begins.
    entry: u64,
}

impl<'a> Emit<'a> {
    /// The code of a block, to run at `base`. `known` says where another block of this page is.
    pub fn block(
        source: Source<'a>,
        thunks: Thunks,
        base: u64,
        known: &dyn Fn(u64) -> Option<u64>,
    ) -> Vec<u8> {
        let mut emit = Self {
            asm: Asm::new(base),
            source,
            thunks,
            flags: Flags::Saved,
            at: 0,
            live: true,
            checks: Vec::new(),
            cold: Vec::new(),
            sse: false,
            float: false,
            entry: base,
        };
        emit.begin();
        let live = emit.live_after();
        let mut goes_on = true;
        for (at, live) in live.into_iter().enumerate() {
            emit.at = at;
            emit.live = live;
            let plan = emit.source.plans[at];
            if matches!(plan.work, Work::Rest) {
                emit.save_flags();
                emit.end_float();
                let is_last = at + 1 == emit.source.ops.len();
                emit.leave(if is_last { Kind::Last } else { Kind::Rest });
                goes_on = false;
                break;
            }
            goes_on = emit.instruction(&plan, known);
        }
        if goes_on {
            emit.save_flags();
            emit.end_float();
            let next = emit.source.bytes as i64;
            emit.go_to(next, known);
        }
        emit.end();
        emit.asm.bytes().to_vec()
    }

    fn begin(&mut self) {
        let length = self.source.ops.len() as i32;
        self.asm.alu_value(5, 8, R15, length);
        let from = self.asm.jump_if(2);
        let record = self.record(Kind::Stop);
        self.cold.push(Cold {
            from,
            record,
            back: None,
            float: false,
        });
    }

    /// For each instruction, whether somebody sees the flags it leaves.
    fn live_after(&self) -> Vec<bool> {
        let mut live = true;
        let mut all: Vec<bool> = self
            .source
            .plans
            .iter()
            .rev()
            .map(|plan| {
                let after = live;
                live = plan.flags.reads || plan.leaves || plan.flags.keeps && live;
                after
            })
            .collect();
        all.reverse();
        all
    }

    /// One instruction; whether the block goes on behind it.
    fn instruction(&mut self, plan: &Plan, known: &dyn Fn(u64) -> Option<u64>) -> bool {
        if matches!(plan.work, Work::Handler) {
            self.handler();
            return true;
        }
        // A check, or a handler, changes the host's flags.
        if plan.leaves {
            let had_flags = matches!(self.flags, Flags::Host | Flags::Both);
            self.save_flags();
            // Saving them has not, and this looks at them first.
            if had_flags && matches!(plan.work, Work::JumpIf { .. }) {
                self.flags = Flags::Both;
            }
        }
        if plan.ends {
            self.end_float();
        }
        let goes_on = self.work(plan, known);
        let back = (
            self.asm.here(),
            matches!(self.flags, Flags::Host | Flags::Both),
        );
        for from in std::mem::take(&mut self.checks) {
            let kind = if goes_on { Kind::Handler } else { Kind::Rest };
            let mut record = self.record(kind);
            record.writes_flags = plan.flags.writes;
            self.cold.push(Cold {
                from,
                record,
                back: goes_on.then_some(back),
                float: self.float,
            });
        }
        goes_on
    }

    /// Calls the handler of this instruction.
    fn handler(&mut self) {
        self.save_flags();
        // It may unmask exceptions: what heeds MXCSR next has to look again.
        self.end_float();
        let mut record = self.record(Kind::Handler);
        record.writes_flags = true;
        let from = self.asm.jump();
        let back = Some((self.asm.here(), false));
        self.cold.push(Cold {
            from,
            record,
            back,
            float: self.float,
        });
        self.flags = Flags::Saved;
    }

    /// Out of translated code, because of this instruction.
    fn leave(&mut self, kind: Kind) {
        let from = self.asm.jump();
        self.leave_from(from, kind);
    }

    /// Makes `from` lead out, because of this instruction.
    pub fn leave_from(&mut self, from: Hole, kind: Kind) {
        let record = self.record(kind);
        self.cold.push(Cold {
            from,
            record,
            back: None,
            float: self.float,
        });
    }

    fn record(&self, kind: Kind) -> Record {
        let source = &self.source;
        Record {
            op: source.ops[self.at],
            page: source.physical & !0xfff,
            link: 0,
            target: 0,
            block: source.number,
            start: (source.physical & 0xfff) as u16,
            length: source.ops.len() as u8,
            index: self.at as u8,
            kind,
            writes_flags: false,
            bytes: source.bytes as u16,
            unused: [0; 4],
        }
    }

    /// The block's first byte in its page.
    pub fn start(&self) -> i64 {
        (self.source.physical & 0xfff) as i64
    }

    /// Goes on `target` bytes from the block's start; the flags are saved.
    pub fn go_to(&mut self, target: i64, known: &dyn Fn(u64) -> Option<u64>) {
        let hole = self.asm.jump();
        self.lead_to(hole, target, known);
    }

    /// Makes `hole` lead to the code `target` bytes from the block's start.
    pub fn lead_to(&mut self, hole: Hole, target: i64, known: &dyn Fn(u64) -> Option<u64>) {
        let in_page = self.start() + target;
        if (0..4096).contains(&in_page) {
            let physical = self.source.physical & !0xfff | in_page as u64;
            let code = if target == 0 {
                Some(self.entry)
            } else {
                known(physical)
            };
            if let Some(code) = code {
                self.asm.fill(hole, code);
                return;
            }
        }
        let mut record = self.record(Kind::Next);
        record.target = in_page;
        if (0..4096).contains(&in_page) {
            record.link = self.asm.place(hole);
        }
        self.cold.push(Cold {
            from: hole,
            record,
            back: None,
            float: false,
        });
    }

    /// Writes what is behind the block: cold code, then its records.
    fn end(&mut self) {
        let mut records = Vec::new();
        for cold in std::mem::take(&mut self.cold) {
            self.asm.fill_here(cold.from);
            if cold.record.kind == Kind::Stop {
                // It did not begin.
                self.asm.alu_value(0, 8, R15, i32::from(cold.record.length));
            }
            if cold.record.kind == Kind::Next && cold.record.link == 0 {
                self.elsewhere(cold.record.target);
                continue;
            }
            if cold.float {
                self.host_mxcsr_is_ours();
            }
            let hole = self.asm.lea_here(RAX);
            records.push((hole, cold.record));
            match cold.back {
                Some((back, with_flags)) => {
                    self.asm.call(self.thunks.handle);
                    if cold.float {
                        self.host_mxcsr_is_guests();
                    }
                    if with_flags {
                        self.load_flags();
                    }
                    self.asm.jump_to(back);
                }
                None if cold.record.kind == Kind::Last => self.asm.jump_to(self.thunks.last),
                None => self.asm.jump_to(self.thunks.leave),
            }
        }
        self.asm.align(align_of::<Record>() as u64);
        for (hole, record) in records {
            self.asm.fill_here(hole);
            self.asm.raw(&record.bytes());
        }
    }

    /// Goes on in another page, `target` bytes from the start of this one.
    fn elsewhere(&mut self, target: i64) {
        self.asm.load(8, RAX, field!(native.page));
        // A block is at most a page, and a branch reaches 2 GiB: the sum may be more than 32 bits.
        match i32::try_from(target) {
            Ok(target) => self.asm.lea(8, RAX, Mem::at(RAX, target)),
            Err(_) => {
                self.asm.set(R10, target as u64);
                self.asm.lea(8, RAX, Mem::indexed(Some(RAX), R10, 0, 0));
            }
        }
        self.find();
    }

    /// Goes on at virtual address RAX.
    pub fn find(&mut self) {
        self.asm.call(self.thunks.find[self.source.mode as usize]);
        self.asm.go(4, R11);
    }

    /// Guest register `number`, in the host's that has it or else loaded to `spare`.
    pub fn reg(&mut self, number: u8, spare: Reg) -> Reg {
        pinned(number).unwrap_or_else(|| {
            self.asm.load(8, spare, slot_at(number));
            spare
        })
    }

    /// Guest register `number` as an operand.
    pub fn rm(&self, number: u8) -> Rm {
        pinned(number).map_or_else(|| slot_at(number).into(), Rm::Reg)
    }

    /// `from`, all 64 bits, becomes guest register `number`.
    pub fn set_reg(&mut self, number: u8, from: Reg) {
        match pinned(number) {
            Some(host) => self.asm.copy(host, from),
            None => self.asm.store(8, slot_at(number), from),
        }
    }

    /// The low `size` bytes of `from` become those of guest register `number`; four clear the upper half.
    pub fn set_reg_sized(&mut self, size: u8, number: u8, from: Reg) {
        match pinned(number) {
            Some(host) => self.asm.load(size, host, from),
            None if size == 4 => {
                self.asm.load(4, from, from);
                self.asm.store(8, slot_at(number), from);
            }
            None => self.asm.store(size, slot_at(number), from),
        }
    }

    /// The host's flags are the guest's now.
    pub fn has_flags(&mut self) {
        self.flags = if self.live { Flags::Host } else { Flags::Dead };
    }

    /// Something is about to change the host's flags, or to look at the guest's.
    pub fn save_flags(&mut self) {
        if self.flags == Flags::Host {
            // lahf; seto al
            self.asm.raw(&[0x9f, 0x0f, 0x90, 0xc0]);
            self.asm.store(2, flags_byte(0), RAX);
        }
        if self.flags != Flags::Dead {
            self.flags = Flags::Saved;
        }
    }

    /// Makes the host's flags the guest's; those are saved.
    fn load_flags(&mut self) {
        self.asm.op(4, two(0xb7), RAX.0, flags_byte(0));
        // OF from bit 0; sahf.
        self.asm.alu_value(0, 1, RAX, 0x7f);
        self.asm.raw(&[0x9e]);
    }

    /// The host's flags become the guest's, if they are not.
    pub fn need_flags(&mut self) {
        if self.flags == Flags::Saved {
            self.load_flags();
            self.flags = Flags::Both;
        }
    }

    /// The host's CF becomes the guest's, if it is not.
    pub fn need_carry(&mut self) {
        if self.flags == Flags::Saved {
            // bt word, 8
            self.asm.op(2, two(0xba), 4, flags_byte(0));
            self.asm.raw(&[8]);
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
        let table = state::data_tlb(self.source.mode);
        let tag = if write {
            offset_of!(Entry, write)
        } else {
            offset_of!(Entry, read)
        };
        self.asm.load(4, R10, RAX);
        self.asm.shift(5, 4, R10, SHIFT);
        self.asm.alu_value(4, 4, R10, MASK);
        let entry = |field: usize| Mem::indexed(Some(RBP), R10, 0, table + field as i32);
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
        self.translate(size, write);
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
