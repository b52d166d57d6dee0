//! What the 8259A datasheet says, by its headings.

use super::*;
use crate::devices::tests::conforms;

const MASTER: u16 = 0x20;
const SLAVE: u16 = 0xa0;
const EOI: u8 = 0x20;

fn initialise(pic: &mut Pic, port: u16, base: u8, icw4: u8) {
    for (at, value) in [
        (port, 0x11),
        (port + 1, base),
        (port + 1, 4),
        (port + 1, icw4),
    ] {
        pic.write(at, value);
    }
}

/// Vectors 0x20 to 0x2f, nothing masked.
fn working() -> Pic {
    let mut pic = Pic::new();
    initialise(&mut pic, MASTER, 0x20, 1);
    initialise(&mut pic, SLAVE, 0x28, 1);
    pic
}

fn with_icw4(icw4: u8) -> Pic {
    let mut pic = working();
    initialise(&mut pic, MASTER, 0x20, icw4);
    pic
}

/// Vectors acknowledged until nothing is pending.
fn taken(pic: &mut Pic) -> Vec<u8> {
    std::iter::from_fn(|| pic.pending().then(|| pic.acknowledge())).collect()
}

/// IRR and ISR.
fn registers(pic: &mut Pic, port: u16) -> (u8, u8) {
    pic.write(port, 0x0a);
    let irr = pic.read(port);
    pic.write(port, 0x0b);
    (irr, pic.read(port))
}

#[test]
fn initialisation_takes_icw1_to_icw4_in_order() {
    let mut pic = Pic::new();
    pic.pulse(1);
    assert!(!pic.pending(), "not before initialisation");
    for (port, value) in [(MASTER, 0x11), (MASTER + 1, 0x43), (MASTER + 1, 4)] {
        pic.write(port, value);
        pic.set_line(3, true);
        assert!(!pic.pending(), "not before ICW4");
    }
    pic.write(MASTER + 1, 1);
    assert_eq!(taken(&mut pic), [0x43], "ICW1 forgot the edge on 1");
    pic.pulse(1);
    assert_eq!(taken(&mut pic), [0x41], "the low bits of ICW2 do not count");
}

#[test]
fn a_single_chip_has_no_icw3_and_icw4_can_be_left_out() {
    let mut pic = Pic::new();
    pic.write(MASTER, 0x12); // SNGL, no IC4
    pic.write(MASTER + 1, 0x60);
    pic.write(MASTER + 1, 0xfe); // already OCW1
    pic.pulse(0);
    pic.pulse(1);
    assert_eq!(taken(&mut pic), [0x60]);
    assert_eq!(pic.read(MASTER + 1), 0xfe);
}

#[test]
fn icw1_clears_masks_modes_and_services() {
    let mut pic = with_icw4(3);
    pic.write(MASTER + 1, 0x55);
    pic.write(MASTER, 0x6b); // special mask, read ISR
    pic.write(MASTER, 0xc3); // lowest priority: 3
    pic.pulse(1);
    initialise(&mut pic, MASTER, 0x20, 1);
    assert_eq!((pic.read(MASTER), pic.read(MASTER + 1)), (0, 0));
    pic.pulse(0);
    pic.pulse(4);
    assert_eq!(taken(&mut pic), [0x20], "input 0 is the highest again");
    assert_eq!(registers(&mut pic, MASTER), (0x10, 1), "no automatic EOI");
}

#[test]
fn ocw1_masks_and_reads_back() {
    let mut pic = working();
    pic.write(MASTER + 1, 0x02);
    assert_eq!(pic.read(MASTER + 1), 0x02);
    pic.pulse(1);
    assert!(!pic.pending());
    assert_eq!(registers(&mut pic, MASTER), (2, 0), "the request waits");
    pic.write(MASTER + 1, 0);
    assert_eq!(taken(&mut pic), [0x21]);
}

#[test]
fn ocw3_chooses_irr_or_isr_until_told_otherwise() {
    let mut pic = working();
    pic.pulse(3);
    pic.acknowledge();
    pic.pulse(5);
    assert_eq!(pic.read(MASTER), 0x20, "IRR after initialisation");
    pic.write(MASTER, 0x0b);
    assert_eq!((pic.read(MASTER), pic.read(MASTER)), (8, 8));
    pic.write(MASTER, 0x08); // RR clear: no change
    assert_eq!(pic.read(MASTER), 8);
    pic.write(MASTER, 0x0a);
    assert_eq!(pic.read(MASTER), 0x20);
}

#[test]
fn fully_nested_mode_lets_only_higher_levels_interrupt() {
    let mut pic = working();
    pic.pulse(4);
    assert_eq!(taken(&mut pic), [0x24]);
    pic.pulse(4);
    pic.pulse(5);
    assert!(!pic.pending());
    pic.pulse(3);
    assert_eq!(taken(&mut pic), [0x23]);
    assert_eq!(registers(&mut pic, MASTER), (0x30, 0x18));
}

#[test]
fn non_specific_eoi_ends_the_highest_in_service() {
    let mut pic = working();
    for irq in [5, 3, 1] {
        pic.pulse(irq);
        pic.acknowledge();
    }
    for left in [0x28, 0x20, 0] {
        pic.write(MASTER, EOI);
        assert_eq!(registers(&mut pic, MASTER).1, left);
    }
    pic.write(MASTER, EOI);
    assert_eq!(registers(&mut pic, MASTER).1, 0, "nothing to end");
}

#[test]
fn specific_eoi_ends_the_named_level() {
    let mut pic = working();
    for irq in [5, 3, 1] {
        pic.pulse(irq);
        pic.acknowledge();
    }
    pic.write(MASTER, 0x63);
    assert_eq!(registers(&mut pic, MASTER).1, 0x22);
    pic.write(MASTER, 0x40); // no operation
    assert_eq!(registers(&mut pic, MASTER).1, 0x22);
}

#[test]
fn automatic_eoi_leaves_nothing_in_service() {
    let mut pic = with_icw4(3);
    pic.pulse(1);
    pic.pulse(6);
    assert_eq!(taken(&mut pic), [0x21, 0x26]);
    assert_eq!(registers(&mut pic, MASTER).1, 0);
}

#[test]
fn rotation_on_non_specific_eoi_puts_the_level_last() {
    let mut pic = working();
    pic.pulse(4);
    pic.acknowledge();
    pic.write(MASTER, 0xa0);
    pic.pulse(4);
    pic.pulse(5);
    pic.pulse(0);
    let mut order = Vec::new();
    for _ in 0..3 {
        order.push(pic.acknowledge());
        pic.write(MASTER, EOI);
    }
    assert_eq!(order, [0x25, 0x20, 0x24]);
}

#[test]
fn rotation_on_specific_eoi_puts_the_named_level_last() {
    let mut pic = working();
    pic.pulse(4);
    pic.acknowledge();
    pic.write(MASTER, 0xe4);
    assert_eq!(registers(&mut pic, MASTER).1, 0);
    pic.pulse(4);
    pic.pulse(5);
    assert_eq!(pic.acknowledge(), 0x25);
}

#[test]
fn rotation_in_automatic_eoi_mode_can_be_set_and_cleared() {
    let mut pic = with_icw4(3);
    pic.write(MASTER, 0x80);
    for irq in [4, 5] {
        pic.pulse(irq);
    }
    assert_eq!(pic.acknowledge(), 0x24);
    pic.pulse(4);
    assert_eq!(taken(&mut pic), [0x25, 0x24], "4 comes last now");
    pic.write(MASTER, 0x00);
    pic.pulse(5);
    assert_eq!(pic.acknowledge(), 0x25);
    pic.pulse(5);
    pic.pulse(6);
    assert_eq!(pic.acknowledge(), 0x25, "5 did not become the lowest");
}

#[test]
fn set_priority_names_the_lowest() {
    let mut pic = working();
    pic.write(MASTER, 0xc5);
    pic.pulse(0);
    pic.pulse(5);
    pic.pulse(6);
    assert_eq!(pic.acknowledge(), 0x26);
}

#[test]
fn special_mask_mode_opens_lower_levels_while_the_one_in_service_is_masked() {
    let mut pic = working();
    pic.pulse(3);
    pic.acknowledge();
    pic.pulse(6);
    pic.write(MASTER, 0x68);
    assert!(!pic.pending(), "3 is in service and not masked");
    pic.write(MASTER + 1, 0x08);
    assert_eq!(taken(&mut pic), [0x26]);
    pic.write(MASTER, EOI);
    assert_eq!(
        registers(&mut pic, MASTER).1,
        8,
        "a masked level is not ended unnamed"
    );
    pic.write(MASTER, 0x63);
    assert_eq!(registers(&mut pic, MASTER).1, 0);
    pic.pulse(4);
    pic.acknowledge();
    pic.write(MASTER + 1, 0x18);
    pic.pulse(7);
    pic.write(MASTER, 0x48);
    assert!(!pic.pending(), "mode off");
}

#[test]
fn poll_command_acknowledges_without_a_vector() {
    let mut pic = working();
    pic.write(MASTER, 0x0c);
    assert_eq!(pic.read(MASTER), 0, "nothing");
    pic.pulse(6);
    pic.pulse(4);
    pic.write(MASTER, 0x0c);
    assert_eq!(pic.read(MASTER), 0x84);
    assert_eq!(
        registers(&mut pic, MASTER),
        (0x40, 0x10),
        "and reads go on as before"
    );
}

#[test]
fn poll_goes_through_the_cascade_step_by_step() {
    let mut pic = working();
    pic.pulse(9);
    for (port, found) in [(MASTER, 0x82), (SLAVE, 0x81)] {
        pic.write(port, 0x0c);
        assert_eq!(pic.read(port), found);
    }
    assert_eq!(registers(&mut pic, MASTER).1, 4);
    assert_eq!(registers(&mut pic, SLAVE).1, 2);
}

#[test]
fn the_slave_interrupts_through_input_2() {
    let mut pic = working();
    pic.pulse(10);
    pic.pulse(3);
    pic.pulse(1);
    assert_eq!(taken(&mut pic), [0x21]);
    pic.write(MASTER, EOI);
    assert_eq!(taken(&mut pic), [0x2a], "before 3");
    assert_eq!(registers(&mut pic, MASTER).1, 4);
    assert_eq!(registers(&mut pic, SLAVE).1, 4);
    pic.write(SLAVE, EOI);
    pic.write(MASTER, EOI);
    assert_eq!(taken(&mut pic), [0x23]);
}

#[test]
fn a_mask_on_input_2_silences_the_slave() {
    let mut pic = working();
    pic.write(MASTER + 1, 4);
    pic.pulse(8);
    assert!(!pic.pending());
    assert_eq!(
        registers(&mut pic, MASTER).0,
        4,
        "its INT is seen all the same"
    );
}

#[test]
fn special_fully_nested_mode_lets_the_slave_interrupt_itself() {
    let nested = |icw4| {
        let mut pic = with_icw4(icw4);
        pic.pulse(12);
        pic.acknowledge();
        pic.pulse(9);
        taken(&mut pic)
    };
    assert_eq!(nested(0x01), []);
    assert_eq!(nested(0x11), [0x29]);
}

#[test]
fn a_request_that_goes_away_ends_as_a_spurious_7() {
    let mut pic = working();
    pic.set_line(3, true);
    assert!(pic.pending());
    pic.set_line(3, false);
    assert!(!pic.pending());
    assert_eq!(pic.acknowledge(), 0x27);
    assert_eq!(registers(&mut pic, MASTER).1, 0, "not in service");
}

#[test]
fn a_request_that_goes_away_between_two_polls_is_none_on_the_slave() {
    let mut pic = working();
    pic.set_line(12, true);
    pic.write(MASTER, 0x0c);
    assert_eq!(pic.read(MASTER), 0x82);
    pic.set_line(12, false);
    pic.write(SLAVE, 0x0c);
    assert_eq!(pic.read(SLAVE), 0);
    assert_eq!(registers(&mut pic, SLAVE).1, 0);
}

#[test]
fn an_edge_counts_once_however_long_the_line_stays() {
    let mut pic = working();
    pic.set_line(4, true);
    assert_eq!(taken(&mut pic), [0x24]);
    pic.write(MASTER, EOI);
    pic.set_line(4, true);
    assert!(!pic.pending());
    pic.set_line(4, false);
    pic.set_line(4, true);
    assert_eq!(taken(&mut pic), [0x24]);
}

#[test]
fn a_level_triggered_input_asks_as_long_as_its_line_is_high() {
    let mut pic = working();
    pic.write(0x4d1, 0x04);
    pic.set_line(10, true);
    for _ in 0..2 {
        assert_eq!(taken(&mut pic), [0x2a]);
        pic.write(SLAVE, EOI);
        pic.write(MASTER, EOI);
    }
    pic.set_line(10, false);
    assert!(!pic.pending());
}

#[test]
fn elcr_keeps_the_inputs_that_must_be_edges() {
    let mut pic = Pic::new();
    pic.write(0x4d0, 0xff);
    pic.write(0x4d1, 0xff);
    assert_eq!((pic.read(0x4d0), pic.read(0x4d1)), (0xf8, 0xde));
    initialise(&mut pic, MASTER, 0x20, 1);
    assert_eq!(pic.read(0x4d0), 0xf8, "ICW1 leaves it");
    assert_eq!(pic.read(0x22), 0xff, "no such port");
}

#[test]
fn conformance() {
    let mut pic = working();
    pic.write(0x4d1, 4);
    pic.write(MASTER + 1, 0x0a);
    pic.write(SLAVE, 0xc3);
    pic.pulse(4);
    pic.acknowledge();
    pic.set_line(10, true);
    pic.write(SLAVE, 0x11);
    conforms(Pic::new(), &pic);
}

#[test]
fn impossible_states_are_refused() {
    let spoil: [fn(&mut Pic); 3] = [
        |pic| pic.master.lowest = 8,
        |pic| pic.slave.base = 1,
        |pic| pic.master.level = 1,
    ];
    for change in spoil {
        let mut state = working();
        change(&mut state);
        assert!(matches!(
            Pic::new().restore(state),
            Err(DeviceError::Impossible { kind: "pic", .. })
        ));
    }
}
