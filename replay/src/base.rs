//! Where a log begins.
//!
//! ```text
//!   boot:      index 0, clock 0          ├─ 0 ─ 1 ─ 2 ─ ...
//!   state:     index 1000, clock 10^9                      ├─ 1000 ─ 1001 ─ ...
//!              └ the state itself is handed over beside the log
//! ```
//!
//! A machine has one run of entries, numbered without a gap from its boot on, and one instruction clock. A
//! log may hold any part of that run. Its [`Base`] says from where on, and what the machine must be like there.

use crate::event::LogIndex;
use crate::point::Clock;
use names::ViewNumber;
use serde::{Deserialize, Serialize};

/// What a follower needs, beside the log, to stand where the log begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BaseOrigin {
    /// Nothing: it boots the machine.
    Boot,
    /// A machine's state, taken at the clock of the [`Base`].
    State,
}

/// Where a log begins.
///
/// Invariant, for one that is sound ([`Base::check`]): a log from boot begins at index 0 and clock 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Base {
    /// The view the log is of.
    pub view: ViewNumber,
    /// Index of the log's first entry.
    pub index: LogIndex,
    /// Where the guest stands before that entry.
    pub clock: Clock,
    /// Digest of the machine there: of a boot, and of a state in a file, vCPU, devices and all memory; of a state
    /// handed over while the guest waits, vCPU and devices.
    pub digest: u64,
    /// Where a follower has the machine from.
    pub origin: BaseOrigin,
}

/// A [`Base`] no log can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no log begins there: {what}")]
pub struct BaseError {
    what: &'static str,
}

impl BaseError {
    /// What is wrong with it, in a few words.
    #[must_use]
    pub fn what(self) -> &'static str {
        self.what
    }
}

impl Base {
    /// Largest view, index and clock of a sound base: no machine gets so far, and from there on there is
    /// room for every entry and count of a run before 64 bits overflow.
    pub const LARGEST: u64 = 1 << 62;

    /// The log of a machine in `view` that begins with its boot; `digest` is that of its first state.
    #[must_use]
    pub fn boot(view: ViewNumber, digest: u64) -> Self {
        Self {
            view,
            index: LogIndex(0),
            clock: Clock(0),
            digest,
            origin: BaseOrigin::Boot,
        }
    }

    /// The log of a machine that has no views, from its boot on.
    #[must_use]
    pub fn alone(digest: u64) -> Self {
        Self::boot(ViewNumber(0), digest)
    }

    /// The place of the first entry.
    #[must_use]
    pub fn place(&self) -> LogPlace {
        LogPlace {
            index: self.index,
            clock: self.clock,
        }
    }

    /// That there can be such a base: to be asked of one that came from a peer or a file.
    ///
    /// # Errors
    /// [`BaseError`] for a boot in the midst of a run, or a number beyond [`Base::LARGEST`].
    pub fn check(&self) -> Result<(), BaseError> {
        let wrong = |what| Err(BaseError { what });
        let is_boot = self.origin == BaseOrigin::Boot;
        if is_boot && self.index != LogIndex(0) {
            return wrong("a boot after entries");
        }
        if is_boot && self.clock != Clock(0) {
            return wrong("a boot after the guest has run");
        }
        for (what, number) in [
            ("a view too large", self.view.0),
            ("an index too large", self.index.0),
            ("a clock too large", self.clock.0),
        ] {
            if number > Self::LARGEST {
                return wrong(what);
            }
        }
        Ok(())
    }
}

/// A place between two entries of a run.
///
/// The default is the beginning of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct LogPlace {
    /// Index of the next entry.
    pub index: LogIndex,
    /// Clock of the entry before it, or of the log's [`Base`] where there is none: the next one's is no less.
    pub clock: Clock,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(view: u64, index: u64, clock: u64) -> Base {
        Base {
            view: ViewNumber(view),
            index: LogIndex(index),
            clock: Clock(clock),
            digest: 7,
            origin: BaseOrigin::State,
        }
    }

    #[test]
    fn a_log_begins_at_a_boot_or_at_a_state() {
        let large = Base::LARGEST;
        for base in [
            Base::alone(u64::MAX),
            Base::boot(ViewNumber(large), 0),
            state(0, 0, 0),
            // A machine whose guest ran, and that asked for nothing.
            state(1, 0, 5),
            state(3, 1_000, 1_000_000_000),
            state(large, large, large),
        ] {
            assert_eq!(base.check(), Ok(()), "{base:?}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        let boot = |index, clock| Base {
            origin: BaseOrigin::Boot,
            ..state(1, index, clock)
        };
        let beyond = Base::LARGEST + 1;
        for (base, what) in [
            (boot(1, 0), "a boot after entries"),
            (boot(0, 1), "a boot after the guest has run"),
            (boot(5, 5), "a boot after entries"),
            (state(beyond, 0, 0), "a view too large"),
            (state(0, beyond, 0), "an index too large"),
            (state(0, 0, u64::MAX), "a clock too large"),
        ] {
            let error = base.check().unwrap_err();
            assert_eq!(error.what(), what);
            assert!(error.to_string().ends_with(what), "{error}");
        }
    }
}
