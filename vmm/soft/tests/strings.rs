//! Repeated string instructions: what they count, where they can be stopped, and that nobody can tell what
//! is kept decoded. What they compute is compared with the host's processor (`differential`).

use iced_x86::code_asm::{CodeAssembler, eax, ecx, rax, rcx, rdi, rsi};
use soft::Exit;
use soft::op::slot;
use soft::testing::{CODE, DATA, MEMORY, Machine};
use soft::trap::{Access, Space};

/// Not RAM.
const DEVICE: u64 = MEMORY as u64 + 0x1000;

fn machine(body: impl FnOnce(&mut CodeAssembler)) -> Machine {
    let mut a = CodeAssembler::new(64).unwrap();
    body(&mut a);
    Machine::new(&a.assemble(CODE).unwrap(), 3)
}

/// `rep stosb` of `count` bytes at `address`, then a NOP.
fn fill(address: u64, count: u64) -> Machine {
    let mut machine = machine(|a| {
        a.rep().stosb().unwrap();
        a.nop().unwrap();
    });
    let cpu = &mut machine.soft.cpu;
    cpu.set_slot(slot::RDI, address);
    cpu.set_slot(slot::RCX, count);
    cpu.set_slot(slot::RAX, 0x5a);
    machine
}

#[test]
fn a_repeated_instruction_counts_one_for_each_4096_iterations() {
    for (count, clock) in [(0, 1), (1, 1), (4096, 1), (4097, 2), (10_000, 3)] {
        let mut machine = fill(DATA + 5, count);
        while machine.soft.cpu.rip == CODE {
            assert_eq!(machine.run(1), Exit::Stopped);
        }
        assert_eq!(machine.soft.cpu.clock, clock, "{count} iterations");
        assert_eq!(machine.soft.cpu.slot(slot::RCX), 0);
        assert_eq!(machine.soft.cpu.slot(slot::RDI), DATA + 5 + count);
        let physical = &machine.soft.cpu.physical;
        assert_eq!(physical.read(DATA + 5 + count, 1), Some(0));
        for at in 0..count {
            assert_eq!(physical.read(DATA + 5 + at, 1), Some(0x5a));
        }
    }
}

#[test]
fn it_stands_on_itself_between_chunks() {
    let mut machine = fill(DATA, 10_000);
    assert_eq!(machine.run(2), Exit::Stopped);
    let cpu = &machine.soft.cpu;
    assert_eq!((cpu.rip, cpu.clock), (CODE, 2));
    assert_eq!(cpu.slot(slot::RCX), 10_000 - 8192);
    assert_eq!(cpu.slot(slot::RDI), DATA + 8192);
}

#[test]
fn iterations_on_a_device_count_one_each() {
    let mut machine = machine(|a| a.rep().movsd().unwrap());
    let cpu = &mut machine.soft.cpu;
    cpu.set_slot(slot::RSI, DEVICE);
    cpu.set_slot(slot::RDI, DATA - 4);
    cpu.set_slot(slot::RCX, 3);
    for n in 0..3 {
        let access = Access {
            space: Space::Memory,
            address: DEVICE + 4 * n,
            size: 4,
            value: None,
        };
        assert_eq!(machine.run(10), Exit::Read(access));
        let cpu = &machine.soft.cpu;
        assert_eq!((cpu.clock, cpu.rip), (n, CODE));
        assert_eq!(
            cpu.slot(slot::RCX),
            3 - n,
            "what was done is in the registers"
        );
        machine.soft.answer(0x1000 + n);
    }
    assert_eq!(machine.run(1), Exit::Stopped);
    for n in 0..3 {
        let at = DATA - 4 + 4 * n;
        assert_eq!(machine.soft.cpu.physical.read(at, 4), Some(0x1000 + n));
    }
    let cpu = &machine.soft.cpu;
    assert_eq!((cpu.clock, cpu.rip), (3, CODE + 2));
}

#[test]
fn a_chunk_ends_before_the_device_it_runs_into() {
    let mut machine = fill(MEMORY as u64 - 100, 102);
    for n in 0..2 {
        let access = Access {
            space: Space::Memory,
            address: MEMORY as u64 + n,
            size: 1,
            value: Some(0x5a),
        };
        assert_eq!(machine.run(10), Exit::Write(access));
        assert_eq!(machine.soft.cpu.slot(slot::RCX), 1 - n);
        assert_eq!(
            machine.soft.cpu.clock,
            2 + n,
            "100 bytes of RAM, then one each"
        );
    }
    assert_eq!(machine.soft.cpu.rip, CODE + 2);
}

#[test]
fn code_under_the_destination_is_written_and_costs_nothing() {
    // The function at DATA + 0x1800 is called, overwritten by the fill, and called again.
    const FUNCTION: u64 = DATA + 0x1800;
    let program = |decode: bool| {
        let mut machine = machine(|a| {
            a.mov(rdi, DATA).unwrap();
            a.mov(rcx, 0x1800u64).unwrap();
            a.mov(eax, 0x90).unwrap();
            if decode {
                a.call(FUNCTION).unwrap();
            } else {
                a.nop().unwrap();
            }
            a.rep().stosb().unwrap();
            a.mov(rsi, DATA + 0x4000).unwrap();
            a.mov(ecx, 6).unwrap();
            a.rep().movsb().unwrap();
            a.call(FUNCTION).unwrap();
            a.nop().unwrap();
        });
        let physical = &mut machine.soft.cpu.physical;
        physical.write(FUNCTION, 0xc3, 1);
        // `mov eax, 7; ret`
        physical.write(DATA + 0x4000, 0xc300_0000_07b8, 8);
        machine
    };
    let mut kept = program(true);
    let mut plain = program(false);
    let finish = |machine: &mut Machine| {
        while machine.soft.cpu.slot(slot::RAX) != 7 {
            assert_eq!(machine.run(1), Exit::Stopped);
        }
        machine.soft.cpu.clock
    };
    // The first call is one instruction and its return another, in place of the NOP.
    assert_eq!(finish(&mut kept), finish(&mut plain) + 1);
}

#[test]
fn it_writes_over_itself() {
    // The fill begins on the instruction that does it and goes on over what follows.
    let mut machine = machine(|a| {
        a.mov(rax, 0x90u64).unwrap();
        a.lea(rdi, iced_x86::code_asm::ptr(CODE + 0x40)).unwrap();
        a.mov(rcx, 0x40u64).unwrap();
        for _ in 0..0x2b {
            a.nop().unwrap();
        }
        a.rep().stosb().unwrap();
        a.ud2().unwrap();
    });
    let end = CODE + 0x80;
    for _ in 0..200 {
        if machine.soft.cpu.rip == end {
            break;
        }
        assert_eq!(machine.run(1), Exit::Stopped);
    }
    assert_eq!(machine.soft.cpu.rip, end, "what it wrote runs");
}
