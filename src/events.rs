//! A replica's trace of what happened to it, for the demo's timeline and for people; and its counters. Either file is
//! bounded ([`Trace`]).

use crate::cli::ReplicaArgs;
use crate::complain;
use crate::failure::{During, Outcome};
use crate::metrics;
use kit::{Line, Trace};
use replica::{Counters, Notice};
use std::path::Path;
use std::sync::Once;

/// Writes what happens to a replica as it happens: each line goes out whole and at once, so that it outlives
/// the process. What its operator has to know is a line on standard error, too.
pub struct Events {
    who: &'static str,
    events: Option<Trace>,
    metrics: Option<Trace>,
    /// For those who ask by HTTP.
    asked: Option<metrics::Shared>,
    /// That the arbiter has lost its store is complained of once.
    other_store: Once,
    /// That it gives no answer was complained of, and it has given none since.
    unanswered: bool,
}

impl Events {
    /// Events of `who`, and its counters, to the files that `args` name, and to whoever is `asked` for them.
    pub fn open(
        who: &'static str,
        args: &ReplicaArgs,
        asked: Option<&metrics::Port>,
    ) -> Outcome<Self> {
        let open = |what: &str, path: Option<&Path>| {
            path.map(|path| {
                Trace::open(path).during(format_args!("cannot write {what} to {}", path.display()))
            })
            .transpose()
        };
        Ok(Self {
            who,
            events: open("events", args.events.as_deref())?,
            metrics: open("metrics", args.metrics.as_deref())?,
            asked: asked.map(metrics::Port::told),
            other_store: Once::new(),
            unanswered: false,
        })
    }

    fn line(&self, at_ns: u64, event: &str, detail: String) -> Line {
        Line {
            at_ns,
            who: self.who.to_owned(),
            event: event.to_owned(),
            detail,
        }
    }
}

impl replica::Events for Events {
    fn note(&mut self, at_ns: u64, notice: &Notice<'_>) {
        if let Some(asked) = &self.asked {
            metrics::note(asked, notice);
        }
        if let Some((event, detail)) = words(notice) {
            tracing::info!(event, %detail);
            let line = self.line(at_ns, event, detail);
            if let Some(file) = &mut self.events {
                file.add(&line);
            }
        }
        if let Some(complaint) = complaint(notice) {
            let say = || complain!("tandem: {complaint}");
            match notice {
                Notice::ArbiterOtherStore(_) => self.other_store.call_once(say),
                Notice::ArbiterUnreachable(_) if self.unanswered => {}
                _ => say(),
            }
        }
        match notice {
            Notice::ArbiterUnreachable(_) => self.unanswered = true,
            Notice::FlagWon(_) | Notice::FlagLost(..) | Notice::VmEnded(..) => {
                self.unanswered = false;
            }
            _ => {}
        }
    }

    fn wants_counters(&self) -> bool {
        self.metrics.is_some() || self.asked.is_some()
    }

    fn counters(&mut self, at_ns: u64, counters: &Counters) {
        if let Some(asked) = &self.asked {
            metrics::count(asked, counters);
        }
        if self.metrics.is_none() {
            return;
        }
        let counters = serde_json::to_string(counters).expect("counters are plain");
        let line = self.line(at_ns, "metrics", counters);
        if let Some(file) = &mut self.metrics {
            file.add(&line);
        }
    }
}

/// The name of `notice` in an events file, and what is said of it there. `None`: it is not for that file.
fn words(notice: &Notice<'_>) -> Option<(&'static str, String)> {
    let none = String::new;
    Some(match notice {
        Notice::ArbiterStore(store) => ("arbiter_store", store.to_string()),
        Notice::Listening(address) => ("listening", address.to_string()),
        Notice::Begins(view) => ("begins", format!("view {view}")),
        Notice::Primary { vm, backup } => ("primary", format!("{vm} with backup {backup}")),
        Notice::Backup { vm, of } => ("backup", format!("{vm} of {of}")),
        Notice::UnlikeHosts(why) => ("unlike_hosts", (*why).to_owned()),
        Notice::FarApart { .. } => ("far_apart", complaint(notice)?),
        Notice::StopAsked => ("stop_asked", none()),
        Notice::LinkEnd(end) => ("link_end", end.to_string()),
        Notice::Hold => ("hold", "outputs wait for the flag".into()),
        Notice::FlagWon(view) => ("flag_won", format!("view {view}")),
        Notice::FlagLost(view, holder) => ("flag_lost", format!("view {view}, to {holder}")),
        Notice::VmEnded(view, holder) => ("vm_ended", format!("view {view}, says {holder}")),
        Notice::ArbiterUnreachable(error) => ("arbiter_unreachable", error.to_string()),
        Notice::ArbiterOtherStore(error) => ("arbiter_other_store", error.to_string()),
        Notice::Drained { outputs } => ("drained", format!("{outputs} outputs suppressed")),
        Notice::Announced => ("announced", none()),
        Notice::Reemitted(outputs) => ("reemitted", outputs.to_string()),
        Notice::Live { frames } => (
            "live",
            format!("{frames} frames the primary had not logged"),
        ),
        Notice::Solo { view, .. } => ("solo", format!("view {view}")),
        Notice::Joining { backup } => ("joining", (*backup).to_owned()),
        Notice::JoinFailed { backup, why } => ("join_failed", format!("{backup}: {why}")),
        Notice::Protected { view, cost, .. } => (
            "protected",
            format!(
                "view {view}; the guest stood still {} us, {} bytes were sent, {} of memory are not zero",
                cost.still_us, cost.sent_bytes, cost.full_bytes
            ),
        ),
        Notice::Proved(view) => ("proved", format!("view {view}; all memory is the same")),
        Notice::Welcomed(view) => ("welcomed", format!("view {view}")),
        Notice::GuestEnded(status) => ("guest_ended", format!("status {status}")),
        Notice::GuestBroke(why) => ("guest_broke", (*why).to_owned()),
        Notice::Diverged(why) => ("diverged", (*why).to_owned()),
        Notice::Failed(why) => ("failed", (*why).to_owned()),
        Notice::Marked(view) => ("marked", format!("view {view}")),
        Notice::FlagTaken(why) | Notice::NotMarked(why) => ("not_marked", (*why).to_owned()),
        Notice::Halted(why) => ("halted", (*why).to_owned()),
        Notice::Ended => ("ended", none()),
        Notice::CallerTurnedAway { why, so_far } => {
            ("caller_turned_away", format!("{why} ({so_far} so far)"))
        }
        Notice::PrimaryTurnedAway(_) | Notice::Engine(_) | Notice::AlsoFailed(_) => return None,
    })
}

/// What the operator has to know of `notice`, in one line.
fn complaint(notice: &Notice<'_>) -> Option<String> {
    Some(match notice {
        Notice::CallerTurnedAway { why, so_far: 1 } => format!("a caller was turned away: {why}"),
        Notice::CallerTurnedAway { why, so_far } => {
            format!("a caller was turned away, as {so_far} by now: {why}")
        }
        Notice::PrimaryTurnedAway(why) => format!("a primary was turned away: {why}"),
        Notice::Engine(remark) | Notice::UnlikeHosts(remark) => (*remark).to_owned(),
        Notice::FarApart {
            round_trip_ms,
            suspect_ms,
            wished_ms,
        } => format!(
            "the backup takes {round_trip_ms} ms to answer: silence is suspected after {suspect_ms} ms, not \
             after {wished_ms}"
        ),
        Notice::ArbiterOtherStore(error) | Notice::ArbiterUnreachable(error) => error.to_string(),
        Notice::Solo { vm, view, how } => {
            format!("'{vm}' runs alone from now on, view {view}, protected by nobody: {how}")
        }
        Notice::JoinFailed { backup, why } => {
            format!("the machine was not given to a backup at {backup}: {why}")
        }
        Notice::Protected { vm, view, .. } => format!("'{vm}' has a new backup, view {view}"),
        Notice::Diverged(why) | Notice::AlsoFailed(why) => (*why).to_owned(),
        _ => return None,
    })
}
