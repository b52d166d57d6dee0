//! One replica of a protected machine: the product.
//!
//! ```text
//!            control thread                                vCPU thread
//!   link end ─▶ role machine ◀── drained, ended, failed ── run loop ── Duty (its inputs)
//!   flag ─────▶     │                                                   │ Following: log
//!                   ├─▶ arbiter, viewservice                            │ Leading: live world,
//!                   └─▶ Body: gate, go-live, halt ───────────────────▶  │   logged or not
//! ```
//!
//! A replica's duty is a state of it, not a type: a backup that goes live is the same object with another
//! duty. Who started it holds a [`Replica`], and whoever wants to know or to stop it a [`Handle`].
//!
//! This crate reads no command line and prints nothing: what it needs stands in a [`PrimarySpec`] or a
//! [`BackupSpec`], and what happens to it is told as [`Notice`]s.
//!
//! # Example
//!
//! A pair, here in one process, whose guest survives the loss of its primary.
//!
//! ```
//! use replica::machine::{Blueprint, EngineChoice, Images};
//! use replica::outside::Plugs;
//! use replica::{BackupSpec, Events, ForTests, HostPort, Notice, PrimarySpec, Replica, ReplicaSpec, Role};
//! use std::sync::mpsc::{Receiver, Sender, channel};
//! # use replica::machine::Image;
//! # use vmm::machine::{GuestImage, ImageSource};
//! use testandset::{SharedDisk, VmId};
//! use vmm::machine::MachineConfig;
//! # /// The guests that are built in.
//! # struct BuiltIn;
//! # struct Loaded(guests::Image);
//! # impl Images for BuiltIn {
//! #     fn load(&self, name: &str, initrd: Option<&str>) -> Result<Box<dyn Image>, String> {
//! #         Ok(Box::new(Loaded(guests::load(name, initrd).map_err(|e| e.to_string())?)))
//! #     }
//! # }
//! # impl Image for Loaded {
//! #     fn name(&self) -> &str { &self.0.name }
//! #     fn bytes(&self) -> GuestImage<'_> { self.0.bytes() }
//! #     fn digest(&self) -> u64 { self.0.digest }
//! #     fn into_source(self: Box<Self>, _: bool) -> Box<dyn ImageSource> { self.0.into_source(None) }
//! # }
//!
//! /// Passes on what a replica tells.
//! struct Tell(Sender<String>);
//!
//! impl Events for Tell {
//!     fn note(&mut self, _at_ns: u64, notice: &Notice<'_>) {
//!         let _ = self.0.send(format!("{notice:?}")); // whoever listens may be gone
//!     }
//! }
//!
//! /// Waits until a replica tells something that begins with `what`; all of that.
//! fn hear(told: &Receiver<String>, what: &str) -> String {
//!     told.iter().find(|notice| notice.starts_with(what)).expect(what)
//! }
//!
//! let flags = tempfile::tempdir()?; // on storage that both hosts share
//! let terms = || ReplicaSpec {
//!     vm: VmId::new("web").unwrap(),
//!     host: "here".into(),
//!     arbiter: Box::new(SharedDisk::open(flags.path()).unwrap()),
//!     security: tls::Security::Loopback,
//!     viewservice: None,
//!     log_buffer_bytes: 64 << 20,
//!     suspect_ms: 10_000,
//!     handover_bytes_s: None,
//!     die_at: None,
//! };
//! let plugs = Plugs { quiet: true, ..Plugs::default() };
//!
//! let (tell, from_backup) = channel();
//! let backup = BackupSpec {
//!     replica: terms(),
//!     listen: HostPort::to_listen("127.0.0.1:0")?,
//!     plugs: plugs.clone(),
//!     engine: EngineChoice::Soft,
//!     images: Box::new(BuiltIn),
//!     image: None,
//!     initrd: None,
//! };
//! let backup = Replica::backup(backup, Box::new(Tell(tell)))?;
//! let listening = hear(&from_backup, "Listening(");
//! let address = listening.trim_start_matches("Listening(").trim_end_matches(')');
//!
//! let (tell, from_primary) = channel();
//! let image = BuiltIn.load("counter", None)?;
//! let config = MachineConfig::bare("counter", image.digest(), "hz=1000 ticks=1000000000");
//! let primary = PrimarySpec {
//!     replica: terms(),
//!     machine: Blueprint { config, image },
//!     engine: EngineChoice::Soft,
//!     plugs,
//!     backup: HostPort::to_connect(address)?,
//!     lag_max_ms: 500,
//! #   backup_host: None,
//! #   ordered: None,
//! #   view: None,
//! #   disk_reads: Default::default(),
//! #   require_backup: false,
//! #   unlike_hosts: false,
//! #   listen: None,
//! #   images: Box::new(BuiltIn),
//! #   for_tests: ForTests::default(),
//!     // ...
//! };
//! let primary = Replica::primary(primary, Box::new(Tell(tell)))?;
//! hear(&from_primary, "Primary");
//! hear(&from_backup, "Backup");
//!
//! primary.handle().halt("its host died");
//! hear(&from_backup, "FlagWon");
//! hear(&from_backup, "Live");
//! assert_eq!(backup.handle().status().role, Some(Role::Solo));
//! assert!(primary.wait().is_err());
//!
//! backup.handle().stop();
//! backup.wait()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod address;
mod asked;
mod backup;
mod body;
mod brake;
mod callers;
mod claim;
mod control;
mod die;
mod disk;
mod duty;
mod error;
mod gate;
mod gatekeeper;
mod join;
mod journal;
mod last_words;
mod lead;
mod lease;
pub mod machine;
mod notice;
pub mod outside;
mod partners;
mod primary;
mod reads;
mod report;
pub mod role;
mod spec;
mod suppressed;
mod vcpu;

pub use address::HostPort;
pub use asked::Told;
pub use brake::{Brake, Moment};
pub use die::{DieAt, Mortal};
pub use duty::{Duty, Heir, Kept, Leading};
pub use error::{During, Outcome, ReplicaError};
pub use gate::{OutputGate, SharedGate};
pub use gatekeeper::{GateOutlet, Gatekeeper, Unprinted};
pub use join::Cost;
pub use journal::{Exit, Journal};
pub use last_words::{LastWords, is_well, of_status};
pub use lease::{Lease, Term};
pub use notice::{Counters, Events, Notice};
pub use reads::DiskReads;
pub use role::{Role, RoleMachine};
pub use spec::{BackupSpec, ForTests, Ordered, PrimarySpec, ReplicaSpec};
pub use suppressed::Suppressed;

use asked::{Ask, Asker};
use notice::Log;
use replay::ViewNumber;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use vmm::machine::Ended;

/// What reaches the control thread.
enum Message {
    /// A link ended: the one with this number, by the order of this replica's links.
    Link(u64, logchannel::LinkEnd),
    /// The vCPU thread has something to say.
    Vcpu(VcpuEvent),
    /// Somebody asks for an orderly end of the machine.
    StopAsked,
    /// Somebody asks for the end of this replica alone, at once.
    HaltAsked(String),
    /// Somebody wants something done with the machine.
    Asked(Ask, Asker),
    /// A joiner has the machine, or why it has not.
    Joined(Outcome<join::Joined>),
    /// This joiner is the backup now.
    Welcomed,
    /// This backup's disk is no copy of its primary's any more.
    DiskFailed(String),
}

/// What a vCPU thread says.
enum VcpuEvent {
    /// A backup executed every entry there is; it waits to be told to go live.
    Drained {
        /// What it suppressed and nobody may have seen.
        outputs: Suppressed,
        /// To be answered with whether to go live.
        reply: SyncSender<bool>,
    },
    /// The guest takes live inputs from now on.
    Live {
        /// Frames that were seen but not logged by the dead primary.
        frames: usize,
    },
    /// The machine ended.
    Ended {
        /// How.
        ended: Ended,
        /// What was suppressed and nobody may have seen.
        outputs: Suppressed,
    },
    /// The guest could not go on, which ends the machine for both replicas.
    Broke {
        /// Why, in one line.
        why: String,
        /// What was suppressed and nobody may have seen.
        outputs: Suppressed,
    },
    /// Replay differs from the recording.
    Diverged(String),
    /// The machine cannot go on.
    Failed(String),
}

/// What a replica is now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Its role in its view; `None` before it has one, and after its end.
    pub role: Option<Role>,
    /// Its view.
    pub view: ViewNumber,
    /// How far execution lags behind, in milliseconds.
    pub lag_ms: u64,
}

/// The two ends through which a replica's control thread is spoken to, and what it says of itself.
struct Mailbox {
    /// Keeps `messages` open: everybody else who speaks there, vCPU thread, link and handles, may be gone,
    /// and this replica may have to go on asking for its flag then.
    sender: Sender<Message>,
    messages: Receiver<Message>,
    status: Arc<Mutex<Status>>,
}

impl Mailbox {
    /// Says what the replica is from now on: before anybody is told so by a notice.
    fn tell_status(&self, role: &RoleMachine, lag_ms: u64) -> Status {
        let status = Status {
            role: role.role(),
            view: role.view(),
            lag_ms,
        };
        *self.status.lock().unwrap_or_else(PoisonError::into_inner) = status;
        status
    }
}

/// A replica that was started. It lives until its role is final; dropping this does not end it.
pub struct Replica {
    control: JoinHandle<Outcome>,
    handle: Handle,
}

/// What others may do with a replica.
#[derive(Clone)]
pub struct Handle {
    to_control: Sender<Message>,
    status: Arc<Mutex<Status>>,
}

impl Replica {
    /// Starts a replica that leads: boots the machine, calls the backup, and runs the guest once the two
    /// agree on it.
    ///
    /// # Errors
    /// If there is no thread for it. All else is told by [`Self::wait`].
    pub fn primary(spec: PrimarySpec, events: Box<dyn Events>) -> Outcome<Self> {
        Self::start(move |mailbox| primary::run(spec, &mut Log(events), &mailbox))
    }

    /// Starts a replica that follows: waits for a primary, replays its log, and goes live if that dies.
    ///
    /// # Errors
    /// If there is no thread for it. All else is told by [`Self::wait`].
    pub fn backup(spec: BackupSpec, events: Box<dyn Events>) -> Outcome<Self> {
        Self::start(move |mailbox| backup::run(&spec, None, &mut Log(events), &mailbox))
    }

    fn start(life: impl FnOnce(Mailbox) -> Outcome + Send + 'static) -> Outcome<Self> {
        let (sender, messages) = channel();
        let status = Arc::new(Mutex::new(Status::default()));
        let handle = Handle {
            to_control: sender.clone(),
            status: status.clone(),
        };
        let mailbox = Mailbox {
            sender,
            messages,
            status,
        };
        let control = std::thread::Builder::new()
            .name("control".into())
            .spawn(move || life(mailbox))
            .during("cannot start a thread")?;
        Ok(Self { control, handle })
    }

    /// What others may do with it.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Waits until it is over.
    ///
    /// # Errors
    /// Why it did not start, or how it ended if not well.
    pub fn wait(self) -> Outcome {
        self.control
            .join()
            .unwrap_or_else(|_| Err(ReplicaError::refused("the control thread failed")))
    }
}

impl Handle {
    /// What the replica is now.
    #[must_use]
    pub fn status(&self) -> Status {
        *self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for an orderly end: of the machine, if this replica leads it or its flag is this one's. A
    /// backup leaves its primary alone. Nothing happens to a replica that is over.
    pub fn stop(&self) {
        let _ = self.to_control.send(Message::StopAsked);
    }

    /// Gives a machine that runs alone a new backup, which waits at `backup` as for a primary. A machine whose
    /// views a viewservice keeps takes none: it is given its backups by the service. Returns at once, with what
    /// will be told of it, to which nobody has to listen. Notices ([`Notice::Protected`], [`Notice::JoinFailed`])
    /// and the status tell it, too.
    pub fn protect(&self, backup: HostPort) -> Receiver<Told> {
        self.ask(Ask::Protect(backup))
    }

    /// Moves a machine that runs alone to the backup that waits at `to`: gives it that backup, and leaves it the
    /// machine as soon as it has taken part. This replica is over then, without a failure. If the backup is not
    /// to be had the machine goes on here ([`Notice::JoinFailed`]). Returns as [`Self::protect`].
    pub fn move_to(&self, to: HostPort) -> Receiver<Told> {
        self.ask(Ask::Move(to))
    }

    /// Has the two replicas of a pair change roles: this one, the primary, leaves the machine to its backup, as soon
    /// as that has taken part, and follows it then. The backup goes live as after a loss, and gives the machine to
    /// this replica, which waits for it ([`PrimarySpec::listen`], [`BackupSpec::listen`]); with a viewservice it does
    /// so when that says. Returns as [`Self::protect`].
    pub fn failover(&self) -> Receiver<Told> {
        self.ask(Ask::Leave { follows: true })
    }

    /// Leaves the machine of a pair to its backup as [`Self::failover`] does, but this replica is over then, without
    /// a failure, and the machine runs alone.
    pub fn leave(&self) -> Receiver<Told> {
        self.ask(Ask::Leave { follows: false })
    }

    fn ask(&self, ask: Ask) -> Receiver<Told> {
        let (asker, told) = Asker::new();
        // Of a replica that is over nothing is told.
        let _ = self.to_control.send(Message::Asked(ask, asker));
        told
    }

    /// Ends this replica alone, at once: nothing leaves it any more, and the other one finds its link
    /// closed, as if this host had died.
    pub fn halt(&self, why: impl Into<String>) {
        let _ = self.to_control.send(Message::HaltAsked(why.into()));
    }
}
