//! One machine through many failures: each replica that is lost makes room for a new one.
//!
//! ```text
//!               place 0                        place 1
//!   start       life 0 leads ──── log ───────▶ life 1 follows
//!   kill        ✕                              life 1 leads, alone
//!   protect     life 2 ◀── state, then log ─── life 1 leads
//!   kill        life 2 leads, alone            ✕
//!   ...
//! ```
//!
//! A place is what a host would be: its TAP on the bridge and its options. Its replicas follow one another, each
//! with an events file of its own. The viewservice is told nothing of this machine: it would not know the backups
//! that come later, and replicas that report to it take none of those.

use crate::cluster::{
    Cluster, ReplicaWords, address_of, backup_words, metrics_beside, primary_words, wait_event,
};
use crate::daemon::Daemon;
use crate::error::KitResult;
use crate::events::Line;
use crate::round::END;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use vmm::hostclock;

/// Longest time for a machine's state to go over, on the most loaded host.
const HAND_OVER: Duration = Duration::from_secs(120);

/// How the replicas of a machine are set up beyond its guest.
#[derive(Clone, Debug, Default)]
pub struct ChainOptions {
    /// More arguments for the replicas in each of the two places.
    pub args: [Vec<OsString>; 2],
    /// More arguments for every replica.
    pub all: Vec<OsString>,
    /// More arguments for the first two alone: the primary and its backup.
    pub firsts: [Vec<OsString>; 2],
}

/// One replica, from its start to its end.
pub struct Life {
    /// Its process.
    pub daemon: Daemon,
    place: usize,
    events: PathBuf,
}

impl Life {
    /// What it has noted so far.
    #[must_use]
    pub fn events(&self) -> Vec<Line> {
        Line::all_in(&self.events)
    }

    /// The counters it noted so far while it led a pair, in order of time: JSON in the detail.
    #[must_use]
    pub fn metrics(&self) -> Vec<Line> {
        Line::all_in(&metrics_beside(&self.events))
    }

    /// Waits until it has noted `event`, at `from_ns` of the host's clock or later.
    ///
    /// # Errors
    /// If it does not in time, or ends.
    pub fn wait_event(&self, event: &str, from_ns: u64) -> KitResult<Line> {
        wait_event(&self.events, event, from_ns, &self.daemon)
    }
}

/// A machine on a cluster's network, and all the replicas it has had.
pub struct Chain<'a> {
    cluster: &'a Cluster,
    vm: String,
    options: ChainOptions,
    /// By their number: in the order they were started, but for the first two.
    lives: Vec<Life>,
    leads: usize,
    follows: Option<usize>,
}

/// A replica that was killed while it led.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loss {
    /// Its number.
    pub victim: usize,
    /// The number of the one that goes on.
    pub survivor: usize,
    /// When, in nanoseconds of the host's clock.
    pub at_ns: u64,
}

/// A machine that has got a new backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protection {
    /// The number of the replica that leads.
    pub leads: usize,
    /// The number of the new one.
    pub follows: usize,
}

impl<'a> Chain<'a> {
    /// Starts a machine called `vm` with its first two replicas. `guest` holds the guest and its options as for
    /// `tandem run`.
    ///
    /// # Errors
    /// If a replica cannot be started.
    pub fn start(
        cluster: &'a Cluster,
        vm: &str,
        guest: &[OsString],
        options: ChainOptions,
    ) -> KitResult<Self> {
        let mut chain = Self {
            cluster,
            vm: vm.to_owned(),
            options,
            lives: Vec::new(),
            leads: 0,
            follows: Some(1),
        };
        let [of_primary, of_backup] = chain.options.firsts.clone();
        let backup = chain.start_life(1, 1, &of_backup, backup_words)?;
        let peer = address_of(&backup.events, &backup.daemon)?;
        let primary = |words| primary_words(guest, peer, words);
        let primary = chain.start_life(0, 0, &of_primary, primary)?;
        chain.lives = vec![primary, backup];
        Ok(chain)
    }

    /// Starts life `number` on `place`, whose command line `complete` makes of what all have in common and `more`.
    fn start_life(
        &self,
        number: usize,
        place: usize,
        more: &[OsString],
        complete: impl FnOnce(Vec<OsString>) -> Vec<OsString>,
    ) -> KitResult<Life> {
        let path = |end: &str| {
            let folder = self.cluster.folder();
            folder.join(format!("{}.{number}.{end}", self.vm))
        };
        let events = path("events");
        let replica = ReplicaWords {
            vm: &self.vm,
            events: &events,
            place,
            network: true,
            disk: None,
        };
        let mut words = self.cluster.replica_words(&replica);
        words.extend(["--control".into(), self.control().into()]);
        words.extend(self.options.all.iter().cloned());
        words.extend(self.options.args[place].iter().cloned());
        words.extend(more.iter().cloned());
        let daemon = Daemon::start(
            &format!("replica number {number}"),
            complete(words),
            path("err"),
        )?;
        Ok(Life {
            daemon,
            place,
            events,
        })
    }

    /// The folder through which the replicas are asked for something: a host's, with all their sockets in it.
    fn control(&self) -> PathBuf {
        self.cluster.folder().join(format!("{}.ctl", self.vm))
    }

    /// The replica that leads.
    #[must_use]
    pub fn leader(&self) -> &Life {
        &self.lives[self.leads]
    }

    /// The replica that follows, or is to, if there is one.
    #[must_use]
    pub fn follower(&self) -> Option<&Life> {
        self.follows.map(|number| &self.lives[number])
    }

    /// All there have been, by their number.
    #[must_use]
    pub fn lives(&self) -> &[Life] {
        &self.lives
    }

    /// Whether the machine has a backup as far as the replica that leads has noted.
    #[must_use]
    pub fn is_protected(&self) -> bool {
        let events = self.leader().events();
        let mut last = events.iter().rev().map(|line| line.event.as_str());
        let last = last.find(|event| ["primary", "protected", "link_end"].contains(event));
        last.is_some_and(|event| event != "link_end")
    }

    /// Kills the replica that leads. From then on the other one is to.
    ///
    /// # Errors
    /// If it does not end.
    ///
    /// # Panics
    /// If there is no other one: the machine would be lost.
    pub fn kill_leader(&mut self) -> KitResult<Loss> {
        assert!(self.follows.is_some(), "the machine would be lost");
        let at_ns = hostclock::monotonic_ns();
        self.lives[self.leads].daemon.kill();
        let loss = self.leader_died()?;
        Ok(Loss { at_ns, ..loss })
    }

    /// Waits for the death (SIGKILL) of the replica that leads, which is to kill itself. From then on the other one
    /// is to lead. The time of the loss is that of this call.
    ///
    /// # Errors
    /// If it does not end, or in another way.
    ///
    /// # Panics
    /// If there is no other one.
    pub fn leader_died(&mut self) -> KitResult<Loss> {
        let survivor = self.follows.take().expect("a machine that has a backup");
        let victim = self.leads;
        let at_ns = hostclock::monotonic_ns();
        killed(&mut self.lives[victim].daemon)?;
        self.leads = survivor;
        Ok(Loss {
            victim,
            survivor,
            at_ns,
        })
    }

    /// Kills the replica that follows, or is to, if there is one. The machine goes on alone.
    ///
    /// # Errors
    /// If it does not end.
    pub fn kill_follower(&mut self) -> KitResult {
        if let Some(number) = self.follows {
            self.lives[number].daemon.kill();
            self.follower_died()?;
        }
        Ok(())
    }

    /// Waits for the death (SIGKILL) of the replica that follows, or is to, and kills itself.
    ///
    /// # Errors
    /// If it does not end, or in another way.
    ///
    /// # Panics
    /// If there is none.
    pub fn follower_died(&mut self) -> KitResult {
        let number = self.follows.take().expect("a machine that has a backup");
        killed(&mut self.lives[number].daemon)
    }

    /// Starts a backup in the place that is free, and waits until it listens. Where.
    ///
    /// # Errors
    /// If it does not.
    ///
    /// # Panics
    /// If no place is free.
    pub fn start_backup(&mut self) -> KitResult<SocketAddr> {
        self.start_backup_with(&[])
    }

    /// The same, with `more` arguments.
    ///
    /// # Errors
    /// As [`Self::start_backup`].
    ///
    /// # Panics
    /// Likewise.
    pub fn start_backup_with(&mut self, more: &[OsString]) -> KitResult<SocketAddr> {
        assert!(self.follows.is_none(), "both places are taken");
        let number = self.lives.len();
        let place = 1 - self.leader().place;
        let life = self.start_life(number, place, more, backup_words)?;
        let address = address_of(&life.events, &life.daemon);
        self.lives.push(life);
        self.follows = Some(number);
        address
    }

    /// Starts `tandem protect`, which asks the replica that leads to take the backup at `address` and waits for
    /// that.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn ask_to_protect(&self, address: SocketAddr) -> KitResult<Daemon> {
        let words: [OsString; 6] = [
            "protect".into(),
            self.vm.clone().into(),
            "--backup".into(),
            address.to_string().into(),
            "--control".into(),
            self.control().into(),
        ];
        let errors = format!("{}.{}.protect.err", self.vm, self.lives.len() - 1);
        Daemon::start(
            "request for a new backup",
            words,
            self.cluster.folder().join(errors),
        )
    }

    /// Gives the machine, which runs alone, a new backup, and waits until both know that they are a pair.
    ///
    /// # Errors
    /// If it does not get it.
    pub fn protect(&mut self) -> KitResult<Protection> {
        let begun_ns = hostclock::monotonic_ns();
        let address = self.start_backup()?;
        let follows = self.lives.len() - 1;
        let mut request = self.ask_to_protect(address)?;
        if !request.wait(HAND_OVER)?.success() {
            return Err(request.failed("was refused"));
        }
        self.leader().wait_event("protected", begun_ns)?;
        self.lives[follows].wait_event("welcomed", begun_ns)?;
        Ok(Protection {
            leads: self.leads,
            follows,
        })
    }

    /// What two of its replicas have noted so far, in order of time: life `leads` as `primary` and life `follows`
    /// as `backup`, whatever they began as.
    #[must_use]
    pub fn noted(&self, leads: usize, follows: usize) -> Vec<Line> {
        let named = |number: usize, who: &str| {
            let mut lines = self.lives[number].events();
            for line in &mut lines {
                who.clone_into(&mut line.who);
            }
            lines
        };
        let mut lines = [named(leads, "primary"), named(follows, "backup")].concat();
        lines.sort_by_key(|line| line.at_ns);
        lines
    }

    /// Ends the machine in an orderly way: with the replica that leads, the one that follows ends too.
    ///
    /// # Errors
    /// If one of them does not, or ends badly.
    pub fn end(mut self) -> KitResult {
        self.leader().daemon.ask_to_end();
        for number in [Some(self.leads), self.follows].into_iter().flatten() {
            let daemon = &mut self.lives[number].daemon;
            if !daemon.wait(END)?.success() {
                return Err(daemon.failed("ended badly"));
            }
        }
        Ok(())
    }
}

/// Waits until `daemon` is gone, which SIGKILL has ended or will end.
fn killed(daemon: &mut Daemon) -> KitResult {
    let status = daemon.wait(END)?;
    if daemon.was_killed() {
        return Ok(());
    }
    Err(daemon.failed(format!("was to be killed, and ended with {status}")))
}
