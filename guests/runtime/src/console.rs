//! The serial console: the 16550 at [`abi::SERIAL_PORT`].

use core::fmt::{self, Write};

const DATA: u16 = abi::SERIAL_PORT;
const INTERRUPT_ENABLE: u16 = abi::SERIAL_PORT + 1;
const MODEM_CONTROL: u16 = abi::SERIAL_PORT + 4;
const LINE_STATUS: u16 = abi::SERIAL_PORT + 5;

/// Writes to the console. The machine's transmitter is always ready.
pub struct Console;

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(write);
        Ok(())
    }
}

/// Writes a byte to the console.
pub fn write(byte: u8) {
    // SAFETY: the 16550 changes no memory.
    unsafe { crate::port::write(DATA, byte) }
}

/// Asks for an interrupt ([`abi::SERIAL_IRQ`]) when bytes are typed: one until [`read`] has taken all
/// there are.
pub fn enable_input() {
    // SAFETY: the 16550 changes no memory.
    unsafe {
        crate::port::write(INTERRUPT_ENABLE, 1); // received data
        crate::port::write(MODEM_CONTROL, 0x0b); // DTR, RTS, and OUT2, which lets the interrupt out
    }
    crate::interrupt::enable(abi::SERIAL_IRQ);
}

/// The next byte typed, if any.
#[must_use]
pub fn read() -> Option<u8> {
    // SAFETY: the 16550 changes no memory.
    unsafe { (crate::port::read(LINE_STATUS) & 1 != 0).then(|| crate::port::read(DATA)) }
}

/// Prints to the console.
#[macro_export]
macro_rules! print {
    ($($arg:tt)*) => {{
        // Writing to the console cannot fail.
        let _ = core::fmt::Write::write_fmt(&mut $crate::console::Console, format_args!($($arg)*));
    }};
}

/// Prints a line to the console.
#[macro_export]
macro_rules! println {
    () => { $crate::print!("\n") };
    ($($arg:tt)*) => { $crate::print!("{}\n", format_args!($($arg)*)) };
}
