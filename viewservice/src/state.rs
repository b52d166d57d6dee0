//! What the service must not forget.

use crate::{Address, HostId, Machine, Role, ViewNumber, VmId};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Who is primary and backup of one VM.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct View {
    /// Its number; no two views of a VM share one.
    pub number: ViewNumber,
    /// The primary's host.
    pub primary: HostId,
    /// The backup's host; `None` while the primary runs alone.
    pub backup: Option<HostId>,
}

impl View {
    /// Whether `host` is primary or backup.
    #[must_use]
    pub fn has(&self, host: &HostId) -> bool {
        self.primary == *host || self.backup.as_ref() == Some(host)
    }

    /// The host beside `host`, if there are two and `host` is one of them.
    #[must_use]
    pub fn other(&self, host: &HostId) -> Option<&HostId> {
        let backup = self.backup.as_ref()?;
        if self.primary == *host {
            Some(backup)
        } else {
            (backup == host).then_some(&self.primary)
        }
    }

    /// What `host` is to be in this view.
    #[must_use]
    pub fn role_of(&self, host: &HostId) -> Option<Role> {
        if self.backup.as_ref() == Some(host) {
            Some(Role::Backup)
        } else if self.primary != *host {
            None
        } else if self.backup.is_some() {
            Some(Role::Primary)
        } else {
            Some(Role::Solo)
        }
    }
}

impl fmt::Display for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "view {}: primary {}, ", self.number, self.primary)?;
        match &self.backup {
            Some(backup) => write!(f, "backup {backup}"),
            None => f.write_str("no backup"),
        }
    }
}

/// The views of one VM: the last one its primary acknowledged, and at most one after it.
///
/// Invariant: at least one of the two is there. If both are, `acked` has no backup, and `named` is the
/// next view, of the same primary.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct VmViews {
    /// Acknowledged by its primary, or reported by the arbiter's winner.
    pub(crate) acked: Option<View>,
    /// Named by the service; nothing is named after it before its primary acknowledges it.
    pub(crate) named: Option<View>,
    /// Hosts that were named as the backup of `named` before its present one. The primary may have been told of any of
    /// them, and have made it its backup: only its acknowledgement says which.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub(crate) offered: BTreeSet<HostId>,
    /// The operator asked for the VM's end.
    pub(crate) stopping: bool,
    /// Known only from what its replicas say, since the service had lost it. That is over once a view of it
    /// was named here and acknowledged.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) learnt: bool,
    /// What it is made of, if the service placed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) machine: Option<Machine>,
    /// The operator vouched for its start.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) anew: bool,
}

impl VmViews {
    /// Both views, the later one first.
    pub(crate) fn views(&self) -> impl Iterator<Item = &View> {
        self.named.iter().chain(&self.acked)
    }

    /// The latest view named or reported.
    ///
    /// # Panics
    /// If there is none, against the invariant.
    pub(crate) fn latest(&self) -> &View {
        self.views().next().expect("a VM has a view")
    }

    /// The view the VM runs in, as far as known: the acknowledged one, else the one named.
    pub(crate) fn current(&self) -> &View {
        self.acked.as_ref().unwrap_or_else(|| self.latest())
    }

    /// The view that is to be acknowledged next.
    pub(crate) fn next_number(&self) -> ViewNumber {
        match &self.named {
            Some(named) => named.number,
            None => self.latest().number.next(),
        }
    }

    /// The hosts in them.
    pub(crate) fn hosts(&self) -> BTreeSet<&HostId> {
        let primaries = self.views().map(|view| &view.primary);
        let backups = self.views().filter_map(|view| view.backup.as_ref());
        primaries.chain(backups).collect()
    }

    /// Takes `view` for acknowledged, or for what the arbiter's winner reported; nothing is named after it.
    pub(crate) fn acknowledge(&mut self, view: View) {
        self.acked = Some(view);
        self.named = None;
        self.offered.clear();
    }

    /// The host that loses its replica if `host` runs alone in view `number`; none if that cannot be.
    pub(crate) fn lost_to(&self, host: &HostId, number: ViewNumber) -> Option<&HostId> {
        let mut before = self.views().filter(|view| view.number.next() == number);
        let of_pair = before.find_map(|view| view.other(host));
        of_pair.or_else(|| {
            let named = self.named.as_ref()?;
            let was_offered = named.number.next() == number && self.offered.contains(host);
            was_offered.then_some(&named.primary)
        })
    }

    /// Whether `host` is in any of the two.
    pub(crate) fn has(&self, host: &HostId) -> bool {
        self.views().any(|view| view.has(host))
    }
}

/// What the service must not forget: hosts and views. Who is alive, and how far behind a backup is, it is
/// told again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// A number no lower than any view of a VM that was removed. A new VM begins after it, so that a flag set
    /// for an earlier VM of the same name decides nothing now.
    pub(crate) floor: ViewNumber,
    /// Hosts that ever pinged.
    pub(crate) hosts: BTreeMap<HostId, Address>,
    /// VMs.
    pub(crate) vms: BTreeMap<VmId, VmViews>,
    /// Hosts that are to have no replica.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub(crate) drained: BTreeSet<HostId>,
}

impl State {
    /// Checks what no change ever breaks; the error says which VM and what.
    pub(crate) fn check(&self) -> Result<(), String> {
        for (vm, views) in &self.vms {
            let sound = match (&views.acked, &views.named) {
                (None, None) => false,
                (Some(acked), Some(named)) => {
                    named.number == acked.number.next()
                        && named.primary == acked.primary
                        && acked.backup.is_none()
                }
                _ => true,
            };
            if !sound {
                let views: Vec<_> = views.views().map(ToString::to_string).collect();
                return Err(format!("VM {vm} cannot be in [{}]", views.join("; ")));
            }
            if let Some(view) = views
                .views()
                .find(|view| view.backup.as_ref() == Some(&view.primary))
            {
                return Err(format!("VM {vm}, {view}: one host is both"));
            }
        }
        Ok(())
    }
}
