//! Results as SVG files.

use super::paper;
use super::results::Results;
use super::soft::SoftResults;
use crate::error::Outcome;
use crate::plot::{
    Bar, Line, Mark, PlotError, ft_ratio, latency_cdf, log_bandwidth, speeds, stall_cdf,
};
use check::latencies::Latencies;
use kit::During;
use replay::Kind;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Latencies at the same rate, all rounds together.
#[derive(Clone, Debug, Default)]
pub struct Distributions {
    /// Without FT.
    pub without_ft: Latencies,
    /// Under FT.
    pub under_ft: Latencies,
}

/// Writes the plots there are figures for into `folder`; where they are.
pub fn write(
    folder: &Path,
    results: &Results,
    latency: Option<&Distributions>,
) -> Outcome<Vec<PathBuf>> {
    let mut paths = Vec::new();
    let mut save = |name: &str, svg: Result<String, PlotError>| -> Outcome {
        let path = folder.join(name);
        std::fs::write(&path, svg?).during(format_args!("cannot write {}", path.display()))?;
        paths.push(path);
        Ok(())
    };
    if !results.workloads.is_empty() {
        let ours: Vec<(&str, f64)> = results
            .workloads
            .iter()
            .map(|w| (w.name.as_str(), w.ft_ratio))
            .collect();
        save("ft-ratio.svg", ft_ratio(&ours, &paper::ratios()))?;
        save("log-bandwidth.svg", bandwidth(results))?;
    }
    if let (Some(latency), Some(at)) = (latency, &results.latency) {
        let lines = [
            ("without FT", &latency.without_ft),
            ("under FT", &latency.under_ft),
        ]
        .map(|(name, latencies)| Line {
            name: name.into(),
            points: latencies.cdf(),
        });
        let title = format!("Latency of kv at {} requests a second", at.rate_per_s);
        save("latency.svg", latency_cdf(&title, &lines))?;
    }
    if let Some(failover) = &results.failover {
        let stalls_ms: Vec<u64> = failover
            .stalls_us
            .iter()
            .map(|us| us.div_ceil(1000))
            .collect();
        let goals = [("p50 goal", 150.0), ("p99 goal", 500.0)].map(|(name, at)| Mark {
            name: name.into(),
            at,
        });
        save("failover.svg", stall_cdf(&stalls_ms, &goals))?;
    }
    if let Some(soft) = results.soft.as_ref().filter(|soft| !soft.cpu.is_empty()) {
        save("cpu.svg", processors(soft))?;
    }
    Ok(paths)
}

/// Speeds of the software engine over QEMU's translator; over the host, where there is no QEMU.
fn processors(soft: &SoftResults) -> Result<String, PlotError> {
    let (axis, kinds): (_, &[&str]) = if soft.qemu {
        (
            "times the speed of QEMU",
            &["beside TCG", "recorded, beside TCG -icount"],
        )
    } else {
        ("times the speed of the host", &["software engine"])
    };
    let bars = soft.cpu.iter().flat_map(|kernel| {
        let ratios = &kernel.ratios;
        let values = if soft.qemu {
            [ratios.soft_to_tcg, ratios.recorded_to_icount]
        } else {
            [ratios.soft_to_native, None]
        };
        let bar = |(kind, value): (usize, Option<f64>)| Some(Bar::new(&kernel.name, kind, value?));
        values.into_iter().enumerate().filter_map(bar)
    });
    speeds(
        "Software engine, by kind of work",
        axis,
        kinds,
        &bars.collect::<Vec<_>>(),
    )
}

fn bandwidth(results: &Results) -> Result<String, PlotError> {
    let kinds: BTreeSet<Kind> = results
        .workloads
        .iter()
        .flat_map(|workload| workload.kinds.keys().copied())
        .collect();
    let mut names: Vec<String> = kinds.iter().map(|kind| kind.to_string()).collect();
    names.push("framing".into());
    let bars: Vec<Bar> = results
        .workloads
        .iter()
        .map(|workload| {
            let part = |(n, kind)| Some((n, workload.kinds.get(kind)?.mbit_s));
            let mut parts: Vec<(usize, f64)> = kinds.iter().enumerate().filter_map(part).collect();
            parts.push((kinds.len(), workload.framing_mbit_s));
            Bar {
                name: workload.name.clone(),
                parts,
            }
        })
        .collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    log_bandwidth(&names, &bars)
}

#[cfg(test)]
mod tests {
    use super::super::results::tests::example;
    use super::super::soft::example as soft_example;
    use super::*;

    #[test]
    fn every_plot_there_are_figures_for_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let mut some = Distributions::default();
        some.without_ft.record(90_000);
        some.under_ft.record(190_000);
        let mut results = example();
        let paths = write(folder.path(), &results, Some(&some)).unwrap();
        assert_eq!(paths.len(), 4);
        for path in &paths {
            let svg = std::fs::read_to_string(path).unwrap();
            assert!(svg.starts_with("<svg"), "{}", path.display());
        }
        let bandwidth = std::fs::read_to_string(folder.path().join("log-bandwidth.svg")).unwrap();
        for word in ["timer", "frame", "framing", "kv, 50 connections"] {
            assert!(bandwidth.contains(word), "{word}");
        }
        results.soft = Some(soft_example());
        assert_eq!(write(folder.path(), &results, None).unwrap().len(), 4);
        let cpu = std::fs::read_to_string(folder.path().join("cpu.svg")).unwrap();
        assert!(cpu.contains("integer") && cpu.contains("speed of the host"));
        results.workloads.clear();
        results.soft = None;
        results.failover = None;
        assert!(write(folder.path(), &results, None).unwrap().is_empty());
        let nowhere = folder.path().join("missing");
        assert!(write(&nowhere, &example(), None).is_err());
    }
}
