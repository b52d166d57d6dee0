//! The view machine: events in, changes out; no socket, no clock, no file.
//!
//! ```text
//!                 register              primary pings with it
//!        nothing ──────────▶ named n ──────────────────────────▶ acked n ◀─────────┐
//!                               │                                   │              │ primary pings
//!                               │ a member went solo in n+1         │ likewise     │ with it
//!                               ▼                                   ▼              │
//!                            acked n+1, no backup ──a spare lives──▶ acked n+1, named n+2
//! ```
//!
//! Rules it keeps:
//! - Nothing is named after a view that its primary has not acknowledged.
//! - The service names a view only to give a VM without a backup one. It never makes another host
//!   primary: who goes live is for the arbiter to say. A member of view n that reports itself solo in n+1 is
//!   the arbiter's winner, and is believed.
//! - View numbers of a VM only grow, and no view has two primaries (invariant 3), not even where a VM's
//!   name is used again.
//! - A VM may be unknown because the service lost its state. It is learnt from its replicas: the word of the
//!   primary, or of one that is solo, names its view, and the backup joins that view. What hosts say can
//!   raise a view so learnt. It can never lower a view that is known, not even that of a VM that was removed.
//!   Nor can it displace a primary that still says it holds the view that is known. So a replica that slept,
//!   or a stranger, achieves nothing where the true replicas report.
//! - A host may say that it waits to become a VM's backup. Of the hosts that could be named, one that waits
//!   goes before one that does not. A backup that was named after a view without one, and is not acknowledged
//!   yet, is replaced by a host that waits, in the same view under the same primary, if it is dead itself, or
//!   lives and neither waits nor says that it is the VM's backup in that view. So no ping of another host
//!   displaces one that waits and lives.
//! - Which of several hosts that were named in turn became the backup only the primary knows: it says so with
//!   the ping that acknowledges the view, and is believed. If it dies before that ping, and one of them reports
//!   itself solo in the next view, that one was the backup.
//! - A host that lost a replica is no spare before it pings again. Nor is a host that was not heard of since
//!   the service started.
//! - Time is counted in ticks, so a pause of the service itself kills no host. Ticks move only the liveness
//!   of hosts: a host that is silent loses no view.

use crate::life::Life;
use crate::state::{State, VmViews};
use crate::status::HostState;
use crate::{
    Address, Assignment, Held, HostId, HostPing, Orders, Ping, Register, Registered, Report, Role,
    Up, View, ViewNumber, VmId,
};
use std::collections::BTreeMap;
use std::fmt;

/// Most VMs at once, and most replicas in one ping.
pub(crate) const MAX_VMS: usize = 1024;

/// Most VMs known from their replicas' word alone: strangers leave room for others.
const MAX_LEARNT: usize = MAX_VMS / 2;

/// The highest view that is believed of a VM that is not known. No VM gets there, and above it there is room
/// for all views that follow.
const MAX_LEARNT_VIEW: ViewNumber = ViewNumber(1 << 32);

/// Most hosts known at once.
pub(crate) const MAX_HOSTS: usize = 256;

/// How hosts are watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Settings {
    /// How often hosts are to ping, in milliseconds.
    pub ping_interval_ms: u64,
    /// After how many missed pings a host is dead.
    pub missed_pings: u64,
}

impl Default for Settings {
    /// Twice a second; dead after two and a half seconds. No failover waits for it.
    fn default() -> Self {
        Self {
            ping_interval_ms: 500,
            missed_pings: 5,
        }
    }
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ViewEvent {
    /// A host pinged.
    Ping(Ping),
    /// A host reports.
    Report(Report),
    /// A new VM is asked for.
    Register(Register),
    /// A VM's end is asked for.
    Down(VmId),
    /// A supervisor pinged.
    Host(HostPing),
    /// A new VM is asked for that the service places.
    Up(Up),
    /// A host is to have no replica, or may have some again.
    Drain(HostId, bool),
    /// A VM is to be left to its backup.
    Failover(VmId),
    /// The time between two pings passed.
    Tick,
}

/// What changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A host pinged that was not live.
    HostUp(HostId),
    /// A host is at a new address, or new altogether.
    HostAt(HostId, Address),
    /// A host lost a replica, and is to ping before it is given another.
    HostSuspected(HostId),
    /// A host missed too many pings.
    HostDead(HostId),
    /// A dead host that was in no view was forgotten to make room for another.
    HostForgotten(HostId),
    /// A view was named, or named with another backup; its primary is to acknowledge it.
    Named(VmId, View),
    /// The primary acknowledged the view named.
    Acked(VmId, ViewNumber),
    /// The arbiter's winner runs the VM alone.
    Solo(VmId, View),
    /// The VM was not known, or in an earlier view, or without its backup; its replicas say this.
    Learnt(VmId, View),
    /// The host is to have no replica, or may have some again.
    Drained(HostId, bool),
    /// The VM's end was asked for; its hosts are told.
    Stopping(VmId),
    /// The VM ended and is forgotten.
    Removed(VmId),
    /// A host claims to run a VM alone in a view that cannot be; the claim was ignored.
    ClaimIgnored(HostId, Rejected),
}

impl Change {
    /// Whether it must be durable before anyone is told.
    #[must_use]
    pub fn is_durable(&self) -> bool {
        !matches!(
            self,
            Self::HostUp(_) | Self::HostSuspected(_) | Self::HostDead(_) | Self::ClaimIgnored(..)
        )
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HostUp(host) => write!(f, "host {host} is up"),
            Self::HostAt(host, address) => write!(f, "host {host} is at {address}"),
            Self::HostSuspected(host) => write!(f, "host {host} is suspected"),
            Self::HostDead(host) => write!(f, "host {host} is dead"),
            Self::HostForgotten(host) => write!(f, "host {host} is forgotten"),
            Self::Named(vm, view) => write!(f, "{vm}: named {view}"),
            Self::Acked(vm, number) => write!(f, "{vm}: view {number} acknowledged"),
            Self::Solo(vm, view) => write!(f, "{vm}: went solo in {view}"),
            Self::Learnt(vm, view) => write!(f, "{vm}: its replicas say {view}"),
            Self::Drained(host, true) => write!(f, "host {host} is drained"),
            Self::Drained(host, false) => write!(f, "host {host} is drained no more"),
            Self::Stopping(vm) => write!(f, "{vm}: is to stop"),
            Self::Removed(vm) => write!(f, "{vm}: removed"),
            Self::ClaimIgnored(host, why) => write!(f, "claim of host {host} ignored: {why}"),
        }
    }
}

/// Why an event was not taken; it changed nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// No such VM.
    #[error("there is no VM {0}")]
    NoVm(VmId),
    /// The VM is there already.
    #[error("VM {0} is there already, {1}; take it down first, or choose another name")]
    VmExists(VmId, View),
    /// No room for another VM.
    #[error("there are {MAX_VMS} VMs; take one down first")]
    TooManyVms,
    /// No room for another host.
    #[error("there are {MAX_HOSTS} hosts, and no dead one without a VM to forget")]
    TooManyHosts,
    /// The host asked for does not ping.
    #[error("host {0} is not live; start its daemon, or choose another host")]
    HostNotLive(HostId),
    /// No host pings.
    #[error("no host is live; start a host's daemon")]
    NoHost,
    /// Another supervisor of that name is alive.
    #[error(
        "host {0} is another supervisor's, at {1}: give this one another --name, or end that one (it is taken for \
         dead 2.5 s later)"
    )]
    HostTaken(HostId, Address),
    /// No such host.
    #[error("there is no host {0}")]
    NoSuchHost(HostId),
    /// What the VM is made of takes too many words.
    #[error("what VM {0} is made of has more than {max} bytes", max = crate::fleet::MACHINE_MAX)]
    TooLarge(VmId),
    /// No two hosts could have the VM.
    #[error("no two hosts have room for {0}; {1}")]
    NoRoom(VmId, String),
    /// The VM has no backup that it could be left to.
    #[error("VM {0} has no backup that it could be left to: {1}")]
    NoPair(VmId, View),
    /// Primary and backup asked for are one host.
    #[error("host {0} cannot be both primary and backup")]
    OneHost(HostId),
    /// The view told of does not follow from the ones known.
    #[error("host {host} cannot be in view {view} of VM {vm}, which is in {known}")]
    NotNext {
        /// Who told.
        host: HostId,
        /// Of which VM.
        vm: VmId,
        /// Of which view.
        view: ViewNumber,
        /// The latest view known.
        known: View,
    },
}

/// Hosts, VMs and their views. See the module's head for the rules.
///
/// The caller sends [`ViewEvent::Tick`] every [`Settings::ping_interval_ms`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Views {
    settings: Settings,
    pub(crate) state: State,
    pub(crate) lives: BTreeMap<HostId, Life>,
    /// VMs that are to be left to their backups, and for how many ticks that wish holds yet.
    pub(crate) leaving: BTreeMap<VmId, u64>,
}

impl Views {
    /// Goes on from `state`. Every host known has the full time to be heard of.
    #[must_use]
    pub fn new(state: State, settings: Settings) -> Self {
        let lives = state
            .hosts
            .keys()
            .map(|host| (host.clone(), Life::unheard()));
        Self {
            settings,
            lives: lives.collect(),
            leaving: BTreeMap::new(),
            state,
        }
    }

    /// What must be durable before the changes of [`Views::handle`] are told.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// How hosts are watched.
    #[must_use]
    pub fn settings(&self) -> Settings {
        self.settings
    }

    /// Takes an event; says what changed, in order.
    ///
    /// # Errors
    /// [`Rejected`]: nothing changed.
    pub fn handle(&mut self, event: &ViewEvent) -> Result<Vec<Change>, Rejected> {
        let mut changes = Vec::new();
        match event {
            ViewEvent::Ping(ping) => self.ping(ping, &mut changes)?,
            ViewEvent::Report(Report::Solo { host, vm, view }) => {
                self.claim(host, vm, *view, Role::Solo, &mut changes)?;
            }
            ViewEvent::Report(Report::Ended { host, vm, view }) => {
                self.ended(host, vm, *view, &mut changes)?;
            }
            ViewEvent::Register(wish) => self.register(wish, &mut changes)?,
            ViewEvent::Down(vm) => self.down(vm, &mut changes)?,
            ViewEvent::Host(ping) => self.host_ping(ping, &mut changes)?,
            ViewEvent::Up(wish) => self.up(wish, &mut changes)?,
            ViewEvent::Drain(host, drained) => self.drain(host, *drained, &mut changes)?,
            ViewEvent::Failover(vm) => self.failover(vm)?,
            ViewEvent::Tick => self.tick(&mut changes),
        }
        self.remove_stopped(&mut changes);
        self.name_backups(&mut changes);
        if changes.iter().any(Change::is_durable) {
            assert_eq!(self.state.check(), Ok(()));
        }
        Ok(changes)
    }

    fn ping(&mut self, ping: &Ping, changes: &mut Vec<Change>) -> Result<(), Rejected> {
        let host = &ping.host;
        let life = self.lives.get(host);
        if life.is_none_or(|life| life.is_placed_by(ping)) {
            self.host_is_at(host, &ping.address, changes)?;
        }
        let life = self.lives.entry(host.clone());
        if life.or_insert_with(Life::unheard).hear(ping) {
            changes.push(Change::HostUp(host.clone()));
        }
        let of = |held: &&Held| ping.of.as_ref().is_none_or(|of| held.vm == *of);
        let held = ping.held.iter().filter(of).take(MAX_VMS);
        for held in held {
            self.backup_is(host, held, changes);
            if let Err(why) = self.claim(host, &held.vm, held.view, held.role, changes) {
                changes.push(Change::ClaimIgnored(host.clone(), why));
            }
        }
        Ok(())
    }

    /// `host` says where it is.
    pub(crate) fn host_is_at(
        &mut self,
        host: &HostId,
        address: &Address,
        changes: &mut Vec<Change>,
    ) -> Result<(), Rejected> {
        if self.state.hosts.get(host) == Some(address) {
            return Ok(());
        }
        if !self.state.hosts.contains_key(host) {
            self.make_room(changes)?;
        }
        self.state.hosts.insert(host.clone(), address.clone());
        changes.push(Change::HostAt(host.clone(), address.clone()));
        Ok(())
    }

    /// `host` is about to acknowledge the view named, and says who became its backup.
    fn backup_is(&mut self, host: &HostId, held: &Held, changes: &mut Vec<Change>) {
        let Some(backup) = &held.backup else {
            return;
        };
        if held.role != Role::Primary || backup == host || !self.state.hosts.contains_key(backup) {
            return;
        }
        let views = self.state.vms.get_mut(&held.vm);
        let views = views.filter(|views| views.acked.is_some());
        let Some(named) = views.and_then(|views| views.named.as_mut()) else {
            return;
        };
        let is_it = named.number == held.view && named.primary == *host;
        if is_it && named.backup.as_ref() != Some(backup) {
            named.backup = Some(backup.clone());
            changes.push(Change::Named(held.vm.clone(), named.clone()));
        }
    }

    /// Forgets a dead host without a VM if there are as many hosts as there may be.
    fn make_room(&mut self, changes: &mut Vec<Change>) -> Result<(), Rejected> {
        if self.state.hosts.len() < MAX_HOSTS {
            return Ok(());
        }
        let idle = |host: &HostId| !self.state.vms.values().any(|vm| vm.has(host));
        let (host, _) = self
            .lives
            .iter()
            .find(|(host, life)| life.state == HostState::Dead && idle(host))
            .ok_or(Rejected::TooManyHosts)?;
        let host = host.clone();
        self.lives.remove(&host);
        self.state.hosts.remove(&host);
        self.state.drained.remove(&host);
        changes.push(Change::HostForgotten(host));
        Ok(())
    }

    /// `host` says its replica of `vm` is in view `view`, as `role`.
    fn claim(
        &mut self,
        host: &HostId,
        vm: &VmId,
        view: ViewNumber,
        role: Role,
        changes: &mut Vec<Change>,
    ) -> Result<(), Rejected> {
        let Some(views) = self.state.vms.get(vm) else {
            return self.learn(host, vm, view, role, changes);
        };
        if views.learnt && self.may_learn(host, vm, view, role) {
            return self.learn(host, vm, view, role, changes);
        }
        let views = self.state.vms.get_mut(vm).expect("it was there");
        if role == Role::Backup {
            return Ok(());
        }
        let is_named = |named: &View| named.number == view && named.primary == *host;
        if let Some(named) = views.named.clone().filter(is_named) {
            views.acknowledge(named);
            views.learnt = false;
            changes.push(Change::Acked(vm.clone(), view));
            return Ok(());
        }
        if views.acked.as_ref().is_some_and(is_named) || role == Role::Primary {
            return Ok(());
        }
        let Some(lost) = views.lost_to(host, view).cloned() else {
            return Err(Rejected::NotNext {
                host: host.clone(),
                vm: vm.clone(),
                view,
                known: views.latest().clone(),
            });
        };
        // What is named comes after a view without backup, which nobody goes solo from.
        assert!(view > views.latest().number);
        let solo = View {
            number: view,
            primary: host.clone(),
            backup: None,
        };
        views.acknowledge(solo.clone());
        self.leaving.remove(vm);
        // One that a supervisor looks after and that was told to stop is no loss.
        let ends = views.stopping && views.machine.is_some();
        changes.push(Change::Solo(vm.clone(), solo));
        if !ends {
            self.suspect(&lost, vm, changes);
        }
        Ok(())
    }

    /// What `host` last said of its replica of `vm`.
    pub(crate) fn said(&self, host: &HostId, vm: &VmId) -> Option<&Held> {
        self.lives.get(host)?.held.get(vm)
    }

    /// Whether the word of `host` changes what was learnt of `vm`, beyond what follows by the rules.
    fn may_learn(&self, host: &HostId, vm: &VmId, view: ViewNumber, role: Role) -> bool {
        let views = &self.state.vms[vm];
        let latest = views.latest();
        let primary = self.said(&latest.primary, vm);
        let primary = primary.filter(|held| held.view == latest.number);
        if role == Role::Backup {
            // The primary says that it has one, and this is the first to say that it is that.
            return view == latest.number
                && latest.backup.is_none()
                && latest.primary != *host
                && primary.is_some_and(|held| held.role == Role::Primary);
        }
        let follows = latest.number.next() == view && latest.other(host).is_some();
        let displaces = latest.primary != *host && primary.is_some();
        view > latest.number && !follows && !displaces
    }

    /// Takes the word of `host` for what view `vm` is in.
    fn learn(
        &mut self,
        host: &HostId,
        vm: &VmId,
        number: ViewNumber,
        role: Role,
        changes: &mut Vec<Change>,
    ) -> Result<(), Rejected> {
        let known = self.state.vms.get(vm);
        let learnt = self.state.vms.values().filter(|views| views.learnt).count();
        let is_full = self.state.vms.len() >= MAX_VMS || learnt >= MAX_LEARNT;
        // A VM that was removed is over, whatever its last replica still says.
        let is_over = number <= self.state.floor;
        if known.is_none() && (role == Role::Backup || is_over || is_full)
            || number > MAX_LEARNT_VIEW
            || !self.state.hosts.contains_key(host)
        {
            return Err(Rejected::NoVm(vm.clone()));
        }
        let view = match (role, known) {
            (Role::Backup, Some(views)) => View {
                backup: Some(host.clone()),
                ..views.latest().clone()
            },
            _ => View {
                number,
                primary: host.clone(),
                backup: (role == Role::Primary)
                    .then(|| self.backup_in(vm, number, host))
                    .flatten(),
            },
        };
        let views = self.state.vms.entry(vm.clone()).or_default();
        views.learnt = true;
        views.acknowledge(view.clone());
        changes.push(Change::Learnt(vm.clone(), view));
        Ok(())
    }

    /// The host that says it is the backup in view `number` of `vm`, whose primary is at `primary`.
    fn backup_in(&self, vm: &VmId, number: ViewNumber, primary: &HostId) -> Option<HostId> {
        let is_backup = |host: &&HostId| {
            let held = self.said(host, vm);
            *host != primary
                && held.is_some_and(|held| (held.view, held.role) == (number, Role::Backup))
        };
        self.lives.keys().find(is_backup).cloned()
    }

    /// The host `lost` lost its replica of `vm`. Most likely the host itself has died, and its silence could
    /// not show that yet. So it is no spare until it pings again.
    fn suspect(&mut self, lost: &HostId, vm: &VmId, changes: &mut Vec<Change>) {
        if let Some(life) = self.lives.get_mut(lost) {
            life.held.remove(vm);
            if life.state == HostState::Live {
                life.state = HostState::Unheard;
                changes.push(Change::HostSuspected(lost.clone()));
            }
        }
    }

    fn ended(
        &mut self,
        host: &HostId,
        vm: &VmId,
        view: ViewNumber,
        changes: &mut Vec<Change>,
    ) -> Result<(), Rejected> {
        let Some(views) = self.state.vms.get(vm) else {
            // Both replicas report it.
            return Ok(());
        };
        if !views.views().any(|v| v.number == view && v.has(host)) {
            self.claim(host, vm, view, Role::Solo, changes)?;
        }
        if self.state.vms[vm].machine.is_none() {
            self.remove(vm, changes);
            return Ok(());
        }
        // Its processes are looked after: it is over once the last of them is.
        self.down(vm, changes)
    }

    fn register(&mut self, wish: &Register, changes: &mut Vec<Change>) -> Result<(), Rejected> {
        if let Some(views) = self.state.vms.get(&wish.vm) {
            let view = views.current().clone();
            return Err(Rejected::VmExists(wish.vm.clone(), view));
        }
        if self.state.vms.len() >= MAX_VMS {
            return Err(Rejected::TooManyVms);
        }
        for host in wish.primary.iter().chain(&wish.backup) {
            if !self.is_live(host) {
                return Err(Rejected::HostNotLive(host.clone()));
            }
        }
        if wish.primary.is_some() && wish.primary == wish.backup {
            let host = wish.primary.iter().chain(&wish.backup).next();
            return Err(Rejected::OneHost(host.expect("one is some").clone()));
        }
        let primary = match &wish.primary {
            Some(host) => host.clone(),
            None => self
                .least_loaded(wish.backup.as_ref(), |_| true)
                .ok_or(Rejected::NoHost)?,
        };
        let backup = match &wish.backup {
            Some(host) => Some(host.clone()),
            None => self.least_loaded(Some(&primary), |_| true),
        };
        let view = View {
            number: self.state.floor.next(),
            primary,
            backup,
        };
        let views = VmViews {
            named: Some(view.clone()),
            ..VmViews::default()
        };
        self.state.vms.insert(wish.vm.clone(), views);
        changes.push(Change::Named(wish.vm.clone(), view));
        Ok(())
    }

    fn down(&mut self, vm: &VmId, changes: &mut Vec<Change>) -> Result<(), Rejected> {
        let views = self.state.vms.get_mut(vm);
        let views = views.ok_or_else(|| Rejected::NoVm(vm.clone()))?;
        if !views.stopping {
            views.stopping = true;
            changes.push(Change::Stopping(vm.clone()));
        }
        Ok(())
    }

    fn tick(&mut self, changes: &mut Vec<Change>) {
        for (host, life) in &mut self.lives {
            if life.tick(self.settings.missed_pings) {
                changes.push(Change::HostDead(host.clone()));
            }
        }
        self.leaving.retain(|_, ticks| {
            *ticks = ticks.saturating_sub(1);
            *ticks > 0
        });
    }

    /// Removes VMs that are to stop and have no host left that could say they did, or whose hosts have no replica.
    fn remove_stopped(&mut self, changes: &mut Vec<Change>) {
        let gone = |vm: &VmId, views: &VmViews| {
            let is_rid = |host: &HostId| self.lives.get(host).is_none_or(|life| life.is_rid_of(vm));
            views.stopping && views.hosts().into_iter().all(is_rid)
        };
        let vms = self.state.vms.iter().filter(|(vm, views)| gone(vm, views));
        for vm in vms.map(|(vm, _)| vm.clone()).collect::<Vec<_>>() {
            self.remove(&vm, changes);
        }
    }

    fn remove(&mut self, vm: &VmId, changes: &mut Vec<Change>) {
        if let Some(views) = self.state.vms.remove(vm) {
            // The latest view's flag may have been won without our having heard: skip its view too.
            let taken = views.latest().number.next();
            self.state.floor = self.state.floor.max(taken);
            self.leaving.remove(vm);
            changes.push(Change::Removed(vm.clone()));
        }
    }

    /// Names the next view of every VM that has no backup and could have one. Where that is named already its
    /// backup is replaced, if it is not to be had and another host waits.
    fn name_backups(&mut self, changes: &mut Vec<Change>) {
        let alone = |vm: &VmViews| {
            let acked = vm.acked.as_ref().filter(|view| view.backup.is_none())?;
            (!vm.stopping).then(|| acked.clone())
        };
        let all = self.state.vms.iter();
        let alone: Vec<_> = all
            .filter_map(|(vm, views)| Some((vm.clone(), alone(views)?)))
            .collect();
        for (vm, acked) in alone {
            if !self.is_live(&acked.primary) || self.may_have_backup(&vm, &acked) {
                continue;
            }
            let views = &self.state.vms[&vm];
            let named = views.named.as_ref();
            let is_lost = |named: &View| views.machine.is_some() && self.is_lost(&vm, named);
            if named.is_some_and(|named| !self.is_not_to_be_had(&vm, named) && !is_lost(named)) {
                continue;
            }
            let waits = |host: &HostId| {
                self.waits(host, &vm) && self.could_be_backup(host, &vm, &acked.primary)
            };
            let other = |host: &HostId| match (&views.machine, named) {
                // What it is made of is not known here: whoever is named has to be started by hand.
                (None, None) => self.is_at_hand(host),
                (None, Some(_)) => false,
                (Some(_), named) => {
                    named.is_none_or(is_lost) && self.could_be_backup(host, &vm, &acked.primary)
                }
            };
            let spare = self
                .least_loaded(Some(&acked.primary), waits)
                .or_else(|| self.least_loaded(Some(&acked.primary), other));
            let Some(spare) = spare else {
                continue;
            };
            let view = View {
                number: acked.number.next(),
                primary: acked.primary,
                backup: Some(spare),
            };
            let views = self.state.vms.get_mut(&vm).expect("it was there");
            let before = views.named.replace(view.clone());
            views.offered.extend(before.and_then(|named| named.backup));
            changes.push(Change::Named(vm, view));
        }
    }

    /// Whether the backup of `named`, a view of `vm` that is not acknowledged, cannot become it: it is dead, or
    /// neither waits nor is it already. One that was not heard of yet is given the time to be.
    fn is_not_to_be_had(&self, vm: &VmId, named: &View) -> bool {
        let life = named.backup.as_ref().and_then(|host| self.lives.get(host));
        life.is_none_or(|life| match life.state {
            HostState::Dead => true,
            HostState::Unheard => false,
            HostState::Live => {
                let is_it = |held: &Held| (held.view, held.role) == (named.number, Role::Backup);
                !life.waits.contains(vm) && !life.held.get(vm).is_some_and(is_it)
            }
        })
    }

    /// Whether `host` lives and waits to become the backup of `vm`.
    pub(crate) fn waits(&self, host: &HostId, vm: &VmId) -> bool {
        let life = self.lives.get(host);
        life.is_some_and(|life| life.state == HostState::Live && life.waits.contains(vm))
    }

    /// Whether `vm`, learnt to be in `view` without a backup, may have one that was not heard of yet.
    fn may_have_backup(&self, vm: &VmId, view: &View) -> bool {
        let solo = |held: &Held| (held.view, held.role) == (view.number, Role::Solo);
        self.state.vms[vm].learnt && !self.said(&view.primary, vm).is_some_and(solo)
    }

    pub(crate) fn is_live(&self, host: &HostId) -> bool {
        self.lives.get(host).is_some_and(Life::is_live)
    }

    /// Whether `host` may be named for what is started there by hand.
    fn is_at_hand(&self, host: &HostId) -> bool {
        let supervised = self
            .lives
            .get(host)
            .is_some_and(|life| life.supervisor().is_some());
        !supervised && !self.state.drained.contains(host)
    }

    /// Where the replica of `vm` at `host` is; if it has not said so itself, where the host is.
    pub(crate) fn address_of(&self, host: &HostId, vm: &VmId) -> Option<&Address> {
        let said = self.lives.get(host).and_then(|life| life.address_of(vm));
        said.or_else(|| self.state.hosts.get(host))
    }

    /// Of the live hosts that are `wanted`, and not `but`, the one in the fewest VMs' views, the first by name
    /// among equals. A spare is in none, so spares come first.
    fn least_loaded(
        &self,
        but: Option<&HostId>,
        wanted: impl Fn(&HostId) -> bool,
    ) -> Option<HostId> {
        let could = |host: &&HostId| self.is_live(host) && Some(*host) != but && wanted(host);
        let could: Vec<_> = self.lives.keys().filter(could).collect();
        if could.len() < 2 {
            return could.first().copied().cloned();
        }
        let mut loads: BTreeMap<&HostId, usize> = BTreeMap::new();
        for views in self.state.vms.values() {
            for host in views.hosts() {
                *loads.entry(host).or_default() += 1;
            }
        }
        could
            .into_iter()
            .min_by_key(|host| loads.get(host).copied().unwrap_or_default())
            .cloned()
    }

    /// What `host` is to do.
    #[must_use]
    pub fn orders(&self, host: &HostId) -> Orders {
        let assignment = |(vm, views): (&VmId, &VmViews)| {
            let view = views.latest();
            let role = view.role_of(host)?;
            let peer = view.other(host);
            Some(Assignment {
                vm: vm.clone(),
                acked: views.named.is_none(),
                role,
                peer: peer.and_then(|peer| self.address_of(peer, vm).cloned()),
                peer_waits: peer.is_some_and(|peer| self.waits(peer, vm)),
                stop: views.stopping,
                first: views.acked.is_none(),
                leave: self.leave_of(host, vm),
                view: view.clone(),
            })
        };
        Orders {
            assignments: self.state.vms.iter().filter_map(assignment).collect(),
            ping_interval_ms: self.settings.ping_interval_ms,
        }
    }

    /// The latest view of `vm`, and where its hosts are.
    #[must_use]
    pub fn registered(&self, vm: &VmId) -> Option<Registered> {
        let view = self.state.vms.get(vm)?.latest().clone();
        let address = |host: &HostId| self.address_of(host, vm).cloned();
        Some(Registered {
            primary_address: address(&view.primary)?,
            backup_address: view.backup.as_ref().and_then(address),
            view,
        })
    }
}
