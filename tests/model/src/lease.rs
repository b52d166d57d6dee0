//! The model of time: a primary that writes to a shared disk, its backup, two clocks, and the network between.
//!
//! ```text
//!   primary ── Heartbeat { call } ──▶ [ held or open ] ──▶ backup: Detector (suspicion) ─▶ flag ─▶ live
//!   Term (lease), Trust, Detector ◀── [ held or open ] ◀── Ack { answers }, end of the link
//! ```
//!
//! A step is ten milliseconds. In each, either process may stand still, and either direction of the network may hold
//! what is sent: TCP loses nothing that it brings later. What changes from one step to the next is bounded. The
//! arbiter answers at once, which is the worst it can do here.

use logchannel::Settled;
use logchannel::calls::Calls;
use logchannel::heartbeat::{Activity, Beat, Detector};
use logchannel::messages::Settings;
use logchannel::trust::Trust;
use replica::Term;
use stateright::{Model, Property};
use std::collections::VecDeque;

/// Length of a step, in microseconds of a clock that is right.
const STEP_US: u64 = 10_000;
/// Four heartbeats of silence are suspicious.
const SETTINGS: Settings = Settings {
    heartbeat_ms: 20,
    suspect_ms: 80,
};
/// How long after a backup has gone live an output of the old primary may still leave: it was acked before, and who
/// suspects nobody yet and was not paused may read that ack so late. In steps.
const LATE_MAX: u8 = 9;

/// One fault, built into the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Break {
    /// The backup asks for the flag when half of the time to suspicion is over.
    AsksTooSoon,
    /// The lease counts from when an ack is read, whatever that ack answers.
    LeaseFromReading,
    /// The lease is as long as the suspicion, and half of that more.
    LeaseTooLong,
    /// The primary believes whatever it reads.
    TrustsAll,
    /// The backup's clock is twice as fast.
    ClockTooFast,
    /// The backup finds its link closed though its primary lives and hears nothing of that.
    ClosedThoughAlive,
}

/// The space to search.
#[derive(Clone, Copy, Debug)]
pub struct Leases {
    /// How many steps.
    pub steps: u8,
    /// How often a process stops or goes on, or a direction is held or opened.
    pub changes: u8,
    /// Parts per thousand by which the primary's clock is slow and the backup's fast, or the other way round.
    pub drift_permille: u64,
    /// The fault that is built in.
    pub broken: Option<Break>,
}

/// What stands still.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Still {
    /// The primary's process.
    primary: bool,
    /// The backup's.
    backup: bool,
    /// The way to the backup.
    there: bool,
    /// The way to the primary.
    back: bool,
}

impl Still {
    fn changes(self, other: Self) -> u8 {
        [
            self.primary != other.primary,
            self.backup != other.backup,
            self.there != other.there,
            self.back != other.back,
        ]
        .into_iter()
        .map(u8::from)
        .sum()
    }
}

/// What goes to the primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Said {
    /// The last call heard.
    Ack(u64),
    /// The backup has closed the link.
    End,
}

/// One end of the link, as far as both have the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct End<T> {
    clock_us: u64,
    detector: Detector,
    ticked_us: u64,
    /// In its socket.
    arrived: VecDeque<T>,
    heard: bool,
    is_over: bool,
}

impl<T> End<T> {
    fn new(settings: Settings) -> Self {
        Self {
            clock_us: 0,
            detector: Detector::new(settings, 0),
            ticked_us: 0,
            arrived: VecDeque::new(),
            heard: false,
            is_over: false,
        }
    }

    /// Whether it is time for a tick of its watch.
    fn is_due(&self) -> bool {
        self.clock_us - self.ticked_us >= u64::from(SETTINGS.heartbeat_ms) * 1_000
    }

    fn tick(&mut self) -> Beat {
        self.ticked_us = self.clock_us;
        let activity = Activity {
            heard: std::mem::take(&mut self.heard),
            sent: false,
            deaf: false,
            unread: !self.arrived.is_empty(),
            alive: false,
        };
        self.detector.tick(self.clock_us, activity)
    }
}

/// Both replicas, and what is between them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Times {
    step: u8,
    changes: u8,
    still: Still,
    primary_slow: bool,
    primary: End<Said>,
    term: Term,
    trust: Trust,
    calls: Calls,
    read_us: u64,
    /// An ack was believed in this step.
    released: bool,
    backup: End<u64>,
    called: u64,
    there: VecDeque<u64>,
    back: VecDeque<Said>,
    /// The flag: the primary's, or the backup's.
    flag: Option<bool>,
    /// Steps since the backup went live.
    live_for: Option<u8>,
}

impl Times {
    /// Whether the primary writes now, for all it knows. One that stands still writes nothing.
    fn writes(&self) -> bool {
        !self.still.primary && (self.flag == Some(true) || self.leases())
    }

    fn leases(&self) -> bool {
        !self.primary.is_over && self.term.holds(self.primary.clock_us)
    }
}

/// What stands still in the next step, and whether a primary that wakes watches before it reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Next {
    still: Still,
    watches_first: bool,
    /// The backup finds its link closed.
    closes: bool,
}

impl Leases {
    fn broken(&self, fault: Break) -> bool {
        self.broken == Some(fault)
    }

    fn backup_acts(&self, times: &mut Times) {
        let backup = &mut times.backup;
        if times.live_for.is_some() || backup.is_over {
            return;
        }
        let mut says = false;
        while let Some(call) = backup.arrived.pop_front() {
            backup.heard = true;
            says |= call != times.called;
            times.called = call;
        }
        let suspects = backup.is_due() && {
            says = true;
            matches!(backup.tick(), Beat::Suspect { .. })
        };
        if says {
            times.back.push_back(Said::Ack(times.called));
        }
        if suspects {
            self.backup_ends(times);
        }
    }

    /// The backup's link is over: it asks for the flag, and has executed all there is.
    fn backup_ends(&self, times: &mut Times) {
        times.backup.is_over = true;
        if !self.broken(Break::ClosedThoughAlive) {
            times.back.push_back(Said::End);
        }
        if !*times.flag.get_or_insert(false) {
            times.live_for = Some(0);
        }
    }

    fn primary_acts(&self, times: &mut Times, watches_first: bool) {
        if times.primary.is_over {
            return;
        }
        if watches_first {
            self.watch(times);
            self.read(times);
        } else {
            self.read(times);
            self.watch(times);
        }
    }

    fn watch(&self, times: &mut Times) {
        if times.primary.is_over || !times.primary.is_due() {
            return;
        }
        let suspects = matches!(times.primary.tick(), Beat::Suspect { .. });
        if suspects {
            return Self::primary_ends(times);
        }
        let call = times.calls.make(times.primary.clock_us);
        times.there.push_back(call);
    }

    /// Reads all there is in the socket at once.
    fn read(&self, times: &mut Times) {
        if times.primary.is_over || times.primary.arrived.is_empty() {
            return;
        }
        let now_us = times.primary.clock_us;
        let waited_us = now_us - std::mem::replace(&mut times.read_us, now_us);
        times.primary.heard = true;
        match times.trust.read(waited_us, times.calls.last() + 1) {
            Ok(false) => {}
            Ok(true) => {
                let call = times.calls.make(now_us);
                times.there.push_back(call);
            }
            Err(_) => return Self::primary_ends(times),
        }
        let mut ack = None;
        let mut ended = false;
        for said in std::mem::take(&mut times.primary.arrived) {
            match said {
                Said::Ack(answers) => {
                    let is_believed = times.trust.has(answers, times.calls.last())
                        || self.broken(Break::TrustsAll);
                    ack = Some(answers).filter(|_| is_believed);
                }
                Said::End => ended = true,
            }
        }
        if let Some(answers) = ack {
            times.released = true;
            let since_us = times.calls.answered(answers);
            let since_us = match self.broken {
                Some(Break::LeaseFromReading) => Some(now_us),
                Some(Break::LeaseTooLong) => {
                    since_us.map(|at| at + u64::from(SETTINGS.suspect_ms) * 500)
                }
                _ => since_us,
            };
            if let Some(since_us) = since_us {
                times.term.heard(since_us);
            }
        }
        if ended {
            Self::primary_ends(times);
        }
    }

    /// The primary's link is over: it asks for the flag.
    fn primary_ends(times: &mut Times) {
        times.primary.is_over = true;
        times.flag.get_or_insert(true);
    }

    fn advance(&self, times: &mut Times) {
        times.step += 1;
        times.released = false;
        let drift_us = STEP_US * self.drift_permille / 1_000;
        let (slow_us, fast_us) = (STEP_US - drift_us, STEP_US + drift_us);
        let (primary_us, backup_us) = match times.primary_slow {
            true => (slow_us, fast_us),
            false => (fast_us, slow_us),
        };
        times.primary.clock_us += primary_us;
        times.backup.clock_us += match self.broken(Break::ClockTooFast) {
            true => backup_us * 2,
            false => backup_us,
        };
        if let Some(steps) = &mut times.live_for {
            *steps = steps.saturating_add(1);
        }
    }
}

impl Model for Leases {
    type State = Times;
    type Action = Next;

    fn init_states(&self) -> Vec<Times> {
        let settled = Settled {
            settings: SETTINGS,
            round_trip_us: 0,
        };
        let suspects = Settings {
            suspect_ms: SETTINGS.suspect_ms
                / if self.broken(Break::AsksTooSoon) {
                    2
                } else {
                    1
                },
            ..SETTINGS
        };
        let pair = |primary_slow| Times {
            step: 0,
            changes: 0,
            still: Still::default(),
            primary_slow,
            primary: End::new(SETTINGS),
            term: Term::new(settled, 0),
            trust: Trust::new(SETTINGS),
            calls: Calls::new(SETTINGS),
            read_us: 0,
            released: false,
            backup: End::new(suspects),
            called: 0,
            there: VecDeque::new(),
            back: VecDeque::new(),
            flag: None,
            live_for: None,
        };
        vec![pair(true), pair(false)]
    }

    fn actions(&self, times: &Times, next: &mut Vec<Next>) {
        if times.step >= self.steps {
            return;
        }
        let bits = |n: u8| [1, 2, 4, 8].map(|bit| n & bit != 0);
        for [primary, backup, there, back] in (0..16).map(bits) {
            let still = Still {
                primary,
                backup,
                there,
                back,
            };
            if times.changes + still.changes(times.still) > self.changes {
                continue;
            }
            let wakes = times.still.primary && !primary;
            for watches_first in [false, true] {
                if watches_first && !wakes {
                    continue;
                }
                next.push(Next {
                    still,
                    watches_first,
                    closes: false,
                });
                if self.broken(Break::ClosedThoughAlive) && times.live_for.is_none() && !backup {
                    next.push(Next {
                        still,
                        watches_first,
                        closes: true,
                    });
                }
            }
        }
    }

    fn next_state(&self, before: &Times, next: Next) -> Option<Times> {
        let mut times = before.clone();
        times.changes += next.still.changes(times.still);
        times.still = next.still;
        self.advance(&mut times);
        if !times.still.there {
            times.backup.arrived.extend(times.there.drain(..));
        }
        if !times.still.back {
            times.primary.arrived.extend(times.back.drain(..));
        }
        if !times.still.backup {
            self.backup_acts(&mut times);
        }
        if next.closes {
            self.backup_ends(&mut times);
        }
        if !times.still.primary {
            self.primary_acts(&mut times, next.watches_first);
        }
        Some(times)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(ONE_WRITES, |_, times: &Times| {
                times.live_for.is_none() || !times.writes()
            }),
            Property::always(NOTHING_LATE, |_, times: &Times| {
                !(times.released && times.live_for.is_some_and(|steps| steps > LATE_MAX))
            }),
            Property::sometimes("a backup goes live", |_, times: &Times| {
                times.live_for.is_some()
            }),
            Property::sometimes("a primary goes on alone", |_, times: &Times| {
                times.flag == Some(true)
            }),
            Property::sometimes("a lease has lapsed under a link", |_, times: &Times| {
                !times.primary.is_over && !times.leases()
            }),
            Property::sometimes("a lease is renewed after a pause", |_, times: &Times| {
                times.changes >= 2 && times.leases() && times.step > 12 && times.live_for.is_none()
            }),
        ]
    }
}

/// No write of a primary follows its backup's going live: invariants 3 and 9 for what is shared.
pub const ONE_WRITES: &str = "one writes";

/// What a pause kept is not let out after it.
pub const NOTHING_LATE: &str = "nothing leaves late";
