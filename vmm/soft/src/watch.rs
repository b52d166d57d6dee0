//! Running under somebody's eyes: to a place, to a breakpoint, to an access to data; and back.
//!
//! A *place* is where an instruction is about to be attempted: answers are in, an interrupt handed over is
//! taken. Clock and RIP together name it, since an instruction that faults leaves the clock alone and the
//! handler's first comes at the same count.
//!
//! ```text
//!  Soft::run_watched ─▶ place ─ pause? ─▶ block without a breakpoint inside, or one instruction ─▶ place
//! ```
//!
//! Nothing here changes what the guest does: blocks and single instructions leave the same state behind,
//! and looking goes past the TLB and sets no accessed bit.

use crate::cpu::segment;
use crate::execute::string::CHUNK;
use crate::memory::Physical;
use crate::run::{Exit, Soft};
use crate::{Cpu, flags};
use iced_x86::{
    Decoder, DecoderOptions, Formatter, GasFormatter, InstructionInfoFactory, OpAccess, Register,
};
use std::sync::atomic::{AtomicBool, Ordering};

/// Which accesses to data pause a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Reads.
    Read,
    /// Writes, by whomever.
    Write,
    /// Both.
    Access,
}

/// Data whose accesses pause a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Data {
    /// Linear address of its first byte.
    pub address: u64,
    /// Bytes; at most [`DATA_MAX`].
    pub len: u64,
    /// Which accesses.
    pub kind: Kind,
    /// The page tables' root (CR3) of the address space it is in; `None`: it is in all.
    space: Option<u64>,
    /// Whether `seen` is its content.
    known: bool,
    /// Its content at the last place.
    seen: Vec<u8>,
    /// Room for its content now.
    scratch: Vec<u8>,
}

/// The bits of CR3 that are the root's address.
const ROOT: u64 = 0x000f_ffff_ffff_f000;

/// Most bytes of one [`Data`].
pub const DATA_MAX: u64 = 4096;

impl Data {
    /// `len` bytes at `address`; `None` if they are too many, or none.
    #[must_use]
    pub fn new(address: u64, len: u64, kind: Kind) -> Option<Self> {
        let (seen, scratch) = (Vec::new(), Vec::new());
        (1..=DATA_MAX).contains(&len).then_some(Self {
            address,
            len,
            kind,
            space: None,
            known: false,
            seen,
            scratch,
        })
    }

    /// The same in one address space, that of page tables by `cr3`: what is at its address while others are in
    /// use is other data.
    #[must_use]
    pub fn in_space(self, cr3: u64) -> Self {
        let space = Some(cr3 & ROOT);
        Self { space, ..self }
    }

    /// Whether its address space is in use.
    fn is_here(&self, cpu: &Cpu) -> bool {
        self.space.is_none_or(|root| cpu.control.cr3 & ROOT == root)
    }

    fn overlaps(&self, touch: &Touch) -> bool {
        let kind = match self.kind {
            Kind::Read => !touch.write,
            Kind::Write => touch.write,
            Kind::Access => true,
        };
        let before = touch.address.wrapping_sub(self.address) < self.len;
        let after = self.address.wrapping_sub(touch.address) < touch.len;
        kind && (before || after)
    }

    /// Whether the content is another than at the last place in its address space.
    fn changed(&mut self, cpu: &Cpu) -> bool {
        if !self.is_here(cpu) {
            return false;
        }
        self.scratch.resize(self.len as usize, 0);
        let there = cpu.look(self.address, &mut self.scratch);
        self.scratch.truncate(there);
        let changed = self.scratch != self.seen;
        std::mem::swap(&mut self.seen, &mut self.scratch);
        std::mem::replace(&mut self.known, true) && changed
    }
}

/// An access to data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hit {
    /// First byte of the [`Data`].
    pub address: u64,
    /// What the [`Data`] was watched for.
    pub kind: Kind,
}

/// How the privilege, or what runs, changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transfer {
    /// `syscall` was executed: RCX is where it returns to.
    Call,
    /// An interrupt or exception was delivered: its frame is on the stack.
    Event {
        /// Its number.
        vector: u8,
        /// Whether an error code was pushed behind the frame.
        has_error: bool,
    },
    /// `sysret` or `iret` was executed.
    Return,
}

/// Why a watched run paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pause {
    /// This was just done, and the run was watched for it.
    Transfer(Transfer),
    /// As far as it was asked to go.
    Reached,
    /// A breakpoint is at RIP.
    Breakpoint,
    /// The instruction before accessed watched data, or something else changed it.
    Data(Hit),
}

/// What a run is watched for.
#[derive(Clone, Debug, Default)]
pub struct Watch {
    /// Linear addresses of instructions, which pause before they are executed.
    pub breakpoints: Vec<u64>,
    /// Data, whose accesses pause after the instruction.
    pub data: Vec<Data>,
    /// Pause after each [`Transfer`], and before the instructions that are probed ([`Soft::probe`]). Translated code
    /// is run in between: that costs little. Not to be combined with breakpoints, data, or single steps.
    pub heed: bool,
    /// Pause at the next place.
    pub one: bool,
    /// Pause at the first place with the clock there, or past it.
    pub until: Option<u64>,
    /// The run is to leave the place it is at, and not pause there again.
    leaving: bool,
    /// What the instruction attempted at this clock touches.
    touched: Option<(u64, Hit)>,
}

impl Watch {
    /// For nothing but breakpoints and data.
    #[must_use]
    pub fn new(breakpoints: Vec<u64>, data: Vec<Data>) -> Self {
        Self {
            breakpoints,
            data,
            ..Self::default()
        }
    }

    /// For the next place.
    #[must_use]
    pub fn next() -> Self {
        Self {
            one: true,
            ..Self::default()
        }
    }

    /// For the first place with the clock at `until`, or past it.
    #[must_use]
    pub fn until(until: u64) -> Self {
        Self {
            until: Some(until),
            ..Self::default()
        }
    }

    /// Is to leave the place it stands at; `cpu` is there.
    pub fn leave(&mut self, cpu: &Cpu) {
        self.leaving = true;
        self.touched = None;
        for data in &mut self.data {
            data.changed(cpu);
        }
    }

    /// Whether to pause at the place `cpu` is at.
    fn pause(&mut self, cpu: &Cpu) -> Option<Pause> {
        let mut hit = None;
        for data in &mut self.data {
            if data.changed(cpu) && data.kind != Kind::Read {
                hit.get_or_insert(Hit {
                    address: data.address,
                    kind: data.kind,
                });
            }
        }
        // What faulted did not access.
        if let Some((clock, touched)) = self.touched.take()
            && cpu.clock > clock
        {
            hit = hit.or(Some(touched));
        }
        if std::mem::take(&mut self.leaving) {
            return None;
        }
        if let Some(hit) = hit {
            return Some(Pause::Data(hit));
        }
        if self.breakpoints.contains(&cpu.linear_rip()) {
            return Some(Pause::Breakpoint);
        }
        let reached = self.one || self.until.is_some_and(|until| cpu.clock >= until);
        reached.then_some(Pause::Reached)
    }
}

/// How a watched run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watched {
    /// As any run; [`Exit::Stopped`] is before the place there.
    Exit(Exit),
    /// At a place.
    Paused(Pause),
}

/// A processor's state at an earlier time, translations included; without memory.
pub struct Copy(Box<Cpu>);

impl Soft {
    /// Has the instructions at these linear addresses probed, in place of those before: a run that heeds them pauses
    /// before each. False, and nothing is done, if one of them is not mapped.
    ///
    /// They are found again by where they are in physical memory now: meant for code that stays where it is.
    pub fn probe(&mut self, addresses: &[u64]) -> bool {
        let physical = addresses.iter().map(|at| self.cpu.physical_of(*at));
        let Some(physical) = physical.collect() else {
            return false;
        };
        self.probes = addresses.to_vec();
        self.blocks.set_probes(&mut self.cpu, physical);
        true
    }

    /// A watched run that heeds transfers and probes.
    fn run_heeding(&mut self, until: u64, watch: &mut Watch, kick: &AtomicBool) -> Watched {
        if let Some(exit) = self.settle() {
            return Watched::Exit(exit);
        }
        loop {
            // Before all else: what comes next may be another.
            if let Some(transfer) = self.cpu.transfer.take() {
                return Watched::Paused(Pause::Transfer(transfer));
            }
            if self.cpu.clock >= until {
                return Watched::Exit(Exit::Stopped);
            }
            if !std::mem::take(&mut watch.leaving) {
                if self.probes.contains(&self.cpu.linear_rip()) {
                    return Watched::Paused(Pause::Breakpoint);
                }
                if watch.until.is_some_and(|until| self.cpu.clock >= until) {
                    return Watched::Paused(Pause::Reached);
                }
            }
            if kick.load(Ordering::Relaxed) {
                return Watched::Exit(Exit::Kicked);
            }
            let goal = until.min(watch.until.unwrap_or(u64::MAX));
            // Whatever transfers ends its block, and is none of what is translated: like what lets interrupts in, it
            // comes back here.
            if let Some(exit) = self.stretch(goal.max(self.cpu.clock + 1), true) {
                return Watched::Exit(exit);
            }
        }
    }

    /// As [`Soft::run`] without a window, and pauses as `watch` asks.
    pub fn run_watched(&mut self, until: u64, watch: &mut Watch, kick: &AtomicBool) -> Watched {
        if watch.heed {
            return self.run_heeding(until, watch, kick);
        }
        if watch.breakpoints.is_empty() && watch.data.is_empty() && !watch.one {
            return self.run_to(until, watch, kick);
        }
        if let Some(exit) = self.settle() {
            return Watched::Exit(exit);
        }
        loop {
            if self.cpu.clock >= until {
                return Watched::Exit(Exit::Stopped);
            }
            if let Some(pause) = watch.pause(&self.cpu) {
                return Watched::Paused(pause);
            }
            let goal = until.min(watch.until.unwrap_or(u64::MAX));
            if !watch.data.is_empty() {
                watch.touched = self
                    .touches(CHUNK)
                    .iter()
                    .find_map(|touch| {
                        let here = |data: &&Data| data.is_here(&self.cpu) && data.overlaps(touch);
                        let data = watch.data.iter().find(here)?;
                        let (address, kind) = (data.address, data.kind);
                        Some(Hit { address, kind })
                    })
                    .map(|hit| (self.cpu.clock, hit));
            }
            let alone = watch.one || !watch.data.is_empty() || self.has_inside(&watch.breakpoints);
            let next = self.cpu.clock + 1;
            if let Some(exit) = self.block(if alone { next } else { goal.max(next) }) {
                return Watched::Exit(exit);
            }
        }
    }

    /// A watched run with nothing to look at on the way.
    fn run_to(&mut self, until: u64, watch: &mut Watch, kick: &AtomicBool) -> Watched {
        let here = self.cpu.clock;
        let leaving = std::mem::take(&mut watch.leaving);
        let goal = watch.until.unwrap_or(u64::MAX);
        let goal = goal.max(if leaving { here + 1 } else { 0 });
        match self.run(until.min(goal), false, kick) {
            Exit::Stopped if self.cpu.clock < until => Watched::Paused(Pause::Reached),
            exit => Watched::Exit(exit),
        }
    }

    /// Whether the block at RIP has one of `addresses` past its first byte.
    fn has_inside(&mut self, addresses: &[u64]) -> bool {
        if addresses.is_empty() {
            return false;
        }
        // A block that cannot be fetched faults the same way when it is run.
        let Ok(place) = self.blocks.find(&mut self.cpu) else {
            return true;
        };
        let (rip, bytes) = (self.cpu.linear_rip(), self.blocks.get(place).bytes);
        addresses
            .iter()
            .any(|address| (1..bytes).contains(&address.wrapping_sub(rip)))
    }

    /// Breakpoints of the guest's own (DR0 to DR3) on what the instruction at RIP will access, as bits of
    /// DR6.
    pub(crate) fn data_hits(&self) -> u64 {
        self.touches(1).iter().fold(0, |hits, touch| {
            hits | self.cpu.data_hits(touch.address, touch.len, touch.write)
        })
    }

    /// What the instruction at RIP will access, if it does not fault; of a repeated one so many iterations at
    /// most.
    fn touches(&self, iterations: u64) -> Vec<Touch> {
        let cpu = &self.cpu;
        let mut bytes = [0; crate::decode::LONGEST];
        let there = cpu.look(cpu.linear_rip(), &mut bytes);
        let instruction = decoder(cpu, &bytes[..there], cpu.rip).decode();
        let mut factory = InstructionInfoFactory::new();
        let info = factory.info(&instruction);
        let repeated = instruction.has_rep_prefix() || instruction.has_repne_prefix();
        let string = instruction.is_string_instruction();
        let mut touches = Vec::new();
        for memory in info.used_memory() {
            let Some(address) = memory.virtual_address(0, |register, _, _| value(cpu, register))
            else {
                continue;
            };
            let (read, write) = match memory.access() {
                OpAccess::Read | OpAccess::CondRead => (true, false),
                OpAccess::Write | OpAccess::CondWrite => (false, true),
                OpAccess::ReadWrite | OpAccess::ReadCondWrite => (true, true),
                OpAccess::None | OpAccess::NoMemAccess => continue,
            };
            let size = match instruction.memory_size().size() {
                0 => memory.memory_size().size(),
                size => size,
            }
            .max(memory.memory_size().size())
            .max(1) as u64;
            let (mut address, mut len) = (address, size);
            if string && repeated {
                let count = cpu.regs[1].min(iterations);
                len = size.saturating_mul(count);
                if cpu.system_flags & flags::DF != 0 {
                    address = address.wrapping_add(size).wrapping_sub(len);
                }
            }
            let touch = |write| Touch {
                address,
                len,
                write,
            };
            touches.extend(read.then(|| touch(false)));
            touches.extend(write.then(|| touch(true)));
        }
        touches
    }

    /// The `count` instructions from RIP on: address, bytes and text. Fewer where there is no RAM.
    #[must_use]
    pub fn disassemble(&self, count: usize) -> Vec<(u64, Vec<u8>, String)> {
        let cpu = &self.cpu;
        let mut bytes = vec![0; count * crate::decode::LONGEST];
        let there = cpu.look(cpu.linear_rip(), &mut bytes);
        let mut decoder = decoder(cpu, &bytes[..there], cpu.rip);
        let mut lines = Vec::new();
        while lines.len() < count && decoder.can_decode() {
            let at = decoder.position();
            let instruction = decoder.decode();
            let mut text = String::new();
            GasFormatter::new().format(&instruction, &mut text);
            lines.push((
                instruction.ip(),
                bytes[at..decoder.position()].to_vec(),
                text,
            ));
            if instruction.is_invalid() {
                break;
            }
        }
        lines
    }

    /// The processor as it is, without memory.
    #[must_use]
    pub fn copy(&self) -> Copy {
        let mut copy = self.cpu.clone();
        copy.physical = Physical::new(Vec::new());
        Copy(copy)
    }

    /// Becomes what it was when `copy` was made. Memory must be put back, too, before the next run, and
    /// pages that change by that told of by [`Soft::page_written`].
    pub fn put_back(&mut self, copy: &Copy) {
        let cpu = &mut self.cpu;
        for page in std::mem::take(&mut cpu.rewritten) {
            self.blocks.invalidate(cpu, page);
        }
        let none = Physical::new(Vec::new());
        let physical = std::mem::replace(&mut cpu.physical, none);
        let mut earlier = (*copy.0).clone();
        let guarded = |page| physical.is_guarded(page);
        earlier.tlb.replace(&cpu.tlb, guarded);
        earlier.physical = physical;
        **cpu = earlier;
    }
}

/// Bytes an instruction accesses.
struct Touch {
    address: u64,
    len: u64,
    write: bool,
}

fn decoder<'a>(cpu: &Cpu, bytes: &'a [u8], rip: u64) -> Decoder<'a> {
    let bitness = if cpu.long_code { 64 } else { 32 };
    Decoder::with_ip(bitness, bytes, rip, DecoderOptions::AMD)
}

/// What `register` adds to an address.
fn value(cpu: &Cpu, register: Register) -> Option<u64> {
    if register.is_segment_register() {
        let n = register.number();
        let flat = cpu.long_code && n < segment::FS;
        return Some(if flat { 0 } else { cpu.segments.get(n)?.base });
    }
    if register.is_gpr() {
        let whole = cpu.regs[register.full_register().number()];
        return Some(match register.size() {
            8 => whole,
            4 => whole & 0xffff_ffff,
            2 => whole & 0xffff,
            _ => whole & 0xff,
        });
    }
    None
}

impl Cpu {
    /// Linear address of the next instruction.
    #[must_use]
    pub fn linear_rip(&self) -> u64 {
        if self.long_code {
            self.rip
        } else {
            self.rip.wrapping_add(self.segments[segment::CS].base) & 0xffff_ffff
        }
    }
}
