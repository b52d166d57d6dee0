//! Protocol Buffers, as they are on the wire: what the traces and profiles written here need of them.
//!
//! A message is a sequence of fields, each a key (the field's number and how its value is written) and the value
//! (protobuf.dev, "Encoding").

/// A message that is put together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message(Vec<u8>);

/// How a value is written: as a number of as many bytes as it needs, or as its length and so many bytes.
const VARINT: u64 = 0;
const LENGTH: u64 = 2;

impl Message {
    /// One without fields.
    pub fn new() -> Self {
        Self::default()
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    /// The same with field `number`, a number: `uint64`, `bool`, an enumeration, or an `int64` that is not negative.
    #[must_use]
    pub fn number(mut self, number: u64, value: u64) -> Self {
        self.varint(number << 3 | VARINT);
        self.varint(value);
        self
    }

    /// The same with field `number`, of bytes or text.
    #[must_use]
    pub fn bytes(mut self, number: u64, value: &[u8]) -> Self {
        self.varint(number << 3 | LENGTH);
        self.varint(value.len() as u64);
        self.0.extend_from_slice(value);
        self
    }

    /// The same with field `number`, of text.
    #[must_use]
    pub fn text(self, number: u64, value: &str) -> Self {
        self.bytes(number, value.as_bytes())
    }

    /// The same with field `number`, a message.
    #[must_use]
    pub fn message(self, number: u64, value: &Self) -> Self {
        self.bytes(number, &value.0)
    }

    /// The same with field `number`, numbers one behind the other (`packed`).
    #[must_use]
    pub fn numbers(self, number: u64, values: impl IntoIterator<Item = u64>) -> Self {
        let mut packed = Self::new();
        values.into_iter().for_each(|value| packed.varint(value));
        self.bytes(number, &packed.0)
    }

    /// Its bytes.
    pub fn encoded(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of the format's own page, "A Simple Message" and "Embedded Messages", and "Packed".
    #[test]
    fn messages_are_as_the_formats_description_has_them() {
        let simple = Message::new().number(1, 150);
        assert_eq!(simple.encoded(), [0x08, 0x96, 0x01]);
        let text = Message::new().text(2, "testing");
        assert_eq!(text.encoded(), b"\x12\x07testing");
        let embedded = Message::new().message(3, &simple);
        assert_eq!(embedded.encoded(), [0x1a, 0x03, 0x08, 0x96, 0x01]);
        let packed = Message::new().numbers(6, [3, 270, 86942]);
        let expected = [0x32, 0x06, 0x03, 0x8e, 0x02, 0x9e, 0xa7, 0x05];
        assert_eq!(packed.encoded(), expected);
    }
}
