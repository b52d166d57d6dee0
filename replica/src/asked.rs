//! What others ask of a replica that leads a machine, and what they are told of it.

use crate::address::HostPort;
use replay::ViewNumber;
use serde::{Deserialize, Serialize};
use std::sync::mpsc::{Receiver, Sender, channel};
use viewservice::HostId;

/// What somebody who asked for something is told, in this order: some of the first three, then one of the others
/// or, of a replica that is over, nothing more. As JSON it is an object whose `is` says which.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "lowercase")]
pub enum Told {
    /// A backup is being given the machine.
    Joining {
        /// Where it is.
        backup: String,
    },
    /// So many bytes of the machine's state went to it so far; a few times a second.
    Sent {
        /// Bytes.
        bytes: u64,
    },
    /// The machine has the backup. Of a machine that is to move this is not the last word.
    Protected {
        /// The pair's view.
        view: ViewNumber,
        /// Where the backup is.
        backup: String,
    },
    /// This replica left the machine to its backup. That finds its link closed, asks for the flag, and goes live.
    Left {
        /// The view the backup goes live in.
        view: ViewNumber,
        /// Where it is.
        to: String,
        /// This replica waits to be its backup. Else it is over.
        follows: bool,
    },
    /// It was not done. Unless that says otherwise the machine goes on as before.
    Failed {
        /// Why.
        why: String,
    },
}

/// What a replica is asked for.
pub(crate) enum Ask {
    /// To give the machine, which runs alone, this backup.
    Protect(HostPort),
    /// To have the machine, which runs alone, run there instead.
    Move(HostPort),
    /// To leave the machine to the backup it has.
    Leave {
        /// To be that one's backup then.
        follows: bool,
    },
    /// To give the machine, which runs alone, the backup that the viewservice named for it. It says so again and
    /// again while the machine runs alone, and waits for no answer.
    Spare(Spare),
}

/// A backup that waits, as the viewservice tells of it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Spare {
    /// Where it is.
    pub(crate) backup: HostPort,
    /// The name of its host.
    pub(crate) host: HostId,
    /// The view that it is to be the backup in.
    pub(crate) view: ViewNumber,
}

/// Whoever asked for something. It need not listen.
#[derive(Clone)]
pub(crate) struct Asker(Sender<Told>);

impl Asker {
    /// Somebody, and what is told.
    pub(crate) fn new() -> (Self, Receiver<Told>) {
        let (tell, told) = channel();
        (Self(tell), told)
    }

    pub(crate) fn tell(&self, told: Told) {
        // Whoever asked may be gone.
        let _ = self.0.send(told);
    }

    /// Tells that it was not done.
    pub(crate) fn refuse(&self, why: impl Into<String>) {
        self.tell(Told::Failed { why: why.into() });
    }
}
