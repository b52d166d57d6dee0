//! Outputs the backup's guest made and nobody saw (invariant 4).
//!
//! ```text
//!   replaying vCPU ──hold(index, output)──▶ [ 4 | 6 | 6r | 9 | 11 ] ──take_for_reemission()──▶ outlet
//!        │                                    ▲                          (go-live)
//!        └──completed(tag)── disk requests ───┤
//!   primary's heartbeat ──delivered── others ─┘
//! ```
//!
//! How long an output is kept depends on what it is:
//!
//! - Frames and power-off: until the primary's `released` cursor passes them.
//! - Console bytes: until the primary's `printed` cursor passes them. A primary whose gate has let them out
//!   may still hold them for a slow reader.
//! - Disk requests: until their completion was replayed. A request may have left the primary's gate and be
//!   lost with it; only its completion proves that it was done. Reads are kept too, since the guest waits
//!   for their data.
//!
//! The primary bounds how much this can be. Its buffer counts an output until it is released, and its
//! console holds only so much before a vCPU that prints has to wait.

use logchannel::Delivered;
use replay::{LogIndex, Output};
use std::collections::VecDeque;

/// Whether `output` of entry `index` is among what was delivered. Of disk requests that is never known.
fn is_among(delivered: Delivered, index: LogIndex, output: &Output) -> bool {
    match output {
        Output::Frame(_) | Output::PowerOff { .. } => index < delivered.released,
        Output::Console(_) => index < delivered.printed,
        Output::DiskRead { .. } | Output::DiskWrite { .. } | Output::DiskFlush { .. } => false,
    }
}

/// Keeps suppressed outputs until the primary has surely delivered them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Suppressed {
    kept: VecDeque<(LogIndex, Output)>,
    bytes: usize,
    delivered: Delivered,
}

impl Suppressed {
    /// Nothing suppressed yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Nothing suppressed yet of a log whose first entry is `first`. Everything before it is delivered, but
    /// for disk requests still under way there, which may be held first.
    #[must_use]
    pub fn at(first: LogIndex) -> Self {
        Self {
            delivered: Delivered::before(first),
            ..Self::default()
        }
    }

    /// Keeps the output that entry `index` marks, unless it is delivered already.
    ///
    /// # Panics
    /// If `index` steps back.
    pub fn hold(&mut self, index: LogIndex, output: Output) {
        let last = self.kept.back().map(|(last, _)| *last);
        assert!(
            last <= Some(index),
            "output of entry {index} after {last:?}"
        );
        if !is_among(self.delivered, index, &output) {
            self.bytes += output.bytes();
            self.kept.push_back((index, output));
        }
    }

    /// Takes the primary's word for what it has delivered, and forgets that.
    pub fn delivered(&mut self, delivered: Delivered) {
        if delivered == self.delivered {
            return;
        }
        self.delivered = delivered;
        let old = |(index, _): &(LogIndex, Output)| *index < delivered.released;
        let old = self.kept.partition_point(old);
        // Few stay: the disk requests of one queue, and what a console holds. All else before `old` goes.
        let mut stay = Vec::new();
        for (index, output) in self.kept.drain(..old) {
            if is_among(delivered, index, &output) {
                self.bytes -= output.bytes();
            } else {
                stay.push((index, output));
            }
        }
        for kept in stay.into_iter().rev() {
            self.kept.push_front(kept);
        }
    }

    /// Where disk request `tag` reads, and how much, if it is a read whose completion was not replayed.
    #[must_use]
    pub fn read(&self, tag: u32) -> Option<(u64, u32)> {
        self.kept.iter().find_map(|(_, output)| match output {
            Output::DiskRead {
                tag: its,
                offset,
                len,
            } if *its == tag => Some((*offset, *len)),
            _ => None,
        })
    }

    /// The completion of disk request `tag` was replayed: forgets the request.
    pub fn completed(&mut self, tag: u32) {
        let place = self
            .kept
            .iter()
            .position(|(_, output)| output.disk_tag() == Some(tag));
        if let Some((_, output)) = place.and_then(|place| self.kept.remove(place)) {
            self.bytes -= output.bytes();
        }
    }

    /// Takes everything kept, in order, to be emitted by the replica that goes live.
    pub fn take_for_reemission(&mut self) -> Vec<(LogIndex, Output)> {
        self.bytes = 0;
        std::mem::take(&mut self.kept).into()
    }

    /// How many outputs are kept.
    #[must_use]
    pub fn len(&self) -> usize {
        self.kept.len()
    }

    /// Whether none is kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// Bytes kept.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(byte: u8) -> Output {
        Output::Frame(vec![byte; 10])
    }

    fn delivered(released: u64, printed: u64) -> Delivered {
        Delivered {
            released: LogIndex(released),
            printed: LogIndex(printed),
        }
    }

    fn write(tag: u32) -> Output {
        Output::DiskWrite {
            tag,
            offset: 0,
            data: vec![0; 512],
        }
    }

    fn indexes(suppressed: &mut Suppressed) -> Vec<u64> {
        let kept = suppressed.take_for_reemission();
        kept.into_iter().map(|(index, _)| index.0).collect()
    }

    #[test]
    fn frames_are_kept_until_released_and_come_out_in_order() {
        let mut suppressed = Suppressed::new();
        for index in 0..5 {
            suppressed.hold(LogIndex(index * 2), frame(1));
        }
        suppressed.delivered(delivered(4, 4));
        assert_eq!((suppressed.len(), suppressed.bytes()), (3, 30));
        assert_eq!(indexes(&mut suppressed), [4, 6, 8]);
        assert!(suppressed.is_empty());
    }

    #[test]
    fn of_what_was_before_the_log_only_disk_requests_are_kept() {
        let mut suppressed = Suppressed::at(LogIndex(1_000));
        suppressed.hold(LogIndex(990), frame(1));
        suppressed.hold(LogIndex(990), Output::Console(b"text".to_vec()));
        suppressed.hold(LogIndex(991), write(7));
        for index in 1_000..1_003 {
            suppressed.hold(LogIndex(index), frame(1));
        }
        suppressed.delivered(Delivered::before(LogIndex(1_000)));
        assert_eq!(suppressed.len(), 4);
        suppressed.delivered(delivered(1_001, 1_000));
        assert_eq!(indexes(&mut suppressed), [991, 1_001, 1_002]);
    }

    #[test]
    fn console_bytes_are_kept_until_they_are_printed() {
        let text = || Output::Console(b"text".to_vec());
        let mut suppressed = Suppressed::new();
        suppressed.hold(LogIndex(0), text());
        suppressed.hold(LogIndex(1), frame(1));
        suppressed.hold(LogIndex(2), text());
        suppressed.delivered(delivered(3, 1));
        assert_eq!((suppressed.len(), suppressed.bytes()), (1, 4));
        // A backup that is behind: its primary said so before it executed these.
        suppressed.delivered(delivered(9, 5));
        for index in 3..7 {
            suppressed.hold(LogIndex(index), text());
            suppressed.hold(LogIndex(index), frame(2));
        }
        assert_eq!(indexes(&mut suppressed), [5, 6]);
        assert_eq!(suppressed.bytes(), 0);
    }

    #[test]
    fn disk_requests_are_kept_until_their_completion_was_replayed() {
        let mut suppressed = Suppressed::new();
        suppressed.hold(LogIndex(0), write(7));
        suppressed.hold(LogIndex(1), frame(1));
        let read = Output::DiskRead {
            tag: 8,
            offset: 0,
            len: 512,
        };
        suppressed.hold(LogIndex(2), read);
        suppressed.hold(LogIndex(3), frame(2));
        suppressed.hold(LogIndex(4), write(9));
        suppressed.delivered(delivered(4, 4));
        suppressed.completed(8);
        suppressed.completed(8);
        assert_eq!(suppressed.bytes(), 1024);
        assert_eq!(indexes(&mut suppressed), [0, 4]);
    }
}
