use super::*;
use logchannel::backlog::Backlog;
use replay::Clock;
use std::collections::VecDeque;

const MAX_MS: u32 = 250;

/// What came of a simulated pair.
struct Run {
    /// Lag at the end of each step, in microseconds of the backup's work.
    lag_us: Vec<u64>,
    /// Microseconds the guest ran.
    ran_us: u64,
}

impl Run {
    fn worst_of_last_second(&self) -> u64 {
        let from = self.lag_us.len().saturating_sub(1_000);
        *self.lag_us[from..].iter().max().unwrap()
    }

    fn least_of_last_second(&self) -> u64 {
        let from = self.lag_us.len().saturating_sub(1_000);
        *self.lag_us[from..].iter().min().unwrap()
    }
}

/// Counts of the instruction clock in a microsecond of the primary's run.
const RATE: u64 = 10;

/// A guest that would run all the time, in slices of a millisecond, or less after a pause, each told of at its
/// end, and a backup that needs `slower` microseconds for each of its. The primary gets an ack every 20 ms.
fn pair(slower: impl Fn(u64) -> u64, ms: u64) -> Run {
    pair_from(0, slower, ms)
}

/// [`pair`], with a guest that has made `base` counts before.
fn pair_from(base: u64, slower: impl Fn(u64) -> u64, ms: u64) -> Run {
    let mut brake = Brake::new(MAX_MS);
    let mut backlog = Backlog::at(Clock(base));
    let (mut wall_us, mut cpu_us, mut drain_us) = (0, 0, 0);
    let (mut acked_us, mut told_us) = (0, 0);
    // What the backup has not executed: when it was sent, the clock at its end, what it costs.
    let mut queue: VecDeque<(u64, u64, u64)> = VecDeque::new();
    let mut executed = base;
    let mut run = Run {
        lag_us: Vec::new(),
        ran_us: 0,
    };
    while wall_us < ms * 1_000 {
        let pause_us = if brake.is_on(drain_us) {
            brake.pause_us(drain_us, Moment { wall_us, cpu_us })
        } else {
            0
        };
        let step_us = match pause_us {
            0 if wall_us - told_us >= 4_000 => 100,
            0 => 1_000,
            _ => pause_us,
        };
        wall_us += step_us;
        let mut work_us = step_us;
        while let Some((_, clock, cost_us)) = queue.front_mut() {
            let done_us = work_us.min(*cost_us);
            (*cost_us, work_us) = (*cost_us - done_us, work_us - done_us);
            if *cost_us > 0 {
                break;
            }
            executed = *clock;
            queue.pop_front();
        }
        if pause_us == 0 {
            (cpu_us, told_us) = (cpu_us + step_us, wall_us);
            run.ran_us += step_us;
            queue.push_back((wall_us, base + cpu_us * RATE, step_us * slower(wall_us)));
            drain_us = backlog.drain_us(wall_us, Clock(base + cpu_us * RATE));
        }
        if wall_us - acked_us >= 20_000 {
            acked_us = wall_us;
            let age_us = queue.front().map_or(0, |(at_us, ..)| wall_us - at_us);
            backlog.acked(wall_us, Clock(executed), age_us);
            drain_us = backlog.drain_us(wall_us, Clock(base + cpu_us * RATE));
        }
        let lag_us: u64 = queue.iter().map(|(.., cost_us)| cost_us).sum();
        run.lag_us
            .extend((0..step_us.div_ceil(1_000)).map(|_| lag_us));
    }
    run
}

#[test]
fn a_backup_that_keeps_up_costs_nothing() {
    for base in [0, 1_000_000_000_000] {
        let run = pair_from(base, |_| 1, 5_000);
        assert_eq!(run.ran_us, 5_000_000);
    }
}

#[test]
fn below_half_the_bound_there_is_no_pause() {
    let mut brake = Brake::new(MAX_MS);
    for lag_us in [0, 1, 124_999, 125_000] {
        assert!(!brake.is_on(lag_us));
        assert_eq!(brake.speed_permille(lag_us), 1_000);
    }
    assert!(brake.is_on(125_001));
    // Once on it stays so until it was told of a lag like these.
    let moment = |us| Moment {
        wall_us: us,
        cpu_us: us,
    };
    brake.pause_us(200_000, moment(0));
    assert!(brake.is_on(0));
    assert_eq!(brake.pause_us(125_000, moment(10_000)), 0);
    assert!(!brake.is_on(0));
}

#[test]
fn the_more_lag_the_less_speed_and_never_none() {
    let brake = Brake::new(MAX_MS);
    let speeds = (0..2_000).map(|ms| brake.speed_permille(ms * 1_000));
    assert!(speeds.map(std::cmp::Reverse).is_sorted());
    assert_eq!(brake.speed_permille(250_000), 1_000 / 256);
    assert_eq!(brake.speed_permille(u64::MAX), 1);
}

#[test]
fn a_slow_backup_settles_below_the_bound_whatever_its_speed() {
    for slower in [2, 5, 10, 30, 60, 100] {
        let run = pair(|_| slower, 30_000);
        let worst = run.worst_of_last_second();
        assert!(worst < 250_000 + 1_000 * slower, "{slower}: {worst} us");
        // The backup has work all the time: nothing is lost by the brake.
        let least = run.least_of_last_second();
        assert!(least > 0, "{slower}: idle");
        // And the guest gets what the backup can do, within a quarter.
        let fair = 30_000_000 / slower;
        assert!(run.ran_us * 4 > fair * 3, "{slower}: {} us", run.ran_us);
    }
}

#[test]
fn a_backup_that_is_fast_again_gives_the_guest_its_speed_back() {
    let slow_until_us = 10_000_000;
    let slower = |at_us| if at_us < slow_until_us { 40 } else { 0 };
    let before = pair(slower, 10_000).ran_us;
    let after = pair(slower, 12_000).ran_us - before;
    assert!(after > 1_600_000, "{after} us of the two seconds after");
}

#[test]
fn a_guest_that_rests_by_itself_pays_with_that() {
    let mut brake = Brake::new(MAX_MS);
    // A quarter of its speed: three to rest for one to run.
    let lag_us = 125_000 + 2 * 125_000 / 8;
    assert_eq!(brake.speed_permille(lag_us), 250);
    let moment = |wall_us, cpu_us| Moment { wall_us, cpu_us };
    assert_eq!(brake.pause_us(lag_us, moment(0, 0)), 0);
    assert_eq!(brake.pause_us(lag_us, moment(4_000, 1_000)), 0);
    assert_eq!(brake.pause_us(lag_us, moment(6_000, 2_000)), 2_000);
    assert_eq!(brake.pause_us(lag_us, moment(8_000, 2_000)), 0);
}

#[test]
fn no_guest_is_held_for_ever() {
    let mut brake = Brake::new(MAX_MS);
    brake.pause_us(
        u64::MAX,
        Moment {
            wall_us: 0,
            cpu_us: 0,
        },
    );
    let mut wall_us = 10_000;
    let cpu_us = 10_000;
    let mut held_us = 0;
    loop {
        let pause_us = brake.pause_us(u64::MAX, Moment { wall_us, cpu_us });
        if pause_us == 0 {
            break;
        }
        assert!(pause_us <= PAUSE_MAX_US);
        wall_us += pause_us;
        held_us += pause_us;
    }
    assert!((HOLD_MAX_US..HOLD_MAX_US + PAUSE_MAX_US).contains(&held_us));
}

#[test]
fn clocks_that_step_back_do_no_harm() {
    let mut brake = Brake::new(1);
    for (wall_us, cpu_us) in [(u64::MAX, 0), (0, u64::MAX), (5, 3), (u64::MAX, u64::MAX)] {
        brake.pause_us(u64::MAX, Moment { wall_us, cpu_us });
    }
}
