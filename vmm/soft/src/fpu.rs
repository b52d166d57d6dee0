//! x87, MMX and SSE state.

/// The state FXSAVE saves, without the last-instruction pointers, which read as zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(16))]
pub struct Fpu {
    /// XMM0 to XMM15.
    pub xmm: [u128; 16],
    /// The eight physical x87 registers (R0 to R7, not relative to TOP), 80 bits each; MMX shares them.
    pub x87: [u128; 8],
    /// Control word.
    pub fcw: u16,
    /// Status word, TOP in bits 11 to 13.
    pub fsw: u16,
    /// Bit n: physical register n is not empty.
    pub tags: u8,
    /// SSE control and status.
    pub mxcsr: u32,
}

impl Default for Fpu {
    /// As after `finit` and reset (SDM volume 3, table 9-1).
    fn default() -> Self {
        Self {
            xmm: [0; 16],
            x87: [0; 8],
            fcw: 0x37f,
            fsw: 0,
            tags: 0,
            mxcsr: 0x1f80,
        }
    }
}

/// MXCSR bits that exist (SDM volume 1, 10.2.3); the others cannot be set.
pub const MXCSR_MASK: u32 = 0xffff;
/// Status word: TOP.
pub const TOP: u16 = 7 << 11;
/// Status word: an unmasked exception is pending.
pub const ES: u16 = 1 << 7;
/// Status word: busy; the same as [`ES`] since the 387.
pub const BUSY: u16 = 1 << 15;
/// Exception flags, in the status word, and their masks, in the control word.
pub const EXCEPTIONS: u16 = 0x3f;
/// Control word: bits that exist, without the one that always reads as 1.
const CONTROL: u16 = 0x1f3f;
/// Control word: bit 6 always reads as 1 (SDM volume 1, 8.1.5).
const CONTROL_FIXED: u16 = 1 << 6;

impl Fpu {
    /// TOP: the physical register ST(0) is.
    #[inline(always)]
    #[must_use]
    pub fn top(&self) -> usize {
        usize::from(self.fsw >> 11 & 7)
    }

    /// Sets TOP.
    #[inline(always)]
    pub fn set_top(&mut self, top: usize) {
        self.fsw = self.fsw & !TOP | (top as u16 & 7) << 11;
    }

    /// Sets the control word; whether an exception is pending follows.
    pub fn set_control(&mut self, value: u16) {
        self.fcw = value & CONTROL | CONTROL_FIXED;
        self.refresh_summary();
    }

    /// Sets the status word; whether an exception is pending follows from flags and masks.
    pub fn set_status(&mut self, value: u16) {
        self.fsw = value;
        self.refresh_summary();
    }

    /// ES and B: whether an unmasked exception is flagged.
    pub fn refresh_summary(&mut self) {
        self.fsw &= !(ES | BUSY);
        if self.fsw & !self.fcw & EXCEPTIONS != 0 {
            self.fsw |= ES | BUSY;
        }
    }

    /// ST(`number`) as memory has it.
    #[must_use]
    pub fn st_bytes(&self, number: usize) -> [u8; 10] {
        let value = self.x87[(self.top() + number) % 8].to_le_bytes();
        std::array::from_fn(|n| value[n])
    }

    /// Sets ST(`number`), not its tag.
    pub fn set_st_bytes(&mut self, number: usize, bytes: [u8; 10]) {
        let mut value = [0; 16];
        value[..10].copy_from_slice(&bytes);
        self.x87[(self.top() + number) % 8] = u128::from_le_bytes(value);
    }
}
