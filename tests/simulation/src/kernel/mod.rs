//! A kernel for one process: threads, clocks, descriptors and a network that follow a seed.
//!
//! ```text
//!   Tandem's own code: threads, std, tokio, nix, libc
//!        │  pthread_create, futex, poll, send, clock_gettime, ... (`calls`: this program's, not the C library's)
//!        ▼
//!   Kernel ── threads: one runs at a time; which one, and how late it is woken, the seed says
//!          ── events: what is due when: ends of waits, timers, segments on the wire
//!          ── `files`: descriptors; `tcp`: connections over links that lose, delay and are cut
//! ```
//!
//! Threads are threads of the host, but one at a time has the *turn*; all others wait for theirs. A thread gives its
//! turn away where it makes a call: when it has to wait, and now and then when it need not. While every thread waits,
//! time goes on to the next event. So nothing depends on the host: the same seed makes the same run.
//!
//! A *process* is a group of threads and descriptors on a *host*. It can be killed (its descriptors close, its threads
//! never have a turn again), stopped and let go on; a host can lose its power, which tells nobody anything. Each host
//! has a clock of its own.

pub mod calls;
mod files;
mod tcp;

use check::rng::Rng;
use std::cell::{Cell, UnsafeCell};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::atomic::{AtomicU32, Ordering};

pub use files::ObjId;
pub use tcp::Wire;

/// Where all simulated clocks begin: no time is zero, and differences to the past can be made.
const BEGIN_NS: u64 = 1_000_000_000_000;
/// What the wall clock is ahead of the monotonic one.
const WALL_NS: u64 = 1_700_000_000_000_000_000;

/// What the first process is called by its host. All are of as many digits.
pub const PID_FIRST: Pid = 10_000;

/// The number of a thread.
pub type Tid = usize;
/// The number of a process.
pub type Pid = usize;
/// The number of a host.
pub type HostNo = usize;

thread_local! {
    /// The simulated thread this one is; none for all others, whose calls go to the host's kernel.
    static ME: Cell<Option<Tid>> = const { Cell::new(None) };
}

/// The kernel. Only the thread that has the turn uses it.
struct Place(UnsafeCell<Option<Kernel>>);

// SAFETY: whoever has the turn is alone with it, and the turn is passed with acquire and release.
unsafe impl Sync for Place {}

static KERNEL: Place = Place(UnsafeCell::new(None));

/// The kernel, for the calling thread, which has the turn.
pub(crate) fn kernel() -> &'static mut Kernel {
    // SAFETY: only the thread with the turn comes here, and no reference is kept over a change of turns.
    unsafe { (*KERNEL.0.get()).as_mut().expect("a simulation runs") }
}

/// The calling thread's number, if it is a simulated one.
pub(crate) fn me() -> Option<Tid> {
    ME.get()
}

/// What a thread waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    Nothing,
    Futex(usize),
    Objs(Vec<ObjId>),
    Join(Tid),
}

/// Why it goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Woken {
    Told,
    TimedOut,
    Interrupted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Runnable,
    Blocked,
    /// It is to run soon.
    Waking,
    Ended,
}

pub(crate) struct Thread {
    pub process: Pid,
    state: State,
    wait: Wait,
    woken: Woken,
    /// Counts waits, so that what is due for an old one is not taken for the present one's.
    generation: u64,
    /// 1: it has the turn.
    turn: &'static AtomicU32,
    pub real_tid: i32,
    pub pthread: libc::pthread_t,
    /// Which table of descriptors it uses.
    pub table: usize,
    /// A signal that was sent and not handled yet.
    signal: Option<i32>,
    /// Processor time it has used, in nanoseconds.
    pub cpu_ns: u64,
}

impl Thread {
    fn waits_for_futex(&self, futex: usize) -> bool {
        self.state == State::Blocked && self.wait == Wait::Futex(futex)
    }

    fn waits_for(&self, obj: ObjId) -> bool {
        self.state == State::Blocked
            && matches!(&self.wait, Wait::Objs(objs) if objs.contains(&obj))
    }
}

/// What a process is.
pub(crate) struct Process {
    pub host: HostNo,
    pub alive: bool,
    stopped: bool,
    /// Threads that could run but for the stop.
    parked: Vec<Tid>,
    /// Descriptors of the host's kernel it has open, and what is known to be durable of such a file.
    pub real: BTreeMap<i32, Option<u64>>,
}

/// A host: its clock, and whether it has power.
pub(crate) struct Host {
    pub address: u32,
    /// How much faster than true time its clock goes, in millionths.
    rate_ppm: i64,
    offset_ns: u64,
    /// Times it has lost its power: a connection made before the last is unknown to it.
    pub boots: u64,
    pub up: bool,
    /// Extra time a thread that is woken waits for a processor, at most.
    pub starved_ns: u64,
    /// Longest time its disk takes to sync.
    pub sync_ns: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Ready(Tid, u64),
    Timeout(Tid, u64),
    Timer(usize, u64),
    Net(tcp::NetEvent),
    /// Descriptors of a killed process close: those of this table, or of the main one.
    Close(Pid, Option<usize>),
}

/// An alarm of a thread's.
struct Timer {
    thread: Tid,
    signal: i32,
    generation: u64,
}

/// How turns change.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// In so many of 1024 calls the turn goes to another thread without need.
    pub preempt: u64,
    /// Longest time, in nanoseconds, a woken thread usually waits for its turn.
    pub wake_ns: u64,
}

pub(crate) struct Kernel {
    pub now: u64,
    pub rng: Rng,
    threads: Vec<Thread>,
    pub processes: Vec<Process>,
    pub hosts: Vec<Host>,
    runnable: Vec<Tid>,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    sequence: u64,
    timers: Vec<Timer>,
    /// Threads that wait for a futex, or did.
    futexes: BTreeMap<usize, Vec<Tid>>,
    pub handlers: BTreeMap<i32, usize>,
    pub files: files::Files,
    pub tcp: tcp::Tcp,
    pace: Pace,
    /// Who changes what is sent, if somebody does.
    pub tamper: Option<crate::breaks::Tamper>,
    /// A digest of all that happened, by which two runs are compared.
    pub digest: u64,
    /// Calls that were made.
    pub calls: u64,
    /// Changes of turns.
    pub turns: u64,
    until_ns: u64,
}

/// Begins a simulation: the calling thread becomes its first, in a process of the first host. It is not to go on
/// for longer than `limit_ns` of simulated time.
///
/// # Panics
/// If one runs already.
pub fn begin(seed: u64, pace: Pace, limit_ns: u64) {
    assert!(ME.get().is_none(), "one simulation a process");
    let kernel = Kernel {
        now: BEGIN_NS,
        rng: Rng::new(seed, 1),
        threads: Vec::new(),
        processes: Vec::new(),
        hosts: Vec::new(),
        runnable: Vec::new(),
        events: BinaryHeap::new(),
        sequence: 0,
        timers: Vec::new(),
        futexes: BTreeMap::new(),
        handlers: BTreeMap::new(),
        files: files::Files::default(),
        tcp: tcp::Tcp::default(),
        pace,
        tamper: None,
        digest: seed,
        calls: 0,
        turns: 0,
        until_ns: BEGIN_NS + limit_ns,
    };
    // SAFETY: no thread of a simulation exists yet, so nobody else uses it.
    unsafe { *KERNEL.0.get() = Some(kernel) };
    add_host([127, 0, 0, 1], 0, 0);
    let process = new_process(0);
    let tid = self::kernel().new_thread(process, 0);
    self::kernel().threads[tid].real_tid = calls::real_tid();
    self::kernel().threads[tid].state = State::Runnable;
    ME.set(Some(tid));
}

/// Adds a host at `address`, whose clock is ahead and goes faster by so much.
pub fn add_host(address: [u8; 4], rate_ppm: i64, offset_ns: u64) -> HostNo {
    let hosts = &mut kernel().hosts;
    hosts.push(Host {
        address: u32::from_be_bytes(address),
        rate_ppm,
        offset_ns,
        boots: 0,
        up: true,
        starved_ns: 0,
        sync_ns: 200_000,
    });
    hosts.len() - 1
}

/// A process of `host` without threads.
fn new_process(host: HostNo) -> Pid {
    let processes = &mut kernel().processes;
    processes.push(Process {
        host,
        alive: true,
        stopped: false,
        parked: Vec::new(),
        real: BTreeMap::new(),
    });
    processes.len() - 1
}

/// Starts a process on `host`, whose first thread runs `main`. It is over when that returns: its other threads and
/// its descriptors are gone then.
pub fn start(host: HostNo, main: impl FnOnce() + Send + 'static) -> Pid {
    let process = new_process(host);
    let mine = me().expect("a thread of the simulation");
    let before = std::mem::replace(&mut kernel().threads[mine].process, process);
    let run = move || {
        main();
        exit();
    };
    let thread = std::thread::Builder::new().spawn(run);
    kernel().threads[mine].process = before;
    drop(thread.expect("a thread"));
    process
}

/// Ends the calling thread's process.
fn exit() {
    let process = my_process();
    kernel().kill(process, 0);
    // Not to return: the thread has no turn any more.
    give_turn(false);
    unreachable!("the dead have no turn");
}

/// The calling thread's process.
pub fn my_process() -> Pid {
    kernel().threads[me().expect("a thread of the simulation")].process
}

/// Kills a process, as SIGKILL does. Its connections close within 50 us where a thread alone has them, all others
/// within so many nanoseconds.
pub fn kill(process: Pid, late_ns: u64) {
    kernel().kill(process, late_ns);
    assert!(
        kernel().processes[my_process()].alive,
        "nobody kills the director"
    );
}

/// Stops a process, or lets it go on.
pub fn stop(process: Pid, stopped: bool) {
    let kernel = kernel();
    let it = &mut kernel.processes[process];
    it.stopped = stopped;
    if !stopped {
        let parked = std::mem::take(&mut it.parked);
        kernel.runnable.extend(parked);
    }
}

/// A host loses its power, with all its processes, or is switched on again.
pub fn power(host: HostNo, on: bool) {
    let kernel = kernel();
    kernel.hosts[host].up = on;
    if on {
        return;
    }
    kernel.hosts[host].boots += 1;
    for process in 0..kernel.processes.len() {
        if kernel.processes[process].host == host && kernel.processes[process].alive {
            kernel.lose_unsynced(process);
            kernel.kill(process, 0);
        }
    }
}

/// Whether a process is there.
pub fn is_alive(process: Pid) -> bool {
    kernel().processes[process].alive
}

/// Has woken threads of `host` wait for up to so much longer until they run.
pub fn starve(host: HostNo, ns: u64) {
    kernel().hosts[host].starved_ns = ns;
}

/// Has the disk of `host` take up to so long for a sync.
pub fn slow_disk(host: HostNo, ns: u64) {
    kernel().hosts[host].sync_ns = ns;
}

/// The wire from one host to another.
pub fn wire(from: HostNo, to: HostNo) -> &'static mut Wire {
    kernel().tcp.wire(from, to)
}

/// Somebody between two hosts resets all their connections: at both ends, or at that of the first host alone.
pub fn reset(a: HostNo, b: HostNo, both: bool) {
    kernel().reset(a, b, both);
}

/// True time since the beginning, in nanoseconds.
pub fn now_ns() -> u64 {
    kernel().now - BEGIN_NS
}

/// Has `tamper` change what is sent.
pub fn tamper(tamper: Option<crate::breaks::Tamper>) {
    kernel().tamper = tamper;
}

/// A number below `bound`, by the seed.
pub fn below(bound: u64) -> u64 {
    kernel().rng.below(bound)
}

/// What happened so far: calls, turns, and a digest of it all.
pub fn counts() -> (u64, u64, u64) {
    let kernel = kernel();
    (kernel.calls, kernel.turns, kernel.digest)
}

/// Mixes something that has to be the same in every run of a seed into the digest.
pub fn mix(value: u64) {
    let kernel = kernel();
    kernel.digest = (kernel.digest ^ value)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .rotate_left(29);
}

impl Kernel {
    fn new_thread(&mut self, process: Pid, table: usize) -> Tid {
        self.threads.push(Thread {
            process,
            state: State::Waking,
            wait: Wait::Nothing,
            woken: Woken::Told,
            generation: 0,
            turn: Box::leak(Box::new(AtomicU32::new(0))),
            real_tid: 0,
            pthread: 0,
            table,
            signal: None,
            cpu_ns: 0,
        });
        self.threads.len() - 1
    }

    pub(crate) fn thread(&mut self, tid: Tid) -> &mut Thread {
        &mut self.threads[tid]
    }

    /// The thread that the calling one has just made.
    pub(crate) fn add_thread(&mut self, parent: Tid) -> Tid {
        let (process, table) = (self.threads[parent].process, self.threads[parent].table);
        let tid = self.new_thread(process, table);
        let late = self.rng.below(20_000);
        self.at(self.now + late, Event::Ready(tid, 0));
        tid
    }

    pub(crate) fn host_of(&self, tid: Tid) -> HostNo {
        self.processes[self.threads[tid].process].host
    }

    fn at(&mut self, when: u64, event: Event) {
        self.sequence += 1;
        self.events.push(Reverse((when, self.sequence, event)));
    }

    pub(crate) fn net_at(&mut self, when: u64, event: tcp::NetEvent) {
        self.at(when, Event::Net(event));
    }

    /// What the clock of `host` says, in nanoseconds.
    pub(crate) fn clock(&self, host: HostNo) -> u64 {
        let host = &self.hosts[host];
        let since = self.now - BEGIN_NS;
        let ahead = i128::from(since) * i128::from(host.rate_ppm) / 1_000_000;
        (i128::from(self.now + host.offset_ns) + ahead) as u64
    }

    /// The true time at which the clock of `host` has gone on by `ns`.
    pub(crate) fn after(&self, host: HostNo, ns: u64) -> u64 {
        let rate = i128::from(1_000_000 + self.hosts[host].rate_ppm);
        let true_ns = (i128::from(ns) * 1_000_000 + rate - 1) / rate;
        self.now
            .saturating_add(u64::try_from(true_ns).unwrap_or(u64::MAX))
    }

    /// A waiting thread is to go on.
    pub(crate) fn wake(&mut self, tid: Tid, why: Woken) {
        let thread = &mut self.threads[tid];
        if thread.state != State::Blocked {
            return;
        }
        thread.state = State::Waking;
        thread.woken = why;
        thread.wait = Wait::Nothing;
        thread.generation += 1;
        let generation = thread.generation;
        let starved = self.hosts[self.host_of(tid)].starved_ns;
        let mut late = 1_000 + self.rng.below(self.pace.wake_ns);
        if starved > 0 {
            late += self.rng.below(starved);
        } else if self.rng.below(256) == 0 {
            late += self.rng.below(3_000_000);
        }
        self.at(self.now + late, Event::Ready(tid, generation));
    }

    /// Wakes up to `count` threads that wait for `futex`.
    pub(crate) fn wake_futex(&mut self, futex: usize, count: usize) -> usize {
        let Some(mut waiting) = self.futexes.remove(&futex) else {
            return 0;
        };
        let threads = &self.threads;
        waiting.retain(|tid| threads[*tid].waits_for_futex(futex));
        let count = count.min(waiting.len());
        for _ in 0..count {
            let which = self.rng.below(waiting.len() as u64) as usize;
            let tid = waiting.swap_remove(which);
            self.wake(tid, Woken::Told);
        }
        if !waiting.is_empty() {
            self.futexes.insert(futex, waiting);
        }
        count
    }

    /// Something changed about `obj`: whoever waits for it looks again.
    pub(crate) fn notify(&mut self, obj: ObjId) {
        for tid in self.files.take_waiting(obj) {
            if self.threads[tid].waits_for(obj) {
                self.wake(tid, Woken::Told);
            }
        }
        for watcher in self.files.watchers(obj) {
            self.notify(watcher);
        }
    }

    /// Remembers that a thread waits.
    fn note_wait(&mut self, tid: Tid, wait: &Wait) {
        match wait {
            Wait::Nothing | Wait::Join(_) => {}
            Wait::Futex(futex) => {
                let waiting = self.futexes.entry(*futex).or_default();
                if !waiting.contains(&tid) {
                    waiting.push(tid);
                }
            }
            Wait::Objs(objs) => {
                for obj in objs {
                    self.files.note_waiting(*obj, tid);
                }
            }
        }
    }

    /// Sends a signal to the thread with this number of the host's.
    pub(crate) fn signal(&mut self, real_tid: i32, signal: i32) -> bool {
        let found = self
            .threads
            .iter()
            .position(|thread| thread.real_tid == real_tid && thread.state != State::Ended);
        found.is_some_and(|tid| {
            self.signal_thread(tid, signal);
            true
        })
    }

    fn signal_thread(&mut self, tid: Tid, signal: i32) {
        self.threads[tid].signal = Some(signal);
        let interruptible = matches!(self.threads[tid].wait, Wait::Futex(_) | Wait::Objs(_));
        if interruptible {
            self.wake(tid, Woken::Interrupted);
        }
    }

    pub(crate) fn new_timer(&mut self, thread: Tid, signal: i32) -> usize {
        self.timers.push(Timer {
            thread,
            signal,
            generation: 0,
        });
        self.timers.len() - 1
    }

    /// Sets a timer to ring at the true time `when`; never if none.
    pub(crate) fn set_timer(&mut self, timer: usize, when: Option<u64>) {
        self.timers[timer].generation += 1;
        let generation = self.timers[timer].generation;
        if let Some(when) = when {
            self.at(when.max(self.now), Event::Timer(timer, generation));
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Ready(tid, generation) => {
                let thread = &mut self.threads[tid];
                if thread.state != State::Waking || thread.generation != generation {
                    return;
                }
                thread.state = State::Runnable;
                self.runnable.push(tid);
            }
            Event::Timeout(tid, generation) => {
                if self.threads[tid].generation == generation {
                    self.wake(tid, Woken::TimedOut);
                }
            }
            Event::Timer(timer, generation) => {
                let Timer {
                    thread,
                    signal,
                    generation: now,
                } = self.timers[timer];
                if now == generation {
                    self.signal_thread(thread, signal);
                }
            }
            Event::Net(event) => self.net(event),
            Event::Close(process, table) => self.close_all(process, table),
        }
    }

    fn happen_until_now(&mut self) {
        while let Some(Reverse((when, _, _))) = self.events.peek() {
            if *when > self.now {
                return;
            }
            let Some(Reverse((_, _, event))) = self.events.pop() else {
                return;
            };
            self.happen(event);
        }
    }

    /// The thread whose turn it is, once time has come so far.
    fn next(&mut self) -> Tid {
        loop {
            self.happen_until_now();
            while !self.runnable.is_empty() {
                let which = self.rng.below(self.runnable.len() as u64) as usize;
                let tid = self.runnable.swap_remove(which);
                let process = self.threads[tid].process;
                if !self.processes[process].alive || self.threads[tid].state != State::Runnable {
                    continue;
                }
                if self.processes[process].stopped {
                    self.processes[process].parked.push(tid);
                    continue;
                }
                return tid;
            }
            let Some(Reverse((when, _, _))) = self.events.peek() else {
                fail("every thread waits for another one, for ever");
            };
            self.now = self.now.max(*when);
            if self.now > self.until_ns {
                fail("the simulation does not come to its end");
            }
        }
    }

    fn kill(&mut self, process: Pid, late_ns: u64) {
        if !std::mem::replace(&mut self.processes[process].alive, false) {
            return;
        }
        let mut tables = Vec::new();
        for tid in 0..self.threads.len() {
            let thread = &mut self.threads[tid];
            if thread.process != process || thread.state == State::Ended {
                continue;
            }
            thread.generation += 1;
            thread.wait = Wait::Nothing;
            if thread.table != 0 {
                tables.push(thread.table);
            }
        }
        for fd in std::mem::take(&mut self.processes[process].real).into_keys() {
            calls::close_real(fd);
        }
        if !self.hosts[self.processes[process].host].up {
            self.forget_all(process);
            return;
        }
        for table in tables {
            let late = self.rng.below(50_000);
            self.at(self.now + late, Event::Close(process, Some(table)));
        }
        let late = if late_ns == 0 {
            0
        } else {
            self.rng.below(late_ns)
        };
        self.at(self.now + late, Event::Close(process, None));
    }

    /// What was written and not synced may be lost, or a part of it.
    fn lose_unsynced(&mut self, process: Pid) {
        let real = self.processes[process].real.iter();
        let unsynced: Vec<(i32, u64)> = real
            .filter_map(|(fd, synced)| Some((*fd, (*synced)?)))
            .collect();
        for (fd, synced) in unsynced {
            let length = calls::length_of(fd);
            if length > synced {
                let kept = synced + self.rng.below(length - synced + 1);
                calls::cut_file(fd, kept);
            }
        }
    }
}

/// Ends the whole simulation as failed.
pub fn fail(why: &str) -> ! {
    ME.set(None);
    crate::report::failed(why)
}

/// Waits for the turn.
fn take_turn(turn: &'static AtomicU32) {
    while turn.swap(0, Ordering::Acquire) == 0 {
        calls::host_wait(turn);
    }
}

/// Gives the turn to whoever is next, and waits for the next one of the calling thread, which goes on running
/// then, or is waiting for something already.
fn give_turn(runnable: bool) {
    let mine = me().expect("a thread of the simulation");
    let kernel = kernel();
    if runnable {
        kernel.runnable.push(mine);
    }
    let next = kernel.next();
    if next == mine {
        return;
    }
    kernel.turns += 1;
    let own = kernel.threads[mine].turn;
    let turn = kernel.threads[next].turn;
    turn.store(1, Ordering::Release);
    calls::host_wake(turn);
    take_turn(own);
}

/// The calling thread has made a call, which takes `ns`.
pub(crate) fn charge(ns: u64) {
    let mine = me().expect("a thread of the simulation");
    let kernel = kernel();
    kernel.calls += 1;
    let spent = ns / 2 + kernel.rng.below(ns + 1);
    kernel.now += spent;
    kernel.threads[mine].cpu_ns += spent;
    kernel.happen_until_now();
    let process = kernel.threads[mine].process;
    let must = kernel.processes[process].stopped || !kernel.processes[process].alive;
    if must || kernel.rng.below(1024) < kernel.pace.preempt {
        mix(kernel.now ^ mine as u64);
        give_turn(true);
    }
    handle_signal();
}

/// Has the calling thread wait, until the true time `until` at most.
pub(crate) fn block(wait: Wait, until: Option<u64>) -> Woken {
    let mine = me().expect("a thread of the simulation");
    let kernel = kernel();
    let thread = &mut kernel.threads[mine];
    let interruptible = matches!(wait, Wait::Futex(_) | Wait::Objs(_));
    if interruptible && thread.signal.is_some() {
        handle_signal();
        return Woken::Interrupted;
    }
    thread.state = State::Blocked;
    thread.generation += 1;
    let generation = thread.generation;
    kernel.note_wait(mine, &wait);
    kernel.threads[mine].wait = wait;
    if let Some(until) = until {
        kernel.at(until.max(kernel.now), Event::Timeout(mine, generation));
    }
    give_turn(false);
    let woken = self::kernel().threads[mine].woken;
    mix(self::kernel().now ^ mine as u64);
    handle_signal();
    woken
}

/// Handles a signal the calling thread was sent.
fn handle_signal() {
    let mine = me().expect("a thread of the simulation");
    let kernel = kernel();
    if let Some(signal) = kernel.threads[mine].signal.take()
        && let Some(handler) = kernel.handlers.get(&signal)
    {
        calls::call_handler(*handler, signal);
    }
}

/// The calling thread begins: it waits for its first turn.
pub(crate) fn thread_begins(tid: Tid, turn: &'static AtomicU32) {
    take_turn(turn);
    ME.set(Some(tid));
    kernel().threads[tid].real_tid = calls::real_tid();
}

/// Where a thread that was added waits for its turn.
pub(crate) fn turn_of(tid: Tid) -> &'static AtomicU32 {
    kernel().threads[tid].turn
}

/// The calling thread has ended, and takes no turn any more.
pub(crate) fn thread_ends() {
    let mine = me().expect("a thread of the simulation");
    let kernel = kernel();
    kernel.threads[mine].state = State::Ended;
    kernel.drop_table(mine);
    for tid in 0..kernel.threads.len() {
        if kernel.threads[tid].wait == Wait::Join(mine) {
            kernel.wake(tid, Woken::Told);
        }
    }
    // What is left to do for it is the host's business.
    ME.set(None);
    let next = kernel.next();
    kernel.turns += 1;
    let turn = kernel.threads[next].turn;
    turn.store(1, Ordering::Release);
    calls::host_wake(turn);
}

/// Waits for the end of a thread, by the host's name for it. False if it is none of the simulation's.
pub(crate) fn join(pthread: libc::pthread_t) -> bool {
    let kernel = kernel();
    let Some(tid) = kernel
        .threads
        .iter()
        .rposition(|thread| thread.pthread == pthread)
    else {
        return false;
    };
    while self::kernel().threads[tid].state != State::Ended {
        block(Wait::Join(tid), None);
    }
    self::kernel().threads[tid].pthread = 0;
    true
}

/// Whether a host has power.
pub fn is_up(host: HostNo) -> bool {
    kernel().hosts[host].up
}
