//! A bounded server of request lines: every peer-controlled quantity has a limit, and what a peer
//! sends can cost it its own connection, nothing else.

use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// What a server grants its peers.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Longest line, newline included, in bytes.
    pub line: usize,
    /// Connections at once; more wait in the listener's backlog.
    pub connections: usize,
    /// How long a peer may be silent between lines, or take to read a reply.
    pub idle: Duration,
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
    let slots = Arc::new(Semaphore::new(limits.connections));
    let (closing, closed) = watch::channel(false);
    let mut tasks = JoinSet::new();
    tokio::pin!(shutdown);
    loop {
        let next = async {
            let slot = Arc::clone(&slots).acquire_owned().await;
            (slot, listener.accept().await)
        };
        tokio::select! {
            () = &mut shutdown => break,
            (slot, accepted) = next => match accepted {
                Ok((stream, peer)) => {
                    let (answerer, mut closed) = (Arc::clone(&answerer), closed.clone());
                    tasks.spawn(async move {
                        let _slot = slot;
                        let end = converse(stream, peer.ip(), limits, answerer, &mut closed).await;
                        if let Err(error) = end {
                            tracing::debug!(%peer, %error, "connection ended");
                        }
                    });
                }
                Err(error) => {
                    // Out of descriptors, most likely: connections must end before more can begin.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = tasks.join_next() => {}
        }
    }
    drop(listener);
    let _ = closing.send(true);
    while tasks.join_next().await.is_some() {}
}

/// One connection, to its end.
async fn converse(
    stream: TcpStream,
    peer: IpAddr,
    limits: Limits,
    answerer: Arc<dyn Answerer>,
    closed: &mut watch::Receiver<bool>,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::with_capacity(limits.line.min(4096), reader);
    let mut first = true;
    loop {
        let line = tokio::select! {
            line = timeout(limits.idle, read_line(&mut reader, limits.line)) => line??,
            _ = closed.wait_for(|closed| *closed) => return Ok(()),
        };
        let (line, too_long) = match line {
            Line::Whole(line) => (line, false),
            Line::TooLong => (Vec::new(), true),
            Line::End => return Ok(()),
        };
        let answerer = Arc::clone(&answerer);
        let answer = tokio::task::spawn_blocking(move || {
            answerer.answer(peer, (!too_long).then_some(line.as_slice()), first)
        })
        .await
        .map_err(io::Error::other)?;
        let (reply, last) = match answer {
            Answer::Reply(reply) => (reply, too_long),
            Answer::Last(reply) => (reply, true),
        };
        timeout(limits.idle, writer.write_all(&reply)).await??;
        if last {
            writer.shutdown().await?;
            // What the peer still sends is read and dropped, lest a reset overtake the last line.
            let rest = &mut reader.take(limits.line as u64);
            timeout(limits.idle, tokio::io::copy(rest, &mut tokio::io::sink())).await??;
            return Ok(());
        }
        first = false;
    }
}

enum Line {
    Whole(Vec<u8>),
    TooLong,
    End,
}

/// Reads up to a newline (which is cut off), never more than `max` bytes.
async fn read_line<R: AsyncBufReadExt + Unpin>(reader: &mut R, max: usize) -> io::Result<Line> {
    let mut line = Vec::new();
    let read = reader.take(max as u64).read_until(b'\n', &mut line).await?;
    Ok(match line.pop() {
        Some(b'\n') => Line::Whole(line),
        Some(_) if read == max => Line::TooLong,
        // A line cut off by the end is no line.
        _ => Line::End,
    })
}
