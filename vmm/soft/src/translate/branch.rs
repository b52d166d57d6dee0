//! Branches: to blocks of the same page by a jump of the host, elsewhere by the TLB and the table of targets.

use super::asm::*;
use super::emit::{Emit, Flags};
use super::plan::{Arg, Plan, Work};
use super::state::{field, flags_byte};

impl Emit<'_> {
    pub(super) fn branch(&mut self, plan: &Plan, known: &dyn Fn(u64) -> Option<u64>) {
        match plan.work {
            Work::JumpIf { condition, target } => {
                let hole = self.jump_if(condition);
                self.lead_to(hole, target, known);
                let next = self.source.bytes as i64;
                self.go_to(next, known);
            }
            Work::Jump { target } => self.go_to(target, known),
            Work::Call { target } => {
                self.push_return();
                self.go_to(target, known);
            }
            Work::JumpTo { from } => {
                self.target(plan, from);
                self.find();
            }
            Work::CallTo { from } => {
                self.target(plan, from);
                self.asm.store(8, field!(native.held), RAX);
                self.push_return();
                self.asm.load(8, RAX, field!(native.held));
                self.find();
            }
            Work::Return { drop } => {
                self.asm.copy(RAX, R13);
                self.translate(8, false);
                self.asm.load(8, RAX, Mem::at(RAX, 0));
                self.check_canonical();
                self.asm.lea(8, R13, Mem::at(R13, 8 + drop));
                self.find();
            }
            _ => unreachable!("no branch"),
        }
    }

    /// A jump of the host if a condition of the guest holds. The flags are saved.
    fn jump_if(&mut self, condition: u8) -> Hole {
        // The flags of AH that decide, for those conditions that ask no OF.
        let mask = match condition >> 1 {
            1 => 0x01,
            2 => 0x40,
            3 => 0x41,
            4 => 0x80,
            5 => 0x04,
            _ => 0,
        };
        if self.flags == Flags::Saved && mask != 0 {
            self.asm.op(1, one(0xf6), 0, flags_byte(1));
            self.asm.raw(&[mask]);
            return self.asm.jump_if(if condition & 1 == 0 { 5 } else { 4 });
        }
        self.need_flags();
        self.asm.jump_if(condition)
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
        self.asm.copy(R10, RAX);
        self.asm.shift(4, 8, R10, 16);
        self.asm.shift(7, 8, R10, 16);
        self.asm.alu(7, 8, R10, RAX);
        self.check(5);
    }

    /// Pushes the address behind the block, whose last instruction is a call.
    fn push_return(&mut self) {
        self.asm.lea(8, RAX, Mem::at(R13, -8));
        self.translate(8, true);
        self.asm.load(8, R10, field!(native.page));
        let back = self.start() + self.source.bytes as i64;
        self.asm.lea(8, R10, Mem::at(R10, back as i32));
        self.asm.store(8, Mem::at(RAX, 0), R10);
        self.asm.lea(8, R13, Mem::at(R13, -8));
    }
}
