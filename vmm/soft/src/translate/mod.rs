//! Guest code as host code.
//!
//! Blocks that run often are translated: each of their instructions becomes a few of the host's that do the same to
//! the same state, or a call of its handler. `docs/TRANSLATOR.md` tells how that stays exact; in short:
//!
//! - A block runs only if all its instructions may ([`state::Kind::Stop`] otherwise), and so a run stops at any
//!   count: the interpreter does what is left.
//! - Whatever is not plain (a page that is not in the TLB, a device, an exception) goes to the instruction's handler,
//!   with the processor's state as the interpreter would have it there.
//! - Jumps within a page are the host's. Those to another page look into the instruction TLB, as the interpreter
//!   does between blocks.
//! - All translations of a page go when it is written to.
//!
//! ```text
//!  plan      what becomes of each instruction
//!  trace     which blocks are translated as one
//!  emit      a trace: its frame, registers, memory operands
//!  pending   the guest's flags while they are written nowhere
//!  general, shift, branch, vector   instructions
//!  cold      what is rarely run
//!  thunks    the way in and out
//!  host      whether the host's processor does what is taken for granted
//!  asm       the host's instructions as bytes
//!  memory    where they are kept
//! ```

mod asm;
mod branch;
mod cold;
mod emit;
mod general;
mod host;
mod memory;
mod pending;
mod plan;
mod shift;
mod state;
mod thunks;
mod trace;
mod vector;

use crate::Cpu;
use crate::block::Block;
use crate::decode::Features;
use crate::memory::{Mode, OFFSET};
use crate::op::Op;
use asm::Asm;
use emit::Emit;
use memory::CodeMemory;
use plan::{Plan, Work};
use std::num::NonZeroUsize;
use thunks::{JUMPS, Jump, NEVER, NOWHERE, TARGETS, Target, Thunks, target_index};
use trace::{Part, Trace};

pub(crate) use state::{Kind, Native, Record};

/// How often a block is interpreted before it is translated.
const WARM: u8 = 16;
/// How often a block ran at least that one translated before it goes on with.
const RARELY: u8 = 3;
/// Most instructions translated code runs before it comes back to see whether it is to stop.
pub(crate) const STRETCH: u64 = 1 << 14;

/// MXCSR as Rust code wants it.
const MXCSR: u64 = 0x1f80;

/// Whether this host lets code be written and run.
///
/// # Errors
/// Why not.
pub fn can_translate() -> std::io::Result<()> {
    Translator::new(NonZeroUsize::new(1 << 16).expect("not zero"))?;
    Ok(())
}

/// A block's translations.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Translations {
    /// How often it was interpreted since it was last found worth translating.
    runs: u8,
    /// How often it was interpreted at all, as far as one byte counts.
    interpreted: u8,
    /// Where its code is, for each [`Mode`]; 0 if nowhere.
    code: [u64; 3],
    /// Nothing is won by translating it.
    never: bool,
}

/// Makes translations and runs them.
pub(crate) struct Translator {
    memory: CodeMemory,
    thunks: Thunks,
    /// Bytes of code memory that the thunks take.
    fixed: usize,
    targets: Box<[[Target; TARGETS]; 3]>,
    jumps: Box<[[Jump; JUMPS]; 3]>,
    /// Code was dropped that jumps may lead to.
    stale: bool,
    /// What a jump to an untranslated target comes back with. Code has its address.
    _elsewhere: Box<Record>,
    /// A jump that came back lately: where, and the physical address and mode of the block it wants.
    link: Option<(u64, u64, Mode)>,
    /// How often a block is interpreted before it is translated.
    pub warm: u8,
    /// Instructions run as host code so far.
    pub ran: u64,
}

impl Translator {
    /// A translator with `bytes` of code memory.
    ///
    /// # Errors
    /// If the host lets nobody run what was written, or leaves other flags than ours.
    pub fn new(bytes: NonZeroUsize) -> nix::Result<Self> {
        if !host::agrees() {
            return Err(nix::Error::EOPNOTSUPP);
        }
        let mut memory = CodeMemory::new(bytes)?;
        let elsewhere = Box::new(Record::elsewhere());
        let mut asm = Asm::new(memory.next());
        let thunks = Thunks::write(&mut asm, &elsewhere);
        if !memory.add(asm.bytes()) {
            return Err(nix::Error::ENOMEM);
        }
        Ok(Self {
            fixed: memory.used(),
            memory,
            thunks,
            targets: vec![[NOWHERE; TARGETS]; 3]
                .into_boxed_slice()
                .try_into()
                .expect("three tables"),
            jumps: Box::new([[NEVER; JUMPS]; 3]),
            stale: false,
            _elsewhere: elsewhere,
            link: None,
            warm: WARM,
            ran: 0,
        })
    }

    /// The code of `block` in the mode the processor is in, if it has some.
    #[inline(always)]
    pub fn code(&mut self, cpu: &Cpu, block: &Block) -> Option<u64> {
        let mode = cpu.tlb.mode;
        let code = block.translations.code[mode as usize];
        if code == 0 {
            return None;
        }
        if let Some((place, physical, wanted)) = self.link.take()
            && (physical, wanted) == (block.physical, mode)
        {
            self.memory.patch(place, code);
        }
        // Another block may have had its place.
        self.remember(mode, block.physical, code);
        Some(code)
    }

    /// Translates `block`, of number `number`, and what follows it, for the mode the processor is in. `find` knows the
    /// other blocks, by their physical address.
    ///
    /// # Errors
    /// [`Full`]: there is no room.
    pub fn translate<'a>(
        &mut self,
        cpu: &Cpu,
        features: &Features,
        number: u32,
        block: &'a Block,
        find: &dyn Fn(u64) -> Option<(u32, &'a Block)>,
    ) -> Result<Translations, Full> {
        let mut translations = block.translations;
        let mode = cpu.tlb.mode;
        let plans = |block: &Block| plans(cpu, features, block);
        let head = Part {
            number,
            block,
            plans: plans(block),
        };
        // The last instruction is never left to the interpreter, others are.
        let at_once = head.plans.len() > 1 && matches!(head.plans[0].work, Work::Rest);
        if !cpu.long_code || at_once {
            translations.never = true;
            return Ok(translations);
        }
        let page = block.physical & !OFFSET;
        let rarely = self.warm.min(RARELY);
        let trace = Trace::follow(head, rarely, &|at| find(page | at as u64), &plans);
        let known = |physical| find(physical)?.1.translations.code(mode);
        let code = self.memory.next();
        let bytes = Emit::trace(&trace, mode, self.thunks, code, &known);
        if !self.memory.add(&bytes) {
            return Err(Full);
        }
        translations.code[mode as usize] = code;
        self.remember(mode, block.physical, code);
        Ok(translations)
    }

    fn remember(&mut self, mode: Mode, physical: u64, code: u64) {
        self.targets[mode as usize][target_index(physical)] = Target { physical, code };
    }

    /// Forgets the translations of the block at `physical`.
    pub fn forget(&mut self, physical: u64) {
        for table in self.targets.iter_mut() {
            let target = &mut table[target_index(physical)];
            if target.physical == physical {
                *target = NOWHERE;
            }
        }
        self.link = None;
        self.stale = true;
    }

    /// Forgets all; the caller has the blocks forget theirs.
    pub fn clear(&mut self) {
        self.memory.truncate(self.fixed);
        self.targets.iter_mut().for_each(|t| t.fill(NOWHERE));
        self.link = None;
        self.stale = true;
    }

    /// Runs `code` for at most `left` instructions, and says why it came back. If a block was broken off in its middle
    /// the processor's clock and RIP are those of its start.
    ///
    /// `window`: it is to come back after an instruction that may let interrupts in.
    pub fn run(&mut self, cpu: &mut Cpu, code: u64, left: u64, window: bool) -> Record {
        let before = cpu.clock;
        if std::mem::take(&mut self.stale) {
            cpu.tlb.count_change();
        }
        let native = &mut cpu.native;
        (native.data, native.code) = (cpu.tlb.data_tables(), cpu.tlb.code_tables());
        native.set_flags(cpu.arithmetic);
        native.page = cpu.rip & !OFFSET;
        native.mxcsr = MXCSR;
        native.targets =
            std::array::from_fn(|n| self.targets[n].as_mut_ptr().expose_provenance() as u64);
        native.jumps =
            std::array::from_fn(|n| self.jumps[n].as_mut_ptr().expose_provenance() as u64);
        native.limit = cpu.clock + left;
        native.window = u64::from(window);
        cpu.native.sse = u64::from(state::allows_sse(cpu));
        let cpu: *mut Cpu = cpu;
        let enter = std::ptr::with_exposed_provenance::<()>(self.thunks.enter as usize);
        // SAFETY: this is where [`Thunks`] wrote such a function.
        let enter = unsafe {
            std::mem::transmute::<
                *const (),
                unsafe extern "C" fn(*mut Cpu, u64, u64) -> *const Record,
            >(enter)
        };
        // SAFETY: the code was made for this processor, and its page was not written to since. Nobody else uses the
        // processor meanwhile. The record that comes back lies in code memory or is `_elsewhere`.
        let (record, cpu) = unsafe { (*enter(cpu, code, left), &mut *cpu) };
        cpu.arithmetic = cpu.native.flags();
        cpu.clock = cpu.native.limit - cpu.native.left;
        match record.kind {
            Kind::Next => {
                cpu.rip = cpu.native.page.wrapping_add_signed(record.target);
                if record.link != 0 {
                    let physical = record.page + record.target as u64;
                    self.link = Some((record.link, physical, cpu.tlb.mode));
                }
            }
            Kind::Elsewhere => cpu.rip = cpu.native.target,
            Kind::Stop => cpu.rip = cpu.native.page + u64::from(record.start),
            Kind::Last if cpu.native.retired != 0 => {}
            Kind::Handler | Kind::Rest | Kind::Last => {
                cpu.rip = cpu.native.page + u64::from(record.start);
                cpu.clock -= u64::from(record.length);
            }
        }
        self.ran += cpu.clock - before;
        if matches!(record.kind, Kind::Handler | Kind::Rest) {
            self.ran += u64::from(record.index);
        }
        record
    }
}

impl Translations {
    /// Whether it is time to translate the block for `mode`.
    #[inline(always)]
    pub fn wanted(&mut self, warm: u8) -> bool {
        if self.never {
            return false;
        }
        self.runs += 1;
        self.interpreted = self.interpreted.saturating_add(1);
        if self.runs < warm {
            return false;
        }
        self.runs = 0;
        true
    }

    /// How often it was interpreted.
    pub fn interpreted(&self) -> u8 {
        self.interpreted
    }

    /// Where its code for `mode` is.
    pub fn code(&self, mode: Mode) -> Option<u64> {
        let code = self.code[mode as usize];
        (code != 0).then_some(code)
    }

    /// Forgets them.
    pub fn forget(&mut self) {
        self.code = [0; 3];
    }
}

/// Code memory is full.
#[derive(Debug)]
pub(crate) struct Full;

/// What becomes of each instruction of `block`, whose bytes are where they were when it was decoded.
fn plans(cpu: &Cpu, features: &Features, block: &Block) -> Vec<Plan> {
    let bytes = block.code(cpu);
    let plan = |op: &Op| {
        let at = usize::from(op.start);
        let own = &bytes.as_ref()?[at..at + usize::from(op.len)];
        let instruction = crate::decode::again(own, op.start, features)?;
        Some(plan::plan(&instruction, own, op.start, features))
    };
    let mut plans: Vec<Plan> = block
        .ops
        .iter()
        .map(|op| plan(op).unwrap_or_else(Plan::rest))
        .collect();
    // The last one may change what no translation asks for.
    if let Some(last) = plans.last_mut()
        && matches!(last.work, Work::Handler)
    {
        *last = Plan::rest();
    }
    plans
}
