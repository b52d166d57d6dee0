//! The links of the model: what the threads of a link do at either end.

use crate::lives::{Break, Lives};
use crate::world::{
    Entry, Frame, Join, Life, Link, Message, Name, Reply, Vcpu, World, index, output, small,
};
use logchannel::Delivered;
use replica::Suppressed;
use replica::role::RoleMachine;

impl Lives {
    /// The guest of a replica that leads takes an input: an entry, and an output that it marks.
    pub(crate) fn input(&self, world: &mut World, name: Name) {
        let replica = world.replica(name);
        let at = replica.executed();
        let entry = entry(name, at);
        replica.log.push(entry);
        if replica.vcpu == Vcpu::Alone {
            return world.leaves(name, at);
        }
        let follower = replica.follower.expect("linked");
        let gate = replica.gate.as_mut().expect("linked");
        // Before it is sent: its ack may come at once.
        gate.hold(index(at), ());
        let is_loose = self.broken(Break::GateLeftOpen);
        let link = world.link(follower);
        link.framed = at + 1;
        link.send(Frame::Entry(at, entry));
        if self.broken(Break::AckBeforeReceipt) {
            link.reply(Reply::Ack(at + 1));
        }
        if is_loose {
            world.leaves(name, at);
        }
    }

    /// A frame reaches a follower.
    pub(crate) fn frame(&self, world: &mut World, name: Name) {
        let link = world.link(name);
        let frame = link.frames.pop_front().expect("it was looked for");
        let view = link.view;
        let replica = &mut world.replicas[usize::from(name)];
        let next = replica.received();
        let taken = match frame {
            Frame::State(log, of) if replica.life == Life::Waiting => {
                replica.life = Life::Alive;
                replica.role = Some(match self.broken(Break::JoinerContends) {
                    false => RoleMachine::joiner(of),
                    true => RoleMachine::backup(of),
                });
                replica.reads = true;
                replica.delivered = small(log.len() as u64);
                replica.suppressed = Suppressed::at(index(replica.delivered));
                replica.log = log;
                world.link(name).reply(Reply::Same);
                true
            }
            Frame::Entry(at, by)
                if at == next || at > next && self.broken(Break::LossUnnoticed) =>
            {
                replica.queue.push_back(by);
                if !self.broken(Break::AckBeforeReceipt) {
                    world.link(name).reply(Reply::Ack(next + 1));
                }
                true
            }
            Frame::Heartbeat(released) if replica.delivered <= released && released <= next => {
                replica.delivered = released;
                true
            }
            Frame::Welcome(of) if of == view.next() && !world.link(name).welcomed => {
                world.link(name).welcomed = true;
                world.replica(name).mailbox.push_back(Message::Welcomed);
                true
            }
            _ => false,
        };
        if !taken {
            self.follower_ends(world, name);
            Self::stops_reading(world, name);
        }
    }

    /// The follower's end of its link is over.
    pub(crate) fn follower_ends(&self, world: &mut World, name: Name) {
        let link = world.link(name);
        if link.follower_over {
            return;
        }
        link.follower_over = true;
        let replica = world.replica(name);
        if replica.is_alive() {
            replica.mailbox.push_back(Message::LinkEnd(name));
        } else {
            // Nothing was restored: it waits for another caller.
            link_read_no_more(world, name);
        }
    }

    /// The thread that reads stops: what is on the way is lost.
    pub(crate) fn stops_reading(world: &mut World, name: Name) {
        link_read_no_more(world, name);
        world.replica(name).reads = false;
    }

    /// The leader's end of the link to `follower` is over.
    pub(crate) fn leader_ends(world: &mut World, follower: Name) {
        let link = world.link(follower);
        let leader = link.leader;
        link.leader_over = true;
        link.replies.clear();
        let replica = world.replica(leader);
        if matches!(replica.join, Join::Calling(it) | Join::Standing(it) if it == follower) {
            // Nobody is left to tell the guest how it goes on, so it goes on as before.
            if replica.vcpu == Vcpu::Stands {
                replica.vcpu = Vcpu::Alone;
            }
            replica.mailbox.push_back(Message::Joined(false));
            return;
        }
        if replica.vcpu == Vcpu::Linked {
            replica.vcpu = Vcpu::Undecided;
        }
        replica.mailbox.push_back(Message::LinkEnd(follower));
    }

    /// A reply reaches the leader of `follower`.
    pub(crate) fn answer(&self, world: &mut World, follower: Name) {
        let link = world.link(follower);
        let leader = link.leader;
        match link.replies.pop_front().expect("it was looked for") {
            Reply::Same => {
                let replica = world.replica(leader);
                if replica.join == Join::Standing(follower)
                    && !replica.mailbox.contains(&Message::Joined(true))
                {
                    replica.mailbox.push_back(Message::Joined(true));
                } else {
                    Self::leader_ends(world, follower);
                }
            }
            Reply::Ack(upto) => {
                let link = world.link(follower);
                if upto < link.acked || upto > link.framed {
                    return Self::leader_ends(world, follower);
                }
                link.acked = upto;
                let replica = world.replica(leader);
                if replica.follower == Some(follower)
                    && let Some(gate) = &mut replica.gate
                {
                    gate.acked(index(upto));
                    Self::drain(world, leader);
                }
            }
        }
    }

    /// Everything leaves that the gate of `name` lets out.
    pub(crate) fn drain(world: &mut World, name: Name) {
        while let Some((at, ())) = world
            .replica(name)
            .gate
            .as_mut()
            .and_then(|gate| gate.next())
        {
            world.leaves(name, small(at.0));
        }
    }

    /// A follower's vCPU executes an entry; `wrongly` if it diverges there.
    pub(crate) fn execute(&self, world: &mut World, name: Name, wrongly: bool) {
        let replica = world.replica(name);
        let by = replica.queue.pop_front().expect("it was looked for");
        let at = replica.executed();
        if wrongly {
            replica.diverged = true;
            replica.log.push(crate::world::DIVERGED);
            if !self.broken(Break::DivergenceIgnored) {
                replica.vcpu = Vcpu::Stopped;
                replica.mailbox.push_back(Message::Diverged);
                return;
            }
        } else {
            replica.log.push(by);
        }
        let delivered = delivered(replica.delivered);
        replica.suppressed.delivered(delivered);
        replica.suppressed.hold(index(at), output());
        if self.broken(Break::SuppressedForgotten) {
            replica.suppressed = Suppressed::new();
        }
    }

    /// The leader of `follower` says what it has released. That goes before what waits behind the `gone` frames that
    /// are in the socket, and in place of an older heartbeat there: as `Outgoing::push_beat`.
    pub(crate) fn heartbeat(&self, world: &mut World, follower: Name, gone: usize) {
        let link = world.link(follower);
        let released = self.released(link);
        link.told = released;
        link.send_beat(released, gone);
    }

    /// A leader's guest stands still, and what is left of its machine goes to the joiner.
    pub(crate) fn stand(&self, world: &mut World, leader: Name) {
        let replica = world.replica(leader);
        let joiner = replica.join.with().expect("it was looked for");
        let (log, view) = (
            replica.log.clone(),
            replica.role.as_ref().expect("alive").view(),
        );
        replica.join = Join::Standing(joiner);
        replica.vcpu = match self.broken(Break::GuestRunsOnWhileGiven) {
            true => Vcpu::Alone,
            false => Vcpu::Stands,
        };
        let base = small(log.len() as u64);
        let link = world.link(joiner);
        *link = Link {
            frames: link.frames.clone(),
            follower_over: link.follower_over,
            cut: link.cut,
            torn: link.torn,
            ..Link::new(leader, view, base)
        };
        link.send(Frame::State(log, view));
    }
}

/// The entry that `name` makes as its history's `at`th. Nobody makes that twice.
fn entry(name: Name, at: u8) -> Entry {
    name << 4 | at
}

/// What is on the way to `name` is lost.
fn link_read_no_more(world: &mut World, name: Name) {
    if let Some(link) = &mut world.links[usize::from(name)] {
        link.frames.clear();
    }
}

/// What a primary said that it has delivered: of frames alone.
pub fn delivered(released: u8) -> Delivered {
    Delivered {
        released: index(released),
        printed: index(released),
    }
}
