//! The disk (virtio 1.2, section 5.2).

use super::super::mmio::VirtioMmio;
use super::super::testing::{
    BUFFERS, HOLE, NEXT, RUNNING, Rig, SIZE, STATUS, WRITE, Wild, available, used, wild,
};
use super::*;
use crate::devices::{Chip, Stateful};
use proptest::prelude::*;

const SECTORS: u64 = 1024;
/// Where a request's parts lie in these tests.
const HEADER_AT: u64 = 0x4000;
const STATUS_AT: u64 = 0x4010;
const DATA_AT: u64 = 0x5000;
/// A status no device writes.
const NONE: u8 = 0xff;

fn disk() -> Rig<Block> {
    Rig::new(Block::new(SECTORS))
}

impl Rig<Block> {
    /// Begins a request of which `data` are the pieces between header and status; whether the line pulses.
    fn begin(&mut self, kind: u32, sector: u64, data: &[(u64, u32, bool)]) -> bool {
        self.put(HEADER_AT, kind);
        self.put(HEADER_AT + 8, sector);
        self.put(STATUS_AT, NONE);
        let mut pieces = vec![(HEADER_AT, 16, false)];
        pieces.extend_from_slice(data);
        pieces.push((STATUS_AT, 1, true));
        self.chain(0, 0, &pieces);
        self.offer(0, 0);
        self.notify(0)
    }

    fn status(&self) -> u8 {
        self.peek(STATUS_AT)
    }

    fn complete(&mut self, tag: u32, ok: bool, data: &[u8]) -> Result<bool, DeviceError> {
        self.device.complete(&self.memory, tag, ok, data)
    }

    /// The status a request ends with at once.
    fn refused(&mut self, kind: u32, sector: u64, data: &[(u64, u32, bool)]) -> u8 {
        let before = self.used_index(0);
        assert!(self.begin(kind, sector, data), "an end is an interrupt");
        assert_eq!(self.used_index(0), before + 1);
        assert_eq!(self.out, []);
        self.status()
    }
}

fn read(tag: u32, offset: u64, len: u32) -> Output {
    Output::DiskRead { tag, offset, len }
}

fn sectors(count: u8) -> Vec<u8> {
    (1..=count).flat_map(|n| [n; 512]).collect()
}

#[test]
fn a_read_ends_with_its_data_a_status_and_an_interrupt() {
    let mut disk = disk();
    assert!(!disk.begin(
        T_IN,
        3,
        &[(DATA_AT, 512, true), (DATA_AT + 0x800, 512, true)]
    ));
    assert_eq!(disk.out, [read(0, 3 * 512, 1024)]);
    assert_eq!((disk.status(), disk.used_index(0)), (NONE, 0));
    assert!(disk.complete(0, true, &sectors(2)).unwrap());
    assert_eq!(disk.bytes(DATA_AT, 512), [1; 512]);
    assert_eq!(disk.bytes(DATA_AT + 0x800, 512), [2; 512]);
    assert_eq!((disk.status(), disk.used(0)), (S_OK, vec![(0, 1025)]));
    assert_eq!(disk.device.device().outstanding(), []);
}

#[test]
fn a_write_takes_its_data_at_once() {
    let mut disk = disk();
    disk.write(DATA_AT, &sectors(2));
    disk.begin(
        T_OUT,
        1,
        &[(DATA_AT, 100, false), (DATA_AT + 100, 924, false)],
    );
    disk.write(DATA_AT, &[9; 1024]);
    let (tag, offset, data) = (0, 512, sectors(2));
    assert_eq!(disk.out, [Output::DiskWrite { tag, offset, data }]);
    assert!(disk.complete(0, true, &[]).unwrap());
    assert_eq!((disk.status(), disk.used(0)), (S_OK, vec![(0, 1)]));
}

#[test]
fn a_flush_has_no_data() {
    let mut disk = disk();
    disk.begin(T_FLUSH, 0, &[]);
    assert_eq!(disk.out, [Output::DiskFlush { tag: 0 }]);
    assert!(disk.complete(0, true, &[]).unwrap());
    assert_eq!(disk.status(), S_OK);
}

#[test]
fn get_id_is_answered_at_once_as_far_as_there_is_room() {
    let mut disk = disk();
    assert_eq!(disk.refused(T_GET_ID, 0, &[(DATA_AT, 20, true)]), S_OK);
    assert_eq!(disk.bytes(DATA_AT, 20), NAME);
    assert_eq!(disk.refused(T_GET_ID, 0, &[(DATA_AT + 64, 6, true)]), S_OK);
    assert_eq!(disk.bytes(DATA_AT + 64, 7), b"tandem\0");
    assert_eq!(disk.used(0), [(0, 21), (0, 7)]);
}

#[test]
fn other_requests_are_unsupported() {
    let mut disk = disk();
    for kind in [2, 3, 5, 11, 13, u32::MAX] {
        assert_eq!(disk.refused(kind, 0, &[(DATA_AT, 512, true)]), S_UNSUPP);
    }
}

#[test]
fn places_are_bounded_by_the_capacity() {
    let mut disk = disk();
    let (one, two) = ([(DATA_AT, 512, true)], [(DATA_AT, 1024, true)]);
    disk.begin(T_IN, SECTORS - 1, &one);
    assert_eq!(
        std::mem::take(&mut disk.out),
        [read(0, (SECTORS - 1) * 512, 512)]
    );
    assert_eq!(disk.refused(T_IN, SECTORS, &one), S_IOERR);
    assert_eq!(disk.refused(T_IN, SECTORS - 1, &two), S_IOERR);
    assert_eq!(disk.refused(T_IN, u64::MAX, &one), S_IOERR);
    assert_eq!(
        disk.refused(T_OUT, 1 << 55, &[(DATA_AT, 512, false)]),
        S_IOERR
    );
    let mut largest = Rig::new(Block::new(u64::MAX));
    assert_eq!(largest.refused(T_IN, SECTORS_MAX, &one), S_IOERR);
    largest.begin(T_IN, SECTORS_MAX - 1, &one);
    assert_eq!(largest.out, [read(0, (SECTORS_MAX - 1) * 512, 512)]);
}

#[test]
fn data_is_whole_sectors_and_bounded() {
    let mut disk = disk();
    for length in [1, 511, 513] {
        assert_eq!(disk.refused(T_IN, 0, &[(DATA_AT, length, true)]), S_IOERR);
        assert_eq!(disk.refused(T_OUT, 0, &[(DATA_AT, length, false)]), S_IOERR);
    }
    let piece = (DATA_AT, 0x8000, true);
    assert_eq!(
        disk.refused(T_IN, 0, &[piece; 9]),
        S_IOERR,
        "more than 256 KiB"
    );
    disk.begin(T_IN, 0, &[piece; 8]);
    assert_eq!(disk.out, [read(0, 0, DATA_MAX)]);
}

#[test]
fn what_a_driver_may_send_by_the_bounds_it_is_told_is_accepted() {
    assert_eq!(SIZE_MAX * SEG_MAX, DATA_MAX);
    // A page-by-page driver's longest request fits the queue, header and status included.
    assert!(u64::from(SEG_MAX) + 2 <= u64::from(Block::QUEUE_SIZE));
}

#[test]
fn a_failure_is_an_error_and_writes_no_data() {
    let mut disk = disk();
    disk.begin(T_IN, 0, &[(DATA_AT, 512, true)]);
    assert!(disk.complete(0, false, &[]).unwrap());
    assert_eq!((disk.status(), disk.used(0)), (S_IOERR, vec![(0, 1)]));
    assert_eq!(disk.bytes(DATA_AT, 512), [0; 512]);
}

#[test]
fn ends_that_fit_no_request_change_nothing() {
    let mut disk = disk();
    disk.begin(T_IN, 0, &[(DATA_AT, 512, true)]);
    let before = disk.device.save();
    assert!(matches!(
        disk.complete(7, true, &[]),
        Err(DeviceError::UnknownTag(7))
    ));
    for (ok, length) in [(true, 0), (true, 511), (true, 513), (false, 512)] {
        let result = disk.complete(0, ok, &vec![0; length]);
        assert!(matches!(result, Err(DeviceError::Length { tag: 0, .. })));
    }
    assert_eq!(disk.device.save(), before);
    disk.complete(0, true, &[1; 512]).unwrap();
    assert!(matches!(
        disk.complete(0, true, &[1; 512]),
        Err(DeviceError::UnknownTag(0))
    ));
}

#[test]
fn requests_end_in_any_order() {
    let mut disk = disk();
    for head in [0u16, 4, 8] {
        let header = HEADER_AT + u64::from(head) * 0x100;
        disk.put(header, T_IN);
        disk.put(header + 8, u64::from(head));
        let (data, status) = ((header + 0x20, 512, true), (header + 0x18, 1, true));
        disk.chain(0, head, &[(header, 16, false), data, status]);
        disk.offer(0, head);
    }
    disk.notify(0);
    for tag in [1, 2, 0] {
        disk.complete(tag, true, &[tag as u8 + 1; 512]).unwrap();
    }
    assert_eq!(disk.used(0), [(4, 513), (8, 513), (0, 513)]);
    assert_eq!(disk.bytes(HEADER_AT + 0x420, 512), [2; 512]);
}

#[test]
fn a_guest_that_rewrites_the_chain_changes_nothing() {
    let mut disk = disk();
    disk.begin(T_IN, 0, &[(DATA_AT, 512, true)]);
    disk.put(HEADER_AT, T_OUT);
    disk.chain(
        0,
        0,
        &[
            (HEADER_AT, 16, false),
            (0x9000, 512, true),
            (0x9800, 1, true),
        ],
    );
    disk.complete(0, true, &[7; 512]).unwrap();
    assert_eq!(disk.bytes(DATA_AT, 512), [7; 512]);
    assert_eq!(
        (disk.status(), disk.bytes(0x9000, 0x801)),
        (S_OK, vec![0; 0x801])
    );
    assert_eq!(disk.used(0), [(0, 513)]);
}

#[test]
fn header_and_status_may_share_pieces_with_data() {
    let mut disk = disk();
    disk.put(HEADER_AT, T_IN);
    disk.put(HEADER_AT + 8, 2u64);
    let pieces = [
        (HEADER_AT, 3, false),
        (HEADER_AT + 3, 13, false),
        (DATA_AT, 513, true),
        (0, 0, true),
    ];
    disk.chain(0, 0, &pieces);
    disk.offer(0, 0);
    disk.notify(0);
    assert_eq!(disk.out, [read(0, 1024, 512)]);
    disk.put(DATA_AT + 512, NONE);
    disk.complete(0, true, &[3; 512]).unwrap();
    assert_eq!(disk.bytes(DATA_AT, 513), [&[3; 512][..], &[S_OK]].concat());
}

#[test]
fn chains_without_header_or_status_go_back_untouched() {
    let mut disk = disk();
    for (n, pieces) in [
        &[(HEADER_AT, 16, false)][..],
        &[(HEADER_AT, 15, false), (STATUS_AT, 1, true)],
        &[(HEADER_AT, 16, false), (STATUS_AT, 0, true)],
        &[(STATUS_AT, 1, true)],
        &[
            (HEADER_AT, 16, false),
            (HOLE - 8, 512, true),
            (STATUS_AT, 1, true),
        ],
        &[
            (HEADER_AT, 16, false),
            (STATUS_AT, 1, true),
            (DATA_AT, 512, false),
        ],
    ]
    .into_iter()
    .enumerate()
    {
        disk.put(STATUS_AT, NONE);
        disk.chain(0, 0, pieces);
        disk.offer(0, 0);
        disk.notify(0);
        assert_eq!((disk.status(), disk.out.len()), (NONE, 0), "{pieces:x?}");
        assert_eq!(disk.used(0)[n], (0, 0));
    }
}

#[test]
fn requests_beyond_what_can_be_under_way_fail() {
    let mut disk = disk();
    for _ in 0..OUTSTANDING_MAX {
        disk.begin(T_FLUSH, 0, &[]);
    }
    assert_eq!(disk.out.len(), OUTSTANDING_MAX);
    disk.out.clear();
    assert_eq!(disk.refused(T_FLUSH, 0, &[]), S_IOERR);
    disk.complete(5, true, &[]).unwrap();
    disk.begin(T_FLUSH, 0, &[]);
    assert_eq!(
        disk.out,
        [Output::DiskFlush {
            tag: OUTSTANDING_MAX as u32
        }]
    );
}

/// A read under way, then `stop`, then the queue set up again at the same place.
fn stopped(stop: impl FnOnce(&mut Rig<Block>)) -> Rig<Block> {
    let mut disk = disk();
    disk.begin(T_IN, 0, &[(DATA_AT, 512, true)]);
    stop(&mut disk);
    disk.put(available(0) + 2, 0u16);
    disk.put(used(0) + 2, 0u16);
    disk
}

#[test]
fn requests_under_way_at_a_reset_end_without_a_trace() {
    let stops: [fn(&mut Rig<Block>); 2] = [
        |disk| {
            disk.set(STATUS, 0);
            disk.start();
        },
        |disk| {
            disk.set(0x44, 0);
            disk.set(0x44, 1);
        },
    ];
    for stop in stops {
        let mut disk = stopped(stop);
        disk.out.clear();
        let before = disk.image();
        assert!(!disk.complete(0, true, &[7; 512]).unwrap());
        assert!(disk.image() == before, "nothing was written");
        assert_eq!(disk.get(STATUS), RUNNING);
        disk.begin(T_FLUSH, 0, &[]);
        assert_eq!(
            disk.out,
            [Output::DiskFlush { tag: 1 }],
            "no tag comes twice"
        );
        assert!(disk.complete(1, true, &[]).unwrap());
        assert_eq!(disk.used(0), [(0, 1)]);
    }
}

#[test]
fn outstanding_gives_the_requests_again_after_a_restore() {
    let mut disk = disk();
    disk.write(DATA_AT, &sectors(1));
    disk.begin(T_OUT, 1, &[(DATA_AT, 512, false)]);
    disk.begin(T_IN, 2, &[(DATA_AT, 512, true)]);
    disk.begin(T_FLUSH, 0, &[]);
    let mut other = VirtioMmio::new(Block::new(SECTORS));
    other.restore(disk.device.save()).unwrap();
    assert_eq!(other.device().outstanding(), disk.out);
    other.complete(&disk.memory, 1, true, &[8; 512]).unwrap();
    assert_eq!(disk.bytes(DATA_AT, 512), [8; 512]);
}

/// As many writes under way as there can be, of as many bytes as they can have: half of them the driver's
/// before it took the queue out of use, half of them after.
#[test]
fn the_largest_state_is_saved_and_restored() {
    let mut disk = Rig::new(Block::new(SECTORS_MAX));
    let write = |disk: &mut Rig<Block>, n: u64| {
        // At the end of the disk, where a number takes most room.
        let sector = SECTORS_MAX - (n + 1) * u64::from(DATA_MAX) / SECTOR;
        disk.begin(T_OUT, sector, &[(DATA_AT, DATA_MAX / 8, false); 8]);
    };
    for n in 0..OUTSTANDING_MAX as u64 {
        write(&mut disk, n);
    }
    disk.set(STATUS, 0);
    disk.start();
    disk.put(available(0) + 2, 0u16);
    for n in 0..OUTSTANDING_MAX as u64 {
        write(&mut disk, n);
    }
    assert_eq!(disk.out.len(), UNDER_WAY_MAX, "all of them are under way");
    let saved = disk.device.save_bytes();
    assert!(saved.len() > UNDER_WAY_MAX * DATA_MAX as usize);
    let mut other = VirtioMmio::new(Block::new(SECTORS_MAX));
    let version = other.version();
    other.restore_bytes(version, &saved).unwrap();
    assert_eq!(other.save_bytes(), saved);
}

#[test]
fn impossible_states_are_refused() {
    let mut disk = disk();
    disk.begin(T_IN, 2, &[(DATA_AT, 512, true)]);
    disk.begin(T_IN, 2, &[(DATA_AT, 512, true)]);
    let good = disk.device.device().save();
    let spoil: [fn(&mut State); 6] = [
        |state| state.under_way = vec![state.under_way[0].clone(); OUTSTANDING_MAX + 1].into(),
        |state| state.under_way[0].tag = 1,
        |state| state.next_tag = 0,
        |state| state.under_way[0].offset = SECTORS * 512,
        |state| {
            state.under_way[0].kind = Kind::Read {
                len: DATA_MAX + 512,
            }
        },
        |state| state.under_way[0].status.length = 2,
    ];
    for change in spoil {
        let mut state = good.clone();
        change(&mut state);
        assert!(VirtioDevice::restore(&mut Block::new(SECTORS), state).is_err());
    }
    assert_eq!(
        VirtioDevice::restore(&mut Block::new(SECTORS), good),
        Ok(())
    );
}

/// Whether `address` may be written: in the used ring, or in what the table lets the device write.
fn writable(address: u64, table: &[Wild]) -> bool {
    let ring = used(0)..used(0) + 4 + u64::from(SIZE) * 8;
    let inside = |d: &Wild| {
        d.flags & WRITE != 0 && address >= d.address && address - d.address < d.length.into()
    };
    ring.contains(&address) || table.iter().any(inside)
}

/// Request headers all over the buffers: type and sector.
fn headers() -> impl Strategy<Value = Vec<(u32, u64)>> {
    let kind = prop_oneof![
        Just(T_IN),
        Just(T_OUT),
        Just(T_FLUSH),
        Just(T_GET_ID),
        any::<u32>()
    ];
    let sector = prop_oneof![8 => 0..SECTORS + 2, 1 => any::<u64>()];
    proptest::collection::vec((kind, sector), 64)
}

/// Descriptors of which many make requests: header, data, status.
fn table() -> impl Strategy<Value = Vec<Wild>> {
    let at = || (BUFFERS..HOLE - 4096).prop_map(|address| address & !15);
    let header = at().prop_map(|address| (address, 16, NEXT));
    let data = (at(), 0u32..4, any::<bool>());
    let data =
        data.prop_map(|(at, n, writes)| (at, n * 512, NEXT | if writes { WRITE } else { 0 }));
    let status = at().prop_map(|address| (address, 1, WRITE));
    let request = (header, data, status).prop_map(<[_; 3]>::from);
    let requests = proptest::collection::vec(request, 5);
    (requests, wild::table(), 0usize..16).prop_map(|(requests, mut table, wild)| {
        let parts = requests.into_iter().flatten().enumerate();
        for (n, (address, length, flags)) in parts.filter(|(n, _)| *n != wild) {
            let next = n as u16 + 1;
            table[n] = Wild {
                address,
                length,
                flags,
                next,
            };
        }
        table
    })
}

proptest! {
    #[test]
    fn whatever_the_ring_holds_work_and_writes_are_bounded(
        table in prop_oneof![table(), wild::table()],
        ring in wild::ring(),
        later in wild::table(),
        headers in headers(),
        ends in proptest::collection::vec((any::<bool>(), any::<bool>()), usize::from(SIZE)),
    ) {
        let table: Vec<Wild> = table.iter().map(|d| Wild { flags: d.flags & 3, ..*d }).collect();
        prop_assume!(table.iter().all(|d| d.address >= BUFFERS));
        let mut disk = disk();
        for (at, (kind, sector)) in (BUFFERS..HOLE).step_by(16).zip(headers.iter().cycle()) {
            disk.put(at, *kind);
            disk.put(at + 8, *sector);
        }
        disk.fill(0, &table, &ring);
        let before = disk.image();
        disk.notify(0);
        let out = std::mem::take(&mut disk.out);
        prop_assert!(out.len() <= usize::from(SIZE));
        prop_assert_eq!(disk.device.device().outstanding(), out.clone());
        prop_assert!(usize::from(disk.used_index(0)) + out.len() <= usize::from(SIZE));
        // Until the ends come, the guest rewrites all its descriptors.
        for (n, d) in later.iter().enumerate() {
            disk.describe_next(0, n as u16, (d.address, d.length), d.flags, d.next);
        }
        let rewritten = disk.bytes(0, usize::from(SIZE) * 16);
        for (output, (ok, swapped)) in out.iter().zip(ends) {
            let (tag, len) = match output {
                Output::DiskRead { tag, offset, len } => {
                    prop_assert!(offset + u64::from(*len) <= SECTORS * SECTOR);
                    (*tag, *len)
                }
                Output::DiskWrite { tag, offset, data } => {
                    prop_assert!(offset + data.len() as u64 <= SECTORS * SECTOR);
                    (*tag, 0)
                }
                Output::DiskFlush { tag } => (*tag, 0),
                other => panic!("{other:?}"),
            };
            let length = if ok { len as usize } else { 0 };
            prop_assert!(disk.complete(tag, ok, &vec![0x5a; length + 1]).is_err());
            if swapped {
                let state = disk.device.save();
                disk.device = VirtioMmio::new(Block::new(SECTORS));
                disk.device.restore(state).unwrap();
            }
            prop_assert!(disk.complete(tag, ok, &vec![0x5a; length]).is_ok());
        }
        prop_assert_eq!(disk.device.device().outstanding(), []);
        prop_assert!(disk.used_index(0) <= SIZE);
        prop_assert_eq!(disk.bytes(0, rewritten.len()), rewritten);
        for ((address, old), (_, new)) in before.into_iter().zip(disk.image()) {
            let descriptors = address < u64::from(SIZE) * 16;
            let allowed = descriptors || writable(address, &table);
            prop_assert!(old == new || allowed, "{:#x} was written", address);
        }
    }

    #[test]
    fn damaged_states_are_refused_or_harmless(
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut disk = disk();
        disk.begin(T_OUT, 1, &[(DATA_AT, 512, false)]);
        disk.begin(T_IN, 2, &[(DATA_AT, 512, true)]);
        let mut bytes = disk.device.save_bytes();
        for (place, value) in damage {
            let place = place.index(bytes.len());
            bytes[place] = value;
        }
        if disk.device.restore_bytes(1, &bytes).is_ok() {
            for output in disk.device.device().outstanding() {
                let tag = output.disk_tag().unwrap();
                let len = match output {
                    Output::DiskRead { len, .. } => len as usize,
                    _ => 0,
                };
                prop_assert!(disk.complete(tag, true, &vec![1; len]).is_ok());
            }
            disk.notify(0);
        }
    }
}
