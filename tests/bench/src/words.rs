//! Results for people, in 80 columns.

use super::cpu::Process;
use super::paper;
use super::results::{Failover, Goal, LatencyUs, Results, Workload};
use replay::Kind;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use terminal::table::WIDTH;
use terminal::table::wrap;
use terminal::{Align, Table};

/// Everything there is.
#[must_use]
pub fn render(results: &Results) -> String {
    let mut out = String::new();
    let facts = format!(
        "{}. Network: {}. Medians of {} interleaved rounds, {} s each.{}",
        results.host.describe(),
        results.network,
        results.rounds,
        results.seconds,
        others(results.others_percent)
    );
    wrap(&facts, WIDTH)
        .iter()
        .for_each(|line| out += &format!("{line}\n"));
    if !results.workloads.is_empty() {
        let _ = write!(
            out,
            "\nSpeed and log, beside VMware FT (2010)\n\n{}",
            speeds(results)
        );
        let _ = write!(
            out,
            "\nLog bandwidth by kind of entry, Mbit/s\n\n{}",
            kinds(results)
        );
    }
    if results.latency.is_some() || results.workloads.iter().any(|w| w.latency_us.is_some()) {
        let _ = write!(out, "\nLatency of kv, us\n\n{}", latencies(results));
    }
    if results.workloads.iter().any(has_cpu) {
        let _ = write!(
            out,
            "\nProcessor time for an operation, us\n\n{}",
            cpu(results)
        );
    }
    out.push('\n');
    if let Some(late) = &results.tick_late {
        let _ = writeln!(
            out,
            "tick lateness    p50 {} us, p99 {} us, max {} us, of {} ticks under FT",
            late.p50_us, late.p99_us, late.max_us, late.ticks
        );
    }
    if let Some(sizes) = &results.entry_sizes {
        for (name, bytes) in [
            ("timer", &sizes.timer),
            ("frame, beyond its own", &sizes.frame_beyond_its_length),
        ] {
            if !bytes.is_empty() {
                let (p50, p99, max) = (bytes.quantile(500), bytes.quantile(990), bytes.max());
                let _ = writeln!(
                    out,
                    "bytes of entries {name}: p50 {p50}, p99 {p99}, max {max}"
                );
            }
        }
    }
    if let Some(memory) = &results.memory {
        let mib = |kib: u64| kib as f64 / 1024.0;
        let _ = writeln!(
            out,
            "memory           primary {:.1} MiB, backup {:.1} MiB over a guest of {} MiB",
            mib(memory.over.primary_kib),
            mib(memory.over.backup_kib),
            memory.guest_mib
        );
    }
    results
        .failover
        .iter()
        .for_each(|failover| out += &failover_words(failover));
    if !results.goals.is_empty() {
        let _ = write!(out, "\n{}", goals(results));
        out += &whose(results);
    }
    if let Some(soft) = &results.soft {
        out += &super::soft::render(soft);
    }
    out
}

/// Most percent of the processors that others may take before figures mean little.
const OTHERS_MAX: u64 = 10;

fn others(percent: Option<u64>) -> String {
    match percent {
        None => String::new(),
        Some(percent) if percent <= OTHERS_MAX => {
            format!(" Other programs took {percent} % of the processors.")
        }
        Some(percent) => format!(
            " NOTE: other programs took {percent} % of the processors meanwhile, so these figures say little."
        ),
    }
}

/// A rate, in a unit that leaves few digits, and that unit's name.
fn scale(workload: &Workload) -> (f64, &'static str) {
    match workload.unit {
        "iterations" => (1e6, "M it/s"),
        "bytes" => (1024.0 * 1024.0, "MiB/s"),
        _ => (1.0, "op/s"),
    }
}

fn number(value: f64) -> String {
    if value >= 1000.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.1}")
    }
}

fn speeds(results: &Results) -> Table {
    let mut table = Table::new(&[
        ("workload", Align::Left),
        ("no FT", Align::Right),
        ("recorded", Align::Right),
        ("FT", Align::Right),
        ("rec/no", Align::Right),
        ("FT/no", Align::Right),
        ("Mbit/s", Align::Right),
    ]);
    for workload in &results.workloads {
        let (unit, name) = scale(workload);
        let rate = workload.rate.map(|rate| number(rate / unit));
        table.row([
            format!("{}, {name}", workload.name.replace("connection", "conn")),
            rate.without_ft,
            rate.recording,
            rate.under_ft,
            format!("{:.3}", workload.record_ratio),
            format!("{:.3}", workload.ft_ratio),
            format!("{:.2}", workload.log_mbit_s),
        ]);
    }
    table.row(["VMware FT", "", "", "", "", "", ""]);
    for row in paper::ROWS {
        let name = format!("  {}", row.name);
        table.row([
            &name,
            row.without_ft,
            "",
            row.under_ft,
            "",
            row.ft_ratio,
            row.log_mbit_s,
        ]);
    }
    table
}

fn kinds(results: &Results) -> Table {
    let names: Vec<String> = results
        .workloads
        .iter()
        .map(|workload| {
            workload
                .name
                .replace(" connections", "")
                .replace(" connection", "")
        })
        .collect();
    let mut columns = vec![("kind", Align::Left)];
    columns.extend(names.iter().map(|name| (name.as_str(), Align::Right)));
    let mut table = Table::new(&columns);
    let mut add = |name: String, value: &dyn Fn(&Workload) -> Option<f64>| {
        let cell = |workload| value(workload).map_or(String::new(), |mbit| format!("{mbit:.3}"));
        table.row(std::iter::once(name).chain(results.workloads.iter().map(cell)));
    };
    let kinds: BTreeSet<Kind> = results
        .workloads
        .iter()
        .flat_map(|workload| workload.kinds.keys().copied())
        .collect();
    for kind in kinds {
        add(kind.to_string(), &|workload| {
            workload.kinds.get(&kind).map(|cost| cost.mbit_s)
        });
    }
    add("frames, heartbeats".into(), &|workload| {
        Some(workload.framing_mbit_s)
    });
    add("all".into(), &|workload| Some(workload.log_mbit_s));
    table
}

fn latencies(results: &Results) -> Table {
    let mut table = Table::new(&[
        ("load", Align::Left),
        ("p50 no FT", Align::Right),
        ("added", Align::Right),
        ("p99 no FT", Align::Right),
        ("added", Align::Right),
        ("p99.9 no FT", Align::Right),
        ("added", Align::Right),
    ]);
    let mut add = |name: String, without: &LatencyUs, under: &LatencyUs| {
        let mut row = vec![name];
        for (without, under) in [
            (without.p50, under.p50),
            (without.p99, under.p99),
            (without.p999, under.p999),
        ] {
            let signed = |us: u64| i64::try_from(us).unwrap_or(i64::MAX);
            row.push(without.to_string());
            row.push(format!("{:+}", signed(under) - signed(without)));
        }
        table.row(row);
    };
    for workload in &results.workloads {
        if let Some(latency) = &workload.latency_us {
            let name = workload.name.replace("connection", "conn");
            add(
                format!("{name}, peak"),
                &latency.without_ft,
                &latency.under_ft,
            );
        }
    }
    for latency in results.latency.iter().chain(&results.paced) {
        let name = format!("{} %, {}/s", latency.percent, latency.rate_per_s);
        add(name, &latency.without_ft, &latency.under_ft);
    }
    table
}

fn has_cpu(workload: &Workload) -> bool {
    !workload.cpu.cpu_us_per_op.is_empty()
}

/// Microseconds, with three digits that say something.
fn us(value: f64) -> String {
    if value == 0.0 {
        return "0".into();
    }
    let decimals = (2 - value.abs().log10().floor() as i32).max(0);
    format!("{value:.*}", decimals as usize)
}

fn cpu(results: &Results) -> Table {
    let mut table = Table::new(&[
        ("operation", Align::Left),
        ("no FT", Align::Right),
        ("primary", Align::Right),
        ("backup", Align::Right),
        ("primary/no", Align::Right),
        ("backup/no", Align::Right),
    ]);
    for workload in results.workloads.iter().filter(|w| has_cpu(w)) {
        let of = |process| workload.cpu.cpu_us_per_op.get(&process).copied();
        let over = |process| workload.cpu.over_without(process);
        let op = match workload.unit {
            "bytes" => "a MiB",
            "iterations" => "an iteration",
            _ => "a request",
        };
        table.row([
            format!("{}, {op}", workload.name.replace("connection", "conn")),
            of(Process::WithoutFt).map_or(String::new(), us),
            of(Process::Primary).map_or(String::new(), us),
            of(Process::Backup).map_or(String::new(), us),
            over(Process::Primary).map_or(String::new(), |ratio| format!("{ratio:.2}")),
            over(Process::Backup).map_or(String::new(), |ratio| format!("{ratio:.2}")),
        ]);
    }
    table
}

/// Whose processor time it was, thread by thread, where a goal is missed.
fn whose(results: &Results) -> String {
    let mut out = String::new();
    for workload in &results.workloads {
        let missed = |goal: &Goal| !goal.met && goal.workload == Some(workload.name.as_str());
        if !results.goals.iter().any(missed) || !has_cpu(workload) {
            continue;
        }
        let _ = writeln!(
            out,
            "\n{}: whose processor time, us an operation",
            workload.name
        );
        for (process, threads) in &workload.cpu.cpu_us_per_op_by_thread {
            let words = shares(threads);
            for (n, line) in wrap(&words, WIDTH - INDENT.len()).iter().enumerate() {
                let start = if n == 0 { process.name() } else { "" };
                let _ = writeln!(out, "  {start:<15}{line}");
            }
        }
    }
    out
}

/// Threads with what each took, most first; those that took next to nothing as one.
fn shares(threads: &BTreeMap<String, f64>) -> String {
    let all: f64 = threads.values().sum();
    let mut threads: Vec<_> = threads.iter().collect();
    threads.sort_by(|a, b| b.1.total_cmp(a.1));
    let (much, little): (Vec<_>, Vec<_>) = threads
        .into_iter()
        .partition(|(_, time)| **time >= all / 100.0);
    let rest: f64 = little.iter().map(|(_, time)| **time).sum();
    let words = much
        .iter()
        .map(|(name, time)| format!("{name} {}", us(**time)))
        .chain((rest > 0.0).then(|| format!("others {}", us(rest))));
    words.collect::<Vec<_>>().join(", ")
}

/// Where the second column of what is no table begins.
const INDENT: &str = "                 ";

fn failover_words(failover: &Failover) -> String {
    let stall = failover.stall_ms;
    let mut out = format!(
        "failover         {} kills: stall p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms\n\
         \u{20}                {} connections broken, {} writes lost, {}\n",
        failover.kills,
        stall.p50,
        stall.p99,
        stall.max,
        failover.connections_broken,
        failover.lost_writes,
        if failover.linearizable {
            "linearizable"
        } else {
            "NOT linearizable"
        }
    );
    let phases: Vec<String> = [
        ("noticed", "noticed"),
        ("flag_won", "flag won"),
        ("drained", "log drained"),
        ("live", "live"),
        ("first_reply", "first byte"),
    ]
    .iter()
    .filter_map(|(key, words)| {
        let us = failover.phases_us.get(key)?;
        Some(format!("{words} {:.1}", *us as f64 / 1000.0))
    })
    .collect();
    let lines = wrap(&phases.join(", "), WIDTH - INDENT.len());
    for (n, line) in lines.iter().filter(|line| !line.is_empty()).enumerate() {
        let start = if n == 0 { "  ms after it    " } else { INDENT };
        let _ = writeln!(out, "{start}{line}");
    }
    out
}

fn goals(results: &Results) -> Table {
    let mut table = Table::new(&[
        ("goal", Align::Left),
        ("bound", Align::Left),
        ("measured", Align::Right),
        ("", Align::Left),
    ]);
    for goal in &results.goals {
        let verdict = if goal.met { "met" } else { "missed" };
        table.row([goal.name, goal.goal, &goal.measured, verdict]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::super::goals;
    use super::super::results::tests::example;
    use super::*;

    #[test]
    fn everything_is_told_in_eighty_columns() {
        let mut results = example();
        for workload in &mut results.workloads {
            workload.rate.without_ft = 123_456_789.0;
        }
        results.goals = goals::judge(&results);
        let text = render(&results);
        for line in text.lines() {
            assert!(line.chars().count() <= WIDTH, "{line}");
        }
        for words in [
            "kv, 50 conns, op/s",
            "Oracle Swingbench",
            "0.64-0.91",
            "heartbeats",
            "33 %, 40/s",
            "10 %, 12/s",
            "counter, an iteration",
            "whose processor time",
            "vcpu 9.00",
            "tick lateness    p50 40 us, p99 900 us",
            "noticed 250.3, flag won 250.7",
            "first byte 251.0",
            "took 3 %",
            "missed",
        ] {
            assert!(text.contains(words), "{words} is missing in\n{text}");
        }
        assert!(!text.contains('…'), "nothing is cut:\n{text}");
    }

    #[test]
    fn rates_have_few_digits() {
        assert_eq!(number(12_345.6), "12346");
        assert_eq!(number(12.34), "12.3");
        let results = example();
        let scaled = |n: usize| scale(&results.workloads[n]).1;
        assert_eq!(
            (scaled(0), scaled(1), scaled(3)),
            ("M it/s", "op/s", "MiB/s")
        );
    }

    #[test]
    fn threads_that_took_little_are_one() {
        let threads = [("vcpu", 6.0), ("acks", 2.0), ("views", 0.004), ("a", 0.002)];
        let threads = threads.map(|(name, us)| (name.to_owned(), us)).into();
        assert_eq!(shares(&threads), "vcpu 6.00, acks 2.00, others 0.00600");
    }

    #[test]
    fn a_busy_host_is_named() {
        assert!(others(Some(OTHERS_MAX + 1)).contains("NOTE"));
        assert!(!others(Some(OTHERS_MAX)).contains("NOTE"));
        assert!(others(None).is_empty());
    }

    #[test]
    fn what_was_not_measured_is_not_told() {
        let mut results = example();
        results.workloads.clear();
        results.latency = None;
        let text = render(&results);
        assert!(
            !text.contains("VMware") && !text.contains("Latency"),
            "{text}"
        );
        assert!(text.contains("failover"));
    }
}
