//! A link between a replica that leads and one that follows: two streams, each in order.
//!
//! A stream that loses a message loses everything behind it. Whoever reads it finds its end there.

use crate::guest::{Entry, Guest};
use logchannel::Delivered;
use replay::ViewNumber;
use std::collections::VecDeque;

/// An end of a link; also the stream that this end reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    Leader,
    Follower,
}

impl End {
    pub fn other(self) -> Self {
        match self {
            Self::Leader => Self::Follower,
            Self::Follower => Self::Leader,
        }
    }
}

/// What goes to the follower.
#[derive(Clone, Debug)]
pub enum Frame {
    /// Asks it to make the machine's shell.
    Hello,
    /// A part of memory, sent while the guest runs.
    Pages,
    /// The rest, sent while the guest stands still: the machine of a leader in `view`.
    State {
        guest: Box<Guest>,
        view: ViewNumber,
    },
    Welcome(ViewNumber),
    Entry(Entry),
    Heartbeat(Delivered),
}

/// What goes to the leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The shell is made.
    Accepted,
    /// The state is restored, and is the leader's.
    Same,
    /// Entries below this are received.
    Ack(u64),
}

#[derive(Debug)]
pub struct Link {
    pub leader: usize,
    pub follower: usize,
    /// Where its log begins.
    pub base: u64,
    /// The leader's flag is won, and it has said so to the follower.
    pub sealed: bool,
    pub frames: VecDeque<Frame>,
    pub replies: VecDeque<Reply>,
    /// Whether the stream that this end reads is cut: nothing more goes into it.
    cut: [bool; 2],
    /// Whether this end has closed the link.
    ended: [bool; 2],
}

impl Link {
    pub fn new(leader: usize, follower: usize) -> Self {
        Self {
            leader,
            follower,
            base: 0,
            sealed: false,
            frames: VecDeque::new(),
            replies: VecDeque::new(),
            cut: [false; 2],
            ended: [false; 2],
        }
    }

    pub fn at(&self, end: End) -> usize {
        match end {
            End::Leader => self.leader,
            End::Follower => self.follower,
        }
    }

    pub fn has_ended(&self, end: End) -> bool {
        self.ended[end as usize]
    }

    pub fn is_cut(&self, end: End) -> bool {
        self.cut[end as usize]
    }

    /// How many messages are on their way to `end`.
    pub fn on_their_way(&self, end: End) -> usize {
        match end {
            End::Leader => self.replies.len(),
            End::Follower => self.frames.len(),
        }
    }

    pub fn send(&mut self, frame: Frame) {
        if !self.is_cut(End::Follower) && !self.has_ended(End::Leader) {
            self.frames.push_back(frame);
        }
    }

    pub fn reply(&mut self, reply: Reply) {
        if !self.is_cut(End::Leader) && !self.has_ended(End::Follower) {
            self.replies.push_back(reply);
        }
    }

    /// This end closes the link. What it has sent may still arrive.
    pub fn close(&mut self, end: End) {
        self.ended[end as usize] = true;
    }

    /// The stream to `end` loses all but the first `keep` messages on their way, and what would come after.
    pub fn lose(&mut self, end: End, keep: usize) {
        self.cut[end as usize] = true;
        match end {
            End::Leader => self.replies.truncate(keep),
            End::Follower => self.frames.truncate(keep),
        }
    }
}
