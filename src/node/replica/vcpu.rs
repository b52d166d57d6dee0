//! The vCPU thread of a replica: boots the machine, waits for the link, runs the guest to its end.

use super::super::engine::AnyMachine;
use super::super::setup::Prepared;
use super::{Message, VcpuEvent};
use crate::failure::{During, Failure, Outcome};
use logchannel::{Bye, Suppressed};
use std::sync::mpsc::{Sender, SyncSender, sync_channel};
use vmm::kick::Kicker;
use vmm::machine::{Ended, FAULT_STATUS, MachineError};

/// A machine that was booted, on a thread of its own that waits for its link, an `L`. Dropped, that thread
/// ends.
pub struct Booted<L> {
    /// Digest of the machine's first state.
    pub first_state: u64,
    /// That thread.
    pub thread: libc::pid_t,
    link: SyncSender<L>,
}

/// Boots a machine on a new vCPU thread. Once it has its link, `run` runs it there, and `control` is told
/// how that ended.
///
/// # Errors
/// If it does not boot.
pub fn boot<L: Send + 'static>(
    prepared: Prepared,
    control: Sender<Message>,
    run: impl FnOnce(AnyMachine, L) -> Outcome<VcpuEvent> + Send + 'static,
) -> Outcome<Booted<L>> {
    let (tell_state, first_state) = sync_channel(1);
    let (link, take_link) = sync_channel::<L>(1);
    let vcpu = move || {
        let (machine, state) = match prepared.boot() {
            Ok(booted) => booted,
            Err(e) => return drop(tell_state.send(Err(e))),
        };
        let _ = tell_state.send(Ok((state, Kicker::current_thread().thread())));
        let Ok(link) = take_link.recv() else { return };
        let event = run(machine, link).unwrap_or_else(|e| VcpuEvent::Failed(e.to_string()));
        let _ = control.send(Message::Vcpu(event));
    };
    std::thread::Builder::new()
        .name("vcpu".into())
        .spawn(vcpu)
        .during("cannot start a thread")?;
    let (first_state, thread) = first_state.recv().during("the vCPU thread failed")??;
    Ok(Booted {
        first_state,
        thread,
        link,
    })
}

impl<L> Booted<L> {
    /// Gives the thread its link: the guest runs.
    ///
    /// # Errors
    /// If the thread is gone.
    pub fn start(self, link: L) -> Outcome {
        let sent = self.link.send(link);
        sent.map_err(|_| Failure::new("the vCPU thread failed"))
    }
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
