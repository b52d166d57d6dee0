//! One member of a cluster: its connection, which is kept, and what its answers mean.

use super::settings::{Login, Settings};
use super::wire::{Authenticate, Authenticated, Refusal, Reply, Txn};
use crate::ArbiterError;
use api::Addresses;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::error::Error as _;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::unversioned::transport::DefaultConnector;

/// Longest reply that is read, in bytes: one key and one value, and what etcd says about them.
const REPLY_MAX: u64 = 64 << 10;
/// Longest header of a reply, in bytes.
const HEADER_MAX: usize = 16 << 10;
/// Longest text of a member's that is repeated, in characters.
const TEXT_MAX: usize = 200;
/// Longest token, in bytes. One that etcd signs itself (JWT) has some hundred.
const TOKEN_MAX: usize = 4096;

/// Shortest time a member is given.
const QUICK: Duration = Duration::from_millis(250);
/// How often as long as it last took to answer a member is given while others are there to be asked.
const TIMES_USUAL: u64 = 8;

/// gRPC's numbers for what went wrong, of those that matter here.
mod code {
    pub(super) const DEADLINE_EXCEEDED: u32 = 4;
    pub(super) const PERMISSION_DENIED: u32 = 7;
    pub(super) const RESOURCE_EXHAUSTED: u32 = 8;
    pub(super) const UNAVAILABLE: u32 = 14;
    pub(super) const UNAUTHENTICATED: u32 = 16;
}

/// Why a member gave no answer.
#[derive(Debug)]
pub(super) enum Failed {
    /// It may give one when it is asked again, or another member may.
    Passing(String),
    /// Asking again changes nothing.
    Lasting(ArbiterError),
    /// The token it was shown is no more.
    StaleToken(String),
}

/// One member.
pub(super) struct Member {
    address: String,
    url: String,
    agent: ureq::Agent,
    /// Where the CA's certificates were read, if it is asked by TLS.
    ca: Option<PathBuf>,
    login: Option<Login>,
    /// What keys begin with, for a user that may not read or write them.
    prefix: String,
    token: Mutex<Option<Arc<str>>>,
    /// How long it took to answer last, in microseconds; 0: it never has.
    usual_us: AtomicU64,
}

/// Neither its token nor this host's key.
impl fmt::Debug for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Member({})", self.url)
    }
}

impl Member {
    /// The member at `address` (`HOST:PORT`); does not connect yet.
    pub(super) fn new(address: &str, settings: &Settings) -> Self {
        let tls = settings.tls.as_ref();
        let scheme = tls.map_or("http", |_| "https");
        Self {
            address: address.into(),
            url: format!("{scheme}://{address}"),
            agent: agent(settings),
            ca: tls.map(|tls| tls.ca.clone()),
            login: settings.login.clone(),
            prefix: settings.prefix.clone(),
            token: Mutex::default(),
            usual_us: AtomicU64::new(0),
        }
    }

    /// Its address.
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// How long to wait for it before another member is asked, by how long it took last; none if it never
    /// answered.
    pub(super) fn quick(&self) -> Option<Duration> {
        match self.usual_us.load(Ordering::Relaxed) {
            0 => None,
            us => Some(QUICK.max(Duration::from_micros(us.saturating_mul(TIMES_USUAL)))),
        }
    }

    /// Has it carry out `txn`.
    ///
    /// # Errors
    /// [`Failed`]. Whether the transaction was carried out, or will be, is unknown.
    pub(super) fn txn(&self, txn: &Txn, until: Instant) -> Result<Reply, Failed> {
        let began = Instant::now();
        let reply: Reply = match self.ask_as_user(txn, until) {
            Err(Failed::StaleToken(_)) => self.ask_as_user(txn, until),
            reply => reply,
        }
        .map_err(|failed| match failed {
            Failed::StaleToken(text) => self.refused(format!("it takes no token it gave: {text}")),
            failed => failed,
        })?;
        if !reply.is_whole() {
            return Err(self.is_no_etcd("its reply to a transaction is none"));
        }
        let took = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.usual_us.store(took.max(1), Ordering::Relaxed);
        Ok(reply)
    }

    fn ask_as_user(&self, txn: &Txn, until: Instant) -> Result<Reply, Failed> {
        let token = match &self.login {
            Some(login) => Some(self.token(login, until)?),
            None => None,
        };
        let reply = self.ask("/v3/kv/txn", txn, token.as_deref(), until);
        if matches!(reply, Err(Failed::StaleToken(_))) {
            // Unless another call has a newer one by now.
            self.known_token()
                .take_if(|known| Some(&*known) == token.as_ref());
        }
        reply
    }

    /// What shows that a user asks. etcd makes it for a password, and forgets it when it is started anew, or when
    /// it was not shown for five minutes.
    fn token(&self, login: &Login, until: Instant) -> Result<Arc<str>, Failed> {
        // Not locked while the member is asked: two calls at a time get a token each, and none waits for the other.
        if let Some(token) = &*self.known_token() {
            return Ok(Arc::clone(token));
        }
        let password = login.password().map_err(Failed::Lasting)?;
        let asked = Authenticate {
            name: &login.user,
            password: &password,
        };
        let given: Authenticated = self.ask("/v3/auth/authenticate", &asked, None, until)?;
        let sound = |b: u8| b.is_ascii_graphic();
        if given.token.len() > TOKEN_MAX || !given.token.bytes().all(sound) {
            return Err(self.is_no_etcd("the token it gives is none"));
        }
        Ok(Arc::clone(self.known_token().insert(given.token.into())))
    }

    fn known_token(&self) -> MutexGuard<'_, Option<Arc<str>>> {
        self.token.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends `body` to `path`, and reads the answer.
    fn ask<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
        token: Option<&str>,
        until: Instant,
    ) -> Result<T, Failed> {
        let began = Instant::now();
        let left = until.saturating_duration_since(began);
        if left.is_zero() {
            return Err(Failed::Passing("no time was left to ask it".into()));
        }
        let bytes = serde_json::to_vec(body).expect("structs of text are JSON");
        let sent = self
            .agent
            .post(format!("{}{path}", self.url))
            .config()
            .timeout_global(Some(left))
            .build()
            .header("Content-Type", "application/json");
        let sent = match token {
            Some(token) => sent.header("Authorization", token),
            None => sent,
        };
        let mut reply = sent.send(&bytes[..]).map_err(|e| self.broken(e, left))?;
        let status = reply.status().as_u16();
        let said = reply
            .body_mut()
            .with_config()
            .limit(REPLY_MAX)
            .read_to_vec();
        let said = said.map_err(|e| self.broken(e, left))?;
        match status {
            200 => serde_json::from_slice(&said)
                .map_err(|e| self.is_no_etcd(&format!("its reply is none: {e}"))),
            _ => Err(self.refusal(status, &said)),
        }
    }

    /// What a reply that is no success means.
    fn refusal(&self, status: u16, said: &[u8]) -> Failed {
        let Ok(refusal) = serde_json::from_slice::<Refusal>(said) else {
            let said = one_line(&String::from_utf8_lossy(said));
            return match (status, &self.ca) {
                (404, _) => self.is_no_etcd("it has no /v3 (etcd has, since version 3.4, with enable-grpc-gateway)"),
                (400, None) if said.contains("HTTPS") => {
                    self.is_no_etcd("it is asked by HTTP and speaks HTTPS: give ca=FILE")
                }
                (400, Some(_)) if said.contains("CommonName of client") => self.refused(
                    "where users are enabled it takes no client certificate with a common name: make cert=FILE \
                     one without"
                        .into(),
                ),
                _ => self.is_no_etcd(&format!("it says {status} {said}")),
            };
        };
        let text = one_line(refusal.text());
        let about = |part: &str| text.contains(part);
        let user = self.login.as_ref().map_or("", |login| &login.user);
        match refusal.code {
            _ if about("invalid auth token") || about("revision of auth store is old") => {
                Failed::StaleToken(text)
            }
            code::UNAUTHENTICATED => Failed::StaleToken(text),
            _ if about("user name is empty") => {
                self.refused("it lets nobody in without user= and a password".into())
            }
            _ if about("invalid user ID or password") => {
                self.refused(format!("user '{user}' or its password is wrong"))
            }
            _ if about("authentication is not enabled") => self.refused(format!(
                "authentication is not enabled there, so that everybody is let in: enable it, or leave out \
                 user={user}"
            )),
            code::PERMISSION_DENIED => self.refused(format!(
                "user '{user}' may not read and write all keys that begin with {}",
                self.prefix
            )),
            code::RESOURCE_EXHAUSTED if about("space exceeded") => {
                Failed::Lasting(ArbiterError::StoreFailed {
                    arbiter: self.address.clone(),
                    reason: "etcd's database is full (alarm NOSPACE): compact and defragment it, or raise its \
                             quota, and disarm the alarm"
                        .into(),
                })
            }
            // Its gateway connects to itself, as a client.
            code::UNAVAILABLE if self.ca.is_some() && about("connection closed") => {
                Failed::Passing(format!(
                    "{text} (with --client-cert-auth its own certificate must have the use clientAuth, too)"
                ))
            }
            code::DEADLINE_EXCEEDED | code::RESOURCE_EXHAUSTED | code::UNAVAILABLE => {
                Failed::Passing(text)
            }
            _ if status >= 500 => Failed::Passing(text),
            _ => self.refused(text),
        }
    }

    /// What a failure of the connection means.
    fn broken(&self, error: ureq::Error, limit: Duration) -> Failed {
        if let Some(tls) = tls_failure(&error) {
            return self.tls_failed(tls);
        }
        match error {
            ureq::Error::Timeout(_) => Failed::Passing(no_answer(limit)),
            ureq::Error::HostNotFound => Failed::Passing("no host has this name".into()),
            ureq::Error::Io(e) => Failed::Passing(match e.kind() {
                io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => no_answer(limit),
                // Where TLS is 1.3 a client's certificate is refused when the client is done with its handshake:
                // whether it reads so, or finds that it cannot write, is up to chance.
                io::ErrorKind::UnexpectedEof
                | io::ErrorKind::BrokenPipe
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::ConnectionAborted => self.closed(),
                _ => one_line(&e.to_string()),
            }),
            // A reply that is cut off, among others.
            ureq::Error::Protocol(e) => Failed::Passing(format!(
                "its reply is no HTTP, or was cut off: {}",
                one_line(&e.to_string())
            )),
            error => self.is_no_etcd(&one_line(&error.to_string())),
        }
    }

    /// What to say of a connection that was closed.
    fn closed(&self) -> String {
        let closed = "it closed the connection before answering";
        // As etcd does where it expects TLS, or expects none.
        let hint = match &self.ca {
            _ if self.usual_us.load(Ordering::Relaxed) > 0 => "",
            None => " (if it speaks HTTPS, give ca=FILE)",
            Some(_) => {
                " (if it wants a certificate, look at cert=FILE and key=FILE; if it speaks HTTP, leave out ca=FILE)"
            }
        };
        format!("{closed}{hint}")
    }

    fn tls_failed(&self, error: &rustls::Error) -> Failed {
        use rustls::{AlertDescription as Alert, CertificateError as Certificate, Error};
        let ca = self.ca.as_deref().unwrap_or(std::path::Path::new(""));
        match error {
            Error::InvalidCertificate(
                Certificate::NotValidForName | Certificate::NotValidForNameContext { .. },
            ) => self.refused("its certificate is for another host".into()),
            Error::InvalidCertificate(
                Certificate::Expired
                | Certificate::ExpiredContext { .. }
                | Certificate::NotValidYet
                | Certificate::NotValidYetContext { .. },
            ) => self.refused("its certificate is not valid now: look at its dates, and at the clock".into()),
            Error::InvalidCertificate(why) => self.refused(format!(
                "its certificate is none that the CA in {} vouches for ({})",
                ca.display(),
                one_line(&why.to_string())
            )),
            Error::AlertReceived(
                Alert::CertificateRequired
                | Alert::BadCertificate
                | Alert::UnknownCA
                | Alert::CertificateUnknown
                | Alert::CertificateExpired
                | Alert::UnsupportedCertificate,
            ) => self.refused(
                "it takes no client without a certificate of its CA: look at cert=FILE and key=FILE".into(),
            ),
            Error::InvalidMessage(_) => {
                self.is_no_etcd("it is asked by HTTPS and speaks HTTP: leave out ca=FILE")
            }
            error => self.refused(format!("TLS failed: {}", one_line(&error.to_string()))),
        }
    }

    fn refused(&self, reason: String) -> Failed {
        Failed::Lasting(ArbiterError::Refused {
            arbiter: self.address.clone(),
            reason,
        })
    }

    fn is_no_etcd(&self, reason: &str) -> Failed {
        Failed::Lasting(ArbiterError::Protocol {
            arbiter: self.address.clone(),
            reason: reason.into(),
        })
    }
}

/// What asks a member, by these settings alone: no proxy that the environment names, no redirection.
fn agent(settings: &Settings) -> ureq::Agent {
    // Without TLS nothing is vouched for, and nothing is asked by it either.
    let mut tls = TlsConfig::builder()
        .root_certs(RootCerts::new_with_certs(&[]))
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()));
    if let Some(wanted) = &settings.tls {
        tls = tls
            .root_certs(wanted.roots.clone())
            .client_cert(wanted.client.clone());
    }
    let config = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .https_only(settings.tls.is_some())
        .tls_config(tls.build())
        .proxy(None)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .max_response_header_size(HEADER_MAX)
        .max_idle_connections(2)
        .max_idle_connections_per_host(2)
        // A member keeps them for as long as it runs.
        .max_idle_age(Duration::from_secs(3600))
        .build();
    ureq::Agent::with_parts(config, DefaultConnector::default(), Addresses)
}

/// The failure of TLS that `error` is, or was made of.
fn tls_failure(error: &ureq::Error) -> Option<&rustls::Error> {
    match error {
        ureq::Error::Rustls(error) => Some(error),
        ureq::Error::Io(error) => {
            let mut inner: Option<&(dyn std::error::Error + 'static)> =
                error.get_ref().map(|inner| inner as _);
            while let Some(error) = inner {
                if let Some(tls) = error.downcast_ref() {
                    return Some(tls);
                }
                inner = error.source();
            }
            None
        }
        error => error.source().and_then(|inner| inner.downcast_ref()),
    }
}

fn no_answer(limit: Duration) -> String {
    format!("no answer within {} ms", limit.as_micros().div_ceil(1000))
}

/// `text`, which may be anything, as a part of a line.
fn one_line(text: &str) -> String {
    let words = text.split(|c: char| c.is_control() || c.is_whitespace());
    let words: Vec<_> = words.filter(|word| !word.is_empty()).collect();
    let line = words.join(" ");
    match line.char_indices().nth(TEXT_MAX) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line,
    }
}
