//! The role state machine: events in, commands out; no socket, no clock, no thread.
//!
//! ```text
//!             link ended              flag won
//!   Primary ────────────▶ contending ──────────────────────────────────────▶ Solo ──▶ Ended
//!                            │  ▲ unreachable: wait, ask again                 ▲
//!                            │  └─────┐                                        │
//!                            └────────┴── flag lost ──▶ Halted                 │ drained
//!                            ┌────────┬── flag lost ──────▲                    │
//!             link lost      ▼        │   diverged ────────┤       flag won     │
//!   Backup  ────────────▶ contending ─┴───────────────────┼───────────▶ Draining
//!      │ goodbye         drained                          └ nothing leaves any more
//!      ├──────▶ Ending ─────────▶ Ended
//!      └──────▶ Finished ───────▶ Ended
//!    power-off        goodbye, or link lost
//! ```
//!
//! Rules it keeps:
//! - Suspicion makes nobody live: only the flag does (invariant 3). Out of reach is no answer.
//! - A replica that contends emits nothing but what was acked.
//! - A diverged replica neither contends nor goes live (invariant 7), whatever it has won.
//! - Going live: everything in the log is executed first, then suppressed outputs leave in order, then
//!   the gate opens (invariant 4).
//! - A stop is obeyed in bounded time. A primary's guest is stopped by the log; a replica that asks for a
//!   flag halts, since who has it is in doubt; one that has won it stops the guest when it is live.
//! - A guest's power-off is an entry like any other: both replicas end, nobody contends. Whoever knows
//!   that all outputs have left marks the view's flag, so that the VM may be started again.
//! - `Halted` and `Ended` are final.

use serde::{Deserialize, Serialize};

/// Who is primary and backup of one VM; only grows.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct ViewNumber(pub u64);

impl ViewNumber {
    /// The view after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl std::fmt::Display for ViewNumber {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// What a replica is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Runs the guest, has a backup.
    Primary,
    /// Replays the guest.
    Backup,
    /// Runs the guest alone, gate open.
    Solo,
    /// Stopped: emits nothing any more.
    Halted,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The link was lost: the peer may have failed.
    LinkLost,
    /// The peer said goodbye.
    PeerBye,
    /// The flag of this view is ours.
    FlagWon,
    /// The flag of this view is another's.
    FlagLost {
        /// Whose.
        holder: String,
    },
    /// The flag of this view says that the VM has ended.
    VmEnded,
    /// The arbiter gave no answer: who has the flag is unknown.
    FlagUnreachable,
    /// It is time to ask again.
    RetryTick,
    /// The arbiter gave no answer for as long as a replica that is to stop asks it.
    FlagGivenUp,
    /// Every entry that came was executed.
    Drained,
    /// Replay differs from the recording.
    Diverged,
    /// This replica cannot go on (an output could not be delivered, its engine failed).
    Failed {
        /// Why.
        why: String,
    },
    /// The guest ended here: the log's last entry was written or executed.
    PowerOff,
    /// The operator wants this replica stopped.
    StopAsked,
}

/// What is to be done, in the order given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Keep the gate shut: only what was acked may leave.
    HoldOutputs,
    /// Ask the arbiter for the flag of `view`; answer with a `Flag` event.
    TestAndSet {
        /// The view that ends.
        view: ViewNumber,
    },
    /// Send a [`Event::RetryTick`] after a while.
    RetryLater,
    /// Execute every entry that came, then say [`Event::Drained`].
    Drain,
    /// Emit what was suppressed and not released, in order.
    Reemit,
    /// Open the gate: outputs leave at once from now on.
    OpenGate,
    /// Tell switches where the guest's address is now.
    Announce,
    /// Tell the viewservice, which may be down.
    ReportView {
        /// The new view, this replica being its primary.
        view: ViewNumber,
    },
    /// Run the guest on with live inputs.
    GoLive {
        /// The new view.
        view: ViewNumber,
    },
    /// Deliver [`replay::Arrival::Stop`] to the guest, by the log.
    StopGuest,
    /// Stop for good: nothing leaves any more.
    Halt {
        /// Why.
        why: String,
    },
    /// The VM ended, or this replica left, in an orderly way.
    End,
    /// The VM ended in `view`, and every output has left: set its flag to say so, that the VM may be
    /// started again. Whether the arbiter can be reached or not, this replica is over.
    MarkEnd {
        /// The VM's last view.
        view: ViewNumber,
    },
}

/// Where the machine stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Primary,
    /// The link ended; `done` if the guest has ended meanwhile.
    PrimaryContending {
        done: bool,
    },
    Solo,
    Backup,
    BackupContending,
    /// The flag is ours; the log is not executed to its end yet. `stop` if the machine is to end then.
    Draining {
        stop: bool,
    },
    /// The primary said goodbye; the log is not executed to its end yet.
    Ending,
    /// The log is executed to its end; waits for the primary's goodbye, so that it still gets acks.
    Finished,
    /// The log is executed to its end, but the primary is gone: what it may not have let out waits for
    /// the flag.
    FinishedContending,
    Halted,
    Ended,
}

/// The role of one replica, in one view at a time.
#[derive(Clone, Debug)]
pub struct RoleMachine {
    phase: Phase,
    view: ViewNumber,
}

impl std::fmt::Display for RoleMachine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let phase = match self.phase {
            Phase::Primary => "primary",
            Phase::PrimaryContending { done: false } => "primary contending",
            Phase::PrimaryContending { done: true } => "primary contending, guest ended",
            Phase::Solo => "solo",
            Phase::Backup => "backup",
            Phase::BackupContending => "backup contending",
            Phase::Draining { stop: false } => "backup draining",
            Phase::Draining { stop: true } => "backup draining, to stop",
            Phase::Ending => "backup ending",
            Phase::Finished => "backup finished",
            Phase::FinishedContending => "backup finished contending",
            Phase::Halted => "halted",
            Phase::Ended => "ended",
        };
        write!(f, "{phase} view {}", self.view)
    }
}

impl RoleMachine {
    /// A primary with a backup.
    #[must_use]
    pub fn primary(view: ViewNumber) -> Self {
        let phase = Phase::Primary;
        Self { phase, view }
    }

    /// A backup with a primary.
    #[must_use]
    pub fn backup(view: ViewNumber) -> Self {
        let phase = Phase::Backup;
        Self { phase, view }
    }

    /// The role now. A replica that contends still has the role it had; one that ended is halted.
    #[must_use]
    pub fn role(&self) -> Role {
        match self.phase {
            Phase::Primary | Phase::PrimaryContending { .. } => Role::Primary,
            Phase::Backup
            | Phase::BackupContending
            | Phase::Draining { .. }
            | Phase::Ending
            | Phase::Finished
            | Phase::FinishedContending => Role::Backup,
            Phase::Solo => Role::Solo,
            Phase::Halted | Phase::Ended => Role::Halted,
        }
    }

    /// The view now.
    #[must_use]
    pub fn view(&self) -> ViewNumber {
        self.view
    }

    /// Whether it is over for this replica.
    #[must_use]
    pub fn is_final(&self) -> bool {
        matches!(self.phase, Phase::Halted | Phase::Ended)
    }

    /// Takes an event. Events that come too late for a phase (a flag for one that has halted) do
    /// nothing.
    #[must_use]
    pub fn handle(&mut self, event: Event) -> Vec<Command> {
        if self.is_final() {
            return Vec::new();
        }
        match event {
            Event::LinkLost => self.link_lost(),
            Event::PeerBye => self.peer_bye(),
            Event::FlagWon => self.flag_won(),
            Event::FlagLost { holder } => self.flag_lost(&holder),
            Event::VmEnded => self.vm_ended(),
            Event::FlagUnreachable if self.contends() => vec![Command::RetryLater],
            Event::RetryTick if self.contends() => self.ask(),
            Event::FlagGivenUp if self.contends() => {
                self.in_doubt("it was asked to stop, and the arbiter gave no answer")
            }
            Event::FlagUnreachable | Event::RetryTick | Event::FlagGivenUp => Vec::new(),
            Event::Drained => self.drained(),
            Event::Diverged => self.halt("it diverged from the recording".into()),
            Event::Failed { why } => self.halt(why),
            Event::PowerOff => self.power_off(),
            Event::StopAsked => self.stop_asked(),
        }
    }

    fn contends(&self) -> bool {
        matches!(
            self.phase,
            Phase::PrimaryContending { .. } | Phase::BackupContending | Phase::FinishedContending
        )
    }

    fn ask(&self) -> Vec<Command> {
        vec![Command::TestAndSet { view: self.view }]
    }

    fn halt(&mut self, why: String) -> Vec<Command> {
        self.phase = Phase::Halted;
        vec![Command::Halt { why }]
    }

    /// Halts while it is open who has the flag: this replica may have set it, its reply lost.
    fn in_doubt(&mut self, why: &str) -> Vec<Command> {
        let view = self.view;
        self.halt(format!(
            "{why}: the flag of view {view} is left in doubt, and the machine counts as running. Its next \
             start is refused with the --view to begin in, once none of its replicas runs any more"
        ))
    }

    fn end(&mut self) -> Vec<Command> {
        self.phase = Phase::Ended;
        vec![Command::End]
    }

    /// The VM itself is over, not only this replica.
    fn end_vm(&mut self) -> Vec<Command> {
        let mut commands = self.end();
        commands.push(Command::MarkEnd { view: self.view });
        commands
    }

    /// Whoever set the flag so had let everything out: nothing is to be re-emitted.
    fn vm_ended(&mut self) -> Vec<Command> {
        match self.phase {
            Phase::PrimaryContending { .. } => self.halt("its backup says the guest ended".into()),
            Phase::BackupContending => {
                self.phase = Phase::Ending;
                vec![Command::Drain]
            }
            Phase::FinishedContending => self.end(),
            _ => Vec::new(),
        }
    }

    fn link_lost(&mut self) -> Vec<Command> {
        match self.phase {
            Phase::Primary => self.contend_as_primary(),
            Phase::Backup => {
                self.phase = Phase::BackupContending;
                self.ask()
            }
            Phase::Finished => {
                self.phase = Phase::FinishedContending;
                self.ask()
            }
            _ => Vec::new(),
        }
    }

    fn contend_as_primary(&mut self) -> Vec<Command> {
        self.phase = Phase::PrimaryContending { done: false };
        let mut commands = vec![Command::HoldOutputs];
        commands.extend(self.ask());
        commands
    }

    fn peer_bye(&mut self) -> Vec<Command> {
        match self.phase {
            // A backup that left does not contend, yet running alone is a new view.
            Phase::Primary => self.contend_as_primary(),
            Phase::Backup => {
                self.phase = Phase::Ending;
                vec![Command::Drain]
            }
            Phase::Finished => self.end_vm(),
            _ => Vec::new(),
        }
    }

    fn flag_won(&mut self) -> Vec<Command> {
        match self.phase {
            Phase::PrimaryContending { done } => {
                self.view = self.view.next();
                self.phase = Phase::Solo;
                let view = self.view;
                let mut commands = vec![Command::OpenGate, Command::ReportView { view }];
                if done {
                    commands.extend(self.end_vm());
                }
                commands
            }
            Phase::BackupContending => {
                self.phase = Phase::Draining { stop: false };
                vec![Command::Drain]
            }
            Phase::FinishedContending => self.end_for_primary(),
            _ => Vec::new(),
        }
    }

    fn flag_lost(&mut self, holder: &str) -> Vec<Command> {
        if self.contends() {
            let view = self.view;
            self.halt(format!("{holder} has the flag of view {view}"))
        } else {
            Vec::new()
        }
    }

    fn drained(&mut self) -> Vec<Command> {
        match self.phase {
            Phase::Draining { stop } => {
                self.view = self.view.next();
                self.phase = Phase::Solo;
                let view = self.view;
                let mut commands = vec![
                    Command::Announce,
                    Command::Reemit,
                    Command::OpenGate,
                    Command::GoLive { view },
                    Command::ReportView { view },
                ];
                if stop {
                    commands.push(Command::StopGuest);
                }
                commands
            }
            Phase::Ending => self.end(),
            _ => Vec::new(),
        }
    }

    fn power_off(&mut self) -> Vec<Command> {
        match self.phase {
            Phase::PrimaryContending { .. } => {
                // Its last outputs wait in the gate for the flag.
                self.phase = Phase::PrimaryContending { done: true };
                Vec::new()
            }
            Phase::Draining { .. } => self.end_for_primary(),
            Phase::BackupContending => {
                self.phase = Phase::FinishedContending;
                Vec::new()
            }
            Phase::Backup => {
                self.phase = Phase::Finished;
                Vec::new()
            }
            _ => self.end_vm(),
        }
    }

    /// The flag is ours: what nobody saw leaves, and there is nothing to go live with.
    fn end_for_primary(&mut self) -> Vec<Command> {
        self.view = self.view.next();
        let mut commands = vec![Command::Reemit];
        commands.extend(self.end_vm());
        commands
    }

    fn stop_asked(&mut self) -> Vec<Command> {
        match self.phase {
            Phase::Primary | Phase::Solo => vec![Command::StopGuest],
            Phase::Draining { .. } => {
                // Nobody else can be live: the machine is this replica's to end.
                self.phase = Phase::Draining { stop: true };
                Vec::new()
            }
            _ if self.contends() => self.in_doubt("it was stopped while asking for the flag"),
            _ => self.end(),
        }
    }
}
