//! Protocol Buffers as they are on the wire, read by a schema: what is not of it, or not whole, is a failure.

use Kind::{Bytes, Number};

/// How a field is written: `uint64` and enumerations as a number, text and messages as a length and so many bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Number,
    Bytes,
}

/// A field's value.
#[derive(Clone, Copy, Debug)]
pub enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

impl<'a> Value<'a> {
    /// That is a number.
    pub fn number(self) -> u64 {
        match self {
            Value::Number(value) => value,
            Value::Bytes(_) => panic!("a number: {self:?}"),
        }
    }

    /// That is bytes.
    pub fn bytes(self) -> &'a [u8] {
        match self {
            Value::Bytes(bytes) => bytes,
            Value::Number(_) => panic!("bytes: {self:?}"),
        }
    }

    /// That is text.
    pub fn text(self) -> &'a str {
        std::str::from_utf8(self.bytes()).expect("text is UTF-8")
    }
}

/// The number that `bytes` begin with, which is taken off them.
fn varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first().expect("a number is whole");
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if *byte < 0x80 {
            return value;
        }
    }
    panic!("a number of more than 64 bits");
}

/// The fields of a message, which must be of `schema`.
pub fn fields<'a>(mut bytes: &'a [u8], schema: &[(u64, Kind)]) -> Vec<(u64, Value<'a>)> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let (number, kind) = (key >> 3, if key & 7 == 0 { Number } else { Bytes });
        assert!(matches!(key & 7, 0 | 2), "wire type of {key:#x}");
        assert!(schema.contains(&(number, kind)), "field {number} {kind:?}");
        let value = varint(&mut bytes);
        fields.push(match kind {
            Number => (number, Value::Number(value)),
            Bytes => {
                let (own, rest) = bytes.split_at(usize::try_from(value).unwrap());
                bytes = rest;
                (number, Value::Bytes(own))
            }
        });
    }
    fields
}

/// The first field `number`.
pub fn find<'a>(fields: &[(u64, Value<'a>)], number: u64) -> Option<Value<'a>> {
    let found = fields.iter().find(|(own, _)| *own == number);
    found.map(|(_, value)| *value)
}

/// All fields `number`.
pub fn all<'a>(fields: &[(u64, Value<'a>)], number: u64) -> impl Iterator<Item = Value<'a>> {
    let own = fields.iter().filter(move |(own, _)| *own == number);
    own.map(|(_, value)| *value)
}

/// Numbers one behind the other (`packed`).
pub fn packed(mut bytes: &[u8]) -> Vec<u64> {
    let mut numbers = Vec::new();
    while !bytes.is_empty() {
        numbers.push(varint(&mut bytes));
    }
    numbers
}
