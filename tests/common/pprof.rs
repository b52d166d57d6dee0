//! A profile for pprof, read by its schema (github.com/google/pprof, proto/profile.proto).

use super::protobuf::Kind::{self, Bytes, Number};
use super::protobuf::{Value, all, fields, find, packed};
use std::collections::BTreeMap;

/// The fields that are written, by message: those of the schema with these numbers have these kinds.
const PROFILE: &[(u64, Kind)] = &[
    (1, Bytes),
    (2, Bytes),
    (4, Bytes),
    (5, Bytes),
    (6, Bytes),
    (11, Bytes),
    (12, Number),
];
const TYPE: &[(u64, Kind)] = &[(1, Number), (2, Number)];
const SAMPLE: &[(u64, Kind)] = &[(1, Bytes), (2, Bytes)];
const LOCATION: &[(u64, Kind)] = &[(1, Number), (4, Bytes)];
const LINE: &[(u64, Kind)] = &[(1, Number)];
const FUNCTION: &[(u64, Kind)] = &[(1, Number), (2, Number)];

/// What a profile says.
pub struct Profile {
    /// What is counted, and in what.
    pub counts: [String; 2],
    /// Between two samples.
    pub period: u64,
    /// Values by stack, the outermost function first, as in a file of folded stacks.
    pub stacks: BTreeMap<String, u64>,
}

fn number(fields: &[(u64, Value)], number: u64) -> u64 {
    find(fields, number).expect("it is there").number()
}

/// Reads a profile, all of which has to be of the schema: each location and function is described, once.
pub fn read(bytes: &[u8]) -> Profile {
    let profile = fields(bytes, PROFILE);
    let strings: Vec<&str> = all(&profile, 6).map(Value::text).collect();
    assert_eq!(strings[0], "", "the first string is empty");
    let text = |index: u64| strings[index as usize];
    let kind = |field| {
        let kind = fields(find(&profile, field).expect("a type").bytes(), TYPE);
        [1, 2].map(|field| text(number(&kind, field)).to_owned())
    };
    assert_eq!(kind(1), kind(11), "the period is of what is counted");
    let mut functions = BTreeMap::new();
    for function in all(&profile, 5) {
        let function = fields(function.bytes(), FUNCTION);
        let (id, name) = (number(&function, 1), text(number(&function, 2)));
        assert!(id > 0 && functions.insert(id, name).is_none(), "{id}");
    }
    let mut locations = BTreeMap::new();
    for location in all(&profile, 4) {
        let location = fields(location.bytes(), LOCATION);
        let line = fields(find(&location, 4).expect("a line").bytes(), LINE);
        let (id, name) = (number(&location, 1), functions[&number(&line, 1)]);
        assert!(id > 0 && locations.insert(id, name).is_none(), "{id}");
    }
    let mut stacks = BTreeMap::new();
    for sample in all(&profile, 2) {
        let sample = fields(sample.bytes(), SAMPLE);
        let values = packed(find(&sample, 2).expect("a value").bytes());
        assert_eq!(values.len(), 1, "as many as there are types");
        let ids = packed(find(&sample, 1).expect("locations").bytes());
        let names: Vec<&str> = ids.iter().rev().map(|id| locations[id]).collect();
        assert!(stacks.insert(names.join(";"), values[0]).is_none());
    }
    Profile {
        counts: kind(1),
        period: number(&profile, 12),
        stacks,
    }
}
