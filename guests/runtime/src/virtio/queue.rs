//! A split virtqueue (virtio 1.2, section 2.7), driver's side.
//!
//! ```text
//! descriptors  [address, length, flags, next] x SIZE
//! available    flags, index, head x SIZE            driver to device
//! used         flags, index, (head, length) x SIZE  device to driver
//! ```
//!
//! The device looks at the rings, and writes to them, only while the vCPU stands still, so the order of
//! plain stores is all it takes; atomics keep the compiler to that order.

use super::{Error, mmio::Registers, shared_memory};
use core::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering::*};

/// One part of a request: guest-physical address, length in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    pub address: u64,
    pub len: u32,
    /// Whether the device writes it (else it reads it).
    pub device_writes: bool,
}

/// The descriptor goes on in another.
const NEXT: u64 = 1;
/// The device writes to the buffer.
const WRITE: u64 = 2;
/// Available ring: the driver wants no interrupts.
const NO_INTERRUPT: u16 = 1;
/// Used ring: the device wants no notifications.
const NO_NOTIFY: u16 = 1;

#[repr(C, align(16))]
struct Descriptor {
    address: AtomicU64,
    /// Length (32 bits), flags (16), next (16).
    rest: AtomicU64,
}

#[repr(C)]
struct Available<const SIZE: usize> {
    flags: AtomicU16,
    index: AtomicU16,
    ring: [AtomicU16; SIZE],
    used_event: AtomicU16,
}

#[repr(C)]
struct UsedElement {
    head: AtomicU32,
    len: AtomicU32,
}

#[repr(C, align(4))]
struct Used<const SIZE: usize> {
    flags: AtomicU16,
    index: AtomicU16,
    ring: [UsedElement; SIZE],
    available_event: AtomicU16,
}

#[repr(C, align(4096))]
struct Rings<const SIZE: usize> {
    descriptors: [Descriptor; SIZE],
    available: Available<SIZE>,
    used: Used<SIZE>,
}

/// A queue of `SIZE` descriptors, a power of two.
pub(super) struct Queue<const SIZE: usize> {
    rings: &'static Rings<SIZE>,
    index: u16,
    available: u16,
    seen: u16,
}

impl<const SIZE: usize> Queue<SIZE> {
    /// Makes the device's queue `index`. It lives as long as the guest does. Interrupts are off.
    pub(super) fn new(registers: &Registers, index: u16) -> Result<Self, Error> {
        const { assert!(SIZE.is_power_of_two() && SIZE <= 32768) };
        // SAFETY: all fields are atomics, of which zero is a value, and the memory stays.
        let rings: &Rings<SIZE> = unsafe { shared_memory().as_ref() };
        rings.available.flags.store(NO_INTERRUPT, Relaxed);
        let address = |part: *const ()| part.expose_provenance() as u64;
        registers.set_queue(
            index,
            SIZE as u16,
            [
                address((&raw const rings.descriptors).cast()),
                address((&raw const rings.available).cast()),
                address((&raw const rings.used).cast()),
            ],
        )?;
        Ok(Self {
            rings,
            index,
            available: 0,
            seen: 0,
        })
    }

    /// Describes `segments` in the descriptors from `head` on.
    ///
    /// # Panics
    /// If they do not fit there.
    pub(super) fn describe(&mut self, head: u16, segments: &[Segment]) {
        for (i, segment) in segments.iter().enumerate() {
            let at = usize::from(head) + i;
            let mut flags = if segment.device_writes { WRITE } else { 0 };
            if i + 1 < segments.len() {
                flags |= NEXT;
            }
            let rest = u64::from(segment.len) | flags << 32 | ((at as u64 + 1) & 0xffff) << 48;
            let descriptor = &self.rings.descriptors[at];
            descriptor.address.store(segment.address, Relaxed);
            descriptor.rest.store(rest, Relaxed);
        }
    }

    /// Offers the chain at `head` to the device.
    #[inline]
    pub(super) fn offer(&mut self, head: u16) {
        self.rings.available.ring[usize::from(self.available) % SIZE].store(head, Relaxed);
        self.available = self.available.wrapping_add(1);
        self.rings.available.index.store(self.available, Release);
    }

    /// Whether the device has used a chain that [`Queue::take_used`] has not returned yet.
    #[inline]
    pub(super) fn has_used(&self) -> bool {
        self.rings.used.index.load(Acquire) != self.seen
    }

    /// The next chain the device is done with: its head, and how many bytes the device wrote.
    ///
    /// # Panics
    /// If the head is not one of this queue's.
    #[inline]
    pub(super) fn take_used(&mut self) -> Option<(u16, u32)> {
        if !self.has_used() {
            return None;
        }
        let element = &self.rings.used.ring[usize::from(self.seen) % SIZE];
        self.seen = self.seen.wrapping_add(1);
        let head = element.head.load(Relaxed);
        assert!(head < SIZE as u32, "the device used chain {head}");
        Some((head as u16, element.len.load(Relaxed)))
    }

    /// Asks the device to interrupt when it has used a chain, or not to. A hint: check
    /// [`Queue::has_used`] after switching on, and expect an interrupt too many after switching off.
    pub(super) fn set_interrupts(&mut self, on: bool) {
        let flags = if on { 0 } else { NO_INTERRUPT };
        self.rings.available.flags.store(flags, Release);
    }

    /// Notifies the device of what was offered, if it wants to know.
    pub(super) fn notify(&self, registers: &Registers) {
        if self.rings.used.flags.load(Acquire) & NO_NOTIFY == 0 {
            registers.notify(self.index);
        }
    }
}
