//! QEMU, executing one instruction after the other and printing its registers before each.

use nix::fcntl::{FcntlArg, fcntl};
use soft::cpu::{Control, Segment, Table};
use std::fmt::Display;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use vmm::cpu::CpuModel;

/// The program.
const PROGRAM: &str = "qemu-system-x86_64";
/// The first version, as major and minor number, that takes `one-insn-per-tb` instead of `-singlestep`.
const ONE_INSN_SINCE: (u32, u32) = (8, 1);
/// Nanoseconds of QEMU's time per instruction, as a power of two: its timers go by what was executed, so a
/// trace is the same however slow the reader is.
const ICOUNT: &str = "shift=3,sleep=off";
/// A machine with RAM from 0 on, and 8259, 8254, RTC and 16550 where a PC has them.
const MACHINE: &str = "microvm,pic=on,pit=on,rtc=on,isa-serial=on,acpi=off,x-option-roms=off,\
                       auto-kernel-cmdline=off,memory-backend=ram";
/// What [`CpuModel`] has with a software engine (`vmm/src/cpu.rs`), by QEMU's names.
const CPU: &str = "base,vendor=AuthenticAMD,family=15,model=6,stepping=1,level=7,xlevel=0x80000008,\
                   tcg-cpuid=off,+hypervisor,+fpu,+de,+pse,+tsc,+msr,+pae,+cx8,+sep,+pge,+mca,+cmov,\
                   +pat,+pse36,+clflush,+mmx,+fxsr,+sse,+sse2,+smep,+smap,+syscall,+nx,+lm";
const CPU_V2: &str = ",+pni,+ssse3,+cx16,+sse4.1,+sse4.2,+popcnt,+lahf-lm";

/// Bytes that may wait in the pipe: what Linux lets anybody ask for (pipe(7), pipe-max-size).
const PIPE: usize = 1 << 20;

/// What is compared after every instruction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Registers {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    pub general: [u64; 16],
    pub rip: u64,
    pub rflags: u64,
}

/// What else is: segments (ES, CS, SS, DS, FS, GS, TR, LDTR), tables, control and debug registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct System {
    pub segments: [Segment; 8],
    pub gdt: Table,
    pub idt: Table,
    pub control: Control,
    /// DR0 to DR3, DR6, DR7.
    pub debug: [u64; 6],
}

/// A QEMU under way. It ends when dropped.
pub struct Qemu {
    child: Child,
    output: BufReader<ChildStdout>,
    /// The record read last.
    record: Vec<u8>,
    /// Where its segments begin, and the segments' text of the record parsed last.
    system_at: usize,
    system_text: Vec<u8>,
    system: System,
}

/// Why there can be no QEMU here; the words of a skipped test.
pub fn missing() -> Option<String> {
    match version() {
        Ok(_) => None,
        Err(why) => Some(format!("{PROGRAM} cannot be run ({why})")),
    }
}

fn version() -> Result<(u32, u32), String> {
    let output = Command::new(PROGRAM).arg("--version").output();
    let output = output.map_err(|e| e.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut words = text.split_whitespace();
    let number = words.find(|word| *word == "version").and(words.next());
    let mut parts = number.unwrap_or_default().split('.').map(str::parse);
    match (parts.next(), parts.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Ok((major, minor)),
        _ => Err(format!("no version in: {text}")),
    }
}

impl Qemu {
    /// Starts it with the guest memory in the file `memory`, which it does not change, and the firmware in
    /// the file `bios`. It is not to print registers before instructions at `hidden`.
    pub fn start(memory: &Path, mib: u32, bios: &Path, cpu: CpuModel, hidden: &[u64]) -> Self {
        let number = version().expect("it was there before");
        let file = |path: &Path| path.to_str().expect("temporary paths are plain").to_owned();
        let mut command = Command::new(PROGRAM);
        command.args(["-nodefaults", "-no-user-config", "-display", "none"]);
        command.args(["-monitor", "none", "-serial", "null", "-no-reboot"]);
        command.args(["-M", MACHINE, "-m", &format!("{mib}M")]);
        let ram = format!(
            "memory-backend-file,id=ram,mem-path={},size={mib}M,share=off",
            file(memory)
        );
        command.args(["-object", &ram, "-bios", &file(bios)]);
        let v2 = if cpu == CpuModel::V2 { CPU_V2 } else { "" };
        let name = format!(",model-id=Tandem virtual CPU x86-64-{}", cpu.name());
        command.args(["-cpu", &format!("{CPU}{v2}{name}"), "-icount", ICOUNT]);
        if number < ONE_INSN_SINCE {
            command.args(["-accel", "tcg", "-singlestep"]);
        } else {
            command.args(["-accel", "tcg,one-insn-per-tb=on"]);
        }
        // To the pipe, which QEMU opens anew as a file with a buffer.
        command.args(["-d", "cpu,nochain", "-D", "/dev/stdout"]);
        command.args(["-dfilter", &all_but(hidden)]);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("QEMU starts");
        let output = child.stdout.take().expect("it is piped");
        // Fewer turns between the two processes; a smaller pipe is only slower.
        let _ = fcntl(&output, FcntlArg::F_SETPIPE_SZ(PIPE as i32));
        Self {
            child,
            output: BufReader::with_capacity(PIPE, output),
            record: Vec::with_capacity(4096),
            system_at: 0,
            system_text: Vec::new(),
            system: System::default(),
        }
    }

    /// Leads it to the 64-bit instruction at `rip`.
    ///
    /// # Errors
    /// If QEMU ended, or prints something else.
    pub fn lead_to(&mut self, rip: u64) -> Result<Registers, String> {
        loop {
            self.read_record()?;
            if self.record.starts_with(b"RAX=") {
                let registers = self.registers()?;
                if registers.rip == rip {
                    return Ok(registers);
                }
            }
        }
    }

    /// The registers before the next instruction.
    ///
    /// # Errors
    /// If QEMU ended, prints something else, or leaves 64-bit code.
    pub fn next(&mut self) -> Result<Registers, String> {
        self.read_record()?;
        self.registers()
    }

    /// The rest of what it printed with the registers that [`Qemu::next`] returned last.
    ///
    /// # Errors
    /// If it is something else.
    pub fn system(&mut self) -> Result<&System, String> {
        let text = &self.record[self.system_at..];
        // The lines CCS, CCD, CCO, which say how QEMU keeps its flags, differ with each record.
        let text = &text[..find(text, b"CCS=").unwrap_or(text.len())];
        let efer = &self.record[self.record.len().saturating_sub(EFER_LINE)..];
        if self.system_text.as_slice() != text
            || self.system.control.efer != hex(efer, 5, 16).unwrap_or(0)
        {
            self.system = System::parse(text, efer).ok_or_else(|| self.odd(&"system registers"))?;
            self.system_text = self.record[self.system_at..][..text.len()].to_vec();
        }
        Ok(&self.system)
    }

    fn odd(&self, what: &dyn Display) -> String {
        format!(
            "no {what} in QEMU's output:\n{}",
            String::from_utf8_lossy(&self.record)
        )
    }

    /// Reads up to the end of a record: the line with EFER.
    fn read_record(&mut self) -> Result<(), String> {
        self.record.clear();
        loop {
            let begin = self.record.len();
            let read = self.output.read_until(b'\n', &mut self.record);
            if read.map_err(|e| format!("QEMU's output cannot be read: {e}"))? == 0 {
                return Err("QEMU ended".into());
            }
            let line = &self.record[begin..];
            if line.starts_with(b"RAX=") || line.starts_with(b"EAX=") {
                self.record.drain(..begin);
            } else if line.starts_with(b"ES =") {
                self.system_at = begin;
            } else if line.starts_with(b"EFER=") {
                return Ok(());
            }
        }
    }

    fn registers(&self) -> Result<Registers, String> {
        let registers = if self.record.starts_with(b"RAX=") {
            self.parse_registers()
        } else {
            None
        };
        registers.ok_or_else(|| self.odd(&"registers of 64-bit code"))
    }

    fn parse_registers(&self) -> Option<Registers> {
        /// Lines of four registers, as [`Registers::general`] numbers them.
        const LINES: [usize; 16] = [0, 3, 1, 2, 6, 7, 5, 4, 8, 9, 10, 11, 12, 13, 14, 15];
        /// Bytes of `RAX=0123456789abcdef `, the last of which may be a line break.
        const FIELD: usize = 21;
        let mut general = [0; 16];
        for (field, register) in LINES.into_iter().enumerate() {
            general[register] = hex(&self.record, field * FIELD + 4, 16)?;
        }
        Some(Registers {
            general,
            rip: hex(&self.record, 16 * FIELD + 4, 16)?,
            rflags: hex(&self.record, 17 * FIELD + 4, 8)?,
        })
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Bytes of `EFER=0123456789abcdef` and its line break.
const EFER_LINE: usize = 22;

impl System {
    fn parse(text: &[u8], efer: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        let mut lines = text.lines();
        let mut segments = [Segment::default(); 8];
        // LDT comes before TR.
        for n in [0, 1, 2, 3, 4, 5, 7, 6] {
            segments[n] = segment(lines.next()?)?;
        }
        let mut table = |name: &str| {
            let mut words = lines.next()?.strip_prefix(name)?.split_whitespace();
            Some(Table {
                base: number(words.next()?)?,
                limit: u16::try_from(number(words.next()?)?).ok()?,
            })
        };
        let (gdt, idt) = (table("GDT=")?, table("IDT=")?);
        let values = lines
            .flat_map(str::split_whitespace)
            .map(|word| number(word.split_once('=')?.1));
        let values: Vec<u64> = values.collect::<Option<_>>()?;
        let [cr0, cr2, cr3, cr4, debug @ ..] = values.as_slice() else {
            return None;
        };
        Some(Self {
            segments,
            gdt,
            idt,
            control: Control {
                cr0: *cr0,
                cr2: *cr2,
                cr3: *cr3,
                cr4: *cr4,
                cr8: 0,
                efer: hex(efer, 5, 16)?,
            },
            debug: debug.try_into().ok()?,
        })
    }
}

/// All addresses but `hidden`, as QEMU's ranges: both ends belong to them.
fn all_but(hidden: &[u64]) -> String {
    let mut hidden = hidden.to_vec();
    hidden.sort_unstable();
    let mut ranges = Vec::new();
    let mut from = 0;
    for address in hidden {
        if from < address {
            ranges.push(format!("{from:#x}..{:#x}", address - 1));
        }
        from = address + 1;
    }
    ranges.push(format!("{from:#x}..{:#x}", u64::MAX - 1));
    ranges.join(",")
}

/// A line as `CS =0010 0000000000000000 ffffffff 00af9b00 DPL=0 CS64 [-RA]`.
fn segment(line: &str) -> Option<Segment> {
    let mut words = line.split_once('=')?.1.split_whitespace();
    let mut next = || number(words.next()?);
    let (selector, base, limit, flags) = (next()?, next()?, next()?, next()?);
    Some(Segment {
        base,
        limit: u32::try_from(limit).ok()?,
        selector: u16::try_from(selector).ok()?,
        // The descriptor's second word: bits 8-15 and 20-23.
        attributes: (flags >> 8 & 0xff | (flags >> 20 & 0xf) << 8) as u16,
    })
}

fn number(text: &str) -> Option<u64> {
    u64::from_str_radix(text, 16).ok()
}

/// The hexadecimal number of `digits` digits at `at`.
fn hex(text: &[u8], at: usize, digits: usize) -> Option<u64> {
    text.get(at..at + digits)?
        .iter()
        .try_fold(0, |value, digit| {
            let digit = char::from(*digit).to_digit(16)?;
            Some(value << 4 | u64::from(digit))
        })
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|window| window == what)
}
