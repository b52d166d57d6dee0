//! What there is in the model of lives: replicas, links, the arbiter's flags, the viewservice, and what outsiders saw.

use crate::oracle::Oracle;
use crate::views::Service;
use replay::{LogIndex, Output, ViewNumber};
use replica::role::RoleMachine;
use replica::{OutputGate, Suppressed};
use std::collections::{BTreeSet, VecDeque};

/// A replica, by its place in [`World::replicas`].
pub type Name = u8;

/// An input as it is logged. No two that were ever made are the same: each has its maker and its place in it.
pub type Entry = u8;

/// Who has a flag though he is no replica: an operator who gave the machine up and began it anew.
pub const RIVAL: Name = 0xfe;
/// An entry in the log of a replica that executed it otherwise.
pub const DIVERGED: Entry = 0xdd;

/// How often what nobody wishes for may happen. All of it is bounded, which is what makes the space finite.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Left {
    /// Replicas that die, at any moment, with any part of what they had sent lost.
    pub crashes: u8,
    /// Suspicions with or without a cause: a pause, a partition, a slow network.
    pub suspicions: u8,
    /// Frames that a stream loses, repeats or swaps.
    pub faults: u8,
    /// Questions the arbiter gives no answer to, whether it took them, will take them later, or never.
    pub silences: u8,
    /// Entries that a backup executes otherwise than its primary.
    pub divergences: u8,
    /// Starts by an operator who vouches for the view before.
    pub rivals: u8,
    /// Times between two pings without one of all hosts.
    pub ticks: u8,
    /// Restarts of the viewservice, and pings that come late or twice.
    pub restarts: u8,
}

/// Everything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    /// All there ever are: one that is over never comes back.
    pub replicas: Vec<Replica>,
    /// By their followers: each has one link in its life, or tries again with another one before it has a machine.
    pub links: Vec<Option<Link>>,
    /// Who has the flag of each view.
    pub flags: Vec<Option<Name>>,
    /// Questions that were given up, and reach the arbiter later all the same.
    pub late: BTreeSet<(Name, u8)>,
    /// The viewservice, in worlds that have one.
    pub service: Option<Service>,
    /// What outsiders saw, and who began which view.
    pub oracle: Oracle,
    /// What may still go wrong.
    pub left: Left,
}

/// How far a replica's life is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Life {
    /// It waits to be given a machine.
    Waiting,
    /// It has one.
    Alive,
    /// It died, halted or ended: nothing of it is left.
    Over,
}

/// What the thread of a replica's vCPU does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Vcpu {
    /// Leads: entries go to a backup, outputs into the gate.
    Linked,
    /// Its link is over: it waits before its next entry.
    Undecided,
    /// Leads: nobody follows, outputs leave at once.
    Alone,
    /// The guest stands still for a joiner.
    Stands,
    /// Replays what comes.
    Follows,
    /// Replays what came, and says when that is all.
    Drains,
    /// Has said so.
    Drained,
    /// Has diverged.
    Stopped,
}

/// A question to the arbiter: the control thread waits for its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Call {
    /// None.
    None,
    /// On its way there.
    Asked(ViewNumber),
    /// On its way back: whether the flag is won.
    Answered(bool),
}

/// A joiner that is being given the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Join {
    /// None.
    None,
    /// It is called, and given memory while the guest runs.
    Calling(Name),
    /// The guest stands still; the rest is on its way, or the answer to it.
    Standing(Name),
    /// It has the machine; the flag is asked for.
    Level(Name),
}

impl Join {
    /// The joiner.
    pub fn with(self) -> Option<Name> {
        match self {
            Self::None => None,
            Self::Calling(it) | Self::Standing(it) | Self::Level(it) => Some(it),
        }
    }
}

/// What waits for the control thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Message {
    /// The link to this follower is over; of a follower, its own.
    LinkEnd(Name),
    /// The joiner has the machine, or has not got it.
    Joined(bool),
    /// This joiner is the backup now.
    Welcomed,
    /// All that came is executed.
    Drained,
    /// Replay differed.
    Diverged,
    /// A new backup is offered: by an operator, or by the viewservice's word for this view.
    Offered(Name, Option<ViewNumber>),
}

/// One replica.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Replica {
    /// How far it is.
    pub life: Life,
    /// Its role; none while it waits.
    pub role: Option<RoleMachine>,
    /// What it executed. That is the machine's whole history, so two machines are the same if these are.
    pub log: Vec<Entry>,
    /// Its vCPU.
    pub vcpu: Vcpu,
    /// The gate of the link it leads.
    pub gate: Option<OutputGate<()>>,
    /// The follower of that link.
    pub follower: Option<Name>,
    /// Entries received and not executed.
    pub queue: VecDeque<Entry>,
    /// Whether it still reads from the link it follows.
    pub reads: bool,
    /// What its primary has said to have released.
    pub delivered: u8,
    /// What it made and nobody may have seen.
    pub suppressed: Suppressed,
    /// Of the control thread.
    pub mailbox: VecDeque<Message>,
    /// Likewise.
    pub call: Call,
    /// It is to ask again.
    pub retry: bool,
    /// Who is being given its machine.
    pub join: Join,
    /// The backup it was given by the viewservice's word.
    pub named: Option<Name>,
    /// It diverged, whether or not it knows.
    pub diverged: bool,
}

impl Replica {
    /// One that waits for a machine.
    pub fn waiting() -> Self {
        Self {
            life: Life::Waiting,
            role: None,
            log: Vec::new(),
            vcpu: Vcpu::Follows,
            gate: None,
            follower: None,
            queue: VecDeque::new(),
            reads: false,
            delivered: 0,
            suppressed: Suppressed::new(),
            mailbox: VecDeque::new(),
            call: Call::None,
            retry: false,
            join: Join::None,
            named: None,
            diverged: false,
        }
    }

    /// One of which nothing is left.
    pub fn over() -> Self {
        Self {
            life: Life::Over,
            ..Self::waiting()
        }
    }

    /// Whether it has a machine.
    pub fn is_alive(&self) -> bool {
        self.life == Life::Alive
    }

    /// Its view; 0 without one.
    pub fn view(&self) -> u8 {
        self.role.as_ref().map_or(0, |role| small(role.view().0))
    }

    /// How many entries it has executed.
    pub fn executed(&self) -> u8 {
        small(self.log.len() as u64)
    }

    /// Whether it holds all of `history`.
    pub fn holds(&self, history: &[Entry]) -> bool {
        let held = self.log.iter().chain(&self.queue);
        usize::from(self.received()) >= history.len() && held.zip(history).all(|(a, b)| a == b)
    }

    /// How many it holds.
    pub fn received(&self) -> u8 {
        small((self.log.len() + self.queue.len()) as u64)
    }
}

/// A number that the model keeps small.
pub fn small(number: u64) -> u8 {
    u8::try_from(number).expect("the model's numbers are small")
}

/// The index of an entry, as the code has it.
pub fn index(number: u8) -> LogIndex {
    LogIndex(number.into())
}

/// What an entry outputs. Which machine made it follows from the log it stands in.
pub fn output() -> Output {
    Output::Frame(Vec::new())
}

/// What goes to the follower.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Frame {
    /// All of the machine, where it stands still.
    State(Vec<Entry>, ViewNumber),
    /// It is the backup in this view.
    Welcome(ViewNumber),
    /// An entry, and its index.
    Entry(u8, Entry),
    /// Outputs below this have left.
    Heartbeat(u8),
}

/// What goes to the leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reply {
    /// The state is restored, and is the leader's.
    Same,
    /// Entries below this are received.
    Ack(u8),
}

/// A connection, and what both ends know of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Link {
    /// Who sends the log.
    pub leader: Name,
    /// The view it was offered in: of a joiner the one before its own.
    pub view: ViewNumber,
    /// On their way.
    pub frames: VecDeque<Frame>,
    /// Likewise.
    pub replies: VecDeque<Reply>,
    /// A joiner was told that it is the backup: a second time is out of place.
    pub welcomed: bool,
    /// The leader's: entries framed, the last ack, what was released, what the last heartbeat told of that.
    pub framed: u8,
    /// Likewise.
    pub acked: u8,
    /// Likewise.
    pub told: u8,
    /// Ended at the leader's end.
    pub leader_over: bool,
    /// Ended at the follower's end.
    pub follower_over: bool,
    /// A stream that lost its rest: whatever is sent is lost too.
    pub cut: bool,
    /// A stream that lost a frame: sooner or later another one betrays that, or nothing comes any more.
    pub torn: bool,
}

impl Link {
    /// One over which `leader` sends a log that begins at `base`.
    pub fn new(leader: Name, view: ViewNumber, base: u8) -> Self {
        Self {
            leader,
            view,
            frames: VecDeque::new(),
            replies: VecDeque::new(),
            welcomed: false,
            framed: base,
            acked: base,
            told: base,
            leader_over: false,
            follower_over: false,
            cut: false,
            torn: false,
        }
    }

    /// The leader sends.
    pub fn send(&mut self, frame: Frame) {
        if !self.leader_over && !self.cut {
            self.frames.push_back(frame);
        }
    }

    /// The leader says what it has released, behind `gone` frames. Of the others, the last heartbeat is forgotten.
    pub fn send_beat(&mut self, released: u8, gone: usize) {
        if self.leader_over || self.cut {
            return;
        }
        let mut waiting = self.frames.split_off(gone);
        waiting.retain(|frame| !matches!(frame, Frame::Heartbeat(_)));
        self.frames.push_back(Frame::Heartbeat(released));
        self.frames.append(&mut waiting);
    }

    /// The follower sends.
    pub fn reply(&mut self, reply: Reply) {
        if !self.follower_over && !self.leader_over && !self.cut {
            self.replies.push_back(reply);
        }
    }
}

impl World {
    /// The link that `follower` follows, or is called by.
    ///
    /// # Panics
    /// If there is none.
    pub fn link(&mut self, follower: Name) -> &mut Link {
        self.links[usize::from(follower)].as_mut().expect("a link")
    }

    /// A replica.
    pub fn replica(&mut self, name: Name) -> &mut Replica {
        &mut self.replicas[usize::from(name)]
    }

    /// Nothing is left of a replica but what it had sent.
    pub fn bury(&mut self, name: Name) {
        *self.replica(name) = Replica::over();
        for (follower, link) in (0..).zip(&mut self.links) {
            let Some(link) = link else { continue };
            if follower == name {
                link.follower_over = true;
                link.frames.clear();
            }
            if link.leader == name {
                link.leader_over = true;
                link.replies.clear();
            }
        }
        self.forget_links();
    }

    /// Of a link that is over at both ends, and from which nobody reads, nothing matters.
    pub fn forget_links(&mut self) {
        for (follower, link) in self.links.iter_mut().enumerate() {
            let reads = self.replicas[follower].reads;
            if link
                .as_ref()
                .is_some_and(|link| link.leader_over && link.follower_over)
                && !reads
            {
                *link = None;
            }
        }
    }
}
