//! The viewservice of the model: the real view machine, behind pings that are lost, late, or come twice.

use crate::lives::{Break, Lives};
use crate::oracle::Rule;
use crate::world::{Join, Life, Message, Name, RIVAL, World, small};
use replica::role::Role;
use std::collections::BTreeSet;
use std::sync::Arc;
use viewservice::{
    Address, Held, HostId, Ping, Register, Settings, State, View, ViewEvent, ViewNumber, Views,
    VmId,
};

/// A service that is running, and pings it has not had.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Service {
    views: Arc<Views>,
    /// What hosts said once, and what comes later or again.
    late: BTreeSet<Said>,
}

/// What a host says of its replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Said {
    who: Name,
    view: u8,
    role: Option<Role>,
    backup: Option<Name>,
    waits: bool,
}

const SETTINGS: Settings = Settings {
    ping_interval_ms: 500,
    missed_pings: 2,
};

fn vm() -> VmId {
    VmId::new("m").expect("a name")
}

fn host(name: Name) -> HostId {
    HostId::new(format!("h{name}")).expect("a name")
}

fn address(name: Name) -> Address {
    Address::new(format!("192.0.2.{name}:7800")).expect("an address")
}

fn named(host: &HostId) -> Name {
    host.as_str()[1..].parse().expect("a host of this model")
}

/// In any order, so that the same ones are the same set.
impl Ord for Said {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let key = |said: &Self| {
            let role = said.role.map(|role| role as u8);
            (said.who, said.view, role, said.backup, said.waits)
        };
        key(self).cmp(&key(other))
    }
}

impl PartialOrd for Said {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Said {
    fn ping(self) -> Ping {
        let held = self.role.map(|role| Held {
            vm: vm(),
            view: ViewNumber(self.view.into()),
            role,
            lag_ms: None,
            backup: self.backup.map(host),
        });
        Ping {
            host: host(self.who),
            address: address(self.who),
            held: held.into_iter().collect(),
            waits: self.waits.then(vm).into_iter().collect(),
            of: None,
        }
    }
}

impl Service {
    /// One that knows a pair in view 1, and other hosts that wait.
    pub fn of_pair(leader: Name, backup: Name, replicas: u8) -> Self {
        let mut views = Views::new(State::default(), SETTINGS);
        let mut take = |event: &ViewEvent| views.handle(event).expect("a good event");
        for who in 0..replicas {
            let waits = who != leader && who != backup;
            let said = Said {
                who,
                view: 0,
                role: None,
                backup: None,
                waits,
            };
            take(&ViewEvent::Ping(said.ping()));
        }
        take(&ViewEvent::Register(Register {
            vm: vm(),
            primary: Some(host(leader)),
            backup: Some(host(backup)),
        }));
        for (who, role) in [(leader, Role::Primary), (backup, Role::Backup)] {
            let said = Said {
                who,
                view: 1,
                role: Some(role),
                backup: None,
                waits: false,
            };
            take(&ViewEvent::Ping(said.ping()));
        }
        Self {
            views: Arc::new(views),
            late: BTreeSet::new(),
        }
    }

    /// What was said and may still come.
    pub fn late(&self) -> impl Iterator<Item = Said> {
        self.late.iter().copied()
    }

    fn latest(&self) -> Option<View> {
        Some(self.views.registered(&vm())?.view)
    }
}

impl Lives {
    /// What `name` says of itself now.
    fn says(world: &World, name: Name) -> Said {
        let replica = &world.replicas[usize::from(name)];
        let role = replica.role.as_ref().and_then(|role| role.role());
        Said {
            who: name,
            view: if role.is_none() { 0 } else { replica.view() },
            role,
            backup: replica.named.filter(|_| role == Some(Role::Primary)),
            waits: role.is_none(),
        }
    }

    /// `name` pings, and hears what the service answers.
    pub(crate) fn ping(&self, world: &mut World, name: Name) {
        let said = Self::says(world, name);
        self.hears(world, said);
        let Some(joiner) = self.spare(world, said) else {
            return;
        };
        let replica = world.replica(name);
        let view = ViewNumber(u64::from(said.view) + 1);
        let message = Message::Offered(joiner, Some(view));
        // Asked again and again it would be refused again and again.
        if replica.join == Join::None && !replica.mailbox.contains(&message) {
            replica.mailbox.push_back(message);
        }
    }

    /// What `name` says now reaches the service later.
    pub(crate) fn ping_later(world: &mut World, name: Name) {
        let said = Self::says(world, name);
        world.service.as_mut().expect("a service").late.insert(said);
    }

    /// A ping that lingered reaches the service. Nobody hears the answer.
    pub(crate) fn late_ping(&self, world: &mut World, said: Said) {
        world
            .service
            .as_mut()
            .expect("a service")
            .late
            .remove(&said);
        self.hears(world, said);
    }

    /// The time between two pings passes.
    pub(crate) fn tick(&self, world: &mut World) {
        self.takes(world, &ViewEvent::Tick);
        if self.broken(Break::NamesUnacked)
            && let Some(view) = world.service.as_ref().and_then(Service::latest)
            && view.backup.is_some()
        {
            // As if the primary had acknowledged it.
            let who = named(&view.primary);
            let view = small(view.number.0);
            self.hears(
                world,
                Said {
                    who,
                    view,
                    role: Some(Role::Primary),
                    backup: None,
                    waits: false,
                },
            );
        }
    }

    /// The service dies and starts again, with what is durable.
    pub(crate) fn restart(world: &mut World) {
        let service = world.service.as_mut().expect("a service");
        service.views = Arc::new(Views::new(service.views.state().clone(), SETTINGS));
    }

    fn hears(&self, world: &mut World, said: Said) {
        self.takes(world, &ViewEvent::Ping(said.ping()));
    }

    fn takes(&self, world: &mut World, event: &ViewEvent) {
        let Some(service) = &mut world.service else {
            return;
        };
        let before = service.latest();
        // What is rejected changes nothing.
        let _ = Arc::make_mut(&mut service.views).handle(event);
        let after = service.latest();
        let status = service.views.status();
        let (Some(before), Some(after)) = (before, after) else {
            return world.oracle.breaks(Rule::Views);
        };
        let acked = status
            .vms
            .first()
            .map(|vm| (small(vm.view.0), named(&vm.primary)));
        let begun = |view: u8| world.oracle.begun.get(usize::from(view)).copied().flatten();
        let is_true = acked.is_some_and(|(view, primary)| {
            begun(view).is_some_and(|who| who == primary || who == RIVAL)
        });
        if after.number < before.number || !is_true {
            world.oracle.breaks(Rule::Views);
        }
    }

    /// The backup that the service names and that waits, if `said` is of the view before: as `spare` of
    /// `replica/src/report.rs`.
    fn spare(&self, world: &World, said: Said) -> Option<Name> {
        let service = world.service.as_ref()?;
        let orders = service.views.orders(&host(said.who));
        let order = orders.assignments.first()?;
        let is_next = said.role == Some(Role::Solo)
            && order.role == Role::Primary
            && order.view.number == ViewNumber(u64::from(said.view)).next();
        if !is_next || order.acked || !order.peer_waits {
            return None;
        }
        let joiner = named(order.view.backup.as_ref()?);
        // One that is over is not reached, and will be called again.
        (world.replicas[usize::from(joiner)].life == Life::Waiting).then_some(joiner)
    }
}
