//! HTTP with JSON, as arbiter, viewservice and replicas speak it: a bounded server of an axum router, a blocking
//! client with time limits, and what a server tells of itself (`/metrics`, `/healthz`).
//!
//! ```text
//!   client: PUT /v1/flags/web/3          {"store":"51d3..","who":"host-b.771"}
//!   server: 200                          {"verdict":"won"}
//!           409 (403, 404, 503, ..)      {"error":"what stands in the way, for a person"}
//! ```
//!
//! Security is the process's ([`tls::Security`]): mutual TLS, or plaintext within this machine. A handler is told who
//! asks ([`Asker`]). Every quantity a peer controls is bounded. All paths are in `docs/API.md`.
//!
//! # Example
//!
//! A server that says who asks it, and one call.
//!
//! ```
//! use api::{Asker, Client, Limits, Method, Stats, serve};
//! use axum::{Extension, Router, routing::get};
//! use std::sync::Arc;
//!
//! async fn who(Extension(asker): Extension<Asker>) -> axum::Json<String> {
//!     axum::Json(asker.to_string())
//! }
//!
//! let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
//! let reply = runtime.block_on(async {
//!     let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
//!     let address = listener.local_addr()?.to_string();
//!     // Calls block.
//!     let call = tokio::task::spawn_blocking(move || {
//!         let client = Client::new(&address, 1024).expect("an address");
//!         client.call(Method::GET, "/v1/who", None::<&()>)
//!     });
//!     let mut reply = None;
//!     let called = async { reply = Some(call.await) };
//!     let router = Router::new().route("/v1/who", get(who));
//!     let limits = Limits::for_bodies(1024);
//!     serve(listener, tls::Security::Loopback, limits, router, Arc::new(Stats::default()), called).await;
//!     Ok::<_, std::io::Error>(reply.expect("it served until there was one"))
//! })???;
//! assert_eq!((reply.status, reply.body.as_slice()), (200, &br#""127.0.0.1""#[..]));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod asker;
mod client;
mod failure;
mod page;
mod server;
mod stats;

pub use asker::Asker;
pub use client::{Addresses, CallError, Client, Reply, check_address};
pub use failure::{Failure, error_of, read, said};
pub use page::{MetricKind, Page, Seconds};
pub use server::{Kind, Limits, serve};
pub use stats::{BOUNDS_US, Histogram, Stats};
pub use ureq::http::{Method, StatusCode};
