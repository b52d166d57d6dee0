//! The software processor, with memory laid out as in [`crate::native`].

use crate::state::{ARENA, ARENA_ALL, ARENA_LEN, AT, CODE, Case, Ending, Fault, Fx, State};
use soft::cpu::segment;
use soft::fpu::Fpu;
use soft::testing::Machine;
use soft::trap::Cause;

/// Physical address of the code page; the arena follows.
const PHYSICAL: u64 = 0x40_0000;
const TABLE: u64 = 0x8000;

pub struct Emulated {
    machine: Machine,
    long: bool,
}

impl Emulated {
    pub fn new() -> Self {
        let mut machine = Machine::new(&[], 3);
        let physical = &mut machine.soft.cpu.physical;
        for entry in 0..2048 {
            physical.write(0x3000 + entry * 8, 0, 8);
        }
        physical.write(0x3000 + (CODE >> 21) * 8, TABLE | 7, 8);
        let mut map = |address: u64, to: u64, bits: u64| {
            physical.write(TABLE + (address >> 12 & 511) * 8, to | bits, 8);
        };
        map(CODE, PHYSICAL, 5);
        for page in 0..ARENA_ALL >> 12 {
            let bits = if page < ARENA_LEN >> 12 { 7 } else { 5 };
            let at = page << 12;
            map(ARENA + at, PHYSICAL + 0x1000 + at, bits);
        }
        for n in 0..0x1000 {
            physical.write(PHYSICAL + n, 0xcc, 1);
        }
        machine.soft.forget();
        Self {
            machine,
            long: true,
        }
    }

    /// The arena's bytes.
    pub fn arena(&self, to: &mut [u8]) {
        assert!(
            self.machine
                .soft
                .cpu
                .physical
                .read_bytes(PHYSICAL + 0x1000, to)
        );
    }

    /// Writes to the arena.
    pub fn poke(&mut self, address: u64, bytes: &[u8]) {
        let physical = &mut self.machine.soft.cpu.physical;
        for (n, byte) in bytes.iter().enumerate() {
            physical.write(
                address - ARENA + PHYSICAL + 0x1000 + n as u64,
                (*byte).into(),
                1,
            );
        }
    }

    fn set_mode(&mut self, long: bool) {
        if long != self.long {
            // L and D/B: a 64-bit or a 32-bit code segment.
            self.machine.soft.cpu.segments[segment::CS].attributes ^= 0x600;
            self.long = long;
        }
    }

    pub fn run(&mut self, case: &Case) -> Ending {
        let physical = &mut self.machine.soft.cpu.physical;
        let at = AT - CODE + PHYSICAL;
        for n in 0..16 {
            let byte = case.bytes.get(n as usize).copied().unwrap_or(0xcc);
            physical.write(at + n, byte.into(), 1);
        }
        self.set_mode(case.bitness == 64);
        let soft = &mut self.machine.soft;
        soft.cpu.regs[..16].copy_from_slice(&case.state.regs);
        soft.cpu.rip = case.state.rip;
        soft.cpu.fpu = to_fpu(&case.state.fx);
        soft.cpu.set_rflags(case.state.flags);
        let mut fault = None;
        // A repeated string instruction may take several steps.
        loop {
            match soft.one() {
                Ok(()) if soft.cpu.rip == case.state.rip => {}
                Ok(()) => break,
                Err(Cause::Exception(exception)) => {
                    let paging = exception.vector == 14;
                    fault = Some(Fault {
                        vector: exception.vector,
                        address: paging.then_some(soft.cpu.control.cr2),
                        write: paging && exception.error.is_some_and(|e| e & 2 != 0),
                    });
                    break;
                }
                Err(cause) => panic!("{cause:?} at {} {:02x?}", case.instruction, case.bytes),
            }
        }
        let mut regs = [0; 16];
        regs.copy_from_slice(&soft.cpu.regs[..16]);
        Ending {
            state: State {
                regs,
                rip: soft.cpu.rip,
                flags: soft.cpu.rflags(),
                fx: from_fpu(&soft.cpu.fpu),
            },
            fault,
        }
    }
}

/// Number of the physical register that ST`n` is.
fn physical(fsw: u16, n: usize) -> usize {
    (usize::from(fsw >> 11 & 7) + n) % 8
}

fn to_fpu(fx: &Fx) -> Fpu {
    let mut fpu = Fpu {
        xmm: fx.xmm,
        fcw: fx.fcw,
        fsw: fx.fsw,
        tags: fx.ftw,
        mxcsr: fx.mxcsr,
        ..Fpu::default()
    };
    for (n, register) in fx.st.iter().enumerate() {
        fpu.x87[physical(fx.fsw, n)] = u128::from_le_bytes(*register) & ((1 << 80) - 1);
    }
    fpu
}

fn from_fpu(fpu: &Fpu) -> Fx {
    let mut fx = Fx {
        fcw: fpu.fcw,
        fsw: fpu.fsw,
        ftw: fpu.tags,
        mxcsr: fpu.mxcsr,
        xmm: fpu.xmm,
        ..Fx::default()
    };
    for n in 0..8 {
        fx.st[n] = fpu.x87[physical(fpu.fsw, n)].to_le_bytes();
    }
    fx
}
