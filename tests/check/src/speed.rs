//! Load for measurements: many connections from one thread, so that the clients take little of
//! the processors that the machines under test share with them.
//!
//! ```text
//!  run_closed   each connection: send a batch | wait for all of it | send the next
//!  run_paced    k-th request is due at start + k / rate, whatever came of those before it;
//!               its latency counts from when it was due, so that a stall counts in full
//! ```

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use super::latencies::Latencies;
use super::resp::{self, RespError};
use super::rng::Rng;

/// What both kinds of measurement have in common.
#[derive(Clone, Copy, Debug)]
pub struct SpeedOptions {
    /// Connections.
    pub connections: u16,
    /// Percent of the requests that are GET; the others are SET.
    pub get_percent: u8,
    /// Bytes of each value.
    pub value_bytes: usize,
    /// Keys, all of them set before the measurement.
    pub keys: u16,
    /// Not measured, at the start.
    pub warm_up: Duration,
    /// Measured.
    pub duration: Duration,
    /// What the choice of keys follows from.
    pub seed: u64,
}

impl Default for SpeedOptions {
    fn default() -> Self {
        Self {
            connections: 50,
            get_percent: 50,
            value_bytes: 64,
            keys: 1000,
            warm_up: Duration::from_millis(500),
            duration: Duration::from_secs(5),
            seed: 1,
        }
    }
}

/// What was measured.
#[derive(Clone, Debug)]
pub struct Stats {
    /// Requests sent, or due, in the measured time; each was answered.
    pub ops: u64,
    /// How many of them were errors.
    pub errors: u64,
    /// The measured time.
    pub elapsed_ns: u64,
    /// Of each of `ops`.
    pub latency: Latencies,
}

impl Stats {
    /// Replies a second.
    #[must_use]
    pub fn ops_per_s(&self) -> f64 {
        self.ops as f64 * 1e9 / self.elapsed_ns.max(1) as f64
    }
}

/// Why there is no measurement.
#[derive(Debug, thiserror::Error)]
pub enum SpeedError {
    /// The options make no sense.
    #[error("nothing can be measured: {0}")]
    Options(&'static str),
    /// A connection failed.
    #[error("connection {connection}: {source}")]
    Connection {
        /// Which one.
        connection: usize,
        /// What went wrong.
        source: RespError,
    },
    /// The kernel refused the means to wait for events.
    #[error("cannot {op}: {source}")]
    System {
        /// What was being done.
        op: &'static str,
        /// What the kernel said.
        source: nix::Error,
    },
}

/// How long to wait for the next reply of any connection.
const SILENCE_LIMIT: Duration = Duration::from_secs(10);
/// Most requests under way in [`run_paced`]; more means that the server fell far behind for good.
const MAX_BEHIND: usize = 1 << 20;
/// Requests sent at a time while the keys are being set.
const FILL_BATCH: usize = 64;
/// The event number of the timer; connections have their indices.
const TIMER: u64 = u64::MAX;

/// One connection.
struct Conn {
    stream: TcpStream,
    out: Vec<u8>,
    written: usize,
    inbox: Vec<u8>,
    /// When the requests under way were sent, or due; in ns since the start.
    under_way: VecDeque<u64>,
    /// Whether epoll also waits for room to write.
    wants_room: bool,
}

impl Conn {
    /// Sends as much as the socket takes.
    fn flush(&mut self) -> Result<(), RespError> {
        while self.written < self.out.len() {
            match self.stream.write(&self.out[self.written..]) {
                Ok(n) => self.written += n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => {
                    return Err(RespError::Io {
                        op: "write to",
                        source,
                    });
                }
            }
        }
        self.out.clear();
        self.written = 0;
        Ok(())
    }

    /// Takes what has come; `taken` gets each reply's sending time and whether it is an error.
    fn take(
        &mut self,
        chunk: &mut [u8],
        mut taken: impl FnMut(u64, bool),
    ) -> Result<(), RespError> {
        match self.stream.read(chunk) {
            Ok(0) => {
                return Err(RespError::Closed {
                    missing: self.under_way.len(),
                });
            }
            Ok(n) => self.inbox.extend_from_slice(&chunk[..n]),
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) =>
            {
                return Ok(());
            }
            Err(source) => {
                return Err(RespError::Io {
                    op: "read from",
                    source,
                });
            }
        }
        let mut at = 0;
        while let Some(reply) = resp::scan(&self.inbox[at..])? {
            at += reply.len;
            let sent = self.under_way.pop_front();
            taken(
                sent.ok_or(RespError::Protocol {
                    what: "a reply nobody asked for",
                })?,
                reply.error,
            );
        }
        self.inbox.drain(..at);
        Ok(())
    }
}

/// Requests made beforehand: one SET and one GET of each key.
struct Requests {
    sets: Vec<Vec<u8>>,
    gets: Vec<Vec<u8>>,
    get_percent: u64,
    rng: Rng,
}

impl Requests {
    fn new(options: &SpeedOptions) -> Self {
        let value = vec![b'x'; options.value_bytes];
        let encoded = |args: &[&[u8]]| {
            let mut out = Vec::new();
            resp::encode(&mut out, args);
            out
        };
        let names = || (0..options.keys).map(|n| format!("bench:{n}"));
        Self {
            sets: names()
                .map(|key| encoded(&[b"SET", key.as_bytes(), &value]))
                .collect(),
            gets: names()
                .map(|key| encoded(&[b"GET", key.as_bytes()]))
                .collect(),
            get_percent: u64::from(options.get_percent),
            rng: Rng::new(options.seed, 0),
        }
    }

    fn next(&mut self) -> &[u8] {
        let get = self.rng.below(100) < self.get_percent;
        let key = self.rng.below(self.sets.len() as u64) as usize;
        if get {
            &self.gets[key]
        } else {
            &self.sets[key]
        }
    }
}

/// All connections, and what they wait on.
struct Driver<'a> {
    epoll: Epoll,
    conns: Vec<Conn>,
    requests: Requests,
    chunk: Vec<u8>,
    start: Instant,
    warm_ns: u64,
    end_ns: u64,
    stats: Stats,
    last_reply_ns: u64,
    /// To be called when the measured time begins, once.
    begun: Option<&'a mut dyn FnMut()>,
}

fn system(op: &'static str) -> impl Fn(nix::Error) -> SpeedError {
    move |source| SpeedError::System { op, source }
}

fn ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl<'a> Driver<'a> {
    fn new(
        addr: SocketAddr,
        options: &SpeedOptions,
        begun: &'a mut dyn FnMut(),
    ) -> Result<Self, SpeedError> {
        if options.connections == 0 || options.keys == 0 || options.duration.is_zero() {
            return Err(SpeedError::Options("no connections, no keys or no time"));
        }
        if options.get_percent > 100 || options.value_bytes > resp::MAX_BULK {
            return Err(SpeedError::Options(
                "more than 100 percent, or too large a value",
            ));
        }
        let mut requests = Requests::new(options);
        fill(addr, &mut requests)?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(system("make an epoll"))?;
        let mut conns = Vec::new();
        for connection in 0..usize::from(options.connections) {
            let stream =
                connect(addr).map_err(|source| SpeedError::Connection { connection, source })?;
            let event = EpollEvent::new(EpollFlags::EPOLLIN, connection as u64);
            epoll
                .add(&stream, event)
                .map_err(system("watch a connection"))?;
            conns.push(Conn {
                stream,
                out: Vec::new(),
                written: 0,
                inbox: Vec::new(),
                under_way: VecDeque::new(),
                wants_room: false,
            });
        }
        let warm_ns = ns(options.warm_up);
        let measured = ns(options.duration);
        let stats = Stats {
            ops: 0,
            errors: 0,
            elapsed_ns: measured,
            latency: Latencies::default(),
        };
        Ok(Self {
            epoll,
            conns,
            requests,
            chunk: vec![0; 64 << 10],
            start: Instant::now(),
            warm_ns,
            end_ns: warm_ns.saturating_add(measured),
            stats,
            last_reply_ns: 0,
            begun: Some(begun),
        })
    }

    fn now_ns(&self) -> u64 {
        ns(self.start.elapsed())
    }

    /// Puts one request on `connection`'s queue.
    fn ask(&mut self, connection: usize, since_ns: u64) {
        let conn = &mut self.conns[connection];
        conn.out.extend_from_slice(self.requests.next());
        conn.under_way.push_back(since_ns);
    }

    /// Sends what is queued, and asks epoll for room if the socket has none.
    fn flush(&mut self, connection: usize) -> Result<(), SpeedError> {
        let conn = &mut self.conns[connection];
        conn.flush()
            .map_err(|source| SpeedError::Connection { connection, source })?;
        let wants_room = !conn.out.is_empty();
        if wants_room != conn.wants_room {
            conn.wants_room = wants_room;
            let mut flags = EpollFlags::EPOLLIN;
            flags.set(EpollFlags::EPOLLOUT, wants_room);
            let mut event = EpollEvent::new(flags, connection as u64);
            self.epoll
                .modify(&conn.stream, &mut event)
                .map_err(system("watch a connection"))?;
        }
        Ok(())
    }

    /// Takes the replies that have come on `connection`, and counts those of the measured time.
    fn replies(&mut self, connection: usize) -> Result<(), SpeedError> {
        let now_ns = self.now_ns();
        let (stats, last) = (&mut self.stats, &mut self.last_reply_ns);
        // What counts is when a request was sent, or due: those under way at the end are waited for.
        let measured = self.warm_ns..self.end_ns;
        self.conns[connection]
            .take(&mut self.chunk, |since_ns, error| {
                *last = now_ns;
                if measured.contains(&since_ns) {
                    stats.ops += 1;
                    stats.errors += u64::from(error);
                    stats.latency.record(now_ns.saturating_sub(since_ns));
                }
            })
            .map_err(|source| SpeedError::Connection { connection, source })
    }

    /// Waits for events; fails if replies are owed and none has come for too long.
    fn wait(&mut self, events: &mut Vec<EpollEvent>) -> Result<(), SpeedError> {
        if self.now_ns() >= self.warm_ns
            && let Some(begun) = self.begun.take()
        {
            begun();
        }
        let owed = self
            .conns
            .iter()
            .position(|conn| !conn.under_way.is_empty());
        if let Some(connection) = owed
            && self.now_ns().saturating_sub(self.last_reply_ns) > ns(SILENCE_LIMIT)
        {
            let source = RespError::TimedOut {
                limit_ms: SILENCE_LIMIT.as_millis(),
            };
            return Err(SpeedError::Connection { connection, source });
        }
        events.resize(self.conns.len() + 1, EpollEvent::empty());
        let limit = EpollTimeout::try_from(SILENCE_LIMIT).unwrap_or(EpollTimeout::NONE);
        match self.epoll.wait(events, limit) {
            Ok(n) => events.truncate(n),
            Err(nix::Error::EINTR) => events.clear(),
            Err(source) => {
                return Err(SpeedError::System {
                    op: "wait for replies",
                    source,
                });
            }
        }
        Ok(())
    }

    fn idle(&self) -> bool {
        self.conns.iter().all(|conn| conn.under_way.is_empty())
    }
}

fn connect(addr: SocketAddr) -> Result<TcpStream, RespError> {
    let stream = TcpStream::connect_timeout(&addr, SILENCE_LIMIT)
        .map_err(|source| RespError::Connect { addr, source })?;
    let set_up = |source| RespError::Io {
        op: "set up",
        source,
    };
    stream.set_nodelay(true).map_err(set_up)?;
    stream.set_nonblocking(true).map_err(set_up)?;
    Ok(stream)
}

/// Sets every key once.
fn fill(addr: SocketAddr, requests: &mut Requests) -> Result<(), SpeedError> {
    let failed = |source| SpeedError::Connection {
        connection: 0,
        source,
    };
    let mut client = resp::Client::connect(addr, SILENCE_LIMIT, SILENCE_LIMIT).map_err(failed)?;
    for batch in requests.sets.chunks(FILL_BATCH) {
        client.send(&batch.concat(), batch.len()).map_err(failed)?;
        for _ in batch {
            client.receive().map_err(failed)?;
        }
    }
    Ok(())
}

/// Measures with every connection asking again as soon as it has its answers: `pipeline` requests
/// at a time. `begun` is called once the measured time has begun.
///
/// # Errors
/// [`SpeedError`]; a connection that breaks ends the measurement.
pub fn run_closed(
    addr: SocketAddr,
    options: &SpeedOptions,
    pipeline: u16,
    begun: &mut dyn FnMut(),
) -> Result<Stats, SpeedError> {
    if pipeline == 0 {
        return Err(SpeedError::Options("no requests at a time"));
    }
    let mut driver = Driver::new(addr, options, begun)?;
    let mut events = Vec::new();
    let batch = |driver: &mut Driver<'_>, connection| {
        let since_ns = driver.now_ns();
        (0..pipeline).for_each(|_| driver.ask(connection, since_ns));
        driver.flush(connection)
    };
    for connection in 0..driver.conns.len() {
        batch(&mut driver, connection)?;
    }
    while !driver.idle() {
        driver.wait(&mut events)?;
        for event in &events {
            let connection = event.data() as usize;
            if event.events().contains(EpollFlags::EPOLLOUT) {
                driver.flush(connection)?;
            }
            driver.replies(connection)?;
            if driver.conns[connection].under_way.is_empty() && driver.now_ns() < driver.end_ns {
                batch(&mut driver, connection)?;
            }
        }
    }
    Ok(driver.stats)
}

/// Measures with `rate_per_s` requests a second, evenly spaced, on the connections in turn. `begun` is called once
/// the measured time has begun.
///
/// # Errors
/// [`SpeedError`]; a connection that breaks ends the measurement, and so does a server that falls
/// behind by a million requests.
pub fn run_paced(
    addr: SocketAddr,
    options: &SpeedOptions,
    rate_per_s: u32,
    begun: &mut dyn FnMut(),
) -> Result<Stats, SpeedError> {
    if rate_per_s == 0 {
        return Err(SpeedError::Options("a rate of no requests a second"));
    }
    let timer = TimerFd::new(
        ClockId::CLOCK_MONOTONIC,
        TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK,
    )
    .map_err(system("make a timer"))?;
    let mut driver = Driver::new(addr, options, begun)?;
    let event = EpollEvent::new(EpollFlags::EPOLLIN, TIMER);
    driver
        .epoll
        .add(&timer, event)
        .map_err(system("watch a timer"))?;
    let due_ns = |k: u64| (u128::from(k) * 1_000_000_000 / u128::from(rate_per_s)) as u64;
    let mut events = Vec::new();
    let mut next = 0;
    loop {
        next = ask_due(&mut driver, next, due_ns)?;
        let more = due_ns(next) < driver.end_ns;
        if !more && driver.idle() {
            return Ok(driver.stats);
        }
        let left = Duration::from_nanos(due_ns(next).saturating_sub(driver.now_ns()).max(1));
        if more {
            // Setting it again also takes back its last expiry.
            timer
                .set(
                    Expiration::OneShot(TimeSpec::from(left)),
                    TimerSetTimeFlags::empty(),
                )
                .map_err(system("set a timer"))?;
        } else {
            timer.unset().map_err(system("stop a timer"))?;
        }
        driver.wait(&mut events)?;
        for event in events.iter().filter(|event| event.data() != TIMER) {
            let connection = event.data() as usize;
            if event.events().contains(EpollFlags::EPOLLOUT) {
                driver.flush(connection)?;
            }
            driver.replies(connection)?;
        }
    }
}

/// Sends every request that is due, from number `next` on; returns the first that is not.
fn ask_due(
    driver: &mut Driver<'_>,
    mut next: u64,
    due_ns: impl Fn(u64) -> u64,
) -> Result<u64, SpeedError> {
    let now_ns = driver.now_ns().min(driver.end_ns - 1);
    let first = next;
    let count = driver.conns.len() as u64;
    while due_ns(next) <= now_ns {
        let connection = (next % count) as usize;
        if driver.conns[connection].under_way.len() >= MAX_BEHIND / driver.conns.len() {
            return Err(SpeedError::Options(
                "the server does not keep up with the rate",
            ));
        }
        driver.ask(connection, due_ns(next));
        next += 1;
    }
    for n in first..next.min(first + count) {
        driver.flush((n % count) as usize)?;
    }
    Ok(next)
}
