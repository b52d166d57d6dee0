//! What the control thread does to the rest of a replica, whatever its duty.

use crate::VcpuEvent;
use crate::brake::Brake;
use crate::error::{Outcome, ReplicaError};
use crate::lease::Lease;
use crate::notice::{Counters, Log, Notice};
use crate::outside::Outside;
use crate::role::RoleEvent;
use crate::suppressed::Suppressed;
use crate::vcpu::Thread;
use logchannel::{Bye, Cursors, ReceiverHandle, SenderHandle};
use replay::{Arrival, LogIndex};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;
use vmm::backends::ArrivalSink;
use vmm::machine::FAULT_STATUS;
use vmm::machine::live::Inbox;

/// This replica's end of a link to another one.
pub enum Wire {
    /// It sends the log.
    Leads(Leads),
    /// It receives the log.
    Follows(Follows),
    /// There is no other one.
    Alone,
}

/// The end of a link that sends the log.
pub struct Leads {
    /// The link.
    pub sender: SenderHandle,
    /// A copy to ask what a lag comes to.
    pub brake: Brake,
    /// Microseconds the brake has held the guest.
    pub braked_us: Arc<AtomicU64>,
    /// The clock by which all memory was digested once, behind a join; 0 before.
    pub memory_seen: Arc<AtomicU64>,
}

/// The end of a link that receives the log.
pub struct Follows {
    /// The link.
    pub receiver: ReceiverHandle,
    /// The host of the primary.
    pub primary: IpAddr,
    /// What was suppressed and nobody may have seen.
    pub outputs: Suppressed,
    /// Where the vCPU's thread waits to be told whether it goes live.
    pub reply: Option<SyncSender<bool>>,
}

/// A replica, as far as its control thread has to do with it.
pub struct Body {
    /// Its end of the link.
    pub wire: Wire,
    /// What arrives for its guest.
    pub inbox: Arc<Inbox>,
    /// What stands behind its devices.
    pub outside: Arc<Outside>,
    /// Its right to write to a disk that is shared: by the link while it leads a pair, without one before it is
    /// live, for good while it runs alone.
    pub lease: Arc<Lease>,
    /// Its vCPU's thread.
    pub thread: Thread,
    /// The guest's exit status, once it ended.
    ended: Option<u32>,
    /// Why the guest could not go on, if that is what ended it.
    broke: Option<String>,
}

impl Body {
    /// The body of a replica whose guest has not run yet.
    pub fn new(
        wire: Wire,
        inbox: Arc<Inbox>,
        outside: Arc<Outside>,
        lease: Arc<Lease>,
        thread: Thread,
    ) -> Self {
        Self {
            wire,
            inbox,
            outside,
            lease,
            thread,
            ended: None,
            broke: None,
        }
    }

    /// The gate opens: outputs leave at once from now on.
    pub fn open_gate(&mut self) -> Outcome {
        match &self.wire {
            Wire::Leads(leads) => {
                self.inbox.gather_frames(false);
                Ok(leads.sender.solo()?)
            }
            // What it makes from now on is held by no gate.
            Wire::Follows(_) | Wire::Alone => Ok(()),
        }
    }

    /// The other side may be dead: what is left to do here is waited for.
    pub fn hurry(&mut self) {
        if matches!(self.wire, Wire::Follows(_)) && self.ended.is_none() {
            logchannel::make_prompt(self.thread.id);
        }
    }

    /// Every entry that came is to be executed.
    pub fn drain(&mut self) {
        if let Wire::Follows(follows) = &self.wire {
            follows.receiver.finish();
        }
    }

    /// The network is told where the guest is now.
    pub fn announce(&mut self) {
        self.outside.announce();
    }

    /// Where the primary said that it waits as a backup, once it has left the machine.
    pub fn yielded(&self) -> Option<SocketAddr> {
        let Wire::Follows(follows) = &self.wire else {
            return None;
        };
        let port = follows.receiver.yielded()?;
        Some((follows.primary, port.get()).into())
    }

    /// What was suppressed leaves, in order. How many outputs that is.
    pub fn reemit(&mut self) -> usize {
        let Wire::Follows(follows) = &mut self.wire else {
            return 0;
        };
        // The flag is won: nobody else writes any more.
        self.lease.free();
        // The primary may have said more since its guest ended.
        follows.outputs.delivered(follows.receiver.delivered());
        let outputs = follows.outputs.take_for_reemission();
        let count = outputs.len();
        for (index, output) in outputs {
            self.outside.emit(index, output);
        }
        count
    }

    /// The vCPU goes on with live inputs.
    pub fn go_live(&mut self) {
        if let Wire::Follows(follows) = std::mem::replace(&mut self.wire, Wire::Alone)
            && let Some(reply) = follows.reply
        {
            let _ = reply.send(true);
        }
    }

    /// The guest is asked to end, by the log.
    pub fn stop_guest(&mut self) {
        self.outside.hurry();
        self.inbox.push(Arrival::Stop);
    }

    /// Nothing leaves any more.
    pub fn halt(&mut self) {
        if let Wire::Leads(leads) = &self.wire {
            leads.sender.halt();
        }
        self.lease.end();
        self.outside.halt();
        // Its guest's thread is to end, too, if this process goes on.
        self.inbox.push(Arrival::Stop);
        if let Wire::Follows(follows) = &mut self.wire {
            follows.reply = None;
            follows.receiver.stop();
        }
    }

    /// This replica leaves in an orderly way.
    pub fn leave(&mut self) {
        if let Wire::Follows(follows) = &mut self.wire {
            follows.receiver.bye(Bye::Stop);
            follows.reply = None;
        }
        self.outside.finish();
    }

    /// The vCPU's thread says something; what that means for the role.
    pub fn vcpu(&mut self, event: VcpuEvent, log: &mut Log) -> Option<RoleEvent> {
        match event {
            VcpuEvent::Drained { outputs, reply } => {
                log.note(Notice::Drained {
                    outputs: outputs.len(),
                });
                self.suppressed(outputs);
                if let Wire::Follows(follows) = &mut self.wire {
                    follows.reply = Some(reply);
                }
                Some(RoleEvent::Drained)
            }
            VcpuEvent::Live { frames } => {
                log.note(Notice::Live { frames });
                None
            }
            VcpuEvent::Ended { ended, outputs } => {
                log.note(Notice::GuestEnded(ended.code));
                self.ended = Some(ended.code);
                self.suppressed(outputs);
                Some(RoleEvent::PowerOff)
            }
            VcpuEvent::Broke { why, outputs } => {
                log.note(Notice::GuestBroke(&why));
                self.ended = Some(FAULT_STATUS);
                self.broke = Some(why);
                self.suppressed(outputs);
                Some(RoleEvent::PowerOff)
            }
            VcpuEvent::Diverged(why) => {
                log.note(Notice::Diverged(&why));
                Some(RoleEvent::Diverged)
            }
            VcpuEvent::Failed(why) => {
                log.note(Notice::Failed(&why));
                Some(RoleEvent::Failed { why })
            }
        }
    }

    fn suppressed(&mut self, outputs: Suppressed) {
        if let Wire::Follows(follows) = &mut self.wire {
            follows.outputs = outputs;
        }
    }

    /// Waits for the end of its vCPU's thread, which has said its last word, and gives up all else.
    ///
    /// # Errors
    /// If that thread failed.
    pub fn end(self) -> Outcome {
        let ended = self.thread.end.join();
        ended.map_err(|_| ReplicaError::refused("the vCPU thread failed"))
    }

    /// The guest's exit status, once it ended.
    pub fn exit_status(&self) -> Option<u32> {
        self.ended
    }

    /// What the guest said on its console about why it gives up.
    pub fn why(&self) -> Option<String> {
        self.outside.why()
    }

    /// Why the guest could not go on, if that is what ended it.
    pub fn broke(&self) -> Option<&str> {
        self.broke.as_deref()
    }

    /// Whether the other side has taken part: it has acked something, or it leads.
    pub fn was_a_pair(&self) -> bool {
        match &self.wire {
            Wire::Leads(leads) => leads.sender.cursors().acked > leads.sender.base().index,
            Wire::Follows(_) | Wire::Alone => true,
        }
    }

    /// Whether the backup, which was given this machine while it ran, has compared all memory since.
    pub fn memory_is_proved(&self) -> bool {
        let Wire::Leads(leads) = &self.wire else {
            return false;
        };
        let seen = leads.memory_seen.load(Ordering::Relaxed);
        seen != 0 && leads.sender.lag().executed_clock.0 > seen
    }

    /// How far the log has come on the link to a backup; the beginning without one.
    pub fn cursors(&self) -> Cursors {
        match &self.wire {
            Wire::Leads(leads) => leads.sender.cursors(),
            Wire::Follows(_) | Wire::Alone => Cursors::default(),
        }
    }

    /// The entry up to which a backup that is left this machine is known to have all that was: it holds them, and
    /// with a disk of its own it has done what they ask of that.
    pub fn safe(&self) -> LogIndex {
        match &self.wire {
            Wire::Leads(leads) if self.outside.disk.is_own() => leads.sender.executed(),
            _ => self.cursors().acked,
        }
    }

    /// How far execution lags behind, in milliseconds.
    pub fn lag_ms(&self) -> u64 {
        match &self.wire {
            Wire::Leads(leads) => leads.sender.lag().us / 1000,
            Wire::Follows(follows) => follows.receiver.lag_us() / 1000,
            Wire::Alone => 0,
        }
    }

    /// Its counters, if it keeps any.
    pub fn counters(&self) -> Option<Counters> {
        let Wire::Leads(leads) = &self.wire else {
            return None;
        };
        Some(Counters {
            link: leads.sender.metrics(),
            cursors: leads.sender.cursors(),
            lag: leads.sender.lag(),
            speed_permille: leads.brake.speed_permille(leads.sender.drain_us()),
            braked_us: leads.braked_us.load(Ordering::Relaxed),
            console_held: self.outside.console_held(),
            tied: leads.sender.is_tied(),
            tick_late_us: self.inbox.lateness().snapshot(),
        })
    }
}
