//! The network card (virtio 1.2, section 5.1).

use super::super::testing::{
    BUFFERS, HOLE, NEEDS_RESET, NEXT, RUNNING, Rig, SIZE, STATUS, WRITE, Wild, used, wild,
};
use super::*;
use proptest::prelude::*;

const RX: u64 = 0;
const TX: u64 = 1;

fn net() -> Rig<Net> {
    Rig::new(Net::new([2; 6]))
}

fn frame(length: usize) -> Vec<u8> {
    (0..length).map(|n| (n % 251) as u8 + 1).collect()
}

impl Rig<Net> {
    fn receive(&mut self, frame: &[u8]) -> bool {
        self.device.receive(&self.memory, frame)
    }
}

/// What leaves when the driver sends `pieces` of memory.
fn sent(net: &mut Rig<Net>, pieces: &[(u64, u32, bool)]) -> Vec<Output> {
    net.chain(TX, 0, pieces);
    net.offer(TX, 0);
    let before = net.used_index(TX);
    net.notify(TX);
    assert_eq!(
        net.used_index(TX),
        before.wrapping_add(1),
        "the chain comes back"
    );
    std::mem::take(&mut net.out)
}

#[test]
fn a_frame_is_sent_without_its_header_wherever_the_pieces_end() {
    let mut net = net();
    let bytes = frame(100);
    net.write(0x4000, &[&[0; 12], &bytes[..]].concat());
    let whole = [(0x4000, 112, false)];
    let split = [
        (0x4000, 5, false),
        (0x4005, 0, false),
        (0x4005, 17, false),
        (0x4016, 90, false),
    ];
    for pieces in [&whole[..], &split[..]] {
        assert_eq!(sent(&mut net, pieces), [Output::Frame(bytes.clone())]);
    }
    assert_eq!(net.used(TX), [(0, 0), (0, 0)]);
}

#[test]
fn all_frames_available_are_sent_at_one_notification() {
    let mut net = net();
    for head in 0..SIZE {
        net.chain(TX, head, &[(0x4000, 12 + 14 + u32::from(head), false)]);
        net.offer(TX, head);
    }
    assert!(net.notify(TX));
    let lengths: Vec<usize> = net
        .out
        .iter()
        .map(|output| match output {
            Output::Frame(bytes) => bytes.len(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(lengths, (14..14 + usize::from(SIZE)).collect::<Vec<_>>());
}

#[test]
fn what_is_no_frame_is_dropped() {
    let mut net = net();
    assert_eq!(
        sent(&mut net, &[(0x4000, 12 + 14, false)]).len(),
        1,
        "the shortest"
    );
    assert_eq!(
        sent(&mut net, &[(0x4000, 12 + 1518, false)]).len(),
        1,
        "the longest"
    );
    for pieces in [
        &[(0x4000, 0, false)][..],
        &[(0x4000, 12, false)],
        &[(0x4000, 12 + 13, false)],
        &[(0x4000, 12 + 1519, false)],
        &[(0x4000, 0xc000, false)],
        &[(0x4000, 100, true)],
        &[(0x4000, 12, false), (HOLE - 20, 60, false)],
        &[(0x4000, u32::MAX, false), (0x4000, 71, false)],
    ] {
        assert_eq!(sent(&mut net, pieces), [], "{pieces:x?}");
    }
    net.describe_next(TX, 0, (0x4000, 80), NEXT, 0);
    net.offer(TX, 0);
    net.notify(TX);
    assert_eq!(net.out, [], "a loop");
}

#[test]
fn a_frame_is_received_after_a_header_that_says_one_buffer() {
    let mut net = net();
    net.chain(RX, 0, &[(0x4000, 7, true), (0x5000, 3000, true)]);
    net.offer(RX, 0);
    assert_eq!(net.device.rx_room(&net.memory), 1);
    assert!(net.receive(&frame(60)));
    assert_eq!(net.used(RX), [(0, 72)]);
    let written = [net.bytes(0x4000, 7), net.bytes(0x5000, 65)].concat();
    assert_eq!(written[..12], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    assert_eq!(written[12..], frame(60));
    assert_eq!(net.bytes(0x5000 + 65, 8), [0; 8], "and no further");
    assert_eq!(net.device.rx_room(&net.memory), 0);
}

#[test]
fn a_frame_without_a_buffer_is_lost() {
    let mut net = net();
    assert!(!net.receive(&frame(60)));
    assert_eq!((net.used_index(RX), net.get(STATUS)), (0, RUNNING));
}

#[test]
fn a_frame_too_long_for_the_buffer_is_lost_and_the_buffer_stays() {
    let mut net = net();
    net.chain(RX, 0, &[(0x4000, 12 + 60, true)]);
    net.offer(RX, 0);
    let before = net.image();
    assert!(!net.receive(&frame(61)));
    assert!(net.image() == before, "nothing was written");
    assert_eq!(net.device.rx_room(&net.memory), 1);
    assert!(net.receive(&frame(60)));
    assert_eq!(net.used(RX), [(0, 72)]);
}

#[test]
fn a_broken_receive_buffer_goes_back_empty() {
    let mut net = net();
    net.chain(RX, 0, &[(HOLE - 8, 2000, true)]);
    net.chain(RX, 1, &[(0x4000, 2000, true)]);
    net.offer(RX, 0);
    net.offer(RX, 1);
    net.receive(&frame(60));
    net.receive(&frame(60));
    assert_eq!(net.used(RX), [(0, 0), (1, 72)]);
}

#[test]
fn interrupts_are_suppressed_each_queue_by_itself() {
    let mut net = net();
    net.suppress(TX);
    net.chain(TX, 0, &[(0x4000, 100, false)]);
    net.offer(TX, 0);
    assert!(!net.notify(TX));
    net.chain(RX, 0, &[(0x4000, 100, true)]);
    net.offer(RX, 0);
    assert!(net.receive(&frame(60)));
}

#[test]
fn a_notification_of_receive_buffers_does_nothing() {
    let mut net = net();
    net.chain(RX, 0, &[(0x4000, 100, true)]);
    net.offer(RX, 0);
    assert!(!net.notify(RX));
    assert_eq!((net.used_index(RX), net.out.len()), (0, 0));
}

/// Whether `address` may be written: in the used ring, or in what the table lets the device write.
fn writable(address: u64, queue: u64, table: &[Wild]) -> bool {
    let ring = used(queue)..used(queue) + 4 + u64::from(SIZE) * 8;
    let inside = |d: &Wild| {
        d.flags & WRITE != 0 && address >= d.address && address - d.address < d.length.into()
    };
    ring.contains(&address) || table.iter().any(inside)
}

proptest! {
    #[test]
    fn whatever_the_rings_hold_work_and_writes_are_bounded(
        rx in wild::table(), tx in wild::table(),
        rx_ring in wild::ring(), tx_ring in wild::ring(),
        frames in proptest::collection::vec(0usize..1600, 0..20),
    ) {
        let mut net = net();
        let plain = |table: &[Wild]| table
            .iter()
            .map(|d| Wild { flags: d.flags & 3, ..*d })
            .collect::<Vec<_>>();
        let (rx, tx) = (plain(&rx), plain(&tx));
        prop_assume!(rx.iter().all(|d| d.address >= BUFFERS));
        net.fill(RX, &rx, &rx_ring);
        net.fill(TX, &tx, &tx_ring);
        let before = net.image();
        net.notify(TX);
        prop_assert!(net.out.len() <= usize::from(SIZE));
        for output in &net.out {
            let Output::Frame(bytes) = output else { panic!("{output:?}") };
            prop_assert!((FRAME_MIN..=FRAME_MAX).contains(&bytes.len()));
        }
        prop_assert_eq!(net.get(STATUS) & NEEDS_RESET != 0, tx_ring.1 > SIZE);
        prop_assert!(net.used_index(TX) <= SIZE);
        for length in frames {
            net.receive(&frame(length));
        }
        prop_assert!(net.used_index(RX) <= SIZE);
        for ((address, old), (_, new)) in before.into_iter().zip(net.image()) {
            let allowed = writable(address, RX, &rx) || writable(address, TX, &[]);
            prop_assert!(old == new || allowed, "{:#x} was written", address);
        }
    }

    #[test]
    fn rings_that_lie_in_each_other_and_in_buffers_do_no_harm(
        places in proptest::array::uniform3(0u64..HOLE),
        garbage in proptest::collection::vec(any::<u8>(), 4096),
        heads in wild::ring(),
        wild in wild::table(),
    ) {
        let mut net = Rig::fresh(Net::new([2; 6]));
        net.negotiate();
        for at in (0..HOLE).step_by(garbage.len()) {
            net.write(at, &garbage);
        }
        net.fill(TX, &wild, &heads);
        for queue in [RX, TX] {
            net.set_queue(queue, [places[0] & !15, places[1] & !1, places[2] & !3]);
        }
        net.set(STATUS, RUNNING);
        for _ in 0..4 {
            net.notify(TX);
            net.receive(&frame(200));
        }
        prop_assert!(net.out.len() <= 4 * usize::from(SIZE));
    }
}
