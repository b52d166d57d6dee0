//! What is known of the guest's kernel: symbols, callers, tasks, the names of system calls. It is found out while the
//! guest runs, as soon as the kernel is there.

use super::btf::{self, Btf};
use super::memory::Look;
use super::symbols::{Linked, Symbols, kallsyms};
use super::unwind::Unwinder;
use crate::failure::Outcome;
use crate::look::core::VmcoreInfo;
use crate::look::kernel::offset;
use std::collections::{HashMap, HashSet};
use vmm::memory::GuestMemory;
use vmm::soft::looking::Debuggable;
use vmm::state::CpuState;

/// Where a task's members are.
struct TaskLayout {
    comm: u64,
    pid: u64,
}

/// Where a module's members are, those of its symbols, and of an ELF symbol.
struct ModuleLayout {
    list: u64,
    kallsyms: u64,
    symtab: u64,
    count: u64,
    strtab: u64,
    name: u64,
    orcs: [u64; 3],
    /// Where its code is: its address, and how long it is.
    code: [u64; 2],
}

/// A task, as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// Its number.
    pub pid: u32,
    /// Its name.
    pub name: String,
}

/// What may still be taken of modules. It is never given back: the guest says how many there are, and may put others in
/// their place for as long as it runs.
struct Room {
    modules: usize,
    name_bytes: u64,
    looks: u64,
    /// Something was not taken.
    reached: bool,
}

impl Room {
    fn new() -> Self {
        Self {
            modules: MODULES_MAX,
            name_bytes: MODULE_NAMES_MAX,
            looks: MODULE_LOOKS_MAX,
            reached: false,
        }
    }

    /// Takes `more` of `left`, if there is as much.
    fn take(left: &mut u64, more: u64, reached: &mut bool) -> Option<()> {
        let rest = left.checked_sub(more);
        *reached |= rest.is_none();
        *left = rest?;
        Some(())
    }
}

/// The guest's kernel.
pub struct Kernel {
    /// Its symbols.
    pub symbols: Symbols,
    unwinder: Option<Unwinder>,
    tasks: Option<TaskLayout>,
    modules: Option<ModuleLayout>,
    known_modules: HashSet<u64>,
    room: Room,
    calls: Vec<u64>,
    names: HashMap<u32, String>,
    /// What one calls `__switch_to` with.
    pub switch: Option<u64>,
}

/// Code of modules (Linux, Documentation/arch/x86/x86_64/mm.rst).
const MODULES: std::ops::Range<u64> = 0xffff_ffff_a000_0000..0xffff_ffff_ff00_0000;
/// Most modules in the kernel's list, symbols of one, and system calls.
const MODULES_MAX: usize = 1024;
const MODULE_SYMBOLS_MAX: u64 = 1 << 16;
const CALLS_MAX: u32 = 1024;
/// Most bytes of all names of modules' functions, and most symbols that are looked through for them: a module without
/// functions is looked through again. A hundred of Debian's modules have 1 MiB of names, of 60,000 symbols.
const MODULE_NAMES_MAX: u64 = 64 << 20;
const MODULE_LOOKS_MAX: u64 = 1 << 24;
/// Bytes of a task's name (include/linux/sched.h: `TASK_COMM_LEN`), most of a symbol's.
const COMM: usize = 16;
const NAME: usize = 512;

impl Kernel {
    /// The kernel of the guest on `engine`, with symbols from `linked`, or else out of `memory`; none if they are not
    /// there (yet).
    ///
    /// # Errors
    /// If `linked` is of another kernel.
    pub fn find(
        look: &impl Look,
        engine: &impl Debuggable,
        memory: &GuestMemory,
        linked: Option<&Linked>,
    ) -> Outcome<Option<Self>> {
        let symbols = match (linked, offset(engine)) {
            (_, None) => return Ok(None),
            (Some(linked), Some(moved)) => linked.of_guest(look, moved)?,
            (None, Some(_)) => {
                let info = VmcoreInfo::find(memory, engine);
                match info.and_then(|info| kallsyms(look, &info)) {
                    Some(symbols) => symbols,
                    None => return Ok(None),
                }
            }
        };
        Ok(Some(Self::of(look, symbols)))
    }

    fn of(look: &impl Look, symbols: Symbols) -> Self {
        let banner = symbols.address("linux_banner");
        let version = banner.and_then(|at| version(&look.text(at, NAME)));
        let range = |begin, end| {
            let begin = symbols.address(begin)?;
            let length = symbols.address(end)?.checked_sub(begin)?;
            Some((begin, length))
        };
        let btf = range("__start_BTF", "__stop_BTF")
            .filter(|(_, length)| *length <= btf::BYTES_MAX)
            .and_then(|(begin, length)| Btf::parse(look.bytes(begin, length as usize)?));
        let tasks = btf.as_ref().and_then(|btf| {
            Some(TaskLayout {
                comm: btf.offset("task_struct", "comm")?,
                pid: btf.offset("task_struct", "pid")?,
            })
        });
        let modules = btf.as_ref().and_then(ModuleLayout::of);
        let unwinder = version.and_then(|version| Unwinder::of(look, &symbols, version));
        let table = symbols.address("sys_call_table");
        let calls = table.map_or(Vec::new(), |table| {
            let entry = |n: u32| look.u64(table.wrapping_add(8 * u64::from(n)));
            (0..CALLS_MAX).map_while(entry).collect()
        });
        Self {
            switch: symbols.address("__switch_to").filter(|_| tasks.is_some()),
            unwinder,
            tasks,
            modules,
            known_modules: HashSet::new(),
            room: Room::new(),
            calls,
            names: HashMap::new(),
            symbols,
        }
    }

    /// What is not known of it, in words.
    pub fn lacks(&self) -> Option<&'static str> {
        if self.tasks.is_none() {
            return Some(
                "the kernel has no BTF: tasks have no names, and their switches are not seen",
            );
        }
        if self.room.reached {
            return Some(
                "the kernel has, or had, more in modules than is read: not all functions and callers are known",
            );
        }
        self.unwinder
            .is_none()
            .then_some("the kernel has no ORC tables: callers are not known")
    }

    /// Which task is at `address`.
    pub fn task(&self, look: &impl Look, address: u64) -> Option<Task> {
        let layout = self.tasks.as_ref()?;
        Some(Task {
            pid: look.u32(address.wrapping_add(layout.pid))?,
            name: look.text(address.wrapping_add(layout.comm), COMM),
        })
    }

    /// The task that runs, as the kernel has it in a variable of the one vCPU.
    pub fn current(&self, look: &impl Look) -> Option<u64> {
        let area = look.u64(self.symbols.address("__per_cpu_offset")?)?;
        // Linux 6.2 to 6.14 has it first among others.
        let at = self.symbols.address("current_task");
        let at = at.or_else(|| self.symbols.address("pcpu_hot"))?;
        look.u64(area.wrapping_add(at))
    }

    /// The name of system call `number`: of its function in the kernel's own table.
    pub fn call(&mut self, number: u32) -> &str {
        let (calls, symbols) = (&self.calls, &self.symbols);
        self.names.entry(number).or_insert_with(|| {
            let at = calls.get(number as usize);
            let name = at.and_then(|at| symbols.name(*at)).unwrap_or_default();
            let plain = name.strip_prefix("__x64_sys_");
            match plain.or_else(|| name.strip_prefix("__ia32_sys_")) {
                // What is not there is all one function.
                Some("ni_syscall") | None => format!("system call {number}"),
                Some(plain) => plain.to_owned(),
            }
        })
    }

    /// Addresses in the functions the kernel is in, the innermost first.
    pub fn callers(&mut self, look: &impl Look, state: &CpuState) -> Vec<u64> {
        self.load_modules(look, state.rip);
        let Some(unwinder) = &self.unwinder else {
            return vec![state.rip];
        };
        let frames = unwinder.callers(look, state);
        match frames.iter().find(|at| self.is_new(**at)).copied() {
            None => frames,
            Some(at) => {
                self.load_modules(look, at);
                let unwinder = self.unwinder.as_ref().expect("it was there");
                unwinder.callers(look, state)
            }
        }
    }

    /// Whether `address` is in a module that is not known.
    fn is_new(&self, address: u64) -> bool {
        MODULES.contains(&address) && self.symbols.name(address).is_none()
    }

    /// Finds out about modules, if `address` is in one that is not known.
    fn load_modules(&mut self, look: &impl Look, address: u64) {
        if !self.is_new(address) {
            return;
        }
        let Some(layout) = &self.modules else { return };
        let Some(head) = self.symbols.address("modules") else {
            return;
        };
        let mut at = look.u64(head);
        for _ in 0..MODULES_MAX {
            let Some(list) = at.filter(|at| *at != head) else {
                break;
            };
            let module = list.wrapping_sub(layout.list);
            let is_new = !self.known_modules.contains(&module);
            if is_new && self.room.modules == 0 {
                self.room.reached = true;
                break;
            }
            if is_new
                && let Some(symbols) = layout.symbols(look, module, &mut self.room)
                && let (Some((first, _)), Some((last, _))) = (symbols.first(), symbols.last())
            {
                let code = *first..last + (1 << 12);
                self.known_modules.insert(module);
                self.room.modules -= 1;
                if let (Some(unwinder), Some(tables)) =
                    (&mut self.unwinder, layout.tables(look, module))
                {
                    self.room.reached |= !unwinder.add(look, code, tables);
                }
                self.symbols.extend(symbols);
            }
            at = look.u64(list);
        }
    }
}

impl ModuleLayout {
    fn of(btf: &Btf) -> Option<Self> {
        let of = |member| btf.offset("module", member);
        let kallsyms = |member| btf.offset("mod_kallsyms", member);
        let arch = of("arch")?;
        let orc = |member| Some(arch + btf.offset("mod_arch_specific", member)?);
        Some(Self {
            list: of("list")?,
            kallsyms: of("kallsyms")?,
            name: of("name")?,
            code: Self::code(btf)?,
            symtab: kallsyms("symtab")?,
            count: kallsyms("num_symtab")?,
            strtab: kallsyms("strtab")?,
            orcs: [orc("orc_unwind_ip")?, orc("orc_unwind")?, orc("num_orcs")?],
        })
    }

    /// Where a module says its code is: what it needs only at its begin is elsewhere, and is gone later.
    fn code(btf: &Btf) -> Option<[u64; 2]> {
        let of = |layout: &str, member: &str, length: &str| {
            let own = btf.offset("module", member)?;
            let base = own + btf.offset(layout, "base")?;
            Some([base, own + btf.offset(layout, length)?])
        };
        // Since Linux 6.4 each kind of memory is told of by itself, code first.
        let newer = of("module_memory", "mem", "size");
        newer.or_else(|| of("module_layout", "core_layout", "text_size"))
    }

    /// The functions of `module`, rising; each with the module's name. None if there is no `room` for them.
    fn symbols(
        &self,
        look: &impl Look,
        module: u64,
        room: &mut Room,
    ) -> Option<Vec<(u64, String)>> {
        /// Bytes of an ELF symbol; its type is that of a function.
        const SYMBOL: usize = 24;
        const FUNCTION: u8 = 2;
        let own = look.text(module.wrapping_add(self.name), 56);
        let kallsyms = look.u64(module.wrapping_add(self.kallsyms))?;
        let count = u64::from(look.u32(kallsyms.wrapping_add(self.count))?);
        if count > MODULE_SYMBOLS_MAX {
            room.reached = true;
            return None;
        }
        Room::take(&mut room.looks, count, &mut room.reached)?;
        let strings = look.u64(kallsyms.wrapping_add(self.strtab))?;
        let table = look.bytes(
            look.u64(kallsyms.wrapping_add(self.symtab))?,
            count as usize * SYMBOL,
        )?;
        let base = look.u64(module.wrapping_add(self.code[0]))?;
        let length = u64::from(look.u32(module.wrapping_add(self.code[1]))?);
        let code = base..base.checked_add(length)?;
        let mut symbols = Vec::new();
        for symbol in table.as_chunks::<SYMBOL>().0 {
            let number = |at: usize, length: usize| {
                let bytes = symbol[at..at + length].iter().rev();
                bytes.fold(0, |value, byte| value << 8 | u64::from(*byte))
            };
            let at = number(8, 8);
            // The kernel keeps a letter, as `nm` has them, or the type, by its version.
            let is_code = symbol[4] & 15 == FUNCTION || matches!(symbol[4], b't' | b'T');
            if is_code && MODULES.contains(&at) && code.contains(&at) {
                let name = look.text(strings.wrapping_add(number(0, 4)), NAME);
                let name = format!("{name} [{own}]");
                Room::take(&mut room.name_bytes, name.len() as u64, &mut room.reached)?;
                symbols.push((at, name));
            }
        }
        symbols.sort();
        Some(symbols)
    }

    fn tables(&self, look: &impl Look, module: u64) -> Option<(u64, u64, u64)> {
        let [addresses, entries, count] = self.orcs;
        let count = look.u32(module.wrapping_add(count))?.into();
        Some((
            look.u64(module.wrapping_add(addresses))?,
            look.u64(module.wrapping_add(entries))?,
            count,
        ))
    }
}

/// Major and minor number in a banner.
fn version(banner: &str) -> Option<(u32, u32)> {
    let mut numbers = banner
        .strip_prefix("Linux version ")?
        .split(['.', '-', ' ', '+']);
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::super::memory::tests::Flat;
    use super::*;

    const BASE: u64 = MODULES.start;
    const LAYOUT: ModuleLayout = ModuleLayout {
        list: 0,
        name: 0x10,
        kallsyms: 0x48,
        code: [0x50, 0x58],
        orcs: [0x60, 0x68, 0x70],
        symtab: 0,
        count: 8,
        strtab: 0x10,
    };

    /// A kernel that reads modules, and a memory that has `count` of them, each with one function: `run`.
    fn with_modules(count: u64) -> (Kernel, Flat) {
        let mut memory = Flat::new(BASE, 0x10000);
        let mut put = |at: u64, value: u64| memory.put(BASE + at, &value.to_le_bytes());
        let module = |n: u64| 0x100 * (n + 1);
        put(0, BASE + module(0));
        for n in 0..count {
            let at = module(n);
            let next = if n + 1 < count { module(n + 1) } else { 0 };
            put(at, BASE + next);
            put(at + 0x10, u64::from(b'm'));
            put(at + 0x48, BASE + at + 0x80);
            put(at + 0x50, BASE + 0x8000 + 0x100 * n);
            put(at + 0x58, 0x100);
            // `mod_kallsyms`, then the one symbol: a name, and the type of a function; where it is.
            put(at + 0x80, BASE + at + 0xa0);
            put(at + 0x88, 1);
            put(at + 0x90, BASE + at + 0xc0);
            put(at + 0xa0, 2 << 32);
            put(at + 0xa8, BASE + 0x8000 + 0x100 * n);
            put(at + 0xc0, u64::from_le_bytes(*b"run\0\0\0\0\0"));
        }
        let mut kernel = Kernel::of(&memory, Symbols::default());
        kernel.symbols = Symbols::of_map(&format!("{BASE:016x} D modules\n"));
        kernel.modules = Some(LAYOUT);
        kernel.tasks = Some(TaskLayout { comm: 0, pid: 0 });
        kernel.unwinder = Some(Unwinder::empty());
        (kernel, memory)
    }

    /// How many of 8 modules are known after many looks, where there is `room` for them; and whether that is told.
    fn known_of_eight(room: Room) -> (usize, bool) {
        let (mut kernel, memory) = with_modules(8);
        kernel.room = room;
        let there = BASE + 0x4000;
        for _ in 0..20 {
            kernel.load_modules(&memory, there);
        }
        assert_eq!(kernel.symbols.name(BASE + 0x8000), Some("run [m]"));
        let known = kernel.known_modules.len();
        let told = kernel
            .lacks()
            .is_some_and(|lacks| lacks.contains("modules"));
        (known, told)
    }

    #[test]
    fn all_modules_that_ever_were_are_bounded_together_and_it_is_told() {
        assert_eq!(known_of_eight(Room::new()), (8, false));
        let modules = Room {
            modules: 5,
            ..Room::new()
        };
        assert_eq!(known_of_eight(modules), (5, true));
        let names = Room {
            name_bytes: 3 * "run [m]".len() as u64 + 1,
            ..Room::new()
        };
        assert_eq!(known_of_eight(names), (3, true));
        let looks = Room {
            looks: 4,
            ..Room::new()
        };
        assert_eq!(known_of_eight(looks), (4, true));
    }

    #[test]
    fn tables_of_a_module_that_are_too_many_are_told_of() {
        let (mut kernel, mut memory) = with_modules(1);
        memory.put(BASE + 0x100 + 0x70, &u32::MAX.to_le_bytes());
        kernel.load_modules(&memory, BASE + 0x4000);
        assert_eq!(kernel.known_modules.len(), 1);
        assert!(
            kernel
                .lacks()
                .is_some_and(|lacks| lacks.contains("modules"))
        );
    }

    #[test]
    fn versions_are_read_from_the_banner() {
        assert_eq!(
            version("Linux version 6.1.0-57-cloud-amd64 (x)"),
            Some((6, 1))
        );
        assert_eq!(version("Linux version 6.12+deb13 (x)"), Some((6, 12)));
        assert_eq!(version("Linux"), None);
    }
}
