//! Which disk reads a backup does itself (`--disk-read backup`), and which writes wait for that.
//!
//! ```text
//!   guest ── made ──▶ ┌────────────┐ ── may the backup read it? ──▶ log: with its data, or without
//!     ▲               │ under way  │
//!     └─── ended ──── └────────────┘
//!   log ── logged ──▶ ┌────────────┐ ◀── wait ── the disk, before it writes
//!                     │ awaited    │
//!   ack ─ executed ─▶ └────────────┘
//! ```
//!
//! The data of a finished read goes into the log only where the backup might find something else:
//!
//! - A write of the same bytes was under way at any time of the read's life. Which of them the disk did first is
//!   nobody's to tell.
//! - A write has failed on a disk that is the primary's own: what is there may be on no other.
//!
//! Else the bytes stand on the disk at the read's entry as they were read. On a disk of its own the backup has done
//! the same by then. A shared disk the primary may write again, before the backup has come to that entry: so each
//! write waits until every read of the same bytes that was logged without data is executed. Whoever writes has been
//! acked, and so have the reads before: the backup has them, and waits for nothing.

// The vCPU's thread, those of the link and the disk's call it (see clippy.toml).
#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

use replay::{LogIndex, Output};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Where a backup has from what its primary's guest read from the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum DiskReads {
    /// It comes by the log.
    #[default]
    Log,
    /// The backup reads it itself, where it may.
    Backup,
}

impl std::str::FromStr for DiskReads {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "log" => Ok(Self::Log),
            "backup" => Ok(Self::Backup),
            _ => Err("it takes log or backup"),
        }
    }
}

impl std::fmt::Display for DiskReads {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Log => "log",
            Self::Backup => "backup",
        })
    }
}

/// The disk requests of a replica that leads, as far as its backup reads the disk itself.
#[derive(Debug)]
pub(crate) struct Reads {
    by_backup: bool,
    /// The disk is this replica's own.
    own: bool,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// There is a backup.
    linked: bool,
    /// A write has failed on this replica's own disk.
    spoiled: bool,
    /// Tags and bytes of writes that were made, and whose end is not logged.
    writes: Vec<(u32, Range<u64>)>,
    /// Those of such reads that no write has met.
    reads: Vec<(u32, Range<u64>)>,
    /// Entries that ended a read without its data, and which bytes the backup is still to read for each.
    awaited: VecDeque<(LogIndex, Range<u64>)>,
}

fn meet(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
}

/// Takes the request with this tag out.
fn take(requests: &mut Vec<(u32, Range<u64>)>, tag: u32) -> Option<Range<u64>> {
    let place = requests.iter().position(|(its, _)| *its == tag)?;
    Some(requests.swap_remove(place).1)
}

impl Reads {
    /// Of a replica that has no backup yet.
    pub(crate) fn new(reads: DiskReads, own: bool) -> Self {
        Self {
            by_backup: reads == DiskReads::Backup,
            own,
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// Whether the disk is this replica's own.
    pub(crate) fn is_own(&self) -> bool {
        self.own
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A backup follows from here on, where these requests are under way.
    pub(crate) fn begin(&self, under_way: &[Output]) {
        if !self.by_backup {
            return;
        }
        *self.state() = State {
            linked: true,
            ..State::default()
        };
        // Writes alone: what reads have met is not known.
        let is_read = |request: &&Output| matches!(request, Output::DiskRead { .. });
        for write in under_way.iter().filter(|request| !is_read(request)) {
            self.made(write);
        }
    }

    /// The guest has made a request.
    pub(crate) fn made(&self, request: &Output) {
        let (true, Some(bytes)) = (self.by_backup, request.disk_bytes()) else {
            return;
        };
        let state = &mut *self.state();
        match request {
            Output::DiskRead { tag, .. } => {
                let met = state.writes.iter().any(|(_, write)| meet(write, &bytes));
                state.reads.extend((!met).then_some((*tag, bytes)));
            }
            Output::DiskWrite { tag, .. } => {
                state.reads.retain(|(_, read)| !meet(read, &bytes));
                state.writes.push((*tag, bytes));
            }
            _ => {}
        }
    }

    /// A request has ended. The bytes of the disk, if it was a read that the backup may do itself.
    pub(crate) fn ended(&self, tag: u32, ok: bool) -> Option<Range<u64>> {
        if !self.by_backup {
            return None;
        }
        let state = &mut *self.state();
        if take(&mut state.writes, tag).is_some() {
            state.spoiled |= self.own && !ok;
            return None;
        }
        let read = take(&mut state.reads, tag)?;
        (ok && !state.spoiled).then_some(read)
    }

    /// Entry `index` ended a read of these bytes, without its data.
    pub(crate) fn logged(&self, index: LogIndex, bytes: Range<u64>) {
        let mut state = self.state();
        if state.linked && !self.own {
            state.awaited.push_back((index, bytes));
        }
    }

    /// The backup has executed every entry below `upto`.
    pub(crate) fn executed(&self, upto: LogIndex) {
        if !self.by_backup {
            return;
        }
        let mut state = self.state();
        let before = state.awaited.len();
        while state
            .awaited
            .front()
            .is_some_and(|(index, _)| *index < upto)
        {
            state.awaited.pop_front();
        }
        if state.awaited.len() < before {
            self.changed.notify_all();
        }
    }

    /// There is no backup any more that could read.
    pub(crate) fn free(&self) {
        if !self.by_backup {
            return;
        }
        let mut state = self.state();
        state.linked = false;
        state.awaited.clear();
        self.changed.notify_all();
    }

    fn wait_while(&self, wait: impl Fn(&State) -> bool) {
        if !self.by_backup {
            return;
        }
        let mut state = self.state();
        while wait(&state) {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until these bytes may be written.
    pub(crate) fn wait(&self, bytes: &Range<u64>) {
        self.wait_while(|state| state.awaited.iter().any(|(_, read)| meet(read, bytes)));
    }

    /// Waits until the backup has read all it is to read.
    pub(crate) fn wait_all(&self) {
        self.wait_while(|state| !state.awaited.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::mpsc::channel;

    fn read(tag: u32, offset: u64, len: u32) -> Output {
        Output::DiskRead { tag, offset, len }
    }

    fn write(tag: u32, offset: u64, len: usize) -> Output {
        let data = vec![0; len];
        Output::DiskWrite { tag, offset, data }
    }

    fn reads(own: bool) -> Reads {
        let reads = Reads::new(DiskReads::Backup, own);
        reads.begin(&[]);
        reads
    }

    #[test]
    fn a_read_that_no_write_met_is_the_backups() {
        for own in [false, true] {
            let reads = reads(own);
            reads.made(&write(1, 0, 512));
            reads.made(&read(2, 512, 512));
            reads.made(&write(3, 1024, 512));
            assert_eq!(reads.ended(2, true), Some(512..1024));
            assert_eq!(reads.ended(2, true), None, "it has ended");
            assert_eq!(reads.ended(1, true), None, "a write");
            reads.made(&read(4, 0, 512));
            assert_eq!(reads.ended(4, true), Some(0..512), "that write has ended");
            reads.made(&read(5, 0, 512));
            assert_eq!(reads.ended(5, false), None, "it failed");
        }
    }

    #[test]
    fn a_read_that_a_write_met_comes_by_the_log() {
        let reads = reads(true);
        // The write is under way when the read is made, and not when that ends; and the other way about.
        reads.made(&write(1, 0, 4096));
        reads.made(&read(2, 4095, 2));
        assert_eq!(reads.ended(1, true), None);
        assert_eq!(reads.ended(2, true), None);
        reads.made(&read(3, 4095, 2));
        reads.made(&write(4, 4096, 1));
        assert_eq!(reads.ended(4, true), None);
        assert_eq!(reads.ended(3, true), None);
    }

    #[test]
    fn what_was_under_way_at_the_base_is_not_the_backups() {
        let reads = reads(true);
        reads.made(&read(1, 0, 512));
        reads.begin(&[read(1, 0, 512), write(2, 512, 512)]);
        assert_eq!(reads.ended(1, true), None);
        reads.made(&read(3, 512, 1));
        assert_eq!(reads.ended(3, true), None);
    }

    #[test]
    fn a_failed_write_on_an_own_disk_spoils_all_reads_until_it_is_copied() {
        let own = reads(true);
        own.made(&write(1, 0, 512));
        own.ended(1, false);
        own.made(&read(2, 8192, 512));
        assert_eq!(own.ended(2, true), None);
        own.begin(&[]);
        own.made(&read(3, 8192, 512));
        assert!(own.ended(3, true).is_some());
        // On a shared disk both find the same.
        let shared = reads(false);
        shared.made(&write(1, 0, 512));
        shared.ended(1, false);
        shared.made(&read(2, 0, 512));
        assert!(shared.ended(2, true).is_some());
    }

    #[test]
    fn without_being_asked_for_nothing_is_the_backups() {
        let reads = Reads::new(DiskReads::Log, false);
        reads.begin(&[]);
        reads.made(&read(1, 0, 512));
        assert_eq!(reads.ended(1, true), None);
        reads.wait(&(0..u64::MAX));
    }

    /// Waits for `0..512` on a thread of its own; tells when it may be written.
    fn writer(reads: &Arc<Reads>) -> std::sync::mpsc::Receiver<()> {
        let (tell, told) = channel();
        let reads = reads.clone();
        std::thread::spawn(move || {
            reads.wait(&(0..512));
            tell.send(()).unwrap();
        });
        told
    }

    #[test]
    fn a_write_waits_until_the_reads_before_it_are_executed() {
        let reads = Arc::new(reads(false));
        reads.logged(LogIndex(5), 511..600);
        reads.logged(LogIndex(7), 0..1);
        reads.logged(LogIndex(9), 512..9999);
        reads.wait(&(9999..10_000));
        let told = writer(&reads);
        for upto in [5, 6, 7] {
            reads.executed(LogIndex(upto));
            assert!(told.try_recv().is_err(), "below {upto} are not all");
        }
        reads.executed(LogIndex(8));
        told.recv().unwrap();
        // The last of them holds back nothing there.
        reads.wait(&(0..512));
        let all = std::thread::spawn({
            let reads = reads.clone();
            move || reads.wait_all()
        });
        reads.executed(LogIndex(10));
        all.join().unwrap();
    }

    #[test]
    fn who_is_alone_waits_for_nobody() {
        let reads = Arc::new(reads(false));
        reads.logged(LogIndex(5), 0..512);
        let told = writer(&reads);
        reads.free();
        told.recv().unwrap();
        reads.logged(LogIndex(6), 0..512);
        reads.wait(&(0..512));
        reads.wait_all();
    }

    #[test]
    fn on_a_disk_of_its_own_no_write_waits() {
        let reads = reads(true);
        reads.logged(LogIndex(5), 0..512);
        reads.wait(&(0..512));
        reads.wait_all();
    }
}
