//! What has to be true, whatever goes wrong: the invariants of `docs/TESTING.md`, over all that outsiders see.

use crate::world::{DIVERGED, Entry, Life, Name, RIVAL, Replica, Vcpu, World};
use replica::role::Role;

/// What was found broken, one bit each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Rule {
    /// Invariant 1: an output left that the backup does not hold the entry of.
    OutputRule,
    /// Invariant 3: two in one view, one without its flag, or two that let everything out.
    OneLive,
    /// Invariant 4: an output lost or out of order.
    OutputsKept,
    /// Invariant 7: a diverged replica lives.
    Diverged,
    /// Invariant 9: two histories.
    OneHistory,
    /// Only who was made a member of a view asks for its flag.
    Members,
    /// The viewservice tells of a view that nobody began, or of another primary of it.
    Views,
}

/// Outsiders' memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Oracle {
    /// The longest history that an output told of: all entries up to the one that marks it.
    pub seen: Vec<Entry>,
    /// Who began each view, by its number.
    pub begun: Vec<Option<Name>>,
    /// Who may ask for the flag of each view, a bit each.
    pub members: Vec<u8>,
    /// The [`Rule`]s found broken.
    broken: u8,
}

impl Oracle {
    /// The first pair, in view 1.
    pub fn of_pair(leader: Name, backup: Name, views: usize) -> Self {
        let mut oracle = Self {
            begun: vec![None; views],
            members: vec![0; views],
            ..Self::default()
        };
        oracle.begun[1] = Some(leader);
        oracle.members[1] = 1 << leader | 1 << backup;
        oracle
    }

    /// Notes that `rule` is broken.
    pub fn breaks(&mut self, rule: Rule) {
        self.broken |= 1 << rule as u8;
    }

    /// Whether `rule` was never broken.
    pub fn keeps(&self, rule: Rule) -> bool {
        self.broken & 1 << rule as u8 == 0
    }

    /// The last view that was begun, and who began it.
    ///
    /// # Panics
    /// Never: the first pair's was.
    pub fn last(&self) -> (usize, Name) {
        let last = self
            .begun
            .iter()
            .rposition(Option::is_some)
            .expect("view 1");
        (last, self.begun[last].expect("it was begun"))
    }
}

impl World {
    /// Output `at` leaves `name`: outsiders see it.
    pub fn leaves(&mut self, name: Name, at: u8) {
        let replica = &self.replicas[usize::from(name)];
        let is_free = replica.vcpu != Vcpu::Linked && replica.vcpu != Vcpu::Undecided
            || replica.role.as_ref().and_then(|role| role.role()) == Some(Role::Solo);
        let holds = |follower: Name| {
            let backup = &self.replicas[usize::from(follower)];
            // What became of a backup that is over is not known any more; it held what it had acked.
            backup.life == Life::Over || backup.received() > at
        };
        let held = is_free || replica.follower.is_some_and(holds);
        let history = replica.log[..=usize::from(at)].to_vec();
        let oracle = &mut self.oracle;
        if !held {
            oracle.breaks(Rule::OutputRule);
        }
        let common = oracle.seen.len().min(history.len());
        if oracle.seen[..common] != history[..common] {
            oracle.breaks(Rule::OneHistory);
            return;
        }
        if history.len() > oracle.seen.len() + 1 {
            oracle.breaks(Rule::OutputsKept);
        }
        if history.len() > oracle.seen.len() {
            oracle.seen = history;
        }
    }

    /// `name` is about to ask for the flag of `view`.
    pub fn asks(&mut self, name: Name, view: u8) {
        if self.oracle.members[usize::from(view)] & 1 << name == 0 {
            self.oracle.breaks(Rule::Members);
        }
    }

    /// `name` was made the backup in the view it is in: it has all that any output told of, unless its leader has
    /// gone on alone meanwhile, by this view's flag, or it has diverged by now.
    pub fn is_member(&mut self, name: Name) {
        let replica = &self.replicas[usize::from(name)];
        let view = usize::from(replica.view());
        let is_heir = self.flags[view].is_none() && !replica.diverged;
        if is_heir && !replica.holds(&self.oracle.seen) {
            self.oracle.breaks(Rule::OneHistory);
        }
        self.oracle.members[view] |= 1 << name;
    }

    /// `name` leads from now on, in the view it is in.
    pub fn begins(&mut self, name: Name) {
        let replica = &self.replicas[usize::from(name)];
        let view = usize::from(replica.view());
        let has_flag = self.flags[view - 1] == Some(name);
        let is_second = self.oracle.begun[view].is_some_and(|other| other != name);
        let knows = replica.log.starts_with(&self.oracle.seen);
        let diverged = replica.diverged || replica.log.contains(&DIVERGED);
        if !has_flag || is_second {
            self.oracle.breaks(Rule::OneLive);
        }
        if !knows {
            self.oracle.breaks(Rule::OneHistory);
        }
        if diverged {
            self.oracle.breaks(Rule::Diverged);
        }
        self.oracle.begun[view].get_or_insert(name);
        self.oracle.members[view] |= 1 << name;
    }

    /// Looks at all replicas after a step.
    pub fn look(&mut self) {
        let free = |replica: &&Replica| {
            replica.is_alive() && matches!(replica.vcpu, Vcpu::Alone | Vcpu::Stands)
        };
        if self.replicas.iter().filter(free).count() > 1 {
            self.oracle.breaks(Rule::OneLive);
        }
    }

    /// Whether a machine that could go on does, where nothing is under way: its outputs have left, too, unless a
    /// stream was tampered with.
    pub fn goes_on(&self, untouched: bool) -> bool {
        let (view, leader) = self.oracle.last();
        if leader == RIVAL {
            return true;
        }
        let leads = &self.replicas[usize::from(leader)];
        if leads.is_alive() {
            let served = !untouched || leads.log == self.oracle.seen;
            return served && matches!(leads.vcpu, Vcpu::Linked | Vcpu::Alone);
        }
        let heir = |(name, replica): (usize, &Replica)| {
            let is_member = self.oracle.members[view] & 1 << name != 0;
            is_member && replica.is_alive() && !replica.diverged
        };
        // Nothing is under way, so each has heard of its leader's end: one that is left and does not lead is stuck.
        !self.replicas.iter().enumerate().any(heir)
    }
}
