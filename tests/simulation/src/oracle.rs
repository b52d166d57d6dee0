//! What must hold, whatever the plan does: looked at with every word of a replica and every reply to a client.
//!
//! | rule | how it is seen |
//! |---|---|
//! | at most one replica is live in any view (invariant 3) | who wins a flag, or begins, is the only one that runs alone or leads in the view behind it |
//! | no acknowledged write is lost, what was answered is never unanswered (9, and with it 1 and 4) | each key has one writer, and numbers that grow: no read finds less than what was acknowledged, or read, before it began, nor more than was written |
//! | a diverged replica never lives (7) | no host computes wrongly here, so that no replica may diverge at all |
//! | a joiner never contends | only a backup from the start, or one that was welcomed, wins a flag |

use crate::kernel::{self, Pid, fail};
use replica::Notice;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Clients, each of which writes a key of its own.
pub const CLIENTS: usize = 3;

/// A key that one client writes.
#[derive(Clone, Copy, Debug, Default)]
struct Key {
    /// The last number whose writing has begun, and the last that was acknowledged.
    begun: u64,
    acked: u64,
    /// The highest number that was read.
    read: u64,
}

/// What is known of a life.
#[derive(Debug, Default)]
pub struct Oracle {
    /// Who has the flag of a view.
    flags: BTreeMap<u64, Pid>,
    /// Who is the backup in a view, as it says itself.
    backups: BTreeMap<u64, Pid>,
    /// Who is live in a view.
    live: BTreeMap<u64, Pid>,
    /// Who may contend, and in which view it is.
    members: BTreeMap<Pid, u64>,
    keys: [Key; CLIENTS],
    /// Replies to each client.
    pub replies: [u64; CLIENTS],
    /// Replicas that were killed, by the plan.
    pub killed: BTreeSet<Pid>,
    /// Views that were won, joins that were completed.
    pub failovers: u64,
    pub joins: u64,
    /// The primary of the last view, while it leads a pair.
    pub pair: Option<Pid>,
    /// The last words of each.
    pub words: Vec<String>,
    pub verbose: bool,
}

static ORACLE: Mutex<Option<Oracle>> = Mutex::new(None);

/// The oracle. No call of the simulation is made while it is held.
pub struct Held(MutexGuard<'static, Option<Oracle>>);

impl std::ops::Deref for Held {
    type Target = Oracle;

    fn deref(&self) -> &Oracle {
        self.0.as_ref().expect("there is one")
    }
}

impl std::ops::DerefMut for Held {
    fn deref_mut(&mut self) -> &mut Oracle {
        self.0.as_mut().expect("there is one")
    }
}

/// The oracle.
pub fn oracle() -> Held {
    let mut held = ORACLE.lock().unwrap_or_else(PoisonError::into_inner);
    held.get_or_insert_default();
    Held(held)
}

/// Notes what happens, for whoever looks at a life.
pub fn say(who: &str, what: &str) {
    let mut oracle = oracle();
    let ms = kernel::now_ns() / 1_000_000;
    let line = format!("{:4}.{:03} {who}: {what}", ms / 1000, ms % 1000);
    if oracle.verbose {
        crate::report::line(&line);
    }
    oracle.words.push(line);
}

impl Oracle {
    /// A replica says something.
    pub fn hears(&mut self, by: Pid, notice: &Notice<'_>) -> Result<(), String> {
        match notice {
            Notice::Begins(view) => {
                self.wins(by, view.0 - 1)?;
                self.lives(by, view.0)?;
            }
            Notice::Primary { .. } => self.pair = Some(by),
            // The first one follows from the boot; all others are joiners, until they are welcomed.
            Notice::Backup { .. } if self.backups.is_empty() => self.follows_from_boot(by),
            Notice::Backup { .. } => {}
            Notice::FlagWon(view) => {
                self.wins(by, view.0)?;
                self.failovers += 1;
            }
            Notice::Solo { view, .. } => {
                self.lives(by, view.0)?;
                self.pair = None;
            }
            Notice::Protected { view, .. } => {
                self.lives(by, view.0)?;
                self.joins += 1;
                self.pair = Some(by);
            }
            Notice::Welcomed(view) => {
                self.members.insert(by, view.0);
                self.backups.insert(view.0, by);
            }
            // It is over for this replica, as if it had been killed.
            Notice::Halted(why) if why.starts_with("the machine was left") => {
                self.killed.insert(by);
            }
            Notice::Diverged(why) => return Err(format!("invariant 7: a replica diverged: {why}")),
            _ => {}
        }
        Ok(())
    }

    /// A backup of a pair that was formed at a boot.
    fn follows_from_boot(&mut self, by: Pid) {
        self.members.insert(by, 1);
        self.backups.insert(1, by);
    }

    fn wins(&mut self, by: Pid, view: u64) -> Result<(), String> {
        let holder = *self.flags.entry(view).or_insert(by);
        if holder != by {
            return Err(format!(
                "invariant 3: the flag of view {view} is won by {by} and by {holder}"
            ));
        }
        if view > 0 && self.members.get(&by) != Some(&view) {
            let stands = self.members.get(&by);
            return Err(format!(
                "a replica that is no member wins the flag of view {view}: it is in {stands:?}"
            ));
        }
        Ok(())
    }

    fn lives(&mut self, by: Pid, view: u64) -> Result<(), String> {
        let other = *self.live.entry(view).or_insert(by);
        if other != by {
            return Err(format!(
                "invariant 3: {by} and {other} are live in view {view}"
            ));
        }
        if self.flags.get(&(view - 1)) != Some(&by) {
            return Err(format!(
                "invariant 3: {by} is live in view {view} without its flag"
            ));
        }
        if view > 1 && !self.live.contains_key(&(view - 1)) {
            return Err(format!(
                "{by} begins view {view}, and nobody view {}",
                view - 1
            ));
        }
        if let Some((later, _)) = self.live.range(view + 1..).next() {
            return Err(format!(
                "invariant 3: {by} becomes live in view {view}, behind view {later}"
            ));
        }
        self.members.insert(by, view);
        Ok(())
    }

    /// Who was told that it has the flag of a view.
    pub fn flags(&self) -> impl Iterator<Item = (u64, Pid)> {
        self.flags.iter().map(|(view, pid)| (*view, *pid))
    }

    /// The replica that leads in the last view.
    pub fn leader(&self) -> Option<Pid> {
        self.live.last_key_value().map(|(_, pid)| *pid)
    }

    /// The backup of the last view, if it has one.
    pub fn backup(&self) -> Option<Pid> {
        let (view, _) = self.live.last_key_value()?;
        self.backups.get(view).copied()
    }

    /// Whether the machine may be lost, as far as replicas have told.
    pub fn is_lost(&self) -> bool {
        let last = self.flags.last_key_value();
        last.is_some_and(|(flag, holder)| self.may_be_lost(*flag, *holder))
    }

    /// Whether the machine may be lost whose last flag is this holder's: who was killed, and so was the backup
    /// behind it.
    pub fn may_be_lost(&self, flag: u64, holder: Pid) -> bool {
        let backup = self.backups.get(&(flag + 1));
        self.killed.contains(&holder) && backup.is_none_or(|backup| self.killed.contains(backup))
    }

    /// Client `client` begins to write its next number: which.
    pub fn begins_to_write(&mut self, client: usize) -> u64 {
        self.keys[client].begun += 1;
        self.keys[client].begun
    }

    /// Its write was acknowledged.
    pub fn wrote(&mut self, client: usize) {
        self.keys[client].acked = self.keys[client].begun;
        self.replies[client] += 1;
    }

    /// The least that a read of the key of `of` has to find if it begins now.
    pub fn least(&self, of: usize) -> u64 {
        self.keys[of].acked.max(self.keys[of].read)
    }

    /// A read of the key of `of`, which had to find `least`, by `client` found `found`.
    ///
    /// # Errors
    /// If that cannot be.
    pub fn read(&mut self, client: usize, of: usize, least: u64, found: u64) -> Result<(), String> {
        self.replies[client] += 1;
        let key = &mut self.keys[of];
        if found < least {
            return Err(format!(
                "invariant 9: client {client} reads {found} of key {of}, where {least} was acknowledged or read before"
            ));
        }
        if found > key.begun {
            return Err(format!(
                "client {client} reads {found} of key {of}, which nobody wrote"
            ));
        }
        key.read = key.read.max(found);
        Ok(())
    }
}

/// Notes what a replica says, and ends the life if that must not be.
pub fn heard(by: Pid, name: &str, notice: &Notice<'_>) {
    let judged = oracle().hears(by, notice);
    say(name, &format!("{notice:?}"));
    if let Err(why) = judged {
        fail(&why);
    }
}
