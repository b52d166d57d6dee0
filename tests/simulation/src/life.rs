//! A life: an installation, what a seed does to it, and whether all is well in the end.

use crate::breaks::Tamper;
use crate::kernel::{self, HostNo, Pace, Pid};
use crate::oracle::{CLIENTS, oracle, say};
use crate::world::{Break, FLAGS, REPLICAS, Terms, VIEWS, World, handle, sleep_ms};
use check::rng::Rng;
use std::path::Path;
use vmm::soft::Executor;

/// Longest time until the first pair is there.
const START_MS: u64 = 20_000;
/// Longest time, behind all faults, until the machine is protected and serves.
const HEAL_MS: u64 = 40_000;
/// Most true time of a life.
const LIMIT_NS: u64 = 400_000_000_000;

/// How a life goes.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// What decides everything.
    pub seed: u64,
    /// How long faults are made, in simulated milliseconds.
    pub fault_ms: u64,
    /// A fault that is built in.
    pub broken: Option<Break>,
    /// All that is said is printed.
    pub verbose: bool,
}

/// What a fault does, for so long.
#[derive(Clone, Copy, Debug)]
enum Fault {
    Kill(HostNo),
    Power(HostNo),
    Stop(HostNo),
    Cut(HostNo, HostNo),
    CutOneWay(HostNo, HostNo),
    Alone(HostNo),
    Lose(HostNo, HostNo, u64),
    Slow(HostNo, HostNo),
    Reset(HostNo, HostNo, bool),
    Starve(HostNo),
    SlowDisk(HostNo),
    Failover,
}

/// What is still to be undone.
enum Undo {
    Power(HostNo),
    Go(Pid),
    Heal(HostNo, HostNo),
    Feed(HostNo),
    FastDisk(HostNo),
}

/// Lives a life, and says how it went. Does not return.
pub fn live(options: Options, folder: &Path) -> ! {
    let mut rng = Rng::new(options.seed, 7);
    let pace = Pace {
        preempt: [0, 8, 64][rng.below(3) as usize],
        wake_ns: [10_000, 40_000, 300_000][rng.below(3) as usize],
    };
    std::panic::set_hook(Box::new(|panic| kernel::fail(&format!("{panic}"))));
    let executor = [Executor::Translate, Executor::Interpret][rng.below(2) as usize];
    executor.use_in_process();
    kernel::begin(options.seed, pace, LIMIT_NS);
    kernel::tamper(Tamper::of(options.broken));
    oracle().verbose = options.verbose;
    let terms = Terms {
        suspect_ms: [300, 300, 600, 1000][rng.below(4) as usize],
        drift_ppm: [0, 200, 10_000][rng.below(3) as usize],
        latency_ns: [
            (40_000, 60_000),
            (200_000, 1_000_000),
            (5_000_000, 3_000_000),
        ][rng.below(3) as usize],
        broken: options.broken,
    };
    let mut life = Life {
        world: World::new(folder, terms),
        terms,
        rng,
        undo: Vec::new(),
        faults: 0,
    };
    life.run(options)
}

struct Life {
    world: World,
    terms: Terms,
    rng: Rng,
    undo: Vec<(u64, Undo)>,
    faults: u64,
}

/// What became of it.
enum End {
    Lives,
    Lost,
}

impl Life {
    fn run(&mut self, options: Options) -> ! {
        say("director", &format!("{:?}", self.terms));
        self.world.begin();
        let until = kernel::now_ns() + START_MS * 1_000_000;
        let mut clients = false;
        while !self.serves() {
            if !clients && oracle().pair.is_some() {
                clients = true;
                self.world.begin_to_serve();
            }
            if kernel::now_ns() > until {
                kernel::fail("no pair begins");
            }
            sleep_ms(20);
        }
        let until = kernel::now_ns() + options.fault_ms * 1_000_000;
        let mut end = End::Lives;
        while kernel::now_ns() < until {
            let ms = 20 + self.rng.below(680);
            if let Some(End::Lost) = self.pass(ms) {
                end = End::Lost;
                break;
            }
            self.make_fault();
        }
        if matches!(end, End::Lives) {
            end = self.heal();
            if let Err(why) = self.world.check_flags() {
                kernel::fail(&why);
            }
        }
        let (calls, turns, digest) = kernel::counts();
        let oracle = oracle();
        let what = match end {
            End::Lives => "lives",
            End::Lost => "lost",
        };
        crate::report::passed(&format!(
            "{what} seed {} ms {} faults {} failovers {} joins {} replies {} calls {calls} turns {turns} digest {digest:016x}",
            options.seed,
            kernel::now_ns() / 1_000_000,
            self.faults,
            oracle.failovers,
            oracle.joins,
            oracle.replies.iter().sum::<u64>(),
        ))
    }

    /// Whether every client has been told something.
    fn serves(&self) -> bool {
        oracle().replies.iter().all(|count| *count > 0)
    }

    /// Lets time pass; what is due is undone, and what ended is started again. Whether the machine was lost.
    fn pass(&mut self, ms: u64) -> Option<End> {
        let until = kernel::now_ns() + ms * 1_000_000;
        while kernel::now_ns() < until {
            self.undo_until(kernel::now_ns());
            self.world.tend();
            if self.is_lost() {
                return Some(End::Lost);
            }
            sleep_ms(20);
        }
        None
    }

    /// Whether nobody is left who could go on.
    fn is_lost(&self) -> bool {
        oracle().is_lost()
    }

    fn undo_until(&mut self, now: u64) {
        let due = self.undo.extract_if(.., |(when, _)| *when <= now);
        for (_, undo) in due.collect::<Vec<_>>() {
            match undo {
                Undo::Power(host) => kernel::power(host, true),
                Undo::Go(process) => kernel::stop(process, false),
                Undo::Heal(from, to) => {
                    let latency_ns = self.terms.latency_ns;
                    *kernel::wire(from, to) = kernel::Wire {
                        latency_ns,
                        ..kernel::Wire::default()
                    };
                }
                Undo::Feed(host) => kernel::starve(host, 0),
                Undo::FastDisk(host) => kernel::slow_disk(host, 200_000),
            }
        }
    }

    /// The hosts of the pair, if the machine has a backup: its primary's first.
    fn pair(&self) -> Option<[HostNo; 2]> {
        let (leader, backup) = {
            let oracle = oracle();
            oracle.pair?;
            (oracle.leader()?, oracle.backup()?)
        };
        let host = |pid| {
            self.world
                .runs
                .iter()
                .find(|(_, runs)| **runs == pid)
                .map(|(host, _)| *host)
        };
        let pair = [host(leader)?, host(backup)?];
        let alive = kernel::is_alive(leader) && kernel::is_alive(backup);
        alive.then_some(pair)
    }

    fn make_fault(&mut self) {
        let pair = self.pair();
        let any = REPLICAS[self.rng.below(3) as usize];
        let other = loop {
            let other = REPLICAS[self.rng.below(3) as usize];
            if other != any {
                break other;
            }
        };
        let service = [FLAGS, VIEWS][self.rng.below(2) as usize];
        let (one, two) = pair.map_or((any, other), |[a, b]| {
            if self.rng.below(2) == 0 {
                (a, b)
            } else {
                (b, a)
            }
        });
        // A machine that runs alone is lost with its host: seldom, as little is learnt of it.
        let may_kill = pair.is_some() || self.rng.below(12) == 0;
        let fault = match self.rng.below(20) {
            0..3 if may_kill => Fault::Kill(one),
            3 if may_kill => Fault::Power(one),
            0..4 => return,
            4 => Fault::Stop(one),
            5 => Fault::Cut(one, two),
            6 => Fault::CutOneWay(one, two),
            7 => Fault::Alone(any),
            8 => Fault::Lose(one, two, 10_000 + self.rng.below(500_000)),
            9 => Fault::Slow(one, two),
            10 => Fault::Reset(one, two, self.rng.below(2) == 0),
            11 => Fault::Starve(any),
            12 => Fault::Kill(service),
            13 => Fault::Power(service),
            14 => Fault::Stop(service),
            15 => Fault::SlowDisk(service),
            16 => Fault::Cut(any, service),
            17 => Fault::CutOneWay(any, service),
            18 => Fault::CutOneWay(service, any),
            _ => Fault::Failover,
        };
        self.do_fault(fault);
    }

    fn until(&mut self, most_ms: u64) -> u64 {
        let ms = 20 + self.rng.below(most_ms);
        kernel::now_ns() + ms * 1_000_000
    }

    fn undo_at(&mut self, when: u64, undo: Undo) {
        self.undo.push((when, undo));
    }

    fn do_fault(&mut self, fault: Fault) {
        say("director", &format!("{fault:?}"));
        self.faults += 1;
        let until = self.until(2_500);
        match fault {
            Fault::Kill(host) => {
                if let Some(process) = self.world.runs.get(&host).copied() {
                    oracle().killed.insert(process);
                    kernel::kill(
                        process,
                        [1, 1_000_000, 200_000_000][self.rng.below(3) as usize],
                    );
                }
            }
            Fault::Power(host) => {
                if let Some(process) = self.world.runs.get(&host) {
                    oracle().killed.insert(*process);
                }
                kernel::power(host, false);
                self.undo_at(until, Undo::Power(host));
            }
            Fault::Stop(host) => {
                if let Some(process) = self.world.runs.get(&host).copied() {
                    kernel::stop(process, true);
                    self.undo_at(until, Undo::Go(process));
                }
            }
            Fault::Cut(a, b) => {
                self.cut(a, b, until);
                self.cut(b, a, until);
            }
            Fault::CutOneWay(a, b) => self.cut(a, b, until),
            Fault::Alone(host) => {
                for other in REPLICAS
                    .into_iter()
                    .chain([FLAGS, VIEWS])
                    .filter(|other| *other != host)
                {
                    self.cut(host, other, until);
                    self.cut(other, host, until);
                }
            }
            Fault::Lose(a, b, ppm) => {
                for (from, to) in [(a, b), (b, a)] {
                    kernel::wire(from, to).loss_ppm = ppm;
                    self.undo_at(until, Undo::Heal(from, to));
                }
            }
            Fault::Slow(a, b) => {
                kernel::wire(a, b).latency_ns = (20_000_000, 200_000_000);
                self.undo_at(until, Undo::Heal(a, b));
            }
            Fault::Reset(a, b, both) => kernel::reset(a, b, both),
            Fault::Starve(host) => {
                kernel::starve(host, 100_000_000);
                self.undo_at(until, Undo::Feed(host));
            }
            Fault::SlowDisk(host) => {
                kernel::slow_disk(host, 2_000_000_000);
                self.undo_at(until, Undo::FastDisk(host));
            }
            Fault::Failover => {
                let leader = oracle().leader();
                if let Some(handle) = leader.and_then(handle) {
                    drop(handle.failover());
                }
            }
        }
    }

    fn cut(&mut self, from: HostNo, to: HostNo, until: u64) {
        kernel::wire(from, to).cut = true;
        self.undo_at(until, Undo::Heal(from, to));
    }

    /// All faults end. Waits until the machine is protected and serves everybody, which it has to.
    fn heal(&mut self) -> End {
        say("director", "all is healed");
        self.undo_until(u64::MAX);
        let until = kernel::now_ns() + HEAL_MS * 1_000_000;
        let before = oracle().replies;
        loop {
            if let Some(end) = self.pass(50) {
                return end;
            }
            let now = oracle().replies;
            let all = (0..CLIENTS).all(|client| now[client] > before[client] + 2);
            if all && self.pair().is_some() {
                return End::Lives;
            }
            let leads = oracle().leader().is_some_and(kernel::is_alive);
            if !leads && self.world.has_lost_its_last_holder() {
                return End::Lost;
            }
            if kernel::now_ns() > until {
                kernel::fail(&format!(
                    "liveness: {} s after all was healed {}",
                    HEAL_MS / 1000,
                    if all {
                        "the machine has no backup"
                    } else {
                        "not all clients are served"
                    }
                ));
            }
        }
    }
}
