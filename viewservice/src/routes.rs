//! The service's paths.

use crate::metrics;
use crate::protocol::{Reply, Request};
use crate::server::Service;
use api::{Asker, Failure, Kind, StatusCode, said};
use axum::body::{Body, Bytes};
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, Method, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Router};
use http_body_util::channel::Channel;
use serde_json::Map;
use std::sync::Arc;

type Shared = State<Arc<Service>>;
type Answer = Result<Response, Failure>;

/// All of them.
pub(crate) fn router(service: Arc<Service>) -> Router {
    Router::new()
        .route(
            "/",
            get(|| file("text/html; charset=utf-8", include_str!("page/index.html"))),
        )
        .route(
            "/page.css",
            get(|| file("text/css", include_str!("page/page.css"))),
        )
        .route(
            "/page.js",
            get(|| file("text/javascript", include_str!("page/page.js"))),
        )
        .route("/v1/history", get(history))
        .route("/v1/watch", get(watch))
        .route("/v1/{op}", get(operation).post(operation))
        .route("/healthz", get(health))
        .route("/metrics", get(show_metrics))
        .with_state(service)
}

/// An operation: [`Request`] says which there are.
async fn operation(
    State(service): Shared,
    Extension(asker): Extension<Asker>,
    op: Result<Path<String>, PathRejection>,
    method: Method,
    headers: HeaderMap,
    body: Bytes,
) -> Answer {
    let Path(op) = op.map_err(|e| Failure::bad(e.body_text()))?;
    let by_get = method != Method::POST;
    let rest = match by_get {
        true => Map::new(),
        false => api::read(&headers, &body)?,
    };
    let request = Request::of_parts(&op, rest).map_err(Failure::bad)?;
    if request.reads() != by_get {
        let method = if by_get { "POST" } else { "GET" };
        let error = format!("{op} is asked by {method}");
        return Err(Failure::new(StatusCode::METHOD_NOT_ALLOWED, error));
    }
    let answer = move |service: &Service| match service.answer(&asker, request)? {
        Reply::Refused { reason } => Err(Failure::new(StatusCode::CONFLICT, reason)),
        Reply::Failed { reason } => Err(Failure::new(StatusCode::SERVICE_UNAVAILABLE, reason)),
        reply => Ok(said(&reply)),
    };
    let answered = blocking(service, answer).await;
    // Now it is known to be one of a few.
    let mut response = answered.into_response();
    response.extensions_mut().insert(Kind(op));
    Ok(response)
}

/// A file of the page for a browser. It takes nothing from anywhere else, and is shown in no other page.
async fn file(kind: &'static str, text: &'static str) -> Response {
    let policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; frame-ancestors 'none'";
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, policy),
    ];
    (headers, text).into_response()
}

/// What was seen until now.
async fn history(State(service): Shared) -> Answer {
    let json = [(header::CONTENT_TYPE, "application/json")];
    let look = move |service: &Service| match service.history() {
        Ok(history) => Ok((json, history).into_response()),
        Err(error) => {
            let error = error.to_string();
            Err(Failure::new(StatusCode::SERVICE_UNAVAILABLE, error))
        }
    };
    blocking(service, look).await
}

/// What is so, each second, for as long as somebody listens.
async fn watch(State(service): Shared) -> Response {
    let mut events = service.events.subscribe();
    let (mut tell, body) = Channel::<Bytes>::new(1);
    tokio::spawn(async move {
        while events.changed().await.is_ok() {
            let event = Bytes::copy_from_slice(events.borrow_and_update().as_bytes());
            if tell.send_data(event).await.is_err() {
                return;
            }
        }
    });
    let kind = [(header::CONTENT_TYPE, "text/event-stream")];
    (kind, Body::new(body)).into_response()
}

/// Whether the views can be kept.
async fn health(State(service): Shared) -> Answer {
    let look = |service: &Service| match service.status() {
        Ok(_) => Ok("ok\n".into_response()),
        Err(error) => {
            let error = error.to_string();
            Err(Failure::new(StatusCode::SERVICE_UNAVAILABLE, error))
        }
    };
    blocking(service, look).await
}

async fn show_metrics(State(service): Shared) -> Answer {
    let show = |service: &Service| match service.status() {
        Ok(status) => Ok(metrics::page(&status, &service.stats).into_response()),
        Err(error) => {
            let error = error.to_string();
            Err(Failure::new(StatusCode::SERVICE_UNAVAILABLE, error))
        }
    };
    blocking(service, show).await
}

/// Does `what` where it may block.
async fn blocking(
    service: Arc<Service>,
    what: impl FnOnce(&Service) -> Answer + Send + 'static,
) -> Answer {
    let done = tokio::task::spawn_blocking(move || what(&service));
    done.await.unwrap_or_else(|panic| {
        tracing::error!(%panic, "no answer");
        let error = "a bug: see the viewservice's own output";
        Err(Failure::new(StatusCode::INTERNAL_SERVER_ERROR, error))
    })
}
