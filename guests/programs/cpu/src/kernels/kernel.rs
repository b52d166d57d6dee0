//! `syscalls` and `faults`: ways into the kernel and back.

use super::{Done, mix};
use crate::sys::{Pages, parent};

const CALLS: u64 = 20_000;
const PAGE: usize = 4096;
const PAGES: usize = 512;
const MAPPINGS: u64 = 4;

/// A system call that does next to nothing is an item.
pub fn syscalls(unit: u64) -> Done {
    let first = parent();
    let same = (1..CALLS).filter(|_| parent() == first).count() as u64;
    Done {
        items: CALLS,
        checksum: mix(unit, same + 1),
    }
}

/// A page touched for the first time is an item.
pub fn faults(unit: u64) -> Done {
    let mut checksum = unit;
    for n in 0..MAPPINGS {
        let mut pages = Pages::map(PAGES * PAGE);
        for page in pages.bytes().chunks_exact_mut(PAGE) {
            checksum = mix(checksum, page[0].into());
            page[n as usize] = 1;
        }
        checksum = mix(
            checksum,
            pages
                .bytes()
                .iter()
                .step_by(PAGE)
                .map(|&b| u64::from(b))
                .sum(),
        );
    }
    Done {
        items: MAPPINGS * PAGES as u64,
        checksum,
    }
}
