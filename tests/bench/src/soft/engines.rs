//! What runs the same guest: this program in three ways, and QEMU's translator in two.

use super::linux::{Linux, MEMORY_MIB};
use crate::error::{BenchError, Outcome};
use kit::During;
use kit::daemon::{Daemon, Heard};
use kit::guest::value_of;
use serde::Serialize;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Longest time of one run.
const LIMIT: Duration = Duration::from_secs(1800);
/// QEMU's program.
pub const QEMU: &str = "qemu-system-x86_64";

/// What runs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Engine {
    /// The host's processor and kernel.
    Native,
    /// The software engine, `tandem run`.
    Soft,
    /// The software engine, `tandem record`.
    SoftRecorded,
    /// The software engine, `tandem replay` of that recording.
    Replay,
    /// QEMU's TCG.
    Tcg,
    /// The same with `-icount shift=0,sleep=off`: with a deterministic instruction count.
    Icount,
}

impl Engine {
    /// In the order of a round: a recording comes before its replay.
    pub const ALL: [Engine; 6] = [
        Engine::Native,
        Engine::Soft,
        Engine::SoftRecorded,
        Engine::Replay,
        Engine::Tcg,
        Engine::Icount,
    ];

    /// For people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Soft => "software engine",
            Self::SoftRecorded => "recorded",
            Self::Replay => "replayed",
            Self::Tcg => "QEMU TCG",
            Self::Icount => "QEMU -icount",
        }
    }

    /// Whether it is QEMU.
    #[must_use]
    pub fn is_qemu(self) -> bool {
        matches!(self, Self::Tcg | Self::Icount)
    }
}

/// What one run said, and when.
pub struct Said {
    begun: Instant,
    lines: Vec<Heard>,
}

/// How long something took, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Took {
    /// Processor time of the process.
    pub cpu_ms: f64,
    /// Time.
    pub ms: f64,
}

impl Said {
    /// What it took from the start of the run to the line that begins with `start`, and the line.
    pub fn line(&self, start: &str) -> Outcome<(Took, &str)> {
        let found = self
            .lines
            .iter()
            .find(|heard| heard.line.starts_with(start));
        let heard =
            found.ok_or_else(|| BenchError::said(format!("the guest did not say '{start}'")))?;
        let took = Took {
            cpu_ms: ms(cpu(heard)?),
            ms: ms(heard.at - self.begun),
        };
        Ok((took, &heard.line))
    }
}

fn cpu(heard: &Heard) -> Outcome<Duration> {
    let gone = || BenchError::said(format!("the process was gone after '{}'", heard.line));
    heard.cpu.ok_or_else(gone)
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Where QEMU is, if it is installed.
#[must_use]
pub fn qemu() -> Option<PathBuf> {
    installed(QEMU)
}

/// Where a program is, if it is installed.
#[must_use]
pub fn installed(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
}

/// Where a recording is.
#[must_use]
pub fn recording(linux: &Linux) -> PathBuf {
    linux.file("recording.log")
}

/// Runs `command` (of words without spaces and commas) in the guest, or natively without it, to its end.
pub fn run(engine: Engine, linux: &Linux, command: &[String]) -> Outcome<Said> {
    let errors = linux.file(&format!("{engine:?}.err"));
    // What an earlier run complained of is not this one's.
    std::fs::write(&errors, "").during(format_args!("cannot write {}", errors.display()))?;
    if engine == Engine::SoftRecorded {
        // Else a recording that fails would have an earlier one replayed.
        let log = recording(linux);
        match std::fs::remove_file(&log) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            removed => removed.during(format_args!("cannot remove {}", log.display()))?,
        }
    }
    let begun = Instant::now();
    let mut daemon = match engine {
        Engine::Native => {
            let args = command.get(1..).unwrap_or_default();
            Daemon::start_other(engine.name(), &linux.program(), args, errors)?
        }
        Engine::Tcg | Engine::Icount => {
            let qemu =
                qemu().ok_or_else(|| BenchError::said(format!("{QEMU} is not installed")))?;
            let args = qemu_args(engine, linux, command);
            Daemon::start_other(engine.name(), &qemu, args, errors)?
        }
        _ => Daemon::start(engine.name(), own_args(engine, linux, command), errors)?,
    };
    let status = daemon.wait(LIMIT)?;
    if !status.success() {
        return Err(BenchError::said(format!(
            "it failed ({status}){}",
            daemon.complaint()
        )));
    }
    Ok(Said {
        begun,
        lines: daemon.heard(),
    })
}

/// Arguments of this program.
fn own_args(engine: Engine, linux: &Linux, command: &[String]) -> Vec<OsString> {
    let mut args: Vec<OsString> = Vec::new();
    if engine == Engine::Replay {
        args.extend(["replay", "--console", "--engine", "soft"].map(OsString::from));
        args.push(recording(linux).into());
        return args;
    }
    args.push(
        if engine == Engine::Soft {
            "run"
        } else {
            "record"
        }
        .into(),
    );
    args.extend([
        linux.kernel().into(),
        "--initrd".into(),
        linux.initrd().into(),
    ]);
    args.extend(["--append".into(), Linux::cmdline(command).into()]);
    args.extend(["--memory".into(), MEMORY_MIB.to_string().into()]);
    args.extend(["--engine", "soft", "--cpu", "v2"].map(OsString::from));
    if engine == Engine::SoftRecorded {
        args.extend(["--output".into(), recording(linux).into()]);
    }
    args
}

/// Arguments of QEMU: a machine with nothing but what Linux needs to boot.
fn qemu_args(engine: Engine, linux: &Linux, command: &[String]) -> Vec<OsString> {
    let mut args: Vec<OsString> = [
        "-machine",
        "q35",
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
        "-display",
        "none",
        "-serial",
        "stdio",
        "-accel",
        "tcg",
        "-cpu",
        crate::qemu::CPU,
        "-smp",
        "1",
    ]
    .map(OsString::from)
    .into();
    args.extend(["-m".into(), MEMORY_MIB.to_string().into()]);
    args.extend(["-kernel".into(), linux.kernel().into()]);
    args.extend(["-initrd".into(), linux.initrd().into()]);
    args.extend(["-append".into(), Linux::cmdline(command).into()]);
    if engine == Engine::Icount {
        args.extend(["-icount", "shift=0,sleep=off"].map(OsString::from));
    }
    args
}

/// A kernel that ran.
#[derive(Clone, Debug, PartialEq)]
pub struct KernelEnd {
    /// Its name.
    pub name: String,
    /// The line before it.
    pub begin: String,
    /// The line after it.
    pub line: String,
    /// What it took between them.
    pub took: Took,
    /// Work done.
    pub items: u64,
    /// Of what was computed, in hexadecimal.
    pub checksum: String,
}

impl Said {
    /// The kernels that ran to their end. Natively the program itself knows best what they took: it may be gone
    /// when its last line is read.
    pub fn kernels(&self, engine: Engine) -> Outcome<Vec<KernelEnd>> {
        let mut begun: Option<&Heard> = None;
        let mut ends = Vec::new();
        for heard in &self.lines {
            let line = &heard.line;
            if line.starts_with("cpu: begin ") {
                begun = Some(heard);
            } else if let Some(rest) = line.strip_prefix("cpu: end ") {
                let broken = || BenchError::said(format!("a broken line '{line}'"));
                let from = begun.take().ok_or_else(broken)?;
                let value = |key| value_of(line, key).ok_or_else(broken);
                let checksum = rest
                    .split_whitespace()
                    .find_map(|word| word.strip_prefix("checksum="))
                    .ok_or_else(broken)?;
                let name = rest.split_whitespace().next().unwrap_or_default();
                if from.line.strip_prefix("cpu: begin ") != Some(name) {
                    return Err(broken());
                }
                let own_ms = value("ns")? as f64 / 1e6;
                let cpu_ms = match engine {
                    Engine::Native => own_ms,
                    _ => ms(cpu(heard)?.saturating_sub(cpu(from)?)),
                };
                ends.push(KernelEnd {
                    name: name.into(),
                    begin: from.line.clone(),
                    line: line.clone(),
                    took: Took {
                        cpu_ms,
                        ms: ms(heard.at - from.at),
                    },
                    items: value("items")?,
                    checksum: checksum.into(),
                });
            }
        }
        Ok(ends)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(lines: &[(u64, &str)]) -> Said {
        let begun = Instant::now();
        let heard = |(ms, line): &(u64, &str)| Heard {
            at: begun + Duration::from_millis(*ms),
            cpu: Some(Duration::from_millis(ms / 2)),
            line: (*line).into(),
        };
        Said {
            begun,
            lines: lines.iter().map(heard).collect(),
        }
    }

    #[test]
    fn kernels_take_the_time_between_their_lines() {
        let said = said(&[
            (1500, "tandem: runs /cpu all 1"),
            (1600, "cpu: begin float"),
            (1850, "cpu: end float items=7 checksum=00ff ns=2000000"),
            (1900, "cpu: begin code"),
        ]);
        let (took, line) = said.line("tandem: runs").unwrap();
        assert_eq!((took.ms, took.cpu_ms), (1500.0, 750.0));
        assert!(line.ends_with("all 1"));
        let ends = said.kernels(Engine::Soft).unwrap();
        assert_eq!(ends.len(), 1, "one did not end");
        let end = &ends[0];
        assert_eq!((end.took.ms, end.took.cpu_ms, end.items), (250.0, 125.0, 7));
        assert_eq!(
            (end.name.as_str(), end.checksum.as_str()),
            ("float", "00ff")
        );
        let native = said.kernels(Engine::Native).unwrap();
        assert_eq!(native[0].took.cpu_ms, 2.0, "by the program itself");
    }

    #[test]
    fn lines_that_do_not_belong_together_are_refused() {
        for lines in [
            &[(1, "cpu: end float items=7 checksum=00ff ns=1")][..],
            &[
                (1, "cpu: begin code"),
                (2, "cpu: end float items=7 checksum=00ff ns=1"),
            ],
            &[(1, "cpu: begin float"), (2, "cpu: end float items=7 ns=1")],
        ] {
            assert!(said(lines).kernels(Engine::Soft).is_err(), "{lines:?}");
        }
        assert!(said(&[]).line("cpu").is_err());
    }

    #[test]
    fn every_kernel_computes_the_same_each_time() {
        let folder = tempfile::tempdir().unwrap();
        let program = std::path::Path::new(guests::CPU_FILE);
        let ran = || -> Vec<KernelEnd> {
            let (args, errors) = (["all", "1"], folder.path().join("err"));
            let begun = Instant::now();
            let mut daemon = Daemon::start_other("program", program, args, errors).unwrap();
            assert!(daemon.wait(LIMIT).unwrap().success());
            let lines = daemon.heard();
            Said { begun, lines }.kernels(Engine::Native).unwrap()
        };
        let (one, other) = (ran(), ran());
        assert_eq!(one.len(), 9);
        for (one, other) in one.iter().zip(&other) {
            let same = |end: &KernelEnd| (end.name.clone(), end.items, end.checksum.clone());
            assert_eq!(same(one), same(other));
            assert!(one.items > 0 && one.took.cpu_ms > 0.0, "{one:?}");
        }
    }
}
