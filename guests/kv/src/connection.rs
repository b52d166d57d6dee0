//! One socket and the client behind it.
//!
//! ```text
//! Closed ──▶ Listen ──▶ SynReceived ──▶ Established ──▶ CloseWait ──▶ LastAck ──▶ Closed
//!   ▲                                   a Client is there             it is gone again
//!   └── at once if few sockets listen ── TimeWait ◀── FinWait (the server closed first)
//!   └── with a reset, if the client has not let go in time ──┘
//! ```
//!
//! A client that is sent away (too many of them, a value too large) is told why. What it still sends
//! meanwhile is thrown away, so that it comes to read that: a client that is writing is not reading.

use alloc::vec::Vec;
use kvstore::{Client, Server};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::{Duration, Instant};

/// Bytes of each connection's buffers, one per direction.
const BUFFER: usize = 16 * 1024;
/// What a connection takes of the heap, about.
pub const BYTES: usize = 2 * BUFFER + 2048;
/// A silent client is asked this often whether it is still there.
const KEEP_ALIVE: Duration = Duration::from_secs(60);
/// A connection ends when its client has acknowledged nothing for so long.
const TIMEOUT: Duration = Duration::from_secs(180);
/// How long a client that is sent away may take for some of its last replies, and then for its own end
/// of the connection. That is ample for megabytes already on their way, and for a failover.
const LINGER: Duration = Duration::from_secs(5);

/// A socket for a connection, if there is memory for it.
fn socket() -> Option<Socket<'static>> {
    let buffer = || {
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(BUFFER).ok()?;
        bytes.resize(BUFFER, 0);
        Some(SocketBuffer::new(bytes))
    };
    let mut socket = Socket::new(buffer()?, buffer()?);
    socket.set_nagle_enabled(false);
    socket.set_keep_alive(Some(KEEP_ALIVE));
    socket.set_timeout(Some(TIMEOUT));
    Some(socket)
}

/// How many sockets wait for new clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Spare {
    None,
    /// A burst of new clients might find too few.
    Few,
    Enough,
}

impl Spare {
    /// What `listening` sockets are, where `enough` are enough.
    pub fn new(listening: usize, enough: usize) -> Self {
        match listening {
            0 => Self::None,
            _ if listening < enough => Self::Few,
            _ => Self::Enough,
        }
    }
}

/// What belongs to a socket.
pub struct Connection {
    port: u16,
    client: Option<Client>,
    /// Once the client is to go.
    leaving: Option<Leaving>,
}

/// A client that is to go.
#[derive(Clone, Copy)]
struct Leaving {
    /// When it has had its time.
    until: Instant,
    /// Bytes it was yet to get when that was set.
    unsent: usize,
}

impl Connection {
    /// A connection and its socket, which listens; `None` if there is no memory for it.
    pub fn new(port: u16) -> Option<(Self, Socket<'static>)> {
        let mut socket = socket()?;
        listen(&mut socket, port);
        let connection = Self {
            port,
            client: None,
            leaving: None,
        };
        Some((connection, socket))
    }

    /// Does what there is to do for this connection, at the time `now`.
    #[inline]
    pub fn serve(
        &mut self,
        socket: &mut Socket<'_>,
        server: &mut Server,
        spare: Spare,
        now: Instant,
    ) {
        match socket.state() {
            State::Listen | State::SynReceived | State::SynSent => {}
            State::Established | State::CloseWait => {
                let client = self.client.get_or_insert_with(|| server.connect());
                converse(client, socket, server);
                if client.is_closing() {
                    let unsent = client.output().len();
                    self.leave(socket, unsent, now);
                }
            }
            _ => self.end(socket, server, spare, now),
        }
    }

    /// What there is to do once the server has closed its end.
    #[cold]
    fn end(&mut self, socket: &mut Socket<'_>, server: &mut Server, spare: Spare, now: Instant) {
        if let Some(client) = self.client.take() {
            server.disconnect(client);
        }
        match socket.state() {
            State::Closed => {
                self.leaving = None;
                listen(socket, self.port);
            }
            // All was sent and acknowledged; what is missing is the client's own end.
            State::FinWait2 if spare == Spare::None => socket.abort(),
            State::FinWait1 | State::FinWait2 => {
                // Can only fail on a connection that is over.
                let _ = socket.recv(|input| (input.len(), ()));
                self.leave(socket, 0, now);
            }
            // Both ends are known; what may come are stray packets.
            State::TimeWait if spare < Spare::Enough => socket.abort(),
            _ => {}
        }
    }

    /// Resets the connection of a client that is to go, once it has had its time. As long as it takes
    /// its last replies, of which `unsent` bytes are not even with the socket, it has more.
    #[cold]
    fn leave(&mut self, socket: &mut Socket<'_>, unsent: usize, now: Instant) {
        let unsent = unsent + socket.send_queue();
        match self.leaving {
            Some(leaving) if unsent >= leaving.unsent => {
                if now >= leaving.until {
                    socket.abort();
                }
            }
            _ => {
                let until = now + LINGER;
                self.leaving = Some(Leaving { until, unsent });
            }
        }
    }
}

fn listen(socket: &mut Socket<'_>, port: u16) {
    socket
        .listen(port)
        .expect("a closed socket can listen on any port but 0");
}

/// Runs what `client` sent, as far as its replies find room.
#[inline]
fn converse(client: &mut Client, socket: &mut Socket<'_>, server: &mut Server) {
    loop {
        let mut moved = false;
        if socket.can_recv() {
            // Sending and receiving can only fail on a connection that is over: the next call sees.
            let taken = socket.recv(|input| {
                let taken = server.serve(client, input);
                (taken, taken)
            });
            moved = taken.is_ok_and(|taken| taken > 0);
        } else if client.is_waiting() {
            server.serve(client, &[]);
        }
        let output = client.output();
        if !output.is_empty() {
            let sent = socket.send_slice(output).unwrap_or(0);
            server.sent(client, sent);
            moved |= sent > 0;
        }
        if !moved {
            break;
        }
    }
    let over = client.is_closing() || !socket.may_recv();
    if over && client.output().is_empty() {
        socket.close();
    }
}
