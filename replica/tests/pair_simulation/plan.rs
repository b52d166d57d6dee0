//! Which steps are possible, and which of them a life takes.

use crate::guest::What;
use crate::link::{End, Frame};
use crate::oracle::RIVAL;
use crate::replica::Replica;
use crate::world::{Answer, Break, Step, World};
use check::rng::Rng;
use replica::role::Role;
use std::collections::BTreeMap;

/// Most replicas of one life.
const REPLICAS_MAX: usize = 14;
/// Steps until everything that began has ended. A life that takes more goes round in circles.
const SETTLE_MAX: usize = 10_000;

/// What goes wrong in a life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Troubles {
    /// Anything, at any time, for so many steps.
    Random(usize),
    /// Nothing but kills, each so many steps after the one before.
    Kills(Vec<(usize, Victim)>),
}

/// Who is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    /// Whoever began the last view.
    Leader,
    /// Its backup, or who is on the way to be it.
    Second,
}

/// One life of a machine: its steps follow from the seed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub seed: u64,
    pub troubles: Troubles,
    pub broken: Option<Break>,
}

/// What a life came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    pub steps: u64,
    /// Views that were begun.
    pub views: u64,
    /// Pairs that were formed by a join.
    pub joins: u64,
    /// Backups that were offered to who had no use for them.
    pub refused: u64,
    /// Whether the machine lived in the end.
    pub lives: bool,
    /// How a replica stood when it was killed, and how often.
    pub killed: BTreeMap<String, u64>,
}

/// Steps, and how often each is taken compared with others.
type Choices = Vec<(u64, Step)>;

impl World {
    /// Steps by which whatever has begun comes to its end.
    fn work(&self, into: &mut Choices) {
        for (l, link) in self.links.iter().enumerate() {
            for end in [End::Follower, End::Leader] {
                let replica = &self.replicas[link.at(end)];
                if !replica.acts() {
                    continue;
                }
                let waiting = link.on_their_way(end);
                if waiting > 0 && self.reads(l, end) {
                    into.push((30, Step::Deliver(l, end)));
                }
                let silent = link.is_cut(end) || self.is_gone(l, end.other());
                if waiting == 0 && silent && self.watches(l, end) {
                    into.push((8, Step::Notice(l, end)));
                }
            }
        }
        for replica in self.replicas.iter().filter(|replica| replica.acts()) {
            let r = replica.name;
            if replica.live {
                self.leads(replica, into);
            } else if !replica.queue.is_empty() || replica.drain {
                into.push((20, Step::Replay(r)));
            }
            if !replica.printing.is_empty() {
                into.push((10, Step::Print(r)));
            }
            if replica.asked.is_some() {
                into.push((8, Step::Arbitrate(r, Answer::Comes)));
            }
            if replica.retry {
                into.push((6, Step::Retry(r)));
            }
        }
    }

    /// Whether nothing will come from `end` of link `l` any more. A joiner that never heard of it says nothing,
    /// for which its leader waits no longer than a handshake may take.
    fn is_gone(&self, l: usize, end: End) -> bool {
        let link = &self.links[l];
        let deaf = end == End::Follower && link.is_cut(end) && !self.watches(l, end);
        deaf || link.has_ended(end) || !self.replicas[link.at(end)].is_there()
    }

    fn leads(&self, replica: &Replica, into: &mut Choices) {
        let r = replica.name;
        // Without a decision nothing is written, by the lease.
        if self.is_decided(replica) && !replica.writing.is_empty() {
            into.push((15, Step::Write(r)));
        }
        if let Some(done) = replica.done.front()
            && self.may_run(replica)
        {
            into.push((15, Step::Run(r, What::Done(*done))));
        }
        if replica
            .join
            .is_some_and(|join| join.pages.is_some() && !join.stands)
        {
            into.push((15, Step::HandOver(r)));
        }
    }

    /// Whether what comes to `end` of link `l` is read there.
    fn reads(&self, l: usize, end: End) -> bool {
        let link = &self.links[l];
        let replica = &self.replicas[link.at(end)];
        let joins = replica.join.is_some_and(|join| join.link == l);
        match end {
            End::Leader => joins && !link.has_ended(end) || replica.link == Some(l),
            End::Follower => {
                let calls = matches!(link.frames.front(), Some(Frame::Hello));
                let mine = replica.link == Some(l);
                calls && !link.has_ended(end) || mine && replica.follows()
            }
        }
    }

    /// Whether `end` of link `l` would be told that the link ended.
    fn watches(&self, l: usize, end: End) -> bool {
        let link = &self.links[l];
        let replica = &self.replicas[link.at(end)];
        let joins = end == End::Leader && replica.join.is_some_and(|join| join.link == l);
        !link.has_ended(end) && (replica.link == Some(l) || joins)
    }

    /// Whether it is known who is live: not so for a primary whose link has ended.
    fn is_decided(&self, replica: &Replica) -> bool {
        match replica.duty() {
            Some(Role::Solo) => true,
            Some(Role::Primary) => {
                let link = replica.link.expect("it leads a pair");
                !self.links[link].has_ended(End::Leader)
            }
            _ => false,
        }
    }

    fn may_run(&self, replica: &Replica) -> bool {
        let stands = replica.join.is_some_and(|join| join.stands);
        let stands = stands && !self.is_broken(Break::GuestRunsOnWhileGiven);
        replica.acts() && replica.live && !stands && self.is_decided(replica)
    }

    /// Steps that go on for ever.
    fn life(&self, rng: &mut Rng, into: &mut Choices) {
        for replica in self.replicas.iter().filter(|replica| replica.acts()) {
            let r = replica.name;
            if self.may_run(replica) {
                let kinds = [What::Frame, What::Console, What::Disk, What::Plain];
                let kind = usize::try_from(rng.below(4)).expect("below 4");
                into.push((25, Step::Run(r, kinds[kind])));
            }
            if replica.duty() == Some(Role::Primary) && self.is_decided(replica) {
                into.push((8, Step::Beat(r)));
            }
        }
        let machine = &self.replicas[self.oracle.machine()];
        if machine.is_there() && machine.duty() == Some(Role::Solo) && machine.join.is_none() {
            into.push((12, Step::Offer(machine.name, self.spare())));
        }
    }

    /// A replica that waits for a leader, or the number of one that is still to be started.
    fn spare(&self) -> usize {
        let spare = self.replicas.iter().find(|replica| replica.waits());
        spare.map_or(self.replicas.len(), |replica| replica.name)
    }

    fn troubles(&self, rng: &mut Rng, into: &mut Choices) {
        for (l, link) in self.links.iter().enumerate() {
            for end in [End::Follower, End::Leader] {
                if self.replicas[link.at(end)].acts() && self.watches(l, end) {
                    into.push((1, Step::Suspect(l, end)));
                }
                let waiting = link.on_their_way(end);
                if !link.is_cut(end) && !link.has_ended(end.other()) && waiting > 0 {
                    let keep = rng.below(waiting as u64);
                    let keep = usize::try_from(keep).expect("below a length");
                    into.push((1, Step::Lose(l, end, keep)));
                }
            }
        }
        let machine = self.oracle.machine();
        for replica in self.replicas.iter().filter(|replica| replica.is_there()) {
            let r = replica.name;
            if replica.paused {
                into.push((10, Step::Wake(r)));
                continue;
            }
            into.push((1, Step::Pause(r)));
            // A machine that nobody protects is seldom killed, or no life would be long.
            let alone = r == machine && replica.duty() == Some(Role::Solo);
            if !alone || rng.below(8) == 0 {
                into.push((2, Step::Kill(r)));
            }
            if replica.asked.is_some() {
                into.push((2, Step::Arbitrate(r, Answer::IsLost)));
            }
            if replica.welcomed && !replica.live && replica.guest.next() > replica.base {
                let rare = u64::from(rng.below(4) == 0);
                into.push((rare, Step::Diverge(r)));
            }
            // Whoever has a role, and whoever does not need a backup, is offered one too.
            if replica.role.is_some() {
                into.push((1, Step::Offer(r, self.spare())));
            }
        }
        into.push(match self.arbiter_up {
            true => (2, Step::ArbiterGone),
            false => (12, Step::ArbiterBack),
        });
        if rng.below(50) == 0 && !self.flags.values().any(|holder| *holder == RIVAL) {
            into.push((1, Step::Rival));
        }
    }

    /// Makes one of `choices`, by their weights. False if there is none.
    fn choose(&mut self, rng: &mut Rng, choices: &Choices) -> bool {
        let all: u64 = choices.iter().map(|(weight, _)| weight).sum();
        if all == 0 {
            return false;
        }
        let mut at = rng.below(all);
        for (weight, step) in choices {
            if at < *weight {
                self.make(*step);
                return true;
            }
            at -= weight;
        }
        unreachable!("it is below the sum");
    }

    /// Makes `step`, for which a new replica may have to be started.
    fn make(&mut self, step: Step) {
        if let Step::Offer(_, to) = step
            && to == self.replicas.len()
        {
            if to == REPLICAS_MAX {
                return;
            }
            self.add();
        }
        self.step(step);
    }

    /// Nothing fails any more: whatever has begun ends, and the guest runs on a little.
    fn settle(&mut self, rng: &mut Rng) {
        if !self.arbiter_up {
            self.step(Step::ArbiterBack);
        }
        for r in 0..self.replicas.len() {
            if self.replicas[r].paused && self.replicas[r].is_there() {
                self.step(Step::Wake(r));
            }
        }
        self.finish(rng);
        let machine = self.oracle.machine();
        for what in [What::Frame, What::Console, What::Disk, What::Frame] {
            if self.may_run(&self.replicas[machine]) {
                self.step(Step::Run(machine, what));
            }
        }
        self.finish(rng);
    }

    fn finish(&mut self, rng: &mut Rng) {
        for _ in 0..SETTLE_MAX {
            let mut choices = Choices::new();
            self.work(&mut choices);
            if !self.choose(rng, &choices) {
                return;
            }
        }
        panic!("liveness: it goes round in circles");
    }

    /// Whether every replica is over that was ever live or a backup.
    fn is_lost(&self) -> bool {
        let copy = |replica: &Replica| replica.welcomed && replica.is_there();
        !self.replicas.iter().any(copy)
    }

    /// Whether a replica is left that is live or a backup, or is about to hear that it is one.
    fn has_copy(&self) -> bool {
        let sealed = |l: usize| self.links[l].sealed && !self.links[l].has_ended(End::Follower);
        let copy = |replica: &Replica| replica.welcomed || replica.link.is_some_and(sealed);
        let mut there = self.replicas.iter().filter(|replica| replica.is_there());
        there.any(copy)
    }

    /// How a replica stands, for coverage.
    fn stands(&self, replica: &Replica) -> String {
        let stands = replica.stands();
        let sealed = replica.link.is_some_and(|link| self.links[link].sealed);
        match stands.as_str() {
            "joiner" if sealed => "joiner, its Welcome on the way".into(),
            _ => stands,
        }
    }

    fn victim(&self, who: Victim) -> Option<usize> {
        let leader = self.oracle.machine();
        match who {
            Victim::Leader => Some(leader),
            Victim::Second => {
                let replica = &self.replicas[leader];
                let join = replica.join.map(|join| join.link);
                let link = join.or(replica.link).map(|link| &self.links[link]);
                link.filter(|link| link.leader == leader)
                    .map(|link| link.follower)
            }
        }
        .filter(|victim| self.replicas[*victim].is_there())
    }
}

impl Plan {
    /// A life that anything may befall.
    pub fn random(seed: u64) -> Self {
        Self {
            seed,
            troubles: Troubles::Random(800),
            broken: None,
        }
    }

    /// Lives it.
    ///
    /// # Panics
    /// If the oracle finds a fault. What is printed then tells seed and steps.
    pub fn live(&self) -> Told {
        let mut world = World::new(self.broken);
        let mut told = Told::default();
        let lived = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            self.live_in(&mut world, &mut told);
        }));
        if let Err(why) = lived {
            if self.broken.is_none() {
                eprintln!("{}", self.tell(&world));
            }
            std::panic::resume_unwind(why);
        }
        told
    }

    fn live_in(&self, world: &mut World, told: &mut Told) {
        let mut rng = Rng::new(self.seed, 0);
        let mut must_live = None;
        match &self.troubles {
            Troubles::Random(steps) => {
                // Lives with much trouble are short, lives with little see few coincidences.
                let rare = [2, 6, 20][usize::try_from(self.seed % 3).expect("below 3")];
                for _ in 0..*steps {
                    if world.is_lost() {
                        break;
                    }
                    let troubled = rng.below(rare) == 0;
                    go_on(world, &mut rng, troubled, told);
                }
            }
            Troubles::Kills(kills) => {
                for (after, who) in kills {
                    for _ in 0..*after {
                        go_on(world, &mut rng, false, told);
                    }
                    if let Some(victim) = world.victim(*who) {
                        kill(world, victim, told);
                    }
                }
                must_live = Some(world.has_copy());
            }
        }
        world.settle(&mut rng);
        told.steps = world.steps.len() as u64;
        told.views = world.oracle.begun.len() as u64;
        told.joins = world.links[1..].iter().filter(|link| link.sealed).count() as u64;
        told.refused = world.refused;
        told.lives = world
            .oracle
            .check_end(&world.replicas, &world.links, &world.flags);
        if let Some(must_live) = must_live {
            assert_eq!(
                told.lives, must_live,
                "liveness: a machine whose copies are known"
            );
        }
    }

    fn tell(&self, world: &World) -> String {
        let mut text = format!("{self:?} failed.");
        if let Troubles::Random(_) = self.troubles {
            let seed = self.seed;
            text += &format!(
                " This life alone:\nTANDEM_SEED={seed} cargo test --release -p tandem-replica --test \
                 pair_simulation whatever -- --nocapture"
            );
        }
        for (number, step) in world.steps.iter().enumerate() {
            text += &format!("\n{number:5}  {step:?}");
        }
        for replica in &world.replicas {
            let (name, view) = (replica.name, replica.view());
            let crashed = if replica.crashed { ", killed" } else { "" };
            text += &format!("\nr{name}: {}, view {view}{crashed}", replica.stands());
        }
        text + &format!(
            "\nflags: {:?}\nbegun: {:?}",
            world.flags, world.oracle.begun
        )
    }
}

fn go_on(world: &mut World, rng: &mut Rng, troubled: bool, told: &mut Told) {
    let mut choices = Choices::new();
    world.work(&mut choices);
    world.life(rng, &mut choices);
    if troubled {
        world.troubles(rng, &mut choices);
    }
    let length = world.steps.len();
    let before: Vec<_> = match troubled {
        true => world.replicas.iter().map(|r| world.stands(r)).collect(),
        false => Vec::new(),
    };
    world.choose(rng, &choices);
    if let Some(Step::Kill(r)) = world.steps.get(length) {
        *told.killed.entry(before[*r].clone()).or_default() += 1;
    }
}

fn kill(world: &mut World, victim: usize, told: &mut Told) {
    let how = world.stands(&world.replicas[victim]);
    *told.killed.entry(how).or_default() += 1;
    world.step(Step::Kill(victim));
}
