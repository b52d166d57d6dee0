//! A vCPU's state, in no engine's format.

use replay::Clock;
use serde::{Deserialize, Serialize};

/// A segment register (SDM volume 3, section 3.4.3), hidden part included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// Base address.
    pub base: u64,
    /// Limit in bytes.
    pub limit: u32,
    /// Selector.
    pub selector: u16,
    /// Type, S, DPL, P, AVL, L, D/B, G as bits 0-3, 4, 5-6, 7, 8, 9, 10, 11, and bit 12 for unusable.
    pub attributes: u16,
}

/// A descriptor table register.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// Base address.
    pub base: u64,
    /// Limit in bytes.
    pub limit: u16,
}

/// x87 and SSE state, as FXSAVE has it, without the last-instruction pointers (which processors keep
/// in different ways, and no guest of ours may depend on).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fpu {
    /// The eight x87 registers, 80 bits each in 16 bytes.
    pub x87: [[u8; 16]; 8],
    /// Control word.
    pub fcw: u16,
    /// Status word.
    pub fsw: u16,
    /// Abridged tag byte.
    pub ftw: u8,
    /// The sixteen XMM registers.
    pub xmm: [[u8; 16]; 16],
    /// SSE control and status.
    pub mxcsr: u32,
}

/// A vCPU's whole state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuState {
    /// Instruction clock.
    pub clock: Clock,
    /// RAX, RBX, RCX, RDX, RSI, RDI, RSP, RBP, R8 to R15.
    pub general: [u64; 16],
    /// Instruction pointer.
    pub rip: u64,
    /// Flags; of KVM without RF, and without TF where that steps the guest.
    pub rflags: u64,
    /// CS, DS, ES, FS, GS, SS, TR, LDTR.
    pub segments: [Segment; 8],
    /// GDT and IDT.
    pub tables: [Table; 2],
    /// CR0, CR2, CR3, CR4, CR8.
    pub control: [u64; 5],
    /// EFER.
    pub efer: u64,
    /// x87 and SSE.
    pub fpu: Fpu,
    /// Model-specific registers, as (index, value), in the order of [`crate::cpu::SAVED_MSRS`].
    pub msrs: Vec<(u32, u64)>,
    /// DR0 to DR3, DR6 and DR7, each exclusive-or its value at reset.
    pub debug: [u64; 6],
    /// What the guest's writes to the time-stamp counter add to it, wrapping.
    pub tsc_offset: u64,
    /// The next instruction comes before any interrupt (`sti`, `mov ss`).
    pub shadow: bool,
    /// An interrupt handed to the vCPU that it has not taken yet.
    pub injected: Option<u8>,
    /// Whether it stands in a halt.
    pub halted: bool,
}
