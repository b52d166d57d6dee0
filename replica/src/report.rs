//! Telling the viewservice, on a thread of its own: the service is not on the data path, and may be
//! down.

use crate::address::HostPort;
use crate::asked::{Ask, Asker, Spare};
use crate::error::{During, Outcome, ReplicaError};
use crate::spec::ReplicaSpec;
use crate::{Message, Status};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use viewservice::{
    Address, Assignment, Client, Held, HostId, Leave, Orders, Ping, Register, Report, Role,
    ViewNumber, VmId,
};

/// Time between two pings, and longest time between two looks at a replica.
const INTERVAL: Duration = Duration::from_millis(250);
/// Longest time the end of a replica waits for its report to be told.
const FAREWELL: Duration = Duration::from_millis(500);

enum Tell {
    Now {
        status: Status,
        backup: Option<HostId>,
    },
    Solo(ViewNumber),
    Ended {
        view: ViewNumber,
        done: Sender<()>,
    },
}

/// Tells the viewservice what this replica is, if there is one.
pub struct Reporter {
    thread: Option<(Sender<Tell>, JoinHandle<()>)>,
    view: ViewNumber,
}

/// Who this replica is for the viewservice.
pub struct Identity {
    client: Client,
    host: HostId,
    vm: VmId,
    address: Address,
    /// It has no role yet, and waits to become the machine's backup.
    waits: bool,
}

/// This replica as the viewservice is to know it; `None` without one. `address` is where it can be
/// reached.
///
/// # Errors
/// If one of the names is none the service would take.
pub fn identity(spec: &ReplicaSpec, address: &str) -> Outcome<Option<Identity>> {
    let Some(server) = &spec.viewservice else {
        return Ok(None);
    };
    Ok(Some(Identity {
        client: Client::new(&server.to_string())?.secured(spec.security.clone()),
        host: HostId::new(spec.host.as_str())?,
        vm: spec.vm.clone(),
        address: Address::new(address)?,
        waits: false,
    }))
}

impl Identity {
    /// The same, of a replica that waits at its address to become the machine's backup.
    pub fn that_waits(self) -> Self {
        Self {
            waits: true,
            ..self
        }
    }

    fn ping(&self, held: Vec<Held>) -> Result<Orders, viewservice::ViewError> {
        let ping = Ping {
            host: self.host.clone(),
            address: self.address.clone(),
            held,
            waits: self.waits.then(|| self.vm.clone()).into_iter().collect(),
            of: Some(self.vm.clone()),
        };
        self.client.ping(&ping)
    }

    /// Says that this host is there, without a replica yet. A service that is down is only noted.
    pub fn hello(&self) {
        if let Err(e) = self.ping(Vec::new()) {
            tracing::warn!("the viewservice does not answer: {e}");
        }
    }

    /// The view that the service has named for the machine to begin in, with this host as its primary.
    ///
    /// # Errors
    /// If there is none, since the machine has begun or is to begin elsewhere; or if the service does not answer.
    pub fn named(&self) -> Outcome<ViewNumber> {
        let orders = self.ping(Vec::new()).during("the viewservice")?;
        let begins = |order: &&Assignment| {
            order.vm == self.vm
                && order.first
                && !order.acked
                && !order.stop
                && order.role == Role::Primary
        };
        match orders.assignments.iter().find(begins) {
            Some(order) => Ok(order.view.number),
            None => Err(ReplicaError::refused(format!(
                "the viewservice has no start of '{}' for host {}: it has begun, is to begin elsewhere, or is over",
                self.vm, self.host
            ))),
        }
    }

    /// Registers the machine with this host as its primary, and says which view it begins in.
    ///
    /// # Errors
    /// If the service refuses, or does not answer: its view numbers must not be guessed.
    pub fn register(&self, backup: Option<&str>) -> Outcome<ViewNumber> {
        self.hello();
        let backup = backup.map(HostId::new).transpose()?;
        let wish = Register {
            vm: self.vm.clone(),
            primary: Some(self.host.clone()),
            backup,
        };
        let registered = self.client.register(&wish).during("the viewservice")?;
        Ok(registered.view.number)
    }
}

impl Reporter {
    /// A reporter for `identity`; what the service orders reaches `control`.
    pub fn start(identity: Option<Identity>, control: Sender<Message>) -> Outcome<Self> {
        let thread = match identity {
            None => None,
            Some(identity) => {
                let (tell, told) = channel();
                let thread = std::thread::Builder::new()
                    .name("views".into())
                    .spawn(move || talk(identity, &told, &control))
                    .during("cannot start a thread")?;
                Some((tell, thread))
            }
        };
        Ok(Self {
            thread,
            view: ViewNumber::default(),
        })
    }

    /// Whether there is a viewservice that keeps this machine's views.
    pub fn reports(&self) -> bool {
        self.thread.is_some()
    }

    fn send(&self, tell: Tell) {
        if let Some((thread, _)) = &self.thread {
            let _ = thread.send(tell);
        }
    }

    /// What this replica is now, and the host of its backup if the service had named that.
    pub fn tell(&mut self, status: Status, backup: Option<HostId>) {
        self.view = status.view;
        self.send(Tell::Now { status, backup });
    }

    /// How often to tell.
    pub fn interval(&self) -> Duration {
        INTERVAL
    }

    /// This replica runs alone, in `view`.
    pub fn report_solo(&mut self, view: ViewNumber) {
        self.send(Tell::Solo(view));
    }

    /// Says nothing more: waits until its thread has ended, which may have something to say to this replica until
    /// then.
    pub fn close(&mut self) {
        if let Some((tell, thread)) = self.thread.take() {
            drop(tell);
            // If it panicked, it says nothing more either.
            let _ = thread.join();
        }
    }

    /// This replica is over; `orderly`: and with it the machine.
    pub fn ended(&mut self, orderly: bool) {
        if orderly {
            let (done, wait) = channel();
            self.send(Tell::Ended {
                view: self.view,
                done,
            });
            // Whether it was told or not, there is nothing more to do.
            let _ = wait.recv_timeout(FAREWELL);
        }
    }
}

fn talk(mut identity: Identity, told: &Receiver<Tell>, control: &Sender<Message>) {
    let mut held: Vec<Held> = Vec::new();
    let (host, vm) = (identity.host.clone(), identity.vm.clone());
    let mut next_ping = Instant::now();
    loop {
        let until_ping = next_ping.saturating_duration_since(Instant::now());
        if until_ping.is_zero() {
            next_ping = Instant::now() + INTERVAL;
            ping(&identity, &held, control);
            continue;
        }
        match told.recv_timeout(until_ping) {
            Ok(Tell::Now { status, backup }) => {
                let Status { role, view, lag_ms } = status;
                // Until it is the backup: while it is being given the machine nobody is to take its place.
                identity.waits &= role.is_none();
                // A joiner holds nothing yet.
                let held_now = role.map(|role| Held {
                    vm: vm.clone(),
                    view,
                    role,
                    lag_ms: (role != Role::Solo).then_some(lag_ms),
                    backup,
                });
                held = held_now.into_iter().collect();
            }
            Ok(Tell::Solo(view)) => {
                let report = Report::Solo {
                    host: host.clone(),
                    vm: vm.clone(),
                    view,
                };
                // If it is lost, the next ping claims the same.
                if let Err(e) = identity.client.report(&report) {
                    tracing::warn!("the viewservice was not told of {view}: {e}");
                }
            }
            Ok(Tell::Ended { view, done }) => {
                let report = Report::Ended {
                    host: host.clone(),
                    vm: vm.clone(),
                    view,
                };
                if let Err(e) = identity.client.report(&report) {
                    tracing::info!("the viewservice was not told of the end: {e}");
                }
                let _ = done.send(());
                return;
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

fn ping(identity: &Identity, held: &[Held], control: &Sender<Message>) {
    match identity.ping(held.to_vec()) {
        Ok(orders) => {
            // Nobody is to be told what comes of it.
            let (asker, _) = Asker::new();
            let message = match ordered(&identity.vm, held, &orders) {
                Some(Ordered::Stop) => Message::StopAsked,
                Some(Ordered::Ask(ask)) => Message::Asked(ask, asker),
                None => return,
            };
            let _ = control.send(message);
        }
        Err(e) => tracing::info!("the viewservice does not answer: {e}"),
    }
}

/// What the service orders this replica to do.
enum Ordered {
    Stop,
    Ask(Ask),
}

/// What the service orders of the replica of `vm` here. It repeats that until it hears that it was done.
fn ordered(vm: &VmId, held: &[Held], orders: &Orders) -> Option<Ordered> {
    let order = orders.assignments.iter().find(|order| order.vm == *vm)?;
    if order.stop {
        return Some(Ordered::Stop);
    }
    let held_now = held.iter().find(|held| held.vm == *vm);
    let role = held_now.filter(|held| held.view == order.view.number);
    match (order.leave, role.map(|held| held.role)) {
        (Some(leave), Some(Role::Primary)) => {
            let follows = leave == Leave::Follow;
            Some(Ordered::Ask(Ask::Leave { follows }))
        }
        // Its primary goes on alone, and is given another backup.
        (Some(Leave::End), Some(Role::Backup)) => Some(Ordered::Stop),
        _ => spare(vm, held, orders).map(|spare| Ordered::Ask(Ask::Spare(spare))),
    }
}

/// The backup that the service named for `vm` and that waits, if the replica here runs alone in the view before.
fn spare(vm: &VmId, held: &[Held], orders: &Orders) -> Option<Spare> {
    let held = held.iter().find(|held| held.vm == *vm)?;
    let order = orders.assignments.iter().find(|order| order.vm == *vm)?;
    let is_next = (held.role, order.role) == (Role::Solo, Role::Primary)
        && order.view.number == held.view.next();
    if !is_next || order.acked || !order.peer_waits {
        return None;
    }
    let address = order.peer.as_ref()?.to_string();
    match HostPort::to_connect(&address) {
        Ok(backup) => Some(Spare {
            backup,
            host: order.view.backup.clone()?,
            view: order.view.number,
        }),
        Err(e) => {
            tracing::warn!("the viewservice names a backup at '{address}': {e}");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use viewservice::View;

    fn vm() -> VmId {
        VmId::new("web").unwrap()
    }

    fn host(name: &str) -> HostId {
        HostId::new(name).unwrap()
    }

    fn held(view: u64, role: Role) -> Vec<Held> {
        vec![Held {
            vm: vm(),
            view: ViewNumber(view),
            role,
            lag_ms: None,
            backup: None,
        }]
    }

    /// View 3 of host b, with c at this address.
    fn order(peer: &str) -> Assignment {
        Assignment {
            vm: vm(),
            view: View {
                number: ViewNumber(3),
                primary: host("b"),
                backup: Some(host("c")),
            },
            acked: false,
            role: Role::Primary,
            peer: Some(Address::new(peer).unwrap()),
            peer_waits: true,
            stop: false,
            first: false,
            leave: None,
        }
    }

    fn of(held: &[Held], order: Assignment) -> Option<Spare> {
        let orders = Orders {
            assignments: vec![order],
            ping_interval_ms: 500,
        };
        spare(&vm(), held, &orders)
    }

    #[test]
    fn a_spare_is_for_the_view_after_the_one_this_replica_runs_alone_in() {
        let alone = held(2, Role::Solo);
        let expected = Spare {
            backup: HostPort::to_connect("192.0.2.3:7800").unwrap(),
            host: host("c"),
            view: ViewNumber(3),
        };
        assert_eq!(of(&alone, order("192.0.2.3:7800")), Some(expected));
        for (held, why) in [
            (Vec::new(), "holds nothing"),
            (held(2, Role::Primary), "has a backup"),
            (held(2, Role::Backup), "is one"),
            (held(1, Role::Solo), "is behind"),
            (held(3, Role::Solo), "is there already"),
        ] {
            assert_eq!(of(&held, order("192.0.2.3:7800")), None, "{why}");
        }
    }

    #[test]
    fn a_replica_leaves_in_the_view_it_is_told_of_only() {
        let leave = |leave, view| Orders {
            assignments: vec![Assignment {
                leave: Some(leave),
                acked: true,
                view: View {
                    number: ViewNumber(view),
                    ..order("b:1").view
                },
                ..order("b:1")
            }],
            ping_interval_ms: 500,
        };
        let of = |held: &[Held], orders| match ordered(&vm(), held, &orders) {
            None => "nothing",
            Some(Ordered::Stop) => "stop",
            Some(Ordered::Ask(Ask::Leave { follows: true })) => "follow",
            Some(Ordered::Ask(Ask::Leave { follows: false })) => "end",
            Some(Ordered::Ask(_)) => "else",
        };
        let (primary, backup) = (held(3, Role::Primary), held(3, Role::Backup));
        assert_eq!(of(&primary, leave(Leave::Follow, 3)), "follow");
        assert_eq!(of(&primary, leave(Leave::End, 3)), "end");
        assert_eq!(of(&backup, leave(Leave::End, 3)), "stop");
        assert_eq!(of(&backup, leave(Leave::Follow, 3)), "nothing");
        assert_eq!(of(&held(3, Role::Solo), leave(Leave::End, 3)), "nothing");
        assert_eq!(
            of(&primary, leave(Leave::End, 4)),
            "nothing",
            "another view"
        );
        assert_eq!(of(&[], leave(Leave::End, 3)), "nothing");
    }

    #[test]
    fn only_a_spare_that_waits_somewhere_is_asked() {
        let alone = held(2, Role::Solo);
        let good = || order("192.0.2.3:7800");
        for order in [
            Assignment {
                acked: true,
                ..good()
            },
            Assignment {
                peer_waits: false,
                ..good()
            },
            Assignment {
                role: Role::Backup,
                ..good()
            },
            Assignment {
                peer: None,
                ..good()
            },
            order("192.0.2.3"),
            order("192.0.2.3:0"),
            Assignment {
                vm: VmId::new("db").unwrap(),
                ..good()
            },
        ] {
            assert_eq!(of(&alone, order.clone()), None, "{order:?}");
        }
    }
}
