//! Traces for the Perfetto viewer (ui.perfetto.dev).
//!
//! A trace is a sequence of packets (Perfetto, protos/perfetto/trace; in brackets the file a number is from): each
//! describes a track, or says that a slice of one begins or ends, or what a counter reads. Times are in nanoseconds.

use super::protobuf::Message;
use super::witness::Sheet;
use crate::failure::Outcome;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

/// `Trace.packet` (trace.proto).
const PACKET: u64 = 1;
/// Fields of `TracePacket` (trace_packet.proto).
mod packet {
    pub const TIMESTAMP: u64 = 8;
    pub const SEQUENCE: u64 = 10;
    pub const TRACK_EVENT: u64 = 11;
    pub const TRACK_DESCRIPTOR: u64 = 60;
}
/// Fields of `TrackDescriptor` (track_event/track_descriptor.proto).
mod descriptor {
    pub const UUID: u64 = 1;
    pub const NAME: u64 = 2;
    pub const PARENT: u64 = 5;
    pub const COUNTER: u64 = 8;
    pub const CHILD_ORDERING: u64 = 11;
    pub const RANK: u64 = 12;
}
/// `CounterDescriptor.unit_name` (track_event/counter_descriptor.proto).
const UNIT_NAME: u64 = 6;
/// `ChildTracksOrdering.EXPLICIT`: by the rank each child has.
const EXPLICIT: u64 = 3;
/// Fields of `TrackEvent`, and values of its type (track_event/track_event.proto).
mod event {
    pub const ANNOTATION: u64 = 4;
    pub const TYPE: u64 = 9;
    pub const TRACK: u64 = 11;
    pub const CATEGORY: u64 = 22;
    pub const NAME: u64 = 23;
    pub const COUNTER: u64 = 30;
    pub const BEGIN: u64 = 1;
    pub const END: u64 = 2;
    pub const INSTANT: u64 = 3;
    pub const READING: u64 = 4;
}
/// Fields of `DebugAnnotation` (track_event/debug_annotation.proto).
mod annotation {
    pub const NUMBER: u64 = 3;
    pub const TEXT: u64 = 6;
    pub const NAME: u64 = 10;
}
/// All packets are of one writer.
const SEQUENCE: u64 = 1;

/// A track.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Track(u64);

/// What is said of an event besides its name.
pub enum Detail<'a> {
    /// A number.
    Number(&'a str, u64),
    /// Words.
    Text(&'a str, &'a str),
}

/// A trace that is being written.
pub struct Trace<W> {
    sheet: Sheet<W>,
    tracks: u64,
}

impl Trace<BufWriter<File>> {
    /// A new file at `path`.
    ///
    /// # Errors
    /// If there can be none.
    pub fn create(path: &Path) -> Outcome<Self> {
        Ok(Self::new(Sheet::create(path)?))
    }

    /// All is written.
    ///
    /// # Errors
    /// If it could not be, at any time.
    pub fn finish(&mut self) -> Outcome {
        self.sheet.finish()
    }

    /// Where it is written to.
    pub fn path(&self) -> std::path::Display<'_> {
        self.sheet.path()
    }
}

impl<W: Write> Trace<W> {
    /// A trace without tracks.
    pub fn new(sheet: Sheet<W>) -> Self {
        Self { sheet, tracks: 0 }
    }

    fn packet(&mut self, packet: Message) {
        let packet = packet.number(packet::SEQUENCE, SEQUENCE);
        let message = Message::new().message(PACKET, &packet);
        self.sheet.write(message.encoded());
    }

    fn describe(&mut self, name: &str, parent: Option<Track>, more: Message) -> Track {
        self.tracks += 1;
        let mut track = more
            .number(descriptor::UUID, self.tracks)
            .text(descriptor::NAME, name)
            .number(descriptor::RANK, self.tracks);
        if let Some(parent) = parent {
            track = track.number(descriptor::PARENT, parent.0);
        }
        self.packet(Message::new().message(packet::TRACK_DESCRIPTOR, &track));
        Track(self.tracks)
    }

    /// A group of tracks, which are shown in the order they come in.
    pub fn group(&mut self, name: &str) -> Track {
        let ordered = Message::new().number(descriptor::CHILD_ORDERING, EXPLICIT);
        self.describe(name, None, ordered)
    }

    /// A track of slices and instants.
    pub fn track(&mut self, name: &str, parent: Track) -> Track {
        self.describe(name, Some(parent), Message::new())
    }

    /// A track of a counter, which counts `unit`.
    pub fn counter(&mut self, name: &str, unit: &str, parent: Track) -> Track {
        let counter = Message::new().text(UNIT_NAME, unit);
        let counter = Message::new().message(descriptor::COUNTER, &counter);
        self.describe(name, Some(parent), counter)
    }

    fn event(&mut self, at_ns: u64, track: Track, kind: u64, more: Message) {
        let event = more.number(event::TYPE, kind).number(event::TRACK, track.0);
        let packet = Message::new()
            .number(packet::TIMESTAMP, at_ns)
            .message(packet::TRACK_EVENT, &event);
        self.packet(packet);
    }

    /// A slice begins, inside those that have begun on its track.
    pub fn begin(&mut self, at_ns: u64, track: Track, name: &str, kind: &str, details: &[Detail]) {
        self.event(at_ns, track, event::BEGIN, named(name, kind, details));
    }

    /// The slice ends that began last on its track.
    pub fn end(&mut self, at_ns: u64, track: Track, details: &[Detail]) {
        self.event(at_ns, track, event::END, annotated(Message::new(), details));
    }

    /// Something happens.
    pub fn instant(
        &mut self,
        at_ns: u64,
        track: Track,
        name: &str,
        kind: &str,
        details: &[Detail],
    ) {
        self.event(at_ns, track, event::INSTANT, named(name, kind, details));
    }

    /// A counter reads `value`.
    pub fn reads(&mut self, at_ns: u64, track: Track, value: u64) {
        let value = Message::new().number(event::COUNTER, value);
        self.event(at_ns, track, event::READING, value);
    }
}

fn named(name: &str, kind: &str, details: &[Detail]) -> Message {
    let message = Message::new()
        .text(event::NAME, name)
        .text(event::CATEGORY, kind);
    annotated(message, details)
}

fn annotated(message: Message, details: &[Detail]) -> Message {
    details.iter().fold(message, |message, detail| {
        let one = match detail {
            Detail::Number(name, value) => Message::new()
                .text(annotation::NAME, name)
                .number(annotation::NUMBER, *value),
            Detail::Text(name, text) => Message::new()
                .text(annotation::NAME, name)
                .text(annotation::TEXT, text),
        };
        message.message(event::ANNOTATION, &one)
    })
}

#[cfg(test)]
impl<W> Trace<W> {
    /// Where it is kept.
    pub fn out(&mut self) -> &mut W {
        self.sheet.out()
    }
}
