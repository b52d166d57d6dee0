//! What fault tolerance costs, and what the software engine does: what `tandem bench` measures and shows.
//!
//! ```text
//!  measure, kv    each workload without FT, recording, under FT: interleaved rounds
//!  kit::round     kills of a primary under load
//!  soft           the software engine: processor kernels, boot and idling of Linux, redis-server
//!       │ logs (counters, recordings), memory
//!       ▼
//!  results ──▶ goals ──▶ words (table) │ JSON │ plots (SVG, drawn by plot)
//! ```
//!
//! # Example
//!
//! What protection costs a key-value server, in five rounds of ten seconds:
//!
//! ```no_run
//! use bench::{Spec, bench};
//!
//! kit::use_program("/usr/local/bin/tandem");
//! bench(&Spec {
//!     workloads: vec!["kv".into(), "failover".into()],
//!     rounds: 5,
//!     seconds: 10,
//!     folder: "bench-results".into(),
//!     image: None,
//!     network: "auto".into(),
//!     tls: false,
//!     suspect_ms: 300,
//!     paced: false,
//!     json: false,
//! })?;
//! # Ok::<(), bench::BenchError>(())
//! ```
//!
//! A workload there is none of is refused before anything is started:
//!
//! ```
//! # use bench::{Spec, bench};
//! let spec = Spec {
//!     workloads: vec!["netperf".into()],
//! #   rounds: 5,
//! #   seconds: 10,
//! #   folder: "bench-results".into(),
//! #   image: None,
//! #   network: "auto".into(),
//! #   tls: false,
//! #   suspect_ms: 300,
//! #   paced: false,
//! #   json: false,
//!     // ...
//! };
//! let refused = bench(&spec).unwrap_err().to_string();
//! assert!(refused.starts_with("no workload 'netperf': there are counter, kv, "), "{refused}");
//! ```

mod cpu;
mod error;
mod goals;
mod kv;
mod logs;
mod measure;
mod medians;
mod memory;
mod mode;
mod others;
mod paper;
mod plot;
mod plots;
pub mod qemu;
mod results;
mod soft;
mod words;

pub use error::BenchError;

use check::speed::Stats;
use cpu::CpuPerOp;
use error::Outcome;
use indicatif::{ProgressBar, ProgressStyle};
use kit::During;
use kit::cluster::{Cluster, choose_network};
use kit::guest::Served;
use kit::host::HostFacts;
use kit::leftovers;
use kit::round::{self, RoundOptions};
use kv::{KvRound, Rates};
use logs::{EntryBytes, LogCost};
use measure::{Bench, SelfEnding};
use memory::{GUEST_MIB, Memory};
use mode::Mode;
use others::Others;
use plots::Distributions;
use results::{
    Failover, Latency, PerMode, ReplicaMemory, Results, StallMs, TickLate, Workload, latency_us,
    merged,
};
use soft::{Redis, Soft};
use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use terminal::say;

/// What is measured if nothing is named.
const WORKLOADS: [&str; 4] = ["counter", "kv", "disk", "failover"];
/// What else can be: `disk` with a disk of the backup's own, and with a backup that reads the disk itself.
const DISK_WORKLOADS: [&str; 3] = ["disk-read", "disk-copy", "disk-copy-read"];
/// And of the software engine, with a Linux guest.
const SOFT_WORKLOADS: [&str; 3] = ["cpu", "boot", "idle"];
/// And of it under fault tolerance, too.
const REDIS: &str = "redis";
/// The share of its peak, in percent, at which the latency of `kv` is always compared.
const THIRD: u32 = 33;
/// And at which others if that is asked for.
pub const PERCENTS: [u32; 3] = [10, 30, 60];
/// Kills for each round asked for.
const KILLS: u32 = 2;

/// What is to be measured.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Workloads by name; the usual ones if none is named.
    pub workloads: Vec<String>,
    /// Rounds of each measurement, of which medians are quoted.
    pub rounds: u32,
    /// Seconds of one measurement.
    pub seconds: u32,
    /// Folder for results and plots. Made if it is not there.
    pub folder: PathBuf,
    /// The Linux guest of the software engine's workloads: what `tandem image` made, without a disk, and of
    /// redis-server for `redis`; if not given, it is made.
    pub image: Option<PathBuf>,
    /// As for [`choose_network`].
    pub network: String,
    /// As for [`Cluster::start`].
    pub tls: bool,
    /// Silence after which one replica suspects the other, in milliseconds.
    pub suspect_ms: u32,
    /// Latency of `kv` at [`PERCENTS`] of its peak, too.
    pub paced: bool,
    /// One JSON object on stdout instead of a table.
    pub json: bool,
}

/// Measures, writes results and plots, and shows them on standard output. To be called while this process has
/// one thread only, and has been told by [`kit::use_program`] of what program machines are.
///
/// # Errors
/// If something could not be measured; what was until then is shown all the same.
pub fn bench(spec: &Spec) -> Result<(), BenchError> {
    let workloads = chosen(&spec.workloads)?;
    if spec.rounds == 0 || spec.seconds == 0 {
        return Err(BenchError::said("--rounds and --seconds take at least 1"));
    }
    let (of_soft, of_pairs): (Vec<_>, Vec<_>) = workloads
        .iter()
        .partition::<Vec<&str>, _>(|name| SOFT_WORKLOADS.contains(name));
    // Before the network is left for a private one: an image may have to be fetched.
    let soft = (!of_soft.is_empty())
        .then(|| Soft::prepare(spec.image.as_deref()))
        .transpose()?;
    let redis = of_pairs
        .contains(&REDIS)
        .then(|| Redis::prepare(spec.image.as_deref()));
    let folder = &spec.folder;
    std::fs::create_dir_all(folder).during(format_args!("cannot make {}", folder.display()))?;
    let guard = leftovers::guard()?;
    // Before anything starts a thread: a private network is the thread's that makes it.
    let network = (!of_pairs.is_empty())
        .then(|| choose_network(&spec.network))
        .transpose()?;
    guard()?;
    let cluster = network
        .map(|network| Cluster::start(network, "file", spec.tls))
        .transpose()?;
    let mut session = Session {
        bench: cluster.as_ref().map(|cluster| Bench {
            cluster,
            seconds: spec.seconds,
            suspect_ms: spec.suspect_ms,
        }),
        soft,
        redis,
        spec,
        progress: progress_bar(&workloads, spec.rounds),
        results: Results {
            version: env!("CARGO_PKG_VERSION"),
            host: HostFacts::gather(),
            network: cluster
                .as_ref()
                .map_or("none", Cluster::network_note)
                .to_owned(),
            rounds: spec.rounds,
            seconds: spec.seconds,
            others_percent: None,
            workloads: Vec::new(),
            latency: None,
            paced: Vec::new(),
            failover: None,
            memory: None,
            tick_late: None,
            entry_sizes: None,
            soft: None,
            goals: Vec::new(),
        },
        memory: Memory::default(),
        entry_bytes: EntryBytes::default(),
        distributions: None,
    };
    let others = Others::watch();
    // What was measured before a failure is shown all the same.
    let failed = workloads
        .iter()
        .try_for_each(|name| session.measure(name))
        .err();
    session.results.others_percent = others.percent();
    session.finish(folder)?;
    failed.map_or(Ok(()), Err)
}

/// The workloads asked for, in their own order; [`WORKLOADS`] if none is named.
fn chosen(names: &[String]) -> Outcome<Vec<&'static str>> {
    let of_pairs = || WORKLOADS.into_iter().chain(DISK_WORKLOADS);
    let all = || of_pairs().chain(SOFT_WORKLOADS).chain([REDIS]);
    if let Some(unknown) = names.iter().find(|name| all().all(|known| known != *name)) {
        return Err(BenchError::said(format!(
            "no workload '{unknown}': there are {}",
            all().collect::<Vec<_>>().join(", ")
        )));
    }
    if names.is_empty() {
        return Ok(WORKLOADS.into());
    }
    Ok(all()
        .filter(|name| names.iter().any(|n| n == name))
        .collect())
}

/// A bar on a terminal, and nothing on a pipe.
fn progress_bar(workloads: &[&str], rounds: u32) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let steps = |name: &&str| {
        let runs = match *name {
            "failover" => KILLS.into(),
            "cpu" | "boot" => soft::RUNS_MAX,
            "idle" => 1,
            _ => 3,
        };
        u64::from(rounds) * runs
    };
    let bar = ProgressBar::new(workloads.iter().map(steps).sum());
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len}, {eta} left: {msg}");
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// A benchmark under way.
struct Session<'a> {
    /// If pairs are to be measured.
    bench: Option<Bench<'a>>,
    /// If the software engine is to be measured.
    soft: Option<Soft>,
    /// If `redis` is to be measured; or why it cannot be.
    redis: Option<Outcome<Redis>>,
    spec: &'a Spec,
    progress: ProgressBar,
    results: Results,
    memory: Memory,
    entry_bytes: EntryBytes,
    distributions: Option<Distributions>,
}

impl Session<'_> {
    fn measure(&mut self, name: &str) -> Outcome {
        match name {
            "counter" => self.self_ending(SelfEnding::Counter, "iterations"),
            "disk" => self.disk(false, false),
            "disk-read" => self.disk(false, true),
            "disk-copy" => self.disk(true, false),
            "disk-copy-read" => self.disk(true, true),
            "kv" => self.kv(),
            "failover" => self.failover(),
            REDIS => self.redis(),
            _ => self.soft(name),
        }
    }

    fn disk(&mut self, copy: bool, read: bool) -> Outcome {
        self.self_ending(SelfEnding::Disk { copy, read }, "bytes")
    }

    fn bench(&self) -> Outcome<&Bench<'_>> {
        let bench = self.bench.as_ref();
        bench.ok_or_else(|| BenchError::said("nothing was set up to run pairs"))
    }

    fn soft(&mut self, name: &str) -> Outcome {
        let Some(soft) = &mut self.soft else {
            return Ok(());
        };
        let bar = &self.progress;
        let mut progress = |engine: &str| {
            bar.set_message(format!("{name} {engine}"));
            bar.inc(1);
        };
        let (rounds, seconds) = (self.spec.rounds, self.spec.seconds);
        let measured = match name {
            "cpu" => soft.cpu(rounds, seconds, &mut progress),
            "boot" => soft.boot(rounds, &mut progress),
            _ => soft.idle(rounds, seconds, &mut progress),
        };
        self.results.soft = Some(soft.results());
        Ok(measured.during(name)?)
    }

    fn redis(&mut self) -> Outcome {
        let Some(redis) = self.redis.take() else {
            return Ok(());
        };
        let mut redis = redis.during(REDIS)?;
        let bar = &self.progress;
        let mut progress = |way: &str| {
            bar.set_message(format!("{REDIS} {way}"));
            bar.inc(1);
        };
        let measured = redis.measure(self.bench()?, self.spec.rounds, &mut progress);
        redis.add_to(self.results.soft.get_or_insert_default());
        Ok(measured.during(REDIS)?)
    }

    /// Does `step` for each round and mode, in turn.
    fn interleaved<T>(
        &mut self,
        what: &str,
        mut step: impl FnMut(&Bench<'_>, Mode, u32) -> Outcome<T>,
    ) -> Outcome<PerMode<Vec<T>>> {
        let mut all = PerMode {
            without_ft: Vec::new(),
            recording: Vec::new(),
            under_ft: Vec::new(),
        };
        for round in 0..self.spec.rounds {
            for mode in Mode::ALL {
                self.progress.set_message(format!("{what} {}", mode.name()));
                let result = step(self.bench()?, mode, round)?;
                match mode {
                    Mode::Without => all.without_ft.push(result),
                    Mode::Recording => all.recording.push(result),
                    Mode::UnderFt => all.under_ft.push(result),
                }
                self.progress.inc(1);
            }
        }
        Ok(all)
    }

    fn self_ending(&mut self, guest: SelfEnding, unit: &'static str) -> Outcome {
        let runs = self.interleaved(guest.name(), |bench, mode, round| {
            bench.self_ending(guest, mode, round)
        })?;
        let mut log = LogCost::default();
        let mut late = Vec::new();
        for run in &runs.under_ft {
            run.log.iter().for_each(|cost| log.add(cost));
            late.extend(&run.tick_late_us);
            self.memory = self.memory.max(run.memory.unwrap_or_default());
        }
        let recorded = runs
            .recording
            .iter()
            .filter_map(|run| run.entry_bytes.as_ref());
        recorded.for_each(|bytes| self.entry_bytes.add(bytes));
        if guest == SelfEnding::Counter {
            self.results.tick_late = TickLate::of(late);
        }
        let rates = runs.map(|runs| runs.iter().map(|run| run.rate).collect());
        let costs = runs.without_ft.iter().chain(&runs.under_ft);
        let cpu = CpuPerOp::of(costs.map(|run| &run.cpu));
        let workload = Workload::new(guest.name(), unit, rates, &log, None, cpu);
        self.results.workloads.push(workload);
        Ok(())
    }

    fn kv(&mut self) -> Outcome {
        let mut rates = Rates {
            percents: vec![THIRD],
            peak_per_s: None,
        };
        if self.spec.paced {
            rates.percents.extend(PERCENTS);
        }
        let runs =
            self.interleaved("kv", |bench, mode, round| bench.kv(mode, round, &mut rates))?;
        for run in &runs.under_ft {
            self.memory = self.memory.max(run.memory.unwrap_or_default());
        }
        let recorded = runs
            .recording
            .iter()
            .filter_map(|run| run.entry_bytes.as_ref());
        recorded.for_each(|bytes| self.entry_bytes.add(bytes));
        for (n, connections) in kv::CONNECTIONS.into_iter().enumerate() {
            let stats: PerMode<Vec<Stats>> =
                runs.map(|runs| runs.iter().map(|run| run.peaks[n].stats.clone()).collect());
            let mut log = LogCost::default();
            runs.under_ft
                .iter()
                .filter_map(|run| run.peaks[n].log.as_ref())
                .for_each(|c| log.add(c));
            let rates = stats.map(|stats| stats.iter().map(Stats::ops_per_s).collect());
            let plural = if connections == 1 { "" } else { "s" };
            let name = format!("kv, {connections} connection{plural}");
            let latency = Some(stats.map(|stats| latency_us(stats)));
            let costs = runs.without_ft.iter().chain(&runs.under_ft);
            let cpu = CpuPerOp::of(costs.map(|run| &run.peaks[n].cpu));
            let workload = Workload::new(name, "requests", rates, &log, latency, cpu);
            self.results.workloads.push(workload);
        }
        self.paced(&rates, &runs);
        Ok(())
    }

    /// What was measured of `kv` at the same rates with and without FT.
    fn paced(&mut self, rates: &Rates, runs: &PerMode<Vec<KvRound>>) {
        for (n, at) in rates.per_s().into_iter().enumerate() {
            let of = |runs: &Vec<KvRound>| -> Vec<Stats> {
                runs.iter().map(|run| run.paced[n].clone()).collect()
            };
            let (without, under) = (of(&runs.without_ft), of(&runs.under_ft));
            let latency = Latency::new(at, kv::CONNECTIONS[1], &without, &under);
            if n > 0 {
                self.results.paced.push(latency);
                continue;
            }
            self.results.latency = Some(latency);
            self.distributions = Some(Distributions {
                without_ft: merged(&without),
                under_ft: merged(&under),
            });
        }
    }

    fn failover(&mut self) -> Outcome {
        let kills = KILLS * self.spec.rounds;
        let seed = vmm::hostclock::wall_ns() % 1_000_000;
        let options = RoundOptions {
            args: [Vec::new(), Vec::new()],
            clients: 8,
            suspect_ms: self.spec.suspect_ms,
            kill_backup: false,
            keep: None,
        };
        let mut rounds = Vec::new();
        let guest = Served::kv();
        for number in 0..kills {
            self.progress.set_message(format!("kill {}", number + 1));
            let round = round::run(
                self.bench()?.cluster,
                &options,
                &guest,
                number,
                seed + u64::from(number),
            )
            .during(format_args!("kill {} of {kills}", number + 1))?;
            rounds.push(round);
            self.progress.inc(1);
        }
        let mut stalls_us: Vec<u64> = rounds
            .iter()
            .flat_map(|round| round.failover.stalls_us.iter().copied())
            .collect();
        let phases = ["link_end", "flag_won", "drained", "live"].map(|event| {
            let name = if event == "link_end" {
                "noticed"
            } else {
                event
            };
            (
                name,
                rounds
                    .iter()
                    .filter_map(|round| round.failover.after_kill_us(event))
                    .collect::<Vec<_>>(),
            )
        });
        let first_reply = rounds
            .iter()
            .map(|round| round.failover.first_reply_us)
            .collect();
        let phases = phases.into_iter().chain([("first_reply", first_reply)]);
        let median = |mut values: Vec<u64>| check::latencies::quantile(&mut values, 500);
        self.results.failover = Some(Failover {
            kills,
            connections_broken: rounds.iter().map(|round| round.seen.broken).sum(),
            lost_writes: rounds
                .iter()
                .map(|round| round.seen.verdict.lost_writes)
                .sum(),
            linearizable: rounds.iter().all(|round| round.seen.verdict.linearizable()),
            stall_ms: StallMs::of(&mut stalls_us),
            phases_us: phases
                .map(|(name, us)| (name, median(us)))
                .collect::<BTreeMap<_, _>>(),
            stalls_us,
        });
        Ok(())
    }

    /// Judges, writes and shows what was measured.
    fn finish(mut self, folder: &Path) -> Outcome {
        self.progress.finish_and_clear();
        let results = &mut self.results;
        if self.memory != Memory::default() {
            results.memory = Some(ReplicaMemory {
                guest_mib: GUEST_MIB,
                over: self.memory,
            });
        }
        if !self.entry_bytes.timer.is_empty() || !self.entry_bytes.frame_extra.is_empty() {
            results.entry_sizes = Some(self.entry_bytes.into());
        }
        results.goals = goals::judge(results);
        let json = serde_json::to_string(&results).during("report")? + "\n";
        if self.spec.json {
            say(&json);
        } else {
            say(&words::render(results));
        }
        let path = folder.join("results.json");
        std::fs::write(&path, json).during(format_args!("cannot write {}", path.display()))?;
        let plots = plots::write(folder, results, self.distributions.as_ref())?;
        if !self.spec.json {
            let (count, folder) = (plots.len(), folder.display());
            say(&format!(
                "\nresults.json and {count} plots are in {folder}\n"
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workloads_are_chosen_by_name() {
        let names = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        assert_eq!(chosen(&[]).unwrap(), WORKLOADS);
        assert_eq!(
            chosen(&names(&["disk", "counter"])).unwrap(),
            ["counter", "disk"]
        );
        assert_eq!(
            chosen(&names(&["redis", "idle", "kv", "cpu"])).unwrap(),
            ["kv", "cpu", "idle", "redis"]
        );
        let failure = chosen(&names(&["kv", "netperf"])).unwrap_err().to_string();
        assert!(
            failure.contains("'netperf'") && failure.contains("failover"),
            "{failure}"
        );
    }
}
