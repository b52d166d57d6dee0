//! `tandem demo`: a pair, real clients, kill -9, and the verdict.
//!
//! ```text
//!  daemon   child processes that end with their parent
//!  hostload whether the host has more to do than it can
//!  guest    what can run in it, and how one knows that it serves
//!  leftovers  what Ctrl-C clears away
//!  cluster  network, arbiter, viewservice, pairs: also what `tandem bench` measures on
//!  round    one pair, its clients, one kill, and what the clients saw
//! ```

pub mod cluster;
pub mod daemon;
pub mod guest;
mod hostload;
pub mod leftovers;
pub mod round;

use crate::cli::DemoArgs;
use crate::failure::{During, Failure, Outcome};
use crate::load::histogram::quantile;
use crate::load::rng::Rng;
use cluster::{Cluster, choose_network};
use guest::DemoGuest;
use round::Round;
use serde::Serialize;
use std::time::{Duration, Instant};

/// What a demo comes to.
#[derive(Debug, Default, Serialize)]
struct Summary {
    kills: u32,
    killed: &'static str,
    guest: &'static str,
    network: String,
    arbiter: String,
    seed: u64,
    clients: u32,
    operations: usize,
    connections_broken: usize,
    acked_writes: usize,
    lost_writes: usize,
    linearizable: bool,
    stall_ms: Spread,
    /// From the kill to its being noticed, to the flag being won, to the log being drained and the
    /// guest live: medians, in microseconds.
    phases_us: Phases,
    /// Frames clients had sent that the dead primary had not logged, and that reached the guest all the
    /// same.
    rescued_frames: u64,
    first_failover_s: f64,
    seconds: f64,
}

/// Quantiles over all clients and kills, in milliseconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Spread {
    p50: f64,
    p99: f64,
    max: f64,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Phases {
    noticed: u64,
    flag_won: u64,
    drained: u64,
    live: u64,
    first_reply: u64,
}

/// Runs the demo.
pub fn demo(args: &DemoArgs) -> Outcome {
    let begun = Instant::now();
    if let Some(folder) = &args.keep {
        std::fs::create_dir_all(folder).during(format_args!("cannot make {}", folder.display()))?;
    }
    let guest = DemoGuest::get(args)?;
    let guard = leftovers::guard()?;
    // Before anything starts a thread: the namespace is the thread's that makes it.
    let network = choose_network(&args.net)?;
    guard()?;
    let cluster = Cluster::start(network, &args.arbiter)?;
    let seed = args
        .seed
        .unwrap_or_else(|| vmm::hostclock::wall_ns() % 1_000_000);
    let mut rng = Rng::new(seed, 0);
    if !args.json {
        crate::sayln!("network   {}", cluster.network_note());
        crate::sayln!("arbiter   {}", cluster.arbiter());
        crate::sayln!("guest     {}", guest.what);
        crate::sayln!(
            "clients   {}, one open TCP connection each; seed {seed}\n",
            args.clients
        );
    }
    let mut summary = Summary {
        killed: if args.kill_backup {
            "backup"
        } else {
            "primary"
        },
        guest: guest.name,
        network: cluster.network_note().to_owned(),
        arbiter: cluster.arbiter().to_owned(),
        seed,
        clients: args.clients,
        linearizable: true,
        ..Summary::default()
    };
    let mut rounds = Vec::new();
    let mut progress = Progress::new(args);
    for number in 0..args.kills {
        let round = round::run(&cluster, args, &guest, number, rng.next_u64())
            .map_err(|failure| blame_load(failure, hostload::now()))
            .during(format_args!(
                "kill {} of {} (seed {seed})",
                number + 1,
                args.kills
            ))?;
        if number == 0 {
            summary.first_failover_s = begun.elapsed().as_secs_f64();
        }
        if !args.json && (args.kills == 1 || !round.is_good()) {
            crate::sayln!("{}", round.timeline());
        }
        add(&mut summary, &round);
        progress.step();
        rounds.push(round);
    }
    progress.end();
    summary.seconds = begun.elapsed().as_secs_f64();
    spread(&mut summary, &rounds);
    if args.json {
        crate::sayln!("{}", serde_json::to_string(&summary).during("report")?);
    } else {
        print_verdict(&summary);
    }
    let good = summary.connections_broken == 0 && summary.lost_writes == 0 && summary.linearizable;
    if good {
        return Ok(());
    }
    for round in &rounds {
        if !round.is_good() {
            crate::complain!("{}", round.explain());
        }
    }
    let again = format!("tandem demo --kills {} --seed {seed}", args.kills);
    Err(Failure::new(format!(
        "the clients noticed (to repeat: {again})"
    )))
}

/// Adds to a failure that this host has more to do than it can, if so: a replica that does not get to run
/// for --suspect-ms is taken for dead, and a process may not get ready in time.
fn blame_load(failure: Failure, load: Option<hostload::Load>) -> Failure {
    match load.filter(hostload::Load::is_too_much) {
        None => failure,
        Some(load) => Failure::new(format!(
            "{failure}; this host is too loaded for a demo ({load}): free it, or give the replicas more \
             time (--suspect-ms 3000)"
        )),
    }
}

/// Tells on stderr how far a demo of several kills is.
enum Progress {
    /// There is one kill only.
    None,
    /// On a terminal.
    Bar(indicatif::ProgressBar),
    /// Elsewhere: a line now and then.
    Lines(Lines),
}

/// Progress as lines.
struct Lines {
    done: u32,
    all: u32,
    begun: Instant,
    last: Instant,
}

/// The least time between two lines of progress.
const LINE_EVERY: Duration = Duration::from_secs(15);

impl Progress {
    fn new(args: &DemoArgs) -> Self {
        use std::io::IsTerminal;
        if args.kills < 2 {
            return Self::None;
        }
        if !std::io::stderr().is_terminal() {
            let begun = Instant::now();
            return Self::Lines(Lines {
                done: 0,
                all: args.kills,
                begun,
                last: begun,
            });
        }
        let style =
            indicatif::ProgressStyle::with_template("{bar:40} {pos}/{len} kills, {eta} left");
        match style {
            Ok(style) => {
                Self::Bar(indicatif::ProgressBar::new(args.kills.into()).with_style(style))
            }
            Err(_) => Self::None,
        }
    }

    /// One more kill is done.
    fn step(&mut self) {
        match self {
            Self::None => {}
            Self::Bar(bar) => bar.inc(1),
            Self::Lines(lines) => {
                if let Some(line) = lines.step(Instant::now()) {
                    crate::complain!("{line}");
                }
            }
        }
    }

    fn end(self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

impl Lines {
    /// One more kill is done at the time `now`; the line for it, if one is due.
    fn step(&mut self, now: Instant) -> Option<String> {
        self.done += 1;
        if now - self.last < LINE_EVERY || self.done == self.all {
            return None;
        }
        self.last = now;
        let took = now - self.begun;
        let left = took * (self.all - self.done) / self.done;
        let (done, all) = (self.done, self.all);
        Some(format!(
            "tandem: {done} of {all} kills, {} s left",
            left.as_secs()
        ))
    }
}

fn add(summary: &mut Summary, round: &Round) {
    summary.kills += 1;
    summary.operations += round.verdict.ops;
    summary.connections_broken += round.broken;
    summary.acked_writes += round.verdict.acked_writes;
    summary.lost_writes += round.verdict.lost_writes;
    summary.linearizable &= round.verdict.linearizable();
    summary.rescued_frames += round.rescued_frames;
}

fn spread(summary: &mut Summary, rounds: &[Round]) {
    let mut stalls: Vec<u64> = rounds
        .iter()
        .flat_map(|r| r.stalls_us.iter().copied())
        .collect();
    let ms = |us: u64| us as f64 / 1000.0;
    summary.stall_ms = Spread {
        p50: ms(quantile(&mut stalls, 500)),
        p99: ms(quantile(&mut stalls, 990)),
        max: ms(quantile(&mut stalls, 1000)),
    };
    let median = |get: &dyn Fn(&Round) -> Option<u64>| {
        let mut values: Vec<u64> = rounds.iter().filter_map(get).collect();
        quantile(&mut values, 500)
    };
    summary.phases_us = Phases {
        noticed: median(&|r| r.after_kill_us("link_end")),
        flag_won: median(&|r| r.after_kill_us("flag_won")),
        drained: median(&|r| r.after_kill_us("drained")),
        live: median(&|r| r.after_kill_us("live")),
        first_reply: median(&|r| Some(r.first_reply_us)),
    };
}

fn print_verdict(s: &Summary) {
    let yes = |good: bool| if good { "yes" } else { "NO" };
    crate::sayln!(
        "kills                {} (the {}, SIGKILL, under load)",
        s.kills,
        s.killed
    );
    crate::sayln!("operations           {}", s.operations);
    crate::sayln!("connections broken   {}", s.connections_broken);
    crate::sayln!(
        "acknowledged writes  {}, lost {}",
        s.acked_writes,
        s.lost_writes
    );
    crate::sayln!("linearizable         {}", yes(s.linearizable));
    crate::sayln!(
        "client stall         p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms",
        s.stall_ms.p50,
        s.stall_ms.p99,
        s.stall_ms.max
    );
    let p = &s.phases_us;
    let ms = |us: u64| us as f64 / 1000.0;
    if s.killed == "primary" {
        crate::sayln!(
            "after the kill       noticed {:.1} ms, flag won {:.1} ms, log drained {:.1} ms,",
            ms(p.noticed),
            ms(p.flag_won),
            ms(p.drained)
        );
        crate::sayln!(
            "  (medians)          live {:.1} ms, first byte to a client {:.1} ms",
            ms(p.live),
            ms(p.first_reply)
        );
    }
    let good = s.connections_broken == 0 && s.lost_writes == 0 && s.linearizable;
    crate::sayln!(
        "\nverdict              {}",
        if good {
            "no client noticed more than a pause"
        } else {
            "FAILED"
        }
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_on_a_loaded_host_says_so() {
        let say = |text: &str| {
            let load = hostload::Load::parse(text, 2);
            blame_load(Failure::new("the backup does not end"), load).to_string()
        };
        assert_eq!(say("0.50 0.40 0.30 1/200 77"), "the backup does not end");
        let said = say("4.25 1.00 0.30 9/200 77");
        assert!(said.starts_with("the backup does not end; this host is too loaded"));
        assert!(said.contains("9 tasks want to run on 2 CPUs"), "{said}");
    }

    #[test]
    fn progress_is_a_line_now_and_then() {
        let begun = Instant::now();
        let mut lines = Lines {
            done: 0,
            all: 40,
            begun,
            last: begun,
        };
        // A kill a second.
        let at = |second: u32| begun + Duration::from_secs(second.into());
        let said: Vec<(u32, String)> = (1..=40)
            .filter_map(|second| Some((second, lines.step(at(second))?)))
            .collect();
        let expected = [
            (15, "tandem: 15 of 40 kills, 25 s left".to_owned()),
            (30, "tandem: 30 of 40 kills, 10 s left".to_owned()),
        ];
        assert_eq!(said, expected);
    }
}
