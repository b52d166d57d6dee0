//! What hosts, CLI and service say to each other: HTTP with JSON (`docs/API.md`).
//!
//! ```text
//!   POST /v1/ping                 200 {"reply":"orders","assignments":[...],"ping_interval_ms":500}
//!        {"host":"a","address":"10.0.0.1:7000","held":[{"vm":"web","view":1,"role":"primary","lag_ms":3}]}
//!   GET  /v1/status               200 {"reply":"status","vms":[...],"hosts":[...]}
//! ```
//!
//! An operation is the last part of its path and the rest of it the body: [`Request`] without its `op`. Those that
//! only read, and take nothing, are asked by GET; all others by POST.

use crate::fleet::{HostOrders, HostPing, Leave, Up};
use crate::{Address, HostId, Role, Status, View, ViewNumber, VmId};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Longest body of a request, in bytes: a ping that holds [`crate::machine::MAX_VMS`] VMs and waits for
/// as many fits.
pub(crate) const MAX_REQUEST: usize = 384 << 10;

/// Longest body of a reply, in bytes: the status of as many VMs and hosts as there may be.
pub(crate) const MAX_REPLY: usize = 8 << 20;

/// A replica as its host sees it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Held {
    /// The VM.
    pub vm: VmId,
    /// The view it is in. From the primary the service named, this acknowledges the view.
    pub view: ViewNumber,
    /// What it is.
    pub role: Role,
    /// How far the backup's execution is behind, in milliseconds: by its own account, or as the
    /// primary knows it from acks.
    #[serde(default)]
    pub lag_ms: Option<u64>,
    /// Of a primary that was given its backup by the service's word: that backup's host. The service may have
    /// named another one meanwhile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<HostId>,
}

/// A host's sign of life, with all the replicas it runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ping {
    /// The host.
    pub host: HostId,
    /// Where its daemon listens.
    pub address: Address,
    /// Its replicas.
    pub held: Vec<Held>,
    /// VMs whose backup a process of it waits to become, at `address`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waits: Vec<VmId>,
    /// The one machine it speaks of: this is a process of a host that has several. What others of them said stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<VmId>,
}

/// What a host is to be for one VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// The VM.
    pub vm: VmId,
    /// The latest view.
    pub view: View,
    /// Whether its primary has acknowledged that view.
    pub acked: bool,
    /// What the host is to be in it.
    pub role: Role,
    /// Where the other host of the view is.
    pub peer: Option<Address>,
    /// Whether that host lives and waits there to become the VM's backup.
    #[serde(default)]
    pub peer_waits: bool,
    /// The VM is to be stopped.
    pub stop: bool,
    /// No view of the VM was ever acknowledged: this is where it begins.
    #[serde(default)]
    pub first: bool,
    /// The replica is to leave the VM: a primary to its backup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leave: Option<Leave>,
}

/// The answer to a [`Ping`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Orders {
    /// One for each VM in whose latest view the host is.
    pub assignments: Vec<Assignment>,
    /// How often to ping, in milliseconds.
    pub ping_interval_ms: u64,
}

/// Something a host tells at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum Report {
    /// The host's replica won the flag of the view before, and runs alone in `view`.
    Solo {
        /// The host.
        host: HostId,
        /// The VM.
        vm: VmId,
        /// The view it runs in now.
        view: ViewNumber,
    },
    /// The VM ended in an orderly way: the guest's power-off, or the operator's.
    Ended {
        /// The host.
        host: HostId,
        /// The VM.
        vm: VmId,
        /// The view it ended in.
        view: ViewNumber,
    },
}

/// A wish for a new protected VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Register {
    /// Its name.
    pub vm: VmId,
    /// Its primary's host; `None`: the service chooses.
    pub primary: Option<HostId>,
    /// Its backup's host; `None`: the service chooses, if there is a second host.
    pub backup: Option<HostId>,
}

/// The answer to a [`Register`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registered {
    /// The VM's first view.
    pub view: View,
    /// Where its primary's host is.
    pub primary_address: Address,
    /// Where its backup's host is.
    pub backup_address: Option<Address>,
}

/// What a client asks.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub(crate) enum Request {
    Ping(Ping),
    Report(Report),
    Register(Register),
    Down { vm: VmId },
    Status,
    Host(HostPing),
    Up(Up),
    Drain { host: HostId, drained: bool },
    Failover { vm: VmId },
}

impl Request {
    /// Whether it only reads, and is asked by GET.
    pub(crate) fn reads(&self) -> bool {
        matches!(self, Self::Status)
    }

    /// Its operation, and what else there is to it.
    pub(crate) fn to_parts(&self) -> (String, Map<String, Value>) {
        let whole = serde_json::to_value(self).expect("requests are plain JSON");
        let Value::Object(mut rest) = whole else {
            unreachable!("requests are structs");
        };
        match rest.remove("op") {
            Some(Value::String(op)) => (op, rest),
            _ => unreachable!("requests have an op"),
        }
    }

    /// Of these parts.
    ///
    /// # Errors
    /// What is wrong with them.
    pub(crate) fn of_parts(op: &str, mut rest: Map<String, Value>) -> Result<Self, String> {
        rest.insert("op".into(), op.into());
        serde_json::from_value(Value::Object(rest)).map_err(|e| e.to_string())
    }
}

/// What the server answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub(crate) enum Reply {
    Orders(Orders),
    Done,
    Registered(Registered),
    Status(Status),
    HostOrders(HostOrders),
    /// The request was not taken, and changed nothing.
    Refused {
        reason: String,
    },
    /// The answer could not be made durable; what became of the request is unknown.
    Failed {
        reason: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::{MAX_HOSTS, MAX_VMS};
    use crate::{Settings, State, ViewEvent, Views};
    use serde::Serialize;

    fn to_line(message: &impl Serialize) -> Vec<u8> {
        serde_json::to_vec(message).unwrap()
    }

    fn long(n: usize, max: usize) -> String {
        format!("{n:05}{}", "x".repeat(max - 5))
    }

    fn host(n: usize) -> HostId {
        HostId::new(long(n, HostId::MAX)).unwrap()
    }

    fn vm(n: usize) -> VmId {
        VmId::new(long(n, VmId::MAX)).unwrap()
    }

    fn ping(n: usize, view: u64, role: Role) -> Ping {
        let held = |n| Held {
            vm: vm(n),
            view: ViewNumber(view),
            role,
            lag_ms: Some(u64::MAX),
            backup: Some(host(n)),
        };
        Ping {
            host: host(n),
            address: Address::new("y".repeat(Address::MAX)).unwrap(),
            held: (0..MAX_VMS).map(held).collect(),
            waits: (0..MAX_VMS).map(vm).collect(),
            of: None,
        }
    }

    #[test]
    fn what_peers_of_before_say_is_understood() {
        let ping =
            r#"{"host":"a","address":"a:1","held":[{"vm":"web","view":1,"role":"primary"}]}"#;
        let ping: Ping = serde_json::from_str(ping).unwrap();
        assert!(ping.waits.is_empty());
        assert_eq!(ping.held[0].backup, None);
        let view = r#"{"number":1,"primary":"a","backup":"b"}"#;
        let orders = format!(
            r#"{{"vm":"web","view":{view},"acked":true,"role":"primary","peer":"b:1","stop":false}}"#
        );
        let assignment: Assignment = serde_json::from_str(&orders).unwrap();
        assert!(!assignment.peer_waits);
    }

    /// As many VMs and hosts as there may be, all names of the greatest length, every VM on hosts 0
    /// and 1 with two views.
    #[test]
    fn the_largest_messages_fit_and_one_more_is_refused() {
        let mut views = Views::new(State::default(), Settings::default());
        let mut happen = |event| views.handle(&event).map(|_| ());
        for n in [0, 1] {
            happen(ViewEvent::Ping(ping(n, 1, Role::Backup))).unwrap();
        }
        let wish = |n| {
            ViewEvent::Register(Register {
                vm: vm(n),
                primary: Some(host(0)),
                backup: Some(host(1)),
            })
        };
        (0..MAX_VMS).for_each(|n| happen(wish(n)).unwrap());
        assert!(happen(wish(MAX_VMS)).is_err());
        let solo = ping(0, 2, Role::Solo);
        assert!(to_line(&Request::Ping(solo.clone())).len() <= MAX_REQUEST);
        happen(ViewEvent::Ping(solo)).unwrap();
        (1..MAX_HOSTS).for_each(|n| happen(ViewEvent::Ping(ping(n, 0, Role::Backup))).unwrap());
        assert!(happen(ViewEvent::Ping(ping(MAX_HOSTS, 0, Role::Backup))).is_err());

        let status = views.status();
        assert_eq!((status.vms.len(), status.hosts.len()), (MAX_VMS, MAX_HOSTS));
        assert!(status.vms.iter().all(|vm| vm.named.is_some()));
        let orders = views.orders(&host(0));
        assert_eq!(orders.assignments.len(), MAX_VMS);
        assert!(to_line(&Reply::Orders(orders)).len() <= MAX_REPLY);
        // Roles as every host of a VM's two views may have told them.
        let mut status = status;
        for vm in &mut status.vms {
            vm.roles = (0..4).map(|n| (host(n), Role::Primary)).collect();
        }
        assert!(to_line(&Reply::Status(status)).len() <= MAX_REPLY);
        assert!(to_line(views.state()).len() as u64 <= crate::store::MAX_FILE);
    }

    /// As many machines as there may be, each as large as it may be, on two hosts that say all they can.
    #[test]
    fn the_largest_messages_of_supervisors_fit() {
        let mut views = Views::new(State::default(), Settings::default());
        let long = |most: usize| "\u{1}".repeat(most);
        let ping = |n: usize| HostPing {
            host: host(n),
            supervisor: long(64),
            address: Address::new("y".repeat(Address::MAX)).unwrap(),
            room: crate::Room {
                memory_mib: u64::MAX,
                kvm: Some(long(64)),
                cpu_models: vec!["v1".into(); 8],
                maker: long(64),
                processor: long(64),
                vms: None,
            },
            runs: (0..MAX_VMS).map(|n| vm(n + MAX_VMS)).collect(),
            failed: (0..crate::FAILED_MAX)
                .map(|n| crate::Failed {
                    vm: vm(n),
                    view: ViewNumber(1),
                    why: long(crate::REASON_MAX),
                })
                .collect(),
        };
        for n in [0, 1] {
            assert!(to_line(&Request::Host(ping(n))).len() <= MAX_REQUEST);
            views.handle(&ViewEvent::Host(ping(n))).unwrap();
        }
        let mut machine = crate::Machine {
            memory_mib: 64,
            cpu: "v1".into(),
            unlike_hosts: true,
            ..crate::Machine::default()
        };
        machine.guest = "g".repeat(crate::fleet::MACHINE_MAX - machine.bytes());
        for n in 0..MAX_VMS {
            let (vm, machine) = (vm(n), machine.clone());
            let anew = true;
            views
                .handle(&ViewEvent::Up(Up { vm, machine, anew }))
                .unwrap();
        }
        let orders = [0, 1].map(|n| views.host_orders(&host(n)));
        let all: usize = orders.iter().map(|orders| orders.start.len()).sum();
        assert_eq!(all, MAX_VMS, "backups are started first");
        for orders in orders {
            assert!(to_line(&Reply::HostOrders(orders)).len() <= MAX_REPLY);
        }
        let status = views.status();
        assert!(status.vms.iter().any(|vm| vm.trouble.is_some()));
        assert!(to_line(&Reply::Status(status)).len() <= MAX_REPLY);
        assert!(to_line(views.state()).len() as u64 <= crate::store::MAX_FILE);
        machine.guest += "g";
        let (vm, anew) = (vm(MAX_VMS), false);
        assert!(
            views
                .handle(&ViewEvent::Up(Up { vm, machine, anew }))
                .is_err()
        );
    }
}
