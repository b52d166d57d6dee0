//! Connections for ureq: sockets that are protected as this process's are, and checked at the other end.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use tls::{Peer, Role, Security, Stream};
use ureq::Error;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, Transport,
};

/// Most addresses of one name that are tried.
const ADDRESSES_MAX: usize = 8;
/// Longest time that is reckoned with.
const LONG: Duration = Duration::from_secs(3600);

/// Makes connections.
#[derive(Debug)]
pub(super) struct Connect {
    pub(super) security: Security,
    pub(super) callee: Callee,
}

/// Who is to answer.
#[derive(Clone, Copy, Debug)]
pub(super) enum Callee {
    /// An arbiter or a viewservice.
    Service,
    /// A host, any.
    Host,
}

impl Callee {
    fn role(self) -> Role {
        match self {
            Self::Service => Role::Service,
            Self::Host => Role::Host,
        }
    }

    fn is(self, peer: &Peer) -> Result<(), String> {
        match self {
            Self::Service => peer.is_service(),
            Self::Host if peer.host().is_some() => Ok(()),
            Self::Host => Err(format!("it is {peer}, and no host")),
        }
    }
}

impl Connector for Connect {
    type Out = Open;

    fn connect(&self, to: &ConnectionDetails, _: Option<()>) -> Result<Option<Open>, Error> {
        let deadline = deadline(&to.timeout);
        let timed = |e| timed(e, &to.timeout);
        let socket = connect(&to.addrs, deadline).map_err(timed)?;
        socket.set_nodelay(true)?;
        let callee = self.callee;
        let called = self
            .security
            .call(socket, callee.role(), move |peer| callee.is(peer))?;
        let config = to.config;
        let buffers = LazyBuffers::new(config.input_buffer_size(), config.output_buffer_size());
        Ok(Some(Open {
            stream: called,
            buffers,
            heard: false,
        }))
    }
}

fn connect(addresses: &ResolvedSocketAddrs, deadline: Instant) -> io::Result<TcpStream> {
    let mut last = io::Error::new(ErrorKind::NotFound, "the host has no address");
    for address in addresses {
        match TcpStream::connect_timeout(address, left(deadline)?) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// A connection.
#[derive(Debug)]
pub(super) struct Open {
    stream: Stream,
    buffers: LazyBuffers,
    /// Something came.
    heard: bool,
}

impl Transport for Open {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        let output = &self.buffers.output()[..amount];
        let mut stream = self.stream.using(within(deadline(&timeout)));
        stream.write_all(output).map_err(|e| timed(e, &timeout))
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        let deadline = deadline(&timeout);
        let count = loop {
            let space = self.buffers.input_append_buf();
            match self.stream.using(within(deadline)).read(space) {
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                read => break read.map_err(|e| timed(e, &timeout))?,
            }
        };
        if !self.heard && tls::is_tls(&self.buffers.input_append_buf()[..count]) {
            let why = "it speaks TLS: give --tls DIR";
            return Err(io::Error::other(why).into());
        }
        self.heard |= count > 0;
        self.buffers.input_appended(count);
        Ok(count > 0)
    }

    /// Whatever lies unread between two calls is its end, or no answer to anything.
    fn is_open(&mut self) -> bool {
        let socket = self.stream.socket();
        let peek = || {
            socket.set_nonblocking(true)?;
            let peeked = socket.peek(&mut [0]);
            socket.set_nonblocking(false)?;
            peeked
        };
        matches!(peek(), Err(e) if e.kind() == ErrorKind::WouldBlock)
    }
}

fn deadline(timeout: &NextTimeout) -> Instant {
    Instant::now() + (*timeout.after).min(LONG)
}

/// What ureq calls `error`.
fn timed(error: io::Error, timeout: &NextTimeout) -> Error {
    match error.kind() {
        ErrorKind::TimedOut | ErrorKind::WouldBlock => Error::Timeout(timeout.reason),
        _ => Error::Io(error),
    }
}

/// Gives each use of a socket what is left until `deadline`.
fn within(deadline: Instant) -> impl Fn(&TcpStream) -> io::Result<()> {
    move |socket| {
        let left = left(deadline)?;
        socket.set_write_timeout(Some(left))?;
        socket.set_read_timeout(Some(left))
    }
}

/// Time until `deadline`; an error once it has passed.
fn left(deadline: Instant) -> io::Result<Duration> {
    match deadline.checked_duration_since(Instant::now()) {
        Some(left) if !left.is_zero() => Ok(left),
        _ => Err(ErrorKind::TimedOut.into()),
    }
}

/// Finds a server's addresses: as they stand there, or for a name by a thread that looks it up, as that can take long.
#[derive(Debug)]
pub struct Addresses;

impl Resolver for Addresses {
    fn resolve(
        &self,
        uri: &Uri,
        _config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, Error> {
        let place = uri.authority().map_or("", |at| at.as_str()).to_owned();
        let mut found = self.empty();
        if let Ok(address) = place.parse() {
            found.push(address);
            return Ok(found);
        }
        let (tell, told) = mpsc::sync_channel(1);
        let look_up = move || {
            let addresses = place.to_socket_addrs().map(Vec::from_iter);
            // Nobody waits any more, if it took too long.
            let _ = tell.send(addresses);
        };
        std::thread::Builder::new()
            .name("look-up".into())
            .spawn(look_up)?;
        let late = |_| Error::Timeout(timeout.reason);
        let addresses = told.recv_timeout(*timeout.after).map_err(late)?;
        let addresses = addresses.map_err(|_| Error::HostNotFound)?;
        if addresses.is_empty() {
            return Err(Error::HostNotFound);
        }
        let at_most = addresses.into_iter().take(ADDRESSES_MAX);
        at_most.for_each(|address| found.push(address));
        Ok(found)
    }
}
