//! What both ends of a link share: the socket, how it ended, and the threads around it.

use crate::clock::now_us;
use crate::error::{LinkEnd, LinkLost};
use crate::heartbeat::{Activity, Beat, Detector};
use crate::messages::Settings;
use crate::metrics::{Metrics, add};
use crate::prompt::{be_punctual, make_prompt};
use crate::tether::Knot;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering::SeqCst};
use std::sync::{Mutex, MutexGuard};
use std::thread::JoinHandle;
use tls::{Cipher, Session, Stream};

/// Called once, from one of the link's threads, when the link has ended. Must not wait for that link.
pub(crate) type OnEnd = Box<dyn FnOnce(LinkEnd) + Send>;

/// What TLS needs on a link.
struct Secret {
    /// Held for one read, or one send, at a time: never while anything is waited for.
    session: Mutex<Session>,
    /// The reading thread's alone.
    cipher: Mutex<Cipher>,
}

/// One end of a link.
pub(crate) struct Link {
    pub(crate) socket: TcpStream,
    /// TLS, if the two speak that.
    secret: Option<Secret>,
    pub(crate) settings: Settings,
    pub(crate) metrics: Metrics,
    /// Set while this side does not read for reasons of its own; see [`Activity::deaf`].
    pub(crate) deaf: AtomicBool,
    /// Set once this side has said goodbye.
    pub(crate) leaving: AtomicBool,
    over: AtomicBool,
    on_end: Mutex<Option<OnEnd>>,
    /// Set once the owner was told of the end.
    told: AtomicBool,
    stop: EventFd,
    heard: AtomicU64,
    sent: AtomicU64,
    knot: Knot,
    /// Asks the thread that holds the tether to untie it.
    untie: EventFd,
    /// Signs of life over the tether.
    alive: AtomicU64,
    /// The thread that reads from the socket; 0 until it has said so.
    reader: AtomicI32,
}

impl Link {
    pub(crate) fn new(stream: Stream, settings: Settings, on_end: OnEnd) -> io::Result<Self> {
        let (socket, secret) = stream.into_parts();
        let secret = secret.map(|(session, cipher)| Secret {
            session: Mutex::new(session),
            cipher: Mutex::new(cipher),
        });
        Ok(Self {
            socket,
            secret,
            settings,
            metrics: Metrics::default(),
            deaf: AtomicBool::new(false),
            leaving: AtomicBool::new(false),
            over: AtomicBool::new(false),
            on_end: Mutex::new(Some(on_end)),
            told: AtomicBool::new(false),
            stop: eventfd()?,
            heard: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            knot: Knot::default(),
            untie: eventfd()?,
            alive: AtomicU64::new(0),
            reader: AtomicI32::new(0),
        })
    }

    /// Whether the link has ended.
    pub(crate) fn over(&self) -> bool {
        self.over.load(SeqCst)
    }

    /// Whether the owner was told that the link has ended.
    pub(crate) fn told(&self) -> bool {
        self.told.load(SeqCst)
    }

    /// Ends the link: closes the socket, has `wake` wake whoever waits for the link, tells the owner, and
    /// then has `wake_told` wake whoever waits until the owner is told. Only the first call does anything.
    pub(crate) fn end(&self, end: LinkEnd, wake: impl FnOnce(), wake_told: impl FnOnce()) {
        if self.over.swap(true, SeqCst) {
            return;
        }
        // The socket may be closed already, and the counter of the eventfd cannot overflow by ones.
        let _ = self.socket.shutdown(Shutdown::Both);
        let _ = self.stop.write(1);
        wake();
        let told = self.on_end.lock().expect("no panic while telling").take();
        if let Some(tell) = told {
            let left = self.leaving.load(SeqCst) && matches!(end, LinkEnd::Lost(_));
            tell(if left { LinkEnd::Left } else { end });
        }
        self.told.store(true, SeqCst);
        wake_told();
    }

    /// Ends the link without telling the owner, who is dropping it.
    pub(crate) fn abandon(&self, wake: impl FnOnce()) {
        self.on_end.lock().expect("no panic while telling").take();
        self.end(LinkEnd::Left, wake, || {});
    }

    /// What is known of the tether.
    pub(crate) fn knot(&self) -> &Knot {
        &self.knot
    }

    /// Has the peer rely on the tether no longer, before a goodbye: waits until it was told so.
    pub(crate) fn untie(&self) {
        self.knot.untie(|| {
            // The counter of the eventfd cannot overflow by ones.
            let _ = self.untie.write(1);
        });
    }

    /// The descriptors that the thread of the tether needs, besides its own.
    pub(crate) fn descriptors(&self) -> [RawFd; 3] {
        [
            self.socket.as_raw_fd(),
            self.stop.as_fd().as_raw_fd(),
            self.untie.as_fd().as_raw_fd(),
        ]
    }

    /// Waits for a heartbeat's time until the tether is to be untied, or `other` is readable: which of these
    /// is so. Also until the link is over.
    pub(crate) fn wait_beside(&self, other: &impl AsFd) -> [bool; 2] {
        let mut fds = [
            PollFd::new(self.untie.as_fd(), PollFlags::POLLIN),
            PollFd::new(other.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.stop.as_fd(), PollFlags::POLLIN),
        ];
        retry_poll(&mut fds, self.heartbeat());
        [0, 1].map(|n: usize| fds[n].any() == Some(true))
    }

    fn heartbeat(&self) -> PollTimeout {
        let interval_ms = i32::try_from(self.settings.heartbeat_ms).expect("settings were checked");
        PollTimeout::try_from(interval_ms).expect("positive")
    }

    /// A sign of life came over the tether.
    pub(crate) fn note_alive(&self) {
        self.alive.fetch_add(1, SeqCst);
    }

    /// The calling thread is the one that reads from the socket.
    pub(crate) fn reads_here(&self) {
        // SAFETY: gettid has no preconditions.
        self.reader.store(unsafe { libc::gettid() }, SeqCst);
    }

    /// The peer is gone: whoever reads from the socket takes what it had sent, and then finds the end. That
    /// thread goes before other work from now on.
    pub(crate) fn cut(&self) {
        let reader = self.reader.load(SeqCst);
        if reader != 0 {
            make_prompt(reader);
        }
        // It may be closed already.
        let _ = self.socket.shutdown(Shutdown::Read);
    }

    /// Whether the two speak TLS: no vCPU's thread is to send then, since it would encrypt.
    pub(crate) fn is_secret(&self) -> bool {
        self.secret.is_some()
    }

    /// Reads once, waiting for at least one byte.
    pub(crate) fn read(&self, space: &mut [u8]) -> Result<usize, LinkLost> {
        let Some(secret) = &self.secret else {
            return self.receive(space);
        };
        let mut cipher = lock(&secret.cipher);
        loop {
            let mut session = lock(&secret.session);
            match session.open(&mut cipher, space) {
                Ok(Some(0)) => return Err(LinkLost::Closed),
                Ok(Some(count)) => {
                    self.heard.fetch_add(1, SeqCst);
                    return Ok(count);
                }
                Ok(None) => {}
                Err(e) => {
                    add(&self.metrics.forged, 1);
                    // Why is told to the peer, which need not hear.
                    let _ = self.flush_of(&mut session);
                    return Err(LinkLost::Forged { why: e.to_string() });
                }
            }
            drop(session);
            cipher.refill(|bytes| self.receive(bytes))?;
        }
    }

    /// Takes from the socket what is there, waiting for at least one byte. That is what is heard of the peer; of a
    /// secret link only what could be decrypted is, since anybody on the way can send bytes.
    fn receive(&self, space: &mut [u8]) -> Result<usize, LinkLost> {
        loop {
            match (&self.socket).read(space) {
                Ok(0) => return Err(LinkLost::Closed),
                Ok(count) => {
                    self.heard
                        .fetch_add(u64::from(self.secret.is_none()), SeqCst);
                    add(&self.metrics.bytes_received, count);
                    return Ok(count);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(broken("receive", source)),
            }
        }
    }

    /// Sends what the socket has room for, without waiting; none if it has no room. Of a secret link the last bytes
    /// may wait for [`Self::flush`], or for what is sent next if there is `more`: several frames take one call then.
    pub(crate) fn send(&self, bytes: &[u8], more: bool) -> Result<Option<usize>, LinkLost> {
        let Some(secret) = &self.secret else {
            return self.give(&[IoSlice::new(bytes)]);
        };
        let mut session = lock(&secret.session);
        let mut count = seal(&mut session, bytes)?;
        if count < bytes.len() || !more {
            let emptied = self.flush_of(&mut session)?;
            if count == 0 && emptied {
                count = seal(&mut session, bytes)?;
            }
        }
        Ok((count > 0).then_some(count))
    }

    /// Has the socket take what [`Self::send`] has left, without waiting; false if it has no room.
    pub(crate) fn flush(&self) -> Result<bool, LinkLost> {
        let Some(secret) = &self.secret else {
            return Ok(true);
        };
        self.flush_of(&mut lock(&secret.session))
    }

    fn flush_of(&self, session: &mut Session) -> Result<bool, LinkLost> {
        session
            .flush(&mut NoWait(self))
            .map_err(|e| match e.downcast::<LinkLost>() {
                Ok(lost) => lost,
                Err(e) => broken("send", e),
            })
    }

    fn give(&self, bytes: &[IoSlice<'_>]) -> Result<Option<usize>, LinkLost> {
        let socket = socket2::SockRef::from(&self.socket);
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        loop {
            let sent = match bytes {
                [bytes] => socket.send_with_flags(bytes, flags),
                bytes => socket.send_vectored_with_flags(bytes, flags),
            };
            match sent {
                Ok(count) => {
                    self.sent.fetch_add(1, SeqCst);
                    add(&self.metrics.bytes_sent, count);
                    return Ok(Some(count));
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(source) => return Err(broken("send", source)),
            }
        }
    }

    /// What a failed [`Self::send`] means. If the peer has closed, the reading thread is left to find
    /// that out, after it has taken what the peer had sent before (acks, a goodbye).
    pub(crate) fn send_failed(&self, lost: LinkLost) -> Option<LinkLost> {
        if matches!(lost, LinkLost::Closed) {
            // It may be closed already.
            let _ = self.socket.shutdown(Shutdown::Both);
            return None;
        }
        Some(lost)
    }

    /// Waits until the socket has room, or the link is over.
    pub(crate) fn wait_writable(&self) {
        let mut fds = [
            PollFd::new(self.socket.as_fd(), PollFlags::POLLOUT),
            PollFd::new(self.stop.as_fd(), PollFlags::POLLIN),
        ];
        retry_poll(&mut fds, PollTimeout::NONE);
    }

    /// Whether something from the peer, or its end, lies in the socket.
    fn is_readable(&self) -> bool {
        let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        retry_poll(&mut fds, PollTimeout::ZERO);
        fds[0].any() == Some(true)
    }

    /// Beats and watches until the link is over: `beat` has to send a sign of life when told that
    /// nothing was sent, `suspect` has to end the link.
    pub(crate) fn watch(&self, mut beat: impl FnMut(bool), suspect: impl FnOnce(LinkLost)) {
        let interval = self.heartbeat();
        let mut detector = Detector::new(self.settings, now_us());
        let (mut heard, mut sent, mut alive) = (0, 0, 0);
        loop {
            let mut stopped = [PollFd::new(self.stop.as_fd(), PollFlags::POLLIN)];
            retry_poll(&mut stopped, interval);
            if self.over() {
                return;
            }
            // In this order: what is read between the two was heard.
            let unread = self.is_readable();
            let activity = Activity {
                heard: replaced(&mut heard, &self.heard),
                sent: replaced(&mut sent, &self.sent),
                deaf: self.deaf.load(SeqCst),
                unread,
                alive: replaced(&mut alive, &self.alive),
            };
            match detector.tick(now_us(), activity) {
                Beat::Suspect { silence_ms } => return suspect(LinkLost::Silence { silence_ms }),
                Beat::Send => beat(true),
                Beat::Nothing => beat(false),
            }
        }
    }
}

/// A link's socket, for who is not to wait at it.
struct NoWait<'a>(&'a Link);

impl Write for NoWait<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, bytes: &[IoSlice<'_>]) -> io::Result<usize> {
        let given = self.0.give(bytes).map_err(io::Error::other)?;
        given.ok_or_else(|| ErrorKind::WouldBlock.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Encrypts what TLS has room for.
fn seal(session: &mut Session, bytes: &[u8]) -> Result<usize, LinkLost> {
    let what = "encrypt";
    let sealed = session.seal(bytes);
    sealed.map_err(|source| LinkLost::Io { what, source })
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().expect("no panic with a session locked")
}

fn eventfd() -> io::Result<EventFd> {
    Ok(EventFd::from_flags(
        EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK,
    )?)
}

fn replaced(seen: &mut u64, counter: &AtomicU64) -> bool {
    let now = counter.load(SeqCst);
    std::mem::replace(seen, now) != now
}

/// A peer that resets the connection has closed it.
fn broken(what: &'static str, source: io::Error) -> LinkLost {
    match source.kind() {
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => LinkLost::Closed,
        _ => LinkLost::Io { what, source },
    }
}

/// # Panics
/// If the kernel refuses to poll descriptors that are open.
fn retry_poll(fds: &mut [PollFd<'_>], timeout: PollTimeout) {
    match poll(fds, timeout) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(e) => panic!("poll: {e}"),
    }
}

/// Niceness of a link's threads. They work for microseconds at a time, beside vCPUs that never pause. At the
/// usual niceness an ack would wait for the end of a vCPU's time slice every so often (99th percentile of
/// append to ack on two busy cores: 5 ms instead of 0.1 ms).
const NICE: libc::c_int = -15;

/// Starts the thread of a link that beats and watches. It works for microseconds every heartbeat, and a peer
/// takes its silence for a death. So it goes before whatever else this host has to do, where that is allowed.
pub(crate) fn spawn_watch(run: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    spawn("log-watch", || {
        be_punctual();
        run();
    })
}

/// Starts a thread of a link.
pub(crate) fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name(name.into())
        .spawn(move || {
            // SAFETY: takes plain numbers; 0 names the calling thread. Without the right to do so it
            // fails, and the thread works on as it is.
            unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
            run();
        })
}

/// Waits for the threads of a link that is over, unless called from one of them.
pub(crate) fn join(threads: &mut Vec<JoinHandle<()>>) {
    for thread in threads.drain(..) {
        if thread.thread().id() != std::thread::current().id() {
            // A thread that panicked has printed why.
            let _ = thread.join();
        }
    }
}
