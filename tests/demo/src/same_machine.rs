//! One machine whose primary is killed again and again, under one load.
//!
//! ```text
//!  clients    ├── one set of connections, one history ──────────────────────────┤ read all, judge
//!  replica 0  leads ✕
//!  replica 1  follows  leads, alone ─▶ with 2 ✕
//!  replica 2                   joins, follows   leads, alone ─▶ with 3 ✕
//!  ...                                                  joins, follows   ...
//! ```
//!
//! A kill comes a random number of replies after the machine was protected.

use crate::summary::{Spread, Summary};
use crate::{DemoError, Play, Progress};
use check::history::History;
use check::latencies::quantile;
use check::rng::Rng;
use check::{Load, LoadOptions, read_all};
use kit::chain::{Chain, ChainOptions, Loss, Protection};
use kit::cluster::Cluster;
use kit::failover::{Failover, Kill, host_ns_at};
use kit::join::{Join, mib};
use kit::round::{RECOVERY, load_options, silent, warm_up};
use kit::{Judged, KitError, KitResult};
use serde::Serialize;
use std::path::Path;
use std::time::Instant;
use terminal::sayln;
use vmm::hostclock;

/// Operations recorded at most for each kill, of 80 bytes each: those of the clients beside each other, and those of
/// each client. Both are several times what two cores do in that time.
const OPS_A_KILL: usize = 40_000;
const OPS_OF_A_CLIENT: usize = 1_000;

/// What new backups came to.
#[derive(Debug, Serialize)]
pub(crate) struct Joins {
    same_machine: bool,
    joins: usize,
    /// How long the guest stood still for each.
    join_pause_ms: Spread,
    /// The longest time without a reply to any client at each: no pause was longer.
    join_gap_ms: Spread,
    protect_s: Seconds,
    /// Of a machine's state, and its memory that is not zero: medians.
    sent_mib: f64,
    nonzero_mib: f64,
    /// How long the judgement of the whole history took.
    check_s: f64,
}

#[derive(Debug, Serialize)]
struct Seconds {
    p50: f64,
    max: f64,
}

impl Joins {
    fn of(joins: &[Join], check_s: f64) -> Self {
        let all = |get: &dyn Fn(&Join) -> u64| joins.iter().map(get).collect::<Vec<u64>>();
        let median_mib = |get: &dyn Fn(&Join) -> u64| mib(quantile(&mut all(get), 500));
        let mut protect = all(&|join| join.protect_us);
        let mut seconds = |per_mille| quantile(&mut protect, per_mille) as f64 / 1e6;
        Self {
            same_machine: true,
            joins: joins.len(),
            join_pause_ms: Spread::of(all(&|join| join.told.still_us)),
            join_gap_ms: Spread::of(all(&|join| join.gap_us)),
            protect_s: Seconds {
                p50: seconds(500),
                max: seconds(1000),
            },
            sent_mib: median_mib(&|join| join.told.sent_bytes),
            nonzero_mib: median_mib(&|join| join.told.nonzero_bytes),
            check_s,
        }
    }

    /// The rows for people.
    pub(crate) fn print(&self) {
        let Seconds { p50, max } = self.protect_s;
        let (sent, nonzero) = (self.sent_mib, self.nonzero_mib);
        sayln!("joins                {}", self.joins);
        sayln!("guest stands still   {}", self.join_pause_ms);
        sayln!("no reply at a join   {}", self.join_gap_ms);
        sayln!("protected            p50 {p50:.2} s, max {max:.2} s after the new backup listened");
        sayln!(
            "sent for a join      {sent:.1} MiB, {nonzero:.1} MiB of memory are not zero (medians)"
        );
    }
}

/// A kill and the new backup after it, as they were brought about.
struct Cycle {
    loss: Loss,
    /// When all clients were served again, in nanoseconds of the host's clock.
    served_ns: u64,
    /// None where a client noticed, with which all ends.
    protection: Option<Protection>,
}

/// A machine under load.
struct Driven<'a> {
    // Before the chain, whose end it must not see: clients get their last replies.
    load: Load,
    chain: Chain<'a>,
    epoch_ns: u64,
    clients: u16,
    rng: Rng,
}

/// What was seen of all of it.
struct Seen {
    judged: Judged,
    failovers: Vec<Failover>,
    joins: Vec<Join>,
    check_s: f64,
}

impl Play<'_> {
    /// Kills the primaries of one machine, and adds up in `summary` what came of it.
    pub(crate) fn same_machine(
        &self,
        cluster: &mut Cluster,
        summary: &mut Summary,
    ) -> Result<Vec<Judged>, DemoError> {
        let seed = summary.seed;
        let seen = self
            .drive(cluster, summary)
            .map_err(|(number, why)| self.failed(number, seed, why, cluster))?;
        if !self.spec.json {
            self.show_worst(&seen);
        }
        summary.add(&seen.judged);
        summary.spread(&seen.failovers.iter().collect::<Vec<_>>());
        summary.joins = Some(Joins::of(&seen.joins, seen.check_s));
        Ok(vec![seen.judged])
    }

    /// Starts the machine, brings about all kills, and judges. A failure comes with the number of its kill.
    fn drive(&self, cluster: &Cluster, summary: &mut Summary) -> Result<Seen, (u32, KitError)> {
        let kills = self.spec.kills;
        let mut driven = self.start(cluster, summary.seed).map_err(|why| (0, why))?;
        let mut cycles = Vec::new();
        let mut progress = Progress::new(kills);
        for number in 0..kills {
            let at = |why| (number, why);
            let Some(mut cycle) = driven.kill().map_err(at)? else {
                break;
            };
            summary.kills += 1;
            if number == 0 {
                summary.first_failover_s = self.begun.elapsed().as_secs_f64();
            }
            let goes_on = driven.load.broken() == 0;
            if goes_on {
                cycle.protection = Some(driven.chain.protect().map_err(at)?);
            }
            cycles.push(cycle);
            progress.step();
            if !goes_on {
                break;
            }
        }
        progress.end();
        let last = u32::try_from(cycles.len().saturating_sub(1)).unwrap_or(kills);
        self.finish(cluster, driven, &cycles)
            .map_err(|why| (last, why))
    }

    fn start<'a>(&self, cluster: &'a Cluster, seed: u64) -> KitResult<Driven<'a>> {
        let (round, guest) = (&self.spec.round, self.guest);
        // Whoever leads has its own for both.
        let suspect_ms = round.suspect_ms.to_string();
        let options = ChainOptions {
            args: round.args.clone(),
            all: vec!["--suspect-ms".into(), suspect_ms.into()],
            ..ChainOptions::default()
        };
        let vm = cluster.name(&format!("{}-same", guest.name));
        let chain = Chain::start(cluster, &vm, &guest.words, options)?;
        let leader = &chain.leader().daemon;
        leader.wait_line(guest.patience, |line| line.contains(guest.ready))?;
        let each = OPS_A_KILL + OPS_OF_A_CLIENT * usize::from(round.clients);
        let load_options = LoadOptions {
            max_ops: each.saturating_mul(self.spec.kills as usize),
            ..load_options(guest, round.clients, seed)
        };
        let load = Load::start(cluster.server(), load_options)?;
        Ok(Driven {
            chain,
            epoch_ns: host_ns_at(load.epoch()),
            load,
            clients: round.clients,
            rng: Rng::new(seed, 1),
        })
    }

    /// Ends load and machine, and judges what was seen.
    fn finish(
        &self,
        cluster: &Cluster,
        mut driven: Driven<'_>,
        cycles: &[Cycle],
    ) -> KitResult<Seen> {
        let served = driven.serve()?;
        let Driven {
            chain,
            load,
            epoch_ns,
            ..
        } = driven;
        let epoch = load.epoch();
        let mut history = load.stop();
        if served {
            read_all(cluster.server(), epoch, RECOVERY, &mut history)?;
        }
        let begun = Instant::now();
        let judged = Judged::of(&history, self.guest);
        let check_s = begun.elapsed().as_secs_f64();
        let failovers = cycles
            .iter()
            .map(|cycle| cycle.failover(&chain, &history, epoch_ns));
        let failovers: Vec<Failover> = failovers.collect();
        let mut joins = Vec::new();
        for protection in cycles.iter().filter_map(|cycle| cycle.protection) {
            let events = chain.noted(protection.leads, protection.follows);
            let join = Join::of(&history, epoch_ns, events);
            let leader = &chain.leader().daemon;
            joins.push(join.ok_or_else(|| leader.failed("did not note how it was protected"))?);
        }
        let seen = Seen {
            judged,
            failovers,
            joins,
            check_s,
        };
        if let Some(folder) = &self.spec.round.keep {
            seen.keep(folder, &history)?;
        }
        let ended = chain.end();
        if seen.judged.is_good() {
            ended?;
        }
        Ok(seen)
    }

    /// The kill at which a client waited longest, and the new backup after it.
    fn show_worst(&self, seen: &Seen) {
        let numbered = seen.failovers.iter().enumerate();
        let Some((number, worst)) = numbered.max_by_key(|(_, kill)| kill.longest_us()) else {
            return;
        };
        let kills = self.spec.kills;
        if kills > 1 {
            let number = number + 1;
            sayln!("kill {number} of {kills}, the one with the longest wait; times since then");
        }
        sayln!("{}", worst.timeline());
        if let Some(join) = seen.joins.get(number) {
            sayln!("the new backup after that; times since it listens");
            sayln!("{}", join.timeline());
        }
    }
}

impl Driven<'_> {
    /// Has the clients served a random number of times; whether they are, or one has noticed something.
    fn serve(&mut self) -> KitResult<bool> {
        let goal = self.load.replies() + warm_up(self.clients, &mut self.rng);
        let enough = |load: &Load| load.replies() >= goal || load.broken() > 0;
        if !self.load.wait_until(RECOVERY, enough) {
            return Err(silent(&self.load));
        }
        Ok(self.load.broken() == 0)
    }

    /// Kills the primary at a random moment, and waits until the other one serves everybody. None if a client
    /// noticed something before that.
    fn kill(&mut self) -> KitResult<Option<Cycle>> {
        if !self.serve()? {
            return Ok(None);
        }
        if !self.chain.is_protected() {
            let leader = &self.chain.leader().daemon;
            return Err(leader.failed("lost its backup, which nobody had killed"));
        }
        let loss = self.chain.kill_leader()?;
        let killed_at = loss.at_ns.saturating_sub(self.epoch_ns);
        if !self.load.wait_all_replied(killed_at, RECOVERY) {
            return Err(silent(&self.load));
        }
        if self.load.broken() == 0 {
            self.chain.leader().wait_event("live", loss.at_ns)?;
        }
        Ok(Some(Cycle {
            loss,
            served_ns: hostclock::monotonic_ns(),
            protection: None,
        }))
    }
}

impl Cycle {
    fn failover(&self, chain: &Chain<'_>, history: &History, epoch_ns: u64) -> Failover {
        let kill = Kill {
            of_backup: false,
            at_ns: self.loss.at_ns,
            until_ns: self.served_ns,
        };
        let events = chain.noted(self.loss.victim, self.loss.survivor);
        Failover::of(history, epoch_ns, kill, events)
    }
}

impl Seen {
    fn keep(&self, folder: &Path, history: &History) -> KitResult {
        history.dump(&folder.join("history.json"))?;
        for (number, kill) in self.failovers.iter().enumerate() {
            let join = self.joins.get(number).map(Join::timeline);
            let join = format!("\n{}", join.unwrap_or_default());
            kill.keep(folder, number, &join)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kit::Line;

    fn join(protected: &str, us: u64) -> Join {
        let line = |at_us: u64, who: &str, event: &str, detail: &str| Line {
            at_ns: at_us * 1000,
            who: who.into(),
            event: event.into(),
            detail: detail.into(),
        };
        let events = vec![
            line(10, "backup", "listening", "127.0.0.1:7"),
            line(10 + us, "primary", "protected", protected),
        ];
        Join::of(&History::default(), 0, events).expect("it came to an end")
    }

    #[test]
    fn joins_come_to_what_the_replicas_told_of_each() {
        let told = |still: u64, us: u64| {
            let words = "1048576 bytes were sent, 524288 of memory are not zero";
            join(
                &format!("view 3; the guest stood still {still} us, {words}"),
                us,
            )
        };
        let joins = Joins::of(&[told(4000, 500_000), told(6000, 700_000)], 0.1);
        let json = serde_json::to_value(&joins).unwrap();
        assert_eq!(json["joins"], 2);
        assert_eq!(json["join_pause_ms"]["max"], 6.0);
        assert_eq!(
            (&json["sent_mib"], &json["nonzero_mib"]),
            (&1.0.into(), &0.5.into())
        );
        assert_eq!(json["protect_s"]["p50"], 0.5);
        assert_eq!(json["protect_s"]["max"], 0.7);
    }
}
