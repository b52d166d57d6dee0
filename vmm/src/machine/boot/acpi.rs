//! ACPI tables for a Linux guest (ACPI 6.5, chapter 5): what is where, and how to switch it off.
//!
//! ```text
//!  0xe0000  RSDP ──▶ XSDT ──▶ FADT ──▶ FACS
//!                               └────▶ DSDT: \_S5, virtio-mmio devices, COM1, RTC
//! ```
//!
//! There is no MADT: a kernel without one, on a processor without a local APIC, keeps the two 8259As.
//! The FADT must not say "hardware-reduced" then: Linux takes that to mean that there is no 8259A, no
//! 8254 and no RTC. Nor is there an SMI command port, so that the machine is in ACPI mode from the start.

use crate::devices::acpi_pm::{self, SCI_IRQ, SLEEP_TYPE_OFF};
use crate::machine::board::legacy::{RESET_FULL, RESET_PORT};
use crate::machine::config::MachineConfig;
use crate::memory::GuestMemory;
use acpi_tables::aml::{
    Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Package, ResourceTemplate, Scope,
};
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::{Aml, facs::FACS, rsdp::Rsdp, sdt::Sdt, xsdt::XSDT};
use vm_memory::{Bytes, GuestAddress};

/// Where the tables are; up to 1 MiB nothing else is.
pub(super) const TABLES: u64 = 0xe_0000;
const FACS_AT: u64 = TABLES + 0x40;
const FADT_AT: u64 = TABLES + 0x100;
const XSDT_AT: u64 = TABLES + 0x300;
const DSDT_AT: u64 = TABLES + 0x400;

const OEM: [u8; 6] = *b"TANDEM";
const OEM_TABLE: [u8; 8] = *b"TANDEMVM";
const OEM_REVISION: u32 = 1;
/// FADT.IAPC_BOOT_ARCH (table 5.11): devices on a legacy bus; no VGA; no message-signalled interrupts.
/// The bit for an 8042 is clear: there is none.
const BOOT_ARCH: u16 = 1 << 0 | 1 << 2 | 1 << 3;
/// Latencies beyond these say that there is no C2 and no C3 (table 5.9).
const NO_C2: u16 = 101;
const NO_C3: u16 = 1001;
/// Index of the century in CMOS memory.
const CENTURY: u8 = 0x32;

/// Writes the tables into `memory`; the address of the first, the RSDP.
pub(super) fn write(config: &MachineConfig, memory: &GuestMemory) -> u64 {
    let put = |at: u64, table: &dyn Aml, end: u64| {
        let mut bytes = Vec::new();
        table.to_aml_bytes(&mut bytes);
        assert!(at + bytes.len() as u64 <= end, "tables overlap");
        memory
            .write_slice(&bytes, GuestAddress(at))
            .expect("memory has 16 MiB at least");
    };
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    xsdt.add_entry(FADT_AT);
    put(TABLES, &Rsdp::new(OEM, XSDT_AT), FACS_AT);
    put(FACS_AT, &FACS::new(), FADT_AT);
    put(FADT_AT, &fadt(), XSDT_AT);
    put(XSDT_AT, &xsdt, DSDT_AT);
    put(DSDT_AT, &dsdt(config), abi::IMAGE_BASE);
    TABLES
}

fn fadt() -> impl Aml {
    let port = |port: u16, bits: u8, access| {
        GAS::new(AddressSpace::SystemIo, bits, 0, access, port.into())
    };
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .dsdt_32(DSDT_AT as u32)
        .firmware_ctrl_32(FACS_AT as u32)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        // There is none of these in the fixed hardware: power button, sleep button, wake-up by the RTC.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::TmrValExt)
        .flag(Flags::ResetRegSup);
    fadt.sci_int = u16::from(SCI_IRQ).into();
    fadt.pm1a_evt_blk = u32::from(acpi_pm::EVENT_PORT).into();
    fadt.pm1_evt_len = 4;
    fadt.pm1a_cnt_blk = u32::from(acpi_pm::CONTROL_PORT).into();
    fadt.pm1_cnt_len = 2;
    fadt.pm_tmr_blk = u32::from(acpi_pm::TIMER_PORT).into();
    fadt.pm_tmr_len = 4;
    fadt.x_pm1a_evt_blk = port(acpi_pm::EVENT_PORT, 32, AccessSize::WordAccess);
    fadt.x_pm1a_cnt_blk = port(acpi_pm::CONTROL_PORT, 16, AccessSize::WordAccess);
    fadt.x_pm_tmr_blk = port(acpi_pm::TIMER_PORT, 32, AccessSize::DwordAccess);
    fadt.p_lvl2_lat = NO_C2.into();
    fadt.p_lvl3_lat = NO_C3.into();
    fadt.century = CENTURY;
    fadt.iapc_boot_arch = BOOT_ARCH.into();
    fadt.reset_reg = port(RESET_PORT, 8, AccessSize::ByteAccess);
    fadt.reset_value = RESET_FULL;
    fadt.finalize()
}

/// A table of our own bytes.
struct Dsdt(Sdt);

impl Aml for Dsdt {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(self.0.as_slice());
    }
}

fn dsdt(config: &MachineConfig) -> Dsdt {
    let mut code = Vec::new();
    let off = SLEEP_TYPE_OFF;
    Name::new("_S5_".into(), &Package::new(vec![&off, &off, &0u8, &0u8])).to_aml_bytes(&mut code);
    virtio(&mut code, "VNET", 0, abi::NET_PAGE, abi::NET_IRQ);
    if config.disk_sectors.is_some() {
        virtio(&mut code, "VBLK", 1, abi::BLOCK_PAGE, abi::BLOCK_IRQ);
    }
    virtio(&mut code, "VRNG", 2, abi::RNG_PAGE, abi::RNG_IRQ);
    legacy(
        &mut code,
        "COM1",
        "PNP0501",
        abi::SERIAL_PORT,
        8,
        abi::SERIAL_IRQ,
    );
    legacy(&mut code, "RTC_", "PNP0B00", 0x70, 2, abi::RTC_IRQ);
    let mut table = Sdt::new(*b"DSDT", 36, 2, OEM, OEM_TABLE, OEM_REVISION);
    table.append_slice(&code);
    Dsdt(table)
}

/// A virtio-mmio device. Edge-triggered: each used buffer the driver wants to hear of is a pulse.
fn virtio(code: &mut Vec<u8>, name: &str, uid: u8, page: u64, irq: u8) {
    let page = u32::try_from(page).expect("device windows are below 4 GiB");
    let registers = Memory32Fixed::new(true, page, abi::WINDOW as u32);
    let id = Name::new("_HID".into(), &"LNRO0005");
    device(code, name, &id, uid, &registers, irq);
}

/// A device at fixed ports.
fn legacy(code: &mut Vec<u8>, name: &str, id: &str, port: u16, ports: u8, irq: u8) {
    let registers = IO::new(port, port, 1, ports);
    let id = Name::new("_HID".into(), &EISAName::new(id));
    device(code, name, &id, 0, &registers, irq);
}

/// A device with these registers and this edge-triggered interrupt.
fn device(code: &mut Vec<u8>, name: &str, id: &Name, uid: u8, registers: &dyn Aml, irq: u8) {
    let interrupt = Interrupt::new(true, true, false, false, irq.into());
    let resources = ResourceTemplate::new(vec![registers, &interrupt]);
    let uid = Name::new("_UID".into(), &uid);
    let resources = Name::new("_CRS".into(), &resources);
    let device = Device::new(name.into(), vec![id, &uid, &resources]);
    Scope::new("_SB_".into(), vec![&device]).to_aml_bytes(code);
}

#[cfg(test)]
#[path = "acpi_tests.rs"]
mod tests;
