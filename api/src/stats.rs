//! What a server counts of itself.

use crate::page::{MetricKind, Page};
use axum::http::Method;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tls::Strangers;

/// Upper bounds of the buckets of a [`Histogram`], in microseconds: from what a reply over loopback takes to what no
/// failover outlasts.
pub const BOUNDS_US: [u64; 14] = [
    50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000,
    5_000_000,
];

/// Times, counted by how long they were.
#[derive(Debug, Default)]
pub struct Histogram {
    /// By [`BOUNDS_US`], and beyond them.
    buckets: [AtomicU64; BOUNDS_US.len() + 1],
    sum_us: AtomicU64,
}

impl Histogram {
    /// One more.
    pub fn add(&self, time: Duration) {
        let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_US.partition_point(|bound| *bound < us);
        self.buckets[bucket].fetch_add(1, Relaxed);
        self.sum_us.fetch_add(us, Relaxed);
    }

    /// Tells them as `name`.
    pub fn show(&self, page: &mut Page, name: &str, help: &str) {
        let counts = self.buckets.iter().map(|bucket| bucket.load(Relaxed));
        let counts: Vec<_> = counts.collect();
        page.histogram(
            name,
            help,
            &[],
            &BOUNDS_US,
            &counts,
            self.sum_us.load(Relaxed),
        );
    }
}

/// What a server has done.
#[derive(Debug, Default)]
pub struct Stats {
    /// Who was not let in.
    pub strangers: Strangers,
    /// Requests that were not their asker's to make.
    pub refused: Strangers,
    /// How long it took to have something on disk.
    pub store: Histogram,
    /// How long it took to answer.
    answers: Histogram,
    /// Requests by what they were and the status of their reply. Both are from a short list of this program's own.
    requests: Mutex<BTreeMap<(String, u16), u64>>,
}

impl Stats {
    pub(crate) fn count(&self, method: &Method, kind: &str, status: u16, took: Duration) {
        self.answers.add(took);
        let kind = match kind.strip_prefix("/") {
            // A method is any word, and they are kept.
            Some(_) if [Method::GET, Method::PUT, Method::POST].contains(method) => {
                format!("{method} {kind}")
            }
            Some(_) => "other".to_owned(),
            None => kind.to_owned(),
        };
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        *requests.entry((kind, status)).or_default() += 1;
    }

    /// Tells all of it.
    pub fn show(&self, page: &mut Page) {
        let name = "tandem_requests_total";
        page.head(name, MetricKind::Counter, "Requests by kind and status.");
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        for ((kind, status), count) in &*requests {
            let status = status.to_string();
            page.sample(name, &[("kind", kind), ("status", &status)], *count);
        }
        drop(requests);
        let name = "tandem_requests_refused_total";
        let help = "Requests that were not their asker's to make, by its certificate.";
        page.one(name, MetricKind::Counter, help, self.refused.count());
        let name = "tandem_strangers_total";
        let help = "Connections that were turned away: no certificate of the cluster's, or plaintext from afar.";
        page.one(name, MetricKind::Counter, help, self.strangers.count());
        let help = "Time from a whole request to its answer.";
        self.answers.show(page, "tandem_request_seconds", help);
        let help = "Time to have a change on disk.";
        self.store.show(page, "tandem_store_seconds", help);
    }
}
