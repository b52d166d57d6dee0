//! The real-time clock and CMOS memory: a Motorola MC146818A (datasheet ADI1290).
//!
//! ```text
//!  0x70  index (bit 7, the NMI mask, is ignored)
//!  0x71  data: 0x00-0x09 time and date, 0x0a-0x0d registers A to D, 0x32 century, else memory
//! ```
//!
//! Time is asked for ([`replay::Question::WallClock`]) at each read of a time register, and shown as
//! register B says: binary or BCD, 12 or 24 hours. A driver that reads twice until both agree gets a
//! consistent time, and register A never says that an update is in progress. Interrupts can be enabled
//! but never come: PIE, AIE and UIE are memory. Setting the time is ignored: the host's is the truth.
//! [`ticking::Ticking`] is this clock with its interrupts.

pub mod ticking;

use super::{DeviceError, Stateful};
use replay::InputsError;
use serde::{Deserialize, Serialize};

/// Register B: 24-hour mode, binary data.
const HOURS_24: u8 = 1 << 1;
const BINARY: u8 = 1 << 2;
/// Register A: the customary 32.768 kHz divider and 1024 Hz rate; UIP (bit 7) is never set.
const REGISTER_A: u8 = 0x26;
/// Register D: the battery is good.
const REGISTER_D: u8 = 0x80;
const CENTURY: u8 = 0x32;

/// The clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rtc {
    state: State,
}

/// Index and memory; the time is not kept here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    index: u8,
    memory: Vec<u8>,
}

impl Default for Rtc {
    fn default() -> Self {
        Self::new()
    }
}

/// A moment as the registers show it, before BCD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Calendar {
    second: u8,
    minute: u8,
    hour: u8,
    /// 1 is Sunday.
    weekday: u8,
    day: u8,
    month: u8,
    /// Within the century.
    year: u8,
    century: u8,
}

/// The calendar at `seconds` since 1970-01-01 (civil-from-days, proleptic Gregorian).
fn calendar(seconds: u64) -> Calendar {
    let (days, time) = (seconds / 86_400, seconds % 86_400);
    let shifted = days + 719_468; // days since 0000-03-01
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 {
        march_month + 3
    } else {
        march_month - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let byte = |value: u64| u8::try_from(value % 256).expect("under 256");
    Calendar {
        second: byte(time % 60),
        minute: byte(time / 60 % 60),
        hour: byte(time / 3600),
        weekday: byte((days + 4) % 7 + 1),
        day: byte(day),
        month: byte(month),
        year: byte(year % 100),
        century: byte(year / 100 % 100),
    }
}

impl Rtc {
    /// A clock in binary, 24-hour mode.
    #[must_use]
    pub fn new() -> Self {
        let mut memory = vec![0; 128];
        memory[0x0a] = REGISTER_A;
        memory[0x0b] = HOURS_24 | BINARY;
        memory[0x0d] = REGISTER_D;
        Self {
            state: State { index: 0, memory },
        }
    }

    /// A clock as a PC's firmware leaves it: in BCD, 24-hour mode. Linux on x86 takes it for BCD whatever
    /// register B says (`RTC_ALWAYS_BCD`).
    #[must_use]
    pub fn started() -> Self {
        let mut rtc = Self::new();
        rtc.state.memory[0x0b] = HOURS_24;
        rtc
    }

    /// The guest reads `port`; `wall_ns` asks for the time, if that is what is read.
    ///
    /// # Errors
    /// If the time cannot be had.
    pub fn read(
        &mut self,
        port: u16,
        wall_ns: &mut dyn FnMut() -> Result<u64, InputsError>,
    ) -> Result<u8, InputsError> {
        let index = self.state.index;
        if port == 0x70 {
            return Ok(0xff); // write-only
        }
        if !matches!(index, 0 | 2 | 4 | 6..=9 | CENTURY) {
            return Ok(self.state.memory[usize::from(index)]);
        }
        let now = calendar(wall_ns()? / 1_000_000_000);
        Ok(match index {
            0 => self.shown(now.second),
            2 => self.shown(now.minute),
            4 => self.hours(now.hour),
            6 => self.shown(now.weekday),
            7 => self.shown(now.day),
            8 => self.shown(now.month),
            9 => self.shown(now.year),
            _ => self.shown(now.century),
        })
    }

    fn shown(&self, value: u8) -> u8 {
        if self.state.memory[0x0b] & BINARY != 0 {
            value
        } else {
            ((value / 10) << 4) | (value % 10)
        }
    }

    fn hours(&self, hour: u8) -> u8 {
        if self.state.memory[0x0b] & HOURS_24 != 0 {
            return self.shown(hour);
        }
        // 12-hour mode: 12, 1, ... 11, with bit 7 for the afternoon.
        let twelve = if hour.is_multiple_of(12) {
            12
        } else {
            hour % 12
        };
        self.shown(twelve) | if hour >= 12 { 0x80 } else { 0 }
    }

    /// The guest writes `port`.
    pub fn write(&mut self, port: u16, value: u8) {
        if port == 0x70 {
            self.state.index = value & 0x7f;
            return;
        }
        match self.state.index {
            // Bit 7 of A is read-only; C and D are.
            0x0a => self.state.memory[0x0a] = value & 0x7f,
            0x0c | 0x0d => {}
            index => self.state.memory[usize::from(index)] = value,
        }
    }
}

impl Stateful for Rtc {
    type State = State;
    const KIND: &'static str = "rtc";
    const VERSION: u16 = 1;

    fn save(&self) -> State {
        self.state.clone()
    }

    fn restore(&mut self, state: State) -> Result<(), DeviceError> {
        if state.index >= 128 || state.memory.len() != 128 {
            let what = "an index or memory out of range";
            return Err(DeviceError::Impossible {
                kind: Self::KIND,
                what,
            });
        }
        self.state = state;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::tests::conforms;

    /// 2024-02-29 15:04:05 UTC, a Thursday.
    const LEAP_DAY: u64 = 1_709_219_045;

    fn read(rtc: &mut Rtc, index: u8, seconds: u64) -> u8 {
        rtc.write(0x70, index);
        rtc.read(0x71, &mut || Ok(seconds * 1_000_000_000)).unwrap()
    }

    #[test]
    fn shows_the_calendar_in_binary() {
        let mut rtc = Rtc::new();
        let shown = [0, 2, 4, 6, 7, 8, 9, CENTURY].map(|index| read(&mut rtc, index, LEAP_DAY));
        assert_eq!(shown, [5, 4, 15, 5, 29, 2, 24, 20]);
    }

    #[test]
    fn shows_bcd_and_twelve_hours_when_asked() {
        let mut rtc = Rtc::new();
        rtc.write(0x70, 0x0b);
        rtc.write(0x71, 0);
        assert_eq!(read(&mut rtc, 4, LEAP_DAY), 0x83);
        assert_eq!(read(&mut rtc, 7, LEAP_DAY), 0x29);
        assert_eq!(read(&mut rtc, 4, 0), 0x12, "midnight");
        assert_eq!(read(&mut rtc, 4, 12 * 3600), 0x92, "noon");
    }

    #[test]
    fn a_pc_finds_it_in_bcd() {
        let mut rtc = Rtc::started();
        let shown = [0, 2, 4, 7, 8, 9, CENTURY].map(|index| read(&mut rtc, index, LEAP_DAY));
        assert_eq!(shown, [0x05, 0x04, 0x15, 0x29, 0x02, 0x24, 0x20]);
    }

    #[test]
    fn knows_the_years_ends() {
        assert_eq!(calendar(0).day, 1);
        let end = calendar(946_684_799); // 1999-12-31 23:59:59
        assert_eq!(
            (end.century, end.year, end.month, end.day, end.hour),
            (19, 99, 12, 31, 23)
        );
        let begin = calendar(946_684_800);
        assert_eq!(
            (begin.century, begin.year, begin.month, begin.day),
            (20, 0, 1, 1)
        );
    }

    #[test]
    fn asks_for_the_time_only_where_it_shows() {
        let mut rtc = Rtc::new();
        rtc.write(0x70, 0x40);
        rtc.write(0x71, 0x99);
        let refuse = &mut || Err(InputsError::Halted("asked".into()));
        assert_eq!(rtc.read(0x71, refuse).unwrap(), 0x99);
        rtc.write(0x70, 0x0d);
        assert_eq!(rtc.read(0x71, refuse).unwrap(), REGISTER_D);
    }

    #[test]
    fn conformance() {
        let mut rtc = Rtc::new();
        rtc.write(0x70, 0x0b);
        rtc.write(0x71, 0x42);
        conforms(Rtc::new(), &rtc);
    }
}
