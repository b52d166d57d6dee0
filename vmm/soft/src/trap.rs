//! Why an instruction did not retire.
//!
//! A handler that cannot go on says why in [`crate::Cpu::cause`] and returns [`Trap`], which has no size:
//! the way of an instruction that retires costs one comparison.

/// The instruction did not retire; [`crate::Cpu::cause`] says why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Trap;

/// An exception of the architecture (SDM volume 3, chapter 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// Its vector.
    pub vector: u8,
    /// The error code pushed, for those that push one.
    pub error: Option<u32>,
}

/// Vectors (SDM volume 3, table 6-1).
pub mod vector {
    /// Divide error.
    pub const DE: u8 = 0;
    /// Debug.
    pub const DB: u8 = 1;
    /// Breakpoint.
    pub const BP: u8 = 3;
    /// Overflow.
    pub const OF: u8 = 4;
    /// BOUND range exceeded.
    pub const BR: u8 = 5;
    /// Undefined instruction.
    pub const UD: u8 = 6;
    /// No FPU.
    pub const NM: u8 = 7;
    /// Double fault.
    pub const DF: u8 = 8;
    /// Broken TSS.
    pub const TS: u8 = 10;
    /// Segment not present.
    pub const NP: u8 = 11;
    /// Stack fault.
    pub const SS: u8 = 12;
    /// General protection.
    pub const GP: u8 = 13;
    /// Page fault.
    pub const PF: u8 = 14;
    /// x87 error.
    pub const MF: u8 = 16;
    /// Alignment check.
    pub const AC: u8 = 17;
    /// SIMD error.
    pub const XM: u8 = 19;
}

impl Exception {
    /// One without error code.
    #[must_use]
    pub const fn plain(vector: u8) -> Self {
        Self {
            vector,
            error: None,
        }
    }

    /// One with error code.
    #[must_use]
    pub const fn with_error(vector: u8, error: u32) -> Self {
        Self {
            vector,
            error: Some(error),
        }
    }
}

/// Which address space an access goes to that the processor does not do itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// I/O ports.
    Port,
    /// Physical memory that is not RAM.
    Memory,
    /// The time-stamp counter, where the machine wants to be asked.
    Tsc,
}

/// An access somebody outside has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Where.
    pub space: Space,
    /// Port, or physical address.
    pub address: u64,
    /// 1, 2, 4 or 8.
    pub size: u8,
    /// What is written, zero-extended; `None` for a read.
    pub value: Option<u64>,
}

/// Why an instruction did not retire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// An exception.
    Exception(Exception),
    /// Somebody else has to do an access.
    Access(Access),
    /// It writes to a page with decoded instructions, named by its number: those have to go first.
    CodeWrite(u64),
    /// It halted: it does retire, but nothing follows it until an interrupt.
    Halt,
    /// Nothing is wrong: it does retire, and the single-step trap follows.
    Stepped,
    /// An exception could not be delivered, nor the double fault after it.
    TripleFault,
    /// It is one this processor has but we lack.
    Unimplemented,
}
