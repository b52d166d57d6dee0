//! The vCPU thread of a replica: makes the machine, waits for the link, runs the guest to its end.

// The vCPU's thread runs here (see clippy.toml).
#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

use crate::duty::{Duty, Kept};
use crate::error::{During, Outcome, ReplicaError};
use crate::join::Orders;
use crate::machine::AnyMachine;
use crate::suppressed::Suppressed;
use crate::{Message, VcpuEvent};
use logchannel::Bye;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, SyncSender, sync_channel};
use std::thread::JoinHandle;
use vmm::kick::Kicker;
use vmm::machine::{Ended, FAULT_STATUS, MachineError};

/// A vCPU's thread.
pub struct Thread {
    /// As the system knows it.
    pub id: libc::pid_t,
    /// Its end.
    pub end: JoinHandle<()>,
}

/// A machine that is being made, on a thread of its own.
pub struct Making<L> {
    made: Receiver<Outcome<(u64, libc::pid_t)>>,
    end: JoinHandle<()>,
    link: SyncSender<L>,
}

/// A machine that was made, on a thread of its own that waits for its link, an `L`. Dropped, that thread
/// ends.
pub struct Made<L> {
    /// Digest of the machine's first state.
    pub first_state: u64,
    thread: Thread,
    link: SyncSender<L>,
}

/// Begins to make a machine, by `make`, on a new vCPU thread. Once it has its link, `run` runs it there, and
/// `control` is told how that ended. `make` returns the machine and the digest of its state.
///
/// # Errors
/// If there is no thread for it.
pub fn begin<L: Send + 'static>(
    make: impl FnOnce() -> Outcome<(AnyMachine, u64)> + Send + 'static,
    control: Sender<Message>,
    run: impl FnOnce(AnyMachine, L) -> Outcome<VcpuEvent> + Send + 'static,
) -> Outcome<Making<L>> {
    let (tell, made) = sync_channel(1);
    let (link, take_link) = sync_channel::<L>(1);
    let vcpu = move || {
        let (machine, state) = match make() {
            Ok(made) => made,
            Err(e) => return drop(tell.send(Err(e))),
        };
        let _ = tell.send(Ok((state, Kicker::current_thread().thread())));
        let Ok(link) = take_link.recv() else { return };
        let ran = catch_unwind(AssertUnwindSafe(|| run(machine, link)));
        // A bug: the panic has said which. The control thread is to hear of it, and to halt.
        let ran = ran.unwrap_or_else(|_| Err(ReplicaError::refused("the vCPU thread failed")));
        let event = ran.unwrap_or_else(|e| VcpuEvent::Failed(e.to_string()));
        let _ = control.send(Message::Vcpu(event));
    };
    let end = std::thread::Builder::new()
        .name("vcpu".into())
        .spawn(vcpu)
        .during("cannot start a thread")?;
    Ok(Making { made, end, link })
}

impl<L> Making<L> {
    /// Waits until the machine is made.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn wait(self) -> Outcome<Made<L>> {
        let made = self.made.recv().during("the vCPU thread failed")?;
        let (first_state, id) = made?;
        Ok(Made {
            first_state,
            thread: Thread { id, end: self.end },
            link: self.link,
        })
    }
}

impl<L> Made<L> {
    /// Gives the thread its link: the guest runs.
    ///
    /// # Errors
    /// If the thread is gone.
    pub fn start(self, link: L) -> Outcome<Thread> {
        let sent = self.link.send(link);
        sent.map_err(|_| ReplicaError::refused("the vCPU thread failed"))?;
        Ok(self.thread)
    }
}

/// Runs a guest to its end, whatever its replica's duty, on the vCPU thread.
pub fn run(mut machine: AnyMachine, mut duty: Duty, orders: &Orders) -> VcpuEvent {
    let ended = loop {
        match machine.run_until(&mut duty, |_| orders.wait()) {
            Ok(Some(ended)) => break Ok(ended),
            Ok(None) => {
                if let Err(error) = orders.obey(&mut machine, &mut duty) {
                    break Err(error);
                }
            }
            Err(error) => break Err(machine.broke(&mut duty, error)),
        }
    };
    let settled = match (&ended, duty.kept_mut()) {
        (Ok(_), Some(kept)) => kept.settle_disk(),
        _ => Ok(()),
    };
    let event = outcome(ended, |bye| match &mut duty {
        Duty::Leading(leading) => {
            leading.log_mut().leave(bye);
            Suppressed::new()
        }
        Duty::Following(_) => duty.kept_mut().map_or_else(Suppressed::new, Kept::take),
    });
    // A backup that has the machine's end, but not all of its disk, is none.
    let event = settled.map_or_else(VcpuEvent::Failed, |()| event);
    if let Duty::Following(_) = duty {
        // The receiver's threads go on acking until the replica ends.
        std::mem::forget(duty);
    }
    event
}

/// What the control thread is told of a run. If the guest came to an end of its own, good or bad, `leave` is
/// told first what the peer is to hear, and returns the outputs nobody may have seen.
pub fn outcome(
    run: Result<Ended, MachineError>,
    leave: impl FnOnce(Bye) -> Suppressed,
) -> VcpuEvent {
    match run {
        Ok(ended) => {
            let bye = if ended.stopped {
                Bye::Stop
            } else {
                Bye::PowerOff { code: ended.code }
            };
            let outputs = leave(bye);
            VcpuEvent::Ended { ended, outputs }
        }
        Err(e) if e.divergence().is_some() => VcpuEvent::Diverged(e.to_string()),
        Err(e) if e.is_the_guests() => VcpuEvent::Broke {
            why: e.to_string(),
            outputs: leave(Bye::PowerOff { code: FAULT_STATUS }),
        },
        Err(e) => VcpuEvent::Failed(e.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use replay::{ExecPoint, InputsError};
    use vmm::engine::EngineError;

    #[test]
    fn only_the_guests_own_failure_ends_the_peer_too() {
        let (at, why) = (ExecPoint::default(), "why".to_owned());
        let guests = EngineError::GuestFault {
            at,
            why: why.clone(),
        };
        let mut byes = Vec::new();
        let event = outcome(Err(guests.into()), |bye| {
            byes.push(bye);
            Suppressed::new()
        });
        assert!(matches!(event, VcpuEvent::Broke { .. }));
        assert_eq!(byes, [Bye::PowerOff { code: FAULT_STATUS }]);

        let guests = EngineError::GuestFault {
            at,
            why: why.clone(),
        };
        let unnoted = MachineError::Unnoted {
            reason: Box::new(guests.into()),
            error: InputsError::Halted("the flag is lost".into()),
        };
        let hosts = EngineError::Failed { at, why }.into();
        for error in [unnoted, hosts] {
            let event = outcome(Err(error), |bye| panic!("the peer hears {bye:?}"));
            let VcpuEvent::Failed(line) = event else {
                panic!("another replica may go on");
            };
            assert!(line.contains("why"), "{line}");
        }
    }
}
