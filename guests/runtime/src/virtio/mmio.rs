//! The registers of a virtio device (virtio 1.2, section 4.2.2).

use super::Error;
use crate::boot::device_address;

const MAGIC_VALUE: usize = 0x000;
const VERSION: usize = 0x004;
const DEVICE_ID: usize = 0x008;
const DEVICE_FEATURES: usize = 0x010;
const DEVICE_FEATURES_SELECT: usize = 0x014;
const DRIVER_FEATURES: usize = 0x020;
const DRIVER_FEATURES_SELECT: usize = 0x024;
const QUEUE_SELECT: usize = 0x030;
const QUEUE_SIZE_MAX: usize = 0x034;
const QUEUE_SIZE: usize = 0x038;
const QUEUE_READY: usize = 0x044;
const QUEUE_NOTIFY: usize = 0x050;
const STATUS: usize = 0x070;
const QUEUE_DESCRIPTORS: usize = 0x080;
const QUEUE_DRIVER: usize = 0x090;
const QUEUE_DEVICE: usize = 0x0a0;
const CONFIG: usize = 0x100;

/// "virt".
const MAGIC: u32 = 0x7472_6976;

const ACKNOWLEDGE: u32 = 1;
const DRIVER: u32 = 2;
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;

/// VIRTIO_F_VERSION_1.
const VERSION_1: u64 = 1 << 32;

/// A device's registers.
#[derive(Clone, Copy)]
pub(super) struct Registers {
    base: usize,
}

impl Registers {
    /// Resets the device at physical address `at`, which has to be of type `id`, and agrees with it
    /// on those of `features` it offers. Returns them too.
    pub(super) fn open(at: u64, id: u32, features: u64) -> Result<(Self, u64), Error> {
        let registers = Self {
            base: device_address(at) as usize,
        };
        if registers.read(MAGIC_VALUE) != MAGIC || registers.read(VERSION) != 2 {
            return Err(Error::Absent { at });
        }
        match registers.read(DEVICE_ID) {
            0 => return Err(Error::Absent { at }),
            found if found != id => return Err(Error::Type { wanted: id, found }),
            _ => {}
        }
        registers.write(STATUS, 0);
        registers.write(STATUS, ACKNOWLEDGE);
        registers.write(STATUS, ACKNOWLEDGE | DRIVER);
        let mut offered = 0;
        for half in [0, 1] {
            registers.write(DEVICE_FEATURES_SELECT, half);
            offered |= u64::from(registers.read(DEVICE_FEATURES)) << (32 * half);
        }
        let accepted = offered & (features | VERSION_1);
        for half in [0, 1] {
            registers.write(DRIVER_FEATURES_SELECT, half);
            registers.write(DRIVER_FEATURES, (accepted >> (32 * half)) as u32);
        }
        registers.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        if accepted & VERSION_1 == 0 || registers.read(STATUS) & FEATURES_OK == 0 {
            return Err(Error::Features { offered });
        }
        Ok((registers, accepted))
    }

    /// Tells the device where queue `index` is.
    pub(super) fn set_queue(
        &self,
        index: u16,
        size: u16,
        [descriptors, driver, device]: [u64; 3],
    ) -> Result<(), Error> {
        self.write(QUEUE_SELECT, index.into());
        let max = self.read(QUEUE_SIZE_MAX);
        if max < size.into() {
            return Err(Error::Queue { index, max });
        }
        self.write(QUEUE_SIZE, size.into());
        for (register, address) in [
            (QUEUE_DESCRIPTORS, descriptors),
            (QUEUE_DRIVER, driver),
            (QUEUE_DEVICE, device),
        ] {
            self.write(register, address as u32);
            self.write(register + 4, (address >> 32) as u32);
        }
        self.write(QUEUE_READY, 1);
        Ok(())
    }

    /// The driver is ready; the device may begin.
    pub(super) fn start(&self) {
        self.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    }

    /// There is work in queue `index`.
    pub(super) fn notify(&self, index: u16) {
        self.write(QUEUE_NOTIFY, index.into());
    }

    /// 32 bits of the device's configuration.
    pub(super) fn config(&self, offset: usize) -> u32 {
        self.read(CONFIG + offset)
    }

    /// A byte of the device's configuration.
    pub(super) fn config_byte(&self, offset: usize) -> u8 {
        let address = self.base + CONFIG + offset;
        let value: u8;
        // SAFETY: a register of the device, mapped; reading it changes no memory. The plain MOV is
        // one that every KVM emulates.
        unsafe {
            core::arch::asm!("cmp eax, eax", "mov {}, byte ptr [{}]", out(reg_byte) value, in(reg) address, options(nostack));
        }
        value
    }

    fn read(&self, offset: usize) -> u32 {
        let value: u32;
        // SAFETY: as above.
        unsafe {
            core::arch::asm!("cmp eax, eax", "mov {:e}, dword ptr [{}]", out(reg) value, in(reg) self.base + offset, options(nostack));
        }
        value
    }

    fn write(&self, offset: usize, value: u32) {
        // SAFETY: as above; what the device does to memory in turn, it does to the queues and
        // buffers given to it, which this counts as touched.
        unsafe {
            core::arch::asm!("cmp eax, eax", "mov dword ptr [{}], {:e}", in(reg) self.base + offset, in(reg) value, options(nostack));
        }
    }
}
