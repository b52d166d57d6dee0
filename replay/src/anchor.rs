//! Anchors: how derived guest time is brought up to real time.
//!
//! ```text
//!  guest ns                       ___ real time
//!      ▲              ____|anchor|
//!      │   ___|anchor|                 between anchors one count of the clock is one nanosecond
//!      └──────────────────────▶ clock
//! ```
//!
//! A machine whose time is derived reads no clock. Its time is the instruction clock plus the sum of all
//! anchors. An anchor rides on an arrival, which is an entry in any case, and only ever moves time forward.

use serde::{Deserialize, Serialize};

/// How far an arrival moves derived guest time forward, in steps of [`Anchor::STEP_NS`].
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Anchor(pub u64);

impl Anchor {
    /// One step, 8.192 µs: two bytes of the log reach 134 ms, and no PIT period is over 55 ms.
    pub const STEP_NS: u64 = 1 << 13;

    /// Time stays where it is.
    pub const NONE: Self = Self(0);

    /// The least anchor that brings a time of `derived_ns` to `real_ns` or past it. It is [`Self::NONE`] if
    /// the time is there already.
    ///
    /// It is rounded up, so that a timer's due moment is never missed. Guest time is then ahead of real time
    /// by less than one step.
    #[must_use]
    pub fn reaching(derived_ns: u64, real_ns: u64) -> Self {
        Self(real_ns.saturating_sub(derived_ns).div_ceil(Self::STEP_NS))
    }

    /// The nanoseconds; `None` for a number only a damaged log can hold.
    #[must_use]
    pub fn ns(self) -> Option<u64> {
        self.0.checked_mul(Self::STEP_NS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_anchor_reaches_real_time_and_hardly_more(derived in 0..1u64 << 62, real in 0..1u64 << 62) {
            let reached = derived + Anchor::reaching(derived, real).ns().unwrap();
            prop_assert!(reached >= real);
            prop_assert!(reached < real.max(derived) + Anchor::STEP_NS);
        }
    }

    #[test]
    fn there_is_none_for_time_that_is_ahead() {
        assert_eq!(Anchor::reaching(5, 5), Anchor::NONE);
        assert_eq!(Anchor::reaching(u64::MAX, 0), Anchor::NONE);
        assert_eq!(Anchor(u64::MAX).ns(), None);
    }
}
