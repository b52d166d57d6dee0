//! String instructions: MOVS, STOS, LODS, SCAS, CMPS, alone and repeated.
//!
//! # How a repeated one counts
//!
//! It works in chunks of at most [`CHUNK`] iterations. A chunk that leaves iterations to do retires as one
//! instruction with RIP still on it, so that it can be interrupted there; the last one retires and goes on
//! to what follows. So `rep movsb` with RCX = 10000 counts three. Where chunks end depends on the
//! registers and on memory as the guest sees it, on nothing else:
//!
//! - An iteration that goes outside (device memory, ports) is a chunk by itself.
//! - With the trap flag set, or a breakpoint on data, every iteration is one.
//! - A fault ends a chunk that does not count; the registers are those of the faulting iteration, the
//!   flags those of the one before it, as AMD's processors leave them. What runs next starts a new chunk.
//! - A page with decoded instructions, which we know of and the guest does not, ends none: it is written,
//!   and its blocks are dropped before the next one is fetched ([`Cpu::rewritten`]).
//!
//! Within a page, iterations are done in one go in host memory.

use super::alu::{Alu, Cmp};
use crate::flags;
use crate::memory::{Intent, OFFSET, PAGE};
use crate::op::{Op, slot};
use crate::trap::Cause;
use crate::word::Word;
use crate::{Cpu, Trap};

/// Most iterations that count as one instruction.
pub(crate) const CHUNK: u64 = 4096;

/// [`Op::extra`]: addresses are 32 bits wide.
pub(crate) const NARROW: u8 = 1;
/// [`Op::extra`]: addresses are 16 bits wide.
pub(crate) const SHORT: u8 = 8;
/// [`Op::extra`]: repeated, while equal if it compares.
pub(crate) const REPEAT: u8 = 2;
/// [`Op::extra`], with [`REPEAT`]: while not equal.
pub(crate) const WHILE_NOT_EQUAL: u8 = 4;

/// Where a string instruction is: what stays the same through its iterations.
///
/// [`Op::base`] is the slot of the source's segment base, [`Op::index`] of the destination's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Strings {
    /// Bits of an offset and of the counter.
    offset_mask: u64,
    /// Bits of their registers that stay: with 16-bit addresses all others, else none.
    kept_mask: u64,
    /// Bits of a linear address.
    linear_mask: u64,
    source_base: u64,
    destination_base: u64,
    /// Bytes an iteration goes on by, negative if DF is set.
    step: i64,
    /// It repeats while not equal.
    while_not_equal: bool,
}

impl Strings {
    /// For elements of `size` bytes.
    #[inline(always)]
    pub(crate) fn new(cpu: &Cpu, op: &Op, size: u64) -> Self {
        let narrow = |yes: bool| if yes { 0xffff_ffff } else { u64::MAX };
        let short = op.extra & SHORT != 0;
        let down = cpu.system_flags & flags::DF != 0;
        Self {
            offset_mask: if short {
                0xffff
            } else {
                narrow(op.extra & NARROW != 0)
            },
            kept_mask: if short { !0xffff } else { 0 },
            linear_mask: narrow(!cpu.long_code),
            source_base: cpu.slot(op.base),
            destination_base: cpu.slot(op.index),
            step: if down { -(size as i64) } else { size as i64 },
            while_not_equal: op.extra & WHILE_NOT_EQUAL != 0,
        }
    }

    /// Linear address of the source.
    #[inline(always)]
    pub(crate) fn source(&self, cpu: &Cpu) -> u64 {
        let offset = cpu.slot(slot::RSI) & self.offset_mask;
        offset.wrapping_add(self.source_base) & self.linear_mask
    }

    /// Linear address of the destination.
    #[inline(always)]
    pub(crate) fn destination(&self, cpu: &Cpu) -> u64 {
        let offset = cpu.slot(slot::RDI) & self.offset_mask;
        offset.wrapping_add(self.destination_base) & self.linear_mask
    }

    /// Moves index register `register` on by `iterations`.
    #[inline(always)]
    fn advance(&self, cpu: &mut Cpu, register: u8, iterations: u64) {
        let away = (self.step as u64).wrapping_mul(iterations);
        self.set(cpu, register, cpu.slot(register).wrapping_add(away));
    }

    /// Sets as much of an index register or the counter as addresses have bits.
    #[inline(always)]
    fn set(&self, cpu: &mut Cpu, register: u8, value: u64) {
        let kept = cpu.slot(register) & self.kept_mask;
        cpu.set_slot(register, kept | value & self.offset_mask);
    }

    /// Iterations from linear `address`, the offset being in `register`, that stay in its page; none if
    /// the first does not.
    fn room(&self, cpu: &Cpu, register: u8, address: u64) -> u64 {
        let size = self.step.unsigned_abs();
        let (in_page, offset) = (address & OFFSET, cpu.slot(register) & self.offset_mask);
        if in_page + size > PAGE {
            return 0;
        }
        if self.step < 0 {
            return (in_page / size).min(offset / size) + 1;
        }
        // The last offset wraps: at 64 bits it never does inside a page, whose bounds are canonical.
        ((PAGE - in_page) / size).min(((self.offset_mask - offset) / size).saturating_add(1))
    }

    /// Where the element of index register `register` is in RAM, and how many of `most` iterations from there
    /// stay in its page; `None` if that cannot be.
    #[inline(always)]
    fn span(
        &self,
        cpu: &mut Cpu,
        register: u8,
        intent: Intent,
        most: u64,
    ) -> Result<Option<(*mut u8, u64)>, Trap> {
        let address = match register {
            slot::RSI => self.source(cpu),
            _ => self.destination(cpu),
        };
        let n = most.min(self.room(cpu, register, address));
        if n == 0 {
            return Ok(None);
        }
        Ok(cpu.window(address, intent)?.map(|host| (host, n)))
    }

    /// Where the lowest of `iterations` elements is, the first being at `first`.
    fn lowest(&self, first: *mut u8, iterations: u64) -> *mut u8 {
        if self.step < 0 {
            first.wrapping_offset((self.step as isize) * (iterations as isize - 1))
        } else {
            first
        }
    }
}

/// What a string instruction does.
pub(crate) trait Body {
    /// It has a source: RSI.
    const SOURCE: bool;
    /// It has a destination: RDI.
    const DESTINATION: bool;
    /// Does one iteration, but for the registers; returns whether a repetition goes on after it.
    fn one<W: Word>(cpu: &mut Cpu, at: &Strings) -> Result<bool, Trap>;
    /// Does up to `most` iterations that all stay in the source's and the destination's page; `None` if
    /// that cannot be. Returns how many, and whether a repetition goes on.
    fn many<W: Word>(cpu: &mut Cpu, at: &Strings, most: u64) -> Result<Option<(u64, bool)>, Trap>;
}

/// A string instruction.
pub(crate) fn string<B: Body, W: Word>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let at = Strings::new(cpu, op, W::BYTES);
    if op.extra & REPEAT != 0 {
        return repeat::<B, W>(cpu, op, &at);
    }
    B::one::<W>(cpu, &at)?;
    advance::<B>(cpu, &at, 1);
    Ok(())
}

#[inline(always)]
fn advance<B: Body>(cpu: &mut Cpu, at: &Strings, iterations: u64) {
    if B::SOURCE {
        at.advance(cpu, slot::RSI, iterations);
    }
    if B::DESTINATION {
        at.advance(cpu, slot::RDI, iterations);
    }
}

/// A chunk of a repeated string instruction.
fn repeat<B: Body, W: Word>(cpu: &mut Cpu, op: &Op, at: &Strings) -> Result<(), Trap> {
    let count = cpu.slot(slot::RCX) & at.offset_mask;
    if count == 0 {
        return Ok(());
    }
    let trapping = cpu.system_flags & flags::TF != 0 || cpu.watches_data();
    let chunk = count.min(if trapping { 1 } else { CHUNK });
    let mut done = 0;
    let mut goes_on = true;
    let mut result = Ok(());
    while goes_on && done < chunk {
        match some::<B, W>(cpu, at, chunk - done) {
            Ok((iterations, more)) => {
                advance::<B>(cpu, at, iterations);
                done += iterations;
                goes_on = more;
                if cpu.outside.is_under_way() {
                    break;
                }
            }
            // The iterations so far are a chunk; the one that goes outside is the next.
            Err(_) if done > 0 && matches!(cpu.cause, Cause::Access(_)) => break,
            Err(trap) => {
                result = Err(trap);
                break;
            }
        }
    }
    if done > 0 {
        at.set(cpu, slot::RCX, count - done);
    }
    if goes_on && count > done {
        cpu.next_rip = cpu.slot(slot::BLOCK).wrapping_add(op.start.into());
    }
    result
}

/// Does at least one iteration and at most `most`.
fn some<B: Body, W: Word>(cpu: &mut Cpu, at: &Strings, most: u64) -> Result<(u64, bool), Trap> {
    if let Some(done) = B::many::<W>(cpu, at, most)? {
        return Ok(done);
    }
    loop {
        match B::one::<W>(cpu, at) {
            Ok(goes_on) => return Ok((1, goes_on)),
            Err(trap) => match cpu.cause {
                Cause::CodeWrite(page) => {
                    cpu.rewrite(page);
                    cpu.outside.start();
                }
                _ => return Err(trap),
            },
        }
    }
}

impl Cpu {
    /// Lets physical page number `page` be written though it has decoded instructions: they are dropped
    /// before another block is fetched. Only for the last instruction of a block.
    fn rewrite(&mut self, page: u64) {
        self.physical.set_code(page, false);
        self.unguard(page * PAGE);
        self.rewritten.push(page);
    }

    /// The host's pointer to linear `address`, good to the end of the page; `None` if it is not RAM.
    fn window(&mut self, address: u64, intent: Intent) -> Result<Option<*mut u8>, Trap> {
        self.check_canonical(address, 1)?;
        let mode = self.tlb.mode;
        let physical = self.translate(address, intent, mode)?;
        let host = self.physical.host(physical);
        if intent == Intent::Write {
            if self.physical.has_code(physical) {
                self.rewrite(physical / PAGE);
            }
            self.wrote(physical);
        }
        Ok(host)
    }
}

/// `movs`.
pub(crate) struct Movs;
/// `stos`.
pub(crate) struct Stos;
/// `lods`.
pub(crate) struct Lods;
/// `scas`.
pub(crate) struct Scas;
/// `cmps`.
pub(crate) struct Cmps;

/// Element `n` of those that begin at `first`.
///
/// # Safety
/// The element must lie in memory that can be read.
#[inline(always)]
unsafe fn element<W: Word>(first: *mut u8, step: i64, n: u64) -> W {
    let at = first.wrapping_offset(step as isize * n as isize);
    // SAFETY: the caller's.
    unsafe { at.cast::<W>().read_unaligned() }
}

impl Body for Movs {
    const SOURCE: bool = true;
    const DESTINATION: bool = true;

    #[inline(always)]
    fn one<W: Word>(cpu: &mut Cpu, at: &Strings) -> Result<bool, Trap> {
        let value: W = cpu.load(at.source(cpu))?;
        cpu.store(at.destination(cpu), value)?;
        Ok(true)
    }

    fn many<W: Word>(cpu: &mut Cpu, at: &Strings, most: u64) -> Result<Option<(u64, bool)>, Trap> {
        let Some((source, n)) = at.span(cpu, slot::RSI, Intent::Read, most)? else {
            return Ok(None);
        };
        let Some((destination, n)) = at.span(cpu, slot::RDI, Intent::Write, n)? else {
            return Ok(None);
        };
        let bytes = (n * W::BYTES) as usize;
        let (low_source, low) = (at.lowest(source, n), at.lowest(destination, n));
        // One by one, an iteration may read what an earlier one wrote; in one go it must not.
        let ahead = if at.step < 0 {
            (low_source as usize).wrapping_sub(low as usize)
        } else {
            (low as usize).wrapping_sub(low_source as usize)
        };
        if ahead == 0 || ahead >= bytes {
            // SAFETY: both lie in pages of RAM `window` vouched for; `room` keeps them inside.
            unsafe { std::ptr::copy(low_source, low, bytes) };
            return Ok(Some((n, true)));
        }
        for k in 0..n {
            // SAFETY: as above, element by element.
            unsafe {
                let value: W = element(source, at.step, k);
                let to = destination.wrapping_offset(at.step as isize * k as isize);
                to.cast::<W>().write_unaligned(value);
            }
        }
        Ok(Some((n, true)))
    }
}

impl Body for Stos {
    const SOURCE: bool = false;
    const DESTINATION: bool = true;

    #[inline(always)]
    fn one<W: Word>(cpu: &mut Cpu, at: &Strings) -> Result<bool, Trap> {
        cpu.store(at.destination(cpu), W::get(cpu, slot::RAX))?;
        Ok(true)
    }

    fn many<W: Word>(cpu: &mut Cpu, at: &Strings, most: u64) -> Result<Option<(u64, bool)>, Trap> {
        let Some((destination, n)) = at.span(cpu, slot::RDI, Intent::Write, most)? else {
            return Ok(None);
        };
        let value = W::get(cpu, slot::RAX);
        let low = at.lowest(destination, n).cast::<W>();
        for k in 0..n as usize {
            // SAFETY: a page of RAM `window` vouched for; `room` keeps all elements inside.
            unsafe { low.wrapping_add(k).write_unaligned(value) };
        }
        Ok(Some((n, true)))
    }
}

impl Body for Lods {
    const SOURCE: bool = true;
    const DESTINATION: bool = false;

    #[inline(always)]
    fn one<W: Word>(cpu: &mut Cpu, at: &Strings) -> Result<bool, Trap> {
        let value: W = cpu.load(at.source(cpu))?;
        value.set(cpu, slot::RAX);
        Ok(true)
    }

    fn many<W: Word>(cpu: &mut Cpu, at: &Strings, most: u64) -> Result<Option<(u64, bool)>, Trap> {
        let Some((source, n)) = at.span(cpu, slot::RSI, Intent::Read, most)? else {
            return Ok(None);
        };
        // SAFETY: as for `movs`.
        let last: W = unsafe { element(source, at.step, n - 1) };
        last.set(cpu, slot::RAX);
        Ok(Some((n, true)))
    }
}

impl Body for Scas {
    const SOURCE: bool = false;
    const DESTINATION: bool = true;

    #[inline(always)]
    fn one<W: Word>(cpu: &mut Cpu, at: &Strings) -> Result<bool, Trap> {
        let value: W = cpu.load(at.destination(cpu))?;
        Ok(compared(cpu, at, W::get(cpu, slot::RAX), value))
    }

    fn many<W: Word>(cpu: &mut Cpu, at: &Strings, most: u64) -> Result<Option<(u64, bool)>, Trap> {
        let Some((destination, n)) = at.span(cpu, slot::RDI, Intent::Read, most)? else {
            return Ok(None);
        };
        let wanted = W::get(cpu, slot::RAX);
        // SAFETY: as for `movs`.
        let at_element = |k| unsafe { element::<W>(destination, at.step, k) };
        let last = (0..n)
            .find(|&k| (at_element(k) == wanted) == at.while_not_equal)
            .unwrap_or(n - 1);
        let goes_on = compared(cpu, at, wanted, at_element(last));
        Ok(Some((last + 1, goes_on)))
    }
}

impl Body for Cmps {
    const SOURCE: bool = true;
    const DESTINATION: bool = true;

    #[inline(always)]
    fn one<W: Word>(cpu: &mut Cpu, at: &Strings) -> Result<bool, Trap> {
        let left: W = cpu.load(at.source(cpu))?;
        let right: W = cpu.load(at.destination(cpu))?;
        Ok(compared(cpu, at, left, right))
    }

    fn many<W: Word>(cpu: &mut Cpu, at: &Strings, most: u64) -> Result<Option<(u64, bool)>, Trap> {
        let Some((source, n)) = at.span(cpu, slot::RSI, Intent::Read, most)? else {
            return Ok(None);
        };
        let Some((destination, n)) = at.span(cpu, slot::RDI, Intent::Read, n)? else {
            return Ok(None);
        };
        // SAFETY: as for `movs`.
        let pair = |k| unsafe {
            (
                element::<W>(source, at.step, k),
                element::<W>(destination, at.step, k),
            )
        };
        let differ = |k: &u64| {
            let (left, right) = pair(*k);
            (left == right) == at.while_not_equal
        };
        let last = (0..n).find(differ).unwrap_or(n - 1);
        let (left, right) = pair(last);
        let goes_on = compared(cpu, at, left, right);
        Ok(Some((last + 1, goes_on)))
    }
}

/// Sets the flags of `left - right`; returns whether a repetition goes on.
#[inline(always)]
fn compared<W: Word>(cpu: &mut Cpu, at: &Strings, left: W, right: W) -> bool {
    cpu.arithmetic = Cmp::apply(cpu.arithmetic, left, right).1;
    (left == right) != at.while_not_equal
}
