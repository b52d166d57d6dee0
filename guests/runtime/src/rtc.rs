//! The wall clock: the MC146818 behind ports 0x70 and 0x71.

/// Registers, and what register B says of them.
const SECONDS: u8 = 0x00;
const MINUTES: u8 = 0x02;
const HOURS: u8 = 0x04;
const DAY: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const STATUS_A: u8 = 0x0a;
const STATUS_B: u8 = 0x0b;
const CENTURY: u8 = 0x32;

/// Register A: an update is in progress.
const UPDATING: u8 = 0x80;
/// Register B: values are binary (else BCD).
const BINARY: u8 = 0x04;
/// Register B: hours count to 24 (else to 12, with bit 7 for the afternoon).
const FULL_DAY: u8 = 0x02;

/// A moment of wall-clock time, UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DateTime {
    /// Year, all digits.
    pub year: u16,
    /// 1 to 12.
    pub month: u8,
    /// 1 to 31.
    pub day: u8,
    /// 0 to 23.
    pub hour: u8,
    /// 0 to 59.
    pub minute: u8,
    /// 0 to 59.
    pub second: u8,
}

impl DateTime {
    /// From the registers' bytes as they are read: second, minute, hour, day, month, year, century.
    fn from_registers(raw: [u8; 7], status_b: u8) -> Self {
        let number = |byte: u8| match status_b & BINARY {
            0 => (byte >> 4) * 10 + (byte & 15),
            _ => byte,
        };
        let hour = match status_b & FULL_DAY {
            0 => number(raw[2] & 0x7f) % 12 + if raw[2] & 0x80 != 0 { 12 } else { 0 },
            _ => number(raw[2]),
        };
        Self {
            year: u16::from(number(raw[6])) * 100 + u16::from(number(raw[5])),
            month: number(raw[4]),
            day: number(raw[3]),
            hour,
            minute: number(raw[1]),
            second: number(raw[0]),
        }
    }

    /// Seconds since 1970-01-01; earlier years count as 1970.
    #[must_use]
    pub fn unix_seconds(&self) -> u64 {
        // A month 0 counts as January, as a day 0 does as the first.
        let (year, month) = (u64::from(self.year.max(1970)), u64::from(self.month.max(1)));
        // Years that begin in March, so that the leap day comes last.
        let (year, month) = match month {
            1..=2 => (year - 1, month + 9),
            _ => (year, month - 3),
        };
        let leap_days = year / 4 - year / 100 + year / 400;
        let day_of_year = (153 * month + 2) / 5 + u64::from(self.day.max(1)) - 1;
        // 719,468 days lie between 0000-03-01 and 1970-01-01.
        let days = year * 365 + leap_days + day_of_year - 719_468;
        ((days * 24 + u64::from(self.hour)) * 60 + u64::from(self.minute)) * 60
            + u64::from(self.second)
    }
}

/// Reads the wall clock: waits for updates to end, and reads until two readings agree.
#[must_use]
pub fn now() -> DateTime {
    /// Reads one register.
    fn register(index: u8) -> u8 {
        // SAFETY: the RTC changes no memory.
        unsafe {
            crate::port::write(0x70, index);
            crate::port::read(0x71)
        }
    }
    let read = || {
        while register(STATUS_A) & UPDATING != 0 {}
        [SECONDS, MINUTES, HOURS, DAY, MONTH, YEAR, CENTURY].map(register)
    };
    let status_b = register(STATUS_B);
    let mut last = read();
    loop {
        let this = read();
        if this == last {
            return DateTime::from_registers(this, status_b);
        }
        last = this;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_in_bcd_and_binary_in_both_hour_modes() {
        let expected = DateTime {
            year: 2026,
            month: 11,
            day: 21,
            hour: 23,
            minute: 59,
            second: 58,
        };
        for (raw, status_b) in [
            ([0x58, 0x59, 0x23, 0x21, 0x11, 0x26, 0x20], FULL_DAY),
            ([0x58, 0x59, 0x91, 0x21, 0x11, 0x26, 0x20], 0),
            ([58, 59, 23, 21, 11, 26, 20], BINARY | FULL_DAY),
            ([58, 59, 0x80 | 11, 21, 11, 26, 20], BINARY),
        ] {
            assert_eq!(DateTime::from_registers(raw, status_b), expected);
        }
    }

    #[test]
    fn twelve_is_the_first_hour_of_its_half() {
        let hour = |raw| DateTime::from_registers([0, 0, raw, 1, 1, 0, 0], 0).hour;
        assert_eq!((hour(0x12), hour(0x92), hour(0x01)), (0, 12, 1));
    }

    #[test]
    fn unix_seconds_at_known_moments() {
        let at = |year, month, day, hour, minute, second| {
            DateTime {
                year,
                month,
                day,
                hour,
                minute,
                second,
            }
            .unix_seconds()
        };
        assert_eq!(at(1970, 1, 1, 0, 0, 0), 0);
        assert_eq!(at(1970, 0, 0, 0, 0, 0), 0, "a clock never set");
        assert_eq!(at(2000, 2, 29, 12, 0, 0), 951_825_600);
        assert_eq!(at(2001, 9, 9, 1, 46, 40), 1_000_000_000);
        assert_eq!(at(2038, 1, 19, 3, 14, 7), 2_147_483_647);
        assert_eq!(at(2100, 3, 1, 0, 0, 0), 4_107_542_400);
    }
}
