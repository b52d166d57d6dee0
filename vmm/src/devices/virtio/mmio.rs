//! The virtio-mmio transport, version 2 (virtio 1.2, section 4.2.2).
//!
//! The interrupt is a pulse: each used buffer the driver wants to hear of sets bit 0 of InterruptStatus
//! and asks for an edge on the line, even if the bit was set already. A driver that never acknowledges
//! saves two exits an interrupt, and misses none.

use super::VirtioDevice;
use super::block::Block;
use super::net::Net;
use super::ring::{self, Ring};
use crate::devices::{DeviceError, Stateful};
use crate::memory::GuestMemory;
use replay::Output;
use serde::{Deserialize, Serialize};
use virtio_queue::QueueT;

/// Registers (table 4.1).
mod reg {
    pub const MAGIC: u64 = 0x000;
    pub const VERSION: u64 = 0x004;
    pub const DEVICE_ID: u64 = 0x008;
    pub const VENDOR_ID: u64 = 0x00c;
    pub const DEVICE_FEATURES: u64 = 0x010;
    pub const DEVICE_FEATURES_SEL: u64 = 0x014;
    pub const DRIVER_FEATURES: u64 = 0x020;
    pub const DRIVER_FEATURES_SEL: u64 = 0x024;
    pub const QUEUE_SEL: u64 = 0x030;
    pub const QUEUE_NUM_MAX: u64 = 0x034;
    pub const QUEUE_NUM: u64 = 0x038;
    pub const QUEUE_READY: u64 = 0x044;
    pub const QUEUE_NOTIFY: u64 = 0x050;
    pub const INTERRUPT_STATUS: u64 = 0x060;
    pub const INTERRUPT_ACK: u64 = 0x064;
    pub const STATUS: u64 = 0x070;
    pub const QUEUE_DESC_LOW: u64 = 0x080;
    pub const QUEUE_DESC_HIGH: u64 = 0x084;
    pub const QUEUE_DRIVER_LOW: u64 = 0x090;
    pub const QUEUE_DRIVER_HIGH: u64 = 0x094;
    pub const QUEUE_DEVICE_LOW: u64 = 0x0a0;
    pub const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
    pub const CONFIG_GENERATION: u64 = 0x0fc;
    pub const CONFIG: u64 = 0x100;
}

/// "virt", little-endian.
const MAGIC_VALUE: u32 = 0x7472_6976;
/// Ours: "TNDM".
const VENDOR: u32 = 0x4d44_4e54;
/// Device status bits (section 2.1).
const ACKNOWLEDGE: u32 = 1;
const DRIVER: u32 = 2;
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;
const NEEDS_RESET: u32 = 64;
const FAILED: u32 = 128;
/// Those the driver sets.
const DRIVERS: u32 = ACKNOWLEDGE | DRIVER | DRIVER_OK | FEATURES_OK | FAILED;
/// `VIRTIO_F_VERSION_1` (section 6).
const VERSION_1: u64 = 1 << 32;
/// InterruptStatus: a used buffer; a change of the configuration, or of the status by the device.
const USED_BUFFER: u32 = 1;
const CONFIG_CHANGE: u32 = 2;

/// One device behind its registers.
pub struct VirtioMmio<D> {
    device: D,
    rings: Vec<Ring>,
    registers: Registers,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Registers {
    status: u32,
    interrupt_status: u32,
    queue_sel: u32,
    device_features_sel: u32,
    driver_features_sel: u32,
    driver_features: u64,
}

impl<D: VirtioDevice> VirtioMmio<D> {
    /// A device after reset.
    pub fn new(device: D) -> Self {
        let rings = (0..D::QUEUES).map(|_| Ring::new(D::QUEUE_SIZE)).collect();
        Self {
            device,
            rings,
            registers: Registers::default(),
        }
    }

    /// The device behind.
    pub fn device(&self) -> &D {
        &self.device
    }

    fn features(&self) -> u64 {
        self.device.features() | VERSION_1
    }

    fn selected(&mut self) -> Option<&mut Ring> {
        self.rings.get_mut(self.registers.queue_sel as usize)
    }

    /// The guest reads `size` bytes at `offset`.
    pub fn read(&mut self, offset: u64, size: u8) -> u64 {
        if offset >= reg::CONFIG {
            return self.read_config(offset - reg::CONFIG, size);
        }
        if size != 4 {
            return 0; // the driver must use 32-bit accesses (4.2.2.2)
        }
        let r = self.registers;
        u64::from(match offset {
            reg::MAGIC => MAGIC_VALUE,
            reg::VERSION => 2,
            reg::DEVICE_ID => D::ID,
            reg::VENDOR_ID => VENDOR,
            reg::DEVICE_FEATURES => half(self.features(), r.device_features_sel),
            reg::QUEUE_NUM_MAX => self.selected().map_or(0, |ring| ring.max_size().into()),
            reg::QUEUE_READY => self.selected().map_or(0, |ring| ring.ready().into()),
            reg::INTERRUPT_STATUS => r.interrupt_status,
            reg::STATUS => r.status,
            // Nothing in the configuration ever changes; other registers read as zero.
            reg::CONFIG_GENERATION => 0,
            _ => 0,
        })
    }

    fn read_config(&self, offset: u64, size: u8) -> u64 {
        let config = self.device.config();
        let mut bytes = [0; 8];
        let from = usize::try_from(offset)
            .unwrap_or(usize::MAX)
            .min(config.len());
        let count = usize::from(size).min(8).min(config.len() - from);
        bytes[..count].copy_from_slice(&config[from..from + count]);
        u64::from_le_bytes(bytes)
    }

    /// The guest writes the low `size` bytes of `value` at `offset`. Whether the interrupt line pulses.
    pub fn write(
        &mut self,
        offset: u64,
        size: u8,
        value: u64,
        memory: &GuestMemory,
        out: &mut Vec<Output>,
    ) -> bool {
        if size != 4 || offset >= reg::CONFIG {
            return false; // the configuration is read-only
        }
        let value = u32::try_from(value & 0xffff_ffff).expect("32 bits");
        match offset {
            reg::DEVICE_FEATURES_SEL => self.registers.device_features_sel = value,
            reg::DRIVER_FEATURES_SEL => self.registers.driver_features_sel = value,
            reg::DRIVER_FEATURES => self.set_driver_features(value),
            reg::QUEUE_SEL => self.registers.queue_sel = value,
            reg::QUEUE_NOTIFY => return self.notify(value, memory, out),
            reg::INTERRUPT_ACK => self.registers.interrupt_status &= !value,
            reg::STATUS => self.set_status(value),
            _ => return self.set_up_queue(offset, value, memory),
        }
        false
    }

    fn set_driver_features(&mut self, value: u32) {
        if self.registers.status & FEATURES_OK != 0 {
            return; // settled (3.1.1)
        }
        let features = &mut self.registers.driver_features;
        match self.registers.driver_features_sel {
            0 => *features = *features & !0xffff_ffff | u64::from(value),
            1 => *features = *features & 0xffff_ffff | u64::from(value) << 32,
            _ => {}
        }
    }

    /// Everything as after [`VirtioMmio::new`], but what the device still has under way, which nobody waits
    /// for any more.
    pub fn reset(&mut self) {
        (0..D::QUEUES).for_each(|index| self.device.stopped(index));
        self.device.reset();
        self.rings.iter_mut().for_each(Ring::reset);
        self.registers = Registers::default();
    }

    /// Bits can be set by the driver, but only a reset, which is a write of 0, clears them (2.1.1).
    fn set_status(&mut self, value: u32) {
        if value == 0 {
            self.reset();
            return;
        }
        let accepted = self.registers.driver_features;
        let mut status = self.registers.status | value & DRIVERS;
        // FEATURES_OK sticks only to a subset of what is offered, with VERSION_1 (2.2.2, 6.1), and
        // DRIVER_OK only to FEATURES_OK (3.1.1).
        if accepted & !self.features() != 0 || accepted & VERSION_1 == 0 {
            status &= !FEATURES_OK;
        }
        if status & FEATURES_OK == 0 {
            status &= !DRIVER_OK;
        }
        self.registers.status = status;
    }

    /// Whether the interrupt line pulses.
    fn set_up_queue(&mut self, offset: u64, value: u32, memory: &GuestMemory) -> bool {
        let Some(ring) = self.selected() else {
            return false;
        };
        if ring.ready() && offset != reg::QUEUE_READY {
            return false; // 4.2.2.2: not while it is in use
        }
        let queue = ring.registers();
        match offset {
            // What is out of range or misaligned leaves the register as it is.
            reg::QUEUE_NUM => queue.set_size(u16::try_from(value).unwrap_or(0)),
            reg::QUEUE_DESC_LOW => queue.set_desc_table_address(Some(value), None),
            reg::QUEUE_DESC_HIGH => queue.set_desc_table_address(None, Some(value)),
            reg::QUEUE_DRIVER_LOW => queue.set_avail_ring_address(Some(value), None),
            reg::QUEUE_DRIVER_HIGH => queue.set_avail_ring_address(None, Some(value)),
            reg::QUEUE_DEVICE_LOW => queue.set_used_ring_address(Some(value), None),
            reg::QUEUE_DEVICE_HIGH => queue.set_used_ring_address(None, Some(value)),
            reg::QUEUE_READY if value & 1 == 0 => {
                ring.stop();
                self.device.stopped(self.registers.queue_sel as usize);
            }
            reg::QUEUE_READY => {
                queue.set_ready(true);
                if !ring.is_valid(memory) {
                    ring.stop();
                    return self.break_down();
                }
            }
            _ => {}
        }
        false
    }

    fn is_running(&self) -> bool {
        self.registers.status & (DRIVER_OK | NEEDS_RESET) == DRIVER_OK
    }

    /// The driver did what no driver can: nothing goes on until it resets the device. Whether the
    /// interrupt line pulses to say so (2.1.2).
    fn break_down(&mut self) -> bool {
        self.registers.status |= NEEDS_RESET;
        let running = self.registers.status & DRIVER_OK != 0;
        if running {
            self.registers.interrupt_status |= CONFIG_CHANGE;
        }
        running
    }

    fn notify(&mut self, index: u32, memory: &GuestMemory, out: &mut Vec<Output>) -> bool {
        let index = index as usize;
        if !self.is_running() || !self.rings.get(index).is_some_and(Ring::ready) {
            return false;
        }
        if self.rings[index].available(memory).is_none() {
            return self.break_down();
        }
        let wanted = self.device.notify(index, &mut self.rings, memory, out);
        self.pulse(wanted)
    }

    /// Queue `index`, if it and the device are in use.
    pub(super) fn running_ring(&mut self, index: usize) -> Option<&mut Ring> {
        let running = self.is_running();
        self.rings
            .get_mut(index)
            .filter(|ring| running && ring.ready())
    }

    /// Sets the interrupt's status if an interrupt is `wanted`, which it returns.
    pub(super) fn pulse(&mut self, wanted: bool) -> bool {
        if wanted {
            self.registers.interrupt_status |= USED_BUFFER;
        }
        wanted
    }
}

fn half(value: u64, which: u32) -> u32 {
    match which {
        0 => (value & 0xffff_ffff) as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}

/// A network card, with the queues of [`Net`] first.
pub trait NetDevice: VirtioDevice {
    /// The card gets `frame`.
    fn heard(&mut self, frame: &[u8]) {
        let _ = frame;
    }
}

impl<D: NetDevice> VirtioMmio<D> {
    /// How many frames the driver has buffers for.
    #[must_use]
    pub fn rx_room(&self, memory: &GuestMemory) -> u16 {
        if self.is_running() {
            self.rings[Net::RX].available(memory).unwrap_or(0)
        } else {
            0
        }
    }

    /// Copies a received frame into guest memory; lost if there is no room. Whether the line pulses.
    pub fn receive(&mut self, memory: &GuestMemory, frame: &[u8]) -> bool {
        if !self.is_running() {
            return false;
        }
        let ring = &mut self.rings[Net::RX];
        if ring.available(memory).is_none() {
            return self.break_down();
        }
        let wanted = Net::receive(ring, memory, frame);
        self.device.heard(frame);
        self.pulse(wanted)
    }
}

impl VirtioMmio<Block> {
    /// Ends request `tag` with the bounce buffer `data`. Whether the line pulses.
    ///
    /// # Errors
    /// [`DeviceError::UnknownTag`], [`DeviceError::Length`].
    pub fn complete(
        &mut self,
        memory: &GuestMemory,
        tag: u32,
        ok: bool,
        data: &[u8],
    ) -> Result<bool, DeviceError> {
        let wanted = self
            .device
            .complete(&mut self.rings[0], memory, tag, ok, data)?;
        Ok(self.pulse(wanted))
    }
}

/// Registers, rings and device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State<D> {
    registers: Registers,
    rings: Vec<ring::State>,
    device: D,
}

impl<D: VirtioDevice> Stateful for VirtioMmio<D> {
    type State = State<D::State>;
    const KIND: &'static str = D::KIND;
    const VERSION: u16 = D::VERSION;

    fn save(&self) -> Self::State {
        State {
            registers: self.registers,
            rings: self.rings.iter().map(Ring::save).collect(),
            device: self.device.save(),
        }
    }

    fn restore(&mut self, state: Self::State) -> Result<(), DeviceError> {
        let impossible = |what| DeviceError::Impossible {
            kind: D::KIND,
            what,
        };
        if state.rings.len() != D::QUEUES {
            return Err(impossible("another number of queues"));
        }
        if state.registers.status & !(DRIVERS | NEEDS_RESET) != 0 {
            return Err(impossible("a status bit there is not"));
        }
        let rings = state
            .rings
            .iter()
            .map(|ring| Ring::restore(D::QUEUE_SIZE, ring))
            .collect::<Result<Vec<_>, _>>()
            .map_err(impossible)?;
        self.device.restore(state.device).map_err(impossible)?;
        self.rings = rings;
        self.registers = state.registers;
        Ok(())
    }
}

#[cfg(test)]
#[path = "mmio_tests.rs"]
mod tests;
