//! What stands behind the devices: the host's side of network, disk and console.
//!
//! ```text
//!             NetPort::send               ┌── tap ───── kernel bridge (netns)
//! machine ───────────────────────────────▶┤
//!    ▲                                    └── switch ── other ports, forward (host TCP)
//!    │        DiskFile::submit ──────────▶ disk ─────── raw file
//!    │        Console::write ────────────▶ console ──── stdout
//!    └─ ArrivalSink::push ◀────────────── threads of the backends
//!            (of a backup: shadow)
//! ```
//!
//! Outputs come in from any thread, the vCPU's included, so nothing on those paths reads a clock;
//! arrivals are pushed from threads that belong to the backends and end with them.

pub mod announce;
pub mod console;
pub mod disk;
pub mod fenced;
mod netlink;
pub mod netns;
pub mod shadow;
pub mod station;
pub mod switch;
pub mod tap;
#[cfg(test)]
mod testing;
mod worker;

use crate::devices::virtio::addresses::Addresses;
use nix::sys::eventfd::EventFd;
use replay::Arrival;
use std::sync::Arc;
use std::time::Duration;

/// Bytes of the shortest frame that has all its Ethernet header.
pub const FRAME_BYTES_MIN: usize = 14;
/// Bytes of the longest frame: an MTU of 1500, the Ethernet header, a VLAN tag.
pub const FRAME_BYTES_MAX: usize = 1500 + 14 + 4;

/// Frames a network backend pushes before it asks when to come back, even if there are more.
const FRAMES_AT_ONCE: usize = 256;

pub use crate::devices::virtio::addresses::Mac;

/// Where backends put what arrives.
///
/// Called from threads of the backends; must not block for long.
pub trait ArrivalSink: Send + Sync {
    /// Takes `arrival`; `false` if there is no room, and a frame is then lost, as in a network card.
    fn push(&self, arrival: Arrival) -> bool;

    /// Console input was refused: `room` is to be signalled once, when there may be room for it. One that
    /// refuses for good need not. Room that came in between is not told of: push again first.
    fn tell_of_room(&self, room: &Arc<EventFd>) {
        let _ = room;
    }

    /// A network backend has pushed the frames there were, or many; returns when it is to come back. It
    /// pushes what has come by then, and calls this again.
    fn settled(&self) -> Attention {
        Attention::Wire
    }
}

/// When a network backend is to look at its wire again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attention {
    /// As soon as a frame comes.
    Wire,
    /// As soon as a frame comes, and after this time even if none does.
    Within(Duration),
    /// After this time, whatever comes meanwhile: the host keeps it.
    After(Duration),
}

/// A way to the outside for frames.
pub trait NetPort: Send + Sync {
    /// Sends `frame` (without virtio header) now, or drops and counts it: never waits, reads no
    /// clock. May be called from any thread.
    fn send(&self, frame: &[u8]);

    /// Frames dropped so far, in either direction: no room, too short or too long, no peer.
    fn dropped(&self) -> u64;

    /// Tells the network that these addresses, each in its VLAN, are behind this port from now on (P13).
    fn announce(&self, addresses: &[(Mac, Option<u16>)]) {
        for (mac, vlan) in addresses {
            self.send(&announce::rarp_in(*mac, *vlan));
        }
    }
}

/// Whether `frame` has a length that a frame may have.
fn fits(frame: &[u8]) -> bool {
    (FRAME_BYTES_MIN..=FRAME_BYTES_MAX).contains(&frame.len())
}

/// Whether a station with the addresses `mine` takes `frame`. Out of bounds none is.
pub(crate) fn is_for(frame: &[u8], mine: &Addresses) -> bool {
    fits(frame) && mine.take(frame)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: Mac = [2, 0, 0, 0, 0, 1];
    const OTHER: Mac = [2, 0, 0, 0, 0, 2];

    fn frame(to: Mac, from: Mac, bytes: usize) -> Vec<u8> {
        let mut frame = [to, from].concat();
        frame.resize(bytes, 0);
        frame
    }

    #[test]
    fn takes_what_is_sent_to_it_or_to_all() {
        assert!(is_for(&frame(ME, OTHER, 60), &Addresses::only(ME)));
        assert!(is_for(&frame([0xff; 6], OTHER, 60), &Addresses::only(ME)));
        assert!(is_for(
            &frame([1, 0, 0x5e, 0, 0, 1], OTHER, 60),
            &Addresses::only(ME)
        ));
        assert!(!is_for(&frame(OTHER, ME, 60), &Addresses::only(ME)));
    }

    #[test]
    fn refuses_what_its_other_replica_sent() {
        assert!(!is_for(&frame([0xff; 6], ME, 60), &Addresses::only(ME)));
        assert!(!is_for(&frame(ME, ME, 60), &Addresses::only(ME)));
    }

    #[test]
    fn refuses_frames_out_of_bounds() {
        assert!(!is_for(&frame(ME, OTHER, 13), &Addresses::only(ME)));
        assert!(is_for(&frame(ME, OTHER, 14), &Addresses::only(ME)));
        assert!(is_for(
            &frame(ME, OTHER, FRAME_BYTES_MAX),
            &Addresses::only(ME)
        ));
        assert!(!is_for(
            &frame(ME, OTHER, FRAME_BYTES_MAX + 1),
            &Addresses::only(ME)
        ));
        assert!(!is_for(&[], &Addresses::only(ME)));
    }
}
