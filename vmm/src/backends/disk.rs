//! A raw file as the guest's disk.
//!
//! ```text
//!  submit ─▶ queue of 64 ─▶ worker: pread, pwrite, fdatasync ─▶ sink: DiskDone
//! ```
//!
//! What is read goes to a buffer of its own (the bounce buffer), never to guest memory.
//!
//! A backup with a disk of its own has it follow (`follow`): requests are executed as its replay makes them, and
//! their ends are told by its log. The disk as a whole is compared and copied by its [`Contents`].

mod blocks;
mod contents;
mod follow;

pub use blocks::{BLOCK_BYTES, BlockSet};
pub use contents::Contents;

use self::follow::{Follower, Job};
use super::ArrivalSink;
use super::fenced::write_all_while;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::{SigHandler, Signal, signal};
use replay::{Arrival, Output};
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// Bytes of a sector, as in virtio-blk.
pub const SECTOR_BYTES: u64 = 512;
/// Requests waiting at most: what the device may have outstanding.
pub const QUEUE_MAX: usize = 64;
/// Bytes of one request at most. A longer one fails.
pub const REQUEST_BYTES_MAX: u32 = 4 << 20;

/// Why a file cannot be a disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// No such file.
    #[error("disk {}: no such file (make one: truncate -s 64M {})", .0.display(), .0.display())]
    Missing(PathBuf),
    /// No right to read and write it.
    #[error("disk {}: no right to read and write it, or it is on a read-only file system", .0.display())]
    ReadOnly(PathBuf),
    /// A directory, socket, device or the like.
    #[error("disk {}: it takes a regular file", .0.display())]
    NotAFile(PathBuf),
    /// Not a whole number of sectors, or none.
    #[error("disk {}: its size of {bytes} bytes must be a multiple of 512, and not 0", .path.display())]
    Size {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// Another process has locked it.
    #[error("disk {}: another machine writes to it", .0.display())]
    Locked(PathBuf),
    /// Something else.
    #[error("disk {}: {operation}: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        operation: &'static str,
        /// Why not.
        source: io::Error,
    },
}

/// The right to write to a disk that is shared with another replica.
pub trait WritePermit: Send + Sync {
    /// Waits until these bytes may be written; false if they may not, for ever. It is asked right before the system
    /// call, and again if the thread was made to wait in between (see [`super::fenced`]).
    fn wait(&self, bytes: &Range<u64>) -> bool;
}

/// The blocks that were written since somebody asked; nothing is noted where nobody does.
///
/// A write is noted when it is done. So whoever takes this set and then copies its blocks misses no write but those
/// that are still under way, or come later.
#[derive(Debug, Default)]
struct Written(Mutex<Option<BlockSet>>);

impl Written {
    fn set(&self) -> std::sync::MutexGuard<'_, Option<BlockSet>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, bytes: Option<Range<u64>>) {
        if let (Some(bytes), Some(set)) = (bytes, &mut *self.set()) {
            set.insert_bytes(bytes);
        }
    }
}

/// The bytes of the disk that `output` writes.
fn bytes_written(output: &Output) -> Option<Range<u64>> {
    let writes = matches!(output, Output::DiskWrite { .. });
    writes.then(|| output.disk_bytes()).flatten()
}

/// A raw file as a disk. On drop, what was submitted is done first.
#[derive(Debug)]
pub struct DiskFile {
    path: PathBuf,
    file: Arc<File>,
    sectors: u64,
    requests: Option<SyncSender<Job>>,
    follower: Arc<Follower>,
    written: Arc<Written>,
    worker: Option<JoinHandle<()>>,
}

impl DiskFile {
    /// Opens the disk at `path`; requests that are done are pushed to `sink`. Nothing is locked: a backup
    /// has the same file open, and submits nothing before it is live.
    ///
    /// # Errors
    /// See [`DiskError`].
    pub fn open(path: &Path, sink: Arc<dyn ArrivalSink>) -> Result<Self, DiskError> {
        Self::open_as(path, sink, false, None)
    }

    /// As [`DiskFile::open`], with every write durable before its end is told: a guest that lives on
    /// after its host died must not miss a write it saw done. Before each write `permit` is asked, if there
    /// is one; when it is refused, neither this write nor any later one is done, nor is its end told.
    ///
    /// # Errors
    /// See [`DiskError`].
    pub fn open_durable(
        path: &Path,
        sink: Arc<dyn ArrivalSink>,
        permit: Option<Arc<dyn WritePermit>>,
    ) -> Result<Self, DiskError> {
        Self::open_as(path, sink, true, permit)
    }

    fn open_as(
        path: &Path,
        sink: Arc<dyn ArrivalSink>,
        durable: bool,
        permit: Option<Arc<dyn WritePermit>>,
    ) -> Result<Self, DiskError> {
        let at = || path.to_owned();
        let failed = |operation| {
            move |source| DiskError::Io {
                path: path.to_owned(),
                operation,
                source,
            }
        };
        // A limit of this process's files is a request that fails, not this process's end.
        // SAFETY: no handler runs.
        let _ = unsafe { signal(Signal::SIGXFSZ, SigHandler::SigIgn) };
        // Without O_NONBLOCK, opening a FIFO would wait for its other end.
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | if durable { libc::O_DSYNC } else { 0 })
            .open(path)
            .map_err(|source| match source.raw_os_error() {
                Some(libc::ENOENT) => DiskError::Missing(at()),
                Some(libc::EACCES | libc::EPERM | libc::EROFS) => DiskError::ReadOnly(at()),
                Some(libc::EISDIR | libc::ENXIO) => DiskError::NotAFile(at()),
                _ => failed("open")(source),
            })?;
        let metadata = file.metadata().map_err(failed("stat"))?;
        if !metadata.is_file() {
            return Err(DiskError::NotAFile(at()));
        }
        let bytes = metadata.len();
        if bytes == 0 || !bytes.is_multiple_of(SECTOR_BYTES) {
            return Err(DiskError::Size { path: at(), bytes });
        }
        let file = Arc::new(file);
        let (requests, queue) = sync_channel(QUEUE_MAX);
        let (follower, written) = (Arc::new(Follower::default()), Arc::new(Written::default()));
        let served = Served {
            file: file.clone(),
            bytes,
            follower: follower.clone(),
            written: written.clone(),
        };
        let worker = std::thread::Builder::new()
            .name("disk".into())
            .spawn(move || serve(&queue, &served, &*sink, permit.as_deref()))
            .map_err(failed("cannot start a thread"))?;
        Ok(Self {
            path: at(),
            file,
            sectors: bytes / SECTOR_BYTES,
            requests: Some(requests),
            follower,
            written,
            worker: Some(worker),
        })
    }

    /// Size in sectors of 512 bytes.
    #[must_use]
    pub fn sectors(&self) -> u64 {
        self.sectors
    }

    /// Makes sure that no other process has locked this disk, and locks it until drop (or the death of
    /// the process). Advisory: who does not ask is not kept out.
    ///
    /// # Errors
    /// [`DiskError::Locked`], or `Io` where the file system has no locks.
    pub fn lock_exclusive(&self) -> Result<(), DiskError> {
        match self.whole_lock(libc::F_WRLCK) {
            Ok(()) => Ok(()),
            Err(Errno::EAGAIN | Errno::EACCES) => Err(DiskError::Locked(self.path.clone())),
            Err(error) => Err(DiskError::Io {
                path: self.path.clone(),
                operation: "F_OFD_SETLK",
                source: error.into(),
            }),
        }
    }

    /// Locks or unlocks all of it, for its open file description.
    fn whole_lock(&self, kind: libc::c_int) -> Result<(), Errno> {
        let whole = libc::flock {
            l_type: kind as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: 0,
            l_len: 0,
            l_pid: 0,
        };
        fcntl(&self.file, FcntlArg::F_OFD_SETLK(&whole)).map(drop)
    }

    /// Takes a disk request; requests are executed in this order. Waits only while [`QUEUE_MAX`] others
    /// are waiting, which the device does not allow.
    ///
    /// # Panics
    /// If `output` is no disk request.
    pub fn submit(&self, output: Output) {
        assert!(output.disk_tag().is_some(), "not for a disk: {output:?}");
        self.give(Job::Request(output));
    }

    fn give(&self, job: Job) {
        let requests = self.requests.as_ref().expect("taken at drop only");
        requests.send(job).expect("the worker ends at drop only");
    }

    /// All of it.
    #[must_use]
    pub fn contents(&self) -> Contents {
        Contents::new(self.file.clone(), self.sectors * SECTOR_BYTES)
    }

    /// From now on notes which blocks are written, or no longer.
    pub fn note_written(&self, noted: bool) {
        *self.written.set() = noted.then(BlockSet::default);
    }

    /// The blocks written since this was last asked.
    #[must_use]
    pub fn written(&self) -> BlockSet {
        self.written
            .set()
            .as_mut()
            .map(std::mem::take)
            .unwrap_or_default()
    }
}

impl Drop for DiskFile {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(worker) = self.worker.take()
            && worker.join().is_err()
        {
            tracing::error!(path = %self.path.display(), "the disk's thread panicked");
        }
        // Closing would not do: a child between fork and exec has a copy of the descriptor, and `Contents` may have
        // one, too.
        let _ = self.whole_lock(libc::F_UNLCK);
    }
}

/// What the disk's thread works on.
struct Served {
    file: Arc<File>,
    bytes: u64,
    follower: Arc<Follower>,
    written: Arc<Written>,
}

fn serve(
    queue: &Receiver<Job>,
    disk: &Served,
    sink: &dyn ArrivalSink,
    permit: Option<&dyn WritePermit>,
) {
    while let Ok(job) = queue.recv() {
        let output = match job {
            Job::Request(output) => output,
            Job::Follow(job) => {
                disk.follower.serve(job, disk);
                continue;
            }
        };
        let bytes = bytes_written(&output);
        let (tag, done) = execute(&disk.file, disk.bytes, output, permit);
        disk.written.note(bytes);
        let Some(result) = done else {
            tracing::info!("disk writes are not done any more: this replica is halted");
            while queue.recv().is_ok() {}
            return;
        };
        let (ok, data) = match result {
            Ok(data) => (true, data),
            Err(error) => {
                tracing::warn!(tag, %error, "disk request failed");
                (false, Vec::new())
            }
        };
        if !sink.push(Arrival::DiskDone { tag, ok, data }) {
            tracing::error!(tag, "a finished disk request was not taken");
        }
    }
}

/// Executes a request; its tag, and the bytes read if it was a read, or nothing if it is not done as `permit` is
/// refused.
fn execute(
    file: &File,
    bytes: u64,
    output: Output,
    permit: Option<&dyn WritePermit>,
) -> (u32, Option<io::Result<Vec<u8>>>) {
    match output {
        Output::DiskRead { tag, offset, len } => (tag, Some(read(file, bytes, offset, len))),
        Output::DiskWrite { tag, offset, data } => {
            let written = match (check(bytes, offset, data.len() as u64), permit) {
                (Err(outside), _) => Some(Err(outside)),
                (Ok(()), None) => Some(file.write_all_at(&data, offset)),
                (Ok(()), Some(permit)) => {
                    let bytes = offset..offset + data.len() as u64;
                    write_all_while(file, &data, offset, || permit.wait(&bytes))
                }
            };
            (tag, written.map(|done| done.map(|()| Vec::new())))
        }
        Output::DiskFlush { tag } => (tag, Some(file.sync_data().map(|()| Vec::new()))),
        other => unreachable!("submit takes no {other:?}"),
    }
}

/// What is at `offset` of a disk of `bytes`.
fn read(file: &File, bytes: u64, offset: u64, len: u32) -> io::Result<Vec<u8>> {
    check(bytes, offset, u64::from(len))?;
    let mut data = vec![0; len as usize];
    file.read_exact_at(&mut data, offset)?;
    Ok(data)
}

/// Whether so much at `offset` is of a disk of `bytes`.
fn within(bytes: u64, offset: u64, length: u64) -> io::Result<()> {
    let end = offset.checked_add(length);
    if end.is_none_or(|end| end > bytes) {
        return Err(io::Error::other(format!(
            "{length} bytes at {offset} are outside a disk of {bytes}"
        )));
    }
    Ok(())
}

/// Whether it may be asked for so much there at a time.
fn check(bytes: u64, offset: u64, length: u64) -> io::Result<()> {
    within(bytes, offset, length)?;
    if length > u64::from(REQUEST_BYTES_MAX) {
        return Err(io::Error::other(format!(
            "{length} bytes are too many for one request"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backends::testing::{Heard, has_again, isolated, threads_and_fds};
    use std::io::Write;
    use std::sync::{Condvar, Mutex};

    /// Says yes or no once it is told, to all who ask.
    #[derive(Default)]
    struct Told {
        told: Mutex<Option<bool>>,
        changed: Condvar,
    }

    impl Told {
        fn tell(&self, may: Option<bool>) {
            *self.told.lock().unwrap() = may;
            self.changed.notify_all();
        }
    }

    impl WritePermit for Told {
        fn wait(&self, _: &Range<u64>) -> bool {
            let told = self.told.lock().unwrap();
            let told = self.changed.wait_while(told, |told| told.is_none());
            told.unwrap().expect("waited for")
        }
    }

    #[test]
    fn a_write_waits_for_its_permit_and_is_not_done_without() {
        let file = file(4096);
        let heard = Heard::new();
        let permit = Arc::new(Told::default());
        let disk =
            DiskFile::open_durable(file.path(), heard.clone(), Some(permit.clone())).unwrap();
        let write = |tag, byte| Output::DiskWrite {
            tag,
            offset: 0,
            data: vec![byte; 512],
        };
        disk.submit(write(1, b'a'));
        assert_eq!(heard.arrivals().len(), 0);
        permit.tell(Some(true));
        heard.wait_for_arrivals(1);
        permit.tell(None);
        disk.submit(write(2, b'b'));
        disk.submit(write(3, b'c'));
        permit.tell(Some(false));
        drop(disk);
        assert_eq!(heard.arrivals().len(), 1, "the end of neither is told");
        assert!(std::fs::read(file.path()).unwrap()[..512] == [b'a'; 512]);
    }

    fn file(bytes: usize) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(&vec![0x11; bytes]).expect("room");
        file
    }

    fn done(tag: u32, ok: bool, data: &[u8]) -> Arrival {
        Arrival::DiskDone {
            tag,
            ok,
            data: data.to_vec(),
        }
    }

    #[test]
    fn executes_in_order_and_drop_finishes() {
        let file = file(4096);
        let sink = Heard::new();
        let disk = DiskFile::open(file.path(), sink.clone()).expect("a disk");
        assert_eq!(disk.sectors(), 8);
        let read = |tag| Output::DiskRead {
            tag,
            offset: 512,
            len: 1024,
        };
        let mut expected = Vec::new();
        for round in 0..100u8 {
            let tag = u32::from(round) * 3;
            let data = vec![round; 1024];
            disk.submit(Output::DiskWrite {
                tag,
                offset: 512,
                data: data.clone(),
            });
            disk.submit(read(tag + 1));
            disk.submit(Output::DiskFlush { tag: tag + 2 });
            expected.push(done(tag, true, &[]));
            expected.push(done(tag + 1, true, &data));
            expected.push(done(tag + 2, true, &[]));
        }
        drop(disk);
        assert_eq!(sink.arrivals(), expected);
        let content = std::fs::read(file.path()).expect("it is there");
        assert_eq!(content[..512], [0x11; 512]);
        assert_eq!(content[512..1536], [99; 1024]);
        assert_eq!(content.len(), 4096);
    }

    #[test]
    fn requests_out_of_bounds_fail_and_change_nothing() {
        let file = file(1024);
        let sink = Heard::new();
        let disk = DiskFile::open(file.path(), sink.clone()).expect("a disk");
        let read = |tag, offset, len| Output::DiskRead { tag, offset, len };
        disk.submit(read(1, 512, 513));
        disk.submit(read(2, u64::MAX, 512));
        disk.submit(read(3, 0, u32::MAX));
        disk.submit(Output::DiskWrite {
            tag: 4,
            offset: 1024,
            data: vec![9; 512],
        });
        disk.submit(read(5, 1024, 0));
        drop(disk);
        let failed = (1..=4).map(|tag| done(tag, false, &[]));
        let expected: Vec<_> = failed.chain([done(5, true, &[])]).collect();
        assert_eq!(sink.arrivals(), expected);
        let content = std::fs::read(file.path()).expect("it is there");
        assert_eq!(content, [0x11; 1024]);
    }

    #[test]
    fn a_file_that_shrank_fails_the_request() {
        let file = file(4096);
        let sink = Heard::new();
        let disk = DiskFile::open(file.path(), sink.clone()).expect("a disk");
        file.as_file().set_len(512).expect("shorter");
        disk.submit(Output::DiskRead {
            tag: 1,
            offset: 2048,
            len: 512,
        });
        assert_eq!(sink.wait_for_arrivals(1), [done(1, false, &[])]);
    }

    #[test]
    fn says_what_is_wrong_with_a_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let open = |path: &Path| DiskFile::open(path, Heard::new()).expect_err("no disk");
        assert!(matches!(
            open(&folder.path().join("none")),
            DiskError::Missing(_)
        ));
        assert!(matches!(open(folder.path()), DiskError::NotAFile(_)));
        let fifo = folder.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
        assert!(matches!(open(&fifo), DiskError::NotAFile(_)));
        assert!(matches!(
            open(file(0).path()),
            DiskError::Size { bytes: 0, .. }
        ));
        let odd = open(file(513).path());
        assert!(odd.to_string().contains("513 bytes must be a multiple"));
    }

    #[test]
    fn a_file_that_may_only_be_read_is_refused() {
        isolated(|| {
            let file = file(512);
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o444);
            std::fs::set_permissions(file.path(), mode).expect("it is ours");
            if nix::unistd::geteuid().is_root() {
                let nobody = nix::unistd::Uid::from_raw(65534);
                nix::unistd::setresuid(nobody, nobody, nobody).expect("root may");
            }
            let refused = DiskFile::open(file.path(), Heard::new());
            assert!(matches!(refused, Err(DiskError::ReadOnly(_))));
        });
    }

    #[test]
    fn the_lock_keeps_a_second_out_and_opening_needs_none() {
        let file = file(512);
        let open = || DiskFile::open(file.path(), Heard::new()).expect("a disk");
        let (first, second) = (open(), open());
        first.lock_exclusive().expect("free");
        first.lock_exclusive().expect("ours already");
        assert!(matches!(second.lock_exclusive(), Err(DiskError::Locked(_))));
        let copy = first
            .file
            .try_clone()
            .expect("as a child before its exec has it");
        drop(first);
        second.lock_exclusive().expect("free again");
        drop(copy);
    }

    #[test]
    fn leaves_no_thread_and_no_descriptor() {
        isolated(|| {
            let file = file(512);
            let before = threads_and_fds();
            let disk = DiskFile::open(file.path(), Heard::new()).expect("a disk");
            assert_ne!(threads_and_fds(), before);
            drop(disk);
            has_again(before);
        });
    }
}
