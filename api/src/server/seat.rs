//! One connection's place, and how long its peer may take for what.
//!
//! ```text
//!             its first bytes       whole          answered         all is written
//!   Waiting ────────────────▶ Asking ───▶ Answering ───────▶ Writing ─────────────▶ Waiting
//!   silent, then idle        transfer     no limit           transfer
//! ```
//!
//! hyper parses, and knows none of this: [`Watched`] lies below it, and sees when bytes come and go. All of it runs in
//! the connection's one task.

use super::Room;
use super::crowd::Doing;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep, sleep_until};

/// What a connection's peer, or this server, is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Waiting,
    Asking,
    Answering,
    Writing,
    /// Writing, for as long as the peer takes it.
    Streaming,
}

struct State {
    phase: Phase,
    /// It has asked something.
    has_asked: bool,
    /// Bytes of a request that is not whole yet.
    unread: usize,
    /// When its peer has had its time.
    until: Option<Instant>,
}

/// One connection's place.
pub(super) struct Seat {
    room: Arc<Room>,
    pub(super) peer: IpAddr,
    id: u64,
    leave: Arc<Notify>,
    state: Mutex<State>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.room.crowd().left(self.id);
    }
}

impl Seat {
    /// A place for one more, if there is one.
    pub(super) fn take(room: &Arc<Room>, peer: IpAddr) -> Option<Arc<Self>> {
        let (id, leave) = room.crowd().enter(peer)?;
        let state = State {
            phase: Phase::Waiting,
            has_asked: false,
            unread: 0,
            until: Some(Instant::now() + room.limits.silent),
        };
        Some(Arc::new(Self {
            room: Arc::clone(room),
            peer,
            id,
            leave,
            state: Mutex::new(state),
        }))
    }

    /// Ends when it has to go.
    pub(super) async fn has_to_go(&self) {
        self.leave.notified().await;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn within(&self, time: Duration) -> Option<Instant> {
        let _ = self;
        Some(Instant::now() + time)
    }

    /// Its request is whole, and is being answered.
    pub(super) fn asked(&self) {
        let mut state = self.state();
        (state.phase, state.until, state.unread) = (Phase::Answering, None, 0);
        state.has_asked = true;
        let mut crowd = self.room.crowd();
        crowd.holds(self.id, 0);
        crowd.does(self.id, Doing::Answering);
    }

    /// The answer is there; `streams`: and has no end.
    pub(super) fn answered(&self, streams: bool) {
        let mut state = self.state();
        (state.phase, state.until) = match streams {
            true => (Phase::Streaming, None),
            false => (Phase::Writing, self.within(self.room.limits.transfer)),
        };
        self.room.crowd().does(self.id, Doing::Idle);
    }

    /// Whether its answer has no end.
    pub(super) fn streams(&self) -> bool {
        self.state().phase == Phase::Streaming
    }

    /// So many bytes came.
    fn came(&self, count: usize) {
        let mut state = self.state();
        match state.phase {
            Phase::Waiting | Phase::Writing => {
                state.phase = Phase::Asking;
                state.until = self.within(self.room.limits.transfer);
                state.unread = count;
            }
            Phase::Asking => state.unread = state.unread.saturating_add(count),
            // Of the next request, and no more of it than hyper takes ahead.
            Phase::Answering | Phase::Streaming => return,
        }
        self.room.crowd().holds(self.id, state.unread);
    }

    /// Bytes are to go.
    fn goes(&self) {
        let mut state = self.state();
        match state.phase {
            Phase::Waiting | Phase::Asking => {
                state.phase = Phase::Writing;
                state.until = self.within(self.room.limits.transfer);
            }
            Phase::Streaming if state.until.is_none() => {
                state.until = self.within(self.room.limits.transfer);
            }
            Phase::Answering | Phase::Writing | Phase::Streaming => {}
        }
    }

    /// All bytes have gone.
    fn gone(&self) {
        let mut state = self.state();
        match state.phase {
            Phase::Writing => {
                state.phase = Phase::Waiting;
                let limits = &self.room.limits;
                let wait = match state.has_asked {
                    true => limits.idle,
                    false => limits.silent,
                };
                state.until = self.within(wait);
                state.unread = 0;
                self.room.crowd().holds(self.id, 0);
            }
            Phase::Streaming => state.until = None,
            Phase::Waiting | Phase::Asking | Phase::Answering => {}
        }
    }
}

/// A connection that fails once its peer has had its time.
pub(super) struct Watched<S> {
    stream: S,
    seat: Arc<Seat>,
    timer: Pin<Box<Sleep>>,
}

impl<S> Watched<S> {
    pub(super) fn new(stream: S, seat: Arc<Seat>) -> Self {
        let timer = Box::pin(sleep_until(Instant::now()));
        Self {
            stream,
            seat,
            timer,
        }
    }

    /// `Pending` until the peer has had its time.
    fn poll_late(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        let Some(until) = self.seat.state().until else {
            return Poll::Pending;
        };
        if self.timer.deadline() != until {
            self.timer.as_mut().reset(until);
        }
        ready!(self.timer.as_mut().poll(context));
        Poll::Ready(io::ErrorKind::TimedOut.into())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        if let Poll::Ready(read) = Pin::new(&mut self.stream).poll_read(context, into) {
            let count = into.filled().len() - before;
            if count > 0 {
                self.seat.came(count);
            }
            return Poll::Ready(read);
        }
        self.poll_late(context).map(Err)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.seat.goes();
        if let Poll::Ready(written) = Pin::new(&mut self.stream).poll_write(context, bytes) {
            return Poll::Ready(written);
        }
        self.poll_late(context).map(Err)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Poll::Ready(flushed) = Pin::new(&mut self.stream).poll_flush(context) {
            self.seat.gone();
            return Poll::Ready(flushed);
        }
        self.poll_late(context).map(Err)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
