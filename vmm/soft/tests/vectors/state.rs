//! States to start from, the processor under test that goes on from them, and how states differ.

use crate::forms::{Case, Family};
use crate::native::State;
use crate::random::Random;
use crate::reference::x87::Operand;
use soft::Exit;
use soft::op::slot;
use soft::testing::{CODE, DATA, Machine};

/// Which SSE errors may be unmasked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Errors {
    None,
    Any,
}

/// A state to start from.
pub fn random_state(random: &mut Random, family: Family, errors: Errors) -> State {
    let x87 = family != Family::Vector;
    let mut state = State::default();
    for xmm in &mut state.fx.xmm {
        *xmm = random.vector();
    }
    state.fx.xmm[2] = if random.below(8) == 0 {
        state.fx.xmm[1]
    } else {
        state.fx.xmm[2]
    };
    for st in &mut state.fx.st {
        *st = if x87 {
            random.extended()
        } else {
            0xffff << 64 | random.vector() & u128::from(u64::MAX)
        };
    }
    // Rounding, DAZ and FTZ at random, old flags at random, mostly all masked.
    state.fx.mxcsr = 0x1f80;
    state.fx.mxcsr |= match random.below(2) {
        0 => 0,
        _ => random.next() as u32 & 0xe07f,
    };
    if errors == Errors::Any && random.below(4) == 0 {
        state.fx.mxcsr = random.next() as u32 & 0xffff;
    }
    state.fx.tags = random.next() as u8 | random.next() as u8;
    state.fx.fsw = random.next() as u16 & 0x7f7f;
    state.fx.fcw = 0x7f | random.next() as u16 & 0xc00;
    if x87 {
        state.fx.fcw |= [0, 0x200, 0x300, 0x300][random.below(4) as usize];
        // Few stack faults: all registers full, or all but ST(7), for what pushes.
        match random.below(4) {
            0 => {}
            1 => state.fx.tags = 0xff,
            _ => state.fx.tags = all_but_last(&state),
        }
        // Sometimes unmasked errors, none of them pending.
        if random.below(4) == 0 {
            state.fx.fcw &= !(random.next() as u16 & 0x3f);
            state.fx.fsw &= state.fx.fcw | !0x3f;
        }
        neighbours(random, &mut state);
    } else {
        state.fx.fcw |= 0x300;
    }
    for reg in &mut state.regs {
        *reg = random.double();
    }
    state.flags = 0x202 | random.next() & 0x8d5;
    let first = if x87 {
        random.extended()
    } else {
        random.vector()
    };
    state.memory[..16].copy_from_slice(&first.to_le_bytes());
    let second = random.vector();
    state.memory[16..32].copy_from_slice(&second.to_le_bytes());
    if random.below(3) == 0 {
        let number = random.double();
        state.memory[..8].copy_from_slice(&number.to_le_bytes());
    }
    state
}

/// A state of the unit, ST(7) empty and no other, under any precision control and any masks.
pub fn ready_unit(random: &mut Random) -> State {
    let mut state = random_state(random, Family::X87, Errors::None);
    state.fx.fcw = 0x40 | random.next() as u16 & 0xf3f;
    if random.below(2) == 0 {
        state.fx.fcw |= 0x3f;
    }
    // No error is pending.
    state.fx.fsw &= state.fx.fcw | !0x3f;
    state.fx.tags = all_but_last(&state);
    state
}

/// Tags with ST(7) empty and no other.
fn all_but_last(state: &State) -> u8 {
    !(1 << (((state.fx.fsw >> 11) + 7) & 7))
}

/// Sometimes makes operands that are near each other, and powers that lead to the ends of exponents.
fn neighbours(random: &mut Random, state: &mut State) {
    match random.below(8) {
        0 | 1 => {
            let difference = u128::from(random.next()) >> random.below(64);
            let sign = u128::from(random.next() & 1) << 79;
            state.fx.st[1] = state.fx.st[0] ^ difference ^ sign;
        }
        2 => {
            let power = random.next() as i64 >> (63 - random.below(20));
            state.fx.st[1] = Operand::integer(power).register;
        }
        3 if random.below(8) == 0 => {
            // The least normal number, times one that is next.
            let unit = (0x3fff + random.below(3)) as u128;
            let significand = 1 << 63 | u128::from(random.next() & random.next());
            let sign = u128::from(random.next() & 1) << 79;
            state.fx.st[0] = unit << 64 | significand;
            state.fx.st[1] = sign | (unit - 0x3ffe) << 64 | significand;
        }
        _ => return,
    }
    state.fx.st[3] = state.fx.st[1];
}

/// Puts an instruction at [`CODE`].
pub fn place(machine: &mut Machine, bytes: &[u8]) {
    for (n, byte) in bytes.iter().enumerate() {
        let at = CODE + n as u64;
        machine.soft.cpu.physical.write(at, u64::from(*byte), 1);
    }
    machine.soft.page_written(CODE / 4096);
}

/// Runs the instruction at [`CODE`] on the emulated processor.
pub fn emulate(machine: &mut Machine, state: &mut State) -> Exit {
    let cpu = &mut machine.soft.cpu;
    cpu.rip = CODE;
    cpu.set_slot(slot::RSI, DATA);
    cpu.set_slot(slot::RDI, DATA);
    for n in 0..4u8 {
        cpu.set_slot(n, state.regs[usize::from(n)]);
    }
    cpu.set_rflags(state.flags);
    let fpu = &mut cpu.fpu;
    fpu.xmm = state.fx.xmm;
    fpu.fcw = state.fx.fcw;
    fpu.fsw = state.fx.fsw;
    fpu.tags = state.fx.tags;
    fpu.mxcsr = state.fx.mxcsr;
    for n in 0..8 {
        fpu.x87[(fpu.top() + n) % 8] = state.fx.st[n];
    }
    for (n, word) in state.memory.chunks_exact(8).enumerate() {
        let value = u64::from_le_bytes(word.try_into().unwrap());
        cpu.physical.write(DATA + n as u64 * 8, value, 8);
    }
    let exit = machine.run(1);
    let cpu = &machine.soft.cpu;
    for n in 0..4u8 {
        state.regs[usize::from(n)] = cpu.slot(n);
    }
    state.flags = cpu.rflags();
    let fpu = &cpu.fpu;
    state.fx.xmm = fpu.xmm;
    state.fx.fcw = fpu.fcw;
    state.fx.fsw = fpu.fsw;
    state.fx.tags = fpu.tags;
    state.fx.mxcsr = fpu.mxcsr;
    for n in 0..8 {
        state.fx.st[n] = fpu.x87[(fpu.top() + n) % 8] & ((1 << 80) - 1);
    }
    for (n, word) in state.memory.chunks_exact_mut(8).enumerate() {
        let value = cpu.physical.read(DATA + n as u64 * 8, 8).unwrap();
        word.copy_from_slice(&value.to_le_bytes());
    }
    exit
}

/// The first difference, in words.
pub fn difference(ours: &State, theirs: &State, who: &str) -> Option<String> {
    for n in 0..16 {
        if ours.fx.xmm[n] != theirs.fx.xmm[n] {
            return Some(format!(
                "xmm{n}: {:#034x}, {who} {:#034x}",
                ours.fx.xmm[n], theirs.fx.xmm[n]
            ));
        }
    }
    for n in 0..8 {
        if ours.fx.st[n] != theirs.fx.st[n] {
            return Some(format!(
                "st{n}: {:#022x}, {who} {:#022x}",
                ours.fx.st[n], theirs.fx.st[n]
            ));
        }
    }
    let words = [
        ("mxcsr", ours.fx.mxcsr as u64, theirs.fx.mxcsr as u64),
        ("fsw", ours.fx.fsw.into(), theirs.fx.fsw.into()),
        ("fcw", ours.fx.fcw.into(), theirs.fx.fcw.into()),
        ("tags", ours.fx.tags.into(), theirs.fx.tags.into()),
        ("rax", ours.regs[0], theirs.regs[0]),
        ("rcx", ours.regs[1], theirs.regs[1]),
        ("rdx", ours.regs[2], theirs.regs[2]),
        ("rbx", ours.regs[3], theirs.regs[3]),
        ("flags", ours.flags, theirs.flags),
    ];
    for (name, ours, theirs) in words {
        if ours != theirs {
            return Some(format!("{name}: {ours:#x}, {who} {theirs:#x}"));
        }
    }
    for n in 0..512 {
        if ours.memory[n] != theirs.memory[n] {
            return Some(format!(
                "memory: {:02x?}, {who} {:02x?}, from byte {n}",
                &ours.memory[..32],
                &theirs.memory[..32]
            ));
        }
    }
    None
}

pub fn describe(case: &Case, before: &State, wrong: &str) -> String {
    format!(
        "{:?} {:02x?}: {wrong}\n    xmm1 {:#034x} xmm2 {:#034x} mxcsr {:#x}\n    st0 {:#022x} st1 {:#022x} st3 {:#022x} fcw {:#x} fsw {:#x} tags {:#x}\n    memory {:02x?} rcx {:#x}",
        case.code,
        case.bytes,
        before.fx.xmm[1],
        before.fx.xmm[2],
        before.fx.mxcsr,
        before.fx.st[0],
        before.fx.st[1],
        before.fx.st[3],
        before.fx.fcw,
        before.fx.fsw,
        before.fx.tags,
        &before.memory[..16],
        before.regs[1],
    )
}
