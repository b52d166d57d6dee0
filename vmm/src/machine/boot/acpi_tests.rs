//! ACPI tables, read back as a guest does.

use super::*;
use crate::cpu::CpuModel;
use crate::machine::{BoardKind, TscMode, boot};
use replay::ClockKind;

fn tables(disk_sectors: Option<u64>) -> GuestMemory {
    let config = MachineConfig {
        guest: "linux".into(),
        image_digest: 0,
        memory_mib: 16,
        cmdline: String::new(),
        cpu: CpuModel::V1,
        clock_kind: ClockKind::Instructions,
        tsc: TscMode::Derived,
        mac: [2, 0, 0, 0, 0, 1],
        disk_sectors,
        initrd: None,
        board: BoardKind::Pc,
        reboots: true,
    };
    let memory = boot::memory(&config).unwrap();
    assert_eq!(write(&config, &memory), TABLES);
    memory
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

/// The table at `address`, whose signature and checksum must be right (ACPI 6.5, 5.2.6).
fn table(memory: &GuestMemory, address: u64, signature: &[u8; 4]) -> Vec<u8> {
    let length: u32 = at(memory, address + 4);
    let table = bytes(memory, address, length as usize);
    assert_eq!(&table[..4], signature);
    let sum = table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    assert_eq!(sum, 0, "checksum");
    table
}

fn word(table: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(table[offset..offset + 4].try_into().unwrap())
}

/// RSDP, XSDT, FADT, DSDT, each found through the one before.
fn chain(memory: &GuestMemory) -> (Vec<u8>, Vec<u8>) {
    let rsdp = bytes(memory, TABLES, 36);
    assert_eq!((&rsdp[..8], rsdp[15]), (&b"RSD PTR "[..], 2));
    for part in [&rsdp[..20], &rsdp[..]] {
        assert_eq!(
            part.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)),
            0
        );
    }
    let xsdt = table(memory, at(memory, TABLES + 24), b"XSDT");
    assert_eq!(xsdt.len(), 36 + 8, "one table");
    let fadt = u64::from_le_bytes(xsdt[36..44].try_into().unwrap());
    let fadt = table(memory, fadt, b"FACP");
    let facs = bytes(memory, word(&fadt, 36).into(), 8);
    assert_eq!((&facs[..4], word(&facs, 4)), (&b"FACS"[..], 64));
    assert_eq!(word(&fadt, 36) % 64, 0, "the FACS is aligned (5.2.10)");
    let dsdt = table(memory, word(&fadt, 40).into(), b"DSDT");
    (fadt, dsdt)
}

/// Offsets of table 5.9.
#[test]
fn the_fixed_description_names_the_ports() {
    let (fadt, _) = chain(&tables(None));
    assert_eq!(u16::from_le_bytes([fadt[46], fadt[47]]), 9, "SCI");
    assert_eq!(
        word(&fadt, 48),
        0,
        "no SMI command port: always in ACPI mode"
    );
    assert_eq!(
        [56, 64, 76].map(|at| word(&fadt, at)),
        [0x600, 0x604, 0x608]
    );
    assert_eq!([88, 89, 91].map(|at| fadt[at]), [4, 2, 4]);
    let flags = word(&fadt, 112);
    assert_eq!(flags >> 20 & 1, 0, "not hardware-reduced");
    assert_eq!(flags >> 10 & 1, 1, "there is a reset register");
    assert_eq!(&fadt[116..120], &[1, 8, 0, 1], "in I/O space, a byte");
    assert_eq!((word(&fadt, 120), fadt[128]), (0xcf9, 6));
}

/// Where `needle` is in `code`.
fn find(code: &[u8], needle: &[u8]) -> Option<usize> {
    code.windows(needle.len()).position(|part| part == needle)
}

#[test]
fn each_device_has_its_registers_and_its_line() {
    let (_, dsdt) = chain(&tables(Some(8)));
    for (name, page, irq) in [
        (b"VNET", abi::NET_PAGE, abi::NET_IRQ),
        (b"VBLK", abi::BLOCK_PAGE, abi::BLOCK_IRQ),
        (b"VRNG", abi::RNG_PAGE, abi::RNG_IRQ),
    ] {
        let device = &dsdt[find(&dsdt, name).unwrap()..];
        let id = find(device, b"_HID\x0dLNRO0005\0").unwrap();
        // Memory32Fixed (6.4.3.4), then an extended interrupt (6.4.3.6): consumer, edge, active high.
        let mut resources = vec![0x86, 9, 0, 1];
        resources.extend_from_slice(&u32::try_from(page).unwrap().to_le_bytes());
        resources.extend_from_slice(&0x1000u32.to_le_bytes());
        resources.extend_from_slice(&[0x89, 6, 0, 3, 1, irq, 0, 0, 0]);
        let found = find(device, &resources).expect("its resources");
        assert!(id < found && found < 0x60, "they are its own");
    }
    assert!(find(&dsdt, b"_S5_\x12").is_some());
    assert!(
        find(&dsdt, &[0x47, 1, 0xf8, 3, 0xf8, 3, 1, 8]).is_some(),
        "COM1"
    );
}

#[test]
fn a_machine_without_a_disk_has_no_disk_device() {
    let (_, dsdt) = chain(&tables(None));
    assert!(find(&dsdt, b"VBLK").is_none() && find(&dsdt, b"VNET").is_some());
}
