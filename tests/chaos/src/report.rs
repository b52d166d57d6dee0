//! What a run comes to: one JSON object, or words and a table for people.

use crate::machine::PairedOn;
use crate::plan::Fault;
use check::history::History;
use kit::guest::Served;
use kit::{During, Judged, KitResult};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;
use terminal::{Align, Table, sayln};

/// What became of a pair through a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Became {
    /// It is a pair still.
    Whole,
    /// Its primary has another backup.
    PrimaryWentOn,
    /// Another leads.
    BackupWentOn,
}

impl Became {
    pub(crate) fn of(before: PairedOn, after: PairedOn) -> Self {
        if before == after {
            Self::Whole
        } else if after.primary == before.primary {
            Self::PrimaryWentOn
        } else {
            Self::BackupWentOn
        }
    }
}

impl fmt::Display for Became {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Whole => "a pair still",
            Self::PrimaryWentOn => "the primary went on",
            Self::BackupWentOn => "the backup went on",
        })
    }
}

/// What faults of one kind did.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Did {
    times: u64,
    pair_still: u64,
    primary_went_on: u64,
    backup_went_on: u64,
    /// Packets that met a cut.
    packets_dropped: u64,
    /// From healing to all clients served and the machine protected, the longest.
    well_again_s_max: f64,
}

/// What a run comes to.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    guest: &'static str,
    pub(crate) seed: u64,
    pub(crate) seconds: f64,
    clients: u16,
    faults: u64,
    by_kind: BTreeMap<String, Did>,
    /// The view at the end: from 1 on, each failover and each new backup is one.
    pub(crate) views: u64,
    operations: usize,
    connections_broken: usize,
    acked_writes: usize,
    lost_writes: usize,
    linearizable: bool,
    /// The longest wait of any client for a reply.
    stall_ms_max: f64,
    /// Whether the machine was protected at the end, one replica at most had lived in each view, and all ended well.
    pub(crate) protected: bool,
    #[serde(skip)]
    explained: String,
}

impl Report {
    pub(crate) fn new(guest: &Served, clients: u16, seed: u64) -> Self {
        Self {
            guest: guest.name,
            seed,
            seconds: 0.0,
            clients,
            faults: 0,
            by_kind: BTreeMap::new(),
            views: 0,
            operations: 0,
            connections_broken: 0,
            acked_writes: 0,
            lost_writes: 0,
            linearizable: false,
            stall_ms_max: 0.0,
            protected: false,
            explained: String::new(),
        }
    }

    /// Adds what a fault did: how many packets met a cut, and how long it took until all was well again.
    pub(crate) fn add(&mut self, fault: Fault, became: Became, dropped: u64, took: Duration) {
        self.faults += 1;
        let did = self.by_kind.entry(fault.to_string()).or_default();
        did.times += 1;
        did.packets_dropped += dropped;
        did.well_again_s_max = did.well_again_s_max.max(took.as_secs_f64());
        *match became {
            Became::Whole => &mut did.pair_still,
            Became::PrimaryWentOn => &mut did.primary_went_on,
            Became::BackupWentOn => &mut did.backup_went_on,
        } += 1;
    }

    /// Takes in what the clients saw.
    pub(crate) fn judged(&mut self, seen: &Judged, history: &History) {
        self.operations = seen.verdict.ops;
        self.connections_broken = seen.broken;
        self.acked_writes = seen.verdict.acked_writes;
        self.lost_writes = seen.verdict.lost_writes;
        self.linearizable = seen.verdict.linearizable();
        let answered = history
            .ops
            .iter()
            .filter(|op| op.return_ns != check::history::NEVER);
        let longest_ns = answered.map(|op| op.return_ns - op.invoke_ns).max();
        self.stall_ms_max = longest_ns.unwrap_or(0) as f64 / 1e6;
        self.explained = seen.explain();
    }

    /// Whether it was ended before anything was judged.
    pub(crate) fn is_empty(&self) -> bool {
        self.operations == 0
    }

    /// Whether no client noticed more than a pause, and something was written.
    pub(crate) fn is_good(&self) -> bool {
        self.connections_broken == 0
            && self.lost_writes == 0
            && self.linearizable
            && self.acked_writes > 0
    }

    /// What the clients noticed.
    pub(crate) fn what_is_wrong(&self) -> String {
        match self.explained.trim_end() {
            "" => "nothing was written".into(),
            explained => format!("the clients noticed: {explained}"),
        }
    }

    /// Says it on standard output.
    pub(crate) fn say(&self, json: bool) -> KitResult {
        if json {
            sayln!("{}", serde_json::to_string(self).during("report")?);
            return Ok(());
        }
        let mut table = Table::new(&[
            ("fault", Align::Left),
            ("times", Align::Right),
            ("a pair", Align::Right),
            ("primary", Align::Right),
            ("backup", Align::Right),
            ("dropped", Align::Right),
            ("well again", Align::Right),
        ]);
        for (kind, did) in &self.by_kind {
            table.row([
                kind.clone(),
                did.times.to_string(),
                did.pair_still.to_string(),
                did.primary_went_on.to_string(),
                did.backup_went_on.to_string(),
                did.packets_dropped.to_string(),
                format!("{:.2} s", did.well_again_s_max),
            ]);
        }
        let yes = |good: bool| if good { "yes" } else { "NO" };
        sayln!("\n{table}");
        sayln!(
            "faults               {} in {:.0} s, seed {}",
            self.faults,
            self.seconds,
            self.seed
        );
        sayln!("views                {}", self.views);
        sayln!("operations           {}", self.operations);
        sayln!("connections broken   {}", self.connections_broken);
        sayln!(
            "acknowledged writes  {}, lost {}",
            self.acked_writes,
            self.lost_writes
        );
        sayln!("linearizable         {}", yes(self.linearizable));
        sayln!("longest wait         {:.0} ms", self.stall_ms_max);
        sayln!("protected at the end {}", yes(self.protected));
        let good = self.is_good() && self.protected;
        let words = "no client noticed more than a pause, and nobody lived twice";
        sayln!(
            "\nverdict              {}",
            if good { words } else { "FAILED" }
        );
        Ok(())
    }
}
