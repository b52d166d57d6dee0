//! The timer tick: channel 0 of the 8254.

const CHANNEL_0: u16 = 0x40;
const COMMAND: u16 = 0x43;
/// Channel 0, low byte then high byte, mode 2 (rate generator), binary.
const RATE_GENERATOR: u8 = 0x34;

/// Starts the tick on [`abi::TIMER_IRQ`] at `hz`, between 19 (the divisor has 16 bits) and
/// [`abi::PIT_HZ`] / 2; other rates are clipped. Ticks are counted by [`ticks`].
pub fn start(hz: u32) {
    let divisor = (abi::PIT_HZ / u64::from(hz.max(1))).clamp(2, 0xffff) as u16;
    let [low, high] = divisor.to_le_bytes();
    crate::interrupt::enable(abi::TIMER_IRQ);
    // SAFETY: the 8254 changes no memory.
    unsafe {
        crate::port::write(COMMAND, RATE_GENERATOR);
        crate::port::write(CHANNEL_0, low);
        crate::port::write(CHANNEL_0, high);
    }
}

/// Ticks so far.
#[inline]
#[must_use]
pub fn ticks() -> u64 {
    crate::interrupt::notes(abi::TIMER_IRQ)
}
