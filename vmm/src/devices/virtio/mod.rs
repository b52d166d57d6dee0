//! Virtio devices behind virtio-mmio (virtio 1.2).
//!
//! ```text
//!  mmio    the registers of one device (4.2.2), generic over
//!   ├ net     network card (5.1)
//!   ├ nic     the same with a control queue (5.1.6.5), and its addresses
//!   ├ block   disk (5.2)
//!   └ rng     entropy source (5.4)
//!  ring    split virtqueues (2.7), whose content is the guest's and not trusted
//! ```

pub mod addresses;
pub mod block;
pub mod mmio;
pub mod net;
pub mod nic;
pub mod ring;
pub mod rng;
#[cfg(test)]
mod testing;

use crate::memory::GuestMemory;
use replay::Output;
use ring::Ring;

/// What one kind of device adds to the transport.
pub trait VirtioDevice {
    /// Device ID (virtio 1.2, section 5).
    const ID: u32;
    /// Number of queues.
    const QUEUES: usize;
    /// Most entries of each queue.
    const QUEUE_SIZE: u16;
    /// Name in a snapshot.
    const KIND: &'static str;
    /// Version of that device's state in a snapshot.
    const VERSION: u16 = 1;
    /// What of the device is state.
    type State: serde::Serialize + serde::de::DeserializeOwned + Clone + PartialEq + std::fmt::Debug;

    /// Feature bits offered, beside `VIRTIO_F_VERSION_1`.
    fn features(&self) -> u64;

    /// The configuration space.
    fn config(&self) -> Vec<u8>;

    /// The driver made buffers available on queue `index`. Whether to raise the interrupt.
    fn notify(
        &mut self,
        index: usize,
        rings: &mut [Ring],
        memory: &GuestMemory,
        out: &mut Vec<Output>,
    ) -> bool;

    /// The driver took queue `index` out of use, by itself or with the whole device.
    fn stopped(&mut self, index: usize);

    /// The driver reset the whole device; each queue was [`VirtioDevice::stopped`] before.
    fn reset(&mut self) {}

    /// The state.
    fn save(&self) -> Self::State;

    /// Takes on `state`, which is not trusted; says what is wrong with it.
    ///
    /// # Errors
    /// What no device can have.
    fn restore(&mut self, state: Self::State) -> Result<(), &'static str>;
}
