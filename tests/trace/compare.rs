//! Both processors, one instruction at a time, to the first difference.
//!
//! ```text
//!  QEMU  ──registers before the next instruction──▶ ┐
//!                                                    ├─ equal? ─▶ next
//!  ours  ──carries out the instruction────────────▶ ┘
//! ```
//!
//! QEMU goes first, since only it has devices. What an instruction learns from outside (a port, the time, a
//! register or CPUID leaf of the model) is QEMU's *answer* to ours; where the architecture leaves flags
//! undefined, QEMU's are taken over. Both are counted, by instruction. An interrupt is QEMU's to take, too,
//! where ours could take one as well. Everything else has to be equal.

use super::ours::Ours;
use super::qemu::{Qemu, Registers, System};
use iced_x86::{Decoder, DecoderOptions, Formatter, GasFormatter, Instruction, Mnemonic};
use iced_x86::{OpKind, RflagsBits};
use soft::Exit;
use soft::cpu::{Segment, segment};
use soft::flags;
use soft::trap::{Access, Cause, Exception, Space};
use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write;
use std::sync::atomic::AtomicBool;

/// Longest instruction (SDM volume 2, 2.3.11).
const LONGEST: usize = 15;
/// How many instructions before a difference are told.
const RECENT: usize = 8;
/// Vectors from here on are interrupts' (SDM volume 3, 6.2).
const FIRST_INTERRUPT: u64 = 32;
/// Accessed bit of [`Segment::attributes`].
const ACCESSED: u16 = 1;
/// Numbers of registers.
const RAX: usize = 0;
const RCX: usize = 1;
const RDX: usize = 2;
const RBX: usize = 3;
const RSP: usize = 4;
const REGISTERS: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
];

/// What was compared.
#[derive(Debug, Default)]
pub struct Tally {
    /// Instructions carried out on both.
    pub instructions: u64,
    /// How often QEMU printed its registers: with each iteration of repeated instructions.
    pub records: u64,
    /// Instructions QEMU said nothing of, each carried out together with the one before it.
    pub hidden: u64,
    /// Interrupts taken on both.
    pub interrupts: u64,
    /// What ours was told by QEMU, by instruction.
    pub answers: BTreeMap<String, u64>,
    /// Undefined flags taken from QEMU, by instruction.
    pub undefined: BTreeMap<String, u64>,
}

/// The instruction both are about to carry out.
#[derive(Clone, Copy)]
struct Now {
    instruction: Instruction,
    bytes: [u8; LONGEST],
}

/// A comparison under way.
pub struct Comparison {
    pub ours: Ours,
    theirs: Qemu,
    /// Both stand here.
    at: Registers,
    /// Addresses of instructions before which QEMU prints nothing.
    hidden: Vec<u64>,
    /// The last instructions, with their numbers.
    recent: VecDeque<(u64, Now)>,
    pub tally: Tally,
    kick: AtomicBool,
}

impl Comparison {
    /// Leads QEMU to where ours begins. It prints nothing before instructions at `hidden`, so these, all of
    /// them repeated ones, are carried out together with the one before them.
    ///
    /// # Errors
    /// If it does not get there, or not in the same state.
    pub fn new(ours: Ours, mut theirs: Qemu, hidden: Vec<u64>) -> Result<Self, String> {
        let at = ours.registers();
        let there = theirs.lead_to(at.rip)?;
        let mut comparison = Self {
            ours,
            theirs,
            at,
            hidden,
            recent: VecDeque::with_capacity(RECENT),
            tally: Tally::default(),
            kick: AtomicBool::new(false),
        };
        comparison.check(&there, None)?;
        Ok(comparison)
    }

    /// Carries out `count` instructions more.
    ///
    /// # Errors
    /// The first difference, in full.
    pub fn run(&mut self, count: u64) -> Result<(), String> {
        let end = self.tally.instructions + count;
        while self.tally.instructions < end {
            self.step()?;
        }
        Ok(())
    }

    fn step(&mut self) -> Result<(), String> {
        let now = self.decode();
        let is = |mnemonic| now.is_some_and(|now| now.instruction.mnemonic() == mnemonic);
        let repeated = now.is_some_and(|now| is_repeated(&now.instruction));
        let next = self.next(repeated)?;
        let halts = is(Mnemonic::Hlt);
        let taken = if halts {
            None
        } else {
            self.interrupt(now, &next)?
        };
        if let Some(vector) = taken {
            if repeated {
                self.part_of_repeated(next.general[RCX]);
            }
            self.take_interrupt(vector);
        } else {
            self.note(now);
            self.execute(now, &next, repeated)?;
            self.execute_hidden(&next)?;
            if halts && let Some(vector) = self.interrupt(None, &next)? {
                self.take_interrupt(vector);
            }
        }
        self.check(&next, now)?;
        self.at = next;
        self.tally.instructions += u64::from(taken.is_none());
        Ok(())
    }

    /// The instruction at RIP; none where that is not mapped.
    fn decode(&self) -> Option<Now> {
        let mut bytes = [0; LONGEST];
        let there = self.ours.soft.cpu.look(self.at.rip, &mut bytes);
        let mut decoder = Decoder::with_ip(64, &bytes[..there], self.at.rip, DecoderOptions::AMD);
        let instruction = decoder.decode();
        (!instruction.is_invalid()).then_some(Now { instruction, bytes })
    }

    /// QEMU's registers after the instruction. It prints the same twice where it began one anew, and prints
    /// each iteration of a repeated one.
    fn next(&mut self, repeated: bool) -> Result<Registers, String> {
        loop {
            let next = self.theirs.next()?;
            self.tally.records += 1;
            if next != self.at && !(repeated && next.rip == self.at.rip) {
                return Ok(next);
            }
        }
    }

    /// The interrupt that QEMU took instead of carrying out the instruction `now`.
    fn interrupt(&self, now: Option<Now>, next: &Registers) -> Result<Option<u8>, String> {
        let cpu = &self.ours.soft.cpu;
        let through_a_gate = cpu.system_flags & flags::IF != 0 && next.rflags & flags::IF == 0;
        let by_itself = now.is_some_and(|now| {
            let instruction = &now.instruction;
            next.rip == instruction.next_ip() || instruction.mnemonic() == Mnemonic::Int
        });
        // Of the general registers an interrupt changes RSP alone; what a repeated instruction did before
        // it shows in its own.
        let kept = now.is_none_or(|now| {
            is_repeated(&now.instruction)
                || (0..16).all(|n| n == RSP || self.at.general[n] == next.general[n])
        });
        if !through_a_gate || by_itself || !kept {
            return Ok(None);
        }
        for vector in FIRST_INTERRUPT..256 {
            let mut gate = [0; 16];
            let there = cpu.look(cpu.idt.base + vector * 16, &mut gate);
            // Offset of a 64-bit gate (SDM volume 3, 6.14.1): bytes 0-1 and 6-11.
            let [a, b, _, _, _, _, c, d, e, f, g, h, ..] = gate;
            if there == gate.len() && u64::from_le_bytes([a, b, c, d, e, f, g, h]) == next.rip {
                if !cpu.interruptible() {
                    return Err(format!("QEMU takes interrupt {vector:#x}, ours cannot"));
                }
                return Ok(u8::try_from(vector).ok());
            }
        }
        Ok(None)
    }

    fn take_interrupt(&mut self, vector: u8) {
        let soft = &mut self.ours.soft;
        soft.interrupt(vector);
        let clock = soft.cpu.clock;
        // What goes wrong shows as a difference.
        let _ = soft.run(clock, false, &self.kick);
        self.tally.interrupts += 1;
    }

    /// Carries out instructions of which QEMU says nothing, until `next`.
    fn execute_hidden(&mut self, next: &Registers) -> Result<(), String> {
        while self.hidden.contains(&self.ours.soft.cpu.rip) {
            if let Some(vector) = self.interrupt(None, next)? {
                self.part_of_repeated(next.general[RCX]);
                self.take_interrupt(vector);
                break;
            }
            self.tally.hidden += 1;
            let rip = self.ours.soft.cpu.rip;
            while self.ours.soft.cpu.rip == rip {
                let until = self.ours.soft.cpu.clock + 1;
                let exit = self.ours.soft.run(until, false, &self.kick);
                if exit != Exit::Stopped {
                    return Err(format!("{exit:?} of the repeated instruction at {rip:#x}"));
                }
            }
        }
        Ok(())
    }

    /// Carries out iterations of the repeated instruction at RIP, to RCX = `rest`.
    fn part_of_repeated(&mut self, rest: u64) {
        let soft = &mut self.ours.soft;
        let (rip, count) = (soft.cpu.rip, soft.cpu.regs[RCX].wrapping_sub(rest));
        soft.cpu.regs[RCX] = count;
        while count != 0 && soft.cpu.rip == rip {
            let until = soft.cpu.clock + 1;
            if soft.run(until, false, &self.kick) != Exit::Stopped {
                break;
            }
        }
        soft.cpu.regs[RCX] = rest;
        soft.cpu.rip = rip;
    }

    /// Keeps the instruction, to be told before a difference.
    fn note(&mut self, now: Option<Now>) {
        if let Some(now) = now {
            if self.recent.len() == RECENT {
                self.recent.pop_front();
            }
            self.recent.push_back((self.tally.instructions, now));
        }
    }

    /// Carries out the instruction on ours.
    fn execute(
        &mut self,
        now: Option<Now>,
        next: &Registers,
        repeated: bool,
    ) -> Result<(), String> {
        if let Some(now) = now
            && matches!(
                now.instruction.mnemonic(),
                Mnemonic::Rdmsr | Mnemonic::Wrmsr
            )
            && self.model_specific(&now, next)
        {
            return Ok(());
        }
        // To be told whether there is another afterwards.
        self.ours.soft.cpu.cause = Cause::Halt;
        loop {
            let until = self.ours.soft.cpu.clock + 1;
            loop {
                match self.ours.soft.run(until, false, &self.kick) {
                    Exit::Stopped | Exit::Halt => break,
                    // QEMU's devices get it.
                    Exit::Write(_) => {}
                    Exit::Read(access) => {
                        let value = self.answer(access, now, next).ok_or_else(|| {
                            self.difference(
                                next,
                                now,
                                &format!("no answer is known to {access:x?}"),
                            )
                        })?;
                        self.ours.soft.answer(value);
                    }
                    exit @ (Exit::Kicked | Exit::TripleFault | Exit::Unimplemented) => {
                        let why = format!("{exit:?}: {}", self.ours.soft.describe());
                        return Err(self.difference(next, now, &why));
                    }
                }
            }
            if !repeated || self.ours.soft.cpu.rip != self.at.rip {
                break;
            }
        }
        if let Cause::Exception(exception) = self.ours.soft.cpu.cause {
            self.clear_resume_flag(exception);
        }
        if now.is_some_and(|now| now.instruction.mnemonic() == Mnemonic::Cpuid) {
            let leaf = self.at.general[RAX] as u32;
            // Others take no subleaf, whatever is in ECX.
            let subleaf = Some(self.at.general[RCX]).filter(|_| matches!(leaf, 4 | 7 | 0xb | 0xd));
            let subleaf = subleaf.map_or(String::new(), |n| format!(".{}", n as u32));
            let name = || format!("cpuid {leaf:#x}{subleaf}:");
            self.take_general(&[RAX, RBX, RCX, RDX], next, &name);
        }
        Ok(())
    }

    /// Clears RF in the frame of the exception just delivered: a processor sets it there for faults (SDM
    /// volume 3, 18.3.1.1), QEMU does not, and the guest may look.
    fn clear_resume_flag(&mut self, exception: Exception) {
        let cpu = &mut self.ours.soft.cpu;
        let error = if exception.error.is_some() { 8 } else { 0 };
        // RFLAGS come behind the error code, RIP and CS.
        let at = cpu.regs[RSP].wrapping_add(error + 16);
        if let Ok(rflags) = cpu.load::<u64>(at)
            && rflags & flags::RF != 0
            && cpu.store(at, rflags & !flags::RF).is_ok()
        {
            let name = format!("RF in the frame of exception {}", exception.vector);
            *self.tally.answers.entry(name).or_default() += 1;
        }
    }

    /// Carries out `rdmsr` or `wrmsr`. A register that only QEMU's model has is QEMU's answer. False if
    /// nothing was done.
    fn model_specific(&mut self, now: &Now, next: &Registers) -> bool {
        let name = format!(
            "{} {:#x}",
            text(&now.instruction),
            self.at.general[RCX] as u32
        );
        match self.ours.soft.one() {
            Ok(()) => {
                if now.instruction.mnemonic() == Mnemonic::Rdmsr {
                    self.take_general(&[RAX, RDX], next, &|| name.clone());
                }
                true
            }
            Err(Cause::Exception(_)) if next.rip == now.instruction.next_ip() => {
                self.ours.take(next);
                *self.tally.answers.entry(name).or_default() += 1;
                true
            }
            Err(_) => false,
        }
    }

    /// Takes those of `registers` over from QEMU that differ.
    fn take_general(&mut self, registers: &[usize], next: &Registers, name: &dyn Fn() -> String) {
        let mut taken = String::new();
        for &n in registers {
            let ours = &mut self.ours.soft.cpu.regs[n];
            if *ours != next.general[n] {
                taken = taken + " " + REGISTERS[n];
            }
            *ours = next.general[n];
        }
        if !taken.is_empty() {
            *self.tally.answers.entry(name() + &taken).or_default() += 1;
        }
    }

    /// What QEMU read, by the register it is in now.
    fn answer(&mut self, access: Access, now: Option<Now>, next: &Registers) -> Option<u64> {
        let instruction = now?.instruction;
        let (name, value) = match (access.space, instruction.mnemonic()) {
            (Space::Tsc, _) => {
                let value = next.general[RDX] << 32 | next.general[RAX] & 0xffff_ffff;
                (text(&instruction), value)
            }
            (Space::Port, Mnemonic::In) => (format!("in {:#x}", access.address), next.general[RAX]),
            (Space::Memory, Mnemonic::Mov | Mnemonic::Movzx)
                if instruction.op0_kind() == OpKind::Register =>
            {
                let register = instruction.op0_register().full_register();
                let value = *next.general.get(register.number())?;
                (format!("read of {:#x}", access.address), value)
            }
            _ => return None,
        };
        *self.tally.answers.entry(name).or_default() += 1;
        Some(value & u64::MAX >> (64 - 8 * u32::from(access.size)))
    }

    /// Compares, and takes QEMU's undefined flags over.
    fn check(&mut self, theirs: &Registers, now: Option<Now>) -> Result<(), String> {
        let ours = self.ours.registers();
        if ours != *theirs {
            let different = ours.rflags ^ theirs.rflags;
            let undefined = now.map_or(0, |now| undefined(&now.instruction, &self.at));
            let same = Registers { rflags: 0, ..ours }
                == Registers {
                    rflags: 0,
                    ..*theirs
                };
            if !same || different & !undefined != 0 {
                return Err(self.difference(theirs, now, "registers differ"));
            }
            self.ours.soft.cpu.set_rflags(theirs.rflags);
            let name = now.map(|now| format!("{:?}", now.instruction.mnemonic()).to_lowercase());
            *self
                .tally
                .undefined
                .entry(name.unwrap_or_default())
                .or_default() += 1;
        }
        let ours = comparable(&self.ours.system());
        let system = comparable(self.theirs.system()?);
        if ours != system {
            let what = differing(&ours, &system);
            return Err(self.difference(theirs, now, &what));
        }
        Ok(())
    }

    /// The first difference, in full.
    fn difference(&self, theirs: &Registers, now: Option<Now>, what: &str) -> String {
        let ours = self.ours.registers();
        let mut message = format!(
            "{what}, after instruction {}, at {:#x}",
            self.tally.instructions, self.at.rip
        );
        let mut line = |text: &str| write!(message, "\n  {text}").expect("into a string");
        if let Some(now) = now {
            line(&now.to_string());
        }
        line("register  before            ours              QEMU");
        let mut row = |name: &str, before: u64, ours: u64, theirs: u64| {
            let mark = if ours == theirs { "" } else { "  <--" };
            line(&format!(
                "{name:8}  {before:016x}  {ours:016x}  {theirs:016x}{mark}"
            ));
        };
        for (n, name) in REGISTERS.into_iter().enumerate() {
            row(name, self.at.general[n], ours.general[n], theirs.general[n]);
        }
        row("rip", self.at.rip, ours.rip, theirs.rip);
        row("rflags", self.at.rflags, ours.rflags, theirs.rflags);
        line("before it, with their numbers:");
        for (number, now) in &self.recent {
            line(&format!("{number}: {now}"));
        }
        message
    }
}

/// Addresses of the repeated instructions with more than `iterations` among the first `count` that `ours`
/// carries out, to where it needs an answer: QEMU would tell each iteration.
pub fn long_repeated(ours: &mut Ours, count: u64, iterations: u64) -> Vec<u64> {
    let mut found = Vec::new();
    let kick = AtomicBool::new(false);
    for _ in 0..count {
        let cpu = &ours.soft.cpu;
        let mut bytes = [0; LONGEST];
        let there = cpu.look(cpu.rip, &mut bytes);
        let mut decoder = Decoder::with_ip(64, &bytes[..there], cpu.rip, DecoderOptions::AMD);
        let long = is_repeated(&decoder.decode()) && cpu.regs[RCX] > iterations;
        if long && !found.contains(&cpu.rip) {
            found.push(cpu.rip);
        }
        if ours.soft.run(ours.soft.cpu.clock + 1, false, &kick) != Exit::Stopped {
            break;
        }
    }
    found
}

impl std::fmt::Display for Now {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let bytes = &self.bytes[..self.instruction.len()];
        let (rip, text) = (self.instruction.ip(), text(&self.instruction));
        write!(f, "{rip:#x}  {bytes:02x?}  {text}")
    }
}

fn text(instruction: &Instruction) -> String {
    let mut text = String::new();
    GasFormatter::new().format(instruction, &mut text);
    text
}

fn is_repeated(instruction: &Instruction) -> bool {
    let prefixed = instruction.has_rep_prefix() || instruction.has_repne_prefix();
    prefixed && instruction.is_string_instruction()
}

/// The flags `instruction` leaves undefined, executed at `at` (SDM volume 2, at each instruction).
fn undefined(instruction: &Instruction, at: &Registers) -> u64 {
    let bits = instruction.rflags_undefined();
    let table = [
        (RflagsBits::OF, flags::OF),
        (RflagsBits::SF, flags::SF),
        (RflagsBits::ZF, flags::ZF),
        (RflagsBits::AF, flags::AF),
        (RflagsBits::CF, flags::CF),
        (RflagsBits::PF, flags::PF),
    ];
    let chosen = table.iter().filter(|(bit, _)| bits & bit != 0);
    let undefined = chosen.fold(0, |flags, (_, flag)| flags | flag);
    // What shifts by CL leave depends on the count.
    let size = instruction
        .op0_register()
        .size()
        .max(instruction.memory_size().size());
    let count = at.general[RCX] & if size == 8 { 63 } else { 31 };
    match instruction.mnemonic() {
        Mnemonic::Shl | Mnemonic::Shr | Mnemonic::Sar | Mnemonic::Shld | Mnemonic::Shrd
            if instruction.op_kinds().last() == Some(OpKind::Register) && count != 0 =>
        {
            let overflow = if count == 1 { 0 } else { flags::OF };
            undefined | overflow | flags::AF
        }
        Mnemonic::Rol | Mnemonic::Ror | Mnemonic::Rcl | Mnemonic::Rcr
            if instruction.op1_kind() == OpKind::Register && count > 1 =>
        {
            undefined | flags::OF
        }
        _ => undefined,
    }
}

/// Without what says nothing: the hidden parts of selectors that are null, of TR and of LDTR; and the
/// accessed bit of the others, which QEMU's far returns do not set (SDM volume 3, 3.4.5.1: a processor does).
fn comparable(system: &System) -> System {
    let mut system = *system;
    for (n, s) in system.segments.iter_mut().enumerate() {
        if n >= segment::TR || s.selector & !3 == 0 {
            *s = Segment {
                base: s.base,
                selector: s.selector,
                ..Default::default()
            };
        }
        s.attributes &= !ACCESSED;
    }
    system
}

/// Names what differs, and how.
fn differing(ours: &System, theirs: &System) -> String {
    const SEGMENTS: [&str; 8] = ["ES", "CS", "SS", "DS", "FS", "GS", "TR", "LDTR"];
    let mut parts = Vec::new();
    for (n, name) in SEGMENTS.into_iter().enumerate() {
        let (a, b) = (ours.segments[n], theirs.segments[n]);
        if a != b {
            parts.push(format!("{name}: ours {a:x?}, QEMU {b:x?}"));
        }
    }
    let others = [
        (
            format!("{:x?}", ours.gdt),
            format!("{:x?}", theirs.gdt),
            "GDTR",
        ),
        (
            format!("{:x?}", ours.idt),
            format!("{:x?}", theirs.idt),
            "IDTR",
        ),
        (
            format!("{:x?}", ours.control),
            format!("{:x?}", theirs.control),
            "control registers",
        ),
        (
            format!("{:x?}", ours.debug),
            format!("{:x?}", theirs.debug),
            "debug registers",
        ),
    ];
    for (a, b, name) in others {
        if a != b {
            parts.push(format!("{name}: ours {a}, QEMU {b}"));
        }
    }
    parts.join("; ")
}
