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
    /// A branch. If the trace ends with it everything is settled, unless it is conditional.
    pub(super) fn branch(&mut self, plan: &Plan) {
        let goes_on = self.then() != Then::Ends;
        match plan.work {
            Work::JumpIf { condition, target } => self.jump_if(condition, target),
            Work::Jump { .. } if goes_on => {}
            Work::Jump { target } => self.go_to(self.start() + target),
            Work::Call { target } => {
                self.push_return();
                if !goes_on {
                    self.go_to(self.start() + target);
                }
            }
            Work::JumpTo { from } => {
                self.target(plan, from);
                self.jump_if_known();
                self.check_canonical();
                self.find();
            }
            Work::CallTo { from } => {
                self.target(plan, from);
                self.check_canonical();
                self.asm.store(8, field!(native.target), RAX);
                self.push_return();
                self.asm.load(8, RAX, field!(native.target));
                self.jump_if_known();
                self.find();
            }
            Work::Return { drop } => self.ret(drop),
            _ => unreachable!("no branch"),
        }
    }

    /// Goes on at virtual address RAX if the jump there is remembered.
    fn jump_if_known(&mut self) {
        let unknown = self.known_jump();
        self.jump_known();
        for hole in unknown {
            self.asm.fill_here(hole);
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
        self.asm.copy(RAX, R13);
        self.translate_stack(false);
        self.asm.load(8, RAX, Mem::at(RAX, 0));
        let Then::Returns(back) = self.then() else {
            let unknown = self.known_jump();
            self.asm.lea(8, R13, Mem::at(R13, 8 + drop));
            self.jump_known();
            for hole in unknown {
                self.asm.fill_here(hole);
            }
            self.check_canonical();
            self.asm.lea(8, R13, Mem::at(R13, 8 + drop));
            self.find();
            return;
        };
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
        self.translate_stack(true);
        self.asm.load(8, R10, field!(native.page));
        let back = self.behind();
        self.asm.lea(8, R10, Mem::at(R10, back as i32));
        self.asm.store(8, Mem::at(RAX, 0), R10);
        self.asm.lea(8, R13, Mem::at(R13, -8));
    }
}
