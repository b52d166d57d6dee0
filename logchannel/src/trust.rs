//! What a primary believes of its backup after a pause of its own.
//!
//! ```text
//!   reads ── as long as suspect_ms or longer ──▶ reads again: acks from before the pause, maybe
//!                                                        │ Heartbeat { call: n }
//!   believed ◀── Ack { answers: n or more } ── backup ◀──┘
//! ```
//!
//! Why: a primary that was stopped, or whose host was starved, finds acks when it wakes. They may be from
//! before its backup went live, and what they would release may contradict what the backup has done since.
//!
//! Every heartbeat is a call: it has a number, and acks say which the backup heard last. So the primary believes
//! acks again from the one on that answers a call made after the pause, and makes one at once. A backup that
//! answers has not gone live in that pause. If it goes live later it closes the link first, and the primary reads of
//! that as soon as it would without any pause. The answer may take any time, as long as there is no other pause:
//! after another, only the answer to a newer call counts. A backup that has gone live has closed the link and
//! answers nothing, so the link ends here too.
//!
//! A link may bring something again and again, but no answer. No output would ever be released, and nobody
//! would suspect anybody. So such a link is given up as lost after four times `suspect_ms`. A pause counts as
//! `suspect_ms` at most in this, so no single pause ends a link.
//!
//! Sans-I/O: times and numbers in.

use crate::error::LinkLost;
use crate::messages::Settings;

/// Times `suspect_ms` that an answer is waited for.
const PATIENCE: u64 = 4;

/// Whether acks may be acted on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Trust {
    suspect_us: u64,
    /// The first call whose answer is from after the last pause.
    wanted: u64,
    /// For how long answers have been waited for, pauses cut; none if acks are believed.
    unanswered_us: Option<u64>,
}

impl Trust {
    /// Acks of a link that begins are believed.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            suspect_us: u64::from(settings.suspect_ms) * 1_000,
            wanted: 0,
            unanswered_us: None,
        }
    }

    /// Notes that something was read after waiting for `waited_us`; the next call will be `next`. Returns whether
    /// the backup is to be called now.
    ///
    /// # Errors
    /// If no answer has come for too long.
    pub fn read(&mut self, waited_us: u64, next: u64) -> Result<bool, LinkLost> {
        let is_pause = waited_us >= self.suspect_us;
        if let Some(unanswered_us) = &mut self.unanswered_us {
            *unanswered_us += waited_us.min(self.suspect_us);
            if *unanswered_us > PATIENCE * self.suspect_us {
                let waited_ms = *unanswered_us / 1_000;
                return Err(LinkLost::Unanswered { waited_ms });
            }
        }
        if is_pause {
            self.unanswered_us.get_or_insert(0);
            self.wanted = next;
        }
        Ok(is_pause)
    }

    /// Notes an ack that answers the call `answers`, of which the last was `last`. Returns whether the ack is to
    /// be believed.
    pub fn has(&mut self, answers: u64, last: u64) -> bool {
        if (self.wanted..=last).contains(&answers) {
            self.unanswered_us = None;
        }
        self.unanswered_us.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trust() -> Trust {
        Trust::new(Settings {
            heartbeat_ms: 20,
            suspect_ms: 300,
        })
    }

    #[test]
    fn who_reads_in_time_believes_every_ack() {
        let mut trust = trust();
        for call in 1..100 {
            assert!(!trust.read(299_999, call + 1).unwrap());
            assert!(trust.has(0, call));
        }
    }

    #[test]
    fn after_a_pause_acks_count_from_the_answer_on() {
        let mut trust = trust();
        assert!(trust.read(300_000, 5).unwrap());
        assert!(!trust.has(4, 5));
        assert!(!trust.read(10_000, 6).unwrap());
        assert!(!trust.has(4, 6));
        assert!(!trust.read(10_000, 7).unwrap());
        assert!(trust.has(5, 7));
        assert!(!trust.read(10_000, 8).unwrap());
        assert!(trust.has(5, 8));
    }

    #[test]
    fn a_later_call_made_after_the_pause_does_as_well() {
        let mut trust = trust();
        assert!(trust.read(300_000, 5).unwrap());
        assert!(trust.has(7, 9));
    }

    #[test]
    fn an_answer_found_after_another_pause_is_as_old_as_that() {
        let mut trust = trust();
        assert!(trust.read(400_000, 1).unwrap());
        assert!(trust.read(1_000_000, 2).unwrap());
        assert!(!trust.has(1, 2));
        assert!(trust.has(2, 2));
    }

    /// A heartbeat goes every 20 ms, and each ack says what was called `round_trip_ms` before. When the
    /// first is believed after a pause, in milliseconds after it, or how the link ends.
    fn believes_after(round_trip_ms: u64) -> Result<u64, LinkLost> {
        let mut trust = trust();
        assert!(trust.read(5_000_000, 1)?);
        // Call 1 is made at once, and one more every 20 ms.
        for (last, ms) in (2..).zip((20..).step_by(20)) {
            trust.read(20_000, last)?;
            let heard = (ms + 20_u64)
                .checked_sub(round_trip_ms)
                .map_or(0, |ms| ms / 20);
            if trust.has(heard, last) {
                return Ok(ms);
            }
        }
        unreachable!("heartbeats go on for ever");
    }

    #[test]
    fn a_round_trip_longer_than_the_time_to_suspicion_keeps_no_gate_shut() {
        for round_trip_ms in [20, 280, 300, 320, 600, 1_200] {
            assert_eq!(believes_after(round_trip_ms).unwrap(), round_trip_ms);
        }
    }

    #[test]
    fn a_link_that_leaves_a_call_unanswered_is_lost() {
        for round_trip_ms in [1_220, 10_000, 1_000_000] {
            let lost = believes_after(round_trip_ms).unwrap_err();
            let waited_ms = 1_220;
            assert!(
                matches!(lost, LinkLost::Unanswered { waited_ms: told } if told == waited_ms),
                "{lost}"
            );
        }
    }

    #[test]
    fn a_pause_for_every_answer_ends_the_link_but_no_single_one() {
        let mut trust = trust();
        for call in 1..=5 {
            assert!(trust.read(86_400_000_000, call).unwrap());
            assert!(!trust.has(call - 1, call));
        }
        assert!(trust.read(86_400_000_000, 6).is_err());
    }

    #[test]
    fn every_distrust_is_given_its_whole_time() {
        let mut trust = trust();
        for call in 1..100 {
            assert!(trust.read(300_000, call).unwrap());
            assert!(!trust.read(290_000, call + 1).unwrap());
            assert!(trust.has(call, call));
        }
    }

    #[test]
    fn answers_nobody_asked_for_are_no_answers() {
        let mut trust = trust();
        assert!(trust.read(300_000, 1).unwrap());
        assert!(!trust.has(u64::MAX, 1));
        assert!(!trust.has(2, 1));
    }
}
