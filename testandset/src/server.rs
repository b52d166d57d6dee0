//! The arbiter server: a [`Store`] behind HTTP.

use crate::protocol::{
    Bound, Decided, Held, Here, MAX_BODY, Newest, NewestFlag, Ready, STORE, Set, flag_of,
};
use crate::{ArbiterError, Contender, Flag, Store, StoreId, Verdict, VmId};
use api::{Asker, Failure, Limits, MetricKind, Page, Stats, StatusCode, said};
use axum::body::Bytes;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Router};
use std::future::Future;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tls::{Peer, Security};
use tokio::net::TcpListener;

/// Replicas stay connected, so that a failover need not wait for a connection to be accepted.
const LIMITS: Limits = Limits::for_bodies(MAX_BODY);

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
    let stats = Arc::new(Stats::default());
    let server = Arc::new(Server {
        store: Mutex::new(store),
        stats: Arc::clone(&stats),
    });
    let router = Router::new()
        .route(STORE, get(which_store))
        .route("/v1/ready", get(ready))
        .route("/v1/flags/{vm}", get(newest))
        .route("/v1/flags/{vm}/{view}", get(holder).put(set))
        .route("/healthz", get(health))
        .route("/metrics", get(metrics))
        .with_state(Arc::clone(&server));
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
        () = api::serve(listener, security, LIMITS, router, stats, shutdown) => {}
        () = tidying => {}
    }
}

struct Server {
    store: Mutex<Store>,
    stats: Arc<Stats>,
}

type Shared = State<Arc<Server>>;
type Answer = Result<Response, Failure>;
type Named<T> = Result<Path<T>, PathRejection>;

async fn which_store(State(server): Shared) -> Answer {
    server
        .with(|store| {
            Ok(said(&Here {
                store: store.id().map_err(unknown)?,
            }))
        })
        .await
}

async fn ready(State(server): Shared, uri: Uri) -> Answer {
    let bound = bound(&uri)?;
    let check = |store: &mut Store| store.check().map(|()| said(&Ready { ready: true }));
    server.of_store(bound.store, check).await
}

async fn newest(State(server): Shared, vm: Named<String>, uri: Uri) -> Answer {
    let bound = bound(&uri)?;
    let vm = VmId::new(named(vm)?).map_err(Failure::bad)?;
    let find = move |store: &mut Store| {
        let newest = store.newest(&vm)?;
        let newest = newest.map(|(view, holder)| NewestFlag { view, holder });
        Ok(said(&Newest { newest }))
    };
    server.of_store(bound.store, find).await
}

async fn holder(State(server): Shared, at: Named<(String, String)>, uri: Uri) -> Answer {
    let bound = bound(&uri)?;
    let (vm, view) = named(at)?;
    let flag = flag_of(&vm, &view).map_err(Failure::bad)?;
    let find = move |store: &mut Store| {
        let holder = store.holder(&flag)?;
        Ok(said(&Held { holder }))
    };
    server.of_store(bound.store, find).await
}

async fn set(
    State(server): Shared,
    Extension(asker): Extension<Asker>,
    at: Named<(String, String)>,
    headers: HeaderMap,
    body: Bytes,
) -> Answer {
    let (vm, view) = named(at)?;
    let Flag { vm, view } = flag_of(&vm, &view).map_err(Failure::bad)?;
    let Set { store, who } = api::read(&headers, &body)?;
    let allowed = asker.may(&server.stats.refused, |peer| may_set(peer, &vm, &who));
    allowed.map_err(|reason| Failure::new(StatusCode::FORBIDDEN, reason))?;
    let client = client_of(asker.address);
    let stats = Arc::clone(&server.stats);
    let set = move |store: &mut Store| {
        let began = Instant::now();
        let verdict = store.test_and_set(&Flag { vm, view }, &who, Some(client));
        stats.store.add(began.elapsed());
        Ok(said(&match verdict? {
            Verdict::Won => Decided::Won,
            Verdict::Lost { holder } => Decided::Lost { holder },
        }))
    };
    server.of_store(Some(store), set).await
}

/// Whether flags could be set.
async fn health(State(server): Shared) -> Answer {
    server
        .of_store(None, |store| store.check().map(|()| "ok\n".into_response()))
        .await
}

async fn metrics(State(server): Shared) -> Answer {
    let stats = Arc::clone(&server.stats);
    server
        .with(move |store| {
            let mut page = Page::default();
            let help = "Flags that are known to be set.";
            page.one(
                "tandem_arbiter_flags",
                MetricKind::Gauge,
                help,
                store.count(),
            );
            stats.show(&mut page);
            Ok(page.into_response())
        })
        .await
}

/// What stands in a path.
fn named<T>(path: Named<T>) -> Result<T, Failure> {
    path.map(|Path(path)| path)
        .map_err(|e| Failure::bad(e.body_text()))
}

/// The store a request to read is bound to, if it is to one.
fn bound(uri: &Uri) -> Result<Bound, Failure> {
    let bound = Query::try_from_uri(uri);
    bound
        .map(|Query(bound)| bound)
        .map_err(|e| Failure::bad(e.body_text()))
}

impl Server {
    fn lock(&self) -> MutexGuard<'_, Store> {
        // A panic inside the store leaves it as a failed write does: in doubt, which it knows.
        self.store.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Does `what` with the store, where that may block.
    async fn with(
        self: Arc<Self>,
        what: impl FnOnce(&mut Store) -> Answer + Send + 'static,
    ) -> Answer {
        let done = tokio::task::spawn_blocking(move || what(&mut self.lock()));
        done.await.unwrap_or_else(|panic| {
            tracing::error!(%panic, "no verdict");
            let error = "a bug: see the arbiter's own output";
            Err(Failure::new(StatusCode::INTERNAL_SERVER_ERROR, error))
        })
    }

    /// The same, if it is the store that is `meant`.
    async fn of_store(
        self: Arc<Self>,
        meant: Option<StoreId>,
        what: impl FnOnce(&mut Store) -> Result<Response, ArbiterError> + Send + 'static,
    ) -> Answer {
        let of_it = move |store: &mut Store| {
            let here = store.id().map_err(unknown)?;
            if meant.is_some_and(|meant| meant != here) {
                let error = format!("the store here is another one: {here}");
                let other = Failure::new(StatusCode::CONFLICT, error);
                return Err(other.with("store", here.to_string()));
            }
            what(store).map_err(unknown)
        };
        self.with(of_it).await
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
fn unknown(error: ArbiterError) -> Failure {
    tracing::error!(%error, "no verdict");
    match error {
        ArbiterError::TooManyFlags { reason, .. } => {
            Failure::new(StatusCode::INSUFFICIENT_STORAGE, reason)
        }
        error => Failure::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string()),
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
