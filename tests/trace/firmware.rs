//! A firmware image that brings QEMU's processor to a state of ours: 64-bit mode, tables, registers.
//!
//! ```text
//!  0xffff_fff0  reset: jmp 0xffff_0000
//!  0xffff_0000  real mode: GDTR, CR4, CR3, EFER, CR0, far jump
//!               64-bit code: segments, IDTR, RFLAGS, general registers, jump to the entry
//!  0xffff_8000  the word RFLAGS is popped from; GDTR and IDTR
//! ```
//!
//! The machine shows its 64 KiB below 4 GiB and, the same bytes, below 1 MiB. So they are put into our
//! guest's memory there, too ([`WINDOW`]), and both have the same.

use vmm::state::CpuState;

/// Bytes of the image: what QEMU takes is a multiple of this.
pub const LENGTH: usize = 0x1_0000;
/// Where the image is in the first MiB.
pub const WINDOW: u64 = 0xf_0000;
/// Where it is executed: the last 64 KiB below 4 GiB.
const BASE: u32 = 0xffff_0000;
/// Offset of the reset vector (SDM volume 3, 10.1.4).
const RESET: usize = 0xfff0;
/// Offset of the word that RFLAGS is popped from.
const FLAGS: usize = 0x8000;
/// Offset of the pseudo-descriptors of GDTR and IDTR.
const GDTR: usize = 0x9000;
const IDTR: usize = 0x9010;
/// EFER.LMA, which the processor sets by itself.
const LMA: u64 = 1 << 10;
const EFER: u32 = 0xc000_0080;
/// [`CpuState::general`] has these, as instructions number them.
const ORDER: [u8; 16] = [0, 3, 1, 2, 6, 7, 4, 5, 8, 9, 10, 11, 12, 13, 14, 15];

/// The image for `state`, which is to be a state of a processor that starts in 64-bit mode.
///
/// # Panics
/// If the state has what this firmware cannot set.
pub fn image(state: &CpuState) -> Vec<u8> {
    let [cr0, cr2, cr3, cr4, cr8] = state.control;
    assert_eq!((cr2, cr8), (0, 0), "the reset values");
    let [code, data, ..] = &state.segments;
    for segment in &state.segments[1..6] {
        assert_eq!(segment, data, "one selector for all data");
    }
    let low = |value: u64| u32::try_from(value).expect("below 4 GiB").to_le_bytes();
    let mut a = Vec::new();
    a.extend([0xfa]); // cli
    a.extend([0x2e, 0x66, 0x0f, 0x01, 0x16]); // lgdt cs:[GDTR], 32-bit base
    a.extend((GDTR as u16).to_le_bytes());
    for (value, register) in [(cr4, 0xe0), (cr3, 0xd8)] {
        a.extend([0x66, 0xb8]); // mov eax, value
        a.extend(low(value));
        a.extend([0x0f, 0x22, register]); // mov cr, eax
    }
    a.extend([0x66, 0xb9]); // mov ecx, EFER
    a.extend(EFER.to_le_bytes());
    a.extend([0x66, 0xb8]); // mov eax, value
    a.extend(low(state.efer & !LMA));
    a.extend([0x66, 0x31, 0xd2]); // xor edx, edx
    a.extend([0x0f, 0x30]); // wrmsr
    a.extend([0x66, 0xb8]); // mov eax, cr0
    a.extend(low(cr0));
    a.extend([0x0f, 0x22, 0xc0]); // mov cr0, eax
    a.extend([0x66, 0xea]); // jmp far code:next, 32-bit offset
    let next = BASE + u32::try_from(a.len() + 6).expect("a few");
    a.extend(next.to_le_bytes());
    a.extend(code.selector.to_le_bytes());

    a.extend([0x66, 0xb8]); // mov ax, data
    a.extend(data.selector.to_le_bytes());
    for register in [0xd8, 0xc0, 0xd0, 0xe0, 0xe8] {
        a.extend([0x8e, register]); // mov ds/es/ss/fs/gs, eax
    }
    a.extend([0x0f, 0x01, 0x1d]); // lidt [rip + distance]
    a.extend(
        u32::try_from(IDTR - a.len() - 4)
            .expect("ahead")
            .to_le_bytes(),
    );
    a.extend([0x48, 0xbc]); // mov rsp, where RFLAGS is
    a.extend((WINDOW + FLAGS as u64).to_le_bytes());
    a.extend([0x9d]); // popfq
    for (value, number) in state.general.iter().zip(ORDER) {
        a.extend([0x48 | number >> 3, 0xb8 | number & 7]); // mov register, value
        a.extend(value.to_le_bytes());
    }
    a.extend([0xff, 0x25, 0, 0, 0, 0]); // jmp [rip]
    a.extend(state.rip.to_le_bytes());

    let mut image = vec![0; LENGTH];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &a);
    put(FLAGS, &state.rflags.to_le_bytes());
    for (at, table) in [GDTR, IDTR].into_iter().zip(&state.tables) {
        put(at, &table.limit.to_le_bytes());
        put(at + 2, &table.base.to_le_bytes());
    }
    // jmp to offset 0: counted from behind it, modulo 64 KiB.
    let distance = (LENGTH - RESET - 3) as u16;
    put(RESET, &[0xe9, distance as u8, (distance >> 8) as u8]);
    image
}
