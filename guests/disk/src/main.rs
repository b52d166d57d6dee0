//! Reads from the disk into buffers it computes on all the while, writes what it computed, and reads
//! that back.
//!
//! ```text
//! round:  read 8 x 4 KiB ──▶ sum over the buffers, again and again, until all reads have ended
//!         transform ──▶ write ──▶ flush ──▶ read back ──▶ compare
//! ```
//!
//! The sums see each buffer change under them, so they depend on the very instruction at which the
//! machine put the data there; with the number of sums made they go into the checksum. A machine
//! that lets a disk write to guest memory at any other moment does not print the same twice.
//!
//! Arguments: `rounds` (50), `ms` of guest time after which no further round is begun (0: no limit),
//! `mode` (`mixed`; `read`: only the reads; `write`: only the writes, with no reading back), `hz` rate of
//! a tick (0: none). `ns` in the line it prints is the guest time that the rounds took.
//!
//! Ends with status 1 if the disk fails, or keeps something else than was written.
#![no_std]
#![no_main]

extern crate alloc;

use alloc::{boxed::Box, vec};
use runtime::virtio::block::{Block, SECTOR, Ticket};
use runtime::{Args, control, pit, println};

/// Requests of a round.
const REQUESTS: usize = 8;
/// Bytes of each.
const LEN: usize = 4096;
/// Sectors of a round.
const ROUND_SECTORS: u64 = (REQUESTS * LEN / SECTOR) as u64;

type Buffers = [[u64; LEN / 8]; REQUESTS];

/// What to do in each round.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Read,
    Write,
    Mixed,
}

/// The disk, and what was done with it.
struct Run {
    disk: Block,
    checksum: u64,
    sectors_read: u64,
    sectors_written: u64,
}

runtime::entry!(main);

fn main(args: &Args) -> u32 {
    match run(args) {
        Ok(()) => 0,
        Err(what) => {
            println!("disk: {what}");
            1
        }
    }
}

fn run(args: &Args) -> Result<(), &'static str> {
    let rounds: u64 = args.parse("rounds", 50);
    let limit_ns = args.parse("ms", 0u64) * 1_000_000;
    let mode = match args.get("mode").unwrap_or("mixed") {
        "read" => Mode::Read,
        "write" => Mode::Write,
        "mixed" => Mode::Mixed,
        _ => return Err("mode is none of read, write, mixed"),
    };
    if let hz @ 1.. = args.parse("hz", 0) {
        pit::start(hz);
    }
    let disk = Block::open().map_err(|error| {
        println!("disk: {error}");
        "no disk"
    })?;
    let places = disk.sectors() / ROUND_SECTORS;
    if places == 0 {
        return Err("the disk is smaller than 32 KiB");
    }
    let mut run = Run {
        disk,
        checksum: 0,
        sectors_read: 0,
        sectors_written: 0,
    };
    let buffers: &mut Buffers = Box::leak(Box::new([[0; LEN / 8]; REQUESTS]));
    let mut expected = vec![[0; LEN / 8]; REQUESTS];
    let begun = control::tsc();
    let mut ended = 0;
    for round in 0..rounds {
        if limit_ns != 0 && control::tsc() - begun >= limit_ns {
            break;
        }
        ended = round + 1;
        // A stride that visits all places before it comes back, whatever their number.
        let sector = round.wrapping_mul(7919) % places * ROUND_SECTORS;
        if mode != Mode::Write {
            run.read(sector, buffers)?;
        }
        if mode == Mode::Read {
            continue;
        }
        transform(buffers, round);
        run.write(sector, buffers)?;
        if mode == Mode::Mixed {
            expected.copy_from_slice(buffers);
            buffers.as_flattened_mut().fill(0);
            run.read(sector, buffers)?;
            if buffers[..] != expected[..] {
                println!(
                    "disk: round {round}: sector {sector} keeps something else than was written"
                );
                return Err("data lost");
            }
        }
    }
    let ns = control::tsc() - begun;
    println!(
        "disk: rounds={ended} sectors_read={} sectors_written={} bytes={} checksum={:016x} ns={ns}",
        run.sectors_read,
        run.sectors_written,
        (run.sectors_read + run.sectors_written) * SECTOR as u64,
        run.checksum
    );
    Ok(())
}

impl Run {
    /// Reads a round's sectors, computing on the buffers until the last request has ended.
    fn read(&mut self, sector: u64, buffers: &mut Buffers) -> Result<(), &'static str> {
        let buffers: *mut Buffers = buffers;
        for i in 0..REQUESTS {
            let at = sector + (i * LEN / SECTOR) as u64;
            // SAFETY: the buffers outlive the requests, which end below, and are looked at by
            // volatile reads only until then.
            unsafe {
                let buffer = (&raw mut (*buffers)[i]).cast::<u8>();
                let buffer = core::ptr::slice_from_raw_parts_mut(buffer, LEN);
                self.disk.read(at, buffer).ok_or("too many requests")?;
            }
        }
        self.disk.submit();
        let (mut ended, mut passes) = (0, 0u64);
        while ended < REQUESTS {
            // SAFETY: within the buffers; a word that changes meanwhile is what this is about.
            unsafe { self.pass(buffers) };
            passes += 1;
            while let Some(completion) = self.disk.take_completion() {
                if !completion.ok || completion.written as usize != LEN + 1 {
                    return Err("a read failed");
                }
                ended += 1;
                self.mix(passes << 8 | ended as u64);
            }
        }
        // SAFETY: as above.
        unsafe { self.pass(buffers) };
        self.sectors_read += ROUND_SECTORS;
        Ok(())
    }

    /// Sums up the buffers as they are at this moment.
    ///
    /// # Safety
    /// `buffers` is valid for reads.
    unsafe fn pass(&mut self, buffers: *const Buffers) {
        let words = buffers.cast::<u64>();
        let mut sum = self.checksum;
        for i in 0..REQUESTS * LEN / 8 {
            // SAFETY: as promised by the caller.
            let word = unsafe { words.add(i).read_volatile() };
            sum = (sum.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
        self.checksum = sum;
    }

    /// Writes a round's sectors and makes them durable.
    fn write(&mut self, sector: u64, buffers: &Buffers) -> Result<(), &'static str> {
        for (i, buffer) in buffers.iter().enumerate() {
            let at = sector + (i * LEN / SECTOR) as u64;
            let buffer = core::ptr::slice_from_raw_parts(buffer.as_ptr().cast::<u8>(), LEN);
            // SAFETY: the buffers outlive the request, and nothing writes them until it has ended.
            unsafe { self.disk.write(at, buffer) }.ok_or("too many requests")?;
        }
        for _ in 0..REQUESTS {
            self.finish()?;
        }
        if self.disk.can_flush() {
            let flush = self.disk.flush().ok_or("too many requests")?;
            if self.finish()? != flush {
                return Err("another request than the flush ended");
            }
        }
        self.sectors_written += ROUND_SECTORS;
        Ok(())
    }

    /// Waits for the next request to end.
    fn finish(&mut self) -> Result<Ticket, &'static str> {
        loop {
            match self.disk.take_completion() {
                Some(completion) if completion.ok => return Ok(completion.ticket),
                Some(_) => return Err("a write or a flush failed"),
                None => self.disk.wait(),
            }
        }
    }

    fn mix(&mut self, value: u64) {
        self.checksum = (self.checksum.rotate_left(5) ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

/// Makes of what is in the buffers something else, different in each round.
fn transform(buffers: &mut Buffers, round: u64) {
    let words = buffers.as_flattened_mut();
    for (i, word) in (0u64..).zip(words) {
        *word = (*word ^ i.wrapping_add(round << 32))
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
    }
}
