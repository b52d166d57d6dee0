//! The heartbeats a primary has sent, and when: what the answer to one of them proves.
//!
//! ```text
//!   Heartbeat { call: 7 } ── at 1.000 s ──▶ heard
//!   Heartbeat { call: 8 } ── at 1.020 s ──▶ ✕ cut: the backup suspects its primary from 1.000 s on
//!   Ack { answers: 7 } ◀── at 1.200 s ───── though it still acks
//! ```
//!
//! Why: that an ack arrives proves that the backup speaks, not that it hears. Where only the way to the backup is
//! cut, acks arrive for as long as it takes the backup to suspect its primary. So how long the primary may rely on
//! its backup counts from the moment it sent what the backup has heard.
//!
//! Sans-I/O: times in.

use crate::messages::Settings;
use std::collections::VecDeque;

/// The calls of one link, and the last of them that was answered.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Calls {
    suspect_us: u64,
    last: u64,
    /// Those not answered, with the moment before each was sent. None is older than `suspect_us`: the answer to
    /// an older one is worth nothing.
    sent: VecDeque<(u64, u64)>,
}

impl Calls {
    /// None is made yet.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            suspect_us: u64::from(settings.suspect_ms) * 1_000,
            last: 0,
            sent: VecDeque::new(),
        }
    }

    /// Makes a call, which is to be sent after `now_us`. Its number.
    pub fn make(&mut self, now_us: u64) -> u64 {
        let old = |(_, at): &(u64, u64)| at.saturating_add(self.suspect_us) <= now_us;
        let old = self.sent.partition_point(old);
        self.sent.drain(..old);
        self.last += 1;
        self.sent.push_back((self.last, now_us));
        self.last
    }

    /// The last call made; 0 if there is none.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.last
    }

    /// The backup says that the last call it heard is `answers`. When that was made, if this is news.
    pub fn answered(&mut self, answers: u64) -> Option<u64> {
        let at = self.sent.binary_search_by_key(&answers, |(call, _)| *call);
        let (_, sent_us) = self.sent.drain(..=at.ok()?).next_back()?;
        Some(sent_us)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn calls() -> Calls {
        Calls::new(Settings {
            heartbeat_ms: 20,
            suspect_ms: 300,
        })
    }

    #[test]
    fn an_answer_proves_what_was_there_when_it_was_called() {
        let mut calls = calls();
        assert_eq!(calls.answered(0), None);
        assert_eq!([10, 30, 50].map(|at| calls.make(at)), [1, 2, 3]);
        assert_eq!(calls.answered(2), Some(30));
        assert_eq!(calls.answered(2), None, "no news");
        assert_eq!(calls.answered(1), None, "older than what is known");
        assert_eq!(calls.answered(4), None, "nobody has called so");
        assert_eq!(calls.answered(3), Some(50));
    }

    #[test]
    fn a_backup_that_answers_nothing_costs_no_memory() {
        let mut calls = calls();
        for beat in 0..10_000 {
            calls.make(beat * 20_000);
        }
        assert_eq!(calls.sent.len(), 15);
        assert_eq!(calls.answered(9_000), None, "too old to prove anything");
        assert_eq!(calls.answered(10_000), Some(9_999 * 20_000));
    }
}
