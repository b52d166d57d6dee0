//! As much of rtnetlink as a bridge with a few ports needs.
//!
//! ```text
//! │ nlmsghdr: len, type, flags, seq, pid │ body │ attr: len, type, data, pad to 4 │ attr │ ...
//! ```

use super::Mac;
use super::worker::retry;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
    socket,
};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};

/// Bytes of a message header.
const HEADER_BYTES: usize = 16;

/// Attributes of a link's data when it is a bridge: `linux/if_link.h`, `IFLA_BR_*`.
mod bridge {
    pub const FORWARD_DELAY: u16 = 1;
    pub const AGEING_TIME: u16 = 4;
    pub const STP_STATE: u16 = 5;
    pub const MCAST_SNOOPING: u16 = 23;
}

/// A route socket of the calling thread's network namespace.
pub(super) struct Netlink {
    fd: OwnedFd,
    sequence: u32,
}

impl Netlink {
    pub fn open() -> io::Result<Self> {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        Ok(Self { fd, sequence: 0 })
    }

    /// Switches the interface `index` on.
    pub fn set_up(&mut self, index: u32) -> io::Result<()> {
        self.request(Message::link(libc::RTM_NEWLINK, 0, index, libc::IFF_UP))
    }

    /// Makes `index` a port of the bridge `master`, and switches it on.
    pub fn set_master(&mut self, index: u32, master: u32) -> io::Result<()> {
        let mut message = Message::link(libc::RTM_NEWLINK, 0, index, libc::IFF_UP);
        message.attribute(libc::IFLA_MASTER, &master.to_ne_bytes());
        self.request(message)
    }

    /// Makes a bridge that is switched on and has the fixed address `mac`. It knows no stations: every
    /// frame that is not for itself goes to all other ports, at once.
    pub fn add_hub(&mut self, name: &str, mac: Mac) -> io::Result<()> {
        let create = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        let mut message = Message::link(libc::RTM_NEWLINK, create, 0, libc::IFF_UP);
        message.attribute(libc::IFLA_IFNAME, &[name.as_bytes(), &[0]].concat());
        message.attribute(libc::IFLA_ADDRESS, &mac);
        message.nest(libc::IFLA_LINKINFO, |info| {
            info.attribute(libc::IFLA_INFO_KIND, b"bridge\0");
            info.nest(libc::IFLA_INFO_DATA, |data| {
                let off = 0u32.to_ne_bytes();
                data.attribute(bridge::FORWARD_DELAY, &off);
                data.attribute(bridge::STP_STATE, &off);
                data.attribute(bridge::AGEING_TIME, &off);
                data.attribute(bridge::MCAST_SNOOPING, &[0]);
            });
        });
        self.request(message)
    }

    /// Gives the interface `index` an IPv4 address in a network of `prefix` bits.
    pub fn add_address(&mut self, index: u32, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
        let create = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        let mut message = Message::new(libc::RTM_NEWADDR, create);
        let family = u8::try_from(libc::AF_INET).expect("AF_INET is 2");
        // struct ifaddrmsg: family, prefix, flags, scope (0: universe), index.
        message.bytes.extend([family, prefix, 0, 0]);
        message.bytes.extend(index.to_ne_bytes());
        message.attribute(libc::IFA_LOCAL, &address.octets());
        message.attribute(libc::IFA_ADDRESS, &address.octets());
        let broadcast = u32::from(address) | u32::MAX.checked_shr(prefix.into()).unwrap_or(0);
        message.attribute(libc::IFA_BROADCAST, &broadcast.to_be_bytes());
        self.request(message)
    }

    /// Sends `message` and waits for the kernel's verdict.
    fn request(&mut self, message: Message) -> io::Result<()> {
        self.sequence += 1;
        let bytes = message.finish(self.sequence);
        retry(|| send(self.fd.as_raw_fd(), &bytes, MsgFlags::empty()))?;
        let mut reply = [0; 4096];
        loop {
            let length = retry(|| recv(self.fd.as_raw_fd(), &mut reply, MsgFlags::empty()))?;
            if let Some(verdict) = verdict(&reply[..length], self.sequence) {
                return verdict;
            }
        }
    }
}

/// The result of request `sequence`, if `reply` is an acknowledgement of that.
fn verdict(reply: &[u8], sequence: u32) -> Option<io::Result<()>> {
    let kind = u16::from_ne_bytes(*reply.get(4..)?.first_chunk()?);
    let answers = u32::from_ne_bytes(*reply.get(8..)?.first_chunk()?);
    if i32::from(kind) != libc::NLMSG_ERROR || answers != sequence {
        return None;
    }
    Some(
        match i32::from_ne_bytes(*reply.get(HEADER_BYTES..)?.first_chunk()?) {
            0 => Ok(()),
            error => Err(Errno::from_raw(error.wrapping_neg()).into()),
        },
    )
}

/// A request being written.
struct Message {
    bytes: Vec<u8>,
}

impl Message {
    fn new(kind: u16, flags: i32) -> Self {
        let flags = flags | libc::NLM_F_REQUEST | libc::NLM_F_ACK;
        let mut bytes = vec![0; HEADER_BYTES];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        let flags = u16::try_from(flags).expect("netlink flags have 16 bits");
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        Self { bytes }
    }

    /// About the link `index` (0: one to be made), setting `set` of its flags.
    fn link(kind: u16, flags: i32, index: u32, set: i32) -> Self {
        let mut message = Self::new(kind, flags);
        // struct ifinfomsg: family, pad, type, index, flags, mask of the flags to change.
        message.bytes.extend([0; 4]);
        message.bytes.extend(index.to_ne_bytes());
        message.bytes.extend(set.to_ne_bytes());
        message.bytes.extend(set.to_ne_bytes());
        message
    }

    fn attribute(&mut self, kind: u16, data: &[u8]) {
        self.nest(kind, |message| message.bytes.extend(data));
    }

    /// An attribute of what `inner` writes.
    fn nest(&mut self, kind: u16, inner: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend([0, 0]);
        self.bytes.extend(kind.to_ne_bytes());
        inner(self);
        let length = u16::try_from(self.bytes.len() - start).expect("requests are short");
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self, sequence: u32) -> Vec<u8> {
        let length = u32::try_from(self.bytes.len()).expect("requests are short");
        self.bytes[..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_nest_and_are_padded() {
        let mut message = Message::new(16, 0);
        message.nest(18, |info| info.attribute(1, b"abc"));
        let bytes = message.finish(7);
        assert_eq!(bytes.len(), HEADER_BYTES + 12);
        assert_eq!(bytes[..4], 28u32.to_ne_bytes());
        assert_eq!(bytes[8..12], 7u32.to_ne_bytes());
        let mut attributes = Vec::new();
        for word in [12u16, 18, 7, 1] {
            attributes.extend(word.to_ne_bytes());
        }
        attributes.extend(b"abc\0");
        assert_eq!(bytes[HEADER_BYTES..], attributes);
    }

    #[test]
    fn verdicts_are_of_their_request_only() {
        let mut reply = vec![0; 36];
        reply[4..6].copy_from_slice(&2u16.to_ne_bytes());
        reply[8..12].copy_from_slice(&7u32.to_ne_bytes());
        assert!(verdict(&reply, 6).is_none());
        assert!(verdict(&reply[..12], 7).is_none(), "cut short");
        assert!(matches!(verdict(&reply, 7), Some(Ok(()))));
        reply[16..20].copy_from_slice(&(-1i32).to_ne_bytes());
        let error = verdict(&reply, 7).expect("a verdict").expect_err("refused");
        assert_eq!(error.raw_os_error(), Some(libc::EPERM));
    }

    #[test]
    fn the_kernel_refuses_what_does_not_exist() {
        let mut netlink = Netlink::open().expect("a route socket");
        assert!(netlink.set_up(0x7fff_fff0).is_err());
    }
}
