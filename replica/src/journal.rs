//! Where the entries of a replica that leads go, and where its outputs do.

// The vCPU's thread runs here (see clippy.toml).
#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

use crate::brake::{Brake, Moment};
use crate::gatekeeper::{GateOutlet, Gatekeeper};
use crate::outside::Outside;
use crate::reads::Reads;
use logchannel::{Bye, Sender, SenderHandle, clock};
use replay::file::LogWriter;
use replay::{
    Arrival, Event, InputsError, LogEntry, LogError, LogIndex, LogPlace, LogSink, NoLog, Outlet,
    Output,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Where the entries of a replica that leads go.
pub enum Journal {
    /// Nowhere: nobody follows. They are numbered all the same.
    Alone(NoLog),
    /// To a file.
    File(Box<LogWriter>),
    /// To a backup.
    Linked(Box<Channel>),
}

impl Journal {
    /// For a replica nobody follows.
    #[must_use]
    pub fn alone() -> Self {
        Self::Alone(NoLog::default())
    }

    /// The guest came to its end: the backup, if there is one, is told so with `bye`, once the guest's last
    /// words are where their reader finds them.
    pub fn leave(&mut self, bye: Bye) {
        if let Self::Linked(channel) = self {
            channel.leave(bye);
        }
    }

    /// Sends to the backup, if there is one, what it is to get and has not got yet.
    ///
    /// # Errors
    /// As [`LogSink::flush`].
    pub(crate) fn send(&mut self) -> Result<(), LogError> {
        match self {
            Self::Linked(channel) => channel.sender.flush(),
            Self::Alone(_) | Self::File(_) => Ok(()),
        }
    }

    fn sink(&mut self) -> &mut dyn LogSink {
        match self {
            Self::Alone(none) => none,
            Self::File(file) => &mut **file,
            Self::Linked(channel) => &mut **channel,
        }
    }
}

impl LogSink for Journal {
    fn append(&mut self, entry: &LogEntry) -> Result<LogIndex, LogError> {
        self.sink().append(entry)
    }

    fn flush(&mut self) -> Result<(), LogError> {
        self.sink().flush()
    }

    fn place(&self) -> LogPlace {
        match self {
            Self::Alone(none) => none.place(),
            Self::File(file) => file.place(),
            Self::Linked(channel) => channel.place(),
        }
    }

    fn before_entry(&mut self) -> Result<(), LogError> {
        self.sink().before_entry()
    }

    fn is_followed(&self) -> bool {
        match self {
            Self::Alone(none) => none.is_followed(),
            Self::File(file) => file.is_followed(),
            Self::Linked(channel) => channel.is_followed(),
        }
    }
}

/// The logging channel, with a brake.
pub struct Channel {
    sender: Sender,
    handle: SenderHandle,
    brake: Brake,
    /// Microseconds the brake has held the guest, for the counters.
    braked_us: Arc<AtomicU64>,
    /// The clock by which all memory was digested once, behind a join.
    memory_seen: Arc<AtomicU64>,
    outside: Arc<Outside>,
    /// The guest has printed since the last flush.
    has_printed: Arc<AtomicBool>,
    /// What the backup reads from the disk itself.
    reads: Arc<Reads>,
    /// Longest wait for the console's reader before the backup is told that this is the end.
    last_words: Duration,
}

impl Channel {
    /// The channel behind `sender`, and the way for outputs into the gate that `keeper` keeps for it.
    /// `last_words`: the longest wait for the console's reader.
    pub fn new(
        sender: Sender,
        keeper: &Arc<Gatekeeper>,
        brake: Brake,
        braked_us: Arc<AtomicU64>,
        outside: Arc<Outside>,
        last_words: Duration,
    ) -> (Self, Exit) {
        let has_printed = Arc::new(AtomicBool::new(false));
        let reads = outside.disk.reads().clone();
        let exit = Exit::Gate {
            gate: keeper.outlet(sender.handle()),
            has_printed: has_printed.clone(),
        };
        let channel = Self {
            handle: sender.handle(),
            sender,
            brake,
            braked_us,
            memory_seen: Arc::default(),
            outside,
            has_printed,
            reads,
            last_words,
        };
        (channel, exit)
    }

    /// Where it is left at which clock all memory was digested once; 0 before.
    #[must_use]
    pub fn memory_seen(&self) -> Arc<AtomicU64> {
        self.memory_seen.clone()
    }

    /// The backup reads the disk itself from here on, where these requests are under way. To be called where no link
    /// before it can say anything any more.
    pub(crate) fn begin_reads(&self, under_way: &[Output]) {
        self.reads.begin(under_way);
        // One that died right after its welcome reads nothing, and whoever noticed that may have been here before.
        if !self.is_followed() {
            self.reads.free();
        }
    }

    /// Appends `entry` without the data of a disk read that the backup may do itself, if it ends one; else as it is.
    fn append_entry(&mut self, entry: &LogEntry) -> Result<LogIndex, LogError> {
        let Event::Arrival(Arrival::DiskDone { tag, ok, .. }) = entry.event else {
            return self.sender.append(entry);
        };
        let Some(bytes) = self.reads.ended(tag, ok) else {
            return self.sender.append(entry);
        };
        let without = LogEntry {
            clock: entry.clock,
            stand: entry.stand,
            anchor: entry.anchor,
            event: Event::Arrival(Arrival::DiskRead { tag }),
        };
        let index = self.sender.append(&without)?;
        // Before the guest can make a write that has to wait for it, and before the entry is sent.
        self.reads.logged(index, bytes);
        Ok(index)
    }

    fn leave(&mut self, bye: Bye) {
        // Nobody says the guest's last words once the backup was told that this is the end. If the link is
        // lost meanwhile the control thread hears of that first, and contends.
        if self.sender.wait_acked() {
            // A write that is let go on by the end could else overtake a read.
            self.reads.wait_all();
            self.outside.finish_console(self.last_words);
        }
        self.sender.bye(bye);
    }

    /// Holds the vCPU while its backup lags behind (P15). Acks, heartbeats and released outputs are other
    /// threads' work and go on.
    fn hold(&mut self) -> Result<(), LogError> {
        let mut flushed = false;
        while self.handle.is_linked() {
            let now = Moment {
                wall_us: clock::now_us(),
                cpu_us: clock::thread_cpu_us(),
            };
            let pause_us = self.brake.pause_us(self.handle.drain_us(), now);
            if pause_us == 0 {
                return Ok(());
            }
            if !std::mem::replace(&mut flushed, true) {
                self.sender.flush()?;
            }
            // Sleeping reads no clock.
            std::thread::sleep(Duration::from_micros(pause_us));
            self.braked_us.fetch_add(pause_us, Ordering::Relaxed);
        }
        self.brake.release();
        Ok(())
    }
}

impl LogSink for Channel {
    fn append(&mut self, entry: &LogEntry) -> Result<LogIndex, LogError> {
        let index = self.append_entry(entry)?;
        if entry.stand.is_none() {
            self.sender.flush()?;
        }
        Ok(index)
    }

    fn flush(&mut self) -> Result<(), LogError> {
        self.sender.flush()?;
        // With everything on its way, the vCPU may wait for a reader; the threads of the link do not.
        if self.has_printed.swap(false, Ordering::Relaxed) {
            self.outside.wait_for_console();
        }
        Ok(())
    }

    fn place(&self) -> LogPlace {
        self.sender.place()
    }

    fn before_entry(&mut self) -> Result<(), LogError> {
        if self.brake.is_on(self.handle.drain_us()) {
            return self.hold();
        }
        Ok(())
    }

    fn is_followed(&self) -> bool {
        self.sender.is_followed()
    }
}

/// The way out for what the guest of a replica that leads makes, on its vCPU's thread.
pub enum Exit {
    /// At once.
    Open(Arc<Outside>),
    /// Through the gate of a link.
    Gate {
        /// That gate.
        gate: GateOutlet,
        /// To be set when the guest has printed.
        has_printed: Arc<AtomicBool>,
    },
}

impl Outlet for Exit {
    fn emit(&mut self, index: LogIndex, output: Output) -> Result<(), InputsError> {
        let printed = matches!(output, Output::Console(_));
        match self {
            Self::Open(outside) => {
                outside.emit(index, output);
                if printed {
                    outside.wait_for_console();
                }
                Ok(())
            }
            Self::Gate { gate, has_printed } => {
                if printed {
                    has_printed.store(true, Ordering::Relaxed);
                }
                gate.emit(index, output)
            }
        }
    }
}
