//! Code that all translated blocks share: the way in and out, calls of handlers, jumps to elsewhere.

use super::asm::*;
use super::state::{self, BASE, PINNED, Record, field};
use crate::memory::{CODE_ENTRY, CODE_FOLD, CODE_PAIRS, ENTRIES, Entry, Mode, Window};
use std::mem::offset_of;

/// Targets remembered for each mode: a power of two.
pub(super) const TARGETS: usize = 1 << 16;

/// Where a block's code is, by its physical address.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct Target {
    /// Physical address of its first byte; [`NOWHERE`] for none.
    pub physical: u64,
    /// Where its code is.
    pub code: u64,
}

/// No block has this address: physical ones have 52 bits.
pub(super) const NOWHERE: Target = Target {
    physical: u64::MAX,
    code: 0,
};

/// The place of a physical address among the targets.
pub(super) fn target_index(physical: u64) -> usize {
    (physical ^ physical >> 12) as usize % TARGETS
}

/// Jumps remembered for each mode: a power of two.
pub(super) const JUMPS: usize = 1 << 12;

/// Where the code at a virtual address is.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct Jump {
    /// The address.
    pub address: u64,
    /// The count of changes when it was found; at another, it may lead elsewhere.
    pub changes: u64,
    /// Where its code is.
    pub code: u64,
    /// So that a jump's place is a shift.
    pub unused: u64,
}

/// A jump nobody made: nothing changes so often.
pub(super) const NEVER: Jump = Jump {
    address: 0,
    changes: u64::MAX,
    code: 0,
    unused: 0,
};

/// Where they are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Thunks {
    /// `extern "C" fn(cpu, code, left) -> record`.
    pub enter: u64,
    /// Out, with a record in RAX.
    pub leave: u64,
    /// Carries out the instruction of the record in RAX, and returns if it retired.
    pub handle: u64,
    /// Carries out the last instruction of a block, that of the record in RAX, and goes on with the next block.
    pub last: u64,
    /// For each mode: finds the code at virtual address RAX, makes its page the current one and returns with R11
    /// where the code is. Leaves if it is not translated.
    pub find: [u64; 3],
    /// For each mode, and for reads and writes of up to 8 bytes: opens the window on the page in which RAX is, once what
    /// was taken from it is added again. RAX becomes where that is in the host; CF is set if nobody knows. R10 changes.
    pub open: [[u64; 2]; 3],
}

/// Registers a C function has to leave as they were, but RSP.
const SAVED: [Reg; 6] = [RBX, RBP, R12, R13, R14, R15];

impl Thunks {
    /// Writes them. `elsewhere` is filled with where its record is to be.
    pub fn write(asm: &mut Asm, elsewhere: &Record) -> Self {
        let enter = asm.here();
        for reg in SAVED {
            asm.push(reg);
        }
        // What translated code calls begins with an aligned stack after its own push.
        asm.lea(8, RSP, Mem::at(RSP, -8));
        asm.lea(8, RBP, Mem::at(RDI, BASE));
        asm.store(8, field!(native.left), RDX);
        asm.copy(RAX, RSI);
        reload(asm);
        asm.go(4, RAX);
        asm.align(16);
        let leave = asm.here();
        spill(asm);
        let spilled = asm.here();
        asm.lea(8, RSP, Mem::at(RSP, 8));
        for reg in SAVED.into_iter().rev() {
            asm.pop(reg);
        }
        asm.raw(&[0xc3]);
        asm.align(16);
        let handle = handler(asm, spilled);
        let last = last(asm, spilled);
        let modes = [Mode::Supervisor, Mode::SupervisorStrict, Mode::User];
        let find = modes.map(|mode| find(asm, mode, leave, elsewhere));
        let open = modes.map(|mode| [false, true].map(|write| open(asm, mode, write)));
        Self {
            enter,
            leave,
            handle,
            last,
            find,
            open,
        }
    }
}

fn spill(asm: &mut Asm) {
    for (guest, host) in PINNED {
        asm.store(8, state::slot_at(guest), host);
    }
}

fn reload(asm: &mut Asm) {
    for (guest, host) in PINNED {
        asm.load(8, host, state::slot_at(guest));
    }
}

fn handler(asm: &mut Asm, spilled: u64) -> u64 {
    let handle = asm.here();
    // It aligns the stack, too.
    asm.push(RAX);
    spill(asm);
    asm.lea(8, RDI, Mem::at(RBP, -BASE));
    asm.copy(RSI, RAX);
    let function: unsafe extern "C" fn(*mut crate::Cpu, *const Record) -> u64 = state::handle;
    asm.set(RAX, function as usize as u64);
    asm.go(2, RAX);
    asm.op(4, one(0x85), RAX.0, RAX);
    asm.pop(RAX);
    let failed = asm.jump_if(5);
    reload(asm);
    asm.raw(&[0xc3]);
    asm.fill_here(failed);
    asm.lea(8, RSP, Mem::at(RSP, 8));
    asm.jump_to(spilled);
    asm.align(16);
    handle
}

fn last(asm: &mut Asm, spilled: u64) -> u64 {
    let last = asm.here();
    // The stack is as translated code has it: two pushes align it for a call.
    asm.push(RAX);
    asm.push(RAX);
    spill(asm);
    asm.lea(8, RDI, Mem::at(RBP, -BASE));
    asm.copy(RSI, RAX);
    let function: unsafe extern "C" fn(*mut crate::Cpu, *const Record) -> u64 = state::last;
    asm.set(RAX, function as usize as u64);
    asm.go(2, RAX);
    asm.copy(R11, RAX);
    asm.pop(RAX);
    asm.pop(RAX);
    asm.op(4, one(0x85), R11.0, R11);
    let out = asm.jump_if(4);
    reload(asm);
    asm.go(4, R11);
    asm.fill_here(out);
    asm.jump_to(spilled);
    asm.align(16);
    last
}

fn open(asm: &mut Asm, mode: Mode, write: bool) -> u64 {
    const SHIFT: u8 = 12 - size_of::<Entry>().trailing_zeros() as u8;
    const MASK: i32 = ((ENTRIES - 1) * size_of::<Entry>()) as i32;
    /// An access of 8 bytes that begins before it ends in the page.
    const LIMIT: i32 = 4096 - 8 + 1;
    let open = asm.here();
    let entry = |field: usize| Mem::at(R10, field as i32);
    let window = |field: usize| Mem::at(RBP, state::window(mode) + field as i32);
    let (read_tag, write_tag) = (offset_of!(Entry, read), offset_of!(Entry, write));
    asm.push(RCX);
    asm.alu(0, 8, RAX, window(offset_of!(Window, page)));
    asm.load(4, R10, RAX);
    asm.shift(5, 4, R10, SHIFT);
    asm.alu_value(4, 4, R10, MASK);
    asm.alu(0, 8, R10, state::data_table(mode));
    asm.copy(RCX, RAX);
    asm.alu_value(4, 8, RCX, -4096);
    asm.alu(7, 8, RCX, entry(if write { write_tag } else { read_tag }));
    let unknown = asm.jump_if(5);
    asm.alu(5, 8, RAX, RCX);
    asm.alu_value(7, 8, RAX, LIMIT);
    let across = asm.jump_if(3);
    asm.store(8, window(offset_of!(Window, page)), RCX);
    for (tag, limit) in [
        (read_tag, offset_of!(Window, reads)),
        (write_tag, offset_of!(Window, writes)),
    ] {
        asm.store_value(8, window(limit), 0);
        asm.alu(7, 8, RCX, entry(tag));
        let not = asm.jump_if(5);
        asm.store_value(8, window(limit), LIMIT);
        asm.fill_here(not);
    }
    asm.load(8, RCX, entry(offset_of!(Entry, host)));
    asm.store(8, window(offset_of!(Window, host)), RCX);
    asm.alu(0, 8, RAX, RCX);
    asm.pop(RCX);
    // clc; ret
    asm.raw(&[0xf8, 0xc3]);
    asm.fill_here(unknown);
    asm.fill_here(across);
    asm.pop(RCX);
    // stc; ret
    asm.raw(&[0xf9, 0xc3]);
    asm.align(16);
    open
}

/// R10 becomes where the jump to virtual address RAX is remembered.
pub(super) fn jump_at(asm: &mut Asm, mode: Mode) {
    const BITS: u8 = JUMPS.trailing_zeros() as u8;
    const SHIFT: u8 = size_of::<Jump>().trailing_zeros() as u8;
    // 2^32 divided by the golden ratio: the high bits of the product are good.
    asm.op(4, one(0x69), R10.0, RAX);
    asm.raw(&0x9e37_79b1_u32.to_le_bytes());
    asm.shift(5, 4, R10, 32 - BITS - SHIFT);
    asm.alu_value(4, 4, R10, (JUMPS as i32 - 1) << SHIFT);
    let tables = offset_of!(crate::Cpu, native.jumps) as i32 - BASE;
    asm.alu(0, 8, R10, Mem::at(RBP, tables + 8 * mode as i32));
}

/// If the jump to virtual address RAX is remembered: makes its page the current one, with R10 where the jump is. What
/// leads to where it is not.
pub(super) fn known_jump(asm: &mut Asm, mode: Mode) -> [Hole; 2] {
    jump_at(asm, mode);
    asm.alu(7, 8, RAX, Mem::at(R10, offset_of!(Jump, address) as i32));
    let other = asm.jump_if(5);
    asm.load(8, R11, state::changes());
    asm.alu(7, 8, R11, Mem::at(R10, offset_of!(Jump, changes) as i32));
    let old = asm.jump_if(5);
    asm.alu_value(4, 8, RAX, -4096);
    asm.store(8, field!(native.page), RAX);
    [other, old]
}

/// R10 becomes where the instruction TLB has the page that begins at `page`, in which virtual address `address` lies.
/// What leads to where it does not. Flags change.
pub(super) fn code_entry(asm: &mut Asm, mode: Mode, address: Reg, page: Reg) -> Hole {
    const SHIFT: u8 = (2 * CODE_ENTRY).trailing_zeros() as u8;
    asm.copy(R10, address);
    asm.shift(5, 8, R10, CODE_FOLD);
    asm.alu(6, 8, R10, address);
    asm.shift(5, 4, R10, 12 - SHIFT);
    asm.alu_value(4, 4, R10, (CODE_PAIRS as i32 - 1) << SHIFT);
    asm.alu(0, 8, R10, state::code_table(mode));
    asm.alu(7, 8, page, Mem::at(R10, 0));
    let first = asm.jump_if(4);
    asm.alu_value(0, 8, R10, CODE_ENTRY as i32);
    asm.alu(7, 8, page, Mem::at(R10, 0));
    let unknown = asm.jump_if(5);
    asm.fill_here(first);
    unknown
}

fn find(asm: &mut Asm, mode: Mode, leave: u64, elsewhere: &Record) -> u64 {
    let find = asm.here();
    let unknown = known_jump(asm, mode);
    asm.load(8, R11, Mem::at(R10, offset_of!(Jump, code) as i32));
    asm.raw(&[0xc3]);
    for hole in unknown {
        asm.fill_here(hole);
    }
    asm.copy(R11, RAX);
    asm.alu_value(4, 8, R11, -4096);
    let unknown = code_entry(asm, mode, RAX, R11);
    // The place in the page, and with it the physical address.
    asm.alu(6, 8, R11, RAX);
    asm.alu(1, 8, R11, Mem::at(R10, 8));
    asm.copy(R10, R11);
    asm.shift(5, 8, R10, 12);
    asm.alu(6, 4, R10, R11);
    asm.alu_value(4, 4, R10, TARGETS as i32 - 1);
    asm.shift(4, 4, R10, size_of::<Target>().trailing_zeros() as u8);
    let tables = offset_of!(crate::Cpu, native.targets) as i32 - BASE;
    asm.alu(0, 8, R10, Mem::at(RBP, tables + 8 * mode as i32));
    asm.alu(7, 8, R11, Mem::at(R10, 0));
    let untranslated = asm.jump_if(5);
    asm.load(8, R11, Mem::at(R10, 8));
    jump_at(asm, mode);
    asm.store(8, Mem::at(R10, offset_of!(Jump, code) as i32), R11);
    asm.store(8, Mem::at(R10, offset_of!(Jump, address) as i32), RAX);
    asm.alu_value(4, 8, RAX, -4096);
    asm.store(8, field!(native.page), RAX);
    asm.load(8, RAX, state::changes());
    asm.store(8, Mem::at(R10, offset_of!(Jump, changes) as i32), RAX);
    asm.raw(&[0xc3]);
    asm.fill_here(unknown);
    asm.fill_here(untranslated);
    asm.store(8, field!(native.target), RAX);
    asm.lea(8, RSP, Mem::at(RSP, 8));
    asm.set(
        RAX,
        std::ptr::from_ref(elsewhere).expose_provenance() as u64,
    );
    asm.jump_to(leave);
    asm.align(16);
    find
}
