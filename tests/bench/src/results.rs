//! What a benchmark comes to: medians, ratios, goals; the JSON of `tandem bench`.

use super::cpu::CpuPerOp;
use super::logs::{Bytes, EntryBytes, LogCost, quantile_of_counts};
use super::medians::{median, ratio};
use super::memory::Memory;
use super::soft::SoftResults;
use check::latencies::{Latencies, quantile};
use check::speed::Stats;
use kit::host::HostFacts;
use replay::Kind;
use serde::Serialize;
use std::collections::BTreeMap;
use terminal::figures::mbit_s;

/// One value for each way to run a guest.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct PerMode<T> {
    /// `tandem run`.
    pub without_ft: T,
    /// `tandem record`.
    pub recording: T,
    /// A pair.
    pub under_ft: T,
}

impl<T> PerMode<T> {
    /// `f` of each.
    pub fn map<U>(&self, f: impl Fn(&T) -> U) -> PerMode<U> {
        PerMode {
            without_ft: f(&self.without_ft),
            recording: f(&self.recording),
            under_ft: f(&self.under_ft),
        }
    }
}

/// Entries of one kind in a log.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct KindCost {
    /// Entries a second.
    pub entries_per_s: f64,
    /// Mean bytes of one, without framing.
    pub bytes_per_entry: f64,
    /// Bandwidth of their bytes.
    pub mbit_s: f64,
}

/// Latency of replies, in microseconds: medians over the rounds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LatencyUs {
    /// Half of all took no longer.
    pub p50: u64,
    /// 99 % took no longer.
    pub p99: u64,
    /// 99.9 % took no longer.
    pub p999: u64,
}

/// One workload.
#[derive(Clone, Debug, Serialize)]
pub struct Workload {
    /// Its name.
    pub name: String,
    /// What its rates count, by the second.
    pub unit: &'static str,
    /// Medians over the rounds.
    pub rate: PerMode<f64>,
    /// The rate of each round.
    pub rounds: PerMode<Vec<f64>>,
    /// Rate of recording to a file over that without.
    pub record_ratio: f64,
    /// Rate under FT over that without.
    pub ft_ratio: f64,
    /// Log bandwidth on the wire, everything in it.
    pub log_mbit_s: f64,
    /// What frames and heartbeats have of that.
    pub framing_mbit_s: f64,
    /// What entries have of it.
    pub kinds: BTreeMap<Kind, KindCost>,
    /// Longest execution lag noted, in milliseconds.
    pub lag_ms_max: f64,
    /// With requests sent as fast as replies come.
    pub latency_us: Option<PerMode<LatencyUs>>,
    /// Processor time for one of `unit`; of bytes, for a MiB.
    #[serde(flatten)]
    pub cpu: CpuPerOp,
}

/// `kv` at the same rate with and without FT.
#[derive(Clone, Debug, Serialize)]
pub struct Latency {
    /// Percent of the peak without FT.
    pub percent: u32,
    /// That in requests a second.
    pub rate_per_s: u32,
    /// Connections.
    pub connections: u16,
    /// Without FT.
    pub without_ft: LatencyUs,
    /// Under FT.
    pub under_ft: LatencyUs,
    /// The difference; below zero when chance has it so.
    pub added_us: AddedUs,
    /// Requests answered without error, under FT over without.
    pub throughput_ratio: f64,
}

/// A difference of latencies, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct AddedUs {
    /// Of the medians.
    pub p50: i64,
    /// Of the 99th percentiles.
    pub p99: i64,
    /// Of what 99.9 % do not exceed.
    pub p999: i64,
}

/// Kills of a primary under load.
#[derive(Clone, Debug, Serialize)]
pub struct Failover {
    /// How many.
    pub kills: u32,
    /// Connections that broke.
    pub connections_broken: usize,
    /// Acknowledged writes that were lost.
    pub lost_writes: usize,
    /// Whether every history was linearizable.
    pub linearizable: bool,
    /// Longest wait of each client at each kill.
    pub stall_ms: StallMs,
    /// Medians, in microseconds after the kill.
    pub phases_us: BTreeMap<&'static str, u64>,
    /// Each client's stall at each kill, in microseconds, rising.
    pub stalls_us: Vec<u64>,
}

/// Quantiles of stalls, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct StallMs {
    /// Half of the clients waited no longer.
    pub p50: f64,
    /// 99 % waited no longer.
    pub p99: f64,
    /// The longest.
    pub max: f64,
}

impl StallMs {
    /// Of stalls in microseconds.
    #[must_use]
    pub fn of(stalls_us: &mut [u64]) -> Self {
        let mut at = |per_mille| quantile(stalls_us, per_mille) as f64 / 1000.0;
        Self {
            p50: at(500),
            p99: at(990),
            max: at(1000),
        }
    }
}

/// How late timer ticks came to a guest that computes without exits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct TickLate {
    /// How many were looked at.
    pub ticks: u64,
    /// Half came no later, in microseconds.
    pub p50_us: u64,
    /// 99 % came no later.
    pub p99_us: u64,
    /// The latest.
    pub max_us: u64,
}

impl TickLate {
    /// Of pairs (microseconds at most, how many), in any order; none without ticks.
    #[must_use]
    pub fn of(mut counts: Vec<(u64, u64)>) -> Option<Self> {
        counts.sort_unstable();
        let ticks = counts.iter().map(|(_, count)| count).sum();
        let at = |per_mille| quantile_of_counts(&counts, per_mille);
        (ticks > 0).then(|| Self {
            ticks,
            p50_us: at(500),
            p99_us: at(990),
            max_us: at(1000),
        })
    }
}

/// What entries take in recordings.
#[derive(Clone, Debug, Serialize)]
pub struct EntrySizes {
    /// A timer interrupt.
    pub timer: Bytes,
    /// A received frame, beyond its own length.
    pub frame_beyond_its_length: Bytes,
}

/// Peak memory of the replicas' processes beside their guests'.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ReplicaMemory {
    /// Memory of each guest, in MiB.
    pub guest_mib: u32,
    /// Over all workloads.
    #[serde(flatten)]
    pub over: Memory,
}

/// Something to be reached, and whether it was.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Goal {
    /// What.
    pub name: &'static str,
    /// The bound, in words.
    pub goal: &'static str,
    /// What was measured, in words.
    pub measured: String,
    /// Whether that is within the bound.
    pub met: bool,
    /// The workload it is about, if it is about one.
    pub workload: Option<&'static str>,
}

/// Everything.
#[derive(Clone, Debug, Serialize)]
pub struct Results {
    /// Of this program.
    pub version: &'static str,
    /// Where it was measured.
    pub host: HostFacts,
    /// The network between clients and guest.
    pub network: String,
    /// Rounds of each measurement.
    pub rounds: u32,
    /// Seconds of each.
    pub seconds: u32,
    /// Percent of the host's processor time that others took meanwhile.
    pub others_percent: Option<u64>,
    /// By name.
    pub workloads: Vec<Workload>,
    /// If `kv` was measured: at a third of its peak.
    pub latency: Option<Latency>,
    /// If that was asked for: at other shares of it.
    pub paced: Vec<Latency>,
    /// If it was measured.
    pub failover: Option<Failover>,
    /// If anything ran under FT.
    pub memory: Option<ReplicaMemory>,
    /// If `counter` was measured.
    pub tick_late: Option<TickLate>,
    /// If anything was recorded.
    pub entry_sizes: Option<EntrySizes>,
    /// If the software engine was measured: `cpu`, `boot`, `idle`, `redis`.
    #[serde(flatten)]
    pub soft: Option<SoftResults>,
    /// Those of them that were measured.
    pub goals: Vec<Goal>,
}

/// Latencies over rounds: of each round its quantile, of these the median.
#[must_use]
pub fn latency_us(rounds: &[Stats]) -> LatencyUs {
    let at = |per_mille| {
        let mut values: Vec<u64> = rounds
            .iter()
            .map(|s| s.latency.quantile_us(per_mille))
            .collect();
        quantile(&mut values, 500)
    };
    LatencyUs {
        p50: at(500),
        p99: at(990),
        p999: at(999),
    }
}

impl Workload {
    /// A workload from what was measured.
    #[must_use]
    pub fn new(
        name: impl Into<String>,
        unit: &'static str,
        rounds: PerMode<Vec<f64>>,
        log: &LogCost,
        latency_us: Option<PerMode<LatencyUs>>,
        cpu: CpuPerOp,
    ) -> Self {
        let rate = rounds.map(|rates| median(rates));
        let seconds = (log.us as f64 / 1e6).max(1e-6);
        let kinds = log.kinds.iter().map(|(kind, share)| {
            let cost = KindCost {
                entries_per_s: share.entries as f64 / seconds,
                bytes_per_entry: ratio(share.bytes as f64, share.entries as f64),
                mbit_s: mbit_s(share.bytes, log.us),
            };
            (*kind, cost)
        });
        Self {
            name: name.into(),
            unit,
            record_ratio: ratio(rate.recording, rate.without_ft),
            ft_ratio: ratio(rate.under_ft, rate.without_ft),
            rate,
            rounds,
            log_mbit_s: mbit_s(log.wire_bytes, log.us),
            framing_mbit_s: mbit_s(log.wire_bytes.saturating_sub(log.entry_bytes()), log.us),
            kinds: kinds.collect(),
            lag_ms_max: log.lag_us_max as f64 / 1000.0,
            latency_us,
            cpu,
        }
    }
}

impl Latency {
    /// The comparison of paced rounds.
    #[must_use]
    pub fn new(
        (percent, rate_per_s): (u32, u32),
        connections: u16,
        without: &[Stats],
        under: &[Stats],
    ) -> Self {
        let (without_ft, under_ft) = (latency_us(without), latency_us(under));
        let added =
            |a: u64, b: u64| i64::try_from(a).unwrap_or(i64::MAX) - i64::try_from(b).unwrap_or(0);
        let good = |rounds: &[Stats]| {
            rounds
                .iter()
                .map(|s| s.ops.saturating_sub(s.errors))
                .sum::<u64>() as f64
        };
        Self {
            percent,
            rate_per_s,
            connections,
            without_ft,
            under_ft,
            added_us: AddedUs {
                p50: added(under_ft.p50, without_ft.p50),
                p99: added(under_ft.p99, without_ft.p99),
                p999: added(under_ft.p999, without_ft.p999),
            },
            throughput_ratio: ratio(good(under), good(without)),
        }
    }
}

/// The latencies of all rounds together, for a plot.
#[must_use]
pub fn merged(rounds: &[Stats]) -> Latencies {
    let mut all = Latencies::default();
    rounds.iter().for_each(|stats| all.merge(&stats.latency));
    all
}

impl From<EntryBytes> for EntrySizes {
    fn from(bytes: EntryBytes) -> Self {
        Self {
            timer: bytes.timer,
            frame_beyond_its_length: bytes.frame_extra,
        }
    }
}

impl Results {
    /// The workload called `name`.
    #[must_use]
    pub fn workload(&self, name: &str) -> Option<&Workload> {
        self.workloads.iter().find(|workload| workload.name == name)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::logs::Share;
    use super::super::memory::GUEST_MIB;
    use super::*;

    fn stats(latencies_us: &[u64]) -> Stats {
        let mut latency = Latencies::default();
        latencies_us.iter().for_each(|us| latency.record(us * 1000));
        Stats {
            ops: latencies_us.len() as u64,
            errors: 0,
            elapsed_ns: 1_000_000_000,
            latency,
        }
    }

    /// Results with every part in them, the goals left out.
    pub fn example() -> Results {
        let kinds = BTreeMap::from([
            (
                Kind::Timer,
                Share {
                    entries: 300,
                    bytes: 2700,
                },
            ),
            (
                Kind::Frame,
                Share {
                    entries: 1000,
                    bytes: 100_000,
                },
            ),
        ]);
        let log = LogCost {
            us: 1_000_000,
            wire_bytes: 110_000,
            kinds,
            lag_us_max: 2500,
        };
        let rounds = PerMode {
            without_ft: vec![200.0, 100.0, 120.0],
            recording: vec![90.0, 114.0, 130.0],
            under_ft: vec![108.0, 90.0, 110.0],
        };
        let slow = LatencyUs {
            p50: 300,
            p99: 900,
            p999: 990,
        };
        let latencies = PerMode {
            without_ft: slow,
            recording: slow,
            under_ft: slow,
        };
        let workload = |name: &str, unit, latency| {
            let cpu = super::super::cpu::example();
            Workload::new(name, unit, rounds.clone(), &log, latency, cpu)
        };
        let mut stalls_us = vec![90_000, 120_000, 400_000];
        let bytes = Bytes {
            entries_by_bytes: BTreeMap::from([(10, 98), (11, 1), (12, 1)]),
        };
        Results {
            version: "0.0.0",
            host: HostFacts::gather(),
            network: "userspace switch".into(),
            rounds: 3,
            seconds: 2,
            others_percent: Some(3),
            workloads: vec![
                workload("counter", "iterations", None),
                workload("kv, 1 connection", "requests", Some(latencies.clone())),
                workload("kv, 50 connections", "requests", Some(latencies)),
                workload("disk", "bytes", None),
            ],
            latency: Some(Latency::new(
                (33, 40),
                50,
                &[stats(&[100, 100])],
                &[stats(&[220, 260])],
            )),
            paced: vec![Latency::new(
                (10, 12),
                50,
                &[stats(&[90])],
                &[stats(&[190])],
            )],
            failover: Some(Failover {
                kills: 3,
                connections_broken: 0,
                lost_writes: 0,
                linearizable: true,
                stall_ms: StallMs::of(&mut stalls_us),
                phases_us: BTreeMap::from([
                    ("noticed", 250_300),
                    ("flag_won", 250_700),
                    ("drained", 250_800),
                    ("live", 250_900),
                    ("first_reply", 251_000),
                ]),
                stalls_us,
            }),
            memory: Some(ReplicaMemory {
                guest_mib: GUEST_MIB,
                over: Memory {
                    primary_kib: 9000,
                    backup_kib: 10_000,
                },
            }),
            tick_late: TickLate::of(vec![(40, 98), (900, 1), (3000, 1)]),
            entry_sizes: Some(EntrySizes {
                timer: bytes.clone(),
                frame_beyond_its_length: bytes,
            }),
            soft: None,
            goals: Vec::new(),
        }
    }

    #[test]
    fn ratios_are_of_medians_and_bandwidths_add_up() {
        let results = example();
        let counter = results.workload("counter").unwrap();
        assert_eq!(
            counter.rate,
            PerMode {
                without_ft: 120.0,
                recording: 114.0,
                under_ft: 108.0
            }
        );
        assert_eq!((counter.record_ratio, counter.ft_ratio), (0.95, 0.9));
        let entries: f64 = counter.kinds.values().map(|kind| kind.mbit_s).sum();
        assert!((entries + counter.framing_mbit_s - counter.log_mbit_s).abs() < 1e-9);
        assert_eq!(counter.kinds[&Kind::Timer].bytes_per_entry, 9.0);
    }

    #[test]
    fn latency_is_compared_by_medians_of_rounds() {
        let without = [stats(&[100]), stats(&[120]), stats(&[5000])];
        let under = [stats(&[110]), stats(&[90]), stats(&[101])];
        let latency = Latency::new((33, 10), 50, &without, &under);
        assert_eq!((latency.without_ft.p50, latency.under_ft.p50), (120, 101));
        assert!(latency.added_us.p50 < 0, "chance may have it so");
        assert_eq!(latency.throughput_ratio, 1.0);
        assert_eq!(merged(&under).count(), 3);
    }

    #[test]
    fn lateness_is_told_by_quantiles() {
        let late = TickLate::of(vec![(3000, 1), (40, 98), (900, 1)]).unwrap();
        assert_eq!((late.p50_us, late.p99_us, late.max_us), (40, 900, 3000));
        assert_eq!(TickLate::of(Vec::new()), None);
    }

    #[test]
    fn the_json_has_what_scripts_look_for() {
        let json = serde_json::to_value(example()).unwrap();
        let counter = &json["workloads"][0];
        assert_eq!(counter["name"], "counter");
        assert_eq!(counter["ft_ratio"], 0.9);
        assert!(counter["log_mbit_s"].as_f64().unwrap() > 0.8);
        assert_eq!(counter["kinds"]["timer"]["bytes_per_entry"], 9.0);
        assert_eq!(counter["rounds"]["under_ft"][1], 90.0);
        assert_eq!(json["memory"]["backup_kib"], 10_000);
        assert_eq!(json["latency"]["rate_per_s"], 40);
        assert_eq!(json["paced"][0]["percent"], 10);
        assert_eq!(json["paced"][0]["added_us"]["p999"], 100);
        assert_eq!(counter["cpu_us_per_op"]["without_ft"], 10.0);
        assert_eq!(counter["cpu_us_per_op"]["backup"], 6.0);
        assert_eq!(counter["cpu_us_per_op_by_thread"]["primary"]["vcpu"], 9.0);
        assert_eq!(json["entry_sizes"]["timer"]["entries_by_bytes"]["10"], 98);
        assert_eq!(json["failover"]["stall_ms"]["p50"], 120.0);
        assert_eq!(json["tick_late"]["p99_us"], 900);
        assert!(json["host"]["cores"].as_u64().unwrap() > 0);
    }
}
