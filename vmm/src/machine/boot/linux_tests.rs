//! Linux kernels: what is read back from memory after loading.

use super::super::elf::tests::file;
use super::super::{load, memory};
use super::*;
use crate::cpu::CpuModel;
use crate::machine::{BoardKind, TscMode};
use replay::ClockKind;

const INIT_SIZE: u32 = 0x20_0000;
const PREFERRED: u64 = 0x100_0000;
/// Bytes of the synthetic bzImage's setup part, and of what follows.
const SETUP: usize = 5 * 512;
const BODY: usize = 3000;

fn config(memory_mib: u32) -> MachineConfig {
    MachineConfig {
        guest: "linux".into(),
        image_digest: 0,
        memory_mib,
        cmdline: "console=ttyS0 quiet".into(),
        cpu: CpuModel::V1,
        clock_kind: ClockKind::Instructions,
        tsc: TscMode::Derived,
        mac: [2, 0, 0, 0, 0, 1],
        disk_sectors: None,
        initrd: None,
        board: BoardKind::Pc,
        reboots: true,
    }
}

/// A bzImage of protocol 2.15 that does nothing (Documentation/arch/x86/boot.rst, "Details of header
/// fields").
fn bzimage() -> Vec<u8> {
    let mut image = vec![0; SETUP];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[4]); // setup_sects
    put(0x1fe, &BOOT_FLAG.to_le_bytes());
    put(0x200, &[0xeb, 0x6a]); // jump
    put(0x202, &HEADER_MAGIC.to_le_bytes());
    put(0x206, &0x20fu16.to_le_bytes());
    put(0x211, &[1]); // loadflags
    put(0x214, &0x10_0000u32.to_le_bytes()); // code32_start
    put(0x22c, &0x7fff_ffffu32.to_le_bytes()); // initrd_addr_max
    put(0x230, &0x20_0000u32.to_le_bytes()); // kernel_alignment
    put(0x234, &[1]); // relocatable_kernel
    put(0x236, &XLF_KERNEL_64.to_le_bytes());
    put(0x238, &2047u32.to_le_bytes()); // cmdline_size
    put(0x258, &PREFERRED.to_le_bytes());
    put(0x260, &INIT_SIZE.to_le_bytes());
    image.extend((0..BODY).map(|n| (n % 251) as u8));
    image
}

fn at<T: vm_memory::ByteValued>(memory: &GuestMemory, address: u64) -> T {
    memory.read_obj(GuestAddress(address)).unwrap()
}

fn bytes(memory: &GuestMemory, address: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    memory
        .read_slice(&mut bytes, GuestAddress(address))
        .unwrap();
    bytes
}

fn boot(config: &MachineConfig, image: GuestImage<'_>) -> (GuestMemory, CpuState) {
    let memory = memory(config).unwrap();
    let state = load(config, &image, &memory).unwrap();
    (memory, state)
}

fn refusal(config: &MachineConfig, kernel: &[u8], initrd: Option<&[u8]>) -> BootError {
    let memory = memory(config).unwrap();
    load(config, &GuestImage { kernel, initrd }, &memory).unwrap_err()
}

/// Offsets of Documentation/arch/x86/zero-page.rst and of the setup header.
#[test]
fn the_zero_page_says_what_the_kernel_asks_for() {
    let (kernel, initrd) = (bzimage(), vec![0x5a; 5000]);
    let image = GuestImage {
        kernel: &kernel,
        initrd: Some(&initrd),
    };
    let config = config(64);
    let (memory, state) = boot(&config, image);
    let zero = state.general[4];
    assert_eq!(zero, ZERO_PAGE);
    assert_eq!(at::<u16>(&memory, zero + 0x1fe), BOOT_FLAG);
    assert_eq!(at::<u32>(&memory, zero + 0x202), HEADER_MAGIC);
    assert_eq!(at::<u16>(&memory, zero + 0x206), 0x20f);
    assert_eq!(at::<u8>(&memory, zero + 0x210), LOADER_UNDEFINED);
    assert_eq!(at::<u8>(&memory, zero + 0x1ef), 0, "sentinel");
    assert_eq!(at::<u32>(&memory, zero + 0x260), INIT_SIZE);
    let cmdline: u32 = at(&memory, zero + 0x228);
    assert_eq!(bytes(&memory, cmdline.into(), 20), b"console=ttyS0 quiet\0");
    let (start, size): (u32, u32) = (at(&memory, zero + 0x218), at(&memory, zero + 0x21c));
    assert_eq!(size, 5000);
    assert_eq!(u64::from(start), (64 << 20) - 2 * PAGE, "high, on a page");
    assert_eq!(bytes(&memory, start.into(), 5000), initrd);
    let rsdp: u64 = at(&memory, zero + 0x70);
    assert_eq!(&bytes(&memory, rsdp, 8), b"RSD PTR ");
}

#[test]
fn the_memory_map_leaves_out_what_is_no_memory() {
    let kernel = bzimage();
    let (memory, _) = boot(&config(64), GuestImage::new(&kernel));
    assert_eq!(at::<u8>(&memory, ZERO_PAGE + 0x1e8), 4);
    let entry = |n: u64| {
        let entry = ZERO_PAGE + 0x2d0 + 20 * n;
        let (from, size): (u64, u64) = (at(&memory, entry), at(&memory, entry + 8));
        (from, from + size, at::<u32>(&memory, entry + 16))
    };
    let expected = [
        (0, 0x9_fc00, E820_RAM),
        (0x9_fc00, 0xa_0000, E820_RESERVED),
        (0xe_0000, 0x10_0000, E820_RESERVED),
        (0x10_0000, 64 << 20, E820_RAM),
    ];
    assert_eq!([0, 1, 2, 3].map(entry), expected);
}

#[test]
fn a_bzimage_is_entered_at_its_64_bit_entry() {
    let kernel = bzimage();
    let (memory, state) = boot(&config(64), GuestImage::new(&kernel));
    assert_eq!(state.rip, 0x10_0200);
    assert_eq!(bytes(&memory, 0x10_0000, BODY), kernel[SETUP..]);
    assert_eq!(state.rflags & 1 << 9, 0, "interrupts are off");
    let [code, data] = [0, 1].map(|n| state.segments[n].selector);
    assert_eq!([code, data], [0x10, 0x18]);
    let gdt = state.tables[0];
    assert_eq!(gdt.limit, 31);
    assert_eq!(at::<u64>(&memory, gdt.base + 0x10), tables::CODE);
    assert_eq!(at::<u64>(&memory, gdt.base + 0x18), tables::DATA);
}

#[test]
fn a_vmlinux_is_entered_with_a_zero_page_too() {
    let kernel = file(PREFERRED, 0xffff_ffff_8100_0000, 0x10_0000);
    assert_eq!(GuestImage::new(&kernel).board().unwrap(), BoardKind::Pc);
    let (memory, state) = boot(&config(64), GuestImage::new(&kernel));
    assert_eq!((state.rip, state.general[4]), (PREFERRED, ZERO_PAGE));
    assert_eq!(at::<u32>(&memory, ZERO_PAGE + 0x202), HEADER_MAGIC);
    assert_eq!(bytes(&memory, PREFERRED, 4), [0xf4; 4]);
}

#[test]
fn an_initrd_goes_where_kernel_and_memory_allow() {
    let config = config(3072);
    let place = |length, from, max| place_initrd(&config, length, from, max);
    assert_eq!(place(1, 0, 0x7fff_ffff).unwrap(), 0x7fff_f000);
    assert_eq!(place(4096, 0, u32::MAX).unwrap(), 0xbfff_f000);
    assert_eq!(
        place(0x1000, 0x7fff_f000, 0x7fff_ffff).unwrap(),
        0x7fff_f000
    );
    assert!(place(0x1001, 0x7fff_f000, 0x7fff_ffff).is_err());
    assert!(place(4 << 30, 0, u32::MAX).is_err());
}

#[test]
fn what_does_not_fit_is_refused() {
    let kernel = bzimage();
    let end = PREFERRED + u64::from(INIT_SIZE);
    let error = refusal(&config(17), &kernel, None);
    assert!(matches!(error, BootError::TooLittleMemory { end: e, .. } if e == end));
    let most = (19 << 20) - usize::try_from(end).unwrap();
    let initrd = vec![0; most + 1];
    let error = refusal(&config(19), &kernel, Some(&initrd));
    assert!(matches!(error, BootError::Initrd { from, .. } if from == end));
    let image = GuestImage {
        kernel: &kernel,
        initrd: Some(&initrd[..most]),
    };
    boot(&config(19), image);
}

#[test]
fn kernels_without_a_64_bit_entry_are_refused() {
    let mut old = bzimage();
    old[0x206..0x208].copy_from_slice(&0x204u16.to_le_bytes());
    let error = refusal(&config(64), &old, None);
    assert!(matches!(error, BootError::OldKernel { protocol: 0x204 }));
    assert!(error.to_string().contains("protocol 2.04"), "{error}");
    let mut narrow = bzimage();
    narrow[0x236] = 0;
    let error = refusal(&config(64), &narrow, None);
    assert!(matches!(error, BootError::OldKernel { protocol: 0x20f }));
}

#[test]
fn a_command_line_the_kernel_has_no_room_for_is_refused() {
    let mut kernel = bzimage();
    kernel[0x238..0x23c].copy_from_slice(&10u32.to_le_bytes());
    let error = refusal(&config(64), &kernel, None);
    assert!(matches!(
        error,
        BootError::Cmdline {
            length: 19,
            most: 10
        }
    ));
}

#[test]
fn images_of_other_kinds_are_told_apart() {
    let kernel = bzimage();
    let mut bare = config(64);
    bare.board = BoardKind::Bare;
    assert!(matches!(
        refusal(&bare, &kernel, None),
        BootError::Board { .. }
    ));
    let elf = file(0x10_0000, 0x10_0000, 8);
    let error = refusal(&bare, &elf, Some(b"070701"));
    assert!(matches!(error, BootError::NoInitrd));
    let mut arm = vec![0; 0x1000];
    arm[0x38..0x3c].copy_from_slice(b"ARM\x64");
    let error = refusal(&config(64), &arm, None);
    assert!(matches!(error, BootError::Architecture(_)));
    assert!(matches!(
        refusal(&config(64), b"", None),
        BootError::Image(_)
    ));
}

#[test]
fn a_bzimage_cut_anywhere_is_refused_or_loaded_but_never_a_panic() {
    let whole = bzimage();
    for length in 0..=SETUP {
        let memory = memory(&config(64)).unwrap();
        let cut = GuestImage::new(&whole[..length]);
        let result = load(&config(64), &cut, &memory);
        assert_eq!(result.is_ok(), length == SETUP, "cut at {length}");
    }
}

#[test]
fn broken_header_fields_are_refused() {
    for (field, value) in [(0x258, u64::MAX), (0x258, 1 << 40)] {
        let mut kernel = bzimage();
        kernel[field..field + 8].copy_from_slice(&value.to_le_bytes());
        refusal(&config(64), &kernel, None);
    }
}
