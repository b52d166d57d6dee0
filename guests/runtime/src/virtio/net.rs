//! The network device.
//!
//! ```text
//! receive queue (0)   256 buffers, always offered but for those being looked at
//! transmit queue (1)  256 buffers, filled in place, notified once per batch
//! buffer              12 bytes of header | frame, 1518 bytes at most
//! ```

use super::{Error, mmio::Registers, queue::Queue, queue::Segment, shared_memory};
use alloc::vec::Vec;
use core::ptr::NonNull;

/// Bytes of the largest frame, without checksum: 14 of header, 1500 of payload.
pub const FRAME_MAX: usize = 1514;
/// Bytes of the largest frame that can come: with a VLAN tag.
const RECEIVED_MAX: usize = FRAME_MAX + 4;
/// Frames each queue can hold.
pub const QUEUE_SIZE: usize = 256;

/// Type of a network device.
const DEVICE_ID: u32 = 1;
/// The device has a hardware address.
const FEATURE_MAC: u64 = 1 << 5;
/// `struct virtio_net_hdr`; all zero where nothing is offloaded.
const HEADER: usize = 12;

type Buffer = [u8; HEADER + RECEIVED_MAX];

/// One direction: a queue, and for each of its descriptors a buffer. A buffer is the device's from
/// the moment it is offered until the device has used it.
struct Lane {
    queue: Queue<QUEUE_SIZE>,
    buffers: NonNull<[Buffer; QUEUE_SIZE]>,
}

impl Lane {
    fn new(registers: &Registers, index: u16) -> Result<Self, Error> {
        Ok(Self {
            queue: Queue::new(registers, index)?,
            buffers: shared_memory(),
        })
    }

    /// The first `len` bytes of the frame in buffer `index`.
    ///
    /// # Panics
    /// If there is no such buffer, or it is shorter.
    #[inline]
    fn frame(&mut self, index: u16, len: usize) -> &mut [u8] {
        assert!(usize::from(index) < QUEUE_SIZE && len <= RECEIVED_MAX);
        let buffer = self.buffers.cast::<Buffer>();
        // SAFETY: within the buffers, which stay; only this lane refers to them, and its callers have
        // the buffer from the device.
        unsafe {
            let frame = buffer.add(index.into()).cast::<u8>().add(HEADER);
            core::slice::from_raw_parts_mut(frame.as_ptr(), len)
        }
    }

    /// Gives the device the first `len` bytes of buffer `index`, header and all.
    #[inline]
    fn offer(&mut self, index: u16, len: usize, device_writes: bool) {
        let offset = usize::from(index) * size_of::<Buffer>();
        let segment = Segment {
            address: (self.buffers.addr().get() + offset) as u64,
            len: len as u32,
            device_writes,
        };
        self.queue.describe(index, &[segment]);
        self.queue.offer(index);
    }
}

/// A frame received; [`Receiver::release`] gives its buffer back to the device.
#[derive(Debug)]
pub struct Received {
    index: u16,
    len: usize,
}

/// The network device's receiving half.
pub struct Receiver {
    lane: Lane,
}

/// The network device's sending half.
pub struct Sender {
    registers: Registers,
    lane: Lane,
    /// Buffers the device does not hold.
    free: Vec<u16>,
    /// Frames were offered since the device was last notified.
    unannounced: bool,
}

/// The network device.
pub struct Net {
    /// Its hardware address.
    pub mac: [u8; 6],
    /// Takes frames in.
    pub receiver: Receiver,
    /// Sends frames out.
    pub sender: Sender,
}

impl Net {
    /// Sets up the network device at [`abi::NET_PAGE`], and lets its interrupt through.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn open() -> Result<Self, Error> {
        let (registers, features) = Registers::open(abi::NET_PAGE, DEVICE_ID, FEATURE_MAC)?;
        if features & FEATURE_MAC == 0 {
            return Err(Error::Features { offered: features });
        }
        let mac = core::array::from_fn(|i| registers.config_byte(i));
        let mut receiving = Lane::new(&registers, 0)?;
        let sending = Lane::new(&registers, 1)?;
        for index in 0..QUEUE_SIZE as u16 {
            receiving.offer(index, size_of::<Buffer>(), true);
        }
        registers.start();
        receiving.queue.notify(&registers);
        crate::interrupt::enable(abi::NET_IRQ);
        Ok(Self {
            mac,
            receiver: Receiver { lane: receiving },
            sender: Sender {
                registers,
                lane: sending,
                free: (0..QUEUE_SIZE as u16).rev().collect(),
                unannounced: false,
            },
        })
    }

    /// Sleeps until a frame has been received or another interrupt has come (see
    /// [`crate::interrupt::idle`]). Flushes first.
    pub fn wait(&mut self) {
        self.sender.flush();
        let queue = &mut self.receiver.lane.queue;
        queue.set_interrupts(true);
        if !queue.has_used() {
            crate::interrupt::idle();
        }
        queue.set_interrupts(false);
    }
}

impl Receiver {
    /// The next frame the device has received, in the order they came. A buffer that cannot hold one,
    /// going by the length the device says it wrote, is given back.
    #[inline]
    pub fn receive(&mut self) -> Option<Received> {
        loop {
            let (index, len) = self.lane.queue.take_used()?;
            let len = len as usize;
            if (HEADER..=size_of::<Buffer>()).contains(&len) {
                let len = len - HEADER;
                return Some(Received { index, len });
            }
            self.release(Received { index, len: 0 });
        }
    }

    /// The bytes of a frame, in the buffer it was received into.
    #[inline]
    #[must_use]
    pub fn frame(&mut self, received: &Received) -> &mut [u8] {
        self.lane.frame(received.index, received.len)
    }

    /// Gives a frame's buffer back to the device.
    #[inline]
    pub fn release(&mut self, received: Received) {
        self.lane.offer(received.index, size_of::<Buffer>(), true);
    }
}

impl Sender {
    /// Whether [`Sender::send`] has room. If not, tries to get some from the device.
    #[inline]
    pub fn can_send(&mut self) -> bool {
        if self.free.is_empty() {
            self.reclaim();
        }
        if self.free.is_empty() {
            self.flush();
            self.reclaim();
        }
        !self.free.is_empty()
    }

    /// Sends a frame of `len` bytes which `fill` writes in place. Only after
    /// [`Sender::can_send`] said yes; [`Sender::flush`] is what gets it going.
    ///
    /// # Panics
    /// If there is no room, or `len` is more than [`FRAME_MAX`].
    #[inline]
    pub fn send<R>(&mut self, len: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        assert!(len <= FRAME_MAX, "a frame of {len} bytes");
        let index = self.free.pop().expect("no room to send: see `can_send`");
        let result = fill(self.lane.frame(index, len));
        self.lane.offer(index, HEADER + len, false);
        self.unannounced = true;
        result
    }

    /// Tells the device of the frames to send, if there are any it has not been told of.
    #[inline]
    pub fn flush(&mut self) {
        if core::mem::take(&mut self.unannounced) {
            self.lane.queue.notify(&self.registers);
        }
    }

    fn reclaim(&mut self) {
        while let Some((index, _)) = self.lane.queue.take_used() {
            self.free.push(index);
        }
    }
}
