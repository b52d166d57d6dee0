//! The software engine for people, in 80 columns.

use super::engines::Engine;
use super::redis::{Process, RedisRow, Way};
use super::results::{Boot, Idle, SoftResults};
use std::fmt::Write as _;
use terminal::table::WIDTH;
use terminal::table::wrap;
use terminal::{Align, Table};

/// Everything there is.
#[must_use]
pub fn render(results: &SoftResults) -> String {
    let mut out = String::from("\n");
    let linux = !results.cpu.is_empty() || results.boot.is_some() || results.idle.is_some();
    if linux || results.redis_guest.is_none() {
        out += &wrapped(&format!(
            "Software engine: Linux {}, {} MiB, one processor{}",
            results.kernel,
            results.memory_mib,
            no_qemu(results)
        ));
    }
    if !results.cpu.is_empty() {
        let _ = write!(
            out,
            "\nKernels, ms of processor time (and speed, QEMU TCG's and -icount's being 1)\n\n{}",
            kernels(results)
        );
    }
    if let Some(boot) = &results.boot {
        let _ = write!(out, "\n{}", boot_words(boot));
    }
    if let Some(idle) = &results.idle {
        let _ = write!(out, "\n{}", idle_words(idle));
    }
    if let Some(guest) = &results.redis_guest {
        if linux {
            out.push('\n');
        }
        let about = format!(
            "redis-server {}, Linux {}, {} MiB: requests a second{}",
            guest.server,
            guest.kernel,
            guest.memory_mib,
            no_qemu(results)
        );
        let _ = write!(out, "{}\n{}", wrapped(&about), redis_words(&results.redis));
    }
    for failure in &results.failures {
        out += &named("FAILED", failure);
    }
    for kernel in &results.cpu {
        if kernel.checksums.len() > 1 {
            for (computed, engines) in &kernel.checksums {
                let names: Vec<_> = engines.iter().map(|engine| engine.name()).collect();
                let names = names.join(", ");
                out += &named("DIFFERS", &format!("{}: {computed}: {names}", kernel.name));
            }
        }
    }
    out
}

fn no_qemu(results: &SoftResults) -> &'static str {
    if results.qemu {
        ""
    } else {
        "; QEMU is not installed here"
    }
}

/// In as many lines as it needs.
fn wrapped(words: &str) -> String {
    wrap(words, WIDTH)
        .iter()
        .fold(String::new(), |out, line| out + line + "\n")
}

fn figure(value: Option<f64>) -> String {
    match value {
        None => "-".into(),
        Some(value) if value >= 100.0 => format!("{value:.0}"),
        Some(value) => format!("{value:.1}"),
    }
}

fn times(value: Option<f64>) -> String {
    value.map_or("-".into(), |value| format!("{value:.2}"))
}

fn kernels(results: &SoftResults) -> Table {
    let mut table = Table::new(&[
        ("kernel", Align::Left),
        ("native", Align::Right),
        ("soft", Align::Right),
        ("MIPS", Align::Right),
        ("rec.", Align::Right),
        ("replay", Align::Right),
        ("TCG", Align::Right),
        ("icount", Align::Right),
        ("/TCG", Align::Right),
        ("/icnt", Align::Right),
    ]);
    for kernel in &results.cpu {
        table.row([
            kernel.name.clone(),
            figure(kernel.native_ms),
            figure(kernel.soft_ms),
            figure(kernel.mips),
            figure(kernel.soft_recorded_ms),
            figure(kernel.replay_ms),
            figure(kernel.tcg_ms),
            figure(kernel.icount_ms),
            times(kernel.ratios.soft_to_tcg),
            times(kernel.ratios.recorded_to_icount),
        ]);
    }
    table
}

fn boot_words(boot: &Boot) -> String {
    let parts: Vec<String> = boot
        .ms
        .iter()
        .map(|(engine, ms)| {
            let mips = match (engine, boot.mips) {
                (Engine::SoftRecorded, Some(mips)) => format!(", {mips:.0} MIPS"),
                _ => String::new(),
            };
            let cpu = boot.cpu_ms.get(engine).copied().unwrap_or_default();
            format!("{} {:.2} ({:.2}{mips})", engine.name(), ms / 1e3, cpu / 1e3)
        })
        .collect();
    let mut words = parts.join(", ");
    if let Some(speed) = boot.ratios.soft_to_tcg {
        let _ = write!(words, "; {speed:.2} times QEMU TCG's speed");
    }
    named("boot, s (cpu s)", &words)
}

/// Requests a second, then processor time a request.
fn redis_words(rows: &[RedisRow]) -> String {
    let mut rates = Table::new(&[
        ("load", Align::Left),
        ("unprot.", Align::Right),
        ("FT", Align::Right),
        ("TCG", Align::Right),
        ("/TCG", Align::Right),
        ("FT/un.", Align::Right),
    ]);
    let mut times_us = Table::new(&[
        ("load", Align::Left),
        ("unprot.", Align::Right),
        ("primary", Align::Right),
        ("backup", Align::Right),
        ("TCG", Align::Right),
    ]);
    for row in rows {
        let name = row.name.replace("connection", "conn");
        let rate = |way| {
            row.rate
                .get(&way)
                .map_or("-".into(), |rate| format!("{rate:.0}"))
        };
        rates.row([
            name.clone(),
            rate(Way::Unprotected),
            rate(Way::UnderFt),
            rate(Way::Tcg),
            times(row.vs_tcg),
            times(row.ft_ratio),
        ]);
        let us = |process| figure(row.cpu_us_per_op.get(&process).copied());
        times_us.row([
            name,
            us(Process::Unprotected),
            us(Process::Primary),
            us(Process::Backup),
            us(Process::Tcg),
        ]);
    }
    format!("{rates}\nProcessor time a request, us\n\n{times_us}")
}

/// Words behind a name, in as many lines as they need.
fn named(name: &str, words: &str) -> String {
    /// Columns of the name.
    const NAME: usize = 17;
    let mut out = String::new();
    let lines = wrap(words, WIDTH - NAME);
    for (n, line) in lines.iter().filter(|line| !line.is_empty()).enumerate() {
        let start = if n == 0 { name } else { "" };
        let _ = writeln!(out, "{start:NAME$}{line}");
    }
    out
}

fn idle_words(idle: &Idle) -> String {
    format!(
        "idle             {:.1} kbit/s of log over {} s; VMware FT (2010): 500-1500\n\
         \u{20}                {:.2} MIPS, {:.1} % of a processor\n",
        idle.log_kbit_s, idle.seconds, idle.mips, idle.cpu_percent
    )
}

#[cfg(test)]
mod tests {
    use super::super::redis::RedisGuest;
    use super::super::results::tests::example;
    use super::*;

    #[test]
    fn everything_is_told_in_eighty_columns() {
        let mut results = example();
        let kernel = &mut results.cpu[0];
        kernel.name = "branches".into();
        for ms in [
            &mut kernel.soft_ms,
            &mut kernel.tcg_ms,
            &mut kernel.replay_ms,
        ] {
            *ms = Some(123_456.0);
        }
        let boot = results.boot.as_mut().unwrap();
        boot.ms = Engine::ALL.map(|engine| (engine, 123_456.0)).into();
        let redis = &mut results.redis[0];
        redis.rate = Way::ALL.map(|way| (way, 1_234_567.0)).into();
        redis.cpu_us_per_op.insert(Process::Backup, 12_345.6);
        results.redis_guest = Some(RedisGuest {
            kernel: "6.1.0-57-cloud-amd64".into(),
            server: "5:7.0.15-1~deb12u6+with-a-rather-long-end".into(),
            memory_mib: 288,
        });
        let text = render(&results);
        for line in text.lines() {
            assert!(line.chars().count() <= WIDTH, "{line}");
        }
        for words in [
            "QEMU is not",
            "2.00 times QEMU",
            "SET, 50 conns, pipeline 16  1234567  1234567  1234567  2.00    0.75",
            "24.0   12346  41.0",
            "branches",
            "500-1500",
            "8.0 kbit/s",
            ", 100 MIPS)",
        ] {
            assert!(text.contains(words), "{words} is missing in\n{text}");
        }
        assert!(!text.contains('…') && !text.contains("DIFFERS"), "{text}");
    }

    #[test]
    fn redis_alone_has_one_head() {
        let results = SoftResults {
            redis: example().redis,
            redis_guest: Some(RedisGuest::default()),
            ..SoftResults::default()
        };
        let text = render(&results);
        assert!(text.starts_with("\nredis-server"), "{text}");
        assert_eq!(text.matches("QEMU is not").count(), 1, "{text}");
    }

    #[test]
    fn a_wrong_engine_is_named() {
        let mut results = example();
        let wrong = ("ff of 7".to_owned(), [Engine::Replay].into());
        results.cpu[0].checksums.extend([wrong]);
        results.failures.push("QEMU TCG: it failed".into());
        let text = render(&results);
        assert!(
            text.contains("DIFFERS          integer: ff of 7: replayed"),
            "{text}"
        );
        assert!(text.contains("FAILED           QEMU TCG"), "{text}");
    }
}
