//! What has to be true after every step, whatever went wrong: the invariants of docs/TESTING.md.

use crate::guest::index_of;
use crate::link::{End, Link};
use crate::replica::Replica;
use logchannel::Cursors;
use replay::{LogIndex, Output};
use replica::role::Role;
use std::collections::{BTreeMap, BTreeSet};

/// Who began the next view though he is no replica: an operator who gave the machine up.
pub const RIVAL: usize = usize::MAX;

#[derive(Default)]
pub struct Oracle {
    /// What outsiders saw, by the index of its entry.
    seen: BTreeMap<u64, Output>,
    /// The last that was seen of each kind.
    last: BTreeMap<&'static str, u64>,
    /// Console bytes that died with a replica that had let them out alone, before it was given a backup.
    excused: BTreeSet<u64>,
    /// Who may ask for the flag of a view.
    members: BTreeMap<u64, BTreeSet<usize>>,
    /// Who began a view, live.
    pub begun: BTreeMap<u64, usize>,
    /// The view in which each replica was last found.
    views: BTreeMap<usize, u64>,
}

fn kind(output: &Output) -> &'static str {
    match output {
        Output::Frame(_) => "frame",
        Output::Console(_) => "console",
        _ => "disk",
    }
}

impl Oracle {
    /// The first pair, in view 1.
    pub fn of_pair(leader: usize, backup: usize) -> Self {
        Self {
            members: BTreeMap::from([(1, BTreeSet::from([leader, backup]))]),
            begun: BTreeMap::from([(1, leader)]),
            ..Self::default()
        }
    }

    /// Who began the last view.
    pub fn machine(&self) -> usize {
        *self.begun.last_key_value().expect("one was begun").1
    }

    /// `replica` is about to ask for the flag of `view`.
    pub fn asks(&self, replica: &Replica, view: u64) {
        let name = replica.name;
        assert!(
            replica.welcomed,
            "a joiner contends: r{name} asks for flag {view} before its Welcome"
        );
        assert!(
            !replica.diverged,
            "invariant 7: r{name} diverged and contends"
        );
        let members = self.members.get(&view);
        assert!(
            members.is_some_and(|members| members.contains(&name)),
            "r{name} contends for flag {view}, in a view it was never in"
        );
    }

    /// `leader` is about to tell its joiner that `view` has begun.
    pub fn welcomes(&self, leader: &Replica, view: u64, flags: &BTreeMap<u64, usize>) {
        assert_eq!(
            flags.get(&(view - 1)),
            Some(&leader.name),
            "a Welcome before the flag: view {view}"
        );
    }

    /// `joiner` has heard that it is the backup in `view`.
    pub fn welcomed(&mut self, joiner: &Replica, view: u64) {
        self.members.entry(view).or_default().insert(joiner.name);
    }

    /// An output leaves `replica`, over the link `pair` if it leads one.
    pub fn leaves(
        &self,
        replica: &Replica,
        output: &Output,
        pair: Option<&Link>,
        replicas: &[Replica],
    ) {
        let (name, index) = (replica.name, index_of(output));
        assert!(
            !replica.is_over(),
            "entry {index} leaves r{name}, which is over"
        );
        if replica.duty() == Some(Role::Solo) {
            return;
        }
        let held = pair.map(|link| replicas[link.follower].received);
        assert!(
            held.is_some_and(|held| index < held),
            "invariant 1: entry {index} leaves r{name} ({}), its backup holds {held:?}",
            replica.stands()
        );
    }

    /// Outsiders see what left `by`.
    pub fn sees(&mut self, by: usize, output: Output, replicas: &[Replica]) {
        let index = index_of(&output);
        let machine = &replicas[self.machine()];
        if machine.name != by && !machine.crashed && machine.live {
            assert_eq!(
                machine.guest.output(index).as_ref(),
                Some(&output),
                "invariant 9: entry {index} of r{by} is not what r{} made",
                machine.name
            );
        }
        if let Some(before) = self.seen.get(&index) {
            assert_eq!(before, &output, "invariant 9: two histories at {index}");
            return;
        }
        let last = self.last.entry(kind(&output)).or_default();
        if !self.excused.contains(&index) {
            assert!(
                *last <= index,
                "invariant 4: the {} of entry {index} after that of {last}",
                kind(&output)
            );
            *last = index;
        }
        self.seen.insert(index, output);
    }

    /// `replica` is about to run on with live inputs and to let everything out.
    pub fn goes_live(&mut self, replica: &Replica, flags: &BTreeMap<u64, usize>) {
        let (name, view) = (replica.name, replica.view());
        assert_eq!(
            flags.get(&(view - 1)),
            Some(&name),
            "invariant 3: r{name} goes live in view {view} without its flag"
        );
        assert!(
            self.begun.get(&view).is_none_or(|other| *other == name),
            "invariant 3: r{name} goes live in view {view}, which another began"
        );
        assert!(
            !replica.diverged,
            "invariant 7: r{name} diverged and goes live"
        );
        for (index, output) in &self.seen {
            assert_eq!(
                replica.guest.output(*index).as_ref(),
                Some(output),
                "invariant 9: entry {index} was answered, r{name} goes live without it"
            );
        }
        for index in 0..replica.base {
            if matches!(replica.guest.output(index), Some(Output::Console(_)))
                && !self.seen.contains_key(&index)
            {
                self.excused.insert(index);
            }
        }
    }

    /// After a step.
    pub fn check(&mut self, replicas: &[Replica], links: &[Link], flags: &BTreeMap<u64, usize>) {
        let mut alone = None;
        for replica in replicas.iter().filter(|replica| replica.is_there()) {
            let (name, view) = (replica.name, replica.view());
            let before = self.views.insert(name, view);
            assert!(before <= Some(view), "the view of r{name} steps back");
            let duty = replica.duty();
            let leads = matches!(duty, Some(Role::Solo | Role::Primary));
            assert!(
                leads || !replica.live,
                "r{name} runs with live inputs as {}",
                replica.stands()
            );
            if duty == Some(Role::Solo) {
                assert_eq!(
                    alone.replace(name),
                    None,
                    "invariant 3: two replicas run alone"
                );
            }
            if !leads {
                continue;
            }
            if !self.begun.contains_key(&view) {
                let last = self.begun.last_key_value().map(|(view, _)| *view);
                assert_eq!(last, Some(view - 1), "a view begins out of order");
                self.begun.insert(view, name);
                self.members.entry(view).or_default().insert(name);
            }
            assert_eq!(
                self.begun[&view], name,
                "invariant 3: two live in view {view}"
            );
            assert_eq!(
                flags.get(&(view - 1)),
                Some(&name),
                "invariant 3: r{name} begins view {view} without its flag"
            );
            if let (Some(Role::Primary), Some(link)) = (duty, replica.link) {
                let appended = LogIndex(replica.guest.next());
                Cursors {
                    appended,
                    sent: appended,
                    acked: LogIndex(replica.acked),
                    released: LogIndex(replica.released),
                }
                .verify();
                let held = replicas[links[link].follower].received;
                assert!(
                    replica.acked <= held,
                    "invariant 8: {} acked, {held} received",
                    replica.acked
                );
            }
        }
    }

    /// After a life, when nothing happens any more. Returns whether the machine lives.
    pub fn check_end(
        &self,
        replicas: &[Replica],
        links: &[Link],
        flags: &BTreeMap<u64, usize>,
    ) -> bool {
        let good = |name: usize| !replicas[name].crashed && !replicas[name].diverged;
        let live: Vec<usize> = replicas
            .iter()
            .filter(|replica| replica.is_there() && replica.live)
            .map(|replica| replica.name)
            .collect();
        let (flag, holder) = flags.last_key_value().expect("one was won at the start");
        if *holder == RIVAL {
            assert!(live.len() <= 1, "live in the end: {live:?}");
        } else if good(*holder) {
            assert_eq!(
                live,
                [*holder],
                "liveness: r{holder} has flag {flag}, the last"
            );
        } else {
            assert_eq!(
                live,
                Vec::<usize>::new(),
                "liveness: the machine's last holder is lost"
            );
            let others = self.members.get(&(flag + 1)).into_iter().flatten();
            let left: Vec<_> = others.copied().filter(|name| good(*name)).collect();
            assert_eq!(
                left,
                Vec::<usize>::new(),
                "liveness: copies that could have gone live"
            );
        }
        let [survivor] = live[..] else { return false };
        self.check_survivor(&replicas[survivor], links);
        true
    }

    fn check_survivor(&self, survivor: &Replica, links: &[Link]) {
        let paired = survivor.link.map(|link| &links[link]);
        if survivor.duty() == Some(Role::Primary)
            && paired.is_none_or(|link| link.has_ended(End::Leader))
        {
            // Who has a rival's flag against it halts; nobody waits for ever.
            panic!("liveness: r{} waits for ever", survivor.name);
        }
        assert!(
            survivor.join.is_none(),
            "liveness: r{} stands still for ever",
            survivor.name
        );
        for index in (0..survivor.guest.next()).filter(|index| !self.excused.contains(index)) {
            assert_eq!(
                self.seen.get(&index),
                survivor.guest.output(index).as_ref(),
                "invariant 4: the output of entry {index} was lost"
            );
        }
        assert!(
            self.seen.keys().all(|index| *index < survivor.guest.next()),
            "invariant 9: more was seen than the survivor has made"
        );
        let under_way = survivor.guest.under_way();
        assert!(
            under_way.is_empty(),
            "invariant 4: the disk was never done with {under_way:?}"
        );
    }
}
