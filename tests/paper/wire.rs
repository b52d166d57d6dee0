//! What is seen on the guest's network: by a packet socket on the backup's TAP, or by a port of the
//! userspace switch.

use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, socket,
};
use replay::Arrival;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use vmm::backends::ArrivalSink;
use vmm::backends::station::Station;
use vmm::backends::switch::SwitchPort;

/// A listener's own address on the switch.
const LISTENER: [u8; 6] = [0x52, 0x54, 0, 0x7a, 0x4d, 0x77];

/// A way to hear frames.
pub enum Tapped {
    /// What is put into the interface of this index; the socket hears all there are.
    Interface { fd: OwnedFd, index: u32 },
    /// What is sent to all on the switch.
    Switch {
        heard: Arc<Heard>,
        _port: SwitchPort,
    },
}

/// Frames heard and not yet looked at.
#[derive(Default)]
pub struct Heard(Mutex<Vec<Vec<u8>>>);

impl ArrivalSink for Heard {
    fn push(&self, arrival: Arrival) -> bool {
        if let Arrival::Frame(frame) = arrival {
            let mut frames = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            frames.push(frame);
        }
        true
    }
}

impl Tapped {
    /// Hears what the process that holds the TAP `name` puts into it, from now on.
    pub fn interface(name: &str) -> Self {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let every = SockProtocol::EthAll;
        let fd = socket(AddressFamily::Packet, SockType::Raw, flags, every).unwrap();
        let index = if_nametoindex(name).unwrap();
        Self::Interface { fd, index }
    }

    /// Hears what is sent to all on the switch at `path`, from now on.
    pub fn switch(path: &Path) -> Self {
        let heard = Arc::new(Heard::default());
        let _port = SwitchPort::connect(path, &Station::of(LISTENER), heard.clone()).unwrap();
        Self::Switch { heard, _port }
    }

    /// The frames heard since the last call, in order.
    pub fn take(&self) -> Vec<Vec<u8>> {
        match self {
            Self::Switch { heard, .. } => {
                std::mem::take(&mut heard.0.lock().unwrap_or_else(PoisonError::into_inner))
            }
            Self::Interface { fd, index } => {
                let mut frames = Vec::new();
                let mut buffer = [0; 2048];
                while let Ok((length, Some(from))) =
                    recvfrom::<LinkAddr>(fd.as_raw_fd(), &mut buffer)
                {
                    // Outgoing is what the bridge sends into the TAP, for the guest.
                    let here = from.ifindex() == *index as usize;
                    if here && from.pkttype() != libc::PACKET_OUTGOING {
                        frames.push(buffer[..length].to_vec());
                    }
                }
                frames
            }
        }
    }
}
