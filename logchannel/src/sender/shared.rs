//! What the threads of a [`super::Sender`] share, and what those behind the vCPU do.

use super::{Lag, SenderOptions};
use crate::backlog::Backlog;
use crate::calls::Calls;
use crate::clock::{boot_us, now_us};
use crate::cursors::{Delivered, SharedCursors};
use crate::error::{LinkEnd, LinkLost};
use crate::framing::{Frame, FrameBuffer};
use crate::leader::Leader;
use crate::link::Link;
use crate::messages::{Ack, Heartbeat};
use crate::metrics::add;
use crate::outgoing::Outgoing;
use crate::trust::Trust;
use replay::{Base, Clock, LogIndex};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

/// Time between two samples for [`Lag::us`], and most samples kept.
const SAMPLE_US: u64 = 1_000;
const SAMPLES_MAX: usize = 4096;

/// What becomes of an entry that is appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Mode {
    Linked,
    Undecided,
    Solo,
    Halted,
}

/// A frame that is not acked.
struct Unacked {
    /// The entry after its last.
    end: LogIndex,
    /// Cost of all entries and outputs up to there.
    cost: u64,
    flushed_us: u64,
}

pub(super) struct Ledger {
    frames: VecDeque<Unacked>,
    /// No ack may be over this.
    framed: LogIndex,
    last_ack: Ack,
    samples: VecDeque<(LogIndex, u64)>,
    last_sample_us: u64,
    /// Age of the oldest sample not executed, when the last ack came.
    lag_us: u64,
    /// How long the backup needs for what it was sent, as of the last ack.
    backlog: Backlog,
    /// Where the guest stood at the last entry of a frame.
    framed_clock: Clock,
    /// Threads that wait for `SenderState::changed`.
    waiting: u32,
}

impl Ledger {
    /// Of a log that begins at `base`, nothing is sent yet.
    fn at(base: &Base) -> Self {
        Self {
            frames: VecDeque::new(),
            framed: base.index,
            last_ack: Ack::at(base),
            samples: VecDeque::new(),
            last_sample_us: 0,
            lag_us: 0,
            backlog: Backlog::at(base.clock),
            framed_clock: base.clock,
            waiting: 0,
        }
    }
}

pub(super) struct Out {
    pub(super) queue: Outgoing,
    /// The socket is full: the writer thread is to send the rest.
    blocked: bool,
    /// Of a secret link: frames were taken to be encrypted, and have not all gone.
    sealing: bool,
    /// The writer thread waits for something to do.
    writer_waits: bool,
}

impl Out {
    /// Whether everything has gone.
    pub(super) fn is_idle(&self) -> bool {
        self.queue.is_empty() && !self.blocked && !self.sealing
    }
}

/// Order of locks: `out` and `ledger` are never held together; `seal` comes before `out`.
pub(super) struct SenderState {
    pub(super) link: Link,
    /// Where the log begins.
    pub(super) base: Base,
    pub(super) leader: Arc<dyn Leader>,
    pub(super) cursors: SharedCursors,
    pub(super) mode: AtomicU8,
    pub(super) buffer_max: u64,
    /// Cost of everything appended, and of what was released of it.
    pub(super) appended_cost: AtomicU64,
    pub(super) released_cost: AtomicU64,
    /// [`Lag::drain_us`]: read at every entry to the guest.
    pub(super) drain_us: AtomicU64,
    /// What heartbeats call: see [`Trust`]. No other lock is taken while this one is held.
    calls: Mutex<Calls>,
    pub(super) ledger: Mutex<Ledger>,
    /// With `ledger`: room was made, everything was acked, or the mode changed.
    pub(super) changed: Condvar,
    pub(super) out: Mutex<Out>,
    /// Of a secret link: frames taken from `out` by who encrypts and sends them. No vCPU's thread takes this lock.
    seal: Mutex<Outgoing>,
    /// With `out`: something for the writer, or nothing left.
    pub(super) writer: Condvar,
}

impl SenderState {
    pub(super) fn new(
        link: Link,
        base: Base,
        leader: Arc<dyn Leader>,
        options: SenderOptions,
    ) -> Self {
        let calls = Mutex::new(Calls::new(link.settings));
        Self {
            link,
            base,
            leader,
            cursors: SharedCursors::at(base.index),
            mode: AtomicU8::new(Mode::Linked as u8),
            buffer_max: options.buffer_max,
            appended_cost: AtomicU64::new(0),
            released_cost: AtomicU64::new(0),
            drain_us: AtomicU64::new(0),
            calls,
            ledger: Mutex::new(Ledger::at(&base)),
            changed: Condvar::new(),
            out: Mutex::new(Out {
                queue: Outgoing::at(base.index),
                blocked: false,
                sealing: false,
                writer_waits: false,
            }),
            seal: Mutex::new(Outgoing::at(base.index)),
            writer: Condvar::new(),
        }
    }

    pub(super) fn mode(&self) -> Mode {
        match self.mode.load(SeqCst) {
            0 => Mode::Linked,
            1 => Mode::Undecided,
            2 => Mode::Solo,
            _ => Mode::Halted,
        }
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().expect("no panic with the ledger locked")
    }

    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().expect("no panic with the calls locked")
    }

    pub(super) fn out(&self) -> MutexGuard<'_, Out> {
        self.out.lock().expect("no panic with the queue locked")
    }

    /// Changes the mode unless halted, and wakes everyone.
    pub(super) fn set_mode(&self, mode: Mode) {
        let ledger = self.ledger();
        if self.mode() != Mode::Halted {
            self.mode.store(mode as u8, SeqCst);
            match mode {
                Mode::Undecided => self.leader.undecided(),
                Mode::Solo => self.leader.undisputed(),
                Mode::Linked | Mode::Halted => {}
            }
        }
        self.changed.notify_all();
        drop(ledger);
        let mut out = self.out();
        if mode != Mode::Linked {
            out.queue.clear();
        }
        self.writer.notify_all();
    }

    pub(super) fn end(&self, end: LinkEnd) {
        let wake = || {
            let undecided = self.mode() == Mode::Linked;
            self.set_mode(if undecided {
                Mode::Undecided
            } else {
                self.mode()
            });
        };
        // The owner may have chosen a mode by then, so this one leaves it alone.
        let wake_told = || {
            let _ledger = self.ledger();
            self.changed.notify_all();
        };
        self.link.end(end, wake, wake_told);
    }

    fn lose(&self, lost: LinkLost) {
        self.end(LinkEnd::Lost(lost));
    }

    pub(super) fn send_failed(&self, lost: LinkLost) {
        if let Some(lost) = self.link.send_failed(lost) {
            self.lose(lost);
        }
    }

    /// Waits while `wait` says so.
    pub(super) fn wait_while(&self, mut wait: impl FnMut(&Ledger) -> bool) {
        let mut ledger = self.ledger();
        while wait(&ledger) {
            ledger.waiting += 1;
            ledger = self
                .changed
                .wait(ledger)
                .expect("no panic with the ledger locked");
            ledger.waiting -= 1;
        }
    }

    pub(super) fn is_full(&self) -> bool {
        let unreleased = self.appended_cost.load(SeqCst) - self.released_cost.load(SeqCst);
        unreleased >= self.buffer_max
    }

    /// Puts a sealed frame of entries below `end` on its way, the last of them from `clock`.
    pub(super) fn send(&self, bytes: Vec<u8>, end: LogIndex, clock: Clock) {
        self.note_frame(end, clock);
        let mut out = self.out();
        out.queue.push(bytes, end);
        if let Err(lost) = self.go(out) {
            self.send_failed(lost);
        }
    }

    /// Sends what the socket takes; the writer thread gets the rest. Of a secret link it gets everything: the calling
    /// thread may be the vCPU's, and encrypting is not its work.
    pub(super) fn pump(&self, out: &mut Out) -> Result<(), LinkLost> {
        if out.blocked {
            return Ok(());
        }
        if self.link.is_secret() {
            if out.writer_waits {
                self.writer.notify_all();
            }
            return Ok(());
        }
        let emptied = out.queue.pump(&self.link);
        self.cursors.advance_sent(out.queue.sent());
        if !emptied? {
            out.blocked = true;
            self.writer.notify_all();
        }
        Ok(())
    }

    /// [`Self::pump`] for who has nothing else to do with the queue: the writer is woken when it can have that.
    fn go(&self, mut out: MutexGuard<'_, Out>) -> Result<(), LinkLost> {
        if !self.link.is_secret() {
            return self.pump(&mut out);
        }
        let waits = out.writer_waits;
        drop(out);
        if waits {
            self.writer.notify_all();
        }
        Ok(())
    }

    /// Encrypts and sends what there is, with `seal` locked by the calling thread, as far as the socket takes it; the
    /// writer thread gets the rest.
    fn seal(&self, mut seal: MutexGuard<'_, Outgoing>) -> Result<(), LinkLost> {
        loop {
            let mut out = self.out();
            (out.sealing, out.blocked) = (true, false);
            seal.take(&mut out.queue);
            drop(out);
            let emptied = seal.pump(&self.link);
            self.cursors.advance_sent(seal.sent());
            let emptied = emptied?;
            let mut out = self.out();
            out.blocked = !emptied;
            if emptied && !out.queue.is_empty() {
                continue;
            }
            out.sealing = !emptied;
            // The writer has to wait for the socket, or a goodbye waits for everything to have gone.
            if out.blocked || self.link.leaving.load(SeqCst) {
                self.writer.notify_all();
            }
            return Ok(());
        }
    }

    /// What has left. The cursor is read first: console outputs let out since then are behind it. What the
    /// console still holds of entries before the log is no concern of its backup, which never makes them.
    fn delivered(&self) -> Delivered {
        let released = self.cursors.released();
        let unprinted = self.leader.unprinted();
        let printed = unprinted.map_or(released, |first| first.clamp(self.base.index, released));
        Delivered { released, printed }
    }

    /// Puts a frame that carries no entries on its way.
    pub(super) fn say(&self, frame: Vec<u8>) {
        let mut out = self.out();
        let sent = out.queue.sent();
        out.queue.push(frame, sent);
        if let Err(lost) = self.go(out) {
            self.send_failed(lost);
        }
    }

    /// Sends a sign of life, ahead of frames that wait: the leader relies on the backup for as long as heartbeats are
    /// answered, and a full socket is no reason to stop. They leave in the order they are made in, since each is made
    /// with `out` locked and takes the place of an older one that has not begun to go. Not on a vCPU's thread.
    fn beat(&self) {
        let sent = if self.link.is_secret() {
            self.beat_secretly()
        } else {
            let mut out = self.out();
            out.queue.push_beat(self.heartbeat());
            self.pump(&mut out)
        };
        if let Err(lost) = sent {
            self.send_failed(lost);
        }
    }

    /// [`Self::beat`] of a secret link: encrypts on the calling thread what there is, unless another one is at it.
    fn beat_secretly(&self) -> Result<(), LinkLost> {
        if let Ok(mut seal) = self.seal.try_lock() {
            let mut out = self.out();
            out.queue.drop_beat();
            seal.push_beat(self.heartbeat());
            drop(out);
            return self.seal(seal);
        }
        self.out().queue.push_beat(self.heartbeat());
        // Who has it may have looked at the queue already; the writer looks again.
        self.writer.notify_all();
        Ok(())
    }

    fn heartbeat(&self) -> Vec<u8> {
        let heartbeat = Heartbeat {
            delivered: self.delivered(),
            call: self.calls().make(boot_us()),
        };
        heartbeat.to_frame()
    }

    /// Before the frame is sent: its ack may come at once.
    fn note_frame(&self, end: LogIndex, clock: Clock) {
        let now = now_us();
        let mut ledger = self.ledger();
        ledger.framed = end;
        ledger.framed_clock = clock;
        let drain_us = ledger.backlog.drain_us(now, clock);
        self.drain_us.store(drain_us, SeqCst);
        ledger.frames.push_back(Unacked {
            end,
            cost: self.appended_cost.load(SeqCst),
            flushed_us: now,
        });
        let due = now.saturating_sub(ledger.last_sample_us) >= SAMPLE_US;
        if due && ledger.samples.len() < SAMPLES_MAX {
            ledger.last_sample_us = now;
            ledger.samples.push_back((end, now));
        }
    }

    /// Takes an ack: cursors, leader, room; in this order. Returns the microseconds the leader took.
    fn acked(&self, ack: Ack, now: u64) -> Result<u64, LinkEnd> {
        let cost = self.settle(ack, now)?;
        self.cursors.advance_acked(ack.received);
        let begun = now_us();
        let emitted = self.leader.acked(ack.received);
        let outlet_us = now_us() - begun;
        emitted.map_err(|e| LinkEnd::OutletFailed(e.to_string()))?;
        self.cursors.advance_released(ack.received);
        self.leader.executed(ack.executed);
        if let Some(cost) = cost {
            self.released_cost.store(cost, SeqCst);
        }
        if self.ledger().waiting > 0 {
            self.changed.notify_all();
        }
        Ok(outlet_us)
    }

    /// Checks an ack and books it; returns the cost of everything acked, if that changed.
    fn settle(&self, ack: Ack, now: u64) -> Result<Option<u64>, LinkLost> {
        let mut ledger = self.ledger();
        let check = |cursor, says, least, most| {
            if least <= says && says <= most {
                return Ok(());
            }
            Err(LinkLost::Cursor {
                cursor,
                says,
                least,
                most,
            })
        };
        let last = ledger.last_ack;
        check("received", ack.received, last.received, ledger.framed)?;
        check("executed", ack.executed, last.executed, ack.received)?;
        ledger.last_ack = ack;
        let mut cost = None;
        while ledger.frames.front().is_some_and(|f| f.end <= ack.received) {
            let frame = ledger.frames.pop_front().expect("looked at");
            cost = Some(frame.cost);
            let latency = now.saturating_sub(frame.flushed_us);
            self.link.metrics.latency(latency);
        }
        while ledger.samples.front().is_some_and(|s| s.0 <= ack.executed) {
            ledger.samples.pop_front();
        }
        let oldest = ledger.samples.front().map_or(now, |sample| sample.1);
        let age_us = now.saturating_sub(oldest);
        ledger.lag_us = age_us;
        ledger.backlog.acked(now, ack.executed_clock, age_us);
        let drain_us = ledger.backlog.drain_us(now, ledger.framed_clock);
        self.drain_us.store(drain_us, SeqCst);
        Ok(cost)
    }

    pub(super) fn executed(&self) -> LogIndex {
        self.ledger().last_ack.executed
    }

    pub(super) fn lag(&self) -> Lag {
        let ledger = self.ledger();
        Lag {
            entries: self.cursors.appended().0 - ledger.last_ack.executed.0,
            us: ledger.lag_us,
            drain_us: self.drain_us.load(SeqCst),
            executed_clock: ledger.last_ack.executed_clock,
        }
    }
}

/// Reads acks until the link is over.
pub(super) fn read_acks(shared: &SenderState, incoming: FrameBuffer) {
    if let Err(end) = Reader::new(shared, incoming, now_us(), boot_us()).run() {
        shared.end(end);
    }
}

/// What the reader thread knows of the stream.
struct Reader<'a> {
    shared: &'a SenderState,
    incoming: FrameBuffer,
    /// When it last read.
    read_us: u64,
    /// The same on the clock that pauses are told by.
    read_boot_us: u64,
    trust: Trust,
}

impl<'a> Reader<'a> {
    fn new(shared: &'a SenderState, incoming: FrameBuffer, now: u64, boot_us: u64) -> Self {
        Self {
            shared,
            incoming,
            read_us: now,
            read_boot_us: boot_us,
            trust: Trust::new(shared.link.settings),
        }
    }

    /// Reads until the link is over, or is to end.
    fn run(mut self) -> Result<(), LinkEnd> {
        let link = &self.shared.link;
        loop {
            link.deaf.store(true, SeqCst);
            let outlet_us = self.take()?;
            link.deaf.store(false, SeqCst);
            let count = link.read(self.incoming.space())?;
            self.incoming.filled(count);
            self.read_at(now_us(), boot_us(), outlet_us)?;
            if link.over() {
                return Ok(());
            }
        }
    }

    /// Notes that something was read at `now`. That moment is `boot_us` on the clock that goes on while the
    /// host is suspended. Of the time since the last read `outlet_us` was spent in the outlet, which is no
    /// waiting.
    fn read_at(&mut self, now: u64, boot_us: u64, outlet_us: u64) -> Result<(), LinkLost> {
        // A pause within the outlet is not seen here, but by who is told of what is heard.
        let waited_us = boot_us.saturating_sub(self.read_boot_us.saturating_add(outlet_us));
        (self.read_us, self.read_boot_us) = (now, boot_us);
        let next = self.shared.calls().last() + 1;
        if self.trust.read(waited_us, next)? {
            self.shared.beat();
        }
        Ok(())
    }

    /// Takes every whole frame of what was read last; of several acks only the last counts. Returns the
    /// microseconds spent in the outlet.
    fn take(&mut self) -> Result<u64, LinkEnd> {
        let now = self.read_us;
        let mut ack = None;
        let end = loop {
            match self.incoming.next() {
                Ok(None) => break None,
                Ok(Some(frame)) => {
                    add(&self.shared.link.metrics.frames_received, 1);
                    match frame {
                        Frame::Ack(newer) => {
                            let last = self.shared.calls().last();
                            ack = Some(newer).filter(|ack| self.trust.has(ack.answers, last));
                        }
                        Frame::Bye(bye) => break Some(LinkEnd::Bye(bye)),
                        other => {
                            let frame = other.kind().name();
                            break Some(LinkLost::OutOfPlace { frame }.into());
                        }
                    }
                }
                Err(error) => break Some(LinkLost::from(error).into()),
            }
        };
        let mut outlet_us = 0;
        if let Some(ack) = ack.filter(|_| !self.shared.link.over()) {
            if end.is_none() {
                self.tell_heard(ack);
            }
            outlet_us = self.shared.acked(ack, now)?;
        }
        end.map_or(Ok(outlet_us), Err)
    }

    /// Tells the leader of an ack that is believed: one from before a pause says nothing of who is live now. It
    /// counts from the moment the heartbeat was sent that it answers. Before the outputs leave, which may take time.
    fn tell_heard(&self, ack: Ack) {
        let since_us = self.shared.calls().answered(ack.answers);
        if let Some(since_us) = since_us {
            self.shared.leader.heard(since_us);
        }
    }
}

/// Sends what did not fit into the socket; of a secret link, everything.
pub(super) fn write_rest(shared: &SenderState) {
    let secret = shared.link.is_secret();
    let has_work = |out: &Out| out.blocked || secret && !out.queue.is_empty();
    loop {
        let mut out = shared.out();
        while !has_work(&out) && !shared.link.over() {
            out.writer_waits = true;
            out = shared
                .writer
                .wait(out)
                .expect("no panic with the queue locked");
            out.writer_waits = false;
        }
        let full = out.blocked;
        drop(out);
        if shared.link.over() {
            return;
        }
        if full {
            shared.link.wait_writable();
        }
        let sent = if secret {
            shared.seal(shared.seal.lock().expect("no panic with frames locked"))
        } else {
            let mut out = shared.out();
            out.blocked = false;
            let sent = shared.pump(&mut out);
            if out.is_idle() {
                shared.writer.notify_all();
            }
            sent
        };
        if let Err(lost) = sent {
            return shared.send_failed(lost);
        }
    }
}

/// Sends heartbeats, and ends the link when the backup is silent. One goes at each tick, whatever else was sent: the
/// leader relies on the backup for as long as they are answered.
pub(super) fn watch(shared: &SenderState) {
    let beat = |_nothing_sent: bool| shared.beat();
    shared.link.watch(beat, |lost| shared.lose(lost));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::messages::{Settings, Settled};
    use replay::InputsError;
    use std::net::{TcpListener, TcpStream};

    const SETTINGS: Settings = Settings {
        heartbeat_ms: 20,
        suspect_ms: 300,
    };

    /// Counts the acks it is told of: those believed, and those that release outputs.
    #[derive(Default)]
    struct Counts {
        heard: AtomicU64,
        since_us: AtomicU64,
        acked: AtomicU64,
    }

    impl Leader for Counts {
        fn begins(&self, _: Settled) {}

        fn heard(&self, since_us: u64) {
            self.heard.fetch_add(1, SeqCst);
            self.since_us.store(since_us, SeqCst);
        }

        fn acked(&self, _: LogIndex) -> Result<(), InputsError> {
            self.acked.fetch_add(1, SeqCst);
            Ok(())
        }

        fn unprinted(&self) -> Option<LogIndex> {
            None
        }

        fn undecided(&self) {}

        fn solo(&self) -> Result<(), InputsError> {
            Ok(())
        }

        fn undisputed(&self) {}

        fn halted(&self) {}

        fn closed(&self) {}
    }

    /// A linked primary, who leads it, and the other end of its socket.
    fn linked() -> (SenderState, Arc<Counts>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let link = Link::new(near.into(), SETTINGS, Box::new(|_| {})).unwrap();
        let leader = Arc::new(Counts::default());
        let options = SenderOptions::default();
        let shared = SenderState::new(link, Base::alone(0), leader.clone(), options);
        (shared, leader, listener.accept().unwrap().0)
    }

    /// An ack that answers the call `answers` is read at `us`.
    fn read_at(reader: &mut Reader<'_>, us: u64, answers: u64) {
        let ack = Ack {
            answers,
            ..Ack::at(&reader.shared.base)
        };
        let bytes = ack.to_frame();
        reader.incoming.space()[..bytes.len()].copy_from_slice(&bytes);
        reader.incoming.filled(bytes.len());
        reader.read_at(us, us, 0).unwrap();
        reader.take().unwrap();
    }

    /// What a lease makes of what it hears in this story is tested where it is kept.
    #[test]
    fn acks_that_are_not_believed_are_not_heard() {
        let (shared, leader, _backup) = linked();
        let mut reader = Reader::new(&shared, FrameBuffer::new(), 0, 0);
        let told = || [&leader.heard, &leader.acked].map(|count| count.load(SeqCst));
        let mut read = |ms: u64, answers| {
            read_at(&mut reader, ms * 1_000, answers);
            told()
        };
        for (before, ms) in (0..).zip((20..=1_000).step_by(20)) {
            let call = shared.calls().make(ms * 1_000);
            assert_eq!(read(ms, call), [before + 1; 2], "at {ms} ms");
        }
        let (before, old) = (told(), shared.calls().last());
        // A pause, and after it acks from before it, one at a time.
        for ms in (2_000..2_500).step_by(20) {
            assert_eq!(read(ms, old), before, "at {ms} ms");
        }
        for (more, ms) in (1..).zip((2_500..=2_800).step_by(20)) {
            let call = shared.calls().make(ms * 1_000);
            let now = before.map(|count| count + more);
            assert_eq!(read(ms, call), now, "at {ms} ms");
        }
    }

    /// The way to the backup is cut, and the way back is not: what the backup says is no sign that it hears.
    #[test]
    fn acks_of_a_backup_that_hears_nothing_are_acks_but_are_not_heard() {
        let (shared, leader, _backup) = linked();
        let mut reader = Reader::new(&shared, FrameBuffer::new(), 0, 0);
        let heard = shared.calls().make(5_000);
        read_at(&mut reader, 20_000, heard);
        assert_eq!(
            leader.since_us.load(SeqCst),
            5_000,
            "when it was sent, not read"
        );
        for (more, ms) in (1..).zip((40..300).step_by(20)) {
            shared.calls().make(ms * 1_000);
            read_at(&mut reader, ms * 1_000, heard);
            let counts = [&leader.heard, &leader.acked].map(|count| count.load(SeqCst));
            assert_eq!(counts, [1, 1 + more], "at {ms} ms");
        }
    }

    /// A socket that is full: a heartbeat goes ahead of what waits for it, and only the newest does.
    #[test]
    fn a_full_socket_holds_up_no_heartbeat() {
        let (shared, _leader, mut backup) = linked();
        let big = vec![0; 1 << 20];
        let mut sent = 0;
        while !shared.out().blocked {
            shared.say(big.clone());
            sent += big.len();
        }
        shared.say(big.clone());
        sent += big.len();
        (0..3).for_each(|_| shared.beat());
        assert_eq!(shared.calls().last(), 3);
        let newest = Heartbeat {
            delivered: shared.delivered(),
            call: 3,
        };
        let newest = newest.to_frame();
        sent += newest.len();
        let reading = std::thread::spawn(move || {
            let mut read = vec![0; sent];
            std::io::Read::read_exact(&mut backup, &mut read).unwrap();
            read
        });
        let mut out = shared.out();
        while !out.queue.is_empty() {
            shared.link.wait_writable();
            out.blocked = false;
            shared.pump(&mut out).unwrap();
        }
        let read = reading.join().unwrap();
        let at = read.windows(newest.len()).position(|part| part == newest);
        // Behind the frame that had begun to go, if one had, and before the last.
        let left = sent - newest.len() - at.expect("it was sent");
        assert!([big.len(), 2 * big.len()].contains(&left), "{left}");
    }

    /// The writer has not run since a frame was queued: who beats sends both.
    #[test]
    fn a_heartbeat_takes_along_what_the_writer_has_not_come_to() {
        let (near, far) = logchannel_testing::sockets();
        let (mut near, mut far) = logchannel_testing::secured(near, far);
        let shaking = std::thread::spawn(move || far.handshake(|_| Ok(())).map(|()| far));
        near.handshake(|_| Ok(())).unwrap();
        let mut far = shaking.join().unwrap().unwrap();
        let limit = Some(std::time::Duration::from_secs(30));
        far.socket().set_read_timeout(limit).unwrap();
        let link = Link::new(near, SETTINGS, Box::new(|_| {})).unwrap();
        let leader = Arc::new(Counts::default());
        let options = SenderOptions::default();
        let shared = SenderState::new(link, Base::alone(0), leader, options);
        shared.say(vec![7; 100]);
        assert!(!shared.out().queue.is_empty(), "nobody has encrypted it");
        shared.beat();
        let mut read = vec![0; 100 + shared.heartbeat().len()];
        std::io::Read::read_exact(&mut far, &mut read).unwrap();
        assert!(read.ends_with(&[7; 100]), "{read:?}");
    }

    #[test]
    fn a_suspended_host_is_a_pause() {
        let (shared, _leader, _backup) = linked();
        let mut reader = Reader::new(&shared, FrameBuffer::new(), 0, 0);
        reader.read_at(20_000, 20_000, 0).unwrap();
        assert_eq!(shared.calls().last(), 0);
        reader.read_at(40_000, 1_000_000, 0).unwrap();
        assert_eq!(shared.calls().last(), 1);
        reader.read_at(60_000, 1_020_000, 0).unwrap();
        reader.read_at(4_060_000, 5_020_000, 3_900_000).unwrap();
        assert_eq!(shared.calls().last(), 1, "the outlet took its time");
    }
}
