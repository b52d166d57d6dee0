//! The transport, register by register (virtio 1.2, section 4.2.2).

use super::super::testing::{HOLE, NEEDS_RESET, RUNNING, Rig, STATUS, available, table, used};
use super::*;
use crate::devices::tests::conforms;
use vm_memory::Bytes;

const MAC: [u8; 6] = [2, 0, 0, 1, 2, 3];

fn net() -> Rig<Net> {
    Rig::new(Net::new(MAC))
}

#[test]
fn identifies_itself() {
    let mut net = Rig::fresh(Net::new(MAC));
    let found = [reg::MAGIC, reg::VERSION, reg::DEVICE_ID, reg::VENDOR_ID].map(|at| net.get(at));
    assert_eq!(found, [0x7472_6976, 2, 1, u64::from(VENDOR)]);
    let mut block = Rig::fresh(Block::new(8));
    assert_eq!(block.get(reg::DEVICE_ID), 2);
}

#[test]
fn registers_take_32_bits_only() {
    let mut net = Rig::fresh(Net::new(MAC));
    for size in [1, 2, 8] {
        assert_eq!(net.device.read(reg::MAGIC, size), 0);
        let memory = net.memory.clone();
        net.device
            .write(reg::STATUS, size, 1, &memory, &mut net.out);
    }
    assert_eq!(net.get(STATUS), 0);
}

#[test]
fn registers_for_writing_and_those_there_are_not_read_as_zero() {
    let mut net = net();
    for offset in [
        0x14, 0x20, 0x24, 0x30, 0x38, 0x50, 0x64, 0x80, 0xa4, 0xac, 0xfc, 0x02,
    ] {
        assert_eq!(net.get(offset), 0, "{offset:#x}");
    }
}

#[test]
fn features_are_offered_by_halves() {
    let mut net = Rig::fresh(Net::new(MAC));
    let offered = [0, 1, 2, u64::from(u32::MAX)].map(|half| {
        net.set(reg::DEVICE_FEATURES_SEL, half);
        net.get(reg::DEVICE_FEATURES)
    });
    assert_eq!(offered, [1 << 5, 1, 0, 0], "MAC, VERSION_1");
}

/// The status after choosing `features` and asking for FEATURES_OK.
fn chosen(features: u64) -> (Rig<Net>, u64) {
    let mut net = Rig::fresh(Net::new(MAC));
    net.set(STATUS, 3);
    for half in [0, 1] {
        net.set(reg::DRIVER_FEATURES_SEL, half);
        net.set(reg::DRIVER_FEATURES, features >> (32 * half) & 0xffff_ffff);
    }
    net.set(reg::DRIVER_FEATURES_SEL, 2);
    net.set(reg::DRIVER_FEATURES, 0xffff_ffff); // there is no such half
    net.set(STATUS, 11);
    let status = net.get(STATUS);
    (net, status)
}

#[test]
fn features_ok_sticks_to_a_subset_with_version_1() {
    assert_eq!(chosen(VERSION_1).1, 11);
    assert_eq!(chosen(VERSION_1 | 1 << 5).1, 11);
    assert_eq!(chosen(1 << 5).1, 3, "without VERSION_1");
    assert_eq!(chosen(VERSION_1 | 1 << 3).1, 3, "more than was offered");
}

#[test]
fn features_are_settled_once_agreed_on() {
    let (mut net, _) = chosen(VERSION_1);
    net.set(reg::DRIVER_FEATURES_SEL, 0);
    net.set(reg::DRIVER_FEATURES, 1 << 3);
    assert_eq!(net.device.registers.driver_features, VERSION_1);
    net.set(STATUS, RUNNING);
    assert_eq!(net.get(STATUS), RUNNING);
}

#[test]
fn driver_ok_counts_only_with_features_ok() {
    let (mut net, _) = chosen(0);
    net.set(STATUS, RUNNING);
    assert_eq!(net.get(STATUS), 3);
    assert!(!net.device.is_running());
}

#[test]
fn only_a_reset_clears_status_bits() {
    let mut net = net();
    net.set(STATUS, 1);
    assert_eq!(net.get(STATUS), RUNNING);
    net.set(STATUS, 128);
    assert_eq!(net.get(STATUS), RUNNING | 128);
    net.set(STATUS, NEEDS_RESET | 16 | 1 << 20);
    assert_eq!(net.get(STATUS), RUNNING | 128, "not the driver's bits");
    net.set(STATUS, 0);
    assert_eq!(net.get(STATUS), 0);
}

#[test]
fn reset_forgets_everything() {
    let mut net = net();
    net.device.registers.interrupt_status = 3;
    net.set(STATUS, 0);
    let fresh = VirtioMmio::new(Net::new(MAC));
    assert_eq!(net.device.save(), fresh.save());
    net.start();
    assert_eq!(net.get(STATUS), RUNNING, "and the device can be used again");
}

#[test]
fn queues_are_set_up_one_by_one() {
    let mut net = Rig::fresh(Net::new(MAC));
    net.negotiate();
    let most = [0, 1, 2, 1 << 31].map(|queue| {
        net.set(reg::QUEUE_SEL, queue);
        net.get(reg::QUEUE_NUM_MAX)
    });
    assert_eq!(most, [256, 256, 0, 0]);
    net.set(reg::QUEUE_READY, 1); // of the queue there is not
    net.set_queue(1, [table(1), available(1), used(1)]);
    assert_eq!(net.get(reg::QUEUE_READY), 1);
    net.set(reg::QUEUE_SEL, 0);
    assert_eq!(net.get(reg::QUEUE_READY), 0);
}

#[test]
fn impossible_sizes_and_addresses_are_left_out() {
    let mut net = Rig::fresh(Net::new(MAC));
    net.set(reg::QUEUE_NUM, 16);
    let before = net.device.rings[0].save();
    for (register, value) in [
        (reg::QUEUE_NUM, 0),
        (reg::QUEUE_NUM, 3),
        (reg::QUEUE_NUM, 512),
        (reg::QUEUE_NUM, 0x1_0010),
        (reg::QUEUE_DESC_LOW, 8),
        (reg::QUEUE_DRIVER_LOW, 1),
        (reg::QUEUE_DEVICE_LOW, 2),
    ] {
        net.set(register, value);
        assert_eq!(net.device.rings[0].save(), before, "{register:#x}");
    }
}

#[test]
fn a_queue_in_use_is_not_changed() {
    let mut net = net();
    net.set(reg::QUEUE_SEL, 0);
    let before = net.device.rings[0].save();
    for register in [reg::QUEUE_NUM, reg::QUEUE_DESC_LOW, reg::QUEUE_DEVICE_HIGH] {
        net.set(register, 32);
    }
    assert_eq!(net.device.rings[0].save(), before);
}

#[test]
fn a_queue_out_of_memory_breaks_the_device() {
    let inside = [table(0), available(0), used(0)];
    for part in 0..3 {
        for outside in [HOLE - 16, HOLE, !0xf] {
            let mut net = Rig::fresh(Net::new(MAC));
            net.negotiate();
            let mut parts = inside;
            parts[part] = outside;
            net.set_queue(0, parts);
            assert_eq!(net.get(reg::QUEUE_READY), 0, "part {part} at {outside:#x}");
            assert_eq!(net.get(STATUS), 11 | NEEDS_RESET);
            assert_eq!(net.get(reg::INTERRUPT_STATUS), 0, "it does not run yet");
        }
    }
}

#[test]
fn a_queue_out_of_memory_is_told_to_a_running_driver() {
    let mut net = net();
    net.set(reg::QUEUE_SEL, 0);
    net.set(reg::QUEUE_READY, 0);
    net.set(reg::QUEUE_DESC_HIGH, 1);
    assert!(net.set(reg::QUEUE_READY, 1));
    assert_eq!(net.get(reg::INTERRUPT_STATUS), 2);
}

#[test]
fn a_queue_not_ready_begins_anew() {
    let mut net = net();
    net.chain(1, 0, &[(0x4000, 12 + 60, false)]);
    net.offer(1, 0);
    net.notify(1);
    assert_eq!((net.out.len(), net.used_index(1)), (1, 1));
    net.set(reg::QUEUE_SEL, 1);
    net.set(reg::QUEUE_READY, 0);
    assert_eq!(net.get(reg::QUEUE_READY), 0);
    net.notify(1);
    assert_eq!(net.out.len(), 1, "stopped");
    net.put(available(1) + 2, 0u16);
    net.put(used(1) + 2, 0u16);
    net.set(reg::QUEUE_READY, 1);
    net.offer(1, 0);
    net.notify(1);
    assert_eq!((net.out.len(), net.used_index(1)), (2, 1));
    assert_eq!(net.get(STATUS), RUNNING);
}

#[test]
fn an_impossible_index_needs_a_reset_and_says_so() {
    for index in [17u16, 0x8000, 0xffff] {
        let mut net = net();
        net.put(available(1) + 2, index);
        assert!(net.notify(1), "a pulse");
        assert_eq!(net.get(STATUS), RUNNING | NEEDS_RESET);
        assert_eq!(net.get(reg::INTERRUPT_STATUS), 2);
        net.put(available(1) + 2, 1u16);
        assert!(!net.notify(1), "nothing goes on");
        assert_eq!((net.out.len(), net.used_index(1)), (0, 0));
        net.set(reg::INTERRUPT_ACK, 2);
        assert_eq!(net.get(reg::INTERRUPT_STATUS), 0);
        net.set(STATUS, RUNNING);
        assert_eq!(net.get(STATUS), RUNNING | NEEDS_RESET, "only by a reset");
    }
}

#[test]
fn an_impossible_receive_index_leaves_no_room() {
    let mut net = net();
    net.put(available(0) + 2, 17u16);
    assert_eq!(net.device.rx_room(&net.memory), 0);
    assert!(net.device.receive(&net.memory, &[0; 60]));
    assert_eq!(net.get(STATUS), RUNNING | NEEDS_RESET);
    assert!(!net.device.receive(&net.memory, &[0; 60]));
}

#[test]
fn nothing_is_done_before_the_driver_is_ready() {
    let mut net = Rig::fresh(Net::new(MAC));
    net.negotiate();
    for queue in [0, 1] {
        net.set_queue(queue, [table(queue), available(queue), used(queue)]);
        net.chain(queue, 0, &[(0x4000, 1530, queue == 0)]);
        net.offer(queue, 0);
    }
    assert!(!net.notify(1) && !net.device.receive(&net.memory, &[0; 60]));
    assert_eq!(net.device.rx_room(&net.memory), 0);
    assert_eq!(
        (net.out.len(), net.used_index(0), net.used_index(1)),
        (0, 0, 0)
    );
    net.set(STATUS, RUNNING);
    assert_eq!(net.device.rx_room(&net.memory), 1);
    assert!(net.notify(1));
    assert!(!net.notify(2) && !net.notify(0xffff_ffff), "no such queue");
}

#[test]
fn each_interrupt_pulses_acknowledged_or_not() {
    let mut net = net();
    net.chain(1, 0, &[(0x4000, 12 + 60, false)]);
    for _ in 0..2 {
        net.offer(1, 0);
        assert!(net.notify(1));
        assert_eq!(net.get(reg::INTERRUPT_STATUS), 1);
    }
    net.set(reg::INTERRUPT_ACK, 2);
    assert_eq!(net.get(reg::INTERRUPT_STATUS), 1, "another bit");
    net.set(reg::INTERRUPT_ACK, 1);
    assert_eq!(net.get(reg::INTERRUPT_STATUS), 0);
    net.suppress(1);
    net.offer(1, 0);
    assert!(!net.notify(1));
    assert_eq!(net.get(reg::INTERRUPT_STATUS), 0);
    assert_eq!(net.used_index(1), 3);
}

#[test]
fn configuration_is_read_in_any_size_and_never_written() {
    let mut net = net();
    let memory = net.memory.clone();
    net.device
        .write(reg::CONFIG, 1, 0xff, &memory, &mut net.out);
    let byte: Vec<u64> = (0..7)
        .map(|n| net.device.read(reg::CONFIG + n, 1))
        .collect();
    assert_eq!(byte, [2, 0, 0, 1, 2, 3, 0]);
    assert_eq!(net.device.read(reg::CONFIG, 2), 0x0002);
    assert_eq!(net.device.read(reg::CONFIG, 4), 0x0100_0002);
    assert_eq!(
        net.device.read(reg::CONFIG + 4, 4),
        0x0302,
        "cut at the end"
    );
    assert_eq!(net.device.read(reg::CONFIG, 8), 0x0302_0100_0002);
    assert_eq!(net.device.read(0xfff, 8), 0);
    let mut block = Rig::fresh(Block::new(0x1_2345_6789));
    let found = [0, 4, 8, 12].map(|at| block.get(reg::CONFIG + at));
    assert_eq!(
        found,
        [0x2345_6789, 1, 16 << 10, 16],
        "capacity, size_max, seg_max"
    );
}

#[test]
fn conformance_of_the_card() {
    let mut changed = net();
    changed.chain(1, 0, &[(0x4000, 12 + 60, false)]);
    changed.offer(1, 0);
    changed.notify(1);
    conforms(VirtioMmio::new(Net::new(MAC)), &changed.device);
}

#[test]
fn conformance_of_the_disk() {
    let mut changed = Rig::new(Block::new(64));
    for (head, kind) in [(0, 0u32), (4, 1), (8, 4)] {
        let header = 0x4000 + u64::from(head) * 0x400;
        changed.put(header, kind);
        let data = (header + 64, 512, kind == 0);
        changed.chain(
            0,
            head,
            &[(header, 16, false), data, (header + 32, 1, true)],
        );
        changed.offer(0, head);
    }
    changed.notify(0);
    assert_eq!(changed.out.len(), 3);
    conforms(VirtioMmio::new(Block::new(64)), &changed.device);
}

#[test]
fn impossible_states_are_refused() {
    type State = super::State<()>;
    let spoil: [fn(&mut State); 3] = [
        |state| state.registers.status = 16,
        |state| state.rings.clear(),
        |state| state.rings.extend(state.rings.clone()),
    ];
    for change in spoil {
        let mut net = net();
        let before = net.device.save();
        let mut state = before.clone();
        change(&mut state);
        assert!(net.device.restore(state).is_err());
        assert_eq!(net.device.save(), before);
    }
}

#[test]
fn a_restored_ring_that_is_nowhere_touches_nothing() {
    let mut net = net();
    let elsewhere =
        crate::memory::GuestMemory::from_ranges(&[(vm_memory::GuestAddress(0x100_0000), 0x1000)])
            .unwrap();
    assert!(
        net.device
            .write(reg::QUEUE_NOTIFY, 4, 1, &elsewhere, &mut net.out)
    );
    assert_eq!(net.get(STATUS), RUNNING | NEEDS_RESET);
    let mut page = [0; 0x1000];
    elsewhere
        .read_slice(&mut page, vm_memory::GuestAddress(0x100_0000))
        .unwrap();
    assert!(page.iter().all(|byte| *byte == 0));
}
