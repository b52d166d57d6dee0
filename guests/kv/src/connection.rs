//! One socket and the client behind it.
//!
//! ```text
//! Closed ──▶ Listen ──▶ SynReceived ──▶ Established ──▶ CloseWait ──▶ LastAck ──▶ Closed
//!   ▲                                   a Client is there             it is gone again
//!   └── at once if few sockets listen ── TimeWait ◀── FinWait (the server closed first)
//! ```

use alloc::vec;
use kvstore::{Client, Server};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Duration;

/// Bytes of each connection's buffers, one per direction.
const BUFFER: usize = 16 * 1024;
/// A silent client is asked this often whether it is still there.
const KEEP_ALIVE: Duration = Duration::from_secs(60);
/// A connection ends when its client has acknowledged nothing for so long.
const TIMEOUT: Duration = Duration::from_secs(180);

/// A socket for a connection.
pub fn socket() -> Socket<'static> {
    let buffer = || SocketBuffer::new(vec![0; BUFFER]);
    let mut socket = Socket::new(buffer(), buffer());
    socket.set_nagle_enabled(false);
    socket.set_keep_alive(Some(KEEP_ALIVE));
    socket.set_timeout(Some(TIMEOUT));
    socket
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
    /// What `listening` of `count` sockets are.
    pub fn new(listening: usize, count: usize) -> Self {
        match listening {
            0 => Self::None,
            _ if listening < count / 2 => Self::Few,
            _ => Self::Enough,
        }
    }
}

/// What belongs to a socket.
pub struct Connection {
    port: u16,
    client: Option<Client>,
}

impl Connection {
    pub fn new(port: u16) -> Self {
        Self { port, client: None }
    }

    /// Does what there is to do for this connection.
    #[inline]
    pub fn serve(&mut self, socket: &mut Socket<'_>, server: &mut Server, spare: Spare) {
        match socket.state() {
            State::Listen | State::SynReceived | State::SynSent => {}
            State::Established | State::CloseWait => {
                let client = self.client.get_or_insert_with(|| server.connect());
                converse(client, socket, server);
            }
            state => {
                if let Some(client) = self.client.take() {
                    server.disconnect(client);
                }
                match state {
                    State::Closed => socket
                        .listen(self.port)
                        .expect("a closed socket can listen on any port but 0"),
                    // All was sent and acknowledged; what is missing is the client's own end.
                    State::FinWait2 if spare == Spare::None => socket.abort(),
                    // Both ends are known; what may come are stray packets.
                    State::TimeWait if spare < Spare::Enough => socket.abort(),
                    _ => {}
                }
            }
        }
    }
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
