//! Running each workload in each of three ways, round after round.
//!
//! ```text
//!  round 1:  without FT │ recording │ under FT       what else the host does meanwhile
//!  round 2:  without FT │ recording │ under FT       hits all three alike
//! ```

use super::cpu::{Cost, Meter, Process};
use super::kv::{self, KvRound, Rates};
use super::logs::{Counters, EntryBytes, LogCost, cost_so_far, counters};
use super::memory::{GUEST_MIB, Memory};
use super::mode::Mode;
use crate::error::{BenchError, Outcome};
use kit::During;
use kit::cluster::{Cluster, Pair, PairOptions};
use kit::daemon::Daemon;
use kit::guest::value_of;
use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Rate of the timer tick in `counter` and `disk`, in Hz.
const TICK_HZ: u32 = 100;
/// Size of the disk in bytes.
const DISK_BYTES: usize = 32 << 20;
/// Longest time for a process to start, or to end once asked to.
const LIMIT: Duration = Duration::from_secs(30);
/// Time between two looks at the memory of the replicas.
const LOOK: Duration = Duration::from_millis(500);

/// What one run of a guest that ends by itself came to.
#[derive(Clone, Debug, Default)]
pub struct GuestRun {
    /// Work done a second of guest time.
    pub rate: f64,
    /// Under FT: what the log cost.
    pub log: Option<LogCost>,
    /// Recording: what entries took.
    pub entry_bytes: Option<EntryBytes>,
    /// Under FT: how late ticks were.
    pub tick_late_us: Vec<(u64, u64)>,
    /// Under FT: memory.
    pub memory: Option<Memory>,
    /// Processor time, from the start of the processes to the guest's line; not of a recording.
    pub cpu: Cost,
}

/// A guest that computes for a while, prints one line and ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SelfEnding {
    /// `counter`: its rate is iterations a second.
    Counter,
    /// `disk`: its rate is bytes a second.
    Disk {
        /// Under FT each replica has a disk of its own.
        copy: bool,
        /// And the backup reads the disk itself.
        read: bool,
    },
}

impl SelfEnding {
    /// The built-in guest.
    #[must_use]
    pub fn guest(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Disk { .. } => "disk",
        }
    }

    /// The workload.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Disk {
                copy: false,
                read: false,
            } => "disk",
            Self::Disk {
                copy: false,
                read: true,
            } => "disk-read",
            Self::Disk {
                copy: true,
                read: false,
            } => "disk-copy",
            Self::Disk {
                copy: true,
                read: true,
            } => "disk-copy-read",
        }
    }

    /// Of what its line counts as work, so much is an operation.
    fn op(self) -> f64 {
        match self {
            Self::Counter => 1.0,
            Self::Disk { .. } => f64::from(1 << 20),
        }
    }

    /// What its line counts as work.
    fn work(self) -> &'static str {
        match self {
            Self::Counter => "iterations",
            Self::Disk { .. } => "bytes",
        }
    }

    fn args(self, seconds: u32) -> Vec<OsString> {
        let words = match self {
            Self::Counter => vec![
                format!("hz={TICK_HZ}"),
                format!("ticks={}", TICK_HZ * seconds),
            ],
            Self::Disk { .. } => vec![
                format!("hz={TICK_HZ}"),
                format!("ms={}", u64::from(seconds) * 1000),
                format!("rounds={}", u64::MAX),
            ],
        };
        let memory = ["--memory".into(), GUEST_MIB.to_string().into()];
        let args = words
            .into_iter()
            .flat_map(|word| ["--arg".into(), word.into()]);
        std::iter::once(self.guest().into())
            .chain(memory)
            .chain(args)
            .collect()
    }
}

/// What measurements have in common.
pub struct Bench<'a> {
    /// The installation.
    pub cluster: &'a Cluster,
    /// Seconds of one measurement.
    pub seconds: u32,
    /// Silence after which a replica suspects the other, in milliseconds.
    pub suspect_ms: u32,
}

impl Bench<'_> {
    /// A name for a pair, which no other has.
    pub fn vm(&self, workload: &str, round: u32) -> String {
        format!("bench-{workload}-{round}")
    }

    /// What all pairs have in common.
    pub fn pair_options(&self) -> PairOptions {
        let suspect_ms = self.suspect_ms.to_string();
        PairOptions {
            primary: vec!["--suspect-ms".into(), suspect_ms.into()],
            ..PairOptions::default()
        }
    }

    fn recording(&self) -> PathBuf {
        self.cluster.folder().join("recording.log")
    }

    /// Runs `guest` once in the way of `mode`.
    pub fn self_ending(&self, guest: SelfEnding, mode: Mode, round: u32) -> Outcome<GuestRun> {
        let what = || format!("{} {}, round {}", guest.name(), mode.name(), round + 1);
        let disk = matches!(guest, SelfEnding::Disk { .. })
            .then(|| self.disk())
            .transpose()?;
        let run = match mode {
            Mode::UnderFt => self.pair_to_its_end(guest, disk, round),
            _ => self.single_to_its_end(guest, mode, disk),
        };
        Ok(run.during(what())?)
    }

    /// A disk with something on it, all of it in the host's cache and on the host's disk.
    fn disk(&self) -> Outcome<PathBuf> {
        let path = self.cluster.folder().join("bench.disk");
        if !path.exists() {
            let byte = |n: usize| (n.wrapping_mul(2_654_435_761) >> 13) as u8;
            let bytes: Vec<u8> = (0..DISK_BYTES).map(byte).collect();
            let write = || {
                let mut file = std::fs::File::create(&path)?;
                file.write_all(&bytes)?;
                file.sync_all()
            };
            write().during(format_args!("cannot write {}", path.display()))?;
        }
        Ok(path)
    }

    fn single_to_its_end(
        &self,
        guest: SelfEnding,
        mode: Mode,
        disk: Option<PathBuf>,
    ) -> Outcome<GuestRun> {
        let log = self.recording();
        let mut args: Vec<OsString> = Vec::new();
        if let Some(disk) = disk {
            args.extend(["--disk".into(), disk.into()]);
        }
        let mut daemon = self.single(mode, &guest.args(self.seconds), &mut args, false)?;
        let meter = Meter::begin(unprotected(mode, &daemon));
        let line = self.wait_result(&daemon, guest, || {})?;
        let cpu = meter.read(ops(&line, guest)?);
        wait_good(&mut daemon)?;
        let entry_bytes = match mode {
            Mode::Recording => Some(take_recording(&log)?),
            _ => None,
        };
        Ok(GuestRun {
            rate: rate(&line, guest)?,
            entry_bytes,
            cpu,
            ..GuestRun::default()
        })
    }

    /// Starts a machine without a backup.
    fn single(
        &self,
        mode: Mode,
        guest: &[OsString],
        args: &mut Vec<OsString>,
        network: bool,
    ) -> Outcome<Daemon> {
        let command = if mode == Mode::Recording {
            args.extend(["--output".into(), self.recording().into()]);
            "record"
        } else {
            "run"
        };
        Ok(self.cluster.start_single(command, guest, args, network)?)
    }

    fn pair_to_its_end(
        &self,
        guest: SelfEnding,
        disk: Option<PathBuf>,
        round: u32,
    ) -> Outcome<GuestRun> {
        let mut options = self.pair_options();
        match (guest, disk) {
            (SelfEnding::Disk { copy, read }, Some(disk)) => {
                let backups = if copy { copy_of(&disk)? } else { disk.clone() };
                options.primary.extend(["--disk".into(), disk.into()]);
                options.backup.extend(["--disk".into(), backups.into()]);
                options.both.extend(copy.then(|| "--disk-copy".into()));
                let reads = if read { "backup" } else { "log" };
                options.primary.extend(["--disk-read".into(), reads.into()]);
            }
            (_, disk) => options.disk = disk,
        }
        let vm = self.vm(guest.name(), round);
        let mut pair = self
            .cluster
            .start_pair(&vm, &guest.args(self.seconds), &options)?;
        let mut memory = Memory::default();
        let meter = Meter::begin(replicas(&pair));
        let line = self.wait_result(&pair.primary, guest, || memory.look(&pair))?;
        let cpu = meter.read(ops(&line, guest)?);
        wait_good(&mut pair.primary)?;
        wait_good(&mut pair.backup)?;
        let counters = counters(&pair.metrics())?;
        let (_, last) = last(&counters)?;
        let us = number(&line, "ns")? / 1000;
        let mut log = cost_so_far(last, us);
        log.lag_us_max = counters
            .iter()
            .map(|(_, c)| cost_so_far(c, us).lag_us_max)
            .max()
            .unwrap_or(0);
        Ok(GuestRun {
            rate: rate(&line, guest)?,
            log: Some(log),
            entry_bytes: None,
            tick_late_us: last.tick_late_us.clone(),
            memory: Some(memory),
            cpu,
        })
    }

    /// Waits for the guest's line, calling `look` every so often.
    fn wait_result(
        &self,
        daemon: &Daemon,
        guest: SelfEnding,
        mut look: impl FnMut(),
    ) -> Outcome<String> {
        let deadline = Instant::now() + LIMIT + 10 * Duration::from_secs(self.seconds.into());
        let start = format!("{}: ", guest.guest());
        loop {
            let line = daemon.wait_line(LOOK, |line| line.starts_with(&start));
            if line.is_ok() || daemon.has_ended() || Instant::now() > deadline {
                return Ok(line?);
            }
            look();
        }
    }

    /// Measures `kv` once in the way of `mode`. The peak `rates` are shares of is measured, too, if it is not known
    /// yet.
    pub fn kv(&self, mode: Mode, round: u32, rates: &mut Rates) -> Outcome<KvRound> {
        let what = || format!("kv {}, round {}", mode.name(), round + 1);
        let guest: Vec<OsString> =
            vec!["kv".into(), "--memory".into(), GUEST_MIB.to_string().into()];
        let seconds = self.seconds;
        let address = self.cluster.server();
        if mode == Mode::UnderFt {
            let options = PairOptions {
                network: true,
                ..self.pair_options()
            };
            let mut pair = self
                .cluster
                .start_pair(&self.vm("kv", round), &guest, &options)?;
            pair.wait_ready("ready")?;
            let result = kv::measure(
                address,
                mode,
                seconds,
                rates,
                Some(&pair),
                Meter::begin(replicas(&pair)),
            )
            .during(format_args!("{}{}", what(), pair.primary.complaint()))?;
            pair.primary.ask_to_end();
            wait_good(&mut pair.primary)?;
            wait_good(&mut pair.backup)?;
            return Ok(result);
        }
        let mut daemon = self.single(mode, &guest, &mut Vec::new(), true)?;
        daemon.wait_line(LIMIT, |line| line.contains("ready"))?;
        let mut result = kv::measure(
            address,
            mode,
            seconds,
            rates,
            None,
            Meter::begin(unprotected(mode, &daemon)),
        )
        .during(format_args!("{}{}", what(), daemon.complaint()))?;
        daemon.ask_to_end();
        wait_good(&mut daemon)?;
        if mode == Mode::Recording {
            result.entry_bytes = Some(take_recording(&self.recording())?);
        }
        Ok(result)
    }
}

/// Whose processor time is measured of a machine alone.
fn unprotected(mode: Mode, daemon: &Daemon) -> Vec<(Process, &Daemon)> {
    match mode {
        Mode::Without => vec![(Process::WithoutFt, daemon)],
        Mode::Recording | Mode::UnderFt => Vec::new(),
    }
}

/// Whose processor time is measured of a pair.
fn replicas(pair: &Pair) -> Vec<(Process, &Daemon)> {
    vec![
        (Process::Primary, &pair.primary),
        (Process::Backup, &pair.backup),
    ]
}

/// A copy of this disk, for a backup that has one of its own: whatever was written to either before.
fn copy_of(disk: &Path) -> Outcome<PathBuf> {
    let copy = disk.with_extension("copy");
    let copied = std::fs::copy(disk, &copy).and_then(|_| std::fs::File::open(&copy)?.sync_all());
    copied.during(format_args!("cannot write {}", copy.display()))?;
    Ok(copy)
}

/// Looks at a recording and removes it.
fn take_recording(path: &Path) -> Outcome<EntryBytes> {
    let entry_bytes = EntryBytes::of_recording(path)?;
    std::fs::remove_file(path).during(format_args!("cannot remove {}", path.display()))?;
    Ok(entry_bytes)
}

/// Waits for a process to end as it should.
pub fn wait_good(daemon: &mut Daemon) -> Outcome {
    let status = daemon.wait(LIMIT)?;
    if status.success() {
        return Ok(());
    }
    Err(BenchError::said(format!(
        "the {} failed ({status}){}",
        daemon.name(),
        daemon.complaint()
    )))
}

fn last(counters: &[(u64, Counters)]) -> Outcome<&(u64, Counters)> {
    counters
        .last()
        .ok_or_else(|| BenchError::said("the primary noted no counters"))
}

fn number(line: &str, key: &str) -> Outcome<u64> {
    value_of(line, key)
        .ok_or_else(|| BenchError::said(format!("no '{key}=' in the guest's line '{line}'")))
}

fn rate(line: &str, guest: SelfEnding) -> Outcome<f64> {
    let (work, ns) = (number(line, guest.work())?, number(line, "ns")?);
    Ok(work as f64 * 1e9 / ns.max(1) as f64)
}

/// Operations the guest's line tells of.
fn ops(line: &str, guest: SelfEnding) -> Outcome<f64> {
    Ok(number(line, guest.work())? as f64 / guest.op())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_of_guest_time() {
        let line = "disk: rounds=9 bytes=4000000 checksum=1 ns=2000000000";
        assert_eq!(
            rate(
                line,
                SelfEnding::Disk {
                    copy: false,
                    read: false
                }
            )
            .unwrap(),
            2e6
        );
        let missing = rate(line, SelfEnding::Counter).unwrap_err().to_string();
        assert!(missing.contains("iterations="), "{missing}");
    }

    #[test]
    fn guests_are_told_to_run_for_the_time_asked_for() {
        let args = SelfEnding::Counter.args(3);
        assert_eq!(args[..3], ["counter", "--memory", "64"]);
        assert!(args.contains(&"ticks=300".into()));
        let disk = SelfEnding::Disk {
            copy: false,
            read: false,
        };
        assert!(disk.args(2).contains(&"ms=2000".into()));
    }
}
