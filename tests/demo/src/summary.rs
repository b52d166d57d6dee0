//! What a demo comes to: one JSON object, or a table for people.

use crate::same_machine::Joins;
use check::latencies::quantile;
use kit::Judged;
use kit::failover::Failover;
use serde::Serialize;
use terminal::sayln;

/// What a demo comes to.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Summary {
    pub(crate) kills: u32,
    pub(crate) killed: &'static str,
    pub(crate) guest: &'static str,
    pub(crate) network: String,
    pub(crate) arbiter: String,
    pub(crate) seed: u64,
    pub(crate) clients: u16,
    pub(crate) operations: usize,
    pub(crate) connections_broken: usize,
    pub(crate) acked_writes: usize,
    pub(crate) lost_writes: usize,
    pub(crate) linearizable: bool,
    pub(crate) stall_ms: Spread,
    /// From the kill to its being noticed, to the flag being won, to the log being drained and the
    /// guest live: medians, in microseconds.
    pub(crate) phases_us: Phases,
    /// Frames clients had sent that the dead primary had not logged, and that reached the guest all the
    /// same.
    pub(crate) rescued_frames: u64,
    pub(crate) first_failover_s: f64,
    pub(crate) seconds: f64,
    /// Where one machine was killed again and again.
    #[serde(flatten)]
    pub(crate) joins: Option<Joins>,
}

/// Quantiles, in milliseconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Spread {
    p50: f64,
    p99: f64,
    max: f64,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Phases {
    noticed: u64,
    flag_won: u64,
    drained: u64,
    live: u64,
    first_reply: u64,
}

pub(crate) fn ms(us: u64) -> f64 {
    us as f64 / 1000.0
}

impl Spread {
    /// Of these, in microseconds.
    pub(crate) fn of(mut values_us: Vec<u64>) -> Self {
        Self {
            p50: ms(quantile(&mut values_us, 500)),
            p99: ms(quantile(&mut values_us, 990)),
            max: ms(quantile(&mut values_us, 1000)),
        }
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { p50, p99, max } = self;
        write!(f, "p50 {p50:.1} ms, p99 {p99:.1} ms, max {max:.1} ms")
    }
}

impl Summary {
    /// Adds what the clients of one more machine saw.
    pub(crate) fn add(&mut self, seen: &Judged) {
        self.operations += seen.verdict.ops;
        self.connections_broken += seen.broken;
        self.acked_writes += seen.verdict.acked_writes;
        self.lost_writes += seen.verdict.lost_writes;
        self.linearizable &= seen.verdict.linearizable();
    }

    /// Takes in what all the kills did.
    pub(crate) fn spread(&mut self, failovers: &[&Failover]) {
        self.rescued_frames = failovers.iter().map(|kill| kill.rescued_frames).sum();
        let stalls = failovers.iter().flat_map(|kill| kill.stalls_us.iter());
        self.stall_ms = Spread::of(stalls.copied().collect());
        let median = |get: &dyn Fn(&Failover) -> Option<u64>| {
            let mut values: Vec<u64> = failovers.iter().filter_map(|kill| get(kill)).collect();
            quantile(&mut values, 500)
        };
        self.phases_us = Phases {
            noticed: median(&|kill| kill.after_kill_us("link_end")),
            flag_won: median(&|kill| kill.after_kill_us("flag_won")),
            drained: median(&|kill| kill.after_kill_us("drained")),
            live: median(&|kill| kill.after_kill_us("live")),
            first_reply: median(&|kill| Some(kill.first_reply_us)),
        };
    }

    /// Whether no client noticed more than a pause.
    pub(crate) fn is_good(&self) -> bool {
        self.connections_broken == 0 && self.lost_writes == 0 && self.linearizable
    }

    /// Says it on standard output, for people.
    pub(crate) fn print(&self) {
        let yes = |good: bool| if good { "yes" } else { "NO" };
        sayln!(
            "kills                {} (the {}, SIGKILL, under load)",
            self.kills,
            self.killed
        );
        sayln!("operations           {}", self.operations);
        sayln!("connections broken   {}", self.connections_broken);
        sayln!(
            "acknowledged writes  {}, lost {}",
            self.acked_writes,
            self.lost_writes
        );
        sayln!("linearizable         {}", yes(self.linearizable));
        sayln!("client stall         {}", self.stall_ms);
        let p = &self.phases_us;
        if self.killed == "primary" {
            sayln!(
                "after the kill       noticed {:.1} ms, flag won {:.1} ms, log drained {:.1} ms,",
                ms(p.noticed),
                ms(p.flag_won),
                ms(p.drained)
            );
            sayln!(
                "  (medians)          live {:.1} ms, first byte to a client {:.1} ms",
                ms(p.live),
                ms(p.first_reply)
            );
        }
        if let Some(joins) = &self.joins {
            joins.print();
        }
        sayln!(
            "\nverdict              {}",
            if self.is_good() {
                "no client noticed more than a pause"
            } else {
                "FAILED"
            }
        );
    }
}
