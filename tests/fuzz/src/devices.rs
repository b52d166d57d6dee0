//! What a guest's driver does to a device, and leaves in memory for it.

use crate::Bytes;
use replay::Output;
use vm_memory::{Bytes as _, GuestAddress};
use vmm::devices::virtio::VirtioDevice;
use vmm::devices::virtio::block::Block;
use vmm::devices::virtio::mmio::VirtioMmio;
use vmm::devices::virtio::net::Net;
use vmm::memory::GuestMemory;

/// Memory from 0 to here, then none, then memory again, of as many bytes.
const HOLE: u64 = 0x1_0000;
const BEYOND: u64 = 0x2_0000;
/// Most steps of a driver's: nothing new comes after so many.
const STEPS_MAX: usize = 300;

/// A device, its guest's memory, and requests under way.
struct Rig<D> {
    device: VirtioMmio<D>,
    memory: GuestMemory,
    out: Vec<Output>,
}

impl<D: VirtioDevice> Rig<D> {
    /// A device that a driver has set up as it should be: queues of 16 at 0, 0x2000, and so on.
    fn new(device: D) -> Self {
        let regions = [0, BEYOND].map(|at| (GuestAddress(at), HOLE as usize));
        let mut rig = Self {
            device: VirtioMmio::new(device),
            memory: GuestMemory::from_ranges(&regions).expect("memory"),
            out: Vec::new(),
        };
        for status in [0, 1, 3] {
            rig.set(0x70, status);
        }
        for half in [0, 1] {
            rig.set(0x14, half);
            rig.set(0x24, half);
            let offered = rig.device.read(0x10, 4);
            rig.set(0x20, offered);
        }
        rig.set(0x70, 11);
        for queue in 0..D::QUEUES as u64 {
            rig.set(0x30, queue);
            rig.set(0x38, 16);
            let table = queue * 0x2000;
            for (register, address) in [0x80, 0x90, 0xa0].into_iter().zip([0, 0x1000, 0x1800]) {
                rig.set(register, table + address);
                rig.set(register + 4, 0);
            }
            rig.set(0x44, 1);
        }
        rig.set(0x70, 15);
        rig
    }

    fn set(&mut self, register: u64, value: u64) {
        self.device
            .write(register, 4, value, &self.memory, &mut self.out);
    }

    /// One step that any device may see; false if it is none of them.
    fn step(&mut self, kind: u8, bytes: &mut Bytes<'_>) -> bool {
        match kind {
            0 => {
                let (register, value) = (bytes.u8(), bytes.u32());
                self.set(u64::from(register) * 2, value.into());
            }
            1 => {
                let at = u64::from(bytes.u16());
                let count = usize::from(bytes.u8());
                // What lies outside is not written.
                let _ = self.memory.write_slice(bytes.take(count), GuestAddress(at));
            }
            2 => {
                let (at, size) = (bytes.u16(), bytes.u8());
                self.device.read(at.into(), 1 << (size % 4));
            }
            3 => {
                // A descriptor, and its place in the available ring.
                let queue = u64::from(bytes.u8() % 4) * 0x2000;
                let (place, head) = (u64::from(bytes.u8() % 16), bytes.u8() % 16);
                let (address, length) = (bytes.u32() % 0x3_1000, bytes.u16());
                let (flags, next) = (bytes.u8() % 8, bytes.u8() % 17);
                let descriptor = [
                    &u64::from(address).to_le_bytes()[..],
                    &u32::from(length).to_le_bytes(),
                    &u16::from(flags).to_le_bytes(),
                    &u16::from(next).to_le_bytes(),
                ];
                let at = queue + u64::from(head) * 16;
                let _ = self
                    .memory
                    .write_slice(&descriptor.concat(), GuestAddress(at));
                let _ = self
                    .memory
                    .write_obj(u16::from(head), GuestAddress(queue + 0x1004 + place * 2));
            }
            4 => {
                // So many are available, and the device is told.
                let queue = u64::from(bytes.u8() % 4);
                let (index, at) = (bytes.u16(), GuestAddress(queue * 0x2000 + 0x1002));
                let _ = self.memory.write_obj(index, at);
                self.set(0x50, queue);
            }
            _ => return false,
        }
        true
    }
}

fn drive<D: VirtioDevice>(device: D, bytes: &[u8], own: impl Fn(&mut Rig<D>, &mut Bytes<'_>)) {
    let mut bytes = Bytes(bytes);
    let mut rig = Rig::new(device);
    for _ in 0..STEPS_MAX {
        if bytes.is_empty() {
            break;
        }
        let kind = bytes.u8() % 6;
        if !rig.step(kind, &mut bytes) {
            own(&mut rig, &mut bytes);
        }
    }
}

/// A disk of 64 sectors, and the ends of its requests.
pub(crate) fn block(bytes: &[u8]) {
    drive(Block::new(64), bytes, |rig, bytes| {
        let outstanding = rig.device.device().outstanding();
        let nth = usize::from(bytes.u8());
        let (tag, length) = match outstanding.get(nth % outstanding.len().max(1)) {
            Some(Output::DiskRead { tag, len, .. }) => (*tag, *len as usize),
            Some(Output::DiskWrite { tag, .. } | Output::DiskFlush { tag }) => (*tag, 0),
            _ => (bytes.u32(), usize::from(bytes.u8())),
        };
        let is_well = bytes.u8() % 2 == 0;
        let data = vec![0x5a; if is_well { length } else { 0 }];
        // An answer to nothing is refused.
        let _ = rig.device.complete(&rig.memory, tag, is_well, &data);
    });
}

/// A network device, and what comes in.
pub(crate) fn net(bytes: &[u8]) {
    drive(Net::new([2, 0, 0, 0, 0, 1]), bytes, |rig, bytes| {
        let count = usize::from(bytes.u16());
        let frame = bytes.take(count);
        let _ = rig.device.rx_room(&rig.memory);
        rig.device.receive(&rig.memory, frame);
        for output in rig.out.drain(..) {
            drop(output);
        }
    });
}
