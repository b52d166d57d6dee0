//! `bytecode`: an interpreter's loop. One indirect jump after the other, each to somewhere else.

use super::{Done, random};
use core::hint::black_box;

const CODE: usize = 1024;
const STEPS: u64 = 2 << 20;

/// Runs random code over four registers; a step is an item.
pub fn work(unit: u64) -> Done {
    let mut code = [0u8; CODE];
    let mut state = unit + 1;
    code.fill_with(|| random(&mut state) as u8);
    let code = black_box(&code);
    let mut r = [unit, 1, 2, 3];
    let mut memory = [0u64; 64];
    let mut at = 0usize;
    for _ in 0..STEPS {
        let op = code[at % CODE];
        at += 1;
        let (a, b) = (usize::from(op >> 4) % 4, usize::from(op >> 6));
        match op & 15 {
            0 => r[a] = r[a].wrapping_add(r[b]),
            1 => r[a] = r[a].wrapping_sub(r[b]).wrapping_add(7),
            2 => r[a] = r[a].wrapping_mul(r[b] | 1),
            3 => r[a] ^= r[b] >> 3,
            4 => r[a] = r[b].rotate_left(11),
            5 => r[a] = memory[r[b] as usize % 64],
            6 => memory[r[a] as usize % 64] = r[b],
            7 => at = at.wrapping_add(r[a] as usize % 16),
            8 if r[a] < r[b] => at = at.wrapping_add(5),
            9 if r[a] & 1 == 0 => at = at.wrapping_add(3),
            10 => r.swap(a, b),
            11 => r[a] = r[a].wrapping_add(at as u64),
            12 => r[a] = !r[a],
            13 => r[a] |= r[b] & 0xff,
            14 => r[a] = u64::from(r[a].count_ones()) ^ r[b],
            _ => r[a] = r[a].wrapping_add(0x9e37_79b9),
        }
    }
    let checksum = memory
        .iter()
        .chain(&r)
        .fold(0, |sum, word| super::mix(sum, *word));
    Done {
        items: STEPS,
        checksum,
    }
}
