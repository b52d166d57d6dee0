//! What the threads of a [`super::Sender`] share, and what those behind the vCPU do.

use super::{Lag, SenderOptions, Unprinted};
use crate::backlog::Backlog;
use crate::clock::{boot_us, now_us};
use crate::cursors::{Delivered, SharedCursors};
use crate::error::{LinkEnd, LinkLost};
use crate::framing::{Frame, FrameBuffer};
use crate::gate::SharedGate;
use crate::lease::Lease;
use crate::link::Link;
use crate::messages::{Ack, Heartbeat};
use crate::metrics::add;
use crate::outgoing::Outgoing;
use crate::trust::Trust;
use replay::{Clock, LogIndex, Outlet};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

/// Time between two samples for [`Lag::us`], and most samples kept.
const SAMPLE_US: u64 = 1_000;
const SAMPLES_MAX: usize = 4096;

/// Least time between two renewals of the lease: acks come far more often.
const RENEWAL_US: u64 = 1_000;

/// Who decides what an append does.
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

#[derive(Default)]
pub(super) struct Ledger {
    frames: VecDeque<Unacked>,
    /// No ack may be over this.
    framed: LogIndex,
    last_ack: Ack,
    samples: VecDeque<(LogIndex, u64)>,
    last_sample_us: u64,
    /// Age of the oldest sample not executed, when the last ack came.
    lag_us: u64,
    /// How long the backup needs for what it was sent, by then.
    backlog: Backlog,
    /// Where the guest stood at the last entry of a frame.
    framed_clock: Clock,
    /// Threads that wait for `Shared::changed`.
    waiting: u32,
}

#[derive(Default)]
pub(super) struct Out {
    pub(super) queue: Outgoing,
    /// The writer thread is to send the rest.
    blocked: bool,
}

/// Order of locks: `out` and `ledger` are never held together.
pub(super) struct Shared {
    pub(super) link: Link,
    pub(super) gate: SharedGate,
    pub(super) cursors: SharedCursors,
    pub(super) mode: AtomicU8,
    pub(super) buffer_max: u64,
    pub(super) lease: Arc<Lease>,
    pub(super) unprinted: Unprinted,
    /// Cost of everything appended, and of what was released of it.
    pub(super) appended_cost: AtomicU64,
    pub(super) released_cost: AtomicU64,
    /// [`Lag::drain_us`]: read at every entry to the guest.
    pub(super) drain_us: AtomicU64,
    /// What the next heartbeat calls: see [`Trust`].
    pub(super) call: AtomicU64,
    pub(super) ledger: Mutex<Ledger>,
    /// With `ledger`: room was made, everything was acked, or the mode changed.
    pub(super) changed: Condvar,
    pub(super) out: Mutex<Out>,
    /// With `out`: something for the writer, or nothing left.
    pub(super) writer: Condvar,
}

impl Shared {
    pub(super) fn new(link: Link, outlet: Box<dyn Outlet + Send>, options: SenderOptions) -> Self {
        let SenderOptions {
            buffer_max,
            lease,
            unprinted,
        } = options;
        Self {
            link,
            gate: SharedGate::new(outlet),
            cursors: SharedCursors::default(),
            mode: AtomicU8::new(Mode::Linked as u8),
            buffer_max,
            lease,
            unprinted,
            appended_cost: AtomicU64::new(0),
            released_cost: AtomicU64::new(0),
            drain_us: AtomicU64::new(0),
            call: AtomicU64::new(0),
            ledger: Mutex::default(),
            changed: Condvar::new(),
            out: Mutex::default(),
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

    pub(super) fn out(&self) -> MutexGuard<'_, Out> {
        self.out.lock().expect("no panic with the queue locked")
    }

    /// Changes the mode unless halted, and wakes everyone.
    pub(super) fn set_mode(&self, mode: Mode) {
        let ledger = self.ledger();
        if self.mode() != Mode::Halted {
            self.mode.store(mode as u8, SeqCst);
            match mode {
                Mode::Undecided => self.lease.suspend(),
                Mode::Solo => self.lease.free(),
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
        // The mode may be the owner's by then, and is not touched.
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
        let sent = {
            let mut out = self.out();
            out.queue.push(bytes, end);
            self.pump(&mut out)
        };
        if let Err(lost) = sent {
            self.send_failed(lost);
        }
    }

    /// Sends what the socket takes; the writer thread gets the rest.
    pub(super) fn pump(&self, out: &mut Out) -> Result<(), LinkLost> {
        if out.blocked {
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

    /// What has left. The cursor is read first: console outputs let out since then are behind it.
    fn delivered(&self) -> Delivered {
        let released = self.cursors.released();
        let printed = (self.unprinted)().map_or(released, |first| first.min(released));
        Delivered { released, printed }
    }

    /// Sends a sign of life; if the socket is full, only if it `must` be sent.
    fn beat(&self, must: bool) {
        let mut out = self.out();
        if !must && !out.queue.is_empty() {
            return;
        }
        let heartbeat = Heartbeat {
            delivered: self.delivered(),
            call: self.call.load(SeqCst),
        };
        let sent = out.queue.sent();
        out.queue.push(heartbeat.to_frame(), sent);
        let sent = self.pump(&mut out);
        drop(out);
        if let Err(lost) = sent {
            self.send_failed(lost);
        }
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

    /// Takes an ack: cursors, gate, room; in this order. Returns the microseconds spent in the outlet.
    fn acked(&self, ack: Ack, now: u64) -> Result<u64, LinkEnd> {
        let cost = self.settle(ack, now)?;
        self.cursors.advance_acked(ack.received);
        let begun = now_us();
        let emitted = self.gate.acked(ack.received);
        let outlet_us = now_us() - begun;
        emitted.map_err(|e| LinkEnd::OutletFailed(e.to_string()))?;
        self.cursors.advance_released(ack.received);
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
pub(super) fn read_acks(shared: &Shared, incoming: FrameBuffer) {
    if let Err(end) = Reader::new(shared, incoming, now_us(), boot_us()).run() {
        shared.end(end);
    }
}

/// What the reader thread knows of the stream.
struct Reader<'a> {
    shared: &'a Shared,
    incoming: FrameBuffer,
    /// When it last read.
    read_us: u64,
    /// The same on the clock that pauses are told by.
    read_boot_us: u64,
    trust: Trust,
    /// When the lease was last renewed.
    renewed_us: u64,
}

impl<'a> Reader<'a> {
    fn new(shared: &'a Shared, incoming: FrameBuffer, now: u64, boot_us: u64) -> Self {
        Self {
            shared,
            incoming,
            read_us: now,
            read_boot_us: boot_us,
            trust: Trust::new(shared.link.settings),
            renewed_us: now,
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

    /// Something was read at `now`, which is `boot_us` on the clock that goes on while the host is
    /// suspended, `outlet_us` of the time before it having been spent in the outlet.
    fn read_at(&mut self, now: u64, boot_us: u64, outlet_us: u64) -> Result<(), LinkLost> {
        // A pause within the outlet is not seen here, but by the lease.
        let waited_us = boot_us.saturating_sub(self.read_boot_us.saturating_add(outlet_us));
        (self.read_us, self.read_boot_us) = (now, boot_us);
        if let Some(call) = self.trust.read(waited_us)? {
            self.shared.call.store(call, SeqCst);
            self.shared.beat(true);
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
                            ack = Some(newer).filter(|ack| self.trust.has(ack.answers))
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
                self.renew(now);
            }
            outlet_us = self.shared.acked(ack, now)?;
        }
        end.map_or(Ok(outlet_us), Err)
    }

    /// Renews the lease, for an ack that is believed: one from before a pause says nothing of who is live
    /// now. Before the outlet, so that the time spent there is not added.
    fn renew(&mut self, now: u64) {
        if now.saturating_sub(self.renewed_us) >= RENEWAL_US {
            self.renewed_us = now;
            self.shared.lease.heard();
        }
    }
}

/// Sends what did not fit into the socket.
pub(super) fn write_rest(shared: &Shared) {
    loop {
        let mut out = shared.out();
        while !out.blocked && !shared.link.over() {
            out = shared
                .writer
                .wait(out)
                .expect("no panic with the queue locked");
        }
        drop(out);
        if shared.link.over() {
            return;
        }
        shared.link.wait_writable();
        let mut out = shared.out();
        out.blocked = false;
        let sent = shared.pump(&mut out);
        let emptied = out.queue.is_empty();
        drop(out);
        if let Err(lost) = sent {
            return shared.send_failed(lost);
        }
        if emptied {
            shared.writer.notify_all();
        }
    }
}

/// Sends heartbeats, and ends the link when the backup is silent.
pub(super) fn watch(shared: &Shared) {
    let mut told = Delivered::default();
    let beat = |nothing_sent: bool| {
        let delivered = shared.delivered();
        if nothing_sent || delivered != told {
            shared.beat(false);
            told = delivered;
        }
    };
    shared.link.watch(beat, |lost| shared.lose(lost));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::messages::{Settings, Settled};
    use replay::{InputsError, Output};
    use std::cell::Cell;
    use std::net::{TcpListener, TcpStream};

    const SETTINGS: Settings = Settings {
        heartbeat_ms: 20,
        suspect_ms: 300,
    };

    thread_local! {
        static NOW: Cell<u64> = const { Cell::new(0) };
    }

    struct Nowhere;
    impl Outlet for Nowhere {
        fn emit(&mut self, _: LogIndex, _: Output) -> Result<(), InputsError> {
            Ok(())
        }
    }

    /// A linked primary on the clock `NOW`, and the other end of its socket.
    fn linked() -> (Shared, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let link = Link::new(near, SETTINGS, Box::new(|_| {})).unwrap();
        let lease = Lease::on_clock(|| NOW.get());
        lease.begin(Settled {
            settings: SETTINGS,
            round_trip_us: 0,
        });
        let options = SenderOptions {
            lease,
            ..SenderOptions::default()
        };
        let shared = Shared::new(link, Box::new(Nowhere), options);
        (shared, listener.accept().unwrap().0)
    }

    /// An ack that answers the call `answers` is read at `ms`.
    fn read(reader: &mut Reader<'_>, ms: u64, answers: u64) {
        NOW.set(ms * 1_000);
        let ack = Ack {
            answers,
            ..Ack::default()
        };
        let bytes = ack.to_frame();
        reader.incoming.space()[..bytes.len()].copy_from_slice(&bytes);
        reader.incoming.filled(bytes.len());
        reader.read_at(ms * 1_000, ms * 1_000, 0).unwrap();
        reader.take().unwrap();
    }

    #[test]
    fn acks_that_are_not_believed_do_not_renew_the_lease() {
        let (shared, _backup) = linked();
        let mut reader = Reader::new(&shared, FrameBuffer::new(), 0, 0);
        for ms in (20..=1_000).step_by(20) {
            read(&mut reader, ms, 0);
            assert_eq!(shared.lease.held(), Some(true), "at {ms} ms");
        }
        // A pause, and after it acks from before it, one at a time, for longer than a lease waits.
        for ms in (2_000..2_500).step_by(20) {
            read(&mut reader, ms, 0);
            assert_eq!(shared.lease.held(), None, "at {ms} ms");
        }
        let call = shared.call.load(SeqCst);
        for ms in (2_500..2_800).step_by(20) {
            read(&mut reader, ms, call);
            assert_eq!(shared.lease.held(), None, "at {ms} ms");
        }
        read(&mut reader, 2_800, call);
        assert_eq!(shared.lease.held(), Some(true));
    }

    #[test]
    fn a_suspended_host_is_a_pause() {
        let (shared, _backup) = linked();
        let mut reader = Reader::new(&shared, FrameBuffer::new(), 0, 0);
        reader.read_at(20_000, 20_000, 0).unwrap();
        assert_eq!(shared.call.load(SeqCst), 0);
        reader.read_at(40_000, 1_000_000, 0).unwrap();
        assert_eq!(shared.call.load(SeqCst), 1);
        reader.read_at(60_000, 1_020_000, 0).unwrap();
        reader.read_at(4_060_000, 5_020_000, 3_900_000).unwrap();
        assert_eq!(shared.call.load(SeqCst), 1, "the outlet took its time");
    }
}
