//! What the supervisors of hosts and the service say to each other, and what a machine is made of.
//!
//! ```text
//!   tandem up ──Up: name, Machine──▶ service ──HostOrders: start this replica──▶ supervisor ──▶ its process
//!                                       ▲                                            │            │
//!                                       └── HostPing: room, what runs, what failed ──┘            │
//!                                       └──────────── Ping: what the replica is ──────────────────┘
//! ```
//!
//! A supervisor says what its host has and which processes there are. What a replica is, it says itself, so it goes
//! on being heard while its supervisor is down.

use crate::machine::MAX_VMS;
use crate::{Address, HostId, Role, View, ViewNumber, VmId};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Most bytes of a [`Machine`] in JSON.
pub const MACHINE_MAX: usize = 4 << 10;

/// Most bytes of a reason that a supervisor gives, or that is told of a machine; what is longer is cut.
pub const REASON_MAX: usize = 512;

/// Most failures that a supervisor tells of at a time.
pub const FAILED_MAX: usize = 32;

/// Most bytes of a word that a supervisor says of its host.
const WORD_MAX: usize = 64;

/// Most machines that a host's certificate names and that are told of. One that may run more may run every one.
pub const NAMES_MAX: usize = 64;

/// `text`, cut to `most` bytes.
#[must_use]
pub fn cut(mut text: String, most: usize) -> String {
    let end = (0..=most).rfind(|at| text.is_char_boundary(*at));
    text.truncate(end.unwrap_or(0));
    text
}

/// What a replica takes of its host's memory besides its guest's, in MiB: the log buffer and a little more.
pub const REPLICA_MIB: u64 = 72;

/// What is to run a machine.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// KVM where the guest can be stopped exactly there, else the software engine.
    #[default]
    Auto,
    /// The host's KVM.
    Kvm,
    /// The software processor.
    Soft,
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Kvm => "kvm",
            Self::Soft => "soft",
        })
    }
}

/// A machine, as it is to be started: what the service looks at to place it, and words that it hands on to the hosts.
///
/// Files are named by their paths on the hosts, the same on all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// A built-in guest, or a file.
    pub guest: String,
    /// The guest's memory in MiB.
    pub memory_mib: u32,
    /// What is to run it.
    #[serde(default)]
    pub engine: Engine,
    /// Its CPU model, by name.
    pub cpu: String,
    /// Two KVM hosts with processors of different makers may be its pair.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unlike_hosts: bool,
    /// Where its network device is plugged in, on each host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub net: Option<String>,
    /// Its disk, on each host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<String>,
    /// Each host has a disk of its own, under that path.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub disk_copy: bool,
    /// Its initial file system, on each host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<String>,
    /// Other options of the primary, by name without dashes, and their values.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<(String, String)>,
    /// Options of both replicas, likewise.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub of_both: Vec<(String, String)>,
}

impl Machine {
    /// What a replica of it takes of a host's memory, in MiB.
    #[must_use]
    pub fn needs_mib(&self) -> u64 {
        u64::from(self.memory_mib) + REPLICA_MIB
    }

    /// The bytes it has in JSON.
    pub(crate) fn bytes(&self) -> usize {
        serde_json::to_vec(self).map_or(usize::MAX, |json| json.len())
    }
}

/// What a host has for replicas.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Room {
    /// Memory for replicas, in MiB, those that run included.
    pub memory_mib: u64,
    /// The kind of its KVM; `None`: it has none.
    pub kvm: Option<String>,
    /// CPU models it can run on KVM.
    pub cpu_models: Vec<String>,
    /// Its processor's maker.
    pub maker: String,
    /// Its processor, in words.
    pub processor: String,
    /// The machines it may run, by its certificate; `None`: every one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vms: Option<Vec<String>>,
}

/// Why a replica that was to run on a host does not.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Failed {
    /// Its machine.
    pub vm: VmId,
    /// The view it was to be in.
    pub view: ViewNumber,
    /// The reason, in one line.
    pub why: String,
}

/// A supervisor's sign of life.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HostPing {
    /// Its host.
    pub host: HostId,
    /// Which supervisor it is: the same after its restart, and no other's. So two of one name are told apart.
    pub supervisor: String,
    /// Where it listens.
    pub address: Address,
    /// What its host has.
    pub room: Room,
    /// The machines of which a process of it runs.
    pub runs: Vec<VmId>,
    /// What failed lately.
    #[serde(default)]
    pub failed: Vec<Failed>,
}

impl HostPing {
    /// The same, of which no more is kept than an honest supervisor says.
    pub(crate) fn bounded(&self) -> Self {
        let word = |text: &String| cut(text.clone(), WORD_MAX);
        let Room {
            memory_mib,
            kvm,
            cpu_models,
            maker,
            processor,
            vms,
        } = &self.room;
        Self {
            host: self.host.clone(),
            supervisor: word(&self.supervisor),
            address: self.address.clone(),
            room: Room {
                memory_mib: *memory_mib,
                kvm: kvm.as_ref().map(word),
                cpu_models: cpu_models.iter().take(8).map(word).collect(),
                maker: word(maker),
                processor: word(processor),
                vms: vms
                    .as_ref()
                    .map(|vms| vms.iter().take(NAMES_MAX).map(word).collect()),
            },
            runs: self.runs.iter().take(MAX_VMS).cloned().collect(),
            failed: (self.failed.iter().take(FAILED_MAX).cloned())
                .map(|failed| Failed {
                    why: cut(failed.why, REASON_MAX),
                    ..failed
                })
                .collect(),
        }
    }
}

/// A replica that a host is to have.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Wanted {
    /// Its machine.
    pub vm: VmId,
    /// What that is.
    pub machine: Machine,
    /// The view it is to begin in, which its primary has not acknowledged.
    pub view: View,
    /// What it is to be.
    pub role: Role,
    /// Of a primary: where its backup waits.
    pub backup: Option<Address>,
    /// Of a primary: the operator vouches for no replica of an earlier life of the machine being left.
    #[serde(default)]
    pub anew: bool,
}

/// The answer to a [`HostPing`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HostOrders {
    /// Replicas to start, where no process of the machine runs. A primary is among them only for a machine's first
    /// view, before anybody has acknowledged it, and once its backup waits.
    pub start: Vec<Wanted>,
    /// Machines of which a process only waits, for nothing: it is to be ended.
    pub dismiss: Vec<VmId>,
    /// How often to ping, in milliseconds.
    pub ping_interval_ms: u64,
}

/// A wish for a machine that the service places.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Up {
    /// Its name.
    pub vm: VmId,
    /// What it is.
    pub machine: Machine,
    /// The operator vouches for no replica of an earlier life of it being left, though none marked its end.
    #[serde(default)]
    pub anew: bool,
}

/// How a replica is to leave its machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Leave {
    /// And end.
    End,
    /// And wait to be the backup.
    Follow,
}
