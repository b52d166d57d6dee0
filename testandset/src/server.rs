//! The arbiter server: a [`Store`] behind TCP.

use crate::protocol::{MAX_LINE, PROTOCOL, Reply, Request};
use crate::{ArbiterError, Flag, Store, Verdict};
use lines::{Answer, Answerer, Limits};
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;

/// A client asks and goes; 64 at once is far more than pairs that break together.
const LIMITS: Limits = Limits {
    line: MAX_LINE,
    connections: 64,
    idle: Duration::from_secs(5),
};

/// Serves `store` on `listener` until `shutdown` ends, inside a tokio runtime with time and I/O.
///
/// A reply leaves only after what it says is durable. At shutdown, requests already taken are answered,
/// then connections and store are closed.
pub async fn serve(listener: TcpListener, store: Store, shutdown: impl Future<Output = ()>) {
    let server = Server {
        store: Mutex::new(store),
    };
    lines::serve(listener, LIMITS, Arc::new(server), shutdown).await;
}

struct Server {
    store: Mutex<Store>,
}

impl Answerer for Server {
    fn answer(&self, line: Option<&[u8]>, first: bool) -> Answer {
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
            Ok(request) => Answer::Reply(lines::to_line(&self.handle(request))),
            Err(error) => refused(format!("no such request: {error}")),
        }
    }
}

impl Server {
    fn handle(&self, request: Request) -> Reply {
        // A panic inside the store leaves it as a failed write does: in doubt, which it knows.
        let mut store = self.store.lock().unwrap_or_else(|e| e.into_inner());
        let here = store.id();
        let meant = match &request {
            Request::Store => here,
            Request::TestAndSet { store, .. }
            | Request::Holder { store, .. }
            | Request::Check { store } => *store,
        };
        if meant != here {
            return Reply::OtherStore { store: here };
        }
        let reply = match request {
            Request::Store => Ok(Reply::Store { store: here }),
            Request::TestAndSet { vm, view, who, .. } => store
                .test_and_set(&Flag { vm, view }, &who)
                .map(|verdict| match verdict {
                    Verdict::Won => Reply::Won,
                    Verdict::Lost { holder } => Reply::Lost { holder },
                }),
            Request::Holder { vm, view, .. } => store
                .holder(&Flag { vm, view })
                .map(|holder| Reply::Holder { holder }),
            Request::Check { .. } => store.check().map(|()| Reply::Ready),
        };
        reply.unwrap_or_else(|error| {
            tracing::error!(%error, "no verdict");
            match error {
                ArbiterError::Refused { reason, .. } => Reply::Refused { reason },
                error => Reply::StoreFailed {
                    reason: error.to_string(),
                },
            }
        })
    }
}
