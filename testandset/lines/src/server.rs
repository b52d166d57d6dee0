//! A bounded server of request lines: every peer-controlled quantity has a limit, and what a peer
//! sends, or does not send, can cost it its own connection, nothing else.

mod crowd;

use crowd::{Crowd, Doing};
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{timeout, timeout_at};

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

/// Answers lines; called where blocking is allowed. `first` marks a connection's first line; `None`
/// is a line that was too long.
pub trait Answerer: Send + Sync + 'static {
    /// What to do with `line` of `peer`.
    fn answer(&self, peer: IpAddr, line: Option<&[u8]>, first: bool) -> Answer;
}

/// Serves until `shutdown` ends; then requests already being answered are, and all is closed.
pub async fn serve(
    listener: TcpListener,
    limits: Limits,
    answerer: Arc<dyn Answerer>,
    shutdown: impl Future<Output = ()>,
) {
    let crowd = Mutex::new(Crowd::new(limits.connections, limits.unread));
    let room = Arc::new(Room { limits, crowd });
    let (closing, closed) = watch::channel(false);
    let mut tasks = JoinSet::new();
    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
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
}

impl Room {
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
        let limits = self.room.limits;
        stream.set_nodelay(true)?;
        let (reader, mut writer) = stream.into_split();
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
            let (answerer, peer) = (Arc::clone(&answerer), self.peer);
            let answer = tokio::task::spawn_blocking(move || {
                answerer.answer(peer, (!too_long).then_some(line.as_slice()), first)
            })
            .await
            .map_err(io::Error::other)?;
            let (reply, last) = match answer {
                Answer::Reply(reply) => (reply, too_long),
                Answer::Last(reply) => (reply, true),
            };
            timeout(limits.transfer, writer.write_all(&reply)).await??;
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
