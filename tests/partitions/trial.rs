//! One pair under load, on two hosts: from its start, through what is done to it, to the verdict.

use crate::common::{LIMIT, PROGRAM, os};
use crate::hosts::{Host, Hosts, SERVER};
use crate::shapes::{Becomes, Shape};
use check::rng::Rng;
use check::{CheckOptions, Load, LoadOptions, Pace, check, read_all};
use kit::Line;
use kit::daemon::Daemon;
use nix::sys::signal::Signal;
use std::collections::HashSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const CLIENTS: u16 = 4;
/// How far kv's leases may differ from the clients' clocks, as in the demo.
const LEASE_SLACK_MS: u64 = 20;
const ARBITER_PORT: u16 = 7700;
const VIEWS_PORT: u16 = 7800;

/// The daemons that all trials share.
pub struct Services<'a> {
    hosts: &'a Hosts,
    folder: PathBuf,
    arbiter: Daemon,
    views: Daemon,
}

impl<'a> Services<'a> {
    /// Starts both.
    pub fn start(hosts: &'a Hosts, folder: &Path) -> Self {
        Self {
            hosts,
            folder: folder.into(),
            arbiter: service(hosts, folder, Host::Arbiter),
            views: service(hosts, folder, Host::Views),
        }
    }

    fn kill(&mut self, host: Host) {
        let daemon = self.daemon(host);
        daemon.kill();
        daemon.wait(LIMIT).expect("it is gone");
    }

    fn restart(&mut self, host: Host) {
        let daemon = service(self.hosts, &self.folder, host);
        *self.daemon(host) = daemon;
    }

    fn daemon(&mut self, host: Host) -> &mut Daemon {
        match host {
            Host::Arbiter => &mut self.arbiter,
            _ => &mut self.views,
        }
    }
}

/// Starts the service of `host`, with what it has stored.
fn service(hosts: &Hosts, folder: &Path, host: Host) -> Daemon {
    let (name, port) = match host {
        Host::Arbiter => ("arbiter", ARBITER_PORT),
        _ => ("viewservice", VIEWS_PORT),
    };
    let listen = Hosts::address(host, port).to_string();
    let mut words = os(&[name, "--insecure", "--listen", &listen, "--store"]);
    words.push(folder.join(name).into());
    let daemon = start(hosts, host, name, words, folder.join(format!("{name}.err")));
    daemon
        .wait_line(LIMIT, |line| line.contains("listening"))
        .expect("it listens");
    daemon
}

fn start(hosts: &Hosts, host: Host, name: &str, words: Vec<OsString>, errors: PathBuf) -> Daemon {
    let words = hosts.on(host, PROGRAM, words);
    Daemon::start_other(name, Path::new("nsenter"), words, errors).expect("it starts")
}

/// What became of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is a pair still.
    Whole,
    /// This replica went on alone.
    Alone(&'static str),
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
        let path = |name: &str| services.folder.join(format!("{vm}.{name}"));
        let events = [path("primary.events"), path("backup.events")];
        let both = |name: &str, events: &Path| {
            let arbiter = format!("tcp:{}", Hosts::address(Host::Arbiter, ARBITER_PORT));
            let views = Hosts::address(Host::Views, VIEWS_PORT).to_string();
            let mut words = os(&["--vm", &vm, "--arbiter", &arbiter, "--viewservice", &views]);
            words.extend(os(&[
                // These networks are the test's own.
                "--insecure",
                "--name",
                &format!("{vm}-{name}"),
                "--net",
                "tap:tap0",
                "--events",
            ]));
            words.push(events.into());
            words
        };
        let hosts = services.hosts;
        let any = Hosts::address(Host::B, 0).to_string();
        let words = [os(&["backup", "--listen", &any]), both("b", &events[1])].concat();
        let backup = start(hosts, Host::B, "backup", words, path("backup.err"));
        let listening = wait(&events[1..], "the backup listens", |lines| {
            lines
                .iter()
                .find(|line| line.event == "listening")
                .map(|line| line.detail.clone())
        });
        let to = os(&[
            "primary",
            "kv",
            "--backup",
            &listening,
            "--backup-name",
            &format!("{vm}-b"),
        ]);
        let words = [to, both("a", &events[0])].concat();
        let primary = start(hosts, Host::A, "primary", words, path("primary.err"));
        primary
            .wait_line(LIMIT, |line| line.contains("ready"))
            .expect("the guest gets ready");
        let options = LoadOptions {
            clients: CLIENTS,
            seed,
            pace: Pace::Think(Duration::from_millis(1)),
            reply_limit: LIMIT,
            max_ops: 400_000,
            ..LoadOptions::default()
        };
        let load = Load::start(SERVER.parse().expect("an address"), options).expect("clients");
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
        read(&self.events)
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

    fn cut(&self, rule: &str) {
        for (from, to) in self.shape.cuts() {
            self.services.hosts.cut(from, to, rule);
        }
    }

    /// A time of up to `longest_ms`.
    fn length(&mut self, longest_ms: u64) -> Duration {
        Duration::from_micros(50_000 + self.rng.below((longest_ms - 50) * 1_000))
    }

    /// Does what is to be done, and undoes it.
    pub fn disturb(&mut self) {
        match self.shape {
            Shape::Loss => {
                self.cut("numgen random mod 100 < 30 ");
                std::thread::sleep(self.length(3_000));
            }
            Shape::Flapping => {
                for _ in 0..1 + self.rng.below(5) {
                    self.cut("");
                    std::thread::sleep(Duration::from_millis(300));
                    self.services.hosts.heal();
                    std::thread::sleep(Duration::from_millis(300));
                }
            }
            Shape::Clients => {
                self.services.hosts.cut_clients();
                std::thread::sleep(self.length(2_000));
            }
            Shape::PrimaryStops | Shape::BackupStops => self.stop(),
            Shape::ArbiterKilled => self.without_an_arbiter(),
            Shape::ViewsKilled => {
                self.services.kill(Host::Views);
                self.cut("");
                self.wait_event("solo");
                self.served("without a viewservice");
                self.services.restart(Host::Views);
            }
            _ => {
                self.cut("");
                self.while_cut();
            }
        }
        self.services.hosts.heal();
        self.served("when all is well again");
    }

    /// Whoever can goes on while the links are cut.
    fn while_cut(&mut self) {
        match self.shape.becomes() {
            Becomes::OneGoesOn | Becomes::GoesOn(_) => self.wait_event("solo"),
            // Longer than a suspicion, so that the pair had the time to part.
            Becomes::Whole | Becomes::Either => std::thread::sleep(Duration::from_millis(600)),
        }
        self.served("while links are cut");
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
        self.services.kill(Host::Arbiter);
        self.cut("");
        wait(&self.events, "two questions without an answer", |lines| {
            let asked = lines
                .iter()
                .filter(|line| line.event == "arbiter_unreachable");
            (asked.count() >= 2).then_some(())
        });
        let lives = |line: &Line| ["flag_won", "solo", "live"].contains(&line.event.as_str());
        let lines = self.lines();
        assert!(!lines.iter().any(lives), "without an arbiter: {lines:#?}");
        self.services.restart(Host::Arbiter);
        self.wait_event("solo");
        self.served("while links are cut");
    }

    /// Ends the pair and judges all that was seen.
    pub fn end(self) -> Fate {
        let epoch = self.load.epoch();
        let mut history = self.load.stop();
        read_all(
            SERVER.parse().expect("an address"),
            epoch,
            LIMIT,
            &mut history,
        )
        .expect("the survivor serves");
        let (mut primary, mut backup) = (self.primary, self.backup);
        let lines = read(&self.events);
        let fate =
            judge(&lines, self.shape.becomes()).unwrap_or_else(|why| panic!("{why}: {lines:#?}"));
        let (serves, other) = match fate {
            Fate::Alone("backup") => (&mut backup, &mut primary),
            _ => (&mut primary, &mut backup),
        };
        serves.ask_to_end();
        let served = serves.wait(LIMIT).expect("it ends");
        assert!(
            served.success(),
            "{}: {served}{}",
            serves.name(),
            serves.complaint()
        );
        let others = other.wait(LIMIT).expect("it ends");
        let code = i32::from(fate != Fate::Whole);
        assert_eq!(
            others.code(),
            Some(code),
            "{}{}",
            other.name(),
            other.complaint()
        );
        let options = CheckOptions {
            lease_slack_ms: LEASE_SLACK_MS,
            ..CheckOptions::default()
        };
        let verdict = check(&history, options);
        assert!(
            verdict.lost_writes == 0 && verdict.linearizable(),
            "{} acknowledged writes lost; {}",
            verdict.lost_writes,
            verdict.explain()
        );
        assert!(history.breaks.is_empty(), "{:?}", history.breaks);
        assert!(verdict.acked_writes > 0, "nothing was written");
        fate
    }
}

fn read(events: &[PathBuf]) -> Vec<Line> {
    let mut lines: Vec<Line> = events.iter().flat_map(|path| Line::all_in(path)).collect();
    lines.sort_by_key(|line| line.at_ns);
    lines
}

/// Waits until `found` finds something in what the replicas noted.
#[track_caller]
fn wait<T>(events: &[PathBuf], what: &str, found: impl Fn(&[Line]) -> Option<T>) -> T {
    let deadline = Instant::now() + LIMIT;
    loop {
        let lines = read(events);
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

/// Judges what the replicas noted: no view is won or lived in twice, who lives alone has won, and the pair became what
/// it had to.
pub fn judge(lines: &[Line], becomes: Becomes) -> Result<Fate, String> {
    for line in lines {
        if ["diverged", "failed", "guest_broke"].contains(&line.event.as_str()) {
            return Err(format!("the {}: {}", line.who, line.event));
        }
    }
    let those =
        |event: &str| -> Vec<&Line> { lines.iter().filter(|line| line.event == event).collect() };
    let (won, solo) = (those("flag_won"), those("solo"));
    for event in [&won, &solo] {
        let views: HashSet<_> = event
            .iter()
            .map(|line| line.detail.split(',').next())
            .collect();
        if views.len() != event.len() {
            return Err("two replicas live in one view".into());
        }
    }
    let fate = match solo.as_slice() {
        [] if won.is_empty() => Fate::Whole,
        [one]
            if won
                .iter()
                .any(|line| line.who == one.who && line.at_ns <= one.at_ns) =>
        {
            Fate::Alone(if one.who == "backup" {
                "backup"
            } else {
                "primary"
            })
        }
        _ => {
            return Err(format!(
                "{} live alone, {} won a flag",
                solo.len(),
                won.len()
            ));
        }
    };
    let is_right = match becomes {
        Becomes::Whole => fate == Fate::Whole,
        Becomes::OneGoesOn => fate != Fate::Whole,
        Becomes::GoesOn(who) => fate == Fate::Alone(who),
        Becomes::Either => true,
    };
    if is_right {
        Ok(fate)
    } else {
        Err(format!("it is {fate:?}, not {becomes:?}"))
    }
}
