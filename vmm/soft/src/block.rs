//! Decoded instructions, kept by physical address.
//!
//! ```text
//!  virtual address ─▶ instruction TLB ─▶ physical address ─▶ recent ──hit──▶ block
//!                      │ miss: walk                             │ miss
//!                      ▼                                        ▼
//!                     page fault                               table ─▶ block, or decode
//! ```
//!
//! A block is a run of instructions without a branch among them, inside one page. Pages with blocks are
//! guarded: a write to one ends the writing instruction before it did anything, the page's blocks are
//! dropped, and the instruction starts over. An instruction that crosses into another page is a block by
//! itself and is never kept; what its bytes mean is.
//!
//! Nothing a guest can see depends on what is kept here.

use crate::cpu::Cpu;
use crate::decode::{self, Features, LONGEST, Undecodable};
use crate::memory::{Intent, Mode, OFFSET, PAGE};
use crate::op::{Op, slot};
use crate::translate::{Full, Translations, Translator};
use crate::trap::Trap;
use std::collections::HashMap;

/// Most instructions of a block.
const LENGTH_MAX: usize = 64;
/// Most bytes of a block: distances in it are one byte.
const BYTES_MAX: usize = 256;
/// Blocks found lately that are found again without the table.
const RECENT: usize = 1 << 14;
/// Instructions remembered that cross into another page.
const CROSSINGS: usize = 256;
/// Most blocks kept; beyond, all are dropped.
const BLOCKS_MAX: usize = 1 << 18;

/// A block.
#[derive(Debug)]
pub(crate) struct Block {
    /// Its instructions.
    pub ops: Box<[Op]>,
    /// Bytes they take.
    pub bytes: u64,
    /// Physical address of the first.
    pub physical: u64,
    /// What the translator made of it.
    pub translations: Translations,
}

/// What blocks are kept by: physical address and code size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key(u64);

impl Key {
    fn new(physical: u64, long: bool) -> Self {
        Self(physical << 1 | u64::from(long))
    }

    /// The physical address.
    fn physical(self) -> u64 {
        self.0 >> 1
    }

    /// Its place among [`Blocks::recent`].
    #[inline(always)]
    fn hash(self) -> usize {
        (self.0 ^ self.0 >> 14) as usize % RECENT
    }
}

/// A block found before, by a hash of its key.
#[derive(Clone, Copy)]
struct Recent {
    key: Key,
    block: u32,
}

/// No block has this key: physical addresses have 52 bits.
const NOBODY: Recent = Recent {
    key: Key(u64::MAX),
    block: 0,
};

/// An instruction that crosses into another page, decoded before.
struct Crossing {
    /// Its bytes, and those that follow.
    bytes: [u8; LONGEST],
    long: bool,
    op: Op,
}

/// All blocks.
pub(crate) struct Blocks {
    features: Features,
    arena: Vec<Block>,
    free: Vec<u32>,
    by_address: HashMap<Key, u32, Hash>,
    by_page: HashMap<u64, Vec<(Key, u32)>, Hash>,
    recent: Box<[Recent; RECENT]>,
    /// The block that is not kept.
    alone: Block,
    /// Instructions that crossed into another page.
    crossings: Box<[Option<Crossing>; CROSSINGS]>,
    /// Physical addresses of instructions before which somebody wants to look: each begins a block, which is never
    /// translated.
    probes: Vec<u64>,
    /// Runs blocks as host code, if it may.
    pub translator: Option<Translator>,
}

/// Where a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Kept(u32),
    Alone,
}

impl Blocks {
    pub fn new(features: Features) -> Self {
        Self {
            features,
            arena: Vec::new(),
            free: Vec::new(),
            by_address: HashMap::default(),
            by_page: HashMap::default(),
            recent: Box::new([NOBODY; RECENT]),
            alone: Block {
                ops: Box::default(),
                bytes: 0,
                physical: 0,
                translations: Translations::default(),
            },
            crossings: Box::new([const { None }; CROSSINGS]),
            probes: Vec::new(),
            translator: None,
        }
    }

    #[inline(always)]
    pub fn get(&self, place: Place) -> &Block {
        match place {
            Place::Kept(number) => &self.arena[number as usize],
            Place::Alone => &self.alone,
        }
    }

    /// Has a block of its own begin at each of these physical addresses, and none of those run as host code.
    pub fn set_probes(&mut self, cpu: &mut Cpu, probes: Vec<u64>) {
        let old = std::mem::replace(&mut self.probes, probes);
        for physical in old.into_iter().chain(self.probes.clone()) {
            self.invalidate(cpu, physical / PAGE);
        }
    }

    /// Has blocks translated by `translator`.
    pub fn set_translator(&mut self, translator: Translator) {
        for block in &mut self.arena {
            block.translations = Translations::default();
        }
        self.translator = Some(translator);
    }

    /// The host code of block `number` for the mode the processor is in; made if the block runs often.
    #[inline(always)]
    pub fn code(&mut self, cpu: &Cpu, number: u32) -> Option<u64> {
        let translator = self.translator.as_mut()?;
        let block = &mut self.arena[number as usize];
        if let Some(code) = translator.code(cpu, block) {
            return Some(code);
        }
        if self.probes.contains(&block.physical) {
            return None;
        }
        if !block.translations.wanted(translator.warm) {
            return None;
        }
        self.translate(cpu, number)
    }

    #[inline(never)]
    fn translate(&mut self, cpu: &Cpu, number: u32) -> Option<u64> {
        let translator = self.translator.as_mut()?;
        let (arena, by_address) = (&self.arena, &self.by_address);
        let probes = &self.probes;
        let find = |physical| {
            if probes.contains(&physical) {
                return None;
            }
            let number = *by_address.get(&Key::new(physical, true))?;
            Some((number, &arena[number as usize]))
        };
        let block = &arena[number as usize];
        match translator.translate(cpu, &self.features, number, block, &find) {
            Ok(translations) => {
                self.arena[number as usize].translations = translations;
                translations.code(cpu.tlb.mode)
            }
            Err(Full) => {
                translator.clear();
                for block in &mut self.arena {
                    block.translations.forget();
                }
                None
            }
        }
    }

    /// The block at the processor's RIP.
    ///
    /// # Errors
    /// [`Trap`] if it cannot be fetched.
    #[inline(always)]
    pub fn find(&mut self, cpu: &mut Cpu) -> Result<Place, Trap> {
        // CS's base is zero in 64-bit code; one that is not page-aligned, or wraps, just misses.
        let linear = cpu.rip.wrapping_add(cpu.slot(slot::SEGMENTS + 1));
        if let Some(physical) = cpu.tlb.code(linear, cpu.cpl == 3) {
            let key = Key::new(physical, cpu.long_code);
            let recent = &self.recent[key.hash()];
            if recent.key == key && cpu.rewritten.is_empty() {
                return Ok(Place::Kept(recent.block));
            }
        }
        self.find_slowly(cpu)
    }

    #[inline(never)]
    fn find_slowly(&mut self, cpu: &mut Cpu) -> Result<Place, Trap> {
        for page in std::mem::take(&mut cpu.rewritten) {
            self.forget(page);
        }
        let rip = cpu.rip;
        let physical = fetch_address(cpu, rip)?;
        let key = Key::new(physical, cpu.long_code);
        let number = match self.by_address.get(&key) {
            Some(&number) => number,
            None => match self.decode(cpu, rip, physical, true)? {
                Place::Alone => return Ok(Place::Alone),
                Place::Kept(number) => number,
            },
        };
        self.recent[key.hash()] = Recent { key, block: number };
        Ok(Place::Kept(number))
    }

    /// The instruction at the processor's RIP, as a block that is not kept: it writes to its own page.
    ///
    /// # Errors
    /// As for [`Blocks::find`].
    pub fn one(&mut self, cpu: &mut Cpu) -> Result<Place, Trap> {
        let physical = fetch_address(cpu, cpu.rip)?;
        self.decode(cpu, cpu.rip, physical, false)
    }

    /// Decodes from `physical` to the end of the block. Only if `keep`, and only in RAM whose writes are
    /// noticed, the block is more than one instruction and is kept.
    fn decode(
        &mut self,
        cpu: &mut Cpu,
        rip: u64,
        physical: u64,
        keep: bool,
    ) -> Result<Place, Trap> {
        let guarded = cpu.physical.has_code(physical);
        let keep = keep && cpu.physical.set_code(physical / PAGE, true);
        if keep && !guarded {
            cpu.tlb.guard(physical & !OFFSET);
        }
        let length = if keep { LENGTH_MAX } else { 1 };
        let mut bytes = [0; BYTES_MAX];
        let on_page = (PAGE - (physical & OFFSET)) as usize;
        let window = &mut bytes[..on_page.min(BYTES_MAX)];
        if !cpu.physical.read_bytes(physical, window) {
            return Err(cpu.stop(crate::trap::Cause::Unimplemented));
        }
        if self.crossed(rip, window, cpu.long_code) {
            return self.decode_crossing(cpu, rip, &bytes[..on_page]);
        }
        let mut ops = Vec::with_capacity(16);
        let mut at = 0;
        while at < window.len() && at + LONGEST < 255 && ops.len() < length {
            if at > 0 && self.probes.contains(&(physical + at as u64)) {
                break;
            }
            match decode::decode(&window[at..], at as u8, cpu.long_code, &self.features) {
                Ok(mut lowered) => {
                    if lowered.counts {
                        lowered.op.imm = ops.len() as u64;
                    }
                    at += usize::from(lowered.op.len);
                    ops.push(lowered.op);
                    if lowered.ends {
                        break;
                    }
                }
                Err(Undecodable::Short) if ops.is_empty() => {
                    return self.decode_crossing(cpu, rip, &window[at..]);
                }
                Err(error) if ops.is_empty() => {
                    let lowered = decode::undecodable(error, cpu.long_code);
                    at += 1;
                    ops.push(lowered.op);
                    break;
                }
                Err(_) => break,
            }
        }
        let block = Block {
            ops: ops.into(),
            bytes: at as u64,
            physical,
            translations: Translations::default(),
        };
        if !keep {
            self.alone = block;
            return Ok(Place::Alone);
        }
        Ok(Place::Kept(self.keep(cpu, physical, block)))
    }

    fn keep(&mut self, cpu: &Cpu, physical: u64, block: Block) -> u32 {
        if self.by_address.len() >= BLOCKS_MAX {
            let pages: Vec<u64> = self.by_page.keys().copied().collect();
            for page in pages {
                // The page stays guarded: it is being decoded, or will be found unguarded by its next write.
                self.forget(page);
            }
        }
        let number = match self.free.pop() {
            Some(number) => {
                self.arena[number as usize] = block;
                number
            }
            None => {
                self.arena.push(block);
                (self.arena.len() - 1) as u32
            }
        };
        let key = Key::new(physical, cpu.long_code);
        self.by_address.insert(key, number);
        self.by_page
            .entry(physical / PAGE)
            .or_default()
            .push((key, number));
        number
    }

    /// An instruction that goes on in the next page.
    fn decode_crossing(&mut self, cpu: &mut Cpu, rip: u64, head: &[u8]) -> Result<Place, Trap> {
        let second = fetch_address(cpu, rip.wrapping_add(head.len() as u64))?;
        let mut bytes = [0; LONGEST];
        bytes[..head.len()].copy_from_slice(head);
        if !cpu.physical.read_bytes(second, &mut bytes[head.len()..]) {
            return Err(cpu.stop(crate::trap::Cause::Unimplemented));
        }
        let op = self.crossing(rip, bytes, cpu.long_code);
        self.alone.bytes = op.len.into();
        match &mut *self.alone.ops {
            [alone] => *alone = op,
            _ => self.alone.ops = Box::new([op]),
        }
        Ok(Place::Alone)
    }

    /// Whether what begins with `head`, the rest of its page, is known to cross into the next.
    fn crossed(&self, rip: u64, head: &[u8], long: bool) -> bool {
        head.len() < LONGEST
            && self.crossings[crossing(rip)].as_ref().is_some_and(|known| {
                known.long == long
                    && usize::from(known.op.len) > head.len()
                    && known.bytes.starts_with(head)
            })
    }

    /// What `bytes` at `rip` are, which crosses into another page: remembered by what they are, since nobody notices
    /// writes to both pages.
    fn crossing(&mut self, rip: u64, bytes: [u8; LONGEST], long: bool) -> Op {
        let place = crossing(rip);
        match &self.crossings[place] {
            Some(known) if known.bytes == bytes && known.long == long => known.op,
            _ => {
                let lowered = decode::decode(&bytes, 0, long, &self.features)
                    .unwrap_or_else(|error| decode::undecodable(error, long));
                let op = lowered.op;
                self.crossings[place] = Some(Crossing { bytes, long, op });
                op
            }
        }
    }

    fn forget(&mut self, page: u64) {
        for (key, number) in self.by_page.remove(&page).unwrap_or_default() {
            self.by_address.remove(&key);
            let recent = &mut self.recent[key.hash()];
            if recent.key == key {
                *recent = NOBODY;
            }
            if let Some(translator) = &mut self.translator {
                translator.forget(key.physical());
            }
            self.free.push(number);
        }
    }

    /// Drops the blocks of physical page number `page`, which somebody writes to.
    pub fn invalidate(&mut self, cpu: &mut Cpu, page: u64) {
        self.forget(page);
        cpu.physical.set_code(page, false);
        cpu.unguard(page * PAGE);
    }

    /// Drops everything.
    pub fn clear(&mut self, cpu: &mut Cpu) {
        let pages: Vec<u64> = self.by_page.keys().copied().collect();
        for page in pages {
            self.invalidate(cpu, page);
        }
    }
}

/// The place of an instruction at `rip` among those that cross.
fn crossing(rip: u64) -> usize {
    (rip ^ rip >> 12) as usize % CROSSINGS
}

/// Physical address of the instruction at `rip`.
fn fetch_address(cpu: &mut Cpu, rip: u64) -> Result<u64, Trap> {
    let linear = if cpu.long_code {
        cpu.check_target(rip)?;
        rip
    } else {
        rip.wrapping_add(cpu.segments[crate::cpu::segment::CS].base) & 0xffff_ffff
    };
    let mode = if cpu.cpl == 3 {
        Mode::User
    } else {
        Mode::Supervisor
    };
    cpu.translate(linear, Intent::Execute, mode)
}

/// A fast hash for keys that are numbers.
#[derive(Clone, Copy, Default)]
struct Hash;

impl std::hash::BuildHasher for Hash {
    type Hasher = Multiply;
    fn build_hasher(&self) -> Multiply {
        Multiply(0)
    }
}

/// Multiplies by an odd constant (2^64 divided by the golden ratio).
struct Multiply(u64);

impl std::hash::Hasher for Multiply {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }
    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0 ^ value)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(29);
    }
}
