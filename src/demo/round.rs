//! One pair, its clients, one kill, and what the clients saw.

use super::cluster::{Cluster, Pair, PairOptions};
use super::guest::{self, DemoGuest};
use crate::cli::DemoArgs;
use crate::failure::{During, Failure, Outcome};
use crate::load::history::{History, NEVER};
use crate::load::rng::Rng;
use crate::load::{CheckOptions, Load, LoadOptions, Pace, Verdict, check, read_all, stalls};
use crate::node::replica::Line;
use crate::report::timeline::{Colour, Source, Timeline};
use std::time::Duration;
use vmm::hostclock;

/// Longest time for every client to hear from the guest again, on the most loaded host.
const RECOVERY: Duration = Duration::from_secs(60);
/// Longest time for a process that is to end, and all that it has to put in order first.
const END: Duration = Duration::from_secs(60);
/// Time after a kill within which a wait counts as its doing.
const WINDOW_NS: u64 = 60_000_000_000;

/// What came of one kill.
pub struct Round {
    /// What the history comes to.
    pub verdict: Verdict,
    /// Connections that broke.
    pub broken: usize,
    /// Longest wait of each client around the kill, in microseconds.
    pub stalls_us: Vec<u64>,
    /// From the kill to the first reply any client got.
    pub first_reply_us: u64,
    /// Frames the dead primary had not logged.
    pub rescued_frames: u64,
    killed: &'static str,
    killed_at_ns: u64,
    clients: u32,
    events: Vec<Line>,
    breaks: Vec<String>,
}

/// Starts a pair, lets clients at it, kills one replica at a random moment, and judges what was seen.
pub fn run(
    cluster: &Cluster,
    args: &DemoArgs,
    guest: &DemoGuest,
    number: u32,
    seed: u64,
) -> Outcome<Round> {
    let mut rng = Rng::new(seed, 1);
    let [mut primary, backup] = guest::engines(args);
    // The primary's holds for both.
    primary.extend(["--suspect-ms".into(), args.suspect_ms.to_string().into()]);
    let options = PairOptions {
        network: true,
        primary,
        backup,
        ..PairOptions::default()
    };
    let name = format!("{}-{number}", guest.name);
    let mut pair = cluster.start_pair(&name, &guest.words, &options)?;
    pair.wait_ready_within(guest.ready, guest.patience)?;
    let clients = u16::try_from(args.clients).during("--clients")?;
    let options = LoadOptions {
        clients,
        seed,
        pace: Pace::Think(guest.think),
        max_ops: 400_000,
        ..LoadOptions::default()
    };
    let load = Load::start(cluster.server(), options)?;
    let warm = 100 * u64::from(args.clients) + rng.below(2000);
    if !load.wait_replies(warm, RECOVERY) {
        return Err(Failure::new("the guest does not answer its clients"));
    }
    let victim = if args.kill_backup {
        &mut pair.backup
    } else {
        &mut pair.primary
    };
    let killed_at_ns = hostclock::monotonic_ns();
    let killed_at = load.epoch().now_ns();
    victim.kill();
    victim.wait(END)?;
    let recovered = load.wait_all_replied(killed_at, RECOVERY);
    let more = load.replies() + warm;
    if recovered {
        load.wait_replies(more, RECOVERY);
    }
    let epoch = load.epoch();
    let mut history = load.stop();
    if recovered {
        read_all(cluster.server(), epoch, RECOVERY, &mut history)?;
    }
    let verdict = check(
        &history,
        CheckOptions {
            lease_slack_ms: guest.lease_slack_ms,
            ..CheckOptions::default()
        },
    );
    let stalls = stalls(&history, killed_at, WINDOW_NS);
    let events = pair.events();
    let round = Round {
        broken: history.breaks.len(),
        stalls_us: stalls
            .iter()
            .map(|stall| stall.longest_op_ns / 1000)
            .collect(),
        first_reply_us: first_reply_us(&history, killed_at, noticed_ns(&events, killed_at_ns)),
        rescued_frames: rescued(&events),
        killed: if args.kill_backup {
            "backup"
        } else {
            "primary"
        },
        killed_at_ns,
        clients: args.clients,
        breaks: history
            .breaks
            .iter()
            .map(|b| format!("client {}: {}", b.client, b.reason))
            .collect(),
        verdict,
        events,
    };
    if let Some(folder) = &args.keep {
        keep(folder, number, &history, &round)?;
    }
    let survivor = end(pair, args.kill_backup);
    if round.is_good() {
        survivor.map(|()| round)
    } else {
        Ok(round)
    }
}

/// Nanoseconds from the kill until the survivor noticed.
fn noticed_ns(events: &[Line], killed_at_ns: u64) -> u64 {
    let noticed = events
        .iter()
        .find(|e| e.event == "link_end" && e.at_ns >= killed_at_ns);
    noticed.map_or(0, |event| event.at_ns - killed_at_ns)
}

/// From the kill to the first reply that the survivor let out: replies that the dead primary had sent
/// still come in before it notices.
fn first_reply_us(history: &History, killed_at: u64, noticed_ns: u64) -> u64 {
    let replies = history
        .ops
        .iter()
        .map(|op| op.return_ns)
        .filter(|at| *at != NEVER);
    let first = replies.filter(|at| *at > killed_at + noticed_ns).min();
    first.map_or(0, |at| (at - killed_at) / 1000)
}

fn rescued(events: &[Line]) -> u64 {
    let live = events.iter().find(|line| line.event == "live");
    live.and_then(|line| line.detail.split(' ').next()?.parse().ok())
        .unwrap_or(0)
}

fn keep(folder: &std::path::Path, number: u32, history: &History, round: &Round) -> Outcome {
    history.dump(&folder.join(format!("history-{number}.json")))?;
    let path = folder.join(format!("timeline-{number}.txt"));
    std::fs::write(&path, round.timeline()).during(format_args!("cannot write {}", path.display()))
}

/// Ends what is left of a pair, which must go in an orderly way.
fn end(mut pair: Pair, backup_killed: bool) -> Outcome {
    let survivor = if backup_killed {
        &mut pair.primary
    } else {
        &mut pair.backup
    };
    survivor.ask_to_end();
    let status = survivor.wait(END)?;
    if status.success() {
        return Ok(());
    }
    Err(Failure::new(format!(
        "the surviving replica ended badly{}",
        survivor.complaint()
    )))
}

impl Round {
    /// Whether no client can have noticed more than a pause.
    pub fn is_good(&self) -> bool {
        self.broken == 0 && self.verdict.lost_writes == 0 && self.verdict.linearizable()
    }

    /// Microseconds from the kill to the survivor's `event`.
    pub fn after_kill_us(&self, event: &str) -> Option<u64> {
        let line = self
            .events
            .iter()
            .find(|line| line.event == event && line.at_ns >= self.killed_at_ns)?;
        Some((line.at_ns - self.killed_at_ns) / 1000)
    }

    /// What went wrong, for people.
    pub fn explain(&self) -> String {
        let mut text = self.verdict.explain();
        for line in &self.breaks {
            text.push_str(line);
            text.push('\n');
        }
        text
    }

    /// The failover as people can follow it.
    pub fn timeline(&self) -> String {
        let mut timeline = Timeline::default();
        let victim = if self.killed == "backup" {
            Source::Backup
        } else {
            Source::Primary
        };
        timeline.death(0, victim, "killed with SIGKILL, under load");
        for line in self
            .events
            .iter()
            .filter(|line| line.at_ns >= self.killed_at_ns)
        {
            let at_us = i64::try_from((line.at_ns - self.killed_at_ns) / 1000).unwrap_or(i64::MAX);
            let source = if line.who == "primary" {
                Source::Primary
            } else {
                Source::Backup
            };
            let detail = &line.detail;
            let text = match line.event.as_str() {
                "link_end" => format!("noticed: {detail}"),
                "flag_won" => format!("won the flag of {detail}"),
                "drained" => format!("log drained, {detail}"),
                "announced" => "announced the guest's address".into(),
                "reemitted" => format!("re-emitted {detail} outputs"),
                "live" => format!("live; {detail}"),
                "solo" => format!("solo, {detail}"),
                "hold" => detail.clone(),
                other => format!("{other} {detail}"),
            };
            timeline.event(at_us, source, text);
        }
        let first = i64::try_from(self.first_reply_us).unwrap_or(i64::MAX);
        timeline.event(first, Source::Client, "first byte to a client");
        let longest = self.stalls_us.iter().copied().max().unwrap_or(0);
        let text = format!(
            "all {} clients go on; longest wait {:.1} ms",
            self.clients,
            longest as f64 / 1000.0
        );
        timeline.event(
            i64::try_from(longest).unwrap_or(i64::MAX),
            Source::Client,
            text,
        );
        timeline.render(Colour::of_stdout())
    }
}
