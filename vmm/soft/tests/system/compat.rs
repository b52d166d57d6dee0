//! 32-bit programs under a 64-bit kernel.

use crate::guest::{Guest, RSP0, USER_CODE, USER_CODE32, USER_DATA, assemble};
use iced_x86::code_asm::*;
use soft::cpu::segment;
use soft::op::slot;
use soft::testing::{DATA, STACK};

/// Where the 32-bit program is.
const PROGRAM: u64 = 0x15_0000;
const ENTRY: u64 = 0x14_0000;

/// A kernel that goes to a 32-bit program by `iretq`.
fn program(body: impl FnOnce(&mut CodeAssembler)) -> Guest {
    let mut guest = Guest::new(0, |a| a.iretq().unwrap());
    let words = [PROGRAM, USER_CODE32.into(), 0x202, STACK, USER_DATA.into()];
    for (n, word) in words.into_iter().enumerate() {
        guest.write(STACK - 40 + n as u64 * 8, word);
    }
    guest.set(slot::RSP, STACK - 40);
    guest.bytes(PROGRAM, &assemble(32, PROGRAM, body));
    guest.open_gate(0x80);
    guest
}

#[test]
fn a_32_bit_program_runs_and_calls_the_kernel_by_int_0x80() {
    let mut guest = program(|a| {
        let mut sub = a.create_label();
        let mut over = a.create_label();
        a.mov(eax, 0x7fff_ffff).unwrap();
        a.call(sub).unwrap();
        a.jmp(over).unwrap();
        a.set_label(&mut sub).unwrap();
        a.inc(eax).unwrap();
        a.ret().unwrap();
        a.set_label(&mut over).unwrap();
        a.push(eax).unwrap();
        a.int(0x80).unwrap();
    });
    let frame = guest.trap();
    assert_eq!(frame.vector, 0x80);
    assert_eq!((frame.cs, frame.ss), (USER_CODE32.into(), USER_DATA.into()));
    assert_eq!(frame.rsp, STACK - 4);
    assert_eq!(guest.reg(slot::RSP), RSP0 - 40);
    assert_eq!(guest.reg(slot::RAX), 0x8000_0000);
    let pushed = guest.machine.soft.cpu.physical.read(STACK - 4, 4);
    assert_eq!(pushed, Some(0x8000_0000));
    let cpu = &guest.machine.soft.cpu;
    assert!(cpu.long_code);
}

#[test]
fn syscall_from_32_bit_code_enters_at_cstar_and_sysretd_goes_back() {
    let mut guest = program(|a| {
        a.syscall().unwrap();
        a.int(0x80).unwrap();
    });
    guest.put(ENTRY, |a| a.sysret().unwrap());
    guest.machine.soft.cpu.msrs.cstar = ENTRY;
    guest.machine.soft.cpu.msrs.lstar = 0xdead;
    guest.machine.run(2);
    let cpu = &guest.machine.soft.cpu;
    assert_eq!((cpu.rip, cpu.cpl, cpu.long_code), (ENTRY, 0, true));
    assert_eq!(cpu.slot(slot::RCX), PROGRAM + 2);
    let frame = guest.trap();
    assert_eq!((frame.vector, frame.rip), (0x80, PROGRAM + 4));
    assert_eq!((frame.cs, frame.ss), (USER_CODE32.into(), USER_DATA.into()));
}

#[test]
fn far_jumps_lead_from_32_to_64_bit_code_and_back() {
    let mut guest = program(|a| {
        a.db(&[0xea]).unwrap();
        a.dd(&[ENTRY as u32]).unwrap();
        a.dw(&[USER_CODE]).unwrap();
    });
    guest.put(ENTRY, |a| {
        a.mov(r8, 0x1_0000_0000u64).unwrap();
        a.db(&[0xff, 0x2b]).unwrap(); // jmp far [rbx]
    });
    guest.set(slot::RBX, DATA);
    guest.write(DATA, (PROGRAM + 0x100) | u64::from(USER_CODE32) << 32);
    let code = assemble(32, PROGRAM + 0x100, |a| a.int(0x80).unwrap());
    guest.bytes(PROGRAM + 0x100, &code);
    let frame = guest.trap();
    assert_eq!((frame.rip, frame.cs), (PROGRAM + 0x102, USER_CODE32.into()));
    assert_eq!(guest.reg(8), 1 << 32);
}

#[test]
fn addresses_and_stack_pointers_wrap_at_4_gib_and_segments_have_bases() {
    let mut guest = program(|a| {
        a.mov(eax, dword_ptr(ebx + 0x10)).unwrap();
        a.mov(ecx, dword_ptr(4).gs()).unwrap();
        a.int(0x80).unwrap();
    });
    guest.write(DATA, 0x2222_2222_1111_1111);
    guest.set(slot::RBX, (DATA - 0x10) & 0xffff_ffff);
    guest.machine.run(1);
    guest.machine.soft.cpu.segments[segment::GS].base = DATA;
    guest.machine.soft.cpu.refresh_mode();
    guest.set(
        slot::RBX,
        (DATA.wrapping_sub(0x10) + (1 << 32)) & 0xffff_ffff | 7 << 32,
    );
    guest.trap();
    assert_eq!(guest.reg(slot::RAX), 0x1111_1111);
    assert_eq!(guest.reg(slot::RCX), 0x2222_2222);
}

#[test]
fn a_fault_in_a_32_bit_program_is_delivered_to_the_64_bit_kernel() {
    let mut guest = program(|a| {
        a.ud2().unwrap();
    });
    let frame = guest.trap();
    assert_eq!(
        (frame.vector, frame.rip, frame.cs),
        (6, PROGRAM, USER_CODE32.into())
    );
    let mut guest = program(|a| a.db(&[0x0f, 0x34]).unwrap()); // sysenter
    assert_eq!(guest.trap().vector, 6);
    let mut guest = program(|a| a.into().unwrap());
    guest.open_gate(4);
    guest.write(STACK - 24, 0xa02);
    assert_eq!(guest.trap().vector, 4);
}

#[test]
fn a_32_bit_return_to_the_same_ring_leaves_the_stack() {
    // iretd in 32-bit code pops three words.
    let mut guest = program(|a| {
        a.push(0x202).unwrap();
        a.push(i32::from(USER_CODE32)).unwrap();
        a.push((PROGRAM + 0x100) as i32).unwrap();
        a.iretd().unwrap();
    });
    let code = assemble(32, PROGRAM + 0x100, |a| a.int(0x80).unwrap());
    guest.bytes(PROGRAM + 0x100, &code);
    let frame = guest.trap();
    assert_eq!((frame.rip, frame.rsp), (PROGRAM + 0x102, STACK));
}
