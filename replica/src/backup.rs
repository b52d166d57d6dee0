//! A replica that begins as backup.

use crate::body::{Body, Follows, Wire};
use crate::callers::{Callers, is_stopped};
use crate::control::{Alone, Control, Join, Stopping};
use crate::die::{self, Step};
use crate::disk;
use crate::duty::{self, Heir};
use crate::error::{During, Outcome, ReplicaError};
use crate::join::{self, Arriving, Orders};
use crate::lead::Terms;
use crate::lease::Lease;
use crate::machine::{AnyMachine, Prepared, Proposal, check_pair, follow, prepare};
use crate::notice::{Log, Notice};
use crate::outside::{self, BackupSink, Outside};
use crate::report::{self, Identity, Reporter};
use crate::role::RoleMachine;
use crate::spec::BackupSpec;
use crate::suppressed::Suppressed;
use crate::vcpu::{self, Made, Making};
use crate::{Mailbox, Message};
use logchannel::{
    Caller, Connection, Given, Hello, Receiver, ReceiverOptions, StateReader, Tether,
};
use replay::BaseOrigin;
use replay::codec::{from_bytes, to_bytes};
use std::cell::Cell;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;
use testandset::StoreId;
use vmm::backends::ArrivalSink;
use vmm::backends::station::Station;
use vmm::machine::live::{GuestTime, Inbox};

/// Bound of execution lag, in milliseconds, of a replica that began as a backup and got one of its own.
const LAG_MAX_MS: u32 = 500;
/// Longest time for a primary's machine to be made here, once it has greeted.
const HANDSHAKE: Duration = Duration::from_secs(20);

/// The lives of a replica that begins as backup, on its control thread, the first of them at `port` if it listens
/// there already. Another one begins when it has left its machine to a backup of its own, which it follows then.
///
/// # Errors
/// Why one did not begin, or how it ended if not well.
pub fn run(
    spec: &BackupSpec,
    mut port: Option<TcpListener>,
    log: &mut Log,
    mailbox: &Mailbox,
) -> Outcome {
    loop {
        let callers = match port {
            Some(port) => Callers::of(port, spec.replica.partners())?,
            None => Callers::at(&spec.listen, spec.replica.partners())?,
        };
        port = life(spec, callers, log, mailbox)?;
        if port.is_none() {
            return Ok(());
        }
    }
}

/// One life of it. Returns as [`Control::run`].
fn life(
    spec: &BackupSpec,
    mut callers: Callers,
    log: &mut Log,
    mailbox: &Mailbox,
) -> Outcome<Option<TcpListener>> {
    let replica = &spec.replica;
    let (incarnation, store) = replica.at_arbiter("backup", log)?;
    let address = callers.address()?;
    let mut identity = report::identity(replica, &address.to_string())?;
    // One that listens everywhere does not say where: it cannot be called by a word of the viewservice.
    if !address.ip().is_unspecified() {
        identity = identity.map(Identity::that_waits);
    }
    // Before anybody hears where it listens: a primary's backup is refused that the service has not heard of.
    if let Some(identity) = &identity {
        identity.hello();
    }
    let reporter = Reporter::start(identity, mailbox.sender.clone())?;
    log.note(Notice::Listening(address));
    let inbox = Inbox::new();
    let orders = Orders::new(inbox.clone());
    let rig = Rig {
        spec,
        store,
        inbox: &inbox,
        orders: &orders,
        control: &mailbox.sender,
    };
    let accepted = rig.accept(&mut callers, mailbox, log)?;
    let Accepted {
        connection,
        hello,
        around,
        time,
        vcpu,
    } = accepted;
    let base = connection.base();
    let primary = connection.peer().ip();
    if base.origin == BaseOrigin::State {
        die::reached(replica.die_at, Step::Accepted);
    }
    let options = ReceiverOptions {
        buffer_max: usize::try_from(replica.log_buffer_bytes).unwrap_or(usize::MAX),
    };
    let control = mailbox.sender.clone();
    let on_end = move |end| {
        let _ = control.send(Message::Link(0, end));
    };
    let (role, started) = match base.origin {
        BaseOrigin::Boot => (
            RoleMachine::backup(base.view),
            Receiver::start(connection, options, on_end),
        ),
        BaseOrigin::State => {
            let control = mailbox.sender.clone();
            let on_welcome = move |_| {
                let _ = control.send(Message::Welcomed);
            };
            (
                RoleMachine::joiner(base.view),
                Receiver::start_joiner(connection, options, on_end, on_welcome),
            )
        }
    };
    let mut receiver = started.during("cannot start the logging channel")?;
    let partners = replica.partners();
    let tether = Tether::at(callers.into_listener(), &hello.incarnation)
        .secured(move |socket| partners.answer(socket));
    // A killed primary may be in the midst of a write to a disk they share.
    let tether = match spec.plugs.disk {
        Some(_) if !spec.plugs.disk_copy => tether.of_life_only(),
        _ => tether,
    };
    receiver.tie(tether).during("cannot tie the replicas")?;
    mailbox.tell_status(&role, 0);
    log.note(Notice::Backup {
        vm: &replica.vm,
        of: &hello.incarnation,
    });
    if let Some(remark) = around.remark {
        log.note(Notice::Engine(remark));
    }
    if let Some(warning) = &around.warning {
        log.note(Notice::UnlikeHosts(warning));
    }
    let terms = Terms {
        vm: replica.vm.clone(),
        incarnation,
        store,
        partners: replica.partners(),
        settings: replica.settings(),
        proposal: to_bytes(&around.proposal),
        log_buffer_bytes: replica.log_buffer_bytes,
        handover_bytes_s: replica.handover_bytes_s,
        lag_max_ms: LAG_MAX_MS,
        die_at: replica.die_at,
        last_words: outside::LAST_WORDS,
    };
    let follows = Follows {
        receiver: receiver.handle(),
        primary,
        outputs: Suppressed::new(),
        reply: None,
    };
    let thread = vcpu.start((receiver, time))?;
    let body = Body::new(
        Wire::Follows(follows),
        inbox,
        around.outside,
        around.lease,
        thread,
    );
    Control {
        role,
        body,
        arbiter: &*replica.arbiter,
        terms,
        orders,
        join: Join::default(),
        listen: spec.listen.clone(),
        log,
        reporter,
        mailbox,
        stopping: Stopping::default(),
        alone: Alone::allowed(true),
    }
    .run()
}

/// A machine as a primary asked for it, that has not got its vCPU yet.
struct Shell {
    prepared: Prepared,
    sink: Arc<BackupSink>,
    around: Around,
}

/// What there is around a machine whose vCPU's thread has the rest.
struct Around {
    outside: Arc<Outside>,
    lease: Arc<Lease>,
    /// What this replica proposes to a backup of its own, one day.
    proposal: Proposal,
    /// What the operators of both sides are to know.
    warning: Option<String>,
    /// What its own operator is to know of the engine.
    remark: Option<&'static str>,
}

/// A primary that can be followed, and a machine that waits for its entries.
struct Accepted {
    connection: Connection,
    hello: Hello,
    around: Around,
    /// Where guest time stands.
    time: GuestTime,
    vcpu: Made<Link>,
}

/// What a caller and this replica agreed on: the link, where guest time stands, and a machine.
type Agreed = (Connection, GuestTime, Around, Made<Link>);

/// What a vCPU's thread is given when it may run: the log, and where guest time stands as it begins.
type Link = (Receiver, GuestTime);

/// What a backup makes machines with.
struct Rig<'a> {
    spec: &'a BackupSpec,
    store: StoreId,
    inbox: &'a Arc<Inbox>,
    orders: &'a Arc<Orders>,
    control: &'a Sender<Message>,
}

impl Rig<'_> {
    /// Waits for a primary this backup can follow. One that is refused does not end it.
    fn accept(&self, callers: &mut Callers, mailbox: &Mailbox, log: &mut Log) -> Outcome<Accepted> {
        loop {
            let (caller, hello) = callers.next(&mailbox.messages, log)?;
            let accepted = match hello.base.origin {
                BaseOrigin::Boot => self.boot(caller, &hello),
                BaseOrigin::State => self.take_over(caller, &hello, mailbox, log),
            };
            match accepted {
                Ok((connection, time, around, vcpu)) => {
                    return Ok(Accepted {
                        connection,
                        hello,
                        around,
                        time,
                        vcpu,
                    });
                }
                Err(e) => log.note(Notice::PrimaryTurnedAway(&e.to_string())),
            }
        }
    }

    /// Boots the machine that `caller` describes.
    fn boot(&self, caller: Caller, hello: &Hello) -> Outcome<Agreed> {
        let mut made = None;
        let decide = |hello: &Hello| -> Result<Option<String>, String> {
            let machine = self.booted(hello).map_err(|e| e.to_string())?;
            let remark = machine.0.warning.clone();
            made = Some(machine);
            Ok(remark)
        };
        // The two disks may have to be compared.
        let patience = disk::patience(self.spec.plugs.own_disk())?;
        let connection = caller.answer(hello, HANDSHAKE + patience, decide)?;
        let (around, vcpu) = made.expect("a welcome primary's machine was made");
        Ok((connection, GuestTime::default(), around, vcpu))
    }

    fn booted(&self, hello: &Hello) -> Outcome<(Around, Made<Link>)> {
        let shell = self.shell(hello)?;
        let (around, making) = self.begin(shell, Prepared::boot)?;
        let vcpu = making.wait()?;
        same_state("first", vcpu.first_state, hello.base.digest)?;
        Ok((around, vcpu))
    }

    /// Takes over the running machine of `caller`.
    fn take_over(
        &self,
        caller: Caller,
        hello: &Hello,
        mailbox: &Mailbox,
        log: &mut Log,
    ) -> Outcome<Agreed> {
        let die_at = self.spec.replica.die_at;
        die::reached(die_at, Step::Greeted);
        let mut stopped = false;
        let begun = Cell::new(None);
        let mut made = None;
        let mut back = None;
        let (arriving, state) = Arriving::new()?;
        let decide = |hello: &Hello| -> Result<Option<String>, String> {
            let shell = self.shell(hello).map_err(|e| e.to_string())?;
            let remark = shell.around.warning.clone();
            let make = move |prepared: Prepared| {
                let mut machine = prepared.restore(state)?;
                machine.flush_for_join()?;
                let digest = machine.digest_for_join()?;
                Ok((machine, digest))
            };
            begun.set(Some(self.begin(shell, make).map_err(|e| e.to_string())?));
            Ok(remark)
        };
        let restore = |state: &mut StateReader<'_>| -> Result<(), String> {
            let (around, making) = begun.take().expect("a welcome primary's machine was begun");
            if let Some(disk) = around.outside.disk.arriving() {
                state.take_disk(disk);
            }
            // No thread is begun from here on that would do likewise. It is prompt where the guest stands still.
            back = Some(logchannel::stand_back());
            let restored = || -> Outcome {
                // A machine that cannot be made tells more than the state nobody takes.
                let mut pieces = 0;
                let passed = arriving.pass(state, || {
                    if die::count(die_at, Step::State) == Some(pieces) {
                        die::now();
                    }
                    pieces += 1;
                    stopped |= is_stopped(&mailbox.messages, log);
                    stopped
                });
                let vcpu = making.wait()?;
                passed?;
                let Given { base, beside } = state.base().map_err(ReplicaError::refused)?;
                same_state("handed-over", vcpu.first_state, base.digest)?;
                die::reached(die_at, Step::Restored);
                made = Some((join::guest_time(beside)?, around, vcpu));
                Ok(())
            };
            restored().map_err(|e| e.to_string())
        };
        let answered = caller.answer_running(hello, HANDSHAKE, decide, restore);
        drop(back);
        if stopped {
            // Once more, for whoever accepts callers.
            let _ = mailbox.sender.send(Message::StopAsked);
        }
        let connection = answered?;
        let (time, around, vcpu) = made.expect("a machine that was taken over was made");
        Ok((connection, time, around, vcpu))
    }

    /// Gets ready for the machine `hello` describes.
    fn shell(&self, hello: &Hello) -> Outcome<Shell> {
        let spec = self.spec;
        same_store(hello, self.store)?;
        let vm = &spec.replica.vm;
        if hello.vm != vm.to_string() {
            return Err(ReplicaError::refused(format!(
                "this is a backup for '{vm}', not for '{}'",
                hello.vm
            )));
        }
        let proposal: Proposal = from_bytes(&hello.config).during("the machine's configuration")?;
        proposal.check_disk(spec.plugs.disk.as_deref(), spec.plugs.disk_copy)?;
        let origin = &proposal.origin;
        let config = origin.config.clone();
        let mac = config.mac;
        let clock = config.clock_kind;
        let blueprint = follow(
            config,
            &*spec.images,
            spec.image.as_deref(),
            spec.initrd.as_deref(),
        )?;
        let prepared = prepare(blueprint, spec.engine.following(origin.engine, clock))?;
        let here = prepared.engine_kind();
        if !origin.engine.agrees_with(here, clock) {
            return Err(ReplicaError::refused(format!(
                "this host has {here}, the primary's {}: the same guest may differ on them \
                 (--engine soft follows either, for guests that count blocks)",
                origin.engine
            )));
        }
        let warning = check_pair(origin, &prepared.origin(), proposal.unlike_hosts)?;
        let station = Station::of(mac);
        let sink = BackupSink::new(self.inbox.clone(), station.clone());
        let arrivals: Arc<dyn ArrivalSink> = sink.clone();
        // It is not held before the flag is won.
        let lease = Lease::new();
        let used = outside::Use::Replica(lease.clone(), proposal.disk_reads);
        let outside = outside::plug_in(used, &spec.plugs, &station, &arrivals)?;
        let control = self.control.clone();
        outside.disk.on_failure(move |why| {
            let _ = control.send(Message::DiskFailed(why));
        });
        if hello.base.origin == BaseOrigin::Boot {
            proposal.check_contents(outside.disk.digest()?)?;
        }
        let around = Around {
            outside,
            lease,
            proposal: Proposal {
                origin: prepared.origin(),
                disk_digest: None,
                ..proposal
            },
            warning,
            remark: prepared.remark(),
        };
        Ok(Shell {
            prepared,
            sink,
            around,
        })
    }

    /// Begins to make a machine of `shell`, by `make` on its vCPU's thread, which then waits for the receiver.
    fn begin(
        &self,
        shell: Shell,
        make: impl FnOnce(Prepared) -> Outcome<(AnyMachine, u64)> + Send + 'static,
    ) -> Outcome<(Around, Making<Link>)> {
        let Shell {
            prepared,
            sink,
            around,
        } = shell;
        let pages = prepared.config().memory_bytes() / 4096;
        let (inbox, control) = (self.inbox.clone(), self.control.clone());
        let (orders, outside) = (self.orders.clone(), around.outside.clone());
        let die_at = self.spec.replica.die_at;
        let run = move |mut machine: AnyMachine, (receiver, time): Link| {
            machine.tell_station(outside.station());
            let under_way = machine.outstanding_disk();
            let heir = |receiver| Heir {
                control,
                inbox,
                sink,
                outside,
                pages,
                receiver,
                time,
                die_at,
                has_read: false,
            };
            let duty = duty::follow(receiver, under_way, heir);
            Ok(vcpu::run(machine, duty, &orders))
        };
        let making = vcpu::begin(move || make(prepared), self.control.clone(), run)?;
        Ok((around, making))
    }
}

/// Checks that the machine here is the primary's.
fn same_state(which: &str, here: u64, there: u64) -> Outcome {
    if here == there {
        return Ok(());
    }
    Err(ReplicaError::refused(format!(
        "the machine's {which} state has digest {here:016x} here and {there:016x} at the primary"
    )))
}

/// Checks that both sides of the pair would ask for flags in the same `store`.
fn same_store(hello: &Hello, store: StoreId) -> Outcome {
    let theirs = StoreId::from_bytes(hello.store);
    if theirs == store {
        return Ok(());
    }
    Err(ReplicaError::refused(format!(
        "the primary's arbiter keeps its flags in store {theirs}, this backup's in {store}: both need \
         the same arbiter, with the store it had (if it was lost and made anew, start this backup again)"
    )))
}
