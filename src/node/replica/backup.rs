//! `tandem backup`.

use super::super::engine::AnyMachine;
use super::super::outside::{self, BackupSink, Outside};
use super::super::setup::{self, Proposal};
use super::super::unlike;
use super::callers::Callers;
use super::control::{Alone, Control, Side, Stopping};
use super::events::Events;
use super::inputs::{FailoverInputs, GoLive};
use super::primary::incarnation;
use super::report::{self, Reporter};
use super::vcpu::{self, Booted};
use super::{Message, VcpuEvent};
use crate::cli::BackupArgs;
use crate::failure::{During, Failure, Outcome};
use crate::signals;
use logchannel::role::{Event, RoleMachine};
use logchannel::{Bye, Connection, Hello, Receiver, ReceiverHandle, ReceiverOptions, Suppressed};
use replay::Arrival;
use replay::codec::from_bytes;
use std::sync::mpsc::{Receiver as Inlet, Sender as Outlet, SyncSender, channel};
use std::sync::{Arc, Once};
use std::time::Duration;
use testandset::{StoreId, VmId};
use vmm::backends::ArrivalSink;
use vmm::machine::FAULT_STATUS;
use vmm::machine::live::Inbox;

/// Longest time for a primary's machine to be made here, once it has greeted.
const HANDSHAKE: Duration = Duration::from_secs(20);

struct BackupSide {
    receiver: ReceiverHandle,
    inbox: Arc<Inbox>,
    outside: Arc<Outside>,
    mac: [u8; 6],
    outputs: Suppressed,
    reply: Option<SyncSender<bool>>,
    live: bool,
    ended: Option<u32>,
    broke: Option<String>,
    /// Its vCPU's thread.
    thread: libc::pid_t,
}

impl Side for BackupSide {
    fn open_gate(&mut self) -> Outcome {
        Ok(())
    }

    fn hurry(&mut self) {
        if self.ended.is_none() {
            logchannel::make_prompt(self.thread);
        }
    }

    fn drain(&mut self) {
        self.receiver.finish();
    }

    fn announce(&mut self) {
        self.outside.announce(self.mac);
    }

    fn reemit(&mut self) -> usize {
        // The primary may have said more since its guest ended.
        self.outputs.delivered(self.receiver.delivered());
        let outputs = self.outputs.take_for_reemission();
        let count = outputs.len();
        for (index, output) in outputs {
            self.outside.emit(index, output);
        }
        count
    }

    fn go_live(&mut self) {
        self.live = true;
        if let Some(reply) = self.reply.take() {
            let _ = reply.send(true);
        }
    }

    fn stop_guest(&mut self) {
        self.outside.hurry();
        self.inbox.push(Arrival::Stop);
    }

    fn halt(&mut self) {
        self.outside.halt();
        self.reply = None;
        self.receiver.stop();
    }

    fn leave(&mut self) {
        if !self.live {
            self.receiver.bye(Bye::Stop);
        }
        self.reply = None;
        self.outside.finish();
    }

    fn vcpu(&mut self, event: VcpuEvent, events: &mut Events) -> Option<Event> {
        match event {
            VcpuEvent::Drained { outputs, reply } => {
                events.note(
                    "drained",
                    format_args!("{} outputs suppressed", outputs.len()),
                );
                self.outputs = outputs;
                self.reply = Some(reply);
                Some(Event::Drained)
            }
            VcpuEvent::Live { frames } => {
                events.note(
                    "live",
                    format_args!("{frames} frames the primary had not logged"),
                );
                None
            }
            VcpuEvent::Ended { ended, outputs } => {
                events.note("guest_ended", format_args!("status {}", ended.code));
                self.ended = Some(ended.code);
                self.outputs = outputs;
                Some(Event::PowerOff)
            }
            VcpuEvent::Broke { why, outputs } => {
                events.note("guest_broke", &why);
                self.ended = Some(FAULT_STATUS);
                self.broke = Some(why);
                self.outputs = outputs;
                Some(Event::PowerOff)
            }
            VcpuEvent::Diverged(why) => {
                events.note("diverged", &why);
                crate::complain!("tandem: {why}");
                Some(Event::Diverged)
            }
            VcpuEvent::Failed(why) => {
                events.note("failed", &why);
                Some(Event::Failed { why })
            }
        }
    }

    fn exit_status(&self) -> Option<u32> {
        self.ended
    }

    fn why(&self) -> Option<String> {
        self.outside.why()
    }

    fn broke(&self) -> Option<&str> {
        self.broke.as_deref()
    }

    fn was_a_pair(&self) -> bool {
        true
    }

    fn lag_ms(&self) -> u64 {
        self.receiver.lag_us() / 1000
    }
}

/// Follows a primary.
pub fn backup(args: BackupArgs) -> Outcome {
    let set = signals::block()?;
    let vm = VmId::new(args.replica.vm.as_str())?;
    let contender = incarnation(&args.replica, "backup")?;
    let arbiter = testandset::parse(&args.replica.arbiter)?;
    arbiter.check()?;
    let store = arbiter.store()?;
    let mut events = Events::open(
        "backup",
        args.replica.events.as_deref(),
        args.replica.metrics.as_deref(),
    )?;
    events.note("arbiter_store", store);
    let mut callers = Callers::at(&args.listen)?;
    let (to_control, messages) = channel();
    let stop = to_control.clone();
    signals::watch(set, move || {
        // Nothing runs yet until a primary comes: there is nobody to tell.
        if stop.send(Message::StopAsked).is_err() {
            std::process::exit(1);
        }
    })?;
    let address = callers.address()?;
    let identity = report::identity(&args.replica, &address.to_string())?;
    let reporter = Reporter::start(identity, to_control.clone())?;
    events.note("listening", address);
    let inbox = Inbox::new();
    let (connection, hello, started) = accept(
        &args,
        &mut callers,
        (&vm, store),
        &inbox,
        &to_control,
        &messages,
    )?;
    drop(callers);
    let options = ReceiverOptions {
        buffer_max: (args.replica.log_buffer as usize) << 20,
    };
    let link = to_control.clone();
    let receiver = Receiver::start(connection, options, move |end| {
        let _ = link.send(Message::Link(end));
    })
    .during("cannot start the logging channel")?;
    events.note("backup", format_args!("{vm} of {}", hello.incarnation));
    if let Some(warning) = &started.warning {
        events.note("unlike_hosts", warning);
        crate::complain!("tandem: {warning}");
    }
    let side = BackupSide {
        receiver: receiver.handle(),
        inbox,
        outside: started.outside,
        mac: started.mac,
        outputs: Suppressed::new(),
        reply: None,
        live: false,
        ended: None,
        broke: None,
        thread: started.vcpu.thread,
    };
    started.vcpu.start(receiver)?;
    let role = RoleMachine::backup(hello.view);
    Control {
        role,
        side,
        arbiter,
        vm,
        contender,
        events,
        reporter,
        messages,
        _open: to_control,
        stopping: Stopping::default(),
        other_store: Once::new(),
        alone: Alone::allowed(true),
    }
    .run()
}

/// A machine that was booted as a primary asked, and waits for entries.
struct Started {
    outside: Arc<Outside>,
    mac: [u8; 6],
    vcpu: Booted<Receiver>,
    /// What the operators of both sides are to know.
    warning: Option<String>,
}

/// Waits for a primary this backup can follow. One that is refused does not end it.
fn accept(
    args: &BackupArgs,
    callers: &mut Callers,
    (vm, store): (&VmId, StoreId),
    inbox: &Arc<Inbox>,
    control: &Outlet<Message>,
    messages: &Inlet<Message>,
) -> Outcome<(Connection, Hello, Started)> {
    loop {
        let (caller, hello) = callers.next(messages)?;
        let mut started = None;
        let decide = |hello: &Hello| -> Result<Option<String>, String> {
            same_store(hello, store)?;
            let machine = start(args, vm, hello, inbox, control).map_err(|e| e.to_string())?;
            let remark = machine.warning.clone();
            started = Some(machine);
            Ok(remark)
        };
        match (caller.answer(&hello, HANDSHAKE, decide), started) {
            (Ok(connection), Some(started)) => return Ok((connection, hello, started)),
            (Err(e), _) => {
                crate::complain!("tandem: a primary was turned away: {e}");
            }
            (Ok(_), None) => unreachable!("a welcome primary's machine was started"),
        }
    }
}

/// Checks that both sides of the pair would ask for flags in the same `store`.
fn same_store(hello: &Hello, store: StoreId) -> Result<(), String> {
    let theirs = StoreId::from_bytes(hello.store);
    if theirs == store {
        return Ok(());
    }
    Err(format!(
        "the primary's arbiter keeps its flags in store {theirs}, this backup's in {store}: both need \
         the same arbiter, with the store it had (if it was lost and made anew, start this backup again)"
    ))
}

/// Boots the machine `hello` describes, on a vCPU thread that then waits for the receiver.
fn start(
    args: &BackupArgs,
    vm: &VmId,
    hello: &Hello,
    inbox: &Arc<Inbox>,
    control: &Outlet<Message>,
) -> Outcome<Started> {
    if hello.vm != vm.to_string() {
        return Err(Failure::new(format!(
            "this is a backup for '{vm}', not for '{}'",
            hello.vm
        )));
    }
    let Proposal {
        origin,
        unlike_hosts,
    } = from_bytes(&hello.config).during("the machine's configuration")?;
    let config = origin.config.clone();
    let sectors = args.disk.as_deref().map(setup::disk_sectors).transpose()?;
    if config.disk_sectors != sectors {
        return Err(Failure::new(format!(
            "the primary's disk has {} sectors, this backup's {} (--disk must name the shared disk)",
            config.disk_sectors.unwrap_or(0),
            sectors.unwrap_or(0)
        )));
    }
    let mac = config.mac;
    let clock = config.clock_kind;
    let blueprint = setup::follow(config, args.image.as_deref(), args.initrd.as_deref())?;
    let prepared = setup::prepare(blueprint, args.engine.following(origin.engine, clock))?;
    let here = prepared.engine_kind();
    if !origin.engine.agrees_with(here, clock) {
        return Err(Failure::new(format!(
            "this host has {here}, the primary's {}: the same guest may differ on them \
             (--engine soft follows either, for guests that count blocks)",
            origin.engine
        )));
    }
    let warning = unlike::pair(&origin, &prepared.origin(), unlike_hosts)?;
    let sink = BackupSink::new(inbox.clone());
    let arrivals: Arc<dyn ArrivalSink> = sink.clone();
    let outside = outside::plug_in(
        // It writes when it has won the flag only.
        outside::Use::Replica(None),
        args.net.as_ref(),
        args.disk.as_deref(),
        args.quiet,
        mac,
        &arrivals,
    )?;
    let pages = prepared.config().memory_bytes() / 4096;
    let next = GoLive {
        control: control.clone(),
        inbox: inbox.clone(),
        sink,
        outside: outside.clone(),
        pages,
    };
    let vcpu = vcpu::boot(prepared, control.clone(), move |machine, receiver| {
        Ok(run(machine, FailoverInputs::new(receiver, next)))
    })?;
    let state = vcpu.first_state;
    if state != hello.first_digest {
        return Err(Failure::new(format!(
            "the machine's first state has digest {state:016x} here and {:016x} at the primary",
            hello.first_digest
        )));
    }
    Ok(Started {
        outside,
        mac,
        vcpu,
        warning,
    })
}

/// Runs the guest to its end, on the vCPU thread.
fn run(mut machine: AnyMachine, mut inputs: FailoverInputs) -> VcpuEvent {
    let ended = machine.run(&mut inputs);
    let event = vcpu::outcome(ended, |_| inputs.take_suppressed());
    // The receiver's threads go on acking until the process ends.
    std::mem::forget(inputs);
    event
}
