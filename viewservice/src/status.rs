//! What `tandem status` shows.

use crate::{Address, HostId, Role, Room, View, ViewNumber, Views, VmId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// All VMs and hosts, by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// VMs.
    pub vms: Vec<VmStatus>,
    /// Hosts.
    pub hosts: Vec<HostStatus>,
}

/// One VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmStatus {
    /// Its name.
    pub name: VmId,
    /// What the primary's host last said its replica is in this view. `None` if the host has not said, or is
    /// not live.
    pub role: Option<Role>,
    /// The view it runs in: the last one acknowledged, else the first one named.
    pub view: ViewNumber,
    /// The primary's host.
    pub primary: HostId,
    /// The backup's host.
    pub backup: Option<HostId>,
    /// How far the backup's execution is behind, in milliseconds, as the backup last said itself; if it has
    /// not said, as the primary did.
    pub lag_ms: Option<u64>,
    /// What each live host last said its replica is.
    pub roles: BTreeMap<HostId, Role>,
    /// A view named that its primary has not acknowledged yet.
    pub named: Option<View>,
    /// The operator asked for its end.
    pub stopping: bool,
    /// What it runs, if the service placed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<String>,
    /// Why a replica of it does not run that should, or why it is given none, in one line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// What is known of a host's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HostState {
    /// It pings.
    Live,
    /// It missed too many pings.
    Dead,
    /// Not heard of since the service started, or since it lost a replica; not yet long enough to be dead.
    Unheard,
}

/// One host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostStatus {
    /// Its name.
    pub name: HostId,
    /// Where its daemon listens.
    pub address: Address,
    /// Whether it is alive.
    pub state: HostState,
    /// Pings it missed since it was heard of, or since the service started.
    pub missed_pings: u64,
    /// Alive, and in no VM's view.
    pub spare: bool,
    /// What it has, if a supervisor runs there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub room: Option<Room>,
    /// How much of its memory is left, in MiB, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_mib: Option<u64>,
    /// It is to have no replica.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub drained: bool,
}

impl Views {
    /// All VMs and hosts.
    #[must_use]
    pub fn status(&self) -> Status {
        let vms = self.state.vms.iter().map(|(vm, views)| {
            let view = views.current();
            let held = |host: &HostId| self.lives.get(host).and_then(|life| life.held.get(vm));
            let primary = held(&view.primary).filter(|held| held.view == view.number);
            let backup = view.backup.as_ref().and_then(held);
            let backup = backup.filter(|held| held.view == view.number);
            VmStatus {
                name: vm.clone(),
                role: primary.map(|held| held.role),
                view: view.number,
                primary: view.primary.clone(),
                backup: view.backup.clone(),
                lag_ms: [backup, primary].into_iter().find_map(|held| held?.lag_ms),
                roles: self
                    .lives
                    .keys()
                    .filter_map(|host| Some((host.clone(), held(host)?.role)))
                    .collect(),
                named: views.named.clone(),
                stopping: views.stopping,
                guest: views.machine.as_ref().map(|machine| machine.guest.clone()),
                trouble: self.trouble(vm, views),
            }
        });
        let hosts = self.state.hosts.iter().filter_map(|(host, address)| {
            let life = self.lives.get(host)?;
            Some(HostStatus {
                name: host.clone(),
                address: address.clone(),
                state: life.state,
                missed_pings: life.missed_pings,
                spare: life.state == HostState::Live
                    && !self.state.drained.contains(host)
                    && !self.state.vms.values().any(|vm| vm.has(host)),
                room: life.supervisor().map(|said| said.room.clone()),
                left_mib: self.left_mib(host),
                drained: self.state.drained.contains(host),
            })
        });
        Status {
            vms: vms.collect(),
            hosts: hosts.collect(),
        }
    }
}
