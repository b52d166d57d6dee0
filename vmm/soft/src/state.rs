//! All of the processor's architectural state, as plain values.

use crate::Cpu;
use crate::cpu::{Control, Msrs, Segment, Table, TimeBase};
use crate::fpu::Fpu;

/// What a processor is, between two runs and with no read under way: with guest memory, all it needs to
/// go on elsewhere.
///
/// Translations are not in it. A guest that changes its tables and does not flush them may tell a restored
/// processor from one that ran through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    pub general: [u64; 16],
    /// Instruction pointer.
    pub rip: u64,
    /// RFLAGS, with TF and RF.
    pub rflags: u64,
    /// See [`crate::cpu::segment`].
    pub segments: [Segment; 8],
    /// GDT register.
    pub gdt: Table,
    /// IDT register.
    pub idt: Table,
    /// Control registers and EFER.
    pub control: Control,
    /// Model-specific registers.
    pub msrs: Msrs,
    /// Debug registers.
    pub debug: [u64; 8],
    /// The time-stamp counter.
    pub time: TimeBase,
    /// What the guest's writes to it add to it.
    pub time_offset: u64,
    /// x87, MMX and SSE.
    pub fpu: Fpu,
    /// Instructions retired, and exits.
    pub clock: u64,
    /// Current privilege level.
    pub cpl: u8,
    /// No interrupt before the next instruction.
    pub shadow: bool,
    /// It stands in a halt.
    pub halted: bool,
    /// An external interrupt to take first.
    pub pending_interrupt: Option<u8>,
}

impl Cpu {
    /// The state.
    #[must_use]
    pub fn state(&self) -> State {
        State {
            general: std::array::from_fn(|n| self.regs[n]),
            rip: self.rip,
            rflags: self.rflags(),
            segments: self.segments,
            gdt: self.gdt,
            idt: self.idt,
            control: self.control,
            msrs: self.msrs,
            debug: self.debug,
            time: self.time,
            time_offset: self.time_offset,
            fpu: self.fpu,
            clock: self.clock,
            cpl: self.cpl,
            shadow: self.shadow,
            halted: self.halted,
            pending_interrupt: self.pending_interrupt,
        }
    }

    /// Puts a state back. Translations and decoded instructions are the caller's to drop
    /// ([`crate::Soft::forget`]).
    pub fn set_state(&mut self, state: &State) {
        self.regs[..16].copy_from_slice(&state.general);
        self.rip = state.rip;
        self.segments = state.segments;
        self.gdt = state.gdt;
        self.idt = state.idt;
        self.control = state.control;
        self.msrs = state.msrs;
        self.debug = state.debug;
        self.time = state.time;
        self.time_offset = state.time_offset;
        self.fpu = state.fpu;
        self.clock = state.clock;
        self.cpl = state.cpl;
        self.shadow = state.shadow;
        self.halted = state.halted;
        self.pending_interrupt = state.pending_interrupt;
        self.set_rflags(state.rflags);
    }
}
