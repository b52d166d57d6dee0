//! Split virtqueues (virtio 1.2, section 2.7), and what a driver must not do to them.

use super::super::VirtioDevice;
use super::super::block::Block;
use super::super::net::Net;
use super::super::rng::Entropy;
use super::super::testing::{
    BEYOND, HOLE, INDIRECT, NEXT, Rig, SIZE, WRITE, available, table, used,
};
use super::*;

/// A ring at queue 0's place, and the memory it is in.
fn ring() -> (Ring, Rig<Net>) {
    let state = State {
        next_avail: 0,
        next_used: 0,
        size: SIZE,
        ready: true,
        desc_table: table(0),
        avail_ring: available(0),
        used_ring: used(0),
    };
    let ring = Ring::restore(256, &state).unwrap();
    (ring, Rig::fresh(Net::new([2; 6])))
}

fn piece(address: u64, length: u32) -> Piece {
    Piece { address, length }
}

#[test]
fn chains_are_taken_in_order_and_split_into_readable_and_writable() {
    let (mut ring, rig) = ring();
    rig.chain(
        0,
        3,
        &[(0x4000, 16, false), (0x5000, 512, true), (0x6000, 1, true)],
    );
    rig.chain(0, 8, &[(0x7000, 5, false)]);
    rig.offer(0, 3);
    rig.offer(0, 8);
    assert_eq!(ring.available(&rig.memory), Some(2));
    let chain = ring.pop(&rig.memory).unwrap();
    assert_eq!(chain.head, 3);
    assert_eq!(chain.readable, [piece(0x4000, 16)]);
    assert_eq!(chain.writable, [piece(0x5000, 512), piece(0x6000, 1)]);
    assert!(!chain.broken);
    assert_eq!(ring.pop(&rig.memory).unwrap().head, 8);
    assert_eq!(ring.available(&rig.memory), Some(0));
    assert_eq!(ring.pop(&rig.memory), None);
}

#[test]
fn a_chain_put_back_is_taken_again() {
    let (mut ring, rig) = ring();
    rig.chain(0, 0, &[(0x4000, 16, true)]);
    rig.offer(0, 0);
    let first = ring.pop(&rig.memory);
    ring.put_back();
    assert_eq!(ring.available(&rig.memory), Some(1));
    assert_eq!(ring.pop(&rig.memory), first);
}

#[test]
fn used_elements_say_head_and_length_and_whether_to_interrupt() {
    let (mut ring, rig) = ring();
    assert!(ring.push(&rig.memory, 5, 77));
    rig.suppress(0);
    assert!(!ring.push(&rig.memory, 6, 0));
    assert_eq!(rig.used(0), [(5, 77), (6, 0)]);
    assert!(!ring.push(&rig.memory, SIZE, 0), "no such head");
    assert_eq!(rig.used_index(0), 2);
}

#[test]
fn indices_wrap_around() {
    let (ring, rig) = ring();
    let state = State {
        next_avail: 0xffff,
        next_used: 0xffff,
        ..ring.save()
    };
    let mut ring = Ring::restore(256, &state).unwrap();
    rig.put(available(0) + 2, 0xffffu16);
    rig.chain(0, 1, &[(0x4000, 1, false)]);
    rig.offer(0, 1);
    rig.offer(0, 1);
    assert_eq!(ring.available(&rig.memory), Some(2));
    for index in [0, 1] {
        let head = ring.pop(&rig.memory).unwrap().head;
        ring.push(&rig.memory, head, 0);
        assert_eq!(rig.used_index(0), index);
    }
}

#[test]
fn an_index_further_than_the_ring_is_long_is_impossible() {
    let (mut ring, rig) = ring();
    rig.put(available(0) + 2, SIZE);
    assert_eq!(ring.available(&rig.memory), Some(SIZE));
    rig.put(available(0) + 2, SIZE + 1);
    assert_eq!(ring.available(&rig.memory), None);
    assert_eq!(ring.pop(&rig.memory), None);
}

#[test]
fn a_stopped_ring_is_silent_and_begins_anew() {
    let (mut ring, rig) = ring();
    rig.chain(0, 0, &[(0x4000, 16, true)]);
    rig.offer(0, 0);
    ring.pop(&rig.memory);
    ring.push(&rig.memory, 0, 0);
    ring.stop();
    assert!(!ring.push(&rig.memory, 0, 0));
    assert_eq!(
        (ring.available(&rig.memory), ring.pop(&rig.memory)),
        (Some(0), None)
    );
    assert_eq!((ring.save().next_avail, ring.save().next_used), (0, 0));
    assert_eq!(ring.save().desc_table, table(0));
}

/// Whether the chain at descriptor 0 is broken, after `change`.
fn broken(change: impl FnOnce(&Rig<Net>)) -> bool {
    let (mut ring, rig) = ring();
    rig.chain(0, 0, &[(0x4000, 16, false), (0x5000, 16, true)]);
    change(&rig);
    rig.offer(0, 0);
    ring.pop(&rig.memory).unwrap().broken
}

#[test]
fn broken_chains_are_known() {
    assert!(!broken(|_| {}));
    assert!(
        broken(|rig| rig.describe(0, 1, (HOLE - 8, 16), WRITE)),
        "ends outside"
    );
    assert!(
        broken(|rig| rig.describe(0, 1, (BEYOND - 8, 16), WRITE)),
        "begins outside"
    );
    assert!(
        broken(|rig| rig.describe(0, 1, (u64::MAX, 16), WRITE)),
        "wraps around"
    );
    assert!(
        broken(|rig| rig.describe(0, 1, (0, u32::MAX), WRITE)),
        "too long"
    );
    assert!(
        !broken(|rig| rig.describe(0, 1, (u64::MAX, 0), WRITE)),
        "nothing, anywhere"
    );
    let order = |rig: &Rig<Net>| rig.chain(0, 0, &[(0x4000, 1, true), (0x4000, 1, false)]);
    assert!(broken(order), "readable after writable");
    assert!(
        broken(|rig| rig.describe_next(0, 1, (0x5000, 1), WRITE | NEXT, 1)),
        "a loop"
    );
    assert!(
        broken(|rig| rig.describe_next(0, 1, (0x5000, 1), WRITE | NEXT, SIZE)),
        "no such next"
    );
}

#[test]
fn a_loop_is_followed_once_around_at_most() {
    let (mut ring, rig) = ring();
    rig.describe_next(0, 0, (0x4000, 1), NEXT, 0);
    rig.offer(0, 0);
    let chain = ring.pop(&rig.memory).unwrap();
    assert!(chain.broken && chain.readable.len() == usize::from(SIZE));
}

#[test]
fn an_indirect_table_is_bounded_like_any_other() {
    let (mut ring, rig) = ring();
    for n in 0..100u64 {
        let at = 0x8000 + n * 16;
        rig.put(at, 0x4000u64);
        rig.put(at + 8, 1u32);
        rig.put(at + 12, NEXT);
        rig.put(at + 14, n as u16 + 1);
    }
    rig.describe(0, 0, (0x8000, 1600), INDIRECT);
    rig.offer(0, 0);
    let chain = ring.pop(&rig.memory).unwrap();
    assert!(chain.broken && chain.readable.len() == usize::from(SIZE));
}

#[test]
fn gather_and_scatter_go_from_piece_to_piece() {
    let (_, rig) = ring();
    rig.write(0x4000, b"abcdef");
    let pieces = [piece(0x4000, 2), piece(0x4004, 0), piece(0x4003, 3)];
    assert_eq!(gather(&rig.memory, &pieces, 100), b"abdef");
    assert_eq!(gather(&rig.memory, &pieces, 3), b"abd");
    assert_eq!(scatter(&rig.memory, &pieces, b"1234567"), 5);
    assert_eq!(rig.bytes(0x4000, 6), b"12c345");
    let outside = [piece(0x4000, 1), piece(HOLE, 1), piece(0x4001, 1)];
    assert_eq!(gather(&rig.memory, &outside, 9), b"1");
    assert_eq!(scatter(&rig.memory, &outside, b"xyz"), 1);
}

#[test]
fn impossible_registers_are_refused() {
    let (ring, _) = ring();
    let spoil: [fn(&mut State); 6] = [
        |state| state.size = 0,
        |state| state.size = 12,
        |state| state.size = 512,
        |state| state.desc_table = 8,
        |state| state.avail_ring = 1,
        |state| state.used_ring = 2,
    ];
    for change in spoil {
        let mut state = ring.save();
        change(&mut state);
        assert!(Ring::restore(256, &state).is_err(), "{state:?}");
    }
}

/// `virtio-queue` counts, outside of what is saved, what was given back since it was last asked whether
/// the driver wants to hear of it. That matters to a driver that names the buffer it wants to hear of
/// (VIRTIO_F_EVENT_IDX). None can: no device offers it. And there is nothing between giving back and
/// asking: `push` is both.
#[test]
fn a_ring_saved_anywhere_between_two_chains_asks_for_the_same_interrupts() {
    const EVENT_IDX: u64 = 1 << 29;
    let offered = [
        Net::new([2; 6]).features(),
        Block::new(1).features(),
        Entropy.features(),
    ];
    assert!(offered.iter().all(|features| features & EVENT_IDX == 0));
    for cut in 0..8u16 {
        let (mut ring, rig) = ring();
        // Where such a driver would say so: far ahead, so that it would hear of none of these.
        rig.put(available(0) + 4 + 2 * u64::from(SIZE), 0x7000u16);
        let mut wanted = Vec::new();
        for head in 0..8 {
            if head == cut {
                ring = Ring::restore(256, &ring.save()).unwrap();
            }
            // The driver looks away at times.
            rig.put(available(0), u16::from(head % 3 == 1));
            wanted.push(ring.push(&rig.memory, head, 0));
        }
        let expected = [true, false, true, true, false, true, true, false];
        assert_eq!(wanted, expected, "saved before chain {cut}");
        assert_eq!(rig.used_index(0), 8);
    }
}
