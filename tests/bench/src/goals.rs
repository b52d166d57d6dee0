//! What Tandem is to reach, held against what was measured. Shown, never enforced: a slow host is no
//! defect.

use super::cpu::Process;
use super::logs::Bytes;
use super::memory::Memory;
use super::results::{Failover, Goal, Results};
use super::soft::RedisRow;

/// Least speed of a workload under FT, as a share of that without: its name, that of the goal, the bound.
const FT_RATIOS: [(&str, &str, &str, f64); 4] = [
    (
        "counter",
        "counter under FT / without",
        "at least 0.985",
        0.985,
    ),
    (
        KV_ONE,
        "kv, 1 conn under FT / without",
        "at least 0.92",
        0.92,
    ),
    (KV_MANY, "kv peak under FT / without", "at least 0.8", 0.8),
    ("disk", "disk under FT / without", "at least 0.8", 0.8),
];
/// `kv` with one request at a time, and with many.
const KV_ONE: &str = "kv, 1 connection";
const KV_MANY: &str = "kv, 50 connections";
/// Most processor time of `kv`'s replicas for a request, as a share of that without FT.
const KV_CPU: [(Process, &str, &str, f64); 2] = [
    (
        Process::Primary,
        "kv CPU, primary / without",
        "at most 1.05",
        1.05,
    ),
    (
        Process::Backup,
        "kv CPU, backup / without",
        "at most 0.6",
        0.6,
    ),
];
/// Most added latency of `kv` at a third of its peak, in microseconds: at the median, and at the 99th percentile.
const ADDED_P50_US: i64 = 100;
const ADDED_P99_US: i64 = 500;
/// How late a tick may be, in microseconds, at the 99th percentile.
const LATE_US: u64 = 2000;
/// Most bytes of a timer interrupt in the log.
const TIMER_BYTES: u64 = 12;
/// Most bytes of a received frame in the log, beyond its own.
const FRAME_BYTES: u64 = 16;
/// Least speed of `redis` over QEMU's TCG, in every load.
const REDIS_TCG_RATIO: f64 = 1.5;
/// Least speed of `redis` under FT, as a share of that without, in every load.
const REDIS_FT_RATIO: f64 = 0.75;
/// Longest stalls of clients, in milliseconds.
const STALL_P50_MS: f64 = 150.0;
const STALL_P99_MS: f64 = 500.0;
/// Most memory of a replica beside its guest's and its log buffer (64 MiB), in MiB.
const MEMORY_MIB: u64 = 32 + 64;

/// The goals that `results` can tell of.
#[must_use]
pub fn judge(results: &Results) -> Vec<Goal> {
    let mut goals = speed_goals(results);
    let mut goal = |name, goal, measured: String, met| {
        goals.push(Goal {
            name,
            goal,
            measured,
            met,
            workload: None,
        });
    };
    if let Some(late) = &results.tick_late {
        let met = late.p99_us <= LATE_US;
        goal(
            "tick lateness p99",
            "at most 2 ms",
            ms(late.p99_us as f64 / 1000.0),
            met,
        );
    }
    if let Some(sizes) = &results.entry_sizes {
        let (timer, frame) = (&sizes.timer, &sizes.frame_beyond_its_length);
        let at_most = |bytes: &Bytes| format!("at most {}", bytes.max());
        if !timer.is_empty() {
            let met = timer.max() <= TIMER_BYTES;
            goal(
                "bytes of a timer interrupt",
                "at most 12",
                at_most(timer),
                met,
            );
        }
        if !frame.is_empty() {
            let met = frame.max() <= FRAME_BYTES;
            goal(
                "bytes of a frame, beyond its own",
                "at most 16",
                at_most(frame),
                met,
            );
        }
    }
    if let Some(memory) = &results.memory {
        let (measured, met) = memory_goal(memory.over);
        goal(
            "replica's memory over its guest's",
            "32 MiB + log buffer",
            measured,
            met,
        );
    }
    if let Some(failover) = &results.failover {
        goals.extend(failover_goals(failover));
    }
    if let Some(soft) = &results.soft {
        goals.extend(redis_goals(&soft.redis));
    }
    goals
}

/// Of speed, latency and processor time of the built-in guests.
fn speed_goals(results: &Results) -> Vec<Goal> {
    let ratios = FT_RATIOS
        .iter()
        .filter_map(|(workload, name, goal, least)| {
            let ratio = results.workload(workload)?.ft_ratio;
            Some(Goal {
                name,
                goal,
                measured: two(ratio),
                met: ratio >= *least,
                workload: Some(workload),
            })
        });
    let cpu = KV_CPU.iter().filter_map(|(process, name, goal, most)| {
        let ratio = results.workload(KV_MANY)?.cpu.over_without(*process)?;
        Some(Goal {
            name,
            goal,
            measured: two(ratio),
            met: ratio <= *most,
            workload: Some(KV_MANY),
        })
    });
    let added = results.latency.iter().flat_map(|latency| {
        let added = latency.added_us;
        let answered = latency.throughput_ratio >= 0.99;
        let of = |name, goal, us: i64, most| Goal {
            name,
            goal,
            measured: format!("{us} us"),
            met: us <= most && answered,
            workload: Some(KV_MANY),
        };
        [
            of(
                "kv added latency p50",
                "at most 100 us",
                added.p50,
                ADDED_P50_US,
            ),
            of(
                "kv added latency p99",
                "at most 500 us",
                added.p99,
                ADDED_P99_US,
            ),
        ]
    });
    ratios.chain(cpu).chain(added).collect()
}

/// Of the load that is furthest from each.
fn redis_goals(rows: &[RedisRow]) -> impl Iterator<Item = Goal> {
    let least =
        |ratio: fn(&RedisRow) -> Option<f64>| rows.iter().filter_map(ratio).reduce(f64::min);
    let tcg = least(|row| row.vs_tcg).map(|least| Goal {
        name: "redis / QEMU TCG, least",
        goal: "at least 1.5",
        measured: two(least),
        met: least >= REDIS_TCG_RATIO,
        workload: None,
    });
    let ft = least(|row| row.ft_ratio).map(|least| Goal {
        name: "redis under FT / without, least",
        goal: "at least 0.75",
        measured: two(least),
        met: least >= REDIS_FT_RATIO,
        workload: None,
    });
    tcg.into_iter().chain(ft)
}

fn memory_goal(memory: Memory) -> (String, bool) {
    let most = memory.primary_kib.max(memory.backup_kib);
    (
        format!("{:.1} MiB", most as f64 / 1024.0),
        most <= MEMORY_MIB << 10,
    )
}

fn failover_goals(failover: &Failover) -> [Goal; 3] {
    let noticed = failover.connections_broken + failover.lost_writes;
    let whole = noticed == 0 && failover.linearizable;
    let stall = failover.stall_ms;
    [
        Goal {
            name: "failovers clients noticed",
            goal: "none",
            measured: if whole { "none" } else { "SOME" }.into(),
            met: whole,
            workload: None,
        },
        Goal {
            name: "client stall p50",
            goal: "at most 150 ms",
            measured: ms(stall.p50),
            met: stall.p50 <= STALL_P50_MS,
            workload: None,
        },
        Goal {
            name: "client stall p99",
            goal: "at most 500 ms",
            measured: ms(stall.p99),
            met: stall.p99 <= STALL_P99_MS,
            workload: None,
        },
    ]
}

fn two(value: f64) -> String {
    format!("{value:.3}")
}

fn ms(value: f64) -> String {
    format!("{value:.2} ms")
}

#[cfg(test)]
mod tests {
    use super::super::results::tests::example;
    use super::super::soft::example as soft_example;
    use super::*;

    fn missed(results: &Results) -> Vec<&'static str> {
        judge(results)
            .iter()
            .filter(|goal| !goal.met)
            .map(|goal| goal.name)
            .collect()
    }

    /// Results with every goal met.
    fn good() -> Results {
        let mut results = example();
        for workload in &mut results.workloads {
            workload.ft_ratio = 0.99;
            let cpu = &mut workload.cpu.cpu_us_per_op;
            cpu.insert(Process::Primary, 10.4);
        }
        let added = &mut results.latency.as_mut().unwrap().added_us;
        (added.p50, added.p99) = (100, 500);
        results
    }

    #[test]
    fn each_goal_is_met_or_missed_by_its_own_figure() {
        assert!(missed(&good()).is_empty(), "{:?}", missed(&good()));
        let mut results = good();
        for workload in &mut results.workloads {
            workload.ft_ratio = 0.79;
            let cpu = &mut workload.cpu.cpu_us_per_op;
            cpu.insert(Process::Primary, 10.6);
            cpu.insert(Process::Backup, 6.1);
        }
        let added = &mut results.latency.as_mut().unwrap().added_us;
        (added.p50, added.p99) = (101, 501);
        results.tick_late.as_mut().unwrap().p99_us = 2001;
        let sizes = results.entry_sizes.as_mut().unwrap();
        sizes.timer.entries_by_bytes.insert(13, 1);
        sizes.frame_beyond_its_length.entries_by_bytes.insert(17, 1);
        results.memory.as_mut().unwrap().over.backup_kib = (96 << 10) + 1;
        let failover = results.failover.as_mut().unwrap();
        failover.lost_writes = 1;
        failover.stall_ms.p50 = 150.1;
        failover.stall_ms.p99 = 500.1;
        assert_eq!(missed(&results).len(), 15);
        assert_eq!(judge(&results).len(), 15);
    }

    #[test]
    fn the_load_that_is_furthest_from_a_goal_decides() {
        let mut results = good();
        results.workloads.clear();
        let mut soft = soft_example();
        results.soft = Some(soft.clone());
        assert!(missed(&results).is_empty());
        let mut slow = soft.redis[0].clone();
        (slow.vs_tcg, slow.ft_ratio) = (Some(1.49), Some(0.74));
        soft.redis.push(slow);
        results.soft = Some(soft);
        let both = ["redis / QEMU TCG, least", "redis under FT / without, least"];
        assert_eq!(missed(&results), both);
    }

    #[test]
    fn what_was_not_measured_is_no_goal() {
        let mut results = example();
        results.workloads.truncate(1);
        results.latency = None;
        results.failover = None;
        results.memory = None;
        results.tick_late = None;
        results.entry_sizes = None;
        assert_eq!(judge(&results).len(), 1);
    }
}
