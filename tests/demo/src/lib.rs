//! A pair, real clients, kill -9, and the verdict: what `tandem demo` does and says.
//!
//! # Example
//!
//! Three primaries are killed under eight clients each:
//!
//! ```no_run
//! use demo::{Guest, Spec, demo};
//! use kit::round::RoundOptions;
//!
//! kit::use_program("/usr/local/bin/tandem");
//! let round = RoundOptions {
//!     args: Default::default(),
//!     clients: 8,
//!     suspect_ms: 300,
//!     kill_backup: false,
//!     keep: None,
//! };
//! demo(&Spec {
//!     guest: Guest::Kv,
//!     round,
//!     kills: 3,
//!     same_machine: false,
//!     network: "auto".into(),
//!     arbiter: "file".into(),
//!     tls: false,
//!     seed: None,
//!     json: false,
//! })?;
//! # Ok::<(), demo::DemoError>(())
//! ```
//!
//! A demo that fails says how to see the same again:
//!
//! ```
//! use demo::DemoError;
//!
//! let failed = DemoError::Noticed {
//!     repeat: "tandem demo --kills 3 --seed 7".into(),
//!     files: "/var/tmp/tandem-demo".into(),
//! };
//! let said = failed.to_string();
//! assert!(said.contains("tandem demo --kills 3 --seed 7"));
//! assert!(said.contains("/var/tmp/tandem-demo"));
//! ```

mod progress;
mod same_machine;
mod summary;

use check::rng::Rng;
use kit::cluster::{Cluster, choose_network};
use kit::failover::Failover;
use kit::guest::Served;
use kit::round::{self, RoundOptions};
use kit::{During, Judged, KitError, hostload, leftovers};
use progress::Progress;
use std::path::{Path, PathBuf};
use std::time::Instant;
use summary::Summary;
use terminal::signals::SignalsError;
use terminal::{complain, sayln};

/// What is to be shown.
#[derive(Clone, Debug)]
pub struct Spec {
    /// What runs.
    pub guest: Guest,
    /// How each round is played.
    pub round: RoundOptions,
    /// Replicas to kill, one after the other; of a new pair each, unless it is the same machine.
    pub kills: u32,
    /// Kill the primaries of one machine, which gets a new backup after each kill, under one load. Its backups
    /// are left alone: `kill_backup` of [`Self::round`] is not for it.
    pub same_machine: bool,
    /// As for [`choose_network`].
    pub network: String,
    /// As for [`Cluster::start`].
    pub arbiter: String,
    /// As for [`Cluster::start`].
    pub tls: bool,
    /// Seed of the clients' and the kills' randomness; one that is new each time if none is given.
    pub seed: Option<u64>,
    /// One JSON object on stdout instead of words.
    pub json: bool,
}

impl Spec {
    /// The command that repeats a demo with this `seed`.
    fn repeat(&self, seed: u64) -> String {
        let same = if self.same_machine {
            " --same-machine"
        } else {
            ""
        };
        let tls = if self.tls { " --tls" } else { "" };
        format!(
            "tandem demo --kills {} --seed {seed}{same}{tls}",
            self.kills
        )
    }
}

/// A guest of the demo.
#[derive(Clone, Debug)]
pub enum Guest {
    /// The built-in key-value server.
    Kv,
    /// Debian's Linux and its redis-server, its image in this folder.
    Linux(PathBuf),
}

/// Why a demo failed.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// There is no installation to show it on.
    #[error(transparent)]
    Kit(#[from] KitError),
    /// Nobody could clear away what is left when the demo is stopped.
    #[error(transparent)]
    Signals(#[from] SignalsError),
    /// A round could not be played to its end.
    #[error("kill {number} of {kills} (seed {seed}): {why}{}; {}", blame(*load), noted(files))]
    Round {
        /// Which, from 1 on.
        number: u32,
        /// Out of how many.
        kills: u32,
        /// What the demo's randomness followed from.
        seed: u64,
        /// What went wrong.
        why: Box<KitError>,
        /// What wanted to run on this host then, if that is known.
        load: Option<hostload::Load>,
        /// Where the files of the replicas are, which are kept for it.
        files: PathBuf,
    },
    /// A client noticed more than a pause.
    #[error("the clients noticed (to repeat: {repeat}); {}", noted(files))]
    Noticed {
        /// The command that repeats it.
        repeat: String,
        /// Where the files of the replicas are, which are kept for it.
        files: PathBuf,
    },
}

fn noted(files: &Path) -> String {
    format!("what the replicas noted is in {}", files.display())
}

/// Runs the demo, and says what it came to on standard output. To be called while this process has one thread
/// only, and has been told by [`kit::use_program`] of what program replicas are.
///
/// # Errors
/// [`DemoError`].
pub fn demo(spec: &Spec) -> Result<(), DemoError> {
    let begun = Instant::now();
    if let Some(folder) = &spec.round.keep {
        std::fs::create_dir_all(folder).during(format_args!("cannot make {}", folder.display()))?;
    }
    let guest = match &spec.guest {
        Guest::Kv => Served::kv(),
        Guest::Linux(folder) => Served::linux(folder)?,
    };
    let guard = leftovers::guard()?;
    // Before anything starts a thread: the namespace is the thread's that makes it.
    let network = choose_network(&spec.network)?;
    guard()?;
    let mut cluster = Cluster::start(network, &spec.arbiter, spec.tls)?;
    let seed = spec
        .seed
        .unwrap_or_else(|| vmm::hostclock::wall_ns() % 1_000_000);
    if !spec.json {
        say_what(spec, &cluster, &guest, seed);
    }
    let mut summary = Summary {
        killed: if spec.round.kill_backup {
            "backup"
        } else {
            "primary"
        },
        guest: guest.name,
        network: cluster.network_note().to_owned(),
        arbiter: cluster.arbiter().to_owned(),
        seed,
        clients: spec.round.clients,
        linearizable: true,
        ..Summary::default()
    };
    let play = Play {
        spec,
        guest: &guest,
        begun,
    };
    let seen = if spec.same_machine {
        play.same_machine(&mut cluster, &mut summary)?
    } else {
        play.rounds(&mut cluster, &mut summary)?
    };
    summary.seconds = begun.elapsed().as_secs_f64();
    if spec.json {
        sayln!("{}", serde_json::to_string(&summary).during("report")?);
    } else {
        summary.print();
    }
    if summary.is_good() {
        return Ok(());
    }
    for seen in seen.iter().filter(|seen| !seen.is_good()) {
        complain!("{}", seen.explain());
    }
    Err(DemoError::Noticed {
        repeat: spec.repeat(seed),
        files: cluster.keep_files().to_owned(),
    })
}

/// What is shown, for people.
fn say_what(spec: &Spec, cluster: &Cluster, guest: &Served, seed: u64) {
    sayln!("network   {}", cluster.network_note());
    sayln!("arbiter   {}", cluster.arbiter());
    sayln!("guest     {}", guest.what);
    if spec.same_machine {
        sayln!("machine   one for all kills, with a new backup after each");
    }
    sayln!(
        "clients   {}, one open TCP connection each; seed {seed}\n",
        spec.round.clients
    );
}

/// A demo under way.
struct Play<'a> {
    spec: &'a Spec,
    guest: &'a Served,
    begun: Instant,
}

impl Play<'_> {
    /// Plays all rounds, each with a machine of its own, and shows and adds up each in `summary`.
    fn rounds(
        &self,
        cluster: &mut Cluster,
        summary: &mut Summary,
    ) -> Result<Vec<Judged>, DemoError> {
        let spec = self.spec;
        let mut rng = Rng::new(summary.seed, 0);
        let mut rounds = Vec::new();
        let mut progress = Progress::new(spec.kills);
        for number in 0..spec.kills {
            let round = round::run(cluster, &spec.round, self.guest, number, rng.next_u64())
                .map_err(|why| self.failed(number, summary.seed, why, cluster))?;
            if number == 0 {
                summary.first_failover_s = self.begun.elapsed().as_secs_f64();
            }
            if !spec.json && (spec.kills == 1 || !round.seen.is_good()) {
                sayln!("{}", round.failover.timeline());
            }
            summary.kills += 1;
            summary.add(&round.seen);
            progress.step();
            rounds.push(round);
        }
        progress.end();
        let failovers: Vec<&Failover> = rounds.iter().map(|round| &round.failover).collect();
        summary.spread(&failovers);
        Ok(rounds.into_iter().map(|round| round.seen).collect())
    }

    /// That this kill (from 0 on) could not be played to its end.
    fn failed(&self, number: u32, seed: u64, why: KitError, cluster: &mut Cluster) -> DemoError {
        DemoError::Round {
            number: number + 1,
            kills: self.spec.kills,
            seed,
            why: Box::new(why),
            load: hostload::now(),
            files: cluster.keep_files().to_owned(),
        }
    }
}

/// What is added to a failure where this host has more to do than it can: a replica that does not get to run
/// for --suspect-ms is taken for dead, and a process may not get ready in time.
fn blame(load: Option<hostload::Load>) -> String {
    match load.filter(hostload::Load::is_too_much) {
        None => String::new(),
        Some(load) => format!(
            "; this host is too loaded for a demo ({load}): free it, or give the replicas more \
             time (--suspect-ms 3000)"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_on_a_loaded_host_says_so() {
        let why = || KitError::Process {
            name: "backup".into(),
            what: "does not end".into(),
            complaint: String::new(),
        };
        let say = |text: &str| {
            let round = DemoError::Round {
                number: 2,
                kills: 3,
                seed: 7,
                why: Box::new(why()),
                load: hostload::Load::parse(text, 2),
                files: "/kept".into(),
            };
            let said = round.to_string();
            let failure = said.strip_prefix("kill 2 of 3 (seed 7): ");
            failure.expect("it says where").to_owned()
        };
        let noted = "what the replicas noted is in /kept";
        let quiet = say("0.50 0.40 0.30 1/200 77");
        assert_eq!(quiet, format!("the backup does not end; {noted}"));
        let said = say("4.25 1.00 0.30 9/200 77");
        assert!(said.starts_with("the backup does not end; this host is too loaded"));
        assert!(said.contains("9 tasks want to run on 2 CPUs"), "{said}");
        assert!(said.ends_with(noted), "{said}");
    }
}
