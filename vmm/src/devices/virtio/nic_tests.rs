//! The control queue (virtio 1.2, section 5.1.6.5).

use super::super::testing::{BUFFERS, HOLE, Rig, SIZE, Wild, used, wild};
use super::*;
use crate::devices::tests::conforms;
use proptest::prelude::*;

const CONTROL: u64 = 2;
const ME: Mac = [2; 6];
const MORE: Mac = [2, 0, 0, 0, 0, 9];
const OTHER: Mac = [2, 0, 0, 0, 0, 7];

fn nic() -> Rig<Nic> {
    Rig::new(Nic::new(ME))
}

/// The used ring's element this many before the last: head, length.
fn returned(nic: &Rig<Nic>, before: u16) -> (u32, u32) {
    let index = nic.used_index(CONTROL).wrapping_sub(1 + before) % SIZE;
    let at = used(CONTROL) + 4 + u64::from(index) * 8;
    (nic.peek(at), nic.peek(at + 4))
}

/// Sends a command, in pieces as Linux does: header, data, room for the answer. The answer.
fn command(nic: &mut Rig<Nic>, class: u8, command: u8, data: &[u8]) -> u8 {
    // Descriptor tables of queue 2 begin where buffers of the others do.
    let at = BUFFERS + 0x2000;
    nic.write(at, &[class, command]);
    nic.write(at + 0x10, data);
    nic.write(at + 8, &[0x77]);
    let data = (at + 0x10, data.len() as u32, false);
    nic.chain(CONTROL, 0, &[(at, 2, false), data, (at + 8, 1, true)]);
    nic.offer(CONTROL, 0);
    assert!(nic.notify(CONTROL), "an interrupt tells that it is done");
    assert_eq!(returned(nic, 0), (0, 1));
    nic.bytes(at + 8, 1)[0]
}

fn tables(single: &[Mac], several: &[Mac]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for table in [single, several] {
        bytes.extend((table.len() as u32).to_le_bytes());
        bytes.extend(table.concat());
    }
    bytes
}

fn frame(to: Mac, from: Mac) -> Vec<u8> {
    let mut frame = [to, from].concat();
    frame.resize(60, 0);
    frame
}

fn takes(nic: &Rig<Nic>, to: Mac) -> bool {
    nic.device.device().addresses().take(&frame(to, OTHER))
}

#[test]
fn it_offers_a_control_queue_and_has_its_address_in_the_configuration() {
    let mut nic = nic();
    nic.set(0x14, 0);
    assert_eq!(nic.get(0x10), 1 << 5 | 1 << 17 | 1 << 18 | 1 << 23);
    assert_eq!(nic.device.read(0x100, 4), 0x0202_0202);
    nic.set(0x30, 2);
    assert_ne!(nic.get(0x34), 0, "a third queue");
    nic.set(0x30, 3);
    assert_eq!(nic.get(0x34), 0);
}

#[test]
fn a_new_address_is_that_of_the_configuration_too_until_a_reset() {
    let mut nic = nic();
    assert_eq!(command(&mut nic, MAC, MAC_ADDR_SET, &MORE), OK);
    assert!(takes(&nic, MORE) && !takes(&nic, ME));
    assert_eq!(nic.device.read(0x105, 1), 9);
    assert_eq!(command(&mut nic, MAC, MAC_ADDR_SET, &[1; 6]), ERR);
    assert_eq!(command(&mut nic, MAC, MAC_ADDR_SET, &[2; 5]), ERR);
    assert!(takes(&nic, MORE));
    nic.set(super::super::testing::STATUS, 0);
    assert!(takes(&nic, ME) && !takes(&nic, MORE));
    assert_eq!(nic.device.read(0x105, 1), 2);
}

#[test]
fn tables_and_modes_say_what_it_takes() {
    let mut nic = nic();
    let several = [[1, 0, 0x5e, 0, 0, 1]; 3];
    let set = tables(&[MORE, OTHER], &several);
    assert_eq!(command(&mut nic, MAC, MAC_TABLE_SET, &set), OK);
    assert!(takes(&nic, MORE) && takes(&nic, OTHER) && takes(&nic, ME));
    assert_eq!(command(&mut nic, MAC, MAC_TABLE_SET, &tables(&[], &[])), OK);
    assert!(!takes(&nic, MORE));
    assert_eq!(command(&mut nic, RX, RX_ALLMULTI, &[1]), OK);
    assert_eq!(command(&mut nic, RX, RX_PROMISC, &[1]), OK);
    assert!(takes(&nic, MORE));
    assert_eq!(command(&mut nic, RX, RX_PROMISC, &[0]), OK);
    assert!(!takes(&nic, MORE));
}

#[test]
fn what_is_no_command_is_refused_and_changes_nothing() {
    let mut nic = nic();
    command(&mut nic, MAC, MAC_TABLE_SET, &tables(&[MORE], &[]));
    let before = nic.device.device().addresses().clone();
    let whole = tables(&[OTHER], &[[1; 6]]);
    for cut in 0..whole.len() {
        assert_eq!(command(&mut nic, MAC, MAC_TABLE_SET, &whole[..cut]), ERR);
    }
    assert_eq!(command(&mut nic, MAC, MAC_TABLE_SET, &[0xff; 40]), ERR);
    for (class, number) in [(RX, 2), (MAC, 2), (2, 0), (4, 0), (0xff, 0xff)] {
        assert_eq!(command(&mut nic, class, number, &[1; 6]), ERR);
    }
    assert_eq!(command(&mut nic, RX, RX_PROMISC, &[]), ERR);
    assert_eq!(*nic.device.device().addresses(), before);
    // No room for an answer, and a piece outside of memory.
    nic.chain(CONTROL, 0, &[(BUFFERS, 8, false)]);
    nic.offer(CONTROL, 0);
    nic.chain(CONTROL, 1, &[(HOLE - 1, 2, false), (BUFFERS, 1, true)]);
    nic.offer(CONTROL, 1);
    nic.notify(CONTROL);
    assert_eq!((returned(&nic, 1), returned(&nic, 0)), ((0, 0), (1, 0)));
    assert_eq!(*nic.device.device().addresses(), before);
}

#[test]
fn what_it_sends_from_is_learned_and_forgotten() {
    let mut nic = nic();
    let bytes = [&[0; 12][..], &frame(OTHER, MORE)].concat();
    nic.write(BUFFERS, &bytes);
    nic.chain(1, 0, &[(BUFFERS, bytes.len() as u32, false)]);
    nic.offer(1, 0);
    let before = nic.device.device().changes();
    nic.notify(1);
    assert_eq!(nic.out.len(), 1);
    let used = |nic: &Rig<Nic>| nic.device.device().addresses().in_use();
    assert_eq!(used(&nic), [(ME, None), (MORE, None)]);
    assert!(nic.device.device().changes() > before);
    let heard = frame(ME, MORE);
    nic.device.receive(&nic.memory, &heard);
    assert_eq!(used(&nic), [(ME, None)]);
}

#[test]
fn conformance() {
    let mut changed = nic();
    command(&mut changed, MAC, MAC_TABLE_SET, &tables(&[MORE], &[]));
    command(&mut changed, RX, RX_PROMISC, &[1]);
    conforms(Rig::fresh(Nic::new(ME)).device, &changed.device);
}

proptest! {
    #[test]
    fn whatever_the_ring_says_nothing_breaks(table in wild::table(), ring in wild::ring()) {
        let mut nic = nic();
        let table: Vec<Wild> = table;
        nic.fill(CONTROL, &table, &ring);
        nic.notify(CONTROL);
        prop_assert!(nic.device.device().addresses().check().is_ok());
    }
}
