//! Setting up a link.
//!
//! ```text
//!  primary: offer                      backup: answer
//!     │ ── Hello (who, which view, what machine) ──▶ │  decides
//!     │ ◀────────── HelloReply (accept, or why not) ─│
//!   Sender                                        Receiver
//! ```

use crate::clock::now_us;
use crate::error::{FrameError, HandshakeError};
use crate::framing::{Frame, FrameBuffer};
use crate::messages::{Hello, HelloReply, Settings};
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// A connection after the handshake, ready for a [`crate::Sender`] or a [`crate::Receiver`].
pub struct Connection {
    pub(crate) socket: TcpStream,
    pub(crate) incoming: FrameBuffer,
    pub(crate) settings: Settings,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection")
            .field("socket", &self.socket)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

/// A connection within a handshake, which has to end by a deadline.
struct Greeting {
    socket: TcpStream,
    incoming: FrameBuffer,
    deadline_us: u64,
}

impl Greeting {
    fn new(socket: TcpStream, limit: Duration) -> Result<Self, HandshakeError> {
        let limit_us = u64::try_from(limit.as_micros()).unwrap_or(u64::MAX);
        let greeting = Self {
            socket,
            incoming: FrameBuffer::new(),
            deadline_us: now_us().saturating_add(limit_us),
        };
        greeting
            .socket
            .set_nodelay(true)
            .map_err(|e| greeting.failed("switch off delays to", e))?;
        Ok(greeting)
    }

    fn failed(&self, what: &'static str, source: io::Error) -> HandshakeError {
        let peer = self.socket.peer_addr();
        HandshakeError::Io {
            what,
            peer: peer.map_or_else(|_| "an unknown peer".into(), |peer| peer.to_string()),
            source,
        }
    }

    fn remaining(&self) -> io::Result<Duration> {
        match self.deadline_us.saturating_sub(now_us()) {
            0 => Err(io::ErrorKind::TimedOut.into()),
            us => Ok(Duration::from_micros(us.max(1_000))),
        }
    }

    fn send(&mut self, frame: &[u8]) -> Result<(), HandshakeError> {
        let sent = self
            .remaining()
            .and_then(|limit| self.socket.set_write_timeout(Some(limit)))
            .and_then(|()| self.socket.write_all(frame));
        sent.map_err(|e| self.failed("send greeting to", e))
    }

    fn read(&mut self) -> Result<(), HandshakeError> {
        loop {
            let result = self
                .remaining()
                .and_then(|limit| self.socket.set_read_timeout(Some(limit)))
                .and_then(|()| self.socket.read(self.incoming.space()));
            let error = match result {
                Ok(0) => io::ErrorKind::UnexpectedEof.into(),
                Ok(count) => {
                    self.incoming.filled(count);
                    return Ok(());
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut.into(),
                Err(e) => e,
            };
            return Err(self.failed("receive greeting from", error));
        }
    }

    /// Waits for the peer's greeting and hands it to `take`, which says none for a frame that is
    /// not one.
    fn receive<T>(&mut self, take: impl Fn(Frame<'_>) -> Option<T>) -> Result<T, HandshakeError> {
        loop {
            if let Some(frame) = self.incoming.next()? {
                let kind = frame.kind().name();
                return take(frame).ok_or(HandshakeError::OutOfPlace { frame: kind });
            }
            self.read()?;
        }
    }

    fn done(self, settings: Settings) -> Result<Connection, HandshakeError> {
        let no_limits = self
            .socket
            .set_read_timeout(None)
            .and_then(|()| self.socket.set_write_timeout(None));
        no_limits.map_err(|e| self.failed("lift time limits of", e))?;
        Ok(Connection {
            socket: self.socket,
            incoming: self.incoming,
            settings,
        })
    }
}

/// The primary's side: greets the backup at the other end of `socket` and waits for its answer, for at
/// most `limit` in all.
///
/// # Errors
/// See [`HandshakeError`]; [`HandshakeError::Refused`] in the backup's words.
pub fn offer(
    socket: TcpStream,
    hello: &Hello,
    limit: Duration,
) -> Result<Connection, HandshakeError> {
    let frame = hello.to_frame()?;
    let mut greeting = Greeting::new(socket, limit)?;
    greeting.send(&frame)?;
    let reply = greeting.receive(|frame| match frame {
        Frame::HelloReply(reply) => Some(reply),
        _ => None,
    })?;
    match reply.refusal {
        Some(reason) => Err(HandshakeError::Refused { reason }),
        None => greeting.done(hello.settings),
    }
}

/// The backup's side: waits for a primary's greeting, for at most `limit` in all, and has `decide` say
/// whether it is welcome or why not. A primary of another version is told ours.
///
/// # Errors
/// See [`HandshakeError`]; [`HandshakeError::Refused`] with what `decide` said.
pub fn answer(
    socket: TcpStream,
    limit: Duration,
    decide: impl FnOnce(&Hello) -> Result<(), String>,
) -> Result<(Connection, Hello), HandshakeError> {
    let mut greeting = Greeting::new(socket, limit)?;
    let received = greeting.receive(|frame| match frame {
        Frame::Hello(hello) => Some(hello),
        _ => None,
    });
    let hello = match received {
        Err(HandshakeError::Frame(error @ FrameError::Version { .. })) => {
            // The reply carries our version, and so the primary knows both.
            let refusal = Some(error.to_string());
            greeting.send(&HelloReply { refusal }.to_frame())?;
            return Err(error.into());
        }
        other => other?,
    };
    let verdict = hello
        .settings
        .check()
        .map_err(|e| e.to_string())
        .and_then(|_| decide(&hello));
    let refusal = verdict.err();
    let reply = HelloReply { refusal };
    greeting.send(&reply.to_frame())?;
    match reply.refusal {
        Some(reason) => Err(HandshakeError::Refused { reason }),
        None => Ok((greeting.done(hello.settings)?, hello)),
    }
}
