//! `calls`: recursion, and calls through pointers.

use super::{Done, random};
use core::hint::black_box;

const DEPTH: u64 = 23;
const INDIRECT: u64 = 400_000;

/// Fibonacci's numbers the slow way, and the calls it took: two results in registers.
#[inline(never)]
fn fibonacci(n: u64) -> (u64, u64) {
    if n < 2 {
        return (n, 1);
    }
    let (a, calls_a) = fibonacci(black_box(n - 1));
    let (b, calls_b) = fibonacci(black_box(n - 2));
    (a + b, calls_a + calls_b + 1)
}

trait Step {
    fn step(&self, x: u64) -> u64;
}

struct Add(u64);
struct Xor(u64);
struct Turn(u32);
struct Times(u64);

impl Step for Add {
    fn step(&self, x: u64) -> u64 {
        x.wrapping_add(self.0)
    }
}

impl Step for Xor {
    fn step(&self, x: u64) -> u64 {
        x ^ self.0
    }
}

impl Step for Turn {
    fn step(&self, x: u64) -> u64 {
        x.rotate_left(self.0)
    }
}

impl Step for Times {
    fn step(&self, x: u64) -> u64 {
        x.wrapping_mul(self.0)
    }
}

/// A call is an item.
pub fn work(unit: u64) -> Done {
    let (number, calls) = fibonacci(DEPTH);
    let steps: [&dyn Step; 8] = [
        &Add(unit | 1),
        &Xor(0x5555),
        &Turn(13),
        &Times(0x9e37_79b9_7f4a_7c15),
        &Add(77),
        &Turn(7),
        &Xor(unit << 7),
        &Times(3),
    ];
    let steps = black_box(&steps);
    let mut state = unit;
    let mut x = number;
    for _ in 0..INDIRECT {
        x = steps[random(&mut state) as usize % steps.len()].step(x);
    }
    Done {
        items: calls + INDIRECT,
        checksum: x,
    }
}
