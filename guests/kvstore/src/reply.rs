//! Writes replies, in the protocol version the client asked for.

use alloc::vec::Vec;
use core::fmt::{self, Write};

use crate::error::CommandError;
use crate::number::{self, DIGITS_MAX};

/// Version of the protocol a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// RESP2: what a connection starts with.
    Two = 2,
    /// RESP3, asked for by HELLO 3.
    Three = 3,
}

/// The end of a client's output, where one command's reply goes.
#[derive(Debug)]
pub(crate) struct Reply<'a> {
    out: &'a mut Vec<u8>,
    protocol: Protocol,
    /// Where the reply may end at most.
    end_max: usize,
    /// Something did not fit and was left out.
    overflowed: bool,
}

impl<'a> Reply<'a> {
    /// A reply of at most `bytes_max` bytes at the end of `out`.
    #[inline]
    pub(crate) fn new(out: &'a mut Vec<u8>, protocol: Protocol, bytes_max: usize) -> Self {
        Self {
            end_max: out.len() + bytes_max,
            out,
            protocol,
            overflowed: false,
        }
    }

    /// Whether the reply was too long and lacks something.
    #[inline]
    pub(crate) fn overflowed(&self) -> bool {
        self.overflowed
    }

    /// Where the reply is now, for [`take_back`](Self::take_back).
    pub(crate) fn mark(&self) -> usize {
        self.out.len()
    }

    /// Takes back what was written since `mark`.
    pub(crate) fn take_back(&mut self, mark: usize) {
        self.out.truncate(mark);
    }

    /// Makes the rest of the reply of `protocol`.
    pub(crate) fn set_protocol(&mut self, protocol: Protocol) {
        self.protocol = protocol;
    }

    #[inline]
    pub(crate) fn ok(&mut self) {
        self.push(b"+OK\r\n");
    }

    /// A word that is not binary.
    pub(crate) fn simple(&mut self, text: &str) {
        self.push(b"+");
        self.push(text.as_bytes());
        self.push(b"\r\n");
    }

    #[inline]
    pub(crate) fn integer(&mut self, value: i64) {
        self.head(b':', value);
    }

    /// The string `value`.
    #[inline]
    pub(crate) fn bulk(&mut self, value: &[u8]) {
        let room = value.len() + DIGITS_MAX + 5;
        if self.out.len() + room > self.end_max || self.out.try_reserve(room).is_err() {
            self.overflowed = true;
            return;
        }
        self.head(b'$', value.len() as i64);
        self.out.extend_from_slice(value);
        self.out.extend_from_slice(b"\r\n");
    }

    /// The string `value`, or null.
    #[inline]
    pub(crate) fn bulk_or_null(&mut self, value: Option<&[u8]>) {
        match value {
            Some(value) => self.bulk(value),
            None => self.null(),
        }
    }

    #[inline]
    pub(crate) fn null(&mut self) {
        match self.protocol {
            Protocol::Two => self.push(b"$-1\r\n"),
            Protocol::Three => self.push(b"_\r\n"),
        }
    }

    /// No array.
    pub(crate) fn null_array(&mut self) {
        match self.protocol {
            Protocol::Two => self.push(b"*-1\r\n"),
            Protocol::Three => self.push(b"_\r\n"),
        }
    }

    /// A reply within this one, in the same bounds; [`ended`](Self::ended) ends it.
    pub(crate) fn nested(&mut self) -> Reply<'_> {
        Reply {
            out: &mut *self.out,
            ..*self
        }
    }

    /// Ends a reply within another, and returns what [`go_on`](Self::go_on) needs.
    pub(crate) fn ended(self) -> (Protocol, bool) {
        (self.protocol, self.overflowed)
    }

    /// Goes on after a reply within this one.
    pub(crate) fn go_on(&mut self, (protocol, overflowed): (Protocol, bool)) {
        self.protocol = protocol;
        self.overflowed |= overflowed;
    }

    /// A text for people.
    pub(crate) fn verbatim(&mut self, text: &[u8]) {
        match self.protocol {
            Protocol::Two => self.bulk(text),
            Protocol::Three => {
                self.head(b'=', text.len() as i64 + 4);
                self.push(b"txt:");
                self.push(text);
                self.push(b"\r\n");
            }
        }
    }

    /// Begins an array of `length` elements.
    #[inline]
    pub(crate) fn array(&mut self, length: usize) {
        self.head(b'*', length as i64);
    }

    /// Begins a map of `length` pairs.
    pub(crate) fn map(&mut self, length: usize) {
        match self.protocol {
            Protocol::Two => self.array(2 * length),
            Protocol::Three => self.head(b'%', length as i64),
        }
    }

    /// Begins a set of `length` elements.
    pub(crate) fn set(&mut self, length: usize) {
        match self.protocol {
            Protocol::Two => self.array(length),
            Protocol::Three => self.head(b'~', length as i64),
        }
    }

    /// An error, on one line whatever its text.
    pub(crate) fn error(&mut self, error: &CommandError<'_>) {
        self.error_text(error.code(), error);
    }

    /// An error of another kind.
    pub(crate) fn error_text(&mut self, code: &str, text: &dyn fmt::Display) {
        struct OneLine<'a, 'b>(&'a mut Reply<'b>);
        impl Write for OneLine<'_, '_> {
            fn write_str(&mut self, text: &str) -> fmt::Result {
                for line in text.split_inclusive(['\r', '\n']) {
                    let plain = line.trim_end_matches(['\r', '\n']);
                    self.0.push(plain.as_bytes());
                    if plain.len() != line.len() {
                        self.0.push(b" ");
                    }
                }
                Ok(())
            }
        }
        self.push(b"-");
        self.push(code.as_bytes());
        self.push(b" ");
        // Writing there cannot fail.
        let _ = write!(OneLine(self), "{text}");
        self.push(b"\r\n");
    }

    #[inline]
    fn head(&mut self, kind: u8, value: i64) {
        let mut line = [0; DIGITS_MAX + 3];
        line[0] = kind;
        // Nearly every number there is has one digit.
        if (0..10).contains(&value) {
            line[1] = b'0' + value as u8;
            line[2] = b'\r';
            line[3] = b'\n';
            return self.push(&line[..4]);
        }
        let mut digits = [0; DIGITS_MAX];
        let digits = number::format(value, &mut digits);
        let end = 1 + digits.len();
        line[1..end].copy_from_slice(digits);
        line[end] = b'\r';
        line[end + 1] = b'\n';
        self.push(&line[..end + 2]);
    }

    #[inline]
    fn push(&mut self, bytes: &[u8]) {
        if self.out.len() + bytes.len() > self.end_max || self.out.try_reserve(bytes.len()).is_err()
        {
            self.overflowed = true;
            return;
        }
        self.out.extend_from_slice(bytes);
    }
}
