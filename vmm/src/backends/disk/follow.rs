//! A disk that follows another one: it executes what a replay makes, in the log's order.
//!
//! ```text
//!  replay ── mirror(entry, request) ─▶ queue ─▶ worker ─┬▶ done: nothing is told, the log will
//!    │                                   ▲              └▶ failed: told once; nothing is mirrored any more
//!    ├── ask_read ───────────────────────┤  behind what was mirrored before
//!    └── ask_settled ────────────────────┘  all of that is done
//! ```
//!
//! A disk that missed one write is no copy any more. So after a failure nothing is mirrored, nothing read, and
//! whoever wants to know whether it has [settled](DiskFile::ask_settled) is told why not.

use super::{DiskFile, Served, bytes_written, execute, read};
use replay::Output;
use std::collections::VecDeque;
use std::io;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// What a disk's thread is given to do.
pub(super) enum Job {
    /// A request of a guest that is live.
    Request(Output),
    /// One of a replay's.
    Follow(Following),
}

pub(super) enum Following {
    /// To execute a request, marked by this entry.
    Mirror(Output),
    /// To say what is there.
    Read {
        offset: u64,
        len: u32,
        tell: SyncSender<io::Result<Vec<u8>>>,
    },
    /// To say that all before is done, or why it is not.
    Settle(SyncSender<Result<(), String>>),
}

/// Told of the first failure.
type OnFailure = Box<dyn Fn(&str) + Send + Sync>;

/// How far a disk has followed.
#[derive(Default)]
pub(super) struct Follower {
    state: Mutex<State>,
    on_failure: OnceLock<OnFailure>,
}

#[derive(Debug, Default)]
struct State {
    /// The entries of requests that are not done, oldest first.
    pending: VecDeque<u64>,
    failed: Option<String>,
}

impl std::fmt::Debug for Follower {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.state().fmt(f)
    }
}

impl Follower {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self) -> Option<String> {
        self.state().failed.clone()
    }

    /// On the disk's thread.
    pub(super) fn serve(&self, job: Following, disk: &Served) {
        // Whoever asked may be gone.
        match job {
            Following::Mirror(output) => {
                if self.failed().is_none() {
                    self.mirror(output, disk);
                }
                // What failed, and all behind it, is never done.
                let mut state = self.state();
                if state.failed.is_none() {
                    state.pending.pop_front();
                }
            }
            Following::Read { offset, len, tell } => drop(tell.send(match self.failed() {
                None => read(&disk.file, disk.bytes, offset, len),
                Some(why) => Err(io::Error::other(why)),
            })),
            Following::Settle(tell) => drop(tell.send(self.failed().map_or(Ok(()), Err))),
        }
    }

    fn mirror(&self, output: Output, disk: &Served) {
        let what = match &output {
            Output::DiskWrite { offset, data, .. } => {
                format!("a write of {} bytes at {offset}", data.len())
            }
            _ => "a flush".to_owned(),
        };
        let bytes = bytes_written(&output);
        let (_, done) = execute(&disk.file, disk.bytes, output, None);
        disk.written.note(bytes);
        let Some(Err(error)) = done else { return };
        let why = format!("{what} failed: {error}");
        self.state().failed = Some(why.clone());
        if let Some(tell) = self.on_failure.get() {
            tell(&why);
        }
    }
}

impl DiskFile {
    /// Executes a write or flush that a replay made, marked by `entry`, behind all given before; its end is not
    /// told. Waits while [`QUEUE_MAX`](super::QUEUE_MAX) others are waiting.
    ///
    /// # Panics
    /// If `output` is neither.
    pub fn mirror(&self, entry: u64, output: Output) {
        let mirrors = matches!(output, Output::DiskWrite { .. } | Output::DiskFlush { .. });
        assert!(mirrors, "nothing to mirror: {output:?}");
        self.follower.state().pending.push_back(entry);
        self.give(Job::Follow(Following::Mirror(output)));
    }

    /// Has `tell` told, once and on the disk's thread, why the first of what is mirrored has failed. Only the first
    /// one given counts.
    pub fn on_failure(&self, tell: impl Fn(&str) + Send + Sync + 'static) {
        let _ = self.follower.on_failure.set(Box::new(tell));
    }

    /// The entry of the oldest request that was mirrored and is not done.
    #[must_use]
    pub fn pending(&self) -> Option<u64> {
        self.follower.state().pending.front().copied()
    }

    /// Where what is at `offset` will come, behind all that was mirrored before.
    #[must_use]
    pub fn ask_read(&self, offset: u64, len: u32) -> Receiver<io::Result<Vec<u8>>> {
        let (tell, told) = sync_channel(1);
        self.give(Job::Follow(Following::Read { offset, len, tell }));
        told
    }

    /// Where it will be told that all that was mirrored before is done, or that it failed.
    #[must_use]
    pub fn ask_settled(&self) -> Receiver<Result<(), String>> {
        let (tell, told) = sync_channel(1);
        self.give(Job::Follow(Following::Settle(tell)));
        told
    }
}

#[cfg(test)]
mod tests {
    use super::super::{BLOCK_BYTES, SECTOR_BYTES};
    use super::*;
    use crate::backends::testing::{Heard, isolated};
    use std::sync::mpsc::channel;

    fn write(offset: u64, byte: u8) -> Output {
        Output::DiskWrite {
            tag: 1,
            offset,
            data: vec![byte; SECTOR_BYTES as usize],
        }
    }

    fn disk(bytes: u64) -> (tempfile::NamedTempFile, DiskFile, std::sync::Arc<Heard>) {
        let file = tempfile::NamedTempFile::new().expect("a file");
        file.as_file().set_len(bytes).expect("room");
        let heard = Heard::new();
        let disk = DiskFile::open(file.path(), heard.clone()).expect("a disk");
        (file, disk, heard)
    }

    #[test]
    fn what_is_mirrored_is_done_in_order_and_its_end_is_not_told() {
        let (file, disk, heard) = disk(64 << 10);
        for round in 0..200 {
            disk.mirror(round, write(512, round as u8));
            disk.mirror(round, Output::DiskFlush { tag: 2 });
            let behind = disk.ask_read(512, 512).recv().unwrap().unwrap();
            assert_eq!(behind, [round as u8; 512]);
        }
        assert_eq!(disk.ask_settled().recv(), Ok(Ok(())));
        assert_eq!(disk.pending(), None);
        disk.submit(write(1024, 9));
        drop(disk);
        assert_eq!(heard.arrivals().len(), 1, "that of the live one");
        let content = std::fs::read(file.path()).unwrap();
        assert!(content[512..1024] == [199; 512] && content[1024..1536] == [9; 512]);
    }

    #[test]
    fn after_a_failure_nothing_more_is_done_and_all_are_told() {
        isolated(|| {
            let (file, disk, _) = disk(8192);
            let (failed, failures) = channel();
            disk.on_failure(move |why| failed.send(why.to_owned()).unwrap());
            disk.mirror(3, write(0, 1));
            disk.ask_settled().recv().unwrap().unwrap();
            let limit = |bytes| {
                let limit = libc::rlimit {
                    rlim_cur: bytes,
                    rlim_max: libc::RLIM_INFINITY,
                };
                // SAFETY: it reads the limit alone.
                assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &limit) }, 0);
            };
            limit(4096);
            disk.mirror(4, write(4096, 2));
            let why = failures.recv().unwrap();
            assert!(why.contains("a write of 512 bytes at 4096 failed"), "{why}");
            limit(libc::RLIM_INFINITY);
            disk.mirror(5, write(512, 3));
            assert_eq!(disk.ask_settled().recv().unwrap(), Err(why));
            assert!(disk.ask_read(0, 512).recv().unwrap().is_err());
            assert!(failures.try_recv().is_err(), "once");
            drop(disk);
            let content = std::fs::read(file.path()).unwrap();
            assert!(content[..512] == [1; 512] && content[512..1024] == [0; 512]);
        });
    }

    #[test]
    fn what_was_written_is_noted_when_somebody_asks() {
        let (_file, disk, heard) = disk(64 << 10);
        disk.submit(write(0, 1));
        heard.wait_for_arrivals(1);
        assert!(disk.written().is_empty(), "nobody asked");
        disk.note_written(true);
        disk.submit(write(3 * BLOCK_BYTES, 1));
        disk.submit(write(9 * BLOCK_BYTES - 512, 1));
        heard.wait_for_arrivals(3);
        assert!(disk.written().runs().eq([3..4, 8..9]));
        assert!(disk.written().is_empty(), "since this was last asked");
        disk.note_written(false);
        disk.submit(write(0, 1));
        heard.wait_for_arrivals(4);
        assert!(disk.written().is_empty());
    }
}
