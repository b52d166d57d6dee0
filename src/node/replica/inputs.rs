//! A backup's inputs: the log, and from its end on the live world.

use super::super::outside::{BackupSink, Direct, Outside};
use super::{Message, VcpuEvent};
use logchannel::{Receiver, ReceiverHandle, Suppressed};
use replay::recorder::{Recorder, StatePace};
use replay::replayer::Replayer;
use replay::{
    Arrival, Clock, Delivery, Here, Inputs, InputsError, LogIndex, NoLog, Outlet, Output, Question,
    Situation, StateWindow, Stop,
};
use std::sync::Arc;
use std::sync::mpsc::{Sender, sync_channel};
use vmm::hostclock;
use vmm::kick::Kicker;
use vmm::machine::live::{GuestTime, Inbox, Live};

/// Keeps a backup's outputs until its primary has surely delivered them.
struct Kept {
    suppressed: Suppressed,
    receiver: ReceiverHandle,
}

impl Outlet for Kept {
    fn emit(&mut self, index: LogIndex, output: Output) -> Result<(), InputsError> {
        self.suppressed.delivered(self.receiver.delivered());
        self.suppressed.hold(index, output);
        Ok(())
    }
}

/// What a backup needs to go live.
pub struct GoLive {
    /// The control thread.
    pub control: Sender<Message>,
    /// Where arrivals are to come from.
    pub inbox: Arc<Inbox>,
    /// What remembers frames until then.
    pub sink: Arc<BackupSink>,
    /// Where outputs are to go.
    pub outside: Arc<Outside>,
    /// Pages of guest memory.
    pub pages: u64,
}

enum Phase {
    Replaying(Replayer<Receiver, Kept>),
    Live(Recorder<Live, NoLog, Direct>),
}

/// A backup's inputs.
pub struct FailoverInputs {
    phase: Phase,
    receiver: ReceiverHandle,
    time: GuestTime,
    next: GoLive,
}

impl FailoverInputs {
    /// Inputs for the vCPU of the calling thread from `receiver`, until the control thread decides that
    /// there will be no more.
    pub fn new(receiver: Receiver, next: GoLive) -> Self {
        let handle = receiver.handle();
        let vcpu = Kicker::current_thread();
        handle.kick_with(move || vcpu.kick());
        let kept = Kept {
            suppressed: Suppressed::new(),
            receiver: handle.clone(),
        };
        let phase = Phase::Replaying(Replayer::new(receiver, kept));
        Self {
            phase,
            receiver: handle,
            time: GuestTime::default(),
            next,
        }
    }

    /// What was suppressed and nobody may have seen, in order.
    pub fn take_suppressed(&mut self) -> Suppressed {
        match &mut self.phase {
            Phase::Replaying(replayer) => {
                let kept = replayer.suppressed_mut();
                kept.suppressed.delivered(kept.receiver.delivered());
                std::mem::take(&mut kept.suppressed)
            }
            Phase::Live(_) => Suppressed::new(),
        }
    }

    /// The log is executed to its end: asks the control thread, and goes on with the live world.
    fn go_live(&mut self) -> Result<(), InputsError> {
        let outputs = self.take_suppressed();
        let (reply, answer) = sync_channel(1);
        let drained = VcpuEvent::Drained { outputs, reply };
        let asked = self.next.control.send(Message::Vcpu(drained)).is_ok();
        if !asked || answer.recv() != Ok(true) {
            return Err(InputsError::Halted("it may not go live".into()));
        }
        let live = Live::new(self.next.inbox.clone(), self.time, false)
            .map_err(|e| InputsError::Backend(format!("no timer for the live machine: {e}")))?;
        let outlet = Direct(self.next.outside.clone());
        let pace = StatePace { every_entries: 0 };
        let recorder = Recorder::new(live, NoLog::default(), outlet, pace, self.next.pages);
        let frames = self.next.sink.go_live();
        let _ = self
            .next
            .control
            .send(Message::Vcpu(VcpuEvent::Live { frames }));
        logchannel::leisure();
        self.phase = Phase::Live(recorder);
        Ok(())
    }

    /// Asks whoever answers now; a replayer at the end of its log has changed nothing, so that the live
    /// world can be asked the same.
    fn ask<T>(
        &mut self,
        mut question: impl FnMut(&mut dyn Inputs) -> Result<T, InputsError>,
    ) -> Result<T, InputsError> {
        match &mut self.phase {
            Phase::Live(recorder) => question(recorder),
            Phase::Replaying(replayer) => match question(replayer) {
                Err(InputsError::LogEnded { .. }) => {
                    self.go_live()?;
                    self.ask(question)
                }
                result => result,
            },
        }
    }

    fn is_replaying(&self) -> bool {
        matches!(self.phase, Phase::Replaying(_))
    }
}

impl Inputs for FailoverInputs {
    fn answer(&mut self, here: &Here, question: Question) -> Result<u64, InputsError> {
        let value = self.ask(|inputs| inputs.answer(here, question))?;
        if self.is_replaying() {
            match question {
                Question::Tsc | Question::PitElapsed(_) | Question::PmElapsed => {
                    self.time.tsc = (value, hostclock::monotonic_ns());
                }
                Question::WallClock => self.time.wall_ns = value,
                Question::Entropy => {}
            }
        }
        Ok(value)
    }

    fn arrival(&mut self, now: &Situation) -> Result<Option<Delivery>, InputsError> {
        let delivery = self.ask(|inputs| inputs.arrival(now))?;
        if let Phase::Replaying(replayer) = &mut self.phase {
            if let (Some(delivery), Some(derived_ns)) = (&delivery, now.time_ns) {
                let anchor_ns = delivery.anchor.ns().unwrap_or(0);
                let guest_ns = derived_ns.saturating_add(anchor_ns);
                self.time.tsc = (guest_ns, hostclock::monotonic_ns());
            }
            match delivery.as_ref().map(|delivery| &delivery.arrival) {
                Some(Arrival::Frame(frame)) => self.next.sink.replayed(frame),
                Some(Arrival::DiskDone { tag, .. }) => {
                    replayer.suppressed_mut().suppressed.completed(*tag);
                }
                _ => {}
            }
        }
        Ok(delivery)
    }

    fn output(&mut self, here: &Here, output: Output) -> Result<(), InputsError> {
        self.ask(|inputs| inputs.output(here, output.clone()))
    }

    fn next_stop(&mut self, now: &Situation) -> Result<Stop, InputsError> {
        if let Phase::Replaying(replayer) = &self.phase {
            self.receiver
                .executed(replayer.index(), now.here.point.clock);
        }
        self.ask(|inputs| inputs.next_stop(now))
    }

    fn kicked(&mut self, clock: Clock) -> Result<(), InputsError> {
        self.ask(|inputs| inputs.kicked(clock))
    }

    fn state_due(&mut self, here: &Here) -> Result<Option<StateWindow>, InputsError> {
        self.ask(|inputs| inputs.state_due(here))
    }

    fn state(&mut self, here: &Here, window: StateWindow, digest: u64) -> Result<(), InputsError> {
        self.ask(|inputs| inputs.state(here, window, digest))
    }

    fn end(&mut self, here: &Here, code: u32, digest: u64) -> Result<(), InputsError> {
        self.ask(|inputs| inputs.end(here, code, digest))
    }
}
