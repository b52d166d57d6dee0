//! Load on the guest `kv`: its peak on one connection and on fifty, and latency at shares of it.

use super::cpu::{Cost, Meter};
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

/// The rates at which latency is compared: the same for a machine with and without fault tolerance.
#[derive(Clone, Debug)]
pub struct Rates {
    /// Of the peak, in percent.
    pub percents: Vec<u32>,
    /// The peak without FT, in requests a second, once it was measured.
    pub peak_per_s: Option<f64>,
}

impl Rates {
    /// Each of them in requests a second, with its share; none before the peak is known.
    #[must_use]
    pub fn per_s(&self) -> Vec<(u32, u32)> {
        let peak = self.peak_per_s.unwrap_or_default();
        let rate = |percent: u32| ((peak * f64::from(percent) / 100.0) as u32).max(1);
        self.percents.iter().map(|p| (*p, rate(*p))).collect()
    }
}

/// One measurement of the peak.
#[derive(Clone, Debug)]
pub struct Peak {
    /// What clients saw.
    pub stats: Stats,
    /// Under FT: what the log cost meanwhile.
    pub log: Option<LogCost>,
    /// Processor time meanwhile.
    pub cpu: Cost,
}

/// What one machine came to.
#[derive(Clone, Debug)]
pub struct KvRound {
    /// For each of [`CONNECTIONS`].
    pub peaks: Vec<Peak>,
    /// At each of [`Rates::percents`].
    pub paced: Vec<Stats>,
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
    rates: &mut Rates,
    pair: Option<&Pair>,
    mut meter: Meter<'_>,
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
        let stats = run_closed(address, &options(connections), 1, &mut || meter.restart())
            .during(format_args!("{connections} connections"))?;
        let cpu = meter.read(stats.ops as f64);
        let ended_ns = hostclock::monotonic_ns();
        let log = pair
            .map(|pair| {
                let begun_ns = ended_ns.saturating_sub(stats.elapsed_ns);
                cost_between(&counters(&pair.metrics())?, begun_ns, ended_ns)
            })
            .transpose()?;
        look(pair);
        peaks.push(Peak { stats, log, cpu });
    }
    let mut paced = Vec::new();
    if mode != Mode::Recording {
        let peak = peaks.last().map_or(0.0, |peak| peak.stats.ops_per_s());
        rates.peak_per_s.get_or_insert(peak);
        for (_, rate) in rates.per_s() {
            let stats = run_paced(address, &options(CONNECTIONS[1]), rate, &mut || {})
                .during(format_args!("{rate} requests a second"))?;
            look(pair);
            paced.push(stats);
        }
    }
    Ok(KvRound {
        peaks,
        paced,
        memory,
        entry_bytes: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_shares_of_the_peak() {
        let rates = |peak_per_s| Rates {
            percents: vec![10, 60],
            peak_per_s,
        };
        assert_eq!(rates(Some(5000.0)).per_s(), [(10, 500), (60, 3000)]);
        assert_eq!(rates(None).per_s(), [(10, 1), (60, 1)]);
    }
}
