//! The client of the arbiter server.

use crate::protocol::{self, Hello, MAX_LINE, Reply, Request};
use crate::{Arbiter, ArbiterError, Contender, Flag, Verdict};
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

/// How long one call may take, unless set.
const TIMEOUT: Duration = Duration::from_millis(1000);

/// An arbiter server, asked over TCP: a connection per call, each within a time limit. Asking again
/// after an error is the caller's.
#[derive(Clone, Debug)]
pub struct ServerArbiter {
    address: String,
    timeout: Duration,
}

impl ServerArbiter {
    /// The server at `address` (`HOST:PORT`); does not connect yet.
    ///
    /// # Errors
    /// [`ArbiterError::BadAddress`].
    pub fn new(address: &str) -> Result<Self, ArbiterError> {
        let bad = |reason| ArbiterError::BadAddress {
            given: address.into(),
            reason,
        };
        let (host, port) = address
            .rsplit_once(':')
            .ok_or_else(|| bad("expected HOST:PORT"))?;
        if host.is_empty() || host.contains(char::is_whitespace) {
            return Err(bad("expected a host's name or address before the port"));
        }
        if !port.parse::<u16>().is_ok_and(|port| port > 0) {
            return Err(bad("expected a port from 1 to 65535"));
        }
        Ok(Self {
            address: address.into(),
            timeout: TIMEOUT,
        })
    }

    /// Limits a call to `timeout` (one second unless set); resolving a host's name comes on top.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    fn unreachable(&self, reason: impl ToString) -> ArbiterError {
        ArbiterError::Unreachable {
            arbiter: self.address.clone(),
            reason: reason.to_string(),
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
    fn exchange(&self, request: &Request) -> io::Result<[Vec<u8>; 2]> {
        let deadline = Instant::now() + self.timeout;
        let mut stream = self.connect(deadline)?;
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(left(deadline)?))?;
        stream.write_all(
            &[
                protocol::to_line(&Hello::ours()),
                protocol::to_line(request),
            ]
            .concat(),
        )?;
        let mut received = Vec::new();
        loop {
            let mut lines = received.split(|b| *b == b'\n');
            if let (Some(hello), Some(reply), Some(_)) = (lines.next(), lines.next(), lines.next())
            {
                return Ok([hello.to_vec(), reply.to_vec()]);
            }
            let mut chunk = [0; MAX_LINE];
            stream.set_read_timeout(Some(left(deadline)?))?;
            match stream.read(&mut chunk) {
                Ok(0) => {
                    // A refusal may come instead of the greeting, and nothing after it.
                    return match received.strip_suffix(b"\n") {
                        Some(line) if Hello::check(line).is_err() => Ok([line.to_vec(), vec![]]),
                        _ => Err(io::ErrorKind::UnexpectedEof.into()),
                    };
                }
                Ok(_) if received.len() > 2 * MAX_LINE => {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "too long a reply",
                    ));
                }
                Ok(n) => received.extend_from_slice(&chunk[..n]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    fn ask(&self, request: &Request) -> Result<Reply, ArbiterError> {
        let [hello, reply] = self.exchange(request).map_err(|e| match e.kind() {
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => {
                self.unreachable(format!("no answer within {} ms", self.timeout.as_millis()))
            }
            io::ErrorKind::UnexpectedEof => {
                self.unreachable("it closed the connection before answering")
            }
            _ => self.unreachable(e),
        })?;
        let protocol = |reason: String| ArbiterError::Protocol {
            arbiter: self.address.clone(),
            reason,
        };
        if let Err(reason) = Hello::check(&hello) {
            return match serde_json::from_slice(&hello) {
                Ok(Reply::Refused { reason }) => Err(self.refused(reason)),
                _ => Err(protocol(reason)),
            };
        }
        match serde_json::from_slice(&reply) {
            Ok(Reply::Refused { reason }) => Err(self.refused(reason)),
            Ok(Reply::StoreFailed { reason }) => Err(ArbiterError::StoreFailed {
                arbiter: self.address.clone(),
                reason,
            }),
            Ok(reply) => Ok(reply),
            Err(error) => Err(protocol(format!("its reply is no reply: {error}"))),
        }
    }

    fn refused(&self, reason: String) -> ArbiterError {
        ArbiterError::Refused {
            arbiter: self.address.clone(),
            reason,
        }
    }

    /// A reply, but to another question.
    fn beside_the_point(&self, reply: &Reply) -> ArbiterError {
        ArbiterError::Protocol {
            arbiter: self.address.clone(),
            reason: format!("its reply does not fit the request: {reply:?}"),
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

impl Arbiter for ServerArbiter {
    fn test_and_set(&self, flag: &Flag, who: &Contender) -> Result<Verdict, ArbiterError> {
        let request = Request::TestAndSet {
            vm: flag.vm.clone(),
            view: flag.view,
            who: who.clone(),
        };
        match self.ask(&request)? {
            Reply::Won => Ok(Verdict::Won),
            Reply::Lost { holder } => Ok(Verdict::Lost { holder }),
            other => Err(self.beside_the_point(&other)),
        }
    }

    fn holder(&self, flag: &Flag) -> Result<Option<Contender>, ArbiterError> {
        let request = Request::Holder {
            vm: flag.vm.clone(),
            view: flag.view,
        };
        match self.ask(&request)? {
            Reply::Holder { holder } => Ok(holder),
            other => Err(self.beside_the_point(&other)),
        }
    }

    fn check(&self) -> Result<(), ArbiterError> {
        match self.ask(&Request::Check)? {
            Reply::Ready => Ok(()),
            other => Err(self.beside_the_point(&other)),
        }
    }
}
