//! The log file.
//!
//! ```text
//!  0  magic    8   "TANDEMLG"
//!  8  version  u32 LE
//! 12  length   u32 LE   of the header that follows
//! 16  crc      u32 LE   of the header that follows
//! 20  header   bincode  LogHeader
//!     frame:   length u32 LE of what follows the crc, crc u32 LE of the same,
//!              microseconds since the recording began u64 LE (a trace: replay ignores it),
//!              entries (see `codec`; one stream over all frames)
//!     frame ...
//! ```
//!
//! A log whose last entry is `End` ended in an orderly way. Otherwise its writer died: the whole frames
//! are good, a torn tail is found, named and left out.

use crate::codec::{Decoder, Encoder, from_bytes, to_bytes};
use crate::error::LogError;
use crate::event::{Event, LogEntry, LogIndex};
use crate::inputs::InputsError;
use crate::point::ClockKind;
use crate::sink::{LogSink, LogSource, Next, Rewind};
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
/// configuration the processor that ran it; header and entries are those of version 4.
pub const FORMAT_VERSION: u32 = 5;
/// Oldest version that can be read.
const FORMAT_VERSION_MIN: u32 = 1;
/// Oldest version whose machines can be run again: their configuration is today's, or lacks what need not be
/// known.
const REPLAYABLE_MIN: u32 = 3;
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
    /// Machine configuration, from version 2 on the engine that ran it, and from version 5 on the processor
    /// under it, in the machine's own encoding.
    pub config: Vec<u8>,
    /// Digest of the first state.
    pub first_state: u64,
}

/// Writes a log file.
pub struct LogWriter {
    file: File,
    path: PathBuf,
    encoder: Encoder,
    frame: Vec<u8>,
    next: LogIndex,
    bytes: u64,
    now_us: fn() -> u64,
    begun_us: u64,
}

impl LogWriter {
    /// Creates or overwrites the file at `path`. `now_us` is some monotonic clock that may be read on the
    /// thread that writes.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn create(path: &Path, header: &LogHeader, now_us: fn() -> u64) -> Result<Self, LogError> {
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
            encoder: Encoder::new(),
            frame: Vec::new(),
            next: LogIndex(0),
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
        self.next.0
    }
}

impl LogSink for LogWriter {
    fn append(&mut self, entry: &LogEntry) -> Result<LogIndex, LogError> {
        self.encoder.encode(entry, &mut self.frame);
        let index = self.next;
        self.next = index.next();
        if self.frame.len() >= FRAME_FULL {
            self.flush()?;
        }
        Ok(index)
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
    ended: bool,
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
        let malformed = |what: &str| LogError::Malformed {
            what: format!("{}: {what}", path.display()),
            offset: 20,
            entry: 0,
        };
        let length = word(12) as usize;
        if length > HEADER_MAX {
            return Err(malformed("header too long"));
        }
        let mut header = vec![0; length];
        file.read_exact(&mut header)
            .map_err(|_| malformed("header cut short"))?;
        if crc32fast::hash(&header) != word(16) {
            return Err(malformed("header checksum wrong"));
        }
        let header = from_bytes(&header).map_err(|_| malformed("undecodable header"))?;
        Ok(Self {
            file,
            path: path.to_owned(),
            version,
            header,
            decoder: if version < 4 {
                Decoder::before_format_4()
            } else {
                Decoder::new()
            },
            frame: Vec::new(),
            at: 0,
            offset: 20 + length as u64,
            at_us: 0,
            ended: false,
            tail: None,
        })
    }

    /// The format version it was written in.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.version
    }

    /// That the log's machine can be run again: its configuration is in today's format.
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

    /// Whether the `End` entry was read.
    #[must_use]
    pub fn ended(&self) -> bool {
        self.ended
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
        if self.ended {
            self.tail = Some(Tail {
                offset: self.offset - (self.frame.len() - self.at) as u64,
                entry: self.decoder.entries(),
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
        self.ended = matches!(entry.event, Event::End { .. });
        Ok(Some((entry, length)))
    }

    /// That the `End` entry, which was read, is the last thing in the file.
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
        let what = if self.ended {
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
            entry: self.decoder.entries(),
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
    fn next(&mut self, _wait: bool) -> Result<Next, InputsError> {
        match self.read()? {
            Some((entry, _)) => Ok(Next::Entry(entry)),
            None => {
                self.check_tail()?;
                Ok(Next::Ended)
            }
        }
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
    ended: bool,
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
            ended: self.ended,
        }
    }

    fn rewind(&mut self, mark: &Mark) -> Result<(), LogError> {
        self.file
            .seek(SeekFrom::Start(mark.begins))
            .map_err(|source| io_error("cannot read again the log", &self.path, source))?;
        self.offset = mark.begins;
        self.ended = false;
        self.tail = None;
        self.frame.clear();
        let there = !mark.in_hand || self.next_frame()?;
        if !there || mark.at > self.frame.len() {
            return Err(LogError::Malformed {
                what: format!("{}: the file was altered", self.path.display()),
                offset: mark.begins,
                entry: mark.decoder.entries(),
            });
        }
        self.at = mark.at;
        self.decoder = mark.decoder.clone();
        self.ended = mark.ended;
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
mod tests {
    use super::*;
    use crate::anchor::Anchor;
    use crate::event::{Arrival, Stand};
    use crate::point::{Clock, RegisterDigest};

    fn header() -> LogHeader {
        LogHeader {
            cpu_model: "v1".into(),
            clock_kind: ClockKind::Blocks,
            config: vec![1, 2, 3],
            first_state: 42,
        }
    }

    #[test]
    fn the_largest_header_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let with = |bytes: usize| LogHeader {
            config: vec![0xff; bytes],
            ..header()
        };
        let rest = to_bytes(&with(HEADER_MAX - 100)).len() - (HEADER_MAX - 100);
        let largest = with(HEADER_MAX - rest);
        assert_eq!(to_bytes(&largest).len(), HEADER_MAX);
        drop(LogWriter::create(&path, &largest, || 0).unwrap());
        assert_eq!(*LogReader::open(&path).unwrap().header(), largest);
    }

    fn write(path: &Path, frames: u64) {
        let mut writer = LogWriter::create(path, &header(), || 0).unwrap();
        let stand = Some(Stand {
            rip: Some(0x10_0000),
            registers: RegisterDigest(9),
        });
        for n in 0..frames * 3 {
            let event = Event::Arrival(Arrival::Frame(vec![n as u8; 40]));
            writer
                .append(&LogEntry {
                    clock: Clock(n * 1000),
                    stand,
                    anchor: Anchor::NONE,
                    event,
                })
                .unwrap();
            if n % 3 == 2 {
                writer.flush().unwrap();
            }
        }
        let event = Event::End { code: 0, digest: 7 };
        writer
            .append(&LogEntry {
                clock: Clock(frames * 3000),
                stand,
                anchor: Anchor::NONE,
                event,
            })
            .unwrap();
    }

    fn read_all(path: &Path) -> Result<(usize, bool, Option<Tail>), LogError> {
        let mut reader = LogReader::open(path)?;
        let mut entries = 0;
        while reader.read()?.is_some() {
            entries += 1;
        }
        Ok((entries, reader.ended(), reader.tail().cloned()))
    }

    #[test]
    fn a_whole_log_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        write(&path, 5);
        assert_eq!(read_all(&path).unwrap(), (16, true, None));
        assert_eq!(LogReader::open(&path).unwrap().header(), &header());
    }

    #[test]
    fn a_log_is_read_again_from_any_entry() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        write(&path, 5);
        let mut reader = LogReader::open(&path).unwrap();
        let (mut marks, mut entries) = (Vec::new(), Vec::new());
        loop {
            marks.push(reader.mark());
            let Some((entry, _)) = reader.read().unwrap() else {
                break;
            };
            entries.push(entry);
        }
        for n in (0..marks.len()).rev() {
            reader.rewind(&marks[n]).unwrap();
            assert_eq!(reader.ended(), n == entries.len());
            let mut rest = Vec::new();
            while let Some((entry, _)) = reader.read().unwrap() {
                rest.push(entry);
            }
            assert_eq!(rest, entries[n..]);
            assert!(reader.ended() && reader.tail().is_none());
        }
    }

    #[test]
    fn a_log_cut_or_altered_at_any_byte_is_found_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        write(&path, 4);
        let whole = std::fs::read(&path).unwrap();
        let other = dir.path().join("other");
        for at in 0..whole.len() {
            std::fs::write(&other, &whole[..at]).unwrap();
            if let Ok((entries, ended, _)) = read_all(&other) {
                assert!(!ended && entries < 13, "cut at {at}");
            }
            let mut altered = whole.clone();
            altered[at] ^= 0x10;
            std::fs::write(&other, &altered).unwrap();
            if let Ok((_, _, tail)) = read_all(&other) {
                assert!(tail.is_some(), "altered at {at}");
            }
        }
    }
}
