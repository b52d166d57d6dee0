//! Two processors with the same memory, one of which translates.

use crate::random::Random;
use crate::state::{ARENA, ARENA_ALL, ARENA_LEN, AT, CODE, State};
use soft::Exit;
use soft::cpu::{bits, segment};
use soft::fpu::Fpu;
use soft::testing::Machine;
use std::fmt::Write;
use std::num::NonZeroUsize;

/// Physical address of the code page; the arena follows.
const PHYSICAL: u64 = 0x40_0000;
const TABLE: u64 = 0x8000;
/// Code memory: little enough to be full now and then.
const CODE_MEMORY: NonZeroUsize = NonZeroUsize::new(1 << 20).expect("not zero");

pub struct Twins {
    /// The interpreter, and the translator.
    machines: [Machine; 2],
    /// One that never ran.
    fresh: Machine,
    template: Vec<u8>,
    /// How many there were, as far as one byte counts.
    programs: u8,
    /// The program that is in memory.
    program: Vec<u8>,
}

/// With whose rights a program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rights {
    /// Ring 3.
    User,
    /// Ring 0.
    Supervisor,
    /// Ring 0 with SMAP.
    Strict,
}

impl Rights {
    pub const ALL: [Self; 3] = [Self::User, Self::Supervisor, Self::Strict];

    /// A processor that has them.
    fn machine(self) -> Machine {
        let mut machine = Machine::new(&[], if self == Self::User { 3 } else { 0 });
        if self == Self::Strict {
            machine.soft.cpu.control.cr4 |= bits::CR4_SMAP;
        }
        machine
    }
}

fn machine(rights: Rights) -> Machine {
    let mut machine = rights.machine();
    // A supervisor under SMAP may not touch what is the user's.
    let user = if rights == Rights::User { 4 } else { 0 };
    let physical = &mut machine.soft.cpu.physical;
    for entry in 0..2048 {
        physical.write(0x3000 + entry * 8, 0, 8);
    }
    physical.write(0x3000 + (CODE >> 21) * 8, TABLE | 7, 8);
    let mut map = |address: u64, to: u64, bits: u64| {
        physical.write(TABLE + (address >> 12 & 511) * 8, to | bits, 8);
    };
    map(CODE, PHYSICAL, 1 | user);
    for page in 0..ARENA_ALL >> 12 {
        let bits = if page < ARENA_LEN >> 12 { 3 } else { 1 } | user;
        map(ARENA + (page << 12), PHYSICAL + 0x1000 + (page << 12), bits);
    }
    machine.soft.forget();
    machine
}

impl Twins {
    pub fn new(rights: Rights) -> Self {
        let mut machines = [machine(rights), machine(rights)];
        let translator = &mut machines[1].soft;
        translator
            .translate(CODE_MEMORY)
            .expect("code can be run here");
        Self {
            programs: 0,
            machines,
            fresh: rights.machine(),
            program: Vec::new(),
            template: vec![0; ARENA_ALL as usize],
        }
    }

    /// Instructions the translator's processor ran as host code, and all it ran.
    pub fn ran_translated(&self) -> (u64, u64) {
        assert_eq!(self.machines[0].soft.translated(), 0, "one interprets");
        let soft = &self.machines[1].soft;
        (soft.translated(), soft.cpu.clock)
    }

    /// Makes the arena begin with `bytes`.
    pub fn poke(&mut self, bytes: &[u8]) {
        self.template[..bytes.len()].copy_from_slice(bytes);
    }

    /// Fills the arena anew.
    pub fn fill(&mut self, random: &mut Random) {
        for chunk in self.template.as_chunks_mut::<8>().0 {
            // Some are what MXCSR can be, with exceptions masked and not.
            let word = match random.below(8) {
                0 => random.pick(&[0x1f80, 0x1d80, 0, 0x9fc0, 0x7f80]),
                _ => random.word(),
            };
            *chunk = word.to_le_bytes();
        }
    }

    /// Puts `bytes`, registers and memory in place on both.
    pub fn start(&mut self, bytes: &[u8], state: &State) {
        let anew = self.program != bytes;
        self.program = bytes.to_vec();
        if anew {
            // At once, each block by itself, or once blocks are known that others lead to.
            self.programs = self.programs.wrapping_add(1);
            self.machines[1].soft.warm(1 + self.programs % 3);
        }
        for machine in &mut self.machines {
            let soft = &mut machine.soft;
            if anew {
                for n in 0..256 {
                    let byte = bytes.get(n as usize).copied().unwrap_or(0xcc);
                    let at = AT - CODE + PHYSICAL + n;
                    soft.cpu.physical.write(at, byte.into(), 1);
                }
                soft.page_written(PHYSICAL >> 12);
            }
            for (at, word) in self.template.as_chunks::<8>().0.iter().enumerate() {
                let at = PHYSICAL + 0x1000 + at as u64 * 8;
                if soft.cpu.physical.read(at, 8) != Some(u64::from_le_bytes(*word)) {
                    soft.cpu.physical.write(at, u64::from_le_bytes(*word), 8);
                }
            }
            // Whatever the last program did with rights and segments.
            let (from, to) = (&self.fresh.soft.cpu, &mut soft.cpu);
            to.segments = from.segments;
            to.segments[segment::FS].base = 0x40;
            to.segments[segment::GS].base = 0xffff_ffff_ffff_ffe0;
            (to.time, to.time_offset) = (from.time, from.time_offset);
            to.control = from.control;
            to.cpl = from.cpl;
            to.msrs = from.msrs;
            to.debug = from.debug;
            to.gdt = from.gdt;
            to.idt = from.idt;
            (to.shadow, to.halted, to.pending_interrupt) = (false, false, None);
            to.regs[..16].copy_from_slice(&state.regs);
            to.rip = state.rip;
            to.next_rip = state.rip;
            to.fpu = Fpu {
                xmm: state.fx.xmm,
                x87: state
                    .fx
                    .st
                    .map(|st| u128::from_le_bytes(st) & ((1 << 80) - 1)),
                fcw: state.fx.fcw,
                fsw: state.fx.fsw,
                tags: state.fx.ftw,
                mxcsr: state.fx.mxcsr,
            };
            to.set_rflags(state.flags);
            soft.drop_access();
        }
    }

    /// Runs both for `count` instructions; what differs then.
    pub fn run(&mut self, count: u64) -> Result<(), String> {
        let exits = self.machines.each_mut().map(|machine| machine.run(count));
        let mut text = self.differences(exits);
        if text.is_empty() {
            return Ok(());
        }
        let _ = writeln!(text, "exits {exits:x?}");
        Err(text)
    }

    fn differences(&self, exits: [Exit; 2]) -> String {
        let [a, b] = self.machines.each_ref().map(|machine| &machine.soft.cpu);
        let mut text = String::new();
        let mut look = |name: &str, a: u64, b: u64| {
            if a != b {
                let _ = writeln!(text, "  {name}: interpreted {a:#x}, translated {b:#x}");
            }
        };
        for n in 0..16 {
            look(&format!("register {n}"), a.regs[n], b.regs[n]);
        }
        look("rip", a.rip, b.rip);
        look("flags", a.rflags(), b.rflags());
        look("clock", a.clock, b.clock);
        look("cr2", a.control.cr2, b.control.cr2);
        look("mxcsr", a.fpu.mxcsr.into(), b.fpu.mxcsr.into());
        look("fsw", a.fpu.fsw.into(), b.fpu.fsw.into());
        look("exit", u64::from(exits[0] == exits[1]), 1);
        look("fpu", u64::from(a.fpu == b.fpu), 1);
        look("translations", u64::from(a.tlb.remembers_as(&b.tlb)), 1);
        look("control", u64::from(a.control == b.control), 1);
        look("segments", u64::from(a.segments == b.segments), 1);
        let mut arenas = [0, 1].map(|_| vec![0; ARENA_ALL as usize]);
        for (arena, cpu) in arenas.iter_mut().zip([a, b]) {
            cpu.physical.read_bytes(PHYSICAL + 0x1000, arena);
        }
        if let Some(at) = (0..arenas[0].len()).find(|&at| arenas[0][at] != arenas[1][at]) {
            look(
                &format!("memory {:#x}", ARENA + at as u64),
                arenas[0][at].into(),
                arenas[1][at].into(),
            );
        }
        text
    }
}
