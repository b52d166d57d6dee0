//! What the 8254 datasheet says, by its headings.

use super::*;
use crate::devices::tests::conforms;

/// The first nanosecond at which `clocks` clocks have passed.
fn at(clocks: u64) -> u64 {
    (clocks * NS_PER_S).div_ceil(PIT_HZ)
}

fn write(pit: &mut Pit, now: u64, bytes: &[(u16, u8)]) {
    for &(port, value) in bytes {
        pit.write(port, value, &mut |_| Ok(now)).unwrap();
    }
}

fn read(pit: &mut Pit, port: u16, now: u64) -> u8 {
    pit.read(port, &mut |_| Ok(now)).unwrap()
}

fn silent(_: u8) -> Result<u64, InputsError> {
    panic!("asked for the time")
}

/// Channel 0 in `mode` with `count`, low byte then high byte, programmed at time 0.
fn counting(mode: u8, count: u16) -> Pit {
    let mut pit = Pit::new();
    let [low, high] = count.to_le_bytes();
    write(
        &mut pit,
        0,
        &[(0x43, 0x30 | mode << 1), (0x40, low), (0x40, high)],
    );
    pit
}

fn count(pit: &mut Pit, now: u64) -> u16 {
    u16::from_le_bytes([read(pit, 0x40, now), read(pit, 0x40, now)])
}

/// The status byte of channel 0, latched by a read-back command.
fn status(pit: &mut Pit, now: u64) -> u8 {
    write(pit, now, &[(0x43, 0xe2)]);
    read(pit, 0x40, now)
}

fn out(pit: &mut Pit, now: u64) -> bool {
    status(pit, now) & 0x80 != 0
}

#[test]
fn mode_0_counts_down_once_and_then_on_from_the_top() {
    let mut pit = counting(0, 1000);
    for (clocks, expected, high) in [
        (0, 1000, false),
        (1, 999, false),
        (999, 1, false),
        (1000, 0, true),
        (1001, 0xffff, true),
        (70_000, 62_072, true),
    ] {
        assert_eq!(count(&mut pit, at(clocks)), expected, "after {clocks}");
        assert_eq!(out(&mut pit, at(clocks)), high, "after {clocks}");
    }
}

#[test]
fn mode_0_stops_at_the_first_byte_of_a_new_count() {
    let mut pit = counting(0, 1000);
    write(&mut pit, at(10), &[(0x40, 50)]);
    assert_eq!(pit.timer().period_ns, 0);
    write(&mut pit, at(20), &[(0x40, 0)]);
    assert_eq!(count(&mut pit, at(30)), 40);
}

#[test]
fn mode_2_repeats_and_is_low_for_the_last_clock() {
    let mut pit = counting(2, 10);
    for (clocks, expected) in [(0, 10), (1, 9), (9, 1), (10, 10), (19, 1), (1_000_003, 7)] {
        assert_eq!(count(&mut pit, at(clocks)), expected, "after {clocks}");
        assert_eq!(out(&mut pit, at(clocks)), expected != 1, "after {clocks}");
    }
}

#[test]
fn mode_3_counts_by_twos_and_is_high_for_the_longer_half() {
    let mut even = counting(3, 6);
    let seen: Vec<_> = (0..7)
        .map(|clocks| (count(&mut even, at(clocks)), out(&mut even, at(clocks))))
        .collect();
    let period = [
        (6, true),
        (4, true),
        (2, true),
        (6, false),
        (4, false),
        (2, false),
    ];
    assert_eq!(seen[..6], period);
    assert_eq!(seen[6], period[0]);
    let mut odd = counting(3, 5);
    let seen: Vec<_> = (0..5)
        .map(|clocks| (count(&mut odd, at(clocks)), out(&mut odd, at(clocks))))
        .collect();
    assert_eq!(
        seen,
        [(4, true), (2, true), (0, true), (4, false), (2, false)]
    );
}

#[test]
fn modes_6_and_7_are_2_and_3() {
    for (mode, seen) in [(6, 2), (7, 3)] {
        let mut pit = counting(mode, 100);
        assert_eq!(status(&mut pit, 0) >> 1 & 7, seen);
    }
}

#[test]
fn mode_4_strobes_when_the_count_ends() {
    let mut pit = counting(4, 8);
    let outs = [7, 8, 9].map(|clocks| out(&mut pit, at(clocks)));
    assert_eq!(outs, [true, false, true]);
}

#[test]
fn a_count_of_0_is_the_greatest() {
    let mut pit = counting(2, 0);
    assert_eq!(count(&mut pit, at(1)), 0xffff);
    assert_eq!(pit.timer().period_ns, (65_536 * NS_PER_S).div_ceil(PIT_HZ));
    write(&mut pit, 0, &[(0x43, 0x35), (0x40, 0), (0x40, 0)]);
    assert_eq!(count(&mut pit, at(1)), 0x9999, "BCD: 10000");
}

#[test]
fn bcd_counts_in_decimal() {
    let mut pit = Pit::new();
    write(&mut pit, 0, &[(0x43, 0x35), (0x40, 0x00), (0x40, 0x10)]);
    assert_eq!(count(&mut pit, at(1)), 0x0999);
    assert_eq!(status(&mut pit, 0) & 1, 1);
}

#[test]
fn single_bytes_are_read_and_written_as_the_control_word_says() {
    let mut pit = Pit::new();
    write(&mut pit, 0, &[(0x43, 0x14), (0x40, 0x80)]);
    let low = [read(&mut pit, 0x40, at(1)), read(&mut pit, 0x40, at(1))];
    assert_eq!(low, [0x7f, 0x7f]);
    write(&mut pit, 0, &[(0x43, 0x24), (0x40, 0x80)]);
    assert_eq!(read(&mut pit, 0x40, at(1)), 0x7f, "high byte of 0x7fff");
    assert_eq!(status(&mut pit, 0) >> 4 & 3, 2);
}

#[test]
fn a_count_latched_stays_until_it_is_read() {
    let mut pit = counting(2, 1000);
    write(&mut pit, 0, &[(0x43, 0x00)]);
    let low = read(&mut pit, 0x40, at(10));
    write(&mut pit, 0, &[(0x43, 0x00)]); // a second latch is ignored
    let high = pit.read(0x40, &mut silent).unwrap();
    assert_eq!(u16::from_le_bytes([low, high]), 990);
    assert_eq!(count(&mut pit, at(20)), 980, "then it counts on");
}

#[test]
fn read_back_latches_status_before_count_of_the_named_channels() {
    let mut pit = counting(2, 1000);
    write(&mut pit, 0, &[(0x43, 0xb4), (0x42, 1), (0x42, 0)]);
    write(&mut pit, 0, &[(0x43, 0xc2)]);
    assert_eq!(
        read(&mut pit, 0x40, at(10)),
        0b1011_0100,
        "OUT, both bytes, mode 2"
    );
    assert_eq!(count(&mut pit, at(10)), 990);
    assert_eq!(read(&mut pit, 0x42, 0), 1, "channel 2 was not named");
    write(&mut pit, 0, &[(0x43, 0xd2)]); // only the count
    assert_eq!(count(&mut pit, at(11)), 989);
}

#[test]
fn status_says_null_count_until_one_is_written() {
    let mut pit = counting(2, 1000);
    write(&mut pit, 0, &[(0x43, 0x34)]);
    assert_eq!(status(&mut pit, 0) & 0x40, 0x40);
    write(&mut pit, 0, &[(0x40, 1)]);
    assert_eq!(status(&mut pit, 0) & 0x40, 0x40, "half a count");
    write(&mut pit, 0, &[(0x40, 1)]);
    assert_eq!(status(&mut pit, 0) & 0x40, 0);
}

#[test]
fn counts_start_when_the_channel_was_programmed_each_by_itself() {
    let mut pit = counting(2, 1000);
    write(&mut pit, 0, &[(0x61, 1)]);
    write(
        &mut pit,
        at(500),
        &[(0x43, 0xb0), (0x42, 0xe8), (0x42, 0x03)],
    );
    let two = u16::from_le_bytes([read(&mut pit, 0x42, at(510)), read(&mut pit, 0x42, at(510))]);
    assert_eq!((count(&mut pit, at(510)), two), (490, 990));
    let before = u16::from_le_bytes([read(&mut pit, 0x42, 0), read(&mut pit, 0x42, 0)]);
    assert_eq!(before, 1000, "a clock behind is one that stands");
}

#[test]
fn channel_2_counts_while_port_0x61_opens_its_gate() {
    let mut pit = Pit::new();
    let mode_0 = [(0x43, 0xb0), (0x42, 100), (0x42, 0)];
    for (port, value) in mode_0 {
        pit.write(port, value, &mut silent).unwrap();
    }
    assert_eq!(
        pit.read(0x61, &mut silent).unwrap() & 0x21,
        0,
        "closed, low"
    );
    write(&mut pit, at(50), &[(0x61, 3)]);
    assert_eq!(read(&mut pit, 0x61, at(149)) & 0x23, 0x03);
    assert_eq!(
        read(&mut pit, 0x61, at(150)) & 0x23,
        0x23,
        "OUT at 0x61 bit 5"
    );
    pit.write(0x61, 3, &mut silent).unwrap(); // open already
    let refresh = [0, 0].map(|now| read(&mut pit, 0x61, now) & 0x10);
    assert_ne!(refresh[0], refresh[1]);
}

#[test]
fn mode_1_begins_when_the_gate_rises() {
    let mut pit = Pit::new();
    write(
        &mut pit,
        0,
        &[(0x61, 1), (0x43, 0xb2), (0x42, 10), (0x42, 0)],
    );
    assert_eq!(read(&mut pit, 0x61, at(5)) & 0x20, 0x20, "high before");
    write(&mut pit, at(20), &[(0x61, 0), (0x61, 1)]);
    let outs = [29, 30].map(|clocks| read(&mut pit, 0x61, at(clocks)) & 0x20);
    assert_eq!(outs, [0, 0x20]);
}

#[test]
fn time_that_cannot_be_had_changes_nothing() {
    let mut pit = counting(2, 1000);
    write(&mut pit, 0, &[(0x40, 7)]);
    let before = pit.save();
    let refuse = &mut |_| Err(InputsError::Halted("no time".into()));
    assert!(pit.write(0x40, 0, refuse).is_err());
    assert!(pit.read(0x40, refuse).is_err());
    assert_eq!(pit.save(), before);
    pit.write(0x40, 0, &mut |_| Ok(0)).unwrap();
    assert_eq!(count(&mut pit, at(1)), 6);
}

#[test]
fn timer_says_how_channel_0_ticks() {
    assert_eq!(Pit::new().timer().period_ns, 0, "not programmed");
    let ticking = counting(2, 11_932).timer();
    assert_eq!(ticking.period_ns, (11_932 * NS_PER_S).div_ceil(PIT_HZ));
    assert!(!ticking.one_shot && !counting(3, 9).timer().one_shot);
    assert!(counting(0, 9).timer().one_shot && counting(4, 9).timer().one_shot);
    assert_eq!(
        counting(1, 9999).timer().period_ns,
        0,
        "its gate never rises"
    );
}

#[test]
fn each_programming_of_channel_0_starts_a_new_generation() {
    let mut pit = counting(2, 1000);
    let first = pit.timer().generation;
    write(
        &mut pit,
        0,
        &[
            (0x43, 0x00),
            (0x43, 0xe2),
            (0x43, 0xb6),
            (0x42, 1),
            (0x42, 1),
        ],
    );
    assert_eq!(pit.timer().generation, first, "latches and other channels");
    write(&mut pit, 0, &[(0x40, 1)]);
    assert_eq!(pit.timer().generation, first, "half a count");
    write(&mut pit, 0, &[(0x40, 1)]);
    let second = pit.timer().generation;
    assert!(second > first);
    write(&mut pit, 0, &[(0x43, 0x34)]);
    assert!(pit.timer().generation > second && pit.timer().period_ns == 0);
}

#[test]
fn ticks_come_no_closer_than_a_tenth_of_a_millisecond() {
    for (count, period) in [(1, PERIOD_MIN_NS), (119, PERIOD_MIN_NS), (120, 100_572)] {
        assert_eq!(counting(2, count).timer().period_ns, period);
        assert_eq!(counting(0, count).timer().period_ns, period);
    }
    let mut pit = counting(2, 10);
    assert_eq!(self::count(&mut pit, at(3)), 7, "counts are as programmed");
}

#[test]
fn conformance() {
    let mut pit = counting(3, 0x1234);
    write(
        &mut pit,
        77,
        &[(0x43, 0xb0), (0x42, 1), (0x61, 3), (0x43, 0xe2), (0x43, 0)],
    );
    read(&mut pit, 0x61, 80);
    conforms(Pit::new(), &pit);
}

#[test]
fn impossible_states_are_refused() {
    let spoil: [fn(&mut State); 4] = [
        |state| state.channels[0].mode = 6,
        |state| state.channels[1].initial = 0,
        |state| state.channels[2].initial = 0x1_0001,
        |state| state.generation = u64::MAX,
    ];
    for change in spoil {
        let mut state = Pit::new().save();
        change(&mut state);
        assert!(Pit::new().restore(state).is_err());
    }
}
