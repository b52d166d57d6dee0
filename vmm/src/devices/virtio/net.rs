//! The network card (virtio 1.2, section 5.1): one receive and one transmit queue, no offloads.

use super::VirtioDevice;
use super::mmio::NetDevice;
use super::ring::{Chain, Ring, gather, length, scatter};
use crate::memory::GuestMemory;
use replay::Output;

/// `VIRTIO_NET_F_MAC`.
pub(super) const F_MAC: u64 = 1 << 5;
/// `virtio_net_hdr` with `num_buffers` (5.1.6).
const HEADER: usize = 12;
/// Shortest and longest frame sent on: an Ethernet header; an MTU of 1500, it, and a VLAN tag.
const FRAME_MIN: usize = 14;
const FRAME_MAX: usize = 1518;

/// The card.
pub struct Net {
    mac: [u8; 6],
}

impl Net {
    /// Index of the receive queue.
    pub const RX: usize = 0;
    /// Index of the transmit queue.
    pub const TX: usize = 1;

    /// A card with this address.
    #[must_use]
    pub fn new(mac: [u8; 6]) -> Self {
        Self { mac }
    }

    /// The address it was made with.
    pub(super) fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// Copies `frame` into the next receive buffer; whether the driver wants an interrupt. Without a
    /// buffer the frame is lost, as on a wire; so is one too long for the buffer, which stays available.
    pub(super) fn receive(ring: &mut Ring, memory: &GuestMemory, frame: &[u8]) -> bool {
        let Some(chain) = ring.pop(memory) else {
            return false;
        };
        let mut bytes = Vec::with_capacity(HEADER + frame.len());
        bytes.extend_from_slice(&[0; HEADER]);
        bytes[10] = 1; // num_buffers
        bytes.extend_from_slice(frame);
        let written = if chain.broken {
            0 // the driver gets it back
        } else if length(&chain.writable) < bytes.len() as u64 {
            ring.put_back();
            return false;
        } else {
            scatter(memory, &chain.writable, &bytes)
        };
        let written = u32::try_from(written).expect("a frame is short");
        ring.push(memory, chain.head, written)
    }

    /// The frame in a transmit chain, if it is one.
    fn frame(memory: &GuestMemory, chain: &Chain) -> Option<Vec<u8>> {
        let total = usize::try_from(length(&chain.readable)).unwrap_or(usize::MAX);
        if chain.broken || !(HEADER + FRAME_MIN..=HEADER + FRAME_MAX).contains(&total) {
            return None;
        }
        let mut bytes = gather(memory, &chain.readable, total);
        (bytes.len() == total).then(|| bytes.split_off(HEADER))
    }
}

impl VirtioDevice for Net {
    const ID: u32 = 1;
    const QUEUES: usize = 2;
    const QUEUE_SIZE: u16 = 256;
    const KIND: &'static str = "virtio-net";
    type State = ();

    fn features(&self) -> u64 {
        F_MAC
    }

    fn config(&self) -> Vec<u8> {
        self.mac.to_vec()
    }

    fn notify(
        &mut self,
        index: usize,
        rings: &mut [Ring],
        memory: &GuestMemory,
        out: &mut Vec<Output>,
    ) -> bool {
        if index != Self::TX {
            return false; // new receive buffers: the machine looks for room at every stop
        }
        let ring = &mut rings[Self::TX];
        let mut wanted = false;
        // What is there now; a driver that adds more notifies again.
        for _ in 0..ring.available(memory).unwrap_or(0) {
            let Some(chain) = ring.pop(memory) else { break };
            if let Some(frame) = Self::frame(memory, &chain) {
                out.push(Output::Frame(frame));
            }
            wanted |= ring.push(memory, chain.head, 0);
        }
        wanted
    }

    fn stopped(&mut self, _: usize) {}

    fn save(&self) {}

    fn restore(&mut self, (): ()) -> Result<(), &'static str> {
        Ok(())
    }
}

impl NetDevice for Net {}

#[cfg(test)]
#[path = "net_tests.rs"]
mod tests;
