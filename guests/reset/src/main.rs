//! Resets itself again and again, keeping count on its disk, the only thing that outlives a reset.
//!
//! ```text
//! life:  read sector 0: how many lives there were, and when the last ended
//!        check that nothing else is left of them ──▶ ticks, computing ──▶ write, flush
//!        begin reads and writes, and reset while they are under way
//! ```
//!
//! Arguments: `resets` (3), `hz` of the tick (1000), `ticks` of each life (5).
//!
//! Ends with status 1 if the disk fails, or something of a former life is left: a variable, a word of
//! memory beyond the image, a request, a clock that stepped back.
#![no_std]
#![no_main]

extern crate alloc;

use alloc::boxed::Box;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use runtime::virtio::block::{Block, SECTOR, Ticket};
use runtime::{Args, control, pit, println};

/// In sector 0 of a disk this guest used before.
const MAGIC: u64 = 0x7465_7365_7221_0001;
/// Requests left under way by a reset.
const UNFINISHED: usize = 6;
/// Sectors of each.
const SECTORS: u64 = 8;

/// As it is in the image.
const IMAGE: u64 = 0x1234_5678;
/// In the image, and so as it was there in each life.
static KEPT: AtomicU64 = AtomicU64::new(IMAGE);
/// Not in the image: zero.
static ZERO: AtomicU64 = AtomicU64::new(0);

/// Sector 0.
#[repr(C, align(512))]
struct Count {
    magic: u64,
    /// Lives that ended.
    lives: u64,
    /// When the last did, by the time-stamp counter.
    tsc: u64,
    /// Depends on where in its computation each life's ticks came.
    checksum: u64,
    rest: [u64; 60],
}

const _: () = assert!(size_of::<Count>() == SECTOR);

runtime::entry!(main);

fn main(args: &Args) -> u32 {
    match run(args) {
        Ok(()) => 0,
        Err(what) => {
            println!("reset: {what}");
            1
        }
    }
}

fn run(args: &Args) -> Result<(), &'static str> {
    let resets: u64 = args.parse("resets", 3);
    let mut disk = Block::open().map_err(|error| {
        println!("reset: {error}");
        "no disk"
    })?;
    if disk.sectors() < 1 + UNFINISHED as u64 * SECTORS {
        return Err("the disk is too small");
    }
    let mut count = Box::new(Count {
        magic: 0,
        lives: 0,
        tsc: 0,
        checksum: 0,
        rest: [0; 60],
    });
    let place: *mut Count = &mut *count;
    let sector = core::ptr::slice_from_raw_parts_mut(place.cast::<u8>(), SECTOR);
    // SAFETY: the box outlives the request, which `finish` waits for; until then nobody looks at it.
    let read = unsafe { disk.read(0, sector) }.ok_or("too many requests")?;
    finish(&mut disk, read)?;
    if count.magic != MAGIC {
        *count = Count {
            magic: MAGIC,
            lives: 0,
            tsc: 0,
            checksum: 0,
            rest: [0; 60],
        };
    }
    if KEPT.swap(!IMAGE, Relaxed) != IMAGE || ZERO.swap(1, Relaxed) != 0 {
        return Err("a variable of a former life is left");
    }
    let mut buffers = Box::new([[0u64; SECTORS as usize * SECTOR / 8]; UNFINISHED]);
    let tsc = control::tsc();
    if tsc <= count.tsc {
        return Err("time stepped back");
    }
    let life = count.lives;
    println!("reset: life {life} checksum={:016x}", count.checksum);
    if life >= resets {
        return Ok(());
    }
    count.checksum = compute(count.checksum, args);
    count.lives += 1;
    count.tsc = control::tsc();
    // SAFETY: as above, and nobody changes it meanwhile.
    let write = unsafe { disk.write(0, sector) }.ok_or("too many requests")?;
    finish(&mut disk, write)?;
    if disk.can_flush() {
        let flush = disk.flush().ok_or("too many requests")?;
        finish(&mut disk, flush)?;
    }
    for (n, buffer) in (0u64..).zip(buffers.iter_mut()) {
        let bytes = size_of_val(buffer);
        let place: *mut u8 = buffer.as_mut_ptr().cast();
        let place = core::ptr::slice_from_raw_parts_mut(place, bytes);
        let sector = 1 + n * SECTORS;
        // SAFETY: there is nothing of this program left to look at the buffers when the requests end.
        let begun = unsafe {
            if n % 2 == 0 {
                disk.read(sector, place)
            } else {
                disk.write(sector, place)
            }
        };
        begun.ok_or("too many requests")?;
    }
    disk.submit();
    control::reset()
}

/// Waits for the only request under way, which must be `ticket`.
fn finish(disk: &mut Block, ticket: Ticket) -> Result<(), &'static str> {
    disk.submit();
    loop {
        match disk.take_completion() {
            Some(completion) if !completion.ok => return Err("a request failed"),
            Some(completion) if completion.ticket != ticket => {
                return Err("a request of a former life ended");
            }
            Some(_) => return Ok(()),
            None => disk.wait(),
        }
    }
}

/// Computes for some ticks; the result depends on where each came.
fn compute(mut sum: u64, args: &Args) -> u64 {
    pit::start(args.parse("hz", 1000));
    let ticks: u64 = args.parse("ticks", 5);
    let (mut seen, mut steps) = (0, 0u64);
    while seen < ticks {
        steps += 1;
        let now = pit::ticks();
        if now != seen {
            seen = now;
            sum = (sum.rotate_left(5) ^ steps).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
    }
    sum
}
