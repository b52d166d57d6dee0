//! ACPI's fixed hardware: the PM1 event and control registers and the power management timer.
//!
//! ```text
//!  0x600  PM1_STS  16 bits    0x604  PM1_CNT  16 bits
//!  0x602  PM1_EN   16 bits    0x608  PM_TMR   32 bits, 3.579545 MHz
//! ```
//!
//! After ACPI 6.5, section 4.8.3. Of the fixed events none ever happens: there are no buttons, the RTC
//! does not wake, the global lock is nobody else's, and the timer's carry is not told of. So PM1_STS
//! stays zero, the guest may enable what it likes, and the SCI line stays low. The machine is in ACPI
//! mode from the beginning (there is no SMI command port to leave it by): SCI_EN reads as 1.

use super::{DeviceError, Stateful};
use replay::InputsError;
use serde::{Deserialize, Serialize};

/// First of the 16 ports.
pub const EVENT_PORT: u16 = 0x600;
/// Of PM1_CNT.
pub const CONTROL_PORT: u16 = 0x604;
/// Of the timer.
pub const TIMER_PORT: u16 = 0x608;
/// Last of the 16 ports.
pub const LAST_PORT: u16 = 0x60f;
/// PIC input of the system control interrupt: 9 by custom.
pub const SCI_IRQ: u8 = 9;
/// SLP_TYP of the state S5, soft off.
pub const SLEEP_TYPE_OFF: u8 = 5;
/// Frequency of the timer in Hz (4.8.3.3).
pub const TIMER_HZ: u64 = 3_579_545;

/// PM1_CNT (table 4.16): SCI_EN; BM_RLD; SLP_TYP, from bit 10; SLP_EN, which reads as 0.
const SCI_EN: u16 = 1 << 0;
const BM_RLD: u16 = 1 << 1;
const SLP_TYP: u16 = 7 << SLP_TYP_SHIFT;
const SLP_TYP_SHIFT: u16 = 10;
const SLP_EN: u16 = 1 << 13;
/// PM1_EN (table 4.15): timer, global lock, power button, sleep button, RTC.
const ENABLES: u16 = 1 << 0 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 10;

const NS_PER_S: u128 = 1_000_000_000;

/// The registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcpiPm {
    enable: u16,
    /// BM_RLD and SLP_TYP.
    control: u16,
}

/// What a write led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PmWrite {
    /// Nothing special.
    Done,
    /// The guest switches itself off.
    Off,
}

impl AcpiPm {
    /// Registers after reset.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The registers' bytes, from [`EVENT_PORT`] on.
    fn bytes(&self, timer: u32) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[2..4].copy_from_slice(&self.enable.to_le_bytes());
        bytes[4..6].copy_from_slice(&(self.control | SCI_EN).to_le_bytes());
        bytes[8..12].copy_from_slice(&timer.to_le_bytes());
        bytes
    }

    /// The guest reads `size` bytes at `port`. `elapsed_ns` asks for the nanoseconds since the machine
    /// began, if the timer is read ([`replay::Question::PmElapsed`]). Beyond the registers is zero.
    ///
    /// # Errors
    /// If the time cannot be had.
    pub fn read(
        &self,
        port: u16,
        size: u8,
        elapsed_ns: &mut dyn FnMut() -> Result<u64, InputsError>,
    ) -> Result<u32, InputsError> {
        let from = usize::from(port.saturating_sub(EVENT_PORT)).min(16);
        let to = (from + usize::from(size.min(4))).min(16);
        let timer = if from < 12 && to > 8 {
            timer(elapsed_ns()?)
        } else {
            0
        };
        let mut value = [0; 4];
        value[..to - from].copy_from_slice(&self.bytes(timer)[from..to]);
        Ok(u32::from_le_bytes(value))
    }

    /// The guest writes the low `size` bytes of `value` at `port`. PM1_STS and the timer cannot be written.
    pub fn write(&mut self, port: u16, size: u8, value: u32) -> PmWrite {
        let mut bytes = self.bytes(0);
        let from = usize::from(port.saturating_sub(EVENT_PORT)).min(16);
        for (place, byte) in bytes[from..]
            .iter_mut()
            .zip(value.to_le_bytes())
            .take(size.into())
        {
            *place = byte;
        }
        self.enable = u16::from_le_bytes([bytes[2], bytes[3]]) & ENABLES;
        let control = u16::from_le_bytes([bytes[4], bytes[5]]);
        self.control = control & (BM_RLD | SLP_TYP);
        let off = u16::from(SLEEP_TYPE_OFF) << SLP_TYP_SHIFT;
        if control & SLP_EN != 0 && control & SLP_TYP == off {
            PmWrite::Off
        } else {
            PmWrite::Done
        }
    }
}

/// The timer's 32 bits at `elapsed_ns`.
fn timer(elapsed_ns: u64) -> u32 {
    let ticks = u128::from(elapsed_ns) * u128::from(TIMER_HZ) / NS_PER_S;
    (ticks & u128::from(u32::MAX)) as u32
}

impl Stateful for AcpiPm {
    type State = Self;
    const KIND: &'static str = "acpi-pm";
    const VERSION: u16 = 1;

    fn save(&self) -> Self {
        *self
    }

    fn restore(&mut self, state: Self) -> Result<(), DeviceError> {
        if state.enable & !ENABLES != 0 || state.control & !(BM_RLD | SLP_TYP) != 0 {
            return Err(DeviceError::Impossible {
                kind: Self::KIND,
                what: "a bit its registers do not have",
            });
        }
        *self = state;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::tests::conforms;

    fn read(pm: &AcpiPm, port: u16, size: u8) -> u32 {
        let never = &mut || Err(InputsError::Halted("asked for the time".into()));
        pm.read(port, size, never).unwrap()
    }

    #[test]
    fn it_is_in_acpi_mode_with_no_event_pending() {
        let mut pm = AcpiPm::new();
        assert_eq!(read(&pm, CONTROL_PORT, 2), 1);
        pm.write(EVENT_PORT, 2, 0xffff);
        assert_eq!(read(&pm, EVENT_PORT, 2), 0);
        pm.write(CONTROL_PORT, 2, 0);
        assert_eq!(read(&pm, CONTROL_PORT, 2), 1, "no way out of it");
    }

    #[test]
    fn enables_are_kept_wherever_an_access_begins() {
        let mut pm = AcpiPm::new();
        pm.write(EVENT_PORT + 2, 2, 0xffff);
        assert_eq!(read(&pm, EVENT_PORT + 2, 2), 0x721);
        pm.write(EVENT_PORT, 4, 0x0020_ffff);
        assert_eq!(read(&pm, EVENT_PORT, 4), 0x0020_0000);
        pm.write(EVENT_PORT + 3, 1, 1);
        assert_eq!(read(&pm, EVENT_PORT + 2, 2), 0x120);
    }

    #[test]
    fn sleep_type_five_with_enable_switches_off() {
        let mut pm = AcpiPm::new();
        assert_eq!(pm.write(CONTROL_PORT, 2, 5 << 10 | 1), PmWrite::Done);
        assert_eq!(read(&pm, CONTROL_PORT, 2), 5 << 10 | 1);
        assert_eq!(pm.write(CONTROL_PORT, 2, 1 << 13 | 1), PmWrite::Done, "S0");
        assert_eq!(pm.write(CONTROL_PORT, 2, 5 << 10 | 1 << 13), PmWrite::Off);
        assert_eq!(read(&pm, CONTROL_PORT, 2) & 1 << 13, 0, "write-only");
        // By bytes: the type is in the upper one.
        assert_eq!(pm.write(CONTROL_PORT + 1, 1, 0x34), PmWrite::Off);
    }

    #[test]
    fn the_timer_counts_and_wraps() {
        let pm = AcpiPm::new();
        let at = |ns: u64, port, size| pm.read(port, size, &mut || Ok(ns)).unwrap();
        assert_eq!(at(1_000_000_000, TIMER_PORT, 4), 3_579_545);
        assert_eq!(at(1_000_000_000, TIMER_PORT + 1, 1), 3_579_545 >> 8 & 0xff);
        // 2^32 ticks are 1199.8... s.
        let wrapped = ((1u128 << 32) * NS_PER_S).div_ceil(u128::from(TIMER_HZ));
        assert_eq!(at(u64::try_from(wrapped).unwrap(), TIMER_PORT, 4), 0);
        let before = u64::try_from(wrapped).unwrap() - 280;
        assert_eq!(at(before, TIMER_PORT, 4), u32::MAX);
        assert_eq!(at(u64::MAX, LAST_PORT, 4), 0, "past the registers");
    }

    #[test]
    fn the_timer_cannot_be_written_and_nothing_lies_beyond() {
        let mut pm = AcpiPm::new();
        for port in [TIMER_PORT, LAST_PORT] {
            assert_eq!(pm.write(port, 4, u32::MAX), PmWrite::Done);
        }
        assert_eq!(pm, AcpiPm::new());
    }

    #[test]
    fn conformance() {
        let mut pm = AcpiPm::new();
        pm.write(EVENT_PORT + 2, 2, 0x100);
        pm.write(CONTROL_PORT, 2, 5 << 10);
        conforms(AcpiPm::new(), &pm);
        let impossible = AcpiPm {
            enable: 2,
            ..AcpiPm::new()
        };
        assert!(AcpiPm::new().restore(impossible).is_err());
    }
}
