//! Drivers for virtio devices behind the MMIO transport (virtio 1.2, version 2 registers).
//!
//! ```text
//! net, block ──▶ queue (split virtqueue) ──▶ mmio (registers) ──▶ machine
//! ```
//!
//! An exit costs as much as computing for 13 us, so the drivers ask little of the transport: a
//! queue is notified once per batch, interrupts are off while a queue is polled, and the interrupt
//! status is never acknowledged (the machine's lines are edges: one per used buffer while
//! interrupts are on, acknowledged or not).
//!
//! The device is the machine itself, which the guest cannot but trust; what it says of heads
//! is asserted all the same.

pub mod block;
mod mmio;
pub mod net;
mod queue;

use alloc::alloc::{alloc_zeroed, handle_alloc_error};
use core::{alloc::Layout, ptr::NonNull};

/// Zeroed memory to share with a device for the rest of the guest's life.
fn shared_memory<T>() -> NonNull<T> {
    const { assert!(size_of::<T>() != 0) };
    let layout = Layout::new::<T>();
    // SAFETY: the size is not zero.
    let memory = unsafe { alloc_zeroed(layout) }.cast::<T>();
    // The device is told the address.
    memory.expose_provenance();
    NonNull::new(memory).unwrap_or_else(|| handle_alloc_error(layout))
}

/// Why a device cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// Nothing, or no virtio 1 device, is there.
    Absent {
        /// Physical address of the register window.
        at: u64,
    },
    /// There is a device of another type.
    Type {
        /// The type wanted.
        wanted: u32,
        /// The type found.
        found: u32,
    },
    /// The device does not offer a feature the driver cannot do without, or refuses the selection.
    Features {
        /// What it offers.
        offered: u64,
    },
    /// The device has no such queue, or it is too short.
    Queue {
        /// Number of the queue.
        index: u16,
        /// Entries it can have.
        max: u32,
    },
}

impl core::fmt::Display for Error {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Absent { at } => write!(f, "no virtio device at {at:#x}"),
            Self::Type { wanted, found } => {
                write!(
                    f,
                    "virtio device of type {found} where type {wanted} was expected"
                )
            }
            Self::Features { offered } => {
                write!(
                    f,
                    "virtio device does not go with these features: {offered:#x}"
                )
            }
            Self::Queue { index, max } => {
                write!(f, "virtio queue {index} has {max} entries at most")
            }
        }
    }
}

impl core::error::Error for Error {}
