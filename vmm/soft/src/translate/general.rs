//! General instructions: moves, arithmetic, bits, the stack.

use super::asm::*;
use super::emit::{Emit, Flags};
use super::plan::{Arg, Plan, Work};
use super::state::{field, flags_byte};
use crate::op::slot;

/// Code of CMP (see [`Asm::alu`]).
const CMP: u8 = 7;
/// Code of TEST in [`Work::Alu`].
const TEST: u8 = 8;
/// PF in AH.
const PF: i32 = 4;
/// AF in AH.
const AF: u64 = 0x10;

impl Emit<'_> {
    /// Code for an instruction; whether the block goes on behind it.
    pub fn work(&mut self, plan: &Plan, known: &dyn Fn(u64) -> Option<u64>) -> bool {
        let size = plan.size;
        match plan.work {
            Work::Nothing => {}
            Work::Alu { code, to, from } => self.alu(plan, code, to, from),
            Work::Move { to, from } => self.mov(plan, to, from),
            Work::Constant { to, value } => self.constant(to, value),
            Work::Lea { to } => self.lea(plan, to),
            Work::Widen { .. } => self.widen(plan),
            Work::Step { code, to } => {
                if to != Arg::Mem && self.live {
                    self.need_carry();
                }
                self.unary(plan, if size == 1 { 0xfe } else { 0xff }, code, to);
                self.has_flags();
            }
            Work::Negate { code, to } => {
                self.unary(plan, if size == 1 { 0xf6 } else { 0xf7 }, code, to);
                if plan.flags.writes {
                    self.has_flags();
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
            Work::Push { from } => self.push(plan, from),
            Work::Pop { to } => self.pop(to),
            Work::Leave => self.leave_frame(),
            Work::Vector(work) => self.vector(plan, work),
            _ => {
                self.branch(plan, known);
                return false;
            }
        }
        true
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
                let from = match from {
                    Arg::Mem => self.source(plan, from, size),
                    Arg::Reg(from) => self.rm(from),
                    Arg::Value(_) => R10.into(),
                };
                let to = self.reg(number, R11);
                if with_carry {
                    self.need_carry();
                }
                match plan.work {
                    Work::Alu {
                        from: Arg::Value(value),
                        ..
                    } => self.apply_value(code, size, to.into(), value),
                    _ => self.apply(code, size, to, from),
                }
                if writes {
                    self.set_reg(number, to);
                }
            }
            Arg::Value(_) => unreachable!("no place"),
        }
        self.has_flags();
    }

    fn apply(&mut self, code: u8, size: u8, to: Reg, from: Rm) {
        if code == TEST {
            let opcode = if size == 1 { 0x84 } else { 0x85 };
            self.asm.op(size, one(opcode), to.0, from);
        } else {
            self.asm.alu(code, size, to, from);
        }
    }

    fn apply_to(&mut self, code: u8, size: u8, to: Rm, from: Reg) {
        if code == TEST {
            self.apply(code, size, from, to);
        } else {
            self.asm.alu_to(code, size, to, from);
        }
    }

    fn apply_value(&mut self, code: u8, size: u8, to: Rm, value: i32) {
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
        match super::state::pinned(to) {
            Some(host) => self.asm.load(size, host, from),
            None => {
                self.asm.load(size, R10, from);
                // Four bytes have cleared the others.
                self.set_reg_sized(if size == 4 { 8 } else { size }, to, R10);
            }
        }
    }

    fn constant(&mut self, to: u8, value: u64) {
        match super::state::pinned(to) {
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
        let host = super::state::pinned(to).unwrap_or(R10);
        let host = if plan.size == 2 { R10 } else { host };
        match (narrow, signed) {
            (1, false) => self.asm.op_from_byte(plan.size, two(0xb6), host, from),
            (2, false) => self.asm.op(plan.size, two(0xb7), host.0, from),
            (1, true) => self.asm.op_from_byte(plan.size, two(0xbe), host, from),
            (2, true) => self.asm.op(plan.size, two(0xbf), host.0, from),
            _ => self.asm.op(plan.size, one(0x63), host.0, from),
        }
        if plan.size == 2 || super::state::pinned(to).is_none() {
            self.set_reg_sized(plan.size, to, R10);
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

    /// Those of the saved flags that `kept` has stay, the others are as in RAX. R10 changes.
    pub(super) fn merge_flags(&mut self, kept: i32) {
        self.asm.op(4, two(0xb7), R10.0, flags_byte(0));
        self.asm.alu_value(4, 4, R10, kept);
        self.asm.alu(1, 4, R10, RAX);
        self.asm.store(2, flags_byte(0), R10);
        self.flags = Flags::Saved;
    }

    /// CF and OF from bit 0 of AL, the others stay; the flags are saved.
    fn save_carry_overflow(&mut self) {
        self.asm.op_from_byte(4, two(0xb6), RAX, RAX);
        self.asm.op(4, one(0x69), RAX.0, RAX);
        self.asm.raw(&0x101_i32.to_le_bytes());
        self.merge_flags(!0x101);
    }

    /// CF from bit 0 of AL, the others stay; the flags are saved.
    fn save_carry(&mut self) {
        self.asm.op_from_byte(4, two(0xb6), RAX, RAX);
        self.asm.shift(4, 4, RAX, 8);
        self.merge_flags(!0x100);
    }

    /// `setCC` of a byte register of the host.
    fn host_set(&mut self, condition: u8, reg: Reg) {
        self.asm.op(1, two(0x90 | condition), 0, reg);
    }

    fn product(&mut self, plan: &Plan, to: u8, from: Arg, value: Option<i32>) {
        let size = plan.size;
        if self.live {
            self.save_flags();
        }
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
        self.finish_product();
    }

    /// A product's flags: CF and OF alike, the others stay.
    fn finish_product(&mut self) {
        if self.live {
            self.host_set(0, RAX);
            self.save_carry_overflow();
        } else {
            self.flags = Flags::Dead;
        }
    }

    fn wide(&mut self, plan: &Plan, code: u8, from: Arg) {
        let size = plan.size;
        if self.live {
            self.save_flags();
        }
        let mut from = self.source(plan, from, size);
        if let Rm::Mem(_) = from {
            self.asm.load(size, R10, from);
            from = R10.into();
        }
        self.asm.load(size, RAX, R12);
        self.asm.op(size, one(0xf7), code, from);
        self.asm.load(size, R12, RAX);
        self.finish_product();
    }

    fn divide(&mut self, plan: &Plan, code: u8, from: Arg) {
        let size = plan.size;
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
            self.asm.lea(size, R11, Mem::at(R10, 1));
            self.asm.alu_value(CMP, size, R11, 1);
            self.check(6);
        }
        self.asm.load(size, RAX, R12);
        self.asm.op(size, one(0xf7), code, R10);
        self.asm.load(size, R12, RAX);
        if self.live {
            // AF is set, CF and OF stay, the others are clear.
            self.asm.set(RAX, AF << 8);
            self.merge_flags(0x101);
        } else {
            self.flags = Flags::Dead;
        }
    }

    fn bit(&mut self, plan: &Plan, code: u8, to: Arg, number: Arg) {
        let size = plan.size;
        if self.live {
            self.save_flags();
        }
        let place: Rm = match to {
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
                let number = self.reg(number, R11);
                self.asm.op(size, two(0x83 | code << 3), number.0, place);
            }
            Arg::Mem => unreachable!("no number"),
        }
        if let (Arg::Reg(to), Rm::Reg(host)) = (to, place)
            && code != 4
        {
            self.set_reg_sized(size, to, host);
        }
        if self.live {
            self.host_set(2, RAX);
            self.save_carry();
        } else {
            self.flags = Flags::Dead;
        }
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
            self.flags = Flags::Saved;
        } else {
            self.flags = Flags::Dead;
        }
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
        self.has_flags();
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
                self.asm.copy(R11, RAX);
                self.need_flags();
                self.host_set_rm(condition, Mem::at(R11, 0).into());
            }
            Arg::Reg(to) => {
                self.need_flags();
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
        if plan.address.is_some() {
            // Flags are loaded by way of RAX.
            self.asm.load(size, R11, from);
            from = R11.into();
        }
        self.need_flags();
        let host = self.reg(to, R10);
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
                let new = self.reg(with, R11);
                self.asm.store(size, Mem::at(RAX, 0), new);
                self.set_reg_sized(size, with, R10);
            }
            Arg::Reg(to) => {
                let a = self.rm(to);
                self.asm.load(8, R10, a);
                let b = self.rm(with);
                self.asm.load(8, R11, b);
                self.set_reg_sized(size, to, R11);
                self.set_reg_sized(size, with, R10);
            }
            Arg::Value(_) => unreachable!("no place"),
        }
    }

    fn add_exchange(&mut self, plan: &Plan, with: u8) {
        let size = plan.size;
        self.memory(plan, size, true);
        self.asm.load(size, R10, Mem::at(RAX, 0));
        let from = self.rm(with);
        self.asm.load(size, R11, from);
        self.asm.alu(0, size, R11, R10);
        self.asm.store(size, Mem::at(RAX, 0), R11);
        self.set_reg(with, R10);
        self.has_flags();
    }

    fn compare_exchange(&mut self, plan: &Plan, with: u8) {
        let size = plan.size;
        self.memory(plan, size, true);
        self.asm.load(size, R10, Mem::at(RAX, 0));
        self.asm.alu(CMP, size, R12, R10);
        let other = self.asm.jump_if(5);
        let new = self.reg(with, R11);
        self.asm.store(size, Mem::at(RAX, 0), new);
        let done = self.asm.jump();
        self.asm.fill_here(other);
        self.asm.load(size, R12, R10);
        self.asm.fill_here(done);
        self.has_flags();
    }

    fn push(&mut self, plan: &Plan, from: Arg) {
        if from == Arg::Mem {
            self.memory(plan, 8, false);
            self.asm.load(8, RAX, Mem::at(RAX, 0));
            self.asm.store(8, field!(native.held), RAX);
        }
        self.asm.lea(8, RAX, Mem::at(R13, -8));
        self.translate(8, true);
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
        self.translate(8, false);
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
