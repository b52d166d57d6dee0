//! What a replica is started with.

use crate::address::HostPort;
use crate::die::DieAt;
use crate::error::Outcome;
use crate::machine::{Blueprint, EngineChoice, Images};
use crate::notice::{Log, Notice};
use crate::outside::Plugs;
use crate::partners::Partners;
use crate::reads::DiskReads;
use logchannel::Settings;
use std::num::NonZeroU64;
use std::time::Duration;
use testandset::{Arbiter, Contender, StoreId, VmId};
use tls::Security;
use vmm::processor::HostProcessor;

/// What both replicas of a machine are told.
pub struct ReplicaSpec {
    /// The machine's name, the same on both sides and with the arbiter.
    pub vm: VmId,
    /// This host's name in views.
    pub host: String,
    /// Who keeps the flags.
    pub arbiter: Box<dyn Arbiter>,
    /// How connections to the other replica and the viewservice are protected.
    pub security: Security,
    /// A viewservice to report to, as HOST:PORT.
    pub viewservice: Option<HostPort>,
    /// Bound of the log buffer, in bytes.
    pub log_buffer_bytes: u64,
    /// Milliseconds of silence after which the other side is suspected.
    pub suspect_ms: u32,
    /// Most bytes a second at which a machine's memory goes to a new backup while its guest runs; none: as fast
    /// as it goes.
    pub handover_bytes_s: Option<NonZeroU64>,
    /// Where this process kills itself, which only tests ask for.
    pub die_at: Option<DieAt>,
}

impl ReplicaSpec {
    pub(crate) fn settings(&self) -> Settings {
        Settings {
            suspect_ms: self.suspect_ms,
            ..Settings::default()
        }
    }

    pub(crate) fn partners(&self) -> Partners {
        Partners::new(self.security.clone(), self.vm.clone())
    }

    /// Names this replica for the arbiter, and asks that for the store it keeps its flags in.
    pub(crate) fn at_arbiter(&self, role: &str, log: &mut Log) -> Outcome<(Contender, StoreId)> {
        let incarnation = self.incarnation(role)?;
        self.arbiter.check()?;
        let store = self.arbiter.store()?;
        log.note(Notice::ArbiterStore(store));
        Ok((incarnation, store))
    }

    /// No two incarnations share a name.
    fn incarnation(&self, role: &str) -> Outcome<Contender> {
        let started_ns = vmm::hostclock::wall_ns();
        let name = Contender::of(&self.host, role, std::process::id(), started_ns)?;
        // Its mark must fit too: better refused now than at the end.
        name.end_mark()?;
        Ok(name)
    }
}

/// What a replica that begins as primary is told.
pub struct PrimarySpec {
    /// What both are told.
    pub replica: ReplicaSpec,
    /// The machine.
    pub machine: Blueprint,
    /// What is to run it.
    pub engine: EngineChoice,
    /// What stands behind its devices.
    pub plugs: Plugs,
    /// Where the backup listens.
    pub backup: HostPort,
    /// The backup's host, as the viewservice knows it; `None`: that chooses one.
    pub backup_host: Option<String>,
    /// The viewservice has named the machine's first view with this host as its primary; if not, it is asked to.
    pub ordered: Option<Ordered>,
    /// The view to begin in, if its operator vouches for the one before it being over.
    pub view: Option<u64>,
    /// Bound of execution lag in milliseconds: the guest is slowed gradually from half of it on.
    pub lag_max_ms: u32,
    /// The guest is to stop if the backup is lost before it has acked anything.
    pub require_backup: bool,
    /// Where the backup has from what the guest read from the disk.
    pub disk_reads: DiskReads,
    /// Two KVM hosts with processors of different makers may be a pair.
    pub unlike_hosts: bool,
    /// Where it waits as a backup once it has left the machine to its own; `None`: at a free port of the address
    /// from which it reached that.
    pub listen: Option<HostPort>,
    /// Where guests' images are found then.
    pub images: Box<dyn Images>,
    /// What only tests ask for.
    pub for_tests: ForTests,
}

/// A start by the viewservice's order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ordered {
    /// The operator vouches for no replica of an earlier life of the machine being left, though none marked its end.
    pub anew: bool,
}

/// What only tests ask for.
#[derive(Clone, Debug, Default)]
pub struct ForTests {
    /// The processor the backup is told of instead of this host's.
    pub processor: Option<HostProcessor>,
    /// Longest time the guest's end waits for its console's reader.
    pub last_words: Option<Duration>,
}

/// What a replica that begins as backup is told.
pub struct BackupSpec {
    /// What both are told.
    pub replica: ReplicaSpec,
    /// Where to listen for the primary.
    pub listen: HostPort,
    /// What stands behind the machine's devices once it is live.
    pub plugs: Plugs,
    /// What is to run it.
    pub engine: EngineChoice,
    /// Where guests' images are found.
    pub images: Box<dyn Images>,
    /// The image, if it is not where the primary has it.
    pub image: Option<String>,
    /// Its initial file system, likewise.
    pub initrd: Option<String>,
}
