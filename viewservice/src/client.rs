//! The client of the service.

use crate::protocol::{self, Hello, MAX_REPLY, Reply, Request};
use crate::{Orders, Ping, Register, Registered, Report, Status, ViewError, VmId};
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

/// How long one call may take, unless set.
const TIMEOUT: Duration = Duration::from_millis(1000);

/// A view service, asked over TCP: a connection per call, each within a time limit.
///
/// A protected pair needs no answer to go on: a failed ping or report may be ignored, as the next ping
/// says the same again.
#[derive(Clone, Debug)]
pub struct Client {
    address: String,
    timeout: Duration,
}

impl Client {
    /// The service at `address` (`HOST:PORT`); does not connect yet.
    ///
    /// # Errors
    /// [`ViewError::BadAddress`].
    pub fn new(address: &str) -> Result<Self, ViewError> {
        let bad = |reason| ViewError::BadAddress {
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

    /// Says that a host lives, and what it runs; says what it is to do.
    ///
    /// # Errors
    /// [`ViewError`]; may be ignored.
    pub fn ping(&self, ping: &Ping) -> Result<Orders, ViewError> {
        match self.ask(&Request::Ping(ping.clone()))? {
            Reply::Orders(orders) => Ok(orders),
            other => Err(self.beside_the_point(&other)),
        }
    }

    /// Reports. Idempotent.
    ///
    /// # Errors
    /// [`ViewError`]; may be ignored where pings follow.
    pub fn report(&self, report: &Report) -> Result<(), ViewError> {
        match self.ask(&Request::Report(report.clone()))? {
            Reply::Done => Ok(()),
            other => Err(self.beside_the_point(&other)),
        }
    }

    /// Asks for a new VM.
    ///
    /// # Errors
    /// [`ViewError`].
    pub fn register(&self, wish: &Register) -> Result<Registered, ViewError> {
        match self.ask(&Request::Register(wish.clone()))? {
            Reply::Registered(registered) => Ok(registered),
            other => Err(self.beside_the_point(&other)),
        }
    }

    /// Asks for a VM's end: its hosts are told at their next pings, and it is forgotten once one of
    /// them reports the end, or none of them lives. Idempotent until then.
    ///
    /// # Errors
    /// [`ViewError`].
    pub fn down(&self, vm: &VmId) -> Result<(), ViewError> {
        match self.ask(&Request::Down { vm: vm.clone() })? {
            Reply::Done => Ok(()),
            other => Err(self.beside_the_point(&other)),
        }
    }

    /// All VMs and hosts.
    ///
    /// # Errors
    /// [`ViewError`].
    pub fn status(&self) -> Result<Status, ViewError> {
        match self.ask(&Request::Status)? {
            Reply::Status(status) => Ok(status),
            other => Err(self.beside_the_point(&other)),
        }
    }

    fn unreachable(&self, reason: impl ToString) -> ViewError {
        ViewError::Unreachable {
            address: self.address.clone(),
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
        let mut hello_end = None;
        loop {
            let mut chunk = [0; 4096];
            stream.set_read_timeout(Some(left(deadline)?))?;
            let n = match stream.read(&mut chunk) {
                Ok(0) => {
                    // A refusal may come instead of the greeting, and nothing after it.
                    return match received.strip_suffix(b"\n") {
                        Some(line) if Hello::check(line).is_err() => Ok([line.to_vec(), vec![]]),
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
            if received.len() > MAX_REPLY {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "too long a reply",
                ));
            }
        }
    }

    fn ask(&self, request: &Request) -> Result<Reply, ViewError> {
        let [hello, reply] = self.exchange(request).map_err(|e| match e.kind() {
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => {
                self.unreachable(format!("no answer within {} ms", self.timeout.as_millis()))
            }
            io::ErrorKind::UnexpectedEof => {
                self.unreachable("it closed the connection before answering")
            }
            _ => self.unreachable(e),
        })?;
        let address = || self.address.clone();
        if let Err(reason) = Hello::check(&hello) {
            return Err(match serde_json::from_slice(&hello) {
                Ok(Reply::Refused { reason }) => ViewError::Refused {
                    address: address(),
                    reason,
                },
                _ => ViewError::Protocol {
                    address: address(),
                    reason,
                },
            });
        }
        match serde_json::from_slice(&reply) {
            Ok(Reply::Refused { reason }) => Err(ViewError::Refused {
                address: address(),
                reason,
            }),
            Ok(Reply::Failed { reason }) => Err(ViewError::Failed {
                address: address(),
                reason,
            }),
            Ok(reply) => Ok(reply),
            Err(error) => Err(ViewError::Protocol {
                address: address(),
                reason: format!("its reply is no reply: {error}"),
            }),
        }
    }

    /// A reply, but to another question.
    fn beside_the_point(&self, reply: &Reply) -> ViewError {
        ViewError::Protocol {
            address: self.address.clone(),
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
