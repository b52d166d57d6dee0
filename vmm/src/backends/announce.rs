//! Frames that tell switches, and neighbours, where a hardware address is now.
//!
//! ```text
//! 0       6       12     14                                        42        60
//! │ ff.. │ guest │ type │ ARP body: 1, 0800, 6, 4, op, sha, spa,   │ padding │
//! │      │       │      │ tha, tpa                                 │         │
//! ```
//!
//! A reverse ARP request (RFC 903) needs no protocol address, so a hypervisor that knows none sends
//! that; the paper's does so too. Where the address is known, an ARP announcement (RFC 5227, section
//! 2.3) also refreshes the neighbours' tables.

use super::Mac;
use std::net::Ipv4Addr;
use std::time::Duration;

/// Bytes of these frames: the shortest that Ethernet allows, without check sequence.
pub const ANNOUNCEMENT_BYTES: usize = 60;

const BROADCAST: Mac = [0xff; 6];
/// EtherType of ARP, RFC 826.
const TYPE_ARP: u16 = 0x0806;
/// EtherType of reverse ARP, RFC 903.
const TYPE_RARP: u16 = 0x8035;
const OP_ARP_REQUEST: u16 = 1;
const OP_RARP_REQUEST: u16 = 3;

/// A reverse ARP request by `mac` for itself, as a broadcast.
#[must_use]
pub fn rarp(mac: Mac) -> [u8; ANNOUNCEMENT_BYTES] {
    let none = Ipv4Addr::UNSPECIFIED;
    build(TYPE_RARP, OP_RARP_REQUEST, mac, none, mac, none)
}

/// An ARP announcement: `ip` is at `mac`, as a broadcast.
#[must_use]
pub fn gratuitous_arp(mac: Mac, ip: Ipv4Addr) -> [u8; ANNOUNCEMENT_BYTES] {
    build(TYPE_ARP, OP_ARP_REQUEST, mac, ip, [0; 6], ip)
}

/// The same in the VLAN `vlan`, if there is one: behind a tag (IEEE 802.1Q) in front of its type.
#[must_use]
pub fn rarp_in(mac: Mac, vlan: Option<u16>) -> Vec<u8> {
    let mut frame = rarp(mac).to_vec();
    if let Some(id) = vlan {
        let [high, low] = id.to_be_bytes();
        frame.splice(12..12, [0x81, 0x00, high, low]);
    }
    frame
}

/// When to announce again, counted from the announcement at once: switches may drop a frame, or be
/// learning another way at that very moment.
pub const AGAIN: [Duration; 3] = [
    Duration::from_millis(100),
    Duration::from_millis(300),
    Duration::from_millis(1000),
];

fn build(
    ether_type: u16,
    operation: u16,
    sender: Mac,
    sender_ip: Ipv4Addr,
    target: Mac,
    target_ip: Ipv4Addr,
) -> [u8; ANNOUNCEMENT_BYTES] {
    let body = [
        &BROADCAST[..],
        &sender,
        &ether_type.to_be_bytes(),
        &[0, 1],                  // hardware: Ethernet
        &0x0800u16.to_be_bytes(), // protocol: IPv4
        &[6, 4],                  // lengths of their addresses
        &operation.to_be_bytes(),
        &sender,
        &sender_ip.octets(),
        &target,
        &target_ip.octets(),
    ]
    .concat();
    let mut frame = [0; ANNOUNCEMENT_BYTES];
    frame[..body.len()].copy_from_slice(&body);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = [0x52, 0x54, 0, 0x7a, 0x4d, 1];

    #[test]
    fn rarp_bytes() {
        let mut expected = vec![0xff; 6];
        expected.extend(MAC);
        expected.extend([0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3]);
        expected.extend(MAC);
        expected.extend([0; 4]);
        expected.extend(MAC);
        expected.extend([0; 4 + 18]);
        assert_eq!(rarp(MAC)[..], expected);
    }

    #[test]
    fn gratuitous_arp_bytes() {
        let mut expected = vec![0xff; 6];
        expected.extend(MAC);
        expected.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        expected.extend(MAC);
        expected.extend([10, 77, 0, 2]);
        expected.extend([0; 6]);
        expected.extend([10, 77, 0, 2]);
        expected.extend([0; 18]);
        assert_eq!(
            gratuitous_arp(MAC, Ipv4Addr::new(10, 77, 0, 2))[..],
            expected
        );
    }

    #[test]
    fn a_vlan_is_a_tag_before_the_type() {
        assert_eq!(rarp_in(MAC, None), rarp(MAC));
        let tagged = rarp_in(MAC, Some(0x123));
        assert_eq!(tagged[..12], rarp(MAC)[..12]);
        assert_eq!(tagged[12..16], [0x81, 0, 0x01, 0x23]);
        assert_eq!(tagged[16..], rarp(MAC)[12..]);
    }
}
