//! Guest time: asked for and logged, or derived from the instruction clock.
//!
//! ```text
//!  derived:  guest ns = clock + skipped          TSC, PIT and PM timer all count it
//!                                 ▲
//!            arrivals ── anchor ──┘              (the log's; to where real time is, on the primary)
//! ```
//!
//! One count of the clock is one nanosecond, and one tick of the TSC. Time never steps back: the clock
//! does not, and anchors only add. Primary and backup have the same clock and the same anchors, so the
//! same time, without an entry for any reading of it.

use crate::engine::TimeBase;
use replay::{Anchor, Clock, Question};
use serde::{Deserialize, Serialize};

/// Rate of the time-stamp counter, in either mode, in Hz: one tick is one nanosecond.
pub const TSC_HZ: u64 = abi::TSC_HZ;

/// Latest time there is, in nanoseconds: 146 years. What goes past it comes from a damaged log.
const NS_MAX: u64 = 1 << 62;

/// Where guest time comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TscMode {
    /// The host's clock; each value read is an answer in the log.
    #[default]
    Logged,
    /// The instruction clock and anchors on arrivals; readings are not in the log.
    Derived,
}

impl TscMode {
    /// The mode where none is asked for: derived on an engine that counts each instruction and executes
    /// the guest's RDTSC itself (`counts_rdtsc`), else logged.
    #[must_use]
    pub fn usual(counts_rdtsc: bool) -> Self {
        if counts_rdtsc {
            Self::Derived
        } else {
            Self::Logged
        }
    }

    /// The name used on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Logged => "logged",
            Self::Derived => "derived",
        }
    }
}

impl std::fmt::Display for TscMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for TscMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Logged, Self::Derived]
            .into_iter()
            .find(|mode| mode.name() == text)
            .ok_or_else(|| format!("no mode '{text}' (there are logged and derived)"))
    }
}

/// An anchor beyond all time, from a damaged or forged log or snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an anchor moves guest time out of range")]
pub struct TimeError;

/// A machine's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestClock {
    mode: TscMode,
    /// Sum of all anchors so far, in nanoseconds; at most [`NS_MAX`].
    skipped_ns: u64,
}

impl GuestClock {
    /// The clock of a machine that was just switched on.
    #[must_use]
    pub fn new(mode: TscMode) -> Self {
        let skipped_ns = 0;
        Self { mode, skipped_ns }
    }

    /// A clock as [`GuestClock::saved`] left it.
    ///
    /// # Errors
    /// If there is no such clock.
    pub fn restored(mode: TscMode, saved: Option<u64>) -> Result<Self, TimeError> {
        match (mode, saved) {
            (TscMode::Logged, None) => Ok(Self::new(mode)),
            (TscMode::Derived, Some(skipped_ns)) if skipped_ns <= NS_MAX => {
                Ok(Self { mode, skipped_ns })
            }
            _ => Err(TimeError),
        }
    }

    /// Its state; nothing where time is logged.
    #[must_use]
    pub fn saved(&self) -> Option<u64> {
        (self.mode == TscMode::Derived).then_some(self.skipped_ns)
    }

    /// Guest time at `clock`, in nanoseconds; `None` where it is logged.
    #[must_use]
    pub fn now_ns(&self, clock: Clock) -> Option<u64> {
        self.saved()
            .map(|skipped_ns| clock.0.saturating_add(skipped_ns))
    }

    /// The answer to `question` at `clock`, if derived time has one.
    #[must_use]
    pub fn answer(&self, question: Question, clock: Clock) -> Option<u64> {
        const { assert!(abi::TSC_HZ == 1_000_000_000, "one tick is one nanosecond") };
        match question {
            Question::Tsc | Question::PitElapsed(_) | Question::PmElapsed => self.now_ns(clock),
            Question::WallClock | Question::Entropy => None,
        }
    }

    /// Moves derived time forward.
    ///
    /// # Errors
    /// If it leaves its range, or is not derived; the clock is as it was then.
    pub fn advance(&mut self, anchor: Anchor) -> Result<(), TimeError> {
        if anchor == Anchor::NONE {
            return Ok(());
        }
        let skipped_ns = anchor
            .ns()
            .and_then(|ns| self.skipped_ns.checked_add(ns))
            .filter(|ns| *ns <= NS_MAX);
        match (self.mode, skipped_ns) {
            (TscMode::Derived, Some(skipped_ns)) => {
                self.skipped_ns = skipped_ns;
                Ok(())
            }
            _ => Err(TimeError),
        }
    }

    /// What the engine's RDTSC is to do.
    #[must_use]
    pub fn base(&self) -> TimeBase {
        match self.mode {
            TscMode::Logged => TimeBase::Exit,
            TscMode::Derived => TimeBase::Derived {
                ns_at_zero: self.skipped_ns,
            },
        }
    }
}

#[cfg(test)]
#[path = "time_tests.rs"]
mod tests;
