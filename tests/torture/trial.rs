//! A pair under load, from its start to the verdict.

use crate::common::{LIMIT, os};
use crate::verdict::{Causes, Fate, judge, lost};
use check::rng::Rng;
use check::{CheckOptions, Load, LoadOptions, Pace, check, read_all};
use kit::cluster::{Cluster, Pair, PairOptions};
use kit::daemon::Daemon;
use nix::sys::signal::Signal;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use vmm::hostclock::monotonic_ns;

const CLIENTS: u16 = 4;
/// How far kv's leases may differ from the clients' clocks, as in the demo.
const LEASE_SLACK_MS: u64 = 20;

/// A pair with clients at work.
pub struct Trial {
    pub pair: Pair,
    pub causes: Causes,
    /// What the trial is to choose follows from this.
    pub rng: Rng,
    load: Load,
    server: SocketAddr,
}

impl Trial {
    /// Starts a pair and its clients, and lets them work for a random while.
    pub fn begin(
        cluster: &Cluster,
        name: &str,
        seed: u64,
        via: Option<fn(SocketAddr) -> SocketAddr>,
    ) -> Self {
        let mut rng = Rng::new(seed, 0);
        let options = PairOptions {
            network: true,
            via,
            ..PairOptions::default()
        };
        let vm = format!("{name}-{seed}");
        let pair = cluster
            .start_pair(&vm, &os(&["kv"]), &options)
            .expect("a pair");
        pair.wait_ready_within("ready", LIMIT)
            .expect("the guest gets ready");
        let options = LoadOptions {
            clients: CLIENTS,
            seed,
            pace: Pace::Think(Duration::from_millis(1)),
            reply_limit: LIMIT,
            max_ops: 400_000,
            ..LoadOptions::default()
        };
        let load = Load::start(cluster.server(), options).expect("clients");
        let trial = Self {
            pair,
            causes: Causes::default(),
            load,
            server: cluster.server(),
            rng: Rng::new(rng.next_u64(), 1),
        };
        let warm = 100 + rng.below(1000);
        trial.serve(warm);
        trial
    }

    /// Lets the clients have so many more replies.
    #[track_caller]
    pub fn serve(&self, replies: u64) {
        let served = self.load.wait_replies(replies, LIMIT);
        assert!(
            served,
            "the clients are not served: {:#?}",
            self.pair.events()
        );
    }

    /// One of the two.
    pub fn replica(&self, who: &str) -> &Daemon {
        match who {
            "primary" => &self.pair.primary,
            _ => &self.pair.backup,
        }
    }

    fn replica_mut(&mut self, who: &str) -> &mut Daemon {
        match who {
            "primary" => &mut self.pair.primary,
            _ => &mut self.pair.backup,
        }
    }

    /// Stops a replica (SIGSTOP) until `long_enough` returns, and lets it go on. How long that was.
    pub fn stop_while(&mut self, who: &str, long_enough: impl FnOnce(&Self)) -> Duration {
        // Of what was before, nothing can part them any more.
        self.causes = Causes::default();
        let from_ns = monotonic_ns();
        self.replica(who).stand_still().unwrap();
        long_enough(self);
        self.replica(who).signal(Signal::SIGCONT);
        let to_ns = monotonic_ns();
        self.causes.silence(from_ns, to_ns);
        Duration::from_nanos(to_ns - from_ns)
    }

    /// Kills a replica (SIGKILL).
    pub fn kill(&mut self, who: &str) {
        self.causes.killed_ns = Some(monotonic_ns());
        let replica = self.replica_mut(who);
        replica.kill();
        replica.wait(LIMIT).expect("it is gone");
    }

    /// Waits until the replicas have noted what `enough` wants to see.
    #[track_caller]
    pub fn wait_noted(&self, what: &str, enough: impl Fn(&[kit::Line]) -> bool) {
        let deadline = Instant::now() + LIMIT;
        loop {
            let events = self.pair.events();
            if enough(&events) {
                return;
            }
            assert!(Instant::now() < deadline, "no {what}: {events:#?}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits until somebody runs alone.
    pub fn wait_solo(&self) {
        self.wait_noted("replica runs alone", |lines| {
            lines.iter().any(|l| l.event == "solo")
        });
    }

    /// Whether the pair has parted, or is about to.
    pub fn has_parted(&self) -> bool {
        !lost(&self.pair.events()).is_empty()
    }

    /// Everything is allowed to go its way again: waits until each client has been served twice since. The
    /// second request is younger than this moment, so each replica that serves has heard what it waits for.
    #[track_caller]
    pub fn settle(&mut self) {
        for _ in 0..2 {
            let now = self.load.epoch().now_ns();
            let served = self.load.wait_all_replied(now, LIMIT);
            assert!(served, "a client is not served: {:#?}", self.pair.events());
        }
        self.causes.calm_ns = Some(monotonic_ns());
        if self.has_parted() {
            self.wait_solo();
        }
        // What parts them now has no cause.
        let more = self.rng.below(200);
        self.serve(more);
    }

    /// Ends the pair and judges all that was seen.
    #[track_caller]
    pub fn end(self) -> Fate {
        if self.has_parted() {
            self.wait_solo();
        }
        let epoch = self.load.epoch();
        let mut history = self.load.stop();
        read_all(self.server, epoch, LIMIT, &mut history).expect("the survivor serves");
        let fate = end_replicas(self.pair, &self.causes);
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

/// Asks the one that serves to end, waits for both, and judges what they noted and how they ended.
#[track_caller]
fn end_replicas(mut pair: Pair, causes: &Causes) -> Fate {
    let solo = pair.events().into_iter().find(|line| line.event == "solo");
    let mut replicas = [&mut pair.primary, &mut pair.backup];
    if solo.is_some_and(|line| line.who == "backup") {
        replicas.reverse();
    }
    let [serves, other] = &mut replicas;
    serves.ask_to_end();
    let ends = [serves, other].map(|daemon| {
        let status = daemon.wait(LIMIT).expect("it ends");
        (
            status,
            format!("the {}: {status}{}", daemon.name(), daemon.complaint()),
        )
    });
    let killed = replicas[1].was_killed();
    let lines = pair.events();
    let fate = judge(&lines, causes).unwrap_or_else(|why| panic!("{why}"));
    let [(served, how_it_ended), (others, how_the_other_ended)] = ends;
    assert!(served.success(), "{how_it_ended} {lines:#?}");
    let as_it_must = match (&fate, causes.killed_ns) {
        (Fate::Whole, _) => others.success(),
        (Fate::Alone(_), Some(_)) => killed,
        (Fate::Alone(_), None) => others.code() == Some(1),
    };
    assert!(as_it_must, "{how_the_other_ended} {lines:#?}");
    fate
}

/// The end of a test's line.
pub fn became(fate: &Fate) -> String {
    match fate {
        Fate::Whole => "a pair still".into(),
        Fate::Alone(who) => format!("the {who} went on alone"),
    }
}
