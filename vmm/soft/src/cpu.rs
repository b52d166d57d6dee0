//! The processor's state.

use crate::flags::{self, Arithmetic};
use crate::fpu::Fpu;
use crate::memory::{Mode, Physical, Tlb};
use crate::model::Model;
use crate::op::slot;
use crate::outside::OutsideAccesses;
use crate::translate::Native;
use crate::trap::{Cause, Exception, Trap, vector};

/// A segment register with its hidden part (SDM volume 3, 3.4.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Base address.
    pub base: u64,
    /// Limit in bytes.
    pub limit: u32,
    /// Selector.
    pub selector: u16,
    /// Type, S, DPL, P, AVL, L, D/B, G as bits 0-3, 4, 5-6, 7, 8, 9, 10, 11, and bit 12 for unusable.
    pub attributes: u16,
}

/// A descriptor table register.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Base address.
    pub base: u64,
    /// Limit in bytes.
    pub limit: u16,
}

/// Segment registers, in the order instructions encode them; then TR and LDTR.
pub mod segment {
    /// ES.
    pub const ES: usize = 0;
    /// CS.
    pub const CS: usize = 1;
    /// SS.
    pub const SS: usize = 2;
    /// DS.
    pub const DS: usize = 3;
    /// FS.
    pub const FS: usize = 4;
    /// GS.
    pub const GS: usize = 5;
    /// Task register.
    pub const TR: usize = 6;
    /// Local descriptor table.
    pub const LDTR: usize = 7;
}

/// Control registers and EFER.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Control {
    /// CR0.
    pub cr0: u64,
    /// CR2: address of the last page fault.
    pub cr2: u64,
    /// CR3: the page tables.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// CR8: task priority; without effect, there is no local APIC.
    pub cr8: u64,
    /// EFER.
    pub efer: u64,
}

/// Bits of [`Control`] (SDM volume 3, 2.5 and 2.2.1).
pub mod bits {
    /// CR0: monitor coprocessor.
    pub const CR0_MP: u64 = 1 << 1;
    /// CR0: no FPU.
    pub const CR0_EM: u64 = 1 << 2;
    /// CR0: task switched.
    pub const CR0_TS: u64 = 1 << 3;
    /// CR0: x87 errors are exceptions.
    pub const CR0_NE: u64 = 1 << 5;
    /// CR0: the supervisor heeds read-only pages.
    pub const CR0_WP: u64 = 1 << 16;
    /// CR0: alignment checks.
    pub const CR0_AM: u64 = 1 << 18;
    /// CR0: paging.
    pub const CR0_PG: u64 = 1 << 31;
    /// CR4: RDTSC in ring 0 only.
    pub const CR4_TSD: u64 = 1 << 2;
    /// CR4: debugging extensions.
    pub const CR4_DE: u64 = 1 << 3;
    /// CR4: physical address extension.
    pub const CR4_PAE: u64 = 1 << 5;
    /// CR4: global pages.
    pub const CR4_PGE: u64 = 1 << 7;
    /// CR4: FXSAVE and SSE.
    pub const CR4_OSFXSR: u64 = 1 << 9;
    /// CR4: SIMD errors are exceptions.
    pub const CR4_OSXMMEXCPT: u64 = 1 << 10;
    /// CR4: no execution of user pages by the supervisor.
    pub const CR4_SMEP: u64 = 1 << 20;
    /// CR4: no access to user pages by the supervisor.
    pub const CR4_SMAP: u64 = 1 << 21;
    /// EFER: SYSCALL.
    pub const EFER_SCE: u64 = 1 << 0;
    /// EFER: long mode enabled.
    pub const EFER_LME: u64 = 1 << 8;
    /// EFER: long mode active.
    pub const EFER_LMA: u64 = 1 << 10;
    /// EFER: no-execute pages.
    pub const EFER_NXE: u64 = 1 << 11;
}

/// Model-specific registers that only hold a value here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Msrs {
    /// IA32_STAR: segments of `syscall` and `sysret`.
    pub star: u64,
    /// IA32_LSTAR: entry of `syscall` from 64-bit code.
    pub lstar: u64,
    /// IA32_CSTAR: entry of `syscall` from 32-bit code.
    pub cstar: u64,
    /// IA32_FMASK: flags `syscall` clears.
    pub fmask: u64,
    /// IA32_KERNEL_GS_BASE: what `swapgs` swaps in.
    pub kernel_gs_base: u64,
    /// IA32_SYSENTER_CS, ESP and EIP.
    pub sysenter: [u64; 3],
    /// IA32_PAT: memory types; without effect.
    pub pat: u64,
}

/// IA32_PAT at reset (SDM volume 3, 12.12.4).
const PAT_AT_RESET: u64 = 0x0007_0406_0007_0406;

/// DR0 to DR7 at reset (SDM volume 3, table 10-1).
pub const DEBUG_AT_RESET: [u64; 8] = [0, 0, 0, 0, 0, 0, 0xffff_0ff0, 0x400];

/// How the time-stamp counter is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeBase {
    /// Every read is an access for somebody outside.
    Outside,
    /// It is the clock plus this, wrapping.
    Clock(u64),
}

/// The processor.
///
/// Between [`crate::Soft::run`]s, `rip` is the instruction that comes next and no handler is under way.
#[derive(Clone)]
pub struct Cpu {
    /// General registers and what addresses are made of (see [`slot`]).
    pub regs: [u64; slot::COUNT],
    /// The arithmetic flags.
    pub arithmetic: Arithmetic,
    /// RFLAGS without the arithmetic ones.
    pub system_flags: u64,
    /// Virtual address of the next instruction. Inside a block: of the block.
    pub rip: u64,
    /// Where the block goes on; branches set it.
    pub next_rip: u64,
    /// Instructions retired, and exits.
    pub clock: u64,
    /// CS is a 64-bit code segment.
    pub long_code: bool,
    /// Current privilege level.
    pub cpl: u8,
    /// No interrupt before the next instruction (`sti`, `mov ss`).
    pub shadow: bool,
    /// The instruction just retired has no single-step trap (it loaded SS, or entered a handler).
    pub(crate) untraced: bool,
    /// It stands in a halt.
    pub halted: bool,
    /// An external interrupt to take before anything else.
    pub pending_interrupt: Option<u8>,
    /// How the privilege, or what runs, last changed, until somebody who watches takes it.
    pub transfer: Option<crate::watch::Transfer>,
    /// Why the last handler did not retire.
    pub cause: Cause,
    /// Segment registers, see [`segment`].
    pub segments: [Segment; 8],
    /// GDT register.
    pub gdt: Table,
    /// IDT register.
    pub idt: Table,
    /// Control registers.
    pub control: Control,
    /// Model-specific registers.
    pub msrs: Msrs,
    /// Debug registers. Of the breakpoints in them those on instructions and data fire, those on ports do not.
    pub debug: [u64; 8],
    /// The time-stamp counter.
    pub time: TimeBase,
    /// What the guest's writes to it add to it, wrapping.
    pub time_offset: u64,
    /// x87, MMX and SSE.
    pub fpu: Fpu,
    /// What instructions exist.
    pub model: Model,
    /// Translations.
    pub tlb: Tlb,
    /// RAM.
    pub physical: Physical,
    /// Physical page numbers a string instruction wrote to though they had decoded instructions: those
    /// are dropped before another block is fetched.
    pub(crate) rewritten: Vec<u64>,
    /// Accesses that others do.
    pub outside: OutsideAccesses,
    /// What translated code has besides.
    pub(crate) native: Native,
}

impl Cpu {
    /// A processor with everything zero, over `physical` memory.
    #[must_use]
    pub fn new(physical: Physical, model: Model) -> Self {
        Self {
            regs: [0; slot::COUNT],
            arithmetic: Arithmetic::default(),
            system_flags: flags::FIXED,
            rip: 0,
            next_rip: 0,
            clock: 0,
            long_code: false,
            cpl: 0,
            shadow: false,
            untraced: false,
            halted: false,
            pending_interrupt: None,
            transfer: None,
            cause: Cause::Halt,
            segments: [Segment::default(); 8],
            gdt: Table::default(),
            idt: Table::default(),
            control: Control::default(),
            msrs: Msrs {
                pat: PAT_AT_RESET,
                ..Default::default()
            },
            debug: DEBUG_AT_RESET,
            time: TimeBase::Clock(0),
            time_offset: 0,
            fpu: Fpu::default(),
            model,
            tlb: Tlb::default(),
            physical,
            rewritten: Vec::new(),
            outside: OutsideAccesses::default(),
            native: Native::default(),
        }
    }

    /// Slot `number` of the registers.
    #[inline(always)]
    #[must_use]
    pub fn slot(&self, number: u8) -> u64 {
        self.regs[usize::from(number) % slot::COUNT]
    }

    /// Sets slot `number` of the registers.
    #[inline(always)]
    pub fn set_slot(&mut self, number: u8, value: u64) {
        self.regs[usize::from(number) % slot::COUNT] = value;
    }

    /// RFLAGS as a whole.
    #[must_use]
    pub fn rflags(&self) -> u64 {
        self.system_flags | self.arithmetic.bits()
    }

    /// Sets RFLAGS as a whole, unchecked; the data access mode follows AC.
    pub fn set_rflags(&mut self, value: u64) {
        self.arithmetic = Arithmetic::from_bits(value);
        self.system_flags = value & !flags::ARITHMETIC | flags::FIXED;
        self.refresh_mode();
    }

    /// Brings everything derived up to date after CS, CPL, flags, a control register or a segment changed:
    /// the code size, the segment bases addresses are made of, the rights of data accesses.
    pub fn refresh_mode(&mut self) {
        let code = &self.segments[segment::CS];
        self.long_code = self.control.efer & bits::EFER_LMA != 0 && code.attributes & 1 << 9 != 0;
        for n in 0..6 {
            let flat = self.long_code && n < segment::FS;
            self.regs[usize::from(slot::SEGMENTS) + n] =
                if flat { 0 } else { self.segments[n].base };
        }
        self.regs[usize::from(slot::ZERO)] = 0;
        self.tlb.mode = self.data_mode();
    }

    /// The rights of the running program's data accesses.
    fn data_mode(&self) -> Mode {
        if self.cpl == 3 {
            Mode::User
        } else if self.control.cr4 & bits::CR4_SMAP != 0 && self.system_flags & flags::AC == 0 {
            Mode::SupervisorStrict
        } else {
            Mode::Supervisor
        }
    }

    /// Whether an interrupt can be taken here.
    #[must_use]
    pub fn interruptible(&self) -> bool {
        self.system_flags & flags::IF != 0 && !self.shadow
    }

    /// Ends the handler with an exception.
    #[cold]
    pub fn raise(&mut self, exception: Exception) -> Trap {
        self.cause = Cause::Exception(exception);
        Trap
    }

    /// #GP with `error`.
    #[cold]
    pub fn general_protection(&mut self, error: u32) -> Trap {
        self.raise(Exception::with_error(vector::GP, error))
    }

    /// #UD.
    #[cold]
    pub fn undefined(&mut self) -> Trap {
        self.raise(Exception::plain(vector::UD))
    }

    /// Ends the handler for another reason.
    #[cold]
    pub fn stop(&mut self, cause: Cause) -> Trap {
        self.cause = cause;
        Trap
    }
}
