//! A console behind a queue, for replicas: whoever lets an output out must not wait for a reader.
//!
//! ```text
//!  write ──▶ [ bytes, in order ] ──▶ thread "console" ──▶ stdout
//!                    │ over the bound
//!  wait_for_room ◀───┘  the vCPU, which printed them, waits here
//! ```
//!
//! Nothing is dropped while anybody may still read it: what the queue holds over its bound is what had
//! been printed before the vCPU came to wait.

use super::write_all;
use nix::errno::Errno;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Most bytes taken out for one write.
const CHUNK: usize = 4096;

#[derive(Debug, Default)]
struct State {
    waiting: std::collections::VecDeque<u8>,
    /// Bytes the thread has taken out and not written yet.
    writing: usize,
    /// Nobody waits for room any more: the guest is to end.
    hurried: bool,
    /// Nothing leaves any more: stdout is closed, or the replica halted.
    over: bool,
}

impl State {
    fn held(&self) -> usize {
        self.waiting.len() + self.writing
    }
}

/// The queue, shared by those who print and the thread that writes.
#[derive(Debug)]
pub(super) struct Queue {
    bytes_max: usize,
    state: Mutex<State>,
    /// Something to write, or room.
    changed: Condvar,
}

impl Queue {
    /// A queue before `fd`, where a vCPU waits once `bytes_max` bytes are held.
    ///
    /// # Errors
    /// If there is no thread to be had.
    pub fn start(fd: OwnedFd, bytes_max: usize) -> std::io::Result<Arc<Self>> {
        let queue = Arc::new(Self {
            bytes_max,
            state: Mutex::default(),
            changed: Condvar::new(),
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
    pub fn push(&self, bytes: &[u8]) {
        let mut state = self.state();
        if !state.over {
            state.waiting.extend(bytes);
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

    /// Drops what is held, and everything to come.
    pub fn halt(&self) {
        let mut state = self.state();
        state.over = true;
        state.waiting.clear();
        self.changed.notify_all();
    }

    /// Bytes held.
    pub fn held(&self) -> usize {
        self.state().held()
    }

    /// Waits until everything is written, but not longer than `limit`; the bytes that are not. Reads the
    /// clock.
    pub fn finish(&self, limit: Duration) -> usize {
        let unwritten = |state: &mut State| state.held() > 0 && !state.over;
        let waited = self
            .changed
            .wait_timeout_while(self.state(), limit, unwritten);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.held()
    }

    fn write_out(&self, fd: &OwnedFd) {
        loop {
            let mut state = self.state();
            while state.waiting.is_empty() && !state.over {
                state = self
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            if state.over {
                return;
            }
            let count = state.waiting.len().min(CHUNK);
            let bytes: Vec<u8> = state.waiting.drain(..count).collect();
            state.writing = count;
            drop(state);
            let written: Result<(), Errno> = write_all(fd.as_fd(), &bytes);
            let mut state = self.state();
            state.writing = 0;
            if written.is_err() {
                // Its reader is gone: as for any console, bytes go nowhere from now on.
                state.over = true;
                state.waiting.clear();
            }
            self.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::unistd::pipe;
    use std::io::Read;

    const LIMIT: Duration = Duration::from_secs(30);

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
            queue.push(part);
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
        assert_eq!(queue.finish(LIMIT), 0);
        queue.halt();
    }

    #[test]
    fn a_vcpu_that_waits_is_let_go_when_it_is_to_end() {
        for end in [Queue::hurry, Queue::halt] {
            let (_reader, writer, _) = full_pipe();
            let queue = Queue::start(writer, 10).expect("a thread");
            queue.push(&[b'a'; 100]);
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
        queue.push(&[b'a'; 100]);
        drop(reader);
        queue.wait_for_room();
        assert_eq!(queue.finish(LIMIT), 0);
        queue.push(b"nobody hears this");
        assert_eq!(queue.held(), 0);
    }
}
