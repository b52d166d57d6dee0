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
    /// A heartbeat.
    beat: bool,
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
        self.queue.push_back(Queued {
            bytes,
            sent,
            beat: false,
        });
    }

    /// Puts a heartbeat before all frames of which nothing has gone yet, in place of an older one among them. What it
    /// says was so before any of them was made; it proves something for a short time only, and they may wait long.
    pub(crate) fn push_beat(&mut self, bytes: Vec<u8>) {
        self.drop_beat();
        let begun = usize::from(self.written > 0);
        let before = begun.checked_sub(1).and_then(|n| self.queue.get(n));
        let beat = Queued {
            bytes,
            sent: before.map_or(self.sent, |frame| frame.sent),
            beat: true,
        };
        self.queue.insert(begun, beat);
    }

    /// Forgets a heartbeat of which nothing has gone yet: there is a newer one.
    pub(crate) fn drop_beat(&mut self) {
        let mut begun = self.written > 0;
        self.queue
            .retain(|frame| std::mem::take(&mut begun) || !frame.beat);
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
        self.sent = self.sent.max(gone.sent);
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What is queued, by the first byte of each frame.
    fn queued(out: &Outgoing) -> Vec<u8> {
        out.queue.iter().map(|frame| frame.bytes[0]).collect()
    }

    #[test]
    fn a_heartbeat_overtakes_what_has_not_begun_to_go_and_an_older_one() {
        let mut out = Outgoing::at(LogIndex(7));
        out.push_beat(vec![1]);
        out.push(vec![10], LogIndex(8));
        out.push(vec![11], LogIndex(9));
        assert_eq!(queued(&out), [1, 10, 11]);
        out.push_beat(vec![2]);
        assert_eq!(queued(&out), [2, 10, 11]);
        assert_eq!(out.queue[0].sent, LogIndex(7));
        // Of the first frame a part has gone, be it a heartbeat or not.
        out.written = 1;
        out.push_beat(vec![3]);
        out.push_beat(vec![4]);
        assert_eq!(queued(&out), [2, 4, 10, 11]);
        out.pop();
        out.drop_beat();
        assert_eq!(queued(&out), [10, 11]);
        out.written = 1;
        out.push_beat(vec![5]);
        assert_eq!(queued(&out), [10, 5, 11]);
        assert_eq!(out.queue[1].sent, LogIndex(8));
    }

    #[test]
    fn of_frames_that_are_taken_over_the_newest_heartbeat_stays() {
        let (mut taken, mut out) = (Outgoing::at(LogIndex(0)), Outgoing::at(LogIndex(0)));
        taken.push(vec![10], LogIndex(1));
        out.push_beat(vec![1]);
        out.push(vec![11], LogIndex(2));
        taken.take(&mut out);
        assert_eq!(queued(&taken), [10, 1, 11]);
        taken.push_beat(vec![2]);
        assert_eq!(queued(&taken), [2, 10, 11]);
    }
}
