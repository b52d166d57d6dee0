//! Where the replicas of a machine go: which hosts have room for it, which of them are alike, who is told to start
//! what, and what leaves a host that is drained.
//!
//! A machine that was asked for with [`Up`] is placed by what supervisors say of their hosts. Its first pair needs two
//! hosts that have room and are alike, so that either can run what the other did. Of all that could, those with the
//! fewest machines are taken.
//!
//! Rules it keeps:
//! - A primary is ordered only for the first view of a machine, as long as nobody has acknowledged it, and once
//!   its backup waits. Whoever starts it asks the arbiter for the right to begin all the same: an order may be old.
//! - No host is given a replica of a machine of which a process runs there, unless that waits for it.
//! - Nothing leaves a drained host before another host could take its place, and not while another machine is being
//!   given a backup: so machines are unprotected one at a time.

use crate::fleet::{
    Engine, HostOrders, HostPing, Leave, MACHINE_MAX, Machine, REASON_MAX, Room, Up, Wanted, cut,
};
use crate::life::Life;
use crate::machine::{Change, MAX_VMS, Rejected, Views};
use crate::state::VmViews;
use crate::{HostId, HostState, Role, View, VmId};

/// Ticks for which a wish that a machine is left to its backup holds.
const LEAVING: u64 = 20;

impl Views {
    /// A supervisor pings.
    pub(crate) fn host_ping(
        &mut self,
        ping: &HostPing,
        changes: &mut Vec<Change>,
    ) -> Result<(), Rejected> {
        let host = &ping.host;
        let other = self.lives.get(host).and_then(Life::supervisor);
        if let Some(other) = other.filter(|other| other.supervisor != ping.bounded().supervisor) {
            return Err(Rejected::HostTaken(host.clone(), other.address.clone()));
        }
        self.host_is_at(host, &ping.address, changes)?;
        let life = self.lives.entry(host.clone());
        if life.or_insert_with(Life::unheard).hear_supervisor(ping) {
            changes.push(Change::HostUp(host.clone()));
        }
        Ok(())
    }

    /// A machine is asked for.
    pub(crate) fn up(&mut self, wish: &Up, changes: &mut Vec<Change>) -> Result<(), Rejected> {
        let vm = &wish.vm;
        if let Some(views) = self.state.vms.get(vm) {
            return Err(Rejected::VmExists(vm.clone(), views.current().clone()));
        }
        if self.state.vms.len() >= MAX_VMS {
            return Err(Rejected::TooManyVms);
        }
        if wish.machine.bytes() > MACHINE_MAX {
            return Err(Rejected::TooLarge(vm.clone()));
        }
        let Some((primary, backup)) = self.pair_for(vm, &wish.machine) else {
            return Err(Rejected::NoRoom(vm.clone(), self.why_no_pair(wish)));
        };
        let view = View {
            number: self.state.floor.next(),
            primary,
            backup: Some(backup),
        };
        let views = VmViews {
            named: Some(view.clone()),
            machine: Some(wish.machine.clone()),
            anew: wish.anew,
            ..VmViews::default()
        };
        self.state.vms.insert(vm.clone(), views);
        changes.push(Change::Named(vm.clone(), view));
        Ok(())
    }

    /// `host` is to have no replica, or may have some again.
    pub(crate) fn drain(
        &mut self,
        host: &HostId,
        drained: bool,
        changes: &mut Vec<Change>,
    ) -> Result<(), Rejected> {
        if !self.state.hosts.contains_key(host) {
            return Err(Rejected::NoSuchHost(host.clone()));
        }
        let news = match drained {
            true => self.state.drained.insert(host.clone()),
            false => self.state.drained.remove(host),
        };
        if news {
            changes.push(Change::Drained(host.clone(), drained));
        }
        Ok(())
    }

    /// A machine is to be left to its backup, which its primary is told.
    pub(crate) fn failover(&mut self, vm: &VmId) -> Result<(), Rejected> {
        let views = self.state.vms.get(vm);
        let views = views.ok_or_else(|| Rejected::NoVm(vm.clone()))?;
        if self.pair_of(vm, views).is_none() {
            return Err(Rejected::NoPair(vm.clone(), views.current().clone()));
        }
        self.leaving.insert(vm.clone(), LEAVING);
        Ok(())
    }

    /// The view of `vm`, if it is a pair of which both sides say what they are.
    fn pair_of<'a>(&self, vm: &VmId, views: &'a VmViews) -> Option<&'a View> {
        let view = views.acked.as_ref().filter(|_| views.named.is_none())?;
        let is = |host: &HostId, role: Role| {
            let said = self.said(host, vm);
            said.is_some_and(|held| (held.view, held.role) == (view.number, role))
        };
        let backup = view.backup.as_ref()?;
        let whole = is(&view.primary, Role::Primary) && is(backup, Role::Backup);
        (whole && !views.stopping).then_some(view)
    }

    /// How the replica of `vm` at `host` is to leave it, if it is.
    pub(crate) fn leave_of(&self, host: &HostId, vm: &VmId) -> Option<Leave> {
        let views = self.state.vms.get(vm)?;
        let view = self.pair_of(vm, views)?;
        if self.leaving.contains_key(vm) && view.primary == *host {
            return Some(Leave::Follow);
        }
        (self.next_to_leave() == Some((vm, host))).then_some(Leave::End)
    }

    /// The next replica to leave a drained host.
    fn next_to_leave(&self) -> Option<(&VmId, &HostId)> {
        if self.state.drained.is_empty() {
            return None;
        }
        let is_joined = |(vm, views): (&VmId, &VmViews)| {
            let primary = views.acked.as_ref().map(|view| &view.primary);
            // Nobody knows how long it takes to start a backup by hand.
            let is_next = views.named.is_some() && views.machine.is_some();
            is_next && primary.is_some_and(|host| self.said(host, vm).is_some())
        };
        if self.state.vms.iter().any(is_joined) {
            return None;
        }
        self.state.vms.iter().find_map(|(vm, views)| {
            let view = self.pair_of(vm, views)?;
            // The backup first: its primary can go on meanwhile.
            let mut hosts = view.backup.iter().chain([&view.primary]);
            let leaves = hosts.find(|host| self.state.drained.contains(*host))?;
            let stays = view.other(leaves)?;
            let could = |host: &HostId| host != leaves && self.could_be_backup(host, vm, stays);
            self.lives.keys().any(could).then_some((vm, leaves))
        })
    }

    /// Whether `host` could be the backup of `vm`, whose primary is at `primary`, in place of whoever is that.
    pub(crate) fn could_be_backup(&self, host: &HostId, vm: &VmId, primary: &HostId) -> bool {
        let views = &self.state.vms[vm];
        if host == primary || !self.is_live(host) || self.state.drained.contains(host) {
            return false;
        }
        if self.waits(host, vm) {
            return true;
        }
        let machine = views.machine.as_ref();
        machine.is_some_and(|machine| {
            self.why_not(host, vm, machine).is_none() && self.are_alike(host, primary, machine)
        })
    }

    /// Whether the backup of `named`, a view of `vm` that is not acknowledged, will not be it, and any host that
    /// could be is better.
    pub(crate) fn is_lost(&self, vm: &VmId, named: &View) -> bool {
        let Some((host, life)) = named
            .backup
            .as_ref()
            .and_then(|host| Some((host, self.lives.get(host)?)))
        else {
            return true;
        };
        let is_it = self.said(host, vm).is_some();
        match life.state {
            HostState::Dead => true,
            HostState::Unheard => false,
            HostState::Live if is_it => false,
            HostState::Live if self.state.drained.contains(host) => true,
            HostState::Live if life.waits.contains(vm) => false,
            HostState::Live => {
                life.supervisor().is_none() || life.failed(vm, named.number).is_some()
            }
        }
    }

    /// The hosts of a new machine's pair.
    fn pair_for(&self, vm: &VmId, machine: &Machine) -> Option<(HostId, HostId)> {
        let mut fit: Vec<_> = self
            .lives
            .keys()
            .filter(|host| self.why_not(host, vm, machine).is_none())
            .collect();
        fit.sort_by_cached_key(|host| self.load_of(host));
        let alike = |primary: &HostId| {
            let mut others = fit.iter().filter(|host| **host != primary);
            others.find(|host| self.are_alike(host, primary, machine))
        };
        fit.iter()
            .find_map(|primary| Some(((*primary).clone(), (*alike(primary)?).clone())))
    }

    /// In how many VMs' views `host` is.
    fn load_of(&self, host: &HostId) -> usize {
        self.state.vms.values().filter(|vm| vm.has(host)).count()
    }

    fn room_of(&self, host: &HostId) -> Option<&Room> {
        Some(&self.lives.get(host)?.supervisor()?.room)
    }

    /// How much of its memory `host` has left, in MiB.
    pub(crate) fn left_mib(&self, host: &HostId) -> Option<u64> {
        let room = self.room_of(host)?;
        let here = self.state.vms.values().filter(|vm| vm.has(host));
        let used = here
            .filter_map(|vm| vm.machine.as_ref())
            .map(Machine::needs_mib);
        Some(room.memory_mib.saturating_sub(used.sum()))
    }

    /// Why `host` cannot be given a replica of `vm`, which is not there yet.
    fn why_not(&self, host: &HostId, vm: &VmId, machine: &Machine) -> Option<String> {
        let Some(life) = self.lives.get(host).filter(|life| life.is_live()) else {
            return Some("does not ping".into());
        };
        let Some(supervisor) = life.supervisor() else {
            return Some("has no `tandem host`".into());
        };
        if self.state.drained.contains(host) {
            return Some("is drained".into());
        }
        if supervisor.runs.contains(vm) {
            return Some("has a process of it that is not over".into());
        }
        let views = self.state.vms.get(vm);
        let failed = views.and_then(|views| life.failed(vm, views.next_number()));
        if let Some(why) = failed {
            return Some(format!("failed: {why}"));
        }
        let room = &supervisor.room;
        let may = |vms: &Vec<String>| vms.iter().any(|name| name == vm.as_str());
        if !room.vms.as_ref().is_none_or(may) {
            return Some("may not run it, by its certificate".into());
        }
        if machine.engine == Engine::Kvm && room.kvm.is_none() {
            return Some("has no KVM".into());
        }
        let on_kvm =
            machine.engine == Engine::Kvm || machine.engine == Engine::Auto && room.kvm.is_some();
        if on_kvm && !room.cpu_models.contains(&machine.cpu) {
            return Some(format!("cannot be CPU model {} on KVM", machine.cpu));
        }
        let (left, needs) = (self.left_mib(host).unwrap_or(0), machine.needs_mib());
        if views.is_some_and(|views| views.has(host)) {
            return None;
        }
        (left < needs).then(|| format!("has {left} of {} MiB left", room.memory_mib))
    }

    /// Whether what one of these hosts did the other can do alike.
    fn are_alike(&self, one: &HostId, other: &HostId, machine: &Machine) -> bool {
        if machine.engine == Engine::Soft || machine.unlike_hosts {
            return true;
        }
        let kind = |host: &HostId| {
            let room = self.room_of(host)?;
            Some(room.kvm.as_ref().map(|kind| (kind, &room.maker)))
        };
        match (kind(one), kind(other)) {
            (Some(one), Some(other)) => one == other,
            // Whoever runs it has no supervisor just now; what it had is not known.
            _ => self.room_of(one).is_some() || self.room_of(other).is_some(),
        }
    }

    /// Why there is no pair for a machine, host by host.
    fn why_no_pair(&self, wish: &Up) -> String {
        let machine = &wish.machine;
        let mut why: Vec<_> = self.why_none(&wish.vm, machine, &[]);
        let fit = self.lives.len() - why.len();
        if self.lives.is_empty() {
            why.push("no host pings".into());
        } else if fit >= 2 {
            why.push("the others are not alike (KVM, or the processor's maker)".into());
        } else if fit == 1 {
            why.push("one alone is no pair".into());
        }
        let why = format!(
            "each replica takes {} MiB, engine {}: {}",
            machine.needs_mib(),
            machine.engine,
            why.join("; ")
        );
        cut(why, 4 * REASON_MAX)
    }

    /// Why each host cannot be given a replica of `vm`, of those that cannot, leaving out `but`.
    fn why_none(&self, vm: &VmId, machine: &Machine, but: &[&HostId]) -> Vec<String> {
        let hosts = self.lives.keys().filter(|host| !but.contains(host));
        hosts
            .filter_map(|host| Some(format!("{host} {}", self.why_not(host, vm, machine)?)))
            .collect()
    }

    /// What is wrong with `vm`, in one line.
    pub(crate) fn trouble(&self, vm: &VmId, views: &VmViews) -> Option<String> {
        self.whole_trouble(vm, views)
            .map(|why| cut(why, REASON_MAX))
    }

    fn whole_trouble(&self, vm: &VmId, views: &VmViews) -> Option<String> {
        let machine = views.machine.as_ref()?;
        let failed = views.hosts().into_iter().find_map(|host| {
            let why = self.lives.get(host)?.failed(vm, views.next_number())?;
            Some(format!("host {host}: {why}"))
        });
        let view = views.acked.as_ref();
        let Some(view) = view.filter(|view| view.backup.is_none() && !views.stopping) else {
            return failed;
        };
        let gone = |host: &HostId| self.lives.get(host).is_some_and(|life| life.is_rid_of(vm));
        if gone(&view.primary) {
            return Some(format!(
                "no replica of it runs: it was last alone on {}, in view {} (tandem down, then tandem up --anew)",
                view.primary, view.number
            ));
        }
        if failed.is_some() || views.named.is_some() {
            return failed;
        }
        let none = self.why_none(vm, machine, &[&view.primary]);
        let none = match none.is_empty() {
            true => "there is no other host".into(),
            false => none.join("; "),
        };
        Some(format!("no spare: {none}"))
    }

    /// What the supervisor of `host` is to do.
    ///
    /// # Panics
    /// Never: it asks of VMs that are there.
    #[must_use]
    pub fn host_orders(&self, host: &HostId) -> HostOrders {
        let mut orders = HostOrders {
            start: Vec::new(),
            dismiss: Vec::new(),
            ping_interval_ms: (self.settings().ping_interval_ms / 2).max(1),
        };
        let Some(life) = self.lives.get(host) else {
            return orders;
        };
        let Some(said) = life.supervisor() else {
            return orders;
        };
        let wanted = self
            .state
            .vms
            .iter()
            .filter(|(vm, _)| !said.runs.contains(vm));
        orders.start = wanted
            .filter_map(|(vm, views)| self.wanted(host, vm, views))
            .collect();
        let is_for_nothing = |vm: &&VmId| {
            let views = self.state.vms.get(vm);
            life.waits.contains(vm) && views.is_none_or(|vm| vm.stopping || !vm.has(host))
        };
        orders.dismiss = said.runs.iter().filter(is_for_nothing).cloned().collect();
        orders
    }

    /// The replica of `vm` that `host` is to start, if it is.
    fn wanted(&self, host: &HostId, vm: &VmId, views: &VmViews) -> Option<Wanted> {
        let machine = views.machine.as_ref().filter(|_| !views.stopping)?;
        let view = views.named.as_ref()?;
        let (role, backup) = match view.role_of(host)? {
            Role::Backup => (Role::Backup, None),
            _ => {
                let backup = view
                    .backup
                    .as_ref()
                    .filter(|backup| self.waits(backup, vm))?;
                let address = self.address_of(backup, vm)?;
                (Role::Primary, Some(address.clone()))
            }
        };
        // Whoever runs a machine that was ever acknowledged runs, or is lost.
        if role == Role::Primary && views.acked.is_some() {
            return None;
        }
        Some(Wanted {
            vm: vm.clone(),
            machine: machine.clone(),
            view: view.clone(),
            role,
            backup,
            anew: views.anew,
        })
    }
}
