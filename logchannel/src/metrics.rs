//! Counters of one end of a link, readable while it runs.

use replay::Kind;
use serde::Serialize;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Buckets of the latency histogram: bucket `n` counts latencies from `2^(n-1)` to below `2^n`
/// microseconds, bucket 0 those below one, the last one everything longer (over half an hour).
pub const LATENCY_BUCKETS: usize = 32;

const KINDS: [Kind; 12] = [
    Kind::Tsc,
    Kind::ClockRead,
    Kind::Timer,
    Kind::Frame,
    Kind::Entropy,
    Kind::Disk,
    Kind::Console,
    Kind::IrqWindow,
    Kind::Output,
    Kind::Progress,
    Kind::State,
    Kind::Control,
];

#[derive(Debug, Default)]
struct PerKind {
    entries: AtomicU64,
    bytes: AtomicU64,
}

/// Counters of one end of a link. Each is right by itself; two of them may be a moment apart.
#[derive(Debug, Default)]
pub struct Metrics {
    pub(crate) bytes_sent: AtomicU64,
    pub(crate) bytes_received: AtomicU64,
    pub(crate) frames_sent: AtomicU64,
    pub(crate) frames_received: AtomicU64,
    pub(crate) stalls: AtomicU64,
    pub(crate) socket_full: AtomicU64,
    pub(crate) forged: AtomicU64,
    kinds: [PerKind; KINDS.len()],
    latency: [AtomicU64; LATENCY_BUCKETS],
    latency_sum_us: AtomicU64,
}

pub(crate) fn add(counter: &AtomicU64, amount: usize) {
    counter.fetch_add(amount as u64, Relaxed);
}

impl Metrics {
    pub(crate) fn entry(&self, kind: Kind, bytes: usize) {
        let counters = &self.kinds[kind as usize];
        add(&counters.entries, 1);
        add(&counters.bytes, bytes);
    }

    pub(crate) fn latency(&self, us: u64) {
        let bucket = (u64::BITS - us.leading_zeros()) as usize;
        add(&self.latency[bucket.min(LATENCY_BUCKETS - 1)], 1);
        self.latency_sum_us.fetch_add(us, Relaxed);
    }

    /// All counters now.
    #[must_use]
    pub fn snapshot(&self) -> MetricsSnapshot {
        let kinds = KINDS.map(|kind| {
            let counters = &self.kinds[kind as usize];
            KindMetrics {
                kind,
                entries: counters.entries.load(Relaxed),
                bytes: counters.bytes.load(Relaxed),
            }
        });
        let mut ack_latency_us = [0; LATENCY_BUCKETS];
        for (copy, counter) in ack_latency_us.iter_mut().zip(&self.latency) {
            *copy = counter.load(Relaxed);
        }
        MetricsSnapshot {
            bytes_sent: self.bytes_sent.load(Relaxed),
            bytes_received: self.bytes_received.load(Relaxed),
            frames_sent: self.frames_sent.load(Relaxed),
            frames_received: self.frames_received.load(Relaxed),
            entries: kinds.iter().map(|kind| kind.entries).sum(),
            stalls: self.stalls.load(Relaxed),
            socket_full: self.socket_full.load(Relaxed),
            forged: self.forged.load(Relaxed),
            kinds: kinds.into_iter().filter(|kind| kind.entries > 0).collect(),
            ack_latency_us,
            ack_latency_sum_us: self.latency_sum_us.load(Relaxed),
        }
    }
}

/// Entries of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct KindMetrics {
    /// Which.
    pub kind: Kind,
    /// How many.
    pub entries: u64,
    /// Encoded bytes of them, without what frames add.
    pub bytes: u64,
}

/// A copy of [`Metrics`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MetricsSnapshot {
    /// Bytes given to the socket, frames and all.
    pub bytes_sent: u64,
    /// Bytes taken from the socket.
    pub bytes_received: u64,
    /// Frames given to the socket whole.
    pub frames_sent: u64,
    /// Frames taken from the socket whole.
    pub frames_received: u64,
    /// Entries appended (primary) or received (backup).
    pub entries: u64,
    /// Primary: times the vCPU waited for room. Backup: times the socket was left unread for it.
    pub stalls: u64,
    /// Times the socket had no room, so that the rest went out later.
    pub socket_full: u64,
    /// Records that were not the peer's, or came before, or in another order. The first one ends the link.
    pub forged: u64,
    /// Entries by kind, those that occurred.
    pub kinds: Vec<KindMetrics>,
    /// Time from flush to ack, one sample a frame: see [`LATENCY_BUCKETS`].
    pub ack_latency_us: [u64; LATENCY_BUCKETS],
    /// All these times together, in microseconds.
    pub ack_latency_sum_us: u64,
}

impl MetricsSnapshot {
    /// The latency in microseconds that `percent` of the samples stay below, rounded up to a power
    /// of two; 0 if there are none.
    #[must_use]
    pub fn ack_latency_below_us(&self, percent: u64) -> u64 {
        let total: u64 = self.ack_latency_us.iter().sum();
        let mut seen = 0;
        for (bucket, count) in self.ack_latency_us.iter().enumerate() {
            seen += count;
            if total > 0 && seen * 100 >= total * percent {
                return 1 << bucket;
            }
        }
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_own_counter() {
        for (place, kind) in KINDS.iter().enumerate() {
            assert_eq!(*kind as usize, place);
        }
    }

    #[test]
    fn latencies_fall_into_buckets_by_powers_of_two() {
        let metrics = Metrics::default();
        for us in [0, 1, 2, 3, 4, 40, 40, u64::MAX] {
            metrics.latency(us);
        }
        let snapshot = metrics.snapshot();
        assert_eq!(snapshot.ack_latency_us[..7], [1, 1, 2, 1, 0, 0, 2]);
        assert_eq!(snapshot.ack_latency_us[LATENCY_BUCKETS - 1], 1);
        assert_eq!(snapshot.ack_latency_below_us(50), 4);
        assert_eq!(snapshot.ack_latency_below_us(80), 64);
    }
}
