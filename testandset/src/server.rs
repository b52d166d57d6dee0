//! The arbiter server: a [`Store`] behind TCP.

use crate::protocol::{MAX_LINE, Newest, PROTOCOL, Reply, Request};
use crate::{ArbiterError, Contender, Flag, Store, Verdict, VmId};
use lines::{Answer, Answerer, Asker, Limits};
use std::future::Future;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tls::{Peer, Security, Strangers};
use tokio::net::TcpListener;

/// Replicas stay connected, so that a failover need not wait for a connection to be accepted.
const LIMITS: Limits = Limits::for_lines(MAX_LINE);

/// How often the store is looked at for what makes it smaller.
const TIDY: Duration = Duration::from_secs(3600);
/// Between two turns of that, each of which holds the store for some syncs.
const TIDY_PAUSE: Duration = Duration::from_millis(5);

/// Serves `store` on `listener` until `shutdown` ends, inside a tokio runtime with time and I/O.
///
/// A reply leaves only after what it says is durable. At shutdown, requests already taken are answered,
/// then connections and store are closed.
///
/// Who may ask is `security`'s to say. Of those who show certificates a host sets flags in its own name only, and of
/// the machines its certificate names; an operator sets any; everyone may read.
pub async fn serve(
    listener: TcpListener,
    security: Security,
    store: Store,
    shutdown: impl Future<Output = ()>,
) {
    let server = Arc::new(Server {
        store: Mutex::new(store),
        refused: Strangers::default(),
    });
    let answerer = Arc::clone(&server);
    let tidying = async {
        let mut times = tokio::time::interval(TIDY);
        loop {
            times.tick().await;
            let server = Arc::clone(&server);
            // A panic leaves the store in doubt, as one in a request does.
            let _ = tokio::task::spawn_blocking(move || server.tidy()).await;
        }
    };
    tokio::select! {
        () = lines::serve(listener, security, LIMITS, answerer, shutdown) => {}
        () = tidying => {}
    }
}

struct Server {
    store: Mutex<Store>,
    /// Requests that were not their asker's to make.
    refused: Strangers,
}

impl Answerer for Server {
    fn answer(&self, asker: &Asker, line: Option<&[u8]>, first: bool) -> Answer {
        let refused = |reason: String| Answer::Last(lines::to_line(&Reply::Refused { reason }));
        let Some(line) = line else {
            return refused(format!("a line is at most {MAX_LINE} bytes"));
        };
        if first {
            return match PROTOCOL.check(line) {
                Ok(()) => Answer::Reply(PROTOCOL.greeting()),
                Err(reason) => refused(format!("cannot talk to this client: {reason}")),
            };
        }
        match serde_json::from_slice(line) {
            Ok(request) => Answer::Reply(lines::to_line(&self.handle(asker, request))),
            Err(error) => refused(format!("no such request: {error}")),
        }
    }
}

impl Server {
    fn lock(&self) -> MutexGuard<'_, Store> {
        // A panic inside the store leaves it as a failed write does: in doubt, which it knows.
        self.store.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn handle(&self, asker: &Asker, request: Request) -> Reply {
        if let Request::TestAndSet { vm, who, .. } = &request
            && let Err(reason) = asker.may(&self.refused, |peer| may_set(peer, vm, who))
        {
            return Reply::Refused { reason };
        }
        let client = client_of(asker.address);
        let mut store = self.lock();
        let here = match store.id() {
            Ok(id) => id,
            Err(error) => return unknown(error),
        };
        let meant = match &request {
            Request::Store => here,
            Request::TestAndSet { store, .. }
            | Request::Holder { store, .. }
            | Request::Newest { store, .. }
            | Request::Check { store } => *store,
        };
        if meant != here {
            return Reply::OtherStore { store: here };
        }
        let reply = match request {
            Request::Store => Ok(Reply::Store { store: here }),
            Request::TestAndSet { vm, view, who, .. } => store
                .test_and_set(&Flag { vm, view }, &who, Some(client))
                .map(|verdict| match verdict {
                    Verdict::Won => Reply::Won,
                    Verdict::Lost { holder } => Reply::Lost { holder },
                }),
            Request::Holder { vm, view, .. } => store
                .holder(&Flag { vm, view })
                .map(|holder| Reply::Holder { holder }),
            Request::Newest { vm, .. } => store.newest(&vm).map(|newest| Reply::Newest {
                newest: newest.map(|(view, holder)| Newest { view, holder }),
            }),
            Request::Check { .. } => store.check().map(|()| Reply::Ready),
        };
        reply.unwrap_or_else(unknown)
    }

    /// Does what makes the store smaller, in turns with requests.
    fn tidy(&self) {
        loop {
            match self.lock().tidy() {
                // Long enough for those who wait for the lock to get it.
                Ok(true) => std::thread::sleep(TIDY_PAUSE),
                Ok(false) => return,
                Err(error) => return tracing::warn!(%error, "the store is not tidied"),
            }
        }
    }
}

/// Whether `peer` may set flags of `vm` for `who`.
fn may_set(peer: &Peer, vm: &VmId, who: &Contender) -> Result<(), String> {
    peer.is_host_of(vm.as_str())?;
    if who.host() == peer.host() {
        return Ok(());
    }
    Err(format!("{peer} may not set a flag for {who}"))
}

/// The reply where there is no verdict.
fn unknown(error: ArbiterError) -> Reply {
    tracing::error!(%error, "no verdict");
    match error {
        ArbiterError::TooManyFlags { reason, .. } => Reply::TooManyFlags { reason },
        error => Reply::StoreFailed {
            reason: error.to_string(),
        },
    }
}

/// Whose bound a peer's flags count for. A host has many IPv6 addresses, but one /64 as a rule.
fn client_of(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(v6) => IpAddr::from((u128::from(v6) & !u128::from(u64::MAX)).to_be_bytes()),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_a_host_whichever_of_its_addresses_it_has() {
        let client = |text: &str| client_of(text.parse().unwrap()).to_string();
        assert_eq!(client("10.0.0.1"), "10.0.0.1");
        assert_eq!(client("::ffff:10.0.0.1"), "10.0.0.1");
        assert_eq!(client("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
    }
}
