//! What the processors of each maker do otherwise than ours.
//!
//! Ours is AMD's way wherever AMD and Intel differ (`docs/DETERMINISM.md` has the table, with what the
//! manuals say). So a host by AMD has to agree with it in everything, and what one by Intel does follows
//! from what ours did and the case, difference by difference. Each is a rule, not a licence: where it says
//! something else than the host does, the comparison fails.
//!
//! In one thing AMD's differ among themselves: which of two operands of CMPS faults. Ours is Zen 5's way, the
//! source; Zen 4's do as Intel's, but for REPE CMPSB. Which of the two a host is it is asked ([`Harness::destination_first`]).

#[cfg(doc)]
use crate::Harness;
use crate::state::{ARENA, ARENA_ALL, ARENA_LEN, AT, CODE, Case, Ending, Fault};
use iced_x86::{Code, Mnemonic, OpKind, Register};

pub use crate::maker::Maker;

impl Maker {
    /// What this maker's processor does with `case`, ours having done `ours`. `before` is the arena before it,
    /// but for the case's own words.
    pub fn expected(self, case: &Case, ours: &Ending, before: &[u8]) -> Expected {
        let mut expected = Expected {
            outcome: ours.clone(),
            writes: Vec::new(),
        };
        if self == Self::Intel {
            intel(case, &mut expected, before);
        }
        expected
    }
}

/// Writes to memory: address and bytes.
pub type Writes = Vec<(u64, Vec<u8>)>;

/// What a processor has to do.
pub struct Expected {
    /// How it ends.
    pub outcome: Ending,
    /// Where it writes to memory what ours does not, in order: address and bytes.
    pub writes: Writes,
}

const RCX: usize = 1;
const RSP: usize = 4;
const RBP: usize = 5;
const RSI: usize = 6;
const RDI: usize = 7;
const OF: u64 = 1 << 11;
const LOW: u64 = 0xffff_ffff;

/// Makes of what ours did, which is AMD's way, what Intel's do.
fn intel(case: &Case, expected: &mut Expected, before: &[u8]) {
    use Mnemonic as M;
    let outcome = &mut expected.outcome;
    match case.instruction.mnemonic() {
        M::Movsb | M::Movsw | M::Movsd | M::Movsq => repeated(case, outcome, &[RSI, RDI]),
        M::Stosb | M::Stosw | M::Stosd | M::Stosq => repeated(case, outcome, &[RDI]),
        M::Lodsb | M::Lodsw | M::Lodsd | M::Lodsq => repeated(case, outcome, &[]),
        M::Scasb | M::Scasw | M::Scasd | M::Scasq => {
            comparison_flags(case, outcome);
            repeated(case, outcome, &[]);
        }
        M::Cmpsb | M::Cmpsw | M::Cmpsd | M::Cmpsq => {
            destination_first(case, outcome);
            comparison_flags(case, outcome);
            repeated(case, outcome, &[]);
        }
        M::Rcl | M::Rcr => full_turns(case, outcome),
        M::Shld | M::Shrd => bits_once_more(case, expected, before),
        M::Bound => lower_bound_alone(case, outcome, before),
        M::Call => expected.writes.extend(return_address_left(case, outcome)),
        M::Enter | M::Pusha | M::Pushad if outcome.fault.is_some() => {
            expected.writes = pushed_so_far(case, before);
        }
        M::Popa | M::Popad if outcome.fault.is_some() => popped_so_far(case, outcome, before),
        _ => {}
    }
}

/// A repeated string instruction with 32-bit addresses in 64-bit code that does no iteration, or faults in
/// the first: the upper halves of the counter and of these index registers are cleared all the same.
fn repeated(case: &Case, outcome: &mut Ending, cleared: &[usize]) {
    let i = &case.instruction;
    if case.bitness != 64 || !narrow(case) || !(i.has_rep_prefix() || i.has_repne_prefix()) {
        return;
    }
    let before = &case.state.regs;
    if outcome.state.regs[RCX] != before[RCX] {
        return;
    }
    for register in cleared.iter().copied().chain([RCX]) {
        outcome.state.regs[register] &= LOW;
    }
}

/// Whether a string instruction has 32-bit addresses.
pub fn narrow(case: &Case) -> bool {
    let i = &case.instruction;
    (0..i.op_count()).any(|n| matches!(i.op_kind(n), OpKind::MemorySegESI | OpKind::MemoryESEDI))
}

/// A repeated comparison that faults after some iterations leaves the flags it started with.
fn comparison_flags(case: &Case, outcome: &mut Ending) {
    if outcome.fault.is_some() {
        outcome.state.flags = case.state.flags;
    }
}

/// A form of CMPS: bytes of an operand, with REPE, with REPNE.
pub type Cmps = (usize, bool, bool);

/// Which form of CMPS it is, if it is one.
pub fn cmps(case: &Case) -> Option<Cmps> {
    use Mnemonic as M;
    let i = &case.instruction;
    let is = matches!(i.mnemonic(), M::Cmpsb | M::Cmpsw | M::Cmpsd | M::Cmpsq);
    is.then(|| {
        (
            i.memory_size().size(),
            i.has_rep_prefix(),
            i.has_repne_prefix(),
        )
    })
}

/// Of two operands of CMPS that fault, the destination does.
pub fn destination_first(case: &Case, outcome: &mut Ending) {
    if outcome.fault.is_none() {
        return;
    }
    let size = case.instruction.memory_size().size() as u64;
    let mask = if narrow(case) { LOW } else { u64::MAX };
    let at = outcome.state.regs[RDI] & mask;
    if let Some(fault) = fault_of_read(case, at, size) {
        outcome.fault = Some(fault);
    }
}

/// The fault of a read of `size` bytes at linear `address`.
fn fault_of_read(case: &Case, address: u64, size: u64) -> Option<Fault> {
    fault_of(case, address, size, false)
}

/// The fault of an access of `size` bytes to linear `address`.
fn fault_of(case: &Case, address: u64, size: u64, write: bool) -> Option<Fault> {
    let canonical = |at: u64| (at as i64) << 16 >> 16 == at as i64;
    let last = address.wrapping_add(size - 1);
    if case.bitness == 64 && !(canonical(address) && canonical(last)) {
        return Some(Fault {
            vector: 13,
            address: None,
            write: false,
        });
    }
    let linear = |at: u64| if case.bitness == 64 { at } else { at & LOW };
    let allowed = |at: u64| {
        if write {
            return (ARENA..ARENA + ARENA_LEN).contains(&at);
        }
        (CODE..CODE + 0x1000).contains(&at) || (ARENA..ARENA + ARENA_ALL).contains(&at)
    };
    let pages = [linear(address), linear(last) & !0xfff];
    pages.into_iter().find(|at| !allowed(*at)).map(|at| Fault {
        vector: 14,
        address: Some(at),
        write,
    })
}

/// Bytes of what PUSHA, POPA and ENTER push or pop at a time.
fn element(case: &Case) -> u64 {
    match case.instruction.code() {
        Code::Pushaw | Code::Popaw | Code::Enterw_imm16_imm8 => 2,
        Code::Enterq_imm16_imm8 => 8,
        _ => 4,
    }
}

/// Address of the element `n` above what `register` points to.
fn above(case: &Case, register: usize, n: i64) -> u64 {
    let size = element(case) as i64;
    let at = case.state.regs[register].wrapping_add((n * size) as u64);
    if case.bitness == 64 { at } else { at & LOW }
}

/// PUSHA and ENTER that fault leave what they have pushed before.
fn pushed_so_far(case: &Case, before: &[u8]) -> Writes {
    let size = element(case);
    let i = &case.instruction;
    let (level, words) = match i.mnemonic() {
        Mnemonic::Enter => {
            let level = i64::from(i.immediate8_2nd() % 32);
            (level, level + 1)
        }
        _ => (0, 8),
    };
    let mut writes = Writes::new();
    for n in 0..words {
        let value = if i.mnemonic() != Mnemonic::Enter {
            case.state.regs[n as usize]
        } else if n == 0 {
            case.state.regs[RBP]
        } else if n == level {
            above(case, RSP, -1)
        } else {
            let from = above(case, RBP, -n);
            if fault_of_read(case, from, size).is_some() {
                break;
            }
            let mut bytes = was(case, before, from, size as usize).expect("it can be read");
            overlay(&writes, from, &mut bytes);
            bytes.resize(8, 0);
            u64::from_le_bytes(bytes.try_into().expect("8 bytes"))
        };
        let to = above(case, RSP, -n - 1);
        if fault_of(case, to, size, true).is_some() {
            break;
        }
        writes.push((to, value.to_le_bytes()[..size as usize].to_vec()));
    }
    writes
}

/// POPA that faults leaves the registers it has popped before.
fn popped_so_far(case: &Case, outcome: &mut Ending, before: &[u8]) {
    let size = element(case);
    for n in 0..8 {
        let from = above(case, RSP, n);
        if fault_of_read(case, from, size).is_some() {
            break;
        }
        let register = 7 - n as usize;
        if register == RSP {
            continue;
        }
        let bytes = was(case, before, from, size as usize).expect("it can be read");
        for (k, byte) in bytes.iter().enumerate() {
            let shift = 8 * k as u32;
            let to = &mut outcome.state.regs[register];
            *to = *to & !(0xff << shift) | u64::from(*byte) << shift;
        }
    }
}

/// Puts over `bytes`, which are those at `address`, what has been written.
pub fn overlay(writes: &[(u64, Vec<u8>)], address: u64, bytes: &mut [u8]) {
    for (start, written) in writes {
        for (at, byte) in (*start..).zip(written) {
            if let Some(to) = at
                .checked_sub(address)
                .and_then(|n| bytes.get_mut(n as usize))
            {
                *to = *byte;
            }
        }
    }
}

/// RCL and RCR of 8 and 16 bits by a count that turns all the way round leave OF alone.
fn full_turns(case: &Case, outcome: &mut Ending) {
    if outcome.fault.is_none() && count(case, 1).is_multiple_of(bits(case) + 1) {
        outcome.state.flags = outcome.state.flags & !OF | case.state.flags & OF;
    }
}

/// SHLD and SHRD of 16 bits by more than 16, which is undefined: behind the register's bits come those of
/// the operand itself once more. The flags are of the last bit out, the result, and, OF, of a shift by one.
fn bits_once_more(case: &Case, expected: &mut Expected, before: &[u8]) {
    let outcome = &mut expected.outcome;
    let (i, count) = (&case.instruction, count(case, 2));
    if outcome.fault.is_some() || bits(case) != 16 || count <= 16 {
        return;
    }
    let in_memory = i.op0_kind() == OpKind::Memory;
    let register = |register: Register| case.state.regs[register.full_register().number()] & 0xffff;
    let a = if in_memory {
        let bytes = was(case, before, place(case, 0), 2).expect("it did not fault");
        u64::from(bytes[0]) | u64::from(bytes[1]) << 8
    } else {
        register(i.op0_register())
    };
    let b = register(i.op1_register());
    let wide = a << 32 | b << 16 | a;
    let (result, carry, overflow) = if i.mnemonic() == Mnemonic::Shld {
        (wide << count >> 32, wide >> (48 - count), a >> 15 ^ a >> 14)
    } else {
        (wide >> count, wide >> (count - 1), a >> 15 ^ b)
    };
    let result = result as u16;
    if in_memory {
        expected.writes = vec![(place(case, 0), result.to_le_bytes().to_vec())];
    } else {
        let to = &mut outcome.state.regs[i.op0_register().full_register().number()];
        *to = *to & !0xffff | u64::from(result);
    }
    let parity = (result as u8).count_ones().is_multiple_of(2);
    let flags = [
        (0, carry & 1 != 0),
        (2, parity),
        (4, false),
        (6, result == 0),
        (7, result >> 15 != 0),
        (11, overflow & 1 != 0),
    ];
    for (bit, set) in flags {
        outcome.state.flags = outcome.state.flags & !(1 << bit) | u64::from(set) << bit;
    }
}

/// Bits of the first operand.
fn bits(case: &Case) -> u64 {
    let i = &case.instruction;
    8 * match i.op0_kind() {
        OpKind::Memory => i.memory_size().size(),
        _ => i.op0_register().size(),
    } as u64
}

/// The count in operand `n`, an immediate or CL, as the processor cuts it.
fn count(case: &Case, n: u32) -> u64 {
    let i = &case.instruction;
    let count = match i.op_kind(n) {
        OpKind::Register => case.state.regs[RCX],
        _ => u64::from(i.immediate8()),
    };
    count & if bits(case) == 64 { 63 } else { 31 }
}

/// Where memory operand `n` of `case` is.
pub fn place(case: &Case, n: u32) -> u64 {
    let at = case.instruction.virtual_address(n, 0, |register, _, _| {
        if register.is_segment_register() {
            return Some(0);
        }
        let value = case.state.regs[register.full_register().number()];
        Some(match register.size() {
            4 => value & LOW,
            _ => value,
        })
    });
    let at = at.expect("only general registers and flat segments");
    if case.bitness == 64 { at } else { at & LOW }
}

/// What was in the arena at linear `address` before `case`; `None` if that is not in it.
pub fn was(case: &Case, before: &[u8], address: u64, len: usize) -> Option<Vec<u8>> {
    let from = usize::try_from(address.checked_sub(ARENA)?).ok()?;
    let mut bytes = before.get(from..from + len)?.to_vec();
    overlay(&case.pokes, address, &mut bytes);
    Some(bytes)
}

/// BOUND with a register below the lower bound does not read the upper one, so that may fault.
fn lower_bound_alone(case: &Case, outcome: &mut Ending, before: &[u8]) {
    if outcome.fault.is_none_or(|fault| fault.vector != 14) {
        return;
    }
    let i = &case.instruction;
    let size = i.op0_register().size();
    let Some(lower) = was(case, before, place(case, 1), size) else {
        return;
    };
    let signed = |bytes: &[u8]| match *bytes {
        [a, b] => i32::from(i16::from_le_bytes([a, b])),
        [a, b, c, d] => i32::from_le_bytes([a, b, c, d]),
        _ => unreachable!("BOUND has 16 or 32 bits"),
    };
    let register = case.state.regs[i.op0_register().full_register().number()].to_le_bytes();
    if signed(&register[..size]) < signed(&lower) {
        outcome.fault = Some(Fault {
            vector: 5,
            address: None,
            write: false,
        });
    }
}

/// CALL to a target in a register or memory that is not canonical has put the return address below the stack when it
/// faults.
fn return_address_left(case: &Case, outcome: &Ending) -> Option<(u64, Vec<u8>)> {
    let i = &case.instruction;
    if outcome.fault?.vector != 13 {
        return None;
    }
    if i.op0_kind() == OpKind::Memory && fault_of_read(case, place(case, 0), 8).is_some() {
        return None;
    }
    let back = AT + case.bytes.len() as u64;
    Some((
        case.state.regs[RSP].wrapping_sub(8),
        back.to_le_bytes().to_vec(),
    ))
}
