//! A split virtqueue (virtio 1.2, section 2.7), by `virtio-queue`.
//!
//! Its content is the guest's: whatever it says, a look at it is bounded and never panics. A chain is
//! followed for at most as many descriptors as the queue has; indirect tables are not offered, and a
//! chain that uses one all the same is followed within the same bound.

use crate::memory::GuestMemory;
use serde::{Deserialize, Serialize};
use std::sync::atomic::Ordering;
use virtio_bindings::bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueOwnedT, QueueState, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

/// A virtqueue.
pub struct Ring {
    queue: Queue,
}

/// One piece of a chain's memory, checked to lie in RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// Guest address.
    pub address: u64,
    /// Bytes.
    pub length: u32,
}

/// A chain the driver made available.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// Its first descriptor, by which it is returned.
    pub head: u16,
    /// What the device reads.
    pub readable: Vec<Piece>,
    /// What the device writes.
    pub writable: Vec<Piece>,
    /// A piece lies outside memory, a readable one follows a writable one, or the chain has no end.
    pub broken: bool,
}

/// Bytes in all of `pieces`.
#[must_use]
pub fn length(pieces: &[Piece]) -> u64 {
    pieces.iter().map(|piece| u64::from(piece.length)).sum()
}

/// Copies the first `most` bytes of `pieces` out of guest memory.
#[must_use]
pub fn gather(memory: &GuestMemory, pieces: &[Piece], most: usize) -> Vec<u8> {
    let total = usize::try_from(length(pieces))
        .unwrap_or(usize::MAX)
        .min(most);
    let mut bytes = vec![0; total];
    let mut at = 0;
    for piece in pieces {
        let count = (piece.length as usize).min(total - at);
        if memory
            .read_slice(&mut bytes[at..at + count], GuestAddress(piece.address))
            .is_err()
        {
            bytes.truncate(at);
            break;
        }
        at += count;
    }
    bytes
}

/// Copies `bytes` into `pieces`, as far as they go; how many were copied.
pub fn scatter(memory: &GuestMemory, pieces: &[Piece], bytes: &[u8]) -> usize {
    let mut at = 0;
    for piece in pieces {
        let count = (piece.length as usize).min(bytes.len() - at);
        if memory
            .write_slice(&bytes[at..at + count], GuestAddress(piece.address))
            .is_err()
        {
            break;
        }
        at += count;
    }
    at
}

/// A ring's registers, as saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    next_avail: u16,
    next_used: u16,
    size: u16,
    ready: bool,
    desc_table: u64,
    avail_ring: u64,
    used_ring: u64,
}

impl Ring {
    /// A ring not set up yet, of at most `max_size` entries (a power of two).
    ///
    /// # Panics
    /// If `max_size` is not a power of two: a bug of the device.
    #[must_use]
    pub fn new(max_size: u16) -> Self {
        Self {
            queue: Queue::new(max_size).expect("a power of two"),
        }
    }

    /// The registers, for the transport.
    pub fn registers(&mut self) -> &mut Queue {
        &mut self.queue
    }

    /// Whether the driver has set it up.
    #[must_use]
    pub fn ready(&self) -> bool {
        self.queue.ready()
    }

    /// Whether all of it lies in guest memory.
    #[must_use]
    pub fn is_valid(&self, memory: &GuestMemory) -> bool {
        self.queue.is_valid(memory)
    }

    /// Most entries the driver may choose.
    #[must_use]
    pub fn max_size(&self) -> u16 {
        self.queue.max_size()
    }

    /// Chains available and not taken yet, at most the queue's size. `None`: the driver's index is one
    /// no driver can have come to.
    #[must_use]
    pub fn available(&self, memory: &GuestMemory) -> Option<u16> {
        if !self.queue.ready() {
            return Some(0);
        }
        let index = self.queue.avail_idx(memory, Ordering::Acquire).ok()?;
        let count = index.0.wrapping_sub(self.queue.next_avail());
        (count <= self.queue.size()).then_some(count)
    }

    /// Takes the next chain.
    pub fn pop(&mut self, memory: &GuestMemory) -> Option<Chain> {
        if !self.queue.ready() {
            return None;
        }
        let bound = usize::from(self.queue.size());
        let descriptors = self.queue.pop_descriptor_chain(memory)?;
        let mut chain = Chain {
            head: descriptors.head_index(),
            ..Chain::default()
        };
        let mut goes_on = false;
        for descriptor in descriptors.take(bound) {
            chain.add(memory, &descriptor);
            goes_on = descriptor.has_next();
        }
        // A loop, or a next descriptor that is not in the table.
        chain.broken |= goes_on;
        Some(chain)
    }

    /// Makes the chain taken last available again.
    pub fn put_back(&mut self) {
        self.queue.go_to_previous_position();
    }

    /// Gives a chain back, `written` bytes of it having been written; whether the driver wants an
    /// interrupt for it.
    pub fn push(&mut self, memory: &GuestMemory, head: u16, written: u32) -> bool {
        if !self.queue.ready() || self.queue.add_used(memory, head, written).is_err() {
            return false;
        }
        let flags: u16 = memory
            .read_obj(GuestAddress(self.queue.avail_ring()))
            .unwrap_or(0);
        u32::from(flags) & VRING_AVAIL_F_NO_INTERRUPT == 0
    }

    /// The driver took the queue out of use: it begins anew if it is ever used again.
    pub fn stop(&mut self) {
        self.queue.set_ready(false);
        self.queue.set_next_avail(0);
        self.queue.set_next_used(0);
    }

    /// The driver reset the device.
    pub fn reset(&mut self) {
        self.queue.reset();
    }

    /// Its registers.
    #[must_use]
    pub fn save(&self) -> State {
        let s = self.queue.state();
        State {
            next_avail: s.next_avail,
            next_used: s.next_used,
            size: s.size,
            ready: s.ready,
            desc_table: s.desc_table,
            avail_ring: s.avail_ring,
            used_ring: s.used_ring,
        }
    }

    /// A ring with these registers.
    ///
    /// # Errors
    /// If no ring of `max_size` can have them.
    pub fn restore(max_size: u16, state: &State) -> Result<Self, &'static str> {
        let queue = Queue::try_from(QueueState {
            max_size,
            next_avail: state.next_avail,
            next_used: state.next_used,
            event_idx_enabled: false,
            size: state.size,
            ready: state.ready,
            desc_table: state.desc_table,
            avail_ring: state.avail_ring,
            used_ring: state.used_ring,
        });
        queue
            .map(|queue| Self { queue })
            .map_err(|_| "a virtqueue's registers out of range")
    }
}

impl Chain {
    fn add(&mut self, memory: &GuestMemory, descriptor: &Descriptor) {
        let piece = Piece {
            address: descriptor.addr().0,
            length: descriptor.len(),
        };
        let there =
            piece.length == 0 || memory.check_range(descriptor.addr(), piece.length as usize);
        if !there || (!descriptor.is_write_only() && !self.writable.is_empty()) {
            self.broken = true;
        } else if descriptor.is_write_only() {
            self.writable.push(piece);
        } else {
            self.readable.push(piece);
        }
    }
}

#[cfg(test)]
#[path = "ring_tests.rs"]
mod tests;
