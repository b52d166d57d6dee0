//! The clock with its interrupts: update-ended, alarm and periodic (datasheet, "Interrupts", "Register C").
//!
//! ```text
//!  answers, arrivals ──▶ wall clock ──▶ flags UF AF PF ──▶ IRQ 8, where register B enables them
//!                              due_ns ◀── what it is to be told next
//! ```
//!
//! The chip has no time of its own, so its flags follow from the wall-clock times it was told: each sets UF if a
//! second began since the one before, AF if one that the alarm matches did, PF if a period ended. It is told by
//! the answers it asks for, and, where interrupts are enabled, by arrivals: [`Ticking::due_ns`] says from when on
//! one is wanted. So every flag and every interrupt follows from the log. Where that differs from the datasheet:
//!
//! - All flags come at the second's beginning, and UIP says that it is near; the registers are always good.
//! - Periods that ended between two times told are one.
//! - Setting the time is ignored, and with the divider held in reset the time goes on; updates and periods do not.

use super::{Rtc, State as Registers, calendar};
use crate::devices::{DeviceError, Stateful};
use replay::InputsError;
use serde::{Deserialize, Serialize};

const NS_PER_S: u64 = 1_000_000_000;
/// Register A: update in progress; the divider's bits, and what they are for 32.768 kHz; the rate's bits.
const UIP: u8 = 1 << 7;
const DIVIDER: u8 = 7 << 4;
const DIVIDER_RUNS: u8 = 2 << 4;
const RATE: u8 = 0xf;
/// Register B: no updates while the time is set.
const SET: u8 = 1 << 7;
/// Registers B and C: periodic, alarm and update-ended interrupt; in C also their sum, IRQF.
const PERIODIC: u8 = 1 << 6;
const ALARM: u8 = 1 << 5;
const UPDATE: u8 = 1 << 4;
const KINDS: u8 = PERIODIC | ALARM | UPDATE;
const IRQF: u8 = 1 << 7;
/// UIP is set 244 us before an update, which takes 1984 us (table 6, "Update cycle times", 32.768 kHz).
const UPDATE_NS: u64 = 244_000 + 1_984_000;
/// An alarm's register that matches any value has both upper bits set ("Alarm": don't care codes).
const ANY: u8 = 3 << 6;

/// Asks for the wall clock, in nanoseconds since 1970 ([`replay::Question::WallClock`]).
type Wall<'a> = dyn FnMut() -> Result<u64, InputsError> + 'a;

/// The clock of a PC, with its interrupts.
#[derive(Clone, Debug)]
pub struct Ticking {
    rtc: Rtc,
    ticks: Ticks,
    /// [`Ticking::due_ns`], which follows from the rest.
    due_ns: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Ticks {
    /// The wall clock it was told last, in nanoseconds since 1970.
    seen_ns: u64,
    /// PF, AF and UF of register C.
    flags: u8,
}

/// All of it that is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    registers: Registers,
    ticks: Ticks,
}

impl Default for Ticking {
    fn default() -> Self {
        Self::new()
    }
}

impl Ticking {
    /// A clock as a PC's firmware leaves it.
    #[must_use]
    pub fn new() -> Self {
        Self {
            rtc: Rtc::started(),
            ticks: Ticks::default(),
            due_ns: None,
        }
    }

    fn register(&self, index: u8) -> u8 {
        self.rtc.state.memory[usize::from(index)]
    }

    /// Whether updates take place.
    fn updates(&self) -> bool {
        self.register(0x0b) & SET == 0 && self.divides()
    }

    fn divides(&self) -> bool {
        self.register(0x0a) & DIVIDER == DIVIDER_RUNS
    }

    /// Length of a period, if there are any (table 5: rates at 32.768 kHz). The shortest is 122 us.
    fn period_ns(&self) -> Option<u64> {
        let shift = match self.register(0x0a) & RATE {
            0 => return None,
            // The two that would be shorter than the chip divides stand for longer ones.
            rate @ 1..=2 => rate + 6,
            rate => rate - 1,
        };
        self.divides().then(|| NS_PER_S * (1 << shift) / 32_768)
    }

    /// Whether its interrupt line is up.
    fn line(&self) -> bool {
        self.ticks.flags & self.register(0x0b) & KINDS != 0
    }

    /// From which wall clock on it wants to be told the time (ns since 1970); `None` while nothing waits for it.
    #[must_use]
    pub fn due_ns(&self) -> Option<u64> {
        self.due_ns
    }

    /// When the next of the interrupts that are enabled comes. One whose flag is set already is not waited for:
    /// it does not raise the line again before register C was read.
    fn next_ns(&self) -> Option<u64> {
        if self.line() {
            return None;
        }
        let seen_ns = self.ticks.seen_ns;
        let enabled = self.register(0x0b);
        let second = seen_ns / NS_PER_S;
        let update = (enabled & UPDATE != 0 && self.updates())
            .then(|| (second + 1).saturating_mul(NS_PER_S));
        let alarm = (enabled & ALARM != 0 && self.updates())
            .then(|| self.alarm_after(second))
            .flatten()
            .map(|second| second.saturating_mul(NS_PER_S));
        let period = (enabled & PERIODIC != 0)
            .then(|| self.period_ns())
            .flatten()
            .map(|period_ns| (seen_ns / period_ns + 1).saturating_mul(period_ns));
        [update, alarm, period].into_iter().flatten().min()
    }

    /// The first second behind `second` that the alarm matches, if one of the next day's does.
    fn alarm_after(&self, second: u64) -> Option<u64> {
        let matches = |index: u8, shown: u8| {
            let register = self.register(index);
            register & ANY == ANY || register == shown
        };
        let first = second.checked_add(1)?;
        let from = |at: u64, unit: u64| (at.max(first) - at) / unit;
        let hours = (0..=24).filter_map(|n| (first / 3600).checked_add(n)?.checked_mul(3600));
        hours
            .filter(|hour| matches(5, self.rtc.hours(calendar(*hour).hour)))
            .flat_map(|hour| (from(hour, 60)..60).map(move |minute| (hour + 60 * minute, minute)))
            .filter(|(_, minute)| matches(3, self.rtc.shown(*minute as u8)))
            .flat_map(|(at, _)| (from(at, 1)..60).map(move |second| (at + second, second)))
            .find(|(_, second)| matches(1, self.rtc.shown(*second as u8)))
            .map(|(at, _)| at)
    }

    /// It is `wall_ns` now. Whether the interrupt line rises.
    pub fn told(&mut self, wall_ns: u64) -> bool {
        let line = self.line();
        self.see(wall_ns);
        self.due_ns = self.next_ns();
        !line && self.line()
    }

    /// Sets the flags of what came to pass since the time told last. A clock that steps back is told of nothing.
    fn see(&mut self, wall_ns: u64) {
        let seen_ns = self.ticks.seen_ns;
        if wall_ns <= seen_ns {
            return;
        }
        let (before, now) = (seen_ns / NS_PER_S, wall_ns / NS_PER_S);
        if self.updates() && before < now {
            self.ticks.flags |= UPDATE;
            if self.alarm_after(before).is_some_and(|at| at <= now) {
                self.ticks.flags |= ALARM;
            }
        }
        if let Some(period_ns) = self.period_ns()
            && seen_ns / period_ns < wall_ns / period_ns
        {
            self.ticks.flags |= PERIODIC;
        }
        self.ticks.seen_ns = wall_ns;
    }

    /// The guest reads `port`; `wall_ns` asks for the time, if that matters.
    ///
    /// # Errors
    /// If the time cannot be had; the chip is as it was then.
    pub fn read(&mut self, port: u16, wall_ns: &mut Wall<'_>) -> Result<u8, InputsError> {
        let index = self.rtc.state.index;
        let value = match (port, index) {
            (0x71, 0x0a) if self.updates() => {
                let into = wall_ns()? % NS_PER_S;
                let near = into >= NS_PER_S - UPDATE_NS;
                self.register(0x0a) | if near { UIP } else { 0 }
            }
            (0x71, 0x0c) => {
                self.see(wall_ns()?);
                let irqf = if self.line() { IRQF } else { 0 };
                std::mem::take(&mut self.ticks.flags) | irqf
            }
            _ => return self.rtc.read(port, wall_ns),
        };
        self.due_ns = self.next_ns();
        Ok(value)
    }

    /// The guest writes `port`; `wall_ns` asks for the time, if an interrupt waits for it. Whether the interrupt
    /// line rises.
    ///
    /// # Errors
    /// If the time cannot be had; the chip is as it was then.
    pub fn write(
        &mut self,
        port: u16,
        value: u8,
        wall_ns: &mut Wall<'_>,
    ) -> Result<bool, InputsError> {
        let mut rtc = self.rtc.clone();
        rtc.write(port, value);
        if port == 0x70 {
            self.rtc = rtc;
            return Ok(false);
        }
        let enables = &mut rtc.state.memory[0x0b];
        if *enables & SET != 0 {
            // "SET": it also clears UIE.
            *enables &= !UPDATE;
        }
        let now = (*enables & KINDS != 0).then(wall_ns).transpose()?;
        let line = self.line();
        // What the old registers led to, to the last moment.
        if let Some(now) = now {
            self.see(now);
        }
        self.rtc = rtc;
        self.due_ns = self.next_ns();
        Ok(!line && self.line())
    }
}

impl Stateful for Ticking {
    type State = State;
    const KIND: &'static str = "rtc";
    const VERSION: u16 = 2;

    fn save(&self) -> State {
        State {
            registers: self.rtc.save(),
            ticks: self.ticks,
        }
    }

    fn restore(&mut self, state: State) -> Result<(), DeviceError> {
        if state.ticks.flags & !KINDS != 0 {
            return Err(DeviceError::Impossible {
                kind: Self::KIND,
                what: "a flag it does not have",
            });
        }
        self.rtc.restore(state.registers)?;
        self.ticks = state.ticks;
        self.due_ns = self.next_ns();
        Ok(())
    }
}

#[cfg(test)]
#[path = "ticking_tests.rs"]
mod tests;
