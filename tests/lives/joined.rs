//! A replica killed at every entry, and at every step, around a join: before the base of the log that the new backup
//! gets, at it, and behind it.
//!
//! ```text
//!   the leader's log   begun+0 … ─▶ level ─▶ sealed ─▶ welcoming ─▶ base+0, base+1, … (or unsent)
//!   it dies there      ╰───── the machine is lost ────╯ ╰── the new backup goes live ─╯
//!   the new backup     greeted ─▶ state+0 … ─▶ restored ─▶ accepted ─▶ welcomed ─▶ executed+0, …
//!   it dies there      ╰──────────────────── the machine goes on alone ────────────────────────╯
//! ```
//!
//! The processes are real, the guest is `kv`, and clients are at work all the time. After each death at most one
//! replica lives, and their history is judged: it is linearizable, and no write is lost that was acknowledged. A
//! backup that is not a member yet goes live never, and so answers nobody.

use super::common::chains::{ends, under_load};
use super::common::channel::{self, Flow};
use super::common::{LIMIT, cluster, have_kvm, machine, os};
use super::{joiner_gone, serve};
use check::{Load, LoadOptions, Pace};
use kit::chain::{Chain, ChainOptions};
use kit::guest::Served;
use kit::join::Joined;
use kit::{Cluster, Judged};
use serde_json::Value;
use std::ffi::OsString;
use std::time::{Duration, Instant};
use testing::numbers::number;
use vmm::hostclock;

/// Time between two looks at another process.
const LOOK: Duration = Duration::from_millis(2);
/// Bytes of a state that a new backup takes together, at most.
const PIECE: u64 = 64 << 10;

/// The indexes to try of those from 0 on: all below the number in `TANDEM_JOINED`, or the few `usual` ones.
fn indexes(usual: &[u64]) -> Vec<u64> {
    number("TANDEM_JOINED").map_or_else(|| usual.to_vec(), |most| (0..most).collect())
}

/// A step that is counted, with such indexes.
fn counted(step: &str, usual: &[u64]) -> Vec<String> {
    let indexes = indexes(usual).into_iter();
    indexes.map(|n| format!("{step}+{n}")).collect()
}

fn die_at(place: &str) -> Vec<OsString> {
    os(&["--die-at", place])
}

/// Clients that never give a connection up, and replicas that take no silence of a slow host for death.
struct Machine<'a> {
    load: Load,
    chain: Chain<'a>,
}

/// What becomes of a machine whose leader dies while it has it protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// The new backup was its member, and goes on.
    GoesOn,
    /// The new backup had all of it, and is over: it may not contend.
    Over,
    /// The new backup had not all of it, and waits for another primary.
    NeverCame,
}

impl<'a> Machine<'a> {
    /// A machine alone, whose leader dies at `place`: the replica it began with, or its first `heir`. Each of its
    /// clients thinks so long between two requests.
    #[track_caller]
    fn alone(cluster: &'a Cluster, place: &str, heir: bool, think_ms: u64) -> Self {
        let mut firsts = [Vec::new(), Vec::new()];
        firsts[usize::from(heir)] = die_at(place);
        let options = ChainOptions {
            all: os(&["--suspect-ms", "5000"]),
            firsts,
            ..ChainOptions::default()
        };
        let name = format!("at-{}", place.replace('+', "-"));
        let load_options = LoadOptions {
            clients: 3,
            keys: 16,
            pace: Pace::Think(Duration::from_millis(think_ms)),
            ..LoadOptions::default()
        };
        let (mut chain, load) = under_load(cluster, &name, &["kv"], options, load_options);
        if heir {
            chain.kill_leader().unwrap();
            chain.leader().wait_event("live", 0).unwrap();
        } else {
            chain.kill_follower().unwrap();
            chain.leader().wait_event("solo", 0).unwrap();
        }
        serve(&chain, &load, 20);
        Self { load, chain }
    }

    /// Has the machine protected by a backup that is told `more`, whose leader dies of it. What becomes of it.
    #[track_caller]
    fn leader_dies(&mut self, more: &[OsString]) -> Fate {
        let begun_ns = hostclock::monotonic_ns();
        let address = self.chain.start_backup_with(more).unwrap();
        let mut request = self.chain.ask_to_protect(address).unwrap();
        let loss = self.chain.leader_died().unwrap();
        let told = request.wait(LIMIT).unwrap();
        let fate = self.fate();
        // Whoever asked may have heard of the pair before its leader died.
        assert!(!told.success() || fate == Fate::GoesOn, "{told}: {fate:?}");
        let led = self.chain.lives()[loss.victim].events();
        let has_sealed = led
            .iter()
            .any(|line| line.event == "flag_won" && line.at_ns >= begun_ns);
        assert!(fate != Fate::GoesOn || has_sealed, "{led:#?}");
        fate
    }

    /// What the new backup does, now that nobody leads the machine.
    #[track_caller]
    fn fate(&mut self) -> Fate {
        let joiner = self.chain.leader();
        let begun = Instant::now();
        let fate = loop {
            // Before the look at its events: what it noted last is there when it has ended.
            let has_ended = joiner.daemon.has_ended();
            let events = joiner.events();
            if events.iter().any(|line| line.event == "live") {
                break Fate::GoesOn;
            }
            if has_ended {
                break Fate::Over;
            }
            if joiner
                .daemon
                .complaint()
                .contains("a primary was turned away")
            {
                break Fate::NeverCame;
            }
            assert!(begun.elapsed() < LIMIT, "{events:#?}");
            std::thread::sleep(LOOK);
        };
        let welcomed = joiner.events().iter().any(|line| line.event == "welcomed");
        assert_eq!(welcomed, fate == Fate::GoesOn, "{:#?}", joiner.events());
        fate
    }

    /// The machine has one live replica, which serves all clients; and what these saw is in order.
    #[track_caller]
    fn goes_on(&self, at: &str) {
        serve(&self.chain, &self.load, 30);
        let lives = self.chain.lives();
        let left = lives.iter().filter(|life| !life.daemon.has_ended());
        assert_eq!(left.count(), 1, "{at}");
        let seen = Judged::of(&self.load.pause(), &Served::kv());
        self.load.resume();
        assert!(seen.is_good(), "{at}: {}", seen.explain());
    }

    /// The machine is lost, and the backup it was to have has not touched it: it `ended` or still waits.
    #[track_caller]
    fn was_lost(self, at: &str, ended: bool) {
        let Self { load, chain } = self;
        let joiner = chain.leader();
        let history = load.hang_up();
        // What a replica notes before anything leaves it.
        let live = [
            "flag_won",
            "drained",
            "announced",
            "reemitted",
            "solo",
            "live",
        ];
        let events = joiner.events();
        let lived = events.iter().find(|line| live.contains(&&*line.event));
        assert!(lived.is_none(), "{at}: {events:#?}");
        assert_eq!(joiner.daemon.has_ended(), ended, "{at}: {events:#?}");
        if ended {
            let why = joiner.daemon.complaint();
            assert!(why.contains("before it had caught up"), "{at}{why}");
        }
        let seen = Judged::of(&history, &Served::kv());
        let in_order = seen.verdict.lost_writes == 0 && seen.verdict.linearizable();
        assert!(in_order, "{at}: {}", seen.explain());
        assert!(seen.verdict.acked_writes > 0, "{at}");
    }

    /// The clients read every key once more, and the machine ends.
    #[track_caller]
    fn ends(self, cluster: &Cluster) {
        let Self { load, chain } = self;
        ends(cluster, chain, load);
    }
}

#[test]
fn a_leader_killed_behind_the_base_leaves_its_machine_to_the_new_backup() {
    let _machine = machine();
    if !have_kvm("leaders killed behind the base of a join") {
        return;
    }
    let cluster = cluster("file");
    let places = [
        vec!["welcoming".to_owned()],
        counted("base", &[0, 1, 2, 5, 11, 29]),
        counted("unsent", &[0, 3, 17]),
    ]
    .concat();
    let begun = Instant::now();
    // The first leader is the one the machine began with, and each new backup the next.
    let mut machine = Machine::alone(&cluster, &places[0], false, 1);
    for (n, place) in places.iter().enumerate() {
        let next = places.get(n + 1).map(|next| die_at(next));
        let fate = machine.leader_dies(&next.unwrap_or_default());
        assert_eq!(fate, Fate::GoesOn, "{place}");
        machine.goes_on(place);
    }
    machine.ends(&cluster);
    println!("{} places in {:?}", places.len(), begun.elapsed());
}

#[test]
fn a_leader_killed_before_its_new_backup_is_a_member_takes_the_machine_with_it() {
    let _machine = machine();
    if !have_kvm("leaders killed before the base of a join") {
        return;
    }
    let cluster = cluster("file");
    let begun = Instant::now();
    for (n, place) in ["level", "sealed"].into_iter().enumerate() {
        let mut machine = Machine::alone(&cluster, place, n == 1, 1);
        assert_eq!(machine.leader_dies(&[]), Fate::Over, "{place}");
        machine.was_lost(place, true);
    }
    let (mut lost, mut joined_in_a_row) = (0, 0);
    for n in indexes(&[0, 1, 4, 9]) {
        let place = format!("begun+{n}");
        // Few requests, so that few entries lie between the beginning of the join and the base.
        let mut machine = Machine::alone(&cluster, &place, n % 2 == 0, 5);
        match machine.leader_dies(&[]) {
            Fate::NeverCame => {
                machine.was_lost(&place, false);
                (lost, joined_in_a_row) = (lost + 1, 0);
            }
            // The base came first.
            Fate::GoesOn => {
                machine.goes_on(&place);
                machine.ends(&cluster);
                joined_in_a_row += 1;
            }
            Fate::Over => panic!("{place}: there is no entry between the base and the welcome"),
        }
        if joined_in_a_row == 5 {
            break;
        }
    }
    println!(
        "lost by {lost} entries before the base, in {:?}",
        begun.elapsed()
    );
    assert!(lost >= 2, "{lost} entries before the base were tried");
}

impl Machine<'_> {
    /// Has the machine protected by a backup that is killed when all is done. How many bytes its state has at least,
    /// whatever the wire was given: those of its memory that are not zero.
    #[track_caller]
    fn joins_and_dies(&mut self) -> u64 {
        let begun_ns = hostclock::monotonic_ns();
        self.chain.protect().unwrap();
        self.chain.kill_follower().unwrap();
        let leader = self.chain.leader();
        leader.wait_event("solo", begun_ns).unwrap();
        let told = leader.wait_event("protected", begun_ns).unwrap();
        Joined::parse(&told.detail).unwrap().nonzero_bytes
    }

    /// Has the machine protected by a backup that dies at `place`, and waits until its leader knows. Whether the
    /// two had been a pair.
    #[track_caller]
    fn joiner_dies(&mut self, place: &str) -> bool {
        let begun_ns = hostclock::monotonic_ns();
        let address = self.chain.start_backup_with(&die_at(place)).unwrap();
        let mut request = self.chain.ask_to_protect(address).unwrap();
        self.chain.follower_died().unwrap();
        let succeeded = request.wait(LIMIT).unwrap().success();
        let was_a_pair = joiner_gone(&self.chain, begun_ns);
        assert_eq!(succeeded, was_a_pair, "{place}");
        was_a_pair
    }
}

#[test]
fn a_new_backup_killed_at_any_step_leaves_the_machine_to_its_leader() {
    let _machine = machine();
    if !have_kvm("new backups killed at every step") {
        return;
    }
    let cluster = cluster("file");
    let begun = Instant::now();
    // Its first leader is not told to die: "greeted" is a step of those who join.
    let mut machine = Machine::alone(&cluster, "greeted", true, 1);
    let state_bytes = machine.joins_and_dies();
    let pieces = state_bytes / PIECE;
    assert!(pieces > 4, "{state_bytes} bytes are too few");
    let mut places = counted("state", &[0, 1, 2, pieces - 1]);
    places.truncate(usize::try_from(pieces).unwrap());
    places.extend(["greeted".into(), "restored".into()]);
    for place in places {
        assert!(!machine.joiner_dies(&place), "{place}");
        machine.goes_on(&place);
    }
    // It has said that it has the machine. Whether its leader hears that first, or of its death, is open.
    machine.joiner_dies("accepted");
    machine.goes_on("accepted");
    let mut places = counted("executed", &[0, 1, 7]);
    places.push("welcomed".into());
    for place in places {
        assert!(machine.joiner_dies(&place), "{place}");
        machine.goes_on(&place);
    }
    // A good one is still welcome, and outlives the replica that has seen all that.
    machine.chain.protect().unwrap();
    let loss = machine.chain.kill_leader().unwrap();
    let heir = machine.chain.leader();
    heir.wait_event("live", loss.at_ns).unwrap();
    machine.goes_on("the end");
    println!(
        "{} backups in {:?}",
        machine.chain.lives().len(),
        begun.elapsed()
    );
    machine.ends(&cluster);
}

impl Machine<'_> {
    /// Waits until the leader has noted that its log is some entries ahead of what the backup has acknowledged.
    #[track_caller]
    fn wait_ahead(&self) {
        const ENTRIES: u64 = 4;
        let cut_ns = hostclock::monotonic_ns();
        let begun = Instant::now();
        let is_ahead = |line: &kit::Line| {
            let counters: Value = serde_json::from_str(&line.detail).unwrap();
            let [appended, acked] =
                ["appended", "acked"].map(|name| counters["cursors"][name].as_u64().unwrap());
            line.at_ns > cut_ns && appended >= acked + ENTRIES
        };
        let leader = self.chain.leader();
        while !leader.metrics().iter().any(is_ahead) {
            assert!(begun.elapsed() < LIMIT, "{:?}", leader.metrics().last());
            std::thread::sleep(LOOK);
        }
    }
}

/// A killed process loses nothing that it had written to a socket, a host does. So the network loses it here: what
/// the leader says from some moment on, or what the new backup acknowledges.
#[test]
fn what_a_new_backup_has_not_acknowledged_nobody_has_seen() {
    let _machine = machine();
    if !have_kvm("new backups that are cut off") {
        return;
    }
    let cluster = cluster("file");
    let mut machine = Machine::alone(&cluster, "greeted", true, 1);
    for n in 0..number("TANDEM_JOINED").unwrap_or(4) {
        let way = channel::WAYS[usize::try_from(n % 2).unwrap()];
        let at = format!("cut {n}, {way:?}");
        let begun_ns = hostclock::monotonic_ns();
        let address = machine.chain.start_backup().unwrap();
        let through = channel::start(address);
        let mut request = machine.chain.ask_to_protect(through).unwrap();
        assert!(request.wait(LIMIT).unwrap().success(), "{at}");
        serve(&machine.chain, &machine.load, 30);
        channel::set(way, Flow::Swallowed);
        machine.wait_ahead();
        // The end of the link is to come through, and what was said before it is not.
        machine.chain.leader().daemon.stand_still().unwrap();
        channel::set(way, Flow::Open);
        machine.chain.kill_leader().unwrap();
        let heir = machine.chain.leader();
        heir.wait_event("live", begun_ns).unwrap();
        machine.goes_on(&at);
    }
    machine.ends(&cluster);
}
