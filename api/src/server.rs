//! A bounded server: every peer-controlled quantity has a limit, and what a peer sends, or does not send, can cost it
//! its own connection, nothing else.

mod crowd;
mod seat;

use crate::asker::Asker;
use crate::client::HOST;
use crate::failure::Failure;
use crate::stats::Stats;
use axum::Router;
use axum::body::Body;
use axum::extract::MatchedPath;
use axum::http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use crowd::Crowd;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use seat::{Seat, Watched};
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tls::{Peer, Security};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;

/// Longest head of a request, in bytes. What hyper reads at a time, too, of a body.
const HEAD_MAX: usize = 16 << 10;
/// What hyper takes for a head at least.
const _: () = assert!(HEAD_MAX >= 8192);

/// What a server grants its peers.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Longest body of a request, in bytes.
    pub body: usize,
    /// Connections at once. When more come, the least useful is closed (`server/crowd.rs`).
    pub connections: usize,
    /// Bytes of unfinished requests of all peers together. Beyond, the slowest are closed.
    pub unread: usize,
    /// How long a peer may be connected before its first request begins.
    pub silent: Duration,
    /// How long a peer that has asked something may wait until it asks again.
    pub idle: Duration,
    /// How long a request may take from its first byte to its last, and a reply to be taken.
    pub transfer: Duration,
}

impl Limits {
    /// For bodies of at most `body` bytes: as many connections as a daemon keeps for replicas that stay connected, and
    /// times in which they ask again.
    #[must_use]
    pub const fn for_bodies(body: usize) -> Self {
        Self {
            body,
            connections: 2048,
            unread: 32 << 20,
            silent: Duration::from_secs(5),
            idle: Duration::from_secs(60),
            transfer: Duration::from_secs(2),
        }
    }
}

/// What a request was, for those who count them: an extension of its response. Without it, its path is.
#[derive(Clone, Debug)]
pub struct Kind(pub String);

/// Serves `router` until `shutdown` ends, to whoever `security` lets in; then requests already being answered are, and
/// all is closed. Requests are counted in `stats`.
///
/// A handler finds in the request's extensions who asks ([`Asker`]), and a body that is whole.
pub async fn serve(
    listener: TcpListener,
    security: Security,
    limits: Limits,
    router: Router,
    stats: Arc<Stats>,
    shutdown: impl Future<Output = ()>,
) {
    let nowhere = |what| async move { Failure::new(StatusCode::NOT_FOUND, what) };
    let router = router
        .method_not_allowed_fallback(|| async {
            let error = "not by this method: see docs/API.md";
            Failure::new(StatusCode::METHOD_NOT_ALLOWED, error)
        })
        .fallback(move || nowhere("there is no such path here: see docs/API.md"))
        .layer(from_fn(remember_path));
    let crowd = Mutex::new(Crowd::new(limits.connections, limits.unread));
    let room = Arc::new(Room {
        limits,
        crowd,
        security,
        router,
        stats,
    });
    let (closing, closed) = watch::channel(false);
    let mut tasks = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    if let Err(error) = room.security.permit(peer.ip()) {
                        room.turn_away(peer.ip(), &error.to_string());
                        continue;
                    }
                    let Some(seat) = Seat::take(&room, peer.ip()) else {
                        tracing::warn!(%peer, "turned away: all connections are being answered");
                        continue;
                    };
                    let (room, closed) = (Arc::clone(&room), closed.clone());
                    tasks.spawn(async move {
                        if let Err(error) = room.seat(seat, stream, closed).await {
                            tracing::debug!(%peer, %error, "connection ended");
                        }
                    });
                }
                Err(error) => {
                    // Out of descriptors, most likely: a connection must end before another can begin.
                    tracing::warn!(%error, "cannot accept a connection");
                    room.crowd().push_out();
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            },
            Some(_) = tasks.join_next() => {}
        }
    }
    drop(listener);
    let _ = closing.send(true);
    while tasks.join_next().await.is_some() {}
}

/// Has the response say which of the router's paths it is of.
async fn remember_path(request: axum::extract::Request, next: Next) -> Response {
    let path = request.extensions().get::<MatchedPath>().cloned();
    let mut response = next.run(request).await;
    let extensions = response.extensions_mut();
    if let (Some(path), None) = (path, extensions.get::<Kind>()) {
        extensions.insert(Kind(path.as_str().to_owned()));
    }
    response
}

/// Where all connections are.
struct Room {
    limits: Limits,
    crowd: Mutex<Crowd>,
    security: Security,
    router: Router,
    stats: Arc<Stats>,
}

impl Room {
    /// Notes that somebody is not let in.
    fn turn_away(&self, peer: IpAddr, why: &str) {
        if let Some(so_far) = self.stats.strangers.add() {
            tracing::warn!(%peer, so_far, why, "a stranger was turned away");
        }
    }

    fn crowd(&self) -> MutexGuard<'_, Crowd> {
        self.crowd.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One connection, to its end.
    async fn seat(
        self: Arc<Self>,
        seat: Arc<Seat>,
        stream: TcpStream,
        mut closed: watch::Receiver<bool>,
    ) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let Security::Tls(tls) = &self.security else {
            return self.converse(seat, stream, None, closed).await;
        };
        let accepting = TlsAcceptor::from(tls.server_config()).accept(stream);
        let accepted = tokio::select! {
            accepted = timeout(self.limits.silent, accepting) => accepted?,
            () = seat.has_to_go() => return Ok(()),
            _ = closed.wait_for(|closed| *closed) => return Ok(()),
        };
        let known = accepted
            .map_err(|e| tls::said(&e))
            .and_then(|stream| Ok((Peer::shown(stream.get_ref().1.peer_certificates())?, stream)));
        match known {
            Ok((peer, stream)) => self.converse(seat, stream, Some(peer), closed).await,
            Err(why) => {
                self.turn_away(seat.peer, &why);
                Ok(())
            }
        }
    }

    /// What is said on one connection, to its end.
    async fn converse(
        self: Arc<Self>,
        seat: Arc<Seat>,
        stream: impl AsyncRead + AsyncWrite + Unpin,
        identity: Option<Peer>,
        mut closed: watch::Receiver<bool>,
    ) -> io::Result<()> {
        let address = seat.peer;
        let asker = Asker { address, identity };
        let io = TokioIo::new(Watched::new(stream, Arc::clone(&seat)));
        let service = service_fn(|request| {
            let (room, seat, asker) = (Arc::clone(&self), Arc::clone(&seat), asker.clone());
            async move { Ok::<_, Infallible>(room.answer(&seat, asker, request).await) }
        });
        let mut http = http1::Builder::new();
        // Times are `Watched`'s; a peer may close its direction when it has asked.
        let http = http.header_read_timeout(None).half_close(true);
        let connection = http.max_buf_size(HEAD_MAX).serve_connection(io, service);
        let mut connection = pin!(connection);
        tokio::select! {
            ended = connection.as_mut() => return ended.map_err(io::Error::other),
            () = seat.has_to_go() => return Ok(()),
            _ = closed.wait_for(|closed| *closed) => {}
        }
        if seat.streams() {
            return Ok(());
        }
        connection.as_mut().graceful_shutdown();
        tokio::select! {
            ended = connection => ended.map_err(io::Error::other),
            () = seat.has_to_go() => Ok(()),
        }
    }

    async fn answer(&self, seat: &Seat, asker: Asker, request: Request<Incoming>) -> Response {
        let (mut head, body) = request.into_parts();
        let method = head.method.clone();
        let body = self.read(&head.headers, body).await;
        seat.asked();
        let began = Instant::now();
        let meant = body.and_then(|body| {
            self.is_meant(&head.headers)?;
            Ok(body)
        });
        let mut response = match meant {
            Ok(body) => {
                head.extensions.insert(asker);
                let request = Request::from_parts(head, Body::from(body));
                let answered = self.router.clone().oneshot(request).await;
                answered.unwrap_or_else(|never| match never {})
            }
            Err(failure) => failure.into_response(),
        };
        let headers = response.headers_mut();
        // What is asked for is of now, and is what it says it is.
        let never = HeaderValue::from_static("no-store");
        headers.entry(header::CACHE_CONTROL).or_insert(never);
        let exactly = HeaderValue::from_static("nosniff");
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, exactly);
        let kind = headers.get(header::CONTENT_TYPE);
        let streams = kind.is_some_and(|kind| kind == "text/event-stream");
        let kind = response.extensions().get::<Kind>();
        let kind = kind.map_or("other", |kind| &kind.0);
        let status = response.status().as_u16();
        self.stats.count(&method, kind, status, began.elapsed());
        seat.answered(streams);
        response
    }

    /// The whole body.
    async fn read(&self, headers: &HeaderMap, body: Incoming) -> Result<Vec<u8>, Failure> {
        let max = self.limits.body;
        let too_long = || {
            let error = format!("a body is at most {max} bytes");
            Failure::new(StatusCode::PAYLOAD_TOO_LARGE, error)
        };
        let length = headers.get(header::CONTENT_LENGTH);
        let length = length.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        let mut body = Limited::new(body, max);
        let mut whole = Vec::new();
        let mut fits = length.is_none_or(|length| length <= max as u64);
        let mut rest = max;
        while let Some(frame) = body.frame().await {
            match frame {
                Ok(frame) => {
                    let data = frame.into_data().unwrap_or_default();
                    if fits {
                        whole.extend_from_slice(&data);
                    }
                    // Some of what is too long is read and dropped, lest a reset overtake the reply.
                    rest = rest.saturating_sub(data.len());
                }
                Err(error) if error.is::<LengthLimitError>() => fits = false,
                Err(_) => return Err(Failure::bad("its body breaks off")),
            }
            if !fits && rest == 0 {
                break;
            }
        }
        match fits {
            true => Ok(whole),
            false => Err(too_long()),
        }
    }

    /// Whether a request is meant for this server, and not made by a page of another site in somebody's browser: such
    /// a page says where it is from, or was given a name that leads here, which is none of this server's.
    ///
    /// # Errors
    /// 403.
    fn is_meant(&self, headers: &HeaderMap) -> Result<(), Failure> {
        let said = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let host = said(header::HOST).unwrap_or_default();
        if let Some(origin) = headers.get(header::ORIGIN) {
            let own = ["http://", "https://"].map(|scheme| format!("{scheme}{host}"));
            if !own.iter().any(|own| origin.as_bytes() == own.as_bytes()) {
                let error = "a page of another site may not ask here";
                return Err(Failure::new(StatusCode::FORBIDDEN, error));
            }
        }
        if !matches!(self.security, Security::Loopback) || host == HOST {
            return Ok(());
        }
        let uri: Option<axum::http::uri::Authority> = host.parse().ok();
        let name = uri.as_ref().map_or("", |uri| uri.host());
        let bare = name.trim_start_matches('[').trim_end_matches(']');
        if name == "localhost" || bare.parse::<IpAddr>().is_ok() {
            return Ok(());
        }
        let error = "on loopback this server is called 127.0.0.1, [::1] or localhost";
        Err(Failure::new(StatusCode::FORBIDDEN, error))
    }
}
