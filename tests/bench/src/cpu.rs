//! Whose processor time work takes: by process, and by the threads of each.
//!
//! A rate tells what one host made of the work; processor time for an operation is what hosts of any size share.

use super::medians::{median, ratio};
use kit::Daemon;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// The processes whose time is held beside each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Process {
    /// The machine without fault tolerance.
    WithoutFt,
    /// The one that runs the guest.
    Primary,
    /// The one that follows.
    Backup,
}

impl Process {
    /// For people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::WithoutFt => "no FT",
            Self::Primary => "primary",
            Self::Backup => "backup",
        }
    }
}

/// The processor time a process has taken so far.
#[derive(Clone, Debug, Default)]
struct Taken {
    all: Duration,
    /// By the thread's number; with its name.
    threads: BTreeMap<u32, (String, Duration)>,
}

impl Taken {
    /// None if it is gone.
    fn of(daemon: &Daemon) -> Option<Self> {
        let all = daemon.cpu()?;
        Some(Self {
            all,
            threads: threads(daemon.pid()),
        })
    }

    /// What was taken since `earlier`. Threads of one name are one; one that ended meanwhile is in `all` only.
    fn since(&self, earlier: &Self) -> Spent {
        let mut threads: BTreeMap<String, Duration> = BTreeMap::new();
        for (number, (name, time)) in &self.threads {
            let before = earlier.threads.get(number).map_or(Duration::ZERO, |b| b.1);
            *threads.entry(name.clone()).or_default() += time.saturating_sub(before);
        }
        Spent {
            all: self.all.saturating_sub(earlier.all),
            threads,
        }
    }
}

/// Names and times of the threads of process `pid` that can be read; none where the kernel keeps no such times.
fn threads(pid: u32) -> BTreeMap<u32, (String, Duration)> {
    let folder = format!("/proc/{pid}/task");
    let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
    let thread = |entry: std::fs::DirEntry| {
        let number = entry.file_name().to_str()?.parse().ok()?;
        let read = |name| std::fs::read_to_string(entry.path().join(name)).ok();
        // proc(5), schedstat: nanoseconds on a processor, nanoseconds of waiting for one, turns.
        let ns = read("schedstat")?.split(' ').next()?.parse().ok()?;
        let name = read("comm")?.trim_end().to_owned();
        Some((number, (name, Duration::from_nanos(ns))))
    };
    entries.filter_map(thread).collect()
}

/// The processor time a process took between two moments.
#[derive(Clone, Debug, Default)]
pub struct Spent {
    all: Duration,
    threads: BTreeMap<String, Duration>,
}

/// What processes took for some operations.
#[derive(Clone, Debug, Default)]
pub struct Cost {
    /// Operations done.
    pub ops: f64,
    /// By process; of a process that was gone by then, nothing.
    pub spent: BTreeMap<Process, Spent>,
}

/// Measures what processes take from some moment on.
pub struct Meter<'a> {
    watched: Vec<(Process, &'a Daemon)>,
    begun: Vec<Option<Taken>>,
}

impl<'a> Meter<'a> {
    /// From now on.
    pub fn begin(watched: Vec<(Process, &'a Daemon)>) -> Self {
        let mut meter = Self {
            watched,
            begun: Vec::new(),
        };
        meter.restart();
        meter
    }

    /// From now on instead.
    pub fn restart(&mut self) {
        self.begun = self.watched.iter().map(|(_, d)| Taken::of(d)).collect();
    }

    /// Until now, for `ops` operations.
    pub fn read(&self, ops: f64) -> Cost {
        let spent = |((process, daemon), begun): (&(Process, &Daemon), &Option<Taken>)| {
            Some((*process, Taken::of(daemon)?.since(begun.as_ref()?)))
        };
        let each = self.watched.iter().zip(&self.begun);
        Cost {
            ops,
            spent: each.filter_map(spent).collect(),
        }
    }
}

/// Processor time for an operation, in microseconds, of some processes: medians over rounds.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct CpuPerOp {
    /// All threads of each.
    pub cpu_us_per_op: BTreeMap<Process, f64>,
    /// The same by the name of the thread, of those that took any.
    pub cpu_us_per_op_by_thread: BTreeMap<Process, BTreeMap<String, f64>>,
}

impl CpuPerOp {
    /// Of rounds.
    pub fn of<'a>(rounds: impl IntoIterator<Item = &'a Cost>) -> Self {
        let mut all: BTreeMap<Process, Vec<f64>> = BTreeMap::new();
        let mut threads: BTreeMap<Process, Vec<BTreeMap<&str, f64>>> = BTreeMap::new();
        for cost in rounds {
            for (process, spent) in &cost.spent {
                let us = |time: Duration| ratio(time.as_secs_f64() * 1e6, cost.ops);
                all.entry(*process).or_default().push(us(spent.all));
                let each = spent.threads.iter();
                let of_round = each.map(|(name, time)| (name.as_str(), us(*time)));
                threads
                    .entry(*process)
                    .or_default()
                    .push(of_round.collect());
            }
        }
        Self {
            cpu_us_per_op: all.iter().map(|(p, us)| (*p, median(us))).collect(),
            cpu_us_per_op_by_thread: threads
                .into_iter()
                .map(|(process, rounds)| (process, by_thread(&rounds)))
                .collect(),
        }
    }

    /// What `process` takes over what the machine without fault tolerance does.
    #[must_use]
    pub fn over_without(&self, process: Process) -> Option<f64> {
        let of = |process| self.cpu_us_per_op.get(&process).copied();
        Some(ratio(of(process)?, of(Process::WithoutFt)?))
    }
}

/// Medians over the rounds, of each thread there was.
fn by_thread(rounds: &[BTreeMap<&str, f64>]) -> BTreeMap<String, f64> {
    let names: std::collections::BTreeSet<&str> = rounds.iter().flatten().map(|t| *t.0).collect();
    let of = |name: &str| {
        let us = rounds.iter().map(|round| round.get(name).copied());
        median(&us.map(Option::unwrap_or_default).collect::<Vec<_>>())
    };
    let each = names.into_iter().map(|name| (name.to_owned(), of(name)));
    each.filter(|(_, us)| *us > 0.0).collect()
}

/// What `example` results have: 10 us without fault tolerance, 11 on the primary, 6 on the backup.
#[cfg(test)]
pub fn example() -> CpuPerOp {
    let spent = |all: u64, vcpu: u64| Spent {
        all: Duration::from_micros(all),
        threads: BTreeMap::from([("vcpu".to_owned(), Duration::from_micros(vcpu))]),
    };
    let cost = Cost {
        ops: 100.0,
        spent: BTreeMap::from([
            (Process::WithoutFt, spent(1000, 800)),
            (Process::Primary, spent(1100, 900)),
            (Process::Backup, spent(600, 500)),
        ]),
    };
    CpuPerOp::of([&cost])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_costs_the_median_of_the_rounds() {
        let cost = |ms: u64, threads: &[(&str, u64)]| Cost {
            ops: 1000.0,
            spent: BTreeMap::from([(
                Process::Backup,
                Spent {
                    all: Duration::from_millis(ms),
                    threads: threads
                        .iter()
                        .map(|(name, ms)| ((*name).to_owned(), Duration::from_millis(*ms)))
                        .collect(),
                },
            )]),
        };
        let rounds = [
            cost(9, &[("vcpu", 7)]),
            cost(5, &[("vcpu", 4), ("disk", 1)]),
            cost(6, &[("vcpu", 5), ("idle", 0)]),
        ];
        let cpu = CpuPerOp::of(&rounds);
        assert_eq!(cpu.cpu_us_per_op[&Process::Backup], 6.0);
        let threads = &cpu.cpu_us_per_op_by_thread[&Process::Backup];
        assert_eq!(*threads, BTreeMap::from([("vcpu".to_owned(), 5.0)]));
        assert_eq!(cpu.over_without(Process::Backup), None);
        assert_eq!(example().over_without(Process::Primary), Some(1.1));
    }

    #[test]
    fn threads_of_one_name_are_one_and_count_from_the_start_of_the_measurement() {
        let taken = |all, threads: &[(u32, &str, u64)]| Taken {
            all: Duration::from_millis(all),
            threads: threads
                .iter()
                .map(|(n, name, ms)| (*n, ((*name).to_owned(), Duration::from_millis(*ms))))
                .collect(),
        };
        let before = taken(10, &[(1, "vcpu", 6), (2, "disk", 4)]);
        let after = taken(30, &[(1, "vcpu", 16), (2, "disk", 5), (3, "disk", 2)]);
        let spent = after.since(&before);
        assert_eq!(spent.all, Duration::from_millis(20));
        assert_eq!(spent.threads["vcpu"], Duration::from_millis(10));
        assert_eq!(spent.threads["disk"], Duration::from_millis(3));
    }

    #[test]
    fn this_process_has_a_thread_that_took_time() {
        let own = threads(std::process::id());
        assert!(own.values().any(|(_, time)| !time.is_zero()), "{own:?}");
        assert!(threads(0).is_empty());
    }
}
