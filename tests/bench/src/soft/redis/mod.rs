//! Debian's redis-server on Debian's kernel: unprotected, under fault tolerance, and on QEMU's TCG.
//!
//! ```text
//!  guest    one image for all           client   redis-benchmark, in this network
//!     │                                    │
//!  server   tandem run │ a pair │ QEMU  ◀──┘ TAP          rounds interleaved
//!     │ processor time of each process
//!     ▼
//!  rows ──▶ words, JSON
//! ```

mod client;
mod guest;
mod rows;
mod server;

pub use guest::RedisGuest;
#[cfg(test)]
pub use rows::example;
pub use rows::{Process, RedisRow, Way};

use super::SoftResults;
use crate::error::{BenchError, Outcome};
use crate::measure::Bench;
use client::{Client, requests_for};
use guest::Files;
use rows::{Load, Measured};
use server::Server;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The suite `redis`.
pub struct Redis {
    files: Files,
    client: PathBuf,
    /// If QEMU is installed.
    qemu: Option<PathBuf>,
    /// What is known of each load's rate, by its place in [`Load::ALL`].
    rates: BTreeMap<(Way, usize), f64>,
    rows: Vec<RedisRow>,
    failures: Vec<String>,
}

impl Redis {
    /// Ready to measure the server in `image`, or in one that is built now.
    ///
    /// # Errors
    /// If there is no such image, or nothing to make requests with.
    pub fn prepare(image: Option<&Path>) -> Outcome<Self> {
        let client = guest::client()?;
        Ok(Self {
            files: Files::prepare(image)?,
            client,
            qemu: guest::qemu_program().ok(),
            rates: BTreeMap::new(),
            rows: Load::ALL.map(RedisRow::new).into(),
            failures: Vec::new(),
        })
    }

    /// Adds what was measured so far.
    pub fn add_to(&self, results: &mut SoftResults) {
        let guest = &self.files.guest;
        if results.kernel.is_empty() {
            results.kernel.clone_from(&guest.kernel);
            results.memory_mib = guest.memory_mib;
            results.qemu = self.qemu.is_some();
        }
        results.redis.clone_from(&self.rows);
        results.redis_guest = Some(guest.clone());
        results.failures.extend_from_slice(&self.failures);
    }

    /// Measures every load in every way there is here. A failure of one is noted, and costs only its own figures.
    ///
    /// # Errors
    /// If anything failed.
    pub fn measure(
        &mut self,
        bench: &Bench<'_>,
        rounds: u32,
        progress: &mut dyn FnMut(&str),
    ) -> Outcome {
        if bench.cluster.switch_socket().is_some() {
            return Err(BenchError::said(format!(
                "it is measured over TAP interfaces, and there are none: {}",
                bench.cluster.network_note()
            )));
        }
        for round in 0..rounds {
            for way in Way::ALL {
                progress(way.name());
                if way == Way::Tcg && self.qemu.is_none() {
                    continue;
                }
                if let Err(why) = self.round(bench, way, round) {
                    let failure = format!("{}: {why}", way.name());
                    if !self.failures.contains(&failure) {
                        self.failures.push(failure);
                    }
                }
            }
        }
        self.rows.iter_mut().for_each(RedisRow::judge);
        match self.failures.first() {
            None => Ok(()),
            Some(first) => Err(BenchError::said(first.as_str())),
        }
    }

    /// Every load on one new server.
    fn round(&mut self, bench: &Bench<'_>, way: Way, round: u32) -> Outcome {
        let mut server = Server::start(bench, way, &self.files, self.qemu.as_deref(), round)?;
        let address = bench.cluster.server();
        let errors = self.files.file("redis-benchmark.err");
        let time = Duration::from_secs(bench.seconds.into());
        let client = Client::new(&self.client, address, time, errors);
        for (n, load) in Load::ALL.into_iter().enumerate() {
            let known = self.rates.get(&(way, n)).copied();
            let rate = client.warm_up(load, known)?;
            let requests = requests_for(rate, time, load);
            let before = server.cpu()?;
            let rate = client.run(load, requests)?;
            let after = server.cpu()?;
            let cpu = after.iter().zip(&before);
            let measured = Measured {
                rate,
                requests,
                cpu: cpu.map(|(now, then)| now.saturating_sub(*then)).collect(),
            };
            self.rows[n].take(way, &measured);
            self.rates.insert((way, n), rate);
        }
        server::check(address)?;
        server.end()
    }
}
