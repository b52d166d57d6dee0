//! The first serial port: a 16550A (National Semiconductor PC16550D datasheet, 1995), by `vm-superio`.

use super::{DeviceError, Stateful};
use serde::{Deserialize, Serialize};
use std::cell::Cell;
use std::convert::Infallible;
use vm_superio::Trigger;
use vm_superio::serial::{NoEvents, Serial, SerialState};

/// Registers and bits (datasheet, tables II and IV): interrupt identification, where the lowest three bits are
/// 1 for none, 2 for an empty transmitter and 4 for received data, which comes first; line status, where 1 is
/// data ready; the bit of received data in interrupt enable.
const IIR: u8 = 2;
const IIR_ID: u8 = 7;
const IIR_NONE: u8 = 1;
const IIR_SENT: u8 = 2;
const IIR_RECEIVED: u8 = 4;
const LSR: u8 = 5;
const LSR_READY: u8 = 1;
const IER_RECEIVED: u8 = 1;

/// Remembers that the chip raised its interrupt.
#[derive(Debug, Default)]
struct Raised(Cell<bool>);

impl Trigger for Raised {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.set(true);
        Ok(())
    }
}

/// The port.
pub struct Uart {
    serial: Serial<Raised, NoEvents, Vec<u8>>,
    /// The transmitter is empty, and the guest was told of received data instead.
    sent_is_news: bool,
}

impl Default for Uart {
    fn default() -> Self {
        Self::new()
    }
}

impl Uart {
    /// A port after reset.
    #[must_use]
    pub fn new() -> Self {
        Self {
            serial: Serial::new(Raised::default(), Vec::new()),
            sent_is_news: false,
        }
    }

    /// The guest reads register `offset`, 0 to 7.
    pub fn read(&mut self, offset: u8) -> u8 {
        let value = self.serial.read(offset);
        if offset != IIR {
            return value;
        }
        let sent = value & (IIR_NONE | IIR_SENT) == IIR_SENT || self.sent_is_news;
        // `vm-superio` takes the interrupt back at the first byte read of many: a driver that goes by it
        // would leave the rest. And it tells of both causes at once, which is the number of another.
        let received = self.has_news();
        self.sent_is_news = sent && received;
        let id = match (received, sent) {
            (true, _) => IIR_RECEIVED,
            (false, true) => IIR_SENT,
            (false, false) => value & IIR_ID,
        };
        value & !IIR_ID | id
    }

    /// Whether there is input, and the guest wants to be interrupted for it.
    fn has_news(&mut self) -> bool {
        let enabled = self.serial.state().interrupt_enable & IER_RECEIVED != 0;
        enabled && self.serial.read(LSR) & LSR_READY != 0
    }

    /// The guest writes register `offset`, 0 to 7. The byte that was transmitted, if one was.
    pub fn write(&mut self, offset: u8, value: u8) -> Option<u8> {
        let had_news = self.has_news();
        // A full FIFO in loopback is the guest's own doing, and loses the byte as the chip does.
        let _ = self.serial.write(offset, value);
        if !had_news && self.has_news() {
            // Input that came before the guest wanted to hear of it.
            self.serial.interrupt_evt().0.set(true);
        }
        self.serial.writer_mut().pop()
    }

    /// How many bytes the input FIFO can take.
    #[must_use]
    pub fn room(&self) -> usize {
        self.serial.fifo_capacity()
    }

    /// Takes input; bytes beyond [`Uart::room`] are lost.
    pub fn receive(&mut self, bytes: &[u8]) {
        let fits = bytes.len().min(self.room());
        if fits > 0 {
            // What fits is taken, and the trigger cannot fail.
            let _ = self.serial.enqueue_raw_bytes(&bytes[..fits]);
        }
    }

    /// Whether the interrupt line rose since this was last asked.
    pub fn take_interrupt(&mut self) -> bool {
        self.serial.interrupt_evt().0.take()
    }
}

/// The registers and the input FIFO.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Divisor latch, low then high; interrupt enable, interrupt identification, line control, line
    /// status, modem control, modem status, scratch.
    registers: [u8; 9],
    input: Vec<u8>,
    interrupt: bool,
    sent_is_news: bool,
}

impl Stateful for Uart {
    type State = State;
    const KIND: &'static str = "uart";
    const VERSION: u16 = 2;

    fn save(&self) -> State {
        let s = self.serial.state();
        State {
            registers: [
                s.baud_divisor_low,
                s.baud_divisor_high,
                s.interrupt_enable,
                s.interrupt_identification,
                s.line_control,
                s.line_status,
                s.modem_control,
                s.modem_status,
                s.scratch,
            ],
            input: s.in_buffer,
            interrupt: {
                let raised = &self.serial.interrupt_evt().0;
                raised.get()
            },
            sent_is_news: self.sent_is_news,
        }
    }

    fn restore(&mut self, state: State) -> Result<(), DeviceError> {
        let [
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
        ] = state.registers;
        let serial = SerialState {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            in_buffer: state.input,
        };
        let raised = Raised::default();
        self.serial = Serial::from_state(&serial, raised, NoEvents, Vec::new()).map_err(|_| {
            DeviceError::Impossible {
                kind: Self::KIND,
                what: "more input than its FIFO holds",
            }
        })?;
        // What was raised was passed on before it was saved, or is said in the state.
        self.serial.interrupt_evt().0.set(state.interrupt);
        self.sent_is_news = state.sent_is_news;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::tests::conforms;

    const RBR: u8 = 0;
    const IER: u8 = 1;
    const SCR: u8 = 7;

    #[test]
    fn what_is_written_to_the_holding_register_is_transmitted() {
        let mut uart = Uart::new();
        assert_eq!(uart.read(LSR) & 0x60, 0x60, "transmitter empty");
        assert_eq!(uart.write(RBR, b'x'), Some(b'x'));
        assert_eq!(uart.write(SCR, 7), None);
    }

    #[test]
    fn input_waits_in_the_fifo_and_interrupts() {
        let mut uart = Uart::new();
        uart.write(IER, 1);
        uart.receive(b"ab");
        assert!(uart.take_interrupt());
        assert!(!uart.take_interrupt());
        assert_eq!(uart.read(LSR) & 1, 1, "data ready");
        assert_eq!((uart.read(RBR), uart.read(RBR)), (b'a', b'b'));
        assert_eq!(uart.read(LSR) & 1, 0);
    }

    #[test]
    fn the_interrupt_stands_until_all_input_is_read() {
        let mut uart = Uart::new();
        uart.write(IER, 1);
        uart.receive(b"abc");
        for byte in *b"abc" {
            assert_eq!(uart.read(IIR) & 7, IIR_RECEIVED, "before {byte}");
            assert_eq!(uart.read(RBR), byte);
        }
        assert_eq!(uart.read(IIR) & 7, IIR_NONE);
    }

    #[test]
    fn of_two_causes_each_is_told_received_data_first() {
        let mut uart = Uart::new();
        uart.write(IER, 3);
        uart.write(RBR, b'x');
        uart.receive(b"a");
        assert_eq!(uart.read(IIR) & IIR_ID, IIR_RECEIVED);
        assert_eq!(uart.read(RBR), b'a');
        assert_eq!(uart.read(IIR) & IIR_ID, IIR_SENT);
        assert_eq!(uart.read(IIR) & IIR_ID, IIR_NONE);
    }

    #[test]
    fn input_that_is_there_already_interrupts_who_asks_for_it() {
        let mut uart = Uart::new();
        uart.receive(b"a");
        assert!(!uart.take_interrupt());
        uart.write(IER, 1);
        assert!(uart.take_interrupt());
        uart.write(IER, 1);
        assert!(!uart.take_interrupt(), "an edge");
    }

    #[test]
    fn input_beyond_the_fifo_is_refused() {
        let mut uart = Uart::new();
        let room = uart.room();
        uart.receive(&vec![1; room + 5]);
        assert_eq!(uart.room(), 0);
    }

    #[test]
    fn conformance() {
        let mut uart = Uart::new();
        uart.write(SCR, 0x5a);
        uart.write(IER, 3);
        uart.receive(b"typed");
        conforms(Uart::new(), &uart);
    }
}
