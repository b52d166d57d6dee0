//! Telling the viewservice, on a thread of its own: the service is not on the data path, and may be
//! down.

use super::Message;
use crate::cli::ReplicaArgs;
use crate::failure::{During, Outcome};
use logchannel::role::Role;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};
use viewservice::{
    Address, Client, Held, HostId, Ping, Register, Report, Role as ViewRole, ViewNumber, VmId,
};

/// Time between two pings, and longest time between two looks at a replica.
const INTERVAL: Duration = Duration::from_millis(250);
/// Longest time the end of a replica waits for its report to be told.
const FAREWELL: Duration = Duration::from_millis(500);

enum Tell {
    Now { role: Role, view: u64, lag_ms: u64 },
    Solo(u64),
    Ended { view: u64, done: Sender<()> },
}

/// Tells the viewservice what this replica is, if there is one.
pub struct Reporter {
    thread: Option<Sender<Tell>>,
    view: u64,
}

/// Who this replica is for the viewservice.
pub struct Identity {
    client: Client,
    host: HostId,
    vm: VmId,
    address: Address,
}

/// This replica as the viewservice is to know it; `None` without one. `address` is where it can be
/// reached.
pub fn identity(args: &ReplicaArgs, address: &str) -> Outcome<Option<Identity>> {
    let Some(server) = &args.viewservice else {
        return Ok(None);
    };
    Ok(Some(Identity {
        client: Client::new(&server.to_string())?,
        host: HostId::new(args.name.as_str())?,
        vm: VmId::new(args.vm.as_str())?,
        address: Address::new(address)?,
    }))
}

impl Identity {
    fn ping(&self, held: Vec<Held>) -> Result<viewservice::Orders, viewservice::ViewError> {
        let ping = Ping {
            host: self.host.clone(),
            address: self.address.clone(),
            held,
        };
        self.client.ping(&ping)
    }

    /// Says that this host is there, without a replica yet. A service that is down is only noted.
    pub fn hello(&self) {
        if let Err(e) = self.ping(Vec::new()) {
            tracing::warn!("the viewservice does not answer: {e}");
        }
    }

    /// Registers the machine with this host as its primary, and says which view it begins in.
    ///
    /// # Errors
    /// If the service refuses, or does not answer: its view numbers must not be guessed.
    pub fn register(&self, backup: Option<&str>) -> Outcome<u64> {
        self.hello();
        let backup = backup.map(HostId::new).transpose()?;
        let wish = Register {
            vm: self.vm.clone(),
            primary: Some(self.host.clone()),
            backup,
        };
        let registered = self.client.register(&wish).during("the viewservice")?;
        Ok(registered.view.number.0)
    }
}

impl Reporter {
    /// A reporter for `identity`; what the service orders reaches `control`.
    pub fn start(identity: Option<Identity>, control: Sender<Message>) -> Outcome<Self> {
        let thread = match identity {
            None => None,
            Some(identity) => {
                let (tell, told) = channel();
                std::thread::Builder::new()
                    .name("views".into())
                    .spawn(move || talk(&identity, &told, &control))
                    .during("cannot start a thread")?;
                Some(tell)
            }
        };
        Ok(Self { thread, view: 0 })
    }

    fn send(&self, tell: Tell) {
        if let Some(thread) = &self.thread {
            let _ = thread.send(tell);
        }
    }

    /// What this replica is now.
    pub fn tell(&mut self, role: Role, view: u64, lag_ms: u64) {
        self.view = view;
        self.send(Tell::Now { role, view, lag_ms });
    }

    /// How often to tell.
    pub fn interval(&self) -> Duration {
        INTERVAL
    }

    /// This replica runs alone, in `view`.
    pub fn report_solo(&mut self, view: u64) {
        self.send(Tell::Solo(view));
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

fn talk(identity: &Identity, told: &Receiver<Tell>, control: &Sender<Message>) {
    let mut held: Vec<Held> = Vec::new();
    let (host, vm) = (&identity.host, &identity.vm);
    let mut next_ping = Instant::now();
    loop {
        let until_ping = next_ping.saturating_duration_since(Instant::now());
        if until_ping.is_zero() {
            next_ping = Instant::now() + INTERVAL;
            ping(identity, &held, control);
            continue;
        }
        match told.recv_timeout(until_ping) {
            Ok(Tell::Now { role, view, lag_ms }) => held = hold(identity, role, view, lag_ms),
            Ok(Tell::Solo(view)) => {
                let view = ViewNumber(view);
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
                let view = ViewNumber(view);
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
            if orders
                .assignments
                .iter()
                .any(|order| order.vm == identity.vm && order.stop)
            {
                let _ = control.send(Message::StopAsked);
            }
        }
        Err(e) => tracing::info!("the viewservice does not answer: {e}"),
    }
}

fn hold(identity: &Identity, role: Role, view: u64, lag_ms: u64) -> Vec<Held> {
    let (role, lag_ms) = match role {
        Role::Primary => (ViewRole::Primary, Some(lag_ms)),
        Role::Backup => (ViewRole::Backup, Some(lag_ms)),
        Role::Solo => (ViewRole::Solo, None),
        Role::Halted => return Vec::new(),
    };
    vec![Held {
        vm: identity.vm.clone(),
        view: ViewNumber(view),
        role,
        lag_ms,
    }]
}
