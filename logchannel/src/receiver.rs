//! The backup's end of a link.
//!
//! ```text
//!  reader thread:   socket ─▶ frames ─▶ entries ─▶ bounded queue ─▶ next() ─▶ replaying vCPU
//!                      ▲                   └─▶ Ack, before execution, one per read
//!                      └ left unread while the queue is full
//!  watcher thread:  acks as heartbeats, suspicion
//! ```
//!
//! What was received is replayed, whatever becomes of the link: the queue outlives it. A torn, changed
//! or misplaced frame ends the link. No entry of that frame, or of one behind it, is replayed.

mod lag;

use self::lag::LagSamples;
use crate::clock::now_us;
use crate::cursors::Delivered;
use crate::error::{FrameError, LinkEnd, LinkLost};
use crate::framing::{Frame, FrameBuffer, FrameKind};
use crate::handshake::Connection;
use crate::link::{Link, join, spawn, spawn_watch};
use crate::messages::{Ack, Bye, Entries};
use crate::metrics::{MetricsSnapshot, add};
use crate::outgoing::Outgoing;
use crate::tether::Tether;
use replay::codec::Decoder;
use replay::{
    Arrival, Base, Clock, Event, InputsError, LogEntry, LogIndex, LogPlace, LogSource, ViewNumber,
};
use std::collections::VecDeque;
use std::num::NonZeroU16;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock};
use std::thread::JoinHandle;

/// How a receiver is set up.
#[derive(Clone, Copy, Debug)]
pub struct ReceiverOptions {
    /// Bytes of entries in memory over which the socket is left unread.
    pub buffer_max: usize,
}

impl Default for ReceiverOptions {
    fn default() -> Self {
        Self {
            buffer_max: 64 << 20,
        }
    }
}

/// What [`Receiver::next`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// The next entry and its index.
    Entry(LogIndex, LogEntry),
    /// None is here yet (only when not waiting).
    Nothing,
    /// The link is gone, every entry that came was taken, and this replica is to go live.
    Drained,
    /// There will be no more: the primary said goodbye, or this replica was stopped.
    Stopped,
}

/// Entries of one frame.
struct Batch {
    entries: Vec<LogEntry>,
    bytes: usize,
}

#[derive(Default)]
struct Queue {
    batches: VecDeque<Batch>,
    bytes: usize,
    /// Nothing will be put in any more.
    closed: bool,
    /// The primary said goodbye.
    bye: bool,
    /// [`ReceiverHandle::finish`] was called.
    finish: bool,
    consumer_waits: bool,
    reader_waits: bool,
}

struct AckOut {
    queue: Outgoing,
    told: Ack,
}

/// Order of locks: `queue` and `acks` are never held together.
struct ReceiverState {
    link: Link,
    /// Where the log begins.
    base: Base,
    buffer_max: usize,
    queue: Mutex<Queue>,
    /// With `queue`: something to take, or an end.
    filled: Condvar,
    /// With `queue`: room, or an end.
    room: Condvar,
    acks: Mutex<AckOut>,
    /// Entries in the queue or taken from it.
    received: AtomicU64,
    executed: AtomicU64,
    executed_clock: AtomicU64,
    lag: Mutex<LagSamples>,
    released: AtomicU64,
    printed: AtomicU64,
    /// The primary's last call.
    called: AtomicU64,
    stopped: AtomicBool,
    /// Something other than an entry is to be looked at.
    ended: AtomicBool,
    /// Makes the vCPU look up from the guest, and so tell how far it got.
    kick: OnceLock<Box<dyn Fn() + Send + Sync>>,
    /// Where the primary waits once it has left; port 0: it has not said so.
    yielded: AtomicU16,
    /// With `asked`, of a secret link: whether an ack is to go out, and what wakes the thread that sends it.
    ack_asked: Mutex<bool>,
    asked: Condvar,
    /// The first entry that is executed but for what it asks of others.
    unfinished: OnceLock<Box<dyn Fn() -> Option<LogIndex> + Send + Sync>>,
}

/// Whom to tell that this joiner was made the backup, and in which view.
type OnWelcome = Box<dyn FnOnce(ViewNumber) + Send>;

impl ReceiverState {
    /// Nothing has come of a log that begins at `base`.
    fn new(link: Link, base: Base, options: ReceiverOptions) -> Self {
        Self {
            link,
            base,
            buffer_max: options.buffer_max,
            queue: Mutex::default(),
            filled: Condvar::new(),
            room: Condvar::new(),
            acks: Mutex::new(AckOut {
                queue: Outgoing::at(base.index),
                told: Ack::at(&base),
            }),
            received: AtomicU64::new(base.index.0),
            executed: AtomicU64::new(base.index.0),
            executed_clock: AtomicU64::new(base.clock.0),
            lag: Mutex::default(),
            released: AtomicU64::new(base.index.0),
            printed: AtomicU64::new(base.index.0),
            called: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            kick: OnceLock::new(),
            yielded: AtomicU16::new(0),
            ack_asked: Mutex::new(false),
            asked: Condvar::new(),
            unfinished: OnceLock::new(),
        }
    }

    /// Read in the other order than written, so that growth meanwhile cannot break theirs.
    fn delivered(&self) -> Delivered {
        let printed = LogIndex(self.printed.load(SeqCst));
        let released = LogIndex(self.released.load(SeqCst));
        Delivered { released, printed }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().expect("no panic with the queue locked")
    }

    fn lag(&self) -> MutexGuard<'_, LagSamples> {
        self.lag.lock().expect("no panic with the samples locked")
    }

    /// Asks the thread for it to send an ack.
    fn ask_for_ack(&self) {
        *self.ack_asked.lock().expect("no panic with it locked") = true;
        self.asked.notify_all();
    }

    fn wake_all(&self) {
        self.ask_for_ack();
        let _queue = self.queue();
        self.ended.store(true, SeqCst);
        self.filled.notify_all();
        self.room.notify_all();
    }

    fn end(&self, end: LinkEnd) {
        self.link.end(end, || self.wake_all(), || {});
    }

    fn ack(&self) -> Ack {
        let executed = LogIndex(self.executed.load(SeqCst));
        let executed_clock = Clock(self.executed_clock.load(SeqCst));
        // Asked behind the cursor, so that what is begun meanwhile lies behind that.
        let unfinished = self.unfinished.get().and_then(|asked| asked());
        let received = LogIndex(self.received.load(SeqCst));
        Ack {
            received,
            executed: unfinished.unwrap_or(executed).min(executed).min(received),
            executed_clock,
            answers: self.called.load(SeqCst),
        }
    }

    /// Sends an ack if there is news, or in any case if `always`. If the socket is full it is left to
    /// the next heartbeat.
    fn send_ack(&self, always: bool) -> Result<(), LinkLost> {
        let mut out = self.acks.lock().expect("no panic with the acks locked");
        if !out.queue.pump(&self.link)? {
            return Ok(());
        }
        // Under the lock, so that acks leave in the order of what they say.
        let ack = self.ack();
        if ack != out.told || always {
            out.told = ack;
            out.queue.push(ack.to_frame(), ack.received);
            out.queue.pump(&self.link)?;
        }
        Ok(())
    }

    /// [`Self::send_ack`]. A failure ends the link, but what lies in the kernel's buffer is still read.
    fn tell(&self, always: bool) {
        if let Err(lost) = self.send_ack(always)
            && let Some(lost) = self.link.send_failed(lost)
        {
            self.end(lost.into());
        }
    }

    /// Acks, and wakes the vCPU if it sleeps; in this order, as the primary's output waits for the ack.
    fn publish(&self) {
        self.tell(false);
        self.wake();
    }

    /// Wakes the vCPU if it sleeps.
    fn wake(&self) {
        let mut queue = self.queue();
        if std::mem::take(&mut queue.consumer_waits) {
            self.filled.notify_one();
        }
    }

    /// Puts a batch into the queue, after waiting for room. False if this replica was stopped.
    fn put(&self, batch: Batch) -> bool {
        let count = batch.entries.len() as u64;
        let mut queue = self.queue();
        if queue.bytes >= self.buffer_max {
            drop(queue);
            add(&self.link.metrics.stalls, 1);
            self.publish();
            self.link.deaf.store(true, SeqCst);
            queue = self.queue();
            while queue.bytes >= self.buffer_max && !self.stopped.load(SeqCst) {
                queue.reader_waits = true;
                queue = self
                    .room
                    .wait(queue)
                    .expect("no panic with the queue locked");
            }
            self.link.deaf.store(false, SeqCst);
        }
        if self.stopped.load(SeqCst) {
            return false;
        }
        queue.bytes += batch.bytes;
        queue.batches.push_back(batch);
        let received = self.received.fetch_add(count, SeqCst) + count;
        drop(queue);
        self.lag().received(LogIndex(received), now_us());
        true
    }
}

/// Memory that an entry takes.
fn bytes_of(entry: &LogEntry) -> usize {
    let data = match &entry.event {
        Event::Arrival(Arrival::Frame(bytes) | Arrival::Console(bytes)) => bytes.len(),
        Event::Arrival(Arrival::DiskDone { data, .. }) => data.len(),
        _ => 0,
    };
    size_of::<LogEntry>() + data
}

/// Reads that share one ack if no output is in them. Nobody waits for such an ack, and where both replicas
/// share a host each ack takes the primary's vCPU off its core for a moment.
const READS_PER_ACK: u32 = 4;

/// What the reader thread knows of the stream.
struct Reader<'a> {
    shared: &'a ReceiverState,
    decoder: Decoder,
    next: LogIndex,
    /// Whether something came since the last ack that an output waits for.
    urgent: bool,
    /// Reads since the last ack.
    reads: u32,
    /// Of a joiner that was not made the backup yet.
    on_welcome: Option<OnWelcome>,
}

impl Reader<'_> {
    /// Reads until the link is over. Entries in the kernel's buffer are still taken after that.
    fn run(&mut self, mut incoming: FrameBuffer) {
        let end = loop {
            if let Err(end) = self.take(&mut incoming) {
                break end;
            }
            match self.shared.link.read(incoming.space()) {
                Ok(count) => incoming.filled(count),
                Err(lost) => break lost.into(),
            }
        };
        let mut queue = self.shared.queue();
        queue.closed = true;
        queue.bye = matches!(end, LinkEnd::Bye(_));
        drop(queue);
        self.shared.end(end);
        // The link may have been over before the queue was closed.
        self.shared.wake_all();
    }

    /// Takes every whole frame, then acks.
    fn take(&mut self, incoming: &mut FrameBuffer) -> Result<(), LinkEnd> {
        let taken = loop {
            match incoming.next() {
                Ok(None) => break Ok(()),
                Ok(Some(frame)) => {
                    add(&self.shared.link.metrics.frames_received, 1);
                    if let Err(end) = self.frame(frame) {
                        break Err(end);
                    }
                }
                Err(error) => break Err(LinkLost::from(error).into()),
            }
        };
        self.reads += 1;
        if self.urgent || self.reads >= READS_PER_ACK || taken.is_err() {
            (self.urgent, self.reads) = (false, 0);
            self.shared.tell(false);
        }
        self.shared.wake();
        taken
    }

    fn frame(&mut self, frame: Frame<'_>) -> Result<(), LinkEnd> {
        match frame {
            Frame::Entries(entries) => self.entries(&entries),
            Frame::Heartbeat(heartbeat) => {
                let (had, has) = (self.shared.delivered(), heartbeat.delivered);
                let cursors = [
                    ("released", had.released, has.released, self.next),
                    ("printed", had.printed, has.printed, has.released),
                ];
                for (cursor, least, says, most) in cursors {
                    if says < least || says > most {
                        return Err(LinkEnd::Lost(LinkLost::Cursor {
                            cursor,
                            says,
                            least,
                            most,
                        }));
                    }
                }
                self.shared.released.store(has.released.0, SeqCst);
                self.shared.printed.store(has.printed.0, SeqCst);
                let called = self.shared.called.swap(heartbeat.call, SeqCst);
                self.urgent |= called != heartbeat.call;
                Ok(())
            }
            Frame::Bye(bye) => Err(LinkEnd::Bye(bye)),
            Frame::Welcome(view) if view == self.shared.base.view.next() => {
                let tell = self.on_welcome.take().ok_or_else(|| out_of_place(&frame))?;
                tell(view);
                Ok(())
            }
            Frame::Yield(port) => {
                self.shared.yielded.store(port.get(), SeqCst);
                Ok(())
            }
            other => Err(out_of_place(&other)),
        }
    }

    /// The next entry of a frame: one that a link may carry.
    fn decode(&mut self, rest: &mut &[u8]) -> Result<LogEntry, LinkLost> {
        let entry = self.decoder.decode(rest)?;
        if matches!(entry.event, Event::Left { .. }) {
            return Err(malformed("the end of a recording"));
        }
        Ok(entry)
    }

    /// Decodes all entries of a frame before any of them is seen.
    fn entries(&mut self, frame: &Entries<'_>) -> Result<(), LinkEnd> {
        let expected = self.next;
        let distance = frame.distance(expected);
        if distance != 0 {
            let found = LogIndex(expected.0.saturating_add_signed(distance));
            let lost = if distance > 0 {
                LinkLost::Gap { expected, found }
            } else {
                LinkLost::Repeat { expected, found }
            };
            return Err(lost.into());
        }
        let mut rest = frame.bytes;
        let mut entries = Vec::with_capacity(usize::from(frame.count).min(rest.len()));
        let mut bytes = 0;
        for _ in 0..frame.count {
            let before = rest.len();
            let entry = self.decode(&mut rest)?;
            let metrics = &self.shared.link.metrics;
            metrics.entry(entry.event.kind(), before - rest.len());
            bytes += bytes_of(&entry);
            self.urgent |= matches!(entry.event, Event::Output { .. } | Event::End { .. });
            entries.push(entry);
        }
        if !rest.is_empty() {
            return Err(malformed("bytes left over after the last entry").into());
        }
        self.next = LogIndex(expected.0 + u64::from(frame.count));
        if self.shared.put(Batch { entries, bytes }) {
            Ok(())
        } else {
            Err(LinkEnd::Left)
        }
    }
}

fn out_of_place(frame: &Frame<'_>) -> LinkEnd {
    let frame = frame.kind().name();
    LinkLost::OutOfPlace { frame }.into()
}

fn malformed(what: &'static str) -> LinkLost {
    let frame = FrameKind::Entries.name();
    FrameError::Malformed { frame, what }.into()
}

/// Sends an ack whenever one is asked for, until the link is over.
fn tell_when_asked(shared: &ReceiverState) {
    loop {
        let mut asked = shared.ack_asked.lock().expect("no panic with it locked");
        while !*asked {
            asked = shared.asked.wait(asked).expect("no panic with it locked");
        }
        *asked = false;
        drop(asked);
        if shared.link.over() {
            return;
        }
        shared.tell(false);
    }
}

fn watch(shared: &ReceiverState) {
    let beat = |nothing_sent| {
        shared.tell(nothing_sent);
        let is_behind = shared.executed.load(SeqCst) < shared.received.load(SeqCst);
        if let Some(kick) = shared.kick.get().filter(|_| is_behind) {
            kick();
        }
    };
    shared.link.watch(beat, |lost| shared.end(lost.into()));
}

/// The backup's end of a link. It belongs to the vCPU thread that replays.
///
/// Dropping it closes the link without a word, and whoever set it up is not told.
pub struct Receiver {
    shared: Arc<ReceiverState>,
    batch: std::vec::IntoIter<LogEntry>,
    /// Where the entry stands that is taken next.
    place: LogPlace,
    threads: Vec<JoinHandle<()>>,
}

impl Receiver {
    /// Starts receiving over `connection`. `on_end` is called once when the link has ended, by the
    /// thread that noticed.
    ///
    /// Threads started here inherit the caller's attributes: do not call it from a thread that has
    /// the TSC switched off already.
    ///
    /// # Errors
    /// If the system has no descriptors or threads left.
    pub fn start(
        connection: Connection,
        options: ReceiverOptions,
        on_end: impl FnOnce(LinkEnd) + Send + 'static,
    ) -> std::io::Result<Self> {
        Self::begin(connection, options, Box::new(on_end), None)
    }

    /// [`Self::start`] for the joiner that was handed a running machine. `on_welcome` is called, by a thread of
    /// the link, when the primary makes this joiner its backup.
    ///
    /// Order: before anything is acked that came behind the welcome, and before `on_end` if the welcome came
    /// before the link's end. So whoever hears of both never takes a backup for a joiner that may not contend.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_joiner(
        connection: Connection,
        options: ReceiverOptions,
        on_end: impl FnOnce(LinkEnd) + Send + 'static,
        on_welcome: impl FnOnce(ViewNumber) + Send + 'static,
    ) -> std::io::Result<Self> {
        Self::begin(
            connection,
            options,
            Box::new(on_end),
            Some(Box::new(on_welcome)),
        )
    }

    fn begin(
        connection: Connection,
        options: ReceiverOptions,
        on_end: Box<dyn FnOnce(LinkEnd) + Send>,
        on_welcome: Option<OnWelcome>,
    ) -> std::io::Result<Self> {
        let Connection {
            socket,
            incoming,
            base,
            settled,
            remark: _,
            peer: _,
        } = connection;
        let link = Link::new(socket, settled.settings, on_end)?;
        let shared = Arc::new(ReceiverState::new(link, base, options));
        let mut receiver = Self {
            shared: shared.clone(),
            batch: Vec::new().into_iter(),
            place: base.place(),
            threads: Vec::new(),
        };
        let reader = shared.clone();
        receiver.threads.push(spawn("log-entries", move || {
            let decoder = Decoder::at(base.place());
            let next = base.index;
            let shared = &*reader;
            shared.link.reads_here();
            Reader {
                shared,
                decoder,
                next,
                urgent: false,
                reads: 0,
                on_welcome,
            }
            .run(incoming);
        })?);
        if shared.link.is_secret() {
            let shared = shared.clone();
            let run = move || tell_when_asked(&shared);
            receiver.threads.push(spawn("log-asked", run)?);
        }
        receiver.threads.push(spawn_watch(move || watch(&shared))?);
        Ok(receiver)
    }

    /// Ties the two replicas by `tether` as well, as soon as that is possible.
    ///
    /// # Errors
    /// If the system has no thread left.
    pub fn tie(&mut self, tether: Tether) -> std::io::Result<()> {
        let thread = tether.start(self.shared.clone(), |shared| &shared.link)?;
        self.threads.push(thread);
        Ok(())
    }

    /// What other threads may do with this receiver.
    #[must_use]
    pub fn handle(&self) -> ReceiverHandle {
        ReceiverHandle(self.shared.clone())
    }

    /// Takes the next entry; waits for it if `wait`.
    pub fn next(&mut self, wait: bool) -> Received {
        if self.shared.stopped.load(SeqCst) {
            return Received::Stopped;
        }
        if self.batch.len() == 0
            && let Some(end) = self.refill(wait)
        {
            return end;
        }
        let entry = self.batch.next().expect("a batch is never empty");
        let index = self.place.index;
        self.place = LogPlace {
            index: index.next(),
            clock: entry.clock,
        };
        Received::Entry(index, entry)
    }

    /// The next entry and its index, without taking it, if it is here.
    pub fn peek(&mut self) -> Option<(LogIndex, &LogEntry)> {
        if self.batch.len() == 0 {
            self.refill(false);
        }
        Some((self.place.index, self.batch.as_slice().first()?))
    }

    /// Gets the next batch, or says why there is none.
    fn refill(&mut self, wait: bool) -> Option<Received> {
        let shared = &self.shared;
        let something =
            || shared.received.load(SeqCst) > self.place.index.0 || shared.ended.load(SeqCst);
        if !something() && !wait {
            return Some(Received::Nothing);
        }
        let mut queue = shared.queue();
        loop {
            if shared.stopped.load(SeqCst) {
                return Some(Received::Stopped);
            }
            if let Some(batch) = queue.batches.pop_front() {
                queue.bytes -= batch.bytes;
                if std::mem::take(&mut queue.reader_waits) {
                    shared.room.notify_one();
                }
                self.batch = batch.entries.into_iter();
                return None;
            }
            match (queue.closed, queue.bye, queue.finish) {
                (true, true, _) => return Some(Received::Stopped),
                (true, false, true) => return Some(Received::Drained),
                _ => {}
            }
            if !wait {
                return Some(Received::Nothing);
            }
            queue.consumer_waits = true;
            queue = shared
                .filled
                .wait(queue)
                .expect("no panic with the queue locked");
        }
    }
}

impl LogSource for Receiver {
    fn place(&self) -> LogPlace {
        self.place
    }

    fn next(&mut self, wait: bool) -> Result<replay::NextEntry, InputsError> {
        Ok(match Receiver::next(self, wait) {
            Received::Entry(_, entry) => replay::NextEntry::Entry(entry),
            Received::Nothing => replay::NextEntry::Nothing,
            Received::Drained => replay::NextEntry::Ended,
            Received::Stopped => {
                let why = "no more entries are to be replayed";
                return Err(InputsError::Halted(why.into()));
            }
        })
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.shared.stopped.store(true, SeqCst);
        self.shared.link.abandon(|| {});
        self.shared.wake_all();
        join(&mut self.threads);
    }
}

/// What other threads may do with a receiver.
#[derive(Clone)]
pub struct ReceiverHandle(Arc<ReceiverState>);

impl ReceiverHandle {
    /// This replica is to go live. From now on [`Receiver::next`] says [`Received::Drained`] once every entry
    /// that came was taken. Closes the link if it is still up.
    pub fn finish(&self) {
        self.0.queue().finish = true;
        self.0.end(LinkEnd::Left);
        self.0.wake_all();
    }

    /// This replica is to stop. From now on [`Receiver::next`] says [`Received::Stopped`]. Closes the link if it
    /// is still up; the primary takes that for a failure unless [`Self::bye`] came before.
    pub fn stop(&self) {
        self.0.stopped.store(true, SeqCst);
        self.0.end(LinkEnd::Left);
        self.0.wake_all();
    }

    /// The port of its host at which the primary waits as a backup, once it has left; none if it has not said so.
    #[must_use]
    pub fn yielded(&self) -> Option<NonZeroU16> {
        NonZeroU16::new(self.0.yielded.load(SeqCst))
    }

    /// Tells the primary that this replica leaves and will not contend. Does nothing if the link is
    /// over or its socket full.
    pub fn bye(&self, bye: Bye) {
        let mut out = self.0.acks.lock().expect("no panic with the acks locked");
        if let Ok(true) = out.queue.pump(&self.0.link) {
            self.0.link.leaving.store(true, SeqCst);
            self.0.link.untie();
            let received = out.told.received;
            out.queue.push(bye.to_frame(), received);
            // If it fails the link is over, and whoever reads says so.
            let _ = out.queue.pump(&self.0.link);
        }
    }

    /// Has `kick` called at every heartbeat while the vCPU has entries to execute. `kick` is to make that
    /// vCPU call [`Self::executed`]: a slow vCPU may be at a single entry for a long time, and its primary
    /// has to know how far it is. Only the first `kick` given counts.
    pub fn kick_with(&self, kick: impl Fn() + Send + Sync + 'static) {
        let _ = self.0.kick.set(Box::new(kick));
    }

    /// Has `unfinished` asked, by the threads of the link, whenever they tell the primary how far execution is: the
    /// first entry whose execution left something to do that is not done yet, as a write to a disk. That entry does
    /// not count as executed. No entry before those executed by then may come to be unfinished. It must not wait.
    /// Only the first one given counts.
    pub fn finished_by(&self, unfinished: impl Fn() -> Option<LogIndex> + Send + Sync + 'static) {
        let _ = self.0.unfinished.set(Box::new(unfinished));
    }

    /// The replaying vCPU has executed every entry below `index` and stands at `clock`. Goes out with
    /// the next ack; cheap enough to be called at every exit.
    pub fn executed(&self, index: LogIndex, clock: Clock) {
        self.0.executed_clock.store(clock.0, SeqCst);
        self.0.executed.fetch_max(index.0, SeqCst);
    }

    /// Tells the primary now how far execution is: something waits for it there. Never waits.
    pub fn tell(&self) {
        if self.0.link.is_secret() {
            // The caller may be the vCPU's thread, and encrypting is not its work.
            self.0.ask_for_ack();
        } else {
            self.0.tell(false);
        }
    }

    /// Where the log begins.
    #[must_use]
    pub fn base(&self) -> Base {
        self.0.base
    }

    /// The index after the last entry received.
    #[must_use]
    pub fn received(&self) -> LogIndex {
        LogIndex(self.0.received.load(SeqCst))
    }

    /// Execution lag: how long the oldest entry that is here and not executed has been here, in
    /// microseconds, counted in steps of a millisecond; 0 if all are executed.
    #[must_use]
    pub fn lag_us(&self) -> u64 {
        let executed = LogIndex(self.0.executed.load(SeqCst));
        self.0.lag().us(executed, now_us())
    }

    /// What has left the primary, as far as it has said so.
    #[must_use]
    pub fn delivered(&self) -> Delivered {
        self.0.delivered()
    }

    /// Whether the two are tied ([`Receiver::tie`]).
    #[must_use]
    pub fn is_tied(&self) -> bool {
        self.0.link.knot().is_tied()
    }

    /// Whether the link has ended.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.0.link.over()
    }

    /// Counters.
    #[must_use]
    pub fn metrics(&self) -> MetricsSnapshot {
        self.0.link.metrics.snapshot()
    }
}
