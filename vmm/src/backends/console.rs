//! The guest's console.
//!
//! ```text
//!  Console::write ──▶ stdout, at once or behind a queue, or a buffer (capture)
//!  sink ◀── Arrival::Console, Arrival::Stop (Ctrl-A x) ── ConsoleInput ◀── stdin
//! ```

mod queue;

use self::queue::Queue;
use super::ArrivalSink;
use super::worker::{Worker, is_ready, retry, wait};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::unistd::{read, write};
use replay::Arrival;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Once, PoisonError};
use std::time::Duration;

/// Where a console's bytes go. Clones share it.
#[derive(Clone, Debug)]
pub struct Console(Arc<Target>);

#[derive(Debug)]
enum Target {
    Stdout {
        /// One write at a time, so that none is split by another.
        turn: Mutex<()>,
        closed: AtomicBool,
    },
    Queued(Arc<Queue>),
    Capture(Arc<Capture>),
}

/// Bytes a queued console holds before a vCPU that prints has to wait.
const QUEUE_BYTES_MAX: usize = 16 << 10;

impl Console {
    /// A console on stdout.
    #[must_use]
    pub fn stdout() -> Self {
        Self(Arc::new(Target::Stdout {
            turn: Mutex::new(()),
            closed: AtomicBool::new(false),
        }))
    }

    /// A console on stdout for a replica: [`Self::write`] never waits, [`Self::wait_for_room`] does.
    ///
    /// # Errors
    /// If there is no descriptor or no thread to be had.
    pub fn queued_stdout() -> io::Result<Self> {
        let fd = io::stdout().as_fd().try_clone_to_owned()?;
        let queue = Queue::start(fd, QUEUE_BYTES_MAX)?;
        Ok(Self(Arc::new(Target::Queued(queue))))
    }

    fn queue(&self) -> Option<&Queue> {
        match &*self.0 {
            Target::Queued(queue) => Some(queue),
            _ => None,
        }
    }

    /// Where the vCPU waits after it has printed, if nobody reads. Reads no clock.
    pub fn wait_for_room(&self) {
        if let Some(queue) = self.queue() {
            queue.wait_for_room();
        }
    }

    /// Nobody waits for room from now on: the guest is to end.
    pub fn hurry(&self) {
        if let Some(queue) = self.queue() {
            queue.hurry();
        }
    }

    /// Nothing leaves any more, not even what is held.
    pub fn halt(&self) {
        if let Some(queue) = self.queue() {
            queue.halt();
        }
    }

    /// Bytes nobody has read yet.
    #[must_use]
    pub fn held(&self) -> usize {
        self.queue().map_or(0, Queue::held)
    }

    /// Mark of the first output that is not written: what a killed process takes with it begins there.
    #[must_use]
    pub fn unwritten(&self) -> Option<u64> {
        self.queue().and_then(Queue::unwritten)
    }

    /// Waits until everything is written, about `limit` at most and not a second time; the bytes that are
    /// not. Reads no clock.
    #[must_use]
    pub fn finish(&self, limit: Duration) -> usize {
        self.queue().map_or(0, |queue| queue.finish(limit))
    }

    /// A console in memory, and what it collects: the first `bytes_max` bytes.
    #[must_use]
    pub fn capture(bytes_max: usize) -> (Self, Captured) {
        let capture = Arc::new(Capture {
            bytes_max,
            state: Mutex::default(),
            more: Condvar::new(),
        });
        (
            Self(Arc::new(Target::Capture(capture.clone()))),
            Captured(capture),
        )
    }

    /// Writes all of `bytes`. Waits for a reader that is slow, unless it has a queue; once stdout is
    /// closed, bytes go nowhere.
    /// Reads no clock.
    pub fn write(&self, bytes: &[u8]) {
        self.write_marked(0, bytes);
    }

    /// [`Self::write`], for one who asks what is [`Self::unwritten`].
    pub fn write_marked(&self, mark: u64, bytes: &[u8]) {
        match &*self.0 {
            Target::Stdout { turn, closed } => {
                let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
                if closed.load(Ordering::Relaxed) {
                    return;
                }
                if let Err(error) = write_all(io::stdout().as_fd(), bytes) {
                    note_failure(error);
                    closed.store(true, Ordering::Relaxed);
                }
            }
            Target::Queued(queue) => queue.push(mark, bytes),
            Target::Capture(capture) => capture.append(bytes),
        }
    }
}

/// The first error of a console on stdout; 0 if there was none.
static FAILED: AtomicI32 = AtomicI32::new(0);

/// Remembers why bytes go nowhere from now on, unless their reader is gone.
fn note_failure(error: Errno) {
    if error != Errno::EPIPE {
        // Of several the first says most.
        let (first, done) = (Ordering::Relaxed, Ordering::Relaxed);
        let _ = FAILED.compare_exchange(0, error as i32, first, done);
    }
}

/// Why what a guest of this process printed could not be written to stdout, as on a full disk. That its reader
/// is gone is no failure.
#[must_use]
pub fn stdout_failure() -> Option<io::Error> {
    let error = FAILED.load(Ordering::Relaxed);
    (error != 0).then(|| io::Error::from_raw_os_error(error))
}

/// Writes all of `bytes`, straight to the descriptor.
fn write_all(fd: BorrowedFd<'_>, mut bytes: &[u8]) -> nix::Result<()> {
    while !bytes.is_empty() {
        match retry(|| write(fd, bytes)) {
            Ok(written) => bytes = &bytes[written..],
            // Somebody who shares the descriptor has made it non-blocking.
            Err(Errno::EAGAIN) => {
                super::worker::wait(
                    &mut [PollFd::new(fd, PollFlags::POLLOUT)],
                    PollTimeout::NONE,
                );
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[derive(Debug)]
struct Capture {
    bytes_max: usize,
    state: Mutex<CaptureState>,
    more: Condvar,
}

#[derive(Debug, Default)]
struct CaptureState {
    bytes: Vec<u8>,
    dropped: usize,
}

impl Capture {
    fn state(&self) -> MutexGuard<'_, CaptureState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn append(&self, bytes: &[u8]) {
        let mut state = self.state();
        let fits = bytes.len().min(self.bytes_max - state.bytes.len());
        state.bytes.extend_from_slice(&bytes[..fits]);
        state.dropped += bytes.len() - fits;
        self.more.notify_all();
    }
}

/// What a [`Console::capture`] collected.
#[derive(Clone, Debug)]
pub struct Captured(Arc<Capture>);

impl Captured {
    /// All bytes so far, as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.state().bytes).into_owned()
    }

    /// Bytes that found no room.
    #[must_use]
    pub fn dropped(&self) -> usize {
        self.0.state().dropped
    }

    /// Waits until the text contains `part`; `false` if it does not within `timeout`. Not for a vCPU
    /// thread: it reads the clock.
    #[expect(
        clippy::disallowed_methods,
        reason = "for tests, which wait on threads of their own"
    )]
    #[must_use]
    pub fn wait_for(&self, part: &str, timeout: Duration) -> bool {
        let missing = |state: &mut CaptureState| {
            !state
                .bytes
                .windows(part.len())
                .any(|window| window == part.as_bytes())
        };
        let capture = &self.0;
        part.is_empty()
            || capture
                .more
                .wait_timeout_while(capture.state(), timeout, missing)
                .is_ok_and(|(_, waited)| !waited.timed_out())
    }
}

/// What the byte Ctrl-A makes of the next one.
const ESCAPE: u8 = 0x01;

/// The console's input, from stdin, until drop.
///
/// On a terminal, `Ctrl-A x` pushes [`Arrival::Stop`], and `Ctrl-A Ctrl-A` is one `Ctrl-A`.
#[derive(Debug)]
pub struct ConsoleInput {
    // In this order: the terminal is given back when nobody reads it any more.
    _rx: Worker,
    _raw: Option<RawTerminal>,
}

impl ConsoleInput {
    /// Reads stdin from now on. If it is a terminal, that is made raw: each key goes to the guest as it
    /// is typed, Ctrl-C too. Not for a process in the background of its terminal.
    ///
    /// # Errors
    /// If the terminal does not take its settings, or there is no thread to be had.
    pub fn stdin(sink: Arc<dyn ArrivalSink>) -> io::Result<Self> {
        let fd = io::stdin().as_fd().try_clone_to_owned()?;
        let raw = RawTerminal::enter(fd.as_fd())?;
        let escapes = raw.is_some();
        Ok(Self {
            _rx: read_from(fd, escapes, sink)?,
            _raw: raw,
        })
    }
}

fn read_from(fd: OwnedFd, escapes: bool, sink: Arc<dyn ArrivalSink>) -> io::Result<Worker> {
    let mut keys = Keys::default();
    let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
    let room = Arc::new(EventFd::from_value_and_flags(0, flags)?);
    Worker::start("console-rx", move |stop| {
        loop {
            let mut fds = [
                PollFd::new(stop, PollFlags::POLLIN),
                PollFd::new(fd.as_fd(), PollFlags::POLLIN),
            ];
            wait(&mut fds, PollTimeout::NONE);
            if is_ready(&fds[0]) {
                return;
            }
            let mut buffer = [0; 1024];
            let length = match retry(|| read(&fd, &mut buffer)) {
                Ok(0) => return,
                Ok(length) => length,
                Err(Errno::EAGAIN) => continue,
                Err(error) => {
                    tracing::warn!(%error, "stdin: no more console input");
                    return;
                }
            };
            if escapes {
                let (bytes, ends) = keys.typed(&buffer[..length]);
                let count = bytes.len();
                // Waiting would keep Ctrl-A x from being heard.
                if count > 0 && !sink.push(Arrival::Console(bytes)) {
                    tracing::warn!(count, "console input dropped: the guest does not read it");
                }
                if ends {
                    sink.push(Arrival::Stop);
                }
            } else if !push_all(&*sink, &buffer[..length], &room, stop) {
                return;
            }
        }
    })
}

/// Passes on `bytes`, as soon as there is room for them; `false` if told to stop before.
fn push_all(
    sink: &dyn ArrivalSink,
    bytes: &[u8],
    room: &Arc<EventFd>,
    stop: BorrowedFd<'_>,
) -> bool {
    let push = || sink.push(Arrival::Console(bytes.to_vec()));
    if push() {
        return true;
    }
    loop {
        sink.tell_of_room(room);
        if push() {
            return true;
        }
        let mut fds = [
            PollFd::new(stop, PollFlags::POLLIN),
            PollFd::new(room.as_fd(), PollFlags::POLLIN),
        ];
        wait(&mut fds, PollTimeout::NONE);
        if is_ready(&fds[0]) {
            return false;
        }
        // Signalled once for each time it was asked for, and maybe for one before this input.
        let _ = room.read();
    }
}

/// Tells the bytes for the guest from those for us.
#[derive(Default)]
struct Keys {
    escaped: bool,
}

impl Keys {
    /// What of `typed` goes to the guest, and whether it was asked to end.
    fn typed(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut bytes = Vec::with_capacity(typed.len());
        for key in typed {
            match (std::mem::take(&mut self.escaped), *key) {
                (false, ESCAPE) => self.escaped = true,
                (true, b'x') => return (bytes, true),
                (true, ESCAPE) | (false, _) => bytes.push(*key),
                (true, _) => {}
            }
        }
        (bytes, false)
    }
}

/// The settings to go back to, of a terminal that is raw now.
static COOKED: Mutex<Option<(OwnedFd, libc::termios)>> = Mutex::new(None);

/// Gives the terminal its settings back, if it is raw. At an orderly end of the process (return from
/// `main`, `std::process::exit`) that happens by itself.
pub fn restore_terminal() {
    let cooked = COOKED.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some((fd, settings)) = cooked {
        // Nothing is left to be done if the terminal is gone.
        let _ = set_terminal(fd.as_fd(), &settings);
    }
}

extern "C" fn restore_at_exit() {
    restore_terminal();
}

/// A terminal in raw mode; cooked again on drop.
#[derive(Debug)]
struct RawTerminal;

impl RawTerminal {
    /// Makes `fd` raw, if it is a terminal.
    fn enter(fd: BorrowedFd<'_>) -> io::Result<Option<Self>> {
        static AT_EXIT: Once = Once::new();
        let Some(settings) = terminal(fd) else {
            return Ok(None);
        };
        let mut raw = settings;
        // SAFETY: `raw` is a valid termios.
        unsafe { libc::cfmakeraw(&raw mut raw) };
        // The guest's output keeps its line ends as before.
        raw.c_oflag = settings.c_oflag;
        {
            let mut cooked = COOKED.lock().unwrap_or_else(PoisonError::into_inner);
            if cooked.is_some() {
                return Err(io::Error::other("the terminal is raw already"));
            }
            *cooked = Some((fd.try_clone_to_owned()?, settings));
        }
        AT_EXIT.call_once(|| {
            // SAFETY: the handler is a plain function; it runs with no lock of ours held by this thread.
            unsafe { libc::atexit(restore_at_exit) };
        });
        let terminal = Self;
        set_terminal(fd, &raw)?;
        Ok(Some(terminal))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore_terminal();
    }
}

/// The settings of `fd`, if it is a terminal.
fn terminal(fd: BorrowedFd<'_>) -> Option<libc::termios> {
    use std::os::fd::AsRawFd;
    // SAFETY: termios is plain data, for which zero is valid.
    let mut settings: libc::termios = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes `settings`, which lives through the call.
    let result = unsafe { libc::tcgetattr(fd.as_raw_fd(), &raw mut settings) };
    (result == 0).then_some(settings)
}

fn set_terminal(fd: BorrowedFd<'_>, settings: &libc::termios) -> nix::Result<()> {
    use std::os::fd::AsRawFd;
    let raw = fd.as_raw_fd();
    // SAFETY: the kernel reads `settings`, which lives through the call.
    let set = || Errno::result(unsafe { libc::tcsetattr(raw, libc::TCSADRAIN, settings) });
    retry(set).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backends::testing::{Heard, isolated};
    use crate::machine::live::{GuestTime, Inbox, Live};
    use nix::unistd::{dup2_stdin, dup2_stdout, pipe};
    use replay::{Situation, Source};
    use std::sync::{Condvar, Mutex};

    /// A pseudo-terminal: where its user types, and the terminal.
    fn openpty() -> Option<(OwnedFd, OwnedFd)> {
        use std::os::fd::FromRawFd;
        let (mut master, mut slave) = (-1, -1);
        let none = std::ptr::null_mut();
        // SAFETY: it writes the two descriptors, and may be given no name and settings.
        let result = unsafe {
            libc::openpty(
                &raw mut master,
                &raw mut slave,
                none,
                none.cast(),
                none.cast(),
            )
        };
        // SAFETY: the descriptors have just been made, and nobody else has them.
        (result == 0)
            .then(|| unsafe { (OwnedFd::from_raw_fd(master), OwnedFd::from_raw_fd(slave)) })
    }

    fn reads_lines(terminal_fd: &OwnedFd) -> bool {
        let settings = terminal(terminal_fd.as_fd()).expect("a terminal");
        settings.c_lflag & libc::ICANON != 0
    }

    fn console(bytes: &[u8]) -> Arrival {
        Arrival::Console(bytes.to_vec())
    }

    #[test]
    fn escapes_of_the_terminal() {
        let mut keys = Keys::default();
        assert_eq!(keys.typed(b"ab\x03"), (b"ab\x03".to_vec(), false));
        assert_eq!(keys.typed(b"\x01\x01c\x01"), (b"\x01c".to_vec(), false));
        assert_eq!(
            keys.typed(b"qd"),
            (b"d".to_vec(), false),
            "nothing is bound to q"
        );
        assert_eq!(keys.typed(b"e\x01"), (b"e".to_vec(), false));
        assert_eq!(keys.typed(b"xf"), (Vec::new(), true));
    }

    #[test]
    fn a_pipe_is_passed_on_as_it_is_until_it_ends() {
        let (reader, writer) = pipe().expect("a pipe");
        let heard = Heard::new();
        let worker = read_from(reader, false, heard.clone()).expect("a thread");
        write_all(writer.as_fd(), b"a\x01x").expect("written");
        assert_eq!(heard.wait_for_arrivals(1), [console(b"a\x01x")]);
        drop(writer);
        drop(worker);
        assert_eq!(heard.arrivals().len(), 1);
    }

    #[test]
    fn what_a_guest_has_no_room_for_yet_waits_and_comes_in_order() {
        let (reader, writer) = pipe().expect("a pipe");
        let inbox = Inbox::new();
        let worker = read_from(reader, false, inbox.clone()).expect("a thread");
        let typed: Vec<u8> = (0..300_000_u32).map(|n| (n / 7) as u8).collect();
        let writing = std::thread::spawn({
            let typed = typed.clone();
            move || write_all(writer.as_fd(), &typed)
        });
        let mut live = Live::new(inbox, GuestTime::default(), false).expect("a timer");
        let now = Situation {
            typed_room: 1 << 20,
            ..Situation::default()
        };
        let mut came = Vec::new();
        while came.len() < typed.len() {
            match live.poll(&now).expect("no failure") {
                Some(Arrival::Console(bytes)) => came.extend(bytes),
                Some(other) => panic!("{other:?}"),
                None => live.wait(&now).expect("no failure"),
            }
        }
        assert!(came == typed, "all of it, in order");
        writing.join().expect("no panic").expect("written");
        drop(worker);
    }

    #[test]
    fn input_ends_with_its_owner_though_the_guest_has_no_room() {
        let (reader, writer) = pipe().expect("a pipe");
        let full = Full::default();
        let asked = full.0.clone();
        let worker = read_from(reader, false, Arc::new(full)).expect("a thread");
        write_all(writer.as_fd(), b"a").expect("written");
        let (count, changed) = &*asked;
        let guard = count.lock().expect("no panic");
        drop(changed.wait_while(guard, |count| *count == 0));
        drop(worker);
    }

    /// Refuses everything, and counts how often it was asked to tell of room.
    #[derive(Default)]
    struct Full(Arc<(Mutex<u32>, Condvar)>);

    impl ArrivalSink for Full {
        fn push(&self, _: Arrival) -> bool {
            false
        }

        fn tell_of_room(&self, _: &Arc<EventFd>) {
            *self.0.0.lock().expect("no panic") += 1;
            self.0.1.notify_all();
        }
    }

    #[test]
    fn input_ends_with_its_owner_though_nothing_is_typed() {
        let (reader, _writer) = pipe().expect("a pipe");
        drop(read_from(reader, true, Heard::new()).expect("a thread"));
    }

    #[test]
    fn a_terminal_is_raw_while_it_is_read_and_cooked_after() {
        isolated(|| {
            let Some((master, slave)) = openpty() else {
                testing::skipped::skip_this(&"no pseudo-terminal");
                return;
            };
            dup2_stdin(&slave).expect("a new stdin");
            assert!(reads_lines(&slave));
            let heard = Heard::new();
            let input = ConsoleInput::stdin(heard.clone()).expect("input");
            assert!(!reads_lines(&slave));
            assert!(ConsoleInput::stdin(heard.clone()).is_err(), "one at a time");
            assert!(!reads_lines(&slave));
            write_all(master.as_fd(), b"\x03").expect("typed");
            assert_eq!(heard.wait_for_arrivals(1), [console(b"\x03")]);
            write_all(master.as_fd(), b"\x01x").expect("typed");
            assert_eq!(heard.wait_for_arrivals(2)[1], Arrival::Stop);
            drop(input);
            assert!(reads_lines(&slave));
        });
    }

    #[test]
    fn a_terminal_is_cooked_after_exit_without_drop() {
        isolated(|| {
            let Some((_master, slave)) = openpty() else {
                testing::skipped::skip_this(&"no pseudo-terminal");
                return;
            };
            // SAFETY: this process has one thread.
            let forked = unsafe { nix::unistd::fork() }.expect("fork");
            if let nix::unistd::ForkResult::Parent { child } = forked {
                nix::sys::wait::waitpid(child, None).expect("our child");
                assert!(reads_lines(&slave));
                return;
            }
            dup2_stdin(&slave).expect("a new stdin");
            let input = ConsoleInput::stdin(Heard::new()).expect("input");
            assert!(!reads_lines(&slave));
            std::mem::forget(input);
            std::process::exit(0);
        });
    }

    #[test]
    fn a_closed_stdout_is_no_panic() {
        isolated(|| {
            let (reader, writer) = pipe().expect("a pipe");
            let kept = nix::unistd::dup(io::stdout()).expect("a spare");
            dup2_stdout(&writer).expect("a new stdout");
            drop(writer);
            let console = Console::stdout();
            console.write(b"heard");
            let mut buffer = [0; 16];
            assert_eq!(read(&reader, &mut buffer), Ok(5));
            drop(reader);
            console.write(b"not heard");
            console.write(b"nor this");
            dup2_stdout(&kept).expect("stdout back");
        });
    }

    #[test]
    fn all_is_written_to_a_slow_reader() {
        let (reader, writer) = pipe().expect("a pipe");
        let flags = nix::fcntl::OFlag::O_NONBLOCK;
        nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_SETFL(flags)).expect("non-blocking");
        let bytes: Vec<u8> = (0..300_000).map(|i| (i % 251) as u8).collect();
        let sent = bytes.clone();
        let writing = std::thread::spawn(move || write_all(writer.as_fd(), &sent));
        let mut received = Vec::new();
        io::Read::read_to_end(&mut std::fs::File::from(reader), &mut received).expect("read");
        assert!(received == bytes);
        assert_eq!(writing.join().expect("no panic"), Ok(()));
    }

    #[test]
    fn a_capture_is_bounded_and_can_be_waited_for() {
        let (console, captured) = Console::capture(10);
        let writer = std::thread::spawn(move || {
            console.write(b"hello ");
            console.write(b"world");
        });
        assert!(captured.wait_for("o wo", Duration::from_secs(30)));
        writer.join().expect("no panic");
        assert_eq!(captured.text(), "hello worl");
        assert_eq!(captured.dropped(), 1);
        assert!(!captured.wait_for("world", Duration::from_millis(1)));
    }
}
