//! Shifts and rotates. What the manuals leave open of their flags is as in [`crate::execute::shift`].

use super::asm::*;
use super::emit::Emit;
use super::pending::{Pending, State, bit};
use super::plan::{Arg, Plan};
use super::state::flags_byte;

/// Codes, as instructions encode them.
const ROL: u8 = 0;
/// See [`ROL`].
const SHL: u8 = 4;
/// See [`ROL`].
const SHR: u8 = 5;
/// AF in AH.
const AF_IN_AX: i32 = 0x1000;

impl Emit<'_> {
    pub(super) fn shift(&mut self, plan: &Plan, code: u8, to: Arg, count: Option<u8>) {
        match (count, to) {
            (None, Arg::Reg(to)) if code < SHL => self.rotate_by_cl(plan, code, to),
            (None, _) => self.shift_by_cl(plan, code, to),
            (Some(count), _) if code < SHL => self.rotate(plan, code, to, count),
            (Some(count), Arg::Reg(number)) => {
                if self.live {
                    let stash = self.stash_for_first();
                    let before = self.reg(number, R10);
                    self.asm.store(8, stash, before);
                }
                self.shift_place(plan, code, to, Some(count));
                let size = plan.size;
                // The host's OF is that of one place only, and AF is nobody's.
                let exact = bit::C | bit::P | bit::Z | bit::S;
                self.put_off_all(Pending::Shift { code, size, count }, exact);
            }
            (Some(count), _) => {
                self.shift_place(plan, code, to, Some(count));
                if self.live {
                    self.store_shift_flags(code, count);
                }
                self.flags_are_saved();
            }
        }
    }

    /// The shift itself.
    fn shift_place(&mut self, plan: &Plan, code: u8, to: Arg, count: Option<u8>) {
        let size = plan.size;
        let place: Rm = match to {
            Arg::Mem => {
                self.memory(plan, size, true);
                Mem::at(RAX, 0).into()
            }
            Arg::Reg(to) => self.reg(to, R10).into(),
            Arg::Value(_) => unreachable!("no place"),
        };
        match count {
            Some(count) => self.asm.shift(code, size, place, count),
            None => self.asm.shift_cl(code, size, place),
        }
        if let (Arg::Reg(to), Rm::Reg(host)) = (to, place) {
            self.set_reg(to, host);
        }
    }

    /// Stores the flags of a shift whose others the host has.
    pub(super) fn store_shift_flags(&mut self, code: u8, count: u8) {
        self.asm.raw(&[0x9f]);
        self.overflow(code, Some(count));
        self.asm.alu_value(1, 4, RAX, AF_IN_AX);
        self.asm.store(2, flags_byte(0), RAX);
    }

    /// The same after one by ECX, which is not 0.
    pub(super) fn store_shift_flags_by_cl(&mut self, code: u8) {
        self.asm.raw(&[0x9f]);
        if code == SHR {
            // The sign bit before, if it went by one.
            self.asm.raw(&[0x0f, 0x90, 0xc0]);
            self.asm.alu_value(7, 4, RCX, 1);
            let by_one = self.asm.jump_if(4);
            self.asm.raw(&[0xb0, 0]);
            self.asm.fill_here(by_one);
        } else {
            self.overflow(code, None);
        }
        self.asm.alu_value(1, 4, RAX, AF_IN_AX);
        self.asm.store(2, flags_byte(0), RAX);
    }

    /// AL becomes OF after a shift; AH has the other flags, and the host's are still the shift's.
    fn overflow(&mut self, code: u8, count: Option<u8>) {
        match (code, count) {
            (SHL | SHR, Some(1)) => self.asm.raw(&[0x0f, 0x90, 0xc0]),
            (SHL, _) => {
                // CF against SF: bits 0 and 7 of AH. mov al, ah
                self.asm.raw(&[0x88, 0xe0]);
                self.asm.shift(SHR, 1, RAX, 7);
                // xor al, ah
                self.asm.raw(&[0x30, 0xe0]);
                self.asm.alu_value(4, 1, RAX, 1);
            }
            _ => self.asm.raw(&[0xb0, 0]),
        }
    }

    /// A shift of a register by CL. If that is 0 the flags stay.
    fn shift_by_cl(&mut self, plan: &Plan, code: u8, to: Arg) {
        if self.live {
            self.spill_flags();
            let stash = self.stash_for_next();
            let Arg::Reg(number) = to else {
                unreachable!("a register")
            };
            let before = self.reg(number, R10);
            self.asm.store(8, stash, before);
            self.asm.store(8, stash.plus(8), RCX);
        }
        self.shift_place(plan, code, to, None);
        let size = plan.size;
        self.put_off(Pending::ShiftByCl { code, size }, 0);
    }

    /// A rotation of a register by CL. If that is 0 the flags stay.
    fn rotate_by_cl(&mut self, plan: &Plan, code: u8, to: u8) {
        if self.live {
            self.spill_flags();
            let stash = self.stash_for_next();
            self.asm.store(8, stash.plus(8), RCX);
        }
        self.shift_place(plan, code, Arg::Reg(to), None);
        let size = plan.size;
        self.put_off(Pending::RotateByCl { code, size, to }, 0);
    }

    fn rotate(&mut self, plan: &Plan, code: u8, to: Arg, count: u8) {
        let size = plan.size;
        if self.live && to == Arg::Mem {
            self.settle_flags();
        } else if self.live {
            self.spill_flags();
            self.stash_for_next();
        }
        self.shift_place(plan, code, to, Some(count));
        match to {
            Arg::Reg(to) => self.put_off(Pending::Rotate { code, size, to }, 0),
            _ if self.live => {
                self.store_rotate_flags(code, size, Mem::at(RAX, 0).into());
                self.flags = State::SAVED;
            }
            _ => self.flags = State::DEAD,
        }
    }

    /// Changes CF and OF in memory as a rotation does whose result is at `result`.
    pub(super) fn store_rotate_flags(&mut self, code: u8, size: u8, result: Rm) {
        self.load_zero_extended(size, R10, result);
        let bits = size * 8;
        if code == ROL {
            // CF is the lowest bit, OF that against the highest.
            self.asm.load(4, RAX, R10);
            self.asm.alu_value(4, 4, RAX, 1);
            self.asm.shift(SHR, 8, R10, bits - 1);
        } else {
            // CF is the highest bit, OF that against the next.
            self.asm.shift(SHR, 8, R10, bits - 2);
            self.asm.load(4, RAX, R10);
            self.asm.shift(SHR, 4, RAX, 1);
            self.asm.alu_value(4, 4, R10, 1);
        }
        self.asm.alu(6, 4, R10, RAX);
        self.asm.shift(SHL, 4, RAX, 8);
        self.asm.alu(1, 4, RAX, R10);
        self.merge_flags(!0x101);
    }

    fn load_zero_extended(&mut self, size: u8, to: Reg, from: Rm) {
        match size {
            1 => self.asm.op_from_byte(4, two(0xb6), to, from),
            2 => self.asm.op(4, two(0xb7), to.0, from),
            _ => self.asm.load(size, to, from),
        }
    }
}
