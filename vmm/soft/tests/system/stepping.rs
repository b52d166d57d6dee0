//! The trap flag, RF, breakpoints on instructions and data.

use iced_x86::code_asm::*;
use soft::Exit;
use soft::flags;
use soft::op::slot;
use soft::testing::{CODE, DATA};
use soft_testing::{Guest, HALTS};

const ENTRY: u64 = 0x14_0000;
const BS: u64 = 1 << 14;

#[test]
fn the_trap_flag_traps_after_each_instruction() {
    let mut guest = Guest::new(3, |a| {
        a.mov(eax, 1).unwrap();
        a.mov(eax, 2).unwrap();
    });
    guest.machine.soft.cpu.set_rflags(flags::TF);
    let frame = guest.trap();
    assert_eq!((frame.vector, frame.rip), (1, CODE + 5));
    assert_eq!(frame.rflags, flags::TF | 2, "TF is saved, RF is not set");
    let cpu = &guest.machine.soft.cpu;
    assert_eq!(cpu.debug[6], 0xffff_0ff0 | BS);
    assert_eq!(cpu.rflags() & flags::TF, 0);
    assert_eq!(guest.reg(slot::RAX), 1);
}

#[test]
fn stepping_through_a_program_by_iretq_counts_its_instructions() {
    // popfq sets TF; the trap comes after the instruction that follows it, and last after the popfq that
    // clears TF.
    let mut guest = Guest::new(3, |a| {
        a.push(0x102).unwrap();
        a.popfq().unwrap();
        a.nop().unwrap();
        a.mov(ss, ecx).unwrap();
        a.nop().unwrap();
        a.push(2).unwrap();
        a.popfq().unwrap();
        a.nop().unwrap();
        a.hlt().unwrap();
    });
    guest.set(slot::RCX, 0x23);
    guest.gate(1, ENTRY, 0, 0xe, 0);
    guest.put(ENTRY, |a| {
        a.inc(r15).unwrap();
        a.iretq().unwrap();
    });
    assert_eq!(guest.trap().vector, 13);
    // nop, (mov ss: not by itself), nop, push, popfq.
    assert_eq!(guest.reg(15), 4);
    // Eight and the #GP in place of the halt, four handlers of two, and the halt in the handler.
    assert_eq!(guest.machine.soft.cpu.clock, 8 + 1 + 4 * 2 + 1);
}

#[test]
fn a_system_call_steps_only_if_the_mask_leaves_tf() {
    for (mask, vector) in [(flags::TF, 3), (0, 1)] {
        let mut guest = Guest::new(3, |a| a.syscall().unwrap());
        guest.put(ENTRY, |a| a.int3().unwrap());
        let cpu = &mut guest.machine.soft.cpu;
        cpu.msrs.lstar = ENTRY;
        cpu.msrs.fmask = mask;
        cpu.set_rflags(flags::TF);
        let frame = guest.trap();
        assert_eq!(frame.vector, vector);
        assert_eq!(frame.rip, if vector == 3 { ENTRY + 1 } else { ENTRY });
    }
    // SYSRET that sets TF traps before the instruction it goes to.
    let mut guest = Guest::new(0, |a| a.sysretq().unwrap());
    guest.set(slot::RCX, CODE + 8);
    guest.set(slot::R11, flags::TF);
    let frame = guest.trap();
    assert_eq!((frame.vector, frame.rip), (1, CODE + 8));
}

#[test]
fn a_software_interrupt_does_not_step() {
    let mut guest = Guest::new(3, |a| a.int(0x80).unwrap());
    guest.open_gate(0x80);
    guest.machine.soft.cpu.set_rflags(flags::TF);
    let frame = guest.trap();
    assert_eq!((frame.vector, frame.rflags), (0x80, flags::TF | 2));
}

#[test]
fn rf_lasts_one_instruction() {
    let mut guest = Guest::new(0, |a| {
        a.nop().unwrap();
        a.nop().unwrap();
    });
    guest.machine.soft.cpu.set_rflags(flags::RF);
    guest.machine.run(1);
    assert_eq!(guest.machine.soft.cpu.rflags(), 2);
}

#[test]
fn an_instruction_breakpoint_fires_before_and_rf_passes_it() {
    let mut guest = Guest::new(0, |a| {
        a.mov(dr0, rax).unwrap();
        a.mov(dr7, rbx).unwrap();
        a.nop().unwrap();
        a.mov(rcx, dr6).unwrap();
        a.hlt().unwrap();
    });
    guest.set(slot::RAX, CODE + 6);
    guest.set(slot::RBX, 2);
    guest.gate(1, ENTRY, 0, 0xe, 0);
    guest.put(ENTRY, |a| {
        a.inc(r15).unwrap();
        a.or(qword_ptr(rsp + 16), 0x10000).unwrap();
        a.iretq().unwrap();
    });
    assert_eq!(guest.machine.run(100), Exit::Halt);
    assert_eq!(guest.reg(15), 1);
    assert_eq!(guest.reg(slot::RCX), 0xffff_0ff1);
}

#[test]
fn general_detect_keeps_debug_registers() {
    let mut guest = Guest::new(0, |a| {
        a.mov(dr7, rax).unwrap();
        a.mov(dr0, rax).unwrap();
    });
    guest.set(slot::RAX, 1 << 13);
    let frame = guest.trap();
    assert_eq!((frame.vector, frame.rip), (1, CODE + 3));
    let cpu = &guest.machine.soft.cpu;
    assert_eq!((cpu.debug[6], cpu.debug[7]), (0xffff_2ff0, 0x400));
    assert_eq!(cpu.rip, HALTS + 17);
}

#[test]
fn an_access_outside_under_tf_steps_once_it_is_done() {
    let mut guest = Guest::new(0, |a| {
        a.in_(al, dx).unwrap();
        a.out(dx, al).unwrap();
    });
    guest.machine.soft.cpu.set_rflags(flags::TF);
    assert!(matches!(guest.machine.run(10), Exit::Read(_)));
    guest.machine.soft.answer(5);
    let frame = guest.trap();
    assert_eq!(
        (frame.vector, frame.rip, guest.reg(slot::RAX)),
        (1, CODE + 1, 5)
    );
}

/// Conditions and lengths of breakpoint 1 in DR7, enabled.
const WRITES: u64 = 1 << 2 | 1 << 20;
const ACCESSES: u64 = 1 << 2 | 3 << 20;
const FOUR: u64 = 3 << 22;
const EIGHT: u64 = 2 << 22;

/// Runs a program with breakpoint 1 at `address`; where the trap comes, if one comes before a halt.
fn watched(
    address: u64,
    enable: u64,
    body: impl FnOnce(&mut CodeAssembler),
) -> (Guest, Option<u64>) {
    let mut guest = Guest::new(0, |a| {
        body(a);
        a.hlt().unwrap();
    });
    let cpu = &mut guest.machine.soft.cpu;
    cpu.debug[1] = address;
    cpu.debug[7] |= enable;
    guest.set(slot::RBX, DATA);
    guest.set(slot::RSI, DATA + 0x100);
    guest.set(slot::RDI, DATA);
    guest.halt();
    let at = guest.machine.soft.cpu.rip - 1;
    if at != HALTS + 16 {
        return (guest, None);
    }
    assert_eq!(guest.machine.soft.cpu.debug[6] & 0xf, 2);
    let rip = guest.frame().rip;
    (guest, Some(rip))
}

#[test]
fn a_breakpoint_on_data_traps_behind_the_instruction_that_touches_it() {
    let store = |a: &mut CodeAssembler| a.mov(dword_ptr(rbx + 8), eax).unwrap();
    let load = |a: &mut CodeAssembler| a.mov(eax, dword_ptr(rbx + 8)).unwrap();
    // Each of these instructions has three bytes.
    let behind = Some(CODE + 3);
    assert_eq!(watched(DATA + 8, WRITES | FOUR, store).1, behind);
    assert_eq!(watched(DATA + 11, WRITES, store).1, behind, "its last byte");
    assert_eq!(watched(DATA + 12, WRITES, store).1, None, "behind it");
    assert_eq!(watched(DATA + 7, WRITES, store).1, None, "before it");
    assert_eq!(watched(DATA + 8, EIGHT | WRITES, store).1, behind);
    assert_eq!(
        watched(DATA + 13, EIGHT | WRITES, store).1,
        behind,
        "8 to 15"
    );
    assert_eq!(watched(DATA + 8, WRITES | FOUR, load).1, None, "a read");
    assert_eq!(watched(DATA + 8, ACCESSES | FOUR, load).1, behind);
    assert_eq!(watched(DATA + 8, FOUR, store).1, None, "not enabled");
    let lea = |a: &mut CodeAssembler| a.lea(eax, dword_ptr(rbx + 8)).unwrap();
    assert_eq!(watched(DATA + 8, ACCESSES | FOUR, lea).1, None, "no access");
}

#[test]
fn a_breakpoint_on_data_stops_a_repeated_instruction_behind_the_iteration() {
    let (guest, at) = watched(DATA + 5, WRITES, |a| {
        a.mov(ecx, 9).unwrap();
        a.rep().movsb().unwrap();
    });
    // The instruction is not over: the trap returns to it.
    assert_eq!(at, Some(CODE + 5));
    assert_eq!((guest.reg(slot::RCX), guest.reg(slot::RDI)), (3, DATA + 6));
}
