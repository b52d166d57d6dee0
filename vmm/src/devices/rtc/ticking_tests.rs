//! The clock's interrupts by the datasheet.

use super::super::BINARY;
use super::*;
use crate::devices::tests::conforms;

/// 2024-02-29 15:04:05 UTC.
const NOW: u64 = 1_709_219_045 * NS_PER_S;
const MS: u64 = 1_000_000;

struct Rig {
    rtc: Ticking,
    now: u64,
    asked: u32,
}

impl Rig {
    /// A clock whose flags were read at [`NOW`].
    fn new() -> Self {
        let (rtc, now) = (Ticking::new(), NOW + 1);
        let mut rig = Self { rtc, now, asked: 0 };
        rig.read(0x0c);
        rig
    }

    fn read(&mut self, index: u8) -> u8 {
        let (now, asked) = (self.now, &mut self.asked);
        let mut ask = || {
            *asked += 1;
            Ok(now)
        };
        assert!(!self.rtc.write(0x70, index, &mut ask).unwrap());
        self.rtc.read(0x71, &mut ask).unwrap()
    }

    /// Whether the line rises.
    fn write(&mut self, index: u8, value: u8) -> bool {
        let (now, asked) = (self.now, &mut self.asked);
        let mut ask = || {
            *asked += 1;
            Ok(now)
        };
        assert!(!self.rtc.write(0x70, index, &mut ask).unwrap());
        self.rtc.write(0x71, value, &mut ask).unwrap()
    }

    /// What whoever plays the hardware does: tells the time when it is due. Whether the line rises.
    fn tick(&mut self) -> bool {
        self.now = self.rtc.due_ns().expect("something is due");
        self.rtc.told(self.now)
    }
}

#[test]
fn nothing_is_due_and_nothing_asked_while_nothing_is_enabled() {
    let mut rig = Rig::new();
    let asked = rig.asked;
    assert!(!rig.write(1, 0x30) && !rig.write(0x0b, 2) && !rig.write(0x40, 1));
    assert_eq!((rig.rtc.due_ns(), rig.asked), (None, asked));
    assert!(!rig.rtc.told(NOW + 5 * NS_PER_S), "flags, but no interrupt");
}

#[test]
fn an_update_interrupts_each_second_once_its_flag_was_read() {
    let mut rig = Rig::new();
    assert!(!rig.write(0x0b, 2 | UPDATE));
    for second in 1..4 {
        assert_eq!(rig.rtc.due_ns(), Some(NOW + second * NS_PER_S));
        assert!(rig.tick());
        assert_eq!(rig.rtc.due_ns(), None, "the line is up");
        assert!(!rig.rtc.told(rig.now + 1), "and stays up");
        assert_eq!(rig.read(0x0c) & (IRQF | UPDATE), IRQF | UPDATE);
        assert_eq!(rig.read(0x0c), 0, "reading clears");
        let second = u8::try_from(5 + second).unwrap();
        assert_eq!(rig.read(0), second, "the registers are updated by then");
    }
    rig.write(0x0b, 2);
    assert_eq!(rig.rtc.due_ns(), None);
}

#[test]
fn flags_come_without_their_interrupts_and_enabling_raises_the_line() {
    let mut rig = Rig::new();
    rig.now += NS_PER_S;
    assert_eq!(rig.read(0x0c) & (IRQF | UPDATE), UPDATE);
    rig.now += NS_PER_S;
    assert!(rig.write(0x0b, 2 | UPDATE), "a flag that was set before");
    assert_eq!(rig.read(0x0c) & (IRQF | UPDATE), IRQF | UPDATE);
}

#[test]
fn an_alarm_comes_at_its_time_and_any_code_matches_all() {
    // Second, minute, hour in BCD, and seconds from 15:04:05 on.
    for (alarm, expected) in [
        ([0x06, 0x04, 0x15], 1),
        ([0x05, 0x04, 0x15], 86_400),
        ([0x00, 0x05, 0x15], 55),
        ([0x04, 0x04, 0x15], 86_399),
        (
            [0x59, 0x59, 0x23],
            (23 * 3600 + 59 * 60 + 59) - (15 * 3600 + 4 * 60 + 5),
        ),
        ([0x00, 0x00, 0x00], 86_400 - (15 * 3600 + 4 * 60 + 5)),
        ([0xff, 0xff, 0xff], 1),
        ([0x30, 0xc0, 0xff], 25),
        ([0x04, 0xff, 0xff], 59),
        ([0x00, 0x00, 0xff], 56 * 60 - 5),
        ([0xff, 0x04, 0xff], 1),
        ([0xff, 0x03, 0xff], 59 * 60 - 5),
    ] {
        let mut rig = Rig::new();
        for (index, value) in [1, 3, 5].into_iter().zip(alarm) {
            rig.write(index, value);
        }
        rig.write(0x0b, 2 | ALARM);
        assert_eq!(
            rig.rtc.due_ns(),
            Some(NOW + expected * NS_PER_S),
            "{alarm:02x?}"
        );
        assert!(rig.tick(), "{alarm:02x?}");
        assert_eq!(rig.read(0x0c) & (IRQF | ALARM), IRQF | ALARM);
    }
}

#[test]
fn an_alarm_of_no_time_never_comes() {
    let mut rig = Rig::new();
    rig.write(1, 0x7f);
    rig.write(0x0b, 2 | ALARM);
    assert_eq!(rig.rtc.due_ns(), None);
    rig.now += 100 * 86_400 * NS_PER_S;
    assert_eq!(rig.read(0x0c) & ALARM, 0);
}

#[test]
fn alarms_are_in_the_form_of_the_time() {
    let mut rig = Rig::new();
    // Binary, and twelve hours: 15:30:59.
    for (index, value) in [(1, 59), (3, 30), (5, 0x83)] {
        rig.write(index, value);
    }
    rig.write(0x0b, BINARY | ALARM);
    assert_eq!(rig.rtc.due_ns(), Some(NOW + (26 * 60 + 54) * NS_PER_S));
}

#[test]
fn periods_are_those_of_the_table() {
    for (rate, period_ns) in [
        (1, 3_906_250),
        (2, 7_812_500),
        (3, 122_070),
        (6, 976_562),
        (15, 500 * MS),
    ] {
        let mut rig = Rig::new();
        rig.write(0x0a, DIVIDER_RUNS | rate);
        rig.write(0x0b, 2 | PERIODIC);
        let first = rig.rtc.due_ns().unwrap();
        assert!(first > rig.now && first <= rig.now + period_ns, "{rate}");
        assert!(rig.tick());
        assert_eq!(rig.read(0x0c) & (IRQF | PERIODIC), IRQF | PERIODIC);
        assert_eq!(rig.rtc.due_ns(), Some(first + period_ns), "{rate}");
    }
    let mut rig = Rig::new();
    rig.write(0x0a, DIVIDER_RUNS);
    rig.write(0x0b, 2 | PERIODIC);
    assert_eq!(rig.rtc.due_ns(), None, "rate 0 is none");
}

#[test]
fn periods_that_ended_meanwhile_are_one_interrupt() {
    let mut rig = Rig::new();
    rig.write(0x0b, 2 | PERIODIC);
    assert!(rig.rtc.told(NOW + 100 * MS));
    assert_eq!(rig.read(0x0c) & PERIODIC, PERIODIC);
    assert!(rig.rtc.due_ns().unwrap() > NOW + 100 * MS);
}

#[test]
fn an_update_is_in_progress_right_before_the_second() {
    let mut rig = Rig::new();
    for (ns, uip) in [(1, 0), (997 * MS, 0), (998 * MS, UIP), (NS_PER_S - 1, UIP)] {
        rig.now = NOW + ns;
        assert_eq!(rig.read(0x0a) & UIP, uip, "{ns}");
    }
    rig.write(0x0b, 2 | SET);
    let asked = rig.asked;
    assert_eq!(rig.read(0x0a) & UIP, 0, "no updates while it is set");
    assert_eq!(rig.asked, asked);
}

#[test]
fn setting_the_time_stops_updates_and_clears_their_interrupt() {
    let mut rig = Rig::new();
    rig.write(0x0b, 2 | SET | UPDATE | ALARM);
    assert_eq!(rig.read(0x0b), 2 | SET | ALARM);
    assert_eq!(rig.rtc.due_ns(), None);
    rig.now += 10 * NS_PER_S;
    assert_eq!(rig.read(0x0c) & (UPDATE | ALARM), 0);
}

#[test]
fn a_divider_held_in_reset_stops_everything() {
    let mut rig = Rig::new();
    rig.write(0x0a, 0x76);
    rig.write(0x0b, 2 | KINDS);
    assert_eq!(rig.rtc.due_ns(), None);
    rig.now += 10 * NS_PER_S;
    assert_eq!(rig.read(0x0c), 0);
}

#[test]
fn a_wall_clock_that_steps_back_does_nothing() {
    let mut rig = Rig::new();
    rig.write(0x0b, 2 | UPDATE);
    let due = rig.rtc.due_ns();
    assert!(!rig.rtc.told(NOW - 3600 * NS_PER_S));
    assert_eq!(rig.rtc.due_ns(), due);
}

#[test]
fn the_ends_of_time_do_no_harm() {
    let mut rig = Rig::new();
    rig.write(0x0b, 2 | KINDS);
    rig.rtc.told(u64::MAX);
    rig.now = u64::MAX;
    rig.read(0x0c);
    assert!(rig.rtc.due_ns().is_none_or(|due| due > NOW));
}

#[test]
fn a_restored_clock_waits_for_the_same() {
    let mut rig = Rig::new();
    rig.write(0x0b, 2 | UPDATE);
    let mut other = Ticking::new();
    other.restore(rig.rtc.save()).unwrap();
    assert_eq!(other.due_ns(), rig.rtc.due_ns());
    conforms(Ticking::new(), &rig.rtc);
    let mut state = rig.rtc.save();
    state.ticks.flags = 1;
    assert!(other.restore(state).is_err());
}
