//! What each load comes to.

use crate::medians::{median, ratio};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// What serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// The software engine, `tandem run`.
    Unprotected,
    /// The software engine, a pair.
    UnderFt,
    /// QEMU's TCG.
    Tcg,
}

impl Way {
    /// In the order of a round.
    pub const ALL: [Way; 3] = [Way::Unprotected, Way::UnderFt, Way::Tcg];

    /// For people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Unprotected => "unprotected",
            Self::UnderFt => "under FT",
            Self::Tcg => "QEMU TCG",
        }
    }

    /// The processes it is made of, in the order their processor time is told.
    #[must_use]
    pub fn processes(self) -> &'static [Process] {
        match self {
            Self::Unprotected => &[Process::Unprotected],
            Self::UnderFt => &[Process::Primary, Process::Backup],
            Self::Tcg => &[Process::Tcg],
        }
    }
}

/// Whose processor time is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Process {
    /// `tandem run`.
    Unprotected,
    /// `tandem primary`.
    Primary,
    /// `tandem backup`.
    Backup,
    /// QEMU.
    Tcg,
}

/// What clients ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// A test of redis-benchmark's.
    pub command: &'static str,
    /// Connections.
    pub connections: u16,
    /// Requests that are sent at once on each.
    pub pipeline: u16,
}

impl Load {
    /// All that are measured, in this order.
    pub const ALL: [Load; 8] = [
        Load::new("SET", 1, 1),
        Load::new("SET", 1, 16),
        Load::new("SET", 50, 1),
        Load::new("SET", 50, 16),
        Load::new("GET", 1, 1),
        Load::new("GET", 1, 16),
        Load::new("GET", 50, 1),
        Load::new("GET", 50, 16),
    ];

    const fn new(command: &'static str, connections: u16, pipeline: u16) -> Self {
        Self {
            command,
            connections,
            pipeline,
        }
    }

    /// For people.
    #[must_use]
    pub fn name(self) -> String {
        let plural = if self.connections == 1 { "" } else { "s" };
        format!(
            "{}, {} connection{plural}, pipeline {}",
            self.command, self.connections, self.pipeline
        )
    }
}

/// One measurement of one load.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// Requests a second.
    pub rate: f64,
    /// How many there were.
    pub requests: u64,
    /// The processor time each of [`Way::processes`] took for them.
    pub cpu: Vec<Duration>,
}

/// One load, what serves it beside each other. Medians over the rounds.
#[derive(Clone, Debug, Default, Serialize)]
pub struct RedisRow {
    /// Its name.
    pub name: String,
    /// SET or GET.
    pub command: &'static str,
    /// Connections.
    pub connections: u16,
    /// Requests that are sent at once on each.
    pub pipeline: u16,
    /// Requests a second.
    pub rate: BTreeMap<Way, f64>,
    /// That of the unprotected machine over that on QEMU's TCG.
    pub vs_tcg: Option<f64>,
    /// That under FT over that of the unprotected machine.
    pub ft_ratio: Option<f64>,
    /// Processor time of each process over the requests answered meanwhile, in microseconds.
    pub cpu_us_per_op: BTreeMap<Process, f64>,
    /// Each round's rate.
    pub rounds: BTreeMap<Way, Vec<f64>>,
    /// Each round's processor time.
    pub rounds_cpu_us_per_op: BTreeMap<Process, Vec<f64>>,
}

impl RedisRow {
    /// One without figures yet.
    #[must_use]
    pub fn new(load: Load) -> Self {
        Self {
            name: load.name(),
            command: load.command,
            connections: load.connections,
            pipeline: load.pipeline,
            ..Self::default()
        }
    }

    /// Adds a measurement.
    pub fn take(&mut self, way: Way, measured: &Measured) {
        self.rounds.entry(way).or_default().push(measured.rate);
        for (process, cpu) in way.processes().iter().zip(&measured.cpu) {
            let us = ratio(cpu.as_secs_f64() * 1e6, measured.requests as f64);
            let rounds = self.rounds_cpu_us_per_op.entry(*process).or_default();
            rounds.push(us);
        }
    }

    /// Sets medians and ratios.
    pub fn judge(&mut self) {
        self.rate = medians(&self.rounds);
        self.cpu_us_per_op = medians(&self.rounds_cpu_us_per_op);
        let over = |of, than| Some(ratio(*self.rate.get(&of)?, *self.rate.get(&than)?));
        self.vs_tcg = over(Way::Unprotected, Way::Tcg);
        self.ft_ratio = over(Way::UnderFt, Way::Unprotected);
    }
}

fn medians<K: Ord + Copy>(rounds: &BTreeMap<K, Vec<f64>>) -> BTreeMap<K, f64> {
    let of = |(key, values): (&K, &Vec<f64>)| (*key, median(values));
    rounds.iter().map(of).collect()
}

/// A row with figures of every kind.
#[cfg(test)]
pub fn example() -> RedisRow {
    let mut row = RedisRow::new(Load::ALL[3]);
    let cpu = |us: &[u64]| us.iter().map(|us| Duration::from_millis(*us)).collect();
    for (way, rate, us) in [
        (Way::Unprotected, 40_000.0, &[20][..]),
        (Way::UnderFt, 30_000.0, &[24, 21]),
        (Way::Tcg, 20_000.0, &[41]),
    ] {
        for factor in [0.9, 1.0, 1.2] {
            let measured = Measured {
                rate: rate * factor,
                requests: 1000,
                cpu: cpu(us),
            };
            row.take(way, &measured);
        }
    }
    row.judge();
    row
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speeds_are_of_medians() {
        let row = example();
        assert_eq!(row.rate[&Way::Unprotected], 40_000.0);
        assert_eq!((row.vs_tcg, row.ft_ratio), (Some(2.0), Some(0.75)));
        let us = |process| row.cpu_us_per_op[&process];
        assert_eq!((us(Process::Unprotected), us(Process::Tcg)), (20.0, 41.0));
        assert_eq!((us(Process::Primary), us(Process::Backup)), (24.0, 21.0));
    }

    #[test]
    fn without_qemu_there_is_nothing_beside_it() {
        let mut row = example();
        row.rounds.remove(&Way::Tcg);
        row.judge();
        assert_eq!((row.vs_tcg, row.ft_ratio), (None, Some(0.75)));
    }

    #[test]
    fn loads_differ_by_their_names() {
        let names: std::collections::BTreeSet<_> = Load::ALL.map(Load::name).into();
        assert_eq!(names.len(), Load::ALL.len());
        assert!(names.contains("GET, 1 connection, pipeline 16"));
    }
}
