//! PCMPESTRI, PCMPESTRM, PCMPISTRI, PCMPISTRM (SDM volume 2B, 4.1).
//!
//! ```text
//!  imm  bit 0    words, else bytes           bit 1    signed
//!       bits 2-3 equal any, ranges, equal each, equal ordered
//!       bit 4    complement                  bit 5    only where the second operand is valid
//!       bit 6    highest index, or a mask of whole elements
//! ```

use super::lanes::{from_u8s, from_u16s, i8s, i16s, u8s, u16s};
use super::{Any, Input, Unaligned, Xmm};
use crate::flags::{Arithmetic, CF, OF, SF, ZF};
use crate::op::{Op, slot};
use crate::word::Word;
use crate::{Cpu, Trap};

/// In [`Op::extra`]: the second operand is memory.
pub(crate) const MEMORY: u8 = 1;
/// In [`Op::extra`]: lengths are in RAX and RDX, or EAX and EDX without [`WIDE`].
pub(crate) const EXPLICIT: u8 = 2;
/// In [`Op::extra`]: 64-bit lengths.
pub(crate) const WIDE: u8 = 4;
/// In [`Op::extra`]: the result is a mask in XMM0, else an index in ECX.
pub(crate) const MASK: u8 = 8;

/// A string of up to 16 elements.
struct Elements {
    values: [i32; 16],
    valid: usize,
}

impl Elements {
    /// The elements of `vector`; `length` is `None` if a zero ends them.
    fn new(vector: u128, imm: u8, length: Option<u64>) -> Self {
        let count = count(imm);
        let mut values = [0; 16];
        for (n, value) in values.iter_mut().enumerate().take(count) {
            *value = match imm & 3 {
                0 => u8s(vector)[n].into(),
                1 => u16s(vector)[n].into(),
                2 => i8s(vector)[n].into(),
                _ => i16s(vector)[n].into(),
            };
        }
        let valid = match length {
            Some(length) => length.min(count as u64) as usize,
            None => values[..count]
                .iter()
                .position(|v| *v == 0)
                .unwrap_or(count),
        };
        Self { values, valid }
    }

    fn get(&self, n: usize) -> Option<i32> {
        (n < self.valid).then(|| self.values[n])
    }
}

/// Elements of a vector.
fn count(imm: u8) -> usize {
    if imm & 1 != 0 { 8 } else { 16 }
}

/// Whether element `n` of `b` matches, for the aggregation `imm` asks for.
fn matches(a: &Elements, b: &Elements, n: usize, imm: u8) -> bool {
    let count = count(imm);
    match imm >> 2 & 3 {
        0 => b.get(n).is_some_and(|b| a.values[..a.valid].contains(&b)),
        1 => b.get(n).is_some_and(|b| {
            let ranges = a.values[..a.valid].chunks_exact(2);
            ranges.into_iter().any(|r| r[0] <= b && b <= r[1])
        }),
        2 => a.get(n) == b.get(n),
        // `a`, or as much of it as there is room for, begins at `n`.
        _ => (0..count - n).all(|k| match a.get(k) {
            None => true,
            some => some == b.get(n + k),
        }),
    }
}

/// One bit per element: the result before it becomes an index or a mask.
fn bits(a: &Elements, b: &Elements, imm: u8) -> u32 {
    let mut result = 0;
    for n in 0..count(imm) {
        let complement = match imm >> 4 & 3 {
            1 => true,
            3 => n < b.valid,
            _ => false,
        };
        result |= u32::from(matches(a, b, n, imm) != complement) << n;
    }
    result
}

/// All four instructions, told apart by [`Op::extra`].
pub(crate) fn compare_strings(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.check_sse()?;
    let second = if op.extra & MEMORY != 0 {
        Unaligned::<Any>::read(cpu, op)?
    } else {
        Xmm::read(cpu, op)?
    };
    let imm = op.imm as u8;
    let length = |register: u8| {
        let value = cpu.slot(register);
        match op.extra & (EXPLICIT | WIDE) {
            0 | WIDE => None,
            EXPLICIT => Some(u64::from((value as i32).unsigned_abs())),
            _ => Some((value as i64).unsigned_abs()),
        }
    };
    let a = Elements::new(cpu.fpu.xmm(op.dst), imm, length(slot::RAX));
    let b = Elements::new(second, imm, length(slot::RDX));
    let result = bits(&a, &b, imm);
    let count = count(imm);
    if op.extra & MASK == 0 {
        let index = match result {
            0 => count as u32,
            _ if imm & 0x40 != 0 => 31 - result.leading_zeros(),
            _ => result.trailing_zeros(),
        };
        index.set(cpu, slot::RCX);
    } else {
        cpu.fpu.set_xmm(0, mask(result, imm));
    }
    let flag = |flag: u64, set: bool| if set { flag } else { 0 };
    cpu.arithmetic = Arithmetic::from_bits(
        flag(CF, result != 0)
            | flag(ZF, b.valid < count)
            | flag(SF, a.valid < count)
            | flag(OF, result & 1 != 0),
    );
    Ok(())
}

fn mask(result: u32, imm: u8) -> u128 {
    if imm & 0x40 == 0 {
        return result.into();
    }
    let ones = |n: usize| (result >> n & 1) as u16;
    if count(imm) == 8 {
        from_u16s(std::array::from_fn(|n| ones(n).wrapping_neg()))
    } else {
        from_u8s(std::array::from_fn(|n| (ones(n) as u8).wrapping_neg()))
    }
}
