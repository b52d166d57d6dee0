//! Watching the peer: heartbeats out, suspicion when nothing comes in.
//!
//! ```text
//!             every heartbeat_ms: tick(now, what was heard and sent since)
//!                                   │
//!            ┌──────────────────────┼──────────────────────┐
//!         Nothing            Send (this side was      Suspect (nothing heard for
//!                            silent since the tick)   suspect_ms; told once)
//!
//!  silence    ├ due ┤ due ┤      late      ┤ due ┤
//!  counts as  └ all ┘ all ┘ all, a quarter ┘ all ┘
//! ```
//!
//! Suspicion makes nobody live: it starts the race for the flag.
//!
//! A tick that comes late says that this host is starved, or was stopped. It says nothing of the peer. So
//! only the time until the tick was due counts whole. The time by which the tick was late counts a quarter,
//! and for one tick never more than a quarter of the time to suspicion. A late tick suspects nobody, but the
//! next one may. On a host where every tick is late, a silent peer is still suspected after four times the
//! setting and a tick, unless each tick was late by more than the whole setting.
//!
//! Bytes that lie unread in the socket are a sign of life: the silence before they came counts no more. That
//! they lie there means that the thread which is to read them has not got to run. So from there on silence
//! counts a quarter.
//!
//! A peer that beats over the tether lives. Then whoever sends on its channel has not got to run, or the
//! channel alone is cut. So such silence counts a quarter, too, and ends the link in the end.

use crate::messages::Settings;

/// Part of the time by which a tick comes late that counts as silence.
const LATE_SHARE: u64 = 4;

/// What went on since the tick before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Activity {
    /// Something came from the peer.
    pub heard: bool,
    /// Something went to the peer.
    pub sent: bool,
    /// This side was not reading, as its buffer is full or as it is delivering outputs. So silence says
    /// nothing.
    pub deaf: bool,
    /// Something from the peer lies in the socket: the thread that is to read it has not got to run.
    pub unread: bool,
    /// The peer has told over the tether that it lives, and nothing more.
    pub alive: bool,
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
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Detector {
    heartbeat_us: u64,
    suspect_us: u64,
    heard_us: u64,
    ticked_us: u64,
    /// How much silence counts since something was heard.
    silence_us: u64,
    /// Something lay unread at the last tick.
    unread: bool,
    suspected: bool,
}

impl Detector {
    /// A detector for a link set up at `now_us`.
    #[must_use]
    pub fn new(settings: Settings, now_us: u64) -> Self {
        Self {
            heartbeat_us: u64::from(settings.heartbeat_ms) * 1_000,
            suspect_us: u64::from(settings.suspect_ms) * 1_000,
            heard_us: now_us,
            ticked_us: now_us,
            silence_us: 0,
            unread: false,
            suspected: false,
        }
    }

    /// Says what is to be done at `now_us`, given what went on since the last tick.
    pub fn tick(&mut self, now_us: u64, activity: Activity) -> Beat {
        let gap_us = now_us.saturating_sub(self.ticked_us);
        self.ticked_us = now_us;
        let came = activity.unread && !self.unread;
        self.unread = activity.unread;
        if came {
            // A sign of life, if not one to act on. Without this, the silence before a stop of this host
            // could decide after it.
            self.silence_us = 0;
        }
        if activity.heard || activity.deaf {
            self.heard_us = now_us;
            self.silence_us = 0;
        } else if self.counts(gap_us, activity.unread || activity.alive) && !self.suspected {
            self.suspected = true;
            let silence_ms = now_us.saturating_sub(self.heard_us) / 1_000;
            return Beat::Suspect { silence_ms };
        }
        if activity.sent {
            Beat::Nothing
        } else {
            Beat::Send
        }
    }

    /// Counts the silence of a tick that came `gap_us` after the one before; `doubtful` if the peer gave some
    /// sign of life. Returns whether there is enough of it to suspect the peer now.
    fn counts(&mut self, gap_us: u64, doubtful: bool) -> bool {
        let doubted = self.silence_us >= self.suspect_us;
        let due_us = if doubtful { 0 } else { self.heartbeat_us };
        let late_us = gap_us.saturating_sub(due_us);
        self.silence_us += gap_us.min(due_us) + late_us.min(self.suspect_us) / LATE_SHARE;
        self.silence_us >= self.suspect_us && (doubted || late_us <= self.heartbeat_us)
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
        unread: false,
        alive: false,
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

    /// Ticks `gap_ms` apart, of a side that hears nothing: how long until it suspects, in milliseconds.
    fn suspects_after(gap_ms: u64, activity: Activity) -> u64 {
        let mut detector = Detector::new(SETTINGS, 0);
        (1..10_000)
            .map(|tick| tick * gap_ms)
            .find(|now| matches!(detector.tick(now * 1_000, activity), Beat::Suspect { .. }))
            .unwrap()
    }

    #[test]
    fn time_by_which_a_tick_is_late_counts_a_quarter() {
        assert_eq!(suspects_after(20, QUIET), 300);
        // 20 + 20 / 4 of 40, 20 + 80 / 4 of 100.
        assert_eq!(suspects_after(40, QUIET), 480);
        assert_eq!(suspects_after(100, QUIET), 900);
    }

    #[test]
    fn a_starved_side_suspects_after_four_times_the_setting_and_a_tick() {
        for gap_ms in 20..=300 {
            let after_ms = suspects_after(gap_ms, QUIET);
            let most_ms = 4 * 300 + 2 * gap_ms;
            assert!((300..=most_ms).contains(&after_ms), "{gap_ms}: {after_ms}");
        }
    }

    #[test]
    fn a_stop_of_this_side_is_nobodys_death_however_long() {
        for stop_ms in [200, 310, 1_000, 60_000, 86_400_000] {
            let mut detector = Detector::new(SETTINGS, 0);
            assert_eq!(run(&mut detector, 0, 280, QUIET), None);
            let woken_ms = 280 + stop_ms;
            assert_eq!(detector.tick(woken_ms * 1_000, QUIET), Beat::Send);
            let heard = Activity {
                heard: true,
                ..QUIET
            };
            assert_eq!(detector.tick((woken_ms + 20) * 1_000, heard), Beat::Send);
        }
    }

    #[test]
    fn a_peer_that_is_silent_after_a_stop_is_suspected() {
        let mut detector = Detector::new(SETTINGS, 0);
        assert_eq!(detector.tick(10_000_000, QUIET), Beat::Send);
        // The stop itself counts 20 + 75.
        assert_eq!(run(&mut detector, 10_000, 11_000, QUIET), Some(10_220));
        let mut late = Detector::new(SETTINGS, 0);
        assert_eq!(run(&mut late, 0, 280, QUIET), None);
        assert_eq!(late.tick(5_000_000, QUIET), Beat::Send);
        let suspect = Beat::Suspect { silence_ms: 9_000 };
        assert_eq!(late.tick(9_000_000, QUIET), suspect);
    }

    #[test]
    fn what_lies_unread_makes_silence_count_a_quarter() {
        let unread = Activity {
            unread: true,
            ..QUIET
        };
        assert_eq!(suspects_after(20, unread), 1_200);
    }

    #[test]
    fn a_peer_that_lives_and_says_nothing_is_suspected_after_four_times_the_setting() {
        let alive = Activity {
            alive: true,
            ..QUIET
        };
        assert_eq!(suspects_after(20, alive), 1_200);
        // Beats and ticks are no pair: every other tick may find none, or two.
        let mut detector = Detector::new(SETTINGS, 0);
        let suspected_ms = (1..10_000).map(|tick| tick * 20).find(|now| {
            let activity = if now % 40 == 0 { alive } else { QUIET };
            matches!(detector.tick(now * 1_000, activity), Beat::Suspect { .. })
        });
        assert_eq!(suspected_ms, Some(480));
        // It is not taken for something heard: then silence counts whole again.
        let mut detector = Detector::new(SETTINGS, 0);
        assert_eq!(run(&mut detector, 0, 400, alive), None);
        assert_eq!(run(&mut detector, 400, 1_000, QUIET), Some(600));
    }

    #[test]
    fn what_lies_unread_after_a_stop_gives_its_reader_time_to_run() {
        let unread = Activity {
            unread: true,
            ..QUIET
        };
        for stop_ms in [200, 310, 1_000, 60_000, 86_400_000] {
            // It is found at the first tick after the stop, or comes by the second.
            for first in [unread, QUIET] {
                let mut detector = Detector::new(SETTINGS, 0);
                assert_eq!(run(&mut detector, 0, 280, QUIET), None);
                let woken_ms = 280 + stop_ms;
                assert_eq!(detector.tick(woken_ms * 1_000, first), Beat::Send);
                // Three times the setting is not enough, four times and a tick is.
                let suspected_ms = run(&mut detector, woken_ms, woken_ms + 2_000, unread);
                let after_ms = suspected_ms.unwrap() - woken_ms;
                assert!((900..=1_220).contains(&after_ms), "{stop_ms}: {after_ms}");
            }
        }
    }

    #[test]
    fn clocks_that_step_back_do_no_harm() {
        let mut detector = Detector::new(SETTINGS, 5_000);
        for now_us in [0, u64::MAX, 3, u64::MAX] {
            detector.tick(now_us, QUIET);
        }
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
