//! The arbiter: one flag per (VM, view), set once.
//!
//! ```text
//!      replica A ──┐ test_and_set(flag of VM, view n; "A")   ┌────────────┐
//!                  ├────────────────────────────────────────▶│  arbiter   │  Won:  view n+1, Solo
//!      replica B ──┘ test_and_set(flag of VM, view n; "B")   └────────────┘  Lost: stop, emit nothing
//!                                                     error: unknown; wait, emit nothing, ask again
//! ```
//!
//! When a pair breaks, both sides race for the flag of their view; the first to set it may go live
//! (invariant 3: at most one replica of a VM is live in any view). What every arbiter keeps:
//!
//! 1. A flag has at most one holder, for ever: there is no way to clear one. (A server may in time give all
//!    flags of a machine that was marked as ended to that mark: they stay set. See `store/flags.rs`.)
//! 2. The holder asking again wins again, so a retry after a lost reply is harmless.
//! 3. Nobody is told of a holder before that holder is durable.
//! 4. An error is no verdict: the flag may be set, by this very request even.
//! 5. Whoever has talked to one store takes no other store's word ([`StoreId`]).
//!
//! Three arbiters are here: [`SharedDisk`], a directory both hosts mount; [`ServerArbiter`], the client of a small
//! durable server ([`serve`]); and [`EtcdArbiter`], for those who run etcd. All calls block, and read the host's
//! clock: never make them on a vCPU thread.
//!
//! # Example
//!
//! ```
//! use testandset::{Arbiter, Contender, Flag, SharedDisk, Verdict, ViewNumber, VmId};
//!
//! let shared = tempfile::tempdir()?; // a directory both hosts mount
//! let arbiter = SharedDisk::open(shared.path())?;
//! let flag = Flag { vm: VmId::new("web")?, view: ViewNumber(1) };
//! let (a, b) = (Contender::new("host-a.771")?, Contender::new("host-b.12")?);
//!
//! assert_eq!(arbiter.test_and_set(&flag, &b)?, Verdict::Won);
//! assert_eq!(arbiter.test_and_set(&flag, &a)?, Verdict::Lost { holder: b.clone() });
//! assert_eq!(arbiter.test_and_set(&flag, &b)?, Verdict::Won); // as for the retry after a lost reply
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod client;
mod error;
mod etcd;
mod flag;
mod identity;
mod protocol;
mod record;
mod server;
mod shared_disk;
mod store;

pub use client::ServerArbiter;
pub use error::ArbiterError;
pub use etcd::EtcdArbiter;
pub use flag::{Contender, Flag};
pub use identity::StoreId;
pub use names::{NameError, ViewNumber, VmId};
pub use server::serve;
pub use shared_disk::SharedDisk;
pub use store::{Bounds, Recovery, Store};

use tls::Security;

/// What the arbiter decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The flag is the asking contender's, from now or from an earlier request of its own.
    Won,
    /// The flag is another's.
    Lost {
        /// Whose.
        holder: Contender,
    },
}

impl Verdict {
    /// The verdict for `who` on a flag that `holder` has.
    fn of(who: &Contender, holder: &Contender) -> Self {
        if who == holder {
            Self::Won
        } else {
            Self::Lost {
                holder: holder.clone(),
            }
        }
    }
}

/// One flag per (VM, view): the first to set it may go live.
///
/// Calls block, for as long as the implementation says; make them from a control thread.
///
/// The first call that is answered binds this client to the store it was answered from. Should the
/// arbiter have another store later, every call fails with [`ArbiterError::OtherStore`] and sets
/// nothing: a new store has forgotten the flags of the old one.
pub trait Arbiter: Send + Sync {
    /// The store this client is bound to; binds it if no call was answered yet. Both replicas of a pair
    /// must be bound to the same.
    ///
    /// # Errors
    /// If no store was reached yet and none can be.
    fn store(&self) -> Result<StoreId, ArbiterError>;

    /// Sets `flag` for `who` unless it is set, and says whose it is. Idempotent: the holder wins
    /// again.
    ///
    /// # Errors
    /// Every error means *unknown*: the flag may or may not be set, by anyone, this contender
    /// included. The contender emits nothing and asks again.
    fn test_and_set(&self, flag: &Flag, who: &Contender) -> Result<Verdict, ArbiterError>;

    /// Does beforehand what can be done of [`Self::test_and_set`] for `who`, so that the answer comes sooner.
    /// Sets nothing, and need not succeed.
    fn prepare(&self, flag: &Flag, who: &Contender) {
        let _ = (flag, who);
    }

    /// Whose `flag` is; `None` while nobody has set it.
    ///
    /// # Errors
    /// Every error means *unknown*, never *absent*.
    fn holder(&self, flag: &Flag) -> Result<Option<Contender>, ArbiterError>;

    /// The flag of `vm` with the highest view that is set, and whose it is; `None` while none is set. One
    /// question however high the views are. Flags below it may be unset, where a viewservice left views out.
    ///
    /// # Errors
    /// Every error means *unknown*, never *none*.
    fn newest(&self, vm: &VmId) -> Result<Option<(ViewNumber, Contender)>, ArbiterError>;

    /// Whether a flag could be set now. It is for start-up, so that a full disk or a wrong address is told
    /// before a failover needs the arbiter. Sets nothing.
    ///
    /// # Errors
    /// What stands in the way.
    fn check(&self) -> Result<(), ArbiterError>;
}

/// Makes the arbiter that `address` names: `file:DIR` (a directory on storage both hosts share), `tcp:HOST:PORT` (an
/// arbiter server) or `etcd:HOST:PORT,...` (a cluster of etcd, and how to ask it). Opens the directory, and reads
/// certificates, but connects to nobody yet. An arbiter server is spoken to as `security` says; etcd has its own words
/// for that.
///
/// # Errors
/// [`ArbiterError::BadAddress`] for anything else; what [`SharedDisk::open`] and [`EtcdArbiter::new`] say.
pub fn parse(address: &str, security: &Security) -> Result<Box<dyn Arbiter>, ArbiterError> {
    match Kind::of(address)? {
        Kind::File(dir) => Ok(Box::new(SharedDisk::open(dir)?)),
        Kind::Tcp(server) => Ok(Box::new(
            ServerArbiter::new(server)?
                .secured(security.clone())
                .stays_connected(),
        )),
        Kind::Etcd(words) => Ok(Box::new(EtcdArbiter::new(words)?.stays_connected())),
    }
}

/// Which store the arbiter at `address` keeps its flags in, if it would take one now. It is made if there is none.
/// Nothing of it stays: no connection, no thread.
///
/// # Errors
/// What [`parse`] and [`Arbiter::check`] say.
pub fn look(address: &str, security: &Security) -> Result<StoreId, ArbiterError> {
    let arbiter: Box<dyn Arbiter> = match Kind::of(address)? {
        Kind::File(dir) => Box::new(SharedDisk::open(dir)?),
        Kind::Tcp(server) => Box::new(ServerArbiter::new(server)?.secured(security.clone())),
        Kind::Etcd(words) => Box::new(EtcdArbiter::new(words)?),
    };
    arbiter.check()?;
    arbiter.store()
}

/// An address, by its first word.
enum Kind<'a> {
    File(&'a str),
    Tcp(&'a str),
    Etcd(&'a str),
}

impl<'a> Kind<'a> {
    fn of(address: &'a str) -> Result<Self, ArbiterError> {
        match address.split_once(':') {
            Some(("file", dir)) if !dir.is_empty() => Ok(Self::File(dir)),
            Some(("tcp", server)) => Ok(Self::Tcp(server)),
            Some(("etcd", words)) => Ok(Self::Etcd(words)),
            _ => Err(ArbiterError::BadAddress {
                given: address.into(),
                reason: "expected file:DIR, tcp:HOST:PORT or etcd:HOST:PORT[,HOST:PORT...]",
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_name_nothing_are_refused_in_one_line() {
        for bad in [
            "",
            "file:",
            "file",
            "tcp:",
            "tcp:host",
            "tcp:host:",
            "tcp::1",
            "tcp:host:0",
            "tcp:host:65536",
            "tcp:a b:1",
            "etcd:",
            "etcd:host",
            "etcd:host:1,",
            "etcd:host:1,other",
            "/dir",
        ] {
            let Err(error) = parse(bad, &Security::Loopback) else {
                panic!("{bad:?} was taken for an arbiter");
            };
            assert!(
                matches!(error, ArbiterError::BadAddress { .. }),
                "{bad:?}: {error}"
            );
            assert_eq!(error.to_string().lines().count(), 1, "{error}");
        }
        for good in [
            "tcp:host:1",
            "tcp:[::1]:7000",
            "tcp:127.0.0.1:65535",
            "etcd:host:1",
            "etcd:host:1,[::1]:2,prefix=/here/",
        ] {
            assert!(parse(good, &Security::Loopback).is_ok(), "{good}");
        }
        assert!(matches!(
            parse("file:/nowhere/at/all", &Security::Loopback),
            Err(ArbiterError::Unreachable { .. })
        ));
    }
}
