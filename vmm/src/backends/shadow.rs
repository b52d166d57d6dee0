//! What a backup has seen of the network: frames for its guest that the primary may not have logged.
//!
//! ```text
//!  TAP ── saw ──▶ │ oldest ... newest │ ── take, at go-live ──▶ guest
//!                        ▲
//!  log ── replayed ──────┘ takes the frame out again
//! ```
//!
//! Both replicas hear every frame for the guest. One that the primary received and had not logged when
//! it died is in nobody's log, and its sender would have to send it again, after a timeout. The backup
//! has it here.
//!
//! The log and the network are two ways, so a frame may be replayed before it is seen: such a frame is
//! remembered by its hash for a while, and not kept when it comes. A frame the primary dropped is
//! never replayed; it goes when the primary has taken enough frames behind it. A mistake either way
//! is a frame lost or sent twice, which a network may do.

use std::collections::VecDeque;
use xxhash_rust::xxh3::xxh3_64;

/// Frames kept at most.
pub const FRAMES_MAX: usize = 4096;
/// Bytes kept at most.
pub const BYTES_MAX: usize = 8 << 20;
/// A frame this many places older than one the primary took was dropped by the primary. As large as
/// what the primary may take out of order, which is little.
const SKIPPED_MAX: usize = 512;
/// Frames replayed and not seen yet, at most.
const EARLY_MAX: usize = 512;

struct Kept {
    hash: u64,
    frame: Vec<u8>,
}

/// A backup's record of the frames seen for its guest.
///
/// Bounded by [`FRAMES_MAX`] and [`BYTES_MAX`]; the oldest go first. Each operation is a hash of the
/// frame and a look at the oldest entry, as long as log and network agree in their order.
#[derive(Default)]
pub struct Shadow {
    frames: VecDeque<Kept>,
    bytes: usize,
    early: VecDeque<u64>,
}

impl Shadow {
    /// A frame for the guest came in.
    pub fn saw(&mut self, frame: Vec<u8>) {
        if self.forget_early(&frame) {
            return;
        }
        self.bytes += frame.len();
        let hash = xxh3_64(&frame);
        self.frames.push_back(Kept { hash, frame });
        while self.frames.len() > FRAMES_MAX || self.bytes > BYTES_MAX {
            self.forget_oldest();
        }
    }

    /// Whether `frame`, which came in, was replayed before. True once for each time it was.
    pub fn forget_early(&mut self, frame: &[u8]) -> bool {
        if self.early.is_empty() {
            return false;
        }
        let hash = xxh3_64(frame);
        let found = self.early.iter().position(|early| *early == hash);
        if let Some(place) = found {
            // The way from the network keeps its order: those replayed before it will not come.
            self.early.drain(..=place);
        }
        found.is_some()
    }

    /// The primary gave `frame` to its guest, as the log says.
    pub fn replayed(&mut self, frame: &[u8]) {
        let hash = xxh3_64(frame);
        let found = self
            .frames
            .iter()
            .position(|kept| kept.hash == hash && kept.frame == frame);
        let Some(place) = found else {
            if self.early.len() == EARLY_MAX {
                self.early.pop_front();
            }
            self.early.push_back(hash);
            return;
        };
        let kept = self.frames.remove(place).expect("it was found there");
        self.bytes -= kept.frame.len();
        for _ in SKIPPED_MAX..place {
            self.forget_oldest();
        }
    }

    /// The frames the primary's guest was not given, oldest first. None are left behind.
    #[must_use]
    pub fn take(&mut self) -> Vec<Vec<u8>> {
        self.bytes = 0;
        let taken = std::mem::take(&mut self.frames);
        taken.into_iter().map(|kept| kept.frame).collect()
    }

    /// Frames kept now.
    #[must_use]
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// Whether no frame is kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    fn forget_oldest(&mut self) {
        if let Some(oldest) = self.frames.pop_front() {
            self.bytes -= oldest.frame.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(number: usize) -> Vec<u8> {
        let mut frame = vec![0xab; 60];
        frame[..8].copy_from_slice(&number.to_le_bytes());
        frame
    }

    fn seen(numbers: std::ops::Range<usize>) -> Shadow {
        let mut shadow = Shadow::default();
        numbers.for_each(|number| shadow.saw(frame(number)));
        shadow
    }

    #[test]
    fn keeps_what_was_not_replayed_in_order() {
        let mut shadow = seen(0..10);
        for number in 0..6 {
            shadow.replayed(&frame(number));
        }
        assert_eq!(shadow.take(), (6..10).map(frame).collect::<Vec<_>>());
        assert!(shadow.is_empty());
        assert_eq!(shadow.bytes, 0);
    }

    #[test]
    fn equal_frames_count_each() {
        let mut shadow = Shadow::default();
        for _ in 0..3 {
            shadow.saw(frame(7));
        }
        shadow.replayed(&frame(7));
        assert_eq!(shadow.take(), [frame(7), frame(7)]);
    }

    #[test]
    fn a_frame_replayed_before_it_is_seen_is_not_kept() {
        let mut shadow = seen(0..1);
        shadow.replayed(&frame(0));
        shadow.replayed(&frame(1));
        shadow.saw(frame(1));
        shadow.saw(frame(2));
        assert_eq!(shadow.take(), [frame(2)]);
    }

    #[test]
    fn a_frame_lost_on_the_way_here_does_not_hold_up_the_next() {
        let mut shadow = Shadow::default();
        shadow.replayed(&frame(0));
        shadow.replayed(&frame(1));
        shadow.saw(frame(1));
        assert!(shadow.is_empty() && shadow.early.is_empty());
        shadow.saw(frame(0));
        assert_eq!(shadow.take(), [frame(0)], "sent anew, so it is kept");
    }

    #[test]
    fn frames_the_primary_dropped_go_with_time() {
        let mut shadow = seen(0..SKIPPED_MAX + 12);
        shadow.replayed(&frame(SKIPPED_MAX + 11));
        assert_eq!(shadow.len(), SKIPPED_MAX);
        assert_eq!(shadow.take().first(), Some(&frame(11)));
    }

    #[test]
    fn bounded_in_frames_bytes_and_early_ones() {
        let mut shadow = seen(0..FRAMES_MAX + 5);
        assert_eq!(shadow.len(), FRAMES_MAX);
        assert_eq!(shadow.take().first(), Some(&frame(5)));
        for _ in 0..FRAMES_MAX {
            shadow.saw(vec![1; 4096]);
        }
        assert_eq!(shadow.len(), BYTES_MAX / 4096);
        for number in 0..EARLY_MAX + 5 {
            shadow.replayed(&frame(number));
        }
        assert_eq!(shadow.early.len(), EARLY_MAX);
    }

    #[test]
    fn a_long_run_in_step_leaves_nothing() {
        let mut shadow = seen(0..100);
        for number in 0..50_000 {
            shadow.replayed(&frame(number));
            shadow.saw(frame(number + 100));
        }
        assert_eq!(
            shadow.take(),
            (50_000..50_100).map(frame).collect::<Vec<_>>()
        );
    }
}
