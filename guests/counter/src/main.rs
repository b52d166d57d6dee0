//! Computes without a single exit while the timer ticks, and prints a checksum that depends on where
//! in the computation each tick landed: the proof that interrupts are replayed to the instruction.
//!
//! Arguments: `hz` rate of the tick (100), `ticks` to end after (200), `iterations` to end after
//! (0: no limit; otherwise the ticks do not end it). `ns` in the line it prints is the guest time that
//! the computation took.
#![no_std]
#![no_main]

use core::hint::black_box;
use runtime::{Args, control, pit, println};

/// Words of memory the computation walks over: more than an L1 data cache holds.
const WORDS: usize = 8 * 1024;

/// The computation's state.
struct Mix {
    integer: u64,
    float: f64,
    words: [u64; WORDS],
}

impl Mix {
    /// One step: a multiply, a load and a store at an address that depends on it, and floating point.
    #[inline(always)]
    fn step(&mut self) {
        self.integer = self
            .integer
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let index = (self.integer >> 33) as usize % WORDS;
        let word = &mut self.words[index];
        *word = word.rotate_left(7) ^ self.integer;
        self.float = self.float * 0.999_999 + (*word >> 44) as f64 * 1e-6;
        if self.float > 1e6 {
            self.float = 1.0 / self.float;
        }
    }
}

runtime::entry!(main);

fn main(args: &Args) -> u32 {
    let ticks_max: u64 = args.parse("ticks", 200);
    let iterations_max: u64 = args.parse("iterations", 0);
    let mut mix = Mix {
        integer: 1,
        float: 1.0,
        words: [0; WORDS],
    };
    let mut checksum = 0u64;
    let mut iterations = 0u64;
    let mut seen = 0;
    let begun = control::tsc();
    pit::start(args.parse("hz", 100));
    loop {
        mix.step();
        iterations += 1;
        let ticks = pit::ticks();
        if ticks != seen {
            seen = ticks;
            checksum = (checksum.rotate_left(5) ^ iterations).wrapping_mul(0x9e37_79b9_7f4a_7c15)
                ^ mix.integer;
            if iterations_max == 0 && seen >= ticks_max {
                break;
            }
        }
        if iterations == iterations_max {
            break;
        }
    }
    let ns = control::tsc() - begun;
    let memory = mix
        .words
        .iter()
        .fold(0u64, |sum, &word| sum.rotate_left(1) ^ word);
    checksum ^= memory ^ black_box(mix.float).to_bits();
    println!("counter: ticks={seen} iterations={iterations} checksum={checksum:016x} ns={ns}");
    0
}
