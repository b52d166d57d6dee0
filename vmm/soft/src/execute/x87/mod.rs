//! x87: the register stack, its faults, and errors.
//!
//! An instruction that meets an unmasked error still retires: it leaves undone what the architecture says
//! and sets ES, and the next instruction that waits raises #MF.

pub(crate) mod arithmetic;
pub(crate) mod control;
pub(crate) mod environment;
mod functions;
pub(crate) mod host;
pub(crate) mod remainder;
pub(crate) mod transcendental;
pub(crate) mod transfer;
mod wide;

use crate::fpu::{ES, EXCEPTIONS, Fpu};
use crate::trap::{Exception, vector};
use crate::{Cpu, Trap};

/// Status word: invalid operation.
pub(crate) const IE: u16 = 1 << 0;
/// Status word: denormal operand.
pub(crate) const DE: u16 = 1 << 1;
/// Status word: division by zero.
pub(crate) const ZE: u16 = 1 << 2;
/// Status word: overflow.
pub(crate) const OE: u16 = 1 << 3;
/// Status word: underflow.
pub(crate) const UE: u16 = 1 << 4;
/// Status word: precision.
pub(crate) const PE: u16 = 1 << 5;
/// Status word: stack fault.
pub(crate) const SF: u16 = 1 << 6;
/// Status word: condition codes.
pub(crate) const C0: u16 = 1 << 8;
/// Also: the last rounding was up; with [`SF`]: the stack overflowed.
pub(crate) const C1: u16 = 1 << 9;
/// Also: an operand was out of range, or a remainder is not final.
pub(crate) const C2: u16 = 1 << 10;
/// The last.
pub(crate) const C3: u16 = 1 << 14;
/// All four.
pub(crate) const CONDITIONS: u16 = C0 | C1 | C2 | C3;
/// Errors of operands: unmasked, they keep the instruction from being carried out.
pub(crate) const BEFORE: u16 = IE | DE | ZE;

/// The NaN that answers an invalid operation (SDM volume 1, 4.8.3.7).
pub(crate) const INDEFINITE: u128 = 0xffff_c000_0000_0000_0000;
/// Bits of a register.
pub(crate) const REGISTER: u128 = (1 << 80) - 1;

impl Cpu {
    /// #MF if an x87 error is pending. Without CR0.NE it would be an interrupt by way of the board
    /// (IRQ 13), which no system in long mode asks for: #MF all the same.
    #[inline(always)]
    pub(crate) fn check_no_error(&mut self) -> Result<(), Trap> {
        if self.fpu.fsw & ES == 0 {
            return Ok(());
        }
        Err(self.raise(Exception::plain(vector::MF)))
    }

    /// What an x87 instruction that waits checks first.
    #[inline(always)]
    pub(crate) fn check_x87_waiting(&mut self) -> Result<(), Trap> {
        self.check_x87()?;
        self.check_no_error()
    }
}

impl Fpu {
    fn physical(&self, number: u8) -> usize {
        (self.top() + usize::from(number)) % 8
    }

    /// ST(`number`), 80 bits.
    pub(crate) fn st(&self, number: u8) -> u128 {
        self.x87[self.physical(number)] & REGISTER
    }

    /// Whether ST(`number`) is empty.
    pub(crate) fn is_empty(&self, number: u8) -> bool {
        self.tags & 1 << self.physical(number) == 0
    }

    /// Sets ST(`number`), which is not empty then.
    pub(crate) fn set_st(&mut self, number: u8, value: u128) {
        let n = self.physical(number);
        self.x87[n] = value & REGISTER;
        self.tags |= 1 << n;
    }

    /// Makes ST(`number`) empty.
    pub(crate) fn free(&mut self, number: u8) {
        self.tags &= !(1 << self.physical(number));
    }

    /// Pops ST(0).
    pub(crate) fn pop(&mut self) {
        self.free(0);
        self.set_top(self.top() + 1);
    }

    /// Pushes `value` where there is room.
    pub(crate) fn push(&mut self, value: u128) {
        self.set_top(self.top() + 7);
        self.set_st(0, value);
    }

    /// Flags a stack overflow, or an underflow. Returns whether it is masked.
    pub(crate) fn stack_fault(&mut self, overflow: bool) -> bool {
        self.fsw = self.fsw & !C1 | IE | SF | if overflow { C1 } else { 0 };
        self.refresh_summary();
        self.fcw & IE != 0
    }

    /// Takes over the error flags of `status` and the condition codes in `conditions`. Returns whether
    /// the instruction is to be completed: no operand was wrong in an unmasked way.
    pub(crate) fn take_status(&mut self, mut status: u16, conditions: u16) -> bool {
        let done = status & BEFORE & !self.fcw == 0;
        if !done {
            // No result, and so no error of one.
            status &= BEFORE | CONDITIONS & !C1;
        }
        self.fsw = self.fsw & !conditions | status & (EXCEPTIONS | conditions);
        self.refresh_summary();
        done
    }
}
