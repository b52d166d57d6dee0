//! The network card of the board for Linux: [`Net`] with a control queue (virtio 1.2, section 5.1.6.5).
//!
//! ```text
//!  command: class u8, command u8, data ─▶ addresses ─▶ backends: what to hear, and to announce
//!           ◀─ ack u8
//! ```
//!
//! Its driver can give it another address, name more it is to take frames for, or ask for all frames. Frames for
//! several stations it takes always: what is not asked for may come all the same (5.1.6.5.1.1). What it takes is
//! looked at by the backends, before a frame is an arrival; the card itself takes what arrives.

use super::VirtioDevice;
use super::addresses::{Addresses, Mac};
use super::mmio::NetDevice;
use super::net::{F_MAC, Net};
use super::ring::{Chain, Ring, gather, length, scatter};
use crate::memory::GuestMemory;
use replay::Output;

/// Feature bits (5.1.3): `VIRTIO_NET_F_CTRL_VQ`, `_CTRL_RX`, `_CTRL_MAC_ADDR`.
const F_CTRL_VQ: u64 = 1 << 17;
const F_CTRL_RX: u64 = 1 << 18;
const F_CTRL_MAC_ADDR: u64 = 1 << 23;
/// Classes and commands.
const RX: u8 = 0;
const RX_PROMISC: u8 = 0;
const RX_ALLMULTI: u8 = 1;
const MAC: u8 = 1;
const MAC_TABLE_SET: u8 = 0;
const MAC_ADDR_SET: u8 = 1;
/// `ack`.
const OK: u8 = 0;
const ERR: u8 = 1;
/// Most bytes of a command that are looked at: tables of ten thousand addresses.
const COMMAND_MAX: usize = 64 << 10;

/// The card.
pub struct Nic {
    net: Net,
    addresses: Addresses,
    /// Counts changes of the addresses; nobody saves it.
    changes: u64,
}

impl Nic {
    /// Index of the control queue, where there is one pair of the others (5.1.2).
    pub const CONTROL: usize = 2;

    /// A card that had this address when it was made.
    #[must_use]
    pub fn new(mac: Mac) -> Self {
        Self {
            net: Net::new(mac),
            addresses: Addresses::only(mac),
            changes: 0,
        }
    }

    /// Its addresses.
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// How often they changed.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// Carries out the command in `bytes`; `None` if it is none.
    fn command(&mut self, bytes: &[u8]) -> Option<()> {
        let (&[class, command], data) = bytes.split_first_chunk::<2>()?;
        match (class, command) {
            (RX, RX_PROMISC) => self.addresses.set_promiscuous(*data.first()? != 0),
            // It takes them all anyway.
            (RX, RX_ALLMULTI) => _ = data.first()?,
            (MAC, MAC_ADDR_SET) => {
                let mac = *data.first_chunk::<6>()?;
                return self.addresses.set_mac(mac).then_some(());
            }
            (MAC, MAC_TABLE_SET) => {
                let (single, rest) = table(data)?;
                // Of several stations it takes all anyway, but the table must be there.
                table(rest)?;
                let macs = single.as_chunks::<6>().0.iter().copied();
                self.addresses.set_table(macs);
            }
            _ => return None,
        }
        Some(())
    }

    fn control(&mut self, memory: &GuestMemory, chain: &Chain) -> u32 {
        let room = length(&chain.writable);
        if chain.broken || room == 0 {
            return 0;
        }
        let whole = length(&chain.readable) <= COMMAND_MAX as u64;
        let bytes = gather(memory, &chain.readable, COMMAND_MAX);
        let done = whole.then(|| self.command(&bytes)).flatten();
        self.changes += 1;
        let ack = if done.is_some() { OK } else { ERR };
        u32::try_from(scatter(memory, &chain.writable, &[ack])).expect("a byte")
    }
}

/// The addresses of a table (`virtio_net_ctrl_mac`), and what is behind it.
fn table(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let (entries, rest) = data.split_first_chunk::<4>()?;
    let entries = usize::try_from(u32::from_le_bytes(*entries)).ok()?;
    rest.split_at_checked(entries.checked_mul(6)?)
}

impl VirtioDevice for Nic {
    const ID: u32 = Net::ID;
    const QUEUES: usize = 3;
    const QUEUE_SIZE: u16 = Net::QUEUE_SIZE;
    const KIND: &'static str = Net::KIND;
    const VERSION: u16 = 2;
    type State = Addresses;

    fn features(&self) -> u64 {
        F_MAC | F_CTRL_VQ | F_CTRL_RX | F_CTRL_MAC_ADDR
    }

    fn config(&self) -> Vec<u8> {
        self.addresses.mac().to_vec()
    }

    fn notify(
        &mut self,
        index: usize,
        rings: &mut [Ring],
        memory: &GuestMemory,
        out: &mut Vec<Output>,
    ) -> bool {
        if index != Self::CONTROL {
            let before = out.len();
            let wanted = self.net.notify(index, rings, memory, out);
            for output in &out[before..] {
                if let Output::Frame(frame) = output
                    && self.addresses.sent(frame)
                {
                    self.changes += 1;
                }
            }
            return wanted;
        }
        let ring = &mut rings[Self::CONTROL];
        let mut wanted = false;
        for _ in 0..ring.available(memory).unwrap_or(0) {
            let Some(chain) = ring.pop(memory) else { break };
            let written = self.control(memory, &chain);
            wanted |= ring.push(memory, chain.head, written);
        }
        wanted
    }

    fn stopped(&mut self, _: usize) {}

    fn reset(&mut self) {
        self.addresses = Addresses::only(self.net.mac());
        self.changes += 1;
    }

    fn save(&self) -> Addresses {
        self.addresses.clone()
    }

    fn restore(&mut self, state: Addresses) -> Result<(), &'static str> {
        state.check()?;
        self.addresses = state;
        self.changes += 1;
        Ok(())
    }
}

impl NetDevice for Nic {
    fn heard(&mut self, frame: &[u8]) {
        if self.addresses.heard(frame) {
            self.changes += 1;
        }
    }
}

#[cfg(test)]
#[path = "nic_tests.rs"]
mod tests;
