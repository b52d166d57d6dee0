//! Reads the time-stamp counter in both ways there are, the wall clock, and the tick, and prints what
//! it saw.
//!
//! Arguments: `reads` of the time-stamp counter (1000), `rtc` readings of the wall clock (4), spread
//! evenly among them, `hz` rate of the tick (100), `ticks` to sleep through at the end (3).
//!
//! Ends with status 1 if a clock stood still or went back.
#![no_std]
#![no_main]

use runtime::{Args, control, interrupt, pit, println, rtc};

runtime::entry!(main);

fn main(args: &Args) -> u32 {
    let reads: u64 = args.parse("reads", 1000);
    let rtc_reads: u64 = args.parse("rtc", 4);
    let ticks: u64 = args.parse("ticks", 3);
    pit::start(args.parse("hz", 100));

    let first = control::tsc();
    let mut last = first;
    let mut wall_last = 0;
    let mut checksum = 0u64;
    let mut status = 0;
    let stride = reads.checked_div(rtc_reads).unwrap_or(u64::MAX).max(1);
    for i in 0..reads {
        let tsc = if i % 2 == 0 {
            control::rdtsc()
        } else {
            control::tsc()
        };
        if tsc <= last {
            println!("clock: read {i}: the TSC went from {last} to {tsc}");
            status = 1;
        }
        last = tsc;
        checksum = mix(checksum, tsc);
        if i % stride == 0 && i / stride < rtc_reads {
            let now = rtc::now();
            let wall = now.unix_seconds();
            println!(
                "clock: read {i}: tsc={tsc} wall={:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z",
                now.year, now.month, now.day, now.hour, now.minute, now.second
            );
            if wall < wall_last {
                println!("clock: read {i}: the wall clock went from {wall_last} to {wall}");
                status = 1;
            }
            wall_last = wall;
            checksum = mix(checksum, wall);
        }
    }

    let until = pit::ticks() + ticks;
    while pit::ticks() < until {
        interrupt::idle();
        checksum = mix(checksum, pit::ticks());
    }
    println!(
        "clock: reads={reads} first={first} last={last} wall={wall_last} checksum={checksum:016x}"
    );
    status
}

fn mix(sum: u64, value: u64) -> u64 {
    (sum.rotate_left(5) ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}
