//! Frames on their way into the socket.

use crate::error::LinkLost;
use crate::link::Link;
use crate::metrics::add;
use replay::LogIndex;
use std::collections::VecDeque;

/// Buffers kept for later frames, if they are not large.
const SPARES: usize = 4;
const SPARE_MAX: usize = 256 << 10;

struct Queued {
    bytes: Vec<u8>,
    /// The cursor `sent` once this frame has gone.
    sent: LogIndex,
}

/// A queue of whole frames, the first of which may have gone in part.
pub(crate) struct Outgoing {
    queue: VecDeque<Queued>,
    /// Bytes of the first frame that have gone.
    written: usize,
    /// After the last frame that has gone.
    sent: LogIndex,
    spares: Vec<Vec<u8>>,
}

impl Outgoing {
    /// An empty queue, for a log whose first entry is `first`.
    pub(crate) fn at(first: LogIndex) -> Self {
        Self {
            queue: VecDeque::new(),
            written: 0,
            sent: first,
            spares: Vec::new(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub(crate) fn push(&mut self, bytes: Vec<u8>, sent: LogIndex) {
        self.queue.push_back(Queued { bytes, sent });
    }

    /// An empty buffer for the next frame.
    pub(crate) fn buffer(&mut self) -> Vec<u8> {
        self.spares.pop().unwrap_or_default()
    }

    /// After the last entry in a frame that has gone whole.
    pub(crate) fn sent(&self) -> LogIndex {
        self.sent
    }

    /// Takes all frames of `other`, to send them behind its own.
    pub(crate) fn take(&mut self, other: &mut Self) {
        self.queue.append(&mut other.queue);
        std::mem::swap(&mut self.spares, &mut other.spares);
    }

    /// Sends what the socket has room for, without waiting. True if nothing is left.
    pub(crate) fn pump(&mut self, link: &Link) -> Result<bool, LinkLost> {
        while let Some(front) = self.queue.front() {
            let more = self.queue.len() > 1;
            let Some(count) = link.send(&front.bytes[self.written..], more)? else {
                add(&link.metrics.socket_full, 1);
                return Ok(false);
            };
            self.written += count;
            if self.written == front.bytes.len() {
                self.pop();
                add(&link.metrics.frames_sent, 1);
            }
        }
        if !link.flush()? {
            add(&link.metrics.socket_full, 1);
            return Ok(false);
        }
        Ok(true)
    }

    fn pop(&mut self) {
        let mut gone = self.queue.pop_front().expect("a frame was there");
        self.written = 0;
        self.sent = gone.sent;
        if self.spares.len() < SPARES && gone.bytes.capacity() <= SPARE_MAX {
            gone.bytes.clear();
            self.spares.push(gone.bytes);
        }
    }

    /// Forgets everything: the link is over.
    pub(crate) fn clear(&mut self) {
        self.queue = VecDeque::new();
        self.spares = Vec::new();
        self.written = 0;
    }
}
