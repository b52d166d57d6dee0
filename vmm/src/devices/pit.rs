//! The 8254 interval timer, and port 0x61 with the gate and output of its channel 2.
//!
//! ```text
//!  0x40 channel 0 ──▶ IRQ 0 (by arrivals: see `Pit::timer`)
//!  0x41 channel 1     (memory refresh, once)
//!  0x42 channel 2 ◀── gate: 0x61 bit 0; output: 0x61 bit 5
//!  0x43 control word
//! ```
//!
//! After Intel's 8254 datasheet (order number 231164-005). The chip has no time of its own: who
//! programs a channel, or reads a count or the output that depends on it, hands in a way to ask for the
//! guest's time. A channel counts from when it was programmed, that is from when its count was written
//! or its gate opened, whichever came last. Where that differs from the datasheet:
//!
//! - A latch or read-back command takes the count and the output when the first latched byte is read,
//!   not when the command is written. They stay latched from then on.
//! - A count written while another runs takes effect at once, in all modes.
//! - With its gate closed a channel shows its count from the start, not where it stopped.
//! - The gates of channels 0 and 1 are always open, so modes 1 and 5 there never begin.
//! - The clock it takes to load a count is not counted.

use super::{DeviceError, Stateful};
use abi::PIT_HZ;
use replay::{InputsError, TimerSpec};
use serde::{Deserialize, Serialize};

/// Asks, for a channel, for the nanoseconds since the machine began
/// ([`replay::Question::PitElapsed`]).
pub type Elapsed<'a> = dyn FnMut(u8) -> Result<u64, InputsError> + 'a;

/// Shortest period of [`Pit::timer`]. Each tick is a log entry: without a bound, a guest could ask for
/// more than half a million a second, and drown the log and its own vCPU.
pub const PERIOD_MIN_NS: u64 = 100_000;

const NS_PER_S: u64 = 1_000_000_000;

/// Which bytes of a count are read and written (control word, RW1 and RW0).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Access {
    Low,
    High,
    /// Low byte, then high byte.
    Both,
}

/// What the next reads of a channel yield ("Counter latch command", "Read-back command").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Latched {
    No,
    /// Latched, but not looked at yet.
    Asked,
    /// The count, still to be read.
    Count(u16),
}

/// One of the three counters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Channel {
    /// 0 to 5.
    mode: u8,
    access: Access,
    bcd: bool,
    /// Initial count, in clocks: 1 to 65536.
    initial: u32,
    /// A count was written since the control word (NULL COUNT clear).
    loaded: bool,
    gate: bool,
    /// In modes 1 and 5: the gate has risen since the count was written.
    triggered: bool,
    /// Since when it runs, if it does.
    programmed_ns: u64,
    /// The low byte written, while the high one is to come.
    write_low: Option<u8>,
    /// The high byte is read next.
    read_high: bool,
    count_latch: Latched,
    status_latched: bool,
}

/// What a channel does at some time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Moment {
    /// The counting element, binary.
    count: u32,
    out: bool,
}

impl Channel {
    const fn new(gate: bool) -> Self {
        Self {
            mode: 0,
            access: Access::Both,
            bcd: false,
            initial: 0x1_0000,
            loaded: false,
            gate,
            triggered: false,
            programmed_ns: 0,
            write_low: None,
            read_high: false,
            count_latch: Latched::No,
            status_latched: false,
        }
    }

    /// "Control word format". Counting stops until a count is written.
    fn control(&mut self, value: u8) {
        let access = match value >> 4 & 3 {
            0 => {
                // Counter latch command; a count latched already stays.
                if self.count_latch == Latched::No {
                    self.count_latch = Latched::Asked;
                }
                return;
            }
            1 => Access::Low,
            2 => Access::High,
            _ => Access::Both,
        };
        let mode = value >> 1 & 7;
        *self = Self {
            // 6 and 7 are 2 and 3 with a bit that does not matter.
            mode: if mode > 5 { mode - 4 } else { mode },
            access,
            bcd: value & 1 != 0,
            ..Self::new(self.gate)
        };
    }

    /// Writes a byte of the count; whether the count is complete.
    fn write(&mut self, value: u8) -> bool {
        let bytes = match (self.access, self.write_low) {
            (Access::Low, _) => [value, 0],
            (Access::High, _) => [0, value],
            (Access::Both, None) => {
                self.write_low = Some(value);
                if self.mode == 0 {
                    // "Mode 0": "Writing the first byte disables counting."
                    self.loaded = false;
                }
                return false;
            }
            (Access::Both, Some(low)) => [low, value],
        };
        self.write_low = None;
        let count = u16::from_le_bytes(bytes);
        self.initial = match (count, self.bcd) {
            (0, false) => 0x1_0000,
            (0, true) => 10_000,
            (count, false) => count.into(),
            (count, true) => from_bcd(count),
        };
        self.loaded = true;
        self.triggered = false;
        true
    }

    fn set_gate(&mut self, gate: bool) {
        if gate && !self.gate && self.loaded {
            self.triggered = true;
        }
        self.gate = gate;
    }

    /// Whether it counts, so that time matters.
    fn runs(&self) -> bool {
        self.loaded
            && match self.mode {
                1 | 5 => self.triggered,
                _ => self.gate,
            }
    }

    /// Length of a period, or of the one shot, in nanoseconds, rounded up: a guest that looks at the count
    /// when the tick comes finds that it has ended.
    fn period_ns(&self) -> u64 {
        (u64::from(self.initial) * NS_PER_S).div_ceil(PIT_HZ)
    }

    /// Count and output at `now_ns`; `None`: it does not run.
    fn moment(&self, now_ns: Option<u64>) -> Moment {
        let Some(now_ns) = now_ns else {
            // "Mode definitions": OUT is low in mode 0 before the count ends, else high.
            return Moment {
                count: self.initial,
                out: self.mode != 0,
            };
        };
        let elapsed_ns = now_ns.saturating_sub(self.programmed_ns);
        let clocks = u128::from(elapsed_ns) * u128::from(PIT_HZ) / u128::from(NS_PER_S);
        let initial = u128::from(self.initial);
        let modulus: u128 = if self.bcd { 10_000 } else { 0x1_0000 };
        let (count, out) = match self.mode {
            // Rate generator: N to 1, OUT low for the last clock.
            2 => {
                let count = initial - clocks % initial;
                (count, count != 1 || initial == 1)
            }
            // Square wave: by twos from N (even) or N - 1 (odd), high for the longer half.
            3 => {
                let (at, half) = (clocks % initial, initial.div_ceil(2));
                let into_half = if at < half { at } else { at - half };
                ((initial & !1).saturating_sub(2 * into_half), at < half)
            }
            // The others count down once, and then on through the greatest count.
            mode => {
                let count = (initial + modulus - clocks % modulus) % modulus;
                let out = match mode {
                    0 | 1 => clocks >= initial,
                    _ => clocks != initial,
                };
                (count, out)
            }
        };
        let count = u32::try_from(count).expect("at most 65536");
        Moment { count, out }
    }

    /// The 16 bits a read shows.
    fn shown(&self, count: u32) -> u16 {
        let count = if self.bcd { to_bcd(count) } else { count };
        (count & 0xffff) as u16
    }

    /// "Read-back command": the status byte.
    fn status(&self, out: bool) -> u8 {
        let access = match self.access {
            Access::Low => 1,
            Access::High => 2,
            Access::Both => 3,
        };
        u8::from(out) << 7
            | u8::from(!self.loaded) << 6
            | access << 4
            | self.mode << 1
            | u8::from(self.bcd)
    }

    /// Reads a byte of whatever is due: latched status, latched count, the count itself.
    fn read(&mut self, now: Moment) -> u8 {
        if std::mem::take(&mut self.status_latched) {
            return self.status(now.out);
        }
        let count = match self.count_latch {
            Latched::Count(count) => count,
            _ => self.shown(now.count),
        };
        let [low, high] = count.to_le_bytes();
        let (byte, last) = match self.access {
            Access::Low => (low, true),
            Access::High => (high, true),
            Access::Both => {
                self.read_high = !self.read_high;
                if self.read_high {
                    (low, false)
                } else {
                    (high, true)
                }
            }
        };
        if self.count_latch != Latched::No {
            self.count_latch = if last {
                Latched::No
            } else {
                Latched::Count(count)
            };
        }
        byte
    }

    /// Whether the next read depends on the time.
    fn read_needs_time(&self) -> bool {
        self.runs() && (self.status_latched || !matches!(self.count_latch, Latched::Count(_)))
    }
}

/// Each digit as it is written, ten and above counting on.
fn from_bcd(bcd: u16) -> u32 {
    (0..4).rev().fold(0, |value, digit| {
        value * 10 + u32::from(bcd >> (4 * digit) & 0xf)
    })
}

fn to_bcd(value: u32) -> u32 {
    let digit = |place: u32| (value / 10u32.pow(place) % 10) << (4 * place);
    (0..4).map(digit).sum()
}

/// Saved state of [`Pit`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    channels: [Channel; 3],
    generation: u64,
    speaker: bool,
    refresh: bool,
}

/// The interval timer.
#[derive(Clone, Debug)]
pub struct Pit {
    state: State,
}

impl Default for Pit {
    fn default() -> Self {
        Self::new()
    }
}

impl Pit {
    /// The timer as it is switched on, with no channel programmed.
    #[must_use]
    pub fn new() -> Self {
        let state = State {
            channels: [Channel::new(true), Channel::new(true), Channel::new(false)],
            generation: 0,
            speaker: false,
            refresh: false,
        };
        Self { state }
    }

    /// The timer as a PC's firmware leaves it: channel 0 ticks at the slowest rate, 18.2 Hz. A kernel
    /// that latches its count waits until there is one (NULL COUNT).
    #[must_use]
    pub fn started() -> Self {
        let mut pit = Self::new();
        let channel = &mut pit.state.channels[0];
        channel.mode = 3;
        channel.loaded = true;
        pit
    }

    /// This timer takes `old`'s place at a reset: what is programmed from now on is something new.
    pub fn follows(&mut self, old: &Self) {
        self.state.generation = old.state.generation + 1;
    }

    /// What channel 0 does: modes 2 and 3 tick for ever, modes 0 and 4 once. Periods under
    /// [`PERIOD_MIN_NS`] are lengthened to it.
    #[must_use]
    pub fn timer(&self) -> TimerSpec {
        let channel = &self.state.channels[0];
        TimerSpec {
            period_ns: if channel.runs() {
                channel.period_ns().max(PERIOD_MIN_NS)
            } else {
                0
            },
            generation: self.state.generation,
            one_shot: !matches!(channel.mode, 2 | 3),
        }
    }

    /// Reads one of the ports 0x40 to 0x43 and 0x61; any other reads as 0xff. Asks for time only if a
    /// channel runs and the byte depends on it.
    ///
    /// # Errors
    /// If the time cannot be had; the chip is as it was then.
    pub fn read(&mut self, port: u16, elapsed_ns: &mut Elapsed<'_>) -> Result<u8, InputsError> {
        match port {
            0x40..=0x42 => {
                let number = (port & 3) as u8;
                let channel = &mut self.state.channels[usize::from(number)];
                let now = channel
                    .read_needs_time()
                    .then(|| elapsed_ns(number))
                    .transpose()?;
                Ok(channel.read(channel.moment(now)))
            }
            0x61 => {
                let channel = &self.state.channels[2];
                let now = channel.runs().then(|| elapsed_ns(2)).transpose()?;
                let (gate, out) = (channel.gate, channel.moment(now).out);
                // Memory refresh, seen as a bit that is never twice the same.
                self.state.refresh = !self.state.refresh;
                Ok(u8::from(gate)
                    | u8::from(self.state.speaker) << 1
                    | u8::from(self.state.refresh) << 4
                    | u8::from(out) << 5)
            }
            // 0x43 is for writing only ("Read/write logic").
            _ => Ok(0xff),
        }
    }

    /// Writes one of the ports 0x40 to 0x43 and 0x61; any other is left alone. Asks for time only if a
    /// channel begins to run.
    ///
    /// # Errors
    /// If the time cannot be had; the chip is as it was then.
    pub fn write(
        &mut self,
        port: u16,
        value: u8,
        elapsed_ns: &mut Elapsed<'_>,
    ) -> Result<(), InputsError> {
        match port {
            0x40..=0x42 => {
                let number = (port & 3) as u8;
                let old = &self.state.channels[usize::from(number)];
                let mut channel = old.clone();
                let complete = channel.write(value);
                if complete && channel.runs() {
                    channel.programmed_ns = elapsed_ns(number)?;
                }
                if number == 0 && (complete || channel.loaded != old.loaded) {
                    self.state.generation += 1;
                }
                self.state.channels[usize::from(number)] = channel;
            }
            0x43 if value >> 6 == 3 => self.read_back(value),
            0x43 => {
                let channel = usize::from(value >> 6);
                self.state.channels[channel].control(value);
                if channel == 0 && value & 0x30 != 0 {
                    self.state.generation += 1;
                }
            }
            0x61 => {
                let mut channel = self.state.channels[2].clone();
                let closed = !channel.gate;
                channel.set_gate(value & 1 != 0);
                if closed && channel.gate && channel.runs() {
                    channel.programmed_ns = elapsed_ns(2)?;
                }
                self.state.channels[2] = channel;
                self.state.speaker = value & 2 != 0;
            }
            _ => {}
        }
        Ok(())
    }

    /// Bits 5 and 4 clear: latch count, status; bits 3 to 1: of channels 2 to 0.
    fn read_back(&mut self, value: u8) {
        for (number, channel) in self.state.channels.iter_mut().enumerate() {
            if value & 2 << number == 0 {
                continue;
            }
            if value & 0x20 == 0 && channel.count_latch == Latched::No {
                channel.count_latch = Latched::Asked;
            }
            channel.status_latched |= value & 0x10 == 0;
        }
    }
}

impl Stateful for Pit {
    type State = State;
    const KIND: &'static str = "pit";
    const VERSION: u16 = 1;

    fn save(&self) -> State {
        self.state.clone()
    }

    fn restore(&mut self, state: State) -> Result<(), DeviceError> {
        let sound =
            |channel: &Channel| channel.mode <= 5 && (1..=0x1_0000).contains(&channel.initial);
        if !state.channels.iter().all(sound) || state.generation >= u64::MAX / 2 {
            return Err(DeviceError::Impossible {
                kind: Self::KIND,
                what: "a mode, count or generation out of range",
            });
        }
        self.state = state;
        Ok(())
    }
}

#[cfg(test)]
#[path = "pit_tests.rs"]
mod tests;
