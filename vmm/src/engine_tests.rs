//! What every engine must do for a join: forget translations, and tell which pages were written.

use super::*;
use crate::cpu::{CpuModel, Offer};
use crate::kvm::Host;
use crate::machine::{GuestImage, boot, small};
use crate::memory::{GuestMemory, PAGE_BYTES};
use crate::soft::SoftEngine;
use iced_x86::code_asm::*;
use replay::Stop;
use testing::skipped::skip_this;
use vm_memory::{Bytes, GuestAddress};

/// Where there is no RAM: a write there leaves the guest.
const OUT: u64 = 0xfec0_0000;
/// A page of 2 MiB, and its entry in the page directory the machine begins with.
const LARGE: u64 = 0x60_0000;
const ENTRY: u64 = 0x8000 + LARGE / 0x20_0000 * 8;
/// The accessed bit of a paging entry.
const ACCESSED: u64 = 1 << 5;

/// A vCPU in ring 3 (which software KVM runs by itself), over a program of 64-bit code, and its memory.
struct Ring3 {
    engine: Box<dyn Engine>,
    memory: GuestMemory,
}

impl Ring3 {
    fn on(make: impl FnOnce(&GuestMemory) -> Box<dyn Engine>, code: &[u8]) -> Self {
        let image = small::elf(code);
        let config = small::config(&image);
        let memory = boot::memory(&config).unwrap();
        let mut state = boot::load(&config, &GuestImage::new(&image), &memory).unwrap();
        let [code, rest @ ..] = &mut state.segments;
        code.selector |= 3;
        code.attributes |= 3 << 5;
        for data in &mut rest[..5] {
            data.selector |= 3;
            data.attributes |= 3 << 5;
        }
        let mut engine = make(&memory);
        engine.restore(&state).unwrap();
        Self { engine, memory }
    }

    /// Runs to the next write to [`OUT`].
    fn run(&mut self) {
        loop {
            match self.engine.run(VmEntry::Resume, Stop::Never).unwrap() {
                VmExit::Kicked => {}
                VmExit::Write { address: OUT, .. } => return,
                exit => panic!("{exit:?}"),
            }
        }
    }

    fn dirty(&mut self) -> Vec<u64> {
        self.engine.dirty_pages().unwrap().iter().collect()
    }

    fn is_accessed(&self) -> bool {
        let entry: u64 = self.memory.read_obj(GuestAddress(ENTRY)).unwrap();
        entry & ACCESSED != 0
    }
}

/// Calls `test` with each engine there is here.
fn on_each(code: &[u8], test: impl Fn(&str, Ring3)) {
    let soft = |memory: &GuestMemory| -> Box<dyn Engine> {
        let clock = ClockKind::Blocks;
        Box::new(SoftEngine::new(memory.clone(), CpuModel::V1, Offer::Bare, clock).unwrap())
    };
    test("soft", Ring3::on(soft, code));
    match Host::open() {
        Ok(host) => {
            let kvm = |memory: &GuestMemory| -> Box<dyn Engine> {
                let vm = host.create_vm(memory.clone(), CpuModel::V1).unwrap();
                Box::new(vm.create_engine().unwrap())
            };
            test("kvm", Ring3::on(kvm, code));
        }
        Err(why) => skip_this(&why),
    }
}

fn assemble(program: impl FnOnce(&mut CodeAssembler)) -> Vec<u8> {
    let mut a = CodeAssembler::new(64).unwrap();
    program(&mut a);
    a.assemble(abi::IMAGE_BASE).unwrap()
}

fn leave(a: &mut CodeAssembler) {
    a.mov(edx, OUT as u32).unwrap();
    a.mov(dword_ptr(rdx), eax).unwrap();
}

/// Writes and reads in pieces, each of which ends with an exit.
fn writer(a: &mut CodeAssembler) {
    // Before anybody asks: the page stays known to be writable.
    a.mov(byte_ptr(0x30_0000), 1).unwrap();
    leave(a);
    // Old and new pages, one word across two of them.
    a.mov(byte_ptr(0x30_0000), 2).unwrap();
    a.mov(byte_ptr(0x40_0000), 1).unwrap();
    a.mov(byte_ptr(0x40_5123), 1).unwrap();
    a.mov(qword_ptr(0x40_affc), rax).unwrap();
    leave(a);
    // A page again, three as a string, one by SSE, one that is read only.
    a.mov(byte_ptr(0x40_0000), 2).unwrap();
    a.mov(edi, 0x41_0000).unwrap();
    a.mov(ecx, 0x3000).unwrap();
    a.rep().stosb().unwrap();
    a.movups(xmmword_ptr(0x43_0000), xmm0).unwrap();
    a.mov(eax, dword_ptr(0x44_0000)).unwrap();
    leave(a);
    // A page walk that sets an accessed bit.
    a.mov(eax, dword_ptr(LARGE)).unwrap();
    leave(a);
    // Its own instructions' page, twice.
    a.mov(byte_ptr(abi::IMAGE_BASE + 0xf00), 1).unwrap();
    a.mov(byte_ptr(abi::IMAGE_BASE + 0xf01), 1).unwrap();
    leave(a);
    leave(a);
    // Nobody asks any more.
    a.mov(byte_ptr(0x45_0000), 1).unwrap();
    leave(a);
    a.mov(byte_ptr(0x46_0000), 1).unwrap();
    leave(a);
}

#[test]
fn every_page_written_is_told_once_by_whomever_it_was_written() {
    on_each(&assemble(writer), |name, mut guest| {
        let asked = guest.engine.dirty_pages();
        assert!(matches!(asked, Err(EngineError::Unsupported(_))), "{name}");
        guest.run();
        let before = 1u8;
        guest
            .memory
            .write_obj(before, GuestAddress(0x50_0000))
            .unwrap();
        guest.engine.note_dirty_pages(true).unwrap();
        assert!(guest.dirty().is_empty(), "{name}: before it was asked for");
        guest.run();
        let expected = [0x300, 0x400, 0x405, 0x40a, 0x40b];
        assert_eq!(guest.dirty(), expected, "{name}: by the guest");
        guest.run();
        // What devices write on either side of a run, across pages, and where the guest wrote.
        let device = |guest: &Ring3, at| {
            let bytes = [9u8; 0x1000];
            guest.memory.write_slice(&bytes, GuestAddress(at)).unwrap();
        };
        device(&guest, 0x50_0800);
        device(&guest, 0x41_2000);
        let expected = [0x400, 0x410, 0x411, 0x412, 0x430, 0x500, 0x501];
        assert_eq!(guest.dirty(), expected, "{name}: by both");
        let entry: u64 = guest.memory.read_obj(GuestAddress(ENTRY)).unwrap();
        let unused = entry & !ACCESSED;
        guest.memory.write_obj(unused, GuestAddress(ENTRY)).unwrap();
        guest.engine.flush_translations().unwrap();
        assert_eq!(guest.dirty(), [ENTRY / PAGE_BYTES], "{name}: a table");
        guest.run();
        assert!(guest.is_accessed(), "{name}");
        assert_eq!(guest.dirty(), [ENTRY / PAGE_BYTES], "{name}: by the walk");
        device(&guest, 0x50_2000);
        guest.run();
        let own = abi::IMAGE_BASE / PAGE_BYTES;
        assert_eq!(guest.dirty(), [own, 0x502], "{name}: its own code");
        guest.run();
        assert!(guest.dirty().is_empty(), "{name}: nothing was written");
        guest.engine.note_dirty_pages(false).unwrap();
        assert!(guest.engine.dirty_pages().is_err(), "{name}");
        guest.run();
        guest.engine.note_dirty_pages(true).unwrap();
        assert!(
            guest.dirty().is_empty(),
            "{name}: while it was not asked for"
        );
        guest.run();
        assert_eq!(guest.dirty(), [0x460], "{name}: asked for again");
    });
}

#[test]
fn pages_written_before_a_state_is_put_back_are_told_all_the_same() {
    on_each(&assemble(writer), |name, mut guest| {
        guest.engine.note_dirty_pages(true).unwrap();
        guest.run();
        guest.engine.settle().unwrap();
        let state = guest.engine.save().unwrap();
        guest.engine.restore(&state).unwrap();
        guest.run();
        // On KVM, which maps all pages anew, that of the instructions may be told, too.
        let own = abi::IMAGE_BASE / PAGE_BYTES;
        let mut found = guest.dirty();
        found.retain(|page| name != "kvm" || *page != own);
        let expected = [0x300, 0x400, 0x405, 0x40a, 0x40b];
        assert_eq!(found, expected, "{name}");
    });
}

/// Uses a page, clears its accessed bit without a flush, and leaves; uses the page again, and leaves.
fn clearer(a: &mut CodeAssembler) {
    let mut again = a.create_label();
    a.set_label(&mut again).unwrap();
    a.mov(eax, dword_ptr(LARGE)).unwrap();
    a.mov(eax, dword_ptr(ENTRY)).unwrap();
    a.and(eax, !(ACCESSED as i32)).unwrap();
    a.mov(dword_ptr(ENTRY), eax).unwrap();
    leave(a);
    a.mov(eax, dword_ptr(LARGE)).unwrap();
    leave(a);
    a.jmp(again).unwrap();
}

#[test]
fn a_guest_walks_its_tables_again_after_a_flush_and_nothing_else_changes() {
    on_each(&assemble(clearer), |name, mut guest| {
        for round in 0..20 {
            guest.run();
            assert!(!guest.is_accessed(), "{name}: the guest cleared it");
            guest.engine.settle().unwrap();
            let before = guest.engine.save().unwrap();
            guest.engine.flush_translations().unwrap();
            assert_eq!(guest.engine.save().unwrap(), before, "{name}");
            assert!(!guest.is_accessed(), "{name}: a flush uses no page");
            guest.run();
            assert!(guest.is_accessed(), "{name}: round {round}");
            if name == "soft" {
                // What the flush is for: without it the translation is still known.
                guest.run();
                guest.run();
                assert!(!guest.is_accessed(), "round {round}");
            }
        }
    });
}

#[test]
fn a_flush_makes_a_change_of_the_tables_seen() {
    // What other memory the page is moved to says.
    let moved = 0x80_0000u64;
    on_each(&assemble(clearer), |name, mut guest| {
        guest.run();
        guest.memory.write_obj(77u32, GuestAddress(moved)).unwrap();
        let entry: u64 = guest.memory.read_obj(GuestAddress(ENTRY)).unwrap();
        let entry = entry - LARGE + moved;
        guest.memory.write_obj(entry, GuestAddress(ENTRY)).unwrap();
        guest.engine.flush_translations().unwrap();
        guest.run();
        guest.engine.settle().unwrap();
        let state = guest.engine.save().unwrap();
        assert_eq!(state.general[0], 77, "{name}");
    });
}
