//! Linux recorded and replayed: a boot to a command and its power-off, redis under load, and redis with
//! nothing to do.

use super::common::{core, os, text};
use super::{LIMIT, capture, images, inside, number};
use check::{CheckOptions, Load, LoadOptions, Pace, check};
use kit::daemon::Daemon;
use serde_json::Value;
use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tandem::look::commands::commands;
use tandem::look::point::Point;

/// What recording and replay must agree about.
pub const EQUAL: [&str; 5] = ["entries", "clock", "clock_kind", "digest", "exit_status"];
/// What redis prints when it serves.
const READY: &str = "Ready to accept connections";
/// Its port.
const REDIS: u16 = 6379;

/// A recording or a replay that ended.
pub struct Ran {
    /// Its JSON report.
    pub report: Value,
    /// What the guest printed.
    pub console: Vec<String>,
}

impl Ran {
    /// Waits for the end of `machine`.
    pub fn of(mut machine: Daemon) -> Self {
        let status = machine.wait(LIMIT).expect("it ends");
        let mut console = machine.said();
        let last = console.pop().unwrap_or_default();
        assert!(status.success(), "{status}{}", machine.complaint());
        let report = serde_json::from_str(&last).expect("a report in the last line");
        Self { report, console }
    }

    /// Million instructions a second.
    fn mips(&self) -> f64 {
        let clock = self.report["clock"].as_f64().unwrap_or(0.0);
        clock / self.report["seconds"].as_f64().unwrap_or(f64::NAN) / 1e6
    }
}

/// A test's log. That of one that fails is kept, and it is said how to look at it.
pub struct Log(PathBuf);

impl Log {
    /// One that is called `name`, in the folder for logs.
    pub fn new(name: &str) -> Self {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("linux");
        std::fs::create_dir_all(&folder).expect("a folder for logs");
        Self(folder.join(format!("{name}-{}.log", std::process::id())))
    }
}

impl Deref for Log {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", commands(self, Point::End));
            return;
        }
        for extension in ["log", "recorder.err", "replayer.err"] {
            let _ = std::fs::remove_file(self.with_extension(extension));
        }
    }
}

/// Starts a recording of `image` to `log`.
pub fn record(image: &Path, log: &Path, more: &[&str]) -> Daemon {
    let mut args = os(&["record", text(image), "--cpu", "v2", "--json", "-o"]);
    args.push(log.into());
    args.extend(os(more));
    start("recorder", args, log)
}

pub fn start(name: &str, args: Vec<OsString>, log: &Path) -> Daemon {
    let errors = log.with_extension(format!("{name}.err"));
    let _ = std::fs::remove_file(&errors);
    Daemon::start(name, args, errors).expect("it starts")
}

/// Replays `log`, which must come to what `recorded` came to, line by line and in all figures.
pub fn replay_equals(recorded: &Ran, log: &Path) -> Ran {
    replay_equals_by(recorded, log, &[])
}

/// The same, with more arguments for the replay.
fn replay_equals_by(recorded: &Ran, log: &Path, more: &[&str]) -> Ran {
    let mut args = os(&["replay", text(log), "--console", "--json"]);
    args.extend(os(more));
    let replayed = Ran::of(start("replayer", args, log));
    for key in EQUAL {
        let (then, now) = (&recorded.report[key], &replayed.report[key]);
        assert!(
            then == now && !then.is_null(),
            "{key} was {then} and is {now}: {}",
            log.display()
        );
    }
    assert!(
        replayed.report["divergence"].is_null(),
        "{}",
        replayed.report
    );
    assert_eq!(recorded.console, replayed.console, "{}", log.display());
    replayed
}

#[test]
fn p2_recorded_boots_are_replayed_exactly() {
    let _core = core();
    let Some(image) = images::redis() else { return };
    let boots = number("TANDEM_LINUX_BOOTS", 2);
    for boot in 1..=boots {
        let log = Log::new(&format!("boot-{boot}"));
        // The image's own command line says `quiet`: the kernel's messages are wanted here.
        let run = format!("{}; echo boot {boot}", inside::WHERE);
        let words = format!("loglevel=7 tandem.run=\"{run}\"");
        let recorded = Ran::of(record(&image, &log, &["--append", &words]));
        let said = format!("boot {boot}");
        assert!(recorded.console.contains(&said), "{:?}", recorded.console);
        let kernel = recorded.console.iter().filter(|line| is_kernels(line));
        assert!(kernel.count() > 50, "{:?}", recorded.console);
        assert_eq!(recorded.report["exit_status"], 0);
        let replayed = replay_equals(&recorded, &log);
        if boot == 1 {
            let clock = recorded.report["clock"].as_u64().expect("a number");
            inside::is_opened_by_the_tools_people_have(&log, clock, &recorded.console);
        }
        eprintln!(
            "boot {boot} of {boots}: {} entries, {} instructions, recorded at {:.0} MIPS (idle time \
             included), replayed at {:.0}",
            recorded.report["entries"],
            recorded.report["clock"],
            recorded.mips(),
            replayed.mips()
        );
    }
}

/// What one executor recorded the other replays, down to the digest of all memory.
#[test]
fn p2_boots_are_the_same_interpreted_and_translated() {
    let _core = core();
    // A small first root: the interpreter unpacks it, too.
    let Some(image) = images::plain() else { return };
    let boots = number("TANDEM_LINUX_BOOTS", 1);
    for boot in 1..=boots {
        for (recorder, replayer) in [("interpret", "translate"), ("translate", "interpret")] {
            let log = Log::new(&format!("{recorder}-{boot}"));
            let words = format!("tandem.run=echo,boot,{boot}");
            let by = |executor| ["--executor", executor];
            let args = [&by(recorder)[..], &["--append", &words]].concat();
            let recorded = Ran::of(record(&image, &log, &args));
            assert_eq!(recorded.report["exit_status"], 0);
            replay_equals_by(&recorded, &log, &by(replayer));
        }
    }
}

/// Whether a line is the kernel's, with its time in front.
fn is_kernels(line: &str) -> bool {
    line.starts_with('[') && line.contains("] ")
}

/// A port of loopback nobody listens on now.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("its address").port()
}

/// Starts a recording of redis, and waits until it serves.
fn redis(image: &Path, log: &Path) -> (Daemon, SocketAddr) {
    let port = free_port();
    let forward = format!("{port}:{REDIS}");
    let recorder = record(image, log, &["--forward", &forward]);
    recorder
        .wait_line(LIMIT, |line| line.contains(READY))
        .expect("redis serves");
    (recorder, (Ipv4Addr::LOCALHOST, port).into())
}

#[test]
fn p2_recorded_redis_sessions_are_replayed_exactly() {
    let _core = core();
    let Some(image) = images::redis() else { return };
    let sessions = number("TANDEM_LINUX_SESSIONS", 1);
    for session in 1..=sessions {
        let log = Log::new(&format!("session-{session}"));
        let (recorder, server) = redis(&image, &log);
        let options = LoadOptions {
            clients: 1 + (session % 8) as u16,
            seed: session,
            pipeline: 1 + (session % 3) as u16,
            pace: Pace::Think(Duration::ZERO),
            reply_limit: LIMIT,
            ..LoadOptions::default()
        };
        let load = Load::start(server, options).expect("clients");
        assert!(load.wait_replies(1000, LIMIT), "too few replies");
        let history = load.stop();
        assert!(history.breaks.is_empty(), "{:?}", history.breaks);
        let options = CheckOptions {
            lease_slack_ms: 2000,
            ..CheckOptions::default()
        };
        let verdict = check(&history, options);
        assert!(verdict.linearizable(), "{}", verdict.explain());
        recorder.ask_to_end();
        let recorded = Ran::of(recorder);
        let replayed = replay_equals(&recorded, &log);
        capture::holds_what_was_recorded(&log, "10.77.0.2", &recorded.console);
        eprintln!(
            "session {session} of {sessions}: {} operations, {} entries, {} instructions, replayed at \
             {:.0} MIPS",
            history.ops.len(),
            recorded.report["entries"],
            recorded.report["clock"],
            replayed.mips()
        );
    }
}

/// How long redis is left alone.
const IDLE: Duration = Duration::from_secs(20);
/// What an idle guest's log may come to.
const IDLE_KBIT_S_MAX: f64 = 20.0;

#[test]
fn an_idle_linux_logs_next_to_nothing() {
    let _core = core();
    let Some(image) = images::redis() else { return };
    let log = Log::new("idle");
    let (recorder, _) = redis(&image, &log);
    // What is measured is time itself, from when redis serves: there is no condition to wait for.
    let begun = Instant::now();
    let before = length(&log);
    std::thread::sleep(IDLE);
    let bytes = length(&log) - before;
    let kbit_s = bytes as f64 * 8.0 / 1000.0 / begun.elapsed().as_secs_f64();
    recorder.ask_to_end();
    let recorded = Ran::of(recorder);
    eprintln!("idle redis: {bytes} bytes of log, {kbit_s:.1} kbit/s");
    assert!(
        kbit_s <= IDLE_KBIT_S_MAX,
        "{kbit_s:.1} kbit/s: tandem log {}",
        log.display()
    );
    replay_equals(&recorded, &log);
}

fn length(log: &Path) -> u64 {
    std::fs::metadata(log).expect("the log is there").len()
}
