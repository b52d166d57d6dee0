use super::*;
use crate::event::LogIndex;
use crate::point::{ExecPoint, Here};
use proptest::prelude::*;

fn event() -> impl Strategy<Value = Event> {
    let bytes = || proptest::collection::vec(any::<u8>(), 0..64);
    prop_oneof![
        (1..9u32).prop_map(|periods| Event::Arrival(Arrival::Timer { periods })),
        bytes().prop_map(|b| Event::Arrival(Arrival::Frame(b))),
        bytes().prop_map(|b| Event::Arrival(Arrival::Console(b))),
        (any::<u32>(), any::<bool>(), bytes())
            .prop_map(|(tag, ok, data)| Event::Arrival(Arrival::DiskDone { tag, ok, data })),
        any::<u32>().prop_map(|tag| Event::Arrival(Arrival::DiskRead { tag })),
        any::<u64>().prop_map(|wall_ns| Event::Arrival(Arrival::Clock { wall_ns })),
        Just(Event::Arrival(Arrival::IrqWindow)),
        Just(Event::Arrival(Arrival::Stop)),
        any::<u64>().prop_map(|value| Event::Answer {
            question: Question::Tsc,
            value
        }),
        any::<u64>().prop_map(|value| Event::Answer {
            question: Question::WallClock,
            value
        }),
        (0..3u8, any::<u64>()).prop_map(|(c, value)| Event::Answer {
            question: Question::PitElapsed(c),
            value
        }),
        (any::<bool>(), any::<u64>()).prop_map(|(entropy, value)| Event::Answer {
            question: if entropy {
                Question::Entropy
            } else {
                Question::PmElapsed
            },
            value
        }),
        any::<u32>().prop_map(|digest| Event::Output { digest }),
        Just(Event::Progress),
        (any::<u64>(), any::<u32>(), any::<u64>()).prop_map(|(first_page, pages, digest)| {
            Event::State {
                first_page,
                pages,
                digest,
            }
        }),
        (any::<u32>(), any::<u64>()).prop_map(|(code, digest)| Event::End { code, digest }),
        any::<u64>().prop_map(|digest| Event::Left { digest }),
    ]
}

/// Where a stream begins: with its run, or anywhere.
fn place() -> impl Strategy<Value = LogPlace> {
    let anywhere = (0..=1u64 << 62, 0..=1u64 << 62).prop_map(|(index, clock)| LogPlace {
        index: LogIndex(index),
        clock: Clock(clock),
    });
    prop_oneof![Just(LogPlace::default()), anywhere]
}

fn stream() -> impl Strategy<Value = (LogPlace, Vec<LogEntry>)> {
    place().prop_flat_map(|place| (Just(place), entries(place)))
}

fn entries(place: LogPlace) -> impl Strategy<Value = Vec<LogEntry>> {
    let anchor = proptest::option::of(prop_oneof![0..4u64, 0..u64::MAX / Anchor::STEP_NS]);
    let one = (0..1u64 << 40, any::<u64>(), any::<u32>(), event(), anchor);
    proptest::collection::vec(one, 0..40).prop_map(move |raw| {
        let mut clock = place.clock.0;
        raw.into_iter()
            .map(|(delta, rip, check, event, anchor)| {
                clock += delta;
                match event {
                    Event::Progress => LogEntry::progress(Clock(clock)),
                    Event::Arrival(arrival) => {
                        LogEntry::arrival(&here(clock, rip, check), arrival, anchor.map(Anchor))
                    }
                    event => LogEntry::at(&here(clock, rip, check), event),
                }
            })
            .collect()
    })
}

fn here(clock: u64, rip: u64, check: u32) -> Here {
    let (clock, rcx) = (Clock(clock), 0);
    Here {
        point: ExecPoint { clock, rip, rcx },
        registers: RegisterDigest(check),
    }
}

fn encode(entries: &[LogEntry]) -> Vec<u8> {
    encode_at(LogPlace::default(), entries)
}

fn encode_at(place: LogPlace, entries: &[LogEntry]) -> Vec<u8> {
    let (mut encoder, mut bytes) = (Encoder::at(place), Vec::new());
    for (n, entry) in (0u64..).zip(entries) {
        assert_eq!(encoder.place().index.0, place.index.0 + n);
        encoder.encode(entry, &mut bytes);
    }
    bytes
}

fn decode(bytes: &[u8]) -> Result<Vec<LogEntry>, LogError> {
    decode_at(LogPlace::default(), bytes)
}

fn decode_at(place: LogPlace, mut bytes: &[u8]) -> Result<Vec<LogEntry>, LogError> {
    let (mut decoder, mut entries) = (Decoder::at(place), Vec::new());
    while !bytes.is_empty() {
        entries.push(decoder.decode(&mut bytes)?);
    }
    Ok(entries)
}

proptest! {
    #[test]
    fn entries_survive_the_codec((place, entries) in stream()) {
        prop_assert_eq!(decode_at(place, &encode_at(place, &entries)).unwrap(), entries);
    }

    /// A clock is told by how far it is from the one before: a stream in the middle of a run costs no more.
    #[test]
    fn where_a_stream_begins_changes_none_of_its_bytes(entries in entries(LogPlace::default()), place in place()) {
        let mut moved = entries.clone();
        for entry in &mut moved {
            entry.clock.0 += place.clock.0;
        }
        prop_assert_eq!(encode_at(place, &moved), encode(&entries));
    }

    #[test]
    fn a_cut_stream_yields_a_prefix_and_an_error((place, entries) in stream(), cut in any::<prop::sample::Index>()) {
        let bytes = encode_at(place, &entries);
        prop_assume!(!bytes.is_empty());
        let cut = cut.index(bytes.len());
        let (mut decoder, mut rest) = (Decoder::at(place), &bytes[..cut]);
        let mut got = Vec::new();
        while !rest.is_empty() {
            match decoder.decode(&mut rest) {
                Ok(entry) => got.push(entry),
                Err(LogError::Malformed { entry, .. }) => {
                    prop_assert_eq!(entry, place.index.0 + got.len() as u64);
                    break;
                }
                Err(other) => panic!("{other}"),
            }
        }
        prop_assert!(got.len() < entries.len());
        prop_assert_eq!(&got[..], &entries[..got.len()]);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        let _ = decode(&bytes);
    }
}

#[test]
fn the_largest_entry_is_decoded_and_no_larger_one() {
    // Kind, clock delta, RIP as before, register digest.
    let head = 1 + 4 + 1 + 4;
    let frame = |length: usize| {
        let event = Event::Arrival(Arrival::Frame(vec![7; length]));
        LogEntry::at(&here(1 << 27, 0x10_0001, 7), event)
    };
    let largest = [frame(ENTRY_MAX - head)];
    let bytes = encode(&largest);
    assert_eq!(bytes.len(), 3 + ENTRY_MAX);
    assert_eq!(decode(&bytes).unwrap(), largest);
    let disk = LogEntry::at(
        &here(1 << 27, 0x10_0001, 7),
        Event::Arrival(Arrival::DiskDone {
            tag: u32::MAX,
            ok: true,
            data: vec![1; 256 << 10],
        }),
    );
    assert_eq!(
        decode(&encode(std::slice::from_ref(&disk))).unwrap(),
        [disk]
    );
    let mut larger = Vec::new();
    put_varint(&mut larger, ENTRY_MAX as u64 + 1);
    larger.resize(larger.len() + ENTRY_MAX + 1, 0);
    assert!(decode(&larger).is_err());
}

#[test]
fn a_timer_interrupt_costs_at_most_twelve_bytes() {
    // A 1 GHz block clock, ten ticks a second, the vCPU now in the trap, now halted.
    let tick = |n: u64| {
        let here = here(n * 100_000_000, 0x10_00e9 + (n % 2) * 0xae0, n as u32);
        LogEntry::arrival(&here, Arrival::Timer { periods: 1 }, None)
    };
    longest(12, (1..1000).map(tick));
}

#[test]
fn a_late_one_that_stands_for_several_does_too() {
    // A host that does not let the vCPU run for up to 127 periods, now and then.
    let tick = |n: u64| {
        let here = here(n * 100_000_000, 0x10_00e9 + (n % 2) * 0xae0, n as u32);
        let periods = if n.is_multiple_of(10) { 127 } else { 1 };
        LogEntry::arrival(&here, Arrival::Timer { periods }, None)
    };
    longest(12, (1..1000).map(tick));
}

fn longest(limit: usize, entries: impl Iterator<Item = LogEntry>) {
    let (mut encoder, mut bytes) = (Encoder::new(), Vec::new());
    for entry in entries {
        bytes.clear();
        encoder.encode(&entry, &mut bytes);
        assert!(bytes.len() <= limit, "{} bytes for {entry:?}", bytes.len());
    }
}

/// A RIP anywhere in the 64-bit address space, another one each time.
fn anywhere(n: u64) -> u64 {
    n.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[test]
fn so_it_does_in_derived_time_wherever_the_guest_stands() {
    // Up to 2^28 counts and 2^27 ns (134 ms) of waiting from one tick to the next.
    let tick = |n: u64| {
        let here = here(n * ((1 << 28) - 1), anywhere(n), n as u32);
        let anchor = Anchor::reaching(0, (1 << 27) - Anchor::STEP_NS);
        LogEntry::arrival(&here, Arrival::Timer { periods: 1 }, Some(anchor))
    };
    longest(12, (0..1000).map(tick));
}

#[test]
fn the_documented_example_is_encoded_so() {
    let here = here(3_800_000, 0xffff_ffff_8100_0000, 0x89ab_cdef);
    let anchor = Anchor::reaching(here.point.clock.0, here.point.clock.0 + 150_000);
    let entry = LogEntry::arrival(&here, Arrival::Timer { periods: 1 }, Some(anchor));
    let bytes = [10, 0xe1, 0xc0, 0xf7, 0xe7, 1, 0xef, 0xcd, 0xab, 0x89, 0x13];
    assert_eq!(encode(&[entry]), bytes);
}

#[test]
fn a_frame_does_not_cost_more_in_derived_time() {
    // Half a minute of silence before each.
    let frame = |n: u64| {
        let here = here(n * ((1 << 35) - 1), anywhere(n), n as u32);
        let anchor = Anchor::reaching(0, 30_000_000_000);
        LogEntry::arrival(&here, Arrival::Frame(vec![0; 1514]), Some(anchor))
    };
    longest(1514 + 16, (0..100).map(frame));
}

#[test]
fn anchors_out_of_place_are_refused() {
    let with = |kind: u8, rest: &[u8]| {
        let body = [&[kind, 0][..], rest].concat();
        decode(&[&[body.len() as u8][..], &body].concat())
    };
    let both = wire::NO_RIP | wire::ANCHOR;
    assert!(with(wire::TIMER | both, &[0, 0, 0, 0, 5]).is_ok());
    assert!(with(wire::TIMER | both, &[0, 0, 0, 0, 0]).is_err(), "zero");
    let huge = [0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f];
    assert!(with(wire::TIMER | both, &huge).is_err(), "over 64 bits");
    assert!(with(wire::OUTPUT | both, &[0, 0, 0, 0, 5, 1, 2, 3, 4]).is_err());
    assert!(with(wire::OUTPUT | wire::NO_RIP, &[0, 0, 0, 0, 1, 2, 3, 4]).is_err());
    assert!(with(wire::PROGRESS | wire::ANCHOR, &[5]).is_err());
}

#[test]
fn a_frame_costs_at_most_sixteen_bytes_more_than_its_length() {
    let frame = |n: u64| {
        let event = Event::Arrival(Arrival::Frame(vec![0; 1514]));
        LogEntry::at(&here(n * 30_000_000, (n % 2) << 31, 7), event)
    };
    let entries: Vec<_> = (0..100).map(frame).collect();
    assert!(encode(&entries).len() <= 100 * (1514 + 16));
}
