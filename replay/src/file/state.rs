//! The state a log begins at, as a stream in its file.
//!
//! ```text
//!   chunk:   length u32 LE   of its bytes, 1 to 1 MiB
//!            crc    u32 LE   of the place of its first byte in the state (u64 LE), and its bytes
//!            bytes
//!   chunk ...
//!   end:     length 0, crc of the length of the whole state (u64 LE)
//! ```
//!
//! A state may be of gigabytes. Neither side ever holds more than a chunk of it, and a log is opened by looking
//! at the lengths alone: an altered byte is found when the state is read. As each checksum is over the place,
//! too, no chunk can be missing, or stand where another was.

use super::{LogHeader, LogWriter, io_error};
use crate::base::BaseOrigin;
use crate::error::LogError;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Most bytes of a chunk.
const CHUNK_MAX: usize = 1 << 20;
/// Bytes before those of a chunk: length and checksum.
const HEAD: usize = 8;

fn checksum(place: u64, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&place.to_le_bytes());
    hasher.update(bytes);
    hasher.finalize()
}

/// Writes the state a log begins at, and then becomes the log's writer.
///
/// The state is what is written to it. A flush ends a chunk. One that is dropped before
/// [`StateWriter::finish`] leaves a file that is no log.
pub struct StateWriter {
    log: LogWriter,
    /// The chunk being filled, its head left free.
    chunk: Vec<u8>,
    /// Bytes of the state in chunks before it.
    written: u64,
}

impl StateWriter {
    /// Behind the header of `log`.
    pub(super) fn new(log: LogWriter) -> Self {
        Self {
            log,
            chunk: vec![0; HEAD],
            written: 0,
        }
    }

    /// The state is whole: entries come now.
    ///
    /// # Errors
    /// If the rest of it cannot be written.
    pub fn finish(mut self) -> Result<LogWriter, LogError> {
        let path = self.log.path.clone();
        let io = |source| io_error("cannot write the state into the log", &path, source);
        self.flush().map_err(io)?;
        self.put().map_err(io)?;
        self.log.begun_us = (self.log.now_us)();
        Ok(self.log)
    }

    /// Writes the chunk as it is; one without bytes is the end.
    fn put(&mut self) -> io::Result<()> {
        let (head, bytes) = self.chunk.split_at_mut(HEAD);
        let length = u32::try_from(bytes.len()).expect("chunks are small");
        head[..4].copy_from_slice(&length.to_le_bytes());
        head[4..].copy_from_slice(&checksum(self.written, bytes).to_le_bytes());
        self.written += u64::from(length);
        self.log.file.write_all(&self.chunk)?;
        self.log.bytes += self.chunk.len() as u64;
        self.chunk.truncate(HEAD);
        Ok(())
    }
}

impl Write for StateWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = HEAD + CHUNK_MAX - self.chunk.len();
        let taken = bytes.len().min(room);
        self.chunk.extend_from_slice(&bytes[..taken]);
        if taken == room {
            self.put()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.chunk.len() > HEAD {
            self.put()?;
        }
        Ok(())
    }
}

/// Where in a log's file its state is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extent {
    /// The first chunk.
    begins: u64,
    /// Behind the end mark.
    pub(super) ends: u64,
    /// Bytes of the state.
    length: u64,
}

/// What reads chunks: the file, its name, and the index of the log's first entry, for errors.
struct Chunks<'a> {
    file: &'a File,
    path: &'a Path,
    entry: u64,
}

impl Chunks<'_> {
    fn malformed(&self, what: &str, offset: u64) -> LogError {
        LogError::Malformed {
            what: format!("{}: {what}", self.path.display()),
            offset,
            entry: self.entry,
        }
    }

    /// Fills `buffer` from byte `from` of the file, for the chunk that begins at `chunk`.
    fn fill(&self, buffer: &mut [u8], from: u64, chunk: u64) -> Result<(), LogError> {
        self.file
            .read_exact_at(buffer, from)
            .map_err(|e| match e.kind() {
                ErrorKind::UnexpectedEof => self.malformed("state cut short", chunk),
                _ => io_error("cannot read the log", self.path, e),
            })
    }

    /// Length and checksum of the chunk at `chunk`, whose first byte has this place in the state; that the
    /// end mark is sound.
    fn head(&self, chunk: u64, place: u64) -> Result<(usize, u32), LogError> {
        let mut head = [0; HEAD];
        self.fill(&mut head, chunk, chunk)?;
        let word = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().expect("4 bytes"));
        let (length, crc) = (word(0) as usize, word(4));
        if length > CHUNK_MAX {
            return Err(self.malformed("state chunk length out of range", chunk));
        }
        if length == 0 && crc != checksum(place, &[]) {
            return Err(self.malformed("state end mark wrong", chunk));
        }
        Ok((length, crc))
    }
}

/// Finds the end of the state that begins at byte `begins` of `file`, by the heads of its chunks.
pub(super) fn find(
    file: &File,
    path: &Path,
    begins: u64,
    header: &LogHeader,
) -> Result<Option<Extent>, LogError> {
    if header.base.origin == BaseOrigin::Boot {
        return Ok(None);
    }
    let entry = header.base.index.0;
    let chunks = Chunks { file, path, entry };
    let size = file
        .metadata()
        .map_err(|e| io_error("cannot read the log", path, e))?
        .len();
    let (mut at, mut length) = (begins, 0);
    loop {
        let (bytes, _) = chunks.head(at, length)?;
        let next = at + (HEAD + bytes) as u64;
        if next > size {
            return Err(chunks.malformed("state cut short", at));
        }
        if bytes == 0 {
            let ends = next;
            return Ok(Some(Extent {
                begins,
                ends,
                length,
            }));
        }
        (at, length) = (next, length + bytes as u64);
    }
}

/// Reads the state a log begins at, and checks it.
///
/// It holds one chunk at a time. What is wrong with the file comes as an [`io::Error`] of kind
/// [`ErrorKind::InvalidData`] around the [`LogError`] that names the place.
pub struct StateReader {
    file: File,
    path: PathBuf,
    entry: u64,
    extent: Extent,
    /// Where the next chunk begins, and the place of its first byte in the state.
    at: u64,
    place: u64,
    chunk: Vec<u8>,
    taken: usize,
}

impl StateReader {
    pub(super) fn new(file: File, path: PathBuf, entry: u64, extent: Extent) -> Self {
        Self {
            file,
            path,
            entry,
            extent,
            at: extent.begins,
            place: 0,
            chunk: Vec::new(),
            taken: 0,
        }
    }

    /// Bytes of the whole state, as the lengths of its chunks say.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.extent.length
    }

    /// Gets the next chunk; an empty one at the end.
    fn next_chunk(&mut self) -> Result<(), LogError> {
        let chunks = Chunks {
            file: &self.file,
            path: &self.path,
            entry: self.entry,
        };
        let (length, crc) = chunks.head(self.at, self.place)?;
        self.taken = 0;
        self.chunk.resize(length, 0);
        if length == 0 {
            return Ok(());
        }
        let filled = chunks.fill(&mut self.chunk, self.at + HEAD as u64, self.at);
        let checked = filled.and_then(|()| {
            if checksum(self.place, &self.chunk) == crc {
                return Ok(());
            }
            Err(chunks.malformed("state chunk checksum wrong", self.at))
        });
        if checked.is_err() {
            self.chunk.clear();
        } else {
            self.at += (HEAD + length) as u64;
            self.place += length as u64;
        }
        checked
    }
}

impl Read for StateReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        if self.taken == self.chunk.len() {
            self.next_chunk()
                .map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
        }
        let rest = &self.chunk[self.taken..];
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        self.taken += count;
        Ok(count)
    }
}
