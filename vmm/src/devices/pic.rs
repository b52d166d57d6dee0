//! The pair of 8259A interrupt controllers.
//!
//! ```text
//! IRQ 0..1, 3..7 ──▶ master (0x20, 0x21) ──▶ vCPU
//!                      ▲ input 2
//! IRQ 8..15 ──▶ slave (0xa0, 0xa1)            edge/level: 0x4d0, 0x4d1
//! ```
//!
//! References: Intel 8259A datasheet (231468), by heading; the edge/level registers: Intel 82371AB
//! (PIIX4), section 4.2.4.
//!
//! The wiring is the PC's, whatever ICW3 says. What a datasheet leaves to bus timing happens at once.

use super::{DeviceError, Stateful};
use serde::{Deserialize, Serialize};

/// The master's input the slave hangs on.
const CASCADE: u8 = 2;
/// Inputs that can be level-triggered: not 0, 1, 2, 8 and 13 (PIIX4, 4.2.4).
const ELCR_WRITABLE: [u8; 2] = [0xf8, 0xde];

/// What the next byte written to the odd port is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum NextWrite {
    /// Nothing was initialised yet: no interrupts.
    #[default]
    Off,
    Icw2,
    Icw3,
    Icw4,
    /// OCW1; the chip works.
    Mask,
}

/// One 8259A. Sets of inputs are bit masks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Half {
    next: NextWrite,
    /// Levels at the inputs.
    lines: u8,
    /// Edges not acknowledged yet.
    edges: u8,
    /// Inputs that are level-triggered.
    level: u8,
    /// In-service register.
    isr: u8,
    /// Interrupt mask register.
    imr: u8,
    /// Vector of input 0; the low three bits are 0.
    base: u8,
    /// The input of lowest priority; the one after it has the highest.
    lowest: u8,
    /// ICW1 bit 1: there is no ICW3.
    single: bool,
    /// ICW1 bit 0.
    icw4: bool,
    auto_eoi: bool,
    rotate_on_auto_eoi: bool,
    special_mask: bool,
    fully_nested: bool,
    /// The even port reads ISR rather than IRR.
    read_isr: bool,
    /// The next read polls.
    poll: bool,
}

impl Half {
    fn irr(&self, cascade: u8) -> u8 {
        self.edges | self.lines & self.level | cascade
    }

    /// Inputs from the highest priority to the lowest.
    fn by_priority(&self) -> impl Iterator<Item = u8> + use<> {
        let lowest = self.lowest;
        (1..=8).map(move |i| (lowest + i) & 7)
    }

    /// The input to serve next, if one outranks all in service ("Fully nested mode"). `cascade`: the
    /// slave's INT, at its input.
    fn request(&self, cascade: u8) -> Option<u8> {
        if self.next != NextWrite::Mask {
            return None;
        }
        let wanted = self.irr(cascade) & !self.imr;
        let mut blocking = self.isr;
        if self.special_mask {
            // A level in service that is masked lets all others through ("Special mask mode").
            blocking &= !self.imr;
        }
        if self.fully_nested {
            blocking &= !cascade;
        }
        self.by_priority()
            .take_while(|irq| blocking & 1 << irq == 0)
            .find(|irq| wanted & 1 << irq != 0)
    }

    /// INTA: `irq` is in service from now on.
    fn take(&mut self, irq: u8) {
        self.edges &= !(1 << irq);
        if !self.auto_eoi {
            self.isr |= 1 << irq;
        } else if self.rotate_on_auto_eoi {
            self.lowest = irq;
        }
    }

    fn set_line(&mut self, irq: u8, level: bool) {
        let bit = 1 << irq;
        if level {
            self.edges |= bit & !self.lines & !self.level;
            self.lines |= bit;
        } else {
            self.edges &= !(bit & self.lines);
            self.lines &= !bit;
        }
    }

    fn read(&mut self, odd: bool, cascade: u8) -> u8 {
        if std::mem::take(&mut self.poll) {
            return self.request(cascade).map_or(0, |irq| {
                self.take(irq);
                0x80 | irq
            });
        }
        match (odd, self.read_isr) {
            (true, _) => self.imr,
            (false, true) => self.isr,
            (false, false) => self.irr(cascade),
        }
    }

    fn write_even(&mut self, value: u8) {
        if value & 0x10 != 0 {
            self.initialise(value);
        } else if value & 0x08 != 0 {
            self.control(value);
        } else {
            self.end_of_interrupt(value);
        }
    }

    /// ICW1.
    fn initialise(&mut self, value: u8) {
        *self = Self {
            next: NextWrite::Icw2,
            lines: self.lines,
            level: self.level,
            base: self.base,
            lowest: 7,
            single: value & 2 != 0,
            icw4: value & 1 != 0,
            ..Self::default()
        };
    }

    /// OCW2.
    fn end_of_interrupt(&mut self, value: u8) {
        let named = value & 7;
        // Non-specific: the highest in service; one that special mask mode hides stays.
        let hidden = if self.special_mask { self.imr } else { 0 };
        let serving = self.isr & !hidden;
        let highest = self.by_priority().find(|irq| serving & 1 << irq != 0);
        let ended = match value >> 5 {
            0b001 | 0b101 => highest,
            0b011 | 0b111 => Some(named),
            0b000 | 0b100 => {
                self.rotate_on_auto_eoi = value & 0x80 != 0;
                None
            }
            0b110 => {
                self.lowest = named;
                None
            }
            _ => None,
        };
        if let Some(irq) = ended {
            self.isr &= !(1 << irq);
            if value & 0x80 != 0 {
                self.lowest = irq;
            }
        }
    }

    /// OCW3.
    fn control(&mut self, value: u8) {
        if value & 0x40 != 0 {
            self.special_mask = value & 0x20 != 0;
        }
        self.poll = value & 4 != 0;
        if value & 2 != 0 {
            self.read_isr = value & 1 != 0;
        }
    }

    fn write_odd(&mut self, value: u8) {
        let last = if self.icw4 {
            NextWrite::Icw4
        } else {
            NextWrite::Mask
        };
        self.next = match self.next {
            NextWrite::Off => NextWrite::Off,
            NextWrite::Icw2 => {
                self.base = value & 0xf8;
                if self.single { last } else { NextWrite::Icw3 }
            }
            NextWrite::Icw3 => last,
            NextWrite::Icw4 => {
                self.auto_eoi = value & 2 != 0;
                self.fully_nested = value & 0x10 != 0;
                NextWrite::Mask
            }
            NextWrite::Mask => {
                self.imr = value;
                NextWrite::Mask
            }
        };
    }
}

/// The two 8259As of a PC.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pic {
    master: Half,
    slave: Half,
}

impl Pic {
    /// Both as they are at power-on: silent until initialised.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Both as a PC's firmware leaves them: initialised, with its vectors, and all inputs masked. A kernel
    /// that finds out whether there are any writes a mask and reads it back.
    #[must_use]
    pub fn started() -> Self {
        let half = |base| Half {
            next: NextWrite::Mask,
            imr: 0xff,
            base,
            lowest: 7,
            ..Half::default()
        };
        Self {
            master: half(0x08),
            slave: half(0x70),
        }
    }

    fn half(&mut self, irq: u8) -> &mut Half {
        assert!(irq < 16 && irq != CASCADE, "no IRQ {irq}");
        if irq < 8 {
            &mut self.master
        } else {
            &mut self.slave
        }
    }

    /// Sets the level of a line. An edge-triggered input whose line falls before it was acknowledged
    /// forgets the edge, as the datasheet has it ("Interrupt request register").
    ///
    /// # Panics
    /// If there is no such line, 2 among them.
    pub fn set_line(&mut self, irq: u8, level: bool) {
        self.half(irq).set_line(irq % 8, level);
    }

    /// An edge that stays until it is acknowledged, whatever the input's trigger mode.
    ///
    /// # Panics
    /// As [`Pic::set_line`].
    pub fn pulse(&mut self, irq: u8) {
        self.half(irq).edges |= 1 << (irq % 8);
    }

    /// The slave's INT, at the master's input.
    fn cascade(&self) -> u8 {
        u8::from(self.slave.request(0).is_some()) << CASCADE
    }

    /// Whether there is an interrupt for the vCPU (INTR).
    #[must_use]
    pub fn pending(&self) -> bool {
        self.master.request(self.cascade()).is_some()
    }

    /// The vCPU acknowledges (INTA): the vector. With nothing pending it is that of input 7, which is
    /// not in service then ("spurious").
    pub fn acknowledge(&mut self) -> u8 {
        let request = self.master.request(self.cascade());
        if let Some(irq) = request {
            self.master.take(irq);
        }
        let (half, request) = match request {
            Some(CASCADE) => {
                let request = self.slave.request(0);
                (&mut self.slave, request)
            }
            other => return self.master.base | other.unwrap_or(7),
        };
        if let Some(irq) = request {
            half.take(irq);
        }
        half.base | request.unwrap_or(7)
    }

    /// The guest reads one of the six ports; others read as 0xff.
    pub fn read(&mut self, port: u16) -> u8 {
        match port {
            0x20 | 0x21 => self.master.read(port & 1 != 0, self.cascade()),
            0xa0 | 0xa1 => self.slave.read(port & 1 != 0, 0),
            0x4d0 => self.master.level,
            0x4d1 => self.slave.level,
            _ => 0xff,
        }
    }

    /// The guest writes one of the six ports; others are ignored.
    pub fn write(&mut self, port: u16, value: u8) {
        match port {
            0x20 => self.master.write_even(value),
            0x21 => self.master.write_odd(value),
            0xa0 => self.slave.write_even(value),
            0xa1 => self.slave.write_odd(value),
            0x4d0 => self.master.level = value & ELCR_WRITABLE[0],
            0x4d1 => self.slave.level = value & ELCR_WRITABLE[1],
            _ => {}
        }
    }
}

impl Stateful for Pic {
    type State = Self;
    const KIND: &'static str = "pic";
    const VERSION: u16 = 1;

    fn save(&self) -> Self {
        self.clone()
    }

    fn restore(&mut self, state: Self) -> Result<(), DeviceError> {
        let halves = [&state.master, &state.slave];
        let good = |(half, elcr): (&Half, u8)| {
            half.lowest < 8 && half.base & 7 == 0 && half.level & !elcr == 0
        };
        if !halves.into_iter().zip(ELCR_WRITABLE).all(good) {
            return Err(DeviceError::Impossible {
                kind: Self::KIND,
                what: "a register out of range",
            });
        }
        *self = state;
        Ok(())
    }
}

#[cfg(test)]
#[path = "pic_tests.rs"]
mod tests;
