//! What vector and x87 instructions raise, and what they leave alone when they do. An exception here ends
//! in a triple fault, there being no IDT: what is looked at is the state the processor stopped in.

use iced_x86::code_asm::*;
use soft::Exit;
use soft::cpu::bits;
use soft::op::slot;
use soft::testing::{CODE, DATA, Machine};
use soft::trap::vector;

/// The exception the first instruction raises, told by a handler that halts.
fn raised(machine: &mut Machine) -> Option<u8> {
    let cpu = &mut machine.soft.cpu;
    // An IDT of 32 gates, each to a halt of its own.
    let (idt, handlers) = (0x40_0000u64, 0x41_0000u64);
    for n in 0..32 {
        let handler = handlers + n * 16;
        let low = handler & 0xffff | 8 << 16 | 0x8e00 << 32 | (handler >> 16 & 0xffff) << 48;
        cpu.physical.write(idt + n * 16, low, 8);
        cpu.physical.write(idt + n * 16 + 8, handler >> 32, 8);
        cpu.physical.write(handler, 0xf4, 1);
    }
    cpu.idt = soft::cpu::Table {
        base: idt,
        limit: 0x1ff,
    };
    // A GDT with the code segment the gates name.
    cpu.gdt = soft::cpu::Table {
        base: 0x42_0000,
        limit: 0x1f,
    };
    cpu.physical.write(0x42_0008, 0x00af_9b00_0000_ffff, 8);
    cpu.physical.write(0x42_0010, 0x00cf_9300_0000_ffff, 8);
    match machine.run(50) {
        Exit::Halt => {
            let rip = machine.soft.cpu.rip;
            let inside = (handlers..handlers + 512).contains(&rip);
            inside.then(|| ((rip - handlers) / 16) as u8)
        }
        Exit::Stopped => None,
        other => panic!("{other:?}"),
    }
}

/// A processor in ring 0 about to run what `body` assembles, RSI at [`DATA`].
fn machine(body: impl FnOnce(&mut CodeAssembler)) -> Machine {
    let mut a = CodeAssembler::new(64).unwrap();
    body(&mut a);
    a.hlt().unwrap();
    let mut machine = Machine::new(&a.assemble(CODE).unwrap(), 0);
    machine.soft.cpu.set_slot(slot::RSI, DATA);
    machine
}

#[test]
fn unaligned_operands_fault_where_the_architecture_says() {
    let mut m = machine(|a| a.movaps(xmm1, xmmword_ptr(rsi + 8)).unwrap());
    assert_eq!(raised(&mut m), Some(vector::GP));
    let mut m = machine(|a| a.paddd(xmm1, xmmword_ptr(rsi + 4)).unwrap());
    assert_eq!(raised(&mut m), Some(vector::GP));
    let mut m = machine(|a| a.movups(xmm1, xmmword_ptr(rsi + 8)).unwrap());
    assert_eq!(raised(&mut m), None);
    let mut m = machine(|a| a.fxsave(ptr(rsi + 8)).unwrap());
    assert_eq!(raised(&mut m), Some(vector::GP));
}

#[test]
fn instructions_are_refused_by_control_bits() {
    let sse = |a: &mut CodeAssembler| a.xorps(xmm1, xmm1).unwrap();
    let mmx = |a: &mut CodeAssembler| a.pxor(mm1, mm1).unwrap();
    let x87 = |a: &mut CodeAssembler| a.fld1().unwrap();
    let with = |body: fn(&mut CodeAssembler), set: u64, clear: u64| {
        let mut m = machine(body);
        m.soft.cpu.control.cr0 |= set;
        m.soft.cpu.control.cr4 &= !clear;
        raised(&mut m)
    };
    assert_eq!(with(sse, bits::CR0_TS, 0), Some(vector::NM));
    assert_eq!(with(sse, bits::CR0_EM, 0), Some(vector::UD));
    assert_eq!(with(sse, bits::CR0_TS, bits::CR4_OSFXSR), Some(vector::UD));
    assert_eq!(with(mmx, bits::CR0_TS, 0), Some(vector::NM));
    assert_eq!(with(mmx, bits::CR0_EM, 0), Some(vector::UD));
    assert_eq!(with(mmx, 0, bits::CR4_OSFXSR), None);
    assert_eq!(with(x87, bits::CR0_TS, 0), Some(vector::NM));
    assert_eq!(with(x87, bits::CR0_EM, 0), Some(vector::NM));
    let wait = |a: &mut CodeAssembler| a.wait().unwrap();
    assert_eq!(with(wait, bits::CR0_TS, 0), Some(vector::NM));
    assert_eq!(with(wait, bits::CR0_EM, 0), None);
}

#[test]
fn an_unmasked_simd_error_keeps_the_destination() {
    for (allowed, expected) in [(true, vector::XM), (false, vector::UD)] {
        let mut m = machine(|a| a.divss(xmm1, xmm2).unwrap());
        let cpu = &mut m.soft.cpu;
        if !allowed {
            cpu.control.cr4 &= !bits::CR4_OSXMMEXCPT;
        }
        cpu.fpu.xmm[1] = 0x3f80_0000;
        cpu.fpu.mxcsr = 0x1f80 & !(1 << 9);
        assert_eq!(raised(&mut m), Some(expected));
        assert_eq!(m.soft.cpu.fpu.xmm[1], 0x3f80_0000);
        assert_eq!(m.soft.cpu.fpu.mxcsr & 0x3f, 1 << 2);
    }
}

#[test]
fn an_exact_denormal_is_an_underflow_only_where_that_is_unmasked() {
    for (mxcsr, expected, flags) in [(0x1f80, None, 0), (0x1780, Some(vector::XM), 1 << 4)] {
        // Twice 2^-127, half: exact, and a denormal.
        let mut m = machine(|a| a.mulss(xmm1, xmm2).unwrap());
        let cpu = &mut m.soft.cpu;
        cpu.fpu.xmm[1] = 0x0080_0000;
        cpu.fpu.xmm[2] = 0x3f00_0000;
        cpu.fpu.mxcsr = mxcsr;
        assert_eq!(raised(&mut m), expected);
        assert_eq!(m.soft.cpu.fpu.mxcsr & 0x3f, flags);
    }
}

#[test]
fn operand_errors_hide_result_errors() {
    // Lane 0 divides by zero, lane 1 is inexact.
    let mut m = machine(|a| a.divps(xmm1, xmm2).unwrap());
    let cpu = &mut m.soft.cpu;
    cpu.fpu.xmm[1] = 0x3f80_0000_3f80_0000;
    cpu.fpu.xmm[2] = 0x4040_0000 << 32 | 0x3f80_0000 << 64 | 0x3f80_0000 << 96;
    cpu.fpu.mxcsr = 0x1f80 & !(1 << 9);
    assert_eq!(raised(&mut m), Some(vector::XM));
    assert_eq!(m.soft.cpu.fpu.mxcsr & 0x3f, 1 << 2);
}

#[test]
fn reserved_bits_of_mxcsr_fault() {
    let mut m = machine(|a| a.ldmxcsr(dword_ptr(rsi)).unwrap());
    m.soft.cpu.physical.write(DATA, 0x1_1f80, 4);
    assert_eq!(raised(&mut m), Some(vector::GP));
    assert_eq!(m.soft.cpu.fpu.mxcsr, 0x1f80);
    let mut m = machine(|a| a.fxrstor(ptr(rsi)).unwrap());
    m.soft.cpu.physical.write(DATA + 24, 0x8000_0000, 4);
    let before = m.soft.cpu.fpu;
    assert_eq!(raised(&mut m), Some(vector::GP));
    assert_eq!(m.soft.cpu.fpu, before);
}

#[test]
fn an_x87_error_waits_for_the_next_instruction_that_waits() {
    // 1 / 0 unmasked retires; FNSTSW does not wait; FADD does.
    let mut m = machine(|a| {
        a.fld1().unwrap();
        a.fldz().unwrap();
        a.fdivp(st1, st0).unwrap();
        a.fnstsw(ax).unwrap();
        a.fld1().unwrap();
    });
    m.soft.cpu.fpu.fcw = 0x37b;
    assert_eq!(raised(&mut m), Some(vector::MF));
    let cpu = &m.soft.cpu;
    assert_eq!(cpu.slot(slot::RAX) & 0x80ff, 0x8084);
    // Nothing was popped.
    assert_eq!(cpu.fpu.tags.count_ones(), 2);
    // MMX instructions wait, too.
    let mut m = machine(|a| a.paddb(mm1, mm2).unwrap());
    m.soft.cpu.fpu.fsw = 0x8084;
    assert_eq!(raised(&mut m), Some(vector::MF));
}

#[test]
fn fxsave_and_fxrstor_keep_everything() {
    let mut m = machine(|a| {
        a.fxsave(ptr(rsi)).unwrap();
        a.fxrstor(ptr(rsi + 512)).unwrap();
        a.fxrstor(ptr(rsi)).unwrap();
    });
    let fpu = &mut m.soft.cpu.fpu;
    for n in 0..16u32 {
        fpu.xmm[n as usize] = u128::from(n + 1) * 0x0102_0304_0506_0708_090a_0b0c_0d0e_0f01;
    }
    for n in 0..8 {
        fpu.x87[n] = 0x4000_8000_0000_0000_0000 + n as u128;
    }
    (fpu.fsw, fpu.fcw, fpu.tags, fpu.mxcsr) = (0x2923, 0x27f, 0xa5, 0x9fa3);
    let before = *fpu;
    for n in 416..512 {
        m.soft.cpu.physical.write(DATA + n, 0xcc, 1);
    }
    assert_eq!(raised(&mut m), None);
    assert_eq!(m.soft.cpu.fpu, before);
    let memory = &m.soft.cpu.physical;
    assert_eq!(memory.read(DATA + 28, 4), Some(0xffff));
    // ST0 is the physical register TOP names.
    assert_eq!(memory.read(DATA + 32, 8), Some(0x8000_0000_0000_0005));
    assert_eq!(memory.read(DATA + 42, 2), Some(0));
    assert_eq!(memory.read(DATA + 416, 8), Some(0xcccc_cccc_cccc_cccc));
}

#[test]
fn mmx_registers_are_the_x87_ones() {
    let mut m = machine(|a| {
        a.movq(mm3, rax).unwrap();
        a.emms().unwrap();
    });
    m.soft.cpu.set_slot(slot::RAX, 0x1122_3344_5566_7788);
    m.soft.cpu.fpu.fsw = 0x2800;
    assert_eq!(m.run(1), Exit::Stopped);
    let fpu = &m.soft.cpu.fpu;
    assert_eq!(fpu.x87[3], 0xffff_1122_3344_5566_7788);
    assert_eq!((fpu.fsw, fpu.tags), (0, 0xff));
    assert_eq!(m.run(1), Exit::Stopped);
    assert_eq!(m.soft.cpu.fpu.tags, 0);
}

#[test]
fn masked_moves_write_only_what_they_select() {
    let mut m = machine(|a| a.maskmovdqu(xmm1, xmm2).unwrap());
    let cpu = &mut m.soft.cpu;
    cpu.set_slot(slot::RDI, DATA + 3);
    cpu.fpu.xmm[1] = 0x1f1e_1d1c_1b1a_1918_1716_1514_1312_1110;
    cpu.fpu.xmm[2] = 0x8000_0000_0000_0000_0000_0000_007f_ff80;
    assert_eq!(raised(&mut m), None);
    let memory = &m.soft.cpu.physical;
    assert_eq!(memory.read(DATA + 3, 8), Some(0x1110));
    assert_eq!(memory.read(DATA + 11, 8), Some(0x1f00_0000_0000_0000));
}
