//! SYSCALL, IRET, far branches, flags and ports by privilege.

use iced_x86::code_asm::*;
use soft::Exit;
use soft::flags;
use soft::op::slot;
use soft::testing::{CODE, DATA, STACK};
use soft_testing::{
    DPL3, FREE, GDT, Guest, KERNEL_CODE, KERNEL_DATA, RSP0, TSS, USER_CODE, USER_DATA,
};

const ENTRY: u64 = 0x14_0000;

#[test]
fn syscall_and_sysretq_go_there_and_back() {
    let mut guest = Guest::new(3, |a| {
        a.syscall().unwrap();
        a.int3().unwrap();
    });
    guest.open_gate(3);
    guest.put(ENTRY, |a| a.sysretq().unwrap());
    let cpu = &mut guest.machine.soft.cpu;
    cpu.msrs.lstar = ENTRY;
    cpu.msrs.fmask = flags::IF | flags::DF;
    cpu.set_rflags(flags::IF | flags::DF | flags::CF);
    guest.machine.run(1);
    let cpu = &guest.machine.soft.cpu;
    assert_eq!((cpu.rip, cpu.cpl), (ENTRY, 0));
    assert_eq!(cpu.slot(slot::RCX), CODE + 2);
    assert_eq!(cpu.slot(slot::R11), 0x603);
    assert_eq!(cpu.rflags(), 0x3);
    assert_eq!(cpu.segments[1].selector, KERNEL_CODE);
    assert_eq!(cpu.segments[2].selector, KERNEL_DATA);
    let frame = guest.trap();
    assert_eq!((frame.cs, frame.ss), (USER_CODE.into(), USER_DATA.into()));
    assert_eq!((frame.rip, frame.rflags), (CODE + 3, 0x603));
    assert_eq!(frame.rsp, STACK);
}

#[test]
fn syscall_without_sce_is_undefined_and_sysret_wants_ring_0() {
    let mut guest = Guest::new(3, |a| a.syscall().unwrap());
    guest.machine.soft.cpu.control.efer &= !1;
    assert_eq!(guest.trap().vector, 6);
    let mut guest = Guest::new(3, |a| a.sysretq().unwrap());
    assert_eq!(guest.trap().vector, 13);
    let mut guest = Guest::new(0, |a| a.sysenter().unwrap());
    assert_eq!(guest.trap().vector, 6);
}

#[test]
fn sysretq_to_an_address_that_is_not_canonical_faults_in_ring_3() {
    let mut guest = Guest::new(0, |a| a.sysretq().unwrap());
    guest.set(slot::RCX, 1 << 60);
    let frame = guest.trap();
    assert_eq!((frame.vector, frame.rip, frame.cs & 3), (13, 1 << 60, 3));
}

fn returning(words: [u64; 5]) -> Guest {
    let mut guest = Guest::new(0, |a| a.iretq().unwrap());
    for (n, word) in words.into_iter().enumerate() {
        guest.write(STACK - 40 + n as u64 * 8, word);
    }
    guest.set(slot::RSP, STACK - 40);
    guest
}

#[test]
fn iretq_enters_ring_3_and_takes_away_the_kernels_data_segments() {
    let target = CODE + 0x100;
    let mut guest = returning([target, USER_CODE.into(), 0x3202, 0x12345, USER_DATA.into()]);
    guest.put(target, |a| a.int3().unwrap());
    guest.open_gate(3);
    guest.machine.run(1);
    let cpu = &guest.machine.soft.cpu;
    assert_eq!(
        (cpu.rip, cpu.cpl, cpu.slot(slot::RSP)),
        (target, 3, 0x12345)
    );
    assert_eq!(cpu.rflags(), 0x3202);
    for register in [0, 3, 4, 5] {
        assert_eq!(cpu.segments[register].selector, 0);
    }
    assert_eq!(guest.trap().rsp, 0x12345);
}

#[test]
fn iretq_judges_what_it_returns_to() {
    let (code, data) = (u64::from(KERNEL_CODE), u64::from(KERNEL_DATA));
    for (words, vector, error) in [
        ([CODE, 0, 2, STACK, data], 13, 0),
        ([CODE, 0x1000, 2, STACK, data], 13, 0x1000),
        ([CODE, data, 2, STACK, data], 13, data),
        ([CODE, code | 3, 2, STACK, data | 3], 13, code),
        ([1 << 60, code, 2, STACK, data], 13, 0),
        ([CODE, USER_CODE.into(), 2, STACK, 0], 13, 0),
        ([CODE, USER_CODE.into(), 2, STACK, data], 13, data),
        ([CODE, code, 2, STACK, USER_DATA.into()], 13, 0x20),
    ] {
        let frame = returning(words).trap();
        assert_eq!(
            (frame.vector, frame.error),
            (vector, Some(error)),
            "{words:x?}"
        );
        assert_eq!((frame.rip, frame.rsp), (CODE, STACK - 40));
    }
    // A null SS is good in ring 0.
    let mut guest = returning([CODE + 8, code, 2, STACK, 0]);
    guest.bytes(CODE + 8, &[0xf4]);
    assert_eq!(guest.machine.run(2), Exit::Halt);
    // NT.
    let mut guest = returning([CODE, code, 2, STACK, data]);
    guest.machine.soft.cpu.set_rflags(flags::NT);
    assert_eq!(guest.trap().vector, 13);
}

#[test]
fn far_branches_and_returns() {
    let sub = CODE + 0x200;
    let mut guest = Guest::new(0, |a| {
        a.db(&[0xff, 0x1b]).unwrap(); // call far [rbx]
        a.hlt().unwrap();
    });
    guest.bytes(sub, &[0xcb]); // retf of 32 bits
    guest.set(slot::RBX, DATA);
    guest.write(DATA, sub | u64::from(KERNEL_CODE) << 32);
    assert_eq!(guest.machine.run(10), Exit::Halt);
    let cpu = &guest.machine.soft.cpu;
    assert_eq!((cpu.rip, cpu.slot(slot::RSP)), (CODE + 3, STACK));
    assert_eq!(cpu.clock, 3);
    let pushed = cpu.physical.read(STACK - 8, 8).unwrap();
    assert_eq!(pushed, (CODE + 2) | u64::from(KERNEL_CODE) << 32);
}

#[test]
fn a_call_gate_leads_inward_and_retfq_back() {
    let entry = ENTRY;
    let mut guest = Guest::new(3, |a| {
        a.db(&[0xff, 0x1b]).unwrap(); // call far [rbx]
        a.int3().unwrap();
    });
    guest.open_gate(3);
    guest.put(entry, |a| a.db(&[0x48, 0xcb]).unwrap()); // retfq
    let low =
        entry & 0xffff | u64::from(KERNEL_CODE) << 16 | 0x8c << 40 | DPL3 | (entry >> 16) << 48;
    guest.write(GDT + u64::from(FREE), low);
    guest.write(GDT + u64::from(FREE) + 8, 0);
    guest.set(slot::RBX, DATA);
    guest.write(DATA, u64::from(FREE | 3) << 32);
    guest.machine.run(1);
    let cpu = &guest.machine.soft.cpu;
    assert_eq!(
        (cpu.cpl, cpu.rip, cpu.slot(slot::RSP)),
        (0, entry, RSP0 - 32)
    );
    assert_eq!(cpu.segments[2].selector, 0);
    let frame = guest.trap();
    assert_eq!(
        (frame.rip, frame.rsp, frame.ss),
        (CODE + 3, STACK, USER_DATA.into())
    );
}

#[test]
fn a_far_jump_to_a_task_state_or_an_inner_segment_is_refused() {
    for (selector, error) in [(0x30u64, 0x30), (u64::from(KERNEL_CODE), 8), (0, 0)] {
        let mut guest = Guest::new(3, |a| a.db(&[0xff, 0x2b]).unwrap()); // jmp far [rbx]
        guest.set(slot::RBX, DATA);
        guest.write(DATA, CODE | selector << 32);
        let frame = guest.trap();
        assert_eq!((frame.vector, frame.error), (13, Some(error)));
    }
}

#[test]
fn popf_changes_if_and_iopl_only_with_the_right() {
    let body = |a: &mut CodeAssembler| a.popfq().unwrap();
    let all = flags::IF | flags::IOPL | flags::CF | flags::DF | flags::AC | flags::ID | flags::RF;
    for (ring, iopl, expected) in [
        (0, 0, all & !flags::RF),
        (3, 0, flags::CF | flags::DF | flags::AC | flags::ID),
        (
            3,
            3,
            flags::IOPL | flags::IF | flags::CF | flags::DF | flags::AC | flags::ID,
        ),
    ] {
        let mut guest = Guest::new(ring, body);
        guest.machine.soft.cpu.set_rflags(iopl << 12);
        guest.write(STACK - 8, all | flags::VM | 1 << 40);
        guest.set(slot::RSP, STACK - 8);
        assert_eq!(guest.machine.run(1), Exit::Stopped);
        assert_eq!(
            guest.machine.soft.cpu.rflags(),
            expected | 2,
            "ring {ring} iopl {iopl}"
        );
    }
}

#[test]
fn cli_sti_and_ports_want_iopl_or_the_map() {
    type Body = fn(&mut CodeAssembler);
    let bodies: [Body; 3] = [
        |a| a.cli().unwrap(),
        |a| a.sti().unwrap(),
        |a| a.in_(al, 0x61).unwrap(),
    ];
    for body in bodies {
        assert_eq!(Guest::new(3, body).trap().vector, 13);
        let mut guest = Guest::new(3, body);
        guest.machine.soft.cpu.set_rflags(flags::IOPL);
        assert_ne!(guest.machine.run(1), Exit::Halt);
    }
    // The map behind the TSS lets port 0x61 through, but not 0x62.
    for (size, through) in [(1, true), (2, false)] {
        let mut guest = Guest::new(3, |a| match size {
            1 => a.in_(al, 0x61).unwrap(),
            _ => a.in_(ax, 0x61).unwrap(),
        });
        guest.machine.soft.cpu.segments[6].limit = 0x68 + 0x20;
        guest.write(TSS + 0x66, 0x68);
        guest.write(TSS + 0x68 + 0xc, 1 << 2);
        let exit = guest.machine.run(100);
        assert_eq!(matches!(exit, Exit::Read(_)), through, "{exit:?}");
    }
}

#[test]
fn port_accesses_leave_the_processor_and_come_back() {
    let mut guest = Guest::new(0, |a| {
        a.in_(eax, dx).unwrap();
        a.rep().outsb().unwrap();
        a.hlt().unwrap();
    });
    guest.set(slot::RDX, 0x3f8);
    guest.set(slot::RCX, 3);
    guest.set(slot::RSI, DATA);
    guest.write(DATA, 0x0063_6261);
    let Exit::Read(access) = guest.machine.run(100) else {
        panic!("no read")
    };
    assert_eq!((access.address, access.size), (0x3f8, 4));
    guest.machine.soft.answer(0xffff_ffff_1234_5678);
    for byte in [0x61, 0x62, 0x63] {
        let Exit::Write(access) = guest.machine.run(100) else {
            panic!("no write")
        };
        assert_eq!(
            (access.address, access.size, access.value),
            (0x3f8, 1, Some(byte))
        );
    }
    assert_eq!(guest.machine.run(100), Exit::Halt);
    assert_eq!(guest.reg(slot::RAX), 0x1234_5678);
    assert_eq!((guest.reg(slot::RCX), guest.reg(slot::RSI)), (0, DATA + 3));
    assert_eq!(guest.machine.soft.cpu.clock, 5, "each iteration counts one");
}
