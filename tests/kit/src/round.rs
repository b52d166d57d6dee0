//! One pair, its clients, one kill, and what the clients saw.

use crate::cluster::{Cluster, Pair, PairOptions};
use crate::error::{KitError, KitResult};
use crate::failover::{Failover, Kill, host_ns_at};
use crate::guest::Served;
use crate::judged::Judged;
use check::history::History;
use check::rng::Rng;
use check::{Load, LoadOptions, Pace, read_all};
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;
use vmm::hostclock;

/// Longest time for every client to hear from the guest again, on the most loaded host.
pub const RECOVERY: Duration = Duration::from_secs(60);
/// Longest time for a process that is to end, and all that it has to put in order first.
pub(crate) const END: Duration = Duration::from_secs(60);
/// Time after a kill within which a wait counts as its doing.
const WINDOW_NS: u64 = 60_000_000_000;

/// How a round is played.
#[derive(Clone, Debug)]
pub struct RoundOptions {
    /// More arguments for primary and backup.
    pub args: [Vec<OsString>; 2],
    /// Clients, one open connection each.
    pub clients: u16,
    /// Silence after which one replica suspects the other, in milliseconds.
    pub suspect_ms: u32,
    /// Kill the backup instead of the primary.
    pub kill_backup: bool,
    /// Keep history and timeline in this folder.
    pub keep: Option<PathBuf>,
}

/// What came of one kill.
pub struct Round {
    /// What the clients saw.
    pub seen: Judged,
    /// What the kill did.
    pub failover: Failover,
}

/// Starts a pair, lets clients at it, kills one replica at a random moment, and judges what was seen.
pub fn run(
    cluster: &Cluster,
    options: &RoundOptions,
    guest: &Served,
    number: u32,
    seed: u64,
) -> KitResult<Round> {
    let mut rng = Rng::new(seed, 1);
    let [mut primary, backup] = options.args.clone();
    // The primary's holds for both.
    let suspect_ms = options.suspect_ms.to_string();
    primary.extend(["--suspect-ms".into(), suspect_ms.into()]);
    let pair_options = PairOptions {
        network: true,
        primary,
        backup,
        ..PairOptions::default()
    };
    let name = format!("{}-{number}", guest.name);
    let mut pair = cluster.start_pair(&cluster.name(&name), &guest.words, &pair_options)?;
    pair.wait_ready_within(guest.ready, guest.patience)?;
    let load = Load::start(cluster.server(), load_options(guest, options.clients, seed))?;
    let epoch_ns = host_ns_at(load.epoch());
    let warm = warm_up(options.clients, &mut rng);
    if !load.wait_replies(warm, RECOVERY) {
        return Err(silent(&load));
    }
    let victim = if options.kill_backup {
        &mut pair.backup
    } else {
        &mut pair.primary
    };
    let at_ns = hostclock::monotonic_ns();
    victim.kill();
    victim.wait(END)?;
    let recovered = load.wait_all_replied(at_ns.saturating_sub(epoch_ns), RECOVERY);
    // Where a connection broke they may not come: that is judged below.
    if recovered && !load.wait_replies(warm, RECOVERY) && load.broken() == 0 {
        return Err(silent(&load));
    }
    let epoch = load.epoch();
    let mut history = load.stop();
    if recovered {
        read_all(cluster.server(), epoch, RECOVERY, &mut history)?;
    }
    let kill = Kill {
        of_backup: options.kill_backup,
        at_ns,
        until_ns: at_ns + WINDOW_NS,
    };
    let round = Round {
        seen: Judged::of(&history, guest),
        failover: Failover::of(&history, epoch_ns, kill, pair.events()),
    };
    if let Some(folder) = &options.keep {
        keep(folder, number, &history, &round)?;
    }
    let survivor = end(pair, options.kill_backup);
    if round.seen.is_good() {
        survivor.map(|()| round)
    } else {
        Ok(round)
    }
}

/// The load of a round: `clients` that work on `guest`, and choose by `seed`.
#[must_use]
pub fn load_options(guest: &Served, clients: u16, seed: u64) -> LoadOptions {
    LoadOptions {
        clients,
        seed,
        pace: Pace::Think(guest.think),
        max_ops: 400_000,
        ..LoadOptions::default()
    }
}

/// Replies that so many clients get before the next kill: a random number, so that it comes at any moment.
#[must_use]
pub fn warm_up(clients: u16, rng: &mut Rng) -> u64 {
    100 * u64::from(clients) + rng.below(2000)
}

/// Why clients do not get the replies they were to have.
#[must_use]
pub fn silent(load: &Load) -> KitError {
    if load.is_full() {
        KitError::Full
    } else {
        KitError::Silent
    }
}

fn keep(folder: &std::path::Path, number: u32, history: &History, round: &Round) -> KitResult {
    history.dump(&folder.join(format!("history-{number}.json")))?;
    round.failover.keep(folder, number as usize, "")
}

/// Ends what is left of a pair, which must go in an orderly way.
fn end(mut pair: Pair, backup_killed: bool) -> KitResult {
    let survivor = if backup_killed {
        &mut pair.primary
    } else {
        &mut pair.backup
    };
    survivor.ask_to_end();
    if survivor.wait(END)?.success() {
        return Ok(());
    }
    Err(survivor.failed("ended badly"))
}
