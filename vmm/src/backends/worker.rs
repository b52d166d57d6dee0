//! A thread of a backend that ends with its owner.

use super::Attention;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll, ppoll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::time::TimeSpec;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// What a worker does after its descriptor was ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    /// Wait for it again, or for a time.
    Wait(Attention),
    /// End.
    End,
}

/// A thread that is told to stop, and joined, on drop.
///
/// Must not be dropped by its own thread.
#[derive(Debug)]
pub(super) struct Worker {
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Runs `body` on a thread called `name`. It is given a descriptor that becomes readable, for good,
    /// when it has to end.
    pub fn start(
        name: &str,
        body: impl FnOnce(BorrowedFd<'_>) + Send + 'static,
    ) -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let stop = Arc::new(EventFd::from_value_and_flags(0, flags)?);
        let theirs = stop.clone();
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || body(theirs.as_fd()))?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }

    /// Runs `ready` whenever `source` is readable, closed, or in error, and when it asked for it.
    pub fn serve(
        name: &str,
        source: impl AsFd + Send + 'static,
        mut ready: impl FnMut() -> Then + Send + 'static,
    ) -> io::Result<Self> {
        Self::start(name, move |stop| {
            // The kernel's default would make 110 us of 60.
            let _ = nix::sys::prctl::set_timerslack(1);
            let mut attention = Attention::Wire;
            loop {
                let mut fds = [
                    PollFd::new(stop, PollFlags::POLLIN),
                    PollFd::new(source.as_fd(), PollFlags::POLLIN),
                ];
                match attention {
                    Attention::Wire => wait(&mut fds, PollTimeout::NONE),
                    Attention::Within(time) => wait_at_most(&mut fds, time),
                    Attention::After(time) => wait_at_most(&mut fds[..1], time),
                }
                if is_ready(&fds[0]) {
                    return;
                }
                match ready() {
                    Then::Wait(next) => attention = next,
                    Then::End => return,
                }
            }
        })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop
            .write(1)
            .expect("an event counter takes its first count");
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("a backend's thread panicked");
        }
    }
}

/// Waits until one of `fds` is ready or `timeout` is over. Signals are waited through.
///
/// # Panics
/// If the kernel is out of memory for it, or there are more descriptors than the process may have.
pub(super) fn wait(fds: &mut [PollFd<'_>], timeout: PollTimeout) {
    loop {
        match poll(fds, timeout) {
            Ok(_) => return,
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            Err(error) => panic!("poll of {} descriptors: {error}", fds.len()),
        }
    }
}

/// [`wait`], for times shorter than a millisecond.
///
/// # Panics
/// As [`wait`].
fn wait_at_most(fds: &mut [PollFd<'_>], time: Duration) {
    match ppoll(fds, Some(TimeSpec::from(time)), None) {
        // A signal only makes it shorter: whoever waits for a time looks at what there is.
        Ok(_) | Err(Errno::EINTR | Errno::EAGAIN) => {}
        Err(error) => panic!("ppoll of {} descriptors: {error}", fds.len()),
    }
}

/// Whether anything happened to `fd`.
pub(super) fn is_ready(fd: &PollFd<'_>) -> bool {
    fd.any().unwrap_or(true)
}

/// Repeats `call` while signals interrupt it.
pub(super) fn retry<T>(mut call: impl FnMut() -> nix::Result<T>) -> nix::Result<T> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            result => return result,
        }
    }
}
