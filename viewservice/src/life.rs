//! What is known of a host's life: what its supervisor and the processes of its replicas last said.

use crate::machine::MAX_VMS;
use crate::{Address, Failed, Held, HostPing, HostState, Ping, ViewNumber, VmId};
use std::collections::{BTreeMap, BTreeSet};

/// A process of a host that speaks of one machine alone.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Replica {
    /// Where it is.
    address: Address,
    /// Ticks since it was heard of.
    missed_pings: u64,
}

/// A host's supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Supervisor {
    said: HostPing,
    missed_pings: u64,
}

/// What is known of a host's life, and what it last said it runs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Life {
    pub(crate) state: HostState,
    /// Ticks since anything was heard of it.
    pub(crate) missed_pings: u64,
    pub(crate) held: BTreeMap<VmId, Held>,
    /// VMs it waits to become the backup of.
    pub(crate) waits: BTreeSet<VmId>,
    replicas: BTreeMap<VmId, Replica>,
    supervisor: Option<Supervisor>,
}

impl Life {
    /// Of a host that was not heard of yet.
    pub(crate) fn unheard() -> Self {
        Self {
            state: HostState::Unheard,
            missed_pings: 0,
            held: BTreeMap::new(),
            waits: BTreeSet::new(),
            replicas: BTreeMap::new(),
            supervisor: None,
        }
    }

    /// Whether it lives.
    pub(crate) fn is_live(&self) -> bool {
        self.state == HostState::Live
    }

    /// Something was heard; whether that is news.
    fn heard(&mut self) -> bool {
        self.missed_pings = 0;
        std::mem::replace(&mut self.state, HostState::Live) != HostState::Live
    }

    /// One of its processes pinged; whether that the host lives is news.
    pub(crate) fn hear(&mut self, ping: &Ping) -> bool {
        let held = ping.held.iter().map(|held| (held.vm.clone(), held.clone()));
        let waits = ping.waits.iter().cloned();
        match &ping.of {
            None => {
                self.held = held.take(MAX_VMS).collect();
                self.waits = waits.take(MAX_VMS).collect();
                self.replicas.clear();
            }
            Some(vm) => {
                self.held.remove(vm);
                self.waits.remove(vm);
                if self.replicas.contains_key(vm) || self.replicas.len() < MAX_VMS {
                    self.held.extend(held.filter(|(of, _)| of == vm));
                    self.waits.extend(waits.filter(|of| of == vm));
                    let replica = Replica {
                        address: ping.address.clone(),
                        missed_pings: 0,
                    };
                    self.replicas.insert(vm.clone(), replica);
                }
            }
        }
        self.heard()
    }

    /// Its supervisor pinged; whether that the host lives is news.
    pub(crate) fn hear_supervisor(&mut self, ping: &HostPing) -> bool {
        let said = ping.bounded();
        let ended = |vm: &&VmId| !said.runs.contains(vm);
        let before = self.supervisor().map(|before| before.runs.clone());
        let ended = before.iter().flatten().filter(ended);
        for vm in ended.chain(said.failed.iter().map(|failed| &failed.vm)) {
            self.forget(vm);
        }
        self.supervisor = Some(Supervisor {
            said,
            missed_pings: 0,
        });
        self.heard()
    }

    /// Time between two pings passed; whether the host is dead by now and was not before.
    pub(crate) fn tick(&mut self, limit: u64) -> bool {
        self.missed_pings = self.missed_pings.saturating_add(1);
        let mut silent = Vec::new();
        for (vm, replica) in &mut self.replicas {
            replica.missed_pings += 1;
            if replica.missed_pings >= limit {
                silent.push(vm.clone());
            }
        }
        for vm in silent {
            self.forget(&vm);
        }
        if let Some(supervisor) = &mut self.supervisor {
            supervisor.missed_pings += 1;
            if supervisor.missed_pings >= limit {
                self.supervisor = None;
            }
        }
        let dies = self.state != HostState::Dead && self.missed_pings >= limit;
        if dies {
            self.state = HostState::Dead;
            self.held.clear();
            self.waits.clear();
        }
        dies
    }

    /// Nothing more is known of a replica of `vm` here.
    fn forget(&mut self, vm: &VmId) {
        self.held.remove(vm);
        self.waits.remove(vm);
        self.replicas.remove(vm);
    }

    /// What its supervisor last said, if it has one that was heard of lately.
    pub(crate) fn supervisor(&self) -> Option<&HostPing> {
        self.supervisor.as_ref().map(|supervisor| &supervisor.said)
    }

    /// Where its replica of `vm` is, as that said itself.
    pub(crate) fn address_of(&self, vm: &VmId) -> Option<&Address> {
        self.replicas.get(vm).map(|replica| &replica.address)
    }

    /// Whether `ping` says where the host is, and not only where one of its replicas is.
    pub(crate) fn is_placed_by(&self, ping: &Ping) -> bool {
        let Some(of) = &ping.of else { return true };
        self.supervisor.is_none() && self.replicas.keys().all(|vm| vm == of)
    }

    /// Whether it is known that no replica of `vm` is here: its host is dead, or lives, and neither its supervisor nor
    /// anybody else says that there is one.
    pub(crate) fn is_rid_of(&self, vm: &VmId) -> bool {
        let silent = || {
            !self.held.contains_key(vm)
                && !self.waits.contains(vm)
                && !self.replicas.contains_key(vm)
        };
        let none_runs = |said: &HostPing| !said.runs.contains(vm);
        match self.state {
            HostState::Dead => true,
            HostState::Live => self.supervisor().is_some_and(none_runs) && silent(),
            HostState::Unheard => false,
        }
    }

    /// Why the replica of `vm` that was to run here in view `view` does not.
    pub(crate) fn failed(&self, vm: &VmId, view: ViewNumber) -> Option<&str> {
        let failed = &self.supervisor()?.failed;
        let of_it = |failed: &&Failed| failed.vm == *vm && failed.view == view;
        Some(&failed.iter().find(of_it)?.why)
    }
}
