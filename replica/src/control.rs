//! The control thread of a replica: carries out what the role machine commands.

use crate::address::HostPort;
use crate::asked::{Ask, Asker, Spare, Told};
use crate::body::{Body, Wire};
use crate::claim::{Claims, PATIENCE, Unmarked};
use crate::die::{self, Step};
use crate::error::{During, Outcome, ReplicaError};
use crate::join::{self, Cost, Joined, Orders, Pace, Resume, Stands};
use crate::last_words::{is_well, of_status};
use crate::lead::{self, Started, Terms};
use crate::notice::{Log, Notice};
use crate::partners::Partners;
use crate::report::Reporter;
use crate::role::{Role, RoleCommand, RoleEvent, RoleMachine};
use crate::{Mailbox, Message};
use logchannel::LinkEnd;
use replay::{LogIndex, ViewNumber};
use std::collections::VecDeque;
use std::net::{SocketAddr, TcpListener};
use std::num::NonZeroU16;
use std::sync::Arc;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};
use testandset::{Arbiter, ArbiterError, Flag, Verdict};
use viewservice::HostId;

/// Time between two questions to an arbiter that is out of reach.
const RETRY: Duration = Duration::from_millis(100);
/// Time before a backup is called again that the viewservice named and that was not to be had.
const REST: Duration = Duration::from_secs(2);
/// Time between two notes of a replica's counters.
const METRICS: Duration = Duration::from_millis(250);
/// Longest time for what is left of a life to end.
const FINISH: Duration = Duration::from_secs(10);
/// Time between two looks at whether a backup that is to be left the machine has taken part.
const LOOK: Duration = Duration::from_millis(5);

/// Runs one replica's role to its end.
pub struct Control<'a> {
    pub role: RoleMachine,
    pub body: Body,
    pub arbiter: &'a dyn Arbiter,
    pub terms: Terms,
    pub orders: Arc<Orders>,
    pub join: Join,
    /// Where this replica waits as a backup, once it has left the machine to its own.
    pub listen: HostPort,
    pub log: &'a mut Log,
    pub reporter: Reporter,
    pub mailbox: &'a Mailbox,
    pub stopping: Stopping,
    pub alone: Alone,
}

/// A new backup that is being given the machine.
#[derive(Default)]
pub struct Join {
    /// Where it is, and what was asked for.
    offer: Option<Offer>,
    /// The host of the last backup that the viewservice named and that was called.
    named: Option<HostId>,
    /// The last backup that was not to be had, and since when.
    failed: Option<(HostPort, Instant)>,
    /// Where the backup is, of a replica that leads a pair.
    partner: Option<HostPort>,
    /// The machine is to be left to the backup there is.
    leave: Option<Leave>,
    /// It was left the machine: who is told, and what.
    left: Option<(Asker, Told)>,
    /// Where this replica waits as a backup from then on, if it does.
    waits: Option<TcpListener>,
    /// Where the primary waits that has left this replica the machine.
    returns: Option<SocketAddr>,
    /// The link to it, once it has the machine, which stands still.
    level: Option<(Started, Stands)>,
    /// How the machine goes on, once the flag is won.
    sealed: Option<(Stands, Resume)>,
    /// What it cost, once it goes on.
    cost: Cost,
    /// It is still to be told that the backup has compared all memory.
    unproved: bool,
    /// The number of the present link, or of the one before. Of one that was given up nothing is heeded.
    link: u64,
}

/// A backup that was offered.
struct Offer {
    backup: HostPort,
    /// The machine is to be left to it.
    moves: bool,
    asker: Asker,
}

/// A wish that the machine be left to the backup there is.
struct Leave {
    asker: Asker,
    /// How far the log was appended by then.
    appended: LogIndex,
    /// Where this replica waits afterwards, if it is to follow.
    port: Option<Port>,
}

/// A port that is listened at.
struct Port {
    listener: TcpListener,
    number: NonZeroU16,
}

impl Port {
    fn at(address: &HostPort, partners: &Partners) -> Outcome<Self> {
        let listener = partners.listen(address)?;
        let number = listener.local_addr()?.port();
        let number =
            NonZeroU16::new(number).ok_or_else(|| ReplicaError::refused("it has no port"))?;
        Ok(Self { listener, number })
    }
}

impl Join {
    /// Of a replica that leads a pair from the start: its backup is there.
    pub fn with(partner: HostPort) -> Self {
        Self {
            partner: Some(partner),
            ..Self::default()
        }
    }

    /// The machine stays here: whoever wanted it left to its backup is told so.
    fn stay(&mut self, why: &str) {
        if let Some(leave) = self.leave.take() {
            leave.asker.refuse(why);
        }
    }

    /// The replica is over, as `halted` says: whoever is still to be told something is.
    fn over(&mut self, halted: Option<&str>) {
        let why = match halted {
            Some(why) => format!("this replica halted: {why}"),
            None => "the machine ended first".to_owned(),
        };
        self.stay(&why);
        if let Some(offer) = self.offer.take() {
            offer.asker.refuse(why);
        }
        if let Some((asker, told)) = &self.left {
            asker.tell(told.clone());
        }
    }
}

/// What becomes of a replica that the other one leaves alone.
pub struct Alone {
    /// A machine that never had a backup may run.
    allowed: bool,
    /// How the link ended, and whether the two had been a pair until then.
    lost: Option<(String, bool)>,
}

impl Alone {
    /// Nobody is lost yet; whether a machine that never had a backup may run.
    pub fn allowed(allowed: bool) -> Self {
        let lost = None;
        Self { allowed, lost }
    }

    /// How the link ended, if the machine must not run for it.
    fn forbidden(&self) -> Option<&str> {
        match &self.lost {
            Some((how, false)) if !self.allowed => Some(how),
            _ => None,
        }
    }
}

/// What a replica that was asked to stop still waits for.
#[derive(Default)]
pub struct Stopping {
    asked: bool,
    /// When an arbiter that gives no answer is given up.
    give_up_at: Option<Instant>,
    /// Why the machine's end is not marked though it should be.
    unmarked: Option<String>,
}

impl Stopping {
    /// The arbiter gave no answer: whether to give it up.
    fn gives_up(&mut self) -> bool {
        let now = Instant::now();
        self.asked && *self.give_up_at.get_or_insert(now + PATIENCE) <= now
    }
}

impl Control<'_> {
    /// Runs until the role is final. On a thread that goes before other work of the host, where that is
    /// allowed: it works for microseconds at a time, and in a failover everybody waits for it. Returns the port at
    /// which this replica, which has left its machine, waits as a backup now, if it does: nothing else of its life
    /// is left then.
    ///
    /// # Errors
    /// How it ended if not well.
    pub fn run(mut self) -> Outcome<Option<TcpListener>> {
        logchannel::be_punctual();
        self.prepare_flag();
        let mut retry_at: Option<Instant> = None;
        let mut todo: VecDeque<RoleEvent> = VecDeque::new();
        let mut halted: Option<String> = None;
        let mut metrics_at = Instant::now();
        loop {
            if self.log.0.wants_counters() && metrics_at <= Instant::now() {
                self.note_counters();
                metrics_at = Instant::now() + METRICS;
            }
            self.tell_status();
            while let Some(event) = todo.pop_front() {
                let commands = self.role.handle(event);
                // Whoever hears of what is done now finds the role it follows from.
                self.tell_status();
                for command in commands {
                    if let RoleCommand::Halt { why } = &command {
                        halted = Some(why.clone());
                    }
                    todo.extend(self.carry_out(command, &mut retry_at));
                }
                if self.join.level.is_some() && !self.role.is_sealing() {
                    let why = match &halted {
                        Some(why) => format!("this replica halted: {why}"),
                        None => "the machine has no use for it any more".into(),
                    };
                    todo.push_back(self.give_up(&why));
                }
            }
            if self.role.is_final() {
                break;
            }
            if self.join.unproved && self.body.memory_is_proved() {
                self.join.unproved = false;
                self.log.note(Notice::Proved(self.role.view()));
            }
            if let Some(event) = self.leave_if_level().or_else(|| self.take_back()) {
                todo.push_back(event);
                continue;
            }
            let timeout = self.until_next(retry_at, metrics_at);
            match self.mailbox.messages.recv_timeout(timeout) {
                Ok(message) => todo.extend(self.heard(message)),
                Err(RecvTimeoutError::Timeout) => {
                    if retry_at.is_some_and(|at| at <= Instant::now()) {
                        retry_at = None;
                        todo.push_back(RoleEvent::RetryTick);
                    }
                }
                Err(RecvTimeoutError::Disconnected) => unreachable!("it holds an end itself"),
            }
        }
        self.tell_status();
        self.note_counters();
        self.reporter.ended(self.body.exit_status().is_some());
        self.join.over(halted.as_deref());
        let waits = self.join.waits.take();
        self.outcome(halted)?;
        if waits.is_some() {
            self.finish()?;
        }
        Ok(waits)
    }

    /// How long to wait for a message, if none comes.
    fn until_next(&self, retry_at: Option<Instant>, metrics_at: Instant) -> Duration {
        let until = |at: Instant| at.saturating_duration_since(Instant::now());
        let mut timeout = retry_at.map_or_else(|| self.reporter.interval(), until);
        if self.join.leave.is_some() {
            timeout = timeout.min(LOOK);
        }
        if self.log.0.wants_counters() {
            timeout = timeout.min(until(metrics_at));
        }
        timeout
    }

    /// Waits until nothing of this life is left.
    fn finish(mut self) -> Outcome {
        self.reporter.close();
        let mut stopped = false;
        let until = Instant::now() + FINISH;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.mailbox.messages.recv_timeout(left) {
                Ok(Message::Vcpu(_)) => break,
                Ok(Message::StopAsked | Message::HaltAsked(_)) => stopped = true,
                Ok(Message::Asked(_, asker)) => asker.refuse("this replica leaves its machine"),
                Ok(_) => {}
                Err(_) => return Err(ReplicaError::refused("the guest's thread did not end")),
            }
        }
        if stopped {
            // Once more, for the next life.
            let _ = self.mailbox.sender.send(Message::StopAsked);
        }
        self.body.end()
    }

    /// How this replica ends, for whoever started it.
    fn outcome(&mut self, halted: Option<String>) -> Outcome {
        let guests = self.guests_outcome(halted);
        match (guests, self.stopping.unmarked.take()) {
            (Ok(()), Some(why)) => Err(ReplicaError::refused(why)),
            (Err(guests), Some(why)) => {
                self.log.note(Notice::AlsoFailed(&why));
                Err(guests)
            }
            (guests, None) => guests,
        }
    }

    fn guests_outcome(&self, halted: Option<String>) -> Outcome {
        if self.join.left.is_some() {
            return Ok(());
        }
        if let (None, Some(why)) = (&halted, self.body.broke()) {
            return Err(ReplicaError::refused(why));
        }
        if let (None, Some(how)) = (&halted, self.alone.forbidden()) {
            return Err(ReplicaError::refused(format!(
                "the backup was lost before it had acked anything ({how}): the guest was stopped, as \
                 --require-backup asks"
            )));
        }
        match (halted, self.body.exit_status()) {
            (Some(why), _) => Err(ReplicaError::refused(format!("this replica halted: {why}"))),
            (None, Some(code)) if code != 0 => {
                let why = self.body.why();
                Err(ReplicaError::Guest {
                    status: code,
                    said: of_status(code, why.as_deref()),
                    well: is_well(code, why.as_deref()),
                })
            }
            _ => Ok(()),
        }
    }

    /// Tells whoever asks, and the viewservice, what this replica is.
    fn tell_status(&mut self) {
        let status = self.mailbox.tell_status(&self.role, self.body.lag_ms());
        // Of a pair it is the backup: another call that failed came before it.
        let leads = status.role == Some(Role::Primary);
        let backup = self.join.named.clone().filter(|_| leads);
        self.reporter.tell(status, backup);
    }

    fn note_counters(&mut self) {
        if let Some(counters) = self.body.counters() {
            let now = vmm::hostclock::monotonic_ns();
            self.log.0.counters(now, &counters);
        }
    }

    fn heard(&mut self, message: Message) -> Option<RoleEvent> {
        match message {
            Message::StopAsked => {
                self.log.note(Notice::StopAsked);
                self.stopping.asked = true;
                self.join.stay("the machine was asked to stop");
                Some(RoleEvent::StopAsked)
            }
            Message::DiskFailed(why) => {
                self.log.note(Notice::Failed(&why));
                Some(RoleEvent::Failed { why })
            }
            Message::HaltAsked(why) => Some(RoleEvent::Failed { why }),
            Message::Asked(ask, asker) => self.asked(ask, asker),
            Message::Joined(joined) => self.joined(joined),
            Message::Welcomed => {
                self.log.note(Notice::Welcomed(self.role.view().next()));
                die::reached(self.terms.die_at, Step::Welcomed);
                self.prepare_flag_of(self.role.view().next());
                Some(RoleEvent::Welcomed)
            }
            Message::Link(number, _) if number != self.join.link => None,
            Message::Link(_, end) => {
                if matches!(end, LinkEnd::Lost(_)) {
                    self.body.hurry();
                }
                self.log.note(Notice::LinkEnd(&end));
                if self.join.level.is_some() {
                    return Some(self.give_up("it was lost before the pair was formed"));
                }
                self.join.partner = None;
                self.join.returns = self.body.yielded();
                self.join.stay(&format!("its backup was lost first: {end}"));
                let how = match self.join.returns {
                    Some(at) => {
                        format!(
                            "{end}; its primary had said that it leaves, and waits at {at} then"
                        )
                    }
                    None => end.to_string(),
                };
                self.alone.lost = Some((how, self.body.was_a_pair()));
                match end {
                    LinkEnd::Lost(_) => Some(RoleEvent::LinkLost),
                    LinkEnd::Bye(_) => Some(RoleEvent::PeerBye),
                    LinkEnd::Left => None,
                    LinkEnd::OutletFailed(why) => Some(RoleEvent::Failed { why }),
                }
            }
            Message::Vcpu(event) => self.body.vcpu(event, self.log),
        }
    }

    fn carry_out(
        &mut self,
        command: RoleCommand,
        retry_at: &mut Option<Instant>,
    ) -> Option<RoleEvent> {
        match command {
            RoleCommand::HoldOutputs => self.log.note(Notice::Hold),
            RoleCommand::TestAndSet { view } => return Some(self.test_and_set(view)),
            // The guest stands still meanwhile: it is not to wait for an arbiter.
            RoleCommand::RetryLater if self.join.level.is_some() => {
                return Some(self.give_up("the arbiter gave no answer"));
            }
            RoleCommand::RetryLater => *retry_at = Some(Instant::now() + RETRY),
            RoleCommand::Drain => self.body.drain(),
            RoleCommand::Announce => {
                self.body.announce();
                self.log.note(Notice::Announced);
            }
            RoleCommand::Reemit => {
                let count = self.body.reemit();
                self.log.note(Notice::Reemitted(count));
            }
            RoleCommand::OpenGate => {
                if let Err(e) = self.body.open_gate() {
                    return Some(RoleEvent::Failed { why: e.to_string() });
                }
            }
            RoleCommand::ReportView { view } => {
                let how = self.alone.lost.as_ref().map_or("", |(how, _)| how);
                let vm = &self.terms.vm;
                self.log.note(Notice::Solo { vm, view, how });
                self.reporter.report_solo(view);
                if self.alone.forbidden().is_some() {
                    return Some(RoleEvent::StopAsked);
                }
            }
            RoleCommand::GoLive { .. } => self.body.go_live(),
            RoleCommand::StopGuest => {
                self.orders.cancel();
                self.body.stop_guest();
            }
            RoleCommand::Halt { why } => {
                self.orders.cancel();
                self.body.halt();
                self.log.note(Notice::Halted(&why));
            }
            RoleCommand::BeginJoin => return self.begin_join(),
            RoleCommand::CloseGate => self.close_gate(),
            RoleCommand::Welcome { view } => {
                if let Wire::Leads(leads) = &self.body.wire {
                    leads.sender.welcome(view);
                    die::reached(self.terms.die_at, Step::Welcoming);
                }
                // After the word that makes the joiner a backup: no output precedes it.
                if let Some((stands, how)) = self.join.sealed.take() {
                    self.join.cost = stands.resume(how);
                }
            }
            RoleCommand::ReportPair { view } => self.formed(view),
            RoleCommand::End => {
                self.body.leave();
                self.log.note(Notice::Ended);
            }
            RoleCommand::MarkEnd { view } => self.mark_end(view),
        }
        None
    }

    fn asked(&mut self, ask: Ask, asker: Asker) -> Option<RoleEvent> {
        let (backup, moves) = match ask {
            Ask::Protect(backup) => (backup, false),
            Ask::Move(to) => (to, true),
            Ask::Leave { follows } => {
                self.leave_asked(asker, follows);
                return None;
            }
            Ask::Spare(spare) => return self.spare_named(spare, asker),
        };
        self.offered(Offer {
            backup,
            moves,
            asker,
        })
    }

    /// The viewservice names a backup that waits. If it is not the time for that, it will say so again.
    fn spare_named(&mut self, spare: Spare, asker: Asker) -> Option<RoleEvent> {
        let is_alone = self.role.role() == Some(Role::Solo) && self.join.offer.is_none();
        let is_next = self.role.view().next() == spare.view;
        let failed = |(backup, since): &(HostPort, Instant)| {
            *backup == spare.backup && since.elapsed() < REST
        };
        let rests = self.join.failed.as_ref().is_some_and(failed);
        if !is_alone || !is_next || rests || self.stopping.asked {
            return None;
        }
        self.join.named = Some(spare.host);
        self.join.offer = Some(Offer {
            backup: spare.backup,
            moves: false,
            asker,
        });
        Some(RoleEvent::JoinOffered)
    }

    /// Somebody offers a backup for a machine that runs alone.
    fn offered(&mut self, offer: Offer) -> Option<RoleEvent> {
        let refused = match (self.role.role(), &self.join.offer) {
            // It would take the next view for its own to give.
            _ if self.reporter.reports() => {
                "a viewservice keeps this machine's views: it gives the machine a backup by itself, as soon as \
                 a `tandem backup` given that viewservice waits for it"
                    .into()
            }
            (Some(Role::Solo), None) => {
                self.join.offer = Some(offer);
                return Some(RoleEvent::JoinOffered);
            }
            (Some(Role::Solo), Some(other)) => {
                format!("the machine is being given to {}", other.backup)
            }
            (Some(Role::Primary), _) => {
                "only a machine that runs alone takes a backup, and this one has a backup already"
                    .into()
            }
            (role, _) => {
                let role = role.map_or_else(|| "in no role".into(), |role| role.to_string());
                format!("only a machine that runs alone takes a backup; this replica is {role}")
            }
        };
        let backup = offer.backup.to_string();
        let backup = &backup;
        self.log.note(Notice::JoinFailed {
            backup,
            why: &refused,
        });
        offer.asker.refuse(refused);
        None
    }

    /// Somebody wants the machine left to its backup.
    fn leave_asked(&mut self, asker: Asker, follows: bool) {
        let refused = match self.role.role() {
            Some(Role::Solo) => "the machine runs alone: there is no backup to leave it to",
            Some(Role::Backup) => "this replica is the backup: it is its primary that can leave",
            None => "this replica has no part in the machine",
            Some(Role::Primary) if !self.role.leads_a_pair() => {
                "its backup was lost just now, and who goes on is not known yet"
            }
            Some(Role::Primary) if self.stopping.asked => "the machine was asked to stop",
            Some(Role::Primary) if self.join.leave.is_some() => {
                "the machine is being left to its backup already"
            }
            Some(Role::Primary) => {
                // Without an arbiter nobody could go live.
                if let Err(e) = self.arbiter.check() {
                    return asker.refuse(e.to_string());
                }
                let port = follows
                    .then(|| Port::at(&self.listen, &self.terms.partners))
                    .transpose();
                match port.during(format_args!("cannot wait at {} afterwards", self.listen)) {
                    Ok(port) => return self.want_to_leave(asker, port),
                    Err(e) => return asker.refuse(e.to_string()),
                }
            }
        };
        asker.refuse(refused);
    }

    /// A pair was formed: whoever offered the backup is told so, and the machine may have to move.
    fn formed(&mut self, view: ViewNumber) {
        let vm = &self.terms.vm;
        let cost = self.join.cost;
        self.log.note(Notice::Protected { vm, view, cost });
        self.join.unproved = true;
        self.prepare_flag();
        let Some(offer) = self.join.offer.take() else {
            return;
        };
        let backup = offer.backup.to_string();
        offer.asker.tell(Told::Protected { view, backup });
        self.join.partner = Some(offer.backup);
        if offer.moves {
            self.want_to_leave(offer.asker, None);
        }
    }

    /// The machine is to be left to its backup, which hears at which `port` this replica waits afterwards, if at any.
    fn want_to_leave(&mut self, asker: Asker, port: Option<Port>) {
        if let (Wire::Leads(leads), Some(port)) = (&self.body.wire, &port) {
            leads.sender.yields(port.number);
        }
        self.join.leave = Some(Leave {
            asker,
            // Of entries behind that word: once one of them is acked, it was heard.
            appended: self.body.cursors().appended,
            port,
        });
    }

    /// The primary that left this replica the machine waits to be its backup, now that it has gone live. A
    /// viewservice would name it by itself.
    fn take_back(&mut self) -> Option<RoleEvent> {
        if self.role.role() != Some(Role::Solo) || self.join.offer.is_some() {
            return None;
        }
        let returns = self.join.returns.take()?;
        if self.reporter.reports() || self.stopping.asked {
            return None;
        }
        // Nobody asked: notices tell what comes of it.
        let (asker, _) = Asker::new();
        self.offered(Offer {
            backup: returns.into(),
            moves: false,
            asker,
        })
    }

    /// Hands the machine to the joiner, on a thread of its own.
    fn begin_join(&mut self) -> Option<RoleEvent> {
        let offer = self.join.offer.as_ref()?;
        let backup = offer.backup.clone();
        let named = backup.to_string();
        self.log.note(Notice::Joining { backup: &named });
        offer.asker.tell(Told::Joining { backup: named });
        self.prepare_flag();
        let hello = self.terms.hello(lead::offered(self.role.view()));
        let (orders, control) = (self.orders.clone(), self.mailbox.sender.clone());
        let partners = self.terms.partners.clone();
        let (bytes_s, asker) = (self.terms.handover_bytes_s, offer.asker.clone());
        let disk = self.body.outside.disk.clone();
        let hand_over = move || {
            let tell = |bytes| asker.tell(Told::Sent { bytes });
            let pace = Pace {
                bytes_s,
                tell: &tell,
            };
            let joined = join::hand_over(&backup, &partners, &hello, &orders, &disk, &pace);
            let _ = control.send(Message::Joined(joined));
        };
        let thread = std::thread::Builder::new().name("join".into());
        match thread.spawn(hand_over) {
            Ok(_) => None,
            Err(e) => Some(self.give_up(&format!("cannot start a thread: {e}"))),
        }
    }

    /// The joiner has the machine, or has not got it.
    fn joined(&mut self, joined: Outcome<Joined>) -> Option<RoleEvent> {
        self.join.link += 1;
        let linked = joined.and_then(|joined| {
            lead::note_link(&joined.connection, self.terms.settings, self.log);
            let link = self.terms.start(
                joined.connection,
                joined.backup,
                &self.body.outside,
                self.body.lease.clone(),
                self.mailbox.sender.clone(),
                self.join.link,
            )?;
            Ok((link, joined.stands))
        });
        match linked {
            Ok(level) => {
                die::reached(self.terms.die_at, Step::Level);
                self.join.level = Some(level);
                Some(RoleEvent::JoinerLevel)
            }
            Err(e) => Some(self.give_up(&e.to_string())),
        }
    }

    /// The machine is to be left to its backup, and that has taken part and is still there: this replica leaves.
    /// The backup finds its link closed, wins the flag, and goes live. One that may be dead is left nothing: a
    /// pair whose link has ended is none, and it has acked an entry that was made after the wish.
    fn leave_if_level(&mut self) -> Option<RoleEvent> {
        let leave = self.join.leave.as_ref()?;
        if !self.role.leads_a_pair() || self.body.safe() <= leave.appended {
            return None;
        }
        let Leave { asker, port, .. } = self.join.leave.take()?;
        let to = self.join.partner.as_ref().map(ToString::to_string);
        let to = to.unwrap_or_default();
        let why = format!("the machine was left to its backup at {to}");
        let view = self.role.view().next();
        let follows = port.is_some();
        self.join.waits = port.map(|port| port.listener);
        self.join.left = Some((asker, Told::Left { view, to, follows }));
        Some(RoleEvent::Failed { why })
    }

    /// The joiner is not to be had: the machine goes on alone.
    fn give_up(&mut self, why: &str) -> RoleEvent {
        let offer = self.join.offer.take();
        // The link may have had a term for it. From here on nothing that link does changes it.
        self.body.lease.free();
        if let Some((link, stands)) = self.join.level.take() {
            self.join.link += 1;
            stands.resume(Resume::Alone);
            // Last, since it waits for the link's threads.
            drop(link);
        }
        if let Some(offer) = offer {
            let backup = &offer.backup.to_string();
            self.log.note(Notice::JoinFailed { backup, why });
            offer.asker.refuse(why);
            self.join.failed = Some((offer.backup, Instant::now()));
        }
        RoleEvent::LinkLost
    }

    /// The gate is shut: when the guest goes on its outputs are held until the joiner has acked what they
    /// follow from.
    fn close_gate(&mut self) {
        let Some((link, stands)) = self.join.level.take() else {
            return;
        };
        die::reached(self.terms.die_at, Step::Sealed);
        // It was a pair before, whatever becomes of this backup.
        self.alone.allowed = true;
        let ((channel, exit), leads) = self.terms.split(link, &self.body.outside);
        self.body.wire = Wire::Leads(leads);
        self.join.sealed = Some((stands, Resume::Linked(Box::new(channel), exit)));
    }

    /// The flag that whoever goes live after `view` has.
    fn flag(&self, view: ViewNumber) -> Flag {
        Flag {
            vm: self.terms.vm.clone(),
            view,
        }
    }

    /// This replica may have to ask for the flag of its view at any time, and everybody waits for that then.
    fn prepare_flag(&self) {
        self.prepare_flag_of(self.role.view());
    }

    fn prepare_flag_of(&self, view: ViewNumber) {
        self.arbiter
            .prepare(&self.flag(view), &self.terms.incarnation);
    }

    fn test_and_set(&mut self, view: ViewNumber) -> RoleEvent {
        match self
            .arbiter
            .test_and_set(&self.flag(view), &self.terms.incarnation)
        {
            Ok(Verdict::Won) => {
                self.log.note(Notice::FlagWon(view));
                RoleEvent::FlagWon
            }
            Ok(Verdict::Lost { holder }) if holder.is_end_mark() => {
                self.log.note(Notice::VmEnded(view, &holder));
                RoleEvent::VmEnded
            }
            Ok(Verdict::Lost { holder }) => {
                self.log.note(Notice::FlagLost(view, &holder));
                RoleEvent::FlagLost {
                    holder: holder.to_string(),
                }
            }
            Err(e) => {
                if matches!(e, ArbiterError::OtherStore { .. }) {
                    self.log.note(Notice::ArbiterOtherStore(&e));
                } else {
                    self.log.note(Notice::ArbiterUnreachable(&e));
                    tracing::debug!("the arbiter gave no answer, asking again: {e}");
                }
                if self.stopping.gives_up() {
                    return RoleEvent::FlagGivenUp;
                }
                RoleEvent::FlagUnreachable
            }
        }
    }

    fn mark_end(&mut self, view: ViewNumber) {
        let claims = Claims {
            arbiter: self.arbiter,
            vm: &self.terms.vm,
            who: &self.terms.incarnation,
        };
        match claims.mark_end(view) {
            Ok(()) => self.log.note(Notice::Marked(view)),
            Err(e @ Unmarked::Taken { .. }) => {
                self.log.note(Notice::FlagTaken(&e.to_string()));
                tracing::warn!("{e}");
            }
            Err(e) => {
                self.log.note(Notice::NotMarked(&e.to_string()));
                self.stopping.unmarked = Some(e.to_string());
            }
        }
    }
}
