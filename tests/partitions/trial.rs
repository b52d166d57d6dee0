//! One pair under load, on two hosts: from its start, through what is done to it, to the verdict.

use crate::common::{LIMIT, fate, os};
use chaos::hosts::{Host, SERVER};
use chaos::services::{Service, Services};
use chaos::shapes::Shape;
use check::rng::Rng;
use check::{Load, LoadOptions, read_all};
use kit::daemon::Daemon;
use kit::fate::Fate;
use kit::guest::Served;
use kit::round::load_options;
use kit::{Judged, Line};
use nix::sys::signal::Signal;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const CLIENTS: u16 = 4;
/// The hosts of primary and backup.
const PAIR: [Host; 2] = [Host::A, Host::B];

/// What has to become of the pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Becomes {
    /// It stays a pair.
    Whole,
    /// One of the two goes on alone, while the links are cut.
    OneGoesOn,
    /// This replica goes on alone, while the links are cut.
    GoesOn(&'static str),
    /// It may part or not.
    Either,
}

impl Becomes {
    /// Of a pair to which `shape` is done.
    fn of(shape: Shape) -> Self {
        match shape {
            Shape::PrimaryBackup
            | Shape::PrimaryToBackup
            | Shape::BackupToPrimary
            | Shape::ArbiterKilled
            | Shape::ViewsKilled => Self::OneGoesOn,
            Shape::PrimaryAlone => Self::GoesOn("backup"),
            Shape::BackupAlone => Self::GoesOn("primary"),
            Shape::PrimaryArbiter | Shape::BackupArbiter | Shape::Views | Shape::Clients => {
                Self::Whole
            }
            Shape::Loss | Shape::Flapping | Shape::PrimaryStops | Shape::BackupStops => {
                Self::Either
            }
        }
    }

    fn is(self, fate: &Fate) -> bool {
        match self {
            Self::Whole => *fate == Fate::Whole,
            Self::OneGoesOn => *fate != Fate::Whole,
            Self::GoesOn(who) => *fate == Fate::Alone(who.into()),
            Self::Either => true,
        }
    }
}

/// A pair with clients at work.
pub struct Trial<'a, 'b> {
    services: &'a mut Services<'b>,
    shape: Shape,
    primary: Daemon,
    backup: Daemon,
    events: [PathBuf; 2],
    rng: Rng,
    load: Load,
}

impl<'a, 'b> Trial<'a, 'b> {
    /// Starts a pair and its clients, and lets them work for a random while.
    pub fn begin(services: &'a mut Services<'b>, shape: Shape, seed: u64) -> Self {
        let vm = format!("{shape:?}-{seed}");
        let path = |name: &str| services.folder().join(format!("{vm}.{name}"));
        let events = [path("primary.events"), path("backup.events")];
        let both = |host: Host, events: &Path| {
            let mut words = services.words();
            let name = format!("{vm}-{}", host.name());
            words.extend(os(&["--vm", &vm, "--name", &name, "--net", "tap:tap0"]));
            words.extend(["--events".into(), events.into()]);
            words
        };
        let any = PAIR[1].address(0).to_string();
        let backup = [os(&["backup", "--listen", &any]), both(PAIR[1], &events[1])].concat();
        let hosts = services.hosts;
        let backup = hosts.start(PAIR[1], "backup", backup, &path("backup.err"));
        let backup = backup.expect("it starts");
        let listening = wait(&events[1..], "the backup listens", |lines| {
            let mut lines = lines.iter();
            Some(lines.find(|line| line.event == "listening")?.detail.clone())
        });
        let name = format!("{vm}-{}", PAIR[1].name());
        let to = [
            "primary",
            "kv",
            "--backup",
            &listening,
            "--backup-name",
            &name,
        ];
        let primary = [os(&to), both(PAIR[0], &events[0])].concat();
        let primary = hosts.start(PAIR[0], "primary", primary, &path("primary.err"));
        let primary = primary.expect("it starts");
        primary
            .wait_line(LIMIT, |line| line.contains("ready"))
            .expect("the guest gets ready");
        let options = LoadOptions {
            reply_limit: LIMIT,
            ..load_options(&Served::kv(), CLIENTS, seed)
        };
        let load = Load::start(SERVER.into(), options).expect("clients");
        let mut rng = Rng::new(seed, 0);
        let warm = 100 + rng.below(500);
        assert!(load.wait_replies(warm, LIMIT), "the clients are not served");
        Self {
            services,
            shape,
            primary,
            backup,
            events,
            rng,
            load,
        }
    }

    fn lines(&self) -> Vec<Line> {
        Line::all_of(&self.events)
    }

    /// Waits until each client was served twice from now on.
    #[track_caller]
    fn served(&self, when: &str) {
        for _ in 0..2 {
            let now = self.load.epoch().now_ns();
            let served = self.load.wait_all_replied(now, LIMIT);
            assert!(served, "a client is not served {when}: {:#?}", self.lines());
        }
    }

    fn wait_event(&self, event: &str) {
        wait(&self.events, event, |lines| {
            lines.iter().any(|line| line.event == event).then_some(())
        });
    }

    fn cut(&self) {
        let [primary, backup] = PAIR;
        let hosts = self.services.hosts;
        for (from, to) in self.shape.cuts(primary, backup) {
            hosts.cut(from, to, self.shape.rule()).expect("a cut");
        }
        if self.shape == Shape::Clients {
            hosts.cut_clients().expect("a cut");
        }
    }

    /// Heals all. How many packets had met what was cut.
    fn heal(&self) -> u64 {
        let hosts = self.services.hosts;
        let dropped = hosts.dropped().expect("counters");
        hosts.heal().expect("all is healed");
        dropped
    }

    /// A time of up to `longest_ms`.
    fn length(&mut self, longest_ms: u64) -> Duration {
        Duration::from_micros(50_000 + self.rng.below((longest_ms - 50) * 1_000))
    }

    /// Does what is to be done, and undoes it.
    pub fn disturb(&mut self) {
        let mut dropped = 0;
        match self.shape {
            Shape::Loss => {
                self.cut();
                let length = self.length(3_000);
                std::thread::sleep(length);
            }
            Shape::Flapping => {
                for _ in 0..1 + self.rng.below(5) {
                    self.cut();
                    std::thread::sleep(Duration::from_millis(300));
                    dropped += self.heal();
                    std::thread::sleep(Duration::from_millis(300));
                }
            }
            Shape::Clients => {
                self.cut();
                let length = self.length(2_000);
                std::thread::sleep(length);
            }
            Shape::PrimaryStops | Shape::BackupStops => self.stop(),
            Shape::ArbiterKilled => self.without_an_arbiter(),
            Shape::ViewsKilled => {
                self.services.kill(Service::Views).expect("it is gone");
                self.one_goes_on();
                self.services.mend().expect("a viewservice");
            }
            Shape::PrimaryArbiter | Shape::BackupArbiter | Shape::Views => self.stays_whole(),
            Shape::PrimaryBackup
            | Shape::PrimaryToBackup
            | Shape::BackupToPrimary
            | Shape::PrimaryAlone
            | Shape::BackupAlone => self.one_goes_on(),
        }
        dropped += self.heal();
        // Nobody has a word for the arbiter as long as the pair is one, and who is stopped is not cut.
        let is_silent = matches!(
            self.shape,
            Shape::PrimaryArbiter | Shape::BackupArbiter | Shape::PrimaryStops | Shape::BackupStops
        );
        assert!(is_silent || dropped > 0, "no packet met what was cut");
        self.served("when all is well again");
    }

    /// One goes on while the links are cut, and serves.
    fn one_goes_on(&self) {
        self.cut();
        self.wait_event("solo");
        self.served("while links are cut");
    }

    /// Both serve while the links are cut, for longer than a suspicion: the pair has the time to part.
    fn stays_whole(&self) {
        self.cut();
        std::thread::sleep(Duration::from_millis(600));
        self.served("while links are cut");
        if self.shape == Shape::Views {
            // Each replica pings it twice a second.
            let deadline = Instant::now() + LIMIT;
            while self.services.hosts.dropped().expect("counters") == 0 {
                assert!(Instant::now() < deadline, "nobody asks for the viewservice");
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }

    /// A replica stands still: most often for no longer than its peer may wonder, sometimes for up to ten seconds.
    fn stop(&mut self) {
        let longest_ms =
            [400, 400, 1_500, 10_000][usize::try_from(self.rng.below(4)).expect("small")];
        let length = self.length(longest_ms);
        let daemon = match self.shape {
            Shape::PrimaryStops => &self.primary,
            _ => &self.backup,
        };
        daemon.stand_still().expect("it stands still");
        std::thread::sleep(length);
        daemon.signal(Signal::SIGCONT);
    }

    /// Nobody goes on before the arbiter is there.
    fn without_an_arbiter(&mut self) {
        self.services.kill(Service::Arbiter).expect("it is gone");
        self.cut();
        wait(&self.events, "two questions without an answer", |lines| {
            let asked = lines
                .iter()
                .filter(|line| line.event == "arbiter_unreachable");
            (asked.count() >= 2).then_some(())
        });
        let lives = |line: &Line| ["flag_won", "solo", "live"].contains(&line.event.as_str());
        let lines = self.lines();
        assert!(!lines.iter().any(lives), "without an arbiter: {lines:#?}");
        self.services.mend().expect("an arbiter");
        self.wait_event("solo");
        self.served("while links are cut");
    }

    /// Ends the pair and judges all that was seen.
    pub fn end(self) -> Fate {
        let epoch = self.load.epoch();
        let mut history = self.load.stop();
        read_all(SERVER.into(), epoch, LIMIT, &mut history).expect("the survivor serves");
        let pair = [self.primary, self.backup];
        let (fate, lines) = fate::end(pair, || Line::all_of(&self.events), false);
        let becomes = Becomes::of(self.shape);
        assert!(becomes.is(&fate), "{fate:?}, not {becomes:?}: {lines:#?}");
        fate::nobody_noticed(&Judged::of(&history, &Served::kv()));
        fate
    }
}

/// Waits until `found` finds something in what the replicas noted.
#[track_caller]
fn wait<T>(events: &[PathBuf], what: &str, found: impl Fn(&[Line]) -> Option<T>) -> T {
    let deadline = Instant::now() + LIMIT;
    loop {
        let lines = Line::all_of(events);
        if let Some(found) = found(&lines) {
            return found;
        }
        assert!(
            Instant::now() < deadline,
            "not within a minute: {what}: {lines:#?}"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn what_a_shape_asks_for_is_not_what_another_does() {
    let alone = |who: &str| Fate::Alone(who.into());
    assert!(Becomes::of(Shape::Clients).is(&Fate::Whole));
    assert!(!Becomes::of(Shape::Clients).is(&alone("backup")));
    assert!(Becomes::of(Shape::PrimaryBackup).is(&alone("primary")));
    assert!(!Becomes::of(Shape::PrimaryBackup).is(&Fate::Whole));
    assert!(Becomes::of(Shape::PrimaryAlone).is(&alone("backup")));
    assert!(!Becomes::of(Shape::PrimaryAlone).is(&alone("primary")));
}
