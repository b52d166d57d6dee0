//! One replica, as its host has it: the real role machine, gate and suppressed outputs, and a shell around
//! them that does what `replica/src/control.rs` and `replica/src/body.rs` do.

use crate::guest::{Entry, Guest};
use replay::{LogIndex, Output, ViewNumber};
use replica::role::{Role, RoleMachine};
use replica::{OutputGate, Suppressed};
use std::collections::VecDeque;

/// A machine on its way to a new backup, as its leader has it.
#[derive(Clone, Copy, Debug)]
pub struct Join {
    pub link: usize,
    /// How much memory is to be sent while the guest runs; none before the joiner has a shell.
    pub pages: Option<u8>,
    /// The guest stands still.
    pub stands: bool,
    /// The joiner has the machine.
    pub level: bool,
}

pub struct Replica {
    pub name: usize,
    /// None as long as it waits for a leader, or is being given a machine.
    pub role: Option<RoleMachine>,
    pub crashed: bool,
    pub paused: bool,
    pub diverged: bool,
    /// It began as a backup, or was made one by its leader's word.
    pub welcomed: bool,
    pub guest: Guest,
    /// Where the log it followed, or led from boot on, begins.
    pub base: u64,
    /// The view in which it was given the machine.
    pub given_in: ViewNumber,
    /// Whether inputs are live.
    pub live: bool,
    /// The gate of the link it leads or led last. Without one its outputs leave at once.
    pub gate: Option<OutputGate<Output>>,
    /// The link to the other one of its pair, or to whoever gives it a machine.
    pub link: Option<usize>,
    pub join: Option<Join>,
    /// Cursors of the link it leads.
    pub acked: u64,
    pub released: u64,
    pub suppressed: Suppressed,
    /// Received and not executed.
    pub queue: VecDeque<Entry>,
    pub received: u64,
    /// Let out, and held for the console's reader or the disk: it dies with the replica.
    pub printing: VecDeque<Output>,
    pub writing: VecDeque<Output>,
    /// Disk requests that are done, which the guest has not heard of.
    pub done: VecDeque<u64>,
    /// The arbiter was asked for this view's flag and has not acted yet.
    pub asked: Option<ViewNumber>,
    pub retry: bool,
    pub drain: bool,
}

impl Replica {
    /// One that waits for a leader.
    pub fn waiting(name: usize) -> Self {
        Self {
            name,
            role: None,
            crashed: false,
            paused: false,
            diverged: false,
            welcomed: false,
            guest: Guest::default(),
            base: 0,
            given_in: ViewNumber(0),
            live: false,
            gate: None,
            link: None,
            join: None,
            acked: 0,
            released: 0,
            suppressed: Suppressed::new(),
            queue: VecDeque::new(),
            received: 0,
            printing: VecDeque::new(),
            writing: VecDeque::new(),
            done: VecDeque::new(),
            asked: None,
            retry: false,
            drain: false,
        }
    }

    /// One of the first pair.
    pub fn first(name: usize, role: RoleMachine) -> Self {
        let leads = role.role() == Some(Role::Primary);
        Self {
            role: Some(role),
            live: leads,
            welcomed: true,
            gate: leads.then(|| OutputGate::new(LogIndex(0))),
            link: Some(0),
            ..Self::waiting(name)
        }
    }

    /// Its role in its view. A joiner, and a replica that is over, has none.
    pub fn duty(&self) -> Option<Role> {
        self.role.as_ref().and_then(RoleMachine::role)
    }

    pub fn view(&self) -> u64 {
        self.role.as_ref().map_or(0, |role| role.view().0)
    }

    pub fn is_over(&self) -> bool {
        self.role.as_ref().is_some_and(RoleMachine::is_final)
    }

    /// Whether its process is there and has something to do yet.
    pub fn is_there(&self) -> bool {
        !self.crashed && !self.is_over()
    }

    /// Whether it can do something now.
    pub fn acts(&self) -> bool {
        self.is_there() && !self.paused
    }

    /// Whether a leader that calls is heard.
    pub fn waits(&self) -> bool {
        self.is_there() && self.role.is_none() && self.link.is_none()
    }

    /// Whether what comes over a link it follows is read.
    pub fn follows(&self) -> bool {
        !self.live && (self.role.is_none() || !self.is_over())
    }

    /// How it stands, for coverage and for whoever reads a failure.
    pub fn stands(&self) -> String {
        let Some(role) = &self.role else {
            let given = if self.link.is_some() {
                "given a machine"
            } else {
                "waiting"
            };
            return given.into();
        };
        let role = role.to_string();
        let phase = role.split(" view").next().unwrap_or_default().to_owned();
        match self.join {
            Some(Join { level: true, .. }) => phase + ", joiner level",
            Some(Join { stands: true, .. }) => phase + ", standing still",
            Some(Join { pages: Some(_), .. }) => phase + ", sending pages",
            Some(_) => phase + ", calling",
            None => phase,
        }
    }
}
