//! Watching the peer: heartbeats out, suspicion when nothing comes in.
//!
//! ```text
//!             every heartbeat_ms: tick(now, what was heard and sent since)
//!                                   │
//!            ┌──────────────────────┼──────────────────────┐
//!         Nothing            Send (this side was      Suspect (nothing heard for
//!                            silent since the tick)   suspect_ms; told once)
//! ```
//!
//! Suspicion makes nobody live: it starts the race for the flag.

use crate::messages::Settings;

/// What went on since the tick before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Activity {
    /// Something came from the peer.
    pub heard: bool,
    /// Something went to the peer.
    pub sent: bool,
    /// This side was not listening (its buffer is full, or it is delivering outputs), so silence
    /// says nothing.
    pub deaf: bool,
}

/// What is to be done at a tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beat {
    /// Nothing.
    Nothing,
    /// Send a sign of life.
    Send,
    /// The peer may be dead.
    Suspect {
        /// How long nothing was heard.
        silence_ms: u64,
    },
}

/// The detector: no socket, no clock, no thread.
#[derive(Clone, Debug)]
pub struct Detector {
    suspect_us: u64,
    heard_us: u64,
    ticked_us: u64,
    suspected: bool,
}

impl Detector {
    /// A detector for a link set up at `now_us`.
    #[must_use]
    pub fn new(settings: Settings, now_us: u64) -> Self {
        Self {
            suspect_us: u64::from(settings.suspect_ms) * 1_000,
            heard_us: now_us,
            ticked_us: now_us,
            suspected: false,
        }
    }

    /// Says what is to be done at `now_us`, given what went on since the last tick.
    ///
    /// A tick that comes later than half the time to suspicion shows that this process itself slept
    /// (its host paused, or was overloaded). Then silence is counted anew: what the peer said may still
    /// lie unread in the socket.
    pub fn tick(&mut self, now_us: u64, activity: Activity) -> Beat {
        let slept = now_us.saturating_sub(self.ticked_us) > self.suspect_us / 2;
        self.ticked_us = now_us;
        if activity.heard || activity.deaf || slept {
            self.heard_us = now_us;
        }
        let silence_us = now_us.saturating_sub(self.heard_us);
        if silence_us >= self.suspect_us && !self.suspected {
            self.suspected = true;
            let silence_ms = silence_us / 1_000;
            return Beat::Suspect { silence_ms };
        }
        if activity.sent {
            Beat::Nothing
        } else {
            Beat::Send
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: Settings = Settings {
        heartbeat_ms: 20,
        suspect_ms: 300,
    };
    const QUIET: Activity = Activity {
        heard: false,
        sent: false,
        deaf: false,
    };

    /// Ticks every 20 ms until something other than `Send` and `Nothing` happens or `until_ms` is over.
    fn run(
        detector: &mut Detector,
        from_ms: u64,
        until_ms: u64,
        activity: Activity,
    ) -> Option<u64> {
        (from_ms / 20 + 1..=until_ms / 20)
            .map(|tick| tick * 20)
            .find(|now| matches!(detector.tick(now * 1_000, activity), Beat::Suspect { .. }))
    }

    #[test]
    fn silence_of_the_set_time_is_suspected_once() {
        let mut detector = Detector::new(SETTINGS, 0);
        assert_eq!(run(&mut detector, 0, 280, QUIET), None);
        let suspect = Beat::Suspect { silence_ms: 300 };
        assert_eq!(detector.tick(300_000, QUIET), suspect);
        assert_eq!(detector.tick(320_000, QUIET), Beat::Send);
    }

    #[test]
    fn whatever_is_heard_starts_the_count_anew() {
        let mut detector = Detector::new(SETTINGS, 0);
        assert_eq!(run(&mut detector, 0, 280, QUIET), None);
        let heard = Activity {
            heard: true,
            ..QUIET
        };
        assert_eq!(detector.tick(300_000, heard), Beat::Send);
        assert_eq!(run(&mut detector, 300, 1_000, QUIET), Some(600));
    }

    #[test]
    fn a_side_that_does_not_listen_suspects_nobody() {
        let mut detector = Detector::new(SETTINGS, 0);
        let deaf = Activity {
            deaf: true,
            ..QUIET
        };
        assert_eq!(run(&mut detector, 0, 5_000, deaf), None);
        assert_eq!(run(&mut detector, 5_000, 6_000, QUIET), Some(5_300));
    }

    #[test]
    fn a_side_that_slept_gives_the_peer_time() {
        let mut detector = Detector::new(SETTINGS, 0);
        assert_eq!(detector.tick(10_000_000, QUIET), Beat::Send);
        assert_eq!(run(&mut detector, 10_000, 11_000, QUIET), Some(10_300));
    }

    #[test]
    fn signs_of_life_go_out_only_when_nothing_else_does() {
        let mut detector = Detector::new(SETTINGS, 0);
        let heard = Activity {
            heard: true,
            ..QUIET
        };
        assert_eq!(detector.tick(20_000, heard), Beat::Send);
        let both = Activity {
            sent: true,
            ..heard
        };
        assert_eq!(detector.tick(40_000, both), Beat::Nothing);
    }
}
