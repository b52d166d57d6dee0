//! Derived time never steps back, is the same on both replicas, and goes through a snapshot.

use super::*;
use proptest::prelude::*;

/// What happens to a clock: it counts on, then an anchor comes.
fn history() -> impl Strategy<Value = Vec<(u64, u64)>> {
    proptest::collection::vec((0..1u64 << 40, 0..1u64 << 40), 0..64)
}

proptest! {
    #[test]
    fn time_never_steps_back_and_anchors_reach_real_time(history in history()) {
        let mut time = GuestClock::new(TscMode::Derived);
        let (mut clock, mut last) = (0, 0);
        for (counts, real) in history {
            clock += counts;
            let derived = time.now_ns(Clock(clock)).unwrap();
            prop_assert!(derived >= last + counts);
            time.advance(Anchor::reaching(derived, real)).unwrap();
            last = time.now_ns(Clock(clock)).unwrap();
            prop_assert!(last >= derived.max(real));
        }
    }

    #[test]
    fn both_replicas_have_the_same_time_and_a_restored_one_too(history in history(), at in 0..64usize) {
        let mut primary = GuestClock::new(TscMode::Derived);
        let mut backup = primary;
        let mut clock = 0;
        for (n, (counts, real)) in history.into_iter().enumerate() {
            clock += counts;
            let anchor = Anchor::reaching(primary.now_ns(Clock(clock)).unwrap(), real);
            primary.advance(anchor).unwrap();
            backup.advance(anchor).unwrap();
            if n == at {
                backup = GuestClock::restored(TscMode::Derived, backup.saved()).unwrap();
            }
            for question in [Question::Tsc, Question::PitElapsed(0), Question::WallClock] {
                prop_assert_eq!(
                    primary.answer(question, Clock(clock)),
                    backup.answer(question, Clock(clock))
                );
            }
            prop_assert_eq!(primary.base(), backup.base());
        }
    }
}

#[test]
fn the_engine_and_the_chips_count_the_same_time() {
    let mut time = GuestClock::new(TscMode::Derived);
    time.advance(Anchor(3)).unwrap();
    let TimeBase::Derived { ns_at_zero } = time.base() else {
        panic!("it is derived")
    };
    assert_eq!(time.answer(Question::Tsc, Clock(70)), Some(70 + ns_at_zero));
    assert_eq!(
        time.answer(Question::PitElapsed(2), Clock(70)),
        Some(70 + 3 * Anchor::STEP_NS)
    );
    assert_eq!(time.answer(Question::WallClock, Clock(70)), None);
}

#[test]
fn logged_time_has_no_answer_and_takes_no_anchor() {
    let mut time = GuestClock::new(TscMode::Logged);
    assert_eq!(time.answer(Question::Tsc, Clock(70)), None);
    assert_eq!(time.base(), TimeBase::Exit);
    assert_eq!(time.advance(Anchor::NONE), Ok(()));
    assert_eq!(time.advance(Anchor(1)), Err(TimeError));
}

#[test]
fn what_a_damaged_log_says_is_refused() {
    let mut time = GuestClock::new(TscMode::Derived);
    for steps in [u64::MAX, NS_MAX / Anchor::STEP_NS + 1] {
        assert_eq!(time.advance(Anchor(steps)), Err(TimeError));
    }
    time.advance(Anchor(NS_MAX / Anchor::STEP_NS)).unwrap();
    assert_eq!(time.advance(Anchor(1)), Err(TimeError));
    assert_eq!(time.saved(), Some(NS_MAX));
    for (mode, saved) in [
        (TscMode::Derived, Some(NS_MAX + 1)),
        (TscMode::Derived, None),
        (TscMode::Logged, Some(0)),
    ] {
        assert_eq!(GuestClock::restored(mode, saved), Err(TimeError));
    }
}

#[test]
fn modes_are_named() {
    for mode in [TscMode::Logged, TscMode::Derived] {
        assert_eq!(mode.name().parse(), Ok(mode));
    }
    assert!("real".parse::<TscMode>().is_err());
}
