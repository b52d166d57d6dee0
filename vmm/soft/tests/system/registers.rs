//! Control, debug, segment and model-specific registers.

use iced_x86::code_asm::*;
use soft::Exit;
use soft::cpu::TimeBase;
use soft::op::slot;
use soft::testing::{CODE, DATA};
use soft_testing::{CODE64, DATA64, DPL3, FREE, GDT, Guest, KERNEL_DATA};

/// Runs one instruction; the vector and error it raises, if any.
fn one(mut guest: Guest) -> (Guest, Option<(u64, Option<u64>)>) {
    guest.machine.run(1);
    let cpu = &guest.machine.soft.cpu;
    if (soft_testing::HALTS..soft_testing::HALTS + 0x1000).contains(&cpu.rip) {
        let frame = guest.frame();
        return (guest, Some((frame.vector, frame.error)));
    }
    (guest, None)
}

const GP: Option<(u64, Option<u64>)> = Some((13, Some(0)));

#[test]
fn msrs_hold_what_they_may_and_refuse_the_rest() {
    for (msr, value, expected) in [
        (0xc000_0081u64, 0x1234_5678_9abc_def0u64, None),
        (0xc000_0082, 0xffff_8000_0000_0000, None),
        (0xc000_0082, 0x8000_0000_0000, GP),
        (0xc000_0084, 0x47700, None),
        (0xc000_0100, 0x7fff_ffff_f000, None),
        (0xc000_0101, 1 << 63, GP),
        (0xc000_0102, 0xffff_ffff_8000_0000, None),
        (0x277, 0x0007_0406_0007_0406, None),
        (0x277, 2, GP),
        (0x174, 0x10, None),
        (0xc000_0080, 0xd01, None),
        (0xc000_0080, 0xc01, GP),
        (0xc000_0080, 1 << 14 | 0xd01, GP),
        (0x1234, 0, GP),
    ] {
        let mut guest = Guest::new(0, |a| {
            a.wrmsr().unwrap();
            a.rdmsr().unwrap();
        });
        guest.set(slot::RCX, msr);
        guest.set(slot::RAX, value & 0xffff_ffff | 0xdead << 32);
        guest.set(slot::RDX, value >> 32 | 0xdead << 32);
        let (mut guest, raised) = one(guest);
        assert_eq!(raised, expected, "{msr:#x} {value:#x}");
        if raised.is_none() {
            guest.set(slot::RAX, 0);
            guest.set(slot::RDX, 0);
            guest.machine.run(1);
            let read = guest.reg(slot::RDX) << 32 | guest.reg(slot::RAX);
            assert_eq!(read, value, "{msr:#x}");
        }
    }
    let (_, raised) = one(Guest::new(3, |a| a.rdmsr().unwrap()));
    assert_eq!(raised, GP);
}

#[test]
fn swapgs_swaps_what_gs_operands_use() {
    let mut guest = Guest::new(0, |a| {
        a.swapgs().unwrap();
        a.mov(rax, qword_ptr(8).gs()).unwrap();
    });
    guest.write(DATA + 8, 77);
    guest.machine.soft.cpu.msrs.kernel_gs_base = DATA;
    guest.machine.run(2);
    assert_eq!(guest.reg(slot::RAX), 77);
    assert_eq!(guest.machine.soft.cpu.msrs.kernel_gs_base, 0);
}

#[test]
fn control_registers_refuse_what_the_model_lacks() {
    type Body = fn(&mut CodeAssembler);
    let to_cr0: Body = |a| a.mov(cr0, rax).unwrap();
    let to_cr3: Body = |a| a.mov(cr3, rax).unwrap();
    let to_cr4: Body = |a| a.mov(cr4, rax).unwrap();
    let to_cr8: Body = |a| a.mov(cr8, rax).unwrap();
    for (body, value, expected) in [
        (to_cr0, 0x8005_0033u64, None),
        (to_cr0, 0x8000_0032, GP),
        (to_cr0, 0xa000_0033, GP),
        (to_cr0, 0x0000_0033, GP),
        (to_cr0, 0x1_8000_0033, GP),
        (to_cr3, 0x1018, None),
        (to_cr3, 1 << 40, GP),
        (to_cr4, 0x6a0, None),
        (to_cr4, 0x680, GP),
        (to_cr4, 0x6a0 | 1 << 18, GP),
        (to_cr4, 0x6a0 | 1 << 17, GP),
        (to_cr8, 15, None),
        (to_cr8, 16, GP),
    ] {
        let mut guest = Guest::new(0, |a| {
            body(a);
            a.nop().unwrap();
        });
        guest.set(slot::RAX, value);
        let (_, raised) = one(guest);
        assert_eq!(raised, expected, "{value:#x}");
    }
    let (_, raised) = one(Guest::new(3, |a| a.mov(rax, cr0).unwrap()));
    assert_eq!(raised, GP);
    let (_, raised) = one(Guest::new(0, |a| a.db(&[0x0f, 0x20, 0xc8]).unwrap())); // mov rax, cr1
    assert_eq!(raised, Some((6, None)));
}

#[test]
fn clts_lmsw_and_smsw() {
    let mut guest = Guest::new(0, |a| {
        a.lmsw(ax).unwrap();
        a.smsw(rbx).unwrap();
        a.clts().unwrap();
        a.smsw(rcx).unwrap();
    });
    guest.set(slot::RAX, 0xffff_fff8);
    guest.machine.run(4);
    assert_eq!(guest.reg(slot::RBX), 0x8001_0039);
    assert_eq!(guest.reg(slot::RCX), 0x8001_0031);
}

#[test]
fn segment_registers_are_judged_when_loaded() {
    let f = u64::from(FREE);
    // (register by name is in the code), selector, descriptor at FREE, ring, expected
    let load_ds: fn(&mut CodeAssembler) = |a| a.mov(ds, eax).unwrap();
    let load_ss: fn(&mut CodeAssembler) = |a| a.mov(ss, eax).unwrap();
    for (body, selector, descriptor, ring, expected) in [
        (load_ds, f, DATA64, 0, None),
        (load_ds, 0, 0, 3, None),
        (load_ds, f, CODE64, 0, None),
        (load_ds, f, CODE64 & !(2 << 40), 0, Some((13, Some(f)))),
        (load_ds, f, DATA64, 3, Some((13, Some(f)))),
        (load_ds, f | 3, DATA64 | DPL3, 3, None),
        (load_ds, f, DATA64 & !(0x80 << 40), 0, Some((11, Some(f)))),
        (load_ds, 0x200, 0, 0, Some((13, Some(0x200)))),
        (load_ds, 0x44, 0, 0, Some((13, Some(0x44)))),
        (load_ss, 0, 0, 0, None),
        (load_ss, 0, 0, 3, GP),
        (load_ss, f, DATA64, 0, None),
        (load_ss, f, DATA64 & !(2 << 40), 0, Some((13, Some(f)))),
        (load_ss, f, DATA64 & !(0x80 << 40), 0, Some((12, Some(f)))),
        (load_ss, f | 3, DATA64, 3, Some((13, Some(f)))),
    ] {
        let mut guest = Guest::new(ring, body);
        guest.write(GDT + f, descriptor);
        guest.set(slot::RAX, selector);
        let (_, raised) = one(guest);
        assert_eq!(
            raised, expected,
            "{selector:#x} {descriptor:#x} ring {ring}"
        );
    }
    let (_, raised) = one(Guest::new(0, |a| a.db(&[0x8e, 0xc8]).unwrap())); // mov cs, ax
    assert_eq!(raised, Some((6, None)));
}

#[test]
fn loading_a_segment_marks_its_descriptor_accessed() {
    let mut guest = Guest::new(0, |a| a.mov(es, eax).unwrap());
    guest.write(GDT + u64::from(FREE), DATA64 & !(1 << 40));
    guest.set(slot::RAX, FREE.into());
    guest.machine.run(1);
    assert_eq!(guest.read(GDT + u64::from(FREE)), DATA64);
}

#[test]
fn fs_and_gs_go_to_the_stack_and_back() {
    let mut guest = Guest::new(0, |a| {
        a.push(fs).unwrap();
        a.pop(gs).unwrap();
        a.mov(rax, gs).unwrap();
    });
    guest.machine.soft.cpu.segments[4].selector = 0;
    guest.set(slot::RAX, u64::MAX);
    guest.machine.run(3);
    assert_eq!(guest.reg(slot::RAX), 0);
}

#[test]
fn descriptor_tables_are_stored_as_loaded() {
    let mut guest = Guest::new(0, |a| {
        a.lidt(tbyte_ptr(rbx)).unwrap();
        a.sidt(tbyte_ptr(rbx + 16)).unwrap();
        a.ltr(cx).unwrap();
        a.str(edx).unwrap();
        a.lldt(si).unwrap();
        a.sldt(edi).unwrap();
    });
    guest.set(slot::RBX, DATA);
    guest.write(DATA, 0x1234_5678_0123);
    guest.set(slot::RCX, 0x30);
    let tss = guest.read(GDT + 0x30);
    guest.write(GDT + 0x30, tss & !(2 << 40));
    guest.set(slot::RSI, 0);
    guest.set(slot::RDI, 7);
    guest.machine.run(6);
    assert_eq!(guest.read(DATA + 16), 0x1234_5678_0123);
    assert_eq!(guest.read(GDT + 0x30), tss, "busy");
    assert_eq!((guest.reg(slot::RDX), guest.reg(slot::RDI)), (0x30, 0));
    assert_eq!(guest.machine.soft.cpu.segments[6].base, soft_testing::TSS);
}

#[test]
fn lar_lsl_and_verw_answer_in_zf() {
    let mut guest = Guest::new(3, |a| {
        a.lar(eax, ecx).unwrap();
        a.setz(r8b).unwrap();
        a.lsl(ebx, ecx).unwrap();
        a.verw(cx).unwrap();
        a.setz(r9b).unwrap();
        a.lar(edx, esi).unwrap();
        a.setz(r10b).unwrap();
    });
    guest.set(slot::RCX, 0x23);
    guest.set(slot::RSI, KERNEL_DATA.into());
    guest.set(10, 9);
    assert_eq!(guest.machine.run(7), Exit::Stopped);
    assert_eq!(guest.reg(slot::RAX), 0x00c0_f300);
    assert_eq!(guest.reg(slot::RBX), 0xffff_ffff);
    assert_eq!((guest.reg(8), guest.reg(9), guest.reg(10)), (1, 1, 0));
}

#[test]
fn the_time_stamp_counter_is_the_clock_wherever_it_is_read() {
    let mut guest = Guest::new(3, |a| {
        a.mov(ebx, 1).unwrap();
        a.mov(ebx, 2).unwrap();
        a.rdtsc().unwrap();
        a.mov(ebx, 2).unwrap();
    });
    guest.machine.soft.cpu.time = TimeBase::Clock(1 << 40);
    for stop in 0..3 {
        guest.machine.soft.cpu.clock = 0;
        guest.machine.soft.cpu.rip = CODE;
        guest.machine.run(stop);
        guest.machine.run(4 - stop);
        assert_eq!(guest.reg(slot::RAX), 2);
        assert_eq!(guest.reg(slot::RDX), 1 << 8);
    }
    let mut guest = Guest::new(3, |a| a.rdtsc().unwrap());
    guest.machine.soft.cpu.control.cr4 |= 4;
    assert_eq!(guest.trap().vector, 13);
}

#[test]
fn cpuid_answers_from_the_model() {
    let mut guest = Guest::new(3, |a| a.cpuid().unwrap());
    guest.machine.run(1);
    assert_eq!(guest.reg(slot::RBX), 0x6874_7541);
}

#[test]
fn the_fpu_is_refused_while_switched_off() {
    let sse: fn(&mut CodeAssembler) = |a| a.xorps(xmm0, xmm0).unwrap();
    let x87: fn(&mut CodeAssembler) = |a| a.fld1().unwrap();
    for (body, in_cr0, in_cr4, vector) in [
        (sse, 1 << 3, 0x620, 7),
        (sse, 1 << 2, 0x620, 6),
        (sse, 0, 0x20, 6),
        (x87, 1 << 3, 0x620, 7),
        (x87, 1 << 2, 0x620, 7),
    ] {
        let mut guest = Guest::new(0, body);
        guest.machine.soft.cpu.control.cr0 |= in_cr0;
        guest.machine.soft.cpu.control.cr4 = in_cr4;
        assert_eq!(guest.trap().vector, vector);
    }
}
