//! What the page for a browser is told: the status each second, the lag of the last minutes, and what changed.
//!
//! ```text
//!   GET /v1/history   {"at_ms":N, "lag":{"web":[[N, MS], ...]}, "changes":[{"at_ms":N, "vm":"web", "text":..}, ...]}
//!   GET /v1/watch     server-sent events, one a second: {"at_ms":N, "vms":[..], "hosts":[..], "changes":[..]}
//! ```
//!
//! All of it is in memory, and bounded: a service that is started anew has seen nothing yet.

use crate::{Change, Status, VmId};
use serde::Serialize;
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How often lag is looked at, and those who watch are told.
pub(crate) const EVERY: Duration = Duration::from_secs(1);
/// Looks at lag that are kept of each machine: five minutes.
const SAMPLES: usize = 300;
/// Changes that are kept.
const CHANGES: usize = 300;
/// Of these, what goes with each event: whoever missed some has them with a later one.
const RECENT: usize = 20;

/// Something that changed.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Changed {
    /// When, in milliseconds since 1970, by this host's clock.
    at_ms: u64,
    /// Its number: two that follow each other differ by one.
    number: u64,
    /// Of which machine, if it is of one.
    #[serde(skip_serializing_if = "Option::is_none")]
    vm: Option<VmId>,
    /// What, in words.
    text: String,
}

/// What was seen.
#[derive(Debug, Default)]
pub(crate) struct History {
    lag: BTreeMap<VmId, VecDeque<(u64, u64)>>,
    changes: VecDeque<Changed>,
    number: u64,
}

/// All of it.
#[derive(Serialize)]
struct All<'a> {
    at_ms: u64,
    lag: &'a BTreeMap<VmId, VecDeque<(u64, u64)>>,
    changes: &'a VecDeque<Changed>,
}

/// An event.
#[derive(Serialize)]
struct Now<'a> {
    at_ms: u64,
    #[serde(flatten)]
    status: &'a Status,
    changes: Vec<&'a Changed>,
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}

impl History {
    /// Takes what changed.
    pub(crate) fn changed(&mut self, change: &Change) {
        let vm = match change {
            Change::Named(vm, _)
            | Change::Acked(vm, _)
            | Change::Solo(vm, _)
            | Change::Learnt(vm, _)
            | Change::Stopping(vm)
            | Change::Removed(vm) => Some(vm.clone()),
            // Whoever makes claims can make many.
            Change::ClaimIgnored(..) => return,
            Change::HostUp(_)
            | Change::HostAt(..)
            | Change::HostSuspected(_)
            | Change::HostDead(_)
            | Change::HostForgotten(_)
            | Change::Drained(..) => None,
        };
        self.number += 1;
        self.changes.push_back(Changed {
            at_ms: now_ms(),
            number: self.number,
            vm,
            text: change.to_string(),
        });
        while self.changes.len() > CHANGES {
            self.changes.pop_front();
        }
    }

    /// Looks at the lag of each machine there is; what was seen of others is forgotten.
    pub(crate) fn look(&mut self, status: &Status) {
        let at_ms = now_ms();
        let there = |vm: &VmId| status.vms.iter().any(|status| status.name == *vm);
        self.lag.retain(|vm, _| there(vm));
        for vm in &status.vms {
            let samples = self.lag.entry(vm.name.clone()).or_default();
            if let Some(lag_ms) = vm.lag_ms {
                samples.push_back((at_ms, lag_ms));
            }
            while samples.len() > SAMPLES {
                samples.pop_front();
            }
        }
    }

    /// All of it, as JSON.
    pub(crate) fn all(&self) -> String {
        let Self { lag, changes, .. } = self;
        let at_ms = now_ms();
        let all = All {
            at_ms,
            lag,
            changes,
        };
        serde_json::to_string(&all).expect("it is plain JSON")
    }

    /// What is so now, as an event.
    pub(crate) fn event(&self, status: &Status) -> String {
        let recent = self.changes.len().saturating_sub(RECENT);
        let now = Now {
            at_ms: now_ms(),
            status,
            changes: self.changes.iter().skip(recent).collect(),
        };
        let json = serde_json::to_string(&now).expect("it is plain JSON");
        format!("data: {json}\n\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::HostId;

    #[test]
    fn what_is_kept_is_bounded() {
        let mut history = History::default();
        let vm = VmId::new("web").unwrap();
        for _ in 0..1000 {
            history.changed(&Change::Removed(vm.clone()));
            let claim = crate::Rejected::NoVm(vm.clone());
            history.changed(&Change::ClaimIgnored(HostId::new("a").unwrap(), claim));
        }
        assert_eq!(history.changes.len(), CHANGES);
        assert_eq!(history.number, 1000);
        history.lag.insert(vm, VecDeque::from([(1, 2)]));
        let none = Status {
            vms: Vec::new(),
            hosts: Vec::new(),
        };
        history.look(&none);
        assert!(history.lag.is_empty(), "the machine is no more");
        let event = history.event(&none);
        assert!(event.starts_with("data: {\"at_ms\":") && event.ends_with("}\n\n"));
        assert_eq!(event.matches("web: removed").count(), RECENT);
    }
}
