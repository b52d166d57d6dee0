//! Clients that load a server and write down what they saw.
//!
//! ```text
//!  Load::start --> client threads, one connection each, open for the whole run
//!                    loop: wait for its turn | send | note the call | wait for the reply | note it
//!  pause / resume / stop --> Gate (mutex, condvar) <-- clients look at it before each turn
//! ```
//!
//! A reply may take long: a stall is no error. Only a closed connection, or no reply at all within
//! [`LoadOptions::reply_limit`], counts as a connection broken; its client ends there.

use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::history::{Break, Call, Epoch, History, NEVER, Observed, Op};
use super::resp::{Client, RespError};
use super::workload::{self, KeySpace, Mix, Script};

/// When a client takes its next turn. Rates are of all clients together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// This long after the reply.
    Think(Duration),
    /// At most this many operations a second; what a stall delayed is not made up for.
    AtMost(u32),
    /// This many operations a second, by a schedule that knows no stalls: after one, clients
    /// hurry until they have made up for it.
    Schedule(u32),
}

/// What load to put on a server.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// How many clients, each with a thread and a connection.
    pub clients: u16,
    /// What their choices follow from.
    pub seed: u64,
    /// Which operations.
    pub mix: Mix,
    /// On how many keys, about.
    pub keys: u16,
    /// How fast.
    pub pace: Pace,
    /// Requests a client sends at once before it waits for their replies.
    pub pipeline: u16,
    /// How long a client waits for a reply before its connection counts as broken.
    pub reply_limit: Duration,
    /// Operations recorded at most (about 80 bytes each); the clients stop there.
    pub max_ops: usize,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            clients: 8,
            seed: 1,
            mix: Mix::default(),
            keys: 64,
            pace: Pace::Think(Duration::ZERO),
            pipeline: 1,
            reply_limit: Duration::from_secs(10),
            max_ops: 2_000_000,
        }
    }
}

/// Why the clients could not be started, or the last reads not be made.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The options make no sense.
    #[error("no load can be made: {0}")]
    Options(&'static str),
    /// The server could not be reached, or a connection failed.
    #[error("client {client}: {source}")]
    Client {
        /// Which client.
        client: u16,
        /// What went wrong.
        source: RespError,
    },
    /// No thread could be started.
    #[error("cannot start the thread of client {client}: {source}")]
    Thread {
        /// Which client.
        client: u16,
        /// What the kernel said.
        source: std::io::Error,
    },
}

/// How long a connection may take to be made. A guest on a loaded host is slow, not gone.
const CONNECT_LIMIT: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Run,
    Pause,
    Stop,
}

struct Gate {
    mode: Mode,
    /// Clients with nothing under way: paused, ended or broken.
    idle: usize,
}

struct LoadState {
    epoch: Epoch,
    keys: KeySpace,
    options: LoadOptions,
    gate: Mutex<Gate>,
    changed: Condvar,
    records: Vec<Record>,
    /// Operations begun.
    recorded: AtomicUsize,
    replies: AtomicU64,
    /// Threads in [`Load::wait_until`].
    watchers: AtomicUsize,
}

/// What one client wrote down.
#[derive(Default)]
struct Record {
    ops: Mutex<Vec<Op>>,
    broken: Mutex<Option<Break>>,
    last_reply_ns: AtomicU64,
}

/// Clients at work. Dropping it stops them.
pub struct Load {
    shared: Arc<LoadState>,
    /// Another handle of each connection.
    wires: Vec<TcpStream>,
    threads: Vec<JoinHandle<()>>,
}

/// A client's thread never panics while it holds a lock, so the data behind one is whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Load {
    /// Connects all clients to `addr` and starts them. The server must hold none of their keys.
    ///
    /// # Errors
    /// [`LoadError`]; no client runs then.
    pub fn start(addr: SocketAddr, options: LoadOptions) -> Result<Self, LoadError> {
        if options.clients == 0 || options.pipeline == 0 {
            return Err(LoadError::Options(
                "no clients, or none of them asks anything",
            ));
        }
        if !options.mix.is_usable() {
            return Err(LoadError::Options(
                "the mix holds no operation, or a lease of no length",
            ));
        }
        if matches!(options.pace, Pace::AtMost(0) | Pace::Schedule(0)) {
            return Err(LoadError::Options("a rate of no operations a second"));
        }
        let connect = |client| {
            Client::connect(addr, CONNECT_LIMIT, options.reply_limit)
                .map_err(|source| LoadError::Client { client, source })
        };
        let connections = (0..options.clients)
            .map(connect)
            .collect::<Result<Vec<_>, _>>()?;
        let wires = (0..).zip(&connections).map(|(client, connection)| {
            let wire = connection.wire();
            wire.map_err(|source| LoadError::Client { client, source })
        });
        let wires = wires.collect::<Result<_, _>>()?;
        let shared = Arc::new(LoadState {
            epoch: Epoch::start(),
            keys: KeySpace::new(options.keys),
            gate: Mutex::new(Gate {
                mode: Mode::Run,
                idle: 0,
            }),
            changed: Condvar::new(),
            records: (0..options.clients).map(|_| Record::default()).collect(),
            recorded: AtomicUsize::new(0),
            replies: AtomicU64::new(0),
            watchers: AtomicUsize::new(0),
            options,
        });
        let mut load = Self {
            shared,
            wires,
            threads: Vec::new(),
        };
        for (client, connection) in (0..).zip(connections) {
            let shared = load.shared.clone();
            let thread = std::thread::Builder::new()
                .name(format!("client-{client}"))
                .spawn(move || shared.run(client, connection))
                .map_err(|source| LoadError::Thread { client, source })?;
            load.threads.push(thread);
        }
        Ok(load)
    }

    /// What the times of the history count from.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.shared.epoch
    }

    /// Replies received so far.
    #[must_use]
    pub fn replies(&self) -> u64 {
        self.shared.replies.load(Ordering::SeqCst)
    }

    /// Connections broken so far.
    #[must_use]
    pub fn broken(&self) -> usize {
        self.shared
            .records
            .iter()
            .filter(|r| lock(&r.broken).is_some())
            .count()
    }

    /// Whether [`LoadOptions::max_ops`] is reached, where the clients stop.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.shared.is_full()
    }

    /// Waits until `enough` holds, looking again at every reply and break; `false` after `limit`.
    pub fn wait_until(&self, limit: Duration, mut enough: impl FnMut(&Self) -> bool) -> bool {
        let deadline = Instant::now() + limit;
        let shared = &*self.shared;
        shared.watchers.fetch_add(1, Ordering::SeqCst);
        let mut gate = lock(&shared.gate);
        let met = loop {
            if enough(self) {
                break true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break false;
            }
            gate = shared
                .changed
                .wait_timeout(gate, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        };
        drop(gate);
        shared.watchers.fetch_sub(1, Ordering::SeqCst);
        met
    }

    /// Waits until `count` more replies have come; `false` after `limit`.
    pub fn wait_replies(&self, count: u64, limit: Duration) -> bool {
        let goal = self.replies() + count;
        self.wait_until(limit, |load| load.replies() >= goal)
    }

    /// Waits until every client has had a reply after `after_ns` (since the epoch), or has none to
    /// come because its connection broke; `false` after `limit`.
    pub fn wait_all_replied(&self, after_ns: u64, limit: Duration) -> bool {
        self.wait_until(limit, |load| {
            load.shared.records.iter().all(|record| {
                record.last_reply_ns.load(Ordering::SeqCst) > after_ns
                    || lock(&record.broken).is_some()
            })
        })
    }

    /// Lets every client finish what is under way and wait; returns what was recorded so far.
    pub fn pause(&self) -> History {
        let shared = &*self.shared;
        shared.set_mode(Mode::Pause);
        let mut gate = lock(&shared.gate);
        while gate.idle < self.threads.len() {
            gate = shared
                .changed
                .wait(gate)
                .unwrap_or_else(PoisonError::into_inner);
        }
        drop(gate);
        shared.collect(|record| lock(&record.ops).clone())
    }

    /// Goes on after [`Load::pause`].
    pub fn resume(&self) {
        self.shared.set_mode(Mode::Run);
    }

    /// Lets every client finish what is under way, and returns the complete history. Waits no
    /// longer than the reply limit: what has no reply by then counts as open.
    #[must_use]
    pub fn stop(mut self) -> History {
        self.end();
        self.shared
            .collect(|record| std::mem::take(&mut lock(&record.ops)))
    }

    /// [`Self::stop`] for a server that is gone: hangs up, and waits for no reply. Each request under way then
    /// is open, and its connection counts as broken.
    #[must_use]
    pub fn hang_up(self) -> History {
        self.shared.set_mode(Mode::Stop);
        for wire in &self.wires {
            // Its client may have ended.
            let _ = wire.shutdown(Shutdown::Both);
        }
        self.stop()
    }

    fn end(&mut self) {
        self.shared.set_mode(Mode::Stop);
        for thread in self.threads.drain(..) {
            // A panic in a client is a bug of its own, and reported by its thread.
            assert!(thread.join().is_ok(), "a client panicked");
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.end();
        }
    }
}

impl LoadState {
    fn set_mode(&self, mode: Mode) {
        lock(&self.gate).mode = mode;
        self.changed.notify_all();
    }

    /// One client, to its end.
    fn run(&self, client: u16, mut connection: Client) {
        let mut script = Script::new(&self.keys, self.options.mix, client, self.options.seed);
        let mut turns = Turns::new(self.options.pace, &self.options, client);
        let mut open = true;
        while open && self.turn(turns.next()) {
            if let Err(error) = self.exchange(client, &mut connection, &mut script) {
                let at_ns = self.epoch.now_ns();
                let broken = Break {
                    client,
                    at_ns,
                    reason: error.to_string(),
                };
                *lock(&self.records[usize::from(client)].broken) = Some(broken);
                open = false;
            }
            turns.replied();
        }
        let mut gate = lock(&self.gate);
        gate.idle += 1;
        self.changed.notify_all();
        // A client at the recording's bound still keeps its connection, to see whether it lasts.
        let ended = self
            .changed
            .wait_while(gate, |gate| open && gate.mode != Mode::Stop);
        drop(ended.unwrap_or_else(PoisonError::into_inner));
    }

    /// Waits for `at`, and while paused; `false` if this client is to do no more.
    fn turn(&self, at: Option<Instant>) -> bool {
        let mut gate = lock(&self.gate);
        loop {
            let left = at.map(|at| at.saturating_duration_since(Instant::now()));
            gate = match (gate.mode, left) {
                (Mode::Stop, _) => return false,
                (Mode::Pause, _) => {
                    gate.idle += 1;
                    self.changed.notify_all();
                    let woken = self
                        .changed
                        .wait_while(gate, |gate| gate.mode == Mode::Pause);
                    let mut gate = woken.unwrap_or_else(PoisonError::into_inner);
                    gate.idle -= 1;
                    gate
                }
                (Mode::Run, Some(left)) if !left.is_zero() => {
                    let woken = self.changed.wait_timeout(gate, left);
                    woken.unwrap_or_else(PoisonError::into_inner).0
                }
                (Mode::Run, _) => {
                    drop(gate);
                    let ops = usize::from(self.options.pipeline);
                    return self.recorded.fetch_add(ops, Ordering::Relaxed) + ops
                        <= self.options.max_ops;
                }
            };
        }
    }

    /// Sends one batch and takes its replies.
    fn exchange(
        &self,
        client: u16,
        connection: &mut Client,
        script: &mut Script<'_>,
    ) -> Result<(), RespError> {
        let record = &self.records[usize::from(client)];
        let batch: Vec<_> = (0..self.options.pipeline)
            .map(|_| script.next_op())
            .collect();
        let mut bytes = Vec::new();
        for (key, call) in &batch {
            workload::encode(&mut bytes, &self.keys.names()[usize::from(*key)], call);
        }
        let invoke_ns = self.epoch.now_ns();
        let mut ops = lock(&record.ops);
        let first = ops.len();
        ops.extend(
            batch
                .iter()
                .map(|(key, call)| open(client, *key, call.clone(), invoke_ns)),
        );
        drop(ops);
        connection.send(&bytes, batch.len())?;
        for (n, (key, call)) in batch.iter().enumerate() {
            let outcome = workload::outcome(&connection.receive()?);
            let return_ns = self.epoch.now_ns();
            script.note(*key, call, &outcome);
            let op = &mut lock(&record.ops)[first + n];
            op.outcome = outcome;
            op.return_ns = return_ns;
            record.last_reply_ns.store(return_ns, Ordering::SeqCst);
            self.replies.fetch_add(1, Ordering::SeqCst);
        }
        if self.watchers.load(Ordering::SeqCst) > 0 {
            drop(lock(&self.gate));
            self.changed.notify_all();
        }
        Ok(())
    }

    /// What `ops` takes from each client's record, in one history.
    fn collect(&self, ops: impl Fn(&Record) -> Vec<Op>) -> History {
        let mut ops: Vec<Op> = self.records.iter().flat_map(ops).collect();
        ops.sort_by_key(|op| op.invoke_ns);
        History {
            keys: self.keys.names().to_vec(),
            clients: self.options.clients,
            seed: self.options.seed,
            ops,
            breaks: self
                .records
                .iter()
                .filter_map(|r| lock(&r.broken).clone())
                .collect(),
            full: self.is_full(),
        }
    }

    fn is_full(&self) -> bool {
        self.recorded.load(Ordering::Relaxed) > self.options.max_ops
    }
}

fn open(client: u16, key: u16, call: Call, invoke_ns: u64) -> Op {
    Op {
        client,
        key,
        call,
        outcome: Observed::Unknown,
        invoke_ns,
        return_ns: NEVER,
    }
}

/// A client's turns.
struct Turns {
    pace: Pace,
    /// Between two turns of this client.
    every: Duration,
    next: Option<Instant>,
}

impl Turns {
    fn new(pace: Pace, options: &LoadOptions, client: u16) -> Self {
        let every = match pace {
            Pace::Think(think) => think,
            Pace::AtMost(rate) | Pace::Schedule(rate) => {
                let each = u32::from(options.pipeline) * u32::from(options.clients);
                Duration::from_secs(1) * each / rate
            }
        };
        // The clients' turns lie evenly between each other's.
        let offset = every * u32::from(client) / u32::from(options.clients);
        let next = (!every.is_zero()).then(|| Instant::now() + offset);
        Self { pace, every, next }
    }

    /// When to send next, asked once the last replies are there; `None` for at once.
    fn next(&mut self) -> Option<Instant> {
        let at = match self.pace {
            Pace::Schedule(_) => self.next?,
            Pace::Think(_) | Pace::AtMost(_) => self.next?.max(Instant::now()),
        };
        self.next = Some(at + self.every);
        Some(at)
    }

    /// Notes that the last replies came just now.
    fn replied(&mut self) {
        if let (Pace::Think(think), Some(next)) = (self.pace, &mut self.next) {
            *next = Instant::now() + think;
        }
    }
}

/// Reads every key once, over a connection of its own, as the client after the last of `history`,
/// and adds the reads to it: what the run left behind has to be explained too.
///
/// # Errors
/// [`LoadError::Client`] if the server does not answer; the reads made by then were added.
pub fn read_all(
    addr: SocketAddr,
    epoch: Epoch,
    limit: Duration,
    history: &mut History,
) -> Result<(), LoadError> {
    let last = history.ops.iter().map(|op| op.client).max().unwrap_or(0);
    let client = last
        .max(history.clients.saturating_sub(1))
        .saturating_add(1);
    let failed = |source| LoadError::Client { client, source };
    let mut connection = Client::connect(addr, CONNECT_LIMIT, limit).map_err(failed)?;
    for (key, name) in (0..).zip(&history.keys) {
        let mut op = open(client, key, Call::Get, epoch.now_ns());
        let reply = connection
            .command(&[b"GET", name.as_bytes()])
            .map_err(failed)?;
        op.outcome = workload::outcome(&reply);
        op.return_ns = epoch.now_ns();
        history.ops.push(op);
    }
    Ok(())
}
