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
//!
//!           a new backup offered        it is level            flag won
//!   Solo ─────────────────────▶ Joining ──────────▶ Sealing ───────────▶ Primary, in the next view
//!    ▲                            │ link lost          │ link lost
//!    └────────────────────────────┴────────────────────┘
//!
//!   Joiner ── welcomed ──▶ Backup, in the next view
//!      └ link lost ──▶ Halted: it never contends
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
//! - A machine that runs alone in view n begins view n + 1 with a new backup by the flag of view n, like
//!   any start: whoever else may have been given that view loses, or this replica halts. Its
//!   gate stays open until the flag is won; for the last of that its guest stands still.
//! - A joiner has not executed all that was let out. It never contends, and becomes a backup by its
//!   primary's word only.
//! - `Halted` and `Ended` are final.

pub use names::{Role, ViewNumber};

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RoleEvent {
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
    /// This replica is to stop, and the arbiter gave no answer for as long as such a replica asks.
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
    /// A new backup is there for a machine that runs alone.
    JoinOffered,
    /// The joiner has executed everything this replica has let out.
    JoinerLevel,
    /// The primary says that this joiner is its backup now.
    Welcomed,
}

/// What is to be done, in the order given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RoleCommand {
    /// Keep the gate shut: only what was acked may leave.
    HoldOutputs,
    /// Ask the arbiter for the flag of `view`; answer with a `Flag` event.
    TestAndSet {
        /// The view that ends.
        view: ViewNumber,
    },
    /// Send a [`RoleEvent::RetryTick`] after a while.
    RetryLater,
    /// Execute every entry that came, then say [`RoleEvent::Drained`].
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
    /// Hand the machine's state and its log to the joiner; then say [`RoleEvent::JoinerLevel`].
    BeginJoin,
    /// Shut the gate: from here on only what the backup has acked may leave.
    CloseGate,
    /// Tell the joiner that it is the backup in `view`.
    Welcome {
        /// The new view, this replica being its primary.
        view: ViewNumber,
    },
    /// Tell that this replica is primary in `view`, a backup behind it.
    ReportPair {
        /// The new view.
        view: ViewNumber,
    },
    /// The VM ended, or this replica left, in an orderly way.
    End,
    /// The VM ended in `view`, and every output has left: set its flag to say so, so that the VM may be
    /// started again. This replica is over whether or not the arbiter can be reached.
    MarkEnd {
        /// The VM's last view.
        view: ViewNumber,
    },
}

/// Where the machine stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Phase {
    Primary,
    /// The link ended; `done` if the guest has ended meanwhile.
    PrimaryContending {
        done: bool,
    },
    Solo,
    /// As solo; a joiner is given the machine.
    Joining,
    /// As solo; the joiner is level, and the flag of this view is asked for.
    Sealing,
    Backup,
    /// As a backup that may not contend yet.
    Joiner,
    BackupContending,
    /// The flag is ours; the log is not executed to its end yet. `stop` if the machine is to end then.
    Draining {
        stop: bool,
    },
    /// The primary said goodbye; the log is not executed to its end yet.
    Ending,
    /// The log is executed to its end; waits for the primary's goodbye, so that it still gets acks.
    Finished,
    /// The log is executed to its end, but the primary is gone. Outputs it may not have let out wait for the
    /// flag.
    FinishedContending,
    Halted,
    Ended,
}

/// The role of one replica, in one view at a time.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
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
            Phase::Joining => "solo, joining",
            Phase::Sealing => "solo, sealing",
            Phase::Joiner => "joiner",
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

    /// A replica that is given the machine of a primary in `view`, to be its backup in the next.
    #[must_use]
    pub fn joiner(view: ViewNumber) -> Self {
        let phase = Phase::Joiner;
        Self { phase, view }
    }

    /// The role in its view. A replica that contends still has the role it had. A joiner has none yet, and a
    /// replica that is over, halted or ended, has none any more.
    #[must_use]
    pub fn role(&self) -> Option<Role> {
        match self.phase {
            Phase::Primary | Phase::PrimaryContending { .. } => Some(Role::Primary),
            Phase::Backup
            | Phase::BackupContending
            | Phase::Draining { .. }
            | Phase::Ending
            | Phase::Finished
            | Phase::FinishedContending => Some(Role::Backup),
            Phase::Solo | Phase::Joining | Phase::Sealing => Some(Role::Solo),
            Phase::Joiner | Phase::Halted | Phase::Ended => None,
        }
    }

    /// The view now.
    #[must_use]
    pub fn view(&self) -> ViewNumber {
        self.view
    }

    /// Whether the flag is asked for that makes the next view a pair's.
    #[must_use]
    pub fn is_sealing(&self) -> bool {
        self.phase == Phase::Sealing
    }

    /// Whether it leads a pair whose link stands: one that contends does not know yet what becomes of it.
    #[must_use]
    pub fn leads_a_pair(&self) -> bool {
        self.phase == Phase::Primary
    }

    /// Whether it is over for this replica.
    #[must_use]
    pub fn is_final(&self) -> bool {
        matches!(self.phase, Phase::Halted | Phase::Ended)
    }

    /// Takes an event. Events that come too late for a phase (a flag for one that has halted) do
    /// nothing.
    #[must_use]
    pub fn handle(&mut self, event: RoleEvent) -> Vec<RoleCommand> {
        if self.is_final() {
            return Vec::new();
        }
        match event {
            RoleEvent::LinkLost => self.link_lost(),
            RoleEvent::PeerBye => self.peer_bye(),
            RoleEvent::FlagWon => self.flag_won(),
            RoleEvent::FlagLost { holder } => self.flag_lost(&holder),
            RoleEvent::VmEnded => self.vm_ended(),
            RoleEvent::FlagUnreachable if self.contends() => vec![RoleCommand::RetryLater],
            RoleEvent::RetryTick if self.contends() => self.ask(),
            // It is live all the same: the joiner is given up, not the machine.
            RoleEvent::FlagGivenUp if self.phase == Phase::Sealing => vec![RoleCommand::RetryLater],
            RoleEvent::FlagGivenUp if self.contends() => {
                self.in_doubt("it was asked to stop, and the arbiter gave no answer")
            }
            RoleEvent::FlagUnreachable | RoleEvent::RetryTick | RoleEvent::FlagGivenUp => {
                Vec::new()
            }
            RoleEvent::Drained => self.drained(),
            RoleEvent::Diverged => self.halt("it diverged from the recording".into()),
            RoleEvent::Failed { why } => self.halt(why),
            RoleEvent::PowerOff => self.power_off(),
            RoleEvent::StopAsked => self.stop_asked(),
            RoleEvent::JoinOffered => self.join_offered(),
            RoleEvent::JoinerLevel => self.joiner_level(),
            RoleEvent::Welcomed => self.welcomed(),
        }
    }

    fn contends(&self) -> bool {
        matches!(
            self.phase,
            Phase::PrimaryContending { .. }
                | Phase::BackupContending
                | Phase::FinishedContending
                | Phase::Sealing
        )
    }

    fn join_offered(&mut self) -> Vec<RoleCommand> {
        if self.phase != Phase::Solo {
            return Vec::new();
        }
        self.phase = Phase::Joining;
        vec![RoleCommand::BeginJoin]
    }

    fn joiner_level(&mut self) -> Vec<RoleCommand> {
        if self.phase != Phase::Joining {
            return Vec::new();
        }
        self.phase = Phase::Sealing;
        self.ask()
    }

    fn welcomed(&mut self) -> Vec<RoleCommand> {
        if self.phase == Phase::Joiner {
            self.view = self.view.next();
            self.phase = Phase::Backup;
        }
        Vec::new()
    }

    fn ask(&self) -> Vec<RoleCommand> {
        vec![RoleCommand::TestAndSet { view: self.view }]
    }

    fn halt(&mut self, why: String) -> Vec<RoleCommand> {
        self.phase = Phase::Halted;
        vec![RoleCommand::Halt { why }]
    }

    /// Halts while it is open who has the flag: this replica may have set it, its reply lost.
    fn in_doubt(&mut self, why: &str) -> Vec<RoleCommand> {
        let view = self.view;
        self.halt(format!(
            "{why}: the flag of view {view} is left in doubt, and the machine counts as running. Its next \
             start is refused with the --view to begin in, once none of its replicas runs any more"
        ))
    }

    fn end(&mut self) -> Vec<RoleCommand> {
        self.phase = Phase::Ended;
        vec![RoleCommand::End]
    }

    /// The VM itself is over, not only this replica.
    fn end_vm(&mut self) -> Vec<RoleCommand> {
        let mut commands = self.end();
        commands.push(RoleCommand::MarkEnd { view: self.view });
        commands
    }

    /// Whoever set the flag so had let everything out: nothing is to be re-emitted.
    fn vm_ended(&mut self) -> Vec<RoleCommand> {
        match self.phase {
            Phase::PrimaryContending { .. } => self.halt("its backup says the guest ended".into()),
            Phase::BackupContending => {
                self.phase = Phase::Ending;
                vec![RoleCommand::Drain]
            }
            Phase::FinishedContending => self.end(),
            Phase::Sealing => {
                self.halt("the flag of its view says that the machine has ended".into())
            }
            _ => Vec::new(),
        }
    }

    fn link_lost(&mut self) -> Vec<RoleCommand> {
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
            Phase::Joining | Phase::Sealing => {
                self.phase = Phase::Solo;
                Vec::new()
            }
            Phase::Joiner => self.halt("its primary was lost before it had caught up".into()),
            _ => Vec::new(),
        }
    }

    fn contend_as_primary(&mut self) -> Vec<RoleCommand> {
        self.phase = Phase::PrimaryContending { done: false };
        let mut commands = vec![RoleCommand::HoldOutputs];
        commands.extend(self.ask());
        commands
    }

    fn peer_bye(&mut self) -> Vec<RoleCommand> {
        match self.phase {
            // A backup that left does not contend, yet running alone is a new view.
            Phase::Primary => self.contend_as_primary(),
            Phase::Backup => {
                self.phase = Phase::Ending;
                vec![RoleCommand::Drain]
            }
            Phase::Finished => self.end_vm(),
            // The joiner left: nothing had been promised.
            Phase::Joining | Phase::Sealing => {
                self.phase = Phase::Solo;
                Vec::new()
            }
            // The machine ended, or its primary has no use for this joiner.
            Phase::Joiner => self.end(),
            _ => Vec::new(),
        }
    }

    fn flag_won(&mut self) -> Vec<RoleCommand> {
        match self.phase {
            Phase::PrimaryContending { done } => {
                self.view = self.view.next();
                self.phase = Phase::Solo;
                let view = self.view;
                let mut commands = vec![RoleCommand::OpenGate, RoleCommand::ReportView { view }];
                if done {
                    commands.extend(self.end_vm());
                }
                commands
            }
            Phase::BackupContending => {
                self.phase = Phase::Draining { stop: false };
                vec![RoleCommand::Drain]
            }
            Phase::FinishedContending => self.end_for_primary(),
            Phase::Sealing => {
                self.view = self.view.next();
                self.phase = Phase::Primary;
                let view = self.view;
                vec![
                    RoleCommand::CloseGate,
                    RoleCommand::Welcome { view },
                    RoleCommand::ReportPair { view },
                ]
            }
            // The joiner was lost while the flag was asked for. The next view is this replica's, alone.
            Phase::Solo => {
                self.view = self.view.next();
                let view = self.view;
                vec![RoleCommand::ReportView { view }]
            }
            _ => Vec::new(),
        }
    }

    fn flag_lost(&mut self, holder: &str) -> Vec<RoleCommand> {
        if self.contends() {
            let view = self.view;
            self.halt(format!("{holder} has the flag of view {view}"))
        } else {
            Vec::new()
        }
    }

    fn drained(&mut self) -> Vec<RoleCommand> {
        match self.phase {
            Phase::Draining { stop } => {
                self.view = self.view.next();
                self.phase = Phase::Solo;
                let view = self.view;
                let mut commands = vec![
                    RoleCommand::Announce,
                    RoleCommand::Reemit,
                    RoleCommand::OpenGate,
                    RoleCommand::GoLive { view },
                    RoleCommand::ReportView { view },
                ];
                if stop {
                    commands.push(RoleCommand::StopGuest);
                }
                commands
            }
            Phase::Ending => self.end(),
            _ => Vec::new(),
        }
    }

    fn power_off(&mut self) -> Vec<RoleCommand> {
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
            // It has executed the machine's end, which is its primary's to mark.
            Phase::Joiner => self.end(),
            _ => self.end_vm(),
        }
    }

    /// The flag is ours: what nobody saw leaves, and there is nothing to go live with.
    fn end_for_primary(&mut self) -> Vec<RoleCommand> {
        self.view = self.view.next();
        let mut commands = vec![RoleCommand::Reemit];
        commands.extend(self.end_vm());
        commands
    }

    fn stop_asked(&mut self) -> Vec<RoleCommand> {
        match self.phase {
            Phase::Primary | Phase::Solo | Phase::Joining | Phase::Sealing => {
                vec![RoleCommand::StopGuest]
            }
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
