//! A bounded server of request lines: every peer-controlled quantity has a limit, and what a peer
//! sends, or does not send, can cost it its own connection, nothing else.

mod crowd;

use crowd::{Crowd, Doing};
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tls::{Peer, Security, Strangers};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{timeout, timeout_at};
use tokio_rustls::TlsAcceptor;

/// What a server grants its peers.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Longest line, newline included, in bytes.
    pub line: usize,
    /// Connections at once. When more come, the least useful is closed (`server/crowd.rs`).
    pub connections: usize,
    /// Bytes of unfinished lines of all peers together. Beyond, the slowest are closed.
    pub unread: usize,
    /// How long a peer may be connected before it has asked something, and between two lines of its until
    /// then.
    pub silent: Duration,
    /// How long a peer that has asked something may wait until it asks again.
    pub idle: Duration,
    /// How long a line may take from its first byte to its last, and a reply to be taken.
    pub transfer: Duration,
}

impl Limits {
    /// For lines of at most `line` bytes: as many connections as a daemon keeps for replicas that stay
    /// connected, and times in which they ask again.
    #[must_use]
    pub const fn for_lines(line: usize) -> Self {
        Self {
            line,
            connections: 2048,
            unread: 32 << 20,
            silent: Duration::from_secs(5),
            idle: Duration::from_secs(60),
            transfer: Duration::from_secs(2),
        }
    }
}

/// What to do with a line.
pub enum Answer {
    /// Send this line; more may follow.
    Reply(Vec<u8>),
    /// Send this line and close.
    Last(Vec<u8>),
}

/// Who asks.
#[derive(Clone, Debug)]
pub struct Asker {
    /// From where.
    pub address: IpAddr,
    /// Whom its certificate names, which was checked; `None` where plaintext is spoken.
    pub identity: Option<Peer>,
}

impl Asker {
    /// Whether it may do what `rule` says of members of the cluster. Where plaintext is spoken everybody may do
    /// everything, and so may operators. Who may not is counted among the `refused`, and told of.
    ///
    /// # Errors
    /// What `rule` says.
    pub fn may(
        &self,
        refused: &Strangers,
        rule: impl FnOnce(&Peer) -> Result<(), String>,
    ) -> Result<(), String> {
        let ruled = match &self.identity {
            Some(peer) if !peer.is_operator() => rule(peer),
            _ => Ok(()),
        };
        if let Err(reason) = &ruled
            && let Some(so_far) = refused.add()
        {
            tracing::warn!(asker = %self, so_far, reason, "a request was refused");
        }
        ruled
    }
}

impl std::fmt::Display for Asker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.identity {
            Some(peer) => write!(f, "{peer} at {}", self.address),
            None => write!(f, "{}", self.address),
        }
    }
}

/// Answers lines; called where blocking is allowed. `first` marks a connection's first line; `None`
/// is a line that was too long.
pub trait Answerer: Send + Sync + 'static {
    /// What to do with `line` of `asker`.
    fn answer(&self, asker: &Asker, line: Option<&[u8]>, first: bool) -> Answer;
}

/// Serves until `shutdown` ends, to whoever `security` lets in; then requests already being answered are, and all is
/// closed.
pub async fn serve(
    listener: TcpListener,
    security: Security,
    limits: Limits,
    answerer: Arc<dyn Answerer>,
    shutdown: impl Future<Output = ()>,
) {
    let crowd = Mutex::new(Crowd::new(limits.connections, limits.unread));
    let room = Arc::new(Room {
        limits,
        crowd,
        security,
        strangers: Strangers::default(),
    });
    let (closing, closed) = watch::channel(false);
    let mut tasks = JoinSet::new();
    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    if let Err(error) = room.security.permit(peer.ip()) {
                        room.turn_away(peer.ip(), &error.to_string());
                        continue;
                    }
                    let Some(guest) = Guest::enter(&room, peer.ip()) else {
                        tracing::warn!(%peer, "turned away: all connections are being answered");
                        continue;
                    };
                    let (answerer, closed) = (Arc::clone(&answerer), closed.clone());
                    tasks.spawn(async move {
                        let end = guest.stay(stream, answerer, closed).await;
                        if let Err(error) = end {
                            tracing::debug!(%peer, %error, "connection ended");
                        }
                    });
                }
                Err(error) => {
                    // Out of descriptors, most likely: a connection must end before another can begin.
                    tracing::warn!(%error, "cannot accept a connection");
                    room.crowd().push_out();
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            },
            Some(_) = tasks.join_next() => {}
        }
    }
    drop(listener);
    let _ = closing.send(true);
    while tasks.join_next().await.is_some() {}
}

/// Where all connections are.
struct Room {
    limits: Limits,
    crowd: Mutex<Crowd>,
    security: Security,
    strangers: Strangers,
}

impl Room {
    /// Notes that somebody is not let in.
    fn turn_away(&self, peer: IpAddr, why: &str) {
        if let Some(so_far) = self.strangers.add() {
            tracing::warn!(%peer, so_far, why, "a stranger was turned away");
        }
    }

    fn crowd(&self) -> MutexGuard<'_, Crowd> {
        self.crowd.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One connection's place.
struct Guest {
    room: Arc<Room>,
    peer: IpAddr,
    id: u64,
    leave: Arc<tokio::sync::Notify>,
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.room.crowd().left(self.id);
    }
}

impl Guest {
    fn enter(room: &Arc<Room>, peer: IpAddr) -> Option<Self> {
        let (id, leave) = room.crowd().enter(peer)?;
        Some(Self {
            room: Arc::clone(room),
            peer,
            id,
            leave,
        })
    }

    fn does(&self, doing: Doing) {
        self.room.crowd().does(self.id, doing);
    }

    /// One connection, to its end.
    async fn stay(
        self,
        stream: TcpStream,
        answerer: Arc<dyn Answerer>,
        mut closed: watch::Receiver<bool>,
    ) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let Security::Tls(tls) = &self.room.security else {
            return self
                .converse(stream.into_split(), None, answerer, closed)
                .await;
        };
        let accepting = TlsAcceptor::from(tls.server_config()).accept(stream);
        let accepted = tokio::select! {
            accepted = timeout(self.room.limits.silent, accepting) => accepted?,
            () = self.leave.notified() => return Ok(()),
            _ = closed.wait_for(|closed| *closed) => return Ok(()),
        };
        let known = accepted
            .map_err(|e| tls::said(&e))
            .and_then(|stream| Ok((Peer::shown(stream.get_ref().1.peer_certificates())?, stream)));
        match known {
            Ok((identity, stream)) => {
                let halves = tokio::io::split(stream);
                self.converse(halves, Some(identity), answerer, closed)
                    .await
            }
            Err(why) => {
                self.room.turn_away(self.peer, &why);
                Ok(())
            }
        }
    }

    /// What is said on one connection, to its end.
    async fn converse<R, W>(
        &self,
        (reader, mut writer): (R, W),
        identity: Option<Peer>,
        answerer: Arc<dyn Answerer>,
        mut closed: watch::Receiver<bool>,
    ) -> io::Result<()>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let limits = self.room.limits;
        let address = self.peer;
        let asker = Arc::new(Asker { address, identity });
        let mut reader = BufReader::with_capacity(limits.line.min(4096), reader);
        // The first line is the greeting, the second the first request.
        let mut lines = 0_u64;
        loop {
            let line = tokio::select! {
                line = self.read_line(&mut reader, lines < 2) => line?,
                () = self.leave.notified() => return Ok(()),
                _ = closed.wait_for(|closed| *closed) => return Ok(()),
            };
            let (line, too_long) = match line {
                Line::Whole(line) => (line, false),
                Line::TooLong => (Vec::new(), true),
                Line::End => return Ok(()),
            };
            let first = lines == 0;
            lines += 1;
            if !first {
                self.does(Doing::Answering);
            }
            let (answerer, asker) = (Arc::clone(&answerer), Arc::clone(&asker));
            let answer = tokio::task::spawn_blocking(move || {
                answerer.answer(&asker, (!too_long).then_some(line.as_slice()), first)
            })
            .await
            .map_err(io::Error::other)?;
            let (reply, last) = match answer {
                Answer::Reply(reply) => (reply, too_long),
                Answer::Last(reply) => (reply, true),
            };
            let told = async {
                writer.write_all(&reply).await?;
                writer.flush().await
            };
            timeout(limits.transfer, told).await??;
            if last {
                writer.shutdown().await?;
                // What the peer still sends is read and dropped, lest a reset overtake the last line.
                let rest = &mut reader.take(limits.line as u64);
                let mut nowhere = tokio::io::sink();
                let drained = timeout(limits.transfer, tokio::io::copy(rest, &mut nowhere));
                self.does(Doing::Silent);
                tokio::select! {
                    drained = drained => drained??,
                    () = self.leave.notified() => 0,
                };
                return Ok(());
            }
            if !first {
                self.does(Doing::Idle);
            }
        }
    }

    /// Reads up to a newline (which is cut off), never more than a line may have.
    async fn read_line<R: AsyncBufReadExt + Unpin>(
        &self,
        reader: &mut R,
        silent: bool,
    ) -> io::Result<Line> {
        let limits = self.room.limits;
        let wait = if silent { limits.silent } else { limits.idle };
        timeout(wait, reader.fill_buf()).await??;
        let deadline = tokio::time::Instant::now() + limits.transfer;
        let mut line = Vec::new();
        loop {
            let chunk = timeout_at(deadline, reader.fill_buf()).await??;
            if chunk.is_empty() {
                // A line cut off by the end is no line.
                return Ok(Line::End);
            }
            let room = limits.line - line.len();
            let end = chunk.iter().take(room).position(|byte| *byte == b'\n');
            let taken = end.map_or(chunk.len().min(room), |at| at + 1);
            line.extend_from_slice(&chunk[..taken]);
            reader.consume(taken);
            let done = end.is_some() || line.len() == limits.line;
            let unread = if done { 0 } else { line.len() };
            self.room.crowd().holds(self.id, unread);
            if end.is_some() {
                line.pop();
                return Ok(Line::Whole(line));
            }
            if done {
                return Ok(Line::TooLong);
            }
        }
    }
}

enum Line {
    Whole(Vec<u8>),
    TooLong,
    End,
}
