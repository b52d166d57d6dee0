//! `code`: thousands of small functions, called in no order: more code than instruction caches hold, and for
//! an engine that translates, much to translate and to find again.

use super::{Done, random};

#[allow(
    unused_mut,
    clippy::all,
    reason = "generated: not every body changes both"
)]
mod functions {
    include!(concat!(env!("OUT_DIR"), "/functions.rs"));

    /// Calls the function `n`, of however many there are.
    pub fn call(n: u64, x: u64, y: u64) -> u64 {
        FUNCTIONS[n as usize % FUNCTIONS.len()](x, y)
    }
}

const CALLS: u64 = 256 * 1024;

/// A call is an item.
pub fn work(unit: u64) -> Done {
    let mut state = unit;
    let mut x = unit;
    for y in 0..CALLS {
        x = functions::call(random(&mut state), x, y);
    }
    Done {
        items: CALLS,
        checksum: x,
    }
}
