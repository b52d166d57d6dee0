//! TCP ports of this host, forwarded to the guest.
//!
//! ```text
//!  client ── kernel's TCP ──▶ Connection ──▶ own TCP (tcp.rs) ── switch ── guest
//!         ◀── end, reset ───      │      ◀── end, reset ───
//!                        no buffer of its own: a full one on
//!                        one side stops reading on the other
//! ```
//!
//! The connection to the guest is a TCP connection of its own, so it lives through a failover of the
//! guest: what was lost is sent again.

use super::super::worker::{Worker, is_ready, wait};
use super::connection::Connection;
use super::link::{Link, LinkError};
use super::tcp::Stack;
use crate::backends::Mac;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use smoltcp::socket::tcp::Socket;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

/// A TCP port of this host, and that of the guest it leads to; as text HOST:GUEST, or one number for both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForwardedPort {
    /// This host's.
    pub host: u16,
    /// The guest's.
    pub guest: u16,
}

impl std::str::FromStr for ForwardedPort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let port = |text: &str| match text.parse() {
            Ok(port @ 1u16..) => Ok(port),
            _ => Err(format!("'{text}' is no port: it takes 1 to 65535")),
        };
        let (host, guest) = text.split_once(':').unwrap_or((text, text));
        Ok(Self {
            host: port(host)?,
            guest: port(guest)?,
        })
    }
}

/// The forward's address on the switch.
pub const FORWARD_MAC: Mac = [0x52, 0x54, 0x00, 0x7a, 0x4d, 0xfd];
/// Connections at once, at most; more wait to be accepted. Each is a descriptor, of which a process may
/// have 1024 if nobody says otherwise; the rest are for everything else. It is more than the built-in
/// `kv` takes with its usual memory, so that those beyond hear from it.
pub const CONNECTIONS_MAX: usize = 768;
/// While no connection can be accepted (no descriptors left), it is tried again after so many ms.
const ACCEPT_AGAIN_MS: u16 = 100;

/// Why a port cannot be forwarded.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// The port is taken, or not allowed.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// What listens takes no settings.
    #[error("forward: a listener takes no settings: {0}")]
    Listener(#[source] io::Error),
    /// Port 0, or an address that no guest can have.
    #[error("{0} cannot be a guest's address")]
    Guest(SocketAddrV4),
    /// No switch.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// No thread.
    #[error("forward: cannot start a thread: {0}")]
    Thread(#[source] io::Error),
}

/// Ports of this host that lead to a guest's. On drop, their connections are reset.
#[derive(Debug)]
pub struct Forward {
    addresses: Vec<SocketAddr>,
    _worker: Worker,
}

impl Forward {
    /// Accepts connections at `listen` (port 0: any free one) and passes them on to the guest's `to`, over
    /// the switch at `switch`. One forward per switch: it has the host's address there.
    ///
    /// # Errors
    /// See [`ForwardError`].
    pub fn start(
        switch: &Path,
        listen: SocketAddr,
        to: SocketAddrV4,
    ) -> Result<Self, ForwardError> {
        let failed = |source| ForwardError::Listen {
            address: listen,
            source,
        };
        let listener = TcpListener::bind(listen).map_err(failed)?;
        Self::of(switch, vec![(listener, to)])
    }

    /// Accepts the connections of each listener and passes them on to its place in the guest, over the switch at
    /// `switch`.
    ///
    /// # Errors
    /// See [`ForwardError`].
    pub fn of(
        switch: &Path,
        listeners: Vec<(TcpListener, SocketAddrV4)>,
    ) -> Result<Self, ForwardError> {
        let mut addresses = Vec::new();
        for (listener, to) in &listeners {
            if to.port() == 0 || to.ip().is_unspecified() || to.ip().is_multicast() {
                return Err(ForwardError::Guest(*to));
            }
            let ready = listener.set_nonblocking(true);
            let address = ready.and_then(|()| listener.local_addr());
            addresses.push(address.map_err(ForwardError::Listener)?);
        }
        let link = Link::connect(switch, FORWARD_MAC)?;
        let random = RandomState::new().build_hasher().finish();
        let relay = Relay {
            stack: Stack::new(link, FORWARD_MAC, random),
            listeners,
            connections: Vec::new(),
            may_accept: true,
        };
        let worker =
            Worker::start("forward", move |stop| relay.run(stop)).map_err(ForwardError::Thread)?;
        Ok(Self {
            addresses,
            _worker: worker,
        })
    }

    /// Where it listens; of more than one, the first.
    ///
    /// # Panics
    /// If it was given no listener.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.addresses[0]
    }
}

struct Relay {
    stack: Stack,
    listeners: Vec<(TcpListener, SocketAddrV4)>,
    connections: Vec<Connection>,
    may_accept: bool,
}

impl Relay {
    fn run(mut self, stop: BorrowedFd<'_>) {
        loop {
            self.stack.poll();
            let mut moved = false;
            for connection in &mut self.connections {
                let socket = self.stack.sockets.get_mut::<Socket>(connection.handle);
                moved |= connection.relay(socket);
            }
            if moved {
                self.stack.send();
            }
            self.reap();
            if self.stack.link().2 {
                tracing::warn!("forward: the switch is gone");
                break;
            }
            if !self.wait(stop) {
                break;
            }
        }
        for connection in &mut self.connections {
            connection.reset(self.stack.sockets.get_mut(connection.handle));
        }
        self.stack.send();
    }

    /// Waits until there is something to do, and notes what; `false` when it is time to end.
    fn wait(&mut self, stop: BorrowedFd<'_>) -> bool {
        let mut timeout = match self.stack.delay() {
            None => PollTimeout::NONE,
            // Up to the next millisecond: earlier there would be nothing to do.
            Some(delay) => {
                PollTimeout::try_from(delay.as_micros().div_ceil(1000)).unwrap_or(PollTimeout::MAX)
            }
        };
        if !self.may_accept && (timeout.is_none() || timeout > ACCEPT_AGAIN_MS.into()) {
            timeout = ACCEPT_AGAIN_MS.into();
        }
        let (link, unsent, _) = self.stack.link();
        let mut link_events = PollFlags::POLLIN;
        link_events.set(PollFlags::POLLOUT, unsent);
        let mut fds = vec![
            PollFd::new(stop, PollFlags::POLLIN),
            PollFd::new(link.as_fd(), link_events),
        ];
        let accepting = self.may_accept && self.connections.len() < CONNECTIONS_MAX;
        if accepting {
            let listeners = self.listeners.iter();
            fds.extend(listeners.map(|(own, _)| PollFd::new(own.as_fd(), PollFlags::POLLIN)));
        }
        let first = fds.len();
        fds.extend(self.connections.iter().filter_map(Connection::interest));
        wait(&mut fds, timeout);
        let stopped = is_ready(&fds[0]);
        let called: Vec<bool> = fds[2..first].iter().map(is_ready).collect();
        let ready: Vec<bool> = fds[first..].iter().map(is_ready).collect();
        drop(fds);
        let watched = self
            .connections
            .iter_mut()
            .filter(|c| c.interest().is_some());
        for (connection, _) in watched.zip(ready).filter(|(_, ready)| *ready) {
            connection.set_ready();
        }
        self.may_accept = true;
        for (n, _) in called.iter().enumerate().filter(|(_, called)| **called) {
            self.accept(n);
        }
        !stopped
    }

    /// Accepts what calls at the listener with this number.
    fn accept(&mut self, n: usize) {
        while self.connections.len() < CONNECTIONS_MAX {
            let (listener, to) = (&self.listeners[n].0, self.listeners[n].1);
            match listener.accept() {
                Ok((client, _)) => self.admit(client, to),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::Interrupted | ErrorKind::ConnectionAborted
                    ) => {}
                Err(error) => {
                    tracing::warn!(%error, "forward: a connection cannot be accepted now");
                    self.may_accept = false;
                    return;
                }
            }
        }
    }

    fn admit(&mut self, client: TcpStream, to: SocketAddrV4) {
        let ready = client
            .set_nonblocking(true)
            .and_then(|()| client.set_nodelay(true));
        if let Err(error) = ready {
            tracing::warn!(%error, "forward: a client's socket takes no settings");
            return;
        }
        match self.stack.connect(to) {
            Ok(handle) => self.connections.push(Connection::new(handle, client)),
            Err(error) => tracing::warn!(%error, %to, "forward: no connection"),
        }
    }

    /// Lets go of connections that are over on both sides, after a poll.
    fn reap(&mut self) {
        let (_, unsent, _) = self.stack.link();
        let sockets = &mut self.stack.sockets;
        self.connections.retain(|connection| {
            let socket = sockets.get::<Socket>(connection.handle);
            let done = connection.is_over(socket, unsent);
            if done {
                sockets.remove(connection.handle);
            }
            !done
        });
    }
}

#[cfg(test)]
#[path = "forward_tests.rs"]
mod tests;
