//! How a process protects its connections.

use crate::TlsError;
use crate::folder::Tls;
use crate::peer::{Peer, Role};
use crate::session::{Session, said_of};
use crate::stream::Stream;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Says whether the other end of a connection is whom it is to be, or why not.
pub type Check = dyn Fn(&Peer) -> Result<(), String> + Send + Sync;

/// How a process protects its connections: all of them in one way.
#[derive(Clone, Debug, Default)]
pub enum Security {
    /// Mutual TLS, with this identity.
    Tls(Arc<Tls>),
    /// Plaintext, and only within this machine: over loopback.
    #[default]
    Loopback,
    /// Plaintext to everywhere. Its operator has asked for that.
    Insecure,
}

impl Security {
    /// Whether connections to and from `address` are allowed.
    ///
    /// # Errors
    /// [`TlsError::Plaintext`].
    pub fn permit(&self, address: IpAddr) -> Result<(), TlsError> {
        match self {
            Self::Loopback if !address.to_canonical().is_loopback() => {
                Err(TlsError::Plaintext { address })
            }
            Self::Tls(_) | Self::Loopback | Self::Insecure => Ok(()),
        }
    }

    /// The connection over `socket`, which this side has made to a member in `role` that passes `check`. Keys are
    /// agreed on when it is first used, or by [`Stream::handshake`].
    ///
    /// # Errors
    /// If it would be plaintext and must not be.
    pub fn call(
        &self,
        socket: TcpStream,
        role: Role,
        check: impl Fn(&Peer) -> Result<(), String> + Send + Sync + 'static,
    ) -> io::Result<Stream> {
        self.permit_peer(&socket)?;
        let Self::Tls(tls) = self else {
            return Ok(socket.into());
        };
        let connection = tls.client(role).map_err(failed)?;
        let session = Session::new(connection, Box::new(check));
        Ok(Stream::secret(socket, session))
    }

    /// The connection over `socket`, which the other side has made and which passes `check`; keys as for
    /// [`Self::call`].
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn answer(
        &self,
        socket: TcpStream,
        check: impl Fn(&Peer) -> Result<(), String> + Send + Sync + 'static,
    ) -> io::Result<Stream> {
        self.permit_peer(&socket)?;
        let Self::Tls(tls) = self else {
            return Ok(socket.into());
        };
        let connection = tls.server().map_err(failed)?;
        let session = Session::new(connection, Box::new(check));
        Ok(Stream::secret(socket, session))
    }

    fn permit_peer(&self, socket: &TcpStream) -> io::Result<()> {
        let peer = socket.peer_addr()?.ip();
        let permitted = self.permit(peer);
        permitted.map_err(|e| io::Error::new(ErrorKind::PermissionDenied, e))
    }

    /// This process's identity, if it has one.
    #[must_use]
    pub fn identity(&self) -> Option<Peer> {
        match self {
            Self::Tls(tls) => Some(tls.own()),
            Self::Loopback | Self::Insecure => None,
        }
    }
}

fn failed(error: rustls::Error) -> io::Error {
    io::Error::other(said_of(&error))
}

/// Who was turned away, counted; and when it is time to say so again, so that nobody fills a log by calling.
#[derive(Debug, Default)]
pub struct Strangers {
    count: AtomicU64,
    told: std::sync::Mutex<Option<Instant>>,
}

/// Least time between two lines about strangers.
const QUIET: Duration = Duration::from_secs(1);

impl Strangers {
    /// How many were turned away.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// One more was turned away. How many that makes, if it is to be told of.
    pub fn add(&self) -> Option<u64> {
        let count = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        let mut told = self
            .told
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let now = Instant::now();
        if told.is_some_and(|told| now.duration_since(told) < QUIET) {
            return None;
        }
        *told = Some(now);
        Some(count)
    }
}
