//! What a replica leads a pair with, whenever it begins to: at the start, or with a new backup later.

use crate::Message;
use crate::body::Leads;
use crate::brake::Brake;
use crate::die::DieAt;
use crate::error::{During, Outcome};
use crate::gatekeeper::Gatekeeper;
use crate::journal::{Channel, Exit};
use crate::lease::Lease;
use crate::notice::{Log, Notice};
use crate::outside::{Outside, Released};
use crate::partners::Partners;
use logchannel::{Connection, Hello, Sender, SenderOptions, Settings, Tether};
use replay::{Base, ViewNumber};
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc;
use std::time::Duration;
use testandset::{Contender, StoreId, VmId};

/// What a replica says to a backup, and how it treats its link; the same as long as the replica lives.
pub struct Terms {
    /// The machine.
    pub vm: VmId,
    /// This replica, as the arbiter knows it.
    pub incarnation: Contender,
    /// Which store its arbiter keeps the flags in.
    pub store: StoreId,
    /// Who may be its backup.
    pub partners: Partners,
    /// How the link is to watch itself.
    pub settings: Settings,
    /// The machine's configuration, as [`crate::machine::Proposal`].
    pub proposal: Vec<u8>,
    /// Bound of the log buffer.
    pub log_buffer_bytes: u64,
    /// Most bytes a second of the machine's way to a new backup.
    pub handover_bytes_s: Option<NonZeroU64>,
    /// Bound of execution lag.
    pub lag_max_ms: u32,
    /// Where this process is to die, for tests.
    pub die_at: Option<DieAt>,
    /// Longest wait for the console's reader at the guest's end.
    pub last_words: Duration,
}

impl Terms {
    /// What is said first to a backup of the log that begins at `base`.
    pub fn hello(&self, base: Base) -> Hello {
        Hello {
            vm: self.vm.to_string(),
            incarnation: self.incarnation.to_string(),
            base,
            store: self.store.to_bytes(),
            settings: self.settings,
            config: self.proposal.clone(),
        }
    }

    /// Starts to send over `connection`, to the backup at `backup`; `control` is told when the link ends, this
    /// replica's link `number`.
    ///
    /// # Errors
    /// If the system has no threads or descriptors left.
    pub fn start(
        &self,
        connection: Connection,
        backup: SocketAddr,
        outside: &Arc<Outside>,
        lease: Arc<Lease>,
        control: mpsc::Sender<Message>,
        number: u64,
    ) -> Outcome<Started> {
        let console = outside.clone();
        let keeper = Gatekeeper::with_disk(
            connection.base().index,
            Box::new(Released(outside.clone())),
            lease,
            Box::new(move || console.unprinted()),
            outside.disk.clone(),
        );
        let options = SenderOptions {
            buffer_max: self.log_buffer_bytes,
        };
        let on_end = move |end| {
            let _ = control.send(Message::Link(number, end));
        };
        let mut sender = Sender::start(connection, keeper.clone(), options, on_end)
            .during("cannot start the logging channel")?;
        let partners = self.partners.clone();
        let tether = Tether::to(backup, &self.incarnation.to_string())
            .secured(move |socket| partners.call(socket));
        sender.tie(tether).during("cannot tie the replicas")?;
        Ok(Started { sender, keeper })
    }

    /// The two halves of a link that was started: the vCPU's, and the control thread's.
    pub fn split(&self, started: Started, outside: &Arc<Outside>) -> ((Channel, Exit), Leads) {
        let Started { sender, keeper } = started;
        let brake = Brake::new(self.lag_max_ms);
        let braked_us = Arc::new(AtomicU64::new(0));
        let (handle, asked) = (sender.handle(), brake.clone());
        let channel = Channel::new(
            sender,
            &keeper,
            brake,
            braked_us.clone(),
            outside.clone(),
            self.last_words,
        );
        let leads = Leads {
            sender: handle,
            brake: asked,
            braked_us,
            memory_seen: channel.0.memory_seen(),
        };
        (channel, leads)
    }
}

/// A link that was started, and the gate and lease that are kept for it.
pub struct Started {
    sender: Sender,
    keeper: Arc<Gatekeeper>,
}

/// Notes what there is to know of a link that was agreed on.
pub fn note_link(connection: &Connection, wished: Settings, log: &mut Log) {
    if let Some(remark) = connection.remark() {
        log.note(Notice::UnlikeHosts(remark));
    }
    let settings = connection.settings();
    if settings != wished {
        log.note(Notice::FarApart {
            round_trip_ms: connection.round_trip_us() / 1_000,
            suspect_ms: settings.suspect_ms,
            wished_ms: wished.suspect_ms,
        });
    }
}

/// The base a running machine is offered with: its view only. Where its log begins is known when it pauses.
pub fn offered(view: ViewNumber) -> Base {
    Base {
        origin: replay::BaseOrigin::State,
        ..Base::boot(view, 0)
    }
}
