//! A guest with descriptor tables: every vector leads to a halt, unless a test says otherwise.
//!
//! Tests alone depend on it: those of the processor and those of what saves its state.

use iced_x86::code_asm::CodeAssembler;
use soft::Exit;
use soft::cpu::{Segment, Table, segment};
use soft::op::slot;
use soft::testing::{CODE, Machine};

/// Where the global descriptor table is.
pub const GDT: u64 = 0x8000;
/// Where the interrupt descriptor table is.
pub const IDT: u64 = 0x9000;
/// One halt for each vector, 16 bytes apart.
pub const HALTS: u64 = 0xa000;
/// Where the task state segment is.
pub const TSS: u64 = 0xb000;
/// The stack for ring 0 that the task state segment names.
pub const RSP0: u64 = 0x11_0000;
/// The first stack of the interrupt stack table.
pub const IST1: u64 = 0x12_0008;
/// The second.
pub const IST2: u64 = 0x13_0000;

/// Selector of 64-bit code in ring 0.
pub const KERNEL_CODE: u16 = 0x08;
/// Selector of data in ring 0.
pub const KERNEL_DATA: u16 = 0x10;
/// Selector of 32-bit code in ring 3.
pub const USER_CODE32: u16 = 0x1b;
/// Selector of data in ring 3.
pub const USER_DATA: u16 = 0x23;
/// Selector of 64-bit code in ring 3.
pub const USER_CODE: u16 = 0x2b;
/// Selector of the task state segment.
pub const TSS_SELECTOR: u16 = 0x30;
/// Descriptors a test may write.
pub const FREE: u16 = 0x40;

/// Descriptor of 64-bit code in ring 0.
pub const CODE64: u64 = 0x00af_9b00_0000_ffff;
/// Descriptor of 32-bit code in ring 0.
pub const CODE32: u64 = 0x00cf_9b00_0000_ffff;
/// Descriptor of data in ring 0.
pub const DATA64: u64 = 0x00cf_9300_0000_ffff;
/// Makes a descriptor one of ring 3.
pub const DPL3: u64 = 3 << 45;

/// What a handler finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The vector.
    pub vector: u64,
    /// The error code, where the vector has one.
    pub error: Option<u64>,
    /// Where it was interrupted, or what did it.
    pub rip: u64,
    /// The code segment there.
    pub cs: u64,
    /// The flags there.
    pub rflags: u64,
    /// The stack pointer there.
    pub rsp: u64,
    /// The stack segment there.
    pub ss: u64,
}

/// A processor with tables, and a program it is about to run.
pub struct Guest {
    /// The processor and its memory.
    pub machine: Machine,
}

/// The bytes of a program at `address`.
pub fn assemble(bitness: u32, address: u64, body: impl FnOnce(&mut CodeAssembler)) -> Vec<u8> {
    let mut a = CodeAssembler::new(bitness).unwrap();
    body(&mut a);
    a.assemble(address).unwrap()
}

impl Guest {
    /// A guest in ring 0 or 3 about to run a program at [`CODE`].
    pub fn new(ring: u8, body: impl FnOnce(&mut CodeAssembler)) -> Self {
        Self::of(ring, &assemble(64, CODE, body))
    }

    /// As [`Guest::new`], with the program's bytes.
    pub fn of(ring: u8, code: &[u8]) -> Self {
        let mut guest = Self {
            machine: Machine::new(code, ring),
        };
        let gdt = [
            0,
            CODE64,
            DATA64,
            CODE32 | DPL3,
            DATA64 | DPL3,
            CODE64 | DPL3,
            0x67 | TSS << 16 | 0x8b << 40,
            0,
        ];
        for (n, descriptor) in gdt.into_iter().enumerate() {
            guest.write(GDT + n as u64 * 8, descriptor);
        }
        for vector in 0..256 {
            guest.gate(vector, HALTS + vector * 16, 0, 0xe, 0);
            guest.bytes(HALTS + vector * 16, &[0xf4]);
        }
        guest.write(TSS + 4, RSP0);
        // No I/O map.
        guest.write(TSS + 0x60, 0xffff << 48);
        guest.write(TSS + 0x24, IST1);
        guest.write(TSS + 0x2c, IST2);
        let cpu = &mut guest.machine.soft.cpu;
        cpu.gdt = Table {
            base: GDT,
            limit: 0x7f,
        };
        cpu.idt = Table {
            base: IDT,
            limit: 0xfff,
        };
        let (code, data) = match ring {
            0 => (KERNEL_CODE, KERNEL_DATA),
            _ => (USER_CODE, USER_DATA),
        };
        for register in 0..6 {
            cpu.segments[register].selector = data;
        }
        cpu.segments[segment::CS].selector = code;
        cpu.segments[segment::TR] = Segment {
            base: TSS,
            limit: 0x67,
            selector: TSS_SELECTOR,
            attributes: 0x8b,
        };
        cpu.segments[segment::LDTR].attributes = 1 << 12;
        cpu.msrs.star = u64::from(USER_CODE32) << 48 | u64::from(KERNEL_CODE) << 32;
        guest
    }

    /// Points `vector` somewhere: stack table entry `ist`, type `kind`, privilege `dpl`.
    pub fn gate(&mut self, vector: u64, entry: u64, ist: u64, kind: u64, dpl: u64) {
        let low = entry & 0xffff
            | u64::from(KERNEL_CODE) << 16
            | ist << 32
            | kind << 40
            | dpl << 45
            | 1 << 47
            | (entry >> 16 & 0xffff) << 48;
        self.write(IDT + vector * 16, low);
        self.write(IDT + vector * 16 + 8, entry >> 32);
    }

    /// Lets ring 3 use `vector`.
    pub fn open_gate(&mut self, vector: u64) {
        self.gate(vector, HALTS + vector * 16, 0, 0xe, 3);
    }

    /// Writes 8 bytes to memory.
    pub fn write(&mut self, address: u64, value: u64) {
        assert!(self.machine.soft.cpu.physical.write(address, value, 8));
        self.machine.soft.page_written(address / 4096);
    }

    /// Reads 8 bytes of memory.
    pub fn read(&self, address: u64) -> u64 {
        self.machine.soft.cpu.physical.read(address, 8).unwrap()
    }

    /// Writes bytes to memory.
    pub fn bytes(&mut self, address: u64, bytes: &[u8]) {
        for (n, byte) in bytes.iter().enumerate() {
            let at = address + n as u64;
            self.machine.soft.cpu.physical.write(at, (*byte).into(), 1);
        }
        self.machine.soft.page_written(address / 4096);
    }

    /// Writes a program to memory, of 64-bit code.
    pub fn put(&mut self, address: u64, body: impl FnOnce(&mut CodeAssembler)) {
        let bytes = assemble(64, address, body);
        self.bytes(address, &bytes);
    }

    /// A general register's value.
    pub fn reg(&self, number: u8) -> u64 {
        self.machine.soft.cpu.slot(number)
    }

    /// Gives a general register a value.
    pub fn set(&mut self, number: u8, value: u64) {
        self.machine.soft.cpu.set_slot(number, value);
    }

    /// Gives DS, ES and SS a base.
    pub fn set_base(&mut self, base: u64) {
        let cpu = &mut self.machine.soft.cpu;
        for register in [segment::DS, segment::ES, segment::SS] {
            cpu.segments[register].base = base;
        }
        cpu.refresh_mode();
    }

    /// Runs to a halt, in a program of less than a thousand instructions.
    pub fn halt(&mut self) {
        let exit = self.machine.run(1000);
        assert_eq!(exit, Exit::Halt, "at {:#x}", self.machine.soft.cpu.rip);
    }

    /// Runs to the halt of a vector.
    pub fn trap(&mut self) -> Frame {
        self.halt();
        self.frame()
    }

    /// What the handler it halts in has on its stack.
    pub fn frame(&mut self) -> Frame {
        let entry = self.machine.soft.cpu.rip;
        if (HALTS..HALTS + 0x1000).contains(&entry) && entry.is_multiple_of(16) {
            // It stands before the halt: the exception was the last to count.
            self.halt();
        }
        let at = self.machine.soft.cpu.rip - 1;
        assert!(
            (HALTS..HALTS + 0x1000).contains(&at) && at.is_multiple_of(16),
            "it halts at {at:#x}"
        );
        let vector = (at - HALTS) / 16;
        let mut rsp = self.reg(slot::RSP);
        let error = matches!(vector, 8 | 10..=14 | 17).then(|| self.read(rsp));
        rsp += if error.is_some() { 8 } else { 0 };
        let word = |n: u64| self.read(rsp + n * 8);
        Frame {
            vector,
            error,
            rip: word(0),
            cs: word(1),
            rflags: word(2),
            rsp: word(3),
            ss: word(4),
        }
    }
}
