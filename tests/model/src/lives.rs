//! The model of lives: every step that replicas, links, arbiter and viewservice can take, in any order.

use crate::oracle::{Oracle, Rule};
use crate::views::{Said, Service};
use crate::world::{
    Call, Join, Left, Life, Link, Message, Name, RIVAL, Replica, Vcpu, World, index,
};
use replica::OutputGate;
use replica::Suppressed;
use replica::role::{Role, RoleEvent, RoleMachine, ViewNumber};
use stateright::{Model, Property};
use std::collections::{BTreeSet, VecDeque};

/// One fault, built into the model: the search has to find what it breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Break {
    /// A backup acks what it was sent, not what it has.
    AckBeforeReceipt,
    /// A primary lets everything out when its link is over, before the arbiter has given it the next view.
    GateOpenedBySuspicion,
    /// The gate stays open when a joiner becomes the backup.
    GateLeftOpen,
    /// A joiner is made the backup before the arbiter has given its leader the view.
    WelcomeBeforeFlag,
    /// A joiner asks for the flag like a backup.
    JoinerContends,
    /// Outputs leave while the last of the state is sent.
    GuestRunsOnWhileGiven,
    /// What was suppressed is forgotten.
    SuppressedForgotten,
    /// What was suppressed leaves in the wrong order.
    SuppressedBackwards,
    /// A primary says that it has released what it holds.
    ReleasedTooFar,
    /// A backup goes live before it has executed all that came.
    DrainSkipped,
    /// A diverged backup goes on.
    DivergenceIgnored,
    /// The arbiter gives a flag twice.
    ArbiterForgets,
    /// A lost flag is taken for won.
    RefusalIgnored,
    /// No answer is taken for a yes.
    ArbiterGuessed,
    /// An arbiter that gave no answer is not asked again.
    RetryForgotten,
    /// An entry that was lost on the way is not missed.
    LossUnnoticed,
    /// The viewservice names a view after one that its primary has not acknowledged.
    NamesUnacked,
}

/// A space to search.
#[derive(Clone, Copy, Debug)]
pub struct Lives {
    /// Replicas there ever are: a primary, its backup, and others that wait.
    pub replicas: u8,
    /// Most entries of a history.
    pub entries: u8,
    /// What may go wrong, and how often.
    pub left: Left,
    /// Whether a viewservice names the backups; else an operator offers any that waits.
    pub views: bool,
    /// The fault that is built in.
    pub broken: Option<Break>,
}

/// A step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The guest of a leader takes an input, which makes an entry and an output.
    Input(Name),
    /// A frame reaches a follower.
    Frame(Name),
    /// A reply reaches the leader of this follower.
    Reply(Name),
    /// A follower executes an entry.
    Execute(Name),
    /// A follower executes an entry wrongly.
    Diverge(Name),
    /// The leader of this follower tells what it has released, before all but so many of the frames that wait.
    Heartbeat(Name, usize),
    /// A follower tells again what it holds.
    Beat(Name),
    /// The vCPU of a follower that is to go live says that it has executed all there is.
    Drained(Name),
    /// A control thread takes its next message.
    Control(Name),
    /// The arbiter answers.
    Arbiter(Name),
    /// The answer arrives.
    Answer(Name),
    /// No answer arrives: the arbiter never took the question.
    Unasked(Name),
    /// No answer arrives, but the arbiter had taken the question.
    Unheard(Name),
    /// No answer arrives, and the arbiter takes the question later.
    Delayed(Name),
    /// It does so now.
    Late(Name, u8),
    /// It is time to ask again.
    Retry(Name),
    /// The follower finds its link closed, behind all that came.
    FollowerCloses(Name),
    /// The leader of this follower finds the link closed, behind all that came.
    LeaderCloses(Name),
    /// The follower suspects its leader.
    FollowerSuspects(Name),
    /// The leader suspects this follower.
    LeaderSuspects(Name),
    /// A follower whose link is over reads no more.
    StopsReading(Name),
    /// An operator offers a backup that waits.
    Offer(Name, Name),
    /// The guest stands still, and the rest of the machine goes to the joiner.
    Stand(Name),
    /// A replica dies; so many messages of those it had sent are not lost.
    Crash(Name, usize),
    /// The stream to this follower loses all from this frame on.
    LoseFrames(Name, usize),
    /// The stream to this follower loses one frame.
    LoseFrame(Name, usize),
    /// The stream to this follower repeats a frame.
    RepeatFrame(Name, usize),
    /// The stream to this follower swaps two frames.
    SwapFrames(Name, usize),
    /// The stream from this follower repeats a reply.
    RepeatReply(Name, usize),
    /// The stream from this follower swaps two replies.
    SwapReplies(Name, usize),
    /// An operator takes the flag of the last view for a start of his own.
    Rival,
    /// A host pings the viewservice.
    Ping(Name),
    /// A ping goes out that arrives later.
    PingLater(Name),
    /// It arrives.
    LatePing(Said),
    /// The time between two pings passes.
    Tick,
    /// The viewservice restarts.
    Restart,
}

impl Lives {
    pub(crate) fn broken(&self, fault: Break) -> bool {
        self.broken == Some(fault)
    }

    /// A pair at its beginning: the first of all replicas leads.
    fn pair(&self) -> World {
        let view = ViewNumber(1);
        let mut replicas: Vec<_> = (0..self.replicas).map(|_| Replica::waiting()).collect();
        replicas[0] = Replica {
            life: Life::Alive,
            role: Some(RoleMachine::primary(view)),
            vcpu: Vcpu::Linked,
            gate: Some(OutputGate::new(index(0))),
            follower: Some(1),
            ..Replica::waiting()
        };
        replicas[1] = Replica {
            life: Life::Alive,
            role: Some(RoleMachine::backup(view)),
            suppressed: Suppressed::at(index(0)),
            reads: true,
            ..Replica::waiting()
        };
        let mut links = vec![None; self.replicas.into()];
        links[1] = Some(Link {
            welcomed: true,
            ..Link::new(0, view, 0)
        });
        // Views begin by a flag, and each costs a crash, a suspicion or a join.
        let views = 4 + 2 * usize::from(self.replicas);
        let mut flags = vec![None; views];
        flags[0] = Some(0);
        World {
            replicas,
            links,
            flags,
            late: BTreeSet::new(),
            service: self.views.then(|| Service::of_pair(0, 1, self.replicas)),
            oracle: Oracle::of_pair(0, 1, views),
            left: self.left,
        }
    }

    /// What goes on by itself, sooner or later.
    fn goes_on(&self, world: &World, steps: &mut Vec<Step>) {
        for (name, replica) in (0..).zip(&world.replicas) {
            self.replica_goes_on(name, replica, steps);
            if let Join::Calling(joiner) = replica.join
                && replica.vcpu == Vcpu::Alone
                && world.links[usize::from(joiner)]
                    .as_ref()
                    .is_some_and(|link| !link.leader_over)
            {
                steps.push(Step::Stand(name));
            }
        }
        for (name, link) in (0..).zip(&world.links) {
            if let Some(link) = link {
                self.link_goes_on(world, name, link, steps);
            }
        }
    }

    fn replica_goes_on(&self, name: Name, replica: &Replica, steps: &mut Vec<Step>) {
        if !replica.is_alive() {
            return;
        }
        match replica.call {
            Call::None if !replica.mailbox.is_empty() => steps.push(Step::Control(name)),
            Call::None if replica.retry => steps.push(Step::Retry(name)),
            Call::None => {}
            Call::Asked(_) => steps.push(Step::Arbiter(name)),
            Call::Answered(_) => steps.push(Step::Answer(name)),
        }
        let replays = matches!(replica.vcpu, Vcpu::Follows | Vcpu::Drains);
        if replays && !replica.queue.is_empty() {
            steps.push(Step::Execute(name));
        }
        if replica.vcpu == Vcpu::Drains && replica.queue.is_empty() && !replica.reads {
            steps.push(Step::Drained(name));
        }
    }

    fn link_goes_on(&self, world: &World, name: Name, link: &Link, steps: &mut Vec<Step>) {
        let follower = &world.replicas[usize::from(name)];
        let leader = &world.replicas[usize::from(link.leader)];
        let reads = follower.reads || follower.life == Life::Waiting && !link.follower_over;
        if reads && !link.frames.is_empty() {
            steps.push(Step::Frame(name));
        }
        if reads
            && link.frames.is_empty()
            && (link.leader_over || link.cut || link.torn)
            && !link.follower_over
        {
            steps.push(Step::FollowerCloses(name));
        }
        if follower.reads && link.follower_over {
            steps.push(Step::StopsReading(name));
        }
        if !link.leader_over
            && !link.replies.is_empty()
            && !leader.mailbox.contains(&Message::Joined(true))
        {
            steps.push(Step::Reply(name));
        }
        let is_up = !link.leader_over && !link.follower_over && !link.cut && !link.torn;
        if !link.leader_over
            && link.replies.is_empty()
            && (link.follower_over || link.cut || link.torn)
            && Self::may_end(leader)
        {
            steps.push(Step::LeaderCloses(name));
        }
        if !is_up || !follower.is_alive() || leader.follower != Some(name) {
            return;
        }
        if link.told < self.released(link) {
            // So many frames are in the socket, which nothing overtakes.
            let gone = 0..=link.frames.len();
            steps.extend(gone.map(|gone| Step::Heartbeat(name, gone)));
        }
        if link.replies.is_empty() && link.frames.is_empty() && link.acked < follower.received() {
            steps.push(Step::Beat(name));
        }
    }

    /// What the leader of `link` says to have released.
    pub(crate) fn released(&self, link: &Link) -> u8 {
        match self.broken(Break::ReleasedTooFar) {
            true => link.framed,
            false => link.acked,
        }
    }

    /// Whether the end of a link is told a leader now: not between the joiner's answer and its reading of that.
    fn may_end(leader: &Replica) -> bool {
        !leader.mailbox.contains(&Message::Joined(true))
    }

    /// What somebody may want.
    fn wished(&self, world: &World, steps: &mut Vec<Step>) {
        for (name, replica) in (0..).zip(&world.replicas) {
            let takes = matches!(replica.vcpu, Vcpu::Linked | Vcpu::Alone) && replica.is_alive();
            if takes && replica.executed() < self.entries {
                steps.push(Step::Input(name));
            }
            let role = replica.role.as_ref().and_then(|role| role.role());
            if role == Some(Role::Solo)
                && replica.join == Join::None
                && replica.mailbox.is_empty()
                && !self.views
            {
                let others = (0..).zip(&world.replicas);
                let waits = others.filter(|(_, other)| other.life == Life::Waiting);
                // All that wait are the same: the first of them stands for all.
                let offer = waits.take(1).map(|(other, _)| Step::Offer(name, other));
                steps.extend(offer);
            }
            if self.views && replica.life != Life::Over {
                steps.push(Step::Ping(name));
            }
        }
    }

    /// What nobody wishes for.
    fn troubles(&self, world: &World, steps: &mut Vec<Step>) {
        let left = world.left;
        for (name, replica) in (0..).zip(&world.replicas) {
            if left.crashes > 0 && replica.life != Life::Over {
                let sent = world
                    .links
                    .iter()
                    .flatten()
                    .find(|link| link.leader == name);
                let sent = sent.map_or(0, |link| link.frames.len());
                let said = world.links[usize::from(name)]
                    .as_ref()
                    .map_or(0, |link| link.replies.len());
                steps.extend((0..=sent.max(said)).map(|keep| Step::Crash(name, keep)));
            }
            if !replica.is_alive() {
                continue;
            }
            if left.silences > 0 && matches!(replica.call, Call::Asked(_)) {
                steps.extend([
                    Step::Unasked(name),
                    Step::Unheard(name),
                    Step::Delayed(name),
                ]);
            }
            let follows = matches!(replica.vcpu, Vcpu::Follows | Vcpu::Drains);
            if left.divergences > 0 && follows && !replica.queue.is_empty() {
                steps.push(Step::Diverge(name));
            }
        }
        steps.extend(world.late.iter().map(|(who, view)| Step::Late(*who, *view)));
        for (name, link) in (0..).zip(&world.links) {
            if let Some(link) = link {
                Self::link_troubles(world, name, link, steps);
            }
        }
        let (view, _) = world.oracle.last();
        if left.rivals > 0 && world.flags[view].is_none() {
            steps.push(Step::Rival);
        }
        self.service_troubles(world, steps);
    }

    fn service_troubles(&self, world: &World, steps: &mut Vec<Step>) {
        let Some(service) = &world.service else {
            return;
        };
        steps.extend(service.late().map(Step::LatePing));
        if world.left.ticks > 0 {
            steps.push(Step::Tick);
        }
        if world.left.restarts > 0 {
            steps.push(Step::Restart);
            let alive = (0..)
                .zip(&world.replicas)
                .filter(|(_, replica)| replica.is_alive());
            steps.extend(alive.map(|(name, _)| Step::PingLater(name)));
        }
    }

    fn link_troubles(world: &World, name: Name, link: &Link, steps: &mut Vec<Step>) {
        let left = world.left;
        let follower = &world.replicas[usize::from(name)];
        let leader = &world.replicas[usize::from(link.leader)];
        if left.suspicions > 0 && follower.is_alive() && !link.follower_over {
            steps.push(Step::FollowerSuspects(name));
        }
        if left.suspicions > 0 && !link.leader_over && Self::may_end(leader) {
            steps.push(Step::LeaderSuspects(name));
        }
        if left.faults == 0 || link.cut {
            return;
        }
        for at in 0..link.frames.len() {
            steps.extend([
                Step::LoseFrames(name, at),
                Step::LoseFrame(name, at),
                Step::RepeatFrame(name, at),
            ]);
            if at > 0 {
                steps.push(Step::SwapFrames(name, at));
            }
        }
        for at in 0..link.replies.len() {
            steps.push(Step::RepeatReply(name, at));
            if at > 0 {
                steps.push(Step::SwapReplies(name, at));
            }
        }
    }

    fn take(&self, world: &mut World, step: Step) {
        match step {
            Step::Input(name) => self.input(world, name),
            Step::Frame(name) => self.frame(world, name),
            Step::Reply(name) => self.answer(world, name),
            Step::Execute(name) => self.execute(world, name, false),
            Step::Heartbeat(name, gone) => self.heartbeat(world, name, gone),
            Step::Beat(name) => {
                let received = world.replica(name).received();
                world.link(name).reply(crate::world::Reply::Ack(received));
            }
            Step::Drained(name) => {
                let replica = world.replica(name);
                replica.vcpu = Vcpu::Drained;
                replica.mailbox.push_back(Message::Drained);
            }
            Step::Control(name) => self.control(world, name),
            Step::Retry(name) => {
                world.replica(name).retry = false;
                self.handle(world, name, RoleEvent::RetryTick);
            }
            Step::FollowerCloses(name) => {
                self.follower_ends(world, name);
                Self::stops_reading(world, name);
            }
            Step::LeaderCloses(name) => Self::leader_ends(world, name),
            Step::StopsReading(name) => Self::stops_reading(world, name),
            Step::Offer(name, other) => {
                let offer = Message::Offered(other, None);
                world.replica(name).mailbox.push_back(offer);
            }
            Step::Stand(name) => self.stand(world, name),
            Step::Ping(name) => self.ping(world, name),
            Step::LatePing(said) => self.late_ping(world, said),
            other => self.take_arbiter(world, other),
        }
    }

    /// Steps of the arbiter.
    fn take_arbiter(&self, world: &mut World, step: Step) {
        match step {
            Step::Arbiter(name) => {
                let won = self.asked(world, name);
                world.replica(name).call = Call::Answered(won);
            }
            Step::Answer(name) => {
                let replica = world.replica(name);
                let won = std::mem::replace(&mut replica.call, Call::None) == Call::Answered(true);
                let event = match won || self.broken(Break::RefusalIgnored) {
                    true => RoleEvent::FlagWon,
                    false => RoleEvent::FlagLost {
                        holder: String::new(),
                    },
                };
                self.handle(world, name, event);
            }
            Step::Late(name, view) => {
                world.late.remove(&(name, view));
                world.flags[usize::from(view)].get_or_insert(name);
            }
            Step::Unasked(name) => self.silent(world, name),
            Step::Unheard(name) => {
                self.asked(world, name);
                self.silent(world, name);
            }
            Step::Delayed(name) => {
                if let Call::Asked(view) = world.replica(name).call {
                    world.late.insert((name, crate::world::small(view.0)));
                }
                self.silent(world, name);
            }
            other => self.take_trouble(world, other),
        }
    }

    /// The arbiter takes the question of `name`: whether the flag is its own.
    fn asked(&self, world: &mut World, name: Name) -> bool {
        let Call::Asked(view) = world.replica(name).call else {
            unreachable!("it was looked for");
        };
        let flag = &mut world.flags[usize::from(crate::world::small(view.0))];
        if self.broken(Break::ArbiterForgets) {
            *flag = Some(name);
        }
        *flag.get_or_insert(name) == name
    }

    fn silent(&self, world: &mut World, name: Name) {
        world.left.silences -= 1;
        world.replica(name).call = Call::None;
        let event = match self.broken(Break::ArbiterGuessed) {
            true => RoleEvent::FlagWon,
            false => RoleEvent::FlagUnreachable,
        };
        self.handle(world, name, event);
        if self.broken(Break::RetryForgotten) {
            world.replica(name).retry = false;
        }
    }

    fn take_trouble(&self, world: &mut World, step: Step) {
        match step {
            Step::Diverge(name) => {
                world.left.divergences -= 1;
                self.execute(world, name, true);
            }
            Step::FollowerSuspects(name) => {
                world.left.suspicions -= 1;
                self.follower_ends(world, name);
            }
            Step::LeaderSuspects(name) => {
                world.left.suspicions -= 1;
                Self::leader_ends(world, name);
            }
            Step::Crash(name, keep) => {
                world.left.crashes -= 1;
                if let Some(link) = world
                    .links
                    .iter_mut()
                    .flatten()
                    .find(|link| link.leader == name)
                {
                    link.frames.truncate(keep);
                }
                if let Some(link) = &mut world.links[usize::from(name)] {
                    link.replies.truncate(keep);
                }
                world.bury(name);
            }
            Step::Rival => {
                world.left.rivals -= 1;
                let (view, _) = world.oracle.last();
                world.flags[view] = Some(RIVAL);
                world.oracle.begun[view + 1] = Some(RIVAL);
            }
            Step::PingLater(name) => {
                world.left.restarts -= 1;
                Self::ping_later(world, name);
            }
            Step::Tick => {
                world.left.ticks -= 1;
                self.tick(world);
            }
            Step::Restart => {
                world.left.restarts -= 1;
                Self::restart(world);
            }
            other => Self::take_fault(world, other),
        }
    }

    fn take_fault(world: &mut World, step: Step) {
        world.left.faults -= 1;
        match step {
            Step::LoseFrames(name, at) => {
                let link = world.link(name);
                link.cut = true;
                link.frames.truncate(at);
            }
            Step::LoseFrame(name, at) => {
                let link = world.link(name);
                link.torn = true;
                link.frames.remove(at);
            }
            Step::RepeatFrame(name, at) => repeat(&mut world.link(name).frames, at),
            Step::SwapFrames(name, at) => world.link(name).frames.swap(at - 1, at),
            Step::RepeatReply(name, at) => repeat(&mut world.link(name).replies, at),
            Step::SwapReplies(name, at) => world.link(name).replies.swap(at - 1, at),
            other => unreachable!("{other:?} is no fault"),
        }
    }

    /// Whether nothing is under way: nobody is to hear of anything, and nothing is to be executed.
    fn is_quiet(&self, world: &World) -> bool {
        let mut steps = Vec::new();
        self.goes_on(world, &mut steps);
        steps.is_empty() && world.late.is_empty()
    }
}

fn repeat<T: Clone>(queue: &mut VecDeque<T>, at: usize) {
    let again = queue[at].clone();
    queue.insert(at, again);
}

/// What is found where nothing is under way, and a machine that could go on does not.
pub const GOES_ON: &str = "whoever is left goes on";

/// What is found where a rule is broken.
#[must_use]
pub fn name_of(rule: Rule) -> &'static str {
    match rule {
        Rule::OutputRule => "invariant 1",
        Rule::OneLive => "invariant 3",
        Rule::OutputsKept => "invariant 4",
        Rule::Diverged => "invariant 7",
        Rule::OneHistory => "invariant 9",
        Rule::Members => "only members contend",
        Rule::Views => "views as their primaries began them",
    }
}

impl Model for Lives {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        vec![self.pair()]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        self.goes_on(world, steps);
        self.wished(world, steps);
        self.troubles(world, steps);
    }

    fn next_state(&self, before: &World, step: Step) -> Option<World> {
        let mut world = before.clone();
        self.take(&mut world, step);
        world.forget_links();
        world.look();
        (world != *before).then_some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        // A property holds a function, which knows nothing of what is around it.
        macro_rules! keeps {
            ($rule:expr) => {
                Property::always(name_of($rule), |_, world: &World| world.oracle.keeps($rule))
            };
        }
        let mut all = vec![
            keeps!(Rule::OutputRule),
            keeps!(Rule::OneLive),
            keeps!(Rule::OutputsKept),
            keeps!(Rule::Diverged),
            keeps!(Rule::OneHistory),
            keeps!(Rule::Members),
            keeps!(Rule::Views),
            Property::always(GOES_ON, |model: &Self, world: &World| {
                let untouched = world.left.faults == model.left.faults;
                !model.is_quiet(world) || world.goes_on(untouched)
            }),
            // The space is what it is meant to be only if this happens in it.
            Property::sometimes("a backup has gone live", |_, world: &World| {
                world.oracle.begun[2].is_some_and(|who| who == 1)
                    && world.replicas[1].vcpu == Vcpu::Alone
            }),
            Property::sometimes("a new pair was formed", |_, world: &World| {
                world.replicas[2..].iter().any(|it| {
                    it.is_alive()
                        && it.role.as_ref().and_then(|role| role.role()) == Some(Role::Backup)
                })
            }),
        ];
        if self.left.crashes + self.left.suspicions > 1 {
            all.push(Property::sometimes(
                "a new backup has gone live",
                |_, world: &World| {
                    world.replicas[2..]
                        .iter()
                        .any(|it| it.is_alive() && it.vcpu == Vcpu::Alone)
                },
            ));
        }
        all
    }
}
