//! A replica that begins as primary.

use crate::backup;
use crate::body::{Body, Wire};
use crate::claim::{Claims, Wish};
use crate::control::{Alone, Control, Join, Stopping};
use crate::die::{DieAt, Mortal};
use crate::disk;
use crate::duty::Duty;
use crate::error::{During, Outcome, ReplicaError};
use crate::join::Orders;
use crate::journal::{Channel, Exit, Journal};
use crate::lead::{Terms, note_link};
use crate::lease::Lease;
use crate::machine::{AnyMachine, Proposal, prepare};
use crate::notice::{Log, Notice};
use crate::outside;
use crate::report::{self, Reporter};
use crate::role::RoleMachine;
use crate::spec::{BackupSpec, PrimarySpec};
use crate::vcpu;
use crate::{HostPort, Mailbox};
use logchannel::offer;
use replay::codec::to_bytes;
use replay::recorder::{Recorder, StatePace};
use replay::{Base, ViewNumber};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;
use vmm::backends::ArrivalSink;
use vmm::backends::station::Station;
use vmm::machine::live::{GuestTime, Inbox, Live};

/// Longest time for the backup to answer.
const HANDSHAKE: Duration = Duration::from_secs(20);

/// The life of a replica that begins as primary, on its control thread. Once it has left its machine to its backup it
/// may have another one, as a backup.
///
/// # Errors
/// Why it did not begin, or how it ended if not well.
pub fn run(spec: PrimarySpec, log: &mut Log, mailbox: &Mailbox) -> Outcome {
    let replica = &spec.replica;
    let (incarnation, store) = replica.at_arbiter("primary", log)?;
    let prepared = prepare(spec.machine, spec.engine)?;
    if let Some(remark) = prepared.remark() {
        log.note(Notice::Engine(remark));
    }
    let mut origin = prepared.origin();
    if let (Some(host), Some(pretended)) = (&mut origin.processor, spec.for_tests.processor) {
        *host = pretended;
    }
    let mac = origin.config.mac;
    let inbox = Inbox::new();
    let orders = Orders::new(inbox.clone());
    let sink: Arc<dyn ArrivalSink> = inbox.clone();
    let lease = Lease::new();
    let used = outside::Use::Replica(lease.clone(), spec.disk_reads);
    let station = Station::of(mac);
    let outside = outside::plug_in(used, &spec.plugs, &station, &sink)
        .during("cannot plug the machine in")?;
    let proposal = Proposal {
        origin,
        unlike_hosts: spec.unlike_hosts,
        own_disk: outside.disk.is_own(),
        disk_reads: spec.disk_reads,
        disk_digest: None,
    };
    let disk_digest = outside.disk.digest()?;
    // The backup may have to do the same.
    let patience = disk::patience(spec.plugs.own_disk())?;
    let terms = Terms {
        vm: replica.vm.clone(),
        incarnation: incarnation.clone(),
        store,
        partners: replica.partners(),
        settings: replica.settings(),
        proposal: to_bytes(&proposal),
        log_buffer_bytes: replica.log_buffer_bytes,
        handover_bytes_s: replica.handover_bytes_s,
        lag_max_ms: spec.lag_max_ms,
        die_at: replica.die_at,
        last_words: spec.for_tests.last_words.unwrap_or(outside::LAST_WORDS),
    };

    let (vcpu_inbox, vcpu_orders, die_at) = (inbox.clone(), orders.clone(), replica.die_at);
    let vcpu = vcpu::begin(
        move || prepared.boot(),
        mailbox.sender.clone(),
        move |mut machine, (channel, exit)| {
            machine.tell_station(station);
            let duty = lead(&machine, channel, exit, vcpu_inbox, die_at)?;
            Ok(vcpu::run(machine, duty, &vcpu_orders))
        },
    )?
    .wait()?;

    let socket = connect(&spec.backup)?;
    let here = socket.local_addr().during("the link to the backup")?;
    let there = socket.peer_addr().during("the link to the backup")?;
    let any_port = SocketAddr::new(here.ip(), 0);
    let listen = spec.listen.unwrap_or_else(|| any_port.into());
    let identity = report::identity(replica, &here.to_string())?;
    let wish = match (&identity, spec.view) {
        (Some(identity), _) => match spec.ordered {
            Some(ordered) => Wish::Ordered {
                view: identity.named()?,
                anew: ordered.anew,
            },
            None => Wish::Service(identity.register(spec.backup_host.as_deref())?),
        },
        (None, Some(view)) => Wish::Operator(ViewNumber(view)),
        (None, None) => Wish::Next,
    };
    let claims = Claims {
        arbiter: &*replica.arbiter,
        vm: &replica.vm,
        who: &incarnation,
    };
    let view = claims.begin(wish)?;
    log.note(Notice::Begins(view));
    let reporter = Reporter::start(identity, mailbox.sender.clone())?;
    let mut hello = terms.hello(Base::boot(view, vcpu.first_state));
    // A joiner will not be told: it is sent the disk.
    hello.config = to_bytes(&Proposal {
        disk_digest,
        ..proposal
    });
    let socket = terms
        .partners
        .call(socket)
        .during("the link to the backup")?;
    let linked = offer(socket, &hello, HANDSHAKE + patience)
        .map_err(ReplicaError::from)
        .and_then(|connection| {
            note_link(&connection, terms.settings, log);
            let control = mailbox.sender.clone();
            terms.start(connection, there, &outside, lease.clone(), control, 0)
        });
    let link = linked.inspect_err(|_| {
        // Nothing has run in this view: another start may follow.
        if let Err(e) = claims.mark_end(view) {
            tracing::warn!("{e}");
        }
    })?;
    let role = RoleMachine::primary(view);
    mailbox.tell_status(&role, 0);
    log.note(Notice::Primary {
        vm: &replica.vm,
        backup: &spec.backup.to_string(),
    });
    let (channel, leads) = terms.split(link, &outside);
    let thread = vcpu.start(channel)?;
    let body = Body::new(Wire::Leads(leads), inbox, outside, lease, thread);
    let port = Control {
        role,
        body,
        arbiter: &*spec.replica.arbiter,
        terms,
        orders,
        join: Join::with(spec.backup),
        listen,
        log,
        reporter,
        mailbox,
        stopping: Stopping::default(),
        alone: Alone::allowed(!spec.require_backup),
    }
    .run()?;
    let Some(port) = port else {
        return Ok(());
    };
    // As a backup, from now on.
    let then = BackupSpec {
        replica: spec.replica,
        listen: port.local_addr().during("cannot listen")?.into(),
        plugs: spec.plugs,
        engine: spec.engine,
        images: spec.images,
        image: None,
        initrd: None,
    };
    backup::run(&then, Some(port), log, mailbox)
}

fn connect(backup: &HostPort) -> Outcome<TcpStream> {
    backup.connect(Duration::from_secs(5)).during(format_args!(
        "cannot reach the backup at {backup} (is 'tandem backup' running?)"
    ))
}

/// The duty of a replica that leads from the machine's first instruction on, for the calling vCPU thread.
fn lead(
    machine: &AnyMachine,
    channel: Channel,
    exit: Exit,
    inbox: Arc<Inbox>,
    die_at: Option<DieAt>,
) -> Outcome<Duty> {
    inbox.gather_frames(true);
    channel.begin_reads(&[]);
    let live = Live::new(inbox, GuestTime::default(), true).during("no timer")?;
    let pages = machine.config().memory_bytes() / 4096;
    let journal = Mortal::new(Journal::Linked(Box::new(channel)), die_at);
    let recorder = Recorder::new(live, journal, exit, StatePace::default(), pages);
    Ok(Duty::lead(recorder))
}
