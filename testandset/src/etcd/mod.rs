//! The arbiter of those who run etcd: flags are keys, each made by one transaction.
//!
//! ```text
//!                       the store is 51d3.., and there is no key of the flag?
//!   test_and_set ──txn─▶    yes: it is made, with the contender's name ─▶ Won
//!                           no:  both are read ─▶ another store: no verdict
//!                                                 the flag's value is this contender: Won; another: Lost
//! ```
//!
//! A transaction is durable on a majority of members before etcd answers, and all reads here are linearizable: a
//! member that was cut off from the others gives no answer, and none that is old. So nothing here depends on which
//! member is asked. Whether a transaction whose answer was lost was carried out, or is going to be, does not matter
//! either: the same contender asks again, of the same member or of another.
//!
//! ```text
//!   round 1   every member, the one that answered last first: as long as that takes as a rule, times eight
//!   round 2   those again that may answer: a second each
//!   at the end of the call's time: no verdict
//! ```
//!
//! So a member that is silent costs a quarter of a second as a rule, and one that is gone nothing. Connections are
//! kept, and so are the tokens a user is given for its password, which take etcd some 100 ms to make: a thread uses
//! all of them every ten seconds.

mod member;
mod settings;
mod wire;

use crate::identity::Known;
use crate::{Arbiter, ArbiterError, Contender, Flag, StoreId, Verdict, ViewNumber, VmId};
use member::{Failed, Member};
use settings::Settings;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use wire::{Keys, Read, Reply, Txn};

/// How often a client that stays connected asks each member.
const STAY: Duration = Duration::from_secs(10);
/// Longest time a member has for an answer, unless set.
const PATIENT: Duration = Duration::from_secs(1);
/// Fewest members' times a call has.
const TIMES_MIN: u32 = 2;

/// A cluster of etcd, asked by the JSON form of its third API. Each question has a time limit: a second for each member,
/// and two at least. The first call asks for the store's identity before, and one that finds the database full asks who
/// has the flag after. It is for the caller to ask again after an error.
#[derive(Debug)]
pub struct EtcdArbiter {
    cluster: Arc<Cluster>,
}

impl EtcdArbiter {
    /// The cluster that `words` name, all that stands behind `etcd:` in the address of an arbiter; does not connect
    /// yet.
    ///
    /// # Errors
    /// [`ArbiterError::BadAddress`]; [`ArbiterError::BadFile`] for a file that is named there.
    pub fn new(words: &str) -> Result<Self, ArbiterError> {
        let settings = Settings::parse(words)?;
        let members: Vec<_> = settings
            .members
            .iter()
            .map(|address| Member::new(address, &settings))
            .collect();
        let cluster = Cluster {
            name: settings.members.join(","),
            patience: PATIENT,
            members,
            first: AtomicUsize::new(0),
            keys: Keys::new(settings.prefix),
            known: Known::default(),
        };
        Ok(Self {
            cluster: Arc::new(cluster),
        })
    }

    /// Gives each member so long for an answer (one second unless set).
    ///
    /// # Panics
    /// Behind [`Self::stays_connected`].
    #[must_use]
    pub fn with_patience(mut self, patience: Duration) -> Self {
        let cluster = Arc::get_mut(&mut self.cluster);
        cluster.expect("nobody else has it yet").patience = patience;
        self
    }

    /// Stays connected from the first call on, as long as this arbiter is there: a thread asks now and then. So
    /// the call of a failover needs no new connection, no TLS handshake and no password.
    #[must_use]
    pub fn stays_connected(self) -> Self {
        let cluster = Arc::downgrade(&self.cluster);
        let stay = move || {
            loop {
                std::thread::sleep(STAY);
                let Some(cluster) = cluster.upgrade() else {
                    return;
                };
                if cluster.known.get().is_some() {
                    cluster.look_around();
                }
            }
        };
        let thread = std::thread::Builder::new().name("arbiter".into());
        if let Err(error) = thread.spawn(stay) {
            tracing::warn!(%error, "this replica does not stay connected to its arbiter");
        }
        self
    }
}

/// The cluster, as it is known here.
#[derive(Debug)]
struct Cluster {
    /// All members' addresses.
    name: String,
    members: Vec<Member>,
    /// How long a member may take.
    patience: Duration,
    /// The member that is asked first: one that answered when it was last asked.
    first: AtomicUsize,
    keys: Keys,
    known: Known,
}

impl Cluster {
    /// Has a member carry out `txn`, and `judge` what it says.
    fn ask<T>(
        &self,
        txn: &Txn,
        judge: impl Fn(&Reply) -> Result<T, Failed>,
    ) -> Result<T, ArbiterError> {
        let count = self.members.len();
        // There are nine at most.
        let times = u32::try_from(count).map_or(TIMES_MIN, |n| n.max(TIMES_MIN));
        let deadline = Instant::now() + self.patience * times;
        let first = self.first.load(Ordering::Relaxed);
        let mut failures: Vec<Option<Failed>> = self.members.iter().map(|_| None).collect();
        for is_patient in [false, true] {
            for at in (first..first + count).map(|n| n % count) {
                let member = &self.members[at];
                let now = Instant::now();
                if now >= deadline || matches!(failures[at], Some(Failed::Lasting(_))) {
                    continue;
                }
                let limit = match is_patient || count == 1 {
                    true => self.patience,
                    false => member.quick().unwrap_or(self.patience).min(self.patience),
                };
                let said = member.txn(txn, deadline.min(now + limit));
                match said.and_then(|reply| judge(&reply)) {
                    Ok(judged) => {
                        self.first.store(at, Ordering::Relaxed);
                        return Ok(judged);
                    }
                    Err(failed) => failures[at] = Some(failed),
                }
            }
        }
        Err(self.unanswered(failures))
    }

    /// The error of a call to which no member gave an answer.
    fn unanswered(&self, failures: Vec<Option<Failed>>) -> ArbiterError {
        let mut lasting: Option<ArbiterError> = None;
        let mut reasons: Vec<(&str, String)> = Vec::new();
        for (member, failed) in self.members.iter().zip(failures) {
            match failed {
                Some(Failed::Lasting(error)) => {
                    // Another store is worse than anything else, and must be told.
                    let worse = matches!(error, ArbiterError::OtherStore { .. });
                    if lasting.is_none() || worse {
                        lasting = Some(error);
                    }
                }
                Some(Failed::Passing(reason) | Failed::StaleToken(reason)) => {
                    reasons.push((member.address(), reason));
                }
                None => reasons.push((member.address(), "there was no time to ask it".into())),
            }
        }
        if let Some(error) = lasting {
            return error;
        }
        let same = reasons.windows(2).all(|pair| pair[0].1 == pair[1].1);
        let reason = match reasons.as_slice() {
            [(_, reason), ..] if same => reason.clone(),
            reasons => reasons
                .iter()
                .map(|(address, reason)| format!("{address}: {reason}"))
                .collect::<Vec<_>>()
                .join("; "),
        };
        ArbiterError::Unreachable {
            arbiter: self.name.clone(),
            reason,
        }
    }

    /// Uses the connection to every member, and has one that answers be asked first.
    fn look_around(&self) {
        let first = self.first.load(Ordering::Relaxed);
        let answers: Vec<bool> = self
            .members
            .iter()
            .map(|member| {
                let txn = Txn::look(&self.keys);
                let said = member.txn(&txn, Instant::now() + self.patience);
                let judged = said.and_then(|reply| self.same_store(&reply));
                if let Err(why) = &judged {
                    tracing::info!(member = member.address(), ?why, "would give no verdict now");
                }
                judged.is_ok()
            })
            .collect();
        if !answers[first]
            && let Some(answering) = answers.iter().position(|answers| *answers)
        {
            // Unless a call found another one meanwhile.
            let _ =
                self.first
                    .compare_exchange(first, answering, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// What is wrong with a member's reply.
    fn is_no_reply(&self, reason: String) -> Failed {
        Failed::Lasting(ArbiterError::Protocol {
            arbiter: self.name.clone(),
            reason,
        })
    }

    /// A key that holds what nobody here has written.
    fn damaged(&self, key: &str, reason: String) -> Failed {
        Failed::Lasting(ArbiterError::Corrupt {
            path: PathBuf::from(format!("etcd:{}{key}", self.name)),
            reason,
        })
    }

    /// Checks that the store whose identity is read last in `reply` is the one known. If none is known yet, it is the
    /// one known from now on.
    fn same_store(&self, reply: &Reply) -> Result<(), Failed> {
        let read = reply.store().map_err(|reason| self.is_no_reply(reason))?;
        let found = match read {
            Some((key, id)) => Some(
                StoreId::try_from(id)
                    .map_err(|_| self.damaged(&key, "it is no store's identity".into()))?,
            ),
            None => None,
        };
        let known = self.known.check(&self.name, found);
        known.map(drop).map_err(Failed::Lasting)
    }

    fn contender(&self, (key, value): (String, String)) -> Result<Contender, Failed> {
        Contender::new(value).map_err(|e| self.damaged(&key, e.to_string()))
    }

    /// What `reply` says was read, if the store is the one known.
    fn read(&self, reply: &Reply) -> Result<Read, Failed> {
        self.same_store(reply)?;
        reply.read(0).map_err(|reason| self.is_no_reply(reason))
    }

    /// The store known; binds this client to the one there is, and makes it if there is none.
    fn store(&self) -> Result<StoreId, ArbiterError> {
        if let Some(known) = self.known.get() {
            return Ok(known);
        }
        let id =
            StoreId::random().map_err(|e| ArbiterError::disk("name", "a store".as_ref(), e))?;
        self.ask(&Txn::make_store(&self.keys, id), |reply| {
            match reply.succeeded {
                true => {
                    let known = self.known.check(&self.name, Some(id));
                    known.map_err(Failed::Lasting)?;
                }
                false => self.same_store(reply)?,
            }
            let known = self.known.get();
            known.ok_or_else(|| self.is_no_reply("its store is neither there nor made".into()))
        })
    }

    fn holder(&self, flag: &Flag) -> Result<Option<Contender>, ArbiterError> {
        self.store()?;
        self.ask(&Txn::read(&self.keys, flag), |reply| {
            let read = self.read(reply)?;
            read.map(|pair| self.contender(pair)).transpose()
        })
    }

    fn test_and_set(&self, flag: &Flag, who: &Contender) -> Result<Verdict, ArbiterError> {
        let store = self.store()?;
        self.ask(&Txn::set(&self.keys, store, flag, who), |reply| {
            if reply.succeeded {
                return Ok(Verdict::Won);
            }
            let Some(pair) = self.read(reply)? else {
                let reason = format!("it neither set {flag} nor says whose it is");
                return Err(self.is_no_reply(reason));
            };
            Ok(Verdict::of(who, &self.contender(pair)?))
        })
    }
}

impl Arbiter for EtcdArbiter {
    fn store(&self) -> Result<StoreId, ArbiterError> {
        self.cluster.store()
    }

    fn test_and_set(&self, flag: &Flag, who: &Contender) -> Result<Verdict, ArbiterError> {
        match self.cluster.test_and_set(flag, who) {
            // A full database takes no flag, and tells those that are set.
            Err(full @ ArbiterError::StoreFailed { .. }) => match self.cluster.holder(flag) {
                Ok(Some(holder)) => Ok(Verdict::of(who, &holder)),
                _ => Err(full),
            },
            verdict => verdict,
        }
    }

    fn holder(&self, flag: &Flag) -> Result<Option<Contender>, ArbiterError> {
        self.cluster.holder(flag)
    }

    fn newest(&self, vm: &VmId) -> Result<Option<(ViewNumber, Contender)>, ArbiterError> {
        let cluster = &self.cluster;
        cluster.store()?;
        cluster.ask(&Txn::newest(&cluster.keys, vm), |reply| {
            let Some((key, value)) = cluster.read(reply)? else {
                return Ok(None);
            };
            let view = cluster.keys.view(vm, &key);
            let view = view.ok_or_else(|| cluster.damaged(&key, "it is no flag's key".into()))?;
            Ok(Some((view, cluster.contender((key, value))?)))
        })
    }

    fn check(&self) -> Result<(), ArbiterError> {
        let cluster = &self.cluster;
        cluster.store()?;
        cluster.ask(&Txn::check(&cluster.keys), |reply| {
            cluster.same_store(reply)
        })
    }
}
