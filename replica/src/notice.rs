//! What a replica tells of its life, as it happens.

use crate::join::Cost;
use logchannel::{Cursors, Lag, LinkEnd, MetricsSnapshot};
use replay::ViewNumber;
use std::net::SocketAddr;
use testandset::{ArbiterError, Contender, StoreId, VmId};

/// One thing that happened to a replica. Words for it are made where it is shown.
#[derive(Debug)]
pub enum Notice<'a> {
    /// Its arbiter keeps the flags in this store.
    ArbiterStore(StoreId),
    /// A backup waits for its primary here.
    Listening(SocketAddr),
    /// Somebody who called a backup was no primary.
    CallerTurnedAway {
        /// Why.
        why: &'a str,
        /// How many were turned away since this backup listens, with those that were not told of.
        so_far: u64,
    },
    /// A primary called that this backup cannot follow.
    PrimaryTurnedAway(&'a str),
    /// The machine begins in this view.
    Begins(ViewNumber),
    /// What its operator is to know of the engine that runs the guest.
    Engine(&'a str),
    /// This replica leads, and a backup follows.
    Primary {
        /// The machine.
        vm: &'a VmId,
        /// Where the backup is.
        backup: &'a str,
    },
    /// This replica follows.
    Backup {
        /// The machine.
        vm: &'a VmId,
        /// The replica that leads.
        of: &'a str,
    },
    /// The two hosts' processors differ in a way that may matter.
    UnlikeHosts(&'a str),
    /// The other replica is so far away that silence is suspected later than wished.
    FarApart {
        /// How long it takes to answer, in milliseconds.
        round_trip_ms: u32,
        /// When silence is suspected, in milliseconds.
        suspect_ms: u32,
        /// When it was to be.
        wished_ms: u32,
    },
    /// Somebody asks this replica to stop.
    StopAsked,
    /// The link to the other replica ended.
    LinkEnd(&'a LinkEnd),
    /// Outputs wait for the flag.
    Hold,
    /// The flag of the view is this replica's.
    FlagWon(ViewNumber),
    /// The flag of the view is another's.
    FlagLost(ViewNumber, &'a Contender),
    /// The flag of the view says that the machine has ended.
    VmEnded(ViewNumber, &'a Contender),
    /// The arbiter gave no answer.
    ArbiterUnreachable(&'a ArbiterError),
    /// The arbiter has lost the store this replica is bound to.
    ArbiterOtherStore(&'a ArbiterError),
    /// Every entry that came was executed.
    Drained {
        /// Outputs that were suppressed and may not have been seen.
        outputs: usize,
    },
    /// The network was told where the guest is now.
    Announced,
    /// Suppressed outputs have left.
    Reemitted(usize),
    /// The guest takes live input from now on.
    Live {
        /// Frames that came before, and that no log tells of.
        frames: usize,
    },
    /// This replica runs alone.
    Solo {
        /// The machine.
        vm: &'a VmId,
        /// Its view.
        view: ViewNumber,
        /// How the link to the other replica ended.
        how: &'a str,
    },
    /// A new backup is being given the machine.
    Joining {
        /// Where it is.
        backup: &'a str,
    },
    /// It has not got it; the machine goes on as before.
    JoinFailed {
        /// Where it was looked for.
        backup: &'a str,
        /// Why.
        why: &'a str,
    },
    /// This replica leads, and a new backup follows.
    Protected {
        /// The machine.
        vm: &'a VmId,
        /// The pair's view.
        view: ViewNumber,
        /// What the machine's way to its backup cost.
        cost: Cost,
    },
    /// The new backup of this view has compared all of the machine's memory since it was given it.
    Proved(ViewNumber),
    /// This replica, which was given a running machine, is its backup in this view.
    Welcomed(ViewNumber),
    /// The guest ended.
    GuestEnded(u32),
    /// The guest could not go on.
    GuestBroke(&'a str),
    /// Replay differs from the recording.
    Diverged(&'a str),
    /// This replica cannot go on.
    Failed(&'a str),
    /// The machine's end is marked with the arbiter.
    Marked(ViewNumber),
    /// It is not: another has that flag.
    FlagTaken(&'a str),
    /// It is not, and its operator has to know.
    NotMarked(&'a str),
    /// What else went wrong, of a replica that ends with another failure.
    AlsoFailed(&'a str),
    /// This replica stopped; nothing leaves any more.
    Halted(&'a str),
    /// This replica is over, in an orderly way.
    Ended,
}

/// Where notices go. The control thread calls it: it must not wait for long.
pub trait Events: Send {
    /// Something happened, at `at_ns` nanoseconds of the host's monotonic clock.
    fn note(&mut self, at_ns: u64, notice: &Notice<'_>);

    /// Whether somebody reads [`Self::counters`].
    fn wants_counters(&self) -> bool {
        false
    }

    /// The counters of a replica that leads, a few times a second.
    fn counters(&mut self, at_ns: u64, counters: &Counters) {
        let _ = (at_ns, counters);
    }
}

/// Nobody listens.
impl Events for () {
    fn note(&mut self, _: u64, _: &Notice<'_>) {}
}

/// The counters of a replica that leads a pair.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Counters {
    /// The link.
    pub link: MetricsSnapshot,
    /// How far the log has come.
    pub cursors: Cursors,
    /// How far the backup's execution is behind.
    pub lag: Lag,
    /// How fast the brake lets the guest run, in thousandths.
    pub speed_permille: u64,
    /// Microseconds the brake has held the guest.
    pub braked_us: u64,
    /// Bytes the console holds for its reader.
    pub console_held: usize,
    /// Whether a tether holds the two replicas together.
    pub tied: bool,
    /// How late timer ticks were: microseconds at most, and how many ticks.
    pub tick_late_us: Vec<(u64, u64)>,
}

/// Notes what happens, with its time.
pub(crate) struct Log(pub(crate) Box<dyn Events>);

impl Log {
    /// Notes `notice` as happening now.
    pub(crate) fn note(&mut self, notice: Notice<'_>) {
        self.0.note(vmm::hostclock::monotonic_ns(), &notice);
    }
}
