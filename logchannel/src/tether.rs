//! A second connection beside the channel, by which a death is noticed at once and life is told in time,
//! whatever else the two hosts have to do.
//!
//! ```text
//!   primary                                       backup
//!   log-tether ── connect, length, name ──▶ log-tether     as named in the greeting of the channel
//!              ◀── TIED ───────────────────
//!              ◀── BEAT ─── every heartbeat ── BEAT ──▶
//!              ─── UNTIED, either way ─────▶               before a goodbye: its end says nothing any more
//! ```
//!
//! Why: the kernel closes the descriptors of a killed process when the last of its threads that share them
//! is gone, and after it has given back their memory. Each thread has to get a processor for that, so on a
//! busy host the channel closes 10 to 100 ms after the kill, now and then 400. And a heartbeat on the channel
//! waits for whoever sends there, a vCPU that may have been put aside in the midst of it.
//!
//! So each end has a thread under SCHED_RR with a table of descriptors of its own. Only this thread has the
//! tether. It never waits for a lock that others hold while they work. When its process is killed, it
//! ends within some 50 us, and the tether with it.
//!
//! * The end of a tether ends the link, as if the channel were closed: what lies in the channel's socket
//!   is read first. So does the end of a tether alone, by a middlebox. Then both replicas ask for the flag,
//!   as they do when a middlebox resets the channel; one wins, and nothing that was not acked has left.
//! * Of a primary that writes to a shared disk the end of the tether says nothing ([`Tether::of_life_only`]): a
//!   thread of it may be in the midst of a write then, and its backup is not to write before that has ended. The
//!   channel closes when all threads have.
//! * A beat says that the peer lives, not that the channel works: silence on the channel counts a quarter
//!   then ([`heartbeat`](crate::heartbeat)).
//! * A pair without a tether is a pair still: where the primary cannot connect a second time, or the backup
//!   is of a version that knows none, the channel alone tells, as above.

use crate::clock::now_us;
use crate::handshake::{deadline_us, until};
use crate::link::{Link, spawn};
use crate::prompt::be_punctual;
use socket2::{SockRef, TcpKeepalive};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use tls::Stream;

/// The backup has taken the tether.
const TIED: u8 = 1;
/// A sign of life.
const BEAT: u8 = 2;
/// The sender leaves in an orderly way.
const UNTIED: u8 = 3;

/// Longest time for the primary to connect, and for a caller to name itself.
const GREETING: Duration = Duration::from_secs(2);
/// Longest time the backup waits for its primary's tether.
const PATIENCE_US: u64 = 10_000_000;
/// Longest name, as its length is one byte.
const NAME_MAX: usize = 255;
/// Time after which the kernel asks whether a silent other end is there, so that no middlebox forgets the
/// connection while beats are held up.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// Where a tether is to be made.
pub struct Tether {
    end: End,
    /// Length and name of the primary's incarnation.
    name: Vec<u8>,
    /// Whether its end ends the link.
    cuts: bool,
    secure: Box<Secure>,
}

/// Makes a connection of a socket, as the channel's is.
type Secure = dyn Fn(TcpStream) -> io::Result<Stream> + Send;

enum End {
    Primary(SocketAddr),
    Backup(TcpListener),
}

impl Tether {
    /// The primary's end: a connection to where its backup listens. `incarnation` is what it greeted with.
    #[must_use]
    pub fn to(backup: SocketAddr, incarnation: &str) -> Self {
        Self::new(End::Primary(backup), incarnation)
    }

    /// The backup's end, at the port the primary has called at; it is closed once the primary's tether is
    /// there, or ten seconds later. `incarnation` is what the primary greeted with.
    #[must_use]
    pub fn at(listener: TcpListener, incarnation: &str) -> Self {
        Self::new(End::Backup(listener), incarnation)
    }

    fn new(end: End, incarnation: &str) -> Self {
        let said = &incarnation.as_bytes()[..incarnation.len().min(NAME_MAX)];
        let length = u8::try_from(said.len()).expect("cut to 255");
        let name = [&[length], said].concat();
        Self {
            end,
            name,
            cuts: true,
            secure: Box::new(|socket| Ok(socket.into())),
        }
    }

    /// The same, its connection made of a socket by `secure`, as the channel's was.
    #[must_use]
    pub fn secured(
        self,
        secure: impl Fn(TcpStream) -> io::Result<Stream> + Send + 'static,
    ) -> Self {
        let secure = Box::new(secure);
        Self { secure, ..self }
    }

    /// The same, but its end does not end the link: for the backup of a primary that writes to a shared disk.
    #[must_use]
    pub fn of_life_only(mut self) -> Self {
        self.cuts = false;
        self
    }

    /// Starts the thread that ties the two and holds the tether until the link that `link` finds is over.
    ///
    /// # Errors
    /// If the system has no thread left.
    pub(crate) fn start<L: Send + 'static>(
        self,
        shared: L,
        link: fn(&L) -> &Link,
    ) -> io::Result<JoinHandle<()>> {
        let Self {
            end,
            name,
            cuts,
            secure,
        } = self;
        let (owned, wait) = sync_channel(1);
        let (place, listener) = match end {
            End::Primary(backup) => (Place::There(backup), None),
            End::Backup(listener) => (Place::Here(listener.as_raw_fd()), Some(listener)),
        };
        let thread = spawn("log-tether", move || {
            hold(link(&shared), place, (&name, cuts, &*secure), &owned)
        })?;
        // Closed here once that thread has its own, or is gone: it is to be nobody else's.
        let _ = wait.recv();
        drop(listener);
        Ok(thread)
    }
}

/// Where a tether's other end is to be had.
#[derive(Clone, Copy)]
enum Place {
    /// The backup listens there.
    There(SocketAddr),
    /// The primary calls at the listener with this descriptor.
    Here(RawFd),
}

/// Holds a tether until the link is over. The calling thread's descriptors are its own from now on, and all
/// but a few closed; it says so to `owned`.
fn hold(
    link: &Link,
    place: Place,
    (name, cuts, secure): (&[u8], bool, &Secure),
    owned: &SyncSender<()>,
) {
    let _done = Done(link.knot());
    be_punctual();
    let mut kept = link.descriptors().to_vec();
    if let Place::Here(listener) = place {
        kept.push(listener);
    }
    // Without a table of its own this thread would have a tether that ends as late as the channel.
    if own_descriptors(kept).is_err() {
        return;
    }
    let tied = match place {
        Place::There(backup) => {
            let _ = owned.send(());
            call(link, backup, name, secure).map(|socket| (socket, false))
        }
        Place::Here(descriptor) => {
            // SAFETY: it is open in this thread's table, where nothing else closes it.
            let listener = unsafe { TcpListener::from_raw_fd(descriptor) };
            let _ = owned.send(());
            await_call(link, &listener, name, secure).map(|socket| (socket, true))
        }
    };
    // None is no reason to end the link: nothing was heard of it.
    if let Some((socket, tied)) = tied {
        Held {
            link,
            socket,
            tied,
            cuts,
        }
        .run();
    }
}

/// How far a tether is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The peer does not rely on it.
    Loose,
    /// The peer may rely on it.
    Tied,
    /// It is none, and will be none.
    Gone,
}

/// What the threads of a link know of its tether.
#[derive(Debug)]
pub(crate) struct Knot {
    stage: Mutex<Stage>,
    gone: Condvar,
}

impl Default for Knot {
    fn default() -> Self {
        Self {
            stage: Mutex::new(Stage::Loose),
            gone: Condvar::new(),
        }
    }
}

impl Knot {
    fn stage(&self) -> MutexGuard<'_, Stage> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a tether is there.
    pub(crate) fn is_tied(&self) -> bool {
        *self.stage() == Stage::Tied
    }

    /// Whether it may still be tied.
    fn is_loose(&self) -> bool {
        *self.stage() == Stage::Loose
    }

    /// Has `say` say what makes the peer rely on the tether, if it may still be tied.
    fn tie(&self, say: impl FnOnce() -> io::Result<()>) -> bool {
        let mut stage = self.stage();
        if *stage == Stage::Loose && say().is_ok() {
            *stage = Stage::Tied;
        }
        *stage == Stage::Tied
    }

    fn be_gone(&self) {
        *self.stage() = Stage::Gone;
        self.gone.notify_all();
    }

    /// Has the peer rely on the tether no longer, and waits until it was told so; `ask` asks the thread that
    /// holds it. Reads no clock.
    pub(crate) fn untie(&self, ask: impl FnOnce()) {
        let mut stage = self.stage();
        if *stage == Stage::Loose {
            *stage = Stage::Gone;
            return;
        }
        ask();
        while *stage != Stage::Gone {
            stage = self
                .gone
                .wait(stage)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Nobody waits for a thread that is gone.
struct Done<'a>(&'a Knot);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.be_gone();
    }
}

/// Gives the calling thread a table of descriptors of its own, with `kept` and the three every process has.
fn own_descriptors(mut kept: Vec<RawFd>) -> io::Result<()> {
    kept.sort_unstable();
    let mut first = 3;
    // The first call makes the table its own, so it is made even if it closes nothing.
    let mut flags = libc::CLOSE_RANGE_UNSHARE;
    for last in kept.into_iter().map(|kept| kept - 1).chain([RawFd::MAX]) {
        if first <= last || flags != 0 {
            // Of an empty range: one descriptor that nobody has.
            let (from, to) = if first <= last {
                (first, last)
            } else {
                (RawFd::MAX, RawFd::MAX)
            };
            // SAFETY: takes plain numbers. Until the table is this thread's own nothing is closed, and after
            // that only what this thread, which has just begun, does not use.
            if unsafe { libc::syscall(libc::SYS_close_range, from, to, flags) } != 0 {
                return Err(io::Error::last_os_error());
            }
            flags = 0;
        }
        first = last.saturating_add(2);
    }
    Ok(())
}

fn prepare(socket: &TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE)
        .with_interval(KEEPALIVE);
    SockRef::from(socket).set_tcp_keepalive(&keepalive)
}

/// The primary's tether, not answered yet.
#[expect(
    clippy::disallowed_methods,
    reason = "the tether's own thread, which no vCPU's thread starts"
)]
fn call(link: &Link, backup: SocketAddr, name: &[u8], secure: &Secure) -> Option<Stream> {
    let socket = TcpStream::connect_timeout(&backup, GREETING).ok()?;
    prepare(&socket).ok()?;
    let mut socket = secure(socket).ok()?;
    socket.handshake(in_time()).ok()?;
    let tied = link.knot().tie(|| socket.write_all(name));
    socket.socket().set_nonblocking(true).ok()?;
    tied.then_some(socket)
}

/// Gives each use of a socket what is left of the time to greet, from now on.
fn in_time() -> impl Fn(&TcpStream) -> io::Result<()> {
    until(deadline_us(GREETING))
}

fn is_transient(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{ConnectionAborted, Interrupted, WouldBlock};
    matches!(kind, ConnectionAborted | Interrupted | WouldBlock)
}

/// The backup's tether, answered.
fn await_call(link: &Link, listener: &TcpListener, name: &[u8], secure: &Secure) -> Option<Stream> {
    listener.set_nonblocking(true).ok()?;
    let until_us = now_us() + PATIENCE_US;
    while now_us() < until_us && !link.over() && link.knot().is_loose() {
        let [_, at_port] = link.wait_beside(listener);
        if !at_port {
            continue;
        }
        let socket = match listener.accept() {
            Ok((socket, _)) => socket,
            // Whoever called is gone again.
            Err(e) if is_transient(e.kind()) => continue,
            // Out of descriptors, say: asked at once again it would spin, before all else of this host.
            Err(_) => return None,
        };
        let Ok(Some(mut socket)) = named(socket, name, secure) else {
            continue;
        };
        let tied = link.knot().tie(|| socket.write_all(&[TIED]));
        socket.socket().set_nonblocking(true).ok()?;
        return tied.then_some(socket);
    }
    None
}

/// The connection to whoever has called, if that one says `name`.
fn named(socket: TcpStream, name: &[u8], secure: &Secure) -> io::Result<Option<Stream>> {
    socket.set_nonblocking(false)?;
    prepare(&socket)?;
    let mut socket = secure(socket)?;
    let mut said = vec![0; name.len()];
    socket.using(in_time()).read_exact(&mut said)?;
    Ok((said == name).then_some(socket))
}

/// A tether in the hands of the thread that alone has it.
struct Held<'a> {
    link: &'a Link,
    socket: Stream,
    /// Whether its end would say something: the primary does not know before it was answered.
    tied: bool,
    cuts: bool,
}

impl Held<'_> {
    fn run(mut self) {
        let interval_us = u64::from(self.link.settings.heartbeat_ms) * 1_000;
        let mut beat_us = 0;
        loop {
            let [leaving, readable] = self.link.wait_beside(&self.socket);
            if self.link.over() {
                return;
            }
            if leaving {
                // If there is no room for a byte the peer is not there to read it.
                let _ = self.socket.write(&[UNTIED]);
                return;
            }
            if readable && !self.read() {
                return;
            }
            let now = now_us();
            if now.saturating_sub(beat_us) >= interval_us {
                beat_us = now;
                // One that finds no room is one more that is missed.
                let _ = self.socket.write(&[BEAT]);
            }
        }
    }

    /// Takes what the peer said; false if there is nothing more to be heard.
    fn read(&mut self) -> bool {
        let mut said = [0; 64];
        match self.socket.read(&mut said) {
            Ok(0) => self.end(),
            Ok(count) => {
                for byte in &said[..count] {
                    match *byte {
                        TIED => self.tied = true,
                        BEAT => {}
                        _ => return false,
                    }
                }
                self.link.note_alive();
                true
            }
            Err(e) if [ErrorKind::WouldBlock, ErrorKind::Interrupted].contains(&e.kind()) => true,
            Err(e) if [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe].contains(&e.kind()) => {
                self.end()
            }
            // A network that is gone is the heartbeats' business.
            Err(_) => false,
        }
    }

    fn end(&self) -> bool {
        if self.tied && self.cuts {
            self.link.cut();
        }
        false
    }
}
