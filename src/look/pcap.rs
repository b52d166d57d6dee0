//! The guest's network, of a recording that is replayed, as a capture file: `tandem replay --pcap`.
//!
//! Times are the guest's, from its start on; of a machine whose time is not derived but logged, those of the recording.
//!
//! The format is pcapng (draft-ietf-opsawg-pcapng, in brackets where a rule comes from). A capture needs three of its
//! blocks, each a few numbers; it is written here.

#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

use super::witness::{Now, Sheet, Witness};
use crate::failure::Outcome;
use replay::{Arrival, Event, Output};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

/// Numbers of the blocks (4.1, 4.2, 4.3).
const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const PACKET: u32 = 6;
/// By it a reader knows the order of bytes (4.1).
const ORDER: u32 = 0x1a2b_3c4d;
/// `LINKTYPE_ETHERNET`.
const ETHERNET: u16 = 1;
/// Options: a comment, the end of all, a name (3.5, 4.2); of packets the flags (4.3.1).
const COMMENT: u16 = 1;
const NAME: u16 = 2;
const FLAGS: u16 = 2;
/// Of an interface (4.2): the power of ten that times are parts of a second by.
const RESOLUTION: u16 = 9;
const NANOSECONDS: u8 = 9;
/// The flags' directions (4.3.1): seen from the guest.
const INBOUND: u32 = 1;
const OUTBOUND: u32 = 2;

/// A capture that is being written.
struct Capture<W> {
    sheet: Sheet<W>,
    frames: u64,
}

/// A block: its number, its body, and its length before and behind that (3.1).
fn block(kind: u32, body: &[u8]) -> Vec<u8> {
    let body = padded(body);
    let length =
        u32::try_from(body.len() + 12).expect("no block is longer than a frame and a comment");
    let mut bytes = Vec::with_capacity(body.len() + 12);
    bytes.extend_from_slice(&kind.to_le_bytes());
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&body);
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes
}

/// Filled up to a multiple of four bytes.
fn padded(bytes: &[u8]) -> Vec<u8> {
    let mut padded = bytes.to_vec();
    padded.resize(bytes.len().next_multiple_of(4), 0);
    padded
}

/// An option (3.5).
fn option(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len()).expect("options are short");
    let mut bytes = [kind.to_le_bytes(), length.to_le_bytes()].concat();
    bytes.extend(padded(value));
    bytes
}

/// What ends a list of options.
fn end_of_options() -> Vec<u8> {
    option(0, &[])
}

impl<W: Write> Capture<W> {
    /// A capture with no frames, of a machine's only network device.
    fn new(mut sheet: Sheet<W>) -> Self {
        // Version 1.0; how long the section is is not said.
        let version = [1u16.to_le_bytes(), 0u16.to_le_bytes()].concat();
        let section = [&ORDER.to_le_bytes()[..], &version, &[0xff; 8]].concat();
        sheet.write(&block(SECTION, &section));
        // Frames are not cut. Times are in nanoseconds, by an option.
        let kind = [ETHERNET.to_le_bytes(), [0; 2]].concat();
        let options = [
            option(NAME, b"eth0"),
            option(RESOLUTION, &[NANOSECONDS]),
            end_of_options(),
        ]
        .concat();
        sheet.write(&block(INTERFACE, &[kind, vec![0; 4], options].concat()));
        Self { sheet, frames: 0 }
    }

    /// Adds a frame that came or went with the entry `now`.
    fn add(&mut self, now: Now, frame: &[u8], direction: u32) {
        let at_ns = now.guest_ns.unwrap_or(now.at_us.saturating_mul(1000));
        let comment = format!("entry {}, clock {}", now.index, now.clock);
        let length = u32::try_from(frame.len()).expect("a frame is short");
        let body = [
            // The interface, and the time's two halves, the upper first.
            &0u32.to_le_bytes()[..],
            &((at_ns >> 32) as u32).to_le_bytes(),
            &(at_ns as u32).to_le_bytes(),
            &length.to_le_bytes(),
            &length.to_le_bytes(),
            &padded(frame),
            &option(COMMENT, comment.as_bytes()),
            &option(FLAGS, &direction.to_le_bytes()),
            &end_of_options(),
        ]
        .concat();
        self.sheet.write(&block(PACKET, &body));
        self.frames += 1;
    }
}

/// The capture of one replay.
pub struct Pcap(Capture<BufWriter<File>>);

impl Pcap {
    /// A new file at `path`.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn create(path: &Path) -> Outcome<Self> {
        Ok(Self(Capture::new(Sheet::create(path)?)))
    }
}

impl Witness for Pcap {
    fn heard(&mut self, now: Now, event: &Event) {
        if let Event::Arrival(Arrival::Frame(frame)) = event {
            self.0.add(now, frame, INBOUND);
        }
    }

    fn said(&mut self, now: Now, output: &Output) {
        if let Output::Frame(frame) = output {
            self.0.add(now, frame, OUTBOUND);
        }
    }

    fn finish(&mut self) -> Outcome<String> {
        let Capture { sheet, frames, .. } = &mut self.0;
        sheet.finish()?;
        Ok(format!("{frames} frames in {}", sheet.path()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_as_long_as_they_say_and_end_on_four_bytes() {
        for length in 60..68 {
            let mut capture = Capture::new(Sheet::new(Path::new("it"), Vec::new()));
            let before = capture.sheet.out().len();
            capture.add(Now::default(), &vec![7; length], INBOUND);
            let packet = &capture.sheet.out()[before..];
            let number = |at: usize| u32::from_le_bytes(packet[at..at + 4].try_into().unwrap());
            assert_eq!(number(0), PACKET);
            assert_eq!(number(4) as usize, packet.len());
            assert_eq!(number(packet.len() - 4) as usize, packet.len());
            assert_eq!(number(20) as usize, length);
            assert_eq!(packet.len() % 4, 0);
        }
    }
}
