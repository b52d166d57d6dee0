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
