//! A simulated pair: the real role machines, output gate and suppressed outputs, with a network that
//! delays and cuts, an arbiter that goes away or loses replies, crashes, and divergence; every
//! interleaving chosen by the test.
//!
//! Their log begins at a boot, or at a state in the middle of a run.
//!
//! The oracle: outsiders see one machine's history, and at most one replica is live in any view.

use logchannel::Delivered;
use proptest::prelude::*;
use replay::{LogIndex, Output, ViewNumber};
use replica::role::{Role, RoleCommand, RoleEvent, RoleMachine};
use replica::{OutputGate, Suppressed};
use std::collections::{BTreeMap, VecDeque};

/// Where logs begin: at a boot, and in the middle of a run.
const FIRST: [LogIndex; 2] = [LogIndex(0), LogIndex(1_000)];

/// Which entries mark an output.
fn is_output(index: u64) -> bool {
    index % 3 != 1
}

/// What entry `index` outputs, if `maker` made it: two replicas running apart would differ.
fn output(index: u64, maker: &str) -> Output {
    let bytes = format!("{index} by {maker}").into_bytes();
    if index.is_multiple_of(2) {
        Output::Console(bytes)
    } else {
        Output::Frame(bytes)
    }
}

struct Replica {
    name: &'static str,
    role: RoleMachine,
    crashed: bool,
    /// Index of the log's first entry.
    first: u64,
    /// Entries this replica logged or executed, from the first on: who made each.
    history: Vec<&'static str>,
    gate: OutputGate<Output>,
    /// Whether inputs are live: as primary, and after going live.
    live: bool,
    suppressed: Suppressed,
    /// Let out, and held for the console's reader: it dies with the replica.
    printing: VecDeque<(u64, Output)>,
    /// Received and not executed (backup).
    queue: VecDeque<&'static str>,
    received: u64,
    acked: u64,
    /// The arbiter was asked for this view and has not acted yet.
    asked: Option<ViewNumber>,
    retry: bool,
    drain: bool,
}

impl Replica {
    fn new(name: &'static str, role: RoleMachine, first: LogIndex) -> Self {
        let live = role.role() == Some(Role::Primary);
        Self {
            name,
            role,
            crashed: false,
            first: first.0,
            history: Vec::new(),
            gate: OutputGate::new(first),
            live,
            suppressed: Suppressed::at(first),
            printing: VecDeque::new(),
            queue: VecDeque::new(),
            received: first.0,
            acked: first.0,
            asked: None,
            retry: false,
            drain: false,
        }
    }

    /// Index of the entry it logs or executes next.
    fn next(&self) -> u64 {
        self.first + self.history.len() as u64
    }

    fn runs(&self) -> bool {
        !self.crashed && !self.role.is_final()
    }
}

enum ToBackup {
    Entry(&'static str),
    Delivered(Delivered),
}

struct World {
    primary: Replica,
    backup: Replica,
    to_backup: VecDeque<ToBackup>,
    to_primary: VecDeque<u64>,
    cut: bool,
    arbiter_up: bool,
    flags: BTreeMap<u64, &'static str>,
    /// What outsiders saw: index and bytes.
    seen: Vec<(u64, Output)>,
    /// Who was live alone in which view.
    solo: BTreeMap<u64, &'static str>,
}

impl World {
    fn new(first: LogIndex) -> Self {
        let view = ViewNumber(1);
        Self {
            primary: Replica::new("a", RoleMachine::primary(view), first),
            backup: Replica::new("b", RoleMachine::backup(view), first),
            to_backup: VecDeque::new(),
            to_primary: VecDeque::new(),
            cut: false,
            arbiter_up: true,
            flags: BTreeMap::new(),
            seen: Vec::new(),
            solo: BTreeMap::new(),
        }
    }

    fn replica(&mut self, which: bool) -> &mut Replica {
        if which {
            &mut self.primary
        } else {
            &mut self.backup
        }
    }

    fn emit(&mut self, which: bool) {
        let received = self.backup.received;
        loop {
            let replica = self.replica(which);
            let solo = replica.role.role() == Some(Role::Solo);
            let Some((index, output)) = replica.gate.next() else {
                return;
            };
            assert!(
                solo || index.0 < received,
                "invariant 1: entry {index} was not acked"
            );
            self.leaves(which, index.0, output);
        }
    }

    /// A frame is seen at once; the console has a queue.
    fn leaves(&mut self, which: bool, index: u64, output: Output) {
        if matches!(output, Output::Console(_)) {
            self.replica(which).printing.push_back((index, output));
        } else {
            self.seen.push((index, output));
        }
    }

    /// The console's reader takes one output.
    fn print(&mut self, which: bool) {
        let replica = self.replica(which);
        if replica.runs() {
            let printed = replica.printing.pop_front();
            self.seen.extend(printed);
        }
    }

    fn event(&mut self, which: bool, event: RoleEvent) {
        let replica = self.replica(which);
        if replica.crashed {
            return;
        }
        for command in replica.role.handle(event) {
            self.obey(which, command);
        }
    }

    fn obey(&mut self, which: bool, command: RoleCommand) {
        let replica = self.replica(which);
        let name = replica.name;
        match command {
            RoleCommand::TestAndSet { view } => replica.asked = Some(view),
            RoleCommand::RetryLater => replica.retry = true,
            RoleCommand::Drain => replica.drain = true,
            RoleCommand::Reemit => {
                for (index, output) in replica.suppressed.take_for_reemission() {
                    self.leaves(which, index.0, output);
                }
            }
            RoleCommand::OpenGate => {
                let view = replica.role.view().0;
                assert_eq!(
                    self.flags.get(&(view - 1)),
                    Some(&name),
                    "live without the flag"
                );
                let other = self.solo.insert(view, name);
                assert_eq!(other, None, "invariant 3: two live in view {view}");
                self.replica(which).gate.open();
                self.emit(which);
            }
            RoleCommand::GoLive { .. } => replica.live = true,
            RoleCommand::Halt { .. } | RoleCommand::End => {
                replica.gate.halt();
                replica.live = false;
                self.cut = true;
            }
            RoleCommand::HoldOutputs
            | RoleCommand::Announce
            | RoleCommand::ReportView { .. }
            | RoleCommand::MarkEnd { .. }
            | RoleCommand::StopGuest => {}
            RoleCommand::BeginJoin
            | RoleCommand::CloseGate
            | RoleCommand::Welcome { .. }
            | RoleCommand::ReportPair { .. } => unreachable!("nobody offers a joiner here"),
        }
    }

    /// The guest runs to its next entry with live inputs.
    fn run_live(&mut self, which: bool) {
        let replica = self.replica(which);
        let linked = replica.role.role() == Some(Role::Primary);
        // A primary whose link has ended waits for the decision at its next entry.
        if !replica.runs()
            || !replica.live
            || (linked && replica.role.to_string() != "primary view 1")
        {
            return;
        }
        let index = replica.next();
        let name = replica.name;
        replica.history.push(name);
        if is_output(index) {
            replica.gate.hold(LogIndex(index), output(index, name));
        }
        if linked && !self.cut {
            self.to_backup.push_back(ToBackup::Entry(name));
        }
        self.emit(which);
    }

    fn replay(&mut self) {
        let backup = &mut self.backup;
        if !backup.runs() {
            return;
        }
        if let Some(maker) = backup.queue.pop_front() {
            let index = backup.next();
            backup.history.push(maker);
            if is_output(index) {
                backup
                    .suppressed
                    .hold(LogIndex(index), output(index, maker));
            }
        } else if std::mem::take(&mut backup.drain) {
            self.event(false, RoleEvent::Drained);
        }
    }

    fn deliver_to_backup(&mut self) {
        // A replica that gave the link up takes no more.
        if !self.backup.runs() || self.backup.role.to_string() != "backup view 1" {
            return;
        }
        match self.to_backup.pop_front() {
            Some(ToBackup::Entry(maker)) => {
                self.backup.queue.push_back(maker);
                self.backup.received += 1;
                if !self.cut {
                    self.to_primary.push_back(self.backup.received);
                }
            }
            Some(ToBackup::Delivered(delivered)) => self.backup.suppressed.delivered(delivered),
            None => {}
        }
    }

    /// An ack may even arrive while its primary contends: what it acks the backup has.
    fn deliver_to_primary(&mut self) {
        if !self.primary.runs() {
            return;
        }
        if let Some(acked) = self.to_primary.pop_front() {
            self.primary.acked = acked;
            self.primary.gate.acked(LogIndex(acked));
            self.emit(true);
        }
    }

    fn heartbeat(&mut self) {
        if self.primary.runs() && !self.cut {
            let released = self.primary.acked;
            let held = self.primary.printing.front().map(|(index, _)| *index);
            let delivered = Delivered {
                released: LogIndex(released),
                printed: LogIndex(held.unwrap_or(released)),
            };
            self.to_backup.push_back(ToBackup::Delivered(delivered));
        }
    }

    /// The arbiter acts on a request; the reply may be lost.
    fn arbitrate(&mut self, which: bool, lose_reply: bool) {
        let up = self.arbiter_up;
        let replica = self.replica(which);
        let Some(view) = replica.asked.take() else {
            return;
        };
        let name = replica.name;
        if !up {
            return self.event(which, RoleEvent::FlagUnreachable);
        }
        let holder = *self.flags.entry(view.0).or_insert(name);
        self.event(
            which,
            match (lose_reply, holder == name) {
                (true, _) => RoleEvent::FlagUnreachable,
                (false, true) => RoleEvent::FlagWon,
                (false, false) => RoleEvent::FlagLost {
                    holder: holder.into(),
                },
            },
        );
    }

    fn step(&mut self, action: u8) {
        match action {
            0..=59 => self.run_live(true),
            60..=67 => self.print(true),
            68..=69 => self.print(false),
            70..=119 => self.deliver_to_backup(),
            120..=169 => self.deliver_to_primary(),
            170..=199 => self.replay(),
            200..=209 => self.heartbeat(),
            210..=214 => self.run_live(false),
            215..=219 => self.arbitrate(true, false),
            220..=224 => self.arbitrate(false, false),
            225 => self.arbitrate(true, true),
            226 => self.arbitrate(false, true),
            227..=230 => self.retry(true),
            231..=234 => self.retry(false),
            235 => self.arbiter_up = false,
            236..=238 => self.arbiter_up = true,
            239 => self.cut = true,
            240 => self.suspect(true),
            241 => self.suspect(false),
            242 => self.crash(true),
            243 => self.crash(false),
            244 => self.event(false, RoleEvent::Diverged),
            245..=248 if self.cut => self.suspect(true),
            249..=252 if self.cut => self.suspect(false),
            // The cut loses what was on its way.
            253 if self.cut => self.to_backup.clear(),
            254 if self.cut => self.to_primary.clear(),
            _ => {}
        }
    }

    /// One side thinks the other dead, rightly or not; it closes the link.
    fn suspect(&mut self, which: bool) {
        self.cut = true;
        self.event(which, RoleEvent::LinkLost);
    }

    fn crash(&mut self, which: bool) {
        self.cut = true;
        self.replica(which).crashed = true;
    }

    fn retry(&mut self, which: bool) {
        if std::mem::take(&mut self.replica(which).retry) {
            self.event(which, RoleEvent::RetryTick);
        }
    }

    /// Everything works from now on, until nothing happens any more.
    fn settle(&mut self) {
        self.arbiter_up = true;
        let last = self.backup.history.len() + self.backup.queue.len() + self.to_backup.len();
        for _ in 0..last + 40 {
            if self.cut {
                self.suspect(true);
                self.suspect(false);
            }
            for which in [true, false] {
                self.retry(which);
                self.arbitrate(which, false);
            }
            self.deliver_to_backup();
            self.deliver_to_primary();
            self.replay();
        }
        self.run_live(true);
        self.run_live(false);
        for _ in 0..4 {
            self.deliver_to_backup();
            self.deliver_to_primary();
            self.replay();
        }
        for which in [true, false] {
            while self.replica(which).runs() && !self.replica(which).printing.is_empty() {
                self.print(which);
            }
        }
    }

    fn check(&self) {
        let mut known: BTreeMap<u64, &Output> = BTreeMap::new();
        for (index, output) in &self.seen {
            // In order, each kind for itself.
            let mut alike = known
                .keys()
                .filter(|other| other.abs_diff(*index).is_multiple_of(2));
            let highest = alike.next_back().copied();
            let before = known.insert(*index, output);
            match before {
                Some(before) => assert_eq!(before, output, "two histories at entry {index}"),
                None => assert!(highest < Some(*index), "entry {index} after {highest:?}"),
            }
        }
        let survivors = [&self.primary, &self.backup]
            .into_iter()
            .filter(|r| r.runs() && r.live);
        for survivor in survivors {
            for (index, maker) in (survivor.first..).zip(&survivor.history) {
                if is_output(index) {
                    let expected = output(index, maker);
                    assert_eq!(
                        known.get(&index),
                        Some(&&expected),
                        "output {index} was lost"
                    );
                }
            }
            let history = survivor.first..survivor.next();
            assert!(
                known.keys().all(|index| history.contains(index)),
                "seen, but not in the history"
            );
        }
    }

    /// Without crash and divergence somebody must be serving in the end.
    fn check_alive(&self) {
        let spared = |r: &Replica| !r.crashed && !r.role.to_string().starts_with("halted");
        let serving = [&self.primary, &self.backup]
            .into_iter()
            .filter(|r| spared(r) && r.live);
        assert_eq!(
            serving.count(),
            1,
            "{} / {}",
            self.primary.role,
            self.backup.role
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 3000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn outsiders_see_one_history_and_one_live_replica(
        first in 0..FIRST.len(),
        actions in prop::collection::vec(any::<u8>(), 1..500),
    ) {
        let mut world = World::new(FIRST[first]);
        for action in &actions {
            world.step(*action);
        }
        world.settle();
        world.check();
        if !actions.iter().any(|action| (242..=244).contains(action)) {
            world.check_alive();
        }
    }
}

/// The primary dies at every entry of a short run, with every number of entries on their way.
#[test]
fn a_primary_may_die_anywhere() {
    FIRST.into_iter().for_each(a_primary_dies_anywhere);
}

fn a_primary_dies_anywhere(first: LogIndex) {
    for entries in 0..24 {
        for delivered in 0..=entries {
            for acked in 0..=delivered {
                let mut world = World::new(first);
                (0..entries).for_each(|_| world.run_live(true));
                (0..delivered).for_each(|_| world.deliver_to_backup());
                (0..acked).for_each(|_| world.deliver_to_primary());
                world.heartbeat();
                world.crash(true);
                world.settle();
                world.check();
                world.check_alive();
                assert_eq!(world.solo.get(&2), Some(&"b"));
            }
        }
    }
}
