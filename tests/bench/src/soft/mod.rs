//! The software engine beside the host's processor and beside QEMU's translator.
//!
//! ```text
//!  linux    one kernel, one first root, one program for all
//!  engines  native │ software: run, record, replay │ QEMU: TCG, -icount       rounds interleaved
//!     │ lines of the console, and when each came        marks: instructions between two of them
//!     ▼
//!  results ──▶ words, JSON, plot
//!     ▲
//!  redis    one server: alone, under fault tolerance, on QEMU's TCG       rounds interleaved
//! ```
//!
//! Times are taken outside, when lines arrive: clocks of a guest are its engine's. What engines are held
//! beside each other by is the processor time of their process, which other programs of the host disturb less.

mod engines;
mod linux;
mod marks;
mod redis;
mod results;
mod words;

pub use engines::qemu;
pub use redis::{Redis, RedisRow};
pub use results::SoftResults;
#[cfg(test)]
pub use results::tests::example;
pub use words::render;

use crate::error::{BenchError, Outcome};
use crate::medians::ratio;
use engines::{Engine, Said, recording};
use kit::During;
use linux::{Linux, MEMORY_MIB};
use marks::Marks;
use results::{Boot, CpuKernel, Idle};
use std::path::Path;
use terminal::figures::mbit_s;

/// Most runs in a round.
pub const RUNS_MAX: u64 = Engine::ALL.len() as u64;
/// What a guest prints when it runs what it was told to.
const RUNS: &str = "tandem: runs ";
/// And when that has ended.
const ENDED: &str = "tandem: ended";

/// The suites of the software engine.
pub struct Soft {
    linux: Linux,
    qemu: bool,
    results: SoftResults,
}

impl Soft {
    /// Ready to measure the guest in `image`, or in one that is built now.
    pub fn prepare(image: Option<&Path>) -> Outcome<Self> {
        let linux = Linux::prepare(image)?;
        let qemu = qemu().is_some();
        let results = SoftResults {
            kernel: linux.release.clone(),
            memory_mib: MEMORY_MIB,
            qemu,
            ..SoftResults::default()
        };
        Ok(Self {
            linux,
            qemu,
            results,
        })
    }

    /// What was measured so far.
    #[must_use]
    pub fn results(&self) -> SoftResults {
        self.results.clone()
    }

    /// The engines that can run a guest here; `native` with the host itself.
    fn engines(&self, native: bool) -> impl Iterator<Item = Engine> + use<> {
        let qemu = self.qemu;
        Engine::ALL
            .into_iter()
            .filter(move |e| (qemu || !e.is_qemu()) && (native || *e != Engine::Native))
    }

    /// One round: `command` on each of `engines`. A failure of one is noted, and costs only its own figures.
    fn round(
        &mut self,
        engines: impl Iterator<Item = Engine>,
        command: &[String],
        progress: &mut dyn FnMut(&str),
    ) -> Vec<(Engine, Said)> {
        let mut all = Vec::new();
        for engine in engines {
            progress(engine.name());
            match engines::run(engine, &self.linux, command) {
                Ok(said) => all.push((engine, said)),
                Err(why) => self.failed(engine, &why),
            }
        }
        all
    }

    fn failed(&mut self, engine: Engine, why: &BenchError) {
        let failure = format!("{}: {why}", engine.name());
        if !self.results.failures.contains(&failure) {
            self.results.failures.push(failure);
        }
    }

    /// `cpu`: every kernel, `units` of each.
    pub fn cpu(&mut self, rounds: u32, units: u32, progress: &mut dyn FnMut(&str)) -> Outcome {
        let command = ["/cpu".into(), "all".into(), units.to_string()];
        let mut kernels: Vec<CpuKernel> = Vec::new();
        for _ in 0..rounds {
            let engines = self.engines(true);
            for (engine, said) in self.round(engines, &command, progress) {
                let mut taken = take_kernels(&mut kernels, engine, &said);
                if engine == Engine::SoftRecorded && taken.is_ok() {
                    taken = take_instructions(&mut kernels, &recording(&self.linux), &said);
                }
                if let Err(why) = taken {
                    self.failed(engine, &why);
                }
            }
        }
        kernels.iter_mut().for_each(CpuKernel::judge);
        let wrong: Vec<String> = kernels
            .iter()
            .filter(|kernel| kernel.checksums.len() > 1)
            .map(|kernel| kernel.name.clone())
            .collect();
        self.results.cpu = kernels;
        self.verdict()?;
        if wrong.is_empty() {
            return Ok(());
        }
        Err(BenchError::said(format!(
            "engines computed different things: {}",
            wrong.join(", ")
        )))
    }

    /// `boot`: from the start to the first command.
    pub fn boot(&mut self, rounds: u32, progress: &mut dyn FnMut(&str)) -> Outcome {
        let mut boot = Boot::default();
        for _ in 0..rounds {
            let engines = self.engines(false);
            for (engine, said) in self.round(engines, &["true".into()], progress) {
                if let Err(why) = take_boot(&mut boot, engine, &said, &recording(&self.linux)) {
                    self.failed(engine, &why);
                }
            }
        }
        boot.judge();
        self.results.boot = Some(boot);
        self.verdict()
    }

    /// `idle`: what the log takes of a guest that sleeps for `seconds`, each round.
    pub fn idle(&mut self, rounds: u32, seconds: u32, progress: &mut dyn FnMut(&str)) -> Outcome {
        let command = ["sleep".into(), seconds.to_string()];
        let mut idle = Idle::default();
        for _ in 0..rounds {
            let engine = [Engine::SoftRecorded].into_iter();
            for (_, said) in self.round(engine, &command, progress) {
                let ((begun, from), (ended, to)) = (said.line(RUNS)?, said.line(ENDED)?);
                let lines = [from, to].map(str::to_owned);
                let marks = Marks::find(&recording(&self.linux), lines)?;
                let (Some(first), Some(last)) = (marks.at(from), marks.at(to)) else {
                    return Err(BenchError::said(
                        "the recording does not show the guest's lines",
                    ));
                };
                let us = ((ended.ms - begun.ms) * 1e3) as u64;
                let kbit_s = mbit_s(last.bytes.saturating_sub(first.bytes), us) * 1e3;
                idle.rounds_kbit_s.push(kbit_s);
                let instructions = last.clock.saturating_sub(first.clock);
                idle.rounds_mips
                    .push(instructions as f64 / us.max(1) as f64);
                let busy = ratio(ended.cpu_ms - begun.cpu_ms, ended.ms - begun.ms);
                idle.rounds_cpu_percent.push(busy * 100.0);
            }
        }
        idle.judge(seconds);
        self.results.idle = Some(idle);
        self.verdict()
    }

    /// Fails if anything did.
    fn verdict(&self) -> Outcome {
        match self.results.failures.first() {
            None => Ok(()),
            Some(first) => Err(BenchError::said(first.as_str())),
        }
    }
}

/// Adds the times of one run.
fn take_kernels(kernels: &mut Vec<CpuKernel>, engine: Engine, said: &Said) -> Outcome {
    let ends = said.kernels(engine).during("the program's lines")?;
    if ends.is_empty() {
        return Err(BenchError::said("no kernel ran"));
    }
    for end in ends {
        let known = kernels.iter().position(|kernel| kernel.name == end.name);
        let at = known.unwrap_or_else(|| {
            kernels.push(CpuKernel::new(&end));
            kernels.len() - 1
        });
        kernels[at].take(engine, &end);
    }
    Ok(())
}

/// Adds one start, with its instructions if it was recorded in `log`.
fn take_boot(boot: &mut Boot, engine: Engine, said: &Said, log: &Path) -> Outcome {
    let (took, line) = said.line(RUNS)?;
    boot.rounds_ms.entry(engine).or_default().push(took.ms);
    boot.rounds_cpu_ms
        .entry(engine)
        .or_default()
        .push(took.cpu_ms);
    if engine == Engine::SoftRecorded {
        let mark = Marks::find(log, [line.to_owned()])?.at(line);
        boot.instructions.extend(mark.map(|mark| mark.clock));
    }
    Ok(())
}

/// Adds the instructions of a recording.
fn take_instructions(kernels: &mut [CpuKernel], log: &Path, said: &Said) -> Outcome {
    let ends = said.kernels(Engine::SoftRecorded)?;
    let lines = ends
        .iter()
        .flat_map(|end| [end.begin.clone(), end.line.clone()]);
    let marks = Marks::find(log, lines)?;
    for end in &ends {
        let kernel = kernels.iter_mut().find(|kernel| kernel.name == end.name);
        if let (Some(kernel), Some(count)) = (kernel, marks.instructions(&end.begin, &end.line)) {
            kernel.rounds_instructions.push(count);
        }
    }
    Ok(())
}
