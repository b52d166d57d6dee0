//! Debug registers and what they do (SDM volume 3, chapter 18).
//!
//! While DR7 enables any breakpoint, instructions are carried out one by one: plain code pays nothing.
//! Breakpoints on instructions are looked at before each, those on data by what the instruction will access
//! if it retires, a repeated one iteration by iteration. Those on ports are not modelled and never fire.

use crate::cpu::{bits, segment};
use crate::op::Op;
use crate::trap::{Cause, Exception, vector};
use crate::{Cpu, Trap, flags};

/// DR6: a single-step trap.
pub(crate) const SINGLE_STEP: u64 = 1 << 14;
/// DR6: an access to a debug register while DR7 forbids them.
const ACCESS: u64 = 1 << 13;
/// DR7: accesses to debug registers trap.
const GENERAL_DETECT: u64 = 1 << 13;
/// DR7: any of the four breakpoints is enabled.
const ENABLED: u64 = 0xff;
/// DR6: bits that are always set.
const DR6_FIXED: u64 = 0xffff_0ff0;
/// DR7: the bit that is always set.
const DR7_FIXED: u64 = 1 << 10;
/// DR7: bits that can be set.
const DR7_KNOWN: u64 = 0xffff_23ff;

impl Cpu {
    /// Whether the next instruction has to be carried out by itself.
    #[inline(always)]
    pub(crate) fn steps(&self) -> bool {
        self.shadow
            || self.system_flags & (flags::TF | flags::RF) != 0
            || self.debug[7] & ENABLED != 0
    }

    /// Whether an instruction breakpoint is at RIP; notes it in DR6.
    pub(crate) fn at_breakpoint(&mut self) -> bool {
        let dr7 = self.debug[7];
        if dr7 & ENABLED == 0 {
            return false;
        }
        let linear = if self.long_code {
            self.rip
        } else {
            self.rip.wrapping_add(self.segments[segment::CS].base) & 0xffff_ffff
        };
        let mut hits = 0;
        for n in 0..4 {
            let enabled = dr7 >> (2 * n) & 3 != 0;
            // Condition 0 and length 0: execution.
            if enabled && dr7 >> (16 + 4 * n) & 0xf == 0 && self.debug[n] == linear {
                hits |= 1 << n;
            }
        }
        self.debug[6] |= hits;
        hits != 0
    }

    /// Address, length and whether reads count, of breakpoint `n` if it is one on data (SDM volume 3,
    /// 18.2.4 and 18.2.5).
    fn data_breakpoint(&self, n: usize) -> Option<(u64, u64, bool)> {
        let dr7 = self.debug[7];
        let condition = dr7 >> (16 + 4 * n) & 3;
        if dr7 >> (2 * n) & 3 == 0 || !matches!(condition, 1 | 3) {
            return None;
        }
        let len = [1, 2, 8, 4][(dr7 >> (18 + 4 * n) & 3) as usize];
        Some((self.debug[n] & !(len - 1), len, condition == 3))
    }

    /// Whether any breakpoint on data is enabled.
    #[inline(always)]
    pub(crate) fn watches_data(&self) -> bool {
        self.debug[7] & ENABLED != 0 && (0..4).any(|n| self.data_breakpoint(n).is_some())
    }

    /// The breakpoints an access to `len` bytes at linear `address` hits, as bits of DR6.
    pub(crate) fn data_hits(&self, address: u64, len: u64, write: bool) -> u64 {
        let mask = if self.long_code {
            u64::MAX
        } else {
            0xffff_ffff
        };
        (0..4).fold(0, |hits, n| {
            let hit = self.data_breakpoint(n).is_some_and(|(at, most, reads)| {
                let meets = (address.wrapping_sub(at) & mask) < most
                    || (at.wrapping_sub(address) & mask) < len;
                len > 0 && meets && (write || reads)
            });
            hits | u64::from(hit) << n
        })
    }

    /// Whether debug register `number` may be accessed, and which it is: 4 and 5 are 6 and 7 unless CR4.DE.
    fn debug_register(&mut self, number: u8) -> Result<usize, Trap> {
        let old = matches!(number, 4 | 5);
        if old && self.control.cr4 & bits::CR4_DE != 0 {
            return Err(self.undefined());
        }
        self.check_ring_0()?;
        if self.debug[7] & GENERAL_DETECT != 0 {
            self.debug[6] |= ACCESS;
            return Err(self.raise(Exception::plain(vector::DB)));
        }
        Ok(usize::from(if old { number + 2 } else { number }))
    }

    /// Looks at a fault of `op`, which did not retire: a memory operand on the stack whose address is not
    /// canonical raises #SS, not #GP (SDM volume 1, 3.3.7.1).
    pub(crate) fn judge_fault(&mut self, op: &Op) {
        use crate::op::{Address, Full, slot};
        let general = Cause::Exception(Exception::with_error(vector::GP, 0));
        let on_stack =
            matches!(op.base, slot::RSP | slot::RBP) && op.scale_segment >> 2 == slot::ZERO;
        if self.cause != general || !on_stack || !self.long_code {
            return;
        }
        // No operand that begins within 16 bytes of the edge raises #GP for another reason.
        let address = Full::linear(self, op);
        let canonical = |a: u64| (a as i64) << 16 >> 16 == a as i64;
        if !canonical(address) || !canonical(address.wrapping_add(15)) {
            self.cause = Cause::Exception(Exception::with_error(vector::SS, 0));
        }
    }
}

/// `mov register, drN`: number in [`Op::dst`].
pub(crate) fn read(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let number = cpu.debug_register(op.dst)?;
    let value = cpu.debug[number];
    cpu.set_sized(op.src, value, op.extra.into());
    Ok(())
}

/// `mov drN, register`.
pub(crate) fn write(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let number = cpu.debug_register(op.dst)?;
    let mut value = cpu.loose(op)?;
    if number >= 6 {
        if value >> 32 != 0 {
            return Err(cpu.general_protection(0));
        }
        value = match number {
            6 => value & 0xe00f | DR6_FIXED,
            _ => value & DR7_KNOWN | DR7_FIXED,
        };
    }
    cpu.debug[number] = value;
    Ok(())
}
