//! Which functions the kernel is in, from the innermost out, by the kernel's own tables (ORC: Linux,
//! Documentation/arch/x86/orc-unwinder.rst): they say of each instruction where the frame it is in ends.

use super::memory::Look;
use super::symbols::Symbols;
use vmm::state::CpuState;

/// Most functions that are told of.
const DEPTH_MAX: usize = 128;
/// Most entries that are ever read, of the kernel and of all its modules: Debian's kernel has half a million.
const ENTRIES_MAX: u64 = 8 << 20;
/// Bytes of an entry: how far the stack's and the frame's address are from their registers, and which these are.
const ENTRY: usize = 6;

/// Registers an address is found by (arch/x86/include/asm/orc_types.h).
mod by {
    pub const UNDEFINED: u16 = 0;
    pub const PREVIOUS: u16 = 1;
    pub const DX: u16 = 2;
    pub const DI: u16 = 3;
    pub const BP: u16 = 4;
    pub const SP: u16 = 5;
    pub const R10: u16 = 6;
    pub const R13: u16 = 7;
    pub const BP_INDIRECT: u16 = 8;
    pub const SP_INDIRECT: u16 = 9;
}

/// Registers, by their places in a vCPU's state.
const RDX: usize = 3;
const RDI: usize = 5;
const RSP: usize = 6;
const RBP: usize = 7;

/// What is at the end of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Nothing: the frame is the outermost, or nothing is known.
    End,
    /// The address the function returns to.
    Call,
    /// All registers.
    Registers,
    /// What an interrupt pushes.
    Interrupt,
}

/// Of code in one piece.
struct Table {
    /// Addresses from which on an entry holds, rising.
    addresses: Vec<u64>,
    entries: Vec<[u8; ENTRY]>,
}

impl Table {
    /// `count` entries, their addresses in one table and what holds there in another.
    fn read(look: &impl Look, addresses: u64, entries: u64, count: u64) -> Option<Self> {
        let distances = look.bytes(addresses, count as usize * 4)?;
        let (distances, _) = distances.as_chunks::<4>();
        let bytes = look.bytes(entries, count as usize * ENTRY)?;
        let at = |(n, distance): (u64, &[u8; 4])| {
            let distance = i64::from(i32::from_le_bytes(*distance));
            addresses.wrapping_add(4 * n).wrapping_add_signed(distance)
        };
        Some(Self {
            addresses: (0..).zip(distances).map(at).collect(),
            entries: bytes.as_chunks().0.to_vec(),
        })
    }

    fn find(&self, address: u64) -> Option<&[u8; ENTRY]> {
        let behind = self.addresses.partition_point(|at| *at <= address);
        self.entries.get(behind.checked_sub(1)?)
    }
}

/// Finds the callers.
pub struct Unwinder {
    /// Tables, by the code they are of.
    tables: Vec<(std::ops::Range<u64>, Table)>,
    /// So many more entries are read.
    entries_left: u64,
    /// Since Linux 6.4 an entry's kind has another place and other values, and three bits.
    newer: bool,
}

impl Unwinder {
    /// By the tables of a kernel that is Linux `version` (major and minor number); none if it has none.
    pub fn of(look: &impl Look, symbols: &Symbols, version: (u32, u32)) -> Option<Self> {
        let at = |name| symbols.address(name);
        let addresses = at("__start_orc_unwind_ip")?;
        let count = at("__stop_orc_unwind_ip")?.checked_sub(addresses)? / 4;
        let entries_left = ENTRIES_MAX.checked_sub(count)?;
        let table = Table::read(look, addresses, at("__start_orc_unwind")?, count)?;
        Some(Self {
            tables: vec![(at("_text")?..at("_end")?, table)],
            entries_left,
            newer: version >= (6, 4),
        })
    }

    /// Adds the tables of a module, whose code is `code`. False if they are more than may be read yet: none is added.
    pub fn add(
        &mut self,
        look: &impl Look,
        code: std::ops::Range<u64>,
        (addresses, entries, count): (u64, u64, u64),
    ) -> bool {
        // What could not be read after all was asked for, too.
        let Some(left) = self.entries_left.checked_sub(count) else {
            return false;
        };
        self.entries_left = left;
        if let Some(table) = Table::read(look, addresses, entries, count) {
            self.tables.retain(|(known, _)| *known != code);
            self.tables.push((code, table));
        }
        true
    }

    /// Addresses in the functions the kernel is in where the vCPU is in `state`, the innermost first. All but the
    /// innermost, and those an interrupt came in, are where a call returns to.
    pub fn callers(&self, look: &impl Look, state: &CpuState) -> Vec<u64> {
        let mut frames = vec![state.rip];
        let mut here = Frame {
            ip: state.rip,
            sp: state.general[RSP],
            bp: state.general[RBP],
            interrupted: true,
            registers: Some(state.general),
        };
        while frames.len() < DEPTH_MAX
            && let Some(next) = self.next(look, &here)
        {
            // Stacks grow downwards; the way out of one leads to another at most a few times.
            if (next.ip, next.sp) == (here.ip, here.sp) {
                break;
            }
            frames.push(next.ip);
            here = next;
        }
        frames
    }

    fn next(&self, look: &impl Look, frame: &Frame) -> Option<Frame> {
        // A call may be the last instruction of its function.
        let address = if frame.interrupted {
            frame.ip
        } else {
            frame.ip.wrapping_sub(1)
        };
        let tables = &self.tables;
        let (_, table) = tables.iter().find(|(code, _)| code.contains(&address))?;
        let entry = table.find(address)?;
        let word = |at: usize| u16::from_le_bytes([entry[at], entry[at + 1]]);
        let (sp_offset, bp_offset, rest) = (word(0) as i16, word(2) as i16, word(4));
        let kind = self.kind(rest);
        let plus = |address: u64, offset: i16| address.wrapping_add_signed(offset.into());
        let register = |n: usize| Some(frame.registers?[n]);
        let sp = match rest & 15 {
            by::SP => plus(frame.sp, sp_offset),
            by::BP => plus(frame.bp, sp_offset),
            by::BP_INDIRECT => look.u64(plus(frame.bp, sp_offset))?,
            by::SP_INDIRECT => plus(look.u64(frame.sp)?, sp_offset),
            by::DX => plus(register(RDX)?, sp_offset),
            by::DI => plus(register(RDI)?, sp_offset),
            by::R10 => plus(register(10)?, sp_offset),
            by::R13 => plus(register(13)?, sp_offset),
            _ => return None,
        };
        match kind {
            Kind::End => None,
            Kind::Call => {
                let bp = match rest >> 4 & 15 {
                    by::UNDEFINED => frame.bp,
                    by::PREVIOUS => look.u64(plus(sp, bp_offset))?,
                    by::BP => look.u64(plus(frame.bp, bp_offset))?,
                    _ => return None,
                };
                let ip = look.u64(sp.wrapping_sub(8))?;
                (ip >= KERNEL).then_some(Frame {
                    ip,
                    sp,
                    bp,
                    interrupted: false,
                    registers: None,
                })
            }
            // `struct pt_regs`: the registers, R15 first, then what an interrupt pushes.
            Kind::Registers => {
                let read = |n: u64| look.u64(sp.wrapping_add(8 * n));
                let bp = read(4)?;
                Frame::interrupted(look, sp.wrapping_add(16 * 8), bp)
            }
            Kind::Interrupt => Frame::interrupted(look, sp, frame.bp),
        }
    }

    fn kind(&self, rest: u16) -> Kind {
        if self.newer {
            return match rest >> 8 & 7 {
                2 => Kind::Call,
                3 => Kind::Registers,
                4 => Kind::Interrupt,
                _ => Kind::End,
            };
        }
        // The bit behind the two of the kind, or the one behind that in Linux 6.3, is of the outermost frame; an
        // entry of that has no register, too.
        match rest >> 8 & 3 {
            0 => Kind::Call,
            1 => Kind::Registers,
            2 => Kind::Interrupt,
            _ => Kind::End,
        }
    }
}

#[cfg(test)]
impl Unwinder {
    /// One without tables.
    pub fn empty() -> Self {
        Self {
            tables: Vec::new(),
            entries_left: ENTRIES_MAX,
            newer: false,
        }
    }
}

/// Where the kernel's half of addresses begins.
const KERNEL: u64 = 1 << 63;

/// A function's frame.
struct Frame {
    ip: u64,
    sp: u64,
    bp: u64,
    /// The address is that of the next instruction, and not where a call returns to.
    interrupted: bool,
    /// All registers, where they are known.
    registers: Option<[u64; 16]>,
}

impl Frame {
    /// What an interrupt at `at` on the stack came in: RIP, CS, flags, RSP, SS; none if that is a program.
    fn interrupted(look: &impl Look, at: u64, bp: u64) -> Option<Self> {
        let (ip, cs) = (look.u64(at)?, look.u64(at.wrapping_add(8))?);
        let sp = look.u64(at.wrapping_add(24))?;
        (cs & 3 == 0 && ip >= KERNEL).then_some(Self {
            ip,
            sp,
            bp,
            interrupted: true,
            registers: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::memory::tests::Flat;
    use super::*;

    const BASE: u64 = 0xffff_ffff_8100_0000;

    fn unwinder(rows: &[(u64, [i16; 2], u16)]) -> Unwinder {
        let entry = |(_, [sp, bp], rest): &(u64, [i16; 2], u16)| {
            let words = [sp.to_le_bytes(), bp.to_le_bytes(), rest.to_le_bytes()];
            words.concat().try_into().unwrap()
        };
        let table = Table {
            addresses: rows.iter().map(|(at, ..)| BASE + at).collect(),
            entries: rows.iter().map(entry).collect(),
        };
        Unwinder {
            tables: vec![(BASE..BASE + 0x1000, table)],
            entries_left: 100,
            newer: false,
        }
    }

    #[test]
    fn callers_are_found_on_the_stack_by_the_tables() {
        // The innermost moved its stack by 16 and saved RBP; its caller has a frame by RBP; then all ends.
        let unwinder = unwinder(&[
            (0, [0, 0], 0),
            (0x100, [24, -16], by::PREVIOUS << 4 | by::SP),
            (0x200, [16, -16], by::PREVIOUS << 4 | by::BP),
            (0x300, [0, 0], by::UNDEFINED),
        ]);
        let stack = 0xffff_c900_0000_0000;
        let mut memory = Flat::new(stack, 0x100);
        let mut put = |at: u64, value: u64| memory.put(stack + at, &value.to_le_bytes());
        put(0x08, stack + 0x40);
        put(0x10, BASE + 0x300); // the last byte of the caller is before it
        put(0x40, 7);
        put(0x48, BASE + 0x350);
        let mut state = CpuState {
            rip: BASE + 0x180,
            ..CpuState::default()
        };
        state.general[RSP] = stack;
        state.general[RBP] = 1;
        let found = unwinder.callers(&memory, &state);
        assert_eq!(found, [BASE + 0x180, BASE + 0x300, BASE + 0x350]);
    }

    #[test]
    fn all_modules_together_have_so_many_entries() {
        let memory = Flat::new(BASE, 0x1000);
        let mut unwinder = unwinder(&[(0, [0, 0], 0)]);
        let mut add = |n: u64, count| {
            let code = BASE + n * 0x1000..BASE + (n + 1) * 0x1000;
            let added = unwinder.add(&memory, code, (BASE, BASE + 0x800, count));
            (added, unwinder.tables.len())
        };
        assert_eq!(add(1, 60), (true, 2));
        assert_eq!(add(2, 60), (false, 2), "40 are left");
        assert_eq!(add(2, u64::MAX), (false, 2));
        assert_eq!(add(2, 40), (true, 3));
        // In place of another's they are read all the same.
        assert_eq!(add(1, 1), (false, 3));
    }

    #[test]
    fn a_stack_that_leads_to_itself_ends() {
        let unwinder = unwinder(&[(0, [0, 0], by::SP_INDIRECT)]);
        let stack = 0xffff_c900_0000_0000;
        let mut memory = Flat::new(stack, 0x20);
        memory.put(stack, &BASE.to_le_bytes());
        memory.put(stack + 8, &(stack + 8).to_le_bytes());
        let mut state = CpuState {
            rip: BASE,
            ..CpuState::default()
        };
        state.general[RSP] = stack + 8;
        let found = unwinder.callers(&memory, &state);
        assert!(found.len() <= DEPTH_MAX);
    }
}
