//! A network of the demo's own, in a namespace without a name.
//!
//! ```text
//! ┌ network namespace of this process and its children ─────────────┐
//! │ clients, over the kernel's TCP                                  │
//! │   └ tandem (bridge, 10.77.0.1/24) ─┬─ TAP 0 ── primary's guest  │
//! │                                    └─ TAP 1 ── backup's guest   │
//! └─────────────────────────────────────────────────────────────────┘
//! ```
//!
//! The bridge is a hub: both replicas hear each frame for the guest, so the one that goes live has those
//! the other did not log (see [`super::shadow`]), and no table has to learn that the guest has moved.
//! When the last process in it ends, however it ends, the namespace is gone with all in it.

use super::Mac;
use super::netlink::Netlink;
use super::tap::{TapError, check_device, create_persistent};
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getegid, geteuid};
use std::io;
use std::net::Ipv4Addr;

/// The host's address in the private network.
pub const HOST_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// The guest's address in the private network.
pub const GUEST_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
/// Bits of the private network's prefix.
pub const PREFIX: u8 = 24;
/// The bridge's name.
pub const BRIDGE: &str = "tandem";
/// The bridge's hardware address; fixed, since by itself a bridge takes that of one of its ports.
pub const BRIDGE_MAC: Mac = [0x52, 0x54, 0x00, 0x7a, 0x4d, 0xfe];

/// Why there is no private network.
#[derive(Debug, thiserror::Error)]
pub enum PrivateNetworkError {
    /// Too late: other threads would stay in the old network.
    #[error("the process has {0} threads already; it can enter a network of its own only with one")]
    Threads(usize),
    /// No TAP interface can be had.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// Not allowed, in one way or the other.
    #[error("no network namespace of its own is allowed to this user: {0}")]
    Unshare(#[source] io::Error),
    /// A step of building it failed.
    #[error("private network: {step}: {source}")]
    Step {
        /// The step.
        step: String,
        /// Why it failed.
        source: io::Error,
    },
}

trait Step<T> {
    fn step(self, step: impl Into<String>) -> Result<T, PrivateNetworkError>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, step: impl Into<String>) -> Result<T, PrivateNetworkError> {
        self.map_err(|source| PrivateNetworkError::Step {
            step: step.into(),
            source: source.into(),
        })
    }
}

/// A private network with a bridge, and this process in it.
#[derive(Debug)]
pub struct PrivateNetwork {
    bridge: u32,
}

impl PrivateNetwork {
    /// Moves this process, and the children it will have, into a new network and makes a bridge with
    /// the TAP interfaces `taps` there, which stay when nobody has them open.
    ///
    /// As root, or with `CAP_SYS_ADMIN`, that is a network namespace; otherwise one in a new user
    /// namespace, where this user is called root. To be called while the process has one thread: before
    /// any runtime, logger or test harness starts another.
    ///
    /// # Errors
    /// See [`PrivateNetworkError`]. With [`PrivateNetworkError::Step`], and a `Tap` error other than of
    /// `/dev/net/tun` itself, the process is in the new network already, with loopback at best.
    pub fn enter(taps: &[&str]) -> Result<Self, PrivateNetworkError> {
        Self::enter_as(taps, false)
    }

    /// As [`PrivateNetwork::enter`], for the calling thread alone, with the threads and children it will
    /// have: the others stay where they are. It takes `CAP_SYS_ADMIN`: there is no user namespace for
    /// one thread.
    ///
    /// # Errors
    /// See [`PrivateNetworkError`].
    pub fn enter_thread(taps: &[&str]) -> Result<Self, PrivateNetworkError> {
        check_device()?;
        unshare(CloneFlags::CLONE_NEWNET).map_err(|e| PrivateNetworkError::Unshare(e.into()))?;
        Self::make(taps)
    }

    fn enter_as(taps: &[&str], as_user: bool) -> Result<Self, PrivateNetworkError> {
        check_device()?;
        let threads = std::fs::read_dir("/proc/self/task")
            .step("/proc/self/task")?
            .count();
        if threads != 1 {
            return Err(PrivateNetworkError::Threads(threads));
        }
        match unshare(CloneFlags::CLONE_NEWNET) {
            Ok(()) if !as_user => {}
            Ok(()) | Err(Errno::EPERM) => new_user_namespace()?,
            Err(error) => return Err(PrivateNetworkError::Unshare(error.into())),
        }
        Self::make(taps)
    }

    fn make(taps: &[&str]) -> Result<Self, PrivateNetworkError> {
        let mut network = Self { bridge: 0 };
        network.build()?;
        for tap in taps {
            network.add_tap(tap)?;
        }
        Ok(network)
    }

    fn build(&mut self) -> Result<(), PrivateNetworkError> {
        let mut netlink = Netlink::open().step("route socket")?;
        let loopback = if_nametoindex("lo").step("find loopback")?;
        netlink.set_up(loopback).step("switch loopback on")?;
        for group in ["all", "default"] {
            disable_ipv6(group)?;
        }
        netlink
            .add_hub(BRIDGE, BRIDGE_MAC)
            .step(format!("make bridge {BRIDGE}"))?;
        self.bridge = if_nametoindex(BRIDGE).step("find the bridge")?;
        netlink
            .add_address(self.bridge, HOST_ADDRESS, PREFIX)
            .step(format!("give the bridge {HOST_ADDRESS}/{PREFIX}"))
    }

    /// Adds one more TAP interface to the bridge. It stays as long as the network.
    ///
    /// # Errors
    /// See [`PrivateNetworkError`].
    pub fn add_tap(&self, name: &str) -> Result<(), PrivateNetworkError> {
        create_persistent(name)?;
        let step = format!("put TAP {name} into the bridge");
        let index = if_nametoindex(name).step(&step)?;
        let mut netlink = Netlink::open().step("route socket")?;
        netlink.set_master(index, self.bridge).step(&step)
    }
}

/// Enters a user namespace where this user is root, and a network namespace that belongs to it.
fn new_user_namespace() -> Result<(), PrivateNetworkError> {
    // What they are outside can only be asked before.
    let (uid, gid) = (geteuid(), getegid());
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET)
        .map_err(|error| PrivateNetworkError::Unshare(error.into()))?;
    let write = |file: &str, text: String| std::fs::write(file, text).step(format!("write {file}"));
    write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    // Without CAP_SETGID outside, groups can only be mapped once they cannot be changed any more.
    write("/proc/self/setgroups", "deny".into())?;
    write("/proc/self/gid_map", format!("0 {gid} 1"))
}

/// Keeps a kernel with IPv6 from chattering on new interfaces.
fn disable_ipv6(group: &str) -> Result<(), PrivateNetworkError> {
    let file = format!("/proc/sys/net/ipv6/conf/{group}/disable_ipv6");
    match std::fs::write(&file, "1") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.step(format!("write {file}")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::station::Station;
    use super::*;
    use crate::backends::tap::{self, Tap};
    use crate::backends::testing::{EchoGuest, Heard, exchange, isolated};
    use std::net::TcpStream;
    use std::time::Duration;

    const GUEST: Mac = [0x52, 0x54, 0, 0, 0, 2];

    fn enter(as_user: bool) -> Option<PrivateNetwork> {
        match PrivateNetwork::enter_as(&["tap0", "tap1"], as_user) {
            Ok(network) => Some(network),
            Err(error) => {
                testing::skipped::skip_this(&error);
                None
            }
        }
    }

    fn two_taps_and_the_kernels_tcp(as_user: bool) {
        let Some(_network) = enter(as_user) else {
            return;
        };
        let mut guest = EchoGuest::new(GUEST, GUEST_ADDRESS);
        for name in ["tap0", "tap1"] {
            let sink = guest.sink();
            guest.plug(Box::new(
                Tap::open(name, &Station::of(GUEST), sink).expect("a TAP of ours"),
            ));
        }
        let guest = guest.run();
        let mut client = TcpStream::connect_timeout(
            &(GUEST_ADDRESS, EchoGuest::PORT).into(),
            Duration::from_secs(10),
        )
        .expect("the kernel finds the guest");
        exchange(&mut client, 200_000);
        guest.go_live(1);
        exchange(&mut client, 200_000);
        assert!(
            guest.heard(1) > 10,
            "the second TAP heard what the first did"
        );
        drop(client);
        drop(guest);
    }

    #[test]
    fn a_connection_moves_from_tap_to_tap() {
        isolated(|| two_taps_and_the_kernels_tcp(false));
    }

    #[test]
    fn a_connection_moves_from_tap_to_tap_as_ordinary_user() {
        isolated(|| two_taps_and_the_kernels_tcp(true));
    }

    /// What QEMU leaves of an interface that stays: sums of what it is sent are the reader's affair.
    #[test]
    fn a_tap_is_as_new_after_another_program() {
        isolated(|| {
            let Some(_network) = enter(false) else { return };
            tap::leave_sums_open("tap0");
            let mut guest = EchoGuest::new(GUEST, GUEST_ADDRESS);
            let sink = guest.sink();
            let tap = Tap::open("tap0", &Station::of(GUEST), sink).expect("a TAP of ours");
            guest.plug(Box::new(tap));
            let _guest = guest.run();
            let mut client = TcpStream::connect_timeout(
                &(GUEST_ADDRESS, EchoGuest::PORT).into(),
                Duration::from_secs(10),
            )
            .expect("the guest finds no frame damaged");
            exchange(&mut client, 20_000);
        });
    }

    #[test]
    fn the_backup_hears_what_the_primary_does() {
        isolated(|| {
            let Some(_network) = enter(false) else { return };
            let heard = [Heard::new(), Heard::new()];
            let taps = ["tap0", "tap1"].map(|name| {
                let sink = heard[usize::from(name == "tap1")].clone();
                Tap::open(name, &Station::of(GUEST), sink).expect("a TAP of ours")
            });
            // The kernel asks for the guest's address until somebody answers.
            let nobody =
                TcpStream::connect_timeout(&(GUEST_ADDRESS, 7).into(), Duration::from_millis(2500));
            assert!(nobody.is_err());
            for heard in &heard {
                let arp = |frame: &[u8]| frame[12..14] == [8, 6] && frame[38..42] == [10, 77, 0, 2];
                assert!(heard.frames().iter().any(|frame| arp(frame)));
                let ipv6 = |frame: &[u8]| frame[12..14] == [0x86, 0xdd];
                assert!(
                    !heard.frames().iter().any(|frame| ipv6(frame)),
                    "no IPv6 noise"
                );
            }
            let before = heard.each_ref().map(|heard| heard.frames().len());
            use crate::backends::NetPort;
            taps[0].announce(&[(GUEST, None)]);
            taps[0].send(&[&BRIDGE_MAC[..], &GUEST, &[0x88, 0xb5], &[0; 46]].concat());
            // What the guest itself sent comes to neither, so a frame after it is the next heard.
            std::net::UdpSocket::bind((HOST_ADDRESS, 0))
                .and_then(|socket| {
                    socket.set_broadcast(true)?;
                    socket.send_to(b"x", ("10.77.0.255", 9))
                })
                .expect("a broadcast");
            for (heard, before) in heard.iter().zip(before) {
                let frames = heard.wait_for(before + 1);
                assert!(frames[before..].iter().all(|frame| frame[6..12] != GUEST));
            }
        });
    }

    #[test]
    fn a_process_with_threads_is_refused() {
        isolated(|| {
            let worker = crate::backends::worker::Worker::start("waits", |stop| {
                let mut fds = [nix::poll::PollFd::new(stop, nix::poll::PollFlags::POLLIN)];
                crate::backends::worker::wait(&mut fds, nix::poll::PollTimeout::NONE);
            });
            let refused = PrivateNetwork::enter(&[]);
            drop(worker);
            match refused {
                Err(PrivateNetworkError::Threads(2)) => {}
                Err(PrivateNetworkError::Tap(error)) => testing::skipped::skip_this(&error),
                other => panic!("{other:?}"),
            }
        });
    }

    #[test]
    fn names_a_tap_that_cannot_be() {
        isolated(|| {
            let refused = PrivateNetwork::enter(&["a name too long for it"]);
            match refused {
                Err(PrivateNetworkError::Tap(TapError::Name(_))) => {}
                Err(error) => testing::skipped::skip_this(&error),
                Ok(_) => panic!("that is no name"),
            }
        });
    }
}
