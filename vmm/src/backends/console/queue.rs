//! A console behind a queue, for replicas: whoever lets an output out must not wait for a reader.
//!
//! ```text
//!  push(mark, bytes) ──▶ [ outputs, in order ] ──▶ thread "console" ──▶ stdout
//!                          │ over the bound                   │
//!  wait_for_room ◀─────────┘                                  └──▶ unwritten: mark of the first
//!    the vCPU, which printed them, waits here                      that is not there yet
//! ```
//!
//! Nothing is dropped while anybody may still read it: what the queue holds over its bound is what had
//! been printed before the vCPU came to wait. What it holds is lost if the process is killed, so its
//! owner can be told how far it got.
//!
//! Outputs are not cut between writes, if they are no longer than a pipe takes at once: a kill leaves each
//! printed or not.

use super::{note_failure, write_all};
use crate::backends::worker::wait;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Most bytes of several outputs in one write: a pipe takes so many whole or not at all (PIPE_BUF, pipe(7)).
const CHUNK: usize = 4096;

/// What is written with one call.
#[derive(Debug)]
struct Piece {
    /// Of its first output.
    mark: u64,
    bytes: Vec<u8>,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Piece>,
    /// Mark and bytes of what the thread has taken out and not written yet.
    writing: Option<(u64, usize)>,
    /// Somebody waits until nothing is held.
    awaited: bool,
    /// They have waited long enough.
    given_up: bool,
    /// Nobody waits for room any more: the guest is to end.
    hurried: bool,
    /// Nothing leaves any more: stdout is closed, or the replica halted.
    over: bool,
}

impl State {
    fn held(&self) -> usize {
        let waiting: usize = self.waiting.iter().map(|piece| piece.bytes.len()).sum();
        waiting + self.writing.map_or(0, |(_, bytes)| bytes)
    }

    fn push(&mut self, mark: u64, bytes: &[u8]) {
        let last = self.waiting.back_mut();
        match last.filter(|last| last.bytes.len() + bytes.len() <= CHUNK) {
            Some(last) => last.bytes.extend_from_slice(bytes),
            None => self.waiting.push_back(Piece {
                mark,
                bytes: bytes.to_vec(),
            }),
        }
    }

    fn take(&mut self) -> Option<Piece> {
        let piece = self.waiting.pop_front()?;
        self.writing = Some((piece.mark, piece.bytes.len()));
        Some(piece)
    }

    /// Mark of the first output that is not written.
    fn unwritten(&self) -> Option<u64> {
        let writing = self.writing.map(|(mark, _)| mark);
        writing.or_else(|| self.waiting.front().map(|piece| piece.mark))
    }
}

/// The queue, shared by those who print and the thread that writes.
#[derive(Debug)]
pub(super) struct Queue {
    bytes_max: usize,
    state: Mutex<State>,
    /// Something to write, or room.
    changed: Condvar,
    /// Nothing is held any more, if that is awaited.
    done: EventFd,
}

impl Queue {
    /// A queue before `fd`, where a vCPU waits once `bytes_max` bytes are held.
    ///
    /// # Errors
    /// If there is no descriptor or no thread to be had.
    pub fn start(fd: OwnedFd, bytes_max: usize) -> std::io::Result<Arc<Self>> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let queue = Arc::new(Self {
            bytes_max,
            state: Mutex::default(),
            changed: Condvar::new(),
            done: EventFd::from_value_and_flags(0, flags)?,
        });
        let theirs = queue.clone();
        // Not joined: it may be stuck in a write, which ends with the process.
        std::thread::Builder::new()
            .name("console".into())
            .spawn(move || theirs.write_out(&fd))?;
        Ok(queue)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes `bytes`, and never waits.
    pub fn push(&self, mark: u64, bytes: &[u8]) {
        let mut state = self.state();
        if !state.over {
            state.push(mark, bytes);
            self.changed.notify_all();
        }
    }

    /// Waits until less than the bound is held, or there is no point in it. Reads no clock.
    pub fn wait_for_room(&self) {
        let mut state = self.state();
        while state.held() >= self.bytes_max && !state.hurried && !state.over {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Nobody waits for room from now on.
    pub fn hurry(&self) {
        self.state().hurried = true;
        self.changed.notify_all();
    }

    /// Writes nothing more, of what is held and of what is to come.
    pub fn halt(&self) {
        let mut state = self.state();
        state.over = true;
        self.tell(&state);
    }

    /// Bytes held.
    pub fn held(&self) -> usize {
        self.state().held()
    }

    /// Mark of the first output that is not written. None once stdout is closed: nobody waits for it.
    pub fn unwritten(&self) -> Option<u64> {
        self.state().unwritten()
    }

    /// Waits until everything is written or nothing is any more, but for about `limit` at most, and not again
    /// for a reader who had that time; the bytes that are still to be written. Reads no clock.
    pub fn finish(&self, limit: Duration) -> usize {
        {
            let mut state = self.state();
            if state.over || state.held() == 0 {
                return 0;
            }
            if state.given_up {
                return state.held();
            }
            // Of a wait before this one; there is nothing to be read else.
            let _ = self.done.read();
            state.awaited = true;
        }
        let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(self.done.as_fd(), PollFlags::POLLIN)];
        wait(&mut fds, timeout);
        let mut state = self.state();
        if state.over {
            return 0;
        }
        state.given_up = state.held() > 0;
        state.held()
    }

    /// Something was written, or nothing is any more.
    fn tell(&self, state: &State) {
        if state.awaited && (state.over || state.held() == 0) {
            // It fails only if it is signalled 2^64 times.
            let _ = self.done.write(1);
        }
        self.changed.notify_all();
    }

    fn write_out(&self, fd: &OwnedFd) {
        loop {
            let mut state = self.state();
            let piece = loop {
                if state.over {
                    return;
                }
                if let Some(piece) = state.take() {
                    break piece;
                }
                state = self
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
            };
            drop(state);
            let written: Result<(), Errno> = write_all(fd.as_fd(), &piece.bytes);
            let mut state = self.state();
            state.writing = None;
            if let Err(error) = written {
                // As for any console, bytes go nowhere from now on.
                note_failure(error);
                *state = State {
                    over: true,
                    awaited: state.awaited,
                    ..State::default()
                };
            }
            self.tell(&state);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::unistd::pipe;
    use std::io::Read;
    use std::time::Instant;

    const LIMIT: Duration = Duration::from_secs(30);

    #[track_caller]
    fn until(condition: impl Fn() -> bool) {
        let begun = Instant::now();
        while !condition() {
            assert!(begun.elapsed() < LIMIT);
            std::thread::yield_now();
        }
    }

    /// A pipe that takes nothing any more, and how much it has taken.
    fn full_pipe() -> (OwnedFd, OwnedFd, usize) {
        use nix::fcntl::{FcntlArg, OFlag, fcntl};
        let (reader, writer) = pipe().expect("a pipe");
        fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("non-blocking");
        let mut taken = 0;
        while let Ok(count) = nix::unistd::write(&writer, &[b'.'; 4096]) {
            taken += count;
        }
        fcntl(&writer, FcntlArg::F_SETFL(OFlag::empty())).expect("blocking");
        (reader, writer, taken)
    }

    #[test]
    fn with_no_reader_only_the_vcpu_waits_and_nothing_is_lost() {
        let (reader, writer, taken) = full_pipe();
        let queue = Queue::start(writer, 1000).expect("a thread");
        let text: Vec<u8> = (0..30_000u32).map(|i| (i % 251) as u8).collect();
        // The thread that reads acks would come here: it gets through, however much there is.
        for part in text.chunks(100) {
            queue.push(0, part);
        }
        assert_eq!(queue.held(), text.len());
        let vcpu = std::thread::spawn({
            let queue = queue.clone();
            move || queue.wait_for_room()
        });
        assert!(!vcpu.is_finished());
        assert_eq!(queue.finish(Duration::from_millis(20)), text.len());
        let mut reader = std::fs::File::from(reader);
        let mut received = vec![0; taken + text.len()];
        reader.read_exact(&mut received).expect("all of it");
        assert!(received[taken..] == text, "in order");
        vcpu.join().expect("it had room");
        until(|| queue.held() == 0);
        queue.halt();
    }

    #[test]
    fn what_is_not_written_is_known_by_its_mark() {
        let (reader, writer, taken) = full_pipe();
        let queue = Queue::start(writer, 1000).expect("a thread");
        assert_eq!(queue.unwritten(), None);
        // Each by itself: two do not fit into one write.
        for mark in [7, 8, 11] {
            queue.push(mark, &[b'a'; 3000]);
        }
        let mut reader = std::fs::File::from(reader);
        let is = |wanted: Option<u64>| until(|| queue.unwritten() == wanted);
        is(Some(7));
        let mut read = |count: usize| {
            let mut bytes = vec![0; count];
            reader.read_exact(&mut bytes).expect("so much");
        };
        // A pipe has room again for pages that were read.
        read(4096);
        is(Some(8));
        read(4096);
        is(Some(11));
        read(taken - 8192);
        is(None);
        read(9000);
        queue.push(12, b"b");
        is(None);
        queue.halt();
        queue.push(13, b"c");
        is(None);
    }

    #[test]
    fn outputs_are_whole_in_one_write_if_a_pipe_takes_them_so() {
        let mut state = State::default();
        for (mark, length) in [(1, 4000), (2, 96), (3, 1), (4, 5000), (9, 10), (9, 20)] {
            state.push(mark, &vec![b'x'; length]);
        }
        assert_eq!(state.held(), 9127);
        let mut pieces = Vec::new();
        while let Some(piece) = state.take() {
            assert_eq!(state.unwritten(), Some(piece.mark));
            pieces.push((piece.mark, piece.bytes.len()));
        }
        assert_eq!(pieces, [(1, 4096), (3, 1), (4, 5000), (9, 30)]);
        state.writing = None;
        assert_eq!((state.held(), state.unwritten()), (0, None));
    }

    #[test]
    fn the_end_comes_with_the_last_byte_and_waits_once_for_a_reader() {
        let (reader, writer, taken) = full_pipe();
        let queue = Queue::start(writer, 1000).expect("a thread");
        queue.push(1, &[b'a'; 100]);
        let reading = std::thread::spawn(move || {
            let mut reader = std::fs::File::from(reader);
            reader.read_exact(&mut vec![0; taken + 100]).expect("all");
            reader
        });
        let begun = Instant::now();
        assert_eq!(queue.finish(LIMIT), 0);
        assert!(begun.elapsed() < LIMIT, "it was told");
        let _reader = reading.join().expect("no panic");

        let (_reader, writer, _) = full_pipe();
        let queue = Queue::start(writer, 1000).expect("a thread");
        queue.push(1, &[b'a'; 100]);
        assert_eq!(queue.finish(Duration::from_millis(10)), 100);
        // The one who is not there had its time.
        let begun = Instant::now();
        assert_eq!(queue.finish(LIMIT), 100);
        assert!(begun.elapsed() < LIMIT, "not again");
        queue.halt();
        assert_eq!(queue.finish(LIMIT), 0);
        assert_eq!(queue.unwritten(), Some(1), "what is halted was not written");
    }

    #[test]
    fn a_vcpu_that_waits_is_let_go_when_it_is_to_end() {
        for end in [Queue::hurry, Queue::halt] {
            let (_reader, writer, _) = full_pipe();
            let queue = Queue::start(writer, 10).expect("a thread");
            queue.push(0, &[b'a'; 100]);
            std::thread::scope(|scope| {
                scope.spawn(|| queue.wait_for_room());
                end(&queue);
            });
        }
    }

    #[test]
    fn a_closed_reader_holds_nobody() {
        let (reader, writer, _) = full_pipe();
        let queue = Queue::start(writer, 10).expect("a thread");
        queue.push(0, &[b'a'; 100]);
        drop(reader);
        queue.wait_for_room();
        assert_eq!(queue.finish(LIMIT), 0);
        queue.push(0, b"nobody hears this");
        assert_eq!(queue.held(), 0);
    }
}
