//! A pair under load, from its start to the verdict.

use crate::common::{LIMIT, fate, os};
use crate::verdict::{Causes, judge};
use check::rng::Rng;
use check::{Load, LoadOptions, read_all};
use kit::cluster::{Cluster, Pair, PairOptions};
use kit::daemon::Daemon;
use kit::fate::{Fate, lost};
use kit::guest::Served;
use kit::round::load_options;
use kit::{Judged, Line};
use nix::sys::signal::Signal;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use vmm::hostclock::monotonic_ns;

const CLIENTS: u16 = 4;

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
            reply_limit: LIMIT,
            ..load_options(&Served::kv(), CLIENTS, seed)
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
        let events = self.pair.events_files().clone();
        let pair = [self.pair.primary, self.pair.backup];
        let killed = self.causes.killed_ns.is_some();
        let (fate, lines) = fate::end(pair, || Line::all_of(&events), killed);
        if let Err(why) = judge(&lines, &self.causes) {
            panic!("{why}: {lines:#?}");
        }
        fate::nobody_noticed(&Judged::of(&history, &Served::kv()));
        fate
    }
}

/// The end of a test's line.
pub fn became(fate: &Fate) -> String {
    match fate {
        Fate::Whole => "a pair still".into(),
        Fate::Alone(who) => format!("the {who} went on alone"),
    }
}
