//! The client: calls within a time limit, each on a connection of its own or on one that is kept.

mod transport;

pub use transport::Addresses;

use serde::Serialize;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tls::Security;
use transport::{Callee, Connect};
use ureq::http::{Method, Request, header};

/// How long one call may take, unless set.
const TIMEOUT: Duration = Duration::from_millis(1000);
/// Longest header of a reply, in bytes.
const HEADER_MAX: usize = 16 << 10;
/// What this client calls the server: no name of a machine's, so that a server can tell it from a page in a browser
/// that was led to it by a name.
pub(crate) const HOST: &str = "tandem";

/// Why a call brought no reply. Whether the request was taken is unknown.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The server cannot be reached, or stopped answering half-way.
    #[error("{0}")]
    Unreachable(String),
    /// What answers there does not speak HTTP.
    #[error("{0}")]
    NotHttp(String),
}

/// A reply.
#[derive(Debug, PartialEq, Eq)]
pub struct Reply {
    /// Its status.
    pub status: u16,
    /// Its body.
    pub body: Vec<u8>,
}

/// Whether `address` is `HOST:PORT`.
///
/// # Errors
/// What is wrong with it.
pub fn check_address(address: &str) -> Result<(), &'static str> {
    let (host, port) = address.rsplit_once(':').ok_or("expected HOST:PORT")?;
    if host.is_empty() || host.contains(|c: char| c.is_whitespace() || "/?#@\\".contains(c)) {
        return Err("expected a host's name or address before the port");
    }
    if !port.parse::<u16>().is_ok_and(|port| port > 0) {
        return Err("expected a port from 1 to 65535");
    }
    Ok(())
}

/// A server, asked over TCP. Clones share the connection that is kept.
#[derive(Clone, Debug)]
pub struct Client {
    address: String,
    timeout: Duration,
    reply_max: u64,
    security: Security,
    callee: Callee,
    agent: ureq::Agent,
    /// A call over the connection that is kept was answered: there may be one.
    warm: Arc<AtomicBool>,
}

impl Client {
    /// The server at `address` (`HOST:PORT`), which replies in at most `reply_max` bytes; does not connect yet.
    ///
    /// # Errors
    /// What is wrong with the address.
    pub fn new(address: &str, reply_max: usize) -> Result<Self, &'static str> {
        check_address(address)?;
        let checked: Result<ureq::http::Uri, _> = format!("http://{address}/").parse();
        checked.map_err(|_| "expected a host's name or address before the port")?;
        let (security, callee) = (Security::default(), Callee::Service);
        Ok(Self {
            address: address.into(),
            timeout: TIMEOUT,
            reply_max: reply_max as u64,
            agent: agent(&security, callee),
            security,
            callee,
            warm: Arc::default(),
        })
    }

    /// Has connections protected as `security` says; else they are plaintext, and within this machine only.
    #[must_use]
    pub fn secured(self, security: Security) -> Self {
        Self {
            agent: agent(&security, self.callee),
            security,
            warm: Arc::default(),
            ..self
        }
    }

    /// Has a host answer there, and not an arbiter or a viewservice.
    #[must_use]
    pub fn of_host(self) -> Self {
        let callee = Callee::Host;
        Self {
            agent: agent(&self.security, callee),
            callee,
            warm: Arc::default(),
            ..self
        }
    }

    /// Limits a call to `timeout` (one second unless set).
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Where the server is.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Asks on a new connection.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<Reply, CallError> {
        let until = Instant::now() + self.timeout;
        let asked = self.request(method, path, body);
        self.send(&agent(&self.security, self.callee), asked, until)
    }

    /// Asks on the connection that was kept by the last such call, and keeps it again. A server whose connections
    /// are all taken, or whose host is slow to accept one, answers it all the same.
    ///
    /// The request may be sent twice, where the connection was lost meanwhile: it must be harmless then.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn call_kept(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<Reply, CallError> {
        let now = Instant::now();
        let asked = self.request(method, path, body);
        if self.warm.load(Ordering::Relaxed) {
            // Half of the time is left for a new one: this one may lead to a host that is gone.
            if let Ok(reply) = self.send(&self.agent, asked.clone(), now + self.timeout / 2) {
                return Ok(reply);
            }
        }
        let reply = self.send(&self.agent, asked, now + self.timeout);
        self.warm.store(reply.is_ok(), Ordering::Relaxed);
        reply
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Request<Vec<u8>> {
        let asked = Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.address))
            .header(header::HOST, HOST);
        let asked = match body {
            Some(_) => asked.header(header::CONTENT_TYPE, "application/json"),
            None => asked,
        };
        let body = body.map(|body| serde_json::to_vec(body).expect("messages are plain JSON"));
        let asked = asked.body(body.unwrap_or_default());
        asked.expect("address and names were checked")
    }

    fn send(
        &self,
        agent: &ureq::Agent,
        asked: Request<Vec<u8>>,
        until: Instant,
    ) -> Result<Reply, CallError> {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(self.no_answer());
        }
        let configured = |asked| {
            let configured = agent.configure_request(asked);
            configured.timeout_global(Some(left)).build()
        };
        let (head, body) = asked.into_parts();
        let sent = if body.is_empty() {
            agent.run(configured(Request::from_parts(head, ())))
        } else {
            let configured = agent.configure_request(Request::from_parts(head, body));
            agent.run(configured.timeout_global(Some(left)).build())
        };
        let mut reply = sent.map_err(|e| self.broken(e))?;
        let status = reply.status().as_u16();
        let body = reply.body_mut().with_config().limit(self.reply_max);
        let body = body.read_to_vec().map_err(|e| self.broken(e))?;
        Ok(Reply { status, body })
    }

    /// What a failure of the connection means.
    fn broken(&self, error: ureq::Error) -> CallError {
        CallError::Unreachable(match error {
            ureq::Error::Timeout(_) => return self.no_answer(),
            ureq::Error::HostNotFound => "no host has this name".into(),
            ureq::Error::BodyExceedsLimit(_) => "too long a reply".into(),
            ureq::Error::Io(e) => match e.kind() {
                io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => return self.no_answer(),
                io::ErrorKind::UnexpectedEof => "it closed the connection before answering".into(),
                _ => tls::said(&e),
            },
            ureq::Error::Protocol(e) => {
                return CallError::NotHttp(format!("its reply is no HTTP: {e}"));
            }
            error => error.to_string(),
        })
    }

    fn no_answer(&self) -> CallError {
        let within = self.timeout.as_millis();
        CallError::Unreachable(format!("no answer within {within} ms"))
    }
}

fn agent(security: &Security, callee: Callee) -> ureq::Agent {
    let config = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .proxy(None)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .max_response_header_size(HEADER_MAX)
        .user_agent(concat!("tandem/", env!("CARGO_PKG_VERSION")))
        .accept("application/json")
        .max_idle_connections(1)
        .max_idle_connections_per_host(1)
        // The server says how long it keeps one.
        .max_idle_age(Duration::from_secs(3600))
        .build();
    let security = security.clone();
    ureq::Agent::with_parts(config, Connect { security, callee }, Addresses)
}
