//! Who is connected, and who has to go when more come.
//!
//! A server that lets peers wait at its door until others have gone is stopped by anyone who connects and
//! says nothing. This one lets everyone in, and when it has as many as it may, the least useful goes:
//!
//! ```text
//!   of the address that has most connections    so that one host does not push out the others
//!     of those that have asked nothing yet, and those that have, the kind that is more
//!       the one that came, or asked, longest ago
//!   never: one that is being answered
//! ```
//!
//! All may have one address, behind a NAT or on one host: then the other rules alone decide. By the second
//! one connections that are only held push out each other, and not the replica that has asked and stays
//! connected; and strangers who ask do not push out a replica that has just come. It stays until half as
//! many have come after it as there may be. Its request has come by then.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use tokio::sync::Notify;

/// What a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Doing {
    /// It has not asked anything yet.
    Silent,
    /// It has been answered, and may ask again.
    Idle,
    /// It is being answered.
    Answering,
}

/// A connection.
struct Member {
    peer: IpAddr,
    doing: Doing,
    /// Its place in the order in which they came, or were last answered.
    order: u64,
    /// Bytes of a line that is not whole yet, and where it is in the order of their first bytes.
    unread: usize,
    unread_order: u64,
    leave: Arc<Notify>,
}

/// The connections of one address that may have to go, each list with the oldest first.
#[derive(Default)]
struct Peer {
    count: usize,
    silent: BTreeMap<u64, u64>,
    idle: BTreeMap<u64, u64>,
}

/// All connections. Every step takes time by the logarithm of their number, so that a flood of them costs
/// little each.
pub(super) struct Crowd {
    max: usize,
    unread_max: usize,
    unread: usize,
    next: u64,
    members: HashMap<u64, Member>,
    peers: HashMap<IpAddr, Peer>,
    /// The addresses by how many connections they have.
    by_count: BTreeSet<(usize, IpAddr)>,
    /// Who is in the midst of a line, the first to begin first.
    slow: BTreeMap<u64, u64>,
}

impl Crowd {
    /// At most `max` at once, with at most `unread_max` bytes of unfinished lines.
    pub(super) fn new(max: usize, unread_max: usize) -> Self {
        Self {
            max,
            unread_max,
            unread: 0,
            next: 0,
            members: HashMap::new(),
            peers: HashMap::new(),
            by_count: BTreeSet::new(),
            slow: BTreeMap::new(),
        }
    }

    /// One more of `peer`: its number, and what tells it to go. `None` if all there may be are being
    /// answered.
    pub(super) fn enter(&mut self, peer: IpAddr) -> Option<(u64, Arc<Notify>)> {
        if self.members.len() >= self.max && !self.push_out() {
            return None;
        }
        let (id, leave) = (self.count_on(), Arc::new(Notify::new()));
        let member = Member {
            peer,
            doing: Doing::Silent,
            order: id,
            unread: 0,
            unread_order: 0,
            leave: Arc::clone(&leave),
        };
        self.members.insert(id, member);
        self.change_count(peer, 1);
        self.list(id);
        Some((id, leave))
    }

    /// It has gone.
    pub(super) fn left(&mut self, id: u64) {
        self.unlist(id);
        if let Some(member) = self.members.remove(&id) {
            self.unread -= member.unread;
            self.slow.remove(&member.unread_order);
            self.change_count(member.peer, -1);
            // One permit is kept until it is asked for.
            member.leave.notify_one();
        }
    }

    /// What it does from now on.
    pub(super) fn does(&mut self, id: u64, doing: Doing) {
        self.unlist(id);
        let order = self.count_on();
        if let Some(member) = self.members.get_mut(&id) {
            member.doing = doing;
            member.order = order;
        }
        self.list(id);
    }

    /// It has sent so many bytes of a line. Others that have been at theirs for longer may have to go.
    pub(super) fn holds(&mut self, id: u64, unread: usize) {
        let order = self.count_on();
        if let Some(member) = self.members.get_mut(&id) {
            if unread == 0 {
                self.slow.remove(&member.unread_order);
            } else if member.unread == 0 {
                member.unread_order = order;
                self.slow.insert(order, id);
            }
            self.unread = self.unread - member.unread + unread;
            member.unread = unread;
        }
        while self.unread > self.unread_max
            && let Some((_, &slowest)) = self.slow.first_key_value()
        {
            self.left(slowest);
        }
    }

    /// Has the least useful one go; whether there is one.
    pub(super) fn push_out(&mut self) -> bool {
        let peers = self.by_count.iter().rev();
        let who = peers.into_iter().find_map(|(_, peer)| {
            let Peer { silent, idle, .. } = self.peers.get(peer)?;
            let more = if silent.len() >= idle.len() {
                silent
            } else {
                idle
            };
            more.first_key_value().map(|(_, id)| *id)
        });
        who.map(|id| self.left(id)).is_some()
    }

    fn count_on(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    fn change_count(&mut self, address: IpAddr, change: isize) {
        let peer = self.peers.entry(address).or_default();
        self.by_count.remove(&(peer.count, address));
        peer.count = peer
            .count
            .checked_add_signed(change)
            .expect("each has come");
        if peer.count == 0 {
            self.peers.remove(&address);
        } else {
            self.by_count.insert((peer.count, address));
        }
    }

    /// Puts it where it is found when one has to go.
    fn list(&mut self, id: u64) {
        let Some(member) = self.members.get(&id) else {
            return;
        };
        let peer = self.peers.entry(member.peer).or_default();
        match member.doing {
            Doing::Silent => peer.silent.insert(member.order, id),
            Doing::Idle => peer.idle.insert(member.order, id),
            Doing::Answering => None,
        };
    }

    fn unlist(&mut self, id: u64) {
        if let Some(member) = self.members.get(&id)
            && let Some(peer) = self.peers.get_mut(&member.peer)
        {
            peer.silent.remove(&member.order);
            peer.idle.remove(&member.order);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const B: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));

    fn crowd(max: usize) -> Crowd {
        Crowd::new(max, 100)
    }

    fn enter(crowd: &mut Crowd, peer: IpAddr) -> u64 {
        crowd.enter(peer).expect("there is room").0
    }

    /// One that has asked.
    fn enter_and_ask(crowd: &mut Crowd, peer: IpAddr) -> u64 {
        let id = enter(crowd, peer);
        crowd.does(id, Doing::Answering);
        crowd.does(id, Doing::Idle);
        id
    }

    fn here(crowd: &Crowd) -> Vec<u64> {
        let mut here: Vec<_> = crowd.members.keys().copied().collect();
        here.sort_unstable();
        here
    }

    #[test]
    fn the_silent_push_out_each_other_the_oldest_first() {
        let mut crowd = crowd(4);
        let warm = enter_and_ask(&mut crowd, A);
        let mut silent: Vec<_> = (0..3).map(|_| enter(&mut crowd, A)).collect();
        for _ in 0..20 {
            silent.push(enter(&mut crowd, A));
            silent.remove(0);
            assert_eq!(here(&crowd), [&[warm], silent.as_slice()].concat());
        }
    }

    #[test]
    fn who_has_just_come_outlasts_those_who_asked_before() {
        let mut crowd = crowd(6);
        for _ in 0..6 {
            enter_and_ask(&mut crowd, A);
        }
        let new = enter(&mut crowd, A);
        for _ in 0..20 {
            enter_and_ask(&mut crowd, A);
            assert!(here(&crowd).contains(&new));
        }
        // Half as many as there may be.
        for _ in 0..2 {
            enter(&mut crowd, A);
            assert!(here(&crowd).contains(&new));
        }
    }

    #[test]
    fn an_address_with_many_pushes_out_its_own() {
        let mut crowd = crowd(4);
        let single = enter(&mut crowd, B);
        let last: Vec<_> = (0..50).map(|_| enter(&mut crowd, A)).collect();
        assert_eq!(here(&crowd), [&[single], &last[47..]].concat());
    }

    #[test]
    fn nobody_is_pushed_out_who_is_being_answered() {
        let mut crowd = crowd(2);
        let [a, b] = [(); 2].map(|()| enter(&mut crowd, A));
        for id in [a, b] {
            crowd.does(id, Doing::Answering);
        }
        assert!(crowd.enter(B).is_none());
        crowd.does(a, Doing::Idle);
        let c = enter(&mut crowd, B);
        assert_eq!(here(&crowd), [b, c]);
    }

    #[test]
    fn of_unfinished_lines_the_slowest_go() {
        let mut crowd = crowd(9);
        let [a, b, c] = [(); 3].map(|()| enter(&mut crowd, A));
        for (id, unread) in [(b, 1), (a, 40), (b, 40)] {
            crowd.holds(id, unread);
        }
        assert_eq!(here(&crowd), [a, b, c]);
        crowd.holds(c, 30);
        assert_eq!(here(&crowd), [a, c], "b began first");
        crowd.left(a);
        crowd.holds(c, 0);
        assert_eq!(crowd.unread, 0);
        crowd.left(c);
        assert!(crowd.members.is_empty() && crowd.peers.is_empty());
        assert!(crowd.by_count.is_empty() && crowd.slow.is_empty());
    }
}
