//! What both processors start from and end with, and where things are in memory.

/// Registers, as both processors have them.
#[derive(Clone, PartialEq, Eq)]
pub struct State {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    pub regs: [u64; 16],
    /// RIP.
    pub rip: u64,
    /// RFLAGS.
    pub flags: u64,
    /// x87, MMX and SSE.
    pub fx: Fx,
}

/// The image FXSAVE stores in 64-bit code (SDM volume 1, table 10-2).
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C, align(16))]
pub struct Fx {
    /// Control word.
    pub fcw: u16,
    /// Status word.
    pub fsw: u16,
    /// Bit n: physical register n is not empty.
    pub ftw: u8,
    pub reserved: u8,
    /// Last opcode; not compared.
    pub fop: u16,
    /// Last instruction; not compared.
    pub fip: u64,
    /// Last operand; not compared.
    pub fdp: u64,
    /// SSE control and status.
    pub mxcsr: u32,
    pub mxcsr_mask: u32,
    /// ST0 to ST7, 10 bytes each, relative to TOP.
    pub st: [[u8; 16]; 8],
    /// XMM0 to XMM15.
    pub xmm: [u128; 16],
    pub rest: [u8; 96],
}

const _: () = assert!(size_of::<Fx>() == 512);

impl Default for Fx {
    fn default() -> Self {
        Self {
            fcw: 0x37f,
            fsw: 0,
            ftw: 0,
            reserved: 0,
            fop: 0,
            fip: 0,
            fdp: 0,
            mxcsr: 0x1f80,
            mxcsr_mask: 0,
            st: [[0; 16]; 8],
            xmm: [0; 16],
            rest: [0; 96],
        }
    }
}

impl Fx {
    /// The part that is compared: without what the model does not keep.
    pub fn compared(&self) -> Self {
        let mut st = self.st;
        for register in &mut st {
            register[10..].fill(0);
        }
        Self {
            fcw: self.fcw,
            fsw: self.fsw,
            ftw: self.ftw,
            mxcsr: self.mxcsr,
            st,
            xmm: self.xmm,
            ..Self::default()
        }
    }
}

/// A fault, instead of an instruction that retires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Its vector.
    pub vector: u8,
    /// CR2, of a page fault.
    pub address: Option<u64>,
    /// Of a page fault: the access was a write.
    pub write: bool,
}

/// How it ended.
#[derive(Clone, PartialEq, Eq)]
pub struct Ending {
    pub state: State,
    pub fault: Option<Fault>,
}

/// Page with the instruction, otherwise full of `int3`.
pub const CODE: u64 = 0x3000_0000;
/// The instruction under test.
pub const AT: u64 = CODE + 0x800;
/// Memory operands: [`ARENA_LEN`] bytes that can be written; then a page that can only be read. Around it
/// nothing is mapped.
pub const ARENA: u64 = 0x3000_2000;
/// Bytes that can be written.
pub const ARENA_LEN: u64 = 0x4000;
/// Bytes of the arena with its read-only page.
pub const ARENA_ALL: u64 = ARENA_LEN + 0x1000;

/// What an instruction starts from.
#[derive(Clone)]
pub struct Case {
    pub instruction: iced_x86::Instruction,
    pub bytes: Vec<u8>,
    /// 64 or 32.
    pub bitness: u32,
    pub state: State,
    /// Words of memory that are not as [`crate::Harness`] left them: address and bytes.
    pub pokes: Vec<(u64, Vec<u8>)>,
}
