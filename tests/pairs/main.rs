//! Recordings and replays by the thousand: every guest, at random seeds, on a host that is busy in
//! varying ways.
//!
//! ```text
//!  seed ──▶ plan: guest's arguments, what clients do, spinners, nice level, pauses
//!             │
//!  lane 0 (TAP)     record under load ─▶ log ─▶ replay under the same load ─▶ equal?
//!  lane 1 (switch)  record under load ─▶ log ─▶ replay                     ─▶ equal?
//! ```
//!
//! `TANDEM_PAIRS=1000` asks for so many pairs of each guest (8), `TANDEM_SEED` for the first pair's seed
//! (random; each pair adds one), `TANDEM_GUESTS=kv,echo` for these guests only. A failure prints seed,
//! log and the commands that repeat it. The seed brings back the plan; how processes race is new each
//! time, but for the replay of the log that is kept.

#[path = "../common/mod.rs"]
mod common;
mod drive;
mod host;
mod plan;

use common::{have_kvm, machine, os};
use kit::cluster::Cluster;
use kit::daemon::Daemon;
use plan::{GUESTS, Guest, Plan};
use std::hash::{BuildHasher, Hasher};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};
use tandem::look::commands::commands;
use tandem::look::point::Point;
use testing::numbers::number;

/// Pairs of a guest, unless told otherwise.
const PAIRS: u64 = 8;
/// Longest time anything may take: a pair is done in a second, but a host that is busy with other work
/// may give it a hundredth of a CPU, which is no failure.
const LIMIT: Duration = Duration::from_secs(900);
/// Time between two lines of progress.
const TELL_EVERY: Duration = Duration::from_secs(10);
/// So many failures end the run: the next will tell nothing new.
const FAILURES_MAX: usize = 20;
/// What recording and replay must agree about.
const EQUAL: [&str; 5] = ["entries", "clock", "clock_kind", "digest", "exit_status"];

/// What is asked for.
struct Wanted {
    pairs: u64,
    seed: u64,
    guests: Vec<Guest>,
}

impl Wanted {
    /// By the environment.
    fn new() -> Self {
        let random = || std::collections::hash_map::RandomState::new().build_hasher();
        let guests = match std::env::var("TANDEM_GUESTS") {
            Ok(names) => names.split(',').map(Guest::called).collect(),
            Err(_) => GUESTS.to_vec(),
        };
        Self {
            pairs: number("TANDEM_PAIRS").unwrap_or(PAIRS),
            // Below 2^48: easy to type again, with room for all pairs.
            seed: number("TANDEM_SEED").unwrap_or_else(|| random().finish() >> 16),
            guests,
        }
    }

    fn total(&self) -> usize {
        usize::try_from(self.pairs).expect("no such number of pairs ends") * self.guests.len()
    }

    /// The pair with this number: guests take turns, so that two lanes run different ones.
    fn plan(&self, number: usize) -> Plan {
        let guest = self.guests[number % self.guests.len()];
        Plan::new(guest, self.seed + (number / self.guests.len()) as u64)
    }
}

/// A pair is over.
struct Done {
    guest: Guest,
    seed: u64,
    result: Result<(), String>,
}

#[test]
fn p2_every_guest_is_replayed_exactly_whatever_the_host_does() {
    let _machine = machine();
    if !have_kvm("pairs") {
        return;
    }
    let wanted = Wanted::new();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("pairs");
    std::fs::create_dir_all(&folder).expect("a folder for logs");
    eprintln!(
        "pairs: {} of each of {} guests, from seed {}",
        wanted.pairs,
        wanted.guests.len(),
        wanted.seed
    );
    let (next, failures) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let (done, over) = channel();
        for switch in [false, true] {
            let (wanted, folder, next, done) = (&wanted, &folder, &next, done.clone());
            scope.spawn(move || lane(switch, wanted, folder, next, &done));
        }
        drop(done);
        let mut tally = Tally::new(&wanted);
        loop {
            match over.recv_timeout(TELL_EVERY) {
                Ok(done) => {
                    if let Err(why) = &done.result {
                        failures.fetch_add(1, Relaxed);
                        complain(&folder, &done, why);
                        if failures.load(Relaxed) >= FAILURES_MAX {
                            next.store(wanted.total(), Relaxed);
                        }
                    }
                    tally.count(&done);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            tally.tell_now_and_then();
        }
        tally.tell();
        let failed = failures.load(Relaxed);
        assert!(failed == 0, "{failed} pairs failed: see above");
        assert_eq!(tally.done(), wanted.total(), "a lane ended early");
    });
}

/// Runs pairs until there is none left.
fn lane(switch: bool, wanted: &Wanted, folder: &Path, next: &AtomicUsize, done: &Sender<Done>) {
    let mut cluster = if switch {
        common::switch_cluster("file")
    } else {
        common::cluster("file")
    };
    loop {
        let number = next.fetch_add(1, Relaxed);
        if number >= wanted.total() {
            break;
        }
        let plan = wanted.plan(number);
        let log = log_of(folder, plan.guest, plan.seed);
        let result = pair(&mut cluster, &plan, &log);
        if result.is_ok() {
            let _ = std::fs::remove_file(&log);
        }
        let over = Done {
            guest: plan.guest,
            seed: plan.seed,
            result,
        };
        if done.send(over).is_err() {
            break;
        }
    }
}

fn log_of(folder: &Path, guest: Guest, seed: u64) -> PathBuf {
    // Another run of the same seed is not to overwrite the log of a failure.
    let run = std::process::id();
    folder.join(format!("{}-{seed}-{run}.log", guest.name()))
}

/// Records and replays as planned.
fn pair(cluster: &mut Cluster, plan: &Plan, log: &Path) -> Result<(), String> {
    // What an earlier pair complained of is not this one's.
    let _ = std::fs::remove_file(cluster.folder().join("single.err"));
    let load = host::Load::start(&plan.host);
    let recorded = record(cluster, plan, log)?;
    let args = os(&["--json"]);
    let replay = cluster
        .start_single("replay", &[log.into()], &args, false)
        .map_err(|e| e.to_string())?;
    host::trouble(&plan.host, &replay);
    let replayed = report(replay)?;
    drop(load);
    for key in EQUAL {
        let (then, now) = (&recorded[key], &replayed[key]);
        if then != now || then.is_null() {
            return Err(format!("{key} was {then} and is {now}"));
        }
    }
    if !replayed["divergence"].is_null() {
        return Err(format!("it diverged: {replayed}"));
    }
    // A recording without events would prove nothing.
    if recorded["entries"].as_u64() < Some(plan.entries_min) {
        return Err(format!("only {} entries", recorded["entries"]));
    }
    Ok(())
}

/// Records the guest while clients talk to it, and says what `tandem record` reported.
fn record(cluster: &mut Cluster, plan: &Plan, log: &Path) -> Result<serde_json::Value, String> {
    let mut words = os(&[plan.guest.name()]);
    words.extend(os(&plan
        .words
        .iter()
        .map(String::as_str)
        .collect::<Vec<_>>()));
    if plan.guest == Guest::Disk {
        let image = cluster.folder().join("disk.img");
        std::fs::write(&image, vec![plan.seed as u8; 8 << 20]).map_err(|e| e.to_string())?;
        words.extend(["--disk".into(), image.into()]);
    }
    let every = plan.digest_every.to_string();
    let args = [
        "-o".into(),
        log.into(),
        "--json".into(),
        "--digest-every".into(),
        every.into(),
    ];
    let server = plan.guest.port().map(|port| cluster.serve(port));
    let server = server.transpose().map_err(|e| e.to_string())?;
    let recorder = cluster
        .start_single("record", &words, &args, server.is_some())
        .map_err(|e| e.to_string())?;
    match server {
        None => host::trouble(&plan.host, &recorder),
        Some(server) => std::thread::scope(|scope| {
            scope.spawn(|| host::trouble(&plan.host, &recorder));
            recorder
                .wait_line(LIMIT, |line| line.contains("ready"))
                .map_err(|e| e.to_string())?;
            drive::clients(plan, server)
        })?,
    }
    if server.is_some() {
        recorder.ask_to_end();
    }
    report(recorder)
}

/// Waits for the end of a recording or replay, and says what it reported.
fn report(mut machine: Daemon) -> Result<serde_json::Value, String> {
    let status = machine.wait(LIMIT).map_err(|e| e.to_string())?;
    let said = machine.said();
    let last = said.last().map_or("", String::as_str);
    if !status.success() {
        return Err(format!("{status}{}: {last}", machine.complaint()));
    }
    serde_json::from_str(last).map_err(|e| format!("{e}: {last}"))
}

/// Says which pair failed and how to have it again.
fn complain(folder: &Path, done: &Done, why: &str) {
    let (guest, seed) = (done.guest.name(), done.seed);
    let log = log_of(folder, done.guest, seed);
    eprintln!(
        "FAILED: {guest}, seed {seed}: {why}\n  \
         its log again: {}\n  \
         the pair again: TANDEM_PAIRS=1 TANDEM_SEED={seed} TANDEM_GUESTS={guest} \
         cargo test --release --test pairs -- --nocapture",
        commands(&log, Point::End)
    );
}

/// How far the run is.
struct Tally<'a> {
    wanted: &'a Wanted,
    /// Pairs done and failed, by guest.
    counts: Vec<(u64, u64)>,
    begun: Instant,
    told: Instant,
}

impl<'a> Tally<'a> {
    fn new(wanted: &'a Wanted) -> Self {
        Self {
            wanted,
            counts: vec![(0, 0); wanted.guests.len()],
            begun: Instant::now(),
            told: Instant::now(),
        }
    }

    fn count(&mut self, done: &Done) {
        let guest = self.wanted.guests.iter().position(|g| *g == done.guest);
        let count = &mut self.counts[guest.expect("a guest that was asked for")];
        count.0 += 1;
        count.1 += u64::from(done.result.is_err());
    }

    fn done(&self) -> usize {
        self.counts.iter().map(|(done, _)| *done as usize).sum()
    }

    fn tell_now_and_then(&mut self) {
        if self.told.elapsed() >= TELL_EVERY {
            self.tell();
        }
    }

    fn tell(&mut self) {
        self.told = Instant::now();
        let guests = self.wanted.guests.iter().zip(&self.counts);
        let guests: Vec<String> = guests
            .map(|(guest, (done, failed))| match failed {
                0 => format!("{} {done}", guest.name()),
                failed => format!("{} {done} ({failed} FAILED)", guest.name()),
            })
            .collect();
        eprintln!(
            "pairs: {} of {} in {} s: {}",
            self.done(),
            self.wanted.total(),
            self.begun.elapsed().as_secs(),
            guests.join(", ")
        );
    }
}
