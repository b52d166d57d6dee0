//! What the suites of the software engine come to.

use super::engines::{Engine, KernelEnd, Took};
use super::redis::{RedisGuest, RedisRow};
use crate::medians::{median, ratio};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// Everything about the software engine.
#[derive(Clone, Debug, Default, Serialize)]
pub struct SoftResults {
    /// Release of the Linux kernel that was run.
    pub kernel: String,
    /// Its memory.
    pub memory_mib: u32,
    /// Whether QEMU was there to be held beside.
    pub qemu: bool,
    /// If measured.
    pub cpu: Vec<CpuKernel>,
    /// If measured.
    pub boot: Option<Boot>,
    /// If measured.
    pub idle: Option<Idle>,
    /// If `redis` was measured: each load.
    pub redis: Vec<RedisRow>,
    /// And what served it.
    pub redis_guest: Option<RedisGuest>,
    /// Runs that failed.
    pub failures: Vec<String>,
}

/// Speeds of one engine over another: 2 is twice as fast.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Ratios {
    /// The software engine over the host.
    pub soft_to_native: Option<f64>,
    /// Recording over not.
    pub recorded_to_soft: Option<f64>,
    /// Replaying over recording.
    pub replay_to_recorded: Option<f64>,
    /// The software engine over QEMU's TCG.
    pub soft_to_tcg: Option<f64>,
    /// Recording over TCG that counts instructions.
    pub recorded_to_icount: Option<f64>,
}

impl Ratios {
    /// Of the times `ms` gives for engines.
    fn of(ms: impl Fn(Engine) -> Option<f64>) -> Self {
        // As fast as `than` in `of` times its time.
        let speed = |of, than| Some(ratio(ms(than)?, ms(of)?));
        Self {
            soft_to_native: speed(Engine::Soft, Engine::Native),
            recorded_to_soft: speed(Engine::SoftRecorded, Engine::Soft),
            replay_to_recorded: speed(Engine::Replay, Engine::SoftRecorded),
            soft_to_tcg: speed(Engine::Soft, Engine::Tcg),
            recorded_to_icount: speed(Engine::SoftRecorded, Engine::Icount),
        }
    }
}

/// One kind of work, all engines beside each other. Times are processor time, medians over the rounds.
#[derive(Clone, Debug, Default, Serialize)]
pub struct CpuKernel {
    /// Its name.
    pub name: String,
    /// Work done in a run, in whatever it counts.
    pub items: u64,
    /// Of what was computed; more than one are a fault of an engine.
    pub checksums: BTreeMap<String, BTreeSet<Engine>>,
    /// As the program itself says.
    pub native_ms: Option<f64>,
    /// `tandem run`.
    pub soft_ms: Option<f64>,
    /// `tandem record`.
    pub soft_recorded_ms: Option<f64>,
    /// `tandem replay`.
    pub replay_ms: Option<f64>,
    /// QEMU.
    pub tcg_ms: Option<f64>,
    /// QEMU, counting instructions.
    pub icount_ms: Option<f64>,
    /// Speeds over each other.
    pub ratios: Ratios,
    /// Instructions in a run, by the recording's clock.
    pub instructions: Option<f64>,
    /// Millions of them a second, not recorded.
    pub mips: Option<f64>,
    /// Each round's processor time.
    pub rounds_cpu_ms: BTreeMap<Engine, Vec<f64>>,
    /// Each round's time.
    pub rounds_ms: BTreeMap<Engine, Vec<f64>>,
    /// Each recording's instructions.
    pub rounds_instructions: Vec<u64>,
}

impl CpuKernel {
    /// One without times yet.
    #[must_use]
    pub fn new(end: &KernelEnd) -> Self {
        Self {
            name: end.name.clone(),
            items: end.items,
            ..Self::default()
        }
    }

    /// Adds a run.
    pub fn take(&mut self, engine: Engine, end: &KernelEnd) {
        let computed = format!("{} of {}", end.checksum, end.items);
        self.checksums.entry(computed).or_default().insert(engine);
        let Took { cpu_ms, ms } = end.took;
        self.rounds_cpu_ms.entry(engine).or_default().push(cpu_ms);
        self.rounds_ms.entry(engine).or_default().push(ms);
    }

    /// Sets medians and ratios.
    pub fn judge(&mut self) {
        let ms = |engine| median_of(&self.rounds_cpu_ms, engine);
        self.native_ms = ms(Engine::Native);
        self.soft_ms = ms(Engine::Soft);
        self.soft_recorded_ms = ms(Engine::SoftRecorded);
        self.replay_ms = ms(Engine::Replay);
        self.tcg_ms = ms(Engine::Tcg);
        self.icount_ms = ms(Engine::Icount);
        self.ratios = Ratios::of(ms);
        self.instructions = median_count(&self.rounds_instructions);
        self.mips = mips(self.instructions, self.soft_ms);
    }
}

/// From the start to the first command of the guest. Medians over the rounds.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Boot {
    /// Time by engine.
    pub ms: BTreeMap<Engine, f64>,
    /// Processor time by engine.
    pub cpu_ms: BTreeMap<Engine, f64>,
    /// Millions of instructions a second of processor time, recorded.
    pub mips: Option<f64>,
    /// Speeds over each other, by processor time; there is no native start.
    pub ratios: Ratios,
    /// Each recording's instructions.
    pub instructions: Vec<u64>,
    /// Each round's time.
    pub rounds_ms: BTreeMap<Engine, Vec<f64>>,
    /// Each round's processor time.
    pub rounds_cpu_ms: BTreeMap<Engine, Vec<f64>>,
}

impl Boot {
    /// Sets medians and ratios.
    pub fn judge(&mut self) {
        let medians = |rounds: &BTreeMap<Engine, Vec<f64>>| -> BTreeMap<Engine, f64> {
            rounds
                .iter()
                .map(|(engine, ms)| (*engine, median(ms)))
                .collect()
        };
        self.ms = medians(&self.rounds_ms);
        self.cpu_ms = medians(&self.rounds_cpu_ms);
        self.ratios = Ratios::of(|engine| self.cpu_ms.get(&engine).copied());
        let recorded = self.cpu_ms.get(&Engine::SoftRecorded).copied();
        self.mips = mips(median_count(&self.instructions), recorded);
    }
}

/// A guest with nothing to do, recorded. Medians over the rounds.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Idle {
    /// For how long it slept, in seconds.
    pub seconds: u32,
    /// Bandwidth of the log, framing and all.
    pub log_kbit_s: f64,
    /// Millions of instructions a second that it needs for that.
    pub mips: f64,
    /// Percent of one processor that recording it takes.
    pub cpu_percent: f64,
    /// Each round's bandwidth.
    pub rounds_kbit_s: Vec<f64>,
    /// Each round's instructions.
    pub rounds_mips: Vec<f64>,
    /// Each round's share of a processor.
    pub rounds_cpu_percent: Vec<f64>,
}

impl Idle {
    /// Sets the medians.
    pub fn judge(&mut self, seconds: u32) {
        self.seconds = seconds;
        self.log_kbit_s = median(&self.rounds_kbit_s);
        self.mips = median(&self.rounds_mips);
        self.cpu_percent = median(&self.rounds_cpu_percent);
    }
}

fn median_of(rounds: &BTreeMap<Engine, Vec<f64>>, engine: Engine) -> Option<f64> {
    rounds.get(&engine).map(|values| median(values))
}

fn median_count(counts: &[u64]) -> Option<f64> {
    let counts: Vec<f64> = counts.iter().map(|count| *count as f64).collect();
    (!counts.is_empty()).then(|| median(&counts))
}

fn mips(instructions: Option<f64>, ms: Option<f64>) -> Option<f64> {
    Some(ratio(instructions?, ms? * 1e3))
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Figures of every kind; QEMU is not there.
    pub fn example() -> SoftResults {
        let end = |ms: f64, checksum: &str| KernelEnd {
            name: "integer".into(),
            begin: "cpu: begin integer".into(),
            line: "cpu: end integer".into(),
            took: Took {
                cpu_ms: ms,
                ms: 2.0 * ms,
            },
            items: 7,
            checksum: checksum.into(),
        };
        let mut kernel = CpuKernel::new(&end(0.0, "ab"));
        for ms in [500.0, 700.0, 400.0] {
            kernel.take(Engine::Native, &end(10.0, "ab"));
            kernel.take(Engine::Soft, &end(ms, "ab"));
            kernel.take(Engine::SoftRecorded, &end(2.0 * ms, "ab"));
        }
        kernel.rounds_instructions = vec![50_000_000, 40_000_000, 60_000_000];
        kernel.judge();
        let mut boot = Boot {
            rounds_ms: BTreeMap::from([(Engine::SoftRecorded, vec![4000.0, 5000.0])]),
            rounds_cpu_ms: BTreeMap::from([
                (Engine::Soft, vec![1500.0]),
                (Engine::SoftRecorded, vec![2000.0, 4000.0]),
                (Engine::Tcg, vec![3000.0]),
            ]),
            instructions: vec![300_000_000],
            ..Boot::default()
        };
        boot.judge();
        let mut idle = Idle {
            rounds_kbit_s: vec![9.0, 7.0, 8.0],
            rounds_mips: vec![0.5],
            ..Idle::default()
        };
        idle.judge(10);
        SoftResults {
            kernel: "6.1.0-49-cloud-amd64".into(),
            memory_mib: 256,
            cpu: vec![kernel],
            boot: Some(boot),
            idle: Some(idle),
            redis: vec![super::super::redis::example()],
            ..SoftResults::default()
        }
    }

    #[test]
    fn speeds_are_of_medians_of_processor_time() {
        let results = example();
        let kernel = &results.cpu[0];
        assert_eq!(
            (kernel.native_ms, kernel.soft_ms),
            (Some(10.0), Some(500.0))
        );
        assert_eq!(kernel.ratios.soft_to_native, Some(0.02));
        assert_eq!(kernel.ratios.recorded_to_soft, Some(0.5));
        assert_eq!(kernel.ratios.soft_to_tcg, None, "QEMU was not there");
        assert_eq!(kernel.mips, Some(100.0));
        let boot = results.boot.unwrap();
        assert_eq!(boot.mips, Some(100.0));
        assert_eq!(boot.ratios.soft_to_tcg, Some(2.0));
        assert_eq!(boot.ratios.recorded_to_soft, Some(0.5));
        assert_eq!(boot.ratios.soft_to_native, None, "nothing starts natively");
        assert_eq!(results.idle.unwrap().log_kbit_s, 8.0);
    }

    #[test]
    fn what_is_computed_differently_shows() {
        let mut kernel = example().cpu.remove(0);
        assert_eq!(kernel.checksums.len(), 1);
        let mut end = KernelEnd {
            name: "integer".into(),
            begin: String::new(),
            line: String::new(),
            took: Took::default(),
            items: 7,
            checksum: "ac".into(),
        };
        kernel.take(Engine::Tcg, &end);
        assert_eq!(kernel.checksums.len(), 2);
        end.items = 8;
        kernel.take(Engine::Icount, &end);
        assert_eq!(kernel.checksums.len(), 3, "nor was as much done");
    }

    #[test]
    fn the_json_has_what_scripts_look_for() {
        let json = serde_json::to_value(example()).unwrap();
        let kernel = &json["cpu"][0];
        assert_eq!(kernel["name"], "integer");
        assert_eq!(kernel["soft_recorded_ms"], 1000.0);
        assert!(kernel["tcg_ms"].is_null());
        assert_eq!(kernel["rounds_ms"]["soft"][1], 1400.0);
        assert_eq!(json["boot"]["cpu_ms"]["soft_recorded"], 3000.0);
        assert_eq!(json["boot"]["ratios"]["soft_to_tcg"], 2.0);
        assert_eq!(json["idle"]["log_kbit_s"], 8.0);
        let redis = &json["redis"][0];
        assert_eq!(redis["name"], "SET, 50 connections, pipeline 16");
        assert_eq!(
            (&redis["vs_tcg"], &redis["ft_ratio"]),
            (&2.0.into(), &0.75.into())
        );
        assert_eq!(redis["rate"]["under_ft"], 30_000.0);
        assert_eq!(redis["cpu_us_per_op"]["backup"], 21.0);
    }
}
