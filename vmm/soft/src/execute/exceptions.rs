//! Delivery of interrupts and exceptions through the IDT (SDM volume 3, chapter 6).

use crate::trap::Exception;
use crate::{Cpu, Trap};

impl Cpu {
    /// Delivers `exception`, raised by the instruction at RIP; a double fault if that fails.
    ///
    /// # Errors
    /// [`Trap`]: triple fault.
    pub(crate) fn deliver_exception(&mut self, exception: Exception) -> Result<(), Trap> {
        let _ = exception;
        Err(self.stop(crate::trap::Cause::TripleFault))
    }

    /// Delivers external interrupt `vector` before the instruction at RIP.
    ///
    /// # Errors
    /// As for [`Cpu::deliver_exception`].
    pub(crate) fn deliver_interrupt(&mut self, vector: u8) -> Result<(), Trap> {
        self.deliver_exception(Exception::plain(vector))
    }
}
