//! How a follower comes to lead.

// The vCPU's thread runs here (see clippy.toml).
#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

use crate::die::{self, DieAt, Mortal, Step};
use crate::disk::Disk;
use crate::journal::{Exit, Journal};
use crate::outside::{BackupSink, Outside};
use crate::suppressed::Suppressed;
use crate::{Message, VcpuEvent};
use logchannel::{Receiver, ReceiverHandle};
use replay::duty::{self, Succession};
use replay::recorder::{Recorder, StatePace};
use replay::replayer::Replayer;
use replay::{
    Arrival, BaseOrigin, Clock, Delivery, InputsError, LogIndex, LogPlace, NoLog, Outlet, Output,
    Question, Situation,
};
use std::sync::Arc;
use std::sync::mpsc::{Sender, sync_channel};
use vmm::hostclock;
use vmm::kick::Kicker;
use vmm::machine::live::{GuestTime, Inbox, Live};

/// The inputs of a replica's guest: a log that is received, and behind its end the live world.
pub type Duty = duty::Duty<Receiver, Heir>;

/// The inputs of a replica that leads.
pub type Leading = Recorder<Live, Mortal, Exit>;

/// Keeps a follower's outputs until its primary has surely delivered them.
pub struct Kept {
    suppressed: Suppressed,
    receiver: ReceiverHandle,
    /// This replica's.
    disk: Arc<Disk>,
}

impl Kept {
    /// What was suppressed and nobody may have seen, in order.
    pub(crate) fn take(&mut self) -> Suppressed {
        self.suppressed.delivered(self.receiver.delivered());
        std::mem::take(&mut self.suppressed)
    }

    /// Waits until this replica's own disk, if it has one, has all that was replayed.
    ///
    /// # Errors
    /// Why it has not.
    pub(crate) fn settle_disk(&self) -> Result<(), String> {
        self.disk.settle()
    }

    /// What disk request `tag` reads.
    fn read(&self, tag: u32) -> Result<Vec<u8>, InputsError> {
        let unknown =
            || InputsError::Backend(format!("the log ends a disk read {tag} nobody made"));
        let (offset, len) = self.suppressed.read(tag).ok_or_else(unknown)?;
        self.disk.read(offset, len).map_err(InputsError::Backend)
    }

    fn hold(&mut self, index: LogIndex, output: Output) {
        self.disk.mirror(index, &output);
        self.suppressed.hold(index, output);
    }
}

impl Outlet for Kept {
    fn emit(&mut self, index: LogIndex, output: Output) -> Result<(), InputsError> {
        self.suppressed.delivered(self.receiver.delivered());
        self.hold(index, output);
        Ok(())
    }
}

/// What a follower needs to lead.
pub struct Heir {
    pub(crate) control: Sender<Message>,
    /// Where arrivals are to come from.
    pub(crate) inbox: Arc<Inbox>,
    /// What remembers frames until then.
    pub(crate) sink: Arc<BackupSink>,
    /// Where outputs are to go.
    pub(crate) outside: Arc<Outside>,
    /// Pages of guest memory.
    pub(crate) pages: u64,
    /// The link.
    pub(crate) receiver: ReceiverHandle,
    /// Where guest time goes on from.
    pub(crate) time: GuestTime,
    /// Where this process is to die.
    pub(crate) die_at: Option<DieAt>,
    /// It has read from a shared disk what its primary read, and the primary does not know it yet.
    pub(crate) has_read: bool,
}

/// The duty of a follower of the primary behind `receiver`, for the vCPU of the calling thread.
///
/// `under_way`: disk requests the machine had made before its log began, whose completion is still to come.
/// They may have left the primary and be lost with it, as those made since. A disk of this replica's own, which was
/// copied there, may have them or not.
pub(crate) fn follow(
    receiver: Receiver,
    under_way: Vec<Output>,
    heir: impl FnOnce(ReceiverHandle) -> Heir,
) -> Duty {
    let handle = receiver.handle();
    let vcpu = Kicker::current_thread();
    handle.kick_with(move || vcpu.kick());
    let first = handle.base().index;
    let heir = heir(handle.clone());
    let disk = heir.outside.disk.clone();
    let mut kept = Kept {
        suppressed: Suppressed::at(first),
        receiver: handle.clone(),
        disk: disk.clone(),
    };
    if handle.base().origin == BaseOrigin::State {
        // What the guest flushed on a disk that was copied here is to be as durable here.
        disk.mirror(first, &Output::DiskFlush { tag: 0 });
    }
    for request in under_way {
        kept.hold(first, request);
    }
    handle.finished_by(move || disk.pending());
    Duty::follow(Replayer::new(receiver, kept), heir)
}

impl Succession for Heir {
    type Kept = Kept;
    type Leading = Leading;

    fn executed(&mut self, upto: LogIndex, clock: Clock) {
        self.receiver.executed(upto, clock);
        if std::mem::take(&mut self.has_read) {
            self.receiver.tell();
        }
        if let Some(after) = die::count(self.die_at, Step::Executed)
            && upto.0 > self.receiver.base().index.0 + after
        {
            die::now();
        }
    }

    fn answered(&mut self, question: Question, value: u64) {
        match question {
            Question::Tsc | Question::PitElapsed(_) | Question::PmElapsed => {
                self.time.tsc = (value, hostclock::monotonic_ns());
            }
            Question::WallClock => self.time.wall_ns = value,
            Question::Entropy => {}
        }
    }

    fn delivered(
        &mut self,
        now: &Situation,
        delivery: &mut Delivery,
        kept: &mut Kept,
    ) -> Result<(), InputsError> {
        if let Some(derived_ns) = now.time_ns {
            let anchor_ns = delivery.anchor.ns().unwrap_or(0);
            let guest_ns = derived_ns.saturating_add(anchor_ns);
            self.time.tsc = (guest_ns, hostclock::monotonic_ns());
        }
        if let Arrival::DiskRead { tag } = delivery.arrival {
            let data = kept.read(tag)?;
            let ok = true;
            delivery.arrival = Arrival::DiskDone { tag, ok, data };
            // The primary may hold a write back until it hears that this was read.
            self.has_read = !kept.disk.is_own();
        }
        match &delivery.arrival {
            Arrival::Frame(frame) => self.sink.replayed(frame),
            Arrival::DiskDone { tag, .. } => kept.suppressed.completed(*tag),
            Arrival::Clock { wall_ns } => self.time.wall_ns = *wall_ns,
            _ => {}
        }
        Ok(())
    }

    fn lead(&mut self, from: LogPlace, kept: &mut Kept) -> Result<Leading, InputsError> {
        kept.settle_disk().map_err(InputsError::Backend)?;
        let outputs = kept.take();
        let (reply, answer) = sync_channel(1);
        let drained = VcpuEvent::Drained { outputs, reply };
        let asked = self.control.send(Message::Vcpu(drained)).is_ok();
        if !asked || answer.recv() != Ok(true) {
            return Err(InputsError::Halted("it may not go live".into()));
        }
        let live = Live::new(self.inbox.clone(), self.time, false)
            .map_err(|e| InputsError::Backend(format!("no timer for the live machine: {e}")))?;
        let exit = Exit::Open(self.outside.clone());
        let journal = Mortal::new(Journal::Alone(NoLog::at(from)), self.die_at);
        let pace = StatePace { every_entries: 0 };
        let recorder = Recorder::new(live, journal, exit, pace, self.pages);
        let frames = self.sink.go_live();
        let live = Message::Vcpu(VcpuEvent::Live { frames });
        let _ = self.control.send(live);
        logchannel::leisure();
        Ok(recorder)
    }
}
