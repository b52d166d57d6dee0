//! The client: calls within a time limit, each on a connection of its own or on one that is kept.

use crate::Protocol;
use serde::Serialize;
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::{Arc, Mutex, TryLockError};
use std::time::{Duration, Instant};
use tls::{Peer, Role, Security, Stream};

/// How long one call may take, unless set.
const TIMEOUT: Duration = Duration::from_millis(1000);

/// Why a call brought no reply. Whether the request was taken is unknown.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The server cannot be reached, or stopped answering half-way.
    #[error("{0}")]
    Unreachable(String),
    /// The first line is no greeting of this protocol and version.
    #[error("{reason}")]
    NotGreeted {
        /// What came instead; it may be a refusal.
        line: Vec<u8>,
        /// What is wrong with it.
        reason: String,
    },
}

/// Whether `address` is `HOST:PORT`.
///
/// # Errors
/// What is wrong with it.
pub fn check_address(address: &str) -> Result<(), &'static str> {
    let (host, port) = address.rsplit_once(':').ok_or("expected HOST:PORT")?;
    if host.is_empty() || host.contains(char::is_whitespace) {
        return Err("expected a host's name or address before the port");
    }
    if !port.parse::<u16>().is_ok_and(|port| port > 0) {
        return Err("expected a port from 1 to 65535");
    }
    Ok(())
}

/// A server, asked over TCP.
#[derive(Clone, Debug)]
pub struct Client {
    address: String,
    timeout: Duration,
    protocol: Protocol,
    reply_max: usize,
    security: Security,
    /// The connection that is kept, while no call uses it. Clones share it.
    kept: Arc<Mutex<Option<Open>>>,
}

impl Client {
    /// The server at `address` (`HOST:PORT`), which speaks `protocol` and replies in at most `reply_max`
    /// bytes; does not connect yet.
    ///
    /// # Errors
    /// What is wrong with the address.
    pub fn new(address: &str, protocol: Protocol, reply_max: usize) -> Result<Self, &'static str> {
        check_address(address)?;
        Ok(Self {
            address: address.into(),
            timeout: TIMEOUT,
            protocol,
            reply_max,
            security: Security::default(),
            kept: Arc::default(),
        })
    }

    /// Has connections protected as `security` says; else they are plaintext, and within this machine only.
    #[must_use]
    pub fn secured(mut self, security: Security) -> Self {
        self.security = security;
        self
    }

    /// Limits a call to `timeout` (one second unless set); resolving a host's name comes on top.
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

    /// Sends `request` on a new connection; the reply, without its line end.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn call(&self, request: &impl Serialize) -> Result<Vec<u8>, CallError> {
        let deadline = Instant::now() + self.timeout;
        Ok(self.call_anew(&crate::to_line(request), deadline)?.1)
    }

    /// Sends `request` on the connection that was kept by the last such call, and keeps it again. A server
    /// whose connections are all taken, or whose host is slow to accept one, answers it all the same.
    ///
    /// The request may be sent twice, where the connection was lost meanwhile: it must be harmless then.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn call_kept(&self, request: &impl Serialize) -> Result<Vec<u8>, CallError> {
        let now = Instant::now();
        let request = crate::to_line(request);
        let mut kept = match self.kept.try_lock() {
            Ok(kept) => kept,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            // Another call is under way, and may take long.
            Err(TryLockError::WouldBlock) => {
                return Ok(self.call_anew(&request, now + self.timeout)?.1);
            }
        };
        if let Some(mut open) = kept.take() {
            // Half of the time is left for a new one: this one may lead to a host that is gone.
            let answered = open
                .send(&request, now + self.timeout / 2)
                .and_then(|()| open.line(self.reply_max, now + self.timeout / 2));
            if let Ok(reply) = answered {
                *kept = Some(open);
                return Ok(reply);
            }
        }
        let (open, reply) = self.call_anew(&request, now + self.timeout)?;
        *kept = Some(open);
        Ok(reply)
    }

    /// Sends greeting and `request` on a new connection; that connection and the reply.
    fn call_anew(&self, request: &[u8], deadline: Instant) -> Result<(Open, Vec<u8>), CallError> {
        let unreachable = |e: io::Error| {
            CallError::Unreachable(match e.kind() {
                io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => {
                    format!("no answer within {} ms", self.timeout.as_millis())
                }
                io::ErrorKind::UnexpectedEof => "it closed the connection before answering".into(),
                _ => tls::said(&e),
            })
        };
        let mut open = self.open(request, deadline).map_err(unreachable)?;
        let hello = open.line(self.reply_max, deadline).map_err(unreachable)?;
        // A refusal may come instead of the greeting, and nothing after it.
        if let Err(reason) = self.protocol.check(&hello) {
            return Err(CallError::NotGreeted {
                line: hello,
                reason,
            });
        }
        let reply = open.line(self.reply_max, deadline).map_err(unreachable)?;
        Ok((open, reply))
    }

    /// A new connection, on which greeting and `request` were sent.
    fn open(&self, request: &[u8], deadline: Instant) -> io::Result<Open> {
        let socket = self.connect(deadline)?;
        socket.set_nodelay(true)?;
        let stream = self
            .security
            .call(socket, Role::Service, Peer::is_service)?;
        let mut open = Open {
            stream,
            received: Vec::new(),
        };
        open.send(&[&self.protocol.greeting(), request].concat(), deadline)?;
        Ok(open)
    }

    fn connect(&self, deadline: Instant) -> io::Result<TcpStream> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
        for address in self.address.to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, left(deadline)?) {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

/// A connection.
#[derive(Debug)]
struct Open {
    stream: Stream,
    /// What came behind the last line that was taken.
    received: Vec<u8>,
}

impl Open {
    fn send(&mut self, bytes: &[u8], deadline: Instant) -> io::Result<()> {
        self.stream.using(within(deadline)).write_all(bytes)
    }

    /// The next line, without its end, of at most `max` bytes.
    fn line(&mut self, max: usize, deadline: Instant) -> io::Result<Vec<u8>> {
        let mut seen = 0;
        loop {
            if let Some(at) = self.received[seen..].iter().position(|byte| *byte == b'\n') {
                let rest = self.received.split_off(seen + at + 1);
                let mut line = std::mem::replace(&mut self.received, rest);
                line.pop();
                return Ok(line);
            }
            seen = self.received.len();
            if seen > max {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "too long a reply",
                ));
            }
            let mut chunk = [0; 4096];
            match self.stream.using(within(deadline)).read(&mut chunk) {
                Ok(0) if tls::is_tls(&self.received) => {
                    return Err(io::Error::other("it speaks TLS: give --tls DIR"));
                }
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => self.received.extend_from_slice(&chunk[..n]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
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
        _ => Err(io::ErrorKind::TimedOut.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    const OURS: Protocol = Protocol {
        name: "tandem-test",
        version: 1,
    };

    /// What a call brings if the server says `says` and closes.
    fn call(says: &[u8]) -> Result<Vec<u8>, CallError> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let client = Client::new(&address, OURS, 8192).unwrap();
        let client = client.with_timeout(Duration::from_secs(20));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (mut stream, _) = listener.accept().unwrap();
                let expected = [OURS.greeting(), b"\"ask\"\n".to_vec()].concat();
                let mut heard = vec![0; expected.len()];
                stream.read_exact(&mut heard).unwrap();
                assert_eq!(heard, expected);
                // The client hangs up on a reply that is too long.
                let _ = stream.write_all(says);
            });
            client.call(&"ask")
        })
    }

    #[test]
    fn a_reply_follows_the_greeting() {
        let said = [OURS.greeting(), b"\"told\"\nand more".to_vec()].concat();
        assert_eq!(call(&said), Ok(b"\"told\"".to_vec()));
    }

    #[test]
    fn what_is_no_reply_is_an_error() {
        assert!(matches!(
            call(b"{\"reply\":\"refused\"}\n"),
            Err(CallError::NotGreeted { line, .. }) if line == b"{\"reply\":\"refused\"}"
        ));
        let cut = [OURS.greeting(), b"\"tol".to_vec()].concat();
        assert!(matches!(call(&cut), Err(CallError::Unreachable(_))));
        assert!(matches!(call(b""), Err(CallError::Unreachable(_))));
        let long = [OURS.greeting(), vec![b'x'; 64 << 10]].concat();
        assert!(matches!(call(&long), Err(CallError::Unreachable(_))));
    }

    #[test]
    fn addresses_are_checked() {
        for bad in ["", "host", "host:", ":1", "host:0", "host:65536", "a b:1"] {
            assert!(Client::new(bad, OURS, 1).is_err(), "{bad:?}");
        }
        for good in ["host:1", "[::1]:7000"] {
            assert!(Client::new(good, OURS, 1).is_ok(), "{good}");
        }
    }
}
