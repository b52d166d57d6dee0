//! A trace for the Perfetto viewer, read by its schema (Perfetto, protos/perfetto/trace), and what has to hold in one.

use super::protobuf::Kind::{self, Bytes, Number};
use super::protobuf::{Value, fields, find};
use std::collections::BTreeMap;

/// The fields that are written, by message: those of the schema with these numbers have these kinds.
const PACKET: &[(u64, Kind)] = &[(8, Number), (10, Number), (11, Bytes), (60, Bytes)];
const DESCRIPTOR: &[(u64, Kind)] = &[
    (1, Number),
    (2, Bytes),
    (5, Number),
    (8, Bytes),
    (11, Number),
    (12, Number),
];
const COUNTER: &[(u64, Kind)] = &[(6, Bytes)];
const EVENT: &[(u64, Kind)] = &[
    (4, Bytes),
    (9, Number),
    (11, Number),
    (22, Bytes),
    (23, Bytes),
    (30, Number),
];
const ANNOTATION: &[(u64, Kind)] = &[(3, Number), (6, Bytes), (10, Bytes)];

/// `TrackEvent.Type`.
const BEGIN: u64 = 1;
const END: u64 = 2;
const INSTANT: u64 = 3;
const READING: u64 = 4;

/// A track.
#[derive(Debug, Default)]
pub struct Track {
    pub name: String,
    /// The names of its slices and instants, and when each begins.
    pub events: Vec<(u64, String)>,
    /// What its counter reads, and when.
    pub readings: Vec<(u64, u64)>,
    counts: bool,
    last: u64,
    open: u64,
}

/// Reads a trace, all of which has to be of the schema and whole: each track is described before it is used, its times
/// never go back, each slice that begins ends.
pub fn read(bytes: &[u8]) -> Vec<Track> {
    let mut tracks = BTreeMap::<u64, Track>::new();
    for (_, packet) in fields(bytes, &[(1, Bytes)]) {
        let packet = fields(packet.bytes(), PACKET);
        assert!(find(&packet, 10).is_some(), "a packet without a sequence");
        if let Some(descriptor) = find(&packet, 60) {
            let descriptor = fields(descriptor.bytes(), DESCRIPTOR);
            if let Some(parent) = find(&descriptor, 5) {
                assert!(tracks.contains_key(&parent.number()), "{descriptor:?}");
            }
            let counter = find(&descriptor, 8);
            if let Some(counter) = counter {
                fields(counter.bytes(), COUNTER);
            }
            let track = Track {
                name: find(&descriptor, 2).expect("a name").text().to_owned(),
                counts: counter.is_some(),
                ..Track::default()
            };
            let uuid = find(&descriptor, 1).expect("a number").number();
            assert!(tracks.insert(uuid, track).is_none(), "track {uuid} twice");
            continue;
        }
        let event = fields(find(&packet, 11).expect("an event").bytes(), EVENT);
        let now = find(&packet, 8).expect("a time").number();
        let track = find(&event, 11).expect("a track").number();
        let track = tracks.get_mut(&track).expect("it was described");
        assert!(now >= track.last, "{}: back to {now}", track.name);
        track.last = now;
        add(track, now, &event);
    }
    let tracks: Vec<Track> = tracks.into_values().collect();
    for track in &tracks {
        assert_eq!(track.open, 0, "{}: slices that do not end", track.name);
    }
    tracks
}

fn add(track: &mut Track, now: u64, event: &[(u64, Value)]) {
    for (_, annotation) in event.iter().filter(|(number, _)| *number == 4) {
        let annotation = fields(annotation.bytes(), ANNOTATION);
        assert_eq!(annotation.len(), 2, "a name and a value");
        let name = find(&annotation, 10).expect("a name").text();
        assert!(!name.is_empty());
        if let Some(text) = find(&annotation, 6) {
            text.text();
        }
    }
    let kind = find(event, 9).expect("a type").number();
    assert_eq!(track.counts, kind == READING, "{}: {event:?}", track.name);
    match kind {
        BEGIN | INSTANT => {
            let name = find(event, 23).expect("a name").text().to_owned();
            track.events.push((now, name));
            track.open += u64::from(kind == BEGIN);
        }
        END => track.open = track.open.checked_sub(1).expect("one has begun"),
        READING => {
            let value = find(event, 30).expect("a value").number();
            track.readings.push((now, value));
        }
        other => panic!("type {other}"),
    }
}

/// How many slices and instants called `name` there are in all.
pub fn count(tracks: &[Track], name: &str) -> usize {
    let events = tracks.iter().flat_map(|track| &track.events);
    events.filter(|(_, own)| own == name).count()
}
