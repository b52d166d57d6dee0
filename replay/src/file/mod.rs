//! The log file.
//!
//! ```text
//!  0  magic    8   "TANDEMLG"
//!  8  version  u32 LE
//! 12  length   u32 LE   of the header that follows
//! 16  crc      u32 LE   of the header that follows
//! 20  header   bincode  LogHeader
//!     state:   if the log begins at one: see `state`
//!     frame:   length u32 LE of what follows the crc, crc u32 LE of the same,
//!              microseconds since the recording began u64 LE (a trace: replay ignores it),
//!              entries (see `codec`; one stream over all frames)
//!     frame ...
//! ```
//!
//! A log whose last entry is `End` or `Left` ended in an orderly way: with its machine, or before it. Otherwise
//! its writer died: the whole frames are good, a torn tail is found, named and left out.

mod state;

pub use self::state::{StateReader, StateWriter};

use crate::base::{Base, BaseOrigin, LogPlace};
use crate::codec::{Decoder, Encoder, from_bytes, to_bytes};
use crate::error::LogError;
use crate::event::{Event, LogEntry, LogIndex};
use crate::inputs::InputsError;
use crate::point::ClockKind;
use crate::sink::{LogSink, LogSource, NextEntry, Rewind};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{BufReader, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// First bytes of a log file.
pub const MAGIC: [u8; 8] = *b"TANDEMLG";
/// Version of header, frames and entries.
///
/// Version 2 adds anchors to entries, the ACPI timer's and random answers; the mode of time, the initrd
/// and the board to the machine's configuration, and the engine behind it. The entries of
/// version 1 are a subset, and its header the same, so that its logs can still be read. Version 3 adds to
/// the machine's configuration what a guest's reset does; header and entries are those of version 2.
/// Version 4 tells the RIPs of merged timer ticks from those of single ones. Version 5 adds to the machine's
/// configuration the processor that ran it; header and entries are those of version 4. Version 6 has in its
/// header the whole [`Base`] in place of the first state's digest, behind it the state if there is one, and may
/// end with an entry [`Event::Left`]. Version 7 adds a kind of board to the machine's configuration, and to the
/// entries the ticks of that board's real-time clock.
pub const FORMAT_VERSION: u32 = 7;
/// Oldest version that can be read.
const FORMAT_VERSION_MIN: u32 = 1;
/// Oldest version whose machines can be run again. Their configuration is today's, or lacks only what need
/// not be known.
const REPLAYABLE_MIN: u32 = 3;
/// Oldest version that can begin elsewhere than at a boot.
const BASE_SINCE: u32 = 6;
/// Most bytes of a header.
const HEADER_MAX: usize = 64 << 10;
/// Most bytes of a frame.
const FRAME_MAX: usize = 4 << 20;
/// Bytes of the time in a frame.
const TIME: usize = 8;
/// A frame is written out once it holds this much, flushed or not.
const FRAME_FULL: usize = 64 << 10;

/// What a log says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogHeader {
    /// CPU model the guest saw.
    pub cpu_model: String,
    /// What the clock counts.
    pub clock_kind: ClockKind,
    /// Machine configuration in the machine's own encoding. From version 2 on the engine that ran it is in
    /// it, from version 5 on the processor under that engine.
    pub config: Vec<u8>,
    /// Where the log begins.
    pub base: Base,
}

/// A header of versions 1 to 5, whose logs begin with the boot of a machine.
#[derive(Deserialize)]
struct HeaderBefore6 {
    cpu_model: String,
    clock_kind: ClockKind,
    config: Vec<u8>,
    first_state: u64,
}

impl From<HeaderBefore6> for LogHeader {
    fn from(header: HeaderBefore6) -> Self {
        Self {
            cpu_model: header.cpu_model,
            clock_kind: header.clock_kind,
            config: header.config,
            base: Base::alone(header.first_state),
        }
    }
}

impl LogHeader {
    /// The header in these bytes of a file of format `version`; what is wrong with it, if it is none.
    fn parse(bytes: &[u8], version: u32) -> Result<Self, String> {
        let undecodable = |_| "undecodable header".to_owned();
        if version < BASE_SINCE {
            return from_bytes(bytes)
                .map(HeaderBefore6::into)
                .map_err(undecodable);
        }
        let header: Self = from_bytes(bytes).map_err(undecodable)?;
        match header.base.check() {
            Ok(()) => Ok(header),
            Err(error) => Err(format!("senseless header: {error}")),
        }
    }
}

/// Writes a log file.
pub struct LogWriter {
    file: File,
    path: PathBuf,
    encoder: Encoder,
    frame: Vec<u8>,
    /// Index of the first entry.
    first: LogIndex,
    bytes: u64,
    now_us: fn() -> u64,
    begun_us: u64,
}

impl LogWriter {
    /// Creates or overwrites the file at `path`, of a log that begins with a boot. `now_us` is some
    /// monotonic clock that may be read on the thread that writes.
    ///
    /// # Errors
    /// If it cannot be written.
    ///
    /// # Panics
    /// If the header's base is unsound, or a state: [`LogWriter::create_with_state`] writes such logs.
    pub fn create(path: &Path, header: &LogHeader, now_us: fn() -> u64) -> Result<Self, LogError> {
        assert!(
            header.base.origin == BaseOrigin::Boot,
            "the state has to be written, too"
        );
        Self::with_header(path, header, now_us)
    }

    /// Creates or overwrites the file at `path`, of a log that begins at a state, which is to be written
    /// first. For `now_us` see [`LogWriter::create`].
    ///
    /// # Errors
    /// If it cannot be written.
    ///
    /// # Panics
    /// If the header's base is unsound, or a boot.
    pub fn create_with_state(
        path: &Path,
        header: &LogHeader,
        now_us: fn() -> u64,
    ) -> Result<StateWriter, LogError> {
        assert!(
            header.base.origin == BaseOrigin::State,
            "a boot has no state"
        );
        Self::with_header(path, header, now_us).map(StateWriter::new)
    }

    fn with_header(path: &Path, header: &LogHeader, now_us: fn() -> u64) -> Result<Self, LogError> {
        let base = header.base;
        if let Err(error) = base.check() {
            panic!("{error}: {base:?}");
        }
        let io = |source| io_error("cannot create the log", path, source);
        let mut file = File::create(path).map_err(io)?;
        let header = to_bytes(header);
        let length = u32::try_from(header.len()).expect("a header is small");
        let mut bytes = Vec::with_capacity(header.len() + 20);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(&crc32fast::hash(&header).to_le_bytes());
        bytes.extend_from_slice(&header);
        file.write_all(&bytes).map_err(io)?;
        Ok(Self {
            file,
            path: path.to_owned(),
            encoder: Encoder::at(base.place()),
            frame: Vec::new(),
            first: base.index,
            bytes: bytes.len() as u64,
            now_us,
            begun_us: now_us(),
        })
    }

    /// Bytes written so far.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Entries appended so far.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.encoder.place().index.0 - self.first.0
    }
}

impl LogSink for LogWriter {
    fn append(&mut self, entry: &LogEntry) -> Result<LogIndex, LogError> {
        let index = self.encoder.place().index;
        self.encoder.encode(entry, &mut self.frame);
        if self.frame.len() >= FRAME_FULL {
            self.flush()?;
        }
        Ok(index)
    }

    fn place(&self) -> LogPlace {
        self.encoder.place()
    }

    fn flush(&mut self) -> Result<(), LogError> {
        if self.frame.is_empty() {
            return Ok(());
        }
        let length = u32::try_from(self.frame.len() + TIME).expect("frames are small");
        let at_us = (self.now_us)().saturating_sub(self.begun_us);
        let mut bytes = Vec::with_capacity(self.frame.len() + TIME + 8);
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&at_us.to_le_bytes());
        bytes.append(&mut self.frame);
        let crc = crc32fast::hash(&bytes[8..]);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        self.file
            .write_all(&bytes)
            .map_err(|source| io_error("cannot write the log", &self.path, source))?;
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    fn is_followed(&self) -> bool {
        false
    }
}

impl Drop for LogWriter {
    fn drop(&mut self) {
        // Best effort: what matters was flushed, and reported, before.
        let _ = self.flush();
    }
}

/// Where and why a log file stops being whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Tail {
    /// First byte that is not part of the log.
    pub offset: u64,
    /// Index of the first entry lost.
    pub entry: u64,
    /// What is wrong there.
    pub what: String,
}

/// How a log ended in an orderly way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogEnd {
    /// With its machine: an entry [`Event::End`].
    Machine,
    /// Before it: an entry [`Event::Left`]. The machine ran on.
    Left,
}

/// Reads a log file.
pub struct LogReader {
    file: BufReader<File>,
    path: PathBuf,
    version: u32,
    header: LogHeader,
    decoder: Decoder,
    frame: Vec<u8>,
    at: usize,
    offset: u64,
    at_us: u64,
    state: Option<state::Extent>,
    end: Option<LogEnd>,
    tail: Option<Tail>,
}

impl LogReader {
    /// Opens the log at `path` and checks its header.
    ///
    /// # Errors
    /// [`LogError::Foreign`] if it is no log, or one of another format version; else as it says.
    pub fn open(path: &Path) -> Result<Self, LogError> {
        let io = |source| io_error("cannot read the log", path, source);
        let mut file = BufReader::new(File::open(path).map_err(io)?);
        let mut head = [0u8; 20];
        let foreign = |what: &str| LogError::Foreign(format!("{}: {what}", path.display()));
        file.read_exact(&mut head).map_err(|e| match e.kind() {
            ErrorKind::UnexpectedEof => foreign("not a Tandem log (shorter than a header)"),
            _ => io(e),
        })?;
        let word = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().expect("4 bytes"));
        if head[..8] != MAGIC {
            return Err(foreign("not a Tandem log (wrong magic number)"));
        }
        let version = word(8);
        if !(FORMAT_VERSION_MIN..=FORMAT_VERSION).contains(&version) {
            return Err(foreign(&format!(
                "log format {version}, but this program reads formats {FORMAT_VERSION_MIN} to \
                 {FORMAT_VERSION}"
            )));
        }
        let malformed = |what: String| LogError::Malformed {
            what: format!("{}: {what}", path.display()),
            offset: 20,
            entry: 0,
        };
        let length = word(12) as usize;
        if length > HEADER_MAX {
            return Err(malformed("header too long".into()));
        }
        let mut header = vec![0; length];
        file.read_exact(&mut header)
            .map_err(|_| malformed("header cut short".into()))?;
        if crc32fast::hash(&header) != word(16) {
            return Err(malformed("header checksum wrong".into()));
        }
        let header = LogHeader::parse(&header, version).map_err(malformed)?;
        let mut offset = 20 + length as u64;
        let state = state::find(file.get_ref(), path, offset, &header)?;
        if let Some(state) = state {
            offset = state.ends;
            file.seek(SeekFrom::Start(offset)).map_err(io)?;
        }
        let decoder = Decoder::of_format(version, header.base.place());
        Ok(Self {
            file,
            path: path.to_owned(),
            version,
            header,
            decoder,
            frame: Vec::new(),
            at: 0,
            offset,
            at_us: 0,
            state,
            end: None,
            tail: None,
        })
    }

    /// The format version it was written in.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Checks that the log's machine can be run again: its configuration is in a format that is still run.
    ///
    /// # Errors
    /// [`LogError::Foreign`] for a log that can only be listed.
    pub fn check_replayable(&self) -> Result<(), LogError> {
        if self.version >= REPLAYABLE_MIN {
            return Ok(());
        }
        Err(LogError::Foreign(format!(
            "{}: log format {}, but this program replays formats {REPLAYABLE_MIN} to {FORMAT_VERSION}",
            self.path.display(),
            self.version
        )))
    }

    /// What the log says of itself.
    #[must_use]
    pub fn header(&self) -> &LogHeader {
        &self.header
    }

    /// The state the log begins at, from its beginning on; none if it begins with a boot. Entries are read
    /// independently of it.
    ///
    /// # Errors
    /// If the operating system has no descriptor left.
    pub fn state(&self) -> Result<Option<StateReader>, LogError> {
        let Some(extent) = self.state else {
            return Ok(None);
        };
        let file = self
            .file
            .get_ref()
            .try_clone()
            .map_err(|e| io_error("cannot read the log", &self.path, e))?;
        let entry = self.header.base.index.0;
        Ok(Some(StateReader::new(
            file,
            self.path.clone(),
            entry,
            extent,
        )))
    }

    /// Whether the last entry was read: the log ended in an orderly way.
    #[must_use]
    pub fn ended(&self) -> bool {
        self.end.is_some()
    }

    /// How the log ended, once its last entry was read.
    #[must_use]
    pub fn end(&self) -> Option<LogEnd> {
        self.end
    }

    /// The torn or altered tail, once met.
    #[must_use]
    pub fn tail(&self) -> Option<&Tail> {
        self.tail.as_ref()
    }

    /// Microseconds into the recording when the frame read last was written.
    #[must_use]
    pub fn at_us(&self) -> u64 {
        self.at_us
    }

    /// Bytes of the file that were read and good.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The next entry and its encoded length in bytes; `None` at the end, torn or not.
    ///
    /// # Errors
    /// If the operating system cannot read, or entries are malformed inside a frame whose checksum is
    /// good (a writer's bug, or a forgery).
    pub fn read(&mut self) -> Result<Option<(LogEntry, usize)>, LogError> {
        if self.at == self.frame.len() && !self.next_frame()? {
            return Ok(None);
        }
        if self.ended() {
            self.tail = Some(Tail {
                offset: self.offset - (self.frame.len() - self.at) as u64,
                entry: self.decoder.place().index.0,
                what: "entries after the end of the log".into(),
            });
        }
        if self.tail.is_some() {
            return Ok(None);
        }
        let mut rest = &self.frame[self.at..];
        let before = rest.len();
        let entry = self.decoder.decode(&mut rest).map_err(|e| match e {
            LogError::Malformed { what, entry, .. } => LogError::Malformed {
                what: format!("{}: {what}", self.path.display()),
                offset: self.offset - before as u64,
                entry,
            },
            other => other,
        })?;
        let length = before - rest.len();
        self.at += length;
        self.end = match entry.event {
            Event::End { .. } => Some(LogEnd::Machine),
            Event::Left { .. } => Some(LogEnd::Left),
            _ => None,
        };
        Ok(Some((entry, length)))
    }

    /// That the entry which ends the log, and was read, is the last thing in the file.
    ///
    /// # Errors
    /// [`LogError::Malformed`] with the place of what follows it; or if the file cannot be read.
    pub fn check_end(&mut self) -> Result<(), LogError> {
        let more = self.read()?;
        debug_assert!(more.is_none(), "nothing is an entry behind the end");
        self.check_tail()
    }

    fn check_tail(&self) -> Result<(), LogError> {
        match &self.tail {
            None => Ok(()),
            Some(tail) => Err(LogError::Malformed {
                what: format!("{}: {}", self.path.display(), tail.what),
                offset: tail.offset,
                entry: tail.entry,
            }),
        }
    }

    /// Reads the next whole frame; false at the end.
    fn next_frame(&mut self) -> Result<bool, LogError> {
        if self.tail.is_some() {
            return Ok(false);
        }
        let mut head = [0u8; 8];
        let got = self.fill(&mut head)?;
        if got == 0 {
            return Ok(false);
        }
        let word = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().expect("4 bytes"));
        let length = word(0) as usize;
        let what = if self.ended() {
            "bytes after the end of the log"
        } else if got < head.len() {
            "frame header cut short"
        } else if length <= TIME || length > FRAME_MAX {
            "frame length out of range"
        } else {
            let mut frame = vec![0; length];
            if self.fill(&mut frame)? < length {
                "frame cut short"
            } else if crc32fast::hash(&frame) != word(4) {
                "frame checksum wrong"
            } else {
                self.at_us = u64::from_le_bytes(frame[..TIME].try_into().expect("8 bytes"));
                self.frame = frame;
                self.at = TIME;
                self.offset += 8 + length as u64;
                return Ok(true);
            }
        };
        self.tail = Some(Tail {
            offset: self.offset,
            entry: self.decoder.place().index.0,
            what: what.into(),
        });
        Ok(false)
    }

    /// Reads until `buffer` is full or the file ends.
    fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, LogError> {
        let mut got = 0;
        while got < buffer.len() {
            match self.file.read(&mut buffer[got..]) {
                Ok(0) => break,
                Ok(n) => got += n,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(io_error("cannot read the log", &self.path, e)),
            }
        }
        Ok(got)
    }
}

impl LogSource for LogReader {
    fn next(&mut self, _wait: bool) -> Result<NextEntry, InputsError> {
        match self.read()? {
            Some((entry, _)) => Ok(NextEntry::Entry(entry)),
            None => {
                self.check_tail()?;
                Ok(NextEntry::Ended)
            }
        }
    }

    fn place(&self) -> LogPlace {
        self.decoder.place()
    }
}

/// A place in a log file.
#[derive(Clone, Debug)]
pub struct Mark {
    /// Where the frame in hand begins, or the next one if none is.
    begins: u64,
    in_hand: bool,
    at: usize,
    decoder: Decoder,
    end: Option<LogEnd>,
}

impl Rewind for LogReader {
    type Mark = Mark;

    fn mark(&self) -> Mark {
        let in_hand = !self.frame.is_empty();
        let back = if in_hand {
            self.frame.len() as u64 + 8
        } else {
            0
        };
        Mark {
            begins: self.offset - back,
            in_hand,
            at: self.at,
            decoder: self.decoder.clone(),
            end: self.end,
        }
    }

    fn rewind(&mut self, mark: &Mark) -> Result<(), LogError> {
        self.file
            .seek(SeekFrom::Start(mark.begins))
            .map_err(|source| io_error("cannot read again the log", &self.path, source))?;
        self.offset = mark.begins;
        self.end = None;
        self.tail = None;
        self.frame.clear();
        let there = !mark.in_hand || self.next_frame()?;
        if !there || mark.at > self.frame.len() {
            return Err(LogError::Malformed {
                what: format!("{}: the file was altered", self.path.display()),
                offset: mark.begins,
                entry: mark.decoder.place().index.0,
            });
        }
        self.at = mark.at;
        self.decoder = mark.decoder.clone();
        self.end = mark.end;
        Ok(())
    }
}

fn io_error(what: &str, path: &Path, source: std::io::Error) -> LogError {
    LogError::Io {
        what: format!("{what} {}", path.display()),
        source,
    }
}

#[cfg(test)]
mod tests;
