//! The control thread of a replica: `replica/src/control.rs` and `body.rs`, as far as they decide anything. The role
//! machine they carry out is the real one.

use crate::channel::delivered;
use crate::lives::{Break, Lives};
use crate::world::{Call, Frame, Join, Life, Link, Message, Name, Vcpu, World, index};
use replica::OutputGate;
use replica::role::{Role, RoleCommand, RoleEvent};
use std::collections::VecDeque;

impl Lives {
    /// Takes the next message.
    pub(crate) fn control(&self, world: &mut World, name: Name) {
        let message = world
            .replica(name)
            .mailbox
            .pop_front()
            .expect("it was looked for");
        let replica = world.replica(name);
        let event = match message {
            Message::LinkEnd(follower) if follower == name => Some(RoleEvent::LinkLost),
            Message::LinkEnd(follower) if replica.join == Join::Level(follower) => {
                Some(self.give_up(world, name))
            }
            // Of a link that was given up nothing is heeded.
            Message::LinkEnd(follower) => {
                (replica.follower == Some(follower)).then_some(RoleEvent::LinkLost)
            }
            Message::Joined(true) => {
                let joiner = replica.join.with().expect("it was joining");
                replica.join = Join::Level(joiner);
                Some(RoleEvent::JoinerLevel)
            }
            Message::Joined(false) => Some(self.give_up(world, name)),
            Message::Welcomed => Some(RoleEvent::Welcomed),
            Message::Drained => Some(RoleEvent::Drained),
            Message::Diverged => Some(RoleEvent::Diverged),
            Message::Offered(joiner, of) => self.offered(world, name, joiner, of),
        };
        if let Some(event) = event {
            self.handle(world, name, event);
        }
    }

    /// Whether a backup that is offered is to be called: as `Control::spare_named` and `Control::offered`.
    fn offered(
        &self,
        world: &mut World,
        name: Name,
        joiner: Name,
        of: Option<replay::ViewNumber>,
    ) -> Option<RoleEvent> {
        let replica = world.replica(name);
        let role = replica.role.as_ref().expect("alive");
        let is_next = of.is_none_or(|view| role.view().next() == view);
        if role.role() != Some(Role::Solo) || replica.join != Join::None || !is_next {
            return None;
        }
        replica.join = Join::Calling(joiner);
        replica.named = of.map(|_| joiner);
        Some(RoleEvent::JoinOffered)
    }

    /// The role machine takes `event`, and all that follows from it is carried out.
    pub(crate) fn handle(&self, world: &mut World, name: Name, event: RoleEvent) {
        let mut todo = VecDeque::from([event]);
        while let Some(event) = todo.pop_front() {
            if !world.replica(name).is_alive() {
                return;
            }
            let was_joiner = event == RoleEvent::Welcomed;
            let role = world.replica(name).role.as_mut().expect("alive");
            let commands = role.handle(event);
            if was_joiner {
                world.is_member(name);
            }
            for command in commands {
                todo.extend(self.carry_out(world, name, command));
            }
            let replica = world.replica(name);
            let seals = replica.role.as_ref().is_some_and(|role| role.is_sealing());
            if matches!(replica.join, Join::Level(_)) && !seals {
                todo.push_back(self.give_up(world, name));
            }
        }
    }

    fn carry_out(&self, world: &mut World, name: Name, command: RoleCommand) -> Option<RoleEvent> {
        match command {
            RoleCommand::HoldOutputs if self.broken(Break::GateOpenedBySuspicion) => {
                if let Some(gate) = &mut world.replica(name).gate {
                    gate.open();
                }
                Self::drain(world, name);
            }
            RoleCommand::TestAndSet { view } => {
                world.asks(name, crate::world::small(view.0));
                let seals = world
                    .replica(name)
                    .role
                    .as_ref()
                    .is_some_and(|role| role.is_sealing());
                if seals && self.broken(Break::WelcomeBeforeFlag) {
                    return Some(RoleEvent::FlagWon);
                }
                world.replica(name).call = Call::Asked(view);
            }
            RoleCommand::RetryLater => {
                // The guest stands still meanwhile: it is not to wait for an arbiter.
                if let Join::Level(_) = world.replica(name).join {
                    return Some(self.give_up(world, name));
                }
                world.replica(name).retry = true;
            }
            RoleCommand::Drain => self.finish(world, name),
            RoleCommand::Reemit => self.reemit(world, name),
            RoleCommand::OpenGate => Self::open_gate(world, name),
            RoleCommand::GoLive { .. } => {
                world.replica(name).vcpu = Vcpu::Alone;
                Self::settles(world, name);
            }
            RoleCommand::ReportView { .. } | RoleCommand::ReportPair { .. } => world.begins(name),
            RoleCommand::Halt { .. } | RoleCommand::End => world.bury(name),
            RoleCommand::BeginJoin => return self.begin_join(world, name),
            RoleCommand::CloseGate => Self::close_gate(world, name),
            RoleCommand::Welcome { view } => Self::welcome(world, name, view),
            RoleCommand::HoldOutputs
            | RoleCommand::Announce
            | RoleCommand::StopGuest
            | RoleCommand::MarkEnd { .. } => {}
        }
        None
    }

    /// `ReceiverHandle::finish`: the link is over, what came is executed.
    fn finish(&self, world: &mut World, name: Name) {
        if let Some(link) = &mut world.links[usize::from(name)] {
            link.follower_over = true;
        }
        let skips = self.broken(Break::DrainSkipped);
        let replica = world.replica(name);
        if replica.vcpu != Vcpu::Follows {
            return;
        }
        replica.vcpu = Vcpu::Drains;
        if skips {
            replica.queue.clear();
            Self::stops_reading(world, name);
        }
    }

    /// What was suppressed leaves, in order.
    fn reemit(&self, world: &mut World, name: Name) {
        let replica = world.replica(name);
        replica.suppressed.delivered(delivered(replica.delivered));
        let mut outputs = replica.suppressed.take_for_reemission();
        if self.broken(Break::SuppressedBackwards) {
            outputs.reverse();
        }
        for (at, _) in outputs {
            world.leaves(name, crate::world::small(at.0));
        }
    }

    fn open_gate(world: &mut World, name: Name) {
        let Some(gate) = &mut world.replica(name).gate else {
            return;
        };
        gate.open();
        Self::drain(world, name);
        let replica = world.replica(name);
        replica.gate = None;
        replica.follower = None;
        replica.vcpu = Vcpu::Alone;
    }

    /// Of what a follower had, nothing matters to one that leads.
    fn settles(world: &mut World, name: Name) {
        let replica = world.replica(name);
        replica.delivered = 0;
        replica.suppressed = replica::Suppressed::new();
        world.forget_links();
    }

    fn begin_join(&self, world: &mut World, name: Name) -> Option<RoleEvent> {
        let replica = world.replica(name);
        let view = replica.role.as_ref().expect("alive").view();
        let base = replica.executed();
        let joiner = replica.join.with().expect("one was offered");
        let waits = world.replica(joiner).life == Life::Waiting;
        if !waits
            || world.links[usize::from(joiner)]
                .as_ref()
                .is_some_and(|link| !link.follower_over)
        {
            return Some(self.give_up(world, name));
        }
        world.links[usize::from(joiner)] = Some(Link::new(name, view, base));
        None
    }

    /// The joiner is not to be had: the machine goes on alone.
    fn give_up(&self, world: &mut World, name: Name) -> RoleEvent {
        let replica = world.replica(name);
        let joiner = replica.join.with();
        replica.join = Join::None;
        replica.named = None;
        if replica.vcpu == Vcpu::Stands {
            replica.vcpu = Vcpu::Alone;
        }
        if let Some(link) = joiner.and_then(|it| world.links[usize::from(it)].as_mut())
            && link.leader == name
        {
            link.leader_over = true;
            link.replies.clear();
        }
        world.forget_links();
        RoleEvent::LinkLost
    }

    fn close_gate(world: &mut World, name: Name) {
        let replica = world.replica(name);
        let Join::Level(joiner) = replica.join else {
            return;
        };
        replica.gate = Some(OutputGate::new(index(replica.executed())));
        replica.follower = Some(joiner);
    }

    /// The joiner is told that it is the backup, and the guest goes on behind that word.
    fn welcome(world: &mut World, name: Name, view: replay::ViewNumber) {
        let Some(joiner) = world.replica(name).follower else {
            return;
        };
        world.replica(name).join = Join::None;
        // It may be over already, of which this thread hears next.
        let link = world.links[usize::from(joiner)].as_mut();
        let is_over = link.is_none_or(|link| {
            link.send(Frame::Welcome(view));
            link.leader_over
        });
        world.replica(name).vcpu = if is_over {
            Vcpu::Undecided
        } else {
            Vcpu::Linked
        };
    }
}
