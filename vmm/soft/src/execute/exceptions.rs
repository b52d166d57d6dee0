//! Delivery of interrupts and exceptions through the IDT (SDM volume 3, chapter 6).
//!
//! ```text
//!  gate ─▶ code segment ─▶ stack: IST, TSS, or the present one ─▶ frame ─▶ CS:RIP, SS:RSP, RFLAGS
//! ```
//!
//! Nothing changes until the whole frame is known to fit, so a delivery that fails can be begun again.

use super::segments::{attribute, is_null, named, null_segment};
use crate::cpu::{Segment, segment};
use crate::flags;
use crate::op::slot;
use crate::trap::{Cause, Exception, vector};
use crate::watch::Transfer;
use crate::{Cpu, Trap};

/// What is delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// An exception or external interrupt.
    Hardware,
    /// `int`, `int3`, `into`: the gate's privilege is checked.
    Software,
}

/// Something to deliver.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Interruption {
    pub vector: u8,
    pub error: Option<u32>,
    pub origin: Origin,
    /// Where the handler returns to.
    pub rip: u64,
    /// RFLAGS as pushed.
    pub rflags: u64,
}

/// Where a gate leads.
struct Gate {
    code: Segment,
    /// Privilege of the handler.
    cpl: u8,
    entry: u64,
    ist: u64,
    masks: bool,
}

/// Which exceptions make a double fault of another (SDM volume 3, table 6-5).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Benign,
    Contributory,
    PageFault,
}

fn class(vector: u8) -> Class {
    match vector {
        vector::DE | vector::TS | vector::NP | vector::SS | vector::GP => Class::Contributory,
        vector::PF => Class::PageFault,
        _ => Class::Benign,
    }
}

/// Whether `first`, while it is delivered, and `second` make a double fault.
fn doubles(first: u8, second: u8) -> bool {
    match class(first) {
        Class::Benign => false,
        Class::Contributory => class(second) == Class::Contributory,
        Class::PageFault => class(second) != Class::Benign,
    }
}

/// Whether the instruction is begun again when the handler returns: RFLAGS is pushed with RF set.
fn is_fault(vector: u8) -> bool {
    !matches!(vector, vector::DB | vector::BP | vector::OF)
}

/// Bits of a paging or selector error code.
const ERROR_EXT: u32 = 1;
const ERROR_IDT: u32 = 2;

impl Cpu {
    /// Delivers `exception`, raised by the instruction at RIP (or, for a trap, by the one before); a
    /// double fault if that fails.
    ///
    /// # Errors
    /// [`Trap`], nothing done: triple fault; a write to decoded instructions; memory that is not RAM.
    pub(crate) fn deliver_exception(&mut self, exception: Exception) -> Result<(), Trap> {
        if exception.vector == vector::DB {
            // General detect is off in the handler (SDM volume 3, 18.2.4).
            self.debug[7] &= !(1 << 13);
        }
        let rf = if is_fault(exception.vector) {
            flags::RF
        } else {
            0
        };
        self.deliver_or_double(exception, rf)
    }

    /// Delivers external interrupt `vector` before the instruction at RIP.
    ///
    /// # Errors
    /// As for [`Cpu::deliver_exception`].
    pub(crate) fn deliver_interrupt(&mut self, vector: u8) -> Result<(), Trap> {
        match self.deliver(self.hardware_event(Exception::plain(vector), 0)) {
            Err(trap) => match self.cause {
                // Whatever its number: an interrupt is benign.
                Cause::Exception(second) => self.deliver_or_double(second, flags::RF),
                _ => Err(trap),
            },
            done => done,
        }
    }

    fn hardware_event(&self, exception: Exception, rf: u64) -> Interruption {
        Interruption {
            vector: exception.vector,
            error: exception.error,
            origin: Origin::Hardware,
            rip: self.rip,
            rflags: self.rflags() | rf,
        }
    }

    fn deliver_or_double(&mut self, mut exception: Exception, mut rf: u64) -> Result<(), Trap> {
        loop {
            let Err(trap) = self.deliver(self.hardware_event(exception, rf)) else {
                return Ok(());
            };
            let Cause::Exception(second) = self.cause else {
                return Err(trap);
            };
            if exception.vector == vector::DF {
                return Err(self.stop(Cause::TripleFault));
            }
            exception = if doubles(exception.vector, second.vector) {
                Exception::with_error(vector::DF, 0)
            } else {
                second
            };
            rf = flags::RF;
        }
    }

    /// Delivers `event`.
    ///
    /// # Errors
    /// [`Trap`], nothing done: an exception of the delivery itself, or as for
    /// [`Cpu::deliver_exception`].
    pub(crate) fn deliver(&mut self, event: Interruption) -> Result<(), Trap> {
        self.check_long_mode()?;
        let ext = match event.origin {
            Origin::Hardware => ERROR_EXT,
            Origin::Software => 0,
        };
        let gate = self.gate(&event, ext)?;
        let inner = gate.cpl < self.cpl;
        let top = if gate.ist != 0 {
            self.tss_stack(0x1c + gate.ist * 8, ext)?
        } else if inner {
            self.tss_stack(4 + u64::from(gate.cpl) * 8, ext)?
        } else {
            self.slot(slot::RSP)
        };
        let words = [
            self.segments[segment::SS].selector.into(),
            self.slot(slot::RSP),
            event.rflags,
            self.segments[segment::CS].selector.into(),
            event.rip,
            event.error.unwrap_or(0).into(),
        ];
        let count = if event.error.is_some() { 6 } else { 5 };
        let rsp = self.push_frame(&words[..count], gate.cpl, top & !15, ext)?;
        if inner {
            self.segments[segment::SS] = null_segment(gate.cpl.into(), gate.cpl);
        }
        self.set_slot(slot::RSP, rsp);
        self.system_flags &= !(flags::TF | flags::NT | flags::RF | flags::VM);
        if gate.masks {
            self.system_flags &= !flags::IF;
        }
        self.set_code_segment(gate.code, gate.cpl);
        self.rip = gate.entry;
        self.next_rip = gate.entry;
        self.shadow = false;
        self.halted = false;
        self.transfer = Some(Transfer::Event {
            vector: event.vector,
            has_error: event.error.is_some(),
        });
        Ok(())
    }

    /// Reads and judges the gate and its code segment.
    fn gate(&mut self, event: &Interruption, ext: u32) -> Result<Gate, Trap> {
        let number = u64::from(event.vector) * 16;
        let error = u32::from(event.vector) << 3 | ERROR_IDT | ext;
        if number + 15 > u64::from(self.idt.limit) {
            return Err(self.general_protection(error));
        }
        let at = self.idt.base.wrapping_add(number);
        let (low, high) = self.as_supervisor(|cpu| {
            Ok((cpu.load::<u64>(at)?, cpu.load::<u64>(at.wrapping_add(8))?))
        })?;
        let kind = low >> 40 & 0x1f;
        if kind != 0xe && kind != 0xf {
            return Err(self.general_protection(error));
        }
        if event.origin == Origin::Software && ((low >> 45 & 3) as u8) < self.cpl {
            return Err(self.general_protection(error));
        }
        if low >> 47 & 1 == 0 {
            return Err(self.raise_with(vector::NP, error));
        }
        let selector = (low >> 16) as u16;
        if is_null(selector) {
            return Err(self.general_protection(ext));
        }
        let mut code = self.descriptor(selector, vector::GP, ext)?;
        let long = code.has(attribute::LONG) && !code.has(attribute::BIG);
        if !code.is_code() || code.dpl() > self.cpl || !long {
            return Err(self.general_protection(named(selector) | ext));
        }
        if !code.has(attribute::PRESENT) {
            return Err(self.raise_with(vector::NP, named(selector) | ext));
        }
        let entry = low & 0xffff | low >> 32 & 0xffff_0000 | high << 32;
        if self.check_target(entry).is_err() {
            return Err(self.general_protection(ext));
        }
        self.mark_accessed(&mut code)?;
        Ok(Gate {
            code: code.segment(selector),
            cpl: if code.has(attribute::CONFORMING) {
                self.cpl
            } else {
                code.dpl()
            },
            entry,
            ist: low >> 32 & 7,
            masks: kind == 0xe,
        })
    }

    /// The stack pointer at `offset` of the TSS.
    pub(crate) fn tss_stack(&mut self, offset: u64, ext: u32) -> Result<u64, Trap> {
        let tss = self.segments[segment::TR];
        if offset + 7 > u64::from(tss.limit) {
            return Err(self.raise_with(vector::TS, named(tss.selector) | ext));
        }
        self.as_supervisor(|cpu| cpu.load::<u64>(tss.base.wrapping_add(offset)))
    }

    /// Writes `words`, the first one highest, below `top` on the stack of privilege `cpl`; returns the
    /// stack pointer after.
    ///
    /// # Errors
    /// [`Trap`], nothing written: #SS with `ext`, page fault.
    pub(crate) fn push_frame(
        &mut self,
        words: &[u64],
        cpl: u8,
        top: u64,
        ext: u32,
    ) -> Result<u64, Trap> {
        let size = words.len() as u64 * 8;
        let rsp = top.wrapping_sub(size);
        let canonical = |a: u64| (a as i64) << 16 >> 16 == a as i64;
        if !canonical(rsp) || !canonical(top.wrapping_sub(1)) {
            return Err(self.raise_with(vector::SS, ext));
        }
        let write = |cpu: &mut Self| {
            cpu.check_writable(rsp, size)?;
            for (n, word) in words.iter().rev().enumerate() {
                cpu.store::<u64>(rsp.wrapping_add(n as u64 * 8), *word)?;
            }
            Ok(())
        };
        if cpl == 3 {
            write(self)?;
        } else {
            self.as_supervisor(write)?;
        }
        Ok(rsp)
    }
}
