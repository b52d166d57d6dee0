//! The block device.
//!
//! ```text
//! request chain:  header (type, sector) | data, 0 or 1 segment | status byte
//! ```

use super::{Error, mmio::Registers, queue::Queue, queue::Segment, shared_memory};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};

/// Bytes of a sector.
pub const SECTOR: usize = 512;
/// Requests that can be outstanding.
pub const REQUESTS: usize = 16;

/// Type of a block device.
const DEVICE_ID: u32 = 2;
/// The device has a cache that a flush request empties.
const FEATURE_FLUSH: u64 = 1 << 9;

const DESCRIPTORS: usize = 64;
/// Descriptors set aside for one request.
const CHAIN: usize = DESCRIPTORS / REQUESTS;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;

/// `struct virtio_blk_req`, without the data.
#[repr(C)]
struct Request {
    kind: AtomicU32,
    reserved: u32,
    sector: AtomicU64,
    status: AtomicU8,
}

/// Bytes of the part the device reads.
const HEADER: u32 = 16;

/// A status byte no device writes.
const UNANSWERED: u8 = 0xff;

/// Names an outstanding request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket(u16);

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// Which it was.
    pub ticket: Ticket,
    /// Whether the device succeeded.
    pub ok: bool,
    /// Bytes the device wrote: the data and the status byte.
    pub written: u32,
}

/// The block device.
///
/// Requests get going with [`Block::submit`], and may end in any order. At most [`REQUESTS`] are
/// outstanding.
pub struct Block {
    registers: Registers,
    queue: Queue<DESCRIPTORS>,
    requests: &'static [Request; REQUESTS],
    free: Vec<u16>,
    /// Requests were begun since the device was last notified.
    unannounced: bool,
    can_flush: bool,
    sectors: u64,
}

impl Block {
    /// Sets up the block device at [`abi::BLOCK_PAGE`], and lets its interrupt through.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn open() -> Result<Self, Error> {
        let (registers, features) = Registers::open(abi::BLOCK_PAGE, DEVICE_ID, FEATURE_FLUSH)?;
        let sectors = u64::from(registers.config(0)) | u64::from(registers.config(4)) << 32;
        let queue = Queue::new(&registers, 0)?;
        // SAFETY: all fields are integers, of which zero is a value, and the memory stays.
        let requests: &[Request; REQUESTS] = unsafe { shared_memory().as_ref() };
        registers.start();
        crate::interrupt::enable(abi::BLOCK_IRQ);
        Ok(Self {
            registers,
            queue,
            requests,
            free: (0..REQUESTS as u16).rev().collect(),
            unannounced: false,
            can_flush: features & FEATURE_FLUSH != 0,
            sectors,
        })
    }

    /// Capacity in sectors.
    #[must_use]
    pub fn sectors(&self) -> u64 {
        self.sectors
    }

    /// Begins to read from `sector` on into `buffer`; `None` if too much is outstanding.
    ///
    /// # Safety
    /// `buffer` is valid for writes until the request has ended, and whoever reads it before expects
    /// it to change.
    pub unsafe fn read(&mut self, sector: u64, buffer: *mut [u8]) -> Option<Ticket> {
        self.begin(IN, sector, Some((buffer.cast_const(), true)))
    }

    /// Begins to write `buffer` from `sector` on; `None` if too much is outstanding.
    ///
    /// # Safety
    /// `buffer` is valid for reads until the request has ended.
    pub unsafe fn write(&mut self, sector: u64, buffer: *const [u8]) -> Option<Ticket> {
        self.begin(OUT, sector, Some((buffer, false)))
    }

    /// Begins to make all writes that have ended durable; `None` if too much is outstanding.
    ///
    /// # Panics
    /// If the device did not offer to flush: it has no cache then, see [`Block::can_flush`].
    pub fn flush(&mut self) -> Option<Ticket> {
        assert!(self.can_flush, "the block device has nothing to flush");
        self.begin(FLUSH, 0, None)
    }

    /// Whether the device has a cache to flush.
    #[must_use]
    pub fn can_flush(&self) -> bool {
        self.can_flush
    }

    fn begin(
        &mut self,
        kind: u32,
        sector: u64,
        data: Option<(*const [u8], bool)>,
    ) -> Option<Ticket> {
        let slot = self.free.pop()?;
        let request = &self.requests[usize::from(slot)];
        request.kind.store(kind, Relaxed);
        request.sector.store(sector, Relaxed);
        request.status.store(UNANSWERED, Relaxed);
        let segment = |pointer: *const u8, len, device_writes| Segment {
            address: pointer.expose_provenance() as u64,
            len,
            device_writes,
        };
        let header = segment((&raw const *request).cast(), HEADER, false);
        let status = segment(request.status.as_ptr(), 1, true);
        let head = slot * CHAIN as u16;
        match data {
            Some((bytes, device_writes)) => {
                let len = u32::try_from(bytes.len()).expect("a request of more than 4 GiB");
                let data = segment(bytes.cast(), len, device_writes);
                self.queue.describe(head, &[header, data, status]);
            }
            None => self.queue.describe(head, &[header, status]),
        }
        self.queue.offer(head);
        self.unannounced = true;
        Some(Ticket(slot))
    }

    /// Tells the device of the requests begun, if there are any it has not been told of.
    pub fn submit(&mut self) {
        if core::mem::take(&mut self.unannounced) {
            self.queue.notify(&self.registers);
        }
    }

    /// Whether [`Block::take_completion`] has something to return.
    #[inline]
    #[must_use]
    pub fn has_completion(&self) -> bool {
        self.queue.has_used()
    }

    /// The next request that has ended.
    ///
    /// # Panics
    /// If the device ends a request that is not outstanding, or says nothing of its outcome.
    pub fn take_completion(&mut self) -> Option<Completion> {
        let (head, written) = self.queue.take_used()?;
        let slot = head / CHAIN as u16;
        let status = self.requests[usize::from(slot)].status.load(Relaxed);
        assert!(
            usize::from(head).is_multiple_of(CHAIN)
                && !self.free.contains(&slot)
                && status != UNANSWERED,
            "the block device ended chain {head} with status {status}"
        );
        self.free.push(slot);
        Some(Completion {
            ticket: Ticket(slot),
            ok: status == 0,
            written,
        })
    }

    /// Sleeps until a request has ended or another interrupt has come (see
    /// [`crate::interrupt::idle`]). Submits first.
    pub fn wait(&mut self) {
        self.submit();
        self.queue.set_interrupts(true);
        if !self.queue.has_used() {
            crate::interrupt::idle();
        }
        self.queue.set_interrupts(false);
    }
}
