//! A bare processor to test instructions on: long mode, low 4 GiB mapped one to one, code at
//! [`CODE`], a stack below [`STACK`].

use crate::cpu::{Segment, bits, segment};
use crate::memory::{Physical, Region};
use crate::model::{Leaf, Model};
use crate::op::slot;
use crate::{Exit, Soft};
use std::sync::atomic::AtomicBool;

/// Where code is put.
pub const CODE: u64 = 0x10_0000;
/// Top of the stack.
pub const STACK: u64 = 0x20_0000;
/// A place for data.
pub const DATA: u64 = 0x30_0000;
/// If the environment has this, [`Machine`]s translate all they run, and at once: so every test of single
/// instructions is one of the translator, too.
pub const TRANSLATED: &str = "TANDEM_TEST_TRANSLATED";
/// Bytes of RAM.
pub const MEMORY: usize = 16 << 20;

/// A processor with everything x86-64-v2 has, TSC, SMEP and SMAP.
#[must_use]
pub fn model() -> Model {
    let leaf = |function, registers| Leaf {
        function,
        index: 0,
        registers,
    };
    Model::new(vec![
        leaf(0, [7, 0x6874_7541, 0x444d_4163, 0x6974_6e65]),
        leaf(1, [0x0f61, 0x0001_0800, 0x8098_2201, 0x078b_bbff]),
        leaf(7, [0, 1 << 7 | 1 << 20, 0, 0]),
        leaf(0x8000_0000, [0x8000_0008, 0, 0, 0]),
        leaf(0x8000_0001, [0x0f61, 0, 1, 1 << 11 | 1 << 20 | 1 << 29]),
        leaf(0x8000_0008, [0x3028, 0, 0, 0]),
    ])
}

/// A processor and its memory.
pub struct Machine {
    /// The processor.
    pub soft: Soft,
    /// Its RAM, aligned as a region has to be.
    _memory: Box<[u128]>,
}

impl Machine {
    /// A processor in ring `ring` about to run `code`.
    #[must_use]
    pub fn new(code: &[u8], ring: u8) -> Self {
        let mut memory = vec![0u128; MEMORY / 16].into_boxed_slice();
        let host = memory.as_mut_ptr().cast();
        // SAFETY: the box is never resized or touched while the processor, which goes with it, exists.
        let region = unsafe { Region::new(0, MEMORY as u64, host) };
        let mut soft = Soft::new(Physical::new(vec![region]), model());
        if std::env::var_os(TRANSLATED).is_some() {
            soft.translate(crate::CODE_MEMORY)
                .expect("code can be run here");
            soft.warm(1);
        }
        let cpu = &mut soft.cpu;
        // PML4 at 0x1000, PDPT at 0x2000, directories at 0x3000 to 0x6fff; present, writable, user.
        cpu.physical.write(0x1000, 0x2007, 8);
        for gib in 0..4u64 {
            cpu.physical
                .write(0x2000 + gib * 8, (0x3000 + gib * 0x1000) | 7, 8);
            for page in 0..512u64 {
                let at = 0x3000 + gib * 0x1000 + page * 8;
                cpu.physical.write(at, gib << 30 | page << 21 | 0x87, 8);
            }
        }
        for (n, byte) in code.iter().enumerate() {
            cpu.physical.write(CODE + n as u64, u64::from(*byte), 1);
        }
        cpu.control.cr0 = 0x8001_0033;
        cpu.control.cr3 = 0x1000;
        cpu.control.cr4 = bits::CR4_PAE | bits::CR4_OSFXSR | bits::CR4_OSXMMEXCPT;
        cpu.control.efer = bits::EFER_LME | bits::EFER_LMA | bits::EFER_NXE | bits::EFER_SCE;
        let dpl = u16::from(ring) << 5;
        let code = Segment {
            limit: u32::MAX,
            selector: 8 | u16::from(ring),
            attributes: 0xa9b | dpl,
            ..Default::default()
        };
        let data = Segment {
            limit: u32::MAX,
            selector: 16 | u16::from(ring),
            attributes: 0xc93 | dpl,
            ..Default::default()
        };
        cpu.segments = [data; 8];
        cpu.segments[segment::CS] = code;
        cpu.cpl = ring;
        cpu.rip = CODE;
        cpu.set_slot(slot::RSP, STACK);
        cpu.set_rflags(0);
        Self {
            soft,
            _memory: memory,
        }
    }

    /// Runs `count` more instructions, or to an exit.
    pub fn run(&mut self, count: u64) -> Exit {
        let until = self.soft.cpu.clock + count;
        self.soft.run(until, false, &AtomicBool::new(false))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::code_asm::{CodeAssembler, eax, ecx, rsp};

    #[test]
    fn a_loop_counts_exactly() {
        let mut a = CodeAssembler::new(64).unwrap();
        let mut top = a.create_label();
        a.mov(ecx, 1000).unwrap();
        a.set_label(&mut top).unwrap();
        a.add(eax, ecx).unwrap();
        a.mov(iced_x86::code_asm::dword_ptr(rsp - 8), eax).unwrap();
        a.sub(ecx, 1).unwrap();
        a.jnz(top).unwrap();
        let code = a.assemble(CODE).unwrap();
        for stop in [0, 1, 2, 3, 4, 5, 7, 1000, 4001] {
            let mut machine = Machine::new(&code, 3);
            assert_eq!(machine.run(stop), Exit::Stopped);
            assert_eq!(machine.soft.cpu.clock, stop);
        }
        let mut machine = Machine::new(&code, 3);
        assert_eq!(machine.run(4001), Exit::Stopped);
        assert_eq!(machine.soft.cpu.slot(slot::RAX), 500_500);
        assert_eq!(machine.soft.cpu.physical.read(STACK - 8, 4), Some(500_500));
        assert_eq!(machine.soft.cpu.rip, CODE + code.len() as u64);
    }

    #[test]
    #[ignore = "a measurement"]
    fn speed() {
        let mut a = CodeAssembler::new(64).unwrap();
        let mut top = a.create_label();
        a.mov(ecx, 100_000_000).unwrap();
        a.set_label(&mut top).unwrap();
        a.add(eax, ecx).unwrap();
        a.mov(iced_x86::code_asm::dword_ptr(rsp - 8), eax).unwrap();
        a.sub(ecx, 1).unwrap();
        a.jnz(top).unwrap();
        let code = a.assemble(CODE).unwrap();
        for translates in [false, true] {
            let mut machine = Machine::new(&code, 3);
            if translates {
                machine.soft.translate(crate::CODE_MEMORY).unwrap();
            }
            let begun = std::time::Instant::now();
            machine.run(400_000_001);
            let seconds = begun.elapsed().as_secs_f64();
            println!("{:.0} MIPS, translated: {translates}", 400.0 / seconds);
        }
    }
}
