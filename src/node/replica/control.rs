//! The control thread of a replica: carries out what the role machine commands.

use super::claim::{Claims, PATIENCE, Unmarked};
use super::events::Events;
use super::report::Reporter;
use super::{Message, VcpuEvent};
use crate::failure::{Failure, Outcome};
use crate::node::last_words::of_status;
use logchannel::LinkEnd;
use logchannel::role::{Command, Event, RoleMachine, ViewNumber};
use std::collections::VecDeque;
use std::sync::Once;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};
use testandset::{Arbiter, ArbiterError, Contender, Flag, Verdict, VmId};

/// Time between two questions to an arbiter that is out of reach.
const RETRY: Duration = Duration::from_millis(100);
/// Time between two notes of a replica's counters.
const METRICS: Duration = Duration::from_millis(250);

/// What differs between the two sides.
pub trait Side {
    /// The gate opens: outputs leave at once from now on.
    fn open_gate(&mut self) -> Outcome;
    /// The other side may be dead: what is left to do here is waited for.
    fn hurry(&mut self) {}
    /// Every entry that came is to be executed.
    fn drain(&mut self);
    /// The network is told where the guest is now.
    fn announce(&mut self);
    /// What was suppressed leaves, in order. How many outputs that is.
    fn reemit(&mut self) -> usize;
    /// The vCPU goes on with live inputs.
    fn go_live(&mut self);
    /// The guest is asked to end, by the log.
    fn stop_guest(&mut self);
    /// Nothing leaves any more.
    fn halt(&mut self);
    /// This replica leaves in an orderly way.
    fn leave(&mut self);
    /// The vCPU thread says something that concerns this side; what that means for the role.
    fn vcpu(&mut self, event: VcpuEvent, events: &mut Events) -> Option<Event>;
    /// The guest's exit status, once it ended.
    fn exit_status(&self) -> Option<u32>;
    /// Why the guest could not go on, if that is what ended it.
    fn broke(&self) -> Option<&str>;
    /// What the guest said on its console about why it gives up.
    fn why(&self) -> Option<String>;
    /// How far execution lags behind, in milliseconds.
    fn lag_ms(&self) -> u64;
    /// Whether the other side has taken part: it has acked something, or it is the primary.
    fn was_a_pair(&self) -> bool;
    /// Its counters, if it keeps any, for the metrics file.
    fn metrics(&self) -> Option<serde_json::Value> {
        None
    }
}

/// Runs one replica's role to its end.
pub struct Control<S> {
    pub role: RoleMachine,
    pub side: S,
    pub arbiter: Box<dyn Arbiter>,
    pub vm: VmId,
    pub contender: Contender,
    pub events: Events,
    pub reporter: Reporter,
    pub messages: Receiver<Message>,
    /// Keeps `messages` open: everybody else who speaks there, vCPU thread, link and signals, is gone once
    /// it has said its last, and this replica may have to go on asking for its flag then.
    pub _open: Sender<Message>,
    pub stopping: Stopping,
    /// That the arbiter has lost its store is said once.
    pub other_store: Once,
    pub alone: Alone,
}

/// What becomes of a replica that the other one leaves alone.
pub struct Alone {
    /// A machine that never had a backup may run.
    allowed: bool,
    /// How the link ended, and whether the two had been a pair until then.
    lost: Option<(String, bool)>,
}

impl Alone {
    /// Nobody is lost yet; whether a machine that never had a backup may run.
    pub fn allowed(allowed: bool) -> Self {
        let lost = None;
        Self { allowed, lost }
    }

    /// How the link ended, if the machine must not run for it.
    fn forbidden(&self) -> Option<&str> {
        match &self.lost {
            Some((how, false)) if !self.allowed => Some(how),
            _ => None,
        }
    }
}

/// What a replica that was asked to stop still waits for.
#[derive(Default)]
pub struct Stopping {
    asked: bool,
    /// When an arbiter that gives no answer is given up.
    give_up_at: Option<Instant>,
    /// Why the machine's end is not marked though it should be.
    unmarked: Option<String>,
}

impl Stopping {
    /// The arbiter gave no answer: whether to give it up.
    fn gives_up(&mut self) -> bool {
        let now = Instant::now();
        self.asked && *self.give_up_at.get_or_insert(now + PATIENCE) <= now
    }
}

impl<S: Side> Control<S> {
    /// Runs until the role is final. On a thread that goes before other work of the host, where that is
    /// allowed: it works for microseconds at a time, and in a failover everybody waits for it.
    pub fn run(mut self) -> Outcome {
        logchannel::be_prompt();
        let mut retry_at: Option<Instant> = None;
        let mut todo: VecDeque<Event> = VecDeque::new();
        let mut halted: Option<String> = None;
        let mut metrics_at = Instant::now();
        loop {
            if self.events.keeps_metrics() && metrics_at <= Instant::now() {
                self.note_metrics();
                metrics_at = Instant::now() + METRICS;
            }
            self.reporter
                .tell(self.role.role(), self.role.view().0, self.side.lag_ms());
            while let Some(event) = todo.pop_front() {
                for command in self.role.handle(event) {
                    if let Command::Halt { why } = &command {
                        halted = Some(why.clone());
                    }
                    todo.extend(self.carry_out(command, &mut retry_at));
                }
            }
            if self.role.is_final() {
                break;
            }
            let timeout = match retry_at {
                Some(at) => at.saturating_duration_since(Instant::now()),
                None => self.reporter.interval(),
            };
            let timeout = if self.events.keeps_metrics() {
                timeout.min(metrics_at.saturating_duration_since(Instant::now()))
            } else {
                timeout
            };
            match self.messages.recv_timeout(timeout) {
                Ok(message) => todo.extend(self.heard(message)),
                Err(RecvTimeoutError::Timeout) => {
                    if retry_at.is_some_and(|at| at <= Instant::now()) {
                        retry_at = None;
                        todo.push_back(Event::RetryTick);
                    }
                }
                Err(RecvTimeoutError::Disconnected) => unreachable!("it holds an end itself"),
            }
        }
        self.note_metrics();
        self.reporter.ended(self.side.exit_status().is_some());
        self.outcome(halted)
    }

    /// How this replica ends, for whoever started it.
    fn outcome(self, halted: Option<String>) -> Outcome {
        let guests = self.guests_outcome(halted);
        match (guests, self.stopping.unmarked) {
            (Ok(()), Some(why)) => Err(Failure::new(why)),
            (guests, why) => {
                if let Some(why) = why {
                    crate::complain!("tandem: {why}");
                }
                guests
            }
        }
    }

    fn guests_outcome(&self, halted: Option<String>) -> Outcome {
        if let (None, Some(why)) = (&halted, self.side.broke()) {
            return Err(Failure::new(why));
        }
        if let (None, Some(how)) = (&halted, self.alone.forbidden()) {
            return Err(Failure::new(format!(
                "the backup was lost before it had acked anything ({how}): the guest was stopped, as \
                 --require-backup asks"
            )));
        }
        match (halted, self.side.exit_status()) {
            (Some(why), _) => Err(Failure::new(format!("this replica halted: {why}"))),
            (None, Some(code)) if code != 0 => {
                let said = of_status(code, self.side.why().as_deref());
                Err(Failure::of_guest(code, said))
            }
            _ => Ok(()),
        }
    }

    fn note_metrics(&mut self) {
        if let Some(metrics) = self.side.metrics() {
            self.events.note_metrics(&metrics);
        }
    }

    fn heard(&mut self, message: Message) -> Option<Event> {
        match message {
            Message::StopAsked => {
                self.events.note("stop_asked", "");
                self.stopping.asked = true;
                Some(Event::StopAsked)
            }
            Message::Link(end) => {
                if matches!(end, LinkEnd::Lost(_)) {
                    self.side.hurry();
                }
                self.events.note("link_end", &end);
                self.alone.lost = Some((end.to_string(), self.side.was_a_pair()));
                match end {
                    LinkEnd::Lost(_) => Some(Event::LinkLost),
                    LinkEnd::Bye(_) => Some(Event::PeerBye),
                    LinkEnd::Left => None,
                    LinkEnd::OutletFailed(why) => Some(Event::Failed { why }),
                }
            }
            Message::Vcpu(event) => self.side.vcpu(event, &mut self.events),
        }
    }

    fn carry_out(&mut self, command: Command, retry_at: &mut Option<Instant>) -> Option<Event> {
        match command {
            Command::HoldOutputs => self.events.note("hold", "outputs wait for the flag"),
            Command::TestAndSet { view } => return Some(self.test_and_set(view)),
            Command::RetryLater => *retry_at = Some(Instant::now() + RETRY),
            Command::Drain => self.side.drain(),
            Command::Announce => {
                self.side.announce();
                self.events.note("announced", "");
            }
            Command::Reemit => {
                let count = self.side.reemit();
                self.events.note("reemitted", count);
            }
            Command::OpenGate => {
                if let Err(e) = self.side.open_gate() {
                    return Some(Event::Failed { why: e.to_string() });
                }
            }
            Command::ReportView { view } => {
                self.events.note("solo", format_args!("view {view}"));
                self.reporter.report_solo(view.0);
                let how = self.alone.lost.as_ref().map_or("", |(how, _)| how);
                crate::complain!(
                    "tandem: '{}' runs alone from now on, view {view}, protected by nobody: {how}",
                    self.vm
                );
                if self.alone.forbidden().is_some() {
                    return Some(Event::StopAsked);
                }
            }
            Command::GoLive { .. } => self.side.go_live(),
            Command::StopGuest => self.side.stop_guest(),
            Command::Halt { why } => {
                self.side.halt();
                self.events.note("halted", why);
            }
            Command::End => {
                self.side.leave();
                self.events.note("ended", "");
            }
            Command::MarkEnd { view } => self.mark_end(view),
        }
        None
    }

    fn test_and_set(&mut self, view: ViewNumber) -> Event {
        let flag = Flag {
            vm: self.vm.clone(),
            view: testandset::ViewNumber(view.0),
        };
        match self.arbiter.test_and_set(&flag, &self.contender) {
            Ok(Verdict::Won) => {
                self.events.note("flag_won", format_args!("view {view}"));
                Event::FlagWon
            }
            Ok(Verdict::Lost { holder }) if holder.is_end_mark() => {
                self.events
                    .note("vm_ended", format_args!("view {view}, says {holder}"));
                Event::VmEnded
            }
            Ok(Verdict::Lost { holder }) => {
                self.events
                    .note("flag_lost", format_args!("view {view}, to {holder}"));
                Event::FlagLost {
                    holder: holder.to_string(),
                }
            }
            Err(e) => {
                if matches!(e, ArbiterError::OtherStore { .. }) {
                    self.events.note("arbiter_other_store", &e);
                    self.other_store
                        .call_once(|| crate::complain!("tandem: {e}"));
                } else {
                    self.events.note("arbiter_unreachable", &e);
                    tracing::warn!("the arbiter gave no answer, asking again: {e}");
                }
                if self.stopping.gives_up() {
                    return Event::FlagGivenUp;
                }
                Event::FlagUnreachable
            }
        }
    }

    fn mark_end(&mut self, view: ViewNumber) {
        let claims = Claims {
            arbiter: &*self.arbiter,
            vm: &self.vm,
            who: &self.contender,
        };
        match claims.mark_end(view.0) {
            Ok(()) => self.events.note("marked", format_args!("view {view}")),
            Err(e @ Unmarked::Taken { .. }) => {
                self.events.note("not_marked", &e);
                tracing::warn!("{e}");
            }
            Err(e) => {
                self.events.note("not_marked", &e);
                self.stopping.unmarked = Some(e.to_string());
            }
        }
    }
}
