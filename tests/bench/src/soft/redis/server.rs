//! A server under load: one process, or the two of a pair.

use super::guest::Files;
use super::rows::Way;
use crate::error::{BenchError, Outcome};
use crate::measure::{Bench, wait_good};
use crate::qemu::tsc_khz;
use check::resp::{Client, Reply};
use kit::During;
use kit::cluster::PairOptions;
use kit::daemon::Daemon;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

/// What redis-server prints when it serves.
const READY: &str = "Ready to accept connections";
/// Longest time until then.
const PATIENCE: Duration = Duration::from_secs(180);
/// Longest time for an answer.
const LIMIT: Duration = Duration::from_secs(30);

/// One that serves.
pub struct Server {
    /// In the order of [`Way::processes`]; the first is the one that ends the machine when asked to.
    daemons: Vec<Daemon>,
}

impl Server {
    /// Starts it, and waits until it serves.
    pub fn start(
        bench: &Bench<'_>,
        way: Way,
        files: &Files,
        qemu: Option<&Path>,
        round: u32,
    ) -> Outcome<Self> {
        let daemons = match (way, qemu) {
            (Way::UnderFt, _) => {
                let mut options = PairOptions {
                    network: true,
                    ..bench.pair_options()
                };
                options.backup = ["--engine", "soft"].map(OsString::from).into();
                let vm = bench.vm("redis", round);
                let pair = bench.cluster.start_pair(&vm, &files.words(), &options)?;
                vec![pair.primary, pair.backup]
            }
            (Way::Tcg, Some(qemu)) => {
                let errors = files.file("qemu.err");
                let args = files.qemu_args(tsc_khz());
                vec![Daemon::start_other(way.name(), qemu, args, errors)?]
            }
            _ => {
                let words = files.words();
                vec![bench.cluster.start_single("run", &words, &[], true)?]
            }
        };
        daemons[0].wait_line(PATIENCE, |line| line.contains(READY))?;
        Ok(Self { daemons })
    }

    /// The processor time each of its processes has taken.
    pub fn cpu(&self) -> Outcome<Vec<Duration>> {
        let of = |daemon: &Daemon| {
            let gone = || BenchError::from(daemon.failed("ended under load"));
            daemon.cpu().ok_or_else(gone)
        };
        self.daemons.iter().map(of).collect()
    }

    /// Ends it; whether it was well until then.
    pub fn end(&mut self) -> Outcome {
        self.daemons[0].ask_to_end();
        self.daemons.iter_mut().try_for_each(wait_good)
    }
}

/// Fails if the server at `address` does not have what redis-benchmark set: answers alone say little.
pub fn check(address: SocketAddr) -> Outcome {
    let mut client = Client::connect(address, LIMIT, LIMIT).during("the guest's server")?;
    // The key as long as it is not asked to vary, and three bytes unless others are (redis-benchmark.c).
    let value = client
        .command(&[b"GET", b"key:__rand_int__"])
        .during("the guest's server")?;
    match value {
        Reply::Bulk(Some(value)) if value.len() == 3 => Ok(()),
        other => Err(BenchError::said(format!(
            "the guest's server does not have what was set: {other:?}"
        ))),
    }
}
