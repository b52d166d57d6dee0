//! Branches: on in the trace, to blocks of the same page by a jump of the host, elsewhere by the TLB and the table of
//! targets.

use super::asm::*;
use super::cold::Exit;
use super::emit::Emit;
use super::pending::Place;
use super::plan::{Arg, Plan, Work};
use super::state::{Kind, field, flags_byte};
use super::trace::Then;

impl Emit<'_> {
    pub(super) fn branch(&mut self, plan: &Plan) {
        let goes_on = self.then() != Then::Ends;
        match plan.work {
            Work::JumpIf { condition, target } => self.jump_if(condition, target),
            Work::Jump { .. } if goes_on => {}
            Work::Jump { target } => {
                self.settle();
                self.go_to(self.start() + target);
            }
            Work::Call { .. } if goes_on => self.push_return(),
            Work::Call { target } => {
                self.settle();
                self.push_return();
                self.go_to(self.start() + target);
            }
            Work::JumpTo { from } => {
                self.settle();
                self.target(plan, from);
                self.find_again();
            }
            Work::CallTo { from } => {
                self.settle();
                self.target(plan, from);
                self.asm.store(8, field!(native.target), RAX);
                self.push_return();
                self.asm.load(8, RAX, field!(native.target));
                self.find_again();
            }
            Work::Return { drop } => self.ret(drop),
            _ => unreachable!("no branch"),
        }
    }

    /// Jumps `target` bytes from the block's start if a condition of the guest holds.
    fn jump_if(&mut self, condition: u8, target: i64) {
        let there = self.start() + target;
        match self.then() {
            Then::Ends => {
                if !self.flags.is_settled() {
                    self.need_flags(condition);
                }
                self.settle();
                let hole = self.host_jump_if(condition);
                self.lead_to(hole, there);
                self.go_to(self.behind());
            }
            Then::Branches => {
                let hole = self.host_jump_if(condition ^ 1);
                self.lead_to(hole, self.behind());
            }
            _ => {
                let hole = self.host_jump_if(condition);
                self.lead_to(hole, there);
            }
        }
    }

    /// A jump of the host if a condition of the guest holds.
    fn host_jump_if(&mut self, condition: u8) -> Hole {
        // The flags of AH that decide, for those conditions that ask no OF.
        let mask = match condition >> 1 {
            1 => 0x01,
            2 => 0x40,
            3 => 0x41,
            4 => 0x80,
            5 => 0x04,
            _ => 0,
        };
        if self.flags.place == Place::Saved && self.flags.is_settled() && mask != 0 {
            self.asm.op(1, one(0xf6), 0, flags_byte(1));
            self.asm.raw(&[mask]);
            return self.asm.jump_if(if condition & 1 == 0 { 5 } else { 4 });
        }
        self.need_flags(condition);
        self.asm.jump_if(condition)
    }

    fn ret(&mut self, drop: i32) {
        let Then::Returns(back) = self.then() else {
            self.settle();
            self.asm.copy(RAX, R13);
            self.translate(8, false);
            self.asm.load(8, RAX, Mem::at(RAX, 0));
            self.check_canonical();
            self.asm.lea(8, R13, Mem::at(R13, 8 + drop));
            self.find_again();
            return;
        };
        self.asm.copy(RAX, R13);
        self.translate(8, false);
        self.asm.load(8, RAX, Mem::at(RAX, 0));
        self.asm.load(8, R10, field!(native.page));
        self.asm.lea(8, R10, Mem::at(R10, back as i32));
        self.asm.alu(7, 8, RAX, R10);
        let other = self.asm.jump_if(5);
        let cold = self.cold(other, Exit::Return(self.record(Kind::Rest), drop));
        self.cold.push(cold);
        self.asm.lea(8, R13, Mem::at(R13, 8 + drop));
    }

    /// RAX becomes where an indirect branch goes.
    fn target(&mut self, plan: &Plan, from: Arg) {
        match from {
            Arg::Reg(number) => {
                let from = self.rm(number);
                self.asm.load(8, RAX, from);
            }
            _ => {
                self.memory(plan, 8, false);
                self.asm.load(8, RAX, Mem::at(RAX, 0));
            }
        }
        self.check_canonical();
    }

    /// Leads to the interpreter unless RAX has 48 bits, sign-extended.
    fn check_canonical(&mut self) {
        let hole = self.not_canonical();
        self.checks.push(hole);
    }

    /// Jumps unless RAX has 48 bits, sign-extended.
    pub(super) fn not_canonical(&mut self) -> Hole {
        self.asm.copy(R10, RAX);
        self.asm.shift(4, 8, R10, 16);
        self.asm.shift(7, 8, R10, 16);
        self.asm.alu(7, 8, R10, RAX);
        self.asm.jump_if(5)
    }

    /// Pushes the address behind the block, whose last instruction is a call.
    fn push_return(&mut self) {
        self.asm.lea(8, RAX, Mem::at(R13, -8));
        self.translate(8, true);
        self.asm.load(8, R10, field!(native.page));
        let back = self.behind();
        self.asm.lea(8, R10, Mem::at(R10, back as i32));
        self.asm.store(8, Mem::at(RAX, 0), R10);
        self.asm.lea(8, R13, Mem::at(R13, -8));
    }
}
