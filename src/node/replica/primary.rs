//! `tandem primary`.

use super::super::outside;
use super::super::setup::{self, Proposal};
use super::claim::{Claims, Wish};
use super::control::{Alone, Control, Side, Stopping};
use super::events::Events;
use super::report::{self, Reporter};
use super::{Message, VcpuEvent, vcpu};
use crate::address::HostPort;
use crate::cli::{PrimaryArgs, ReplicaArgs};
use crate::failure::{During, Outcome};
use crate::signals;
use logchannel::role::{Event, RoleMachine};
use logchannel::{
    Brake, GateOutlet, Hello, Lease, Moment, Sender, SenderHandle, SenderOptions, Settings,
    Suppressed, clock, offer,
};
use replay::recorder::{Recorder, StatePace};
use replay::{Arrival, InputsError, LogEntry, LogError, LogIndex, LogSink, Outlet, Output};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, channel};
use std::sync::{Arc, Once};
use std::time::Duration;
use testandset::{Contender, VmId};
use vmm::backends::ArrivalSink;
use vmm::machine::FAULT_STATUS;
use vmm::machine::live::{GuestTime, Inbox, Live};

/// Longest time for the backup to answer.
const HANDSHAKE: Duration = Duration::from_secs(20);

/// Sends released outputs to the backends, from whatever thread releases them.
struct Released(Arc<outside::Outside>);

impl Outlet for Released {
    fn emit(&mut self, index: LogIndex, output: Output) -> Result<(), InputsError> {
        self.0.emit(index, output);
        Ok(())
    }
}

/// The way into the gate, on the vCPU thread: notes when the guest has printed.
struct IntoGate {
    gate: GateOutlet,
    has_printed: Arc<AtomicBool>,
}

impl Outlet for IntoGate {
    fn emit(&mut self, index: LogIndex, output: Output) -> Result<(), InputsError> {
        if matches!(output, Output::Console(_)) {
            self.has_printed.store(true, Ordering::Relaxed);
        }
        self.gate.emit(index, output)
    }
}

/// The logging channel, with a brake, and a way to die at a given entry.
struct Channel {
    sender: Sender,
    handle: SenderHandle,
    brake: Brake,
    /// Microseconds the brake has held the guest, for the counters.
    braked_us: Arc<AtomicU64>,
    outside: Arc<outside::Outside>,
    /// The guest has printed since the last flush.
    has_printed: Arc<AtomicBool>,
    die_at: Option<u64>,
    /// Longest wait for the console's reader before the backup is told that this is the end.
    last_words: Duration,
}

impl Channel {
    /// Sends what there is and ends this process, if the entry to die at is appended. Not at once then: an
    /// output it marks goes into the gate first.
    fn die_if_due(&mut self) -> Result<(), LogError> {
        let appended = |at| self.handle.cursors().appended > LogIndex(at);
        if self.die_at.is_some_and(appended) {
            self.sender.flush()?;
            // SAFETY: ending this very process is what is asked for.
            unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
        }
        Ok(())
    }

    /// Holds the vCPU while its backup lags behind (P15). Acks, heartbeats and released outputs are other
    /// threads' work and go on.
    fn hold(&mut self) -> Result<(), LogError> {
        let mut flushed = false;
        while self.handle.is_linked() {
            let now = Moment {
                wall_us: clock::now_us(),
                cpu_us: clock::thread_cpu_us(),
            };
            let pause_us = self.brake.pause_us(self.handle.drain_us(), now);
            if pause_us == 0 {
                return Ok(());
            }
            if !std::mem::replace(&mut flushed, true) {
                self.sender.flush()?;
            }
            // Sleeping reads no clock.
            std::thread::sleep(Duration::from_micros(pause_us));
            self.braked_us.fetch_add(pause_us, Ordering::Relaxed);
        }
        self.brake.release();
        Ok(())
    }
}

impl LogSink for Channel {
    fn append(&mut self, entry: &LogEntry) -> Result<LogIndex, LogError> {
        self.die_if_due()?;
        let index = self.sender.append(entry)?;
        if entry.stand.is_none() {
            self.sender.flush()?;
        }
        Ok(index)
    }

    fn flush(&mut self) -> Result<(), LogError> {
        self.die_if_due()?;
        self.sender.flush()?;
        // With everything on its way, the vCPU may wait for a reader; the threads of the link do not.
        if self.has_printed.swap(false, Ordering::Relaxed) {
            self.outside.wait_for_console();
        }
        Ok(())
    }

    fn before_entry(&mut self) -> Result<(), LogError> {
        self.die_if_due()?;
        if self.brake.is_on(self.handle.drain_us()) {
            return self.hold();
        }
        Ok(())
    }

    fn is_followed(&self) -> bool {
        self.sender.is_followed()
    }
}

struct PrimarySide {
    sender: SenderHandle,
    /// A copy to ask what a lag comes to.
    brake: Brake,
    braked_us: Arc<AtomicU64>,
    outside: Arc<outside::Outside>,
    inbox: Arc<Inbox>,
    ended: Option<u32>,
    broke: Option<String>,
}

impl Side for PrimarySide {
    fn open_gate(&mut self) -> Outcome {
        self.inbox.gather_frames(false);
        Ok(self.sender.solo()?)
    }

    fn drain(&mut self) {}

    fn announce(&mut self) {}

    fn reemit(&mut self) -> usize {
        0
    }

    fn go_live(&mut self) {}

    fn stop_guest(&mut self) {
        self.outside.hurry();
        self.inbox.push(Arrival::Stop);
    }

    fn halt(&mut self) {
        self.sender.halt();
        self.outside.halt();
    }

    fn leave(&mut self) {
        self.outside.finish();
    }

    fn vcpu(&mut self, event: VcpuEvent, events: &mut Events) -> Option<Event> {
        match event {
            VcpuEvent::Ended { ended, .. } => {
                events.note("guest_ended", format_args!("status {}", ended.code));
                self.ended = Some(ended.code);
                Some(Event::PowerOff)
            }
            VcpuEvent::Broke { why, .. } => {
                events.note("guest_broke", &why);
                self.ended = Some(FAULT_STATUS);
                self.broke = Some(why);
                Some(Event::PowerOff)
            }
            VcpuEvent::Diverged(why) | VcpuEvent::Failed(why) => {
                events.note("failed", &why);
                Some(Event::Failed { why })
            }
            VcpuEvent::Drained { .. } | VcpuEvent::Live { .. } => None,
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
        self.sender.cursors().acked > LogIndex(0)
    }

    fn lag_ms(&self) -> u64 {
        self.sender.lag().us / 1000
    }

    fn metrics(&self) -> Option<serde_json::Value> {
        Some(serde_json::json!({
            "link": self.sender.metrics(),
            "cursors": self.sender.cursors(),
            "lag": self.sender.lag(),
            "speed_permille": self.brake.speed_permille(self.sender.drain_us()),
            "braked_us": self.braked_us.load(Ordering::Relaxed),
            "console_held": self.outside.console_held(),
            "tick_late_us": self.inbox.lateness().snapshot(),
        }))
    }
}

/// Names this replica for the arbiter: no two incarnations share one.
pub(super) fn incarnation(args: &ReplicaArgs, role: &str) -> Outcome<Contender> {
    let name = format!(
        "{}.{role}.{}.{}",
        args.name,
        std::process::id(),
        vmm::hostclock::wall_ns()
    );
    let name = Contender::new(name)?;
    // Its mark must fit too: better refused now than at the end.
    name.end_mark()?;
    Ok(name)
}

/// Runs a guest as primary.
pub fn primary(args: PrimaryArgs) -> Outcome {
    let set = signals::block()?;
    let vm = VmId::new(args.replica.vm.as_str())?;
    let contender = incarnation(&args.replica, "primary")?;
    let arbiter = testandset::parse(&args.replica.arbiter)?;
    arbiter.check()?;
    let store = arbiter.store()?;
    let mut events = Events::open(
        "primary",
        args.replica.events.as_deref(),
        args.replica.metrics.as_deref(),
    )?;
    events.note("arbiter_store", store);
    let prepared = setup::prepare(setup::blueprint(&args.machine)?, args.machine.engine)?;
    let mut origin = prepared.origin();
    if let (Some(host), Some(pretended)) = (&mut origin.processor, args.host_processor) {
        *host = pretended;
    }
    let inbox = Inbox::new();
    let sink: Arc<dyn ArrivalSink> = inbox.clone();
    let lease = Lease::new();
    let used = outside::Use::Replica(Some(lease.clone()));
    let outside = outside::for_machine(&args.machine, used, &sink)?;
    let (to_control, messages) = channel();
    let stop = to_control.clone();
    signals::watch(set, move || {
        let _ = stop.send(Message::StopAsked);
    })?;

    let vcpu_inbox = inbox.clone();
    let vcpu = vcpu::boot(
        prepared,
        to_control.clone(),
        move |machine, (channel, gate)| run(machine, channel, gate, vcpu_inbox),
    )?;

    let socket = connect(&args.backup)?;
    let here = socket.local_addr().during("the link to the backup")?;
    let identity = report::identity(&args.replica, &here.to_string())?;
    let wish = match (&identity, args.view) {
        (Some(identity), _) => Wish::Service(identity.register(args.backup_name.as_deref())?),
        (None, Some(view)) => Wish::Operator(view),
        (None, None) => Wish::Next,
    };
    let claims = Claims {
        arbiter: &*arbiter,
        vm: &vm,
        who: &contender,
    };
    let view = claims.begin(wish)?;
    events.note("begins", format_args!("view {view}"));
    let hello = Hello {
        vm: args.replica.vm.clone(),
        incarnation: contender.to_string(),
        view,
        first_digest: vcpu.first_state,
        store: store.to_bytes(),
        settings: settings(&args.replica),
        config: replay::codec::to_bytes(&Proposal {
            origin,
            unlike_hosts: args.unlike_hosts,
        }),
    };
    let reporter = Reporter::start(identity, to_control.clone())?;
    let linked = link(
        socket,
        &args,
        &hello,
        &outside,
        lease,
        to_control.clone(),
        &mut events,
    );
    let sender = linked.inspect_err(|_| {
        // Nothing has run in this view: another start may follow.
        if let Err(e) = claims.mark_end(view.0) {
            tracing::warn!("{e}");
        }
    })?;
    events.note(
        "primary",
        format_args!("{} with backup {}", vm, args.backup),
    );
    let brake = Brake::new(args.lag_max_ms);
    let braked_us = Arc::new(AtomicU64::new(0));
    let side = PrimarySide {
        sender: sender.handle(),
        brake: brake.clone(),
        braked_us: braked_us.clone(),
        outside: outside.clone(),
        inbox,
        ended: None,
        broke: None,
    };
    let has_printed = Arc::new(AtomicBool::new(false));
    let gate = IntoGate {
        gate: sender.outlet(),
        has_printed: has_printed.clone(),
    };
    let channel = Channel {
        handle: sender.handle(),
        brake,
        braked_us,
        outside,
        has_printed,
        sender,
        die_at: args.die_at,
        last_words: args
            .last_words_ms
            .map_or(outside::LAST_WORDS, Duration::from_millis),
    };
    vcpu.start((channel, gate))?;
    let role = RoleMachine::primary(view);
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
        alone: Alone::allowed(!args.require_backup),
    }
    .run()
}

fn connect(backup: &HostPort) -> Outcome<TcpStream> {
    backup.connect(Duration::from_secs(5)).during(format_args!(
        "cannot reach the backup at {backup} (is 'tandem backup' running?)"
    ))
}

/// Agrees with the backup on the machine.
fn link(
    socket: TcpStream,
    args: &PrimaryArgs,
    hello: &Hello,
    outside: &Arc<outside::Outside>,
    lease: Arc<Lease>,
    control: mpsc::Sender<Message>,
    events: &mut Events,
) -> Outcome<Sender> {
    let connection = offer(socket, hello, HANDSHAKE)?;
    if let Some(remark) = connection.remark() {
        events.note("unlike_hosts", remark);
        crate::complain!("tandem: {remark}");
    }
    let settings = connection.settings();
    if settings != hello.settings {
        let far = format!(
            "the backup takes {} ms to answer: silence is suspected after {} ms, not after {}",
            connection.round_trip_us() / 1_000,
            settings.suspect_ms,
            hello.settings.suspect_ms
        );
        events.note("far_apart", &far);
        crate::complain!("tandem: {far}");
    }
    let console = outside.clone();
    let unprinted = Arc::new(move || console.unprinted());
    let options = SenderOptions {
        buffer_max: u64::from(args.replica.log_buffer) << 20,
        lease,
        unprinted,
    };
    let on_end = move |end| {
        let _ = control.send(Message::Link(end));
    };
    Sender::start(
        connection,
        Box::new(Released(outside.clone())),
        options,
        on_end,
    )
    .during("cannot start the logging channel")
}

fn settings(args: &ReplicaArgs) -> Settings {
    Settings {
        suspect_ms: args.suspect_ms,
        ..Settings::default()
    }
}

/// Runs the guest to its end, on the vCPU thread.
fn run(
    mut machine: crate::node::engine::AnyMachine,
    channel: Channel,
    gate: IntoGate,
    inbox: Arc<Inbox>,
) -> Outcome<VcpuEvent> {
    inbox.gather_frames(true);
    let live = Live::new(inbox, GuestTime::default(), true).during("no timer")?;
    let pages = machine.config().memory_bytes() / 4096;
    let mut recorder = Recorder::new(live, channel, gate, StatePace::default(), pages);
    let ended = machine.run(&mut recorder);
    Ok(vcpu::outcome(ended, |bye| {
        // If the link is lost meanwhile the control thread hears of that first, and contends.
        let channel = recorder.log_mut();
        // Nobody says the guest's last words once the backup was told that this is the end.
        if channel.sender.wait_acked() {
            channel.outside.finish_console(channel.last_words);
        }
        channel.sender.bye(bye);
        Suppressed::new()
    }))
}
