//! Load on the guest `kv`: its peak on one connection and on fifty, and latency at a third of it.

use super::logs::{EntryBytes, LogCost, cost_between, counters};
use super::memory::Memory;
use super::mode::Mode;
use crate::error::Outcome;
use check::speed::{SpeedOptions, Stats, run_closed, run_paced};
use kit::During;
use kit::cluster::Pair;
use std::net::SocketAddr;
use std::time::Duration;
use vmm::hostclock;

/// Connections of the two measurements of the peak; the second is also that of the paced one.
pub const CONNECTIONS: [u16; 2] = [1, 50];
/// Not measured at the start of each.
const WARM_UP: Duration = Duration::from_millis(500);
/// The share of the peak at which latency is compared.
const SHARE: f64 = 3.0;

/// One measurement of the peak.
#[derive(Clone, Debug)]
pub struct Peak {
    /// What clients saw.
    pub stats: Stats,
    /// Under FT: what the log cost meanwhile.
    pub log: Option<LogCost>,
}

/// What one machine came to.
#[derive(Clone, Debug)]
pub struct KvRound {
    /// For each of [`CONNECTIONS`].
    pub peaks: Vec<Peak>,
    /// At a third of the peak without FT.
    pub paced: Option<Stats>,
    /// Under FT: memory.
    pub memory: Option<Memory>,
    /// Recording: what entries took.
    pub entry_bytes: Option<EntryBytes>,
}

/// Measures the server at `address`; see [`super::measure::Bench::kv`].
pub fn measure(
    address: SocketAddr,
    mode: Mode,
    seconds: u32,
    rate_per_s: &mut Option<u32>,
    pair: Option<&Pair>,
) -> Outcome<KvRound> {
    let duration = Duration::from_secs(seconds.into());
    let options = |connections| SpeedOptions {
        connections,
        warm_up: WARM_UP,
        duration,
        ..SpeedOptions::default()
    };
    let mut memory = pair.map(|_| Memory::default());
    let mut look = |pair: Option<&Pair>| {
        if let (Some(memory), Some(pair)) = (&mut memory, pair) {
            memory.look(pair);
        }
    };
    let mut peaks = Vec::new();
    for connections in CONNECTIONS {
        let stats = run_closed(address, &options(connections), 1)
            .during(format_args!("{connections} connections"))?;
        let ended_ns = hostclock::monotonic_ns();
        let log = pair
            .map(|pair| {
                let begun_ns = ended_ns.saturating_sub(stats.elapsed_ns);
                cost_between(&counters(&pair.metrics())?, begun_ns, ended_ns)
            })
            .transpose()?;
        look(pair);
        peaks.push(Peak { stats, log });
    }
    let paced = if mode == Mode::Recording {
        None
    } else {
        let peak = peaks.last().map_or(0.0, |peak| peak.stats.ops_per_s());
        let rate = *rate_per_s.get_or_insert((peak / SHARE).max(1.0) as u32);
        let stats = run_paced(address, &options(CONNECTIONS[1]), rate)
            .during(format_args!("{rate} requests a second"))?;
        look(pair);
        Some(stats)
    };
    Ok(KvRound {
        peaks,
        paced,
        memory,
        entry_bytes: None,
    })
}
