//! How fast a link is on this machine. Printed, not judged, but for a bound that only a broken link
//! would miss. `cargo test --release --test speed -- --nocapture` shows it.

mod common;

use common::primary;
use common::wire::{BASES, PATIENT, backup, entry, wire};
use logchannel::{Received, ReceiverOptions, SenderOptions};
use replay::{Clock, LogEntry, LogSink, Outlet, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Instant;

/// Appends, flushes, and waits for the ack; over and over. Says percentiles in microseconds.
fn round_trips(count: u64, busy_threads: usize) -> [u128; 4] {
    let wire = wire(BASES[0], PATIENT);
    let mut primary = primary(wire.primary, SenderOptions::default());
    let mut backup = backup(wire.backup, ReceiverOptions::default());
    let stop = Arc::new(AtomicBool::new(false));
    let busy: Vec<_> = (0..busy_threads)
        .map(|_| {
            let stop = stop.clone();
            std::thread::spawn(move || {
                while !stop.load(SeqCst) {
                    std::hint::spin_loop();
                }
            })
        })
        .collect();
    let replaying = std::thread::spawn(move || {
        for _ in 0..count {
            assert!(matches!(backup.receiver.next(true), Received::Entry(..)));
        }
        backup
    });
    let mut outlet = primary.outlet();
    let mut times: Vec<u128> = (0..count)
        .map(|n| {
            let begun = Instant::now();
            let index = primary.sender.append(&entry(BASES[0], n)).unwrap();
            outlet.emit(index, Output::Console(vec![0])).unwrap();
            primary.sender.flush().unwrap();
            let (emitted, _) = primary.emitted.recv().unwrap();
            assert_eq!(emitted, index);
            begun.elapsed().as_nanos() / 1000
        })
        .collect();
    let metrics = primary.sender.handle().metrics();
    println!(
        "{count} round trips, {busy_threads} busy threads beside: half of the acks below {} us, 99 % below {} us",
        metrics.ack_latency_below_us(50),
        metrics.ack_latency_below_us(99)
    );
    stop.store(true, SeqCst);
    busy.into_iter().for_each(|thread| thread.join().unwrap());
    drop(replaying.join().unwrap());
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    [at(50), at(90), at(99), at(100)]
}

#[test]
fn round_trip() {
    // On a machine whose processors are all busy each takes some time slices.
    for (busy, count) in [(0, 5_000), (1, 5_000), (2, 100)] {
        let [p50, p90, p99, max] = round_trips(count, busy);
        println!("append to output: p50 {p50} us, p90 {p90} us, p99 {p99} us, max {max} us");
        assert!(p50 < 200_000, "a round trip takes more than 200 ms");
    }
}

#[test]
fn throughput() {
    const COUNT: u64 = 1_000_000;
    let wire = wire(BASES[0], PATIENT);
    let mut primary = primary(wire.primary, SenderOptions::default());
    let mut backup = backup(wire.backup, ReceiverOptions::default());
    let begun = Instant::now();
    let replaying = std::thread::spawn(move || {
        for _ in 0..COUNT {
            assert!(matches!(backup.receiver.next(true), Received::Entry(..)));
        }
        backup
    });
    let mut appending = std::time::Duration::ZERO;
    for n in 0..COUNT {
        let entry: LogEntry = if n % 4 == 0 {
            entry(BASES[0], n)
        } else {
            LogEntry::progress(Clock(n * 10))
        };
        let before = Instant::now();
        primary.sender.append(&entry).unwrap();
        appending += before.elapsed();
    }
    assert!(primary.sender.wait_acked());
    drop(replaying.join().unwrap());
    let metrics = primary.sender.handle().metrics();
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "{COUNT} entries, {} MB in {} frames: {:.0} entries/s, {:.0} MB/s, {:.0} ns in append",
        metrics.bytes_sent / 1_000_000,
        metrics.frames_sent,
        COUNT as f64 / seconds,
        metrics.bytes_sent as f64 / 1e6 / seconds,
        appending.as_nanos() as f64 / COUNT as f64
    );
    assert_eq!(metrics.entries, COUNT);
}
