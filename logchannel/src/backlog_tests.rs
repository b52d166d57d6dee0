use super::*;

/// Where logs begin in these tests: at a boot, and where a guest has run for a while.
const BASES: [u64; 2] = [0, 1_000_000_000_000];

/// Acks every 20 ms of a backup that executes `speed` counts a microsecond from `base` on, after `sent`
/// counts came at once; the estimates.
fn drain(backlog: &mut Backlog, base: u64, speed: u64, sent: u64) -> Vec<(u64, u64)> {
    let mut estimates = Vec::new();
    for now_us in (0..).step_by(20_000) {
        let executed = now_us * speed;
        if executed >= sent {
            return estimates;
        }
        let left_us = (sent - executed) / speed;
        backlog.acked(now_us, Clock(base + executed), now_us);
        let told = backlog.drain_us(now_us, Clock(base + sent));
        estimates.push((left_us, told));
    }
    unreachable!("it gets there")
}

#[test]
fn the_estimate_is_the_time_the_backup_needs() {
    for base in BASES {
        let estimates = drain(&mut Backlog::at(Clock(base)), base, 3, 3_000_000);
        for (at, (left_us, told)) in estimates.into_iter().enumerate().skip(1) {
            assert!(told.abs_diff(left_us) <= 20, "ack {at}: {told}, {left_us}");
        }
    }
}

/// Most of what the clock says was executed before the log began, by nobody knows whom.
#[test]
fn where_a_log_begins_is_no_backlog_and_no_speed() {
    let base = BASES[1];
    let mut backlog = Backlog::at(Clock(base));
    assert_eq!(backlog.drain_us(0, Clock(base)), 0);
    assert_eq!(backlog.drain_us(0, Clock(base + 1_000_000)), 0);
    // It keeps up, at 10 counts a microsecond: that is a bound, and no measurement.
    for n in 1..=50u64 {
        backlog.acked(n * 20_000, Clock(base + n * 200_000), 0);
        assert_eq!(backlog.drain_us(n * 20_000, Clock(base + n * 200_000)), 0);
    }
    // Then it is busy, and no faster. What was there before the log is in neither of the two.
    let (now_us, executed) = (1_000_000, base + 10_000_000);
    for n in 1..=5u64 {
        let us = n * 20_000;
        backlog.acked(now_us + us, Clock(executed + us * 10), us);
    }
    let sent = executed + 100_000 * 10 + 3_000_000;
    let told = backlog.drain_us(now_us + 100_000, Clock(sent));
    assert!(told.abs_diff(300_000) <= 20, "{told}");
}

#[test]
fn before_the_speed_is_known_the_age_is_believed() {
    let mut backlog = Backlog::at(Clock(0));
    backlog.acked(1_000, Clock(0), 0);
    assert_eq!(backlog.drain_us(2_000, Clock(1 << 40)), 0);
    // It has not got anywhere: nothing is measured.
    backlog.acked(31_000, Clock(0), 30_000);
    assert_eq!(backlog.drain_us(32_000, Clock(1 << 40)), 30_000);
}

/// A guest that makes `RATE` counts a microsecond, all of which a backup has executed that runs as fast at
/// least, but for a hiccup of `hiccup_us` every second; the worst estimate. It tells every 20 ms.
fn hiccups(hiccup_us: u64, faster: u64) -> u64 {
    const RATE: u64 = 1_000;
    let mut backlog = Backlog::at(Clock(0));
    let (mut executed, mut worst_us) = (0, 0);
    for now_us in (0..20_000_000).step_by(1_000) {
        let sent = now_us * RATE;
        if now_us % 1_000_000 >= hiccup_us {
            executed = sent.min(executed + 1_000 * RATE * faster);
        }
        if now_us % 20_000 == 0 {
            let age_us = (sent - executed) / RATE;
            backlog.acked(now_us, Clock(executed), age_us);
        }
        worst_us = worst_us.max(backlog.drain_us(now_us, Clock(sent)));
    }
    worst_us
}

#[test]
fn a_backup_the_scheduler_forgets_is_not_taken_for_a_slow_one() {
    for hiccup_us in [0, 30_000, 60_000, 100_000] {
        for faster in [2, 10] {
            let worst_us = hiccups(hiccup_us, faster);
            let most_us = hiccup_us * 7 / 4 + 25_000;
            assert!(worst_us <= most_us, "{hiccup_us} {faster}: {worst_us}");
        }
    }
}

#[test]
fn a_burst_after_a_quiet_time_is_no_backlog() {
    let mut backlog = Backlog::at(Clock(0));
    // Once it was busy: 1000 counts a microsecond.
    drain(&mut backlog, 0, 1_000, 200_000_000);
    // Then it has little to do, which says nothing of its speed.
    let mut clock = 200_000_000;
    for n in 11..1_000u64 {
        clock += 5;
        backlog.acked(n * 20_000, Clock(clock), 0);
    }
    let told = backlog.drain_us(1_000 * 20_000, Clock(clock + 50_000_000));
    assert!(told <= 50_000, "{told}");
}

#[test]
fn a_backup_that_becomes_slow_is_found_out() {
    let mut backlog = Backlog::at(Clock(0));
    drain(&mut backlog, 0, 1_000, 1_000_000_000);
    let (mut now_us, mut executed) = (1_000_000, 1_000_000_000);
    let began_us = now_us;
    while now_us < began_us + 1_000_000 {
        now_us += 20_000;
        executed += 20_000 * 20;
        backlog.acked(now_us, Clock(executed), now_us - began_us);
    }
    let told = backlog.drain_us(now_us, Clock(executed + 20 * 1_000_000));
    assert!((900_000..1_000_100).contains(&told), "{told}");
}

#[test]
fn a_backup_that_stands_still_counts_by_its_age() {
    let mut backlog = Backlog::at(Clock(0));
    for n in 0..100u64 {
        backlog.acked(n * 20_000, Clock(5), n * 20_000);
    }
    let told = backlog.drain_us(99 * 20_000, Clock(1_000_000));
    assert_eq!(told, 99 * 20_000);
}

#[test]
fn numbers_that_make_no_sense_do_no_harm() {
    let mut backlog = Backlog::at(Clock(0));
    for (now_us, executed, sent, age_us) in [
        (0, u64::MAX, 0, u64::MAX),
        (u64::MAX, 0, u64::MAX, u64::MAX),
        (5, 7, u64::MAX, u64::MAX),
        (200_000, u64::MAX, u64::MAX, u64::MAX),
        (400_000, 0, u64::MAX, 0),
        (600_000, u64::MAX, u64::MAX, 0),
    ] {
        backlog.acked(now_us, Clock(executed), age_us);
        backlog.drain_us(now_us, Clock(sent));
        backlog.drain_us(0, Clock(sent));
    }
}
