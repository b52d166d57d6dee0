//! The primary's end of a link.
//!
//! ```text
//!  vCPU:   append ─▶ open frame ──flush──▶ socket, as far as it has room
//!                                   └ rest ▶ writer thread ─▶ socket
//!  reader thread:   socket ─▶ Ack ─▶ cursors ─▶ Leader::acked (its outputs leave in this very thread)
//!  watcher thread:  heartbeats out, suspicion
//!
//!  Linked ──link ends──▶ Undecided ──solo()──▶ Solo    entries are numbered and dropped
//!    │                      │ (append waits)
//!    └──────────halt()──────┴──────────────▶ Halted    append fails
//! ```
//!
//! The newest entry is never sent by the append that takes it, only by a later append or a flush. So an output
//! may be held for it right after it was appended, and still before the ack. What holds outputs is not known
//! here: see [`Leader`].

mod shared;

use self::shared::{Mode, SenderState, read_acks, watch, write_rest};
use crate::cursors::Cursors;
use crate::error::{LinkEnd, LinkLost};
use crate::framing::{FrameKind, PAYLOAD_MAX, seal};
use crate::handshake::Connection;
use crate::leader::Leader;
use crate::link::{Link, join, spawn, spawn_watch};
use crate::messages::{Bye, ENTRIES_HEAD, ENTRIES_MAX, Entries};
use crate::metrics::{MetricsSnapshot, add};
use crate::tether::Tether;
use replay::codec::{ENTRY_MAX, Encoder};
use replay::{
    Base, Clock, InputsError, LogEntry, LogError, LogIndex, LogPlace, LogSink, ViewNumber,
};
use std::net::Shutdown;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::thread::JoinHandle;

/// A frame with more bytes than this takes no further entry.
const FRAME_TARGET: usize = 64 << 10;
const _: () = assert!(ENTRIES_HEAD + FRAME_TARGET + ENTRY_MAX + 8 <= PAYLOAD_MAX);
/// What an output in the gate costs beside its bytes.
const HELD_COST: u64 = 64;

/// How a sender is set up.
#[derive(Clone, Copy, Debug)]
pub struct SenderOptions {
    /// Bytes of entries and held outputs that may be unacked before the vCPU waits.
    pub buffer_max: u64,
}

impl Default for SenderOptions {
    fn default() -> Self {
        Self {
            buffer_max: 64 << 20,
        }
    }
}

/// How far the backup's execution is behind (execution lag), as far as its acks tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Lag {
    /// Entries appended and not executed.
    pub entries: u64,
    /// Age of the oldest of them when the last ack came, in microseconds; counted in steps of a
    /// millisecond. This is not its age now: while a slowed primary says nothing, there is nothing to ack.
    pub us: u64,
    /// How long the backup needs for what it was sent, at the speed it was seen to have, in microseconds. A
    /// failover would wait as long. It is as of the last ack or the last frame sent. As long as the speed is
    /// not known it is `us`.
    pub drain_us: u64,
    /// Where the backup's guest was last known to stand.
    pub executed_clock: Clock,
}

/// The primary's end of a link. As a [`LogSink`] it belongs to the vCPU thread.
///
/// Dropping it closes the link without a word, and whoever set it up is not told.
pub struct Sender {
    shared: Arc<SenderState>,
    encoder: Encoder,
    /// The frame being filled, its head left free.
    open: Vec<u8>,
    open_first: LogIndex,
    open_count: u16,
    /// Where the guest stood at the newest entry.
    last_clock: Clock,
    threads: Vec<JoinHandle<()>>,
}

impl Sender {
    /// Starts sending over `connection`, and tells `leader` of what concerns it. `on_end` is called once when the link has ended, by the thread that noticed: maybe the
    /// vCPU's, so it must neither wait nor read the clock.
    ///
    /// Threads started here inherit the caller's attributes: do not call it from a thread that has
    /// the TSC switched off already.
    ///
    /// # Errors
    /// If the system has no descriptors or threads left.
    pub fn start(
        connection: Connection,
        leader: Arc<dyn Leader>,
        options: SenderOptions,
        on_end: impl FnOnce(LinkEnd) + Send + 'static,
    ) -> std::io::Result<Self> {
        let Connection {
            socket,
            incoming,
            base,
            settled,
            remark: _,
            peer: _,
        } = connection;
        let link = Link::new(socket, settled.settings, Box::new(on_end))?;
        let shared = Arc::new(SenderState::new(link, base, leader, options));
        shared.leader.begins(settled);
        let mut sender = Self {
            shared: shared.clone(),
            encoder: Encoder::at(base.place()),
            open: vec![0; ENTRIES_HEAD],
            open_first: base.index,
            open_count: 0,
            last_clock: base.clock,
            threads: Vec::new(),
        };
        let (reader, writer, watcher) = (shared.clone(), shared.clone(), shared);
        sender.threads.push(spawn("log-acks", move || {
            reader.link.reads_here();
            read_acks(&reader, incoming);
        })?);
        sender
            .threads
            .push(spawn("log-writer", move || write_rest(&writer))?);
        sender.threads.push(spawn_watch(move || watch(&watcher))?);
        Ok(sender)
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

    /// What other threads may do with this sender.
    #[must_use]
    pub fn handle(&self) -> SenderHandle {
        SenderHandle(self.shared.clone())
    }

    /// Sends everything and waits until the backup has it. False if the link ended before that.
    pub fn wait_acked(&mut self) -> bool {
        self.send_open();
        let shared = &self.shared;
        let all = shared.cursors.appended();
        shared.wait_while(|_| shared.mode() == Mode::Linked && shared.cursors.released() < all);
        shared.cursors.released() >= all
    }

    /// Leaves in an orderly way: sends everything, waits until the backup has it and its outputs have
    /// left, says `bye` and waits until the backup has closed. Nobody contends after that.
    ///
    /// Returns false if the link ended before that. `on_end` has been told of it by then. So whoever hears of
    /// both hears of the lost link first, and does not believe that the outputs of the guest's end have left.
    pub fn bye(&mut self, bye: Bye) -> bool {
        // The link may be lost though everything is acked; then its loss decides what becomes of the lease.
        if !self.wait_acked() || self.shared.mode() != Mode::Linked {
            self.shared.wait_while(|_| !self.shared.link.told());
            return false;
        }
        let shared = &self.shared;
        shared.link.leaving.store(true, SeqCst);
        shared.link.untie();
        // Nobody goes live after this, so that what is still on its way may arrive.
        shared.leader.undisputed();
        let sent = {
            let mut out = shared.out();
            let sent = out.queue.sent();
            out.queue.push(bye.to_frame(), sent);
            let mut sent = shared.pump(&mut out);
            while sent.is_ok() && !out.is_idle() && !shared.link.over() {
                out = shared
                    .writer
                    .wait(out)
                    .expect("no panic with the queue locked");
            }
            if let (Ok(()), Err(source)) = (&sent, shared.link.socket.shutdown(Shutdown::Write)) {
                let what = "shut down";
                sent = Err(LinkLost::Io { what, source });
            }
            sent
        };
        if let Err(lost) = sent {
            shared.send_failed(lost);
        }
        shared.wait_while(|_| shared.mode() == Mode::Linked);
        true
    }

    fn send_open(&mut self) {
        if self.open_count == 0 {
            return;
        }
        let next = self.shared.out().queue.buffer();
        let mut frame = std::mem::replace(&mut self.open, next);
        self.open.resize(ENTRIES_HEAD, 0);
        let count = std::mem::take(&mut self.open_count);
        Entries::write_head(&mut frame, self.open_first, count);
        seal(FrameKind::Entries, &mut frame);
        if self.shared.mode() == Mode::Linked {
            let end = LogIndex(self.open_first.0 + u64::from(count));
            self.shared.send(frame, end, self.last_clock);
        }
    }

    fn wait_for_room(&mut self) {
        if !self.shared.is_full() {
            return;
        }
        add(&self.shared.link.metrics.stalls, 1);
        self.send_open();
        let shared = &self.shared;
        shared.wait_while(|_| shared.mode() == Mode::Linked && shared.is_full());
    }

    fn append_linked(&mut self, entry: &LogEntry) -> LogIndex {
        let before = self.open.len();
        self.encoder.encode(entry, &mut self.open);
        let bytes = self.open.len() - before;
        self.shared.appended_cost.fetch_add(bytes as u64, SeqCst);
        self.shared.link.metrics.entry(entry.event.kind(), bytes);
        let index = self.shared.cursors.append();
        self.last_clock = entry.clock;
        if self.open_count == 0 {
            self.open_first = index;
        }
        self.open_count += 1;
        index
    }
}

impl LogSink for Sender {
    /// Takes the next entry. Waits while the buffer is full, and from the end of the link until
    /// [`SenderHandle::solo`] or [`SenderHandle::halt`] says what becomes of this replica.
    fn append(&mut self, entry: &LogEntry) -> Result<LogIndex, LogError> {
        if self.open.len() >= FRAME_TARGET || usize::from(self.open_count) == ENTRIES_MAX {
            self.send_open();
        }
        self.wait_for_room();
        if self.shared.mode() == Mode::Linked {
            return Ok(self.append_linked(entry));
        }
        let shared = &self.shared;
        shared.wait_while(|_| shared.mode() == Mode::Undecided);
        match shared.mode() {
            Mode::Solo => {
                self.last_clock = entry.clock;
                Ok(shared.cursors.append())
            }
            _ => Err(LogError::Io {
                what: "append to the logging channel".into(),
                source: std::io::Error::other("this replica was halted"),
            }),
        }
    }

    fn place(&self) -> LogPlace {
        LogPlace {
            index: self.shared.cursors.appended(),
            clock: self.last_clock,
        }
    }

    fn flush(&mut self) -> Result<(), LogError> {
        self.send_open();
        Ok(())
    }

    fn is_followed(&self) -> bool {
        self.shared.mode() != Mode::Solo
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.shared
            .link
            .abandon(|| self.shared.set_mode(Mode::Halted));
        self.shared.leader.closed();
        join(&mut self.threads);
    }
}

/// What other threads may do with a sender.
#[derive(Clone)]
pub struct SenderHandle(Arc<SenderState>);

impl SenderHandle {
    /// The flag was won: opens the gate and lets the vCPU run on without a log.
    ///
    /// # Errors
    /// If a held output could not be delivered; nothing leaves any more then.
    ///
    /// # Panics
    /// If the link has not ended: outputs would leave before their entries are acked.
    pub fn solo(&self) -> Result<(), InputsError> {
        assert!(
            self.0.mode() != Mode::Linked,
            "a primary with a backup cannot be solo"
        );
        self.0.leader.solo()?;
        self.0.set_mode(Mode::Solo);
        Ok(())
    }

    /// Stops this replica for good: when this returns no output leaves any more, and appends fail.
    /// Closes the link if it is still up.
    pub fn halt(&self) {
        self.0.leader.halted();
        self.0.set_mode(Mode::Halted);
        self.0.end(LinkEnd::Left);
    }

    /// The entry after the last one executed by the backup, as far as it has said so.
    #[must_use]
    pub fn executed(&self) -> LogIndex {
        self.0.executed()
    }

    /// Where the log begins.
    #[must_use]
    pub fn base(&self) -> Base {
        self.0.base
    }

    /// Tells a joiner that it is the backup in `view`. A link that is lost meanwhile is told of as ever.
    pub fn welcome(&self, view: ViewNumber) {
        self.0.say(crate::messages::welcome_frame(view));
    }

    /// Tells the backup that this replica is going to leave it the machine, and waits at `port` of its host then, as
    /// a backup of its own. Once the backup has acked an entry that was sent later, it has heard it.
    pub fn yields(&self, port: NonZeroU16) {
        self.0.say(crate::messages::yield_frame(port));
    }

    /// The four cursors.
    #[must_use]
    pub fn cursors(&self) -> Cursors {
        self.0.cursors.snapshot()
    }

    /// Execution lag, as far as known.
    #[must_use]
    pub fn lag(&self) -> Lag {
        self.0.lag()
    }

    /// [`Lag::drain_us`]; cheap enough to be asked at every entry to the guest.
    #[must_use]
    pub fn drain_us(&self) -> u64 {
        self.0.drain_us.load(SeqCst)
    }

    /// Whether there is a backup to wait for: the link has not ended.
    #[must_use]
    pub fn is_linked(&self) -> bool {
        self.0.mode() == Mode::Linked
    }

    /// An output of `bytes` bytes is about to be held for the newest entry. It counts against the sender's
    /// buffer, until that entry is acked. Without a backup it counts nothing.
    pub fn hold_cost(&self, bytes: usize) {
        if self.0.mode() == Mode::Linked {
            let cost = bytes as u64 + HELD_COST;
            self.0.appended_cost.fetch_add(cost, SeqCst);
        }
    }

    /// Whether the two are tied ([`Sender::tie`]).
    #[must_use]
    pub fn is_tied(&self) -> bool {
        self.0.link.knot().is_tied()
    }

    /// Counters.
    #[must_use]
    pub fn metrics(&self) -> MetricsSnapshot {
        self.0.link.metrics.snapshot()
    }
}
