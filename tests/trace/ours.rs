//! Our side: the software processor in the state a machine begins with.

use super::firmware;
use super::qemu::{Registers, System};
use guests::Image;
use soft::Soft;
use soft::cpu::TimeBase;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use vm_memory::{Bytes, GuestAddress};
use vmm::cpu::{CpuModel, Offer};
use vmm::machine::{BoardKind, GuestImage, MachineConfig, TscMode, boot};
use vmm::memory::GuestMemory;
use vmm::soft::{processor, restore};
use vmm::state::CpuState;

/// Memory and registers before the first instruction.
pub struct Beginning {
    memory: GuestMemory,
    pub state: CpuState,
    pub cpu: CpuModel,
    pub mib: u32,
}

impl Beginning {
    /// Of a machine with the Linux of `image`; with `kernel` in the place of its kernel, if given.
    pub fn of(image: &Image, kernel: Option<&[u8]>, cpu: CpuModel) -> Self {
        let manifest = image.manifest.as_ref().expect("`tandem image` made it");
        let guest = GuestImage {
            kernel: kernel.unwrap_or(image.bytes().kernel),
            initrd: image.bytes().initrd,
        };
        let config = MachineConfig {
            guest: image.name.clone(),
            image_digest: image.digest,
            memory_mib: manifest.memory_mib,
            cmdline: manifest.cmdline.clone(),
            cpu,
            clock_kind: replay::ClockKind::Instructions,
            tsc: TscMode::Logged,
            mac: [2, 0, 0, 0, 0, 1],
            disk_sectors: None,
            initrd: None,
            board: BoardKind::Pc,
            reboots: false,
        };
        let memory = boot::memory(&config).expect("memory");
        let state = boot::load(&config, &guest, &memory).expect("the kernel fits");
        // What QEMU shows there. Nothing else is in the way: the ACPI tables are small.
        let window = GuestAddress(firmware::WINDOW);
        let mut there = vec![0; firmware::LENGTH];
        memory.read_slice(&mut there, window).expect("RAM");
        assert!(there.iter().all(|byte| *byte == 0), "the window is free");
        let firmware = firmware::image(&state);
        memory.write_slice(&firmware, window).expect("RAM");
        Self {
            memory,
            state,
            cpu,
            mib: manifest.memory_mib,
        }
    }

    /// Writes all memory to `path`, leaving holes where it is zero.
    pub fn write_memory(&self, path: &Path) {
        use std::os::unix::fs::FileExt;
        const CHUNK: usize = 1 << 20;
        let file = File::create(path).expect("a file for guest memory");
        let bytes = u64::from(self.mib) << 20;
        file.set_len(bytes).expect("room for guest memory");
        let mut chunk = vec![0; CHUNK];
        for at in (0..bytes).step_by(CHUNK) {
            let from = GuestAddress(at);
            self.memory.read_slice(&mut chunk, from).expect("RAM");
            if chunk.iter().any(|byte| *byte != 0) {
                file.write_all_at(&chunk, at)
                    .expect("room for guest memory");
            }
        }
        (&file).flush().expect("written");
    }
}

/// The software processor and its memory.
pub struct Ours {
    // Before the memory it points to.
    pub soft: Soft,
    _memory: GuestMemory,
}

impl Ours {
    pub fn new(beginning: Beginning) -> Self {
        let Beginning {
            memory, state, cpu, ..
        } = beginning;
        // SAFETY: the memory is kept beside the processor, which goes first; nobody else touches it.
        let mut soft = unsafe { processor(&memory, [], cpu, Offer::Full) };
        soft.cpu.time = TimeBase::Outside;
        restore(&mut soft.cpu, &state).expect("a first state");
        Self {
            soft,
            _memory: memory,
        }
    }

    pub fn registers(&self) -> Registers {
        let cpu = &self.soft.cpu;
        Registers {
            general: std::array::from_fn(|n| cpu.regs[n]),
            rip: cpu.rip,
            rflags: cpu.rflags(),
        }
    }

    pub fn system(&self) -> System {
        let cpu = &self.soft.cpu;
        let [d0, d1, d2, d3, _, _, d6, d7] = cpu.debug;
        System {
            segments: cpu.segments,
            gdt: cpu.gdt,
            idt: cpu.idt,
            control: cpu.control,
            debug: [d0, d1, d2, d3, d6, d7],
        }
    }

    /// Makes the general registers and flags those.
    pub fn take(&mut self, registers: &Registers) {
        let cpu = &mut self.soft.cpu;
        cpu.regs[..16].copy_from_slice(&registers.general);
        cpu.rip = registers.rip;
        cpu.set_rflags(registers.rflags);
    }
}
