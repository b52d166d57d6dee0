//! What translated code keeps where, and what it tells when it comes back.

use super::asm::{Mem, R11, R12, R13, R14, R15, RBP, RBX, RCX, RDI, RDX, RSI, Reg};
use super::thunks::{Target, target_index};
use crate::Cpu;
use crate::cpu::bits;
use crate::flags::{self, Arithmetic};
use crate::memory::{Mode, OFFSET, Tlb};
use crate::op::{Op, slot};
use std::mem::offset_of;

/// The processor's state that only translated code has, beside the registers.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct Native {
    /// The arithmetic flags: bit 0 is OF, bits 8 to 15 are the low byte of RFLAGS, as `seto al; lahf` have them. They
    /// are written and read as one word: a processor waits for a store that has only part of what it reads.
    pub flags: u16,
    /// Virtual address of the page whose code runs.
    pub page: u64,
    /// Instructions that may still run before somebody has to be asked.
    pub left: u64,
    /// Where a jump goes whose target is not translated.
    pub target: u64,
    /// A value on its way from memory to memory.
    pub held: u64,
    /// The TLB's tables, of data for each [`Mode`], of instructions for supervisor and user.
    pub data: [u64; 3],
    pub code: [u64; 2],
    /// The table of targets for each [`Mode`].
    pub targets: [u64; 3],
    /// The table of jumps for each [`Mode`].
    pub jumps: [u64; 3],
    /// 1 if SSE instructions are allowed: neither CR0 nor CR4 forbids them.
    pub sse: u64,
    /// MXCSR as Rust code wants it.
    pub mxcsr: u64,
    /// What the clock reads when nothing is left.
    pub limit: u64,
    /// Not 0: after an instruction that may let interrupts in, somebody has to be asked.
    pub window: u64,
    /// What became of the instruction of the last [`Kind::Last`]: 1 if it retired.
    pub retired: u64,
    /// What flags that were put off are made of (see [`super::pending`]): a value and a count each.
    pub stash: [[u64; 2]; 4],
}

impl Native {
    /// The flags as translated code has them.
    pub fn set_flags(&mut self, flags: Arithmetic) {
        let bits = flags.bits();
        self.flags = (bits >> 11 & 1 | (bits & 0xff) << 8) as u16;
    }

    /// The flags as the interpreter has them.
    pub fn flags(&self) -> Arithmetic {
        let own = u64::from(self.flags);
        let low = own >> 8 & flags::ARITHMETIC & 0xff;
        Arithmetic::from_bits(low | (own & 1) << 11)
    }
}

/// How far RBP points into [`Cpu`]: 128 bytes past the registers' start, so that one byte of displacement reaches
/// all of them.
pub(super) const BASE: i32 = offset_of!(Cpu, regs) as i32 + 128;

/// Where a field of [`Cpu`] is, seen from RBP.
macro_rules! field {
    ($($field:tt)*) => {
        $crate::translate::asm::Mem::at(
            $crate::translate::asm::RBP,
            ::std::mem::offset_of!($crate::Cpu, $($field)*) as i32 - $crate::translate::state::BASE,
        )
    };
}
pub(super) use field;

/// Where the flags' bytes are.
pub(super) fn flags_byte(n: i32) -> Mem {
    Mem::at(RBP, offset_of!(Cpu, native.flags) as i32 - BASE + n)
}

/// Where number `place` of the stash is, and in it byte `byte`.
pub(super) fn stash(place: usize, byte: usize) -> Mem {
    let at = offset_of!(Cpu, native.stash) + 16 * place + byte;
    Mem::at(RBP, at as i32 - BASE)
}

/// Where slot `number` is.
pub(super) fn slot_at(number: u8) -> Mem {
    let at = usize::from(number) * 8 + offset_of!(Cpu, regs);
    Mem::at(RBP, at as i32 - BASE)
}

/// Where XMM register `number` is.
pub(super) fn xmm_at(number: u8) -> Mem {
    let at = usize::from(number % 16) * 16 + offset_of!(Cpu, fpu.xmm);
    Mem::at(RBP, at as i32 - BASE)
}

/// Where it says where the TLB's table is.
pub(super) fn data_table(mode: Mode) -> Mem {
    field!(native.data).plus(8 * mode as i32)
}

/// The same for instructions.
pub(super) fn code_table(mode: Mode) -> Mem {
    field!(native.code).plus(8 * i32::from(mode == Mode::User))
}

/// Where the window of `mode` on the stack is, seen from RBP.
pub(super) fn window(mode: Mode) -> i32 {
    (offset_of!(Cpu, tlb) + Tlb::window_at(mode)) as i32 - BASE
}

/// Where the count is of changes of what jumps lead to, seen from RBP.
pub(super) fn changes() -> Mem {
    let at = offset_of!(Cpu, tlb) + Tlb::CHANGES_AT;
    Mem::at(RBP, at as i32 - BASE)
}

/// Registers of the guest that are in registers of the host while translated code runs. The others stay in
/// [`Cpu::regs`]. RCX and RDX are where shifts and products want them; RAX is not, since it is what flags are
/// kept and addresses made with.
pub(super) const PINNED: [(u8, Reg); 10] = [
    (slot::RAX, R12),
    (slot::RCX, RCX),
    (slot::RDX, RDX),
    (slot::RBX, RBX),
    (slot::RSP, R13),
    (slot::RBP, R14),
    (slot::RSI, RSI),
    (slot::RDI, RDI),
    (8, Reg(8)),
    (9, Reg(9)),
];

/// Registers of the host that have two more of the guest's, those that a trace uses most.
pub(super) const FREE: [Reg; 2] = [R11, R15];

/// The host register that has guest register `number` in any code, if one does.
pub(super) fn pinned(number: u8) -> Option<Reg> {
    PINNED
        .iter()
        .find(|(guest, _)| *guest == number)
        .map(|&(_, host)| host)
}

/// Why translated code came back, or calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// [`Record::op`] is to be carried out; if it comes back, the instruction did not retire.
    Handler,
    /// The block's last instruction, which no plan has code for, is to be carried out.
    Last,
    /// The block's instructions from [`Record::index`] on are for the interpreter.
    Rest,
    /// The block may not run: too few instructions are left.
    Stop,
    /// The block ran, and goes on at [`Record::target`] bytes past the page.
    Next,
    /// The block ran, and goes on at [`Native::target`].
    Elsewhere,
}

/// What a place in translated code says of itself. Records lie behind their code.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Record {
    /// The instruction.
    pub op: Op,
    /// Physical address of the block's page.
    pub page: u64,
    /// Where the distance of the jump is that led here, if it can lead to the block it wants; or 0.
    pub link: u64,
    /// Where a block goes on, from the start of its page.
    pub target: i64,
    /// The block's number.
    pub block: u32,
    /// The block's first byte in its page.
    pub start: u16,
    /// Instructions of the block.
    pub length: u8,
    /// Which of them this is.
    pub index: u8,
    /// Why.
    pub kind: Kind,
    /// The instruction may change flags.
    pub writes_flags: bool,
    /// Bytes of the block.
    pub bytes: u16,
    /// So that no byte is without a value.
    pub unused: [u8; 4],
}

impl Record {
    /// Its bytes.
    pub fn bytes(&self) -> [u8; size_of::<Self>()] {
        // SAFETY: no byte of it is padding, so all have a value.
        unsafe { std::mem::transmute(*self) }
    }
}

/// Carries out an instruction for translated code, by the interpreter's handler. 0 if it retired.
///
/// # Safety
/// `cpu` and `record` are what translated code was entered with, and its own.
pub(super) unsafe extern "C" fn handle(cpu: *mut Cpu, record: *const Record) -> u64 {
    // SAFETY: whoever entered translated code does not use the processor meanwhile; the record lies in code memory,
    // which nobody changes while code of it runs.
    let (cpu, record) = unsafe { (&mut *cpu, &*record) };
    cpu.arithmetic = cpu.native.flags();
    cpu.rip = cpu.native.page + u64::from(record.start);
    cpu.set_slot(slot::BLOCK, cpu.rip);
    let failed = (record.op.run)(cpu, &record.op).is_err();
    if record.writes_flags {
        cpu.native.set_flags(cpu.arithmetic);
    }
    failed.into()
}

impl Record {
    /// That of a jump to a target that is not translated.
    pub fn elsewhere() -> Self {
        Self {
            op: Op::NOTHING,
            page: 0,
            link: 0,
            target: 0,
            block: 0,
            start: 0,
            length: 0,
            index: 0,
            kind: Kind::Elsewhere,
            writes_flags: false,
            bytes: 0,
            unused: [0; 4],
        }
    }
}

/// Carries out the last instruction of a block by its handler, whatever it changes. Returns where the code of the next
/// block is; 0 if the instruction did not retire, or the next block is not to be run so.
///
/// # Safety
/// As for [`handle`].
pub(super) unsafe extern "C" fn last(cpu: *mut Cpu, record: *const Record) -> u64 {
    // SAFETY: as in `handle`.
    let (cpu, record) = unsafe { (&mut *cpu, &*record) };
    cpu.arithmetic = cpu.native.flags();
    cpu.rip = cpu.native.page + u64::from(record.start);
    cpu.set_slot(slot::BLOCK, cpu.rip);
    cpu.next_rip = cpu.rip.wrapping_add(record.bytes.into());
    let after = cpu.native.limit - cpu.native.left;
    cpu.clock = after - u64::from(record.length);
    cpu.native.retired = 0;
    let failed = (record.op.run)(cpu, &record.op).is_err();
    // A repeated instruction has those of its last iteration, even if one faults.
    cpu.native.set_flags(cpu.arithmetic);
    if failed {
        return 0;
    }
    cpu.native.retired = 1;
    cpu.clock = after;
    cpu.rip = cpu.next_rip;
    next(cpu).unwrap_or(0)
}

/// Where the code of the block at RIP is, if it may run next.
fn next(cpu: &mut Cpu) -> Option<u64> {
    if cpu.steps() || cpu.native.window != 0 || !cpu.rewritten.is_empty() || !cpu.long_code {
        return None;
    }
    let physical = cpu.tlb.code(cpu.rip, cpu.cpl == 3)?;
    let table = cpu.native.targets[cpu.tlb.mode as usize];
    let table = std::ptr::with_exposed_provenance::<Target>(table as usize);
    // SAFETY: the tables are as large as the index can be, and belong to who entered translated code.
    let target = unsafe { *table.add(target_index(physical)) };
    if target.physical != physical {
        return None;
    }
    cpu.native.page = cpu.rip & !OFFSET;
    cpu.native.sse = u64::from(allows_sse(cpu));
    Some(target.code)
}

/// Whether SSE instructions raise no exception for being one.
pub(super) fn allows_sse(cpu: &Cpu) -> bool {
    let off = cpu.control.cr0 & (bits::CR0_EM | bits::CR0_TS) != 0;
    !off && cpu.control.cr4 & bits::CR4_OSFXSR != 0
}
