//! The port of a host: what its replicas printed and noted, a part at a time (`docs/API.md`).
//!
//! ```text
//!   GET /v1/replicas/web/console?from=1200     200 {"text":"...","next":1734}
//! ```

use super::folder::{self, Folder};
use crate::failure::{Failure, Outcome};
use api::{Asker, Limits, Method, Page, Stats, StatusCode, error_of, said};
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Router};
use serde::{Deserialize, Serialize};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tls::Security;
use tokio::net::TcpListener;
use viewservice::VmId;

/// Longest body that asks: there is none.
const REQUEST_MAX: usize = 4 << 10;
/// Bytes of a file in one reply.
const PART: u64 = 64 << 10;
/// Longest body that answers: in JSON a byte may become six.
const REPLY_MAX: usize = 6 * PART as usize + (4 << 10);
/// Longest time for a host to answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A file of a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum What {
    /// What the guest printed.
    Console,
    /// What happened to it.
    Events,
    /// What it complained of.
    Errors,
}

impl What {
    /// As it stands in a path.
    fn name(self) -> &'static str {
        match self {
            Self::Console => "console",
            Self::Events => "events",
            Self::Errors => "errors",
        }
    }

    fn file(self) -> &'static str {
        match self {
            Self::Console => "console",
            Self::Events => "events",
            Self::Errors => "stderr",
        }
    }
}

/// From which byte of the file on; without it, the last of it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct From {
    from: Option<u64>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Part {
    text: String,
    next: u64,
}

/// The port of a host.
pub struct Port {
    /// Its state.
    pub folder: Arc<Folder>,
}

struct Files {
    folder: Arc<Folder>,
    stats: Arc<Stats>,
}

type Shared = State<Arc<Files>>;
type Answer = Result<Response, api::Failure>;

impl Port {
    /// Serves until `end`.
    pub async fn serve(
        self,
        listener: TcpListener,
        security: Security,
        end: impl Future<Output = ()>,
    ) {
        let stats = Arc::new(Stats::default());
        let files = Arc::new(Files {
            folder: self.folder,
            stats: Arc::clone(&stats),
        });
        let router = Router::new()
            .route("/v1/replicas/{vm}/{what}", get(part))
            .route("/healthz", get(|| async { "ok\n" }))
            .route("/metrics", get(metrics))
            .with_state(files);
        let limits = Limits::for_bodies(REQUEST_MAX);
        api::serve(listener, security, limits, router, stats, end).await;
    }
}

async fn metrics(State(files): Shared) -> Response {
    let mut page = Page::default();
    files.stats.show(&mut page);
    page.into_response()
}

async fn part(
    State(files): Shared,
    Extension(asker): Extension<Asker>,
    path: Result<Path<(VmId, What)>, PathRejection>,
    query: Result<Query<From>, QueryRejection>,
) -> Answer {
    let Path((vm, what)) = path.map_err(|e| api::Failure::bad(e.body_text()))?;
    let Query(From { from }) = query.map_err(|e| api::Failure::bad(e.body_text()))?;
    // A console may hold anything: it is an operator's to read.
    let rule = asker.may(&files.stats.refused, |peer| {
        Err(format!("{peer} is no operator"))
    });
    rule.map_err(|reason| api::Failure::new(StatusCode::FORBIDDEN, reason))?;
    let read = tokio::task::spawn_blocking(move || files.read(&vm, what, from));
    read.await.unwrap_or_else(|panic| {
        tracing::error!(%panic, "no answer");
        let error = "a bug: see the host's own output";
        Err(api::Failure::new(StatusCode::INTERNAL_SERVER_ERROR, error))
    })
}

impl Files {
    fn read(&self, vm: &VmId, what: What, from: Option<u64>) -> Answer {
        let path = self.folder.of(vm);
        if !path.exists() {
            let reason = format!("no replica of '{vm}' was ever here");
            return Err(api::Failure::new(StatusCode::NOT_FOUND, reason));
        }
        match folder::part(&path.join(what.file()), from, PART) {
            Ok((bytes, next)) => Ok(said(&Part {
                text: String::from_utf8_lossy(&bytes).into_owned(),
                next,
            })),
            Err(e) => {
                let status = StatusCode::SERVICE_UNAVAILABLE;
                Err(api::Failure::new(status, e.to_string()))
            }
        }
    }
}

/// Reads a part of a replica's file at the host at `address`: from byte `from` on, or the last of it. What is there, and
/// from where on the next part is.
///
/// # Errors
/// If the host cannot be reached, or has none.
pub fn read(
    address: &str,
    security: &Security,
    vm: &VmId,
    what: What,
    from: Option<u64>,
) -> Outcome<(String, u64)> {
    let failed =
        |why: &dyn std::fmt::Display| Failure::new(format!("the host at {address}: {why}"));
    let client = api::Client::new(address, REPLY_MAX).map_err(|e| failed(&e))?;
    let client = client.secured(security.clone()).of_host();
    let query = from.map_or_else(String::new, |from| format!("?from={from}"));
    let path = format!("/v1/replicas/{vm}/{}{query}", what.name());
    let reply = client
        .with_timeout(TIMEOUT)
        .call(Method::GET, &path, None::<&()>)
        .map_err(|e| failed(&e))?;
    if reply.status != 200 {
        let error = error_of(&reply.body);
        let error = error.unwrap_or_else(|| format!("status {}", reply.status));
        return Err(failed(&error));
    }
    let Part { text, next } = serde_json::from_slice(&reply.body).map_err(|e| failed(&e))?;
    Ok((text, next))
}
