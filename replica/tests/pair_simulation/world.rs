//! The replicas of one machine, their network, their arbiter, and what the shell of each does.

use crate::guest::{Entry, What, index_of};
use crate::link::{End, Frame, Link, Reply};
use crate::oracle::{Oracle, RIVAL};
use crate::replica::{Join, Replica};
use logchannel::Delivered;
use replay::{LogIndex, Output, ViewNumber};
use replica::role::{Role, RoleCommand, RoleEvent, RoleMachine};
use replica::{OutputGate, Suppressed};
use std::collections::BTreeMap;

/// Parts of memory that go over while the guest runs.
const PAGES: u8 = 3;

/// One step of the world. Replicas are named by their number, links by the order in which they were made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A guest with live inputs runs to its next entry.
    Run(usize, What),
    /// A follower executes an entry, or finds that there is none left.
    Replay(usize),
    /// A reader takes something from the console.
    Print(usize),
    /// The disk does a request.
    Write(usize),
    /// A message arrives.
    Deliver(usize, End),
    /// A leader sends a sign of life.
    Beat(usize),
    /// The thread that hands a machine over goes on.
    HandOver(usize),
    /// The arbiter acts on a question. The answer may be lost.
    Arbitrate(usize, Answer),
    /// It is time to ask again.
    Retry(usize),
    /// An end of a link finds that nothing more comes.
    Notice(usize, End),
    /// An end of a link thinks the other dead, rightly or not.
    Suspect(usize, End),
    /// A message to that end is lost, which is behind so many others on their way, and all after it.
    Lose(usize, End, usize),
    /// The operator offers the second replica to the first.
    Offer(usize, usize),
    /// A replica is killed.
    Kill(usize),
    Pause(usize),
    Wake(usize),
    /// A follower executes something else than its leader did.
    Diverge(usize),
    ArbiterGone,
    ArbiterBack,
    /// An operator begins the next view elsewhere.
    Rival,
}

/// What becomes of the answer to a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Comes,
    IsLost,
}

/// A fault in a shell, which the oracle has to find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Break {
    JoinerContends,
    JoinerInOldView,
    GateLeftOpen,
    GateOpenedBySuspicion,
    GateOpenedByHeartbeat,
    WelcomeBeforeFlag,
    GuestRunsOnWhileGiven,
    RequestsUnderWayForgotten,
    SuppressedForgotten,
    SuppressedBackwards,
    ConsoleForgotten,
    ReleasedTooFar,
    DrainSkipped,
    DivergenceIgnored,
    ArbiterForgets,
    ArbiterGuessed,
    RefusalIgnored,
    RetryForgotten,
    LossUnnoticed,
    JoinNeverGivenUp,
}

pub struct World {
    pub replicas: Vec<Replica>,
    pub links: Vec<Link>,
    pub arbiter_up: bool,
    pub flags: BTreeMap<u64, usize>,
    pub oracle: Oracle,
    /// Every step so far.
    pub steps: Vec<Step>,
    inputs: u64,
    /// Backups that were offered to who had no use for them.
    pub refused: u64,
    broken: Option<Break>,
}

impl World {
    /// A pair at a boot, whose primary has the flag of the view before its first.
    pub fn new(broken: Option<Break>) -> Self {
        let view = ViewNumber(1);
        let mut link = Link::new(0, 1);
        link.sealed = true;
        Self {
            replicas: vec![
                Replica::first(0, RoleMachine::primary(view)),
                Replica::first(1, RoleMachine::backup(view)),
            ],
            links: vec![link],
            arbiter_up: true,
            flags: BTreeMap::from([(0, 0)]),
            oracle: Oracle::of_pair(0, 1),
            steps: Vec::new(),
            inputs: 0,
            refused: 0,
            broken,
        }
    }

    pub fn is_broken(&self, how: Break) -> bool {
        self.broken == Some(how)
    }

    /// A new replica that waits for a leader.
    pub fn add(&mut self) {
        self.replicas.push(Replica::waiting(self.replicas.len()));
    }

    /// Makes `step`, which has to be possible, and looks at what came of it.
    pub fn step(&mut self, step: Step) {
        self.steps.push(step);
        match step {
            Step::Run(r, what) => self.run(r, what),
            Step::Replay(r) => self.replay(r),
            Step::Print(r) => {
                let printed = self.replicas[r].printing.pop_front();
                self.see(r, printed);
            }
            Step::Write(r) => {
                let written = self.replicas[r].writing.pop_front();
                let done = written.as_ref().map(index_of);
                self.see(r, written);
                self.replicas[r].done.extend(done);
            }
            Step::Deliver(l, End::Follower) => self.follower_hears(l),
            Step::Deliver(l, End::Leader) => self.leader_hears(l),
            Step::Beat(r) => self.beat(r),
            Step::HandOver(r) => self.hand_over(r),
            Step::Arbitrate(r, answer) => self.arbitrate(r, answer),
            Step::Retry(r) => {
                self.replicas[r].retry = false;
                self.event(r, RoleEvent::RetryTick);
            }
            Step::Notice(l, end) | Step::Suspect(l, end) => self.end_link(l, end),
            Step::Lose(l, end, keep) => {
                if self.is_broken(Break::LossUnnoticed) && end == End::Follower {
                    let _ = self.links[l].frames.remove(keep);
                } else {
                    self.links[l].lose(end, keep);
                }
            }
            Step::Offer(r, to) => self.offer(r, to),
            Step::Kill(r) => self.replicas[r].crashed = true,
            Step::Pause(r) => self.replicas[r].paused = true,
            Step::Wake(r) => self.replicas[r].paused = false,
            Step::Diverge(r) => {
                self.replicas[r].guest.diverge();
                self.replicas[r].diverged = true;
                if !self.is_broken(Break::DivergenceIgnored) {
                    self.event(r, RoleEvent::Diverged);
                }
            }
            Step::ArbiterGone => self.arbiter_up = false,
            Step::ArbiterBack => self.arbiter_up = true,
            Step::Rival => {
                let (view, _) = self.oracle.begun.last_key_value().expect("one was begun");
                self.flags.entry(*view).or_insert(RIVAL);
            }
        }
        self.oracle.check(&self.replicas, &self.links, &self.flags);
    }

    fn event(&mut self, r: usize, event: RoleEvent) {
        let Some(role) = &mut self.replicas[r].role else {
            return;
        };
        for command in role.handle(event) {
            self.obey(r, command);
        }
        let replica = &self.replicas[r];
        let level = replica.join.is_some_and(|join| join.level);
        let seals = replica.role.as_ref().is_some_and(RoleMachine::is_sealing);
        if level && !seals {
            self.give_up(r);
        }
    }

    fn obey(&mut self, r: usize, command: RoleCommand) {
        match command {
            RoleCommand::TestAndSet { view } => {
                self.oracle.asks(&self.replicas[r], view.0);
                self.replicas[r].asked = Some(view);
                if self.is_broken(Break::WelcomeBeforeFlag) && self.replicas[r].join.is_some() {
                    self.welcome(r, view.next());
                }
            }
            // A guest that stands still is not to wait for an arbiter.
            RoleCommand::RetryLater if self.replicas[r].join.is_some() => self.give_up(r),
            RoleCommand::RetryLater => {
                self.replicas[r].retry = !self.is_broken(Break::RetryForgotten);
            }
            RoleCommand::Drain if self.is_broken(Break::DrainSkipped) => {
                self.replicas[r].queue.clear();
                self.event(r, RoleEvent::Drained);
            }
            RoleCommand::Drain => self.replicas[r].drain = true,
            RoleCommand::Reemit => {
                self.oracle.goes_live(&self.replicas[r], &self.flags);
                self.reemit(r);
            }
            RoleCommand::OpenGate => {
                self.oracle.goes_live(&self.replicas[r], &self.flags);
                self.open_gate(r);
            }
            RoleCommand::GoLive { .. } => {
                let kept = self.replicas[r].suppressed.len();
                assert_eq!(
                    kept, 0,
                    "invariant 4: r{r} goes live before it has re-emitted"
                );
                self.replicas[r].live = true;
                self.replicas[r].link = None;
            }
            RoleCommand::Halt { .. } | RoleCommand::End => self.leave(r),
            RoleCommand::BeginJoin => {
                let join = self.replicas[r].join.expect("it was offered");
                self.links[join.link].send(Frame::Hello);
            }
            RoleCommand::CloseGate => self.close_gate(r),
            RoleCommand::Welcome { view } => {
                self.welcome(r, view);
                self.replicas[r].join = None;
            }
            RoleCommand::HoldOutputs if self.is_broken(Break::GateOpenedBySuspicion) => {
                self.open_gate(r);
            }
            RoleCommand::HoldOutputs
            | RoleCommand::Announce
            | RoleCommand::ReportView { .. }
            | RoleCommand::ReportPair { .. }
            | RoleCommand::MarkEnd { .. }
            | RoleCommand::StopGuest => {}
        }
    }

    /// An output leaves the gate of `r`. A frame is seen at once; console and disk have queues.
    fn leaves(&mut self, r: usize, output: Output) {
        let replica = &self.replicas[r];
        let pair = replica.link.map(|link| &self.links[link]);
        self.oracle.leaves(replica, &output, pair, &self.replicas);
        match output {
            Output::Console(_) => self.replicas[r].printing.push_back(output),
            Output::Frame(_) => self.see(r, Some(output)),
            _ => self.replicas[r].writing.push_back(output),
        }
    }

    fn see(&mut self, r: usize, output: Option<Output>) {
        if let Some(output) = output {
            self.oracle.sees(r, output, &self.replicas);
        }
    }

    fn emit(&mut self, r: usize) {
        while let Some((_, output)) = self.replicas[r].gate.as_mut().and_then(OutputGate::next) {
            self.leaves(r, output);
        }
    }

    fn open_gate(&mut self, r: usize) {
        if let Some(gate) = &mut self.replicas[r].gate {
            gate.open();
        }
        self.emit(r);
    }

    fn reemit(&mut self, r: usize) {
        let mut outputs = self.replicas[r].suppressed.take_for_reemission();
        if self.is_broken(Break::SuppressedForgotten) {
            outputs.clear();
        }
        if self.is_broken(Break::SuppressedBackwards) {
            outputs.reverse();
        }
        for (_, output) in outputs {
            self.leaves(r, output);
        }
    }

    /// Nothing leaves any more.
    fn leave(&mut self, r: usize) {
        let replica = &mut self.replicas[r];
        if let Some(gate) = &mut replica.gate {
            gate.halt();
        }
        replica.live = false;
        replica.printing.clear();
        replica.writing.clear();
        let join = replica.join.take().map(|join| join.link);
        for l in [replica.link, join].into_iter().flatten() {
            let end = if self.links[l].leader == r {
                End::Leader
            } else {
                End::Follower
            };
            self.links[l].close(end);
        }
    }

    /// The guest runs to its next entry with live inputs.
    fn run(&mut self, r: usize, what: What) {
        let replica = &mut self.replicas[r];
        if let What::Done(_) = what {
            replica.done.pop_front();
        }
        self.inputs += 1;
        let input = self.inputs;
        let entry = Entry { what, input };
        let index = replica.guest.next();
        let output = replica.guest.execute(entry);
        match (output, &mut replica.gate) {
            (Some(output), Some(gate)) => {
                gate.hold(LogIndex(index), output);
            }
            (Some(output), None) => self.leaves(r, output),
            (None, _) => {}
        }
        if self.replicas[r].duty() == Some(Role::Primary)
            && let Some(link) = self.replicas[r].link
        {
            self.links[link].send(Frame::Entry(entry));
        }
        self.emit(r);
    }

    fn replay(&mut self, r: usize) {
        let replica = &mut self.replicas[r];
        let Some(entry) = replica.queue.pop_front() else {
            replica.drain = false;
            return self.event(r, RoleEvent::Drained);
        };
        let index = replica.guest.next();
        if let What::Done(request) = entry.what {
            let tag = u32::try_from(request).expect("a small index");
            replica.suppressed.completed(tag);
        }
        if let Some(output) = replica.guest.execute(entry) {
            replica.suppressed.hold(LogIndex(index), output);
        }
    }

    fn follower_hears(&mut self, l: usize) {
        let r = self.links[l].follower;
        let Some(frame) = self.links[l].frames.pop_front() else {
            return;
        };
        let replica = &mut self.replicas[r];
        match frame {
            Frame::Hello if replica.waits() => {
                replica.link = Some(l);
                self.links[l].reply(Reply::Accepted);
            }
            Frame::Hello => self.links[l].close(End::Follower),
            Frame::Pages => {}
            Frame::State { guest, view } => {
                let first = LogIndex(guest.next());
                replica.role = Some(match self.broken {
                    Some(Break::JoinerInOldView) => RoleMachine::joiner(ViewNumber(view.0 - 1)),
                    _ => RoleMachine::joiner(view),
                });
                replica.given_in = view;
                (replica.base, replica.received) = (first.0, first.0);
                replica.suppressed = Suppressed::at(first);
                for request in guest.under_way() {
                    if self.broken != Some(Break::RequestsUnderWayForgotten) {
                        let output = guest.output(*request).expect("it is a request");
                        replica.suppressed.hold(first, output);
                    }
                }
                replica.guest = *guest;
                self.links[l].reply(Reply::Same);
            }
            Frame::Welcome(view) => {
                assert_eq!(view, replica.given_in.next(), "a Welcome to another view");
                replica.welcomed = true;
                self.oracle.welcomed(&self.replicas[r], view.0);
                self.event(r, RoleEvent::Welcomed);
            }
            Frame::Entry(entry) => {
                replica.queue.push_back(entry);
                replica.received += 1;
                let ack = Reply::Ack(replica.received);
                self.links[l].reply(ack);
            }
            Frame::Heartbeat(delivered) => replica.suppressed.delivered(delivered),
        }
    }

    fn leader_hears(&mut self, l: usize) {
        let r = self.links[l].leader;
        let Some(reply) = self.links[l].replies.pop_front() else {
            return;
        };
        let replica = &mut self.replicas[r];
        match reply {
            Reply::Accepted => {
                let join = replica.join.as_mut().expect("it is given a machine");
                join.pages = Some(PAGES);
            }
            Reply::Same => {
                let join = replica.join.as_mut().expect("it is given a machine");
                join.level = true;
                self.event(r, RoleEvent::JoinerLevel);
            }
            // An ack may arrive while its primary contends: what it acks the backup has.
            Reply::Ack(upto) => {
                replica.acked = upto;
                let gate = replica.gate.as_mut().expect("it leads a pair");
                gate.acked(LogIndex(upto));
                self.emit(r);
                self.replicas[r].released = upto;
            }
        }
    }

    fn beat(&mut self, r: usize) {
        let replica = &mut self.replicas[r];
        let Some(l) = replica.link else { return };
        if self.broken == Some(Break::ReleasedTooFar) {
            replica.released = replica.guest.next();
        }
        let (base, released) = (self.links[l].base, replica.released);
        let unprinted = match self.broken {
            Some(Break::ConsoleForgotten) => None,
            _ => replica.printing.front().map(index_of),
        };
        let printed = unprinted.map_or(released, |first| first.clamp(base, released));
        self.links[l].send(Frame::Heartbeat(Delivered {
            released: LogIndex(released),
            printed: LogIndex(printed),
        }));
        if self.is_broken(Break::GateOpenedByHeartbeat) {
            let replica = &mut self.replicas[r];
            let appended = LogIndex(replica.guest.next());
            replica
                .gate
                .as_mut()
                .expect("it leads a pair")
                .acked(appended);
            self.emit(r);
        }
    }

    /// The operator offers a backup. Only a machine that runs alone, and is given to nobody, takes it.
    fn offer(&mut self, r: usize, to: usize) {
        let replica = &mut self.replicas[r];
        if replica.duty() == Some(Role::Solo) && replica.join.is_none() {
            replica.join = Some(Join {
                link: self.links.len(),
                pages: None,
                stands: false,
                level: false,
            });
            self.links.push(Link::new(r, to));
            return self.event(r, RoleEvent::JoinOffered);
        }
        let role = replica.role.as_mut().expect("it has begun");
        let commands = role.handle(RoleEvent::JoinOffered);
        assert_eq!(commands, [], "a second backup is taken");
        self.refused += 1;
    }

    fn hand_over(&mut self, r: usize) {
        let replica = &mut self.replicas[r];
        let view = ViewNumber(replica.view());
        let Some(join) = &mut replica.join else {
            return;
        };
        let link = &mut self.links[join.link];
        match join.pages {
            Some(0) => {
                join.stands = true;
                link.base = replica.guest.next();
                let guest = Box::new(replica.guest.clone());
                link.send(Frame::State { guest, view });
            }
            Some(pages) => {
                join.pages = Some(pages - 1);
                link.send(Frame::Pages);
            }
            None => {}
        }
    }

    /// The flag is won: outputs of the machine that stands still are held from here on.
    fn close_gate(&mut self, r: usize) {
        let replica = &mut self.replicas[r];
        let join = replica.join.expect("it was given a machine");
        let base = self.links[join.link].base;
        let held = replica.gate.as_ref().map_or(0, OutputGate::held);
        assert_eq!(held, 0, "invariant 4: the old gate holds outputs");
        replica.gate = match self.broken {
            Some(Break::GateLeftOpen) => None,
            _ => Some(OutputGate::new(LogIndex(base))),
        };
        replica.link = Some(join.link);
        (replica.acked, replica.released) = (base, base);
    }

    fn welcome(&mut self, r: usize, view: ViewNumber) {
        let join = self.replicas[r].join.expect("it was given a machine");
        self.oracle.welcomes(&self.replicas[r], view.0, &self.flags);
        self.links[join.link].sealed = true;
        self.links[join.link].send(Frame::Welcome(view));
    }

    /// The joiner is not to be had: the machine goes on alone.
    fn give_up(&mut self, r: usize) {
        if let Some(join) = self.replicas[r].join.take() {
            self.links[join.link].close(End::Leader);
            self.event(r, RoleEvent::LinkLost);
        }
    }

    fn end_link(&mut self, l: usize, end: End) {
        self.links[l].close(end);
        let r = self.links[l].at(end);
        let replica = &mut self.replicas[r];
        if replica.join.is_some_and(|join| join.link == l) {
            if self.broken != Some(Break::JoinNeverGivenUp) {
                self.give_up(r);
            }
        } else if replica.role.is_none() {
            // It waits for another leader.
            replica.link = None;
        } else {
            if !replica.welcomed && self.broken == Some(Break::JoinerContends) {
                replica.role = Some(RoleMachine::backup(replica.given_in));
            }
            self.event(r, RoleEvent::LinkLost);
        }
    }

    /// The arbiter acts on a question.
    fn arbitrate(&mut self, r: usize, answer: Answer) {
        let Some(view) = self.replicas[r].asked.take() else {
            return;
        };
        if !self.arbiter_up {
            let event = match self.broken {
                Some(Break::ArbiterGuessed) => RoleEvent::FlagWon,
                _ => RoleEvent::FlagUnreachable,
            };
            return self.event(r, event);
        }
        let mut holder = *self.flags.entry(view.0).or_insert(r);
        if self.is_broken(Break::ArbiterForgets) {
            holder = r;
            self.flags.insert(view.0, r);
        }
        let event = match answer {
            Answer::IsLost => RoleEvent::FlagUnreachable,
            Answer::Comes if holder == r => RoleEvent::FlagWon,
            Answer::Comes if self.is_broken(Break::RefusalIgnored) => RoleEvent::FlagWon,
            Answer::Comes => RoleEvent::FlagLost {
                holder: format!("r{holder}"),
            },
        };
        self.event(r, event);
    }
}
