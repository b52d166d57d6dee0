//! General instructions: moves, arithmetic, bits, the stack.

use super::asm::*;
use super::emit::Emit;
use super::pending::{Pending, bit};
use super::plan::{Arg, Plan, Work};
use super::state::{field, flags_byte};
use crate::op::slot;

/// Code of CMP (see [`Asm::alu`]).
const CMP: u8 = 7;
/// Code of TEST in [`Work::Alu`].
pub(super) const TEST: u8 = 8;
/// PF in AH.
const PF: i32 = 4;

impl Emit<'_> {
    /// Code for an instruction.
    pub fn work(&mut self, plan: &Plan) {
        let size = plan.size;
        match plan.work {
            Work::Nothing => {}
            Work::Alu { code, to, from } => self.alu(plan, code, to, from),
            Work::AluHigh { code, to, value } => self.alu_high(code, to, value),
            Work::Move { to, from } => self.mov(plan, to, from),
            Work::Constant { to, value } => self.constant(to, value),
            Work::Lea { to } => self.lea(plan, to),
            Work::Widen { .. } => self.widen(plan),
            Work::MoveByte { to, from } => self.move_byte(to, from),
            Work::WidenHigh { to, from, signed } => self.widen_high(to, from, signed),
            Work::Step { code, to } => self.step(plan, code, to),
            Work::Negate { code, to } => {
                self.unary(plan, if size == 1 { 0xf6 } else { 0xf7 }, code, to);
                if plan.flags.writes {
                    self.has_flags(None);
                }
            }
            Work::Shift { code, to, count } => self.shift(plan, code, to, count),
            Work::Product { to, from, value } => self.product(plan, to, from, value),
            Work::Wide { code, from } => self.wide(plan, code, from),
            Work::Divide { code, from } => self.divide(plan, code, from),
            Work::Bit { code, to, number } => self.bit(plan, code, to, number),
            Work::Scan { code, to, from } => self.scan(plan, code, to, from),
            Work::Count { to, from } => self.count(plan, to, from),
            Work::Swap { to } => self.swap(size, to),
            Work::Extend => self.extend(size),
            Work::Spread => self.spread(size),
            Work::Set { condition, to } => self.set_if(plan, condition, to),
            Work::MoveIf { .. } => self.move_if(plan),
            Work::Exchange { to, with } => self.exchange(plan, to, with),
            Work::AddExchange { with } => self.add_exchange(plan, with),
            Work::CompareExchange { with } => self.compare_exchange(plan, with),
            Work::CompareExchangeWide => self.compare_exchange_wide(plan),
            Work::Push { from } => self.push(plan, from),
            Work::Pop { to } => self.pop(to),
            Work::Leave => self.leave_frame(),
            Work::Vector(work) => self.vector(plan, work),
            _ => self.branch(plan),
        }
    }

    fn alu(&mut self, plan: &Plan, code: u8, to: Arg, from: Arg) {
        let size = plan.size;
        let writes = code < CMP;
        let with_carry = matches!(code, 2 | 3);
        match to {
            Arg::Mem => {
                self.memory(plan, size, writes);
                let place = Mem::at(RAX, 0);
                if with_carry {
                    self.need_carry();
                }
                match from {
                    Arg::Value(value) => self.apply_value(code, size, place.into(), value),
                    Arg::Reg(from) => {
                        let from = self.reg(from, R10);
                        self.apply_to(code, size, place.into(), from);
                    }
                    Arg::Mem => unreachable!("one memory operand"),
                }
            }
            Arg::Reg(number) => {
                let operand = match from {
                    Arg::Mem => self.source(plan, from, size),
                    Arg::Reg(from) => self.rm(from),
                    Arg::Value(_) => RAX.into(),
                };
                if with_carry {
                    self.need_carry();
                }
                let to = self.reg(number, R10);
                match from {
                    Arg::Value(value) => self.apply_value(code, size, to.into(), value),
                    _ => self.apply(code, size, to, operand),
                }
                if writes {
                    self.set_reg(number, to);
                }
            }
            Arg::Value(_) => unreachable!("no place"),
        }
        self.has_flags(again(code, size, to, from));
    }

    /// Has AH to BH, byte `number` of those, as a byte register of the host, as ModRM has it where there is no REX
    /// prefix. RAX is the guest's where that is AH.
    fn high(&mut self, number: u8) -> u8 {
        if number == slot::RAX {
            self.asm.copy(RAX, R12);
        }
        4 + number
    }

    fn alu_high(&mut self, code: u8, to: u8, value: u8) {
        let byte = self.high(to);
        if code == TEST {
            self.asm.raw(&[0xf6, 0xc0 | byte, value]);
        } else {
            self.asm.raw(&[0x80, 0xc0 | code << 3 | byte, value]);
        }
        if to == slot::RAX && code < CMP {
            self.asm.copy(R12, RAX);
        }
        self.has_flags(None);
    }

    /// The guest's RCX, RDX and RBX are the host's.
    fn move_byte(&mut self, to: u8, from: u8) {
        if to % 4 == slot::RAX || from % 4 == slot::RAX {
            self.asm.copy(RAX, R12);
        }
        self.asm.raw(&[0x88, 0xc0 | from << 3 | to]);
        if to % 4 == slot::RAX {
            self.asm.copy(R12, RAX);
        }
    }

    fn widen_high(&mut self, to: u8, from: u8, signed: bool) {
        let byte = self.high(from);
        self.asm
            .raw(&[0x0f, if signed { 0xbe } else { 0xb6 }, 0xc0 | byte]);
        self.set_reg(to, RAX);
    }

    pub(super) fn apply(&mut self, code: u8, size: u8, to: Reg, from: Rm) {
        if code == TEST {
            let opcode = if size == 1 { 0x84 } else { 0x85 };
            self.asm.op(size, one(opcode), to.0, from);
        } else {
            self.asm.alu(code, size, to, from);
        }
    }

    pub(super) fn apply_to(&mut self, code: u8, size: u8, to: Rm, from: Reg) {
        if code == TEST {
            self.apply(code, size, from, to);
        } else {
            self.asm.alu_to(code, size, to, from);
        }
    }

    pub(super) fn apply_value(&mut self, code: u8, size: u8, to: Rm, value: i32) {
        if code == TEST {
            let opcode = if size == 1 { 0xf6 } else { 0xf7 };
            self.asm.op(size, one(opcode), 0, to);
            self.asm
                .raw(&value.to_le_bytes()[..usize::from(size.min(4))]);
        } else {
            self.asm.alu_value(code, size, to, value);
        }
    }

    fn mov(&mut self, plan: &Plan, to: Arg, from: Arg) {
        let size = plan.size;
        match (to, from) {
            (Arg::Mem, Arg::Value(value)) => {
                self.memory(plan, size, true);
                self.asm.store_value(size, Mem::at(RAX, 0), value);
            }
            (Arg::Mem, Arg::Reg(from)) => {
                self.memory(plan, size, true);
                let from = self.reg(from, R10);
                self.asm.store(size, Mem::at(RAX, 0), from);
            }
            (Arg::Reg(to), Arg::Mem) => {
                self.memory(plan, size, false);
                self.load_reg(size, to, Mem::at(RAX, 0).into());
            }
            (Arg::Reg(to), Arg::Reg(from)) => {
                let from = self.rm(from);
                self.load_reg(size, to, from);
            }
            (Arg::Reg(to), Arg::Value(value)) => {
                self.asm.set(R10, u64::from(value as u32));
                self.set_reg_sized(size, to, R10);
            }
            _ => unreachable!("one memory operand"),
        }
    }

    /// `size` bytes at `from` become those of guest register `to`; four clear the upper half.
    fn load_reg(&mut self, size: u8, to: u8, from: Rm) {
        match self.home(to) {
            Some(host) => self.asm.load(size, host, from),
            None => {
                self.asm.load(size, R10, from);
                // Four bytes have cleared the others.
                self.set_reg_sized(if size == 4 { 8 } else { size }, to, R10);
            }
        }
    }

    fn constant(&mut self, to: u8, value: u64) {
        match self.home(to) {
            Some(host) => self.asm.set(host, value),
            None => {
                self.asm.set(R10, value);
                self.set_reg(to, R10);
            }
        }
    }

    fn lea(&mut self, plan: &Plan, to: u8) {
        let mut address = plan.address.expect("it has a memory operand");
        address.segment = None;
        self.linear(&address);
        self.set_reg_sized(plan.size, to, RAX);
    }

    fn widen(&mut self, plan: &Plan) {
        let Work::Widen {
            to,
            from,
            narrow,
            signed,
        } = plan.work
        else {
            unreachable!("asked for by this kind")
        };
        let from = self.source(plan, from, narrow);
        let host = self.home(to).unwrap_or(R10);
        let host = if plan.size == 2 { R10 } else { host };
        match (narrow, signed) {
            (1, false) => self.asm.op_from_byte(plan.size, two(0xb6), host, from),
            (2, false) => self.asm.op(plan.size, two(0xb7), host.0, from),
            (1, true) => self.asm.op_from_byte(plan.size, two(0xbe), host, from),
            (2, true) => self.asm.op(plan.size, two(0xbf), host.0, from),
            _ => self.asm.op(plan.size, one(0x63), host.0, from),
        }
        if plan.size == 2 || self.home(to).is_none() {
            self.set_reg_sized(plan.size, to, R10);
        }
    }

    /// INC (0), DEC (1): CF stays.
    fn step(&mut self, plan: &Plan, code: u8, to: Arg) {
        let size = plan.size;
        if to != Arg::Mem && self.live {
            self.before_step();
        }
        let before = self.flags;
        self.unary(plan, if size == 1 { 0xfe } else { 0xff }, code, to);
        match to {
            Arg::Reg(to) => self.after_step(before, Pending::Step { code, size, to }),
            _ => self.has_flags(None),
        }
    }

    /// An instruction with one operand that is read and written.
    fn unary(&mut self, plan: &Plan, opcode: u8, code: u8, to: Arg) {
        let size = plan.size;
        match to {
            Arg::Mem => {
                self.memory(plan, size, true);
                // INC and DEC leave CF as it is.
                if opcode >= 0xfe && self.live {
                    self.need_carry();
                }
                self.asm.op(size, one(opcode), code, Mem::at(RAX, 0));
            }
            Arg::Reg(number) => {
                let reg = self.reg(number, R10);
                self.asm.op(size, one(opcode), code, reg);
                self.set_reg(number, reg);
            }
            Arg::Value(_) => unreachable!("no place"),
        }
    }

    fn product(&mut self, plan: &Plan, to: u8, from: Arg, value: Option<i32>) {
        let size = plan.size;
        self.before_carry();
        let from = self.source(plan, from, size);
        let host = match value {
            Some(value) => {
                self.asm.op(size, one(0x69), R10.0, from);
                self.asm.raw(&value.to_le_bytes());
                R10
            }
            None => {
                let host = self.reg(to, R10);
                self.asm.op(size, two(0xaf), host.0, from);
                host
            }
        };
        self.set_reg(to, host);
        self.after_carry(Pending::CarryOverflow);
    }

    fn wide(&mut self, plan: &Plan, code: u8, from: Arg) {
        let size = plan.size;
        self.before_carry();
        let mut from = self.source(plan, from, size);
        if let Rm::Mem(_) = from {
            self.asm.load(size, R10, from);
            from = R10.into();
        }
        self.asm.load(size, RAX, R12);
        self.asm.op(size, one(0xf7), code, from);
        self.asm.load(size, R12, RAX);
        self.after_carry(Pending::CarryOverflow);
    }

    /// Before an instruction that changes CF, or CF and OF, and leaves the others.
    fn before_carry(&mut self) {
        if self.live {
            self.spill_flags();
            self.stash_for_next();
        }
    }

    /// After it: what is `pending` is made of one byte.
    fn after_carry(&mut self, pending: Pending) {
        let (condition, exact) = match pending {
            Pending::Carry => (2, bit::C),
            _ => (0, bit::C | bit::O),
        };
        if self.live {
            let stash = self.stash_for_next();
            self.host_set_rm(condition, stash.into());
            if !self.checks.is_empty() || !self.shut.is_empty() {
                self.stashed = Some((stash, pending));
            }
        }
        self.put_off(pending, exact);
    }

    fn divide(&mut self, plan: &Plan, code: u8, from: Arg) {
        let size = plan.size;
        self.stash_for_next();
        let from = self.source(plan, from, size);
        self.asm.load(size, R10, from);
        // Where the quotient might not fit, the handler judges.
        if code == 6 {
            self.asm.op(size, one(0x85), RDX.0, RDX);
            self.check(5);
            self.asm.op(size, one(0x85), R10.0, R10);
            self.check(4);
        } else {
            self.asm.load(size, RAX, R12);
            self.asm.shift(7, size, RAX, size * 8 - 1);
            self.asm.alu(CMP, size, RAX, RDX);
            self.check(5);
            self.asm.lea(size, RAX, Mem::at(R10, 1));
            self.asm.alu_value(CMP, size, RAX, 1);
            self.check(6);
        }
        self.asm.load(size, RAX, R12);
        self.asm.op(size, one(0xf7), code, R10);
        self.asm.load(size, R12, RAX);
        self.put_off(Pending::Divided, 0);
    }

    fn bit(&mut self, plan: &Plan, code: u8, to: Arg, number: Arg) {
        let size = plan.size;
        self.before_carry();
        let place: Rm = match to {
            Arg::Mem if matches!(number, Arg::Reg(_)) => {
                return self.bit_string(plan, code, number);
            }
            Arg::Mem => {
                self.memory(plan, size, code != 4);
                Mem::at(RAX, 0).into()
            }
            Arg::Reg(to) => self.reg(to, R10).into(),
            Arg::Value(_) => unreachable!("no place"),
        };
        match number {
            Arg::Value(number) => {
                self.asm.op(size, two(0xba), code, place);
                self.asm.raw(&[number as u8]);
            }
            Arg::Reg(number) => {
                let number = self.reg(number, RAX);
                self.asm.op(size, two(0x83 | code << 3), number.0, place);
            }
            Arg::Mem => unreachable!("no number"),
        }
        if let (Arg::Reg(to), Rm::Reg(host)) = (to, place)
            && code != 4
        {
            self.set_reg_sized(size, to, host);
        }
        self.after_carry(Pending::Carry);
    }

    /// A register counts bits from memory on, not only in the operand.
    fn bit_string(&mut self, plan: &Plan, code: u8, number: Arg) {
        let Arg::Reg(number) = number else {
            unreachable!("asked for by this kind")
        };
        let size = plan.size;
        let writes = code != 4;
        self.linear(&plan.address.expect("it has a memory operand"));
        let host = self.reg(number, R10);
        if size == 4 {
            self.asm.op(8, one(0x63), R10.0, host);
        } else {
            self.asm.copy(R10, host);
        }
        self.asm.shift(7, 8, R10, 3 + size.trailing_zeros() as u8);
        let scale = size.trailing_zeros() as u8;
        self.asm.lea(8, RAX, Mem::indexed(Some(RAX), R10, scale, 0));
        self.translate(size, writes);
        self.asm.load(size, R10, Mem::at(RAX, 0));
        if writes {
            self.asm.store(8, field!(native.held), RAX);
        }
        let number = self.reg(number, RAX);
        self.asm.op(size, two(0x83 | code << 3), number.0, R10);
        if writes {
            self.asm.load(8, RAX, field!(native.held));
            self.asm.store(size, Mem::at(RAX, 0), R10);
        }
        self.after_carry(Pending::Carry);
    }

    fn scan(&mut self, plan: &Plan, code: u8, to: u8, from: Arg) {
        let size = plan.size;
        let from = self.source(plan, from, size);
        self.asm.load(size, R10, from);
        self.asm.op(size, one(0x85), R10.0, R10);
        // Of zero: the register stays, which is the handler's business.
        self.check(4);
        self.asm.op(size, two(code), R10.0, R10);
        self.set_reg(to, R10);
        if self.live {
            // PF is the result's, all others are clear.
            self.asm.op(1, one(0x84), R10.0, R10);
            self.asm.raw(&[0x9f]);
            self.asm.alu_value(4, 4, RAX, PF << 8);
            self.asm.store(2, flags_byte(0), RAX);
        }
        self.flags_are_saved();
    }

    fn count(&mut self, plan: &Plan, to: u8, from: Arg) {
        let size = plan.size;
        let from = self.source(plan, from, size);
        let opcode = Opcode {
            prefix: 0xf3,
            ..two(0xb8)
        };
        self.asm.op(size, opcode, R10.0, from);
        self.set_reg(to, R10);
        self.has_flags(None);
    }

    fn swap(&mut self, size: u8, to: u8) {
        let host = self.reg(to, R10);
        let rex = 0x40 | u8::from(size == 8) << 3 | host.0 >> 3;
        self.asm.raw(&[rex, 0x0f, 0xc8 | host.0 & 7]);
        self.set_reg(to, host);
    }

    fn extend(&mut self, size: u8) {
        match size {
            2 => self.asm.op_from_byte(2, two(0xbe), R12, R12),
            4 => self.asm.op(4, two(0xbf), R12.0, R12),
            _ => self.asm.op(8, one(0x63), R12.0, R12),
        }
    }

    fn spread(&mut self, size: u8) {
        self.asm.load(8, RAX, R12);
        match size {
            2 => {
                // cwd leaves the rest of RDX as it is, here too.
                self.asm.raw(&[0x66, 0x99]);
            }
            4 => self.asm.raw(&[0x99]),
            _ => self.asm.raw(&[0x48, 0x99]),
        }
    }

    fn set_if(&mut self, plan: &Plan, condition: u8, to: Arg) {
        match to {
            Arg::Mem => {
                self.memory(plan, 1, true);
                // Flags are loaded by way of RAX; they are settled.
                self.asm.copy(R10, RAX);
                self.need_flags(condition);
                self.host_set_rm(condition, Mem::at(R10, 0).into());
            }
            Arg::Reg(to) => {
                self.need_flags(condition);
                let place = self.rm(to);
                self.host_set_rm(condition, place);
            }
            Arg::Value(_) => unreachable!("no place"),
        }
    }

    fn host_set_rm(&mut self, condition: u8, place: Rm) {
        self.asm.op(1, two(0x90 | condition), 0, place);
    }

    fn move_if(&mut self, plan: &Plan) {
        let Work::MoveIf {
            condition,
            to,
            from,
        } = plan.work
        else {
            unreachable!("asked for by this kind")
        };
        let size = plan.size;
        let mut from = self.source(plan, from, size);
        let mut spare = R10;
        if plan.address.is_some() {
            // Flags are loaded by way of RAX; they are settled.
            self.asm.load(size, R10, from);
            (from, spare) = (R10.into(), RAX);
        }
        self.need_flags(condition);
        let host = self.reg(to, spare);
        self.asm.op(size, two(0x40 | condition), host.0, from);
        self.set_reg(to, host);
    }

    fn exchange(&mut self, plan: &Plan, to: Arg, with: u8) {
        let size = plan.size;
        match to {
            Arg::Mem => {
                self.memory(plan, size, true);
                // Not XCHG, which locks.
                self.asm.load(size, R10, Mem::at(RAX, 0));
                self.asm.store(8, field!(native.held), R10);
                let new = self.reg(with, R10);
                self.asm.store(size, Mem::at(RAX, 0), new);
                self.asm.load(8, R10, field!(native.held));
                self.set_reg_sized(size, with, R10);
            }
            Arg::Reg(to) => {
                let a = self.rm(to);
                self.asm.load(8, R10, a);
                let b = self.rm(with);
                self.asm.load(8, RAX, b);
                self.set_reg_sized(size, to, RAX);
                self.set_reg_sized(size, with, R10);
            }
            Arg::Value(_) => unreachable!("no place"),
        }
    }

    fn add_exchange(&mut self, plan: &Plan, with: u8) {
        let size = plan.size;
        self.memory(plan, size, true);
        let from = self.rm(with);
        self.asm.load(size, R10, from);
        self.asm.op(size, two(0xc1), R10.0, Mem::at(RAX, 0));
        self.set_reg(with, R10);
        self.has_flags(None);
    }

    fn compare_exchange(&mut self, plan: &Plan, with: u8) {
        let size = plan.size;
        self.memory(plan, size, true);
        self.asm.load(size, R10, Mem::at(RAX, 0));
        self.asm.alu(CMP, size, R12, R10);
        let other = self.asm.jump_if(5);
        // It is what R10 has: nobody needs that any more.
        let new = self.reg(with, R10);
        self.asm.store(size, Mem::at(RAX, 0), new);
        let done = self.asm.jump();
        self.asm.fill_here(other);
        self.asm.load(size, R12, R10);
        self.asm.fill_here(done);
        self.has_flags(None);
    }

    /// Compares RDX and RAX with 16 bytes of memory: if they are the same, memory becomes RCX and RBX. The flags are in
    /// memory, where ZF is said.
    fn compare_exchange_wide(&mut self, plan: &Plan) {
        /// ZF in the word of flags.
        const ZF: i32 = 0x4000;
        self.memory(plan, 16, true);
        // test al, 15: the page is where pages are, here too.
        self.asm.raw(&[0xa8, 0x0f]);
        self.check(5);
        let (low, high) = (Mem::at(RAX, 0), Mem::at(RAX, 8));
        self.asm.load(8, R10, low);
        self.asm.alu(CMP, 8, R10, R12);
        let one = self.asm.jump_if(5);
        self.asm.load(8, R10, high);
        self.asm.alu(CMP, 8, R10, RDX);
        let other = self.asm.jump_if(5);
        self.asm.store(8, low, RBX);
        self.asm.store(8, high, RCX);
        self.asm.alu_value(1, 2, flags_byte(0), ZF);
        let done = self.asm.jump();
        self.asm.fill_here(one);
        self.asm.fill_here(other);
        self.asm.load(8, R12, low);
        self.asm.load(8, RDX, high);
        self.asm.alu_value(4, 2, flags_byte(0), !ZF);
        self.asm.fill_here(done);
        self.flags_are_saved();
    }

    fn push(&mut self, plan: &Plan, from: Arg) {
        if from == Arg::Mem {
            self.memory(plan, 8, false);
            self.asm.load(8, RAX, Mem::at(RAX, 0));
            self.asm.store(8, field!(native.held), RAX);
        }
        self.asm.lea(8, RAX, Mem::at(R13, -8));
        self.translate_stack(true);
        match from {
            Arg::Value(value) => self.asm.store_value(8, Mem::at(RAX, 0), value),
            Arg::Reg(from) => {
                let from = self.reg(from, R10);
                self.asm.store(8, Mem::at(RAX, 0), from);
            }
            Arg::Mem => {
                self.asm.load(8, R10, field!(native.held));
                self.asm.store(8, Mem::at(RAX, 0), R10);
            }
        }
        self.asm.lea(8, R13, Mem::at(R13, -8));
    }

    fn pop(&mut self, to: u8) {
        self.asm.copy(RAX, R13);
        self.translate_stack(false);
        self.asm.load(8, R10, Mem::at(RAX, 0));
        self.asm.lea(8, R13, Mem::at(R13, 8));
        self.set_reg(to, R10);
    }

    fn leave_frame(&mut self) {
        self.asm.copy(RAX, R14);
        self.translate(8, false);
        self.asm.load(8, R10, Mem::at(RAX, 0));
        self.asm.lea(8, R13, Mem::at(R14, 8));
        self.set_reg(slot::RBP, R10);
    }
}

/// What makes the flags of arithmetic `code` anew, when it is done.
fn again(code: u8, size: u8, to: Arg, from: Arg) -> Option<Pending> {
    let Arg::Reg(number) = to else {
        return None;
    };
    let known = from != Arg::Mem;
    match code {
        // What logic leaves says all.
        1 | 4 | 6 => Some(Pending::Compare {
            code: TEST,
            size,
            one: number,
            other: to,
        }),
        CMP | TEST if known => Some(Pending::Compare {
            code,
            size,
            one: number,
            other: from,
        }),
        // ADD and SUB can be taken back, if what was added is still there.
        0 | 5 if known && from != to => Some(Pending::Again {
            code,
            size,
            to: number,
            from,
        }),
        _ => None,
    }
}
