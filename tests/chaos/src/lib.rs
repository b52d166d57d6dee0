//! A machine on three hosts, real clients, and faults of every kind, for as long as asked: what `tandem chaos` does and
//! says.
//!
//! ```text
//!  seed ──▶ plan ──▶ a fault ──▶ healed ──▶ all clients served, machine protected ──▶ the next one ...
//!                    │  hosts: links cut                    │
//!                    │  machine: replicas killed, stopped   │ machine: started again, as an init would
//!                    │  services: killed                    │ services: likewise
//!  clients ├── one set of connections, one history ─────────────────────────────┤ judged
//! ```
//!
//! One fault at a time: what a machine with one backup outlives. Hosts are network namespaces ([`hosts`]), which are
//! gone with this process, however that ends.
//!
//! # Example
//!
//! ```no_run
//! use chaos::{Spec, chaos};
//! use std::time::Duration;
//!
//! kit::use_program("/usr/local/bin/tandem");
//! chaos(&Spec {
//!     guest: chaos::Guest::Kv,
//!     lasts: Duration::from_secs(300),
//!     words: Vec::new(),
//!     clients: 8,
//!     seed: None,
//!     history: None,
//!     json: false,
//! })?;
//! # Ok::<(), chaos::ChaosError>(())
//! ```

mod drive;
pub mod hosts;
pub mod machine;
pub mod plan;
mod report;
pub mod services;
pub mod shapes;

use check::Load;
use drive::Drive;
use hosts::{Hosts, SERVER};
use kit::guest::Served;
use kit::leftovers::{self, Folder};
use kit::{During, Judged, KitError, KitResult, fate, hostload};
use machine::{Machine, Words};
use report::Report;
use services::Services;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use terminal::sayln;
use terminal::signals::SignalsError;
use vmm::backends::netns::PrivateNetwork;

/// What is to be tried.
#[derive(Clone, Debug)]
pub struct Spec {
    /// What runs.
    pub guest: Guest,
    /// For how long faults are made. The last one is seen to its end.
    pub lasts: Duration,
    /// More arguments for every replica.
    pub words: Vec<OsString>,
    /// Clients, one open connection each.
    pub clients: u16,
    /// What all faults and all that clients do follow from; one that is new each time if none is given.
    pub seed: Option<u64>,
    /// Write what the clients saw to this file, a line for each operation.
    pub history: Option<PathBuf>,
    /// One JSON object on stdout instead of words.
    pub json: bool,
}

/// A guest that serves clients.
#[derive(Clone, Debug)]
pub enum Guest {
    /// The built-in key-value server.
    Kv,
    /// Debian's Linux and its redis-server, its image in this folder.
    Linux(PathBuf),
}

/// Why a run failed.
#[derive(Debug, thiserror::Error)]
pub enum ChaosError {
    /// There are no hosts to try it on.
    #[error(transparent)]
    Kit(#[from] KitError),
    /// Nobody could clear away what is left when it is stopped.
    #[error(transparent)]
    Signals(#[from] SignalsError),
    /// A promise was broken, or the machine did not come back.
    #[error("{what} (to repeat: {repeat}){}; what the replicas noted is in {}", load.as_ref().map_or(String::new(), |load| format!("; this host is loaded: {load}")), files.display())]
    Broken {
        /// What is wrong.
        what: String,
        /// The command that makes the same faults.
        repeat: String,
        /// What wanted to run on this host then, if that is more than it can.
        load: Option<hostload::Load>,
        /// Where the files of the replicas are, which are kept for it.
        files: PathBuf,
    },
}

/// Tries a machine, and says on standard output what it came to. To be called while this process has one thread only,
/// and has been told by [`kit::use_program`] of what program replicas are.
///
/// # Errors
/// [`ChaosError`].
pub fn chaos(spec: &Spec) -> Result<(), ChaosError> {
    let guest = match &spec.guest {
        Guest::Kv => Served::kv(),
        Guest::Linux(folder) => Served::linux(folder)?,
    };
    let guard = leftovers::guard()?;
    // Before anything starts a thread: the namespace is the thread's that makes it.
    let network = PrivateNetwork::enter(&[]).during("no hosts can be made here")?;
    guard()?;
    let mut folder = Folder::new().during("cannot make a folder")?;
    let hosts = Hosts::make(network, folder.path())?;
    let seed = spec
        .seed
        .unwrap_or_else(|| vmm::hostclock::wall_ns() % 1_000_000);
    let mut report = Report::new(&guest, spec.clients, seed);
    let tried = run(spec, &hosts, &folder, &guest, &mut report);
    if tried.is_ok() || !report.is_empty() {
        report.say(spec.json)?;
    }
    let what = match tried {
        Ok(()) if report.is_good() => return Ok(()),
        Ok(()) => report.what_is_wrong(),
        Err(why) => why.to_string(),
    };
    folder.keep();
    Err(ChaosError::Broken {
        what,
        repeat: spec.repeat(seed),
        load: hostload::now().filter(hostload::Load::is_too_much),
        files: folder.path().to_owned(),
    })
}

impl Spec {
    /// The command that makes the same faults.
    fn repeat(&self, seed: u64) -> String {
        let guest = match self.guest {
            Guest::Kv => "",
            Guest::Linux(_) => " --guest linux",
        };
        let (seconds, clients) = (self.lasts.as_secs_f64(), self.clients);
        let words: Vec<_> = self
            .words
            .iter()
            .map(|word| word.to_string_lossy())
            .collect();
        let words = words
            .iter()
            .map(|word| format!(" {word}"))
            .collect::<String>();
        format!("tandem chaos --for {seconds}s --seed {seed} --clients {clients}{guest}{words}")
    }
}

/// Starts everything, makes faults, ends everything, and judges it all.
fn run(
    spec: &Spec,
    hosts: &Hosts,
    folder: &Folder,
    guest: &Served,
    report: &mut Report,
) -> KitResult {
    let services = Services::start(hosts, folder.path())?;
    let mut all = services.words();
    all.extend(spec.words.iter().cloned());
    let words = Words {
        vm: format!("{}-chaos", guest.name),
        all,
    };
    let machine = Machine::start(hosts, folder.path(), words, guest)?;
    let load = Load::start(SERVER.into(), drive::load_options(spec, guest, report.seed))?;
    if !spec.json {
        sayln!("guest     {}", guest.what);
        sayln!("hosts     three for replicas, one each for arbiter and viewservice");
        sayln!("clients   {}, one open TCP connection each", spec.clients);
        sayln!("faults    for {:?}, seed {}\n", spec.lasts, report.seed);
    }
    let begun = Instant::now();
    let mut drive = Drive::new(hosts, services, machine, load, guest.patience);
    let driven = drive.go(spec, report);
    report.seconds = begun.elapsed().as_secs_f64();
    let Drive { machine, load, .. } = drive;
    let epoch = load.epoch();
    let mut history = load.stop();
    let mut last = Ok(());
    if driven.is_ok() && history.breaks.is_empty() {
        last = check::read_all(SERVER.into(), epoch, guest.patience, &mut history);
    }
    if let Some(path) = &spec.history {
        history.write_lines(path)?;
    }
    report.judged(&Judged::of(&history, guest), &history);
    let (noted, ended) = match &driven {
        Ok(pair) => match machine.end(*pair) {
            Ok(noted) => (noted, Ok(())),
            Err((noted, why)) => (noted, Err(why)),
        },
        Err(_) => (machine.noted(), Ok(())),
    };
    report.protected = driven.is_ok() && ended.is_ok();
    // What was promised comes first: all else may be for the lack of it.
    fate::one_lives(&noted).during("what the replicas noted")?;
    if report.is_good() {
        driven?;
        last?;
        ended?;
    }
    Ok(())
}
