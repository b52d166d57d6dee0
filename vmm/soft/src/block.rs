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
//! dropped, and the instruction starts over.
//!
//! An instruction that crosses into another page is a block by itself. Both pages are guarded for it, and it is the
//! one that is kept only while the second page is where it was: that page is fetched each time, as the first is.
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
    /// Physical address of the page its one instruction goes on in, if it crosses into another.
    pub second: Option<u64>,
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

/// All blocks.
pub(crate) struct Blocks {
    features: Features,
    arena: Vec<Block>,
    free: Vec<u32>,
    by_address: HashMap<Key, u32, Hash>,
    /// Blocks whose instruction crosses into another page; none of them is in `by_address` or `recent`.
    crossing: HashMap<Key, u32, Hash>,
    by_page: HashMap<u64, Vec<(Key, u32)>, Hash>,
    /// For each page, the pages with blocks that cross into it, or did.
    crossed_from: HashMap<u64, Vec<u64>, Hash>,
    recent: Box<[Recent; RECENT]>,
    /// The block that is not kept.
    alone: Block,
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

impl Block {
    /// The bytes of its instructions, if they are in RAM.
    pub fn code(&self, cpu: &Cpu) -> Option<Vec<u8>> {
        let mut bytes = vec![0; self.bytes as usize];
        let on_page = (PAGE - (self.physical & OFFSET)).min(self.bytes) as usize;
        let (first, rest) = bytes.split_at_mut(on_page);
        let there = cpu.physical.read_bytes(self.physical, first)
            && self
                .second
                .is_none_or(|second| cpu.physical.read_bytes(second, rest));
        there.then_some(bytes)
    }
}

impl Blocks {
    pub fn new(features: Features) -> Self {
        Self {
            features,
            arena: Vec::new(),
            free: Vec::new(),
            by_address: HashMap::default(),
            crossing: HashMap::default(),
            by_page: HashMap::default(),
            crossed_from: HashMap::default(),
            recent: Box::new([NOBODY; RECENT]),
            alone: Block {
                ops: Box::default(),
                bytes: 0,
                physical: 0,
                second: None,
                translations: Translations::default(),
            },
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
        let (arena, probes) = (&self.arena, &self.probes);
        let (by_address, crossing) = (&self.by_address, &self.crossing);
        let find = |physical| {
            if probes.contains(&physical) {
                return None;
            }
            let key = Key::new(physical, true);
            let number = *by_address.get(&key).or_else(|| crossing.get(&key))?;
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
            None => {
                let place = self.decode(cpu, rip, physical, true)?;
                match place {
                    Place::Kept(number) if self.get(place).second.is_none() => number,
                    _ => return Ok(place),
                }
            }
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
        if let Some(&number) = self.crossing.get(&Key::new(physical, cpu.long_code)) {
            return self.across(cpu, rip, number, keep);
        }
        let keep = keep && guard(cpu, physical);
        let length = if keep { LENGTH_MAX } else { 1 };
        let mut bytes = [0; BYTES_MAX];
        let on_page = (PAGE - (physical & OFFSET)) as usize;
        let window = &mut bytes[..on_page.min(BYTES_MAX)];
        if !cpu.physical.read_bytes(physical, window) {
            return Err(cpu.stop(crate::trap::Cause::Unimplemented));
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
                    return self.decode_crossing(cpu, rip, physical, &window[at..], keep);
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
            second: None,
            translations: Translations::default(),
        };
        Ok(self.place(cpu, block, keep))
    }

    /// Has `block` at hand, and found again if `keep`.
    fn place(&mut self, cpu: &Cpu, block: Block, keep: bool) -> Place {
        if !keep {
            self.alone = block;
            return Place::Alone;
        }
        Place::Kept(self.keep(cpu, block))
    }

    fn keep(&mut self, cpu: &Cpu, block: Block) -> u32 {
        if self.by_address.len() + self.crossing.len() >= BLOCKS_MAX {
            let pages: Vec<u64> = self.by_page.keys().copied().collect();
            for page in pages {
                // The page stays guarded: it is being decoded, or will be found unguarded by its next write.
                self.forget(page);
            }
            self.crossed_from.clear();
        }
        let (physical, second) = (block.physical, block.second);
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
        match second {
            None => {
                self.by_address.insert(key, number);
            }
            Some(second) => {
                self.crossing.insert(key, number);
                let from = self.crossed_from.entry(second / PAGE).or_default();
                if !from.contains(&(physical / PAGE)) {
                    from.push(physical / PAGE);
                }
            }
        }
        self.by_page
            .entry(physical / PAGE)
            .or_default()
            .push((key, number));
        number
    }

    /// Decodes the instruction at `physical` that begins with `head`, the rest of its page, and goes on in the next.
    fn decode_crossing(
        &mut self,
        cpu: &mut Cpu,
        rip: u64,
        physical: u64,
        head: &[u8],
        keep: bool,
    ) -> Result<Place, Trap> {
        let second = fetch_address(cpu, rip.wrapping_add(head.len() as u64))?;
        let mut bytes = [0; LONGEST];
        bytes[..head.len()].copy_from_slice(head);
        if !cpu.physical.read_bytes(second, &mut bytes[head.len()..]) {
            return Err(cpu.stop(crate::trap::Cause::Unimplemented));
        }
        let op = decode::decode(&bytes, 0, cpu.long_code, &self.features)
            .unwrap_or_else(|error| decode::undecodable(error, cpu.long_code))
            .op;
        // What is no instruction may end in the first page.
        let crosses = usize::from(op.len) > head.len();
        let keep = keep && crosses && is_known(cpu) && guard(cpu, second);
        let block = Block {
            ops: Box::new([op]),
            bytes: op.len.into(),
            physical,
            second: crosses.then_some(second),
            translations: Translations::default(),
        };
        Ok(self.place(cpu, block, keep))
    }

    /// The kept block `number`, whose instruction at `rip` crosses into another page, if that page is where it was;
    /// else the instruction that is there now, which is not kept.
    fn across(&mut self, cpu: &mut Cpu, rip: u64, number: u32, keep: bool) -> Result<Place, Trap> {
        let (physical, second) = {
            let block = &self.arena[number as usize];
            (block.physical, block.second)
        };
        let mut head = [0; LONGEST];
        let head = &mut head[..(PAGE - (physical & OFFSET)) as usize];
        let found = fetch_address(cpu, rip.wrapping_add(head.len() as u64))?;
        if keep && Some(found) == second && is_known(cpu) {
            return Ok(Place::Kept(number));
        }
        if !cpu.physical.read_bytes(physical, head) {
            return Err(cpu.stop(crate::trap::Cause::Unimplemented));
        }
        self.decode_crossing(cpu, rip, physical, head, false)
    }

    /// Drops the blocks that begin in physical page number `page`, and those of the pages before it if one crosses
    /// into it: host code of theirs jumps to that one's.
    fn forget(&mut self, page: u64) {
        self.forget_begun_in(page);
        for first in self.crossed_from.remove(&page).unwrap_or_default() {
            self.forget_begun_in(first);
        }
    }

    fn forget_begun_in(&mut self, page: u64) {
        for (key, number) in self.by_page.remove(&page).unwrap_or_default() {
            self.by_address.remove(&key);
            self.crossing.remove(&key);
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
        let crossed = self.crossed_from.keys();
        let pages: Vec<u64> = self.by_page.keys().chain(crossed).copied().collect();
        for page in pages {
            self.invalidate(cpu, page);
        }
    }
}

/// Has writes to the page of `physical` noticed. False if that is no RAM, or RAM whose writes are not.
fn guard(cpu: &mut Cpu, physical: u64) -> bool {
    let guarded = cpu.physical.has_code(physical);
    let can = cpu.physical.set_code(physical / PAGE, true);
    if can && !guarded {
        cpu.tlb.guard(physical & !OFFSET);
    }
    can
}

/// Whether the instruction TLB has the page of RIP. What the second page of an instruction was remembered in place of may
/// be its first, and host code that goes on in that one would not look again.
fn is_known(cpu: &Cpu) -> bool {
    cpu.tlb.code(cpu.linear_rip(), cpu.cpl == 3).is_some()
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
