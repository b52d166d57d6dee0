//! A run that is stopped, saved and restored after any instruction ends as one that is not.

use super::{restore, save};
use crate::state::CpuState;
use iced_x86::code_asm::*;
use replay::Clock;
use replay::codec::{from_bytes, to_bytes};
use soft::cpu::TimeBase;
use soft::op::slot;
use soft::testing::{CODE, DATA, MEMORY};
use soft::{Exit, Soft};
use soft_testing::{Guest, KERNEL_CODE, USER_CODE32, USER_DATA};
use std::sync::atomic::AtomicBool;

const SYSCALL: u64 = 0x14_0000;
const FAULT: u64 = 0x14_0100;
const TRAP: u64 = 0x14_0200;
const CALL: u64 = 0x14_0300;
const TICK: u64 = 0x14_0400;
/// A page whose entry in the page directory comes and goes.
const PAGE: u64 = 0xc0_0000;
const ENTRY: u64 = 0x3000 + 6 * 8;
/// Guest time at clock 0.
const BEGUN: TimeBase = TimeBase::Clock(1000);
/// An interrupt comes every so many instructions.
const PERIOD: u64 = 17;

/// Three rounds of page faults, single steps, system calls both ways, self-modification and clock reads.
fn user(a: &mut CodeAssembler) {
    let mut top = a.create_label();
    let mut changed = a.create_label();
    a.mov(r12d, 3).unwrap();
    a.set_label(&mut top).unwrap();
    a.mov(rbx, PAGE).unwrap();
    a.mov(rax, qword_ptr(rbx)).unwrap();
    a.add(qword_ptr(rbx + 8), rax).unwrap();
    a.inc(qword_ptr(rbx + 16)).unwrap();
    // Single steps.
    a.pushfq().unwrap();
    a.or(qword_ptr(rsp), 0x100).unwrap();
    a.popfq().unwrap();
    a.add(r13, 5).unwrap();
    a.pushfq().unwrap();
    a.and(qword_ptr(rsp), !0x100).unwrap();
    a.popfq().unwrap();
    a.syscall().unwrap();
    a.int(0x80).unwrap();
    a.rdtsc().unwrap();
    a.add(r14, rax).unwrap();
    // The next instruction but one is changed.
    a.lea(rbx, byte_ptr(changed)).unwrap();
    a.inc(byte_ptr(rbx + 1)).unwrap();
    a.set_label(&mut changed).unwrap();
    a.mov(ecx, 7).unwrap();
    a.add(r15, rcx).unwrap();
    a.dec(r12d).unwrap();
    a.jnz(top).unwrap();
    a.hlt().unwrap();
}

fn guest() -> Guest {
    let mut guest = Guest::new(3, user);
    // Unmaps the page, and counts.
    guest.put(SYSCALL, |a| {
        a.swapgs().unwrap();
        a.inc(qword_ptr(0).gs()).unwrap();
        a.mov(qword_ptr(ENTRY), 0).unwrap();
        a.invlpg(byte_ptr(PAGE)).unwrap();
        a.swapgs().unwrap();
        a.sysretq().unwrap();
    });
    // Maps the page.
    guest.put(FAULT, |a| {
        a.push(rax).unwrap();
        a.mov(eax, (PAGE | 0x87) as u32).unwrap();
        a.mov(qword_ptr(ENTRY), rax).unwrap();
        a.pop(rax).unwrap();
        a.add(rsp, 8).unwrap();
        a.iretq().unwrap();
    });
    guest.put(TRAP, |a| {
        a.inc(qword_ptr(DATA + 64)).unwrap();
        a.iretq().unwrap();
    });
    // Lets interrupts in, behind a shadow.
    guest.put(CALL, |a| {
        a.sti().unwrap();
        a.inc(qword_ptr(DATA + 72)).unwrap();
        a.nop().unwrap();
        a.iretq().unwrap();
    });
    guest.put(TICK, |a| {
        a.inc(qword_ptr(DATA + 80)).unwrap();
        a.iretq().unwrap();
    });
    guest.gate(14, FAULT, 2, 0xe, 0);
    guest.gate(1, TRAP, 0, 0xe, 0);
    guest.gate(0x80, CALL, 0, 0xe, 3);
    guest.gate(0x20, TICK, 0, 0xe, 0);
    guest.write(ENTRY, 0);
    guest.write(PAGE, 3);
    let cpu = &mut guest.machine.soft.cpu;
    cpu.msrs.lstar = SYSCALL;
    cpu.msrs.fmask = 0x700;
    cpu.msrs.star = u64::from(USER_CODE32) << 48 | u64::from(KERNEL_CODE) << 32;
    cpu.msrs.kernel_gs_base = DATA;
    cpu.time = BEGUN;
    cpu.set_rflags(0x202);
    for register in [12, 13, 14, 15] {
        cpu.set_slot(register, 0);
    }
    guest
}

/// What is done with a processor between two parts of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Between {
    Nothing,
    /// Decoded instructions go.
    Blocks,
    /// Everything but the saved state goes.
    SaveAndRestore,
}

/// What a processor is, between two runs.
fn state(soft: &Soft) -> CpuState {
    CpuState {
        clock: Clock(soft.cpu.clock),
        ..save(&soft.cpu)
    }
}

/// Puts a state into a processor that knows nothing of the run.
fn put_back(soft: &mut Soft, state: &CpuState) {
    soft.forget();
    restore(&mut soft.cpu, state).unwrap();
    soft.cpu.clock = state.clock.0;
    soft.cpu.time = BEGUN;
}

/// Runs a guest to the end, stopped whenever the clock is in `stops`; the state and the memory then.
fn run_guest(
    mut guest: Guest,
    stops: impl Fn(u64) -> bool,
    between: Between,
) -> (CpuState, Vec<u8>) {
    let nothing = state(&Guest::new(0, |a| a.nop().unwrap()).machine.soft);
    let soft = &mut guest.machine.soft;
    let kick = AtomicBool::new(false);
    loop {
        let clock = soft.cpu.clock;
        let tick = (clock / PERIOD + 1) * PERIOD;
        let stop = (clock + 1..=tick).find(|&c| c == tick || stops(c)).unwrap();
        match soft.run(stop, false, &kick) {
            Exit::Stopped => assert_eq!(soft.cpu.clock, stop),
            // The program's last instruction: #GP, whose handler halts.
            Exit::Halt => break,
            exit => panic!("{exit:?} at {:#x}", soft.cpu.rip),
        }
        if soft.cpu.clock.is_multiple_of(PERIOD) && soft.cpu.interruptible() {
            soft.interrupt(0x20);
        }
        if !stops(soft.cpu.clock) {
            continue;
        }
        match between {
            Between::Nothing => {}
            Between::Blocks => {
                for page in 0..MEMORY as u64 / 4096 {
                    soft.page_written(page);
                }
            }
            Between::SaveAndRestore => {
                assert!(!soft.is_under_way());
                let saved = to_bytes(&state(soft));
                put_back(soft, &nothing);
                put_back(soft, &from_bytes(&saved).unwrap());
            }
        }
    }
    let mut memory = vec![0; MEMORY];
    assert!(soft.cpu.physical.read_bytes(0, &mut memory));
    (state(soft), memory)
}

fn run(stops: impl Fn(u64) -> bool, between: Between) -> (CpuState, Vec<u8>) {
    run_guest(guest(), stops, between)
}

fn word(memory: &[u8], at: u64) -> u64 {
    u64::from_le_bytes(memory[at as usize..][..8].try_into().unwrap())
}

#[test]
fn the_program_does_what_it_says() {
    let (state, memory) = run(|_| false, Between::Nothing);
    let word = |at| word(&memory, at);
    assert_eq!(word(DATA), 3, "system calls");
    assert_eq!(word(DATA + 64), 3 * 4, "single steps");
    assert_eq!(word(DATA + 72), 3, "int 0x80");
    assert!(word(DATA + 80) > 2, "interrupts");
    assert_eq!((word(PAGE + 8), word(PAGE + 16)), (9, 3));
    // RAX, RBX, RCX first.
    assert_eq!(state.general[2], 10);
    assert_eq!((state.general[13], state.general[15]), (15, 8 + 9 + 10));
    assert_eq!(state.rip, soft_testing::HALTS + 13 * 16 + 1);
    assert!(state.general[14] > 3000, "the clock");
}

#[test]
fn a_stop_after_every_instruction_changes_nothing() {
    let straight = run(|_| false, Between::Nothing);
    for between in [Between::Nothing, Between::Blocks, Between::SaveAndRestore] {
        assert!(run(|_| true, between) == straight, "{between:?}");
    }
}

#[test]
fn one_stop_anywhere_changes_nothing() {
    let straight = run(|_| false, Between::Nothing);
    for at in 0..straight.0.clock.0 {
        for between in [Between::Nothing, Between::Blocks, Between::SaveAndRestore] {
            let (state, memory) = run(|clock| clock == at, between);
            assert_eq!(state, straight.0, "{between:?} at {at}");
            assert!(memory == straight.1, "memory after {between:?} at {at}");
        }
    }
}

/// A program in ring 3 that single-steps itself all the way, over a load of SS (whose next instruction comes
/// before the trap), x87 and SSE, and a breakpoint; its handler looks at DR6 and goes on with RF.
fn stepping() -> Guest {
    let mut guest = Guest::new(3, |a| {
        let mut top = a.create_label();
        a.mov(ebx, 5).unwrap();
        a.set_label(&mut top).unwrap();
        a.add(r13, rbx).unwrap();
        a.mov(ss, ecx).unwrap();
        a.inc(r14).unwrap();
        a.fld1().unwrap();
        a.cvtsi2sd(xmm3, ebx).unwrap();
        a.addsd(xmm4, xmm3).unwrap();
        a.dec(ebx).unwrap();
        a.jnz(top).unwrap();
        a.hlt().unwrap();
    });
    // Counts steps and breakpoints.
    guest.put(TRAP, |a| {
        let mut step = a.create_label();
        let mut over = a.create_label();
        a.push(rax).unwrap();
        a.mov(rax, dr6).unwrap();
        a.bt(eax, 14).unwrap();
        a.jc(step).unwrap();
        a.inc(qword_ptr(DATA + 72)).unwrap();
        a.or(qword_ptr(rsp + 8 + 16), 0x10000).unwrap();
        a.jmp(over).unwrap();
        a.set_label(&mut step).unwrap();
        a.inc(qword_ptr(DATA + 64)).unwrap();
        a.set_label(&mut over).unwrap();
        a.mov(eax, 0xffff_0ff0u32).unwrap();
        a.mov(dr6, rax).unwrap();
        a.pop(rax).unwrap();
        a.iretq().unwrap();
    });
    guest.put(TICK, |a| a.iretq().unwrap());
    guest.gate(1, TRAP, 0, 0xe, 0);
    guest.gate(0x20, TICK, 0, 0xe, 0);
    let cpu = &mut guest.machine.soft.cpu;
    // At the loop's first instruction.
    cpu.debug[0] = CODE + 5;
    cpu.debug[7] |= 1;
    cpu.time = BEGUN;
    cpu.set_slot(slot::RCX, USER_DATA.into());
    for register in [13, 14] {
        cpu.set_slot(register, 0);
    }
    cpu.set_rflags(0x302);
    guest
}

#[test]
fn a_guest_under_its_own_debugger_goes_through_a_snapshot_at_every_instruction() {
    let straight = run_guest(stepping(), |_| false, Between::Nothing);
    // The first `mov`, and of eight instructions in each round all but the load of SS.
    assert_eq!(word(&straight.1, DATA + 64), 1 + 5 * 7, "single steps");
    assert_eq!(word(&straight.1, DATA + 72), 5, "breakpoints");
    assert_eq!(straight.0.general[14], 5);
    let stopped = run_guest(stepping(), |_| true, Between::SaveAndRestore);
    assert_eq!(stopped.0, straight.0);
    assert!(stopped.1 == straight.1, "memory");
    for at in 0..straight.0.clock.0 {
        let (state, memory) = run_guest(stepping(), |clock| clock == at, Between::SaveAndRestore);
        assert_eq!(state, straight.0, "at {at}");
        assert!(memory == straight.1, "memory, at {at}");
    }
}
