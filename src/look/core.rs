//! The machine at one point of a recording as an ELF core file: `tandem replay --at POINT --core FILE`.
//!
//! ```text
//!  header │ program headers │ notes: registers, VMCOREINFO │ RAM, each byte once
//!             one for each mapping of the guest's, and one for each region of RAM: they share the bytes of RAM
//! ```
//!
//! It is what a Linux kernel dumps when it crashes (Linux, Documentation/admin-guide/kdump), read by crash, drgn and gdb.
//! Programs that know the kernel find their way by physical addresses and by VMCOREINFO, a note the kernel keeps ready
//! for that. gdb goes by the linear addresses alone, those that are mapped where the guest stands.

use super::kernel;
use super::mappings::{Mapping, mappings};
use super::travel::Travel;
use crate::failure::{During, Outcome};
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::Path;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use vmm::engine::Engine;
use vmm::memory::{GuestMemory, PAGE_BYTES};
use vmm::soft::looking::Debuggable;
use vmm::state::CpuState;

/// Sizes of the header and of a program header (ELF-64 object file format, 1.5: figures 2 and 6).
const HEADER: u64 = 64;
const PROGRAM_HEADER: u64 = 56;
const ET_CORE: u16 = 4;
const EM_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
/// Readable, writable and executable: rights are not told of.
const RIGHTS: u32 = 7;
/// A thread's registers (Linux, include/uapi/linux/elf.h).
const NT_PRSTATUS: u32 = 1;

/// The name of the kernel's note, its type, and what its text begins with (Linux, kernel/crash_core.c).
const VMCOREINFO: &[u8; 11] = b"VMCOREINFO\0";
const VMCOREINFO_TYPE: u32 = 0;
const BEGINS: &[u8] = b"OSRELEASE=";
/// Most bytes of its text: a page of the kernel's, which has not filled half of it yet.
const VMCOREINFO_MAX: usize = PAGE_BYTES as usize;

/// Bytes that are read and written at once; of that many zeros a file has none.
const PIECE: usize = 64 << 10;

/// What the kernel says of itself to whoever reads its memory: lines of `KEY=VALUE`.
pub struct VmcoreInfo(Vec<u8>);

impl VmcoreInfo {
    /// That of the kernel of the guest on `engine`, which wrote it into a page of its own in `memory`; none before it
    /// has, or if there is none in it.
    pub fn find(memory: &GuestMemory, engine: &impl Debuggable) -> Option<Self> {
        let moved = kernel::offset(engine)?;
        let mut last = None;
        for region in memory.iter() {
            for page in (0..region.len()).step_by(PAGE_BYTES as usize) {
                let at = GuestAddress(region.start_addr().0 + page);
                let Some(info) = Self::at(memory, at) else {
                    continue;
                };
                // What another kernel left there before a reboot is passed by, if it is seen to be one.
                if info
                    .number("KERNELOFFSET", 16)
                    .is_none_or(|own| own == moved)
                {
                    return Some(info);
                }
                last = Some(info);
            }
        }
        last
    }

    /// The note that begins at `at`, if one does.
    fn at(memory: &GuestMemory, at: GuestAddress) -> Option<Self> {
        let mut head = [0; 24];
        memory.read_slice(&mut head, at).ok()?;
        let word = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().expect("4 bytes"));
        let length = word(4) as usize;
        let is_one = word(0) as usize == VMCOREINFO.len()
            && word(8) == VMCOREINFO_TYPE
            && head[12..23] == *VMCOREINFO
            && (BEGINS.len()..=VMCOREINFO_MAX).contains(&length);
        if !is_one {
            return None;
        }
        let mut text = vec![0; length];
        let behind = GuestAddress(at.0 + head.len() as u64);
        memory.read_slice(&mut text, behind).ok()?;
        text.starts_with(BEGINS).then_some(Self(text))
    }

    /// The value of `key`.
    pub fn value(&self, key: &str) -> Option<&str> {
        let text = std::str::from_utf8(&self.0).ok()?;
        let mut lines = text.lines().filter_map(|line| line.split_once('='));
        lines.find_map(|(own, value)| (own == key).then_some(value))
    }

    /// The value of `key`, a number to the base `radix`.
    pub fn number(&self, key: &str, radix: u32) -> Option<u64> {
        u64::from_str_radix(self.value(key)?, radix).ok()
    }
}

/// Writes the machine where `travel` is to `path`; in words, what was written.
///
/// # Errors
/// If it cannot be written.
pub fn write(travel: &Travel, path: &Path) -> Outcome<String> {
    let (engine, memory) = (travel.engine(), travel.memory());
    let state = engine.view();
    let info = VmcoreInfo::find(memory, engine);
    let layout = Layout::new(memory, &state, info.as_ref());
    let file = File::create(path);
    let written = file.and_then(|file| layout.write(memory, file));
    written.during(format_args!("cannot write {}", path.display()))?;
    let mib = memory.iter().map(|region| region.len()).sum::<u64>() >> 20;
    let of = whose(info.as_ref());
    let cut = match layout.cut {
        true => "; more is mapped than is told of in it",
        false => "",
    };
    Ok(format!(
        "{mib} MiB of memory at clock {}, {of}: {}{cut}",
        engine.clock(),
        path.display()
    ))
}

/// Which kernel it is of, in words: the guest chose its name.
fn whose(info: Option<&VmcoreInfo>) -> String {
    match info.and_then(|info| info.value("OSRELEASE")) {
        Some(release) => format!("of Linux {}", terminal::visible(release)),
        None => "without VMCOREINFO, which the guest's memory does not have (yet): for gdb".into(),
    }
}

/// What is where in the file.
struct Layout {
    /// All before the bytes of RAM.
    head: Vec<u8>,
    /// Not all that is mapped has a program header.
    cut: bool,
}

impl Layout {
    fn new(memory: &GuestMemory, state: &CpuState, info: Option<&VmcoreInfo>) -> Self {
        let notes = notes(state, info);
        let mapped = mappings(memory, state);
        // Where all of RAM is mapped in one piece, that is told of once, of RAM itself.
        let direct = direct(&mapped.all);
        let mut loads: Vec<Mapping> = mapped.all;
        loads.retain(|mapping| Some(mapping.distance()) != direct);
        loads.extend(memory.iter().map(|region| {
            let physical = region.start_addr().0;
            Mapping {
                linear: physical.wrapping_add(direct.unwrap_or(0)),
                physical,
                len: region.len(),
            }
        }));
        let count = u16::try_from(loads.len() + 1).expect("mappings are bounded");
        let notes_at = HEADER + PROGRAM_HEADER * u64::from(count);
        let ram_at = (notes_at + notes.len() as u64).next_multiple_of(PAGE_BYTES);
        let mut head = header(count);
        head.extend(program_header(
            PT_NOTE,
            notes_at,
            Mapping {
                linear: 0,
                physical: 0,
                len: notes.len() as u64,
            },
        ));
        for load in &loads {
            let offset = ram_at + place(memory, load.physical);
            head.extend(program_header(PT_LOAD, offset, *load));
        }
        head.extend(notes);
        head.resize(ram_at as usize, 0);
        Self {
            head,
            cut: mapped.cut,
        }
    }

    fn write(&self, memory: &GuestMemory, mut file: File) -> io::Result<()> {
        file.write_all(&self.head)?;
        // What is a file is zero where nothing was written; what is a pipe has to be told.
        let seeks = file.metadata()?.is_file();
        let mut piece = vec![0; PIECE];
        for region in memory.iter() {
            let mut at = region.start_addr().0;
            let end = at + region.len();
            while at < end {
                let length = (end - at).min(PIECE as u64);
                let bytes = &mut piece[..length as usize];
                memory
                    .read_slice(bytes, GuestAddress(at))
                    .map_err(io::Error::other)?;
                if seeks && bytes.iter().all(|byte| *byte == 0) {
                    file.seek(SeekFrom::Current(length as i64))?;
                } else {
                    file.write_all(bytes)?;
                }
                at += length;
            }
        }
        if seeks {
            let length = file.stream_position()?;
            file.set_len(length)?;
        }
        Ok(())
    }
}

/// How many bytes of RAM there are before `physical`, which is RAM.
fn place(memory: &GuestMemory, physical: u64) -> u64 {
    let mut before = 0;
    for region in memory.iter() {
        let start = region.start_addr().0;
        if (start..start + region.len()).contains(&physical) {
            return before + (physical - start);
        }
        before += region.len();
    }
    before
}

/// By how much the kernel's own mapping of all RAM is away from physical addresses: Linux moves it by whole GiB
/// (arch/x86/mm/kaslr.c). It is the one by which most is mapped there.
fn direct(all: &[Mapping]) -> Option<u64> {
    const ALIGN: u64 = 1 << 30;
    const UPPER_HALF: u64 = 1 << 63;
    let mut by_distance = std::collections::BTreeMap::<u64, u64>::new();
    for mapping in all {
        let distance = mapping.distance();
        if distance >= UPPER_HALF && distance.is_multiple_of(ALIGN) {
            *by_distance.entry(distance).or_default() += mapping.len;
        }
    }
    by_distance
        .into_iter()
        .max_by_key(|(_, bytes)| *bytes)
        .map(|(distance, _)| distance)
}

fn header(program_headers: u16) -> Vec<u8> {
    // 64 bits, least byte first, version 1.
    let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
    bytes.resize(16, 0);
    bytes.extend(ET_CORE.to_le_bytes());
    bytes.extend(EM_X86_64.to_le_bytes());
    bytes.extend(1u32.to_le_bytes());
    // Entry, where program headers and section headers are, flags.
    for value in [0, HEADER, 0] {
        bytes.extend(value.to_le_bytes());
    }
    bytes.extend(0u32.to_le_bytes());
    let sizes = [
        HEADER as u16,
        PROGRAM_HEADER as u16,
        program_headers,
        0,
        0,
        0,
    ];
    bytes.extend(sizes.iter().flat_map(|value| value.to_le_bytes()));
    bytes
}

fn program_header(kind: u32, offset: u64, load: Mapping) -> Vec<u8> {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend(RIGHTS.to_le_bytes());
    for value in [offset, load.linear, load.physical, load.len, load.len, 0] {
        bytes.extend(value.to_le_bytes());
    }
    bytes
}

/// The notes: the vCPU's registers, and what the kernel says of itself.
fn notes(state: &CpuState, info: Option<&VmcoreInfo>) -> Vec<u8> {
    let mut notes = note(b"CORE\0", NT_PRSTATUS, &prstatus(state));
    if let Some(info) = info {
        notes.extend(note(VMCOREINFO, VMCOREINFO_TYPE, &info.0));
    }
    notes
}

/// A note: three lengths and numbers, name and contents, each filled up to four bytes.
fn note(name: &[u8], kind: u32, contents: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for value in [name.len() as u32, contents.len() as u32, kind] {
        bytes.extend(value.to_le_bytes());
    }
    for part in [name, contents] {
        bytes.extend(part);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

/// `struct elf_prstatus` of x86-64 (Linux, include/linux/elfcore.h; its registers: arch/x86/include/asm/user_64.h).
fn prstatus(state: &CpuState) -> Vec<u8> {
    const BYTES: usize = 336;
    const PID: usize = 32;
    const REGISTERS: usize = 112;
    let [rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp] = std::array::from_fn(|n| state.general[n]);
    let [r8, r9, r10, r11, r12, r13, r14, r15] = std::array::from_fn(|n| state.general[n + 8]);
    let [cs, ds, es, fs, gs, ss, _, _] = state.segments;
    let selector = |segment: &vmm::state::Segment| u64::from(segment.selector);
    let registers = [
        r15,
        r14,
        r13,
        r12,
        rbp,
        rbx,
        r11,
        r10,
        r9,
        r8,
        rax,
        rcx,
        rdx,
        rsi,
        rdi,
        u64::MAX, // no system call is under way
        state.rip,
        selector(&cs),
        state.rflags,
        rsp,
        selector(&ss),
        fs.base,
        gs.base,
        selector(&ds),
        selector(&es),
        selector(&fs),
        selector(&gs),
    ];
    let mut bytes = vec![0; PID];
    // The vCPU's number from 1 on, as there are no processes.
    bytes.extend(1u32.to_le_bytes());
    bytes.resize(REGISTERS, 0);
    bytes.extend(registers.iter().flat_map(|value| value.to_le_bytes()));
    bytes.resize(BYTES, 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_note_is_found_whole_or_not_at_all() {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let text = b"OSRELEASE=6.1.0\nKERNELOFFSET=1c000000\n";
        let written = note(VMCOREINFO, VMCOREINFO_TYPE, text);
        let at = GuestAddress(0x5000);
        memory.write_slice(&written, at).unwrap();
        let info = VmcoreInfo::at(&memory, at).expect("it is there");
        assert_eq!(info.value("OSRELEASE"), Some("6.1.0"));
        assert_eq!(info.number("KERNELOFFSET", 16), Some(0x1c00_0000));
        assert_eq!(info.value("OSRELEAS"), None);
        // A length that is not to be believed, and one that leads out of memory.
        memory
            .write_slice(&u32::MAX.to_le_bytes(), GuestAddress(0x5004))
            .unwrap();
        assert!(VmcoreInfo::at(&memory, at).is_none());
        let end = GuestAddress((1 << 20) - 32);
        memory.write_slice(&written[..32], end).unwrap();
        assert!(VmcoreInfo::at(&memory, end).is_none());
    }

    #[test]
    fn a_release_says_nothing_to_the_terminal() {
        let info = VmcoreInfo(b"OSRELEASE=6.1\x1b[2J\r\xc2\x9b1A\n".to_vec());
        assert_eq!(whose(Some(&info)), r"of Linux 6.1\u001b[2J\u000d\u009b1A");
    }

    #[test]
    fn the_direct_map_is_the_one_by_which_most_is_mapped() {
        let mapping = |linear, physical, len| Mapping {
            linear,
            physical,
            len,
        };
        let base = 0xffff_9c40_0000_0000;
        let all = [
            mapping(0x40_0000, 0x40_0000, 1 << 30),
            mapping(base, 0, 0x9_f000),
            mapping(base + 0x10_0000, 0x10_0000, 0xff0_0000),
            mapping(0xffff_ffff_9c00_0000, 0x1c00_0000, 0x200_0000),
            mapping(0xffff_ffff_c000_0000, 0, 0x1000),
        ];
        assert_eq!(direct(&all), Some(base));
        assert_eq!(direct(&all[..1]), None);
    }

    #[test]
    fn all_of_ram_is_in_the_file_once() {
        let regions = [(GuestAddress(0), 3 << 16), (GuestAddress(1 << 24), 1 << 16)];
        let memory = GuestMemory::from_ranges(&regions).unwrap();
        memory
            .write_slice(b"here", GuestAddress((1 << 24) + 5))
            .unwrap();
        let layout = Layout::new(&memory, &CpuState::default(), None);
        let mut file = tempfile::tempfile().unwrap();
        layout.write(&memory, file.try_clone().unwrap()).unwrap();
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(0)).unwrap();
        io::Read::read_to_end(&mut file, &mut bytes).unwrap();
        assert_eq!(bytes.len(), layout.head.len() + (4 << 16));
        let at = bytes.len() - (1 << 16) + 5;
        assert_eq!(bytes[at..at + 4], *b"here");
        // The program header of the second region says so, too.
        let last = HEADER + 2 * PROGRAM_HEADER + PROGRAM_HEADER;
        let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        let last = (last - PROGRAM_HEADER) as usize;
        assert_eq!(number(last + 8) + 5, at as u64);
        assert_eq!(number(last + 24), 1 << 24);
    }
}
