//! Page walks: four levels, pages of 4 KiB, 2 MiB and 1 GiB (SDM volume 3, 4.5 and 4.6).

use super::{Mode, PAGE};
use crate::Cpu;
use crate::cpu::bits;

/// What an access is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intent {
    /// Data is read.
    Read,
    /// Data is written.
    Write,
    /// An instruction is fetched.
    Execute,
}

/// What a walk found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    /// Physical address.
    pub physical: u64,
    /// May be written with the same rights, and is marked dirty already.
    pub writable: bool,
    /// Kept when CR3 is written.
    pub global: bool,
    /// The page is larger than 4 KiB.
    pub large: bool,
}

/// Why a walk found nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// A page fault with this error code.
    Page(u32),
    /// An accessed or dirty bit is to be set in this page, by number, which has decoded instructions:
    /// those have to go first.
    Code(u64),
}

/// Bits of a paging entry.
mod entry {
    pub const PRESENT: u64 = 1;
    pub const WRITE: u64 = 1 << 1;
    pub const USER: u64 = 1 << 2;
    pub const ACCESSED: u64 = 1 << 5;
    pub const DIRTY: u64 = 1 << 6;
    pub const LARGE: u64 = 1 << 7;
    pub const GLOBAL: u64 = 1 << 8;
    pub const NO_EXECUTE: u64 = 1 << 63;
}

/// Bits of a page fault's error code (SDM volume 3, figure 4-12).
mod error {
    pub const PRESENT: u32 = 1;
    pub const WRITE: u32 = 1 << 1;
    pub const USER: u32 = 1 << 2;
    pub const RESERVED: u32 = 1 << 3;
    pub const FETCH: u32 = 1 << 4;
}

/// Physical address bits (CPUID 0x8000_0008).
const PHYSICAL_BITS: u32 = 40;
/// The address in a paging entry.
const ADDRESS: u64 = (1 << 52) - 4096;

/// Walks the tables for an access; sets accessed and dirty bits only if it is allowed.
/// A walk that ends early because of decoded instructions can be begun again.
pub(super) fn walk(
    cpu: &mut Cpu,
    address: u64,
    intent: Intent,
    mode: Mode,
) -> Result<Found, Fault> {
    let control = cpu.control;
    if control.cr0 & bits::CR0_PG == 0 {
        return Ok(Found {
            physical: address & 0xffff_ffff,
            writable: true,
            global: false,
            large: false,
        });
    }
    let nxe = control.efer & bits::EFER_NXE != 0;
    let code = {
        let fetch = intent == Intent::Execute && (nxe || control.cr4 & bits::CR4_SMEP != 0);
        let when = |holds: bool, bit: u32| if holds { bit } else { 0 };
        when(intent == Intent::Write, error::WRITE)
            | when(mode == Mode::User, error::USER)
            | when(fetch, error::FETCH)
    };
    let mut table = control.cr3 & ADDRESS;
    // Rights are the intersection of all levels'; no-execute is their union.
    let mut rights = entry::WRITE | entry::USER;
    let mut no_execute = 0;
    let mut path = [(0u64, 0u64); 4];
    for level in (0..4u32).rev() {
        let shift = 12 + 9 * level;
        let at = table + (address >> shift & 0x1ff) * 8;
        // Tables outside RAM read as all ones, as an empty bus does: reserved bits, a fault.
        let value = cpu.physical.read(at, 8).unwrap_or(u64::MAX);
        path[level as usize] = (at, value);
        if value & entry::PRESENT == 0 {
            return Err(Fault::Page(code));
        }
        let large = level > 0 && value & entry::LARGE != 0;
        if reserved(value, level, large, nxe) {
            return Err(Fault::Page(code | error::PRESENT | error::RESERVED));
        }
        rights &= value;
        no_execute |= value & entry::NO_EXECUTE;
        if level > 0 && !large {
            table = value & ADDRESS;
            continue;
        }
        if !allowed(cpu, rights, no_execute != 0, intent, mode) {
            return Err(Fault::Page(code | error::PRESENT));
        }
        let mut leaf = value | entry::ACCESSED;
        if intent == Intent::Write {
            leaf |= entry::DIRTY;
        }
        for &(at, value) in &path[level as usize + 1..] {
            if value & entry::ACCESSED == 0 {
                cpu.write_table(at, value | entry::ACCESSED)?;
            }
        }
        if leaf != value {
            cpu.write_table(at, leaf)?;
        }
        let inside = (1u64 << shift) - 1;
        let writable = leaf & entry::DIRTY != 0 && allowed(cpu, rights, false, Intent::Write, mode);
        return Ok(Found {
            physical: leaf & ADDRESS & !inside | address & inside,
            writable,
            global: leaf & entry::GLOBAL != 0 && control.cr4 & bits::CR4_PGE != 0,
            large: level > 0,
        });
    }
    unreachable!("the last level is a leaf")
}

/// The physical address of linear `address`, whatever the rights, for somebody who only looks: no
/// accessed bit is set, no translation used or remembered.
pub(super) fn look(cpu: &Cpu, address: u64) -> Option<u64> {
    let control = cpu.control;
    if control.cr0 & bits::CR0_PG == 0 {
        return Some(address & 0xffff_ffff);
    }
    let nxe = control.efer & bits::EFER_NXE != 0;
    let mut table = control.cr3 & ADDRESS;
    for level in (0..4u32).rev() {
        let shift = 12 + 9 * level;
        let value = cpu
            .physical
            .read(table + (address >> shift & 0x1ff) * 8, 8)?;
        let large = level > 0 && value & entry::LARGE != 0;
        if value & entry::PRESENT == 0 || reserved(value, level, large, nxe) {
            return None;
        }
        if level == 0 || large {
            let inside = (1u64 << shift) - 1;
            return Some(value & ADDRESS & !inside | address & inside);
        }
        table = value & ADDRESS;
    }
    None
}

/// Whether a present entry has a reserved bit set.
fn reserved(value: u64, level: u32, large: bool, nxe: bool) -> bool {
    let mut mask = (1u64 << 52) - (1 << PHYSICAL_BITS);
    if !nxe {
        mask |= entry::NO_EXECUTE;
    }
    match level {
        3 => mask |= entry::LARGE,
        // Bit 12 of a large page is PAT.
        2 if large => mask |= 0x3fff_e000,
        1 if large => mask |= 0x001f_e000,
        _ => {}
    }
    value & mask != 0
}

fn allowed(cpu: &Cpu, rights: u64, no_execute: bool, intent: Intent, mode: Mode) -> bool {
    let user_page = rights & entry::USER != 0;
    let writable = rights & entry::WRITE != 0;
    let control = &cpu.control;
    match (mode, intent) {
        (Mode::User, Intent::Read) => user_page,
        (Mode::User, Intent::Write) => user_page && writable,
        (Mode::User, Intent::Execute) => user_page && !no_execute,
        (_, Intent::Execute) => {
            let barred = user_page && control.cr4 & bits::CR4_SMEP != 0;
            !no_execute && !barred
        }
        (Mode::SupervisorStrict, _) if user_page => false,
        (_, Intent::Read) => true,
        (_, Intent::Write) => writable || control.cr0 & bits::CR0_WP == 0,
    }
}

impl Cpu {
    /// Sets bits in a paging entry, unless its page has decoded instructions.
    fn write_table(&mut self, at: u64, value: u64) -> Result<(), Fault> {
        if self.physical.has_code(at) {
            return Err(Fault::Code(at / PAGE));
        }
        self.physical.write(at, value, 8);
        self.wrote(at);
        Ok(())
    }
}
