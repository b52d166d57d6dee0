//! Ports of a PC at which this machine has nothing, and which an unmodified Linux kernel is known to touch all
//! the same: to find out whether something is there, or to take its time.
//!
//! Each range is named with its reason. On the first board for Linux these are all there are: at any other port
//! nobody is there, which ends the machine. Reads see what an empty bus shows, all ones; writes go nowhere.

/// Reset control register of a PCI host bridge (PIIX4, section 4.1.11): bit 2 resets the processor.
pub const RESET_PORT: u16 = 0xcf9;
/// What ACPI tells the guest to write there: a hard reset.
pub const RESET_FULL: u8 = 0x06;
const RESET_CPU: u8 = 1 << 2;
/// Command port of the keyboard controller, and its command that pulses the processor's reset line.
const KEYBOARD_COMMAND: u16 = 0x64;
const PULSE_RESET: u8 = 0xfe;

/// Exit status of a guest that reset its machine, where that is not to start over. It is no status a
/// process can have.
pub const RESET_STATUS: u32 = 0x0cf9;

/// Where nothing is, and why it is touched.
struct Absent {
    first: u16,
    last: u16,
    why: &'static str,
}

const fn absent(first: u16, last: u16, why: &'static str) -> Absent {
    Absent { first, last, why }
}

/// All of them, by port.
const ABSENT: [Absent; 13] = [
    absent(0x00, 0x1f, "first DMA controller: silenced at boot"),
    absent(0x60, 0x60, "keyboard controller, data: probed"),
    absent(0x64, 0x64, "keyboard controller, status: probed, reset"),
    absent(0x80, 0x8f, "POST code, as a delay; DMA pages: probed"),
    absent(0xc0, 0xdf, "second DMA controller: silenced at boot"),
    absent(0xed, 0xed, "a delay, where port 0x80 is not to be used"),
    absent(0xf0, 0xf1, "coprocessor busy latch: cleared"),
    absent(0x2e8, 0x2ef, "COM4: probed"),
    absent(0x2f8, 0x2ff, "COM2: probed"),
    absent(0x3b0, 0x3df, "VGA: probed by the text console"),
    absent(0x3e8, 0x3ef, "COM3: probed"),
    absent(0xcf8, 0xcff, "PCI configuration, type 1 and 2: probed"),
    absent(0xc000, 0xcfff, "PCI configuration, type 2: probed"),
];

/// Why all of an access of `size` bytes at `port` goes nowhere; `None` if it does not.
#[must_use]
pub fn why_tolerated(port: u16, size: u8) -> Option<&'static str> {
    let last = port.checked_add(u16::from(size.max(1)) - 1)?;
    ABSENT
        .iter()
        .find(|range| range.first <= port && last <= range.last)
        .map(|range| range.why)
}

/// Whether this write resets the machine.
#[must_use]
pub fn resets(port: u16, size: u8, value: u64) -> bool {
    let value = (value & 0xff) as u8;
    size == 1
        && match port {
            RESET_PORT => value & RESET_CPU != 0,
            KEYBOARD_COMMAND => value == PULSE_RESET,
            _ => false,
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_in_order_and_apart_and_have_reasons() {
        assert!(ABSENT.is_sorted_by(|a, b| a.last < b.first));
        assert!(
            ABSENT
                .iter()
                .all(|range| range.first <= range.last && !range.why.is_empty())
        );
    }

    #[test]
    fn an_access_must_lie_within_one_range() {
        assert!(why_tolerated(0xcf8, 4).is_some());
        assert!(why_tolerated(0xcfc, 4).is_some());
        assert!(why_tolerated(0xcfe, 4).is_none());
        assert!(why_tolerated(0x60, 1).is_some());
        assert!(why_tolerated(0x60, 2).is_none());
        assert!(why_tolerated(0xffff, 4).is_none());
        assert!(why_tolerated(0x1f0, 1).is_none(), "no disk controller");
    }

    #[test]
    fn both_ways_to_reset() {
        assert!(resets(RESET_PORT, 1, RESET_FULL.into()));
        assert!(!resets(RESET_PORT, 1, 2), "the kind, not the reset");
        assert!(!resets(0xcf8, 4, 0xffff_ffff), "a configuration address");
        assert!(resets(0x64, 1, 0xfe) && !resets(0x64, 1, 0xd1));
    }
}
