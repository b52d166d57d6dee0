//! Lives with one fault built into their shells. Each has to be found, and by the check that is meant to.

use crate::plan::Plan;
use crate::world::Break;
use std::panic::catch_unwind;

/// Lives of seeds one after the other, until the oracle finds the fault; what it says has `what` in it.
fn find(broken: Break, what: &str) {
    for seed in 0..3_000 {
        let plan = Plan {
            broken: Some(broken),
            ..Plan::random(seed)
        };
        let Err(why) = catch_unwind(|| plan.live()) else {
            continue;
        };
        let why = why
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| why.downcast_ref::<&str>().map(|why| (*why).to_owned()))
            .expect("a panic with words");
        assert!(why.contains(what), "{broken:?} of seed {seed}: {why}");
        println!("{broken:?} is found in the life of seed {seed}: {why}");
        return;
    }
    panic!("nobody finds {broken:?}");
}

#[test]
fn a_joiner_that_contends_before_its_welcome() {
    find(Break::JoinerContends, "a joiner contends");
}

#[test]
fn a_joiner_that_believes_to_be_in_the_view_before() {
    find(Break::JoinerInOldView, "in a view it was never in");
}

#[test]
fn a_gate_left_open_at_the_switch() {
    find(Break::GateLeftOpen, "invariant 1");
}

#[test]
fn a_gate_that_suspicion_opens() {
    find(Break::GateOpenedBySuspicion, "invariant 1");
}

#[test]
fn a_gate_that_is_told_of_acks_that_never_came() {
    find(Break::GateOpenedByHeartbeat, "invariant 1");
}

#[test]
fn a_welcome_before_the_flag() {
    find(Break::WelcomeBeforeFlag, "a Welcome before the flag");
}

#[test]
fn a_guest_that_runs_on_while_its_last_state_is_sent() {
    find(Break::GuestRunsOnWhileGiven, "invariant 9");
}

#[test]
fn disk_requests_under_way_at_a_join_that_the_joiner_forgets() {
    find(Break::RequestsUnderWayForgotten, "invariant 4");
}

#[test]
fn suppressed_outputs_that_are_forgotten() {
    find(Break::SuppressedForgotten, "invariant 4");
}

#[test]
fn suppressed_outputs_that_leave_backwards() {
    find(Break::SuppressedBackwards, "invariant 4");
}

#[test]
fn console_bytes_said_to_be_printed_that_are_held() {
    find(Break::ConsoleForgotten, "invariant 4");
}

#[test]
fn outputs_said_to_be_released_that_are_held() {
    find(Break::ReleasedTooFar, "invariant 8");
}

#[test]
fn a_backup_that_goes_live_before_it_has_executed_all() {
    find(Break::DrainSkipped, "invariant 9");
}

#[test]
fn a_diverged_backup_that_does_not_stop() {
    find(Break::DivergenceIgnored, "invariant 7");
}

#[test]
fn an_arbiter_that_forgets() {
    find(Break::ArbiterForgets, "invariant 3");
}

#[test]
fn a_silent_arbiter_that_is_taken_for_a_yes() {
    find(Break::ArbiterGuessed, "a Welcome before the flag");
}

#[test]
fn a_lost_flag_that_is_taken_for_won() {
    find(Break::RefusalIgnored, "invariant 3");
}

#[test]
fn an_arbiter_that_is_never_asked_again() {
    find(Break::RetryForgotten, "liveness");
}

#[test]
fn a_lost_message_that_nobody_notices() {
    find(Break::LossUnnoticed, "invariant 9");
}

#[test]
fn a_join_that_is_never_given_up() {
    find(Break::JoinNeverGivenUp, "liveness");
}
