//! A replica's disk: shared with the other replica, or its own.
//!
//! | | shared | its own (`--disk-copy`) |
//! |---|---|---|
//! | is | one image, on storage both hosts mount | one image on each host |
//! | a write of the primary's | is an output: it waits for the ack, and for the lease | is none: nobody else sees it |
//! | a backup | touches it when live only | executes each request as its replay makes it |
//! | a new backup | has it already | is sent its contents with the machine |

// Threads of links and the vCPU's run here (see clippy.toml).
#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

use crate::error::{During, Outcome, ReplicaError};
use crate::lease::Lease;
use crate::machine::disk_sectors;
use crate::reads::{DiskReads, Reads};
use logchannel::{DiskSink, be_prompt};
use replay::{DiskPart, LogIndex, Output};
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::time::Duration;
use vmm::backends::ArrivalSink;
use vmm::backends::disk::{BLOCK_BYTES, BlockSet, Contents, DiskFile, SECTOR_BYTES, WritePermit};

/// How often a backup tries to read what its primary could read, and the time between two tries.
const READ_TRIES: u32 = 20;
const READ_PAUSE: Duration = Duration::from_millis(100);
/// Bytes a second at which a disk is surely read, to be compared.
const READ_BYTES_S: u64 = 16 << 20;

/// After so many bytes that a joiner has taken they are to be on its storage.
const SYNC_BYTES: u64 = 64 << 20;

/// The lease of a primary, for its disk. It is asked on the thread that writes then.
struct Leased {
    lease: Arc<Lease>,
    /// What the backup is still to read there.
    reads: Arc<Reads>,
    prompt: Once,
}

impl WritePermit for Leased {
    fn wait(&self, bytes: &Range<u64>) -> bool {
        self.reads.wait(bytes);
        // A thread that loses its processor between this answer and its write asks again: on a busy host that would
        // be often.
        self.prompt.call_once(|| {
            be_prompt();
        });
        self.lease.wait()
    }
}

/// The disk of one replica, or of a machine that runs alone.
#[derive(Debug)]
pub(crate) struct Disk {
    file: Mutex<Option<Arc<DiskFile>>>,
    reads: Arc<Reads>,
}

/// No disk.
impl Default for Disk {
    fn default() -> Self {
        Self {
            file: Mutex::default(),
            reads: Arc::new(Reads::new(DiskReads::Log, false)),
        }
    }
}

impl Disk {
    /// Of a machine that runs alone: locked against other machines.
    pub(crate) fn alone(path: &Path, sink: &Arc<dyn ArrivalSink>) -> Outcome<Self> {
        let file = DiskFile::open(path, sink.clone())?;
        file.lock_exclusive()?;
        Ok(Self {
            file: Mutex::new(Some(Arc::new(file))),
            ..Self::default()
        })
    }

    /// Of a replica, which shares it: written by `lease`, every write durable before the guest hears of it.
    pub(crate) fn shared(
        path: &Path,
        sink: &Arc<dyn ArrivalSink>,
        lease: Arc<Lease>,
        reads: DiskReads,
    ) -> Outcome<Self> {
        let reads = Arc::new(Reads::new(reads, false));
        let leased = Leased {
            lease,
            reads: reads.clone(),
            prompt: Once::new(),
        };
        let permit: Arc<dyn WritePermit> = Arc::new(leased);
        let file = DiskFile::open_durable(path, sink.clone(), Some(permit))?;
        Ok(Self {
            file: Mutex::new(Some(Arc::new(file))),
            reads,
        })
    }

    /// Of a replica alone: locked, and written without a lease. If this host dies, the other one's disk has what
    /// this one's kernel still held.
    pub(crate) fn own(path: &Path, sink: &Arc<dyn ArrivalSink>, reads: DiskReads) -> Outcome<Self> {
        let disk = Self::alone(path, sink)?;
        Ok(Self {
            reads: Arc::new(Reads::new(reads, true)),
            ..disk
        })
    }

    /// The disk, if there is one. Nothing is waited for under the lock: threads of the link ask for it, too.
    fn file(&self) -> Option<Arc<DiskFile>> {
        let file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.clone()
    }

    /// Does something with it, if there is one and it is this replica's own.
    fn with_own<T>(&self, what: impl FnOnce(&DiskFile) -> T) -> Option<T> {
        if !self.is_own() {
            return None;
        }
        self.file().as_deref().map(what)
    }

    /// Whether there is one that is this replica's own.
    pub(crate) fn is_own(&self) -> bool {
        self.reads.is_own()
    }

    /// Executes a request of a guest that is live.
    pub(crate) fn submit(&self, output: Output) {
        if let Some(disk) = self.file() {
            disk.submit(output);
        }
    }

    /// Executes a request that the replay of a backup made at entry `index`: on a disk of its own, so that it has
    /// what its primary's has. A read changes nothing, and its data comes by the log. What is for no disk is left out.
    pub(crate) fn mirror(&self, index: LogIndex, output: &Output) {
        if matches!(output, Output::DiskWrite { .. } | Output::DiskFlush { .. }) {
            self.with_own(|disk| disk.mirror(index.0, output.clone()));
        }
    }

    /// What the backup of a replica that leads reads itself.
    pub(crate) fn reads(&self) -> &Arc<Reads> {
        &self.reads
    }

    /// What the guest of the primary read at `offset`, as it stands on the disk behind all that was mirrored before.
    /// Tried again for a while if it cannot be had. On the vCPU's thread of a backup.
    ///
    /// # Errors
    /// Why it is not to be had.
    pub(crate) fn read(&self, offset: u64, len: u32) -> Result<Vec<u8>, String> {
        let mut tried = 1;
        loop {
            let asked = self.file().map(|disk| disk.ask_read(offset, len));
            let data = asked.ok_or("there is no disk")?.recv();
            let why = match data {
                Ok(Ok(data)) => return Ok(data),
                Ok(Err(error)) => error.to_string(),
                Err(_) => "its thread has ended".into(),
            };
            if tried == READ_TRIES {
                return Err(format!(
                    "what the primary read from the disk cannot be read here: {len} bytes at {offset}: {why}"
                ));
            }
            tried += 1;
            // Sleeping reads no clock.
            std::thread::sleep(READ_PAUSE);
        }
    }

    /// Has `tell` told, on the disk's thread, when this disk is no copy of the primary's any more, and why.
    pub(crate) fn on_failure(&self, tell: impl Fn(String) + Send + Sync + 'static) {
        self.with_own(|disk| disk.on_failure(move |why| tell(not_equal(why))));
    }

    /// The first entry whose request was mirrored and is not done.
    pub(crate) fn pending(&self) -> Option<LogIndex> {
        self.with_own(DiskFile::pending).flatten().map(LogIndex)
    }

    /// Waits until all that was mirrored is done.
    ///
    /// # Errors
    /// If this disk is no copy of the primary's any more: why.
    pub(crate) fn settle(&self) -> Result<(), String> {
        let Some(settled) = self.with_own(DiskFile::ask_settled) else {
            return Ok(());
        };
        match settled.recv() {
            Ok(settled) => settled.map_err(|why| not_equal(&why)),
            Err(_) => Err(not_equal("its thread has ended")),
        }
    }

    /// Waits until every request is done, and closes it.
    pub(crate) fn close(&self) {
        let file = {
            let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
            file.take()
        };
        if let Some(file) = file {
            // Somebody else may still hold it for a moment. A halted replica's disk does nothing, and tells nothing.
            let _ = file.ask_settled().recv();
        }
    }

    /// All of its contents, if it is this replica's own.
    fn contents(&self) -> Option<Contents> {
        self.with_own(DiskFile::contents)
    }

    /// [`Contents::digest`], if it is this replica's own.
    pub(crate) fn digest(&self) -> Outcome<Option<u64>> {
        let contents = self.contents();
        contents
            .map(|contents| contents.digest().during("cannot read the disk"))
            .transpose()
    }

    /// Has it copied to a joiner, if it is this replica's own.
    pub(crate) fn copying(self: &Arc<Self>) -> Option<Copying> {
        let contents = self.contents()?;
        self.with_own(|disk| disk.note_written(true));
        Some(Copying {
            disk: self.clone(),
            contents,
        })
    }

    /// Where the contents of the primary's disk go, if this joiner has one of its own.
    pub(crate) fn arriving(&self) -> Option<Box<dyn DiskSink>> {
        let disk = self.contents()?;
        Some(Box::new(ArrivingDisk {
            disk,
            whole: 0,
            unsynced: 0,
        }))
    }
}

/// What it may take at the most, on either host, to compare a disk like the one at `path`.
pub(crate) fn patience(path: Option<&Path>) -> Outcome<Duration> {
    let sectors = path.map(disk_sectors).transpose()?;
    let bytes = sectors.unwrap_or(0).saturating_mul(SECTOR_BYTES);
    Ok(Duration::from_secs(bytes.div_ceil(READ_BYTES_S)))
}

fn not_equal(why: &str) -> String {
    format!("its own disk is no copy of the primary's any more: {why}")
}

/// A disk on its way to a joiner, while its guest writes. Dropped, nothing is noted any more.
pub(crate) struct Copying {
    disk: Arc<Disk>,
    contents: Contents,
}

impl Copying {
    /// The blocks that were written since this was last asked.
    pub(crate) fn written(&self) -> BlockSet {
        let written = self.disk.with_own(DiskFile::written);
        written.unwrap_or_default()
    }

    /// Hands `send` these blocks.
    pub(crate) fn send(
        &self,
        blocks: Range<u64>,
        send: impl FnMut(DiskPart<'_>) -> io::Result<()>,
    ) -> Outcome {
        let sent = self.contents.parts(blocks, send);
        sent.map_err(|e| ReplicaError::refused(format!("the machine's disk: {e}")))
    }

    /// All blocks there are.
    pub(crate) fn all(&self) -> Range<u64> {
        0..self.contents.bytes().div_ceil(BLOCK_BYTES)
    }
}

impl Drop for Copying {
    fn drop(&mut self) {
        self.disk.with_own(|disk| disk.note_written(false));
    }
}

/// A joiner's disk, of which the primary's contents are made.
struct ArrivingDisk {
    disk: Contents,
    /// All before this has come. It comes in order at first, and parts of it again then.
    whole: u64,
    /// Bytes that came since all was on the storage.
    unsynced: u64,
}

impl DiskSink for ArrivingDisk {
    fn part(&mut self, part: DiskPart<'_>) -> Result<(), String> {
        if part.at() > self.whole {
            return Err(format!(
                "the disk: {} where {} should be",
                part.at(),
                self.whole
            ));
        }
        let put = self.disk.put(part);
        put.map_err(|e| format!("the disk of this backup cannot be written: {e}"))?;
        self.whole = self.whole.max(part.at() + part.length());
        // What is left for the end is little: the guest's flushes count from there on.
        self.unsynced += part.length();
        if self.unsynced >= SYNC_BYTES {
            self.unsynced = 0;
            let synced = self.disk.sync();
            synced.map_err(|e| format!("the disk of this backup cannot be written: {e}"))?;
        }
        Ok(())
    }

    fn end(&mut self) -> Result<(), String> {
        if self.whole == self.disk.bytes() {
            return Ok(());
        }
        let bytes = self.disk.bytes();
        Err(format!(
            "the disk: {} of {bytes} bytes have come",
            self.whole
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm::machine::live::Inbox;

    const BYTES: u64 = 40 << 10;

    fn own() -> (tempfile::NamedTempFile, Arc<Disk>) {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(BYTES).unwrap();
        let sink: Arc<dyn ArrivalSink> = Inbox::new();
        let disk = Disk::own(file.path(), &sink, DiskReads::Log).unwrap();
        (file, Arc::new(disk))
    }

    fn write(offset: u64, byte: u8) -> Output {
        Output::DiskWrite {
            tag: 0,
            offset,
            data: vec![byte; 512],
        }
    }

    #[test]
    fn a_copy_has_what_was_written_while_it_was_made() {
        let ((_from_file, from), (to_file, to)) = (own(), own());
        to.mirror(LogIndex(0), &write(512, 7));
        to.settle().unwrap();
        from.mirror(LogIndex(0), &write(1024, 1));
        from.settle().unwrap();
        let copying = from.copying().unwrap();
        let mut arriving = to.arriving().unwrap();
        let mut parts = 0;
        let all = copying.all();
        let mut put = |part: DiskPart<'_>| {
            parts += 1;
            if parts == 1 {
                // Behind the place that is read just now.
                from.mirror(LogIndex(1), &write(2048, 2));
                from.mirror(LogIndex(1), &write(BYTES - 512, 3));
                from.settle().unwrap();
            }
            arriving.part(part).map_err(io::Error::other)
        };
        copying.send(all, &mut put).unwrap();
        let written = copying.written();
        assert!(written.runs().eq([0..1, 9..10]));
        for run in written.runs() {
            copying.send(run, &mut put).unwrap();
        }
        assert!(copying.written().is_empty());
        arriving.end().unwrap();
        let bytes = std::fs::read(to_file.path()).unwrap();
        let sector = |n: usize| bytes[n * 512];
        assert_eq!([1, 2, 3, 4, 79].map(sector), [0, 1, 0, 2, 3]);
        assert_eq!(from.digest().unwrap(), to.digest().unwrap());
    }

    #[test]
    fn a_disk_with_a_gap_is_not_whole() {
        let (_file, disk) = own();
        let zeros = |at, length| DiskPart::Zeros { at, length };
        let mut arriving = disk.arriving().unwrap();
        arriving.part(zeros(0, 4096)).unwrap();
        assert!(arriving.part(zeros(8192, 4096)).is_err(), "a gap");
        assert!(arriving.part(zeros(4096, BYTES)).is_err(), "over the end");
        assert!(arriving.end().unwrap_err().contains("4096 of 40960"));
        arriving.part(zeros(0, BYTES)).unwrap();
        arriving.end().unwrap();
    }

    #[test]
    fn a_shared_disk_is_neither_mirrored_nor_copied() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(BYTES).unwrap();
        let sink: Arc<dyn ArrivalSink> = Inbox::new();
        let disk =
            Arc::new(Disk::shared(file.path(), &sink, Lease::new(), DiskReads::Log).unwrap());
        disk.mirror(LogIndex(0), &write(0, 1));
        disk.settle().unwrap();
        assert!(disk.copying().is_none() && disk.arriving().is_none());
        assert_eq!(disk.digest().unwrap(), None);
        disk.close();
        assert!(std::fs::read(file.path()).unwrap() == [0; BYTES as usize]);
    }
}
