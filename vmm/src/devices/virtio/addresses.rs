//! The hardware addresses of a network card: which it takes frames for, and which it was seen to send from.

use serde::{Deserialize, Serialize};

/// A hardware address.
pub type Mac = [u8; 6];

/// Addresses besides its own that a card takes frames for by name; of more it takes all frames.
pub const TABLE_MAX: usize = 64;
/// Addresses it is remembered to have sent from; of more the oldest is forgotten.
pub const USED_MAX: usize = 64;

/// Where the type of a frame is, or its VLAN tag; and that tag's type (IEEE 802.1Q).
const TYPE: usize = 12;
const TYPE_VLAN: [u8; 2] = [0x81, 0x00];
const VLAN_ID: u16 = 0xfff;

/// A card's addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    /// Its own.
    mac: Mac,
    /// It takes frames for anybody, as its driver asked for.
    promiscuous: bool,
    /// Its driver named more addresses than [`TABLE_MAX`].
    overflowed: bool,
    /// Addresses of single stations it takes frames for, besides its own.
    table: Vec<Mac>,
    /// Addresses it sent from, and the VLAN if that was in one; oldest first. Its own without a VLAN is not here.
    used: Vec<(Mac, Option<u16>)>,
}

/// Whether `mac` is one station's.
fn is_one(mac: Mac) -> bool {
    mac[0] & 1 == 0 && mac != [0; 6]
}

/// Destination, source, and VLAN of a frame; `None` where it has no header.
fn ends(frame: &[u8]) -> Option<(Mac, Mac, Option<u16>)> {
    let (to, rest) = frame.split_first_chunk::<6>()?;
    let (from, _) = rest.split_first_chunk::<6>()?;
    let tag = frame
        .get(TYPE..TYPE + 4)
        .filter(|tag| tag[..2] == TYPE_VLAN);
    let id = tag.map(|tag| u16::from_be_bytes([tag[2], tag[3]]) & VLAN_ID);
    // 0 is a priority without a VLAN.
    Some((*to, *from, id.filter(|id| *id != 0)))
}

impl Addresses {
    /// Those of a card that nobody has set up.
    #[must_use]
    pub fn only(mac: Mac) -> Self {
        Self {
            mac,
            promiscuous: false,
            overflowed: false,
            table: Vec::new(),
            used: Vec::new(),
        }
    }

    /// The card's own.
    #[must_use]
    pub fn mac(&self) -> Mac {
        self.mac
    }

    /// The addresses of single stations it takes frames for; `None`: of all.
    #[must_use]
    pub fn named(&self) -> Option<Vec<Mac>> {
        let all = self.promiscuous || self.overflowed;
        (!all).then(|| [&[self.mac], &self.table[..]].concat())
    }

    /// Whether the card takes `frame`: it is for one of its stations, or for several, and not from itself.
    /// Where two replicas hear one network, the last is what the other replica sent.
    #[must_use]
    pub fn take(&self, frame: &[u8]) -> bool {
        let Some((to, from, _)) = ends(frame) else {
            return false;
        };
        let all = self.promiscuous || self.overflowed;
        let wanted = all || to[0] & 1 != 0 || to == self.mac || self.table.contains(&to);
        wanted && from != self.mac
    }

    /// Whether `frame` comes from an address that the card was seen to send from.
    #[must_use]
    pub fn have_sent(&self, frame: &[u8]) -> bool {
        ends(frame).is_some_and(|(_, from, _)| {
            from == self.mac || self.used.iter().any(|(mac, _)| *mac == from)
        })
    }

    /// All it uses, with the VLAN each is in: the card's own first.
    #[must_use]
    pub fn in_use(&self) -> Vec<(Mac, Option<u16>)> {
        [&[(self.mac, None)], &self.used[..]].concat()
    }

    /// The card sends `frame`. Whether anything changed.
    pub fn sent(&mut self, frame: &[u8]) -> bool {
        let Some((_, from, vlan)) = ends(frame) else {
            return false;
        };
        let known = (from, vlan) == (self.mac, None) || self.used.contains(&(from, vlan));
        if known || !is_one(from) {
            return false;
        }
        if self.used.len() == USED_MAX {
            self.used.remove(0);
        }
        self.used.push((from, vlan));
        true
    }

    /// The card got `frame`: who sent it is not behind the card, or not any more. Whether anything changed.
    pub fn heard(&mut self, frame: &[u8]) -> bool {
        let before = self.used.len();
        if before > 0
            && let Some((_, from, _)) = ends(frame)
            && from != self.mac
        {
            self.used.retain(|(mac, _)| *mac != from);
        }
        self.used.len() != before
    }

    /// The driver asks for frames for anybody, or not any more.
    pub fn set_promiscuous(&mut self, promiscuous: bool) {
        self.promiscuous = promiscuous;
    }

    /// The driver gives the card another address of its own. Whether it can be one.
    pub fn set_mac(&mut self, mac: Mac) -> bool {
        if is_one(mac) {
            let old = std::mem::replace(&mut self.mac, mac);
            self.used
                .retain(|used| used.0 != old && *used != (mac, None));
        }
        is_one(mac)
    }

    /// The driver names the stations the card is to take frames for besides its own.
    pub fn set_table(&mut self, table: impl ExactSizeIterator<Item = Mac>) {
        self.overflowed = table.len() > TABLE_MAX;
        self.table = table.take(TABLE_MAX).filter(|mac| is_one(*mac)).collect();
    }

    /// What is wrong with addresses from outside, if anything.
    pub(super) fn check(&self) -> Result<(), &'static str> {
        let fit = self.table.len() <= TABLE_MAX && self.used.len() <= USED_MAX;
        let used = self.used.iter().map(|(mac, _)| mac);
        let ones = [self.mac]
            .iter()
            .chain(&self.table)
            .chain(used)
            .all(|mac| is_one(*mac));
        let vlans = self.used.iter().filter_map(|(_, vlan)| *vlan);
        if fit && ones && vlans.into_iter().all(|vlan| (1..=VLAN_ID).contains(&vlan)) {
            Ok(())
        } else {
            Err("a hardware address that is none, or too many")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: Mac = [2, 0, 0, 0, 0, 1];
    const MORE: Mac = [2, 0, 0, 0, 0, 2];
    const OTHER: Mac = [2, 0, 0, 0, 0, 3];

    fn frame(to: Mac, from: Mac) -> Vec<u8> {
        let mut frame = [to, from].concat();
        frame.resize(60, 0);
        frame
    }

    fn in_vlan(id: u16, from: Mac) -> Vec<u8> {
        let mut frame = frame(OTHER, from);
        let id = 0x6000 | id; // with a priority
        frame[12..16].copy_from_slice(&[0x81, 0, id.to_be_bytes()[0], id.to_be_bytes()[1]]);
        frame
    }

    #[test]
    fn it_takes_what_is_for_it_or_for_several_and_not_its_own() {
        let mut addresses = Addresses::only(ME);
        assert!(addresses.take(&frame(ME, OTHER)) && addresses.take(&frame([0xff; 6], OTHER)));
        assert!(!addresses.take(&frame(MORE, OTHER)) && !addresses.take(&frame([0xff; 6], ME)));
        assert!(!addresses.take(&[0; 11]) && !addresses.take(&[]));
        addresses.set_table([MORE].into_iter());
        assert!(addresses.take(&frame(MORE, OTHER)) && addresses.take(&frame(ME, OTHER)));
        assert_eq!(addresses.named(), Some(vec![ME, MORE]));
        addresses.set_table([].into_iter());
        assert!(!addresses.take(&frame(MORE, OTHER)));
        addresses.set_promiscuous(true);
        assert!(addresses.take(&frame(MORE, OTHER)) && !addresses.take(&frame(MORE, ME)));
        assert_eq!(addresses.named(), None);
    }

    #[test]
    fn a_new_address_takes_the_place_of_the_old_one() {
        let mut addresses = Addresses::only(ME);
        addresses.sent(&in_vlan(7, ME));
        addresses.sent(&frame(OTHER, MORE));
        assert!(!addresses.set_mac([0xff; 6]) && !addresses.set_mac([0; 6]));
        assert!(addresses.set_mac(MORE));
        assert!(addresses.take(&frame(MORE, OTHER)) && !addresses.take(&frame(ME, OTHER)));
        assert_eq!(addresses.in_use(), [(MORE, None)]);
    }

    #[test]
    fn a_table_that_is_too_long_takes_everything() {
        let mac = |n: usize| [2, 0, 0, 1, 0, n as u8];
        let mut addresses = Addresses::only(ME);
        addresses.set_table((0..TABLE_MAX).map(mac));
        assert!(!addresses.take(&frame(OTHER, MORE)));
        addresses.set_table((0..TABLE_MAX + 1).map(mac));
        assert!(addresses.take(&frame(OTHER, MORE)) && addresses.named().is_none());
        addresses.check().unwrap();
        addresses.set_table((0..1).map(mac));
        assert!(!addresses.take(&frame(OTHER, MORE)));
    }

    #[test]
    fn what_it_sends_from_is_in_use_until_it_is_heard_from_elsewhere() {
        let mut addresses = Addresses::only(ME);
        assert!(!addresses.sent(&frame(OTHER, ME)), "that is known");
        assert!(addresses.sent(&frame(OTHER, MORE)) && !addresses.sent(&frame(OTHER, MORE)));
        assert!(addresses.sent(&in_vlan(5, ME)) && addresses.sent(&in_vlan(5, MORE)));
        assert!(!addresses.sent(&in_vlan(0, ME)), "a priority only");
        assert!(!addresses.sent(&frame(OTHER, [0xff; 6])));
        let all = [(ME, None), (MORE, None), (ME, Some(5)), (MORE, Some(5))];
        assert_eq!(addresses.in_use(), all);
        assert!(addresses.have_sent(&frame([0xff; 6], MORE)));
        assert!(!addresses.heard(&frame(ME, OTHER)));
        assert!(addresses.heard(&frame(ME, MORE)));
        assert_eq!(addresses.in_use(), [(ME, None), (ME, Some(5))]);
        assert!(!addresses.have_sent(&frame([0xff; 6], MORE)));
    }

    #[test]
    fn the_oldest_used_are_forgotten() {
        let mut addresses = Addresses::only(ME);
        for n in 0..2 * USED_MAX {
            assert!(addresses.sent(&in_vlan(1 + n as u16, MORE)));
        }
        let used = addresses.in_use();
        assert_eq!(used.len(), USED_MAX + 1);
        assert_eq!(used[1], (MORE, Some(1 + USED_MAX as u16)));
        addresses.check().unwrap();
    }
}
