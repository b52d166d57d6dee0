//! Delivery through the IDT: vectors, error codes, stacks, what goes wrong on the way.

use iced_x86::code_asm::*;
use soft::Exit;
use soft::flags;
use soft::op::slot;
use soft::testing::{CODE, STACK};
use soft_testing::{
    DATA64, DPL3, FREE, GDT, Guest, HALTS, IDT, IST1, KERNEL_CODE, KERNEL_DATA, RSP0, TSS,
    USER_CODE, USER_DATA,
};

const NOT_CANONICAL: u64 = 0x8000_0000_0000_0000;

#[test]
fn an_undefined_instruction_is_a_fault_with_a_frame_of_five_words() {
    let mut guest = Guest::new(0, |a| {
        a.nop().unwrap();
        a.ud2().unwrap();
    });
    guest.machine.soft.cpu.set_rflags(flags::CF | flags::IF);
    let frame = guest.trap();
    assert_eq!((frame.vector, frame.error), (6, None));
    assert_eq!((frame.rip, frame.cs), (CODE + 1, KERNEL_CODE.into()));
    assert_eq!(frame.rflags, 0x10203, "RF is set for a fault");
    assert_eq!((frame.rsp, frame.ss), (STACK, KERNEL_DATA.into()));
    assert_eq!(guest.reg(slot::RSP), STACK - 40);
    let cpu = &guest.machine.soft.cpu;
    assert_eq!(cpu.rflags() & (flags::IF | flags::RF), 0);
    assert_eq!(
        cpu.clock, 3,
        "the nop, the fault in place of the instruction, the halt"
    );
}

#[test]
fn the_frame_is_aligned_and_the_old_stack_pointer_is_in_it() {
    let mut guest = Guest::new(0, |a| a.ud2().unwrap());
    guest.set(slot::RSP, STACK - 3);
    let frame = guest.trap();
    assert_eq!(frame.rsp, STACK - 3);
    assert_eq!(guest.reg(slot::RSP), STACK - 16 - 40);
}

#[test]
fn a_trap_gate_leaves_interrupts_on() {
    let mut guest = Guest::new(0, |a| a.int3().unwrap());
    guest.gate(3, HALTS + 48, 0, 0xf, 0);
    guest.machine.soft.cpu.set_rflags(flags::IF);
    let frame = guest.trap();
    assert_eq!(
        (frame.vector, frame.rip),
        (3, CODE + 1),
        "a trap goes on after itself"
    );
    assert_eq!(frame.rflags, 0x202);
    assert!(guest.machine.soft.cpu.rflags() & flags::IF != 0);
}

#[test]
fn ring_3_enters_on_rsp0_with_a_null_ss() {
    let mut guest = Guest::new(3, |a| a.hlt().unwrap());
    let frame = guest.trap();
    assert_eq!((frame.vector, frame.error), (13, Some(0)));
    assert_eq!((frame.cs, frame.ss), (USER_CODE.into(), USER_DATA.into()));
    assert_eq!(frame.rsp, STACK);
    assert_eq!(guest.reg(slot::RSP), RSP0 - 48);
    let cpu = &guest.machine.soft.cpu;
    assert_eq!((cpu.cpl, cpu.segments[2].selector), (0, 0));
}

#[test]
fn an_ist_switches_stacks_without_a_change_of_privilege() {
    let mut guest = Guest::new(0, |a| a.ud2().unwrap());
    guest.gate(6, HALTS + 96, 1, 0xe, 0);
    let frame = guest.trap();
    assert_eq!(frame.rsp, STACK);
    assert_eq!(guest.reg(slot::RSP), (IST1 & !15) - 40);
    assert_eq!(guest.machine.soft.cpu.segments[2].selector, KERNEL_DATA);
}

#[test]
fn software_interrupts_heed_the_gates_privilege() {
    let mut guest = Guest::new(3, |a| a.int(0x80).unwrap());
    let frame = guest.trap();
    assert_eq!((frame.vector, frame.error), (13, Some(0x80 << 3 | 2)));
    assert_eq!(frame.rip, CODE);
    let mut guest = Guest::new(3, |a| a.int(0x80).unwrap());
    guest.open_gate(0x80);
    let frame = guest.trap();
    assert_eq!((frame.vector, frame.rip), (0x80, CODE + 2));
    assert_eq!(frame.rflags & flags::RF, 0);
}

#[test]
fn every_vector_is_reached_by_int() {
    for vector in 0..=255 {
        let mut guest = Guest::new(0, |a| a.int(vector).unwrap());
        guest.halt();
        let at = guest.machine.soft.cpu.rip - 1;
        assert_eq!(at, HALTS + u64::from(vector as u8) * 16);
        assert_eq!(guest.read(guest.reg(slot::RSP)), CODE + 2, "no error code");
    }
}

#[test]
fn gates_that_do_not_fit_raise_gp_or_np_with_the_vector() {
    // (what to do to gate 3, expected vector, expected error)
    type Break = fn(&mut Guest);
    let cases: [(Break, u64, u64); 4] = [
        (|g| g.machine.soft.cpu.idt.limit = 0x3e, 8, 0),
        (
            |g| g.write(IDT + 48, g.read(IDT + 48) & !(1 << 47)),
            11,
            3 << 3 | 2,
        ),
        (|g| g.gate(3, HALTS, 0, 0xc, 0), 13, 3 << 3 | 2),
        (|g| g.gate(3, NOT_CANONICAL, 0, 0xe, 0), 13, 0),
    ];
    for (n, (broken, vector, error)) in cases.into_iter().enumerate() {
        let mut guest = Guest::new(0, |a| a.int3().unwrap());
        broken(&mut guest);
        if n == 0 {
            // #GP has no gate either, nor has #DF.
            assert_eq!(guest.machine.run(10), Exit::TripleFault);
            continue;
        }
        let frame = guest.trap();
        assert_eq!(
            (frame.vector, frame.error),
            (vector, Some(error)),
            "case {n}"
        );
        assert_eq!(frame.rip, CODE);
    }
}

#[test]
fn a_broken_gate_of_an_exception_has_ext_in_the_error() {
    let mut guest = Guest::new(0, |a| a.ud2().unwrap());
    guest.write(IDT + 96, guest.read(IDT + 96) & !(1 << 47));
    let frame = guest.trap();
    assert_eq!((frame.vector, frame.error), (11, Some(6 << 3 | 3)));
}

#[test]
fn the_handlers_code_segment_is_judged() {
    let selector = |g: &mut Guest, s: u64| {
        let gate = g.read(IDT + 48);
        g.write(IDT + 48, gate & !(0xffff << 16) | s << 16);
    };
    for (s, descriptor, vector, error) in [
        (0, 0, 13, 0),
        (0x1000, 0, 13, 0x1000),
        (FREE.into(), DATA64, 13, FREE),
        (FREE.into(), 0x00af_1b00_0000_ffff, 11, FREE),
        (FREE.into(), 0x00cf_9b00_0000_ffff, 13, FREE),
        (FREE.into(), 0x00af_9b00_0000_ffff | DPL3, 13, FREE),
    ] {
        let mut guest = Guest::new(0, |a| a.int3().unwrap());
        guest.write(GDT + u64::from(FREE), descriptor);
        selector(&mut guest, s);
        let frame = guest.trap();
        let expected = (vector, Some(u64::from(error)));
        assert_eq!(
            (frame.vector, frame.error),
            expected,
            "{s:#x} {descriptor:#x}"
        );
    }
}

#[test]
fn a_fault_while_a_fault_is_delivered_is_a_double_fault() {
    // #GP whose gate is not present.
    let mut guest = Guest::new(3, |a| a.hlt().unwrap());
    guest.write(IDT + 13 * 16, 0);
    let frame = guest.trap();
    assert_eq!((frame.vector, frame.error, frame.rip), (8, Some(0), CODE));
    // #PF, then #PF on its stack.
    let mut guest = Guest::new(0, |a| a.mov(eax, dword_ptr(0x1_0000_0000u64)).unwrap());
    guest.gate(14, HALTS + 14 * 16, 1, 0xe, 0);
    guest.write(TSS + 0x24, 0x2_0000_0000);
    let frame = guest.trap();
    assert_eq!((frame.vector, frame.error), (8, Some(0)));
    assert_eq!(guest.machine.soft.cpu.control.cr2, 0x2_0000_0000 - 8 - 40);
}

#[test]
fn a_benign_exception_and_then_a_fault_are_handled_one_after_the_other() {
    let mut guest = Guest::new(0, |a| a.ud2().unwrap());
    guest.gate(6, HALTS + 96, 1, 0xe, 0);
    guest.write(TSS + 0x24, 0x2_0000_0000);
    let frame = guest.trap();
    assert_eq!((frame.vector, frame.error, frame.rip), (14, Some(2), CODE));
}

#[test]
fn a_page_fault_while_gp_is_delivered_is_no_double_fault() {
    let mut guest = Guest::new(3, |a| a.hlt().unwrap());
    guest.gate(13, HALTS + 13 * 16, 1, 0xe, 0);
    guest.write(TSS + 0x24, 0x2_0000_0000);
    let frame = guest.trap();
    assert_eq!((frame.vector, frame.error), (14, Some(2)));
}

#[test]
fn no_double_fault_handler_is_a_triple_fault() {
    let mut guest = Guest::new(3, |a| a.hlt().unwrap());
    guest.write(IDT + 13 * 16, 0);
    guest.write(IDT + 8 * 16, 0);
    assert_eq!(guest.machine.run(10), Exit::TripleFault);
    assert_eq!(guest.machine.soft.cpu.rip, CODE, "nothing changed");
}

#[test]
fn a_stack_that_is_not_canonical_raises_ss() {
    let mut guest = Guest::new(0, |a| a.ud2().unwrap());
    guest.gate(12, HALTS + 12 * 16, 1, 0xe, 0);
    guest.set(slot::RSP, NOT_CANONICAL);
    let frame = guest.trap();
    assert_eq!((frame.vector, frame.error), (12, Some(1)));
    type Body = fn(&mut CodeAssembler);
    let bodies: [Body; 3] = [
        |a| a.pushfq().unwrap(),
        |a| a.mov(rax, qword_ptr(rsp + 8)).unwrap(),
        |a| a.mov(qword_ptr(rbp), rax).unwrap(),
    ];
    for body in bodies {
        let mut guest = Guest::new(0, body);
        guest.gate(12, HALTS + 12 * 16, 1, 0xe, 0);
        guest.set(slot::RSP, NOT_CANONICAL);
        guest.set(slot::RBP, NOT_CANONICAL);
        let frame = guest.trap();
        assert_eq!((frame.vector, frame.error), (12, Some(0)));
    }
    let mut guest = Guest::new(0, |a| a.mov(rax, qword_ptr(rbx)).unwrap());
    guest.set(slot::RBX, NOT_CANONICAL);
    assert_eq!(guest.trap().vector, 13);
}

#[test]
fn a_short_tss_raises_ts() {
    let mut guest = Guest::new(3, |a| a.ud2().unwrap());
    guest.gate(10, HALTS + 160, 0, 0xe, 0);
    guest.machine.soft.cpu.segments[6].limit = 0x2a;
    guest.gate(6, HALTS + 96, 1, 0xe, 0);
    let frame = guest.trap();
    assert_eq!((frame.vector, frame.error), (10, Some(0x31)));
}

#[test]
fn external_interrupts_are_delivered_and_wake_a_halt() {
    let mut guest = Guest::new(0, |a| {
        a.sti().unwrap();
        a.hlt().unwrap();
        a.nop().unwrap();
    });
    guest.halt();
    assert!(guest.machine.soft.cpu.interruptible());
    guest.machine.soft.interrupt(0x20);
    let frame = guest.trap();
    assert_eq!(
        (frame.vector, frame.rip, frame.rflags),
        (0x20, CODE + 2, 0x202)
    );
}

#[test]
fn no_interrupt_comes_between_sti_or_a_load_of_ss_and_what_follows() {
    let mut guest = Guest::new(0, |a| {
        a.sti().unwrap();
        a.mov(ss, eax).unwrap();
        a.nop().unwrap();
    });
    guest.set(slot::RAX, KERNEL_DATA.into());
    let expected = [false, false, false, true];
    for (count, free) in expected.into_iter().enumerate() {
        assert_eq!(
            guest.machine.soft.cpu.interruptible(),
            free,
            "after {count}"
        );
        assert_eq!(guest.machine.run(1), Exit::Stopped);
    }
    // STI does not shadow where interrupts are on already.
    let mut guest = Guest::new(0, |a| a.sti().unwrap());
    guest.machine.soft.cpu.set_rflags(flags::IF);
    guest.machine.run(1);
    assert!(guest.machine.soft.cpu.interruptible());
}

#[test]
fn a_frame_written_over_decoded_instructions_drops_them() {
    // The stack is in the page of the code, and what is decoded there is overwritten.
    let mut guest = Guest::new(0, |a| {
        a.jmp(CODE + 0x80).unwrap();
    });
    guest.put(CODE + 0x80, |a| a.ud2().unwrap());
    guest.set(slot::RSP, CODE + 0x30);
    let frame = guest.trap();
    assert_eq!((frame.vector, frame.rsp), (6, CODE + 0x30));
    assert_eq!(guest.read(CODE + 8), CODE + 0x80);
}
