//! A driver for tests: queues and buffers in a small guest memory.
//!
//! ```text
//! 0x0000  queue 0: descriptors, available ring at 0x1000, used ring at 0x1800
//! 0x2000  queue 1, likewise
//! 0x4000  buffers
//! 0x1_0000  no memory up to 0x2_0000, then 64 KiB more
//! ```

use super::VirtioDevice;
use super::mmio::VirtioMmio;
use crate::memory::GuestMemory;
use replay::Output;
use vm_memory::{Bytes, GuestAddress};

/// Where buffers may lie.
pub const BUFFERS: u64 = 0x4000;
/// The first address that is no memory.
pub const HOLE: u64 = 0x1_0000;
/// Where memory goes on.
pub const BEYOND: u64 = 0x2_0000;
/// End of all memory.
pub const END: u64 = 0x3_0000;
/// Entries of each queue.
pub const SIZE: u16 = 16;

/// Descriptor flags: goes on, device writes, table of descriptors.
pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

pub const STATUS: u64 = 0x070;
pub const NEEDS_RESET: u64 = 64;
/// ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK.
pub const RUNNING: u64 = 15;

pub fn memory() -> GuestMemory {
    let regions = [
        (GuestAddress(0), HOLE as usize),
        (GuestAddress(BEYOND), (END - BEYOND) as usize),
    ];
    GuestMemory::from_ranges(&regions).unwrap()
}

pub const fn table(queue: u64) -> u64 {
    queue * 0x2000
}

pub const fn available(queue: u64) -> u64 {
    table(queue) + 0x1000
}

pub const fn used(queue: u64) -> u64 {
    table(queue) + 0x1800
}

/// A device, its memory, and what it sent.
pub struct Rig<D> {
    pub device: VirtioMmio<D>,
    pub memory: GuestMemory,
    pub out: Vec<Output>,
}

impl<D: VirtioDevice> Rig<D> {
    /// A device nobody touched.
    pub fn fresh(device: D) -> Self {
        Self {
            device: VirtioMmio::new(device),
            memory: memory(),
            out: Vec::new(),
        }
    }

    /// A device set up by its driver.
    pub fn new(device: D) -> Self {
        let mut rig = Self::fresh(device);
        rig.start();
        rig
    }

    pub fn start(&mut self) {
        self.negotiate();
        for queue in 0..D::QUEUES as u64 {
            self.set_queue(queue, [table(queue), available(queue), used(queue)]);
        }
        self.set(STATUS, RUNNING);
    }

    /// Takes all features there are.
    pub fn negotiate(&mut self) {
        for value in [0, 1, 3] {
            self.set(STATUS, value);
        }
        for half in [0, 1] {
            self.set(0x14, half);
            self.set(0x24, half);
            let offered = self.get(0x10);
            self.set(0x20, offered);
        }
        self.set(STATUS, 11);
    }

    pub fn set_queue(&mut self, queue: u64, parts: [u64; 3]) {
        self.set(0x30, queue);
        self.set(0x38, SIZE.into());
        for (register, address) in [0x80, 0x90, 0xa0].into_iter().zip(parts) {
            self.set(register, address & 0xffff_ffff);
            self.set(register + 4, address >> 32);
        }
        self.set(0x44, 1);
    }

    pub fn get(&mut self, offset: u64) -> u64 {
        self.device.read(offset, 4)
    }

    /// Writes a register; whether the interrupt line pulses.
    pub fn set(&mut self, offset: u64, value: u64) -> bool {
        self.device
            .write(offset, 4, value, &self.memory, &mut self.out)
    }

    pub fn notify(&mut self, queue: u64) -> bool {
        self.set(0x50, queue)
    }

    /// Writes descriptor `index` of `queue`.
    pub fn describe(&self, queue: u64, index: u16, (address, length): (u64, u32), flags: u16) {
        let next = index.wrapping_add(1);
        self.describe_next(queue, index, (address, length), flags, next);
    }

    pub fn describe_next(
        &self,
        queue: u64,
        index: u16,
        (address, length): (u64, u32),
        flags: u16,
        next: u16,
    ) {
        let at = table(queue) + u64::from(index) * 16;
        self.put(at, address);
        self.put(at + 8, length);
        self.put(at + 12, flags);
        self.put(at + 14, next);
    }

    /// Describes a chain from descriptor `head` on: address, length, whether the device writes.
    pub fn chain(&self, queue: u64, head: u16, pieces: &[(u64, u32, bool)]) {
        for (n, &(address, length, writes)) in pieces.iter().enumerate() {
            let last = n + 1 == pieces.len();
            let flags = if writes { WRITE } else { 0 } | if last { 0 } else { NEXT };
            self.describe(queue, head + n as u16, (address, length), flags);
        }
    }

    /// Makes the chain at `head` available.
    pub fn offer(&self, queue: u64, head: u16) {
        let ring = available(queue);
        let index: u16 = self.peek(ring + 2);
        self.put(ring + 4 + u64::from(index % SIZE) * 2, head);
        self.put(ring + 2, index.wrapping_add(1));
    }

    /// The driver wants no interrupts.
    pub fn suppress(&self, queue: u64) {
        self.put(available(queue), 1u16);
    }

    pub fn used_index(&self, queue: u64) -> u16 {
        self.peek(used(queue) + 2)
    }

    /// The used ring's elements so far (not more than it holds): head, length.
    pub fn used(&self, queue: u64) -> Vec<(u32, u32)> {
        (0..u64::from(self.used_index(queue)))
            .map(|n| {
                let at = used(queue) + 4 + n * 8;
                (self.peek(at), self.peek(at + 4))
            })
            .collect()
    }

    pub fn put<T: vm_memory::ByteValued>(&self, at: u64, value: T) {
        self.memory.write_obj(value, GuestAddress(at)).unwrap();
    }

    pub fn peek<T: vm_memory::ByteValued>(&self, at: u64) -> T {
        self.memory.read_obj(GuestAddress(at)).unwrap()
    }

    pub fn write(&self, at: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(at)).unwrap();
    }

    pub fn bytes(&self, at: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory
            .read_slice(&mut bytes, GuestAddress(at))
            .unwrap();
        bytes
    }

    /// All of memory, by address.
    pub fn image(&self) -> Vec<(u64, u8)> {
        [(0, HOLE), (BEYOND, END)]
            .into_iter()
            .flat_map(|(from, to)| (from..to).zip(self.bytes(from, (to - from) as usize)))
            .collect()
    }
}

/// A descriptor as a hostile guest may write it.
#[derive(Clone, Copy, Debug)]
pub struct Wild {
    pub address: u64,
    pub length: u32,
    pub flags: u16,
    pub next: u16,
}

/// What a hostile guest may put into memory.
pub mod wild {
    use super::{BEYOND, BUFFERS, END, HOLE, Rig, SIZE, Wild};
    use crate::devices::virtio::VirtioDevice;
    use proptest::prelude::*;

    /// Addresses in buffers, at the ends of memory, and anywhere.
    pub fn address() -> impl Strategy<Value = u64> {
        prop_oneof![
            6 => BUFFERS..HOLE,
            1 => HOLE - 64..HOLE + 64,
            1 => BEYOND..END + 64,
            1 => any::<u64>(),
            1 => Just(u64::MAX),
        ]
    }

    pub fn length() -> impl Strategy<Value = u32> {
        prop_oneof![
            1 => Just(0),
            4 => 1u32..64,
            2 => Just(512u32),
            2 => 64u32..4096,
            1 => any::<u32>(),
            1 => Just(u32::MAX),
        ]
    }

    pub fn descriptor() -> impl Strategy<Value = Wild> {
        let next = prop_oneof![4 => 0..SIZE, 1 => any::<u16>()];
        let flags = prop_oneof![8 => 0u16..4, 1 => any::<u16>()];
        (address(), length(), flags, next).prop_map(|(address, length, flags, next)| Wild {
            address,
            length,
            flags,
            next,
        })
    }

    /// A whole table.
    pub fn table() -> impl Strategy<Value = Vec<Wild>> {
        proptest::collection::vec(descriptor(), usize::from(SIZE))
    }

    /// Heads in the available ring, and how far its index is moved.
    pub fn ring() -> impl Strategy<Value = (Vec<u16>, u16)> {
        let head = prop_oneof![8 => 0..SIZE, 1 => any::<u16>()];
        let heads = proptest::collection::vec(head, usize::from(SIZE));
        let index = prop_oneof![8 => 0..=SIZE, 1 => any::<u16>()];
        (heads, index)
    }

    impl<D: VirtioDevice> Rig<D> {
        /// Puts such a table and ring into `queue`.
        pub fn fill(&self, queue: u64, table: &[Wild], (heads, index): &(Vec<u16>, u16)) {
            for (n, d) in table.iter().enumerate() {
                let piece = (d.address, d.length);
                self.describe_next(queue, n as u16, piece, d.flags, d.next);
            }
            for (n, head) in heads.iter().enumerate() {
                self.put(super::available(queue) + 4 + n as u64 * 2, *head);
            }
            self.put(super::available(queue) + 2, *index);
        }
    }
}
