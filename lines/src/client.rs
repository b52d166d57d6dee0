//! The client: a connection per call, each within a time limit.

use crate::Protocol;
use serde::Serialize;
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

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

/// A server, asked over TCP.
#[derive(Clone, Debug)]
pub struct Client {
    address: String,
    timeout: Duration,
    protocol: Protocol,
    reply_max: usize,
}

impl Client {
    /// The server at `address` (`HOST:PORT`), which speaks `protocol` and replies in at most `reply_max`
    /// bytes; does not connect yet.
    ///
    /// # Errors
    /// What is wrong with the address.
    pub fn new(address: &str, protocol: Protocol, reply_max: usize) -> Result<Self, &'static str> {
        let (host, port) = address.rsplit_once(':').ok_or("expected HOST:PORT")?;
        if host.is_empty() || host.contains(char::is_whitespace) {
            return Err("expected a host's name or address before the port");
        }
        if !port.parse::<u16>().is_ok_and(|port| port > 0) {
            return Err("expected a port from 1 to 65535");
        }
        Ok(Self {
            address: address.into(),
            timeout: TIMEOUT,
            protocol,
            reply_max,
        })
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

    /// Sends `request`; the reply, without its line end.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn call(&self, request: &impl Serialize) -> Result<Vec<u8>, CallError> {
        let [hello, reply] = self.exchange(&crate::to_line(request)).map_err(|e| {
            CallError::Unreachable(match e.kind() {
                io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => {
                    format!("no answer within {} ms", self.timeout.as_millis())
                }
                io::ErrorKind::UnexpectedEof => "it closed the connection before answering".into(),
                _ => e.to_string(),
            })
        })?;
        match self.protocol.check(&hello) {
            Ok(()) => Ok(reply),
            Err(reason) => Err(CallError::NotGreeted {
                line: hello,
                reason,
            }),
        }
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

    /// Sends greeting and request; the server's greeting and reply, as lines.
    fn exchange(&self, request: &[u8]) -> io::Result<[Vec<u8>; 2]> {
        let deadline = Instant::now() + self.timeout;
        let mut stream = self.connect(deadline)?;
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(left(deadline)?))?;
        stream.write_all(&[&self.protocol.greeting(), request].concat())?;
        let mut received = Vec::new();
        let mut hello_end = None;
        loop {
            let mut chunk = [0; 4096];
            stream.set_read_timeout(Some(left(deadline)?))?;
            let n = match stream.read(&mut chunk) {
                Ok(0) => {
                    // A refusal may come instead of the greeting, and nothing after it.
                    return match received.strip_suffix(b"\n") {
                        Some(line) if self.protocol.check(line).is_err() => {
                            Ok([line.to_vec(), vec![]])
                        }
                        _ => Err(io::ErrorKind::UnexpectedEof.into()),
                    };
                }
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            };
            for (i, byte) in chunk[..n].iter().enumerate() {
                match (byte, hello_end) {
                    (b'\n', None) => hello_end = Some(received.len() + i),
                    (b'\n', Some(end)) => {
                        received.extend_from_slice(&chunk[..i]);
                        let reply = received.split_off(end + 1);
                        received.truncate(end);
                        return Ok([received, reply]);
                    }
                    _ => {}
                }
            }
            received.extend_from_slice(&chunk[..n]);
            if received.len() > self.reply_max {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "too long a reply",
                ));
            }
        }
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
