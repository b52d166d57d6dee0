//! What a primary believes of its backup after a pause of its own.
//!
//! ```text
//!   reads ── as long as suspect_ms or longer ──▶ reads again: acks from before the pause, maybe
//!                                                  │ Heartbeat { call: n }
//!   believed ◀── Ack { answers: n } ── backup ◀────┘
//! ```
//!
//! Why: a primary that was stopped, or on a starved host, finds acks on waking that may be from before its
//! backup went live, and what they would release may contradict what that backup has done since. A backup
//! that answers a call has not gone live before it heard it, and goes live `suspect_ms` after that at the
//! earliest. If it has gone live it has closed the link and answers nothing, and silence ends it here too.
//!
//! Sans-I/O: times in, calls out.

use crate::messages::Settings;

/// Whether acks may be acted on.
#[derive(Clone, Debug)]
pub(crate) struct Trust {
    suspect_us: u64,
    /// The last call made.
    call: u64,
    /// When it was made, if no answer has come.
    called_us: Option<u64>,
}

impl Trust {
    pub(crate) fn new(settings: Settings) -> Self {
        Self {
            suspect_us: u64::from(settings.suspect_ms) * 1_000,
            call: 0,
            called_us: None,
        }
    }

    /// Something was read at `now_us`, after waiting for `waited_us`. The call to be sent, if the backup
    /// is to be called.
    pub(crate) fn read(&mut self, now_us: u64, waited_us: u64) -> Option<u64> {
        let unanswered_us = self.called_us.map_or(0, |at| now_us.saturating_sub(at));
        if waited_us.max(unanswered_us) < self.suspect_us {
            return None;
        }
        self.call += 1;
        self.called_us = Some(now_us);
        Some(self.call)
    }

    /// Whether an ack read at `now_us` that answers the call `answers` is to be believed, and what comes
    /// after it.
    pub(crate) fn has(&mut self, now_us: u64, answers: u64) -> bool {
        let in_time = |at| answers == self.call && now_us.saturating_sub(at) < self.suspect_us;
        if self.called_us.is_some_and(in_time) {
            self.called_us = None;
        }
        self.called_us.is_none()
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
        for at_us in (0..10_000_000).step_by(299_999) {
            assert_eq!(trust.read(at_us, 299_999), None);
            assert!(trust.has(at_us, 0));
        }
    }

    #[test]
    fn after_a_pause_acks_count_from_the_answer_on() {
        let mut trust = trust();
        assert_eq!(trust.read(400_000, 300_000), Some(1));
        assert!(!trust.has(400_000, 0));
        assert_eq!(trust.read(410_000, 10_000), None);
        assert!(!trust.has(410_000, 0));
        assert_eq!(trust.read(420_000, 10_000), None);
        assert!(trust.has(420_000, 1));
        assert_eq!(trust.read(430_000, 10_000), None);
        assert!(trust.has(430_000, 1));
    }

    #[test]
    fn an_answer_found_after_another_pause_is_as_old_as_that() {
        let mut trust = trust();
        assert_eq!(trust.read(1_000_000, 400_000), Some(1));
        assert_eq!(trust.read(2_000_000, 1_000_000), Some(2));
        assert!(!trust.has(2_000_000, 1));
        assert!(trust.has(2_000_000, 2));
    }

    #[test]
    fn a_call_that_is_not_answered_in_time_is_made_again() {
        let mut trust = trust();
        assert_eq!(trust.read(1_000_000, 300_000), Some(1));
        for at_us in (1_050_000..1_300_000).step_by(50_000) {
            assert_eq!(trust.read(at_us, 50_000), None);
            assert!(!trust.has(at_us, 0));
        }
        assert_eq!(trust.read(1_300_000, 50_000), Some(2));
        assert!(!trust.has(1_300_000, 1), "too late");
        assert!(trust.has(1_310_000, 2));
    }

    #[test]
    fn answers_nobody_asked_for_are_no_answers() {
        let mut trust = trust();
        assert_eq!(trust.read(1_000_000, 300_000), Some(1));
        assert!(!trust.has(1_000_000, u64::MAX));
        assert!(!trust.has(1_000_000, 2));
    }
}
