//! What a client prepares before EXEC: the keys it watches and the commands it has queued.
//!
//! ```text
//!           MULTI ──▶ open ── a command ──▶ queued ──▶ EXEC: all of them at once, or none
//! WATCH ──▶ watched ──────────── one of them has changed ──▶ none: null
//!           open ── an error while queueing ──▶ failed ────▶ none: EXECABORT
//! ```

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::frame::{Args, Span};
use crate::store::{Full, Store, copy};
use crate::watch::Watches;

/// A key a client watches.
#[derive(Debug)]
struct Watch {
    key: Box<[u8]>,
    /// The number of its state when the watch began.
    state: u64,
}

/// Commands for later, one after the other in one buffer.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    bytes: Vec<u8>,
    spans: Vec<Span>,
    /// Where in `spans` each command ends.
    ends: Vec<usize>,
}

impl Queue {
    /// Bytes by which the buffers may grow for a command.
    fn growth(&self, args: Args<'_>) -> usize {
        fn grown<T>(buffer: &Vec<T>, more: usize) -> usize {
            let spare = buffer.capacity() - buffer.len();
            // A buffer that is too small becomes twice as large, or as large as it must, but not tiny.
            let grown = buffer.capacity().max(more).max(8);
            if more <= spare {
                0
            } else {
                grown * size_of::<T>()
            }
        }
        let bytes = args.from(0).map(<[u8]>::len).sum();
        grown(&self.bytes, bytes) + grown(&self.spans, args.len()) + grown(&self.ends, 1)
    }

    /// Appends a command.
    fn push(&mut self, args: Args<'_>) -> Result<(), Full> {
        let bytes: usize = args.from(0).map(<[u8]>::len).sum();
        // A span counts in 32 bits.
        if bytes > u32::MAX as usize - self.bytes.len() {
            return Err(Full);
        }
        let reserved = self.bytes.try_reserve(bytes);
        reserved
            .and_then(|()| self.spans.try_reserve(args.len()))
            .and_then(|()| self.ends.try_reserve(1))
            .map_err(|_| Full)?;
        for arg in args.from(0) {
            let start = self.bytes.len() as u32;
            self.bytes.extend_from_slice(arg);
            let end = self.bytes.len() as u32;
            self.spans.push(Span { start, end });
        }
        self.ends.push(self.spans.len());
        Ok(())
    }

    /// How many commands there are.
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The commands, in the order they came.
    pub(crate) fn commands(&self) -> impl Iterator<Item = Args<'_>> {
        let mut start = 0;
        self.ends.iter().map(move |&end| {
            let spans = &self.spans[core::mem::replace(&mut start, end)..end];
            Args::new(&self.bytes, spans)
        })
    }

    fn footprint(&self) -> usize {
        self.bytes.capacity()
            + self.spans.capacity() * size_of::<Span>()
            + self.ends.capacity() * size_of::<usize>()
    }
}

/// A client's transaction.
#[derive(Debug, Default)]
pub(crate) struct Transaction {
    open: bool,
    failed: bool,
    queue: Queue,
    watches: Vec<Watch>,
    /// Bytes all the watches take.
    watch_bytes: usize,
}

impl Transaction {
    /// Whether commands are to be queued.
    #[inline]
    pub(crate) fn is_open(&self) -> bool {
        self.open
    }

    /// Begins to queue.
    pub(crate) fn open(&mut self) {
        self.open = true;
    }

    /// A command could not be queued: nothing will be done.
    pub(crate) fn fail(&mut self) {
        self.failed = self.open;
    }

    /// Whether a command could not be queued.
    pub(crate) fn has_failed(&self) -> bool {
        self.failed
    }

    /// Queues a command, if that takes no more than `room` bytes.
    pub(crate) fn queue(&mut self, args: Args<'_>, room: usize) -> Result<(), Full> {
        let growth = self.queue.growth(args);
        if growth > room {
            return Err(Full);
        }
        self.queue.push(args)
    }

    /// Watches `key`, if that takes no more than `room` bytes. Returns what it takes.
    pub(crate) fn watch(
        &mut self,
        store: &mut Store,
        key: &[u8],
        room: usize,
    ) -> Result<usize, Full> {
        let bytes = Watches::bytes(key);
        if bytes > room {
            return Err(Full);
        }
        self.watches.try_reserve(1).map_err(|_| Full)?;
        let copied = copy(key)?.into_boxed_slice();
        let state = store.watch(key)?;
        self.watches.push(Watch { key: copied, state });
        self.watch_bytes += bytes;
        Ok(bytes)
    }

    /// Whether a watched key has changed.
    pub(crate) fn is_stale(&self, store: &mut Store) -> bool {
        let mut watches = self.watches.iter();
        watches.any(|watch| store.state_of(&watch.key) != watch.state)
    }

    /// Ends all watches.
    pub(crate) fn unwatch(&mut self, store: &mut Store) {
        for watch in core::mem::take(&mut self.watches) {
            store.unwatch(&watch.key);
        }
        self.watch_bytes = 0;
    }

    /// Ends the transaction and its watches, and returns what was queued.
    pub(crate) fn close(&mut self, store: &mut Store) -> Queue {
        self.unwatch(store);
        core::mem::take(self).queue
    }

    /// Bytes of memory held.
    #[inline]
    pub(crate) fn footprint(&self) -> usize {
        self.watch_bytes + self.queue.footprint()
    }
}
