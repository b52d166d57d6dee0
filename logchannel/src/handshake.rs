//! Setting up a link.
//!
//! ```text
//!  primary: offer                      backup: answer
//!     │ ── Hello (who, which view, what machine) ──▶ │  decides
//!     │ ◀────────── HelloReply (accept, or why not) ─│
//!     │ ── Probe ──────────────────────────────────▶ │  up to three times: how far apart they are
//!     │ ◀─────────────────────────────────── Probe ─ │
//!     │ ── Settled (how the link watches itself) ──▶ │  from here on silence counts
//!   Sender                                        Receiver
//! ```
//!
//! A machine that runs already is handed over behind that: see [`crate::transfer`].

use crate::clock::now_us;
use crate::error::{FrameError, HandshakeError};
use crate::framing::{Frame, FrameBuffer, FrameKind};
use crate::messages::{Hello, HelloReply, Probe, Settings, Settled};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use replay::Base;
use socket2::SockRef;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;
use tls::{Peer, Stream};

/// A connection after the handshake, ready for a [`crate::Sender`] or a [`crate::Receiver`].
pub struct Connection {
    pub(crate) socket: Stream,
    pub(crate) peer: SocketAddr,
    pub(crate) incoming: FrameBuffer,
    pub(crate) base: Base,
    pub(crate) settled: Settled,
    pub(crate) remark: Option<String>,
}

impl Connection {
    /// Where the other side is, or was: it may be gone by now.
    #[must_use]
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Where the log begins that is to go over it, as the primary said.
    #[must_use]
    pub fn base(&self) -> Base {
        self.base
    }

    /// How the link watches itself, which may be more patiently than was wished
    /// ([`Settings::over`]).
    #[must_use]
    pub fn settings(&self) -> Settings {
        self.settled.settings
    }

    /// How long the other end takes to answer, in microseconds, as the handshake found.
    #[must_use]
    pub fn round_trip_us(&self) -> u32 {
        self.settled.round_trip_us
    }

    /// What the backup remarked when it welcomed this primary, in one line of at most
    /// [`REASON_MAX`](crate::messages::REASON_MAX) bytes and whatever it takes to make its characters
    /// printable.
    #[must_use]
    pub fn remark(&self) -> Option<&str> {
        self.remark.as_deref()
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection")
            .field("socket", &self.socket)
            .field("base", &self.base)
            .field("settled", &self.settled)
            .finish_non_exhaustive()
    }
}

/// Most probes a primary makes.
const PROBES_MAX: u32 = 3;

/// A connection within a handshake, which has to end by a deadline.
pub(crate) struct Greeting {
    pub(crate) socket: Stream,
    /// Who is at its other end: a socket that was reset does not know any more (getpeername(2), ENOTCONN).
    peer: SocketAddr,
    incoming: FrameBuffer,
    pub(crate) deadline_us: u64,
}

pub(crate) fn deadline_us(limit: Duration) -> u64 {
    now_us().saturating_add(u64::try_from(limit.as_micros()).unwrap_or(u64::MAX))
}

/// Gives each use of a socket the time that is left until `deadline_us`: its own limit is for each use anew,
/// however little that takes.
pub(crate) fn until(deadline_us: u64) -> impl Fn(&TcpStream) -> io::Result<()> {
    move |socket| {
        let left = time_until(deadline_us)?;
        socket.set_write_timeout(Some(left))?;
        socket.set_read_timeout(Some(left))
    }
}

fn time_until(deadline_us: u64) -> io::Result<Duration> {
    match deadline_us.saturating_sub(now_us()) {
        0 => Err(io::ErrorKind::TimedOut.into()),
        us => Ok(Duration::from_micros(us.max(1_000))),
    }
}

impl Greeting {
    fn new(socket: Stream, limit: Duration) -> Result<Self, HandshakeError> {
        let peer = socket
            .socket()
            .peer_addr()
            .map_err(|source| HandshakeError::Io {
                what: "find the address of",
                peer: "a peer that has left".into(),
                source,
            })?;
        let greeting = Self {
            peer,
            socket,
            incoming: FrameBuffer::new(),
            deadline_us: deadline_us(limit),
        };
        greeting
            .socket
            .socket()
            .set_nodelay(true)
            .map_err(|e| greeting.failed("switch off delays to", e))?;
        Ok(greeting)
    }

    fn failed(&self, what: &'static str, source: io::Error) -> HandshakeError {
        HandshakeError::Io {
            what,
            peer: self.peer.to_string(),
            source,
        }
    }

    pub(crate) fn remaining(&self) -> io::Result<Duration> {
        time_until(self.deadline_us)
    }

    pub(crate) fn send(&mut self, frame: &[u8]) -> Result<(), HandshakeError> {
        let sent = self.socket.using(until(self.deadline_us)).write_all(frame);
        sent.map_err(|e| self.failed("send greeting to", e))
    }

    fn read(&mut self) -> Result<(), HandshakeError> {
        loop {
            let in_time = until(self.deadline_us);
            let result = self.socket.using(in_time).read(self.incoming.space());
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

    /// Waits for the peer's greeting and hands its frame to `take`, which returns `None` for a frame of
    /// another kind.
    pub(crate) fn receive<T>(
        &mut self,
        mut take: impl FnMut(Frame<'_>) -> Option<T>,
    ) -> Result<T, HandshakeError> {
        loop {
            if let Some(taken) = self.next(&mut take)? {
                return Ok(taken);
            }
            self.read()?;
        }
    }

    /// The greeting, if all of it is here.
    fn next<T>(
        &mut self,
        mut take: impl FnMut(Frame<'_>) -> Option<T>,
    ) -> Result<Option<T>, HandshakeError> {
        let Some(frame) = self.incoming.next()? else {
            return Ok(None);
        };
        let kind = frame.kind().name();
        match take(frame) {
            None => Err(HandshakeError::OutOfPlace { frame: kind }),
            taken => Ok(taken),
        }
    }

    fn block(&self, wait: bool) -> Result<(), HandshakeError> {
        let set = self.socket.socket().set_nonblocking(!wait);
        set.map_err(|e| self.failed("set up", e))
    }

    /// Tells a peer of another version ours.
    fn or_versions<T>(&mut self, received: Result<T, HandshakeError>) -> Result<T, HandshakeError> {
        if let Err(HandshakeError::Frame(error @ FrameError::Version { .. })) = &received {
            // The reply carries our version, and so the primary knows both.
            let reason = error.to_string();
            self.send(&HelloReply::Refused { reason }.to_frame())?;
        }
        received
    }

    fn reply(
        mut self,
        hello: &Hello,
        decide: impl FnOnce(&Hello) -> Result<Option<String>, String>,
    ) -> Result<Connection, HandshakeError> {
        let remark = self.tell(judge(hello, decide))?;
        let settled = self.answer_probes()?;
        self.done(hello.base, settled, remark)
    }

    /// Has no more than `bytes` wait in the system for a wire that takes no more; 0: as many as the system
    /// allows (tcp(7), TCP_NOTSENT_LOWAT).
    pub(crate) fn leave_unsent(&self, bytes: u32) -> Result<(), HandshakeError> {
        let set = SockRef::from(self.socket.socket()).set_tcp_notsent_lowat(bytes);
        set.map_err(|e| self.failed("set up", e))
    }

    /// Whether the peer has said something, or has hung up.
    pub(crate) fn is_answered(&mut self) -> bool {
        let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        let readable = poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0);
        if !readable || self.socket.peer().is_none() {
            return readable;
        }
        // What is there may be a word of TLS's own, as when keys are changed.
        let read = self.block(false).map(|()| {
            let space = self.incoming.space();
            self.socket.read(space)
        });
        match (read, self.block(true)) {
            (Ok(Err(e)), Ok(())) if e.kind() == io::ErrorKind::WouldBlock => false,
            (Ok(Ok(count)), Ok(())) => {
                self.incoming.filled(count);
                true
            }
            // Who receives next finds out.
            _ => true,
        }
    }

    /// Tells the primary the verdict; the remark, if it is welcome.
    pub(crate) fn tell(
        &mut self,
        verdict: Result<Option<String>, String>,
    ) -> Result<Option<String>, HandshakeError> {
        let reply = match verdict {
            Ok(remark) => HelloReply::Welcome { remark },
            Err(reason) => HelloReply::Refused { reason },
        };
        self.send(&reply.to_frame())?;
        welcome(reply)
    }

    /// The backup's side: answers the primary's probes until it has settled.
    pub(crate) fn answer_probes(&mut self) -> Result<Settled, HandshakeError> {
        enum Said {
            Probe(Probe),
            Settled(Settled),
        }
        // A primary that keeps to the protocol settles long before.
        for _ in 0..=PROBES_MAX {
            let said = self.receive(|frame| match frame {
                Frame::Probe(probe) => Some(Said::Probe(probe)),
                Frame::Settled(settled) => Some(Said::Settled(settled)),
                _ => None,
            })?;
            match said {
                Said::Probe(probe) => self.send(&probe.to_frame())?,
                Said::Settled(settled) => {
                    settled.settings.check()?;
                    return Ok(settled);
                }
            }
        }
        let frame = FrameKind::Probe.name();
        Err(HandshakeError::OutOfPlace { frame })
    }

    /// The primary's side: finds out how far away the backup is, and tells it what holds. A distance that
    /// would change `wish` is measured again, since a busy host answers late at times.
    fn settle(&mut self, wish: Settings) -> Result<Settled, HandshakeError> {
        let mut round_trip_us = u32::MAX;
        for number in 0..PROBES_MAX {
            let asked_us = now_us();
            self.send(&Probe { number }.to_frame())?;
            self.receive(|frame| match frame {
                Frame::Probe(probe) if probe.number == number => Some(()),
                _ => None,
            })?;
            let took_us = now_us().saturating_sub(asked_us);
            round_trip_us = round_trip_us.min(u32::try_from(took_us).unwrap_or(u32::MAX));
            if wish
                .over(round_trip_us)
                .is_ok_and(|settings| settings == wish)
            {
                break;
            }
        }
        let settled = Settled {
            settings: wish.over(round_trip_us)?,
            round_trip_us,
        };
        self.send(&settled.to_frame())?;
        Ok(settled)
    }

    pub(crate) fn done(
        self,
        base: Base,
        settled: Settled,
        remark: Option<String>,
    ) -> Result<Connection, HandshakeError> {
        let socket = self.socket.socket();
        let no_limits = socket
            .set_read_timeout(None)
            .and_then(|()| socket.set_write_timeout(None));
        no_limits.map_err(|e| self.failed("lift time limits of", e))?;
        Ok(Connection {
            socket: self.socket,
            peer: self.peer,
            incoming: self.incoming,
            base,
            settled,
            remark,
        })
    }
}

/// The primary's side: greets the backup at the other end of `socket` and waits for its answer, for at
/// most `limit` in all.
///
/// # Errors
/// See [`HandshakeError`]; [`HandshakeError::Refused`] in the backup's words.
pub fn offer(
    socket: impl Into<Stream>,
    hello: &Hello,
    limit: Duration,
) -> Result<Connection, HandshakeError> {
    let (greeting, settled, remark) = greet(socket.into(), hello, limit)?;
    greeting.done(hello.base, settled, remark)
}

/// The greeting of [`offer`]: what was settled, and the backup's remark.
pub(crate) fn greet(
    socket: Stream,
    hello: &Hello,
    limit: Duration,
) -> Result<(Greeting, Settled, Option<String>), HandshakeError> {
    let frame = hello.to_frame()?;
    let mut greeting = Greeting::new(socket, limit)?;
    greeting.send(&frame)?;
    let remark = greeting.receive(reply_of).and_then(welcome)?;
    let settled = greeting.settle(hello.settings)?;
    Ok((greeting, settled, remark))
}

pub(crate) fn reply_of(frame: Frame<'_>) -> Option<HelloReply> {
    match frame {
        Frame::HelloReply(reply) => Some(reply),
        _ => None,
    }
}

/// What the backup says to `hello`: whether its settings work, and what `decide` thinks of it.
pub(crate) fn judge(
    hello: &Hello,
    decide: impl FnOnce(&Hello) -> Result<Option<String>, String>,
) -> Result<Option<String>, String> {
    hello.settings.check().map_err(|e| e.to_string())?;
    decide(hello)
}

/// The backup's remark, if it welcomes the primary.
pub(crate) fn welcome(reply: HelloReply) -> Result<Option<String>, HandshakeError> {
    match reply {
        HelloReply::Refused { reason } => Err(HandshakeError::Refused { reason }),
        HelloReply::Welcome { remark } => Ok(remark),
    }
}

/// The backup's side: waits for a primary's greeting, for at most `limit` in all, and has `decide` judge it.
///
/// `decide` says that the primary is welcome, with a remark if there is something to know, or says why it is
/// not. A primary of another version is told ours.
///
/// # Errors
/// See [`HandshakeError`]; [`HandshakeError::Refused`] with what `decide` said.
pub fn answer(
    socket: impl Into<Stream>,
    limit: Duration,
    decide: impl FnOnce(&Hello) -> Result<Option<String>, String>,
) -> Result<(Connection, Hello), HandshakeError> {
    let mut greeting = Greeting::new(socket.into(), limit)?;
    let received = greeting.receive(hello);
    let hello = greeting.or_versions(received)?;
    let connection = greeting.reply(&hello, decide)?;
    Ok((connection, hello))
}

fn hello(frame: Frame<'_>) -> Option<Hello> {
    match frame {
        Frame::Hello(hello) => Some(hello),
        _ => None,
    }
}

/// Somebody who has connected to a backup and not greeted it yet. Nobody waits for one: several may be
/// listened to at a time.
pub struct Caller {
    greeting: Greeting,
}

impl Caller {
    /// A caller at the other end of `socket`, who has `limit` to greet.
    ///
    /// # Errors
    /// If the socket does not take its settings.
    pub fn new(socket: impl Into<Stream>, limit: Duration) -> Result<Self, HandshakeError> {
        let greeting = Greeting::new(socket.into(), limit)?;
        greeting.block(false)?;
        Ok(Self { greeting })
    }

    /// Who it is, by its certificate, once that was checked; `None` for plaintext.
    #[must_use]
    pub fn identity(&self) -> Option<&Peer> {
        self.greeting.socket.peer()
    }

    /// Takes what has come and says whether that is all of a greeting. Never waits.
    ///
    /// # Errors
    /// See [`HandshakeError`]: it is no primary of ours, it is gone, or its time is over.
    pub fn listen(&mut self) -> Result<Option<Hello>, HandshakeError> {
        let greeting = &mut self.greeting;
        loop {
            match greeting.next(hello) {
                Ok(None) => {}
                Ok(hello) => return Ok(hello),
                Err(error) => {
                    greeting.block(true)?;
                    return greeting.or_versions(Err(error));
                }
            }
            let space = greeting.incoming.space();
            let source = match greeting.socket.read(space) {
                Ok(0) => io::ErrorKind::UnexpectedEof.into(),
                Ok(count) => {
                    greeting.incoming.filled(count);
                    continue;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => match greeting.remaining() {
                    Ok(_) => return Ok(None),
                    Err(over) => over,
                },
                Err(e) => e,
            };
            return Err(greeting.failed("receive greeting from", source));
        }
    }

    /// Has `decide` judge the caller, who greeted with `hello`, and tells it the verdict, within `limit`.
    /// What `decide` says is as for [`answer`].
    ///
    /// # Errors
    /// As [`answer`].
    pub fn answer(
        self,
        hello: &Hello,
        limit: Duration,
        decide: impl FnOnce(&Hello) -> Result<Option<String>, String>,
    ) -> Result<Connection, HandshakeError> {
        self.into_greeting(limit)?.reply(hello, decide)
    }

    /// The conversation, to be answered within `limit`.
    pub(crate) fn into_greeting(self, limit: Duration) -> Result<Greeting, HandshakeError> {
        let mut greeting = self.greeting;
        greeting.block(true)?;
        greeting.deadline_us = deadline_us(limit);
        Ok(greeting)
    }
}

impl AsFd for Caller {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.greeting.socket.as_fd()
    }
}
