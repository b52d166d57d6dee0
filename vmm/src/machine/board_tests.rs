//! The two boards: what each answers, and what it does not.

use super::*;
use crate::cpu::CpuModel;
use crate::machine::{TscMode, boot};
use replay::ClockKind;

struct Rig {
    config: MachineConfig,
    board: Board,
    memory: GuestMemory,
    asked: Vec<Question>,
    out: Vec<Output>,
}

/// Each answer is this many nanoseconds, or bytes.
const ANSWER: u64 = 0x0101_0101_3b9a_ca00;

impl Rig {
    fn new(board: BoardKind) -> Self {
        let config = MachineConfig {
            guest: "test".into(),
            image_digest: 0,
            memory_mib: 16,
            cmdline: String::new(),
            cpu: CpuModel::V1,
            clock_kind: ClockKind::Instructions,
            tsc: TscMode::Logged,
            mac: [2, 0, 0, 0, 0, 1],
            disk_sectors: None,
            initrd: None,
            board,
            reboots: true,
        };
        Self {
            board: Board::new(&config),
            memory: boot::memory(&config).unwrap(),
            asked: Vec::new(),
            out: Vec::new(),
            config,
        }
    }

    fn read(&mut self, bus: Bus, address: u64, size: u8) -> Result<u64, BoardError> {
        let asked = &mut self.asked;
        self.board.read(bus, address, size, &mut |question| {
            asked.push(question);
            Ok(ANSWER)
        })
    }

    fn write(&mut self, bus: Bus, address: u64, size: u8, value: u64) -> Result<Wrote, BoardError> {
        let asked = &mut self.asked;
        let write = Write {
            bus,
            address,
            size,
            value,
        };
        let mut ask = |question| {
            asked.push(question);
            Ok(ANSWER)
        };
        self.board
            .write(&self.memory, write, &mut ask, &mut self.out)
    }

    fn port(&mut self, port: u64, value: u64) -> Wrote {
        self.write(Bus::Port, port, 1, value).unwrap()
    }

    fn mmio(&mut self, address: u64, value: u64) {
        self.write(Bus::Mmio, address, 4, value).unwrap();
    }
}

fn is_nobody<T>(result: Result<T, BoardError>) -> bool {
    matches!(result, Err(BoardError::Nobody { .. }))
}

#[test]
fn a_bare_board_has_nothing_a_linux_kernel_tries_out() {
    let mut rig = Rig::new(BoardKind::Bare);
    for port in [0x64, 0x2f8, 0x600, 0x608, 0xcf8, 0xcf9] {
        for size in [1, 2, 4] {
            assert!(is_nobody(rig.read(Bus::Port, port, size)), "{port:#x}");
            assert!(is_nobody(rig.write(Bus::Port, port, size, 6)), "{port:#x}");
        }
    }
    assert!(is_nobody(rig.read(Bus::Mmio, abi::RNG_PAGE, 4)));
    assert!(is_nobody(rig.write(Bus::Mmio, abi::RNG_PAGE + 0x70, 4, 0)));
    let control = abi::CONTROL_PAGE;
    rig.read(Bus::Mmio, control + abi::control::TSC, 8).unwrap();
    assert_eq!(rig.asked, [Question::Tsc]);
}

#[test]
fn a_pc_shows_an_empty_bus_where_nothing_is() {
    let mut rig = Rig::new(BoardKind::Pc);
    rig.write(Bus::Port, 0xcf8, 4, 0x8000_0000).unwrap();
    assert_eq!(rig.read(Bus::Port, 0xcfc, 4).unwrap(), 0xffff_ffff);
    assert_eq!(rig.read(Bus::Port, 0x2fd, 1).unwrap(), 0xff);
    assert_eq!(rig.port(0x64, 0xd1), Wrote::Done);
    for (size, ones) in [(1, 0xff), (2, 0xffff), (4, 0xffff_ffff)] {
        // Super-I/O, a disk controller, and the last ports there are.
        for port in [0x2e, 0x4e, 0x1f0, 0xfffe] {
            assert_eq!(rig.read(Bus::Port, port, size).unwrap(), ones, "{port:#x}");
            let wrote = rig.write(Bus::Port, port, size, 0).unwrap();
            assert_eq!(wrote, Wrote::Done, "{port:#x}");
        }
    }
    for (size, ones) in [(1, 0xff), (2, 0xffff), (4, 0xffff_ffff), (8, u64::MAX)] {
        // An APIC, an HPET, between the windows of devices, beyond 32 bits.
        for at in [0xfee0_0020, 0xfed0_0000, abi::RNG_PAGE + 0x1000, 1 << 40] {
            assert_eq!(rig.read(Bus::Mmio, at, size).unwrap(), ones, "{at:#x}");
            let wrote = rig.write(Bus::Mmio, at, size, 0).unwrap();
            assert_eq!(wrote, Wrote::Done, "{at:#x}");
        }
    }
    assert!(rig.asked.is_empty() && rig.out.is_empty());
}

#[test]
fn the_first_pc_has_an_empty_bus_only_where_it_is_known_to_be_touched() {
    let mut rig = Rig::new(BoardKind::FirstPc);
    assert_eq!(rig.read(Bus::Port, 0xcfc, 4).unwrap(), 0xffff_ffff);
    for size in [1, 2, 4] {
        assert!(is_nobody(rig.read(Bus::Port, 0x4e, size)));
        assert!(is_nobody(rig.write(Bus::Port, 0x4e, size, 0)));
    }
    assert!(is_nobody(rig.read(Bus::Port, 0x3f8, 2)), "nothing is split");
    assert!(is_nobody(rig.read(Bus::Mmio, 0xfee0_0020, 4)), "no APIC");
    assert!(is_nobody(rig.write(Bus::Mmio, EXIT_STATUS, 4, 0)));
    assert!(rig.asked.is_empty() && rig.out.is_empty());
}

#[test]
fn a_wide_access_is_one_to_each_port_in_it() {
    let mut rig = Rig::new(BoardKind::Pc);
    // The scratch register of the UART, the last of its ports; behind it is nothing.
    rig.write(Bus::Port, 0x3fe, 4, 0x1234_5600).unwrap();
    assert_eq!(rig.read(Bus::Port, 0x3ff, 1).unwrap(), 0x56);
    assert_eq!(rig.read(Bus::Port, 0x3ff, 2).unwrap(), 0xff56);
    // PM1_CNT, from a port below the first of its chip.
    assert_eq!(rig.read(Bus::Port, 0x5fe, 4).unwrap(), 0x0000_ffff);
    // Index and data of the clock's memory.
    rig.write(Bus::Port, 0x70, 2, 0xa540).unwrap();
    rig.port(0x70, 0x40);
    assert_eq!(rig.read(Bus::Port, 0x71, 1).unwrap(), 0xa5);
    // An address for PCI, whose second byte is at the port that resets; then that, by itself.
    let address = rig.write(Bus::Port, 0xcf8, 4, 0x8000_0600).unwrap();
    assert_eq!(address, Wrote::Done);
    assert_eq!(rig.port(0xcf9, 6), Wrote::Reset);
    let ended = rig.write(Bus::Port, 0x602, 4, OFF << 16).unwrap();
    assert_eq!(ended, Wrote::PowerOff(0));
}

#[test]
fn a_pc_has_no_control_page() {
    let mut rig = Rig::new(BoardKind::Pc);
    let control = abi::CONTROL_PAGE;
    let tsc = rig.read(Bus::Mmio, control + abi::control::TSC, 8).unwrap();
    assert_eq!(tsc, u64::MAX);
    for register in [abi::control::POWER_OFF, abi::control::RESET] {
        let wrote = rig.write(Bus::Mmio, control + register, 4, 0).unwrap();
        assert_eq!(wrote, Wrote::Done);
    }
    assert!(rig.asked.is_empty() && rig.out.is_empty());
}

#[test]
fn the_acpi_timer_asks_and_the_other_registers_do_not() {
    let mut rig = Rig::new(BoardKind::Pc);
    assert_eq!(rig.read(Bus::Port, 0x604, 2).unwrap(), 1);
    assert!(rig.asked.is_empty());
    rig.read(Bus::Port, 0x608, 4).unwrap();
    assert_eq!(rig.asked, [Question::PmElapsed]);
}

#[test]
fn soft_off_lets_out_what_was_printed_and_ends_with_zero() {
    let mut rig = Rig::new(BoardKind::Pc);
    rig.port(0x3f8, b'x'.into());
    let ended = rig.write(Bus::Port, 0x604, 2, 5 << 10 | 1 << 13).unwrap();
    assert_eq!(ended, Wrote::PowerOff(0));
    let expected = [Output::Console(b"x".to_vec()), Output::PowerOff { code: 0 }];
    assert_eq!(rig.out, expected);
}

/// ACPI's soft-off in PM1_CNT.
const OFF: u64 = 5 << 10 | 1 << 13;
const EXIT_STATUS: u64 = crate::devices::exit_status::ADDRESS;

#[test]
fn soft_off_ends_with_the_status_the_guest_wrote_before() {
    let mut rig = Rig::new(BoardKind::Pc);
    assert_eq!(rig.read(Bus::Mmio, EXIT_STATUS, 1).unwrap(), 0);
    for status in [3, 200] {
        let wrote = rig.write(Bus::Mmio, EXIT_STATUS, 1, status).unwrap();
        assert_eq!(wrote, Wrote::Done);
        assert_eq!(rig.read(Bus::Mmio, EXIT_STATUS, 1).unwrap(), status);
    }
    // Only a byte, right there, is a status.
    for (address, size) in [(0, 4), (0, 2), (1, 1), (u64::MAX, 2)] {
        let address = EXIT_STATUS.wrapping_add(address);
        assert_eq!(rig.write(Bus::Mmio, address, size, 0).unwrap(), Wrote::Done);
    }
    assert!(rig.out.is_empty(), "a status ends nothing");
    let ended = rig.write(Bus::Port, 0x604, 2, OFF).unwrap();
    assert_eq!(ended, Wrote::PowerOff(200));
    assert_eq!(rig.out, [Output::PowerOff { code: 200 }]);

    let mut bare = Rig::new(BoardKind::Bare);
    assert!(is_nobody(bare.read(Bus::Mmio, EXIT_STATUS, 1)));
    assert!(is_nobody(bare.write(Bus::Mmio, EXIT_STATUS, 1, 0)));
}

#[test]
fn a_reset_forgets_the_status() {
    let mut rig = Rig::new(BoardKind::Pc);
    rig.write(Bus::Mmio, EXIT_STATUS, 1, 3).unwrap();
    let config = rig.config.clone();
    rig.board.reset(&config);
    let ended = rig.write(Bus::Port, 0x604, 2, OFF).unwrap();
    assert_eq!(ended, Wrote::PowerOff(0));
}

#[test]
fn both_resets_let_out_what_was_printed() {
    for (port, value) in [(0xcf9, 6), (0x64, 0xfe)] {
        let mut rig = Rig::new(BoardKind::Pc);
        rig.port(0x3f8, b'x'.into());
        assert_eq!(rig.port(port, value), Wrote::Reset);
        assert_eq!(rig.out, [Output::Console(b"x".to_vec())]);
    }
}

#[test]
fn a_kernel_that_waits_for_the_pit_to_count_finds_it_counting() {
    let latched_status = |board| {
        let mut rig = Rig::new(board);
        rig.port(0x43, 0xe2); // read-back: status of channel 0
        rig.read(Bus::Port, 0x40, 1).unwrap()
    };
    let null_count = 1 << 6;
    assert_eq!(latched_status(BoardKind::Pc) & null_count, 0);
    assert_ne!(latched_status(BoardKind::Bare) & null_count, 0);
}

/// Linux's `probe_8259A`: without this it takes the machine for one without interrupts.
#[test]
fn a_kernel_that_looks_for_the_pic_finds_it() {
    let mut rig = Rig::new(BoardKind::Pc);
    rig.port(0xa1, 0xff);
    rig.port(0x21, 0xfb);
    assert_eq!(rig.read(Bus::Port, 0x21, 1).unwrap(), 0xfb);
    let tick = Arrival::Timer { periods: 1 };
    rig.board.deliver(&rig.memory, tick).unwrap();
    assert!(!rig.board.interrupt_pending(), "masked");
    rig.port(0x21, 0xfe);
    assert!(rig.board.interrupt_pending());
    assert_eq!(rig.board.acknowledge(), 8, "the firmware's vector");
}

#[test]
fn random_bytes_are_asked_for_and_raise_the_line() {
    let mut rig = Rig::new(BoardKind::Pc);
    // Both controllers initialised, nothing masked but what is not of interest here.
    for (port, value) in [
        (0x20, 0x11),
        (0x21, 0x20),
        (0x21, 4),
        (0x21, 1),
        (0x21, 0xdf),
    ] {
        rig.port(port, value);
    }
    let page = abi::RNG_PAGE;
    assert_eq!(rig.read(Bus::Mmio, page + 8, 4).unwrap(), 4, "device ID");
    for (register, value) in [
        (0x70, 3),
        (0x24, 1),
        (0x20, 1),
        (0x70, 11),
        (0x38, 16),
        (0x80, 0x20_0000),
        (0x90, 0x20_1000),
        (0xa0, 0x20_2000),
        (0x44, 1),
        (0x70, 15),
    ] {
        rig.mmio(page + register, value);
    }
    use vm_memory::{Bytes, GuestAddress};
    let put = |rig: &Rig, at: u64, bytes: &[u8]| {
        rig.memory.write_slice(bytes, GuestAddress(at)).unwrap();
    };
    put(&rig, 0x20_0000, &0x30_0000u64.to_le_bytes());
    put(&rig, 0x20_0008, &[16, 0, 0, 0, 2, 0, 0, 0]);
    put(&rig, 0x20_1002, &[1, 0]);
    rig.mmio(page + 0x50, 0);
    assert_eq!(rig.asked, [Question::Entropy; 2]);
    let bytes: u64 = rig.memory.read_obj(GuestAddress(0x30_0008)).unwrap();
    assert_eq!(bytes, ANSWER);
    assert!(rig.board.interrupt_pending());
    assert_eq!(rig.board.acknowledge(), 0x20 + abi::RNG_IRQ);
    assert_eq!(rig.read(Bus::Mmio, page + 0x60, 4).unwrap(), 1);
    rig.mmio(page + 0x64, 1);
    assert_eq!(rig.read(Bus::Mmio, page + 0x60, 4).unwrap(), 0);
}
