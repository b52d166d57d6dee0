//! 32-bit programs under a 64-bit kernel.

use iced_x86::code_asm::*;
use soft::Exit;
use soft::cpu::segment;
use soft::op::slot;
use soft::testing::{DATA, STACK};
use soft_testing::{
    CODE32, DPL3, FREE, GDT, Guest, RSP0, USER_CODE, USER_CODE32, USER_DATA, assemble,
};

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

/// An instruction with 16-bit addresses: registers and memory before, and what must be there after. Upper
/// halves of registers that make addresses are no part of them.
struct Short {
    bytes: &'static [u8],
    regs: &'static [(u8, u64)],
    poke: &'static [(u64, u64)],
    regs_after: &'static [(u8, u64)],
    memory_after: &'static [(u64, u64)],
}

/// Base of DS, ES and SS in the table's cases; their words are told by their offsets.
const SEGMENT: u64 = 0x31_0000;

const SHORTS: &[Short] = &[
    // mov eax, [bx+si], wrapping at 64 KiB
    Short {
        bytes: &[0x67, 0x8b, 0x00],
        regs: &[(slot::RBX, 0xabcd_f000), (slot::RSI, 0x1234_2010)],
        poke: &[(0x1010, 0x1111_2222)],
        regs_after: &[(slot::RAX, 0x1111_2222), (slot::RBX, 0xabcd_f000)],
        memory_after: &[],
    },
    // mov [bx+di-1], eax
    Short {
        bytes: &[0x67, 0x89, 0x41, 0xff],
        regs: &[(slot::RBX, 0), (slot::RDI, 0x11), (slot::RAX, 0x55)],
        poke: &[],
        regs_after: &[],
        memory_after: &[(0x10, 0x55)],
    },
    // add word [bp+si+0x8000], ax
    Short {
        bytes: &[0x67, 0x66, 0x01, 0x82, 0x00, 0x80],
        regs: &[(slot::RBP, 0x8000), (slot::RSI, 0x20), (slot::RAX, 3)],
        poke: &[(0x20, 0x1_0005)],
        regs_after: &[],
        memory_after: &[(0x20, 0x1_0008)],
    },
    // movzx ecx, byte [bp+di]
    Short {
        bytes: &[0x67, 0x0f, 0xb6, 0x0b],
        regs: &[(slot::RBP, 0x7_0001), (slot::RDI, 0x2f)],
        poke: &[(0x30, 0xfe)],
        regs_after: &[(slot::RCX, 0xfe)],
        memory_after: &[],
    },
    // xchg [si], edx; not [di]; inc [0x1234]; mov al, [moffs16]
    Short {
        bytes: &[0x67, 0x87, 0x14],
        regs: &[(slot::RSI, 0xffff_0040), (slot::RDX, 7)],
        poke: &[(0x40, 9)],
        regs_after: &[(slot::RDX, 9)],
        memory_after: &[(0x40, 7)],
    },
    Short {
        bytes: &[0x67, 0xf7, 0x15],
        regs: &[(slot::RDI, 0x50)],
        poke: &[(0x50, 0)],
        regs_after: &[],
        memory_after: &[(0x50, 0xffff_ffff)],
    },
    Short {
        bytes: &[0x67, 0xff, 0x06, 0x34, 0x12],
        regs: &[],
        poke: &[(0x1234, 41)],
        regs_after: &[],
        memory_after: &[(0x1234, 42)],
    },
    Short {
        bytes: &[0x67, 0xa0, 0x35, 0x12],
        regs: &[(slot::RAX, 0x100)],
        poke: &[(0x1234, 0x7700)],
        regs_after: &[(slot::RAX, 0x177)],
        memory_after: &[],
    },
    // lea ecx, [bx+si+0x7f]: no segment, no memory
    Short {
        bytes: &[0x67, 0x8d, 0x48, 0x7f],
        regs: &[(slot::RBX, 0x1_fff0), (slot::RSI, 0x1_0011)],
        poke: &[],
        regs_after: &[(slot::RCX, 0x80)],
        memory_after: &[],
    },
    // xlat [bx+al]
    Short {
        bytes: &[0x67, 0xd7],
        regs: &[(slot::RBX, 0x5_fff0), (slot::RAX, 0x20)],
        poke: &[(0x10, 0x99)],
        regs_after: &[(slot::RAX, 0x99)],
        memory_after: &[],
    },
    // loop: CX alone counts
    Short {
        bytes: &[0x67, 0xe2, 0x00],
        regs: &[(slot::RCX, 0x5_0000)],
        poke: &[],
        regs_after: &[(slot::RCX, 0x5_ffff)],
        memory_after: &[],
    },
    // rep stosb: DI wraps, the upper halves stay
    Short {
        bytes: &[0x67, 0xf3, 0xaa],
        regs: &[
            (slot::RCX, 0x7_0004),
            (slot::RDI, 0x8_fffe),
            (slot::RAX, 0xee),
        ],
        poke: &[(0, 0)],
        regs_after: &[(slot::RCX, 0x7_0000), (slot::RDI, 0x8_0002)],
        memory_after: &[(0xfffc, 0xeeee_0000), (0, 0xeeee)],
    },
    // movsw, lodsb, repne scasb
    Short {
        bytes: &[0x67, 0x66, 0xa5],
        regs: &[(slot::RSI, 0x3_0060), (slot::RDI, 0x4_0070)],
        poke: &[(0x60, 0xbeef), (0x70, 0)],
        regs_after: &[(slot::RSI, 0x3_0062), (slot::RDI, 0x4_0072)],
        memory_after: &[(0x70, 0xbeef)],
    },
    Short {
        bytes: &[0x67, 0xac],
        regs: &[(slot::RSI, 0x2_ffff), (slot::RAX, 0)],
        poke: &[(0xfffc, 0xab00_0000)],
        regs_after: &[(slot::RAX, 0xab), (slot::RSI, 0x2_0000)],
        memory_after: &[],
    },
    Short {
        bytes: &[0x67, 0xf2, 0xae],
        regs: &[(slot::RCX, 9), (slot::RDI, 0x1_0080), (slot::RAX, 0x33)],
        poke: &[(0x80, 0x3322_1100)],
        regs_after: &[(slot::RCX, 5), (slot::RDI, 0x1_0084)],
        memory_after: &[],
    },
    // movups xmm0, [si]; movups [di], xmm0
    Short {
        bytes: &[0x67, 0x0f, 0x10, 0x04, 0x67, 0x0f, 0x11, 0x05],
        regs: &[(slot::RSI, 0x1_0090), (slot::RDI, 0x2_00a0)],
        poke: &[(0x90, 0x0102_0304), (0xa0, 0)],
        regs_after: &[],
        memory_after: &[(0xa0, 0x0102_0304)],
    },
    // fild dword [si]; fistp dword [di]
    Short {
        bytes: &[0x67, 0xdb, 0x04, 0x67, 0xdb, 0x1d],
        regs: &[(slot::RSI, 0x1_0090), (slot::RDI, 0x2_00a0)],
        poke: &[(0x90, 77), (0xa0, 0)],
        regs_after: &[],
        memory_after: &[(0xa0, 77)],
    },
    // push dword [bx+4]; pop dword [bx+8]
    Short {
        bytes: &[0x67, 0xff, 0x77, 0x04, 0x67, 0x8f, 0x47, 0x08],
        regs: &[(slot::RBX, 0x1_00b0)],
        poke: &[(0xb4, 0xdada), (0xb8, 0)],
        regs_after: &[],
        memory_after: &[(0xb8, 0xdada)],
    },
    // bts dword [bx], eax: the bit offset reaches out
    Short {
        bytes: &[0x67, 0x0f, 0xab, 0x07],
        regs: &[(slot::RBX, 0x1_00c0), (slot::RAX, 33)],
        poke: &[(0xc0, 0), (0xc4, 0)],
        regs_after: &[],
        memory_after: &[(0xc0, 0), (0xc4, 2)],
    },
    // bound ecx, [bx], within its bounds
    Short {
        bytes: &[0x67, 0x62, 0x0f],
        regs: &[(slot::RBX, 0x1_00d0), (slot::RCX, 5)],
        poke: &[(0xd0, 1), (0xd4, 9)],
        regs_after: &[(slot::RCX, 5)],
        memory_after: &[],
    },
    // arpl [bx], cx: raises the privilege number; ZF tells, by setz dl
    Short {
        bytes: &[0x67, 0x63, 0x0f, 0x0f, 0x94, 0xc2],
        regs: &[(slot::RBX, 0xd8), (slot::RCX, 3), (slot::RDX, 0)],
        poke: &[(0xd8, 0x1_0029)],
        regs_after: &[(slot::RDX, 1)],
        memory_after: &[(0xd8, 0x1_002b)],
    },
    // arpl ax, cx: nothing to raise
    Short {
        bytes: &[0x63, 0xc8, 0x0f, 0x94, 0xc2],
        regs: &[(slot::RAX, 0x5_002b), (slot::RCX, 1), (slot::RDX, 7)],
        poke: &[],
        regs_after: &[(slot::RAX, 0x5_002b), (slot::RDX, 0)],
        memory_after: &[],
    },
    // maskmovq mm0, mm0 to [di] with mm0 all ones (pcmpeqb first)
    Short {
        bytes: &[0x0f, 0x74, 0xc0, 0x67, 0x0f, 0xf7, 0xc0],
        regs: &[(slot::RDI, 0x1_00e0)],
        poke: &[(0xe0, 0)],
        regs_after: &[],
        memory_after: &[(0xe0, 0xffff_ffff)],
    },
];

/// Runs a 32-bit program whose data segments begin at [`SEGMENT`].
fn in_segment(bytes: &[u8], prepare: impl FnOnce(&mut Guest)) -> Guest {
    let mut code = bytes.to_vec();
    code.extend([0xcd, 0x80]);
    let mut guest = program(|a| a.db(&code).unwrap());
    guest.machine.run(1);
    guest.set_base(SEGMENT);
    guest.set(slot::RSP, 0x8000);
    prepare(&mut guest);
    guest.trap();
    guest
}

#[test]
fn addresses_of_16_bits_wrap_at_64_kib_and_have_their_segments_base() {
    for case in SHORTS {
        let physical = |guest: &Guest, offset: u64| {
            let value = guest.machine.soft.cpu.physical.read(SEGMENT + offset, 4);
            value.unwrap()
        };
        let guest = in_segment(case.bytes, |guest| {
            for &(number, value) in case.regs {
                guest.set(number, value);
            }
            for &(offset, value) in case.poke {
                guest.bytes(SEGMENT + offset, &(value as u32).to_le_bytes());
            }
        });
        for &(number, value) in case.regs_after {
            let got = guest.reg(number);
            assert_eq!(got, value, "register {number} after {:02x?}", case.bytes);
        }
        for &(offset, value) in case.memory_after {
            let got = physical(&guest, offset);
            assert_eq!(got, value, "word {offset:#x} after {:02x?}", case.bytes);
        }
    }
}

#[test]
fn a_branch_through_a_16_bit_address_finds_its_target() {
    // jmp [bx+si]
    let mut guest = in_segment(&[0x67, 0xff, 0x20], |guest| {
        guest.set(slot::RBX, 0x1_ff00);
        guest.set(slot::RSI, 0x2_0140);
        let target = (PROGRAM + 0x100) as u32;
        guest.bytes(SEGMENT + 0x40, &target.to_le_bytes());
        let code = assemble(32, PROGRAM + 0x100, |a| a.int(0x80).unwrap());
        guest.bytes(PROGRAM + 0x100, &code);
    });
    assert_eq!(guest.frame().rip, PROGRAM + 0x102);
}

#[test]
fn ports_are_read_and_written_by_way_of_16_bit_addresses() {
    // rep outsb, rep insb: IOPL 3 lets a program use ports.
    for (bytes, register) in [
        ([0x67, 0xf3, 0x6e], slot::RSI),
        ([0x67, 0xf3, 0x6c], slot::RDI),
    ] {
        let mut guest = program(|a| a.db(&bytes).unwrap());
        guest.machine.run(1);
        guest.set_base(SEGMENT);
        guest.set(slot::RDX, 0x80);
        guest.set(slot::RCX, 0x9_0001);
        guest.set(register, 0x9_ffff);
        guest.bytes(SEGMENT + 0xffff, &[0x5a]);
        guest.machine.soft.cpu.system_flags |= 3 << 12;
        let exit = guest.machine.run(10);
        match exit {
            Exit::Write(access) => assert_eq!(access.value, Some(0x5a)),
            Exit::Read(access) => {
                assert_eq!((access.address, access.size), (0x80, 1));
                guest.machine.soft.answer(0x77);
                guest.machine.run(1);
                let read = guest.machine.soft.cpu.physical.read(SEGMENT + 0xffff, 1);
                assert_eq!(read, Some(0x77));
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(guest.reg(slot::RCX), 0x9_0000);
        assert_eq!(guest.reg(register), 0x9_0000);
    }
}

#[test]
fn a_program_that_goes_to_16_bit_code_gets_a_fault() {
    // A present, readable code segment of ring 3 with neither L nor D, and a far jump to it.
    let mut guest = program(|a| {
        a.db(&[0xea]).unwrap();
        a.dd(&[PROGRAM as u32]).unwrap();
        a.dw(&[FREE | 3]).unwrap();
    });
    guest.write(GDT + u64::from(FREE), CODE32 & !(1 << 54) | DPL3);
    let frame = guest.trap();
    let error = Some(u64::from(FREE));
    assert_eq!((frame.vector, frame.error, frame.rip), (13, error, PROGRAM));
}
