//! `memory`: a hash table of 32 MiB, larger than caches and than what a TLB reaches: reads and writes at
//! random places.

use super::{Done, mix, random};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Slots of 8 bytes: a power of two.
const SLOTS: usize = 4 << 20;
/// Slots that are filled before.
const FILLED: u64 = SLOTS as u64 / 2;
const LOOKUPS: u64 = 256 * 1024;

/// A key in the low bits, how often it was found above them; 0 is an empty slot. Atomic only so that it may be
/// changed: there is one thread.
static TABLE: [AtomicU64; SLOTS] = [const { AtomicU64::new(0) }; SLOTS];
/// Bits of a key.
const KEY: u64 = (1 << 49) - 1;
/// One more find.
const FOUND: u64 = 1 << 49;

/// The slot of `key`, or the empty one where it would be, and how many were looked at before.
fn find(key: u64) -> (usize, u64) {
    let mut slot = (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 42) as usize % SLOTS;
    let mut steps = 0;
    loop {
        let found = TABLE[slot].load(Relaxed);
        if found & KEY == key || found == 0 {
            return (slot, steps);
        }
        slot = (slot + 1) % SLOTS;
        steps += 1;
    }
}

/// The key with this number; never 0.
fn key(mut number: u64) -> u64 {
    random(&mut number) | 1 << 48
}

/// Fills half of the table, which also brings its pages in.
pub fn prepare() {
    for number in 0..FILLED {
        let key = key(number);
        TABLE[find(key).0].store(key, Relaxed);
    }
}

/// A lookup is an item: half of the keys are there, and then the table counts it.
pub fn work(unit: u64) -> Done {
    let mut state = unit;
    let mut checksum = 0;
    for _ in 0..LOOKUPS {
        let (slot, steps) = find(key(random(&mut state) % (2 * FILLED)));
        let mut found = TABLE[slot].load(Relaxed);
        if found != 0 {
            found = found.wrapping_add(FOUND);
            TABLE[slot].store(found, Relaxed);
        }
        checksum = mix(checksum, found ^ steps);
    }
    Done {
        items: LOOKUPS,
        checksum,
    }
}
