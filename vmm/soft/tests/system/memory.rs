//! Page walks, the TLB, self-modifying code.

use iced_x86::code_asm::*;
use soft::Exit;
use soft::cpu::bits;
use soft::op::slot;
use soft::testing::{CODE, DATA};
use soft_testing::Guest;

/// Two MiB mapped with 4 KiB pages, by the table at [`TABLE`], not present until a test says so.
const PAGES: u64 = 0x80_0000;
const TABLE: u64 = 0x7000;
/// Its entry in the page directory.
const DIRECTORY: u64 = 0x3000 + 4 * 8;
const P: u64 = 1;
const W: u64 = 2;
const U: u64 = 4;
const A: u64 = 0x20;
const D: u64 = 0x40;
const G: u64 = 0x100;
const NX: u64 = 1 << 63;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Does {
    Read,
    Write,
    Fetch,
}

/// A guest about to access the address in RBX.
fn accessing(ring: u8, does: Does) -> Guest {
    let mut guest = Guest::new(ring, |a| {
        match does {
            Does::Read => a.mov(rax, qword_ptr(rbx)).unwrap(),
            Does::Write => a.mov(qword_ptr(rbx), rax).unwrap(),
            Does::Fetch => a.jmp(rbx).unwrap(),
        }
        a.nop().unwrap();
    });
    guest.write(DIRECTORY, TABLE | P | W | U);
    if ring == 0 {
        // Code, stack and tables are the supervisor's alone, for SMEP and SMAP.
        guest.write(0x3000, 0x83);
    }
    guest.set(slot::RBX, PAGES + 8);
    guest.bytes(PAGES, &[0x90; 64]);
    guest
}

fn entry(page: u64) -> u64 {
    TABLE + page * 8
}

/// The page fault's error code, if there is one.
fn outcome(guest: &mut Guest) -> Option<u64> {
    guest.machine.run(2);
    if guest.machine.soft.cpu.rip < 0x10_0000 {
        let frame = guest.frame();
        assert_eq!(frame.vector, 14);
        assert_eq!(guest.machine.soft.cpu.control.cr2, guest.reg(slot::RBX));
        return frame.error;
    }
    None
}

#[test]
fn rights_are_those_of_the_tables() {
    use Does::{Fetch, Read, Write};
    let (smep, smap, wp) = (bits::CR4_SMEP, bits::CR4_SMAP, bits::CR0_WP);
    for (flags, ring, does, in_cr0, in_cr4, expected) in [
        (0, 0, Read, 0, 0, Some(0)),
        (0, 0, Write, 0, 0, Some(2)),
        (0, 3, Read, 0, 0, Some(4)),
        (0, 3, Write, 0, 0, Some(6)),
        (0, 3, Fetch, 0, 0, Some(0x14)),
        (P | W, 3, Read, 0, 0, Some(5)),
        (P | W, 3, Write, 0, 0, Some(7)),
        (P | W, 3, Fetch, 0, 0, Some(0x15)),
        (P | W, 0, Fetch, 0, 0, None),
        (P | U, 3, Read, 0, 0, None),
        (P | U, 3, Write, 0, 0, Some(7)),
        (P | U | W, 3, Write, 0, 0, None),
        (P | U | NX, 3, Fetch, 0, 0, Some(0x15)),
        (P | U | NX, 3, Read, 0, 0, None),
        (P, 0, Write, wp, 0, Some(3)),
        (P, 0, Write, 0, 0, None),
        (P | NX, 0, Fetch, 0, 0, Some(0x11)),
        (P | U, 0, Fetch, 0, smep, Some(0x11)),
        (P | U, 0, Fetch, 0, 0, None),
        (P | U | W, 0, Read, 0, smap, Some(1)),
        (P | U | W, 0, Write, 0, smap, Some(3)),
        (P | U | W, 0, Fetch, 0, smap, None),
        (P | W, 0, Read, 0, smap, None),
        (P | U | W | 1 << 45, 3, Read, 0, 0, Some(0xd)),
        (P | U | W | 1 << 45, 0, Write, 0, 0, Some(0xb)),
    ] {
        let mut guest = accessing(ring, does);
        guest.write(entry(0), PAGES | flags);
        let cpu = &mut guest.machine.soft.cpu;
        cpu.control.cr0 = cpu.control.cr0 & !bits::CR0_WP | in_cr0;
        cpu.control.cr4 |= in_cr4;
        cpu.refresh_mode();
        let case = format!("{flags:#x} ring {ring} {does:?} {in_cr0:#x} {in_cr4:#x}");
        assert_eq!(outcome(&mut guest), expected, "{case}");
        let marks = match (expected, does) {
            (Some(_), _) => 0,
            (_, Write) => A | D,
            _ => A,
        };
        assert_eq!(guest.read(entry(0)) & (A | D), marks, "{case}");
        assert_eq!(guest.read(DIRECTORY) & A != 0, expected.is_none(), "{case}");
    }
}

#[test]
fn a_no_execute_bit_is_reserved_without_nxe() {
    let mut guest = accessing(3, Does::Read);
    guest.write(entry(0), PAGES | P | U | NX);
    guest.machine.soft.cpu.control.efer &= !bits::EFER_NXE;
    assert_eq!(outcome(&mut guest), Some(0xd));
}

#[test]
fn ac_opens_user_pages_to_the_supervisor_but_not_to_implicit_accesses() {
    let mut guest = Guest::new(0, |a| {
        a.stac().unwrap();
        a.mov(rax, qword_ptr(rbx)).unwrap();
        a.clac().unwrap();
        a.mov(rax, qword_ptr(rbx)).unwrap();
    });
    guest.write(0x3000, 0x83);
    guest.set(slot::RBX, PAGES);
    let cpu = &mut guest.machine.soft.cpu;
    cpu.control.cr4 |= bits::CR4_SMAP;
    cpu.refresh_mode();
    assert_eq!(guest.machine.run(3), Exit::Stopped);
    let frame = guest.trap();
    assert_eq!(
        (frame.vector, frame.error, frame.rip),
        (14, Some(1), CODE + 9)
    );
    // The GDT on a user page.
    let mut guest = Guest::new(0, |a| {
        a.stac().unwrap();
        a.mov(es, eax).unwrap();
    });
    guest.write(0x3000, 0x83);
    guest.set(slot::RAX, 8);
    let cpu = &mut guest.machine.soft.cpu;
    cpu.control.cr4 |= bits::CR4_SMAP;
    cpu.gdt.base = PAGES;
    cpu.refresh_mode();
    // #PF, #GP-free: the handler's code segment cannot be read either.
    assert_eq!(guest.machine.run(10), Exit::TripleFault);
    assert_eq!(guest.machine.soft.cpu.rip, CODE + 3);
}

#[test]
fn an_access_across_pages_does_nothing_unless_both_are_there() {
    let mut guest = accessing(3, Does::Write);
    guest.write(entry(0), PAGES | P | W | U);
    guest.set(slot::RBX, PAGES + 0xffd);
    guest.set(slot::RAX, u64::MAX);
    let frame = guest.trap();
    assert_eq!((frame.vector, frame.error), (14, Some(6)));
    assert_eq!(guest.machine.soft.cpu.control.cr2, PAGES + 0x1000);
    assert_eq!(guest.read(PAGES + 0xff8), 0);
    // Both there, but not side by side in physical memory.
    let mut guest = accessing(3, Does::Write);
    guest.write(entry(0), PAGES | P | W | U);
    guest.write(entry(1), (PAGES + 0x5000) | P | W | U);
    guest.set(slot::RBX, PAGES + 0xffd);
    guest.set(slot::RAX, 0x8877_6655_4433_2211);
    assert_eq!(guest.machine.run(1), Exit::Stopped);
    assert_eq!(guest.read(PAGES + 0xff8), 0x33_2211 << 40);
    assert_eq!(guest.read(PAGES + 0x5000), 0x88_7766_5544);
}

/// Reads through RBX, has the table changed by RCX into (RDX), does `flush`, reads again.
fn remapped(flush: fn(&mut CodeAssembler), flags: u64) -> (u64, u64) {
    let mut guest = Guest::new(0, |a| {
        a.mov(rsi, qword_ptr(rbx)).unwrap();
        a.mov(qword_ptr(rdx), rcx).unwrap();
        flush(a);
        a.mov(rdi, qword_ptr(rbx)).unwrap();
        a.hlt().unwrap();
    });
    guest.write(DIRECTORY, TABLE | P | W | U);
    guest.write(entry(0), PAGES | P | flags);
    guest.write(PAGES, 1);
    guest.write(DATA, 2);
    guest.set(slot::RBX, PAGES);
    guest.set(slot::RDX, entry(0));
    guest.set(slot::RCX, DATA | P | flags);
    guest.machine.soft.cpu.control.cr4 |= bits::CR4_PGE;
    guest.halt();
    (guest.reg(slot::RSI), guest.reg(slot::RDI))
}

#[test]
fn translations_go_when_they_are_flushed_and_not_before() {
    let reload: fn(&mut CodeAssembler) = |a| {
        a.mov(rax, cr3).unwrap();
        a.mov(cr3, rax).unwrap();
    };
    let toggle: fn(&mut CodeAssembler) = |a| {
        a.mov(rax, cr4).unwrap();
        a.xor(eax, 0x80).unwrap();
        a.mov(cr4, rax).unwrap();
    };
    assert_eq!(remapped(|_| (), 0), (1, 1));
    assert_eq!(
        remapped(|a| a.invlpg(byte_ptr(rbx + 0x123)).unwrap(), 0),
        (1, 2)
    );
    assert_eq!(
        remapped(|a| a.invlpg(byte_ptr(rbx + 0x1000)).unwrap(), 0),
        (1, 1)
    );
    assert_eq!(remapped(reload, 0), (1, 2));
    assert_eq!(remapped(reload, G), (1, 1));
    assert_eq!(remapped(|a| a.invlpg(byte_ptr(rbx)).unwrap(), G), (1, 2));
    assert_eq!(remapped(toggle, G), (1, 2));
}

/// A program in ring 3 that ends in a halt by #GP; returns RAX.
fn modified(bytes: impl FnOnce(&mut CodeAssembler), set: &[(u8, u64)]) -> u64 {
    let mut guest = Guest::new(3, bytes);
    for &(register, value) in set {
        guest.set(register, value);
    }
    assert_eq!(guest.trap().vector, 13);
    guest.reg(slot::RAX)
}

#[test]
fn an_instruction_may_change_the_next_one() {
    // mov byte [rbx], 42; mov eax, 1; hlt: the immediate of the second is changed.
    let same_block = |a: &mut CodeAssembler| {
        a.mov(byte_ptr(rbx), 42).unwrap();
        a.mov(eax, 1).unwrap();
        a.hlt().unwrap();
    };
    assert_eq!(modified(same_block, &[(slot::RBX, CODE + 4)]), 42);
}

#[test]
fn a_loop_that_changes_itself_sees_every_change() {
    let program = |a: &mut CodeAssembler| {
        let mut top = a.create_label();
        a.xor(eax, eax).unwrap();
        a.set_label(&mut top).unwrap();
        a.add(eax, 1).unwrap();
        a.add(byte_ptr(rbx), 1).unwrap();
        a.sub(ecx, 1).unwrap();
        a.jnz(top).unwrap();
        a.hlt().unwrap();
    };
    // 1 + 2 + 3 + 4: the immediate of the first addition.
    let set = [(slot::RBX, CODE + 3), (slot::RCX, 4)];
    assert_eq!(modified(program, &set), 10);
}

#[test]
fn code_written_through_another_address_is_seen() {
    let mut guest = Guest::new(3, |a| {
        a.mov(byte_ptr(rbx), 42).unwrap();
        a.mov(eax, 1).unwrap();
        a.hlt().unwrap();
    });
    guest.write(DIRECTORY, TABLE | P | W | U);
    guest.write(entry(3), CODE | P | W | U);
    guest.set(slot::RBX, PAGES + 0x3000 + 4);
    assert_eq!(guest.trap().vector, 13);
    assert_eq!(guest.reg(slot::RAX), 42);
}

#[test]
fn an_instruction_across_pages_is_fetched_from_both_each_time() {
    // At CODE + 0xffe: mov eax, imm32, whose immediate lies mostly on the next page.
    let mut guest = Guest::new(3, |a| {
        let mut top = a.create_label();
        a.set_label(&mut top).unwrap();
        a.call(rdi).unwrap();
        a.add(esi, eax).unwrap();
        a.add(byte_ptr(rbx), 1).unwrap();
        a.sub(ecx, 1).unwrap();
        a.jnz(top).unwrap();
        a.hlt().unwrap();
    });
    guest.put(CODE + 0xffe, |a| {
        a.mov(eax, 0x0505).unwrap();
        a.ret().unwrap();
    });
    guest.machine.soft.page_written(CODE / 4096 + 1);
    guest.set(slot::RDI, CODE + 0xffe);
    guest.set(slot::RBX, CODE + 0x1000);
    guest.set(slot::RCX, 3);
    guest.set(slot::RSI, 0);
    assert_eq!(guest.trap().vector, 13);
    assert_eq!(guest.reg(slot::RSI), 0x505 + 0x605 + 0x705);
}

/// At PAGES + 0xffe `mov eax, imm32`, of whose immediate three bytes lie on the next page, which R8 or R9 is the entry of.
fn lay_out_two_second_pages(guest: &mut Guest) {
    let (first, one, other) = (CODE + 0x2000, CODE + 0x3000, CODE + 0x5000);
    guest.write(DIRECTORY, TABLE | P | W | U);
    guest.write(entry(0), first | P);
    guest.bytes(first + 0xffe, &[0xb8, 1]);
    // The rest of the immediate, then ret.
    guest.bytes(one, &[0, 0, 0, 0xc3]);
    guest.bytes(other, &[1, 0, 0, 0xc3]);
    for (slot, value) in [
        (slot::RBX, entry(1)),
        (slot::RDX, PAGES + 0x1000),
        (slot::RDI, PAGES + 0xffe),
        (slot::RCX, 100),
        (slot::RSI, 0),
        (8, one | P),
        (9, other | P),
    ] {
        guest.set(slot, value);
    }
}

/// Calls what crosses into another page a hundred times, and has that page be another in between.
fn with_two_second_pages() -> Guest {
    let mut guest = Guest::new(0, |a| {
        let mut top = a.create_label();
        a.set_label(&mut top).unwrap();
        a.mov(qword_ptr(rbx), r8).unwrap();
        a.invlpg(byte_ptr(rdx)).unwrap();
        a.call(rdi).unwrap();
        a.add(esi, eax).unwrap();
        a.xchg(r8, r9).unwrap();
        a.sub(ecx, 1).unwrap();
        a.jnz(top).unwrap();
        a.hlt().unwrap();
    });
    lay_out_two_second_pages(&mut guest);
    guest
}

#[test]
fn the_second_page_of_an_instruction_may_be_another_each_time() {
    let sum = 50 + 50 * 0x101;
    let mut guest = with_two_second_pages();
    guest.halt();
    assert_eq!(guest.reg(slot::RSI), sum);
    // However few instructions may run at a time.
    for few in 1..24 {
        let mut guest = with_two_second_pages();
        let exit = loop {
            match guest.machine.run(few) {
                Exit::Stopped => {}
                exit => break exit,
            }
        };
        assert_eq!((exit, guest.reg(slot::RSI)), (Exit::Halt, sum), "{few}");
    }
}

/// Translates blocks late enough that those that follow each other become one piece of code.
fn translate_both_in_one(guest: &mut Guest) {
    let soft = &mut guest.machine.soft;
    soft.translate(soft::CODE_MEMORY)
        .expect("code can be run here");
    soft.warm(4);
}

#[test]
fn a_second_page_that_is_gone_faults_with_the_flags_of_what_came_before() {
    let mut guest = Guest::new(0, |a| {
        let mut top = a.create_label();
        a.set_label(&mut top).unwrap();
        a.call(rdi).unwrap();
        a.sub(ecx, 1).unwrap();
        a.jnz(top).unwrap();
        a.mov(qword_ptr(rbx), rcx).unwrap();
        a.invlpg(byte_ptr(rdx)).unwrap();
        a.mov(esi, -1).unwrap();
        a.or(ecx, 1).unwrap();
        a.call(rdi).unwrap();
    });
    guest.write(DIRECTORY, TABLE | P | W | U);
    guest.write(entry(0), (CODE + 0x2000) | P);
    guest.write(entry(1), (CODE + 0x3000) | P);
    // add esi, eax; cmp ecx, imm32, which crosses; ret.
    guest.bytes(CODE + 0x2ffb, &[0x01, 0xc6, 0x81, 0xf9, 5]);
    guest.bytes(CODE + 0x3000, &[0, 0, 0, 0xc3]);
    for (slot, value) in [
        (slot::RAX, 1),
        (slot::RBX, entry(1)),
        (slot::RDX, PAGES + 0x1000),
        (slot::RDI, PAGES + 0xffb),
        (slot::RCX, 40),
    ] {
        guest.set(slot, value);
    }
    translate_both_in_one(&mut guest);
    let frame = guest.trap();
    assert_eq!((frame.vector, frame.rip), (14, PAGES + 0xffd));
    // -1 + 1: CF, PF, AF, ZF.
    assert_eq!(frame.rflags & 0x8d5, 0x055);
}

#[test]
fn what_runs_often_across_pages_changes_with_its_second_page() {
    // It is translated long before its immediate changes.
    let mut guest = Guest::new(3, |a| {
        let (mut top, mut skip) = (a.create_label(), a.create_label());
        a.set_label(&mut top).unwrap();
        a.call(rdi).unwrap();
        a.add(esi, eax).unwrap();
        a.cmp(ecx, 31).unwrap();
        a.jne(skip).unwrap();
        a.add(byte_ptr(rbx), 1).unwrap();
        a.set_label(&mut skip).unwrap();
        a.sub(ecx, 1).unwrap();
        a.jnz(top).unwrap();
        a.hlt().unwrap();
    });
    // The instruction at CODE + 0xffe follows others of its page.
    guest.put(CODE + 0xff0, |a| {
        a.lea(rdx, qword_ptr(rdx + 1)).unwrap();
        a.nops_with_size(10).unwrap();
        a.mov(eax, 0x0505).unwrap();
        a.ret().unwrap();
    });
    guest.machine.soft.page_written(CODE / 4096 + 1);
    for (slot, value) in [
        (slot::RDI, CODE + 0xff0),
        (slot::RBX, CODE + 0x1000),
        (slot::RCX, 60),
        (slot::RDX, 0),
        (slot::RSI, 0),
    ] {
        guest.set(slot, value);
    }
    assert_eq!(guest.trap().vector, 13);
    assert_eq!(guest.reg(slot::RSI), 30 * 0x505 + 30 * 0x605);
    assert_eq!(guest.reg(slot::RDX), 60);
}

#[test]
fn the_second_page_of_an_instruction_faults_with_its_own_address() {
    let mut guest = accessing(3, Does::Fetch);
    guest.write(entry(0), PAGES | P | U);
    guest.bytes(PAGES + 0xffe, &[0xb8, 1]);
    guest.set(slot::RBX, PAGES + 0xffe);
    let frame = guest.trap();
    assert_eq!(
        (frame.vector, frame.error, frame.rip),
        (14, Some(0x14), PAGES + 0xffe)
    );
    assert_eq!(guest.machine.soft.cpu.control.cr2, PAGES + 0x1000);
}

#[test]
fn a_page_walk_that_marks_an_entry_in_a_page_of_code_drops_that_code() {
    // The program lies in the page table; its own walk sets bits in the instruction after it: entry 0x100
    // is at TABLE + 0x800, where the program has `mov eax, imm` with the entry as its immediate.
    let mut guest = Guest::new(3, |a| a.jmp(TABLE + 0x7f0).unwrap());
    guest.write(DIRECTORY, TABLE | P | W | U);
    // mov rdx, [rbx]; nops; mov rax, imm64 whose immediate is entry 0x100.
    let at = TABLE + 0x7f0;
    guest.bytes(at, &[0x48, 0x8b, 0x13]);
    guest.bytes(at + 3, &[0x90; 11]);
    guest.bytes(at + 14, &[0x48, 0xb8]);
    guest.write(at + 16, PAGES | P | U);
    guest.bytes(at + 24, &[0xf4]);
    guest.set(slot::RBX, PAGES + 0x10_0000);
    assert_eq!(guest.trap().vector, 13);
    assert_eq!(guest.reg(slot::RAX), PAGES | P | U | A);
}

#[test]
fn instructions_outside_ram_end_the_run() {
    let mut guest = Guest::new(3, |a| a.jmp(rbx).unwrap());
    guest.set(slot::RBX, 0xd000_0000);
    assert_eq!(guest.machine.run(10), Exit::Unimplemented);
    let mut guest = Guest::new(3, |a| a.ud2().unwrap());
    guest.write(soft_testing::TSS + 4, 0xd000_1000);
    assert_eq!(
        guest.machine.run(10),
        Exit::Unimplemented,
        "a stack in device memory"
    );
}

#[test]
fn too_long_an_instruction_raises_gp() {
    let mut guest = Guest::of(3, &[[0x66; 15].as_slice(), &[0x90]].concat());
    let frame = guest.trap();
    assert_eq!((frame.vector, frame.rip), (13, CODE));
}
